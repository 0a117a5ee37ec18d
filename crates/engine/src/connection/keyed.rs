//! Messages with a key, of which only the newest leaves: a map for each connection that has any.
//!
//! A message has two stations. It is *posted* by the program's thread, with a command in the queue going down that fetches it;
//! what the program sends under the same key until then takes its place. Fetched, it *waits*: its place among what is to be
//! written is a chunk that holds the key alone (see `outbuf`), and becomes a frame when it is its turn and the gate is open
//! (see `gate`). A broadcast with a key begins to wait when its turn in the log comes.
//!
//! Between two messages of a key that are posted there may be a broadcast of the same key in the log. The later must not take
//! the earlier one's place then, or the broadcast would replace what is newer; so a posted message remembers how many such
//! broadcasts there had been (its *era*), and only one of the same era replaces it. The pump joins them again.
//!
//! A key counts once, with its newest message, whichever station that is at.

use super::gate::Then;
use super::{Connection, Inner, SendError, State};
use crate::down::{Command, DownQueue};
use crate::outbuf::{Late, OutBuf};
use crate::settings::SlowPolicy;
use crate::stats::Sent;
use crate::wire::{self, MessageKind};
use bytes::Bytes;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// What a message that waits counts beside its payload and its key: so that keys without end are bounded as bytes are. With
/// the byte that the bridge puts before a key these are 64.
pub(crate) const KEPT: usize = 63;

/// Frames made at a time: what a socket that turns out to be full can't have replaced any more.
const WINDOW: usize = 16 << 10;

/// A whole message.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) opcode: wire::Opcode,
    pub(crate) payload: Bytes,
}

#[derive(Debug)]
struct Posted {
    key: Bytes,
    message: Message,
    era: u64,
}

#[derive(Debug, Default)]
struct Entry {
    /// Number of the newest message that is posted.
    posted: Option<u64>,
    /// Has a chunk in the out-buffer exactly as long as it is there. With its era, if it was posted.
    waiting: Option<(Message, Option<u64>)>,
    /// What it counts.
    charged: usize,
}

/// The messages of one connection that have a key; see the module.
#[derive(Debug, Default)]
pub(super) struct Keyed {
    /// Oldest first, numbered from `first` on.
    posted: VecDeque<Posted>,
    first: u64,
    posted_bytes: usize,
    keys: HashMap<Bytes, Entry>,
    /// What all of them count.
    charged: usize,
}

/// What has become of a message.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// It waits at a place of its own, which is still to be made.
    New(Bytes),
    /// It has another one's place.
    Taken,
    /// It is not there any more.
    Gone,
}

fn cost(key: &Bytes, message: &Message) -> usize {
    message.payload.len() + key.len() + KEPT
}

impl Keyed {
    /// After a change of one key: what it counts now. Lets go of what is empty.
    fn settle(&mut self, key: &Bytes) {
        let Some(entry) = self.keys.get_mut(key) else { return };
        let newest = match entry.posted {
            Some(number) => self.posted.get(index(number, self.first)).map(|posted| &posted.message),
            None => entry.waiting.as_ref().map(|(message, _)| message),
        };
        let now = newest.map_or(0, |message| cost(key, message));
        self.charged = self.charged - entry.charged + now;
        entry.charged = now;
        if newest.is_none() {
            self.keys.remove(key);
            if self.keys.is_empty() {
                self.keys = HashMap::new();
            }
        }
        if self.posted.is_empty() {
            self.posted = VecDeque::new();
        }
    }

    /// What the key counts.
    fn charged(&self, key: &Bytes) -> usize {
        self.keys.get(key).map_or(0, |entry| entry.charged)
    }

    /// The program sends a message: the number to fetch it by, unless it has taken the place of one that will be fetched.
    fn post(&mut self, key: &Bytes, message: Message, era: u64) -> Option<u64> {
        let before = self.keys.get(key).and_then(|entry| entry.posted);
        let bytes = cost(key, &message);
        let number = match before.and_then(|number| self.posted.get_mut(index(number, self.first))) {
            Some(posted) if posted.era == era => {
                self.posted_bytes = self.posted_bytes - cost(key, &posted.message) + bytes;
                posted.message = message;
                None
            }
            _ => {
                let number = self.first + self.posted.len() as u64;
                self.posted_bytes += bytes;
                self.posted.push_back(Posted { key: key.clone(), message, era });
                self.keys.entry(key.clone()).or_default().posted = Some(number);
                Some(number)
            }
        };
        self.settle(key);
        number
    }

