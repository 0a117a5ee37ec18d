//! Keep-alive: pings, and what has been silent for too long (RFC 6455 section 5.5.2).
//!
//! One sweep over all connections of an endpoint every so often, instead of a timer for each: an idle connection costs
//! some additions. Times are therefore kept to about a quarter of the shortest setting.
//!
//! A ping counts as unanswered only while nothing at all is heard from the peer, nothing that it was sent makes
//! progress, and we are reading: a peer on a slow line that takes a large message, or one whose pong waits behind
//! messages that the program has not taken, is alive.

use super::{Connection, Inner, State};
use crate::endpoint::Endpoint;
use crate::wire::Opcode;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// Pauses between sweeps: a quarter of the shortest setting, within these.
const SHORTEST: Duration = Duration::from_millis(10);
const LONGEST: Duration = Duration::from_secs(5);

/// Sweeps the endpoint's connections on this I/O thread for as long as the endpoint lives.
pub(crate) async fn sweep(endpoint: Weak<Endpoint>, thread: usize) {
    let Some(pause) = endpoint.upgrade().and_then(|endpoint| pause(&endpoint)) else { return };
    let mut last = Instant::now();
    let mut stalled = Duration::ZERO;
    let mut ticks = 0;
    loop {
        tokio::time::sleep(pause).await;
        let Some(endpoint) = endpoint.upgrade() else { return };
        let elapsed = last.elapsed();
        last += elapsed;
        let mut all = Vec::new();
        endpoint.for_each_on(thread, |_, conn| all.push(Arc::clone(conn)));
        // A program that waits inside `tick()` is there, however long nothing happens.
        let alive = endpoint.ticks() != ticks || endpoint.inbox.is_waited_for();
        ticks = endpoint.ticks();
        stalled = if alive { Duration::ZERO } else { stalled + elapsed };
        let stall = endpoint.settings.app_stall_timeout.is_some_and(|limit| stalled > limit);
        let mut closed = 0;
        for conn in &all {
            closed += usize::from(conn.sweep(last, elapsed, stall) && stall);
        }
        if closed > 0 {
            let io = &endpoint.runtime.threads[thread];
            endpoint.complain(io, "app_stall_timeout", || {
                let limit = endpoint.settings.app_stall_timeout.unwrap_or_default().as_secs_f64();
                format!("{closed} channels closed with 1013: no tick for app_stall_timeout={limit} s")
            });
        }
    }
}

fn pause(endpoint: &Endpoint) -> Option<Duration> {
    let s = &endpoint.settings;
    let times = [s.ping_interval, s.ping_interval.and(s.ping_timeout), s.idle_timeout, s.app_stall_timeout];
    let shortest = times.into_iter().flatten().min()?;
    Some((shortest / 4).clamp(SHORTEST, LONGEST))
}

fn millis(time: Duration) -> u32 {
    u32::try_from(time.as_millis()).unwrap_or(u32::MAX)
}

impl Connection {
    /// True: it was closed.
    fn sweep(self: &Arc<Self>, now: Instant, elapsed: Duration, stall: bool) -> bool {
        let inner = &mut *self.inner.lock();
        if inner.state != State::Open {
            return false;
        }
        let settings = &self.endpoint.settings;
        let elapsed = millis(elapsed);
        let over = |spent: u32, limit: Option<Duration>| limit.is_some_and(|limit| spent > millis(limit));
        let life = &mut inner.life;
        let stirred = std::mem::take(&mut life.stirred);
        life.unanswered = match life.ping {
            Some(_) if !stirred && !inner.paused => life.unanswered.saturating_add(elapsed),
            _ => 0,
        };
        life.idle =
            if std::mem::take(&mut life.talked) || inner.paused { 0 } else { life.idle.saturating_add(elapsed) };
        life.since_ping = life.since_ping.saturating_add(elapsed);
        if stall {
            self.give_up(inner, 1013, "the program does not answer");
        } else if over(life.unanswered, settings.ping_timeout) {
            self.endpoint.complain(&self.io, "ping_timeout", || {
                let limit = settings.ping_timeout.unwrap_or_default().as_secs_f64();
                format!("channel {} closed with 1011: no answer to a ping for ping_timeout={limit} s", self.describe())
            });
            self.give_up(inner, 1011, "keep-alive ping was not answered");
        } else if over(life.idle, settings.idle_timeout) {
            self.give_up(inner, 1001, "no message for idle_timeout");
        } else if life.ping.is_none() && settings.ping_interval.is_some_and(|i| life.since_ping >= millis(i)) {
            life.since_ping = 0;
            life.ping = Some(now);
            life.ping_number = life.ping_number.wrapping_add(1);
            let number = life.ping_number.to_be_bytes();
            self.control(inner, Opcode::Ping, &number);
            if !inner.blocked {
                self.flush(inner);
            }
        }
        inner.state != State::Open
    }

    /// Closes with a code of ours, without waiting for the program or for much from the peer.
    fn give_up(self: &Arc<Self>, inner: &mut Inner, code: u16, reason: &str) {
        self.shut.fetch_max(super::GONE, Ordering::Relaxed);
        self.close_frame(inner, Some(code), reason);
        self.tell_close(inner, code, reason);
        self.drain(inner);
        if !inner.blocked {
            self.flush(inner);
        }
    }

    /// The answer to our ping arrived.
    pub(super) fn pong(&self, inner: &mut Inner) {
        if let Some(sent) = inner.life.ping.take() {
            let micros = u32::try_from(sent.elapsed().as_micros()).unwrap_or(u32::MAX - 1);
            self.round_trip.store(micros.saturating_add(1), Ordering::Relaxed);
        }
    }
}
