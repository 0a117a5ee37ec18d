//! `StreamWriter`: the program's end of a streamed response.

use crate::convert;
use crate::request::{HttpRequest, header};
use crate::response::{self, final_status, status_object};
use crate::topics;
use bytes::Bytes;
use http::header::{self as field, HeaderMap, HeaderValue};
use parking_lot::Mutex;
use pyhv_engine::body::Body;
use pyhv_engine::endpoint::Endpoint;
use pyhv_engine::request::{HttpResponse, Responder};
use pyhv_engine::stream::{Stream, StreamBody};
use pyhv_engine::topics::{After, Position, Subscriber};
use pyo3::exceptions::{PyRuntimeError, PyTypeError, PyValueError};
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyInt, PyList, PyString};
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

/// The head of the response, until it is sent.
struct Head {
    status: u16,
    headers: HeaderMap,
    body: StreamBody,
}

/// The live end of a response that is written piece by piece: what a handler of `sse` or `stream` gets.
///
/// It outlives the handler: the server keeps it, in `server.streams`, until it is closed or its client has left;
/// then `on_stream_close` runs. Hashable and equal only to itself. `data` belongs to the program. All members may be
/// used from any thread; none of them blocks.
#[pyclass(frozen, weakref, module = "pyhv")]
pub(crate) struct StreamWriter {
    pub(crate) stream: Arc<Stream>,
    request: Py<HttpRequest>,
    /// Whether it carries server-sent events.
    events: bool,
    /// 0: has not subscribed to a topic; 1: has; 2: has, and events have their topic as their type.
    subscribed: AtomicU8,
    /// Guards the head until the handler has returned.
    head: Mutex<Option<Head>>,
    /// Guards the reference while it is read or replaced.
    data: Mutex<Option<Py<PyAny>>>,
}

impl StreamWriter {
    /// `comments`: for an event stream, how often a comment is sent while nothing else is.
    pub(crate) fn new(
        request: Py<HttpRequest>,
        responder: &Responder,
        endpoint: &Arc<Endpoint>,
        events: bool,
        comments: Option<Duration>,
    ) -> Self {
        let (stream, body) = Stream::new(responder.io(), endpoint, comments, events);
        let mut headers = HeaderMap::new();
        if events {
            headers.insert(field::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
            headers.insert(field::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
            // nginx would keep events back until its buffer is full.
            headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
        } else {
            headers.insert(field::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        }
        let head = Mutex::new(Some(Head { status: 200, headers, body }));
        Self { stream, request, events, subscribed: AtomicU8::new(0), head, data: Mutex::new(None) }
    }

    pub(crate) fn subscriber(&self) -> Subscriber {
        Subscriber::Stream { stream: Arc::clone(&self.stream), named: self.subscribed.load(Ordering::Relaxed) == 2 }
    }

    /// The handler has returned: answers with the stream, or with the status that it returned instead of one. True: the
    /// stream is open.
    pub(crate) fn begin(&self, responder: &Responder, result: &Bound<'_, PyAny>) -> PyResult<bool> {
        let py = result.py();
        let refused = if result.is_none() {
            None
        } else if result.is_instance_of::<PyInt>() && !result.is_instance_of::<PyBool>() {
            let status = final_status(result.extract()?)?;
            status_object(py, status)?;
            (status >= 300).then_some(status)
        } else {
            return Err(PyTypeError::new_err(format!(
                "a handler of a stream returns None, or a status of 300 or above to refuse it, not {:.80}",
                result.repr()?.to_string()
            )));
        };
        let head = self.head.lock().take();
        let Some(Head { status, mut headers, body }) = head else { return Ok(false) };
        if let Some(status) = refused {
            let phrase: String = status_object(py, status)?.getattr("phrase")?.extract()?;
            for name in [field::CACHE_CONTROL, field::CONTENT_TYPE, field::HeaderName::from_static("x-accel-buffering")]
            {
                headers.remove(name);
            }
            let number = http::StatusCode::from_u16(status).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
            let mut answer = response::plain(number, format!("{status} {phrase}\n"));
            headers.extend(std::mem::take(&mut answer.headers));
            responder.respond(HttpResponse { headers, ..answer });
            return Ok(false);
        }
        let status = http::StatusCode::from_u16(status).unwrap_or(http::StatusCode::OK);
        self.stream.open();
        responder.respond(HttpResponse { status, headers, body: Body::from(body) });
        Ok(true)
    }

    fn with_head(&self, change: impl FnOnce(&mut Head)) -> PyResult<()> {
        match &mut *self.head.lock() {
            Some(head) => {
                change(head);
                Ok(())
            }
            None => Err(PyRuntimeError::new_err("status and headers of a stream are set before its handler returns")),
        }
    }

    fn push(&self, chunk: Bytes) -> PyResult<bool> {
        crate::ticker::check_process(self.stream.endpoint(), "server")?;
        Ok(self.stream.write(chunk))
    }
}

/// A field of an event that is one line.
fn line<'a>(name: &str, value: &'a str, extra: &[char]) -> PyResult<&'a str> {
    if value.contains(['\r', '\n']) || value.contains(extra) {
        return Err(PyValueError::new_err(format!("{name}={value:?}: an event's {name} is one line")));
    }
    Ok(value)
}

/// One event in the form of the WHATWG HTML standard, section 9.2.5.
fn encode(data: &str, event: Option<&str>, id: Option<&str>, retry: Option<i64>) -> PyResult<String> {
    let mut text = String::with_capacity(data.len() + 16);
    if let Some(event) = event {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "event: {}", line("event", event, &[])?);
    }
    if let Some(id) = id {
        let _ = writeln!(text, "id: {}", line("id", id, &['\0'])?);
    }
    if let Some(retry) = retry {
        if retry < 0 {
            return Err(PyValueError::new_err(format!("retry={retry} is not a number of milliseconds")));
        }
        let _ = writeln!(text, "retry: {retry}");
    }
    // A line ends with CR LF, LF or CR; each line of the data has a field of its own.
    let unified;
    let data = if data.contains('\r') {
        unified = data.replace("\r\n", "\n").replace('\r', "\n");
        &unified
    } else {
        data
    };
    for part in data.split('\n') {
        text.push_str("data: ");
        text.push_str(part);
        text.push('\n');
    }
    text.push('\n');
    Ok(text)
}

