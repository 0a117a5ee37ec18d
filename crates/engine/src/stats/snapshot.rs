//! All that is counted, at one moment. The numbers are read one after the other while others go on counting, so that two of
//! them may be some messages apart.

use super::{CLASSES, CODES, FIRST_CODE, OTHERS};
use crate::endpoint::Endpoint;
use std::borrow::Cow;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Times, by cumulated buckets.
#[derive(Clone, Debug, Default)]
pub struct Histogram {
    /// Upper bounds, and how many times were at most that long.
    pub buckets: Vec<(Duration, u64)>,
    /// How many times there are.
    pub count: u64,
    /// All of them together.
    pub sum: Duration,
}

/// What is to be seen of an endpoint. The names are those of `pyhv.ServerStats`, which says what each is.
#[derive(Clone, Debug, Default)]
#[expect(missing_docs, reason = "python/pyhv/stats.py has them, for all who read them")]
pub struct Snapshot {
    pub started: f64,
    pub uptime: Duration,
    pub io_threads: usize,
    pub http_connections: u64,
    pub websockets: u64,
    pub connections_accepted: u64,
    pub websockets_opened: u64,
    pub websockets_closed: Vec<(Cow<'static, str>, u64)>,
    pub http_requests: u64,
    pub http_requests_active: u64,
    pub http_requests_abandoned: u64,
    pub http_responses: Vec<(&'static str, u64)>,
    pub messages_received: u64,
    pub messages_sent: u64,
    pub message_bytes_received: u64,
    pub message_bytes_sent: u64,
    pub messages_dropped: u64,
    pub messages_skipped: u64,
    pub messages_replaced: u64,
    pub websocket_bytes_read: u64,
    pub websocket_bytes_written: u64,
    pub http_bytes_read: u64,
    pub http_bytes_written: u64,
    pub pings_sent: u64,
    pub pings_answered: u64,
    pub pings_waiting: u64,
    pub pings_unanswered: u64,
    pub refusals: Vec<(&'static str, u64)>,
    pub events_pending: usize,
    pub events_pending_bytes: usize,
    pub websockets_paused: u64,
    pub websockets_behind: usize,
    pub buffered_bytes: usize,
    pub commands_pending: usize,
    pub commands_pending_bytes: usize,
    pub ticks: u64,
    pub events_delivered: u64,
    pub tick_seconds: Histogram,
    pub tick_running: Duration,
    pub stall_age: Duration,
}

/// When, in seconds since 1970.
fn seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

impl Endpoint {
    /// What is to be seen of it now. Any thread; takes some short locks, and looks at each connection.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let stats = &self.stats;
        let (connections, connections_accepted) = self.connections_and_accepted();
        // What ends is read before what began, so that no difference is below zero.
        let (finished, opened) = (stats.sum(|t| &t.finished), stats.sum(|t| &t.opened));
        let by_code = (0..CODES).map(|n| Cow::Owned((usize::from(FIRST_CODE) + n).to_string()));
        let names = by_code.chain(OTHERS.map(Cow::Borrowed));
        let websockets_closed: Vec<_> =
            names.enumerate().map(|(n, name)| (name, stats.sum(|t| &t.closed[n]))).filter(|(_, n)| *n > 0).collect();
        let closed: u64 = websockets_closed.iter().map(|(_, n)| n).sum();
        let http_responses: Vec<_> =
            CLASSES.iter().enumerate().map(|(n, name)| (*name, stats.sum(|t| &t.responses[n]))).collect();
        let abandoned = stats.sum(|t| &t.abandoned);
        let answered = http_responses.iter().map(|(_, n)| n).sum::<u64>() + abandoned;
        let http_requests = stats.sum(|t| &t.requests);
        let (pings_answered, pings_lost) = (stats.sum(|t| &t.pings_answered), stats.sum(|t| &t.pings_lost));
        let pings_sent = stats.sum(|t| &t.pings_sent);
        let resumed = stats.sum(|t| &t.resumed);
        let (events, bytes) = self.inbox.load();
        let (websockets_behind, buffered_bytes) = self.buffered();
        let down = self.runtime.threads.iter().map(|io| io.down.load());
        let (commands, command_bytes) = down.fold((0, 0), |(n, bytes), (more, many)| (n + more, bytes + many));
        let mut refusals = self.complaints();
        refusals.sort_unstable();
        Snapshot {
            started: seconds(stats.started),
            uptime: self.age(),
            io_threads: self.runtime.threads.len(),
            http_connections: (connections as u64).saturating_sub(opened.saturating_sub(finished)),
            websockets: opened.saturating_sub(closed),
            connections_accepted,
            websockets_opened: opened,
            websockets_closed,
            http_requests,
            http_requests_active: http_requests.saturating_sub(answered),
            http_requests_abandoned: abandoned,
            http_responses,
            messages_received: stats.sum(|t| &t.messages_received),
            messages_sent: stats.sum(|t| &t.messages_sent),
            message_bytes_received: stats.sum(|t| &t.message_bytes_received),
            message_bytes_sent: stats.sum(|t| &t.message_bytes_sent),
            messages_dropped: stats.dropped.load(Ordering::Relaxed),
            messages_skipped: stats.skipped.load(Ordering::Relaxed),
            messages_replaced: stats.replaced.load(Ordering::Relaxed),
            websocket_bytes_read: stats.sum(|t| &t.ws_read),
            websocket_bytes_written: stats.sum(|t| &t.ws_written),
            http_bytes_read: stats.sum(|t| &t.http_read),
            http_bytes_written: stats.sum(|t| &t.http_written),
            pings_sent,
            pings_answered,
            pings_waiting: pings_sent.saturating_sub(pings_answered + pings_lost),
            pings_unanswered: pings_lost,
            refusals,
            events_pending: events + stats.left.load(Ordering::Relaxed),
            events_pending_bytes: bytes + stats.left_bytes.load(Ordering::Relaxed),
            websockets_paused: stats.sum(|t| &t.paused).saturating_sub(resumed),
            websockets_behind,
            buffered_bytes,
            commands_pending: commands,
            commands_pending_bytes: command_bytes,
            ticks: self.ticks() as u64,
            events_delivered: stats.ticks.events(),
            tick_seconds: stats.ticks.histogram(),
            tick_running: stats.ticks.delivering(self.age()),
            stall_age: self.tick_age(),
        }
    }
}
