//! When messages with a key may leave: what the kernels' buffers hold can't be replaced any more, so a peer that does not
//! keep up must not get more than it has read.
//!
//! A ping follows what leaves, and its pong proves that the peer has read so far (RFC 6455 section 5.5.3: frames are read in
//! order). There is never more than one that is waited for.
//!
//! | state | keyed messages leave | a ping behind them | next |
//! |---|---|---|---|
//! | new | one batch, with a ping in front of it | - | its pong is the shortest round trip: careful |
//! | careful | one batch, when all before it is proven | always | free, after enough prompt pongs in a row |
//! | free | at once | 50 ms after the last | careful, when a ping is late: 2 × the shortest round trip + 5 ms |
//! | deaf | at once: the peer has answered nothing at all for 5 s | - | new, when it does |
//!
//! A batch is what waits when it begins. A pong is prompt when it takes a quarter more than the shortest and 5 ms, and counts
//! when messages were in front of its ping. Who is free and then late needs twice as many prompt pongs the next time, so that a
//! line that is just too narrow is not tried again and again. No sockets and no clock in here: `now` is an age.

use std::time::Duration;

/// Between two pings of a peer that keeps up: what may pass unproven there, and what proving costs.
const PING_EVERY: Duration = Duration::from_millis(50);
/// What a pong may take beyond two round trips: a peer that draws a frame, a thread that waits for its turn.
const LEEWAY: Duration = Duration::from_millis(5);
/// How long the shortest round trip counts: routes change. BBR measures its own anew after ten seconds too.
const MEASURE_EVERY: Duration = Duration::from_secs(10);
/// How long to wait for an answer before it is asked again, or taken for granted that there is none.
const PATIENCE: Duration = Duration::from_secs(5);
/// Most prompt pongs in a row that are asked for.
const MOST_TRIALS: u8 = 64;

/// What is to be done when a pong has come, or the time is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then {
    /// Nothing.
    Nothing,
    /// Another ping, then wait on.
    Ping,
    /// What waits may leave.
    Leave,
}

/// The state of the table above. Times are ages of the endpoint.
#[derive(Debug, Default)]
pub(super) struct Gate {
    /// The ping that is waited for: its number, and when it left.
    asked: Option<(u32, Duration)>,
    /// Shortest round trip, and when it was measured.
    shortest: Option<(Duration, Duration)>,
    /// When the newest ping left.
    last: Duration,
    /// The peer keeps up.
    free: bool,
    /// The peer answers no pings.
    deaf: bool,
    /// Something left behind the newest ping.
    loose: bool,
    /// The ping that is waited for is to measure the shortest round trip anew.
    measuring: bool,
    /// It has nothing in front of it: how soon it is answered tells nothing of the messages.
    bare: bool,
    /// Prompt pongs in a row, and how many are needed.
    prompt: u8,
    needed: u8,
    /// Since when it has been free.
    since: Duration,
    /// Messages that may leave still: the rest of a batch.
    pub(super) batch: usize,
    /// Somebody looks after a ping that is not answered.
    pub(super) watched: bool,
    /// Number of the newest keep-alive ping, once the gate has sent any: they have their numbers from the same row.
    pub(super) keepalive: Option<u32>,
}

impl Gate {
    /// Nothing was sent yet: the first batch has a ping in front.
    pub(super) fn is_new(&self) -> bool {
        self.shortest.is_none() && self.asked.is_none() && !self.deaf
    }

    /// What a pong of one that keeps up takes at most.
    fn late_after(&self) -> Duration {
        self.shortest.map_or(Duration::ZERO, |(shortest, _)| shortest * 2 + LEEWAY)
    }

    /// Whether a batch may begin.
    pub(super) fn is_open(&mut self, now: Duration) -> bool {
        match self.asked {
            None => true,
            Some(_) if self.deaf => true,
            Some((_, at)) if self.free && now.saturating_sub(at) <= self.late_after() => true,
            Some(_) => {
                if std::mem::take(&mut self.free) {
                    // After a good while it is another time.
                    let again = now.saturating_sub(self.since) < MEASURE_EVERY;
                    self.needed = if again { (self.needed * 2).min(MOST_TRIALS) } else { 1 };
                    self.prompt = 0;
                }
                false
            }
        }
    }

    /// Whether frames may leave without a batch.
    pub(super) fn flows(&mut self, now: Duration) -> bool {
        self.batch == 0 && self.free && self.is_open(now)
    }

