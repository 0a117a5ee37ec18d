//! What a tick is, for servers and clients alike: one thread at a time, a batch run to its end, exceptions survived.

use crate::latest::{Keys, Newest};
use parking_lot::Mutex;
use pyhv_engine::backlog::{Backlog, Next};
use pyhv_engine::connection::Connection;
use pyhv_engine::driver::Rhythm;
use pyhv_engine::endpoint::Endpoint;
use pyhv_engine::inbox::{Batch, Event};
use pyhv_engine::wake::Waited;
use pyo3::exceptions::{PyException, PyRuntimeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
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
    /// Whose it is: what is left of an endpoint that was replaced is not run.
    of: Weak<Endpoint>,
    batch: Batch,
    next: usize,
    epoch: u64,
    /// What ticks with a budget have left over; older than what is in `batch`, which is empty then.
    backlog: Backlog,
    /// For `latest=`.
    newest: Newest,
}

impl Rest {
    fn left(&self) -> usize {
        self.batch.events.len().saturating_sub(self.next) + self.backlog.len()
    }
}

/// How much one tick may do: at least one event, then until one of them is reached.
#[derive(Clone, Copy, Default)]
pub(crate) struct Budget {
    time: Option<Duration>,
    events: Option<usize>,
}

impl Budget {
    /// Of the arguments of `tick`.
    pub(crate) fn new(max_ms: Option<f64>, max_events: Option<usize>) -> PyResult<Self> {
        /// Seconds; beyond any frame, and no overflow.
        const LONGEST: f64 = 1e6;
        if max_events == Some(0) {
            return Err(PyValueError::new_err("max_events=0: a tick runs one event at least"));
        }
        if let Some(ms) = max_ms
            && (ms.is_nan() || ms <= 0.0)
        {
            return Err(PyValueError::new_err(format!("max_ms={ms}: give milliseconds above 0, or None")));
        }
        let time = max_ms.map(|ms| Duration::from_secs_f64((ms / 1e3).min(LONGEST)));
        Ok(Self { time, events: max_events })
    }

    fn is_endless(self) -> bool {
        self.time.is_none() && self.events.is_none()
    }

    /// Begins to count.
    fn begin(self) -> Spending {
        Spending { until: self.time.map(|time| Instant::now() + time), left: self.events.unwrap_or(usize::MAX), ran: 0 }
    }
}

/// A budget while a tick lives on it.
struct Spending {
    until: Option<Instant>,
    left: usize,
    ran: usize,
}

impl Spending {
    /// An event has run.
    #[inline]
    fn count(&mut self) {
        self.ran += 1;
        self.left -= 1;
    }

    /// Whether it is used up. Looks at the clock for every event: a callback may take as long as it likes.
    #[inline]
    fn is_over(&self) -> bool {
        self.left == 0 || (self.ran > 0 && self.until.is_some_and(|end| Instant::now() >= end))
    }
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
    /// The events in it, for `pending`.
    left: AtomicUsize,
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
        if !asked {
            return Ok(());
        }
        let waited = self.wait(py, endpoint, deadline, until);
        endpoint.note_end_of_wait();
        waited
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

    /// Runs the pending batch, or what the last tick left of one, within the budget. `run` gets each event and the arena;
    /// what it returns as an error leaves the tick, and the rest stays for the next.
    pub(crate) fn run(
        &self,
        py: Python<'_>,
        endpoint: &Arc<Endpoint>,
        budget: Budget,
        latest: Option<&dyn Keys>,
        mut run: impl FnMut(Event, &[u8]) -> PyResult<()>,
    ) -> PyResult<usize> {
        let mut rest = std::mem::take(&mut *self.rest.lock());
        if !std::ptr::eq(rest.of.as_ptr(), Arc::as_ptr(endpoint)) {
            rest = Rest { of: Arc::downgrade(endpoint), ..Rest::default() };
        }
        let mut spending = budget.begin();
        let result = if rest.backlog.is_empty() {
            Self::run_batch(py, endpoint, &mut rest, budget, latest, &mut spending, &mut run)
        } else {
            Self::run_backlog(py, endpoint, &mut rest, latest, &mut spending, &mut run)
        };
        let left = rest.left();
        endpoint.stats.set_left(left, if left > 0 { rest.batch.size() + rest.backlog.size() } else { 0 });
        // After an error the next tick comes here even if nothing is left, to mark the batch as done.
        let again = left > 0 || result.is_err();
        self.leftover.store(again, Ordering::Relaxed);
        self.left.store(left, Ordering::Relaxed);
        if again {
            endpoint.inbox.nudge();
        }
        *self.rest.lock() = rest;
        self.rhythm.lock().brought(spending.ran);
        result.map(|()| spending.ran)
    }

