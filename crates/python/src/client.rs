//! `WebSocketClient`: the native base of `HvWebSocketClient`.

use crate::channel::{self, address_object, headers_object};
use crate::convert::{self, CloseCode, OpcodeArgument, reason};
use crate::latest::{ClientKeys, Keys};
use crate::reconnect::Again;
use crate::ticker::{self, Budget, Ticker, callback_failed, channel_failed, check_process, fault};
use crate::topics;
use parking_lot::Mutex;
use pyhv_engine::client::{self as engine, Attempt, ConnectError, Target};
use pyhv_engine::connection::Connection;
use pyhv_engine::down::Cork;
use pyhv_engine::endpoint::{Endpoint, Side};
use pyhv_engine::inbox::Event;
use pyhv_engine::reconnect::{self, Next};
use pyhv_engine::tls::client_config;
use pyhv_engine::wake::Wake;
use pyhv_engine::wire::{MessageKind, Opcode};
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyTuple};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// What the program knows of the connection.
#[derive(Debug, Default)]
enum State {
    /// Never connected.
    #[default]
    New,
    /// `connect` was called; neither `on_open` nor `on_close` has run. `again`: there was an attempt before this one, which
    /// may be waiting for its time.
    Connecting { attempt: Attempt, again: bool },
    /// Between `on_open` and `on_close`.
    Open(Arc<Connection>),
    /// `on_close` has run, or is running. With an [`Again`] another attempt follows when the callback is over.
    Closed { conn: Option<Arc<Connection>>, code: u16, reason: String },
}

/// The state, and what is to be done when it ends.
#[derive(Debug, Default)]
struct Life {
    state: State,
    /// Until `close()`, or the end for good.
    again: Option<Box<Again>>,
}

impl Life {
    /// Whether it will be connected again, as far as is known.
    fn is_reconnecting(&self) -> bool {
        match &self.state {
            State::Connecting { attempt, again } => *again && !attempt.is_cancelled(),
            State::Closed { .. } => self.again.is_some(),
            State::New | State::Open(_) => false,
        }
    }

    /// It has ended, for good unless there is a next attempt. `least`: its least delay; `None`: there is to be none.
    fn end(&mut self, least: Option<Duration>) -> Option<Next> {
        let next = least.and_then(|least| self.again.as_mut()?.backoff.next(least));
        if next.is_none() {
            self.again = None;
        }
        next
    }
}

/// The native base of HvWebSocketClient.
#[pyclass(frozen, subclass, weakref, module = "pyhv._native")]
pub(crate) struct WebSocketClient {
    ticker: Ticker,
    /// Guards the endpoint of the latest `connect` while it is looked up or replaced.
    endpoint: Mutex<Option<Arc<Endpoint>>>,
    /// Guards the state while it is read or replaced, and while what waited is sent: nothing may be sent before it.
    life: Mutex<Life>,
    /// The descriptor, once handed out, outlives a connection.
    wake: Mutex<Option<Arc<Wake>>>,
    /// Guards the reference while it is read or replaced.
    error: Mutex<Option<Py<PyAny>>>,
    /// What `connect(latest=...)` was given.
    latest: Mutex<Option<Py<PyAny>>>,
    /// Messages that gave way to newer ones.
    pub(crate) skipped: AtomicU32,
}

/// The members of `WsOpcode` that a message can have.
fn opcode_object(py: Python<'_>, kind: MessageKind) -> PyResult<Py<PyAny>> {
    static MEMBERS: PyOnceLock<(Py<PyAny>, Py<PyAny>)> = PyOnceLock::new();
    let (text, binary) = MEMBERS.get_or_try_init(py, || {
        let opcodes = py.import("pyhv.opcode")?.getattr("WsOpcode")?;
        PyResult::Ok((opcodes.getattr("TEXT")?.unbind(), opcodes.getattr("BINARY")?.unbind()))
    })?;
    Ok(if kind == MessageKind::Text { text.clone_ref(py) } else { binary.clone_ref(py) })
}

