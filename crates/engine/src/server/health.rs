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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Settings;

    /// No test from outside meets it for sure: a server that stops takes no connections and ends those without a request.
    #[test]
    fn a_server_that_stops_says_so() {
        let endpoint = Endpoint::new(Settings::default(), None).unwrap();
        assert_eq!(health(&endpoint, None).status(), StatusCode::OK);
        endpoint.stop(1001);
        let response = health(&endpoint, None);
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        let text = response.into_body().whole().unwrap();
        assert!(text.starts_with(b"{\"status\":\"stopping\",\"tick_age\":0."), "{text:?}");
    }
}
