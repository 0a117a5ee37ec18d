//! The server's side of the network: listening, HTTP by hyper, and the upgrade to WebSocket, after which the
//! connection leaves hyper for [`crate::connection`].

use crate::connection::{Connection, Handshake};
use crate::down::deliver;
use crate::endpoint::{Endpoint, Live, Phase, Seat};
use crate::inbox::Event;
use crate::request::{HttpRequest, HttpResponse, Responder};
use crate::router::{Found, Router};
use crate::runtime::{IoThread, panic_text};
use crate::settings::Origins;
use crate::transport::Transport;
use crate::wire::{self, Role, deflate};
use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::RwLock;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener, ToSocketAddrs};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;

/// Connections that the kernel completes before we accept them.
const BACKLOG: i32 = 4096;
/// After an accept failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where a server listens.
#[derive(Clone, Debug)]
pub struct Listen {
    /// Name or address.
    pub host: String,
    /// Port for http and ws; 0 lets the system choose one.
    pub port: u16,
    /// Port for https and wss, if any, with the certificate.
    pub tls: Option<(u16, Arc<ServerConfig>)>,
}

/// An address that cannot be listened on.
#[derive(Debug)]
pub struct ListenError {
    /// The port.
    pub port: u16,
    /// Why.
    pub error: io::Error,
}

/// A server's sockets and routes.
#[derive(Debug)]
pub struct Server {
    /// What it shares with its connections.
    pub endpoint: Arc<Endpoint>,
    /// Guards the routes while they are replaced by a longer list; read for one lookup.
    routes: Arc<RwLock<Arc<Router>>>,
    /// The addresses it listens on for http and ws.
    pub addresses: Vec<SocketAddr>,
    /// The addresses it listens on for https and wss.
    pub tls_addresses: Vec<SocketAddr>,
}

impl Server {
    /// Listens on every address of the host and begins to accept, on all ports or on none.
    ///
    /// # Errors
    /// When the name does not resolve or an address cannot be bound.
    pub fn start(endpoint: Arc<Endpoint>, router: Router, listen: Listen) -> Result<Self, ListenError> {
        let routes = Arc::new(RwLock::new(Arc::new(router)));
        let (listeners, addresses) = bind(&listen.host, listen.port)?;
        let mut all: Vec<_> = listeners.into_iter().map(|listener| (listener, None)).collect();
        let mut tls_addresses = Vec::new();
        if let Some((port, config)) = listen.tls {
            let (listeners, bound) = bind(&listen.host, port)?;
            tls_addresses = bound;
            let acceptor = TlsAcceptor::from(config);
            all.extend(listeners.into_iter().map(|listener| (listener, Some(acceptor.clone()))));
        }
        let first = &endpoint.runtime.threads[0];
        for (listener, tls) in all {
            let listener = {
                let _context = first.handle.enter();
                TcpListener::from_std(listener).map_err(|error| ListenError { port: listen.port, error })?
            };
            let shared = Shared { endpoint: Arc::clone(&endpoint), routes: Arc::clone(&routes), tls };
            guarded(first, &endpoint, accept(listener, shared));
        }
        Ok(Self { endpoint, routes, addresses, tls_addresses })
    }

    /// Replaces the routes; requests from now on see them.
    pub fn set_routes(&self, router: Router) {
        *self.routes.write() = Arc::new(router);
    }
}

/// What the connections of one listener share.
#[derive(Clone)]
struct Shared {
    endpoint: Arc<Endpoint>,
    routes: Arc<RwLock<Arc<Router>>>,
    tls: Option<TlsAcceptor>,
}