/// The declared exception for a failed attempt.
fn error_object(py: Python<'_>, error: &ConnectError) -> PyResult<Py<PyAny>> {
    let text = match error {
        ConnectError::Resolve(host, error) => format!("cannot resolve {host}: {}", reason(error)),
        ConnectError::Connect(address, error) => format!("cannot connect to {address}: {}", reason(error)),
        other => other.to_string(),
    };
    let errors = py.import("pyhv.errors")?;
    let object = match error {
        ConnectError::Resolve(..) => errors.getattr("NameResolutionError")?.call1((text,))?,
        ConnectError::Connect(_, error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
            errors.getattr("ConnectionRefused")?.call1((text,))?
        }
        ConnectError::Connect(..) | ConnectError::Cancelled => errors.getattr("ConnectError")?.call1((text,))?,
        ConnectError::Tls { .. } => errors.getattr("TlsError")?.call1((text,))?,
        ConnectError::TimedOut(_) => errors.getattr("ConnectTimeout")?.call1((text,))?,
        ConnectError::Handshake { status, .. } => errors.getattr("HandshakeError")?.call1((text, *status))?,
    };
    Ok(object.unbind())
}

impl WebSocketClient {
    fn current(&self) -> Option<Arc<Endpoint>> {
        self.endpoint.lock().clone()
    }

    /// The connection, if `on_open` has run or is running.
    fn connection(&self) -> Option<Arc<Connection>> {
        match &self.life.lock().state {
            State::Open(conn) | State::Closed { conn: Some(conn), .. } => Some(Arc::clone(conn)),
            _ => None,
        }
    }

    /// False for one that `connect` has replaced: its last events are nobody's.
    fn is_current(&self, endpoint: &Arc<Endpoint>) -> bool {
        self.endpoint.lock().as_ref().is_some_and(|current| Arc::ptr_eq(current, endpoint))
    }

    fn set_error(&self, error: Option<Py<PyAny>>) {
        let old = std::mem::replace(&mut *self.error.lock(), error);
        drop(old);
    }

