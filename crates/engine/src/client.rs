//! The client's side: resolve, connect, the opening handshake by hyper, then [`crate::connection`].

use crate::connection::{Connection, Handshake};
use crate::down::deliver;
use crate::endpoint::{Endpoint, Phase};
use crate::inbox::Event;
use crate::runtime::IoThread;
use crate::server::http::pairs;
use crate::task::guarded;
use crate::transport::Transport;
use crate::wire::{self, Role};
use bytes::Bytes;
use http::{HeaderValue, Request, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{self, ClientConfig};

/// Where to connect to and what to ask for; checked by the caller.
#[derive(Clone, Debug)]
pub struct Target {
    /// The URL as the program gave it.
    pub url: String,
    /// Name or address, without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
    /// Value of the Host header.
    pub authority: String,
    /// Path and query.
    pub path: String,
    /// Further headers.
    pub headers: Vec<(header::HeaderName, header::HeaderValue)>,
    /// Subprotocols offered, in order of preference.
    pub protocols: Vec<String>,
    /// For wss: whom to trust.
    pub tls: Option<Arc<ClientConfig>>,
}

/// Why there is no connection.
#[derive(Debug)]
pub enum ConnectError {
    /// The name does not resolve.
    Resolve(String, io::Error),
    /// No address took the connection.
    Connect(SocketAddr, io::Error),
    /// TLS failed: the certificate, usually.
    Tls {
        /// What was wrong.
        text: String,
        /// The connection broke meanwhile.
        broken: bool,
    },
    /// `open_timeout` passed.
    TimedOut(String),
    /// Somebody answered, but not as a WebSocket server.
    Handshake {
        /// The status, if the answer was HTTP.
        status: Option<u16>,
        /// What was wrong.
        text: String,
        /// The connection broke before there was an answer.
        broken: bool,
        /// How long the answer asks to wait before another attempt (RFC 9110 section 10.2.3).
        retry_after: Option<Duration>,
    },
    /// `close()` while connecting.
    Cancelled,
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Resolve(host, error) => write!(f, "cannot resolve {host}: {error}"),
            Self::Connect(address, error) => write!(f, "cannot connect to {address}: {error}"),
            Self::Tls { text, .. } | Self::TimedOut(text) | Self::Handshake { text, .. } => f.write_str(text),
            Self::Cancelled => f.write_str("closed while connecting"),
        }
    }
}

impl std::error::Error for ConnectError {}

/// A connection attempt under way; dropped or [`Attempt::cancel`]led it ends.
#[derive(Debug)]
pub struct Attempt(watch::Sender<bool>);

impl Attempt {
    /// Gives up; the endpoint gets [`ConnectError::Cancelled`] unless the attempt has ended already.
    pub fn cancel(&self) {
        self.0.send_replace(true);
    }

    /// Whether [`Attempt::cancel`] was called; it may have come too late for the I/O thread to notice.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        *self.0.borrow()
    }
}

/// Begins to connect after `delay`; the endpoint gets `Event::Open` or `Event::ConnectFailed`.
#[must_use]
pub fn connect(endpoint: &Arc<Endpoint>, target: Arc<Target>, delay: Duration) -> Attempt {
    let io = Arc::clone(endpoint.runtime.next_thread());
    let (cancel, mut cancelled) = watch::channel(false);
    let endpoint_here = Arc::clone(endpoint);
    guarded(&Arc::clone(&io), endpoint, async move {
        let endpoint = endpoint_here;
        let limit = endpoint.settings.open_timeout;
        let mut phase = endpoint.phase();
        let attempt = async {
            if !delay.is_zero() {
                tokio::time::sleep(delay).await;
            }
            tokio::time::timeout(limit, open(&io, &endpoint, &target)).await.unwrap_or_else(|_| {
                let text = format!("{} did not answer within open_timeout={} s", target.url, limit.as_secs_f64());
                Err(ConnectError::TimedOut(text))
            })
        };
        let opened = tokio::select! {
            opened = attempt => opened,
            // An error means that the attempt was dropped with its owner.
            _ = cancelled.wait_for(|c| *c) => Err(ConnectError::Cancelled),
            _ = phase.wait_for(|p| *p == Phase::Aborting) => Err(ConnectError::Cancelled),
        };
        match opened {
            Ok((stream, handshake, first)) => {
                Connection::open(&endpoint, &io, Role::Client, stream, handshake, &first, None);
            }
            Err(error) => deliver(&io, &endpoint, Event::ConnectFailed(Box::new(error))),
        }
    });
    Attempt(cancel)
}

