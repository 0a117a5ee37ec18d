//! The WebSocket handshake (RFC 6455 section 4.2): who may have one, and on what terms.

use super::activity::Watched;
use super::http::{Client, answered, closing, pairs, plain, target, with};
use crate::body::Body;
use crate::connection::{Connection, Handshake};
use crate::down::deliver;
use crate::inbox::Event;
use crate::request::{HttpRequest, Responder};
use crate::settings::Origins;
use crate::task::guarded;
use crate::wire::{self, Role, deflate};
use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use std::sync::Arc;

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

pub(super) async fn upgrade(mut request: Request<Incoming>, client: &Client) -> Response<Body> {
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
    let sender = client.sender(request.headers());
    let mut subprotocol = choose(&settings.subprotocols, &offer.protocols).cloned();
    let mut extra = HeaderMap::new();
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
            form: None,
            max_form_parts: 0,
            version: request.version(),
            remote: *remote,
            sender,
            route: 0,
            params: Vec::new(),
            responder,
        };
        let asked = async {
            endpoint.inbox.has_room().await;
            deliver(io, endpoint, Event::Upgrade(Box::new(question)));
            reply.await
        };
        let Ok(decision) = tokio::time::timeout(settings.upgrade_timeout, asked).await else {
            endpoint.complain(io, "upgrade_timeout", || {
                let limit = settings.upgrade_timeout.as_secs_f64();
                format!(
                    "WebSocket of {remote} refused with 503: on_ws_upgrade did not run within upgrade_timeout={limit} s"
                )
            });
            return closing(plain(StatusCode::SERVICE_UNAVAILABLE, "503 Service Unavailable\n"));
        };
        match decision {
            Ok(accepted) if accepted.status == StatusCode::SWITCHING_PROTOCOLS => {
                extra = accepted.headers;
                if let Some(chosen) = extra.remove(header::SEC_WEBSOCKET_PROTOCOL) {
                    subprotocol = chosen.to_str().ok().map(str::to_owned);
                }
            }
            other => return closing(answered(other, endpoint)),
        }
    }
    let mut handshake = Handshake::new(&target(request.uri()), subprotocol.as_deref(), &headers);
    handshake.remote = Some(*remote);
    handshake.sender = Some(sender);
    handshake.deflate = deflate;
    let upgraded = hyper::upgrade::on(&mut request);
    let (io_here, endpoint_here, seat) = (Arc::clone(io), Arc::clone(endpoint), seat.lock().take());
    guarded(io, endpoint, async move {
        // An error: the client left before it had read the 101.
        let Ok(upgraded) = upgraded.await else { return };
        let Ok(parts) = upgraded.downcast::<Watched>() else { return };
        let stream = parts.io.into_inner();
        let first = &parts.read_buf;
        Connection::open(&endpoint_here, &io_here, Role::Server, stream, handshake, first, seat);
    });
    let mut response = Response::new(Body::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    *headers = extra;
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
fn refused(refusal: &wire::handshake::Refusal) -> Response<Body> {
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