    fn dispatch(slf: &Bound<'_, Self>, endpoint: &Arc<Endpoint>, event: Event, arena: &[u8]) -> PyResult<()> {
        let py = slf.py();
        let this = slf.get();
        match event {
            Event::Message { kind, start, len, .. } => Self::message(slf, kind, &arena[start..start + len]),
            Event::LargeMessage { kind, data, .. } => Self::message(slf, kind, &data),
            Event::Open(conn) => {
                if !this.is_current(endpoint) {
                    return Ok(());
                }
                let closing = {
                    let Life { state, again } = &mut *this.life.lock();
                    // close() came after the attempt had succeeded and before this tick.
                    let closing = !matches!(state, State::Connecting { attempt, .. } if !attempt.is_cancelled());
                    *state = State::Open(Arc::clone(&conn));
                    if let Some(again) = again {
                        again.opened(&conn);
                    }
                    closing
                };
                if closing {
                    conn.close(Some(1000), "");
                    return Ok(());
                }
                this.set_error(None);
                conn.delivered_open();
                if let Err(error) = slf.call_method0(intern!(py, "_on_topics_open")) {
                    channel_failed(slf, "on_topic_refused", error, &conn)?;
                }
                if let Err(error) = slf.call_method0(intern!(py, "on_open")) {
                    channel_failed(slf, "on_open", error, &conn)?;
                }
                Ok(())
            }
            Event::Close { channel } => {
                endpoint.release(channel, Side::Program);
                let Some(conn) = this.connection().filter(|_| this.is_current(endpoint)) else { return Ok(()) };
                // After an exception of a callback the server's code is an answer to ours, and says nothing by itself.
                let ours = conn.is_closed_by_program();
                conn.delivered_close();
                let info = conn.close_info();
                let least = (ours || !info.is_some_and(reconnect::is_final)).then_some(Duration::ZERO);
                let (code, reason) = info.map_or((1006, String::new()), |info| (info.code, info.reason.clone()));
                let next = this.ended(State::Closed { conn: Some(conn), code, reason }, least);
                let told = Self::closed(slf);
                // Before an exception leaves the tick: nothing else would begin the next attempt.
                let begun = this.begin(endpoint, next);
                told?;
                Self::reconnecting(slf, begun)
            }
            Event::ConnectFailed(error) => {
                if !this.is_current(endpoint) {
                    return Ok(());
                }
                // close() may have come after it had failed.
                let closed =
                    matches!(&this.life.lock().state, State::Connecting { attempt, .. } if attempt.is_cancelled());
                let state = State::Closed { conn: None, code: 1006, reason: String::new() };
                let next = this.ended(state, reconnect::after_failure(&error));
                let told = if closed { Ok(()) } else { Self::failed(slf, &error) };
                let begun = this.begin(endpoint, next);
                told?;
                if begun.is_some() {
                    return Self::reconnecting(slf, begun);
                }
                // connect() within on_error takes the place of the next attempt.
                let replaced = next.is_some() && !matches!(this.life.lock().state, State::Closed { .. });
                if replaced { Ok(()) } else { Self::closed(slf) }
            }
            Event::Log(text) => ticker::log(slf, &text),
            Event::Fault(text) => Err(fault(&text)),
            Event::Drain { .. } => Self::drained(slf),
            Event::Request(_)
            | Event::Upgrade(_)
            | Event::StreamEnd { .. }
            | Event::Http(_)
            | Event::Access(_)
            | Event::Presence { .. }
            | Event::Backplane(_)
            | Event::Taken => Ok(()),
        }
    }

    /// The connection has ended, or an attempt has failed; returns what follows. `least` as for [`Life::end`].
    fn ended(&self, state: State, least: Option<Duration>) -> Option<Next> {
        let mut life = self.life.lock();
        let old = std::mem::replace(&mut life.state, state);
        let next = life.end(least);
        drop(life);
        // It may have the last reference to a connection: not under the lock.
        drop(old);
        next
    }

    /// Begins the next attempt, unless the callback before it has called `close` or `connect`.
    fn begin(&self, endpoint: &Arc<Endpoint>, next: Option<Next>) -> Option<Next> {
        let next = next?;
        let mut life = self.life.lock();
        let Life { state: state @ State::Closed { .. }, again: Some(again) } = &mut *life else { return None };
        let attempt = engine::connect(endpoint, Arc::clone(&again.target), next.delay);
        let old = std::mem::replace(state, State::Connecting { attempt, again: true });
        drop(life);
        drop(old);
        Some(next)
    }

    fn reconnecting(slf: &Bound<'_, Self>, begun: Option<Next>) -> PyResult<()> {
        let Some(Next { attempt, delay }) = begun else { return Ok(()) };
        if let Err(error) = slf.call_method1(intern!(slf.py(), "on_reconnecting"), (attempt, delay.as_secs_f64())) {
            callback_failed(slf, "on_reconnecting", error)?;
        }
        Ok(())
    }

    fn failed(slf: &Bound<'_, Self>, error: &ConnectError) -> PyResult<()> {
        let py = slf.py();
        if matches!(error, ConnectError::Cancelled) {
            return Ok(());
        }
        let error = error_object(py, error)?;
        slf.get().set_error(Some(error.clone_ref(py)));
        if let Err(raised) = slf.call_method1(intern!(py, "on_error"), (error,)) {
            callback_failed(slf, "on_error", raised)?;
        }
        Ok(())
    }