async fn open(
    io: &Arc<IoThread>,
    endpoint: &Arc<Endpoint>,
    target: &Target,
) -> Result<(Transport, Handshake, Bytes), ConnectError> {
    let stream = connect_tcp(target).await?;
    let _ = stream.set_nodelay(true);
    let remote = stream.peer_addr().ok();
    let stream = match &target.tls {
        None => Transport::Tcp(stream),
        Some(config) => {
            let tls = |error: &dyn fmt::Display, broken| ConnectError::Tls {
                text: format!("TLS with {} failed: {error}", target.url),
                broken,
            };
            let name = ServerName::try_from(target.host.clone()).map_err(|error| tls(&error, false))?;
            let stream = TlsConnector::from(Arc::clone(config)).connect(name, stream).await;
            Transport::Tls(Box::new(stream.map_err(|error| tls(&explained(&error), is_of_network(&error)))?.into()))
        }
    };
    let failed = |error: &dyn fmt::Display, broken| ConnectError::Handshake {
        status: None,
        text: format!("{} is not a WebSocket server: {error}", target.url),
        broken,
        retry_after: None,
    };
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .max_buf_size(endpoint.settings.max_header_size)
        .handshake::<_, Empty<Bytes>>(TokioIo::new(stream))
        .await
        .map_err(|error| failed(&error, true))?;
    guarded(io, endpoint, async move {
        // Its error is reported by the request below.
        let _ = connection.with_upgrades().await;
    });

    let key = wire::handshake::encode_key(rand::random());
    let mut request = Request::get(&target.path)
        .header(header::HOST, &target.authority)
        .header(header::UPGRADE, "websocket")
        .header(header::CONNECTION, "Upgrade")
        .header(header::SEC_WEBSOCKET_KEY, &key)
        .header(header::SEC_WEBSOCKET_VERSION, "13");
    let compression = endpoint.settings.compression.as_ref();
    if let Some(config) = compression {
        request = request.header(header::SEC_WEBSOCKET_EXTENSIONS, wire::deflate::offer(config));
    }
    if !target.protocols.is_empty() {
        request = request.header(header::SEC_WEBSOCKET_PROTOCOL, target.protocols.join(", "));
    }
    for (name, value) in &target.headers {
        request = request.header(name, value);
    }
    let request = request.body(Empty::new()).map_err(|error| failed(&error, false))?;
    let answered = sender.send_request(request).await;
    let mut response = answered.map_err(|error| failed(&error, !error.is_parse()))?;
    let status = response.status().as_u16();
    let pairs: Vec<_> = pairs(response.headers()).collect();
    let accepted =
        wire::handshake::check_response_with(status, pairs.iter().copied(), &key, &target.protocols, compression);
    let accepted = match accepted {
        Ok(accepted) => accepted,
        Err(rejected) => {
            let retry_after = response.headers().get(header::RETRY_AFTER).and_then(retry_after);
            let said = if status == 101 { String::new() } else { said(response.into_body()).await };
            let text = format!("{} refused the WebSocket handshake: {rejected}{said}", target.url);
            return Err(ConnectError::Handshake { status: Some(status), text, broken: false, retry_after });
        }
    };
    let mut handshake = Handshake::new(&target.url, accepted.protocol.as_deref(), &pairs);
    handshake.remote = remote;
    handshake.deflate = accepted.deflate;
    let upgraded = hyper::upgrade::on(&mut response).await.map_err(|error| failed(&error, true))?;
    let parts = upgraded.downcast::<TokioIo<Transport>>().map_err(|_| failed(&"the connection was lost", true))?;
    Ok((parts.io.into_inner(), handshake, parts.read_buf))
}

/// What a server said that refused the handshake, if it is short and text: the reason, often.
async fn said(body: hyper::body::Incoming) -> String {
    let Ok(body) = Limited::new(body, 1024).collect().await else { return String::new() };
    let body = body.to_bytes();
    let text = std::str::from_utf8(&body).unwrap_or_default().trim();
    if text.is_empty() || text.len() > 200 || text.contains('<') || text.contains(|c: char| c.is_control()) {
        return String::new();
    }
    format!(" ({text})")
}

/// Seconds or a date (RFC 9110 section 10.2.3).
fn retry_after(value: &HeaderValue) -> Option<Duration> {
    let text = value.to_str().ok()?;
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    httpdate::parse_http_date(text).ok()?.duration_since(SystemTime::now()).ok()
}

/// Whether a TLS handshake failed because the connection broke, and not over what was said.
fn is_of_network(error: &io::Error) -> bool {
    !error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>())
}

/// rustls' word, with what is probably meant where that is not what the user did.
fn explained(error: &io::Error) -> String {
    let text = error.to_string();
    if text.contains("InvalidContentType") {
        return "the server does not speak TLS on this port (is it a ws:// URL?)".to_owned();
    }
    text
}

/// Tries the addresses of the host one after the other.
async fn connect_tcp(target: &Target) -> Result<TcpStream, ConnectError> {
    let resolve = |error| ConnectError::Resolve(target.host.clone(), error);
    let addresses = tokio::net::lookup_host((target.host.as_str(), target.port)).await.map_err(resolve)?;
    let mut last = None;
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = Some(ConnectError::Connect(address, error)),
        }
    }
    Err(last.unwrap_or_else(|| resolve(io::Error::new(io::ErrorKind::NotFound, "the name has no address"))))
}
