//! The HTTP client: `HttpClient`, the native base of `pyhv.HttpClient` and `pyhv.EventSource`, and `http_request`, which
//! the blocking functions call.
//!
//! What Python gives is checked here, at the call; what comes back goes to `_deliver` of the Python side as plain values.

use crate::around::version_name;
use crate::convert::{self, latin1};
use crate::request::header;
use crate::ticker::{self, Budget, Ticker, check_process, fault};
use bytes::Bytes;
use parking_lot::Mutex;
use pyhv_engine::endpoint::Endpoint;
use pyhv_engine::http_client::error::{ErrorKind, HttpError};
use pyhv_engine::http_client::request::{Content, Delivery, Part, Parts, Reconnect, Request, RequestBody, parse_url};
use pyhv_engine::http_client::{Client, ClientSettings, Head, HttpEvent, ProxyChoice, Running, SettingsError, What};
use pyhv_engine::inbox::Event;
use pyhv_engine::settings::Settings;
use pyhv_engine::tls::Trust;
use pyhv_engine::wake::Wake;
use pyo3::exceptions::{PyOSError, PyRuntimeError, PyTypeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyTuple};
use std::collections::HashMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Pieces of a body that wait while a blocking call's `on_chunk` runs.
const BLOCKING_PENDING: usize = 1 << 20;

/// What a run of the client needs; gone after `close()`.
struct Core {
    endpoint: Arc<Endpoint>,
    client: Arc<Client>,
}

/// The native base of HttpClient and EventSource.
#[pyclass(frozen, subclass, weakref, module = "pyhv._native")]
pub(crate) struct HttpClient {
    ticker: Ticker,
    /// Guards endpoint and client while they are looked up, made, or taken away.
    core: Mutex<Option<Core>>,
    /// Requests whose end has not been delivered. Guards the map for one look or change.
    running: Mutex<HashMap<u64, Running>>,
    /// The descriptor, once handed out.
    wake: Mutex<Option<Arc<Wake>>>,
}

/// A required or optional value of a dict that our own Python code has made.
fn get<'py, T>(options: &Bound<'py, PyDict>, name: &str) -> PyResult<T>
where
    T: for<'a> FromPyObject<'a, 'py>,
{
    let value = options.get_item(name)?.ok_or_else(|| PyTypeError::new_err(format!("{name}= is missing")))?;
    value.extract::<T>().map_err(|error| {
        let py = options.py();
        let error: PyErr = error.into();
        if error.is_instance_of::<PyTypeError>(py) {
            PyTypeError::new_err(format!("{name}={value}: {error}"))
        } else {
            error
        }
    })
}

/// A number of seconds or None; checked by the Python side.
fn time(options: &Bound<'_, PyDict>, name: &str) -> PyResult<Option<Duration>> {
    get::<Option<f64>>(options, name)?.map(|value| convert::seconds(name, value)).transpose()
}

/// The arguments of a client. `http://` requests need no certificates, but may be redirected.
fn client_settings(options: &Bound<'_, PyDict>) -> PyResult<ClientSettings> {
    let tls: Bound<'_, PyDict> = get(options, "tls")?;
    let trust = if tls.is_empty() { Trust::default() } else { convert::trust(&tls)? };
    let proxy: Bound<'_, PyAny> = get(options, "proxy")?;
    let proxy = if proxy.is_none() {
        ProxyChoice::System
    } else if proxy.extract::<bool>().is_ok_and(|on| !on) {
        ProxyChoice::Direct
    } else if let Ok(url) = proxy.extract::<String>() {
        ProxyChoice::Url(url)
    } else {
        return Err(PyTypeError::new_err(format!("proxy={proxy} is not a URL, None or False")));
    };
    let (_, user_agent) = header("User-Agent", &get::<String>(options, "user_agent")?)?;
    Ok(ClientSettings {
        trust,
        connect_timeout: time(options, "connect_timeout")?,
        proxy,
        decompress: get(options, "decompress")?,
        http2: get(options, "http2")?,
        cookies: get(options, "keep_cookies")?,
        user_agent,
    })
}