    /// The usual way: what is pending, in the order of arrival.
    fn run_batch(
        py: Python<'_>,
        endpoint: &Arc<Endpoint>,
        rest: &mut Rest,
        budget: Budget,
        latest: Option<&dyn Keys>,
        spending: &mut Spending,
        run: &mut impl FnMut(Event, &[u8]) -> PyResult<()>,
    ) -> PyResult<()> {
        if rest.next >= rest.batch.events.len() {
            rest.batch.clear();
            rest.next = 0;
            rest.epoch = endpoint.inbox.take(&mut rest.batch);
            if budget.is_endless() {
                endpoint.resume(&mut rest.batch.paused);
            }
            rest.newest.clear();
            if let Some(keys) = latest {
                let number = rest.backlog.next_number();
                rest.newest.sift(py, keys, &mut rest.batch, number, |_, _| false)?;
            }
        }
        while let Some(event) = rest.batch.take(rest.next) {
            rest.next += 1;
            if matches!(event, Event::Taken) {
                continue;
            }
            run(event, &rest.batch.arena)?;
            spending.count();
            if spending.is_over() && rest.next < rest.batch.events.len() {
                let (batch, next) = (std::mem::take(&mut rest.batch), std::mem::take(&mut rest.next));
                rest.backlog.add(batch, rest.epoch, next);
                return Ok(());
            }
        }
        endpoint.inbox.set_done(rest.epoch);
        endpoint.resume(&mut rest.batch.paused);
        Ok(())
    }

    /// After ticks whose budget did not suffice: what they left and what has come since, in fair turns.
    fn run_backlog(
        py: Python<'_>,
        endpoint: &Arc<Endpoint>,
        rest: &mut Rest,
        latest: Option<&dyn Keys>,
        spending: &mut Spending,
        run: &mut impl FnMut(Event, &[u8]) -> PyResult<()>,
    ) -> PyResult<()> {
        if endpoint.inbox.is_ready() && rest.backlog.size() < endpoint.settings.max_pending_bytes {
            let mut batch = Batch::default();
            let epoch = endpoint.inbox.take(&mut batch);
            let number = rest.backlog.next_number();
            let sifted = latest.map_or(Ok(()), |keys| {
                let backlog = &mut rest.backlog;
                rest.newest.sift(py, keys, &mut batch, number, |number, index| backlog.supersede(number, index))
            });
            rest.backlog.add(batch, epoch, 0);
            sifted?;
        }
        let mut result = Ok(());
        while result.is_ok() && !spending.is_over() {
            let Some(Next { event, arena }) = rest.backlog.pop() else { break };
            if matches!(event, Event::Taken) {
                continue;
            }
            result = run(event, arena);
            if result.is_ok() {
                spending.count();
            }
        }
        let (mut paused, done) = rest.backlog.settle();
        endpoint.resume(&mut paused);
        if let Some(done) = done {
            endpoint.inbox.set_done(done);
        }
        result
    }

    /// How many events wait for a tick, what the last one left included. Any thread.
    pub(crate) fn pending(&self, endpoint: &Endpoint) -> usize {
        self.left.load(Ordering::Relaxed) + endpoint.inbox.len()
    }

    /// Forgets what is left, at the end of a run.
    pub(crate) fn reset(&self) {
        let rest = std::mem::take(&mut *self.rest.lock());
        self.leftover.store(false, Ordering::Relaxed);
        self.left.store(0, Ordering::Relaxed);
        if let Some(endpoint) = rest.of.upgrade() {
            endpoint.stats.set_left(0, 0);
        }
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
