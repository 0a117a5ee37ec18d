//! Topics on an I/O thread: commands of the queue going down have their turn here.
//!
//! Publishes to one topic, with nothing in between, are a *run*: each subscriber gets them at once, in frames that all share.
//! One that has something to write already has them queued behind it. Any other only notes where they are (`Round`): if nothing
//! follows, they are written from there at the end of the round, as a broadcast is, without a queue of its own; and before
//! anything does follow, they are queued. So several topics, sends and broadcasts of a tick leave in one write, in the order of
//! the calls.

use super::message::{Form, Published, notice};
use super::{Ahead, Begin, Entrance, Message, Position, Shard, Subscriber, Who, matches, message};
use crate::broadcast::{Room, Round};
use crate::connection::Connection;
use crate::endpoint::Endpoint;
use crate::runtime::IoThread;
use bytes::Bytes;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// After so much of what was missed it is written in between, so that a long history need not wait whole.
const WRITE_AT: usize = 256 << 10;

/// Does something for one connection.
fn guarded(conn: &Arc<Connection>, act: impl FnOnce()) {
    // A bug that panics for one connection must not cost the others theirs.
    let _ = catch_unwind(AssertUnwindSafe(act)).inspect_err(|panic| conn.fault(panic.as_ref()));
}

/// Queues on one connection, behind what the round has for it.
fn queue(conn: &Arc<Connection>, room: &mut Room, round: &mut Round, touched: &mut Vec<Arc<Connection>>) {
    guarded(conn, || {
        round.catch_up(conn, touched);
        conn.queue_published(room, touched);
    });
}

/// What a channel gets messages in.
fn form(endpoint: &Endpoint, conn: &Connection) -> Form {
    if endpoint.topics.are_spoken_by(conn) { Form::Envelope } else { Form::Plain }
}

/// Publishes to one topic in a row.
pub(crate) struct Run {
    endpoint: Arc<Endpoint>,
    /// At least one.
    messages: Vec<Published>,
}

impl Run {
    fn takes(&self, endpoint: &Arc<Endpoint>, topic: &str) -> bool {
        Arc::ptr_eq(&self.endpoint, endpoint) && self.messages.last().is_some_and(|(last, _)| *last.topic == *topic)
    }

    /// The subscribers get it.
    fn deliver(&self, thread: usize, round: &mut Round, touched: &mut Vec<Arc<Connection>>) {
        let Shard { index, ahead } = &mut *self.endpoint.topics.shards[thread].lock();
        // Who has come from another node may have had some of it.
        let at_once = if ahead.is_empty() { self.messages.len() } else { 1 };
        for messages in self.messages.chunks(at_once) {
            let (first, exclude) = &messages[0];
            let nobody = exclude.filter(|_| messages.len() == 1);
            let mut made = Made::new(&self.endpoint, messages, round.published.len());
            index.for_each(&first.topic, |who, subscriber| {
                if nobody != Some(who) && (ahead.is_empty() || !has_had(ahead, who, first)) {
                    made.give(who, subscriber, round, touched);
                }
            });
            round.published.truncate(made.awaited);
        }
    }
}

/// The forms of messages that somebody has needed so far, each made once for all.
struct Made<'a> {
    endpoint: &'a Arc<Endpoint>,
    messages: &'a [Published],
    /// For channels, by their number in the round.
    rooms: [Option<usize>; 2],
    /// For streams.
    events: [Option<Vec<Bytes>>; 2],
    /// Up to here connections await what the round has.
    awaited: usize,
}

impl<'a> Made<'a> {
    fn new(endpoint: &'a Arc<Endpoint>, messages: &'a [Published], awaited: usize) -> Self {
        Self { endpoint, messages, rooms: [None; 2], events: [None, None], awaited }
    }

    /// Where the round has a form.
    fn room(&mut self, form: Form, round: &mut Round) -> usize {
        *self.rooms[form as usize].get_or_insert_with(|| {
            round.published.push(form.of(self.endpoint, self.messages));
            round.published.len() - 1
        })
    }

    /// The messages as events.
    fn events(&mut self, named: bool) -> &[Bytes] {
        let make = || self.messages.iter().map(|(message, _)| message.event(named).into()).collect();
        self.events[usize::from(named)].get_or_insert_with(make)
    }

    /// What one subscriber gets.
    fn give(&mut self, who: Who, subscriber: &Subscriber, round: &mut Round, touched: &mut Vec<Arc<Connection>>) {
        match subscriber {
            Subscriber::Channel(conn) => {
                let number = self.room(form(self.endpoint, conn), round);
                if !round.has_broadcasts(conn) && conn.await_published(number, touched) {
                    self.awaited = self.awaited.max(number + 1);
                    return;
                }
                guarded(conn, || {
                    round.catch_up(conn, touched);
                    conn.queue_published(&mut round.published[number], touched);
                });
            }
            Subscriber::Stream { stream, named } => {
                let messages = self.messages;
                for (event, (_, exclude)) in self.events(*named).iter().zip(messages) {
                    // False: it has ended or is too slow, which it counts and tells by itself.
                    let _ = *exclude != Some(who) && stream.write(event.clone());
                }
            }
        }
    }
}

