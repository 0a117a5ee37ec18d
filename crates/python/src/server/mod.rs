//! `Server`: the native base of `HvWebServer`.

mod dispatch;

use crate::around;
use crate::backplane;
use crate::channel::WebSocketChannel;
use crate::convert::{self, CloseCode, KeyArgument};
use crate::handler::{Handler, Handlers};
use crate::latest::{Keys, ServerKeys};
use crate::request::header;
use crate::sockets::Where;
use crate::stats;
use crate::stopping::{self, GOING_AWAY, Leave, Stopping};
use crate::ticker::{Budget, Ticker, callback_failed, check_process};
use crate::topics;
use parking_lot::Mutex;
use pyhv_engine::backplane::Joined;
use pyhv_engine::down::Cork;
use pyhv_engine::endpoint::Endpoint;
use pyhv_engine::files::{Files, Options};
use pyhv_engine::server::around::Around;
use pyhv_engine::server::{self as engine, Routes, Target};
use pyhv_engine::stats::Snapshot;
use pyhv_engine::tls::server_config;
use pyhv_engine::wake::Wake;
use pyhv_engine::wire::{MessageKind, Opcode};
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyTuple};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The native base of HvWebServer.
#[pyclass(frozen, subclass, weakref, module = "pyhv._native")]
pub(crate) struct Server {
    pub(crate) ticker: Ticker,
    /// Guards the running server while it is looked up or replaced.
    pub(crate) run: Mutex<Option<Arc<engine::Server>>>,
    /// Guards the routes while one is added.
    router: Mutex<Routes>,
    /// Guards what is done around answers while a part of it is replaced.
    around: Mutex<Around>,
    pub(crate) handlers: Handlers,
    /// What topics keep.
    kept: topics::Kept,
    /// What joins this run to other processes. Guards it while it is looked up or replaced.
    joined: Mutex<Option<Joined>>,
    /// What `start(latest=...)` was given.
    latest: Mutex<Option<Py<PyAny>>>,
    /// By number. Guards the list while it is read or changed; no Python code runs under it.
    pub(crate) channels: Mutex<Vec<Option<Py<WebSocketChannel>>>>,
    /// The descriptor, once handed out, outlives a run.
    wake: Mutex<Option<Arc<Wake>>>,
    pub(crate) stopping: Stopping,
    /// What the last run had counted when it ended.
    pub(crate) last: Mutex<Snapshot>,
    started_once: AtomicBool,
}

impl Server {
    pub(crate) fn running(&self) -> Option<Arc<engine::Server>> {
        self.run.lock().clone()
    }

    fn change_around(&self, change: impl FnOnce(&mut Around)) {
        let mut around = self.around.lock();
        change(&mut around);
        if let Some(server) = self.running() {
            server.set_around(around.clone());
        }
    }

    pub(crate) fn channel(&self, py: Python<'_>, number: u32) -> Option<Py<WebSocketChannel>> {
        let channels = self.channels.lock();
        channels.get(number as usize)?.as_ref().map(|channel| channel.clone_ref(py))
    }

    pub(crate) fn run_pending(slf: &Bound<'_, Self>, endpoint: &Arc<Endpoint>, budget: Budget) -> PyResult<usize> {
        let _cork = Cork::new();
        let function = slf.get().latest.lock().as_ref().map(|function| function.clone_ref(slf.py()));
        let keys = function.map(|function| ServerKeys { server: slf, function });
        let keys = keys.as_ref().map(|keys| keys as &dyn Keys);
        let run = |event, arena: &[u8]| Self::dispatch(slf, endpoint, event, arena);
        slf.get().ticker.run(slf.py(), endpoint, budget, keys, run)
    }
}

