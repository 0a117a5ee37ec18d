//! How a server stops: on the thread that ticks, whoever asks.

use crate::channel::check_close;
use crate::convert::{self, CloseCode};
use crate::server::Server;
use crate::ticker::{Budget, Owner, check_process};
use parking_lot::{Condvar, Mutex};
use pyhv_engine::farewell::Farewell;
use pyo3::exceptions::{PyTimeoutError, PyValueError};
use pyo3::prelude::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// RFC 6455 section 7.4.1: an endpoint is "going away", such as a server going down.
pub(crate) const GOING_AWAY: u16 = 1001;
/// How long an abort may take on the I/O thread before `stop` returns without it.
const ABORT_GRACE: Duration = Duration::from_secs(1);

/// How often some of the streams are closed that are closed over a time.
const STEP: Duration = Duration::from_millis(50);

/// What `stop` was given, checked.
#[derive(Clone)]
pub(crate) struct Leave {
    /// In seconds, for messages.
    seconds: f64,
    timeout: Duration,
    farewell: Farewell,
}

impl Leave {
    pub(crate) fn new(seconds: f64, code: &CloseCode, reason: &str, spread: f64) -> PyResult<Self> {
        let timeout = convert::seconds("timeout", seconds)?;
        let code = check_close(code, reason)?;
        let over = convert::seconds("spread", spread)?;
        if over > timeout {
            return Err(PyValueError::new_err(format!("spread={spread} is more than timeout={seconds}")));
        }
        Ok(Self { seconds, timeout, farewell: Farewell { code, reason: reason.to_owned(), spread: over } })
    }
}

/// A stop that was asked for while a tick runs.
#[derive(Default)]
pub(crate) struct Stopping {
    /// What the ticking thread is to make at the end of its tick.
    leave: Mutex<Option<Leave>>,
    requested: AtomicBool,
    /// Told when a run has ended; belongs to the lock of `Server::run`.
    stopped: Condvar,
}

impl Stopping {
    fn request(&self, leave: Leave) {
        *self.leave.lock() = Some(leave);
        self.requested.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_requested(&self) -> bool {
        self.requested.load(Ordering::Relaxed)
    }

    pub(crate) fn take_request(&self) -> Option<Leave> {
        if !self.requested.swap(false, Ordering::Relaxed) {
            return None;
        }
        self.leave.lock().take()
    }
}

/// `Server.stop`.
pub(crate) fn stop(slf: &Bound<'_, Server>, leave: Leave) -> PyResult<()> {
    let py = slf.py();
    let this = slf.get();
    let Leave { seconds: timeout, timeout: limit, .. } = leave;
    let Some(server) = this.running() else { return Ok(()) };
    check_process(&server.endpoint, "server")?;
    match this.ticker.owner(py)? {
        Owner::Nobody => {}
        owner => {
            this.stopping.request(leave);
            if matches!(owner, Owner::Another) {
                server.endpoint.inbox.nudge();
                let deadline = Instant::now() + limit + ABORT_GRACE;
                let stopped = py.detach(|| {
                    let mut run = this.run.lock();
                    while run.as_ref().is_some_and(|r| Arc::ptr_eq(r, &server)) {
                        if this.stopping.stopped.wait_until(&mut run, deadline).timed_out() {
                            return false;
                        }
                    }
                    true
                });
                if !stopped {
                    return Err(PyTimeoutError::new_err(format!(
                        "the thread inside tick() has not stopped the server within timeout={timeout} s: a callback \
                         may be blocking it"
                    )));
                }
            }
            return Ok(());
        }
    }
    let _turn = this.ticker.enter(py, "stop()")?;
    this.stopping.take_request();
    stop_now(slf, leave)
}

/// The graceful stop, with the turn held.
pub(crate) fn stop_now(slf: &Bound<'_, Server>, leave: Leave) -> PyResult<()> {
    let this = slf.get();
    let Some(server) = this.running() else { return Ok(()) };
    let endpoint = &server.endpoint;
    let Leave { timeout, farewell, .. } = leave;
    let began = Instant::now();
    let mut deadline = began + timeout;
    let spread = farewell.spread;
    let streams = this.handlers.streams_open();
    let mut aborted = timeout.is_zero();
    let mut interrupted = None;
    if aborted {
        deadline += ABORT_GRACE;
        endpoint.abort();
    } else {
        endpoint.stop(farewell);
    }
    loop {
        let step = Server::run_pending(slf, endpoint, Budget::default()).and_then(|_| {
            let elapsed = began.elapsed();
            let mut next = deadline;
            if elapsed < spread && !aborted {
                let part = elapsed.as_secs_f64() / spread.as_secs_f64();
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a part of a length")]
                this.handlers.close_oldest(&streams[..(part * streams.len() as f64) as usize]);
                next = next.min(Instant::now() + STEP);
            } else {
                // Also those that a handler has opened since.
                this.handlers.close_streams();
            }
            if endpoint.is_idle() && !this.ticker.is_ready(endpoint) {
                return Ok(true);
            }
            this.ticker.wait(slf.py(), endpoint, Some(next), || endpoint.is_idle())?;
            Ok(false)
        });
        match step {
            Ok(true) => break,
            Ok(false) => {}
            Err(error) => {
                // Ctrl-C while stopping: no more waiting, but the close callbacks still run, then it goes on up.
                interrupted.get_or_insert(error);
                if !aborted {
                    deadline = Instant::now();
                }
            }
        }
        if Instant::now() >= deadline {
            if aborted && !this.ticker.is_ready(endpoint) {
                break;
            }
            if !aborted {
                aborted = true;
                deadline = Instant::now() + ABORT_GRACE;
                endpoint.abort();
            }
        }
    }
    *this.last.lock() = endpoint.snapshot();
    // Nothing is left to be delivered; what an I/O thread has not finished is on its own.
    endpoint.discard();
    this.ticker.reset();
    let left = std::mem::take(&mut *this.channels.lock());
    let streams = this.handlers.take_streams();
    *this.run.lock() = None;
    this.stopping.stopped.notify_all();
    drop((left, streams));
    interrupted.map_or(Ok(()), Err)
}
