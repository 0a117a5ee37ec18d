//! One HTTP request: to the program's handler and back.

use super::activity::{Activity, InFlight};
use super::around::Exchange;
use super::clear::unclear;
use super::coding;
use super::content::{self, Unread};
use super::health::health;
use super::upgrade::upgrade;
use super::{Shared, Target};
use crate::body::Body;
use crate::down::deliver;
use crate::endpoint::{Endpoint, Seat};
use crate::files::{self, Asked};
use crate::inbox::Event;
use crate::request::{HttpRequest, HttpResponse, Responder};
use crate::router::Found;
use crate::runtime::IoThread;
use crate::stats;
use crate::wire;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode, Version};
use hyper::body::{Body as _, Incoming};
use parking_lot::Mutex;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::sync::oneshot;

pub(crate) fn plain(status: StatusCode, text: impl Into<Body>) -> Response<Body> {
    let mut response = Response::new(text.into());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

pub(crate) fn with(mut response: Response<Body>, name: HeaderName, value: HeaderValue) -> Response<Body> {
    response.headers_mut().insert(name, value);
    response
}

pub(super) fn closing(response: Response<Body>) -> Response<Body> {
    with(response, header::CONNECTION, HeaderValue::from_static("close"))
}

/// Who asks: one for all requests of a connection.
pub(super) struct Client {
    pub(super) remote: SocketAddr,
    pub(super) io: Arc<IoThread>,
    pub(super) shared: Shared,
    /// Until a WebSocket takes it. Locked for that.
    pub(super) seat: Mutex<Option<Seat>>,
}

pub(super) async fn answer(mut request: Request<Incoming>, client: &Client, in_flight: InFlight) -> Response<Body> {
    let http2 = request.version() == Version::HTTP_2;
    // hyper leaves the content out for HTTP/1 alone (RFC 9110 section 9.3.2).
    let bare = request.method() == Method::HEAD && http2;
    // Before anything is answered on the strength of it.
    let refusal = unclear(&mut request);
    let asked = stats::Asked::begin(client.shared.endpoint.stats.on(client.io.index));
    let exchange = Exchange::begin(&request, client);
    let mut response = match refusal.map(closing) {
        Some(response) => response,
        None => with_content(request, client, exchange.as_deref(), in_flight.activity()).await,
    };
    asked.answered(response.status());
    if let Some(exchange) = &exchange {
        exchange.dress(&mut response);
    }
    if client.shared.endpoint.is_draining() && !http2 && response.status() != StatusCode::SWITCHING_PROTOCOLS {
        response = closing(response);
    }
    if bare {
        if let Some(length) = response.body().size_hint().exact() {
            response.headers_mut().entry(header::CONTENT_LENGTH).or_insert(length.into());
        }
        *response.body_mut() = Body::default();
    }
    response.body_mut().hold(in_flight, http2);
    if let Some(exchange) = exchange {
        exchange.log(&mut response);
    }
    response
}

async fn with_content(
    request: Request<Incoming>,
    client: &Client,
    exchange: Option<&Exchange>,
    activity: &Activity,
) -> Response<Body> {
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
        // RFC 6455 section 4.1 has no content in it, and what would be it could as well be frames.
        if !request.body().is_end_stream() {
            return closing(plain(StatusCode::BAD_REQUEST, "400 Bad Request: a handshake has no content\n"));
        }
        return upgrade(request, client).await;
    }
    // RFC 9110 section 9.3.7: about the server as a whole.
    if request.method() == Method::OPTIONS && request.uri().path() == "*" {
        let mut response = Response::new(Body::default());
        *response.status_mut() = StatusCode::NO_CONTENT;
        return response;
    }
    if let Some(response) = exchange.and_then(|exchange| exchange.preflight(&request, client)) {
        return response;
    }
    let found = routes.read().find(request.method(), request.uri().path());
    let (target, params) = match found {
        Found::Route { target, params } => (target, params),
        Found::NotFound => return plain(StatusCode::NOT_FOUND, "404 Not Found\n"),
        Found::MethodNotAllowed(allow) => {
            let response = if request.method() == Method::OPTIONS {
                let mut response = Response::new(Body::default());
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
    match target {
        Target::Health(probe) => health(endpoint, probe),
        Target::Inside(inside) => inside.answer(&request, client),
        Target::Program(route) => by_program(request, client, activity, route, params).await,
        Target::Files(files, depth) => files::answer(files, depth, request, endpoint, io).await,
    }
}

/// Reads the content and asks the program.
async fn by_program(
    request: Request<Incoming>,
    client: &Client,
    activity: &Activity,
    route: usize,
    params: Vec<(Arc<str>, String)>,
) -> Response<Body> {
    let Client { remote, io, shared, .. } = client;
    let endpoint = &shared.endpoint;
    let settings = &endpoint.settings;
    let remote = *remote;
    let (parts, body) = request.into_parts();
    let content = match content::read(body, &parts.headers, endpoint).await {
        Ok(content) => content,
        Err(unread) => {
            activity.linger();
            let what = format_args!("request body of {} {} from {remote}", parts.method, parts.uri).to_string();
            return closing(refused(unread, &what, io, endpoint));
        }
    };
    let asked = Asked::of(&parts.method, &parts.headers);
    let (responder, reply) = Responder::new(io);
    let sender = client.sender(&parts.headers);
    let url = target(&parts.uri);
    // Of the request that is handed over, for the log, which hardly any request gets into.
    let (method, uri) = (parts.method.clone(), parts.uri);
    let what = || format!("{method} {} of {remote}", target(&uri));
    let trailed = content.trailed && parts.version != Version::HTTP_2;
    let request = HttpRequest {
        method: parts.method,
        url,
        headers: parts.headers,
        body: content.body,
        form: content.form,
        max_form_parts: settings.max_form_parts,
        version: parts.version,
        remote,
        sender,
        route,
        params,
        responder,
    };
    let answer = async {
        // While the program does not tick, requests wait here, where a reset or a close takes them away.
        endpoint.inbox.has_room().await;
        deliver(io, endpoint, Event::Request(Box::new(request)));
        reply.await
    };
    match tokio::time::timeout(settings.handler_timeout, answer).await {
        Ok(answer) => {
            if answer.is_err() && !endpoint.is_stopping() {
                endpoint.complain(io, "unanswered", || {
                    format!("{} answered with 500: its deferred response was dropped without an answer", what())
                });
            }
            let response = files::opened(answered(answer, endpoint), &asked, endpoint, io).await;
            if trailed { closing(response) } else { response }
        }
        Err(_) => {
            endpoint.complain(io, "handler_timeout", || {
                let limit = settings.handler_timeout.as_secs_f64();
                format!("{} answered with 503: no answer within handler_timeout={limit} s", what())
            });
            plain(StatusCode::SERVICE_UNAVAILABLE, "503 Service Unavailable\n")
        }
    }
}

/// The answer to a content that was not read.
fn refused(unread: Unread, what: &str, io: &Arc<IoThread>, endpoint: &Arc<Endpoint>) -> Response<Body> {
    match unread {
        Unread::TooLarge(name, limit) => {
            endpoint.complain(io, name, || format!("{what} refused with 413: the limit is {name}={limit}"));
            plain(StatusCode::PAYLOAD_TOO_LARGE, "413 Content Too Large\n")
        }
        Unread::Malformed => plain(StatusCode::BAD_REQUEST, "400 Bad Request\n"),
        Unread::Bad(why) => {
            endpoint.complain(io, "bad request", || format!("{what} refused with 400: {why}"));
            plain(StatusCode::BAD_REQUEST, format!("400 Bad Request: {why}\n"))
        }
        Unread::UnknownCoding => {
            let answer =
                plain(StatusCode::UNSUPPORTED_MEDIA_TYPE, "415 Unsupported Media Type: unknown Content-Encoding\n");
            // RFC 9110 section 15.5.16.
            with(answer, header::ACCEPT_ENCODING, coding::KNOWN)
        }
        Unread::TimedOut => {
            endpoint.complain(io, "body_timeout", || {
                let limit = endpoint.settings.body_timeout.as_secs_f64();
                format!("{what} refused with 408: not there within body_timeout={limit} s")
            });
            plain(StatusCode::REQUEST_TIMEOUT, "408 Request Timeout\n")
        }
        Unread::NotStored(error) => {
            endpoint.complain(io, "upload_dir", || format!("{what} answered with 500: cannot store a file: {error}"));
            plain(StatusCode::INTERNAL_SERVER_ERROR, "500 Internal Server Error\n")
        }
    }
}

/// The program's answer, or what stands in for it.
pub(super) fn answered(
    answer: Result<HttpResponse, oneshot::error::RecvError>,
    endpoint: &Arc<Endpoint>,
) -> Response<Body> {
    match answer {
        Ok(HttpResponse { status, headers, body }) => {
            let mut response = Response::new(body);
            *response.status_mut() = status;
            *response.headers_mut() = headers;
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
    // RFC 9110 section 4.2.3: an empty path is "/".
    match uri.path_and_query().map(http::uri::PathAndQuery::as_str) {
        Some(target) if target.starts_with('?') => format!("/{target}"),
        Some(target) => target.to_owned(),
        None => "/".to_owned(),
    }
}

/// Headers as the wire crate takes them.
pub(crate) fn pairs(headers: &HeaderMap) -> impl Iterator<Item = (&str, &[u8])> {
    headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes()))
}