    /// Keeps a message for the next connection, if that was asked for and there is room.
    fn keep(&self, msg: &Bound<'_, PyAny>, opcode: Option<Opcode>, fin: bool) -> PyResult<bool> {
        // The parts of a message belong on one connection, as do pings.
        let whole = fin && matches!(opcode, None | Some(Opcode::Text | Opcode::Binary));
        if !whole || !self.life.lock().again.as_ref().is_some_and(|again| again.queue.is_used()) {
            return Ok(false);
        }
        if let Some(endpoint) = self.current() {
            check_process(&endpoint, "client")?;
        }
        convert::with_payload(msg, |kind, payload| {
            convert::check_payload(opcode, opcode == Some(Opcode::Text), kind, payload)?;
            let opcode = opcode.unwrap_or(if kind == MessageKind::Text { Opcode::Text } else { Opcode::Binary });
            let Life { state, again: Some(again) } = &mut *self.life.lock() else { return Ok(false) };
            Ok(match state {
                // It has dropped the message.
                State::Open(conn) if conn.is_open() => false,
                // The message may be the last part of one that was lost.
                State::Open(conn) | State::Closed { conn: Some(conn), .. } if conn.open_message().is_some() => false,
                _ => again.queue.push(opcode, payload),
            })
        })
    }

    fn closed(slf: &Bound<'_, Self>) -> PyResult<()> {
        if let Err(error) = slf.call_method0(intern!(slf.py(), "on_close")) {
            callback_failed(slf, "on_close", error)?;
        }
        Ok(())
    }

    fn drained(slf: &Bound<'_, Self>) -> PyResult<()> {
        if let Err(error) = slf.call_method0(intern!(slf.py(), "on_drain")) {
            callback_failed(slf, "on_drain", error)?;
        }
        Ok(())
    }

    fn message(slf: &Bound<'_, Self>, kind: MessageKind, payload: &[u8]) -> PyResult<()> {
        let py = slf.py();
        let Some(conn) = slf.get().connection() else { return Ok(()) };
        if conn.is_closed_by_program() {
            return Ok(());
        }
        let message = convert::message(py, kind, payload)?;
        if kind == MessageKind::Text && topics::is_spoken_by(&conn) && topics::may_ask(payload) {
            let asked = slf.call_method1(intern!(py, "_on_topics"), (&message,));
            match asked.and_then(|asked| asked.is_truthy()) {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) => return channel_failed(slf, "a callback for topics", error, &conn),
            }
        }
        let opcode = opcode_object(py, kind)?;
        if let Err(error) = slf.call_method1(intern!(py, "on_message_frame"), (message, opcode)) {
            channel_failed(slf, "on_message", error, &conn)?;
        }
        Ok(())
    }
}

