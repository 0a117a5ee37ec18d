//! One HTTP request: to the program's handler and back.

use super::Shared;
use super::upgrade::upgrade;
use crate::down::deliver;
use crate::endpoint::{Endpoint, Seat};
use crate::inbox::Event;
use crate::request::{HttpRequest, HttpResponse, Responder};
use crate::router::Found;
use crate::runtime::IoThread;
use crate::wire;
use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body, Incoming};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::sync::oneshot;

pub(super) fn plain(status: StatusCode, text: impl Into<String>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text.into())));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

pub(super) fn with(mut response: Response<Full<Bytes>>, name: HeaderName, value: HeaderValue) -> Response<Full<Bytes>> {
    response.headers_mut().insert(name, value);
    response
}

pub(super) fn closing(response: Response<Full<Bytes>>) -> Response<Full<Bytes>> {
    with(response, header::CONNECTION, HeaderValue::from_static("close"))
}

/// Who asks.
pub(super) struct Client {
    pub(super) remote: SocketAddr,
    pub(super) io: Arc<IoThread>,
    pub(super) shared: Shared,
    pub(super) seat: Arc<Seat>,
}

pub(super) async fn answer(request: Request<Incoming>, client: &Client) -> Response<Full<Bytes>> {
    // hyper leaves the content out for HTTP/1 alone (RFC 9110 section 9.3.2).
    let bare = request.method() == Method::HEAD && request.version() == Version::HTTP_2;
    let mut response = with_content(request, client).await;
    if bare {
        let length = response.body().size_hint().lower();
        response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
        *response.body_mut() = Full::default();
    }
    response
}

async fn with_content(request: Request<Incoming>, client: &Client) -> Response<Full<Bytes>> {
    let Client { remote, io, shared, .. } = client;
    let Shared { endpoint, routes, .. } = shared;
    let remote = *remote;
    let limit = endpoint.settings.max_headers;
    if request.headers().len() > limit {
        endpoint.complain(io, "max_headers", || {
            format!("request head of {remote} refused with 431: the limit is max_headers={limit}")
        });
        return closing(plain(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "431 Request Header Fields Too Large\n"));
    }
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
pub(super) fn answered(
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

pub(super) fn target(uri: &http::Uri) -> String {
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