fn core(options: &Bound<'_, PyDict>, max_pending_bytes: usize, wake: Option<Arc<Wake>>) -> PyResult<Core> {
    let settings = client_settings(options)?;
    // No connection of this endpoint is a WebSocket: nobody is pinged, and no sweep runs.
    let endpoint_settings =
        Settings { max_pending_bytes, ping_interval: None, ping_timeout: None, ..Settings::default() };
    let endpoint = Endpoint::new(endpoint_settings, wake)?;
    let client = Client::new(&endpoint, &settings).map_err(|error| match error {
        SettingsError::Tls(error) => convert::tls_error(&error),
        SettingsError::Proxy(text) => PyValueError::new_err(format!("proxy= is not the URL of a proxy: {text}")),
        SettingsError::Other(text) => PyRuntimeError::new_err(text),
    })?;
    Ok(Core { endpoint, client: Arc::new(client) })
}

/// (name, file name, content type, bytes or path)
type PartArgument<'py> = (String, Option<String>, Option<String>, Bound<'py, PyAny>);

fn part(
    name: String,
    filename: Option<String>,
    content_type: Option<String>,
    content: &Bound<'_, PyAny>,
) -> PyResult<Part> {
    let content = if let Ok(bytes) = content.cast::<PyBytes>() {
        Content::Bytes(Bytes::copy_from_slice(bytes.as_bytes()))
    } else {
        let path: PathBuf = content.extract()?;
        let failed = |error: std::io::Error| {
            let text = format!("files: {}: {}", path.display(), convert::reason(&error));
            match error.raw_os_error() {
                Some(errno) => PyOSError::new_err((errno, text)),
                None => PyOSError::new_err(text),
            }
        };
        // Looked at before it is opened: opening a pipe would wait for its other end.
        let facts = std::fs::metadata(&path).map_err(failed)?;
        if !facts.is_file() {
            return Err(PyValueError::new_err(format!("files: {} is not a regular file", path.display())));
        }
        let file = File::open(&path).map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
        Content::File(file, length)
    };
    Ok(Part { name, filename, content_type, content })
}

/// What is meant as a URL, as an error may show it: without user and password.
fn without_user(url: &str) -> String {
    let start = url.find("://").map_or(0, |at| at + 3);
    let end = url[start..].find(['/', '?', '#']).map_or(url.len(), |at| start + at);
    match url[start..end].rfind('@') {
        Some(at) => format!("{}{}", &url[..start], &url[start + at + 1..]),
        None => url.to_owned(),
    }
}

/// The parts of a request, from the dict that the Python side makes.
fn parts(request: &Bound<'_, PyDict>) -> PyResult<Parts> {
    let method: String = get(request, "method")?;
    let method = http::Method::from_bytes(method.as_bytes())
        .ok()
        .filter(|method| *method != http::Method::CONNECT)
        .ok_or_else(|| PyValueError::new_err(format!("method={method:?} is not a method that can be asked for")))?;
    let url: String = get(request, "url")?;
    let url = parse_url(&url)
        .map_err(|why| PyValueError::new_err(format!("{:?} is not an HTTP URL: {why}", without_user(&url))))?;
    let headers: Vec<(String, String)> = get(request, "headers")?;
    let headers = headers.iter().map(|(name, value)| header(name, value)).collect::<PyResult<_>>()?;
    let given: Option<Vec<PartArgument<'_>>> = get(request, "parts")?;
    let body: Option<Bound<'_, PyBytes>> = get(request, "body")?;
    let body = match (given, body) {
        (Some(given), _) => {
            let parts = given.into_iter().map(|(name, filename, kind, content)| part(name, filename, kind, &content));
            RequestBody::Multipart(parts.collect::<PyResult<_>>()?)
        }
        (None, Some(body)) => RequestBody::Bytes(Bytes::copy_from_slice(body.as_bytes())),
        (None, None) => RequestBody::None,
    };
    Ok(Parts {
        method,
        url,
        headers,
        body,
        cookies: get(request, "cookies")?,
        timeout: time(request, "timeout")?,
        redirects: get(request, "redirects")?,
    })
}

fn delivery(request: &Bound<'_, PyDict>) -> PyResult<Delivery> {
    let limit = get(request, "max_response_size")?;
    let how: String = get(request, "deliver")?;
    Ok(match how.as_str() {
        "chunks" => Delivery::Chunks,
        "events" => Delivery::Events(event_size(request)?, limit),
        _ => Delivery::Whole(limit),
    })
}

