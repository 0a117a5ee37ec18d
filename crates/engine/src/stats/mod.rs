//! What an endpoint counts, so that a program, a scraper and a page can see inside.
//!
//! | module | holds |
//! |---|---|
//! | this one | the counters, as those who count see them |
//! | `ticks` | how long ticks take |
//! | `snapshot` | all of it at one moment, as those who look see it |
//! | `render` | that as Prometheus text and as JSON |
//!
//! A message costs nothing here beyond an addition in a register: what is counted is counted once for a read, for what the
//! pump finds of one connection, or for a write. The counters of an I/O thread are written by the thread that drives it
//! alone, so that adding is a load and a store, and no locked instruction.

mod render;
mod snapshot;
mod ticks;

pub use snapshot::{Histogram, Snapshot};
pub use ticks::Delivery;

use crate::wire::Opcode;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::SystemTime;
use ticks::Ticks;

/// A number that goes up. Written by one thread at a time, read by any: relaxed, since each number stands alone.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    #[inline]
    pub(crate) fn add(&self, more: usize) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(more as u64), Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Close codes that are counted each by itself begin here (RFC 6455 section 7.4.1); the peer chooses among thousands of
/// others, which therefore are counted by their range.
const FIRST_CODE: u16 = 1000;
/// So many of them.
const CODES: usize = 16;
/// Where the others are counted.
const OTHERS: [&str; 3] = ["3xxx", "4xxx", "other"];
/// The classes of status codes.
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// What one I/O thread has seen. Aligned, so that no two threads write to one cache line, or to two that are fetched together.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Counters {
    /// WebSockets: whole messages put into the inbox, and their content.
    pub(crate) messages_received: Count,
    pub(crate) message_bytes_received: Count,
    /// WebSockets: whole messages put into the buffer of a connection, and their content.
    messages_sent: Count,
    message_bytes_sent: Count,
    /// WebSockets: bytes from and to the socket, or TLS.
    pub(crate) ws_read: Count,
    pub(crate) ws_written: Count,
    /// The same of connections that speak HTTP.
    pub(crate) http_read: Count,
    pub(crate) http_written: Count,
    /// WebSockets that have opened, and those of them whose socket is gone.
    pub(crate) opened: Count,
    pub(crate) finished: Count,
    /// Their ends, by code and then by range.
    closed: [Count; CODES + OTHERS.len()],
    /// Our pings, those that were answered, and those of connections that ended before.
    pub(crate) pings_sent: Count,
    pub(crate) pings_answered: Count,
    pub(crate) pings_lost: Count,
    /// How often a WebSocket stopped reading because the program does not tick, and how often one went on, or ended.
    pub(crate) paused: Count,
    pub(crate) resumed: Count,
    /// HTTP requests, their answers by class, and those whose client left before.
    pub(crate) requests: Count,
    responses: [Count; CLASSES.len()],
    pub(crate) abandoned: Count,
}

impl Counters {
    /// A WebSocket has ended.
    pub(crate) fn closed(&self, code: u16) {
        let place = match code {
            1000..=1015 => usize::from(code - FIRST_CODE),
            3000..=3999 => CODES,
            4000..=4999 => CODES + 1,
            _ => CODES + 2,
        };
        self.closed[place].add(1);
    }

    /// Messages were put into the buffer of a connection, or written past it.
    pub(crate) fn sent(&self, sent: Sent) {
        self.messages_sent.add(sent.messages);
        self.message_bytes_sent.add(sent.bytes);
    }

    /// A request has been answered.
    pub(crate) fn answered(&self, status: http::StatusCode) {
        // A status of a program may be anything up to 999.
        let class = usize::from(status.as_u16() / 100).clamp(1, CLASSES.len());
        self.responses[class - 1].add(1);
    }
}

/// Messages on their way to a connection: how many end in some frames, and the content of these.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sent {
    messages: usize,
    bytes: usize,
}