fn bind(host: &str, port: u16) -> Result<(Vec<StdListener>, Vec<SocketAddr>), ListenError> {
    let failed = |error| ListenError { port, error };
    let mut addresses: Vec<SocketAddr> = Vec::new();
    let mut listeners = Vec::new();
    for mut address in resolve(host, port).map_err(failed)? {
        if port == 0
            && let Some(first) = addresses.first()
        {
            // One port for all addresses of a name.
            address.set_port(first.port());
        }
        let listener = listen(address).map_err(failed)?;
        addresses.push(listener.local_addr().map_err(failed)?);
        listeners.push(listener);
    }
    Ok((listeners, addresses))
}

fn resolve(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let mut found: Vec<SocketAddr> = Vec::new();
    for address in (host, port).to_socket_addrs()? {
        if !found.contains(&address) {
            found.push(address);
        }
    }
    if found.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
    }
    Ok(found)
}

fn listen(address: SocketAddr) -> io::Result<StdListener> {
    let socket = socket2::Socket::new(
        socket2::Domain::for_address(address),
        socket2::Type::STREAM,
        Some(socket2::Protocol::TCP),
    )?;
    // On Unix: a restarted server may bind while old connections are in TIME_WAIT. On Windows the same option would
    // let two servers share the port.
    #[cfg(unix)]
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// A task whose panic surfaces from `tick()`.
struct Guarded {
    task: Pin<Box<dyn Future<Output = ()> + Send>>,
    io: Arc<IoThread>,
    live: Live,
}

impl Future for Guarded {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let task = &mut self.task;
        catch_unwind(AssertUnwindSafe(|| task.as_mut().poll(cx))).unwrap_or_else(|panic| {
            deliver(&self.io, &self.live.0, Event::Fault(panic_text(panic.as_ref())));
            Poll::Ready(())
        })
    }
}

/// Runs a task for an endpoint on an I/O thread.
pub(crate) fn guarded(io: &Arc<IoThread>, endpoint: &Arc<Endpoint>, task: impl Future<Output = ()> + Send + 'static) {
    let task = Guarded { task: Box::pin(task), io: Arc::clone(io), live: Live::new(endpoint) };
    io.handle.spawn(task);
}

async fn accept(listener: TcpListener, shared: Shared) {
    let endpoint = Arc::clone(&shared.endpoint);
    let first = Arc::clone(&endpoint.runtime.threads[0]);
    let mut phase = endpoint.phase();
    loop {
        let accepted = tokio::select! {
            // A program that does not tick has its queue bounded: further clients wait in the kernel's backlog.
            accepted = async {
                endpoint.inbox.has_room().await;
                listener.accept().await
            } => accepted,
            _ = phase.wait_for(|p| *p != Phase::Running) => return,
        };
        let (stream, remote) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // The client gone before we accepted it is no reason to pause; everything else is a want of ours.
                if error.kind() != io::ErrorKind::ConnectionAborted {
                    endpoint.complain(&first, "accept", || format!("cannot accept connections: {error}"));
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
                continue;
            }
        };
        let seat = match endpoint.seat(remote.ip()) {
            Ok(seat) => Arc::new(seat),
            Err(limit) => {
                endpoint.complain(&first, limit, || {
                    let value = match endpoint.settings.max_connections_per_address {
                        Some(value) if limit == "max_connections_per_address" => value,
                        _ => endpoint.settings.max_connections,
                    };
                    format!("connection of {remote} refused: the limit is {limit}={value}")
                });
                continue;
            }
        };
        // A tick's output leaves in one write: there is nothing for Nagle's algorithm to gather.
        let _ = stream.set_nodelay(true);
        let io = Arc::clone(endpoint.runtime.next_thread());
        let Some(stream) = moved(stream, &io, &first) else { continue };
        let task = serve(stream, remote, Arc::clone(&io), shared.clone(), seat);
        guarded(&io, &endpoint, task);
    }
}

/// Hands a socket to the I/O thread that will own it.
fn moved(stream: TcpStream, to: &Arc<IoThread>, from: &Arc<IoThread>) -> Option<TcpStream> {
    if Arc::ptr_eq(to, from) {
        return Some(stream);
    }
    let stream = stream.into_std().ok()?;
    let _context = to.handle.enter();
    TcpStream::from_std(stream).ok()
}

