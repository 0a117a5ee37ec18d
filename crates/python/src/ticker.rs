//! What a tick is, for servers and clients alike: one thread at a time, a batch run to its end, exceptions survived.

use parking_lot::Mutex;
use pyhv_engine::connection::Connection;
use pyhv_engine::driver::Rhythm;
use pyhv_engine::endpoint::Endpoint;
use pyhv_engine::inbox::{Batch, Event};
use pyhv_engine::wake::Waited;
use pyo3::exceptions::{PyException, PyRuntimeError};
use pyo3::intern;
use pyo3::prelude::*;
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

thread_local! {
    /// `threading.get_ident()` of this thread, asked once.
    static IDENT: Cell<u64> = const { Cell::new(0) };
}

fn ident(py: Python<'_>) -> PyResult<u64> {
    let known = IDENT.get();
    if known != 0 {
        return Ok(known);
    }
    let ident: u64 = py.import("threading")?.getattr("get_ident")?.call0()?.extract()?;
    IDENT.set(ident);
    Ok(ident)
}

/// The name of a thread, for an error message.
fn thread_name(py: Python<'_>, ident: u64) -> String {
    let find = || -> PyResult<Option<String>> {
        for thread in py.import("threading")?.getattr("enumerate")?.call0()?.try_iter()? {
            let thread = thread?;
            if thread.getattr("ident")?.extract::<Option<u64>>()? == Some(ident) {
                return thread.getattr("name")?.extract();
            }
        }
        Ok(None)
    };
    find().ok().flatten().unwrap_or_else(|| ident.to_string())
}

/// A batch that is being run, or what an exception left of one.
#[derive(Default)]
struct Rest {
    batch: Batch,
    next: usize,
    epoch: u64,
}

/// The ticking side of one server or client.
#[derive(Default)]
pub(crate) struct Ticker {
    /// `threading.get_ident()` of the thread inside `tick()`; 0: none. Acquire on entry, release on exit: the next
    /// ticking thread sees all that the last one did.
    owner: AtomicU64,
    /// Guards the batch between two ticks; during one it is taken out.
    rest: Mutex<Rest>,
    /// `rest` is not finished.
    leftover: AtomicBool,
    /// How the last waits went; only the owner looks.
    rhythm: Mutex<Rhythm>,
}

/// The right to run callbacks; given back when dropped.
pub(crate) struct Turn<'a>(&'a Ticker);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.owner.store(0, Ordering::Release);
        TURNS.fetch_sub(1, Ordering::Release);
    }
}

// The end of the interpreter. Up to Python 3.13 a thread that wants the GIL back while the interpreter is finalized is
// ended by pthread_exit, whose unwinding aborts the process when it meets the Rust frames of a tick. So before that,
// the last function of atexit waits for ticks on other threads (daemon threads: the others have been joined) to end,
// and no new ones begin.

/// Turns that are taken, by all objects of the process.
static TURNS: AtomicUsize = AtomicUsize::new(0);
/// `threading.get_ident()` of the thread that ends the interpreter; 0 before.
static EXITING: AtomicU64 = AtomicU64::new(0);
/// How long the end of the interpreter waits for a tick on another thread.
const EXIT_PATIENCE: Duration = Duration::from_secs(2);

