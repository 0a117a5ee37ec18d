//! How a server takes leave of its clients.
//!
//! | phase | accepts | HTTP connections | WebSockets | readiness |
//! |---|---|---|---|---|
//! | Running | yes | live | live | yes |
//! | Leaving: [`Endpoint::drain`] | yes | end behind their next answer | live | no |
//! | Deaf: the same | no | the same | live | no |
//! | Stopping: [`Endpoint::stop`] | no | end behind what has begun | closed, at once or spread over a time | no |
//! | Aborting: [`Endpoint::abort`] | no | dropped | dropped | no |
//!
//! An idle HTTP/1.1 connection is left alone until Stopping: closed while the client's next request is on its way, that
//! request would be lost (RFC 9112 section 9.5); told `Connection: close` in an answer, the client asks elsewhere. HTTP/2
//! has GOAWAY for it (RFC 9113 section 6.8), which is sent at once.

use crate::connection::{CloseKind, Connection};
use crate::down::{Command, DownQueue};
use crate::endpoint::{Endpoint, Phase};
use crate::runtime::IoThread;
use crate::task::guarded;
use rand::seq::SliceRandom;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How often some of the WebSockets are closed that are closed over a time.
const STEP: Duration = Duration::from_millis(10);

/// What a server says to its channels when it stops.
#[derive(Clone, Debug)]
pub struct Farewell {
    /// Of the close frames.
    pub code: u16,
    /// The same.
    pub reason: String,
    /// Time over which they are sent, so that the clients do not come back all at once.
    pub spread: Duration,
}

impl Endpoint {
    /// Prepares for a stop; see the module. Without effect once that has begun.
    pub fn drain(&self, accept: bool) {
        let wanted = if accept { Phase::Leaving } else { Phase::Deaf };
        self.leaving.store(true, Ordering::Relaxed);
        self.phase.send_if_modified(|phase| {
            let rises = *phase < wanted;
            *phase = wanted.max(*phase);
            rises
        });
        // A program that waits in a tick may want to look.
        self.inbox.nudge();
    }

    /// Whether `drain` was called.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.leaving.load(Ordering::Relaxed)
    }

    /// Begins a graceful stop: accept nothing, close every channel, finish requests that have begun.
    pub fn stop(self: &Arc<Self>, farewell: Farewell) {
        let farewell = self.farewell.get_or_init(|| farewell);
        self.stopping.store(true, Ordering::Relaxed);
        self.phase.send_replace(Phase::Stopping);
        for io in &self.runtime.threads {
            if farewell.spread.is_zero() {
                DownQueue::push(io, Command::CloseAll { endpoint: Arc::clone(self) });
            } else {
                guarded(io, self, close_over_time(Arc::clone(self), Arc::clone(io), farewell.spread));
            }
        }
    }

    /// The code and reason of a stop's close frames.
    pub(crate) fn parting(&self) -> (u16, &str) {
        self.farewell.get().map_or((1001, ""), |farewell| (farewell.code, &farewell.reason))
    }
}

/// Closes the channels of an I/O thread one after the other, in no order. Those that open meanwhile are closed as they do.
async fn close_over_time(endpoint: Arc<Endpoint>, io: Arc<IoThread>, spread: Duration) {
    let mut left: Vec<Arc<Connection>> = Vec::new();
    endpoint.for_each_on(io.index, |_, conn| left.push(Arc::clone(conn)));
    left.shuffle(&mut rand::rng());
    let total = left.len();
    let mut phase = endpoint.phase();
    let began = tokio::time::Instant::now();
    loop {
        let remaining = 1.0 - (began.elapsed().as_secs_f64() / spread.as_secs_f64()).min(1.0);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a part of a length")]
        let keep = (remaining * total as f64) as usize;
        for conn in left.drain(keep.min(left.len())..) {
            let (code, reason) = endpoint.parting();
            let (code, reason) = (Some(code), reason.to_owned());
            DownQueue::push(&io, Command::Close { conn, kind: CloseKind::Local, code, reason });
        }
        if left.is_empty() {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(STEP) => {}
            _ = phase.wait_for(|phase| *phase == Phase::Aborting) => return,
        }
    }
}