    /// Takes out what was posted first.
    fn unpost(&mut self) -> Option<Posted> {
        let posted = self.posted.pop_front()?;
        self.posted_bytes -= cost(&posted.key, &posted.message);
        if let Some(entry) = self.keys.get_mut(&posted.key)
            && entry.posted == Some(self.first)
        {
            entry.posted = None;
        }
        self.first += 1;
        Some(posted)
    }

    /// Drops what was posted first until the rest is no more than `limit`, but never the last; returns how many that were. One
    /// whose predecessor waits takes its place instead, so that not the older is left: the second number. Of the same era
    /// only: else a broadcast that comes in between may not have been heard.
    fn shed(&mut self, limit: usize) -> (u64, u64) {
        let (mut dropped, mut replaced) = (0, 0);
        while self.posted_bytes > limit
            && self.posted.len() > 1
            && let Some(Posted { key, message, era }) = self.unpost()
        {
            match self.keys.get_mut(&key).and_then(|entry| entry.waiting.as_mut()) {
                Some(waiting) if waiting.1 == Some(era) => {
                    waiting.0 = message;
                    replaced += 1;
                }
                _ => dropped += 1,
            }
            self.settle(&key);
        }
        (dropped, replaced)
    }

    /// The pump has come to a message that was posted: it waits from here on.
    fn fetch(&mut self, number: u64) -> Place {
        if number != self.first {
            return Place::Gone;
        }
        match self.unpost() {
            Some(Posted { key, message, era }) => self.wait(key, message, Some(era)),
            None => Place::Gone,
        }
    }

    /// A message waits from here on, at the place of its predecessor if that waits too.
    fn wait(&mut self, key: Bytes, message: Message, era: Option<u64>) -> Place {
        let old = self.keys.entry(key.clone()).or_default().waiting.replace((message, era));
        self.settle(&key);
        if old.is_some() { Place::Taken } else { Place::New(key) }
    }

    /// The turn of a message that waits has come.
    fn take(&mut self, key: &Bytes) -> Option<Message> {
        let waiting = self.keys.get_mut(key)?.waiting.take();
        self.settle(key);
        waiting.map(|(message, _)| message)
    }
}

fn index(number: u64, first: u64) -> usize {
    usize::try_from(number - first).unwrap_or(usize::MAX)
}

impl Connection {
    /// Does something with the messages that have a key, and counts what that makes of them.
    fn with_keyed<R>(&self, change: impl FnOnce(&mut Keyed) -> R) -> R {
        let keyed = &mut *self.aside().keyed.lock();
        let before = keyed.charged;
        let result = change(keyed);
        // First what comes: in between it may be too much, but never less than nothing.
        self.buffered.fetch_add(keyed.charged, Ordering::Relaxed);
        self.buffered.fetch_sub(before, Ordering::Relaxed);
        result
    }

    /// Counts messages that were replaced, here or before they came to this connection.
    pub(crate) fn count_replaced(&self, messages: u64) {
        if messages > 0 {
            self.aside().replaced.fetch_add(messages, Ordering::Relaxed);
            self.endpoint.stats.replaced.fetch_add(messages, Ordering::Relaxed);
        }
    }

    /// Messages that a newer one with the same key replaced.
    #[must_use]
    pub fn replaced(&self) -> u64 {
        self.aside.get().map_or(0, |aside| aside.replaced.load(Ordering::Relaxed))
    }

