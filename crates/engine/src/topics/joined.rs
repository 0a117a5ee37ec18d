//! What a backplane calls, with what came from other processes; see [`backplane`](super::backplane) for the rules.

use super::backplane::Backplane;
use super::message::{self, Message, Position};
use super::name::is_pattern;
use super::{Command, DownQueue, Endpoint, Entrance, Subscriber, Waiting, Who, tell};
use crate::wire::Opcode;
use bytes::Bytes;
use indexmap::IndexMap;
use std::sync::Arc;
use std::time::Instant;

impl Endpoint {
    /// Joins this process to others. `together`: positions are those of all nodes; what is kept is not known before
    /// [`level`](Self::level).
    pub fn join(&self, backplane: Arc<dyn Backplane>, together: bool) {
        let board = &mut *self.topics.board.lock();
        backplane.rules(board.history.rules().digest());
        board.backplane = backplane;
        board.joined = together;
        board.waiting = together.then(Vec::new);
    }

    /// A message of before this node joined: kept, and sent to nobody.
    pub fn refill(&self, topic: &str, opcode: Opcode, payload: &Bytes, key: Option<&[u8]>, position: Position) {
        let frame = message::frame(opcode, payload);
        let board = &mut *self.topics.board.lock();
        board.enter(position);
        if position.seq > board.seq {
            board.seq = position.seq;
            let message = Message::new(topic, position, opcode, frame).with_key(key);
            board.history.note(&Arc::new(message), Instant::now());
        }
    }

    /// All messages up to `head` have been handed over: whoever waits gets what it has missed.
    pub fn level(self: &Arc<Self>, head: Position) {
        let board = &mut *self.topics.board.lock();
        board.enter(Position { seq: head.seq + 1, ..head });
        board.seq = board.seq.max(head.seq);
        let waiting = board.waiting.take();
        if waiting.is_some() {
            // What was refilled went to nobody.
            board.began.values_mut().for_each(|began| *began = head.seq);
        }
        for Waiting { subscriber, mut filters, after, confirm } in waiting.into_iter().flatten() {
            let mine = board.subscriptions.get(&subscriber.who());
            filters.retain(|filter| mine.is_some_and(|mine| mine.contains_key(filter)));
            if filters.is_empty() {
                continue;
            }
            let names: Vec<&str> = filters.iter().map(|filter| &**filter).collect();
            let (mut begin, mut missed) = board.begin(&names, after);
            let ahead = board.is_ahead(begin.position).then_some(begin.position);
            if let Subscriber::Stream { .. } = subscriber {
                self.shorten(&mut begin, &mut missed);
            }
            for filter in &filters {
                board.began.insert((subscriber.who(), Arc::clone(filter)), begin.position.seq);
            }
            let io = Arc::clone(subscriber.io());
            let (endpoint, begin) = (Arc::clone(self), Some(begin));
            let entrance = Entrance { endpoint, subscriber, filters, missed, begin, ahead, confirm };
            DownQueue::push(&io, Command::Subscribe(Box::new(entrance)));
        }
    }

    /// Whether this node has joined others and was never level with them.
    pub(crate) fn is_waiting_for_level(&self) -> bool {
        self.topics.board.lock().waiting.is_some()
    }

    /// Messages are lost that this node should have handed on: subscribers that can be told are.
    pub fn gap(self: &Arc<Self>) {
        let board = &mut *self.topics.board.lock();
        let position = board.position();
        let history = &board.history;
        let of = |filters: &IndexMap<Arc<str>, _>| -> Vec<Arc<str>> {
            filters.keys().filter(|filter| is_pattern(filter) || history.keeps(filter)).cloned().collect()
        };
        let told: Vec<_> = board.subscriptions.iter().map(|(who, filters)| (*who, of(filters))).collect();
        let told: Arc<[_]> = told.into();
        for io in &self.runtime.threads {
            let (endpoint, told) = (Arc::clone(self), Arc::clone(&told));
            DownQueue::push(io, Command::Gap { endpoint, position, told });
        }
    }

    /// A message has come from another node that has no place among the positions.
    pub fn passed(self: &Arc<Self>, topic: &str, opcode: Opcode, payload: &Bytes, key: Option<&[u8]>) {
        let frame = message::frame(opcode, payload);
        let board = &mut *self.topics.board.lock();
        let position = board.position();
        let message = Message::new(topic, position, opcode, frame).with_key(key).behind(position);
        board.deliver(self, Arc::new(message), None);
    }

    /// A message has come from another node, or back to this one. `position`: what all nodes agree on; `None`: the next of
    /// this node. One that is not above the newest has been here before, and is left out: false.
    pub fn arrived(
        self: &Arc<Self>,
        topic: &str,
        opcode: Opcode,
        payload: &Bytes,
        key: Option<&[u8]>,
        position: Option<Position>,
        exclude: Option<Who>,
    ) -> bool {
        let frame = message::frame(opcode, payload);
        let board = &mut *self.topics.board.lock();
        let position = position.unwrap_or(Position { seq: board.seq + 1, ..board.position() });
        if !board.enter(position) && position.seq <= board.seq {
            return false;
        }
        board.seq = position.seq;
        board.deliver(self, Arc::new(Message::new(topic, position, opcode, frame).with_key(key)), exclude);
        true
    }

    /// The first channel of a member has come to a topic on another node, or the last one there has left.
    pub fn presence_elsewhere(self: &Arc<Self>, topic: &str, member: &str, here: bool) {
        let board = &mut *self.topics.board.lock();
        let (topic, member) = (Arc::from(topic), Arc::from(member));
        let change = if here {
            board.presence.join(&topic, &member, false)
        } else {
            board.presence.leave(&topic, &member, false)
        };
        if change.all {
            tell(self, &topic, &member, here);
        }
    }
}
