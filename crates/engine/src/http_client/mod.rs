//! The HTTP client, on reqwest: what it is made with, and the task of one request.
//!
//! reqwest connects, speaks HTTP/1.1 and HTTP/2, follows redirects, keeps connections, decompresses and knows proxies.
//! Here is what joins it to an endpoint: its tasks run on an I/O thread, and what they see becomes events in the inbox.
//! What comes for one request: `Chunk`s, events of a stream, then `Done` or `Failed` once. Nothing after its
//! [`Running`] was dropped, except what was in the inbox already, which the one who drains it passes over.
//!
//! * [`request`]: what is asked for; [`error`]: why there is no response; `cookies`: the jars;
//! * [`sse`]: the parser of server-sent events; `event_source`: streams that connect again.

mod cookies;
pub mod error;
mod event_source;
pub mod request;
pub mod sse;

use crate::down::deliver;
use crate::endpoint::{Endpoint, Phase};
use crate::inbox::Event;
use crate::runtime::{self, IoThread};
use crate::task::guarded;
use crate::tls::{TlsError, Trust, client_config};
use bytes::Bytes;
use cookies::{Cookies, Jar};
use error::{ErrorKind, HttpError, Limits, TooManyRedirects, shown};
use http::{HeaderMap, HeaderValue, StatusCode, Version, header};
use parking_lot::Mutex;
use request::{Delivery, Reconnect, Request};
use reqwest::{Response, Url};
use sse::{Parser, SseEvent};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use tokio_rustls::rustls::ClientConfig;

/// How long a connection is kept for the next request: longer than most servers keep theirs would only meet closed ones.
/// 15 s as in aiohttp; nginx has 75 s, Apache 5 s, and a closed one is noticed at once in any case.
const KEEP_IDLE: Duration = Duration::from_secs(15);
/// Capacity that a body is given for the length announced, before anything of it has come.
const TRUSTED_LENGTH: u64 = 1 << 20;

/// No limit, for a timer: thirty years.
const FOREVER: Duration = Duration::from_secs(1_000_000_000);

/// Through which proxy requests go.
#[derive(Clone, Debug)]
pub enum ProxyChoice {
    /// As HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY say, or the system's settings.
    System,
    /// None.
    Direct,
    /// This one: http, https, socks5 or socks5h.
    Url(String),
}

/// What a client is made with.
#[derive(Clone, Debug)]
pub struct ClientSettings {
    /// Whom to trust.
    pub trust: Trust,
    /// For resolving, connecting and TLS together; `None`: no limit but the system's.
    pub connect_timeout: Option<Duration>,
    /// Through which proxy.
    pub proxy: ProxyChoice,
    /// Whether to ask for compressed bodies, and decompress them.
    pub decompress: bool,
    /// Whether to offer HTTP/2 in the TLS handshake.
    pub http2: bool,
    /// Whether cookies are kept for later requests.
    pub cookies: bool,
    /// Value of the User-Agent header, unless a request has one.
    pub user_agent: HeaderValue,
}

/// Why there is no client.
#[derive(Debug)]
pub enum SettingsError {
    /// A certificate will not do.
    Tls(TlsError),
    /// The proxy's URL will not do.
    Proxy(String),
    /// Anything else.
    Other(String),
}

/// The head of a response.
#[derive(Debug)]
pub struct Head {
    /// The status.
    pub status: StatusCode,
    /// The reason phrase: the server's own, else the status' usual one.
    pub reason: Vec<u8>,
    /// The headers.
    pub headers: HeaderMap,
    /// The URL that answered, after redirects.
    pub url: String,
    /// The URLs that redirected, in order.
    pub history: Vec<String>,
    /// The cookies that this response sets.
    pub cookies: Vec<(String, String)>,
    /// The version spoken.
    pub version: Version,
    /// From the beginning of the request to now.
    pub elapsed: Duration,
}

/// What happened to a request.
#[derive(Debug)]
pub struct HttpEvent {
    /// The number that the program gave it.
    pub request: u64,
    /// What.
    pub what: What,
}