fn event_size(request: &Bound<'_, PyDict>) -> PyResult<usize> {
    convert::size("max_event_size", &get(request, "max_event_size")?, 1)
}

fn reconnect(request: &Bound<'_, PyDict>) -> PyResult<Reconnect> {
    let seconds = |name: &str| convert::seconds(name, get(request, name)?);
    Ok(Reconnect {
        delay: seconds("reconnect_delay")?,
        max_delay: seconds("max_delay")?,
        last_event_id: get::<String>(request, "last_event_id")?.into(),
        max_event_size: event_size(request)?,
    })
}

/// How a request runs.
enum Plan {
    Once(Delivery),
    Source(Reconnect),
}

/// Checks the request that a dict describes, and makes it.
fn prepare(client: &Client, request: &Bound<'_, PyDict>) -> PyResult<(Request, Plan)> {
    let built = parts(request)?.build(client).map_err(PyValueError::new_err)?;
    let plan = if get::<String>(request, "deliver")? == "source" {
        Plan::Source(reconnect(request)?)
    } else {
        Plan::Once(delivery(request)?)
    };
    Ok((built, plan))
}

/// Sends it.
fn start(client: &Client, number: u64, (request, plan): (Request, Plan)) -> Running {
    match plan {
        Plan::Once(delivery) => client.start(number, request, delivery),
        Plan::Source(reconnect) => client.start_event_source(number, request, reconnect),
    }
}

/// What `Response` of the Python side is made of.
fn head_object<'py>(py: Python<'py>, head: &Head, body: &[u8]) -> PyResult<Bound<'py, PyDict>> {
    let headers: Vec<_> = head.headers.iter().map(|(k, v)| (k.as_str(), latin1(v.as_bytes()))).collect();
    let object = PyDict::new(py);
    object.set_item("status", head.status.as_u16())?;
    object.set_item("reason", latin1(&head.reason))?;
    object.set_item("headers", headers)?;
    object.set_item("url", &head.url)?;
    object.set_item("history", &head.history)?;
    object.set_item("cookies", head.cookies.clone())?;
    object.set_item("http_version", version_name(head.version))?;
    object.set_item("elapsed", head.elapsed.as_secs_f64())?;
    object.set_item("body", PyBytes::new(py, body))?;
    Ok(object)
}

/// The declared exception for a request without a response.
fn error_object<'py>(py: Python<'py>, error: &HttpError) -> PyResult<Bound<'py, PyAny>> {
    let name = match &error.kind {
        ErrorKind::Resolve => "NameResolutionError",
        ErrorKind::Refused => "ConnectionRefused",
        ErrorKind::Connect => "ConnectError",
        ErrorKind::Tls => "TlsError",
        ErrorKind::ConnectTimeout => "ConnectTimeout",
        ErrorKind::Timeout => "HttpTimeout",
        ErrorKind::TooManyRedirects => "TooManyRedirects",
        ErrorKind::TooLarge => "BodyTooLarge",
        ErrorKind::Protocol => "ProtocolError",
        ErrorKind::Lost => "RequestFailed",
        ErrorKind::Status(said) => {
            let raw = head_object(py, &said.0, &said.1)?;
            return py.import("pyhv.response")?.getattr("status_error")?.call1((&error.text, raw));
        }
    };
    py.import("pyhv.errors")?.getattr(name)?.call1((&error.text,))
}

/// An event as its kind and value for the Python side.
fn event_object<'py>(py: Python<'py>, what: What) -> PyResult<(&'static str, Bound<'py, PyAny>)> {
    Ok(match what {
        What::Head(head) => ("head", head_object(py, &head, b"")?.into_any()),
        What::Chunk(data) => ("chunk", PyBytes::new(py, &data).into_any()),
        What::Open => ("open", py.None().into_bound(py)),
        What::Event(event) => ("event", (&event.event, &event.data, &*event.id).into_pyobject(py)?.into_any()),
        What::Reconnecting(error) => ("lost", error_object(py, &error)?),
        What::Done(head, body) => ("done", head_object(py, &head, &body)?.into_any()),
        What::Failed(error) => ("failed", error_object(py, &error)?),
    })
}

