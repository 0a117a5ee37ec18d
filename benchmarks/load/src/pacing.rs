//! What the generators have in common: senders that repeat one encoded message, the phases of a run, and its figures.
//!
//! Closed-loop: a sender sends its next message when one of its messages was answered. Three phases: priming until
//! every connection has received something, warm-up for a fifth of the measured time, then the measurement.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Write};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use crate::histogram::Histogram;

/// A server that is silent for this long during a handshake, or in priming, has failed.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// Large enough for everything that one connection has in flight in any of the cases with small messages.
pub const READ_BUFFER: usize = 256 * 1024;
const WARM_UP_SHARE: f64 = 0.2;

/// What all senders send, encoded once: enough copies in a row that everything one sender can owe is one slice.
#[derive(Debug)]
pub struct Outgoing {
    message_length: usize,
    block: Vec<u8>,
}

impl Outgoing {
    /// Copies of `message` for senders that keep `depth` of them in flight.
    #[must_use]
    pub fn new(message: &[u8], depth: usize) -> Self {
        // One more than the depth: a slice may begin in the middle of a message.
        Self { message_length: message.len(), block: message.repeat(depth + 1) }
    }
}

/// The sending side of one connection.
#[derive(Debug, Default)]
pub struct Sender {
    /// Bytes of messages not yet written, and where in a message they begin.
    owed: usize,
    phase: usize,
    /// When each message in flight was sent, oldest first.
    in_flight: VecDeque<Instant>,
    /// Messages queued since the beginning.
    pub sent: u64,
}

impl Sender {
    /// Queues `count` messages and remembers when.
    pub fn queue(&mut self, count: u32, now: Instant, outgoing: &Outgoing) {
        self.in_flight.extend((0..count).map(|_| now));
        self.owed += count as usize * outgoing.message_length;
        self.sent += u64::from(count);
    }