/// What happened to a request; the last two are the end, exactly one of them.
#[derive(Debug)]
pub enum What {
    /// The head, of a response whose body comes in pieces.
    Head(Box<Head>),
    /// A piece of the body.
    Chunk(Bytes),
    /// An event source is connected.
    Open,
    /// A server-sent event.
    Event(SseEvent),
    /// An event source has lost its connection, and connects again.
    Reconnecting(Box<HttpError>),
    /// The response, with its body unless that came in pieces.
    Done(Box<Head>, Vec<u8>),
    /// There is none.
    Failed(Box<HttpError>),
}

impl HttpEvent {
    /// Bytes that it holds.
    pub(crate) fn size(&self) -> usize {
        match &self.what {
            What::Chunk(data) => data.len(),
            What::Event(event) => event.data.len() + event.event.len() + event.id.len(),
            What::Done(_, body) => body.len(),
            _ => 0,
        }
    }
}

tokio::task_local! {
    /// The request whose task runs: reqwest's redirect policy and cookie store are the client's, and are told of the
    /// URL alone.
    static CALL: Arc<Call>;
}

#[derive(Debug)]
struct Call {
    redirects: usize,
    /// Guards the list for one look or change.
    history: Mutex<Vec<String>>,
    jar: Arc<Jar>,
}

/// A client: connections that are kept, cookies, TLS. All its requests run on one I/O thread.
#[derive(Debug)]
pub struct Client {
    inner: reqwest::Client,
    endpoint: Arc<Endpoint>,
    io: Arc<IoThread>,
    connect_timeout: Option<Duration>,
}

/// A request under way; dropped it ends, and no event of it is put into the inbox any more.
#[derive(Debug)]
pub struct Running {
    _cancel: oneshot::Sender<()>,
}

/// TLS for the system's authorities, made once for each process: reading them takes milliseconds, and its sessions can be
/// resumed by later clients. The number is [`runtime::forks`]: in a child its locks may be held by nobody.
static SYSTEM_TLS: Mutex<Option<(u32, Arc<ClientConfig>)>> = Mutex::new(None);

fn tls(trust: &Trust) -> Result<Arc<ClientConfig>, TlsError> {
    if trust.ca_file.is_some() || trust.fingerprint.is_some() || trust.anybody || trust.identity.is_some() {
        return client_config(trust);
    }
    let mut slot = SYSTEM_TLS.lock();
    match &*slot {
        Some((forks, config)) if *forks == runtime::forks() => Ok(Arc::clone(config)),
        _ => {
            let config = client_config(trust)?;
            std::mem::forget(slot.replace((runtime::forks(), Arc::clone(&config))));
            Ok(config)
        }
    }
}

impl Client {
    /// Makes a client whose events go to `endpoint`. Reads certificates; connects nowhere.
    ///
    /// # Errors
    /// When a certificate or the proxy will not do.
    pub fn new(endpoint: &Arc<Endpoint>, settings: &ClientSettings) -> Result<Self, SettingsError> {
        let mut config = ClientConfig::clone(&*tls(&settings.trust).map_err(SettingsError::Tls)?);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        if settings.http2 {
            config.alpn_protocols.insert(0, b"h2".to_vec());
        }
        let cookies = Cookies { jar: settings.cookies.then(Jar::default) };
        let on = settings.decompress;
        let mut builder = reqwest::Client::builder()
            .tls_backend_preconfigured(config)
            .user_agent(&settings.user_agent)
            // It would tell the next server what the last one was asked for.
            .referer(false)
            .redirect(reqwest::redirect::Policy::custom(redirect))
            .cookie_provider(Arc::new(cookies))
            .pool_idle_timeout(KEEP_IDLE)
            .gzip(on)
            .brotli(on)
            .zstd(on);
        if let Some(limit) = settings.connect_timeout {
            builder = builder.connect_timeout(limit);
        }
        if !settings.http2 {
            builder = builder.http1_only();
        }
        match &settings.proxy {
            ProxyChoice::System => {}
            ProxyChoice::Direct => builder = builder.no_proxy(),
            ProxyChoice::Url(url) => {
                let proxy = reqwest::Proxy::all(url).map_err(|e| SettingsError::Proxy(e.to_string()))?;
                builder = builder.proxy(proxy);
            }
        }
        let inner = builder.build().map_err(|error| SettingsError::Other(error.to_string()))?;
        let io = Arc::clone(endpoint.runtime.next_thread());
        Ok(Self { inner, endpoint: Arc::clone(endpoint), io, connect_timeout: settings.connect_timeout })
    }