/// An endpoint whose owner waits for it on this stack: ended however that ends.
struct Ended(Core);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.endpoint.discard();
    }
}

/// Makes one request and waits, without the GIL, for its end; for the blocking functions.
///
/// options, request: dicts as `pyhv.http_client` makes them. sink: called with "head" or "chunk" and its value on this
/// thread, for a body in pieces. Returns what a Response is made of.
#[pyfunction]
#[pyo3(text_signature = "(options, request, sink=None)", signature = (options, request, sink=None))]
pub(crate) fn http_request<'py>(
    py: Python<'py>,
    options: &Bound<'py, PyDict>,
    request: &Bound<'py, PyDict>,
    sink: Option<&Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyDict>> {
    let ticker = Ticker::default();
    let _turn = ticker.enter(py, "the request")?;
    let ended = Ended(core(options, BLOCKING_PENDING, None)?);
    let Core { endpoint, client } = &ended.0;
    let _running = start(client, 0, prepare(client, request)?);
    let mut result = None;
    while result.is_none() {
        ticker.wait(py, endpoint, None, || false)?;
        ticker.run(py, endpoint, Budget::default(), None, |event, _| {
            match event {
                Event::Http(event) => match event.what {
                    What::Done(head, body) => result = Some(head_object(py, &head, &body)?),
                    What::Failed(error) => return Err(PyErr::from_value(error_object(py, &error)?)),
                    what => {
                        let (kind, value) = event_object(py, what)?;
                        if let Some(sink) = sink {
                            sink.call1((kind, value))?;
                        }
                    }
                },
                Event::Fault(text) => return Err(fault(&text)),
                _ => {}
            }
            Ok(())
        })?;
    }
    result.ok_or_else(|| PyRuntimeError::new_err("the request ended without a result, which is a bug in pyHV"))
}

impl HttpClient {
    fn endpoint(&self) -> Option<Arc<Endpoint>> {
        self.core.lock().as_ref().map(|core| Arc::clone(&core.endpoint))
    }

    fn is_idle(&self) -> bool {
        self.running.lock().is_empty()
    }

    fn dispatch(slf: &Bound<'_, Self>, event: Event) -> PyResult<()> {
        match event {
            Event::Http(event) => {
                let HttpEvent { request, what } = *event;
                let over = matches!(what, What::Done(..) | What::Failed(_));
                let mut running = slf.get().running.lock();
                // Absent: cancelled since.
                let known = if over { running.remove(&request).is_some() } else { running.contains_key(&request) };
                drop(running);
                if known {
                    let py = slf.py();
                    let (kind, value) = event_object(py, what)?;
                    slf.call_method1(intern!(py, "_deliver"), (request, kind, value))?;
                }
                Ok(())
            }
            Event::Log(text) => ticker::log(slf, &text),
            Event::Fault(text) => Err(fault(&text)),
            _ => Ok(()),
        }
    }

    fn end(&self) {
        let running = std::mem::take(&mut *self.running.lock());
        let core = self.core.lock().take();
        let Some(core) = core else { return };
        if core.endpoint.is_of_this_process() {
            core.endpoint.discard();
            drop(running);
        } else {
            // After fork() their locks may be held by threads that are not here.
            std::mem::forget(core);
            std::mem::forget(running);
        }
    }
}