    /// Keyed messages leave.
    pub(super) fn left(&mut self) {
        self.loose = true;
    }

    /// Whether a ping is to follow what has left.
    pub(super) fn wants_ping(&self, now: Duration) -> bool {
        self.loose && self.asked.is_none() && !self.deaf && (!self.free || self.is_due(now))
    }

    /// Whether the next keyed message has a ping behind it, for one that is free.
    pub(super) fn is_due(&self, now: Duration) -> bool {
        self.asked.is_none() && !self.deaf && now.saturating_sub(self.last) >= PING_EVERY
    }

    /// A ping leaves. One that is waited for already stays so: a later number answers it too.
    pub(super) fn asks(&mut self, number: u32, now: Duration) {
        self.asked.get_or_insert((number, now));
        self.last = now;
        self.loose = false;
    }

    /// A pong has come, with a number that was sent.
    pub(super) fn answered(&mut self, number: u32, now: Duration) -> Then {
        let Some((asked, at)) = self.asked else { return Then::Nothing };
        if !is_at_least(number, asked) {
            return Then::Nothing;
        }
        if self.deaf {
            // Late as it is it measures nothing: everything anew.
            *self = Self { batch: self.batch, watched: self.watched, keepalive: self.keepalive, ..Self::default() };
            return Then::Leave;
        }
        self.asked = None;
        let took = now.saturating_sub(at);
        let measuring = std::mem::take(&mut self.measuring);
        let bare = std::mem::take(&mut self.bare);
        let Some((mut shortest, mut measured)) = self.shortest else {
            self.shortest = Some((took, now));
            self.needed = 1;
            self.bare = self.loose;
            return if self.loose { Then::Ping } else { Then::Leave };
        };
        if measuring || took < shortest {
            (shortest, measured) = (took, now);
            self.shortest = Some((took, now));
        }
        if self.free && took <= self.late_after() {
            return Then::Leave;
        }
        self.free = false;
        if !bare {
            let prompt = took <= shortest + shortest / 4 + LEEWAY;
            self.prompt = if prompt { self.prompt + 1 } else { 0 };
            if self.prompt >= self.needed {
                (self.free, self.since, self.prompt) = (true, now, 0);
                return Then::Leave;
            }
        }
        // With nothing of ours under way, what the next takes is the way alone.
        self.measuring = !self.loose && now.saturating_sub(measured) > MEASURE_EVERY;
        self.bare = self.loose || self.measuring;
        if self.bare { Then::Ping } else { Then::Leave }
    }

    /// Messages wait for an answer: how long until somebody is to look.
    pub(super) fn patience(&self, now: Duration) -> Option<Duration> {
        let (_, at) = self.asked.filter(|_| !self.deaf)?;
        Some(PATIENCE.saturating_sub(now.saturating_sub(at.max(self.last))))
    }

    /// Somebody looks, because messages wait: how long until it is time to do so again, and what is to be done.
    pub(super) fn look(&mut self, now: Duration) -> (Option<Duration>, Then) {
        match self.patience(now) {
            None => return (None, Then::Nothing),
            Some(Duration::ZERO) => {}
            left => return (left, Then::Nothing),
        }
        if self.shortest.is_none() {
            self.deaf = true;
            return (None, Then::Leave);
        }
        // Of several pings a peer may answer the newest alone, which may have been one of the program's.
        (Some(PATIENCE), Then::Ping)
    }
}