    /// Writes until nothing is owed (true) or the socket is full (false); the poll reports when it has room again.
    ///
    /// # Errors
    /// The socket's.
    pub fn flush(&mut self, stream: &mut impl Write, outgoing: &Outgoing) -> io::Result<bool> {
        while self.owed > 0 {
            match stream.write(&outgoing.block[self.phase..self.phase + self.owed]) {
                Ok(written) => {
                    self.owed -= written;
                    self.phase = (self.phase + written) % outgoing.message_length;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// `count` messages were answered: calls `took` with the latency of each.
    pub fn answered(&mut self, count: u32, now: Instant, took: impl FnMut(Duration)) {
        self.in_flight.drain(..count as usize).map(|sent| now - sent).for_each(took);
    }
}

/// Where a run stands; each phase knows when it ends.
#[derive(Clone, Copy, Debug)]
pub enum Phase {
    /// Some connection has received nothing yet.
    Priming {
        /// When the run is given up.
        until: Instant,
    },
    /// Not measured: caches and interpreters get warm.
    WarmUp {
        /// When the measurement begins.
        until: Instant,
    },
    /// What the figures are made of.
    Measuring {
        /// When it began.
        since: Instant,
        /// When it ends.
        until: Instant,
    },
}

impl Phase {
    /// The first phase, beginning now.
    #[must_use]
    pub fn begin() -> Self {
        Self::Priming { until: Instant::now() + PATIENCE }
    }

    /// Whether this is the measurement.
    #[must_use]
    pub fn is_measuring(self) -> bool {
        matches!(self, Self::Measuring { .. })
    }

    /// Goes on to the next phase when it is time; true when the measurement is over.
    ///
    /// # Errors
    /// When priming takes too long; `waiting` is how many connections have received nothing.
    pub fn advance(&mut self, waiting: usize, seconds: f64) -> Result<bool, String> {
        let now = Instant::now();
        *self = match *self {
            Self::Priming { .. } if waiting == 0 => {
                Self::WarmUp { until: now + Duration::from_secs_f64(seconds * WARM_UP_SHARE) }
            }
            Self::Priming { until } if now >= until => {
                return Err(format!("{waiting} connections never received anything"));
            }
            Self::WarmUp { until } if now >= until => {
                Self::Measuring { since: now, until: now + Duration::from_secs_f64(seconds) }
            }
            Self::Measuring { until, .. } if now >= until => return Ok(true),
            unchanged => unchanged,
        };
        Ok(false)
    }
}

/// The figures of a finished run, as the members of a JSON object without its braces.
///
/// `received`: what each connection received while measuring. `since_the_beginning`: what all have received in all
/// phases, to set the server's CPU time against.
///
/// # Errors
/// When there is nothing to make figures of.
#[allow(clippy::cast_precision_loss)] // counts far below 2^53
pub fn figures(
    phase: Phase,
    received: impl ExactSizeIterator<Item = u64> + Clone,
    since_the_beginning: u64,
    latencies: &Histogram,
    connect_seconds: f64,
) -> Result<String, String> {
    let Phase::Measuring { since, .. } = phase else {
        return Err("ended before the measurement".into());
    };
    let elapsed = since.elapsed().as_secs_f64();
    let total: u64 = received.clone().sum();
    if total == 0 {
        return Err("not one message came back while measuring".into());
    }
    // The least-served connection against the average one: far below 1 where a server starves or drops some.
    let connections = received.len() as f64;
    let least = received.min().unwrap_or(0) as f64 * connections / total as f64;
    let cpu = clock_gettime(ClockId::ProcessCPUTime);
    let cpu_seconds = cpu.tv_sec as f64 + cpu.tv_nsec as f64 * 1e-9;
    let [p50, p99, p999] = [500, 990, 999].map(|permille| latencies.percentile(permille));
    Ok(format!(
        "\"seconds\":{elapsed:.3},\"msgs\":{since_the_beginning},\"msgs_per_s\":{:.0},\"p50_us\":{p50},\"p99_us\":{p99},\"p999_us\":{p999},\
         \"least_share\":{least:.3},\"connect_s\":{connect_seconds:.3},\"cpu_s\":{cpu_seconds:.3}",
        total as f64 / elapsed,
    ))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Takes at most a few bytes at a time, and then nothing.
    struct Narrow {
        room: usize,
        taken: Vec<u8>,
    }

    impl Write for Narrow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let count = bytes.len().min(3).min(self.room);
            if count == 0 {
                return Err(ErrorKind::WouldBlock.into());
            }
            self.room -= count;
            self.taken.extend_from_slice(&bytes[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_sender_goes_on_where_a_full_socket_stopped_it() {
        let outgoing = Outgoing::new(b"abcde", 2);
        let (mut sender, mut socket) = (Sender::default(), Narrow { room: 7, taken: Vec::new() });
        sender.queue(2, Instant::now(), &outgoing);
        assert!(!sender.flush(&mut socket, &outgoing).unwrap());
        sender.answered(1, Instant::now(), |_| {});
        sender.queue(1, Instant::now(), &outgoing);
        socket.room = 100;
        assert!(sender.flush(&mut socket, &outgoing).unwrap());
        assert_eq!(socket.taken, b"abcdeabcdeabcde");
        assert_eq!(sender.sent, 3);
    }

    #[test]
    fn latencies_are_those_of_the_oldest_messages() {
        let (outgoing, mut sender, now) = (Outgoing::new(b"x", 2), Sender::default(), Instant::now());
        sender.queue(1, now, &outgoing);
        sender.queue(1, now + Duration::from_micros(5), &outgoing);
        let mut took = Vec::new();
        sender.answered(1, now + Duration::from_micros(9), |latency| took.push(latency.as_micros()));
        sender.answered(1, now + Duration::from_micros(9), |latency| took.push(latency.as_micros()));
        assert_eq!(took, [9, 4]);
    }

    #[test]
    fn priming_waits_for_every_connection() {
        let mut phase = Phase::begin();
        assert_eq!(phase.advance(1, 1.0), Ok(false));
        assert!(matches!(phase, Phase::Priming { .. }));
        assert_eq!(phase.advance(0, 1.0), Ok(false));
        assert!(matches!(phase, Phase::WarmUp { .. }));
        let mut late = Phase::Priming { until: Instant::now() };
        assert!(late.advance(3, 1.0).unwrap_err().starts_with("3 connections"));
    }

    #[test]
    fn a_run_without_answers_has_no_figures() {
        let now = Instant::now();
        let phase = Phase::Measuring { since: now, until: now };
        assert!(figures(phase, [0_u64, 0].into_iter(), 0, &Histogram::default(), 0.0).is_err());
        assert!(figures(Phase::begin(), [1_u64].into_iter(), 1, &Histogram::default(), 0.0).is_err());
        let line = figures(phase, [1_u64, 3].into_iter(), 9, &Histogram::default(), 0.0).unwrap();
        assert!(line.contains("\"least_share\":0.500"), "{line}");
    }
}