#[pymethods]
impl WebSocketClient {
    /// Made here, so that a subclass need not call `super().__init__()`.
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self {
            ticker: Ticker::default(),
            endpoint: Mutex::new(None),
            life: Mutex::default(),
            wake: Mutex::new(None),
            error: Mutex::new(None),
            latest: Mutex::new(None),
            skipped: AtomicU32::new(0),
        }
    }

    /// Takes whatever the program's own `__init__` takes.
    #[pyo3(signature = (*_args, **_kwargs))]
    fn __init__(&self, _args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) {}

    /// Begins to connect to a URL that the caller has taken apart.
    #[expect(clippy::too_many_arguments, reason = "the parts of a URL, from Python")]
    fn _connect(
        &self,
        url: String,
        host: String,
        port: u16,
        authority: String,
        path: String,
        headers: Vec<(String, String)>,
        protocols: Vec<String>,
        tls: Option<&Bound<'_, PyDict>>,
        options: &Bound<'_, PyDict>,
        again: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<()> {
        let headers =
            headers.iter().map(|(name, value)| crate::request::header(name, value)).collect::<PyResult<Vec<_>>>()?;
        let protocols = convert::subprotocols(protocols)?;
        if host.is_empty() || http::uri::PathAndQuery::try_from(path.as_str()).is_err() {
            return Err(PyValueError::new_err(format!("{url:?} is not a WebSocket URL")));
        }
        let settings = convert::settings(options)?;
        let tls = tls
            .map(|tls| client_config(&convert::trust(tls)?).map_err(|error| convert::tls_error(&error)))
            .transpose()?;
        let target = Arc::new(Target { url, host, port, authority, path, headers, protocols, tls });
        let again = again.map(|again| Again::new(again, &settings, &target).map(Box::new)).transpose()?;
        let mut life = self.life.lock();
        let busy = matches!(life.state, State::Connecting { .. } | State::Open(_));
        if busy && let Some(endpoint) = self.current() {
            check_process(&endpoint, "client")?;
        }
        if busy && !life.is_reconnecting() {
            return Err(PyRuntimeError::new_err(
                "the client is connected or connecting: close() it, and connect again after on_close",
            ));
        }
        // First the old endpoint: its end makes the descriptor unreadable, which the new one may use.
        if let Some(old) = self.endpoint.lock().take() {
            if old.is_of_this_process() {
                old.discard();
            } else {
                std::mem::forget(old);
            }
        }
        let wake = self.wake.lock().clone();
        let endpoint = Endpoint::new(settings, wake)?;
        *self.endpoint.lock() = Some(Arc::clone(&endpoint));
        let attempt = engine::connect(&endpoint, target, Duration::ZERO);
        let old = std::mem::replace(&mut *life, Life { state: State::Connecting { attempt, again: false }, again });
        drop(life);
        drop(old);
        self.set_error(None);
        Ok(())
    }

    /// Runs the callbacks of everything that has happened since the last tick.
    ///
    /// timeout: seconds to wait if nothing has happened yet; 0 (the default) does not wait, None waits without end.
    /// Ctrl-C ends the wait with KeyboardInterrupt. A client that is neither connected nor connecting does not wait.
    ///
    /// max_ms, max_events: how much this tick may do, in milliseconds and in events; None (the default): all that is
    /// pending when it begins. It runs one event at least, and looks at the clock between two. What is left over waits for
    /// the next tick, together with what has come until then: the channels take turns, one event each, in the order of
    /// each, so that one that floods delays itself.
    ///
    /// Returns the number of events. Exceptions of callbacks are logged and passed to `on_error`; KeyboardInterrupt
    /// and SystemExit leave the tick, and what was not yet run is run by the next. Raises RuntimeError inside a
    /// callback of the same client, while another thread is inside `tick()`, and in a child process.
    ///
    /// All callbacks run here, on the calling thread. What they send leaves when the tick ends.
    #[pyo3(
        signature = (timeout=Some(0.0), *, max_ms=None, max_events=None),
        text_signature = "($self, timeout=0.0, *, max_ms=None, max_events=None)"
    )]
    fn tick(
        slf: &Bound<'_, Self>,
        timeout: Option<f64>,
        max_ms: Option<f64>,
        max_events: Option<usize>,
    ) -> PyResult<usize> {
        let py = slf.py();
        let this = slf.get();
        let budget = Budget::new(max_ms, max_events)?;
        let _turn = this.ticker.enter(py, "tick()")?;
        let Some(endpoint) = this.current() else { return Ok(0) };
        check_process(&endpoint, "client")?;
        endpoint.note_tick();
        let deadline = convert::deadline(timeout)?;
        let over = || matches!(this.life.lock().state, State::Closed { .. } | State::New);
        this.ticker.wait_if(timeout != Some(0.0), py, &endpoint, deadline, over)?;
        if !this.ticker.is_ready(&endpoint) {
            return Ok(0);
        }
        let _cork = Cork::new();
        let function = this.latest.lock().as_ref().map(|function| function.clone_ref(py));
        let keys = function.map(|function| ClientKeys { client: slf, function });
        let keys = keys.as_ref().map(|keys| keys as &dyn Keys);
        let run = |event, arena: &[u8]| Self::dispatch(slf, &endpoint, event, arena);
        this.ticker.run(py, &endpoint, budget, keys, run)
    }

    /// How many events wait for a tick: what a budget left over, and what has come since. Any thread; never blocks.
    ///
    /// Inside a callback: without those that this tick may still run.
    #[getter]
    fn pending(&self) -> usize {
        self.current().map_or(0, |endpoint| self.ticker.pending(&endpoint))
    }

    /// A descriptor that is readable while events are pending, for select, poll and the loops built on them.
    ///
    /// The same for the life of the object. Any thread; never blocks.
    fn fileno(&self) -> PyResult<i64> {
        let mut wake = self.wake.lock();
        let made = match (&*wake, self.current()) {
            (Some(wake), _) => Arc::clone(wake),
            (None, Some(endpoint)) => endpoint.inbox.export(self.ticker.has_leftover())?,
            (None, None) => Arc::new(Wake::new()?),
        };
        let raw = made.raw();
        *wake = Some(made);
        Ok(raw)
    }

    /// Queues a message to the server and returns at once; arguments, result and errors as in
    /// `WebSocketChannel.send`. Returns False before `on_open` and after the end; with `queue_bytes` of `Reconnect` a whole
    /// message is kept for the next connection then, and True is returned, if there is room.
    ///
    /// Any thread; never blocks. What one tick sends leaves when that tick ends, in order, in one write.
    #[pyo3(signature = (msg, opcode=None, fin=true))]
    fn send(&self, msg: &Bound<'_, PyAny>, opcode: Option<OpcodeArgument>, fin: bool) -> PyResult<bool> {
        let opcode = opcode.map(|argument| argument.0);
        let conn = match &self.life.lock().state {
            State::Open(conn) => Some(Arc::clone(conn)),
            _ => None,
        };
        let sent = conn.map(|conn| channel::send(&conn, "client", msg, opcode, fin)).transpose()?;
        if sent == Some(true) { Ok(true) } else { self.keep(msg, opcode, fin) }
    }

    /// Begins the closing handshake behind everything that was sent, or gives up connecting.
    ///
    /// code: 1000-1003, 1007-1014 or 3000-4999. reason: at most 123 bytes of UTF-8. `is_connected` is False from here
    /// on, and `on_close` follows on a later tick. It is not connected again, and what waits for that is dropped; within
    /// `on_close` nothing follows. Closing again does nothing. Raises ValueError for a code or reason that must not be sent.
    ///
    /// Any thread; never blocks.
    #[pyo3(signature = (code=CloseCode::NORMAL, reason=""), text_signature = "($self, code=1000, reason='')")]
    fn close(&self, code: CloseCode, reason: &str) -> PyResult<()> {
        let code = channel::check_close(&code, reason)?;
        if let Some(endpoint) = self.current() {
            check_process(&endpoint, "client")?;
        }
        let mut life = self.life.lock();
        let again = life.again.take();
        match &life.state {
            State::Connecting { attempt, .. } => attempt.cancel(),
            State::Open(conn) => {
                conn.close(Some(code), reason);
            }
            State::New | State::Closed { .. } => {}
        }
        drop(life);
        drop(again);
        Ok(())
    }

    /// Whether `send` would queue a message.
    #[getter]
    fn is_connected(&self) -> bool {
        matches!(&self.life.lock().state, State::Open(conn) if conn.is_open())
    }

    /// Whether `connect` was called and neither `on_open` nor `on_close` has run, or `is_reconnecting`.
    #[getter]
    fn is_connecting(&self) -> bool {
        let life = self.life.lock();
        matches!(life.state, State::Connecting { .. }) || life.is_reconnecting()
    }

    /// With `reconnect`: whether the connection was lost, or an attempt failed, and another attempt follows or is under way.
    /// In `on_close` and `on_error`: whether one will follow.
    #[getter]
    fn is_reconnecting(&self) -> bool {
        self.life.lock().is_reconnecting()
    }

    /// How the connection ended: the code of the peer's close frame (1005: it had none); without a close frame the
    /// code that this side failed the connection with, else 1006. None before `on_close`, and when it is over if another
    /// attempt to connect follows.
    #[getter]
    fn close_code(&self) -> Option<u16> {
        match &self.life.lock().state {
            State::Closed { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// The reason that goes with `close_code`, often empty. None as that is.
    #[getter]
    fn close_reason(&self) -> Option<String> {
        match &self.life.lock().state {
            State::Closed { reason, .. } => Some(reason.clone()),
            _ => None,
        }
    }

    /// Why the last attempt to connect failed: a ConnectError; None before one has, and since `on_open`.
    #[getter]
    fn error(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        self.error.lock().as_ref().map(|error| error.clone_ref(py))
    }

    /// The headers of the server's handshake response, as `Headers`; None before `on_open`.
    #[getter]
    fn headers(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        self.connection().map(|conn| headers_object(py, conn.handshake.headers())).transpose()
    }

    /// Whether the server agreed to permessage-deflate (RFC 7692).
    #[getter]
    fn is_compressed(&self) -> bool {
        self.connection().is_some_and(|conn| conn.handshake.deflate.is_some())
    }

    /// The subprotocol that the server chose, or None.
    #[getter]
    fn subprotocol(&self) -> Option<String> {
        self.connection().and_then(|conn| conn.handshake.subprotocol().map(str::to_owned))
    }

    /// The server's address: (host, port); None before `on_open`.
    #[getter]
    fn remote_address<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyTuple>>> {
        let remote = self.connection().and_then(|conn| conn.handshake.remote);
        remote.map(|remote| address_object(py, remote)).transpose()
    }

    /// Bytes queued and not yet handed to the system, those that wait for the next connection included.
    #[getter]
    fn buffered_amount(&self) -> usize {
        let kept = self.life.lock().again.as_ref().map_or(0, |again| again.queue.bytes());
        kept + self.connection().map_or(0, |conn| conn.buffered_amount())
    }

    /// Messages that were not delivered because a newer one of the same key had come; see `latest` of `connect`.
    #[getter]
    fn skipped(&self) -> u32 {
        self.skipped.load(Ordering::Relaxed)
    }

    /// The function of `connect(latest=...)`.
    fn _set_latest(&self, function: Option<Py<PyAny>>) {
        let before = std::mem::replace(&mut *self.latest.lock(), function);
        // Dropped without the lock: it may run Python code.
        drop(before);
    }

    /// Messages dropped by `slow_policy`, since the connection opened.
    #[getter]
    fn dropped(&self) -> u64 {
        self.connection().map_or(0, |conn| conn.dropped())
    }

    /// Round-trip time of the newest keep-alive ping that was answered, in seconds; None before the first.
    #[getter]
    fn latency(&self) -> Option<f64> {
        self.connection()?.round_trip().map(|time| time.as_secs_f64())
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        // Locked elsewhere means in use, so alive: nothing to find here this time.
        if let Some(error) = self.error.try_lock() {
            visit.call(&*error)?;
        }
        if let Some(latest) = self.latest.try_lock()
            && let Some(function) = &*latest
        {
            visit.call(function)?;
        }
        Ok(())
    }

    fn __clear__(&self) {
        self.set_error(None);
        self._set_latest(None);
    }
}

impl Drop for WebSocketClient {
    fn drop(&mut self) {
        let Some(endpoint) = self.endpoint.lock().take() else { return };
        if endpoint.is_of_this_process() {
            endpoint.discard();
            return;
        }
        // After fork() their locks may be held by threads that are not here.
        std::mem::forget(endpoint);
        std::mem::forget(std::mem::take(&mut *self.life.lock()));
    }
}
