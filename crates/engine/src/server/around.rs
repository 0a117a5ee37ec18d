//! What stands around every answer, where the program has asked for it: CORS, compression, the access log.
//!
//! One value for the whole server, replaced as routes are. While nothing is asked for, a request costs one look at a flag.

use super::Shared;
use super::access::Access;
use super::compress::{Accepted, Compression};
use super::cors::{self, Cors};
use super::http::{Client, pairs};
use crate::body::Body;
use crate::proxy::Sender;
use crate::wire;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use parking_lot::RwLock;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What was asked for.
#[derive(Clone, Debug, Default)]
pub struct Around {
    /// Who may read answers from other origins.
    pub cors: Option<Arc<Cors>>,
    /// Whether and how contents are compressed.
    pub compression: Option<Arc<Compression>>,
    /// Whether requests are logged.
    pub access_log: bool,
}

/// The value in force.
#[derive(Debug, Default)]
pub(super) struct Current {
    /// Anything was asked for. Relaxed: a request that comes at the same time may see either.
    on: AtomicBool,
    /// Guards the value while it is replaced or looked up.
    around: RwLock<Arc<Around>>,
}

impl Current {
    pub(super) fn new(around: Around) -> Self {
        let current = Self::default();
        current.set(around);
        current
    }

    pub(super) fn set(&self, around: Around) {
        *self.around.write() = Arc::new(around);
        let around = self.around.read();
        let on = around.cors.is_some() || around.compression.is_some() || around.access_log;
        self.on.store(on, Ordering::Relaxed);
    }

    fn get(&self) -> Option<Arc<Around>> {
        self.on.load(Ordering::Relaxed).then(|| Arc::clone(&self.around.read()))
    }
}

/// One request, as far as its answer depends on it.
pub(super) struct Exchange {
    around: Arc<Around>,
    /// A WebSocket handshake: no page reads its answer, and `allowed_origins` says who may have one.
    handshake: bool,
    origin: Option<HeaderValue>,
    accepted: Option<Accepted>,
    access: Option<Access>,
}

impl Exchange {
    /// `None`: nothing was asked for.
    pub(super) fn begin(request: &Request<Incoming>, client: &Client) -> Option<Box<Self>> {
        let Shared { endpoint, around, .. } = &client.shared;
        let around = around.get()?;
        let headers = request.headers();
        let access = around.access_log.then(|| {
            let sender = client.sender(headers);
            Access::begin(request, sender, &client.io, endpoint)
        });
        Some(Box::new(Self {
            handshake: wire::handshake::is_upgrade(pairs(headers)),
            origin: headers.get(header::ORIGIN).cloned(),
            accepted: around.compression.as_ref().map(|compression| compression.negotiate(request)),
            access,
            around,
        }))
    }

    /// The answer, where it needs nobody else.
    pub(super) fn preflight(&self, request: &Request<Incoming>, client: &Client) -> Option<Response<Body>> {
        let cors = self.around.cors.as_ref()?;
        if !cors::is_preflight(request) {
            return None;
        }
        Some(cors.preflight(request, &client.shared).unwrap_or_else(|what| {
            client.shared.endpoint.complain(&client.io, "allow_cors", || {
                format!(
                    "preflight of {} for {} refused with 403: allow_cors does not have the {what}",
                    client.remote,
                    request.uri().path()
                )
            });
            cors::refused(&what)
        }))
    }

    /// Compresses the content and completes the head.
    pub(super) fn dress(&self, response: &mut Response<Body>) {
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return;
        }
        if let (Some(compression), Some(accepted)) = (&self.around.compression, &self.accepted) {
            compression.apply(accepted, response);
        }
        if let Some(cors) = self.around.cors.as_ref().filter(|_| !self.handshake) {
            cors.dress(self.origin.as_ref(), response.headers_mut());
        }
    }

    /// Has the request put on record when the content has been sent.
    pub(super) fn log(self, response: &mut Response<Body>) {
        if let Some(mut access) = self.access {
            access.answered(response.status());
            response.body_mut().log(access);
        }
    }
}

impl Client {
    /// Who has sent a request.
    pub(super) fn sender(&self, headers: &HeaderMap) -> Sender {
        let Shared { endpoint, tls, .. } = &self.shared;
        Sender::of(&endpoint.settings.trusted_proxies, self.remote, tls.is_some(), headers)
    }
}

/// Adds a name to Vary, unless it is there (RFC 9110 section 12.5.5).
pub(super) fn vary(headers: &mut HeaderMap, name: &'static str) {
    let there =
        headers.get_all(header::VARY).iter().filter_map(|value| value.to_str().ok()).any(|value| {
            value.split(',').map(str::trim).any(|listed| listed == "*" || listed.eq_ignore_ascii_case(name))
        });
    if !there {
        headers.append(header::VARY, HeaderValue::from_static(name));
    }
}
