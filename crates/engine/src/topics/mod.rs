//! Topics: who gets what is published to a name, what of it is kept for those who come back, and who is there.
//!
//! | module | holds |
//! |---|---|
//! | this one | the program's side of an endpoint's topics |
//! | `name` | names, and filters with wildcards |
//! | `index` | who has subscribed to what |
//! | `message` | a message, its position, and the forms that it is sent in |
//! | `history` | what topics keep |
//! | `presence` | members |
//! | `fanout` | the I/O threads' side: what reaches a subscriber |
//! | [`backplane`] | the seam to other processes |
//! | `joined` | what comes from there |
//!
//! There are two registers of subscribers. The *board*, under one lock, is what the program sees: it is right the moment a call
//! returns. Each I/O thread has an index of its own channels, which changes when the command for it has its turn in the queue
//! going down. So a publish reaches exactly those who had subscribed before it, in the order of the program's calls, and costs
//! the caller one encoding and one command whatever their number.
//!
//! A position is given, the message kept, and the commands queued under the lock of the board: the order of positions is the
//! order in every queue. A subscription that resumes takes what was missed under the same lock, so that between that and what
//! is published next nothing is lost and nothing comes twice.

pub mod backplane;
pub(crate) mod fanout;
mod history;
mod index;
mod joined;
mod message;
mod name;
mod presence;
#[cfg(test)]
mod tests;

use crate::connection::Connection;
use crate::down::{Command, DownQueue};
use crate::endpoint::Endpoint;
use crate::inbox::Event;
use crate::runtime::IoThread;
use crate::settings::Settings;
use crate::stream::Stream;
use crate::wire::Opcode;
use backplane::{Alone, Backplane, Route};
pub(crate) use fanout::Run;
use history::{History, Missed};
pub use history::{Keep, Rules};
use index::Index;
use indexmap::IndexMap;
pub use message::{Message, Position};
use name::is_pattern;
pub use name::{NameError, check_filter, check_name, matches};
use parking_lot::Mutex;
use presence::Presence;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

/// The subprotocol of clients that ask for topics themselves: docs/topics.md.
pub const SUBPROTOCOL: &str = "pyhv.topics.v1";

/// A subscriber, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Who {
    /// A channel of the endpoint.
    Channel(u32),
    /// An event stream.
    Stream(u64),
}

/// A subscriber.
#[derive(Clone, Debug)]
pub enum Subscriber {
    /// Gets messages as they are, or, if it speaks the convention, with topic and position.
    Channel(Arc<Connection>),
    /// Gets them as events. `named`: whose type is the topic.
    Stream {
        /// The stream.
        stream: Arc<Stream>,
        /// The type of an event is its topic.
        named: bool,
    },
}

impl Subscriber {
    /// Its number.
    #[must_use]
    pub fn who(&self) -> Who {
        match self {
            Self::Channel(conn) => Who::Channel(conn.channel()),
            Self::Stream { stream, .. } => Who::Stream(stream.id),
        }
    }

    fn io(&self) -> &Arc<IoThread> {
        match self {
            Self::Channel(conn) => conn.io(),
            Self::Stream { stream, .. } => stream.io(),
        }
    }

    /// Whether it can still get anything, and its end is still to be told to the program: [`Endpoint::leave_topics`] follows.
    fn is_alive(&self) -> bool {
        match self {
            Self::Channel(conn) => conn.is_open() && !conn.has_ended(),
            Self::Stream { stream, .. } => stream.is_open(),
        }
    }
}

/// Where a subscription begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// With what is published next.
    Now,
    /// With the oldest message that is kept.
    Oldest,
    /// Behind the last message that the subscriber has had; `None`: behind one that nobody knows.
    Position(Option<Position>),
}

/// How a subscription begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Begin {
    /// Behind this.
    pub position: Position,
    /// Nothing is missing between what was asked for and what comes.
    pub complete: bool,
}

/// Why there is no subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The subscriber has ended.
    Ended,
    /// It has as many as `max_subscriptions_per_channel` allows.
    TooMany(usize),
}