/// The first byte of a TLS connection: a handshake record (RFC 8446 section 5.1). No HTTP method begins with it.
const TLS_HANDSHAKE: u8 = 0x16;

/// Looks which protocol the client speaks, and does the TLS handshake. `None`: it is not ours to go on with.
async fn secured(stream: TcpStream, remote: SocketAddr, io: &Arc<IoThread>, shared: &Shared) -> Option<Transport> {
    let mut first = [0];
    if stream.peek(&mut first).await.ok()? == 0 {
        return None;
    }
    let speaks_tls = first[0] == TLS_HANDSHAKE;
    let endpoint = &shared.endpoint;
    match (&shared.tls, speaks_tls) {
        (None, false) => Some(Transport::Tcp(stream)),
        (Some(acceptor), true) => match acceptor.accept(stream).await {
            Ok(stream) => Some(Transport::Tls(Box::new(stream.into()))),
            Err(error) => {
                endpoint.complain(io, "tls handshake", || format!("TLS handshake of {remote} failed: {error}"));
                None
            }
        },
        (None, true) => {
            endpoint.complain(io, "tls on the plain port", || {
                format!("{remote} spoke TLS to a port for http and ws: https and wss need tls_port")
            });
            // Its TLS library reports this as a "wrong version number" or "packet length too long".
            refuse(stream, "This port speaks http and ws, not TLS.\n").await;
            None
        }
        (Some(_), false) => {
            endpoint.complain(io, "http on the tls port", || {
                format!("{remote} spoke plain HTTP to tls_port: use https or wss")
            });
            refuse(stream, "This port speaks TLS: use https or wss.\n").await;
            None
        }
    }
}

/// Answers 400 in plain HTTP and reads what the client sent, so that closing does not reset the connection before
/// the answer was read.
async fn refuse(mut stream: TcpStream, text: &str) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let length = text.len();
    let head = "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n";
    let answer = format!("{head}Content-Length: {length}\r\n\r\n{text}");
    if stream.write_all(answer.as_bytes()).await.is_err() || stream.shutdown().await.is_err() {
        return;
    }
    // Some kilobytes, not whatever a client cares to send.
    let mut rest = [0; 1024];
    for _ in 0..64 {
        match stream.read(&mut rest).await {
            Ok(n) if n > 0 => {}
            _ => return,
        }
    }
}

/// One connection for as long as it speaks HTTP.
async fn serve(stream: TcpStream, remote: SocketAddr, io: Arc<IoThread>, shared: Shared, seat: Arc<Seat>) {
    let mut phase = shared.endpoint.phase();
    let settings = &shared.endpoint.settings;
    let secured = tokio::time::timeout(settings.handshake_timeout, secured(stream, remote, &io, &shared));
    let transport = tokio::select! {
        secured = secured => match secured {
            Ok(Some(transport)) => transport,
            Ok(None) | Err(_) => return,
        },
        // Nothing was asked yet (a browser's spare connection): nothing is lost.
        _ = phase.wait_for(|p| *p != Phase::Running) => return,
    };
    let http2 = transport.speaks_http2();
    let begun = AtomicBool::new(false);
    let service = service_fn(|request| {
        begun.store(true, Ordering::Relaxed);
        let client = Client { remote, io: Arc::clone(&io), shared: shared.clone(), seat: Arc::clone(&seat) };
        async move { Ok::<_, Infallible>(answer(request, &client).await) }
    });
    if http2 {
        let mut builder = hyper::server::conn::http2::Builder::new(OnThisThread);
        builder.timer(TokioTimer::new()).max_header_list_size(limit(settings.max_header_size));
        let connection = builder.serve_connection(TokioIo::new(transport), service);
        drive(connection, phase, &begun, |connection| connection.graceful_shutdown()).await;
    } else {
        let mut builder = hyper::server::conn::http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            .header_read_timeout(settings.header_timeout)
            .max_buf_size(settings.max_header_size)
            .max_headers(settings.max_headers);
        let connection = builder.serve_connection(TokioIo::new(transport), service).with_upgrades();
        let ended = drive(connection, phase, &begun, |connection| connection.graceful_shutdown()).await;
        if let Some(Err(error)) = ended {
            blame(&error, remote, &io, &shared.endpoint);
        }
    }
}