    /// Sends a request. `number`: for its events.
    #[must_use]
    pub fn start(&self, number: u64, request: Request, delivery: Delivery) -> Running {
        self.spawn(number, request, |job, request| async move {
            let done = match job.limits.timeout {
                // A stream of events has no end to wait for: there the time is for the head, see `Job::send`.
                Some(limit) if !matches!(delivery, Delivery::Events(..)) => {
                    tokio::time::timeout(limit, job.run(request, delivery))
                        .await
                        .unwrap_or_else(|_| Err(HttpError::timeout(&job.url, &job.limits)))
                }
                _ => job.run(request, delivery).await,
            };
            match done {
                Ok((head, body)) => What::Done(head, body),
                Err(error) => What::Failed(Box::new(error)),
            }
        })
    }

    /// Opens a stream of events that connects again when it ends.
    #[must_use]
    pub fn start_event_source(&self, number: u64, request: Request, reconnect: Reconnect) -> Running {
        self.spawn(number, request, |job, request| async move {
            What::Failed(Box::new(event_source::run(&job, request, reconnect).await))
        })
    }

    fn spawn<F>(&self, number: u64, request: Request, run: impl FnOnce(Arc<Job>, reqwest::Request) -> F) -> Running
    where
        F: Future<Output = What> + Send + 'static,
    {
        let Request { inner, url, jar, timeout, redirects } = request;
        let limits = Limits { connect_timeout: self.connect_timeout, timeout, redirects };
        let job = Arc::new(Job {
            client: self.inner.clone(),
            endpoint: Arc::clone(&self.endpoint),
            io: Arc::clone(&self.io),
            number,
            url,
            limits,
            started: Instant::now(),
        });
        let call = Arc::new(Call { redirects, history: Mutex::default(), jar });
        let work = CALL.scope(call, run(Arc::clone(&job), inner));
        let (cancel, cancelled) = oneshot::channel();
        let mut phase = self.endpoint.phase();
        guarded(&self.io, &self.endpoint, async move {
            let mut unfinished = Unfinished(Some(job));
            let end = tokio::select! {
                biased;
                // Never sent: an error means that `Running` was dropped.
                _ = cancelled => None,
                _ = phase.wait_for(|phase| *phase == Phase::Aborting) => None,
                end = work => Some(end),
            };
            if let (Some(job), Some(end)) = (unfinished.0.take(), end) {
                job.deliver(end);
            }
        });
        Running { _cancel: cancel }
    }
}

/// A request that a panic ends has failed like any other: whoever waits for it must hear of it.
struct Unfinished(Option<Arc<Job>>);

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(job) = self.0.take() {
            let text = |url: &str| format!("the request for {url} ended by a bug in pyHV");
            job.deliver(What::Failed(Box::new(HttpError::new(ErrorKind::Lost, &job.url, text))));
        }
    }
}

fn redirect(attempt: reqwest::redirect::Attempt<'_>) -> reqwest::redirect::Action {
    let Ok(call) = CALL.try_with(Arc::clone) else { return attempt.stop() };
    if call.redirects == 0 {
        return attempt.stop();
    }
    // The first of the previous ones is the URL that was asked, no redirect.
    if attempt.previous().len() > call.redirects {
        return attempt.error(TooManyRedirects);
    }
    *call.history.lock() = attempt.previous().iter().map(shown).collect();
    attempt.follow()
}

/// One request, as its task sees it.
#[derive(Debug)]
struct Job {
    client: reqwest::Client,
    endpoint: Arc<Endpoint>,
    io: Arc<IoThread>,
    number: u64,
    url: Url,
    limits: Limits,
    started: Instant,
}

impl Job {
    fn deliver(&self, what: What) {
        deliver(&self.io, &self.endpoint, Event::Http(Box::new(HttpEvent { request: self.number, what })));
    }

    fn error(&self, error: &reqwest::Error) -> HttpError {
        HttpError::from_reqwest(error, &self.url, &self.limits)
    }

    fn head(&self, response: &Response) -> Box<Head> {
        let reason = response.extensions().get::<hyper::ext::ReasonPhrase>().map(|r| r.as_bytes().to_vec());
        let usual = || response.status().canonical_reason().unwrap_or_default().as_bytes().to_vec();
        Box::new(Head {
            status: response.status(),
            reason: reason.unwrap_or_else(usual),
            headers: response.headers().clone(),
            url: shown(response.url()),
            history: CALL.try_with(|call| call.history.lock().clone()).unwrap_or_default(),
            cookies: response.cookies().map(|c| (c.name().to_owned(), c.value().to_owned())).collect(),
            version: response.version(),
            elapsed: self.started.elapsed(),
        })
    }