/// What an I/O thread does to let a subscriber in.
#[derive(Debug)]
pub(crate) struct Entrance {
    endpoint: Arc<Endpoint>,
    subscriber: Subscriber,
    filters: Vec<Arc<str>>,
    /// What it missed.
    missed: Vec<Arc<Message>>,
    /// What it is told before that; `None`: nothing yet.
    begin: Option<Begin>,
    /// It has had what comes up to there.
    ahead: Option<Position>,
    /// Filters whose subscription is confirmed to a client that asked.
    confirm: Vec<Arc<str>>,
}

/// What the program sees.
#[derive(Debug)]
struct Board {
    epoch: u64,
    /// The newest message.
    seq: u64,
    subscribers: Index<()>,
    /// The filters of each subscriber, in the order in which it subscribed, and who it is there.
    subscriptions: HashMap<Who, IndexMap<Arc<str>, Option<Arc<str>>>>,
    /// Behind which message each of these subscriptions began.
    began: HashMap<(Who, Arc<str>), u64>,
    history: History,
    presence: Presence,
    backplane: Arc<dyn Backplane>,
    /// Positions are those of many nodes.
    joined: bool,
    /// Subscriptions that wait until this node knows what they have missed; `None`: it does.
    waiting: Option<Vec<Waiting>>,
}

/// A subscription that has begun to get messages, but not yet what it missed.
#[derive(Debug)]
struct Waiting {
    subscriber: Subscriber,
    filters: Vec<Arc<str>>,
    after: After,
    confirm: Vec<Arc<str>>,
}

/// The subscribers of one I/O thread.
#[derive(Debug, Default)]
struct Shard {
    index: Index<Subscriber>,
    /// Who has had the messages of some filters up to a position that this node has not come to. Nearly always empty.
    ahead: Ahead,
}

/// Up to where a subscriber has had what some filters mean.
type Ahead = HashMap<Who, Vec<(Arc<str>, Position)>>;

/// The topics of one endpoint; see the module.
pub struct Topics {
    /// Guards what the program sees; held for one call, never while the program's code runs.
    board: Mutex<Board>,
    /// The subscribers of each I/O thread, which alone locks it while the endpoint lives.
    shards: Box<[Mutex<Shard>]>,
    /// Whether clients may ask for topics.
    pub spoken: bool,
}

impl fmt::Debug for Topics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Topics").finish_non_exhaustive()
    }
}

impl Topics {
    pub(crate) fn new(settings: &Settings, threads: usize) -> Self {
        Self {
            board: Mutex::new(Board {
                epoch: rand::random(),
                seq: 0,
                subscribers: Index::default(),
                subscriptions: HashMap::new(),
                began: HashMap::new(),
                history: History::new(settings.max_topics, settings.max_history_bytes),
                presence: Presence::default(),
                backplane: Arc::new(Alone),
                joined: false,
                waiting: None,
            }),
            shards: (0..threads).map(|_| Mutex::default()).collect(),
            spoken: settings.subprotocols.iter().any(|name| name == SUBPROTOCOL),
        }
    }

    /// Forgets everybody on the I/O threads' side, whose entries would keep the endpoint alive.
    pub(crate) fn clear(&self) {
        for shard in &self.shards {
            let index = std::mem::take(&mut *shard.lock());
            drop(index);
        }
        let waiting = self.board.lock().waiting.as_mut().map(std::mem::take);
        drop(waiting);
    }

    /// Whether a channel speaks the convention of docs/topics.md.
    #[must_use]
    pub fn are_spoken_by(&self, conn: &Connection) -> bool {
        self.spoken && conn.handshake.subprotocol() == Some(SUBPROTOCOL)
    }

    /// What topics keep from here on.
    pub fn set_rules(&self, rules: Rules) {
        let board = &mut *self.board.lock();
        board.backplane.rules(rules.digest());
        board.history.set_rules(rules, board.seq);
    }

    /// The subscribers that get what is published to a topic.
    #[must_use]
    pub fn subscribers(&self, topic: &str) -> Vec<Who> {
        let mut found = Vec::new();
        self.board.lock().subscribers.for_each(topic, |who, ()| found.push(who));
        found.sort_unstable();
        found
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self, topic: &str) -> usize {
        self.board.lock().subscribers.count(topic)
    }