/// Counts what hyper has refused on its own.
fn blame(error: &hyper::Error, remote: SocketAddr, io: &Arc<IoThread>, endpoint: &Arc<Endpoint>) {
    let settings = &endpoint.settings;
    if error.is_parse_too_large() {
        endpoint.complain(io, "max_header_size", || {
            format!(
                "request head of {remote} refused with 431: the limits are max_header_size={} and max_headers={}",
                settings.max_header_size, settings.max_headers
            )
        });
    } else if error.is_timeout() {
        endpoint.complain(io, "header_timeout", || {
            let limit = settings.header_timeout.as_secs_f64();
            format!("connection of {remote} closed: no request head within header_timeout={limit} s")
        });
    } else if error.is_parse() {
        endpoint.complain(io, "bad request", || format!("request of {remote} refused with 400: {error}"));
    }
}

fn limit(size: usize) -> u32 {
    u32::try_from(size).unwrap_or(u32::MAX)
}

/// HTTP/2 runs each request as a task, on the I/O thread that owns the connection.
#[derive(Clone, Copy)]
struct OnThisThread;

impl<F> hyper::rt::Executor<F> for OnThisThread
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, task: F) {
        tokio::spawn(task);
    }
}

/// Serves one connection until it ends or the server stops.
async fn drive<C: Future>(
    connection: C,
    mut phase: watch::Receiver<Phase>,
    begun: &AtomicBool,
    shut_down: impl Fn(Pin<&mut C>),
) -> Option<C::Output> {
    let mut connection = std::pin::pin!(connection);
    let mut stopping = false;
    loop {
        tokio::select! {
            // A client's fault ends its connection and is nobody else's business; hyper has answered 400 or 431.
            ended = connection.as_mut() => return Some(ended),
            changed = phase.wait_for(|p| *p == Phase::Aborting || (!stopping && *p == Phase::Stopping)) => {
                match changed.map(|p| *p) {
                    // Nothing was asked on it: hyper would wait for the first request.
                    Ok(Phase::Stopping) if !begun.load(Ordering::Relaxed) => return None,
                    Ok(Phase::Stopping) => {
                        stopping = true;
                        shut_down(connection.as_mut());
                    }
                    _ => return None,
                }
            }
        }
    }
}

fn plain(status: StatusCode, text: impl Into<String>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text.into())));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

fn with(mut response: Response<Full<Bytes>>, name: HeaderName, value: HeaderValue) -> Response<Full<Bytes>> {
    response.headers_mut().insert(name, value);
    response
}

fn closing(response: Response<Full<Bytes>>) -> Response<Full<Bytes>> {
    with(response, header::CONNECTION, HeaderValue::from_static("close"))
}

/// Who asks.
struct Client {
    remote: SocketAddr,
    io: Arc<IoThread>,
    shared: Shared,
    seat: Arc<Seat>,
}

