//! `WebSocketChannel`: a server's end of one WebSocket connection.

use crate::convert::{self, CloseCode, OpcodeArgument};
use crate::ticker::check_process;
use crate::topics;
use parking_lot::Mutex;
use pyhv_engine::connection::{Connection, SendError};
use pyhv_engine::topics::Subscriber;
use pyhv_engine::wire::{self, MessageKind, Opcode};
use pyo3::exceptions::PyValueError;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// One WebSocket connection of a server, from `on_ws_open` to `on_ws_close`.
///
/// Hashable and equal only to itself, so it can be the key of a dict or a member of a set. `data` belongs to the
/// program. All members may be used from any thread and in callbacks; none of them blocks.
#[pyclass(frozen, weakref, module = "pyhv")]
pub(crate) struct WebSocketChannel {
    pub(crate) conn: Arc<Connection>,
    /// Guards the references while one is read or replaced; no Python code runs under it.
    values: Mutex<Values>,
    /// Its messages that gave way to newer ones.
    pub(crate) skipped: AtomicU32,
}

/// Python objects that a channel keeps.
#[derive(Default)]
struct Values {
    data: Option<Py<PyAny>>,
    /// Made when first asked for.
    headers: Option<Py<PyAny>>,
    query: Option<Py<PyAny>>,
}

/// Sends one frame: what `channel.send` and `client.send` share. `what`: whose connection, for the error.
pub(crate) fn send(
    conn: &Arc<Connection>,
    what: &str,
    msg: &Bound<'_, PyAny>,
    opcode: Option<Opcode>,
    fin: bool,
) -> PyResult<bool> {
    // In a child of fork() the locks below may be held by threads that are not there.
    check_process(conn.endpoint(), what)?;
    convert::with_payload(msg, |kind, payload| {
        if opcode.is_some() || kind == MessageKind::Binary {
            let text = match opcode {
                None | Some(Opcode::Continuation) => conn.open_message() == Some(MessageKind::Text),
                Some(opcode) => opcode == Opcode::Text,
            };
            convert::check_payload(opcode, text, kind, payload)?;
        }
        match conn.send(opcode, kind, fin, payload) {
            Ok(()) => Ok(true),
            Err(SendError::Closed | SendError::Dropped) => Ok(false),
            Err(SendError::Sequence(error)) => Err(PyValueError::new_err(error.to_string())),
        }
    })
}

/// Checks what `close` was asked to send; returns the code.
pub(crate) fn check_close(code: &CloseCode, reason: &str) -> PyResult<u16> {
    wire::close::check(code.0, reason).map_err(|error| PyValueError::new_err(error.to_string()))?;
    Ok(code.0)
}

/// `pyhv.http.Headers` from a handshake's packed headers.
pub(crate) fn headers_object(py: Python<'_>, packed: &[u8]) -> PyResult<Py<PyAny>> {
    let pairs = packed.split(|&b| b == b'\n').filter_map(|line| {
        let colon = line.iter().position(|&b| b == b':')?;
        Some((convert::latin1(&line[..colon]), convert::latin1(&line[colon + 2..])))
    });
    let pairs = PyList::new(py, pairs.collect::<Vec<_>>())?;
    Ok(py.import("pyhv.http")?.getattr("Headers")?.call1((pairs,))?.unbind())
}

/// `pyhv.http.QueryParams` from a URL.
pub(crate) fn query_object(py: Python<'_>, url: &str) -> PyResult<Py<PyAny>> {
    let query = url.split_once('?').map_or("", |(_, query)| query);
    Ok(py.import("pyhv.http")?.getattr("QueryParams")?.call_method1("parse", (query,))?.unbind())
}

/// The decoded path of a URL.
pub(crate) fn path_object<'py>(py: Python<'py>, url: &str) -> PyResult<Bound<'py, PyAny>> {
    let path = url.split_once('?').map_or(url, |(path, _)| path);
    py.import("urllib.parse")?.getattr("unquote")?.call1((path,))
}

/// An address as Python's sockets give it: host and port.
pub(crate) fn address_object<'py>(py: Python<'py>, address: SocketAddr) -> PyResult<Bound<'py, PyTuple>> {
    (address.ip().to_string(), address.port()).into_pyobject(py)
}

impl WebSocketChannel {
    pub(crate) fn new(conn: Arc<Connection>) -> Self {
        Self { conn, values: Mutex::default(), skipped: AtomicU32::new(0) }
    }

    fn subscriber(&self) -> Subscriber {
        Subscriber::Channel(Arc::clone(&self.conn))
    }