    /// What a subscriber has subscribed to, in that order.
    #[must_use]
    pub fn of(&self, who: Who) -> Vec<Arc<str>> {
        let board = self.board.lock();
        board.subscriptions.get(&who).map(|filters| filters.keys().cloned().collect()).unwrap_or_default()
    }

    /// Who is in a topic, in the order in which they came.
    #[must_use]
    pub fn members(&self, topic: &str) -> Vec<Arc<str>> {
        self.board.lock().presence.members(topic)
    }

    /// The newest position.
    #[must_use]
    pub fn position(&self) -> Position {
        self.board.lock().position()
    }
}

impl Board {
    fn position(&self) -> Position {
        Position { epoch: self.epoch, seq: self.seq }
    }

    /// Goes over to the epoch of a message that comes next; true: it is another one.
    fn enter(&mut self, position: Position) -> bool {
        let new = position.epoch != self.epoch;
        if new {
            // What is kept has positions of a sequence that has ended.
            self.epoch = position.epoch;
            self.seq = position.seq.saturating_sub(1);
            self.history.clear(self.seq);
            self.began.values_mut().for_each(|began| *began = self.seq);
        }
        new
    }

    /// What a subscription to `filters` begins with.
    fn begin(&mut self, filters: &[&str], after: After) -> (Begin, Vec<Arc<Message>>) {
        let newest = self.position();
        let (seq, known) = match after {
            After::Now => return (Begin { position: newest, complete: true }, Vec::new()),
            // Another node was ahead of this one.
            After::Position(Some(position)) if self.is_ahead(position) => {
                let complete = filters.iter().all(|filter| is_pattern(filter) || self.history.keeps(filter));
                return (Begin { position, complete }, Vec::new());
            }
            After::Oldest => (0, false),
            // Of another run, or never given out: whatever is kept the subscriber has not seen.
            After::Position(Some(position)) if position.epoch == self.epoch && position.seq <= self.seq => {
                (position.seq, true)
            }
            After::Position(_) => (0, false),
        };
        // With others, messages of topics that keep none are not counted: there is always one that may have been missed.
        let uncounted = if self.joined { u64::MAX } else { newest.seq };
        let Missed { messages, complete } = self.history.since(filters, seq, uncounted, Instant::now());
        let complete = after == After::Oldest || (known && complete);
        let from = match messages.first() {
            _ if known && complete => seq,
            Some(first) => first.position.seq - 1,
            None => newest.seq,
        };
        (Begin { position: Position { seq: from, ..newest }, complete }, messages)
    }

    fn is_ahead(&self, position: Position) -> bool {
        self.joined && position.epoch == self.epoch && position.seq > self.seq
    }

    fn joined(&mut self, endpoint: &Arc<Endpoint>, topic: &Arc<str>, member: &Arc<str>) {
        let change = self.presence.join(topic, member, true);
        if change.here {
            self.backplane.presence(topic, member, true);
        }
        if change.all {
            tell(endpoint, topic, member, true);
        }
    }

    fn left(&mut self, endpoint: &Arc<Endpoint>, topic: &Arc<str>, member: &Arc<str>) {
        let change = self.presence.leave(topic, member, true);
        if change.here {
            self.backplane.presence(topic, member, false);
        }
        if change.all {
            tell(endpoint, topic, member, false);
        }
    }

    /// One subscription ends. The caller tells the I/O thread.
    fn remove(&mut self, endpoint: &Arc<Endpoint>, who: Who, filter: &Arc<str>, member: Option<&Arc<str>>) {
        self.began.remove(&(who, Arc::clone(filter)));
        if let Some(((), true)) = self.subscribers.remove(filter, who) {
            self.backplane.interest(filter, false);
        }
        if let Some(member) = member {
            self.left(endpoint, filter, member);
        }
    }

    /// A message that has its position: kept if that is its own, and sent to whom it is for.
    fn deliver(&mut self, endpoint: &Arc<Endpoint>, message: Arc<Message>, exclude: Option<Who>) {
        if message.placed {
            self.history.note(&message, Instant::now());
        }
        if !self.subscribers.has(&message.topic) {
            return;
        }
        for io in &endpoint.runtime.threads {
            let (endpoint, message) = (Arc::clone(endpoint), Arc::clone(&message));
            DownQueue::push(io, Command::Publish { endpoint, message, exclude });
        }
    }
}