#[pymethods]
impl StreamWriter {
    /// Sends an event of a `sse` route.
    ///
    /// data: str, or a dict or list, which is sent as JSON. event: its type; the browser's default is "message". id: what
    /// a reconnecting client sends as Last-Event-ID. retry: the client's reconnection time in milliseconds, as in the
    /// WHATWG HTML standard, section 9.2.5.
    ///
    /// Returns True when queued; False when the stream has ended, or `slow_policy` left the event out or broke the
    /// stream off because more than `max_buffered` bytes wait. Raises ValueError for an event or id of several
    /// lines; RuntimeError on a `stream` route; TypeError for other data. Any thread; never blocks.
    #[pyo3(signature = (data, event=None, id=None, retry=None))]
    fn event(
        &self,
        data: &Bound<'_, PyAny>,
        event: Option<&str>,
        id: Option<&str>,
        retry: Option<i64>,
    ) -> PyResult<bool> {
        if !self.events {
            return Err(PyRuntimeError::new_err("event() is for sse routes: this one was added with stream()"));
        }
        let text = if let Ok(text) = data.cast::<PyString>() {
            encode(text.to_str()?, event, id, retry)?
        } else if data.is_instance_of::<PyDict>() || data.is_instance_of::<PyList>() {
            let json = response::json_bytes(data)?;
            encode(&String::from_utf8_lossy(&json), event, id, retry)?
        } else {
            let name = data.get_type().name()?;
            return Err(PyTypeError::new_err(format!("an event's data is str, dict or list, not {name}")));
        };
        self.push(text.into())
    }