async fn answer(request: Request<Incoming>, client: &Client) -> Response<Full<Bytes>> {
    let Client { remote, io, shared, .. } = client;
    let Shared { endpoint, routes, .. } = shared;
    let remote = *remote;
    if wire::handshake::is_upgrade(pairs(request.headers())) {
        return upgrade(request, client).await;
    }
    // RFC 9112 section 3.2: no Host, or more than one, is answered with 400. HTTP/2 has a pseudo-header instead.
    if request.version() == Version::HTTP_11 && request.headers().get_all(header::HOST).iter().count() != 1 {
        return closing(plain(StatusCode::BAD_REQUEST, "400 Bad Request: one Host header is required\n"));
    }
    let found = routes.read().find(request.method(), request.uri().path());
    let (route, params) = match found {
        Found::Route { route, params } => (route, params),
        Found::NotFound => return plain(StatusCode::NOT_FOUND, "404 Not Found\n"),
        Found::MethodNotAllowed(allow) => {
            let response = if request.method() == Method::OPTIONS {
                let mut response = Response::new(Full::default());
                *response.status_mut() = StatusCode::NO_CONTENT;
                response
            } else {
                plain(StatusCode::METHOD_NOT_ALLOWED, "405 Method Not Allowed\n")
            };
            // Method names are tokens, so they make a header value.
            let allow = HeaderValue::from_str(&allow).unwrap_or(HeaderValue::from_static(""));
            return with(response, header::ALLOW, allow);
        }
    };
    let (mut parts, body) = request.into_parts();
    // HTTP/2 sends the host as a pseudo-header (RFC 9113 section 8.3.1): a program finds it where HTTP/1.1 has it.
    if let Some(host) = parts.uri.authority().and_then(|a| HeaderValue::from_str(a.as_str()).ok())
        && !parts.headers.contains_key(header::HOST)
    {
        parts.headers.insert(header::HOST, host);
    }
    let limit = endpoint.settings.max_body_size;
    let too_large = || {
        endpoint.complain(io, "max_body_size", || {
            format!(
                "request body of {} {} from {remote} refused with 413: the limit is max_body_size={limit}",
                parts.method, parts.uri
            )
        });
        closing(plain(StatusCode::PAYLOAD_TOO_LARGE, "413 Content Too Large\n"))
    };
    // Announced too large: refused before a byte of it, and before "100 Continue", which hyper sends on the first read.
    if body.size_hint().lower() > u64::try_from(limit).unwrap_or(u64::MAX) {
        return too_large();
    }
    let collected = tokio::time::timeout(endpoint.settings.body_timeout, Limited::new(body, limit).collect()).await;
    let body = match collected {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => return too_large(),
        Ok(Err(_)) => return closing(plain(StatusCode::BAD_REQUEST, "400 Bad Request\n")),
        Err(_) => return closing(plain(StatusCode::REQUEST_TIMEOUT, "408 Request Timeout\n")),
    };
    let (responder, reply) = Responder::new(io);
    let url = target(&parts.uri);
    let request =
        HttpRequest { method: parts.method, url, headers: parts.headers, body, remote, route, params, responder };
    deliver(io, endpoint, Event::Request(Box::new(request)));
    answered(reply.await, endpoint)
}

/// The program's answer, or what stands in for it.
fn answered(
    answer: Result<HttpResponse, oneshot::error::RecvError>,
    endpoint: &Arc<Endpoint>,
) -> Response<Full<Bytes>> {
    match answer {
        Ok(HttpResponse { status, headers, body }) => {
            let mut response = Response::new(Full::new(body));
            *response.status_mut() = status;
            for (name, value) in headers {
                response.headers_mut().append(name, value);
            }
            response
        }
        // Dropped without an answer: the handler raised, or the server was stopped before it ran.
        Err(_) if endpoint.is_stopping() => {
            closing(plain(StatusCode::SERVICE_UNAVAILABLE, "503 Service Unavailable\n"))
        }
        Err(_) => plain(StatusCode::INTERNAL_SERVER_ERROR, "500 Internal Server Error\n"),
    }
}

fn target(uri: &http::Uri) -> String {
    uri.path_and_query().map_or_else(|| "/".to_owned(), |target| target.as_str().to_owned())
}

/// Headers as the wire crate takes them.
pub(crate) fn pairs(headers: &HeaderMap) -> impl Iterator<Item = (&str, &[u8])> {
    headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes()))
}