impl Sent {
    #[inline]
    pub(crate) fn frame(opcode: Opcode, fin: bool, content: usize) -> Self {
        if opcode.is_control() { Self::default() } else { Self { messages: usize::from(fin), bytes: content } }
    }

    pub(crate) fn messages(messages: usize, bytes: usize) -> Self {
        Self { messages, bytes }
    }

    #[inline]
    pub(crate) fn join(&mut self, more: Self) {
        self.messages += more.messages;
        self.bytes += more.bytes;
    }
}

/// What an endpoint counts.
#[derive(Debug)]
pub struct Stats {
    /// One for each I/O thread.
    threads: Box<[Counters]>,
    /// What the ticking thread counts.
    pub(crate) ticks: Ticks,
    /// Messages dropped by `slow_policy`, by whatever thread.
    pub(crate) dropped: AtomicU64,
    /// Messages that gave way to a newer one of their key, by `latest=`.
    pub(crate) skipped: AtomicU64,
    /// Messages that gave way to a newer one of their key before they left.
    pub(crate) replaced: AtomicU64,
    /// Events that ticks with a budget have left over, and their size.
    left: AtomicUsize,
    left_bytes: AtomicUsize,
    started: SystemTime,
}

impl Stats {
    pub(crate) fn new(threads: usize) -> Self {
        Self {
            threads: (0..threads).map(|_| Counters::default()).collect(),
            ticks: Ticks::default(),
            dropped: AtomicU64::new(0),
            skipped: AtomicU64::new(0),
            replaced: AtomicU64::new(0),
            left: AtomicUsize::new(0),
            left_bytes: AtomicUsize::new(0),
            started: SystemTime::now(),
        }
    }

    /// Of an I/O thread, for that thread.
    #[inline]
    pub(crate) fn on(&self, thread: usize) -> &Counters {
        &self.threads[thread]
    }

    /// Of all I/O threads.
    fn sum(&self, count: impl Fn(&Counters) -> &Count) -> u64 {
        self.threads.iter().map(|thread| count(thread).get()).sum()
    }

    /// What a tick has left over.
    pub fn set_left(&self, events: usize, bytes: usize) {
        self.left.store(events, Ordering::Relaxed);
        self.left_bytes.store(bytes, Ordering::Relaxed);
    }

    /// A message gave way to a newer one.
    pub fn count_skipped(&self) {
        self.skipped.fetch_add(1, Ordering::Relaxed);
    }
}

/// One HTTP request, from its head to its answer's; dropped before, its client has left.
pub(crate) struct Asked<'a> {
    counters: &'a Counters,
    answered: bool,
}

impl<'a> Asked<'a> {
    pub(crate) fn begin(counters: &'a Counters) -> Self {
        counters.requests.add(1);
        Self { counters, answered: false }
    }

    pub(crate) fn answered(mut self, status: http::StatusCode) {
        self.answered = true;
        self.counters.answered(status);
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        if !self.answered {
            self.counters.abandoned.add(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_of_the_peers_choice_is_counted_by_its_range() {
        let counters = Counters::default();
        for code in [1000, 1000, 1015, 3000, 3999, 4000, 4999, 0, 999, 1016, 2999, 5000, u16::MAX] {
            counters.closed(code);
        }
        let counts: Vec<u64> = counters.closed.iter().map(Count::get).collect();
        assert_eq!(counts, [2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 2, 5 + 1]);
    }

    #[test]
    fn every_request_ends_one_way() {
        let counters = Counters::default();
        for status in [101, 200, 299, 404, 503, 999] {
            Asked::begin(&counters).answered(http::StatusCode::from_u16(status).unwrap());
        }
        drop(Asked::begin(&counters));
        assert_eq!(counters.responses.each_ref().map(Count::get), [1, 2, 0, 1, 2]);
        assert_eq!((counters.requests.get(), counters.abandoned.get()), (7, 1));
    }
}