    /// Queues a whole message, in the place of one with the same key that has not left yet. `opcode`: text or binary.
    ///
    /// # Errors
    /// When the channel is closed, too much waits, or a message sent in fragments is not finished.
    pub fn send_keyed(
        self: &Arc<Self>,
        key: &Bytes,
        opcode: Option<wire::Opcode>,
        kind: MessageKind,
        payload: &[u8],
    ) -> Result<(), SendError> {
        if !self.is_open() {
            return Err(SendError::Closed);
        }
        let mut outgoing = self.outgoing.lock();
        // Named: without an opcode it would be the next part of a message that is open.
        let asked = opcode.unwrap_or(match kind {
            MessageKind::Text => wire::Opcode::Text,
            MessageKind::Binary => wire::Opcode::Binary,
        });
        let opcode = outgoing.next(Some(asked), kind, true).map_err(SendError::Sequence)?;
        let policy = self.endpoint.settings.slow_policy;
        let message = Message { opcode, payload: Bytes::copy_from_slice(payload) };
        if policy != SlowPolicy::DropOldest && self.is_over_with(key, &message) {
            // Said before the second look, as in `send`.
            self.refused.store(true, Ordering::SeqCst);
            if self.is_over_with(key, &message) {
                if policy == SlowPolicy::DropNewest {
                    self.count_dropped(1);
                    return Err(SendError::Dropped);
                }
                drop(outgoing);
                self.overflow();
                return Err(SendError::Closed);
            }
        }
        let era = self.endpoint.keyed_broadcasts();
        let (number, (dropped, replaced)) = self.with_keyed(|keyed| {
            let number = keyed.post(key, message, era);
            let limit = self.endpoint.settings.max_buffered;
            (number, if policy == SlowPolicy::DropOldest { keyed.shed(limit) } else { (0, 0) })
        });
        if dropped > 0 {
            self.count_dropped(dropped);
            self.refused.store(true, Ordering::SeqCst);
        }
        self.count_replaced(replaced + u64::from(number.is_none()));
        if let Some(number) = number {
            DownQueue::push(&self.io, Command::FetchKeyed { conn: Arc::clone(self), number });
        }
        Ok(())
    }

    /// Whether more would wait with this message than may: it takes the room of its predecessor, and of any size may be one
    /// where nothing else waits.
    fn is_over_with(&self, key: &Bytes, message: &Message) -> bool {
        let before = self.aside.get().map_or(0, |aside| aside.keyed.lock().charged(key));
        let others = self.buffered_amount().saturating_sub(before);
        let now = cost(key, message);
        now > before && others > 0 && others + now > self.endpoint.settings.max_buffered
    }

    /// The pump has come to a message with a key.
    pub(crate) fn queue_keyed(self: &Arc<Self>, number: u64, touched: &mut Vec<Arc<Self>>) {
        let inner = &mut *self.inner.lock();
        let place = self.with_keyed(|keyed| keyed.fetch(number));
        self.placed(inner, place);
        if matches!(inner.state, State::Open | State::Answering) {
            if self.keeps_frames_apart() {
                self.make_room(inner, 0);
            }
            inner.life.talked = true;
            self.touch(inner, touched);
        }
    }

    fn placed(&self, inner: &mut Inner, place: Place) {
        match place {
            // Behind our close frame no data may be sent (RFC 6455 section 5.5.1).
            Place::New(key) if !matches!(inner.state, State::Open | State::Answering) => {
                self.with_keyed(|keyed| keyed.take(&key));
            }
            Place::New(key) if inner.fragmented => inner.rare().held.push_late(Late::Keyed(key)),
            Place::New(key) => inner.out.push_late(Late::Keyed(key)),
            Place::Taken => self.count_replaced(1),
            Place::Gone => {}
        }
    }

    /// Queues a broadcast with a key, which is for this channel now.
    pub(super) fn queue_keyed_broadcast(self: &Arc<Self>, inner: &mut Inner, key: &Bytes, message: Message) {
        let policy = self.endpoint.settings.slow_policy;
        if policy == SlowPolicy::DropOldest && !inner.fragmented {
            let before = self.aside().keyed.lock().charged(key);
            self.make_room(inner, cost(key, &message).saturating_sub(before));
        }
        if !self.is_over_with(key, &message) {
            let place = self.with_keyed(|keyed| keyed.wait(key.clone(), message, None));
            self.placed(inner, place);
            inner.life.talked = true;
        } else if policy == SlowPolicy::Close {
            self.shut.fetch_max(super::GONE, Ordering::Relaxed);
            self.drop_slow(inner);
        } else {
            self.refused.store(true, Ordering::SeqCst);
            self.count_dropped(1);
        }
    }

    /// Drops a message that waits and whose chunk is gone; returns what it counted.
    pub(super) fn discard_keyed(&self, key: &Bytes) -> usize {
        self.with_keyed(|keyed| {
            let before = keyed.charged;
            keyed.take(key);
            before - keyed.charged
        })
    }

    /// The same of a whole buffer that is thrown away; returns the bytes of the rest.
    pub(super) fn discard_unsent(&self, out: OutBuf) -> usize {
        let bytes = out.len();
        if out.has_late() {
            out.into_keys().for_each(|key| {
                self.discard_keyed(&key);
            });
        }
        bytes
    }

    /// How long ago the endpoint was made: the gate's clock.
    fn age(&self) -> Duration {
        self.endpoint.age()
    }