    /// Sends, and waits for the head of the response; within the timeout, for streams that outlive it.
    async fn send(&self, request: reqwest::Request) -> Result<Response, HttpError> {
        // A stream that connects again begins anew.
        let _ = CALL.try_with(|call| call.history.lock().clear());
        let sent = async { self.client.execute(request).await.map_err(|error| self.error(&error)) };
        match self.limits.timeout {
            Some(limit) => tokio::time::timeout(limit, sent)
                .await
                .unwrap_or_else(|_| Err(HttpError::timeout(&self.url, &self.limits))),
            None => sent.await,
        }
    }

    /// The next piece of the body, when the program has taken enough of what came before.
    async fn chunk(&self, response: &mut Response) -> Result<Option<Bytes>, HttpError> {
        self.endpoint.inbox.has_room().await;
        response.chunk().await.map_err(|error| self.error(&error))
    }

    async fn run(&self, request: reqwest::Request, delivery: Delivery) -> Result<(Box<Head>, Vec<u8>), HttpError> {
        let mut response = self.send(request).await?;
        let mut head = self.head(&response);
        let mut body = Vec::new();
        match delivery {
            Delivery::Chunks => {
                // Twice, so that whoever decodes the pieces knows their charset.
                self.deliver(What::Head(self.head(&response)));
                while let Some(data) = self.chunk(&mut response).await? {
                    self.deliver(What::Chunk(data));
                }
            }
            Delivery::Events(limit, _) if is_event_stream(&response) => {
                let mut parser = Parser::new(limit, "".into());
                while let Some(data) = self.chunk(&mut response).await? {
                    self.events(&mut parser, limit, &data).await?;
                }
            }
            Delivery::Whole(limit) => body = self.body(&mut response, limit).await?,
            Delivery::Events(_, limit) => {
                let late = self.limits.timeout.map_or(FOREVER, |limit| limit.saturating_sub(self.started.elapsed()));
                body = tokio::time::timeout(late, self.body(&mut response, limit))
                    .await
                    .unwrap_or_else(|_| Err(HttpError::timeout(&self.url, &self.limits)))?;
            }
        }
        head.elapsed = self.started.elapsed();
        Ok((head, body))
    }

    async fn body(&self, response: &mut Response, limit: Option<usize>) -> Result<Vec<u8>, HttpError> {
        let limit = limit.unwrap_or(usize::MAX);
        let url = response.url().clone();
        let too_large = || {
            HttpError::new(ErrorKind::TooLarge, &url, |url| {
                format!("the response of {url} is larger than max_response_size={limit} bytes")
            })
        };
        let announced = response.content_length().unwrap_or(0);
        if announced > limit as u64 {
            return Err(too_large());
        }
        let mut body = Vec::with_capacity(usize::try_from(announced.min(TRUSTED_LENGTH)).unwrap_or(0));
        while let Some(data) = self.chunk(response).await? {
            if data.len() > limit - body.len() {
                return Err(too_large());
            }
            body.extend_from_slice(&data);
        }
        Ok(body)
    }

    /// Delivers the events that end within `data`.
    async fn events(&self, parser: &mut Parser, limit: usize, mut data: &[u8]) -> Result<(), HttpError> {
        let too_large = |_| {
            HttpError::new(ErrorKind::TooLarge, &self.url, |url| {
                format!("an event of {url} is larger than max_event_size={limit} bytes")
            })
        };
        while let Some(event) = parser.next(&mut data).map_err(too_large)? {
            // Before each: the events of one piece can be larger than it, by an ID that they share.
            self.endpoint.inbox.has_room().await;
            self.deliver(What::Event(event));
        }
        Ok(())
    }
}

/// Status 200 and the content type of the standard (section 9.2.2), whatever its parameters.
fn is_event_stream(response: &Response) -> bool {
    let kind = response.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = kind.split(';').next().unwrap_or_default().trim();
    response.status() == StatusCode::OK && essence.eq_ignore_ascii_case("text/event-stream")
}