/// Tells the program of a member, in the order of the board: by way of one thread for all.
fn tell(endpoint: &Arc<Endpoint>, topic: &Arc<str>, member: &Arc<str>, joined: bool) {
    let event = Event::Presence { topic: Arc::clone(topic), member: Arc::clone(member), joined };
    let endpoint = Arc::clone(endpoint);
    if let Some(io) = endpoint.runtime.threads.first().cloned() {
        // A stop waits for it.
        endpoint.begin();
        DownQueue::push(&io, Command::Tell { endpoint, event: Box::new(event) });
    }
}

impl Endpoint {
    /// Subscribes to the topics that `filters`, which are well formed, mean. Those that are subscribed to already stay as they
    /// are. `member`: who it is there, for names without wildcards. `confirm`: a client has asked, and is told.
    ///
    /// # Errors
    /// When the subscriber has ended, or has too many subscriptions: then it gets none of them.
    pub fn subscribe(
        self: &Arc<Self>,
        subscriber: Subscriber,
        filters: &[&str],
        after: After,
        member: Option<&Arc<str>>,
        confirm: bool,
    ) -> Result<Begin, Refusal> {
        let board = &mut *self.topics.board.lock();
        let who = subscriber.who();
        // Under the lock: the end of it takes the lock too, behind what makes this false.
        if !subscriber.is_alive() {
            return Err(Refusal::Ended);
        }
        let there = board.subscriptions.get(&who);
        let mut new: Vec<&str> = Vec::new();
        for filter in filters {
            if !new.contains(filter) && !there.is_some_and(|there| there.contains_key(*filter)) {
                new.push(filter);
            }
        }
        let limit = self.settings.max_subscriptions_per_channel;
        if !new.is_empty() && there.map_or(0, IndexMap::len) + new.len() > limit {
            return Err(Refusal::TooMany(limit));
        }
        // Until this node knows what it keeps, only what is new is sure.
        let waits = board.waiting.is_some() && after != After::Now && !new.is_empty();
        let (mut begin, mut missed) = if new.is_empty() {
            let position = board.position();
            // What came before the subscription that there is it cannot bring any more.
            let complete = match after {
                After::Position(Some(from)) => {
                    let began = filters.iter().filter_map(|filter| board.began.get(&(who, Arc::from(*filter))));
                    from.epoch == position.epoch && began.max().is_some_and(|began| from.seq >= *began)
                }
                After::Position(None) => false,
                After::Now | After::Oldest => true,
            };
            (Begin { position, complete }, Vec::new())
        } else if waits {
            (Begin { position: board.position(), complete: true }, Vec::new())
        } else {
            board.begin(&new, after)
        };
        let ahead = (!new.is_empty() && !waits && board.is_ahead(begin.position)).then_some(begin.position);
        if let Subscriber::Stream { .. } = subscriber {
            self.shorten(&mut begin, &mut missed);
        }
        let mut entrance = Vec::with_capacity(new.len());
        for &filter in filters {
            let mine = board.subscriptions.entry(who).or_default();
            let (filter, before) = match mine.get_key_value(filter) {
                Some((filter, before)) => (Arc::clone(filter), before.clone()),
                None => (Arc::from(filter), None),
            };
            // Who it was said to be first stays until somebody else is named.
            let now = member.cloned().or_else(|| before.clone());
            if mine.insert(Arc::clone(&filter), now.clone()).is_none() {
                if board.subscribers.insert(&filter, who, ()) {
                    board.backplane.interest(&filter, true);
                }
                board.began.insert((who, Arc::clone(&filter)), begin.position.seq);
                entrance.push(Arc::clone(&filter));
            }
            if before != now {
                // First in, then out: one that is there twice is not seen to leave.
                if let Some(member) = &now {
                    board.joined(self, &filter, member);
                }
                if let Some(member) = &before {
                    board.left(self, &filter, member);
                }
            }
        }
        let mut confirm: Vec<Arc<str>> =
            if confirm { filters.iter().map(|&f| Arc::from(f)).collect() } else { Vec::new() };
        if let Some(waiting) = board.waiting.as_mut().filter(|_| waits) {
            let (subscriber, filters) = (subscriber.clone(), entrance.clone());
            waiting.push(Waiting { subscriber, filters, after, confirm: std::mem::take(&mut confirm) });
        }
        if !entrance.is_empty() || !confirm.is_empty() {
            let io = Arc::clone(subscriber.io());
            let endpoint = Arc::clone(self);
            let begin = (!waits).then_some(begin);
            let entrance = Entrance { endpoint, subscriber, filters: entrance, missed, begin, ahead, confirm };
            DownQueue::push(&io, Command::Subscribe(Box::new(entrance)));
        }
        Ok(begin)
    }