#[pymethods]
impl Server {
    /// Made here, so that a subclass need not call `super().__init__()`.
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self {
            ticker: Ticker::default(),
            run: Mutex::new(None),
            router: Mutex::new(Routes::default()),
            around: Mutex::default(),
            handlers: Handlers::default(),
            kept: topics::Kept::default(),
            joined: Mutex::new(None),
            latest: Mutex::new(None),
            channels: Mutex::new(Vec::new()),
            wake: Mutex::new(None),
            stopping: Stopping::default(),
            last: Mutex::default(),
            started_once: AtomicBool::new(false),
        }
    }

    /// Takes whatever the program's own `__init__` takes.
    #[pyo3(signature = (*_args, **_kwargs))]
    fn __init__(&self, _args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) {}

    /// The function of `start(latest=...)`.
    fn _set_latest(&self, function: Option<Py<PyAny>>) {
        let before = std::mem::replace(&mut *self.latest.lock(), function);
        // Dropped without the lock: it may run Python code.
        drop(before);
    }

    /// Listens. port: or descriptors of sockets; tls: the same with certificate file and key file; joins: what `backplane=` and
    /// its settings are.
    #[pyo3(signature = (host, port, tls, reuse_port, options, joins=None))]
    fn _start(
        &self,
        host: &str,
        port: Where,
        tls: Option<(Where, PathBuf, PathBuf)>,
        reuse_port: bool,
        options: &Bound<'_, PyDict>,
        joins: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<()> {
        let py = options.py();
        let place = port.place("port", host, reuse_port)?;
        if let Some(server) = self.running() {
            check_process(&server.endpoint, "server")?;
            let address = server.addresses[0];
            return Err(PyRuntimeError::new_err(format!("the server runs already, on {address}: stop() it first")));
        }
        let settings = convert::settings(options)?;
        let joins = joins.map(backplane::config).transpose()?.flatten();
        let wake = self.wake.lock().clone();
        let router = self.router.lock().clone();
        let around = self.around.lock().clone();
        let tls = tls.map(|(port, cert, key)| Ok::<_, PyErr>((port.place("tls_port", host, reuse_port)?, cert, key)));
        let tls = tls.transpose()?;
        let server = py.detach(|| {
            let endpoint = Endpoint::new(settings, wake).map_err(PyErr::from)?;
            let tls = match tls {
                None => None,
                Some((place, certfile, keyfile)) => {
                    let report = endpoint.reporter("certificate");
                    Some((place, server_config(&certfile, &keyfile, report).map_err(|e| convert::tls_error(&e))?))
                }
            };
            let listen = engine::Listen { place, tls };
            engine::Server::start(endpoint, router, around, listen).map_err(|e| convert::listen_error(&e))
        })?;
        server.endpoint.topics.set_rules(self.kept.rules());
        *self.joined.lock() = joins.map(|config| Joined::start(&server.endpoint, config));
        self.stopping.take_request();
        self.started_once.store(true, Ordering::Relaxed);
        *self.run.lock() = Some(Arc::new(server));
        Ok(())
    }

    /// Adds a route. method: None for any; answer: "response", "sse" or "stream"; comments: seconds between comments of
    /// a quiet event stream, None for none.
    #[pyo3(signature = (method, pattern, handler, answer="response", comments=None))]
    fn _add_route(
        &self,
        method: Option<&str>,
        pattern: &str,
        handler: Py<PyAny>,
        answer: &str,
        comments: Option<f64>,
    ) -> PyResult<()> {
        let handler = Handler::new(handler, answer, comments)?;
        let mut router = self.router.lock();
        let number = self.handlers.next();
        router
            .add(method, pattern, Target::Program(number))
            .map_err(|error| PyValueError::new_err(error.to_string()))?;
        // Before a request can be routed to it.
        self.handlers.add(handler);
        let router = router.clone();
        if let Some(server) = self.running() {
            server.set_routes(router);
        }
        Ok(())
    }

    /// Adds the route of `enable_healthz`, or `enable_readyz`. max_tick_age: seconds, None for no limit; max_load: a part of
    /// `max_connections`.
    fn _enable_health(
        &self,
        path: &str,
        readiness: bool,
        max_tick_age: Option<f64>,
        max_load: Option<f64>,
    ) -> PyResult<()> {
        let target = Target::Health(around::probe(readiness, max_tick_age, max_load)?);
        let mut router = self.router.lock();
        router.add(Some("GET"), path, target).map_err(|error| PyValueError::new_err(error.to_string()))?;
        if let Some(server) = self.running() {
            server.set_routes(router.clone());
        }
        Ok(())
    }

    /// What `stats()` is made of. Any thread.
    fn _stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let snapshot = py.detach(|| match self.running() {
            Some(server) if server.endpoint.is_of_this_process() => server.endpoint.snapshot(),
            _ => self.last.lock().clone(),
        });
        stats::dict(py, &snapshot)
    }

    /// Adds the routes of `enable_metrics` (what: "metrics") or `enable_dashboard` ("dashboard"), all or none.
    fn _show_inside(&self, what: &str, path: &str, allow: &Bound<'_, PyAny>) -> PyResult<()> {
        let mut router = self.router.lock();
        let mut changed = router.clone();
        for (path, inside) in stats::inside(what, path, allow)? {
            changed
                .add(Some("GET"), &path, Target::Inside(Arc::new(inside)))
                .map_err(|error| PyValueError::new_err(error.to_string()))?;
        }
        *router = changed.clone();
        if let Some(server) = self.running() {
            server.set_routes(changed);
        }
        Ok(())
    }

    /// Adds a tree of files. directory: absolute, and there.
    #[expect(clippy::too_many_arguments, reason = "the settings of `HvWebServer.static`")]
    #[pyo3(signature = (
        prefix, directory, *, home_page, listing, error_page, cache_control, precompressed, hidden, follow_symlinks
    ))]
    fn _add_static(
        &self,
        prefix: &str,
        directory: PathBuf,
        home_page: Option<String>,
        listing: bool,
        error_page: Option<String>,
        cache_control: Option<&str>,
        precompressed: bool,
        hidden: bool,
        follow_symlinks: bool,
    ) -> PyResult<()> {
        let cache_control = cache_control.map(|value| header("Cache-Control", value)).transpose()?;
        let cache_control = cache_control.map(|(_, value)| value);
        let options = Options { home_page, listing, error_page, cache_control, precompressed, hidden, follow_symlinks };
        let files = Files::new(directory, options).map_err(PyValueError::new_err)?;
        let mut router = self.router.lock();
        router
            .mount(prefix, |depth| Target::Files(Arc::new(files), depth))
            .map_err(|error| PyValueError::new_err(error.to_string()))?;
        let router = router.clone();
        if let Some(server) = self.running() {
            server.set_routes(router);
        }
        Ok(())
    }

    /// Who may read answers from other origins; lists that are None stand for everything.
    fn _allow_cors(
        &self,
        origins: Option<Vec<String>>,
        methods: Option<Vec<String>>,
        headers: Option<Vec<String>>,
        expose_headers: Vec<String>,
        credentials: bool,
        max_age: f64,
    ) -> PyResult<()> {
        let cors = around::cors(origins, methods, headers, &expose_headers, credentials, max_age)?;
        self.change_around(|around| around.cors = Some(Arc::new(cors)));
        Ok(())
    }

    /// Whether and how contents are compressed.
    fn _compress_responses(&self, min_size: i64, codings: Vec<String>, level: Option<i64>) -> PyResult<()> {
        let compression = around::compression(min_size, &codings, level)?;
        self.change_around(|around| around.compression = Some(Arc::new(compression)));
        Ok(())
    }

    /// From here on each finished request comes to `_on_access`.
    fn _enable_access_log(&self) {
        self.change_around(|around| around.access_log = true);
    }

    /// Runs the callbacks of everything that has happened since the last tick, then `on_tick`.
    ///
    /// timeout: seconds to wait if nothing has happened yet; 0 (the default) does not wait, None waits without end.
    /// Ctrl-C ends the wait with KeyboardInterrupt.
    ///
    /// max_ms, max_events: how much this tick may do, in milliseconds and in events; None (the default): all that is
    /// pending when it begins. It runs one event at least, and looks at the clock between two. What is left over waits for
    /// the next tick, together with what has come until then: the channels take turns, one event each, in the order of
    /// each, so that one that floods delays itself.
    ///
    /// Returns the number of events. Exceptions of callbacks are logged and passed to `on_error`;
    /// KeyboardInterrupt and SystemExit leave the tick, and what was not yet run is run by the next. Raises
    /// RuntimeError inside a callback of the same server, while another thread is inside `tick()`, before `start()`,
    /// and in a child process. After `stop()` it returns 0 at once.
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
        let turn = this.ticker.enter(py, "tick()")?;
        let Some(server) = this.running() else {
            if this.started_once.load(Ordering::Relaxed) {
                return Ok(0);
            }
            return Err(PyRuntimeError::new_err("tick() before start(): the server does not run"));
        };
        let endpoint = &server.endpoint;
        check_process(endpoint, "server")?;
        endpoint.note_tick();
        let deadline = convert::deadline(timeout)?;
        let ran = (|| {
            this.ticker.wait_if(timeout != Some(0.0), py, endpoint, deadline, || this.stopping.is_requested())?;
            let _cork = Cork::new();
            let (mut ran, mut delivery) = (0, None);
            if this.ticker.is_ready(endpoint) {
                let delivery = delivery.insert(endpoint.delivery());
                ran = Self::run_pending(slf, endpoint, budget)?;
                delivery.ran(ran);
            }
            if let Err(error) = slf.call_method0(intern!(py, "on_tick")) {
                callback_failed(slf, "on_tick", error)?;
            }
            drop(delivery);
            Ok(ran)
        })();
        // Also when an exception leaves the tick: whoever asked is waiting.
        if let Some(leave) = this.stopping.take_request() {
            stopping::stop_now(slf, leave)?;
        }
        drop(turn);
        ran
    }

    /// Stops gracefully: accepts nothing more, closes every channel behind what was sent, runs the last callbacks,
    /// `on_ws_close` of every channel among them, and returns when all is done.
    ///
    /// timeout: seconds after which connections that have not finished are dropped; 0 drops them at once. code, reason: of
    /// the close frames, for the clients to know what to do: 1001, "going away", and 1012, "service restart", let them
    /// come again; the reason has 123 bytes of UTF-8 at most. spread: seconds of the timeout over which the channels are
    /// closed, and event streams, one after the other, so that thousands of clients do not come back at the same moment.
    ///
    /// Runs callbacks on the calling thread and blocks up to the timeout. Called inside a callback it takes effect
    /// when the tick ends; called while another thread is inside `tick()`, that thread stops the server at the end
    /// of its tick, and this call waits for it; TimeoutError when a callback keeps it from doing so. Does nothing when
    /// the server does not run.
    #[pyo3(
        signature = (timeout=5.0, *, code=CloseCode(GOING_AWAY), reason="", spread=0.0),
        text_signature = "($self, timeout=5.0, *, code=1001, reason='', spread=0.0)"
    )]
    fn stop(slf: &Bound<'_, Self>, timeout: f64, code: CloseCode, reason: &str, spread: f64) -> PyResult<()> {
        stopping::stop(slf, Leave::new(timeout, &code, reason, spread)?)
    }

    /// Prepares for `stop()`, and returns at once: `readyz` answers 503 from here on, so that a load balancer sends no more
    /// clients; each HTTP connection ends behind its next answer (`Connection: close`, in HTTP/2 GOAWAY); all else goes on.
    ///
    /// accept: False also stops accepting and closes the sockets that it listens on. Sockets that were given to
    /// `start(sockets=...)` stay open for others, and what has connected and was not accepted waits for them.
    ///
    /// Keep ticking until the clients are gone or have had their time, then call `stop()`. Wakes a `tick()` that waits.
    /// Does nothing when the server does not run. Any thread; never blocks.
    #[pyo3(signature = (*, accept=true))]
    fn drain(&self, accept: bool) -> PyResult<()> {
        if let Some(server) = self.running() {
            check_process(&server.endpoint, "server")?;
            server.endpoint.drain(accept);
        }
        Ok(())
    }

    /// How many connections there are, of all kinds.
    fn _connections(&self) -> usize {
        self.running().map_or(0, |server| server.endpoint.connections())
    }

    /// Whether `drain()` was called since `start()`.
    #[getter]
    fn is_draining(&self) -> bool {
        self.running().is_some_and(|server| server.endpoint.is_draining())
    }

    /// How many events wait for a tick: what a budget left over, and what has come since. Any thread; never blocks.
    ///
    /// Inside a callback: without those that this tick may still run.
    #[getter]
    fn pending(&self) -> usize {
        self.running().map_or(0, |server| self.ticker.pending(&server.endpoint))
    }

    /// A descriptor that is readable while events are pending, for select, poll and the loops built on them.
    ///
    /// The same for the life of the object. Any thread; never blocks.
    fn fileno(&self) -> PyResult<i64> {
        let mut wake = self.wake.lock();
        let made = match (&*wake, self.running()) {
            (Some(wake), _) => Arc::clone(wake),
            (None, Some(server)) => server.endpoint.inbox.export(self.ticker.has_leftover())?,
            (None, None) => Arc::new(Wake::new()?),
        };
        let raw = made.raw();
        *wake = Some(made);
        Ok(raw)
    }

    /// Sends a message to every open channel.
    ///
    /// msg: str is sent as a text message, bytes-like as a binary one. exclude: a channel that does not get it. Channels
    /// whose `on_ws_open` has not run yet do not get it either. key: a str or bytes; on each channel the message takes the
    /// place of one with an equal key that has not left yet, broadcast or sent, as with `WebSocketChannel.send`. Raises
    /// TypeError for another type of message or key.
    ///
    /// The message is encoded once and fanned out by the native thread: the cost to the caller does not depend on the
    /// number of channels. Any thread; never blocks.
    #[pyo3(signature = (msg, exclude=None, *, key=None))]
    fn broadcast(
        &self,
        msg: &Bound<'_, PyAny>,
        exclude: Option<&Bound<'_, WebSocketChannel>>,
        key: Option<KeyArgument>,
    ) -> PyResult<()> {
        convert::with_payload(msg, |kind, payload| {
            let Some(server) = self.running() else { return Ok(()) };
            check_process(&server.endpoint, "server")?;
            let opcode = match kind {
                MessageKind::Text => Opcode::Text,
                MessageKind::Binary => Opcode::Binary,
            };
            let excluded = exclude.map(|channel| &channel.get().conn);
            // A channel of another server or of an earlier run has a number that means somebody else here.
            let excluded = excluded.filter(|conn| Arc::ptr_eq(conn.endpoint(), &server.endpoint));
            let key = key.as_ref().map(|KeyArgument(key)| key);
            server.endpoint.broadcast(opcode, payload, excluded.map(|conn| conn.channel()), key);
            Ok(())
        })
    }

    /// Sends a message to every subscriber of a topic.
    ///
    /// topic: its name, without wildcards. msg: str is sent as a text message, bytes-like as a binary one. exclude: a channel
    /// that does not get it. key: str or bytes; for a channel the message takes the place of one published to this topic with an
    /// equal key that has not left yet, as with `WebSocketChannel.send`; history keeps both. Returns the message's position, which
    /// says where to resume (`channel.subscribe`). With a backplane that is "" for a topic that keeps messages: the engine gives it
    /// a place later. None: it was not published, because the server does not run, or `backplane_overflow="refuse"` has refused
    /// it. Raises ValueError for a name that will not do, TypeError for another type of message or key.
    ///
    /// The message is encoded once and fanned out by the native thread: the cost to the caller does not depend on the
    /// number of subscribers. Any thread; never blocks. Channels get it in the order of all that is sent to them.
    #[pyo3(signature = (topic, msg, exclude=None, *, key=None))]
    fn publish(
        &self,
        topic: &str,
        msg: &Bound<'_, PyAny>,
        exclude: Option<&Bound<'_, WebSocketChannel>>,
        key: Option<KeyArgument>,
    ) -> PyResult<Option<String>> {
        topics::publish(self, topic, msg, exclude, key.as_ref())
    }

    /// The channels, and writers of event streams, that get what is published to a topic, as a new list. Any thread.
    fn subscribers<'py>(&self, py: Python<'py>, topic: &str) -> PyResult<Bound<'py, PyList>> {
        topics::subscribers(py, self, topic)
    }

    /// How many there are. Any thread.
    fn subscriber_count(&self, topic: &str) -> usize {
        self.running().map_or(0, |server| server.endpoint.topics.count(topic))
    }

    /// How it stands with the engine of `start(backplane=...)`: "connecting" at first, "connected" when this process hears and
    /// is heard, "lost" while the engine is away; None without one, and while the server does not run. Any thread; never blocks.
    #[getter]
    fn backplane_state(&self) -> Option<&'static str> {
        self.running()?;
        self.joined.lock().as_ref().map(|joined| joined.state().name())
    }

    /// How many publishes of this run found `backplane_buffer` full: thrown away, or refused. Any thread; never blocks.
    #[getter]
    fn backplane_dropped(&self) -> u64 {
        self.joined.lock().as_ref().map_or(0, Joined::dropped)
    }

    /// The members of a topic as JSON, in the order in which they came.
    fn _members(&self, topic: &str) -> Vec<String> {
        let members = self.running().map(|server| server.endpoint.topics.members(topic)).unwrap_or_default();
        members.iter().map(|member| member.to_string()).collect()
    }

    /// What a topic keeps; without limits: nothing.
    #[pyo3(signature = (topic, limits=None))]
    fn _keep(&self, topic: &str, limits: Option<(usize, Option<f64>, usize)>) -> PyResult<()> {
        let keep = limits.map(|(messages, seconds, bytes)| topics::keep(messages, seconds, bytes)).transpose()?;
        self.kept.set(topic, keep, self.running().as_ref().map(|server| &*server.endpoint))
    }

    /// The channels between their `on_ws_open` and their `on_ws_close`, as a new list. Any thread.
    #[getter]
    fn channels<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let channels: Vec<_> = self.channels.lock().iter().flatten().map(|c| c.clone_ref(py)).collect();
        PyList::new(py, channels)
    }

    /// The streamed responses that are open, as a new list, the oldest first. Any thread.
    #[getter]
    fn streams<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        PyList::new(py, self.handlers.streams(py))
    }

    /// How often each limit was reached, and each kind of fault seen, since `start`: a dict of counts by the name of the
    /// setting or fault. Any thread.
    #[getter]
    fn refusals<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let dict = PyDict::new(py);
        if let Some(server) = self.running() {
            for (kind, count) in server.endpoint.complaints() {
                dict.set_item(kind, count)?;
            }
        }
        Ok(dict)
    }

    /// Whether the server listens.
    #[getter]
    fn is_running(&self) -> bool {
        self.running().is_some_and(|server| server.endpoint.is_of_this_process())
    }

    /// The port it listens on; None when it does not.
    #[getter]
    fn port(&self) -> Option<u16> {
        self.running().map(|server| server.addresses[0].port())
    }

    /// The port it listens on for https and wss; None when it does not.
    #[getter]
    fn tls_port(&self) -> Option<u16> {
        self.running().and_then(|server| server.tls_addresses.first().map(std::net::SocketAddr::port))
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        // Locked elsewhere means in use, so alive: nothing to find here this time.
        if let Some(channels) = self.channels.try_lock() {
            for channel in channels.iter().flatten() {
                visit.call(channel)?;
            }
        }
        if let Some(latest) = self.latest.try_lock()
            && let Some(function) = &*latest
        {
            visit.call(function)?;
        }
        self.handlers.traverse(&visit)
    }

    fn __clear__(&self) {
        let channels = std::mem::take(&mut *self.channels.lock());
        drop(channels);
        self._set_latest(None);
        self.handlers.clear();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(server) = self.run.lock().take() {
            if server.endpoint.is_of_this_process() {
                server.endpoint.discard();
            } else {
                // After fork() its locks may be held by threads that are not here.
                std::mem::forget(server);
            }
        }
    }
}
