//! `HttpResponse`: what a handler fills in.

use crate::convert;
use crate::request::{header, headers_of};
use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use parking_lot::{Mutex, MutexGuard};
use pyhv_engine::files::{self, Source};
use pyhv_engine::request::{self as engine, Responder};
use pyo3::exceptions::{PyIsADirectoryError, PyOSError, PyRuntimeError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBool, PyBytes, PyDict, PyInt, PyList, PyString, PyTuple};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const HTML: HeaderValue = HeaderValue::from_static("text/html; charset=utf-8");
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const OCTETS: HeaderValue = HeaderValue::from_static("application/octet-stream");

/// The member of `http.HTTPStatus`; ValueError for a number that is none.
pub(crate) fn status_object(py: Python<'_>, status: u16) -> PyResult<Bound<'_, PyAny>> {
    static MEMBERS: PyOnceLock<(Py<PyDict>, Py<PyAny>)> = PyOnceLock::new();
    let (members, class) = MEMBERS.get_or_try_init(py, || {
        let class = py.import("http")?.getattr("HTTPStatus")?;
        let members = PyDict::new(py);
        for member in class.try_iter()? {
            let member = member?;
            members.set_item(member.getattr("value")?, &member)?;
        }
        PyResult::Ok((members.unbind(), class.unbind()))
    })?;
    match members.bind(py).get_item(status)? {
        Some(member) => Ok(member),
        None => class.bind(py).call1((status,)),
    }
}

/// A status that ends an exchange.
pub(crate) fn final_status(status: i64) -> PyResult<u16> {
    match u16::try_from(status) {
        Ok(number) if (200..=999).contains(&number) => Ok(number),
        _ => Err(PyValueError::new_err(format!("status={status}: an answer's status is 200 or above"))),
    }
}

/// JSON of a value, by msgspec where it is installed.
pub(crate) fn json_bytes(value: &Bound<'_, PyAny>) -> PyResult<Bytes> {
    static ENCODE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let py = value.py();
    let encode =
        ENCODE.get_or_try_init(py, || PyResult::Ok(py.import("pyhv.http")?.getattr("_json_bytes")?.unbind()))?;
    let made = encode.bind(py).call1((value,))?;
    Ok(Bytes::copy_from_slice(made.cast::<PyBytes>()?.as_bytes()))
}

/// Where an answer stands.
#[derive(Debug, Default)]
enum Sending {
    /// When the handler returns.
    #[default]
    AtReturn,
    /// By whoever answers later.
    Deferred(Arc<Responder>),
    Done,
}

#[derive(Debug)]
struct State {
    status: u16,
    headers: HeaderMap,
    body: Bytes,
    /// Instead of `body`.
    file: Option<Source>,
    sending: Sending,
}

impl Default for State {
    fn default() -> Self {
        Self { status: 200, headers: HeaderMap::new(), body: Bytes::new(), file: None, sending: Sending::default() }
    }
}

/// The answer that a handler fills in; 200 with an empty body until it does.
///
/// The helpers (`text`, `json`, ...) set body, content type and status, and return the status, so that a handler can
/// end with `return resp.text("pong")`. After `defer()` they answer at once, from any thread. Nothing blocks.
#[pyclass(frozen, weakref, module = "pyhv")]
#[derive(Default)]
pub(crate) struct HttpResponse {
    /// Guards the answer while it is changed or sent; no Python code runs under it.
    state: Mutex<State>,
    /// Set by the tick that runs the handler.
    responder: Mutex<Option<Arc<Responder>>>,
}

impl HttpResponse {
    pub(crate) fn to(responder: &Arc<Responder>) -> Self {
        Self { state: Mutex::default(), responder: Mutex::new(Some(Arc::clone(responder))) }
    }

    /// The answer, to be changed.
    fn open(&self) -> PyResult<MutexGuard<'_, State>> {
        let state = self.state.lock();
        if matches!(state.sending, Sending::Done) {
            return Err(PyRuntimeError::new_err("the request was answered already"));
        }
        Ok(state)
    }

    /// Sets a content, and sends the answer if it was deferred.
    fn fill(&self, py: Python<'_>, body: Bytes, content_type: Option<HeaderValue>, status: u16) -> PyResult<Py<PyAny>> {
        let member = status_object(py, status)?;
        let mut state = self.open()?;
        state.status = status;
        state.body = body;
        // A file that was to be sent instead is closed.
        state.file = None;
        if let Some(content_type) = content_type {
            state.headers.insert(header::CONTENT_TYPE, content_type);
        }
        if matches!(state.sending, Sending::Deferred(_)) {
            send(&mut state);
        }
        Ok(member.unbind())
    }

    /// Appends a Set-Cookie of what a function of `pyhv.cookies` makes of its arguments.
    fn append_cookie(
        &self,
        function: &str,
        args: &Bound<'_, PyTuple>,
        attributes: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<()> {
        let made = args.py().import("pyhv.cookies")?.getattr(function)?.call(args, attributes)?;
        let (name, value) = header("Set-Cookie", &made.extract::<String>()?)?;
        self.open()?.headers.append(name, value);
        Ok(())
    }

    /// Takes what the handler returned, and answers unless that was deferred.
    pub(crate) fn finish(slf: &Bound<'_, Self>, result: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = slf.py();
        let this = slf.get();
        if !matches!(this.state.lock().sending, Sending::AtReturn) {
            if result.is_none() || result.is(slf) || is_status(result) {
                return Ok(());
            }
            return Err(PyRuntimeError::new_err(format!(
                "the handler deferred its answer and then returned one: {}",
                shown(result)?
            )));
        }
        let fallback =
            |default: HeaderValue| (!this.state.lock().headers.contains_key(header::CONTENT_TYPE)).then_some(default);
        let status = this.state.lock().status;
        if is_status(result) {
            let number = final_status(result.extract()?)?;
            status_object(py, number)?;
            this.state.lock().status = number;
        } else if let Ok(text) = result.cast::<PyString>() {
            this.fill(py, Bytes::copy_from_slice(text.to_str()?.as_bytes()), fallback(TEXT), status)?;
        } else if result.is_instance_of::<PyDict>() || result.is_instance_of::<PyList>() {
            this.fill(py, json_bytes(result)?, fallback(JSON), status)?;
        } else if !result.is_none() {
            let Ok(bytes) = convert::bytes_like(result) else {
                return Err(PyTypeError::new_err(format!(
                    "a handler returns a status, str, bytes, dict, list or None, not {}",
                    shown(result)?
                )));
            };
            this.fill(py, bytes, fallback(OCTETS), status)?;
        }
        let responder = this.responder.lock().take();
        let mut state = this.state.lock();
        if let Some(responder) = responder {
            state.sending = Sending::Deferred(responder);
            send(&mut state);
        }
        Ok(())
    }
}

/// Hands the answer over; it is the first, since `Sending` says so.
fn send(state: &mut State) {
    let Sending::Deferred(responder) = std::mem::take(&mut state.sending) else { return };
    let status = http::StatusCode::from_u16(state.status).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
    let headers = std::mem::take(&mut state.headers);
    let body = std::mem::take(&mut state.body);
    let body = state.file.take().map_or_else(|| body.into(), Into::into);
    responder.respond(engine::HttpResponse { status, headers, body });
    state.sending = Sending::Done;
}

fn is_status(result: &Bound<'_, PyAny>) -> bool {
    result.is_instance_of::<PyInt>() && !result.is_instance_of::<PyBool>()
}

/// A value in an error's text.
fn shown(value: &Bound<'_, PyAny>) -> PyResult<String> {
    let text: String = value.repr()?.to_string().chars().take(80).collect();
    Ok(format!("{} ({text})", value.get_type().name()?))
}

#[pymethods]
impl HttpResponse {
    #[new]
    fn new() -> Self {
        Self::default()
    }

    /// The status to be sent, as `http.HTTPStatus`. Setting an unknown code raises ValueError.
    #[getter]
    fn get_status<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let status = self.state.lock().status;
        status_object(py, status)
    }

    #[setter]
    fn set_status(&self, py: Python<'_>, status: i64) -> PyResult<()> {
        let status = final_status(status)?;
        status_object(py, status)?;
        self.open()?.status = status;
        Ok(())
    }

    /// The body to be sent; empty for a file.
    #[getter]
    fn body<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        let body = self.state.lock().body.clone();
        PyBytes::new(py, &body)
    }

    /// The headers to be sent, as a new `Headers`.
    #[getter]
    fn headers(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let headers = self.state.lock().headers.clone();
        headers_of(py, &headers)
    }

    /// Answers with plain text, as UTF-8.
    #[pyo3(signature = (text, status=200))]
    fn text(&self, py: Python<'_>, text: &str, status: i64) -> PyResult<Py<PyAny>> {
        self.fill(py, Bytes::copy_from_slice(text.as_bytes()), Some(TEXT), final_status(status)?)
    }

    /// Answers with HTML, as UTF-8.
    #[pyo3(signature = (text, status=200))]
    fn html(&self, py: Python<'_>, text: &str, status: i64) -> PyResult<Py<PyAny>> {
        self.fill(py, Bytes::copy_from_slice(text.as_bytes()), Some(HTML), final_status(status)?)
    }

    /// Answers with `value` as JSON, encoded by msgspec where it is installed, else by the standard library.
    ///
    /// Raises TypeError for what neither can encode.
    #[pyo3(signature = (value, status=200))]
    fn json(&self, py: Python<'_>, value: &Bound<'_, PyAny>, status: i64) -> PyResult<Py<PyAny>> {
        self.fill(py, json_bytes(value)?, Some(JSON), final_status(status)?)
    }

    /// Answers with bytes, or anything bytes-like.
    #[pyo3(signature = (data, content_type="application/octet-stream", status=200))]
    fn data(&self, py: Python<'_>, data: &Bound<'_, PyAny>, content_type: &str, status: i64) -> PyResult<Py<PyAny>> {
        let (_, content_type) = header("Content-Type", content_type)?;
        self.fill(py, convert::bytes_like(data)?, Some(content_type), final_status(status)?)
    }

    /// Answers with a file, which the native side reads and sends, with its Content-Type, entity tag and date;
    /// conditional requests and ranges are answered as for `static`, if the status is 200.
    ///
    /// path: any file, not only those below some directory: a path made from a request is the program's to check.
    /// content_type: None tells it from the name. filename: has the browser save the file under this name
    /// (Content-Disposition: attachment), and tells the type before the path does.
    ///
    /// The file is opened here: what is sent is what was there at the call, also when it is renamed or removed before it
    /// has been sent. Raises FileNotFoundError, IsADirectoryError, PermissionError or another OSError with the path,
    /// ValueError for what is no regular file and for a filename with control characters or slashes. Waits for the disk
    /// to open the file, never to read it.
    #[pyo3(signature = (path, *, content_type=None, filename=None, status=200))]
    fn file(
        &self,
        py: Python<'_>,
        path: PathBuf,
        content_type: Option<&str>,
        filename: Option<&str>,
        status: i64,
    ) -> PyResult<Py<PyAny>> {
        let status = final_status(status)?;
        let member = status_object(py, status)?;
        let content_type = content_type.map(|value| header("Content-Type", value)).transpose()?;
        let disposition = filename.map(|name| {
            files::attachment(name).ok_or_else(|| {
                PyValueError::new_err(format!("filename={name:?} is empty or has control characters or slashes"))
            })
        });
        let disposition = disposition.transpose()?;
        let source = py.detach(|| Source::open(&path)).map_err(|error| file_error(&path, &error))?;
        let content_type = match (content_type, filename) {
            (Some((_, value)), _) => value,
            (None, Some(name)) => files::content_type(name.as_ref()),
            (None, None) => source.content_type().clone(),
        };
        let mut state = self.open()?;
        state.status = status;
        state.headers.insert(header::CONTENT_TYPE, content_type);
        if let Some(disposition) = disposition {
            state.headers.insert(header::CONTENT_DISPOSITION, disposition);
        }
        state.body = Bytes::new();
        state.file = Some(source);
        if matches!(state.sending, Sending::Deferred(_)) {
            send(&mut state);
        }
        Ok(member.unbind())
    }

    /// Sends the client to `url`. Raises ValueError for a status that is no redirection (3xx).
    #[pyo3(signature = (url, status=302))]
    fn redirect(&self, py: Python<'_>, url: &str, status: i64) -> PyResult<Py<PyAny>> {
        let Ok(number @ 300..=399) = u16::try_from(status) else {
            return Err(PyValueError::new_err(format!("redirect status={status} is not between 300 and 399")));
        };
        let (name, value) = header("Location", url)?;
        self.open()?.headers.insert(name, value);
        self.fill(py, Bytes::new(), None, number)
    }

    /// Sets a header, replacing fields of the same name.
    ///
    /// Raises ValueError for a name that is no token or a value with CR, LF or other control characters.
    fn set_header(&self, name: &str, value: &str) -> PyResult<()> {
        let (name, value) = own_header(name, value)?;
        self.open()?.headers.insert(name, value);
        Ok(())
    }

    /// Adds a header beside others of the same name. Raises ValueError as `set_header` does.
    fn add_header(&self, name: &str, value: &str) -> PyResult<()> {
        let (name, value) = own_header(name, value)?;
        self.open()?.headers.append(name, value);
        Ok(())
    }

    /// Adds a Set-Cookie header (RFC 6265 section 4.1), beside those of other cookies.
    ///
    /// max_age: seconds that the browser keeps it; expires: until when, a datetime with a time zone or seconds since 1970;
    /// with neither it is gone with the browser's session. domain: also for its subdomains; None: this host alone. path:
    /// only under it; None: under the request's. secure: only over https. http_only: not for scripts. same_site: "lax",
    /// "strict", "none" (needs secure) or None, whether requests from other sites carry it. partitioned: one for each
    /// site that embeds this one (needs secure).
    ///
    /// Raises ValueError, naming it, for what a browser would not take.
    #[pyo3(
        signature = (name, value, **attributes),
        text_signature = "($self, name, value, *, max_age=None, expires=None, domain=None, path=\"/\", secure=False, \
                          http_only=False, same_site=\"lax\", partitioned=False)"
    )]
    fn add_cookie(
        &self,
        name: &str,
        value: &str,
        attributes: Option<&Bound<'_, PyDict>>,
        py: Python<'_>,
    ) -> PyResult<()> {
        self.append_cookie("add_cookie", &(name, value).into_pyobject(py)?, attributes)
    }

    /// Has the browser forget a cookie. path and domain: those that it was added with.
    ///
    /// Raises ValueError as `add_cookie` does.
    #[pyo3(
        signature = (name, **attributes),
        text_signature = "($self, name, *, path=\"/\", domain=None)"
    )]
    fn delete_cookie(&self, name: &str, attributes: Option<&Bound<'_, PyDict>>, py: Python<'_>) -> PyResult<()> {
        self.append_cookie("delete_cookie", &(name,).into_pyobject(py)?, attributes)
    }

    /// Sets the Content-Type header.
    fn set_content_type(&self, content_type: &str) -> PyResult<()> {
        self.set_header("Content-Type", content_type)
    }

    /// Lets the handler return without an answer: whoever calls `text`, `json`, ... or `send` later, once, from any
    /// thread, answers. Returns this response.
    ///
    /// A request that nobody answers gets 503 after `handler_timeout`, and 500, which is logged, when nobody holds its response any more.
    /// Raises RuntimeError outside a handler, or when called twice.
    fn defer(slf: &Bound<'_, Self>) -> PyResult<Py<Self>> {
        let this = slf.get();
        let responder = this.responder.lock().take();
        let Some(responder) = responder else {
            return Err(PyRuntimeError::new_err(
                "defer() is for a response that a handler has not answered or deferred",
            ));
        };
        this.state.lock().sending = Sending::Deferred(responder);
        Ok(slf.clone().unbind())
    }

    /// Answers a deferred request with what has been set, without a further body.
    ///
    /// Raises RuntimeError when it is not deferred or was answered already.
    fn send(&self) -> PyResult<()> {
        let mut state = self.open()?;
        if !matches!(state.sending, Sending::Deferred(_)) {
            return Err(PyRuntimeError::new_err("send() is for a deferred response: any other is sent at the return"));
        }
        send(&mut state);
        Ok(())
    }

    /// Whether the request was answered.
    #[getter]
    fn is_sent(&self) -> bool {
        matches!(self.state.lock().sending, Sending::Done)
    }

    /// Whether somebody still waits for the answer: False once it was sent, once `handler_timeout` has answered, or when
    /// the client has taken its request back, which HTTP/2 has a frame for; of HTTP/1.1 it is not known before the answer is written.
    #[getter]
    fn is_awaited(&self) -> bool {
        match &self.state.lock().sending {
            Sending::AtReturn => self.responder.lock().as_ref().is_some_and(|responder| !responder.is_over()),
            Sending::Deferred(responder) => !responder.is_over(),
            Sending::Done => false,
        }
    }

    fn __repr__(&self) -> String {
        let state = self.state.lock();
        let sending = match state.sending {
            Sending::AtReturn => "",
            Sending::Deferred(_) => ", deferred",
            Sending::Done => ", sent",
        };
        let size = match &state.file {
            Some(_) => "a file".to_owned(),
            None => format!("{} bytes", state.body.len()),
        };
        format!("<HttpResponse {}, {size}{sending}>", state.status)
    }
}