    /// Whether broadcasts with a key may be written at once, without waiting for their turn. `bare`: nor a ping is due.
    pub(super) fn keyed_flow(&self, inner: &mut Inner, bare: bool) -> bool {
        if inner.state != State::Open || inner.fragmented || inner.blocked || inner.out.has_late() {
            return false;
        }
        let now = self.age();
        inner.rare.as_mut().is_some_and(|rare| rare.gate.flows(now) && !(bare && rare.gate.is_due(now)))
    }

    /// It was. A ping follows if it is time for one.
    pub(super) fn keyed_flowed(&self, inner: &mut Inner) {
        let now = self.age();
        let gate = &mut inner.rare().gate;
        gate.left();
        if gate.wants_ping(now) {
            self.ping(inner, now);
        }
    }

    /// Makes frames of the next messages that have waited for that, as far as the gate lets them pass. False: there is none.
    pub(super) fn admit(self: &Arc<Self>, inner: &mut Inner) -> bool {
        let now = self.age();
        let gated = inner.state == State::Open;
        let mut batch = usize::MAX;
        if gated && inner.out.has_late() {
            if inner.rare().gate.is_new() {
                self.ping(inner, now);
                inner.rare().gate.batch = inner.out.late();
            }
            let waiting = inner.out.late();
            let gate = &mut inner.rare().gate;
            if gate.batch == 0 && gate.is_open(now) {
                gate.batch = waiting;
            }
            // The policy may have dropped some.
            gate.batch = gate.batch.min(waiting);
            batch = gate.batch;
        }
        let mut out = std::mem::take(&mut inner.out);
        let mut left = 0;
        let made = out.resolve(WINDOW, |late, into| match late {
            Late::Keyed(_) if left >= batch => false,
            Late::Keyed(key) => {
                left += 1;
                if let Some(message) = self.with_keyed(|keyed| keyed.take(key)) {
                    self.counters().sent(Sent::messages(1, message.payload.len()));
                    self.encode(inner, into, message.opcode, &message.payload);
                    self.add_buffered(into.len());
                }
                true
            }
            Late::Message(opcode, payload) => {
                left += 1;
                self.buffered.fetch_sub(payload.len(), Ordering::Relaxed);
                self.encode(inner, into, *opcode, payload);
                self.add_buffered(into.len());
                true
            }
        });
        inner.out = out;
        if gated && left > 0 {
            let over = !inner.out.has_late();
            let gate = &mut inner.rare().gate;
            gate.batch = if over { 0 } else { gate.batch.saturating_sub(left) };
            gate.left();
            if gate.batch == 0 && gate.wants_ping(now) {
                self.ping(inner, now);
            }
        }
        if gated && inner.out.has_late() && !made {
            self.watch(inner);
        }
        made
    }

    /// A ping of the gate's.
    fn ping(&self, inner: &mut Inner, now: Duration) {
        let newest = inner.life.ping_number;
        let number = newest.wrapping_add(1);
        inner.life.ping_number = number;
        let gate = &mut inner.rare().gate;
        // From here on the sweep says which ones are its own.
        gate.keepalive.get_or_insert(newest);
        gate.asks(number, now);
        self.control(inner, wire::Opcode::Ping, &number.to_be_bytes());
    }

    /// A pong has come, with a number that was sent.
    pub(super) fn gate_answered(self: &Arc<Self>, inner: &mut Inner, number: u32) {
        let now = self.age();
        let Some(rare) = &mut inner.rare else { return };
        let then = rare.gate.answered(number, now);
        self.pass(inner, then, now);
    }

    fn pass(self: &Arc<Self>, inner: &mut Inner, then: Then, now: Duration) {
        if inner.state != State::Open {
            return;
        }
        match then {
            Then::Nothing => return,
            Then::Ping => self.ping(inner, now),
            // Most often nothing waits.
            Then::Leave if !inner.out.has_late() => return,
            Then::Leave => {}
        }
        if !inner.blocked {
            self.flush(inner);
        }
    }

    /// Messages wait for the answer to a ping: somebody looks whether it comes.
    fn watch(self: &Arc<Self>, inner: &mut Inner) {
        let now = self.age();
        let gate = &mut inner.rare().gate;
        let (Some(after), false) = (gate.patience(now), gate.watched) else { return };
        gate.watched = true;
        let conn = Arc::downgrade(self);
        tokio::spawn(async move {
            let mut after = Some(after);
            while let Some(pause) = after.take() {
                tokio::time::sleep(pause).await;
                after = conn.upgrade().and_then(|conn| conn.look());
            }
        });
    }