    /// What is in `slot`, made when it is empty.
    fn kept(
        &self,
        py: Python<'_>,
        slot: impl Fn(&mut Values) -> &mut Option<Py<PyAny>>,
        make: impl FnOnce() -> PyResult<Py<PyAny>>,
    ) -> PyResult<Py<PyAny>> {
        if let Some(kept) = slot(&mut self.values.lock()) {
            return Ok(kept.clone_ref(py));
        }
        let made = make()?;
        // Another thread may have been faster: everybody gets the same object. What is not kept is dropped after the lock.
        Ok(slot(&mut self.values.lock()).get_or_insert_with(|| made.clone_ref(py)).clone_ref(py))
    }
}

#[pymethods]
impl WebSocketChannel {
    /// Queues a message to the peer and returns at once.
    ///
    /// msg: str is sent as a text message, bytes-like as a binary one. opcode: a `WsOpcode` to send it as something
    /// else: TEXT or BINARY; PING or PONG (at most 125 bytes); CONTINUATION for a later fragment. fin: False sends a
    /// fragment of a message that the next `send` continues (RFC 6455 section 5.4).
    ///
    /// Returns True when queued; False when the channel is closed, or more than `max_buffered` bytes wait and
    /// `slow_policy` has closed it with 1008 or dropped the message. Raises ValueError for fragments out of sequence, bytes that are not UTF-8 in a
    /// text message, or an unknown opcode; TypeError for another type of message.
    ///
    /// Any thread; never blocks. What one tick sends leaves when that tick ends, in order, in one write.
    #[pyo3(signature = (msg, opcode=None, fin=true))]
    fn send(&self, msg: &Bound<'_, PyAny>, opcode: Option<OpcodeArgument>, fin: bool) -> PyResult<bool> {
        send(&self.conn, "server", msg, opcode.map(|argument| argument.0), fin)
    }

    /// Begins the closing handshake behind everything that was sent (RFC 6455 section 7.1.2).
    ///
    /// code: 1000-1003, 1007-1014 or 3000-4999. reason: at most 123 bytes of UTF-8. `is_open` is False from here on;
    /// messages that still arrive are dropped, and `on_ws_close` follows when the peer has answered or
    /// `close_timeout` has passed. Closing again does nothing. Raises ValueError for a code or reason that must not
    /// be sent.
    ///
    /// Any thread; never blocks.
    #[pyo3(signature = (code=CloseCode::NORMAL, reason=""), text_signature = "($self, code=1000, reason='')")]
    fn close(&self, code: CloseCode, reason: &str) -> PyResult<()> {
        let code = check_close(&code, reason)?;
        check_process(self.conn.endpoint(), "server")?;
        self.conn.close(Some(code), reason);
        Ok(())
    }