/// Registered with `atexit`.
pub(crate) fn before_exit(py: Python<'_>) -> PyResult<()> {
    EXITING.store(ident(py)?, Ordering::SeqCst);
    py.detach(|| {
        let end = Instant::now() + EXIT_PATIENCE;
        while TURNS.load(Ordering::SeqCst) > 0 && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    Ok(())
}

/// Who has the turn.
pub(crate) enum Owner {
    Nobody,
    ThisThread,
    Another,
}

impl Ticker {
    /// Takes the turn. `what`: the method, for the error.
    pub(crate) fn enter(&self, py: Python<'_>, what: &str) -> PyResult<Turn<'_>> {
        let me = ident(py)?;
        match self.owner.compare_exchange(0, me, Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => {
                // Counted before the look at EXITING, as `before_exit` sets that before it looks at the count: one of
                // the two sees the other.
                TURNS.fetch_add(1, Ordering::SeqCst);
                let turn = Turn(self);
                let exiting = EXITING.load(Ordering::SeqCst);
                if exiting != 0 && exiting != me {
                    drop(turn);
                    py.detach(|| {
                        loop {
                            std::thread::park();
                        }
                    });
                    unreachable!("a parked thread ends with the process");
                }
                Ok(turn)
            }
            Err(owner) if owner == me => Err(PyRuntimeError::new_err(format!(
                "{what} was called inside a callback of the same object: callbacks never nest"
            ))),
            Err(owner) => Err(PyRuntimeError::new_err(format!(
                "{what} was called on thread {} while thread {} is inside tick(): one thread ticks at a time",
                thread_name(py, me),
                thread_name(py, owner)
            ))),
        }
    }

    pub(crate) fn owner(&self, py: Python<'_>) -> PyResult<Owner> {
        Ok(match self.owner.load(Ordering::Relaxed) {
            0 => Owner::Nobody,
            owner if owner == ident(py)? => Owner::ThisThread,
            _ => Owner::Another,
        })
    }

    /// Whether a tick has something to run.
    pub(crate) fn is_ready(&self, endpoint: &Endpoint) -> bool {
        endpoint.inbox.is_ready() || self.has_leftover()
    }

    pub(crate) fn has_leftover(&self) -> bool {
        self.leftover.load(Ordering::Relaxed)
    }

    /// `wait`s if `asked`, and only if nothing is to be run yet.
    pub(crate) fn wait_if(
        &self,
        asked: bool,
        py: Python<'_>,
        endpoint: &Arc<Endpoint>,
        deadline: Option<Instant>,
        until: impl Fn() -> bool,
    ) -> PyResult<()> {
        if asked { self.wait(py, endpoint, deadline, until) } else { Ok(()) }
    }

    /// Waits, without the GIL, until there is something to run, the deadline, or `until` says so after a signal.
    pub(crate) fn wait(
        &self,
        py: Python<'_>,
        endpoint: &Arc<Endpoint>,
        deadline: Option<Instant>,
        until: impl Fn() -> bool,
    ) -> PyResult<()> {
        while !self.is_ready(endpoint) && !until() {
            let waited = py.detach(|| {
                let waited = endpoint.wait(&mut self.rhythm.lock(), deadline);
                self.park_if_exiting();
                waited
            });
            match waited? {
                Waited::Ready | Waited::TimedOut => return Ok(()),
                Waited::Interrupted => py.check_signals()?,
            }
        }
        Ok(())
    }

    /// Within a turn, without the GIL: a thread that has waited while the interpreter began to end gives its turn up and
    /// stays away from it.
    fn park_if_exiting(&self) {
        let exiting = EXITING.load(Ordering::SeqCst);
        if exiting != 0 && exiting != self.owner.load(Ordering::Relaxed) {
            TURNS.fetch_sub(1, Ordering::SeqCst);
            loop {
                std::thread::park();
            }
        }
    }

    /// Runs the pending batch, or what an exception left of the last one. `run` gets each event and the arena; what
    /// it returns as an error leaves the tick, and the rest stays for the next.
    pub(crate) fn run(
        &self,
        endpoint: &Arc<Endpoint>,
        mut run: impl FnMut(Event, &[u8]) -> PyResult<()>,
    ) -> PyResult<usize> {
        let mut rest = std::mem::take(&mut *self.rest.lock());
        if rest.next >= rest.batch.events.len() {
            rest.batch.clear();
            rest.next = 0;
            rest.epoch = endpoint.take(&mut rest.batch);
        }
        let mut ran = 0;
        let result = loop {
            let Some(event) = rest.batch.take(rest.next) else {
                endpoint.inbox.set_done(rest.epoch);
                break Ok(ran);
            };
            rest.next += 1;
            if let Err(error) = run(event, &rest.batch.arena) {
                break Err(error);
            }
            ran += 1;
        };
        // After an error the next tick comes here even if nothing is left, to mark the batch as done.
        self.leftover.store(result.is_err(), Ordering::Relaxed);
        if result.is_err() {
            endpoint.inbox.nudge();
        }
        *self.rest.lock() = rest;
        self.rhythm.lock().brought(ran);
        result
    }

    /// Forgets what is left, at the end of a run.
    pub(crate) fn reset(&self) {
        let rest = std::mem::take(&mut *self.rest.lock());
        self.leftover.store(false, Ordering::Relaxed);
        drop(rest);
    }
}

/// A callback raised: an `Exception` is logged and goes to `on_error`, anything else (`KeyboardInterrupt`,
/// `SystemExit`) leaves the tick.
pub(crate) fn callback_failed(object: &Bound<'_, PyAny>, callback: &str, error: PyErr) -> PyResult<()> {
    callback_failed_with(object, callback, error, || {})
}

/// The same; `survive` is done first, for what is to end with an `Exception` but not with Ctrl-C.
pub(crate) fn callback_failed_with(
    object: &Bound<'_, PyAny>,
    callback: &str,
    error: PyErr,
    survive: impl FnOnce(),
) -> PyResult<()> {
    let py = object.py();
    if !error.is_instance_of::<PyException>(py) {
        return Err(error);
    }
    survive();
    object.call_method1(intern!(py, "_callback_failed"), (callback, error.into_value(py)))?;
    Ok(())
}

/// A callback of a WebSocket raised: an `Exception` also closes it with 1011.
pub(crate) fn channel_failed(
    object: &Bound<'_, PyAny>,
    callback: &str,
    error: PyErr,
    conn: &Arc<Connection>,
) -> PyResult<()> {
    callback_failed_with(object, callback, error, || {
        conn.close(Some(INTERNAL_ERROR), "internal error");
    })
}

/// RFC 6455 section 7.4.1: "an unexpected condition that prevented it from fulfilling the request".
const INTERNAL_ERROR: u16 = 1011;

/// The error for an object that was started before `fork()`.
pub(crate) fn check_process(endpoint: &Endpoint, what: &str) -> PyResult<()> {
    if endpoint.is_of_this_process() {
        return Ok(());
    }
    Err(PyRuntimeError::new_err(format!(
        "this {what} was started before fork(): its native threads exist only in the parent process. Create a new \
         one in the child, or start processes with the \"spawn\" method"
    )))
}

/// Passes a warning on to Python's log.
pub(crate) fn log(object: &Bound<'_, PyAny>, text: &str) -> PyResult<()> {
    object.call_method1(intern!(object.py(), "_warn"), (text,))?;
    Ok(())
}

/// The error that a panic on a native thread becomes.
pub(crate) fn fault(text: &str) -> PyErr {
    PyRuntimeError::new_err(format!("a native thread of pyHV panicked, which is a bug in pyHV: {text}"))
}