/// Headers as a channel keeps them; see [`Handshake::headers`].
pub(crate) fn packed(headers: &HeaderMap) -> Box<[u8]> {
    let mut packed = Vec::new();
    for (name, value) in pairs(headers) {
        packed.extend_from_slice(name.as_bytes());
        packed.extend_from_slice(b": ");
        packed.extend_from_slice(value);
        packed.push(b'\n');
    }
    packed.into()
}

/// Why a page's WebSocket is refused, if it is (RFC 6455 section 10.2). `None`: it may go on.
fn foreign_origin(headers: &HeaderMap, origins: &Origins) -> Option<String> {
    // No Origin: no browser, so no user who could be tricked.
    let origin = headers.get(header::ORIGIN)?;
    let origin = origin.to_str().unwrap_or("").to_ascii_lowercase();
    let allowed = match origins {
        Origins::Any => true,
        Origins::Listed(list) => list.contains(&origin),
        Origins::SameHost => {
            let host = headers.get(header::HOST).and_then(|h| h.to_str().ok()).unwrap_or("").to_ascii_lowercase();
            // The scheme is the page's: behind a proxy that ends TLS it is https while we see http.
            origin.split_once("://").is_some_and(|(_, authority)| authority == host)
        }
    };
    (!allowed).then_some(origin)
}

/// The first of our subprotocols that the client offers.
fn choose<'a>(ours: &'a [String], offered: &[String]) -> Option<&'a String> {
    ours.iter().find(|name| offered.contains(name))
}