impl Drop for HttpResponse {
    /// A deferred answer that nobody can give any more.
    fn drop(&mut self) {
        if let Sending::Deferred(responder) = std::mem::take(&mut self.state.get_mut().sending) {
            responder.abandon();
        }
    }
}

/// Why a file cannot be sent.
fn file_error(path: &Path, error: &io::Error) -> PyErr {
    match (error.raw_os_error(), error.kind()) {
        // OSError makes the subclass of the number.
        (Some(errno), _) => PyOSError::new_err((errno, convert::reason(error), path.display().to_string())),
        (None, io::ErrorKind::IsADirectory) => {
            PyIsADirectoryError::new_err(format!("{} is a directory, not a file", path.display()))
        }
        _ => PyValueError::new_err(format!("path={}: not a regular file", path.display())),
    }
}

/// 500, with nothing of the exception in it.
pub(crate) fn internal_error() -> engine::HttpResponse {
    plain(http::StatusCode::INTERNAL_SERVER_ERROR, "500 Internal Server Error\n".to_owned())
}

/// An answer of plain text.
pub(crate) fn plain(status: http::StatusCode, text: String) -> engine::HttpResponse {
    let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, TEXT)]);
    engine::HttpResponse { status, headers, body: text.into() }
}

/// A header that a program may set: how the content is framed is hyper's to say (RFC 9112 section 6).
pub(crate) fn own_header(name: &str, value: &str) -> PyResult<(HeaderName, HeaderValue)> {
    let (name, value) = header(name, value)?;
    if name == header::TRANSFER_ENCODING || name == header::CONTENT_LENGTH {
        return Err(PyValueError::new_err(format!("header {name}: pyHV sets it from the body")));
    }
    Ok((name, value))
}