    /// Subscribes to topics: what is published to them comes as events of this `sse` route, each with its position as id.
    ///
    /// topics: names or patterns, as for `WebSocketChannel.subscribe`. named: the type of an event is its topic; otherwise it
    /// is the browser's default, "message". after: as there. Without it the first call resumes where the client has
    /// been, as its Last-Event-ID tells, and an event of type "gap" says that something is missing in between; so give all
    /// topics to one call. Later calls begin with what is published next. member: as there.
    ///
    /// Binary messages come in base64. The publishes of a tick come behind what `event` has sent in it. Returns False when
    /// the stream has ended. Raises ValueError as there, and for another `named` than the first time; RuntimeError on a
    /// `stream` route. Any thread; never blocks.
    #[pyo3(signature = (*topics, after=None, named=false, member=None))]
    fn subscribe(
        &self,
        py: Python<'_>,
        topics: Vec<String>,
        after: Option<&str>,
        named: bool,
        member: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<bool> {
        if !self.events {
            return Err(PyRuntimeError::new_err("subscribe() is for sse routes: this one was added with stream()"));
        }
        if topics.is_empty() {
            return Err(PyValueError::new_err("subscribe() without a topic"));
        }
        let kind = if named { 2 } else { 1 };
        let before = self.subscribed.compare_exchange(0, kind, Ordering::Relaxed, Ordering::Relaxed);
        if before.is_err_and(|before| before != kind) {
            return Err(PyValueError::new_err(format!(
                "named={}: the stream has begun with the opposite",
                if named { "True" } else { "False" }
            )));
        }
        let after = match (after, before) {
            (None, Ok(_)) => match self.last_event_id() {
                Some(id) if !id.is_empty() => After::Position(Position::parse(&id)),
                _ => After::Now,
            },
            (after, Ok(_)) => topics::after(after),
            (None, Err(_)) => After::Now,
            // One id is for all topics: earlier messages behind it would take the client back.
            (Some(_), Err(_)) => {
                return Err(PyValueError::new_err(
                    "after= is for the first subscribe() of a stream, with all its topics",
                ));
            }
        };
        let names: Vec<&str> = topics.iter().map(String::as_str).collect();
        let made = topics::subscribe(py, self.stream.endpoint(), self.subscriber(), &names, after, member, false);
        if !matches!(made, Ok(Some(_))) && before.is_ok() {
            self.subscribed.store(0, Ordering::Relaxed);
        }
        Ok(made?.is_some())
    }

    /// Ends a subscription, named as it was made. Returns False when there was none. Any thread; never blocks.
    fn unsubscribe(&self, topic: &str) -> PyResult<bool> {
        topics::unsubscribe(self.stream.endpoint(), &self.subscriber(), topic)
    }

    /// What it has subscribed to, in that order, as a new list. Any thread.
    #[getter]
    fn topics(&self) -> PyResult<Vec<String>> {
        topics::of(self.stream.endpoint(), &self.subscriber())
    }

    /// Sends a comment, which clients ignore. For `sse` routes; otherwise as `event`.
    fn comment(&self, text: &str) -> PyResult<bool> {
        if !self.events {
            return Err(PyRuntimeError::new_err("comment() is for sse routes: this one was added with stream()"));
        }
        self.push(format!(": {}\n\n", line("comment", text, &[])?).into())
    }

    /// Sends a chunk: str as UTF-8, or anything bytes-like. On a `sse` route it has to consist of whole events.
    ///
    /// Returns True when queued; False when the stream has ended, or was broken off because more than `max_buffered`
    /// bytes wait (`buffered_amount`). Any thread; never blocks. What one tick writes leaves when that tick ends.
    fn write(&self, chunk: &Bound<'_, PyAny>) -> PyResult<bool> {
        let chunk = match chunk.cast::<PyString>() {
            Ok(text) => Bytes::copy_from_slice(text.to_str()?.as_bytes()),
            Err(_) => convert::bytes_like(chunk)?,
        };
        self.push(chunk)
    }

    /// Ends the content behind what was written. Closing again does nothing. Any thread; never blocks.
    fn close(&self) -> PyResult<()> {
        crate::ticker::check_process(self.stream.endpoint(), "server")?;
        self.stream.close();
        Ok(())
    }

    /// Whether the client is still there and the stream is not closed.
    #[getter]
    fn is_connected(&self) -> bool {
        self.stream.is_open()
    }

    /// Bytes that wait for the client to read.
    #[getter]
    fn buffered_amount(&self) -> usize {
        self.stream.buffered_amount()
    }

    /// Events that `slow_policy` left out because the client reads too slowly.
    #[getter]
    fn dropped(&self) -> u64 {
        self.stream.dropped()
    }

    /// The request that the stream answers.
    #[getter]
    fn request(&self, py: Python<'_>) -> Py<HttpRequest> {
        self.request.clone_ref(py)
    }

    /// The id of the last event that a reconnecting client has seen (its Last-Event-ID header), or None.
    #[getter]
    fn last_event_id(&self) -> Option<String> {
        // UTF-8, as the standard has it (section 9.2.3).
        let value = self.request.get().header("last-event-id")?;
        Some(String::from_utf8_lossy(value.as_bytes()).into_owned())
    }

    /// The status to be sent. Set before the handler returns; RuntimeError later.
    #[getter]
    fn get_status<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let status = self.head.lock().as_ref().map(|head| head.status);
        status.map(|status| status_object(py, status)).transpose()
    }

    #[setter]
    fn set_status(&self, py: Python<'_>, status: i64) -> PyResult<()> {
        let status = final_status(status)?;
        status_object(py, status)?;
        self.with_head(|head| head.status = status)
    }

    /// Sets a header of the response. Raises ValueError as `HttpResponse.set_header` does, RuntimeError once the
    /// handler has returned.
    fn set_header(&self, name: &str, value: &str) -> PyResult<()> {
        let (name, value) = response::own_header(name, value)?;
        self.with_head(|head| {
            head.headers.insert(name, value);
        })
    }

    /// Sets the Content-Type header: "application/octet-stream" unless set on a `stream` route.
    fn set_content_type(&self, content_type: &str) -> PyResult<()> {
        let (name, value) = header("Content-Type", content_type)?;
        self.with_head(|head| {
            head.headers.insert(name, value);
        })
    }

    /// What the program put here; None at first.
    #[getter]
    fn get_data(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        self.data.lock().as_ref().map(|data| data.clone_ref(py))
    }

    #[setter]
    fn set_data(&self, value: Py<PyAny>) {
        let old = self.data.lock().replace(value);
        // Its destructor may run Python code: not under the lock.
        drop(old);
    }

    fn __repr__(&self) -> String {
        let state = if self.stream.is_open() { "open" } else { "closed" };
        format!("<StreamWriter {}, {state}>", self.request.get().describe())
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        // Locked elsewhere means in use, so alive: nothing to find here this time.
        if let Some(data) = self.data.try_lock() {
            visit.call(&*data)?;
        }
        visit.call(&self.request)
    }

    fn __clear__(&self) {
        let old = self.data.lock().take();
        drop(old);
    }
}
