//! Whether a client connects again, and when; and what it keeps meanwhile.
//!
//! | what happened | then |
//! |---|---|
//! | the name did not resolve, nobody listens, `open_timeout` passed, the connection broke on the way | again |
//! | the opening handshake was answered with 408, 425, 429 or 5xx | again, not before its `Retry-After` |
//! | it was answered with another status, or not in HTTP | never |
//! | TLS: a certificate that is not trusted, or anything else that the two sides do not agree on | never |
//! | the server closed with 1000, 1008, 3000 or 3003 | never |
//! | the connection ended in any other way | again |
//!
//! What is "never" would be the same the next time. The program's own close is not decided here.
//!
//! The delay before attempt n is `first * factor^(n - 1)`, at most `max_delay`, and a random part of it is left out, so that the
//! clients of a server that went down do not come back all at once: RFC 6455 section 7.2.3 asks for both. `jitter` 1 is the
//! "full jitter" of Marc Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015, which needs the fewest calls.

use crate::client::ConnectError;
use crate::connection::{CloseInfo, Connection, KEPT, TOO_SLOW};
use crate::wire::{MAX_HEADER, MessageKind, Opcode};
use bytes::Bytes;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How a client connects again; checked by the caller.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Policy {
    /// The longest delay of the first attempt.
    pub first: Duration,
    /// How much longer it is for each further one; at least 1.
    pub factor: f64,
    /// The longest delay of all.
    pub max_delay: Duration,
    /// The part of a delay that is random, 0 to 1.
    pub jitter: f64,
    /// Attempts in a row; `None`: no end.
    pub max_attempts: Option<u32>,
    /// How long a connection has to be open for the next attempt to be a first one.
    pub min_uptime: Duration,
}

/// An attempt that is to be made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Next {
    /// Its number, from 1.
    pub attempt: u32,
    /// How long to wait before it.
    pub delay: Duration,
}

/// Counts attempts.
#[derive(Clone, Debug)]
pub struct Backoff {
    policy: Policy,
    attempts: u32,
    opened: Option<Instant>,
}

impl Backoff {
    /// Before the first connection.
    #[must_use]
    pub fn new(policy: Policy) -> Self {
        Self { policy, attempts: 0, opened: None }
    }

    /// A connection is open. It does not count as a success yet: a server that accepts and closes at once would be asked
    /// without a pause.
    pub fn opened(&mut self, now: Instant) {
        self.opened = Some(now);
    }

    /// The next attempt, unless there were enough. `least`: the server asked for so much of a delay.
    pub fn next(&mut self, least: Duration) -> Option<Next> {
        self.next_at(least, Instant::now(), rand::random())
    }

    /// `random`: 0 to 1.
    fn next_at(&mut self, least: Duration, now: Instant, random: f64) -> Option<Next> {
        let policy = &self.policy;
        let stayed = |opened| now.saturating_duration_since(opened) >= policy.min_uptime;
        if self.opened.take().is_some_and(stayed) {
            self.attempts = 0;
        }
        if policy.max_attempts.is_some_and(|most| self.attempts >= most) {
            return None;
        }
        let growth = policy.factor.powi(i32::try_from(self.attempts).unwrap_or(i32::MAX));
        let longest = (policy.first.as_secs_f64() * growth).min(policy.max_delay.as_secs_f64());
        let delay = Duration::from_secs_f64(longest * (1.0 - policy.jitter * random));
        self.attempts = self.attempts.saturating_add(1);
        Some(Next { attempt: self.attempts, delay: least.saturating_add(delay).min(policy.max_delay) })
    }
}

/// After a failed attempt: the least delay before the next; `None`: it would fail in the same way.
#[must_use]
pub fn after_failure(error: &ConnectError) -> Option<Duration> {
    match error {
        ConnectError::Resolve(..) | ConnectError::Connect(..) | ConnectError::TimedOut(_) => Some(Duration::ZERO),
        ConnectError::Tls { broken, .. } => broken.then_some(Duration::ZERO),
        ConnectError::Handshake { broken: true, .. } => Some(Duration::ZERO),
        ConnectError::Handshake { status: Some(408 | 425 | 429 | 500..=599), retry_after, .. } => {
            Some(retry_after.unwrap_or_default())
        }
        ConnectError::Handshake { .. } | ConnectError::Cancelled => None,
    }
}

