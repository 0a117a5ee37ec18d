//! How a server stops: on the thread that ticks, whoever asks.

use crate::convert;
use crate::server::Server;
use crate::ticker::{Budget, Owner, check_process};
use parking_lot::{Condvar, Mutex};
use pyo3::exceptions::PyTimeoutError;
use pyo3::prelude::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// RFC 6455 section 7.4.1: an endpoint is "going away", such as a server going down.
const GOING_AWAY: u16 = 1001;
/// How long an abort may take on the I/O thread before `stop` returns without it.
const ABORT_GRACE: Duration = Duration::from_secs(1);

/// A stop that was asked for while a tick runs.
#[derive(Default)]
pub(crate) struct Stopping {
    /// What the ticking thread is to make at the end of its tick: the timeout.
    timeout: Mutex<Option<f64>>,
    requested: AtomicBool,
    /// Told when a run has ended; belongs to the lock of `Server::run`.
    stopped: Condvar,
}

impl Stopping {
    fn request(&self, timeout: f64) {
        *self.timeout.lock() = Some(timeout);
        self.requested.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_requested(&self) -> bool {
        self.requested.load(Ordering::Relaxed)
    }

    pub(crate) fn take_request(&self) -> Option<f64> {
        if !self.requested.swap(false, Ordering::Relaxed) {
            return None;
        }
        self.timeout.lock().take()
    }
}

/// `Server.stop`.
pub(crate) fn stop(slf: &Bound<'_, Server>, timeout: f64) -> PyResult<()> {
    let py = slf.py();
    let this = slf.get();
    let limit = convert::seconds("timeout", timeout)?;
    let Some(server) = this.running() else { return Ok(()) };
    check_process(&server.endpoint, "server")?;
    match this.ticker.owner(py)? {
        Owner::Nobody => {}
        owner => {
            this.stopping.request(timeout);
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
    stop_now(slf, timeout)
}

/// The graceful stop, with the turn held.
pub(crate) fn stop_now(slf: &Bound<'_, Server>, timeout: f64) -> PyResult<()> {
    let this = slf.get();
    let Some(server) = this.running() else { return Ok(()) };
    let endpoint = &server.endpoint;
    let mut deadline = Instant::now() + convert::seconds("timeout", timeout)?;
    let mut aborted = timeout == 0.0;
    let mut interrupted = None;
    if aborted {
        deadline += ABORT_GRACE;
        endpoint.abort();
    } else {
        endpoint.stop(GOING_AWAY);
    }
    loop {
        let step = Server::run_pending(slf, endpoint, Budget::default()).and_then(|_| {
            // Also those that a handler has opened since.
            this.handlers.close_streams();
            if endpoint.is_idle() && !this.ticker.is_ready(endpoint) {
                return Ok(true);
            }
            this.ticker.wait(slf.py(), endpoint, Some(deadline), || endpoint.is_idle())?;
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