#[pymethods]
impl HttpClient {
    /// Made here, so that a subclass need not call `super().__init__()` before its own code.
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self { ticker: Ticker::default(), core: Mutex::new(None), running: Mutex::default(), wake: Mutex::new(None) }
    }

    /// Takes whatever the Python side's `__init__` takes.
    #[pyo3(signature = (*_args, **_kwargs))]
    fn __init__(&self, _args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) {}

    /// Makes the client from checked arguments; connects nowhere.
    fn _open(&self, options: &Bound<'_, PyDict>) -> PyResult<()> {
        let max_pending_bytes = convert::size("max_pending_bytes", &get(options, "max_pending_bytes")?, 1)?;
        let made = core(options, max_pending_bytes, None)?;
        let mut slot = self.core.lock();
        if slot.is_some() {
            return Err(PyRuntimeError::new_err("this client is open already"));
        }
        *slot = Some(made);
        Ok(())
    }

    /// Sends a request whose events go to `_deliver` with `number`.
    fn _start(&self, number: u64, request: &Bound<'_, PyDict>) -> PyResult<()> {
        let client = self.core.lock().as_ref().map(|core| (Arc::clone(&core.client), Arc::clone(&core.endpoint)));
        let Some((client, endpoint)) = client else {
            return Err(PyRuntimeError::new_err("the client is closed"));
        };
        check_process(&endpoint, "client")?;
        let prepared = prepare(&client, request)?;
        // Under the lock, so that a tick on another thread cannot meet the end of a request that it does not know yet.
        let mut running = self.running.lock();
        running.insert(number, start(&client, number, prepared));
        Ok(())
    }

    /// Ends a request without a further event; False if it was over.
    fn _cancel(&self, number: u64) -> PyResult<bool> {
        let Some(endpoint) = self.endpoint() else { return Ok(false) };
        check_process(&endpoint, "client")?;
        let found = self.running.lock().remove(&number);
        let cancelled = found.is_some();
        drop(found);
        if cancelled {
            // A tick that waits for it on another thread looks again.
            endpoint.inbox.nudge();
        }
        Ok(cancelled)
    }

    /// Runs the callbacks of everything that has happened since the last tick.
    ///
    /// timeout: seconds to wait if nothing has happened yet; 0 (the default) does not wait, None waits without end.
    /// Ctrl-C ends the wait with KeyboardInterrupt. Without a request under way it does not wait.
    ///
    /// max_ms, max_events: how much this tick may do, in milliseconds and in events; None (the default): all that is
    /// pending when it begins. It runs one event at least, and looks at the clock between two. What is left over waits for
    /// the next tick, together with what has come until then, in the order of arrival.
    ///
    /// Returns the number of events. Exceptions of callbacks are logged and passed to `on_error`; KeyboardInterrupt
    /// and SystemExit leave the tick, and what was not yet run is run by the next. Raises RuntimeError inside a
    /// callback of the same object, while another thread is inside `tick()`, and in a child process.
    ///
    /// All callbacks run here, on the calling thread.
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
        let Some(endpoint) = this.endpoint() else { return Ok(0) };
        check_process(&endpoint, "client")?;
        endpoint.note_tick();
        let deadline = convert::deadline(timeout)?;
        this.ticker.wait_if(timeout != Some(0.0), py, &endpoint, deadline, || this.is_idle())?;
        if !this.ticker.is_ready(&endpoint) {
            return Ok(0);
        }
        this.ticker.run(py, &endpoint, budget, None, |event, _| Self::dispatch(slf, event))
    }

    /// A descriptor that is readable while events are pending, for select, poll and the loops built on them.
    ///
    /// The same until `close`. Raises RuntimeError after that. Any thread; never blocks.
    fn fileno(&self) -> PyResult<i64> {
        let Some(endpoint) = self.endpoint() else {
            return Err(PyRuntimeError::new_err("the client is closed"));
        };
        check_process(&endpoint, "client")?;
        let mut wake = self.wake.lock();
        let made = match &*wake {
            Some(wake) => Arc::clone(wake),
            None => endpoint.inbox.export(self.ticker.has_leftover())?,
        };
        let raw = made.raw();
        *wake = Some(made);
        Ok(raw)
    }

    /// Cancels every request, without further callbacks, and closes every connection. Closing again does nothing.
    ///
    /// Any thread, also inside a callback; never blocks.
    fn close(&self) -> PyResult<()> {
        if let Some(endpoint) = self.endpoint() {
            check_process(&endpoint, "client")?;
            endpoint.inbox.nudge();
        }
        self.end();
        let wake = self.wake.lock().take();
        drop(wake);
        Ok(())
    }

    /// Whether `close` was called.
    #[getter]
    fn is_closed(&self) -> bool {
        self.core.lock().is_none()
    }

    /// Requests whose end has not been delivered.
    #[getter]
    fn pending(&self) -> usize {
        self.running.lock().len()
    }
}

impl Drop for HttpClient {
    fn drop(&mut self) {
        self.end();
    }
}