    /// What was missed is put into a stream at once, before its client has read any of it: more than may wait would break
    /// it off each time. Leaves the newest half of that, since an event may be longer than its message.
    fn shorten(&self, begin: &mut Begin, missed: &mut Vec<Arc<Message>>) {
        let mut left = self.settings.max_buffered / 2;
        let fits = |message: &&Arc<Message>| {
            let fits = message.size() <= left;
            left = left.saturating_sub(message.size());
            fits
        };
        let too_many = missed.len() - missed.iter().rev().take_while(fits).count();
        if let Some(last) = missed.drain(..too_many).next_back() {
            begin.position = last.position;
            begin.complete = false;
        }
    }

    /// Ends a subscription; false: there was none.
    pub fn unsubscribe(self: &Arc<Self>, subscriber: &Subscriber, filter: &str) -> bool {
        let board = &mut *self.topics.board.lock();
        let who = subscriber.who();
        let Some(mine) = board.subscriptions.get_mut(&who) else { return false };
        let Some((filter, member)) = mine.shift_remove_entry(filter) else { return false };
        if mine.is_empty() {
            board.subscriptions.remove(&who);
        }
        board.remove(self, who, &filter, member.as_ref());
        for waiting in board.waiting.iter_mut().flatten().filter(|waiting| waiting.subscriber.who() == who) {
            waiting.filters.retain(|other| *other != filter);
        }
        let command = Command::Unsubscribe { endpoint: Arc::clone(self), who, filters: vec![filter] };
        DownQueue::push(subscriber.io(), command);
        true
    }

    /// The subscriber has ended: its subscriptions do. `io`: its thread.
    fn leave(self: &Arc<Self>, who: Who, io: &Arc<IoThread>) {
        let board = &mut *self.topics.board.lock();
        let Some(mine) = board.subscriptions.remove(&who) else { return };
        board.backplane.gone(who);
        if let Some(waiting) = &mut board.waiting {
            waiting.retain(|other| other.subscriber.who() != who);
        }
        for (filter, member) in &mine {
            board.remove(self, who, filter, member.as_ref());
        }
        let filters = mine.into_keys().collect();
        DownQueue::push(io, Command::Unsubscribe { endpoint: Arc::clone(self), who, filters });
    }

    /// The program has been told that a channel or a stream has ended. For a channel before its number is free.
    pub fn leave_topics(self: &Arc<Self>, subscriber: &Subscriber) {
        self.leave(subscriber.who(), subscriber.io());
    }

    /// Publishes a message to a topic, whose name is well formed. Text is valid UTF-8. `key`: for a channel it replaces one of the
    /// topic with an equal key that has not left. Returns its position on this node; `Some(None)`: the backplane gives it one;
    /// `None`: it was refused.
    pub fn publish(
        self: &Arc<Self>,
        topic: &str,
        opcode: Opcode,
        payload: &[u8],
        exclude: Option<Who>,
        key: Option<&[u8]>,
    ) -> Option<Option<Position>> {
        let frame = message::frame(opcode, payload);
        let board = &mut *self.topics.board.lock();
        let position = Position { seq: board.seq + 1, ..board.position() };
        let message = Arc::new(Message::new(topic, position, opcode, frame).with_key(key));
        let kept = board.joined && board.history.keeps(topic);
        let (position, message) = match board.backplane.publish(&message, kept, exclude) {
            Route::Refused => return None,
            Route::Back => return Some(None),
            Route::Pass => (board.position(), Arc::new(message.behind(board.position()))),
            Route::Here => (position, message),
        };
        board.seq = position.seq;
        board.deliver(self, message, exclude);
        Some(Some(position))
    }
}