    /// Returns when to look again, as long as something waits.
    fn look(self: &Arc<Self>) -> Option<Duration> {
        let inner = &mut *self.inner.lock();
        let now = self.age();
        let waits = inner.state == State::Open && inner.out.has_late();
        let gate = &mut inner.rare.as_mut()?.gate;
        let (after, then) = if waits { gate.look(now) } else { (None, Then::Nothing) };
        gate.watched = after.is_some();
        self.pass(inner, then, now);
        after
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Bytes {
        Bytes::copy_from_slice(name.as_bytes())
    }

    fn text(text: &str) -> Message {
        Message { opcode: wire::Opcode::Text, payload: Bytes::copy_from_slice(text.as_bytes()) }
    }

    fn newest(keyed: &mut Keyed, name: &str) -> Option<Vec<u8>> {
        keyed.take(&key(name)).map(|message| message.payload.to_vec())
    }

    #[test]
    fn the_newest_value_has_the_first_ones_place() {
        let mut keyed = Keyed::default();
        let a = keyed.post(&key("a"), text("1"), 0).unwrap();
        let b = keyed.post(&key("b"), text("1"), 0).unwrap();
        assert_eq!(keyed.post(&key("a"), text("22"), 0), None);
        assert_eq!(keyed.charged, 2 * (KEPT + 1) + 3);
        assert_eq!(keyed.fetch(a), Place::New(key("a")));
        // Posted again while it waits.
        let again = keyed.post(&key("a"), text("333"), 0).unwrap();
        assert_eq!(keyed.charged, 2 * (KEPT + 1) + 4, "a key counts once");
        assert_eq!(keyed.fetch(b), Place::New(key("b")));
        assert_eq!(keyed.fetch(again), Place::Taken);
        assert_eq!(newest(&mut keyed, "a").unwrap(), b"333");
        assert_eq!(newest(&mut keyed, "b").unwrap(), b"1");
        assert_eq!((keyed.charged, keyed.posted_bytes, keyed.keys.capacity()), (0, 0, 0), "nothing is kept");
        assert_eq!(keyed.first, 3);
    }

    #[test]
    fn what_waits_may_leave_before_its_successor_is_fetched() {
        let mut keyed = Keyed::default();
        let first = keyed.post(&key("a"), text("1"), 0).unwrap();
        keyed.fetch(first);
        let second = keyed.post(&key("a"), text("2"), 0).unwrap();
        assert_eq!(newest(&mut keyed, "a").unwrap(), b"1");
        assert_eq!(keyed.charged, KEPT + 2);
        assert_eq!(keyed.fetch(second), Place::New(key("a")));
    }

    #[test]
    fn a_broadcast_in_between_stays_in_between() {
        let mut keyed = Keyed::default();
        let before = keyed.post(&key("a"), text("before"), 0).unwrap();
        let behind = keyed.post(&key("a"), text("behind"), 1).unwrap();
        assert_eq!(keyed.post(&key("a"), text("newest"), 1), None);
        assert_eq!(keyed.charged, KEPT + 7);
        assert_eq!(keyed.fetch(before), Place::New(key("a")));
        assert_eq!(keyed.wait(key("a"), text("broadcast"), None), Place::Taken);
        assert_eq!(keyed.charged, KEPT + 7, "the newest counts");
        assert_eq!(keyed.fetch(behind), Place::Taken);
        assert_eq!(newest(&mut keyed, "a").unwrap(), b"newest");
        assert_eq!(keyed.charged, 0);
    }

    #[test]
    fn the_oldest_that_are_posted_make_room() {
        let mut keyed = Keyed::default();
        for name in ["a", "b", "c"] {
            keyed.post(&key(name), text("x"), 0);
        }
        assert_eq!(keyed.shed(2 * (KEPT + 2)), (1, 0));
        assert_eq!(keyed.fetch(0), Place::Gone);
        assert_eq!(keyed.fetch(1), Place::New(key("b")));
        assert_eq!(keyed.shed(0), (0, 0), "the newest is never dropped");
        assert_eq!(keyed.charged, 2 * (KEPT + 2));
        // One whose predecessor waits takes its place.
        keyed.post(&key("b"), text("yyy"), 0);
        keyed.post(&key("d"), text("x"), 0);
        assert_eq!(keyed.shed(0), (1, 1));
        assert_eq!(newest(&mut keyed, "b").unwrap(), b"yyy");
        assert_eq!(newest(&mut keyed, "c"), None);
        assert_eq!(keyed.charged, KEPT + 2);
    }
}