    /// Subscribes to a topic: from now on the channel gets what is `published` to it.
    ///
    /// topic: a name, or a pattern of MQTT 3.1.1 section 4.7: levels between slashes, "+" for one level, "#" at the end for
    /// the rest. after: None begins with what is published next; a position, as `publish` returns it, behind that message;
    /// "oldest" with all that the topic keeps (`HvWebServer.keep`). member: who the channel is in the topic, something
    /// that JSON can say: for `HvWebServer.presence`, `on_join` and `on_leave`; names without wildcards alone.
    ///
    /// Returns True when it is subscribed, whether it was before or not: then nothing is sent again; False when the channel
    /// is closed. Raises ValueError for a name that will not do, and for more than `max_subscriptions_per_channel`. Ends with
    /// the channel. Any thread; never blocks.
    #[pyo3(signature = (topic, *, after=None, member=None))]
    fn subscribe(
        &self,
        py: Python<'_>,
        topic: &str,
        after: Option<&str>,
        member: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<bool> {
        let after = topics::after(after);
        let begin = topics::subscribe(py, self.conn.endpoint(), self.subscriber(), &[topic], after, member, false)?;
        Ok(begin.is_some())
    }

    /// Subscribes for the client, which asked and is told. Returns why not.
    fn _ask(
        &self,
        py: Python<'_>,
        topic: &str,
        after: Option<&str>,
        member: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Option<String>> {
        let after = topics::after(after);
        match topics::subscribe(py, self.conn.endpoint(), self.subscriber(), &[topic], after, member, true) {
            Ok(_) => Ok(None),
            Err(error) => topics::refusal(error, py),
        }
    }

    /// Ends a subscription, named as it was made. Returns False when there was none. Any thread; never blocks.
    fn unsubscribe(&self, topic: &str) -> PyResult<bool> {
        topics::unsubscribe(self.conn.endpoint(), &self.subscriber(), topic)
    }

    /// What it has subscribed to, in that order, as a new list; nothing in `on_ws_close`. Any thread.
    #[getter]
    fn topics(&self) -> PyResult<Vec<String>> {
        topics::of(self.conn.endpoint(), &self.subscriber())
    }

    /// What the program put here; None at first.
    #[getter]
    fn get_data(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        self.values.lock().data.as_ref().map(|data| data.clone_ref(py))
    }

    #[setter]
    fn set_data(&self, value: Py<PyAny>) {
        let old = self.values.lock().data.replace(value);
        // Its destructor may run Python code: not under the lock.
        drop(old);
    }

    /// The request target of the handshake as sent: path and query.
    #[getter]
    fn url(&self) -> &str {
        self.conn.handshake.url()
    }

    /// The path of `url`, percent-decoded.
    #[getter]
    fn path<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        path_object(py, self.conn.handshake.url())
    }

    /// The query parameters of `url`, as `QueryParams`.
    #[getter]
    fn query(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.kept(py, |values| &mut values.query, || query_object(py, self.conn.handshake.url()))
    }

    /// The headers of the handshake request, as `Headers`.
    #[getter]
    fn headers(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.kept(py, |values| &mut values.headers, || headers_object(py, self.conn.handshake.headers()))
    }

    /// The peer's address: (host, port).
    #[getter]
    fn remote_address<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyTuple>>> {
        self.conn.handshake.remote.map(|remote| address_object(py, remote)).transpose()
    }

    /// The address of the client: the peer's, or behind `trusted_proxies` the one that they tell.
    #[getter]
    fn client_address(&self) -> Option<String> {
        self.conn.handshake.sender.map(|sender| sender.address.to_string())
    }

    /// "https" if the client speaks TLS (wss), to this server or to one of `trusted_proxies`; else "http".
    #[getter]
    fn scheme(&self) -> &'static str {
        self.conn.handshake.sender.map_or("http", |sender| sender.scheme())
    }

    /// Whether `send` would queue a message.
    #[getter]
    fn is_open(&self) -> bool {
        self.conn.is_open()
    }

    /// Bytes queued and not yet handed to the system.
    #[getter]
    fn buffered_amount(&self) -> usize {
        self.conn.buffered_amount()
    }

    /// Messages that `slow_policy` dropped because the peer reads too slowly.
    #[getter]
    fn dropped(&self) -> u64 {
        self.conn.dropped()
    }

    /// Messages of the peer that were not delivered because a newer one of the same key had come; see `latest` of
    /// `HvWebServer.start`.
    #[getter]
    fn skipped(&self) -> u32 {
        self.skipped.load(Ordering::Relaxed)
    }

    /// Round-trip time of the newest keep-alive ping that was answered, in seconds; None before the first.
    #[getter]
    fn latency(&self) -> Option<f64> {
        self.conn.round_trip().map(|time| time.as_secs_f64())
    }

    /// Whether permessage-deflate was agreed on (RFC 7692).
    #[getter]
    fn is_compressed(&self) -> bool {
        self.conn.handshake.deflate.is_some()
    }

    /// The subprotocol agreed on in the handshake, or None.
    #[getter]
    fn subprotocol(&self) -> Option<&str> {
        self.conn.handshake.subprotocol()
    }

    /// How the channel ended: the code of the peer's close frame (1005: it had none); without a close frame the
    /// code that this side failed the connection with, else 1006. None before `on_ws_close`.
    #[getter]
    fn close_code(&self) -> Option<u16> {
        self.conn.close_info().filter(|_| self.conn.has_ended()).map(|info| info.code)
    }

    /// The reason that goes with `close_code`, often empty. None before `on_ws_close`.
    #[getter]
    fn close_reason(&self) -> Option<&str> {
        self.conn.close_info().filter(|_| self.conn.has_ended()).map(|info| &*info.reason)
    }

    fn __repr__(&self) -> String {
        let state = if self.conn.is_open() { "open" } else { "closed" };
        let remote = self.conn.handshake.remote.map_or_else(|| "?".to_owned(), |r| r.to_string());
        format!("<WebSocketChannel {} from {remote}, {state}>", self.conn.handshake.url())
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        // Locked elsewhere means in use, so alive: nothing to find here this time.
        if let Some(values) = self.values.try_lock() {
            visit.call(&values.data)?;
        }
        Ok(())
    }

    fn __clear__(&self) {
        let old = self.values.lock().data.take();
        drop(old);
    }
}
