//! The answers to whoever asks whether the server is well and wants work: a load balancer, a container's supervisor. Native,
//! so that they tell of a program that has stopped ticking.
//!
//! | | live | ready |
//! |---|---|---|
//! | no tick yet | ok | starting |
//! | the last tick is too long ago | stalled | stalled |
//! | too many connections | ok | full |
//! | `drain` was called | draining, which is well | draining |
//! | `stop` was called | stopping | stopping |

use super::http::{plain, with};
use crate::body::Body;
use crate::endpoint::Endpoint;
use http::header::{self, HeaderValue};
use http::{Response, StatusCode};
use std::time::Duration;

/// A question.
#[derive(Clone, Copy, Debug)]
pub struct Probe {
    /// Whether it is for readiness; else whether the program lives.
    pub readiness: bool,
    /// The program counts as stalled when its last tick is older.
    pub max_tick_age: Option<Duration>,
    /// It is full from so many connections on.
    pub max_load: Option<Share>,
}

/// A part of `max_connections`.
#[derive(Clone, Copy, Debug)]
pub struct Share(pub f64);

impl Share {
    fn is_reached(self, endpoint: &Endpoint) -> bool {
        // The one that asks is a connection too, and does not count.
        endpoint.connections().saturating_sub(1) as f64 >= self.0 * endpoint.settings.max_connections as f64
    }
}

pub(super) fn health(endpoint: &Endpoint, probe: Probe) -> Response<Body> {
    let Probe { readiness, max_tick_age, max_load } = probe;
    let age = endpoint.tick_age();
    let well = if readiness { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    let (status, word) = match () {
        () if endpoint.is_stopping() => (StatusCode::SERVICE_UNAVAILABLE, "stopping"),
        () if max_tick_age.is_some_and(|limit| age > limit) => (StatusCode::SERVICE_UNAVAILABLE, "stalled"),
        () if endpoint.is_draining() => (well, "draining"),
        () if readiness && endpoint.ticks() == 0 => (well, "starting"),
        () if max_load.is_some_and(|share| share.is_reached(endpoint)) => (well, "full"),
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
    use crate::farewell::Farewell;
    use crate::settings::Settings;

    fn told(endpoint: &Endpoint, readiness: bool) -> (StatusCode, String) {
        let response = health(endpoint, Probe { readiness, max_tick_age: None, max_load: None });
        let (status, text) = (response.status(), response.into_body().whole().unwrap());
        let text = String::from_utf8(text.to_vec()).unwrap();
        (status, text.split('"').nth(3).unwrap().to_owned())
    }

    /// No test from outside meets the last for sure: a server that stops takes no connections and ends those without a
    /// request.
    #[test]
    fn a_life_from_start_to_stop() {
        const NO: StatusCode = StatusCode::SERVICE_UNAVAILABLE;
        const YES: StatusCode = StatusCode::OK;
        let endpoint = Endpoint::new(Settings::default(), None).unwrap();
        let both = |live: (StatusCode, &str), ready: (StatusCode, &str)| {
            assert_eq!(told(&endpoint, false), (live.0, live.1.to_owned()));
            assert_eq!(told(&endpoint, true), (ready.0, ready.1.to_owned()));
        };
        both((YES, "ok"), (NO, "starting"));
        endpoint.note_tick();
        both((YES, "ok"), (YES, "ok"));
        endpoint.drain(true);
        both((YES, "draining"), (NO, "draining"));
        endpoint.drain(false);
        both((YES, "draining"), (NO, "draining"));
        endpoint.stop(Farewell { code: 1001, reason: String::new(), spread: Duration::ZERO });
        both((NO, "stopping"), (NO, "stopping"));
        endpoint.drain(true);
        both((NO, "stopping"), (NO, "stopping"));
    }
}