async fn upgrade(mut request: Request<Incoming>, client: &Client) -> Response<Full<Bytes>> {
    let Client { remote, io, shared, seat } = client;
    let endpoint = &shared.endpoint;
    let settings = &endpoint.settings;
    let http11 = request.version() == Version::HTTP_11;
    let headers: Vec<_> = pairs(request.headers()).collect();
    let offer = match wire::handshake::check_request(request.method().as_str(), http11, headers.iter().copied()) {
        Ok(offer) => offer,
        Err(refusal) => return refused(&refusal),
    };
    if endpoint.is_stopping() {
        return closing(plain(StatusCode::SERVICE_UNAVAILABLE, "503 Service Unavailable\n"));
    }
    if let Some(origin) = foreign_origin(request.headers(), &settings.allowed_origins) {
        endpoint.complain(io, "allowed_origins", || {
            format!("WebSocket of {remote} refused with 403: its page's origin {origin:?} is not in allowed_origins")
        });
        return closing(plain(StatusCode::FORBIDDEN, "403 Forbidden: this origin may not connect\n"));
    }
    if !endpoint.may_upgrade() {
        endpoint.complain(io, "max_upgrades_per_second", || {
            let limit = settings.max_upgrades_per_second.unwrap_or_default();
            format!("WebSocket of {remote} refused with 503: the limit is max_upgrades_per_second={limit}")
        });
        let busy = closing(plain(StatusCode::SERVICE_UNAVAILABLE, "503 Service Unavailable\n"));
        return with(busy, header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    let mut subprotocol = choose(&settings.subprotocols, &offer.protocols).cloned();
    let mut extra = Vec::new();
    let (deflate, extensions) = match &settings.compression {
        None => (None, None),
        Some(config) => match deflate::accept_offer(wire::handshake::extensions(headers.iter().copied()), config) {
            Ok(agreed) => agreed.unzip(),
            Err(error) => return closing(plain(StatusCode::BAD_REQUEST, format!("{error}\n"))),
        },
    };
    if settings.ask_upgrade {
        let (responder, reply) = Responder::new(io);
        let question = HttpRequest {
            method: request.method().clone(),
            url: target(request.uri()),
            headers: request.headers().clone(),
            body: Bytes::new(),
            remote: *remote,
            route: 0,
            params: Vec::new(),
            responder,
        };
        deliver(io, endpoint, Event::Upgrade(Box::new(question)));
        let Ok(decision) = tokio::time::timeout(settings.upgrade_timeout, reply).await else {
            endpoint.complain(io, "upgrade_timeout", || {
                let limit = settings.upgrade_timeout.as_secs_f64();
                format!("WebSocket of {remote} refused with 503: on_ws_upgrade did not run within {limit} s")
            });
            return closing(plain(StatusCode::SERVICE_UNAVAILABLE, "503 Service Unavailable\n"));
        };
        match decision {
            Ok(accepted) if accepted.status == StatusCode::SWITCHING_PROTOCOLS => {
                for (name, value) in accepted.headers {
                    if name == header::SEC_WEBSOCKET_PROTOCOL {
                        subprotocol = value.to_str().ok().map(str::to_owned);
                    } else {
                        extra.push((name, value));
                    }
                }
            }
            other => return closing(answered(other, endpoint)),
        }
    }
    let handshake = Handshake {
        url: target(request.uri()),
        headers: packed(request.headers()),
        remote: Some(*remote),
        subprotocol: subprotocol.clone(),
        deflate,
    };
    let upgraded = hyper::upgrade::on(&mut request);
    let (io_here, endpoint_here, seat) = (Arc::clone(io), Arc::clone(endpoint), Arc::clone(seat));
    guarded(io, endpoint, async move {
        // An error: the client left before it had read the 101.
        let Ok(upgraded) = upgraded.await else { return };
        let Ok(parts) = upgraded.downcast::<TokioIo<Transport>>() else { return };
        let stream = parts.io.into_inner();
        let first = &parts.read_buf;
        Connection::open(&endpoint_here, &io_here, Role::Server, stream, handshake, first, Some(seat));
    });
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    for (name, value) in extra {
        headers.append(name, value);
    }
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    if let Ok(accept) = HeaderValue::from_str(&offer.accept) {
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
    if let Some(Ok(extensions)) = extensions.map(|answer| HeaderValue::from_str(&answer)) {
        headers.insert(header::SEC_WEBSOCKET_EXTENSIONS, extensions);
    }
    if let Some(Ok(name)) = subprotocol.map(|name| HeaderValue::from_str(&name)) {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, name);
    }
    response
}

/// The answer to a handshake that is none.
fn refused(refusal: &wire::handshake::Refusal) -> Response<Full<Bytes>> {
    let status = StatusCode::from_u16(refusal.status()).unwrap_or(StatusCode::BAD_REQUEST);
    let response = closing(plain(status, format!("{refusal}\n")));
    match status {
        // RFC 6455 section 4.4: tell which version would do.
        StatusCode::UPGRADE_REQUIRED => {
            let response = with(response, header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
            let response = with(response, header::UPGRADE, HeaderValue::from_static("websocket"));
            with(response, header::CONNECTION, HeaderValue::from_static("Upgrade, close"))
        }
        StatusCode::METHOD_NOT_ALLOWED => with(response, header::ALLOW, HeaderValue::from_static("GET")),
        _ => response,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inbox::Batch;
    use crate::settings::Settings;
    use std::time::Instant;

    #[test]
    fn a_panic_on_a_native_thread_becomes_an_event_and_the_task_is_over() {
        let endpoint = Endpoint::new(Settings::default(), None).unwrap();
        let io = Arc::clone(&endpoint.runtime.threads[0]);
        guarded(&io, &endpoint, async { panic!("on purpose") });
        let mut batch = Batch::default();
        let waited = endpoint.inbox.wait(Some(Instant::now() + Duration::from_secs(10))).unwrap();
        assert_eq!(waited, crate::wake::Waited::Ready);
        endpoint.take(&mut batch);
        assert!(matches!(&batch.events[..], [Event::Fault(text)] if text == "on purpose"), "{:?}", batch.events);
        let end = Instant::now() + Duration::from_secs(10);
        while !endpoint.is_idle() {
            assert!(Instant::now() < end, "the task is still counted");
            std::thread::yield_now();
        }
    }
}
