//! The answer to whoever asks whether the server is well: a load balancer, a container's supervisor. Native, so that it
//! tells of a program that has stopped ticking.

use super::http::{plain, with};
use crate::body::Body;
use crate::endpoint::Endpoint;
use http::header::{self, HeaderValue};
use http::{Response, StatusCode};
use std::time::Duration;

pub(super) fn health(endpoint: &Endpoint, max_tick_age: Option<Duration>) -> Response<Body> {
    let age = endpoint.tick_age();
    let stalled = max_tick_age.is_some_and(|limit| age > limit);
    let (status, word) = match () {
        () if endpoint.is_stopping() => (StatusCode::SERVICE_UNAVAILABLE, "stopping"),
        () if stalled => (StatusCode::SERVICE_UNAVAILABLE, "stalled"),
        () => (StatusCode::OK, "ok"),
    };
    let (connections, websockets) = (endpoint.connections(), endpoint.channels());
    let age = age.as_secs_f64();
    let text = format!(
        "{{\"status\":\"{word}\",\"tick_age\":{age:.3},\"connections\":{connections},\"websockets\":{websockets}}}\n"
    );
    let response = with(plain(status, text), header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    with(response, header::CACHE_CONTROL, HeaderValue::from_static("no-store"))
}