/// The turn of a publish, which waits for more of its kind.
pub(crate) fn publish(
    io: &Arc<IoThread>,
    endpoint: Arc<Endpoint>,
    message: Arc<Message>,
    exclude: Option<Who>,
    round: &mut Round,
    touched: &mut Vec<Arc<Connection>>,
) {
    if let Some(run) = round.run.as_mut().filter(|run| run.takes(&endpoint, &message.topic)) {
        run.messages.push((message, exclude));
    } else {
        deliver(io, round, touched);
        round.run = Some(Run { endpoint, messages: vec![(message, exclude)] });
    }
}

/// Something else has its turn, or the round is over: what was published last reaches its subscribers.
pub(crate) fn deliver(io: &Arc<IoThread>, round: &mut Round, touched: &mut Vec<Arc<Connection>>) {
    if let Some(run) = round.run.take() {
        // A bug that panics in here must not cost the next command its turn.
        let _ = catch_unwind(AssertUnwindSafe(|| run.deliver(io.index, round, touched)))
            .inspect_err(|panic| io.report_panic(panic.as_ref()));
    }
}

/// Whether a subscriber has come from another node with a message. What the others have come up to is forgotten.
fn has_had(ahead: &mut Ahead, who: Who, message: &Message) -> bool {
    let Message { topic, position, placed, .. } = message;
    let Some(filters) = ahead.get_mut(&who).filter(|_| *placed) else { return false };
    filters.retain(|(_, had)| had.epoch == position.epoch && had.seq >= position.seq);
    let had = filters.iter().any(|(filter, _)| matches(filter, topic));
    if filters.is_empty() {
        ahead.remove(&who);
    }
    had
}

/// The turn of a message that says that some are lost. `told`: who is to hear it, and of which filters.
pub(crate) fn gap(
    io: &IoThread,
    endpoint: &Arc<Endpoint>,
    position: Position,
    told: &[(Who, Vec<Arc<str>>)],
    round: &mut Round,
    touched: &mut Vec<Arc<Connection>>,
) {
    let shard = endpoint.topics.shards[io.index].lock();
    for (who, filters) in told {
        // Those of other threads are not there.
        let Some(subscriber) = filters.first().and_then(|filter| shard.index.get(filter, *who)) else { continue };
        let speaks = match subscriber {
            Subscriber::Channel(conn) => endpoint.topics.are_spoken_by(conn),
            Subscriber::Stream { .. } => true,
        };
        if speaks {
            say(endpoint, subscriber, filters, Begin { position, complete: false }, round, touched);
        }
    }
}

/// Says how a subscription begins, or goes on.
fn say(
    endpoint: &Arc<Endpoint>,
    subscriber: &Subscriber,
    filters: &[Arc<str>],
    begin: Begin,
    round: &mut Round,
    touched: &mut Vec<Arc<Connection>>,
) {
    let Begin { position, complete } = begin;
    match subscriber {
        Subscriber::Channel(conn) => {
            for filter in filters {
                let topic = message::json(filter);
                let text =
                    format!(r#"{{"pyhv":"subscribed","topic":{topic},"position":"{position}","complete":{complete}}}"#);
                queue(conn, &mut notice(endpoint, &text), round, touched);
            }
        }
        Subscriber::Stream { stream, .. } => {
            // An id without data is no event, but what the client sends when it comes back (WHATWG HTML section 9.2.6).
            let gap = if complete { "" } else { "event: gap\ndata:\n" };
            let _ = stream.write(format!("id: {position}\n{gap}\n").into());
        }
    }
}

/// The turn of a subscription: says that there is one, and gives what was missed.
pub(crate) fn subscribe(io: &IoThread, entrance: Entrance, round: &mut Round, touched: &mut Vec<Arc<Connection>>) {
    let Entrance { endpoint, subscriber, filters, missed, begin, ahead, confirm } = entrance;
    {
        let shard = &mut *endpoint.topics.shards[io.index].lock();
        // Looked at under the lock under which all are forgotten when the owner goes.
        if endpoint.is_abandoned() {
            return;
        }
        for filter in &filters {
            shard.index.insert(filter, subscriber.who(), subscriber.clone());
        }
        if let Some(position) = ahead {
            let had = shard.ahead.entry(subscriber.who()).or_default();
            had.extend(filters.iter().map(|filter| (Arc::clone(filter), position)));
        }
    }
    if let Some(begin) = begin {
        say(&endpoint, &subscriber, &confirm, begin, round, touched);
    }
    let mut queued = 0;
    for message in missed {
        queued += message.size();
        match &subscriber {
            Subscriber::Channel(conn) => {
                let mut room = form(&endpoint, conn).of(&endpoint, &[(message, None)]);
                queue(conn, &mut room, round, touched);
                if queued >= WRITE_AT {
                    queued = 0;
                    conn.flush_early();
                }
            }
            Subscriber::Stream { stream, named } => {
                let _ = stream.write(message.event(*named).into());
            }
        }
    }
}

/// The turn of the end of some subscriptions.
pub(crate) fn unsubscribe(io: &IoThread, endpoint: &Endpoint, who: Who, filters: &[Arc<str>]) {
    let mut gone = Vec::with_capacity(filters.len());
    {
        let shard = &mut *endpoint.topics.shards[io.index].lock();
        gone.extend(filters.iter().map(|filter| shard.index.remove(filter, who)));
        if let Some(ahead) = shard.ahead.get_mut(&who) {
            ahead.retain(|(filter, _)| !filters.contains(filter));
            if ahead.is_empty() {
                shard.ahead.remove(&who);
            }
        }
    }
    // It may have the last reference to a connection: not under the lock.
    drop(gone);
}
