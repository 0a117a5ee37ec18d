//! Keep-alive: pings, and what has been silent for too long (RFC 6455 section 5.5.2).
//!
//! All connections of an endpoint are looked at every so often, instead of a timer for each: an idle connection costs some
//! additions. Times are therefore kept to about a quarter of the shortest setting. Many connections are looked at in
//! steps, spread over that time: the pings of fifty thousand at once would keep the I/O thread for a quarter of a second.
//!
//! A ping counts as unanswered only while nothing at all is heard from the peer, nothing that it was sent makes
//! progress, and we are reading: a peer on a slow line that takes a large message, or one whose pong waits behind
//! messages that the program has not taken, is alive.

use super::gate::is_at_least;
use super::{Connection, Inner, State};
use crate::endpoint::Endpoint;
use crate::wire::Opcode;
use std::num::NonZeroU64;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// Pauses between sweeps: a quarter of the shortest setting, within these.
const SHORTEST: Duration = Duration::from_millis(10);
const LONGEST: Duration = Duration::from_secs(5);

/// Connections looked at in one step, where the pause leaves time for more than one.
const STEP: usize = 256;
/// tokio's timers are not finer.
const SHORTEST_STEP: Duration = Duration::from_millis(1);

/// How many steps a sweep over so many connections takes, at most one for each [`SHORTEST_STEP`] of the pause.
fn steps(connections: usize, pause: Duration) -> u32 {
    let most = u32::try_from(pause.as_nanos() / SHORTEST_STEP.as_nanos()).unwrap_or(u32::MAX);
    u32::try_from(connections.div_ceil(STEP)).unwrap_or(u32::MAX).clamp(1, most.max(1))
}

/// Sweeps over the endpoint's connections on this I/O thread again and again for as long as the endpoint lives.
pub(crate) async fn sweep(endpoint: Weak<Endpoint>, thread: usize) {
    let Some(pause) = endpoint.upgrade().and_then(|endpoint| pause(&endpoint)) else { return };
    let mut last = Instant::now();
    let mut stalled = Duration::ZERO;
    let mut stall = false;
    let mut ticks = 0;
    let mut steps_taken = 1;
    // Where in the register the next step begins.
    let mut place = 0;
    loop {
        tokio::time::sleep(pause / steps_taken).await;
        let Some(endpoint) = endpoint.upgrade() else { return };
        let elapsed = last.elapsed();
        last += elapsed;
        // A program that waits inside `tick()` is there, however long nothing happens.
        let alive = endpoint.ticks() != ticks || endpoint.inbox.is_waited_for();
        ticks = endpoint.ticks();
        stalled = if alive { Duration::ZERO } else { stalled + elapsed };
        let stall_began = !stall;
        stall = endpoint.settings.app_stall_timeout.is_some_and(|limit| stalled > limit);
        let connections = endpoint.channels_on(thread);
        steps_taken = steps(connections, pause);
        let mut due = Vec::new();
        place = if stall && stall_began {
            // All at once, and one line in the log. Those that open later have their turn like everybody.
            endpoint.next_on(thread, 0, usize::MAX, &mut due)
        } else {
            endpoint.next_on(thread, place, connections.div_ceil(steps_taken as usize), &mut due)
        };
        let age = endpoint.age();
        let mut closed = 0;
        for conn in due {
            closed += usize::from(conn.sweep(age, stall) && stall);
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

/// For differences of less than 49 days.
fn wrapped_millis(age: Duration) -> u32 {
    #[expect(clippy::cast_possible_truncation, reason = "it wraps")]
    let millis = age.as_millis() as u32;
    millis
}

/// Never 0, so that an option of it takes no more.
fn nanos(age: Duration) -> NonZeroU64 {
    u64::try_from(age.as_nanos()).ok().and_then(NonZeroU64::new).unwrap_or(NonZeroU64::MIN)
}

/// What the keep-alive sweep knows of a connection.
#[derive(Debug)]
pub(super) struct Life {
    /// When the unanswered ping was sent, in nanoseconds of the endpoint's age, and the number of the newest of any kind.
    ping: Option<NonZeroU64>,
    pub(super) ping_number: u32,
    /// The last sweep, in milliseconds of the endpoint's age.
    swept: u32,
    /// Milliseconds since the last ping; that the ping has been unanswered in silence; without a message.
    since_ping: u32,
    unanswered: u32,
    idle: u32,
    /// Something was read, or written after the socket had been full, since the last sweep.
    pub(super) stirred: bool,
    /// A message passed since the last sweep.
    pub(super) talked: bool,
}

impl Life {
    /// That of a connection that opens now.
    pub(super) fn new(endpoint: &Endpoint) -> Self {
        let swept = wrapped_millis(endpoint.age());
        Self { ping: None, ping_number: 0, swept, since_ping: 0, unanswered: 0, idle: 0, stirred: false, talked: false }
    }

    /// Whether a ping is not answered yet.
    pub(super) fn awaits_pong(&self) -> bool {
        self.ping.is_some()
    }
}

impl Connection {
    /// `age`: of the endpoint. True: it was closed.
    fn sweep(self: &Arc<Self>, age: Duration, stall: bool) -> bool {
        let inner = &mut *self.inner.lock();
        if inner.state != State::Open {
            return false;
        }
        let settings = &self.endpoint.settings;
        let over = |spent: u32, limit: Option<Duration>| limit.is_some_and(|limit| spent > millis(limit));
        let life = &mut inner.life;
        let now = wrapped_millis(age);
        let elapsed = now.wrapping_sub(std::mem::replace(&mut life.swept, now));
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
            life.ping = Some(nanos(age));
            life.ping_number = life.ping_number.wrapping_add(1);
            let number = life.ping_number;
            if let Some(newest) = inner.rare.as_mut().and_then(|rare| rare.gate.keepalive.as_mut()) {
                *newest = number;
            }
            self.counters().pings_sent.add(1);
            self.control(inner, Opcode::Ping, &number.to_be_bytes());
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

    /// The answer to a ping of ours arrived, and so to those before it: a peer may leave out all but the newest (RFC 6455
    /// section 5.5.3).
    pub(super) fn pong(self: &Arc<Self>, inner: &mut Inner, number: u32) {
        let newest = inner.life.ping_number;
        let keepalive = inner.rare.as_ref().and_then(|rare| rare.gate.keepalive);
        if !is_at_least(newest, number) {
            return;
        }
        if is_at_least(number, keepalive.unwrap_or(newest))
            && let Some(sent) = inner.life.ping.take()
        {
            let took = nanos(self.endpoint.age()).get().saturating_sub(sent.get());
            let micros = u32::try_from(took / 1000).unwrap_or(u32::MAX);
            self.counters().pings_answered.add(1);
            self.round_trip.store(micros.saturating_add(1), Ordering::Relaxed);
        }
        if keepalive.is_some() {
            self.gate_answered(inner, number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_connections_are_looked_at_in_steps_that_the_pause_has_room_for() {
        for (connections, millis, expected) in [
            (0, 5000, 1),
            (256, 5000, 1),
            (257, 5000, 2),
            (50_000, 5000, 196),
            (50_000, 10, 10),
            (usize::MAX, 5000, 5000),
        ] {
            assert_eq!(steps(connections, Duration::from_millis(millis)), expected, "{connections} in {millis} ms");
        }
    }
}