/// Whether the server's close frame says that there is no point in coming back. Codes from 4000 on mean what the program and
/// its server have agreed on.
#[must_use]
pub fn is_final(end: &CloseInfo) -> bool {
    match end.code {
        // The purpose is fulfilled; unauthorized and forbidden, as IANA has registered them.
        1000 | 3000 | 3003 => true,
        // A policy is violated (RFC 6455 section 7.4.1), but for the one that either side has of slow readers.
        1008 => end.reason != TOO_SLOW,
        _ => false,
    }
}

/// Messages that wait for the next connection.
#[derive(Debug, Default)]
pub struct Queue {
    limit: usize,
    bytes: usize,
    /// The messages, oldest first, numbered from `first` on.
    messages: VecDeque<Kept>,
    first: u64,
    /// The payloads of those without a key, one behind the other.
    arena: Vec<u8>,
    /// Numbers of those with a key.
    keys: HashMap<Bytes, u64>,
    /// How many newer ones have replaced.
    replaced: u64,
}

#[derive(Debug)]
struct Kept {
    opcode: Opcode,
    /// Of the payload.
    len: usize,
    /// The key, and the payload of its newest message.
    keyed: Option<(Bytes, Bytes)>,
}

impl Queue {
    /// `limit`: what may wait, in bytes of frames.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { limit, ..Self::default() }
    }

    /// Whether it takes anything at all.
    #[must_use]
    pub fn is_used(&self) -> bool {
        self.limit > 0
    }

    /// What waits, in bytes of frames: a message counts with the largest head that it can have, one with a key as on a
    /// connection.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Keeps a message if there is room.
    pub fn push(&mut self, opcode: Opcode, payload: &[u8]) -> bool {
        let cost = payload.len() + MAX_HEADER;
        if cost > self.limit - self.bytes {
            return false;
        }
        self.bytes += cost;
        self.messages.push_back(Kept { opcode, len: payload.len(), keyed: None });
        self.arena.extend_from_slice(payload);
        true
    }

    /// The same of a message with a key, in the place of one with the same key. Without room that one stays.
    pub fn push_keyed(&mut self, key: &Bytes, opcode: Opcode, payload: &[u8]) -> bool {
        let known = self.keys.get(key).and_then(|number| usize::try_from(number - self.first).ok());
        let old = known.and_then(|index| self.messages.get_mut(index));
        let before = old.as_ref().map_or(0, |kept| kept.len + key.len() + KEPT);
        let cost = payload.len() + key.len() + KEPT;
        if cost > self.limit - (self.bytes - before) {
            return false;
        }
        self.bytes = self.bytes - before + cost;
        let keyed = Some((key.clone(), Bytes::copy_from_slice(payload)));
        let kept = Kept { opcode, len: payload.len(), keyed };
        if let Some(old) = old {
            *old = kept;
            self.replaced += 1;
        } else {
            self.keys.insert(key.clone(), self.first + self.messages.len() as u64);
            self.messages.push_back(kept);
        }
        true
    }

    /// How many messages newer ones have replaced, since all that waited was sent.
    #[must_use]
    pub fn replaced(&self) -> u64 {
        self.replaced
    }

    /// Sends what waits. What a connection does not take, because it has been lost already, waits on.
    pub fn send(&mut self, conn: &Arc<Connection>) {
        let mut sent = 0;
        conn.count_replaced(std::mem::take(&mut self.replaced));
        while let Some(Kept { opcode, len, keyed }) = self.messages.front() {
            let kind = if *opcode == Opcode::Text { MessageKind::Text } else { MessageKind::Binary };
            let (result, cost) = match keyed {
                Some((key, payload)) => (conn.send_keyed(key, Some(*opcode), kind, payload), len + key.len() + KEPT),
                None => (conn.send(Some(*opcode), kind, true, &self.arena[sent..sent + len]), len + MAX_HEADER),
            };
            if result.is_err() {
                break;
            }
            self.bytes -= cost;
            match keyed {
                Some((key, _)) => drop(self.keys.remove(key)),
                None => sent += len,
            }
            self.messages.pop_front();
            self.first += 1;
        }
        if self.messages.is_empty() {
            *self = Self::new(self.limit);
        } else {
            self.arena.drain(..sent);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    const POLICY: Policy = Policy {
        first: Duration::from_millis(500),
        factor: 2.0,
        max_delay: Duration::from_secs(30),
        jitter: 1.0,
        max_attempts: None,
        min_uptime: Duration::from_secs(5),
    };

    fn delays(policy: Policy, random: f64, count: usize) -> Vec<f64> {
        let mut backoff = Backoff::new(policy);
        let now = Instant::now();
        (0..count).map(|_| backoff.next_at(Duration::ZERO, now, random).unwrap().delay.as_secs_f64()).collect()
    }

    #[test]
    fn delays_grow_up_to_the_longest() {
        assert_eq!(delays(POLICY, 0.0, 8), [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]);
        assert_eq!(delays(Policy { factor: 1.0, ..POLICY }, 0.0, 3), [0.5, 0.5, 0.5]);
        assert_eq!(delays(Policy { factor: 1e300, ..POLICY }, 0.0, 5000).last(), Some(&30.0));
    }

    #[test]
    fn jitter_is_the_part_that_is_random() {
        assert_eq!(delays(POLICY, 0.5, 3), [0.25, 0.5, 1.0]);
        assert_eq!(delays(POLICY, 1.0, 3), [0.0, 0.0, 0.0]);
        assert_eq!(delays(Policy { jitter: 0.5, ..POLICY }, 1.0, 3), [0.25, 0.5, 1.0]);
        assert_eq!(delays(Policy { jitter: 0.0, ..POLICY }, 1.0, 3), [0.5, 1.0, 2.0]);
    }

    #[test]
    fn the_server_may_ask_for_a_longer_delay_up_to_the_longest() {
        let mut backoff = Backoff::new(POLICY);
        let mut after = |seconds, random| {
            let next = backoff.next_at(Duration::from_secs(seconds), Instant::now(), random).unwrap();
            next.delay.as_secs_f64()
        };
        assert_eq!(after(3, 0.0), 3.5);
        assert_eq!(after(3, 1.0), 3.0);
        assert_eq!(after(u64::MAX, 0.5), 30.0);
    }

    #[test]
    fn attempts_are_counted_and_limited() {
        let mut backoff = Backoff::new(Policy { max_attempts: Some(2), ..POLICY });
        let now = Instant::now();
        let mut next = || backoff.next_at(Duration::ZERO, now, 0.0).map(|next| next.attempt);
        assert_eq!([next(), next(), next(), next()], [Some(1), Some(2), None, None]);
    }

    #[test]
    fn only_a_connection_that_stays_begins_anew() {
        let mut backoff = Backoff::new(POLICY);
        let begin = Instant::now();
        let mut lived = |millis| {
            backoff.opened(begin);
            backoff.next_at(Duration::ZERO, begin + Duration::from_millis(millis), 0.0).unwrap().attempt
        };
        assert_eq!([lived(0), lived(4_999), lived(0), lived(5_000), lived(10), lived(9_000)], [1, 2, 3, 1, 2, 1]);
        // The failed attempts after it are counted on.
        assert_eq!(backoff.next_at(Duration::ZERO, begin + Duration::from_secs(100), 0.0).unwrap().attempt, 2);
    }

    #[test]
    fn which_failures_lead_to_another_attempt() {
        let error = || io::Error::from(io::ErrorKind::ConnectionRefused);
        let again = [
            ConnectError::Resolve("h".to_owned(), error()),
            ConnectError::Connect("127.0.0.1:1".parse().unwrap(), error()),
            ConnectError::TimedOut(String::new()),
            ConnectError::Tls { text: String::new(), broken: true },
            ConnectError::Handshake { status: None, text: String::new(), broken: true, retry_after: None },
        ];
        for error in again {
            assert_eq!(after_failure(&error), Some(Duration::ZERO), "{error:?}");
        }
        let never = [
            ConnectError::Tls { text: String::new(), broken: false },
            ConnectError::Handshake { status: None, text: String::new(), broken: false, retry_after: None },
            ConnectError::Cancelled,
        ];
        for error in never {
            assert_eq!(after_failure(&error), None, "{error:?}");
        }
    }

    #[test]
    fn which_answers_lead_to_another_attempt() {
        let after = |status, retry_after| {
            let text = String::new();
            after_failure(&ConnectError::Handshake { status: Some(status), text, broken: false, retry_after })
        };
        for status in [408, 425, 429, 500, 502, 503, 504, 599] {
            assert_eq!(after(status, None), Some(Duration::ZERO), "{status}");
            assert_eq!(after(status, Some(Duration::from_secs(3))), Some(Duration::from_secs(3)), "{status}");
        }
        for status in [101, 200, 204, 301, 302, 400, 401, 403, 404, 410, 426] {
            assert_eq!(after(status, Some(Duration::from_secs(3))), None, "{status}");
        }
    }

    #[test]
    fn which_ends_lead_to_another_attempt() {
        let is_final = |code, reason: &str| is_final(&CloseInfo { code, reason: reason.to_owned() });
        for code in [1000, 1008, 3000, 3003] {
            assert!(is_final(code, ""), "{code}");
        }
        for code in [1001, 1002, 1003, 1005, 1006, 1007, 1009, 1010, 1011, 1012, 1013, 1014, 3008, 4000, 4008, 4999] {
            assert!(!is_final(code, ""), "{code}");
        }
        assert!(!is_final(1008, TOO_SLOW));
    }

    #[test]
    fn a_queue_keeps_what_fits() {
        let mut queue = Queue::new(2 * MAX_HEADER + 3);
        assert!(!queue.push(Opcode::Text, &[b'x'; MAX_HEADER + 4]));
        assert_eq!(queue.bytes(), 0);
        assert!(queue.push(Opcode::Text, b"ab"));
        assert!(!queue.push(Opcode::Text, b"ab"));
        assert!(queue.push(Opcode::Binary, b"c"));
        assert!(!queue.push(Opcode::Binary, b""));
        assert_eq!(queue.bytes(), 2 * MAX_HEADER + 3);
        assert!(!Queue::new(0).push(Opcode::Text, b""));
    }

    #[test]
    fn a_queue_keeps_the_newest_of_a_key() {
        let (a, b) = (Bytes::from_static(b"a"), Bytes::from_static(b"b"));
        let mut queue = Queue::new(2 * (KEPT + 3));
        assert!(queue.push_keyed(&a, Opcode::Text, b"1"));
        assert!(queue.push_keyed(&b, Opcode::Text, b"1"));
        assert!(queue.push_keyed(&a, Opcode::Binary, b"22"));
        assert_eq!((queue.bytes(), queue.replaced()), (2 * KEPT + 5, 1));
        assert!(!queue.push_keyed(&b, Opcode::Text, b"333"));
        assert!(!queue.push(Opcode::Text, b""));
        assert!(queue.push_keyed(&b, Opcode::Text, b"22"));
        let payloads: Vec<_> = queue.messages.iter().map(|kept| kept.keyed.clone().unwrap()).collect();
        assert_eq!(payloads, [(a, Bytes::from_static(b"22")), (b, Bytes::from_static(b"22"))]);
        assert_eq!((queue.bytes(), queue.replaced()), (2 * KEPT + 6, 2));
    }
}