/// Whether a number is not before another, in a row that wraps.
pub(super) fn is_at_least(number: u32, other: u32) -> bool {
    number.wrapping_sub(other) < 1 << 31
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// A gate whose shortest round trip is 10 ms, and that is free.
    fn free() -> Gate {
        let mut gate = Gate::default();
        assert!(gate.is_new());
        gate.asks(1, ms(0));
        gate.left();
        assert!(!gate.is_new());
        assert!(!gate.is_open(ms(0)), "one batch until the first pong");
        assert_eq!(gate.answered(1, ms(10)), Then::Ping, "what left behind the first ping is not proven");
        gate.asks(2, ms(10));
        assert!(!gate.is_open(ms(19)));
        assert_eq!(gate.answered(2, ms(20)), Then::Leave);
        assert!(!gate.free, "a ping with nothing in front tells nothing");
        gate.left();
        gate.asks(2, ms(20));
        assert_eq!(gate.answered(2, ms(31)), Then::Leave);
        assert!(gate.free);
        gate
    }

    #[test]
    fn a_peer_that_keeps_up_is_asked_every_so_often() {
        let mut gate = free();
        let mut number = 2;
        let mut pings = 0;
        for now in 70..1070 {
            assert!(gate.flows(ms(now)), "{now}");
            gate.left();
            if gate.wants_ping(ms(now)) {
                number += 1;
                pings += 1;
                gate.asks(number, ms(now));
            }
            if gate.asked.is_some_and(|(_, at)| ms(now) - at >= ms(12)) {
                assert_eq!(gate.answered(number, ms(now)), Then::Leave);
            }
        }
        assert_eq!(pings, 20);
    }

    #[test]
    fn one_that_is_late_gets_one_batch_at_a_time() {
        let mut gate = free();
        gate.left();
        assert!(gate.wants_ping(ms(100)));
        gate.asks(3, ms(100));
        assert!(gate.is_open(ms(125)));
        gate.left();
        assert!(!gate.is_open(ms(126)));
        assert!(!gate.is_open(ms(100)), "and stays careful");
        assert_eq!(gate.answered(3, ms(300)), Then::Ping, "what left behind it has to be proven too");
        gate.asks(4, ms(300));
        assert_eq!(gate.answered(4, ms(400)), Then::Leave);
        assert!(gate.is_open(ms(400)));
        gate.left();
        assert!(gate.wants_ping(ms(400)), "without waiting for its time");
        gate.asks(5, ms(400));
        assert!(!gate.is_open(ms(401)));
        // It needs two prompt ones now, then it is free again.
        assert_eq!(gate.answered(5, ms(410)), Then::Leave);
        assert!(!gate.free);
        gate.left();
        gate.asks(6, ms(410));
        assert_eq!(gate.answered(6, ms(420)), Then::Leave);
        assert!(gate.free);
    }

    #[test]
    fn numbers_wrap_and_a_later_pong_answers_earlier_pings() {
        let mut gate = free();
        gate.asks(u32::MAX, ms(100));
        assert_eq!(gate.answered(u32::MAX - 1, ms(105)), Then::Nothing);
        assert!(gate.asked.is_some());
        assert_eq!(gate.answered(3, ms(110)), Then::Leave);
        assert_eq!(gate.answered(3, ms(111)), Then::Nothing);
    }

    #[test]
    fn the_shortest_round_trip_is_measured_anew() {
        let mut gate = free();
        // The way has become longer for good.
        let mut now = 1_000;
        let mut number = 2;
        let mut probes = 0;
        gate.left();
        loop {
            number += 1;
            gate.asks(number, ms(now));
            assert!(!gate.is_open(ms(now + 60)));
            now += 100;
            match gate.answered(number, ms(now)) {
                Then::Ping => probes += 1,
                _ => gate.left(),
            }
            if gate.free {
                break;
            }
            assert!(now < 20_000);
        }
        assert_eq!(probes, 1);
        assert_eq!(gate.late_after(), ms(205));
    }

    #[test]
    fn one_that_never_answers_is_deaf_until_it_does() {
        let mut gate = Gate::default();
        gate.asks(1, ms(100));
        gate.left();
        assert_eq!(gate.look(ms(100)), (Some(PATIENCE), Then::Nothing));
        assert_eq!(gate.look(ms(4_100)), (Some(ms(1_000)), Then::Nothing));
        assert_eq!(gate.look(ms(5_100)), (None, Then::Leave));
        assert!(gate.is_open(ms(5_100)));
        gate.left();
        assert!(!gate.wants_ping(ms(9_000)));
        assert_eq!(gate.answered(1, ms(10_100)), Then::Leave);
        assert!(gate.is_new());
    }

    #[test]
    fn one_that_has_answered_before_is_asked_again() {
        let mut gate = free();
        gate.left();
        gate.asks(3, ms(100));
        assert!(!gate.is_open(ms(5_000)));
        assert_eq!(gate.look(ms(5_100)), (Some(PATIENCE), Then::Ping));
        gate.asks(4, ms(5_100));
        assert_eq!(gate.look(ms(6_100)), (Some(ms(4_000)), Then::Nothing));
        assert!(!gate.is_open(ms(6_100)));
        assert_eq!(gate.answered(3, ms(9_000)), Then::Leave, "the one that it was about");
    }
}
