//! Which pages of other origins may read what the server answers: CORS, as the WHATWG Fetch standard has it.
//!
//! Our own instead of tower-http's `CorsLayer`: that one takes every OPTIONS request for a preflight, tells each origin
//! what others may do, wraps a service that is fixed once built, and knows no routes.

use super::around::vary;
use super::http::plain;
use super::{Routes, Shared};
use crate::body::Body;
use crate::router::Found;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode};

/// Who may do what.
#[derive(Clone, Debug)]
pub struct Cors {
    /// Origins in lower case, without the default port; `None`: all.
    pub origins: Option<Vec<String>>,
    /// Methods; `None`: those that the path has routes for.
    pub methods: Option<Vec<Method>>,
    /// Request headers; `None`: all.
    pub headers: Option<Vec<HeaderName>>,
    /// Response headers that a page may see, as the value of the header that says so.
    pub exposed: Option<HeaderValue>,
    /// Pages may send cookies and the like. Only with listed origins.
    pub credentials: bool,
    /// Seconds for which a browser may keep the answer to a preflight.
    pub max_age: u64,
}

const STAR: HeaderValue = HeaderValue::from_static("*");

/// Whether a request asks what another one may do (Fetch section 3.3.2).
pub(super) fn is_preflight<B>(request: &Request<B>) -> bool {
    request.method() == Method::OPTIONS
        && request.headers().contains_key(header::ORIGIN)
        && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

impl Cors {
    /// The value of Access-Control-Allow-Origin, if the origin may.
    fn allowed(&self, origin: Option<&HeaderValue>) -> Option<HeaderValue> {
        let Some(list) = &self.origins else { return Some(STAR) };
        let text = origin?.to_str().ok()?;
        list.iter().any(|listed| listed.eq_ignore_ascii_case(text)).then(|| origin.cloned())?
    }

    /// Says in a response's head who may read it. A handler that has said so itself has the last word.
    pub(super) fn dress(&self, origin: Option<&HeaderValue>, headers: &mut HeaderMap) {
        if self.origins.is_some() {
            // Also for whom it is not: a cache must not hand the answer to one origin out to another.
            vary(headers, "Origin");
        }
        if headers.contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN) {
            return;
        }
        let Some(allowed) = self.allowed(origin) else { return };
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
        if self.credentials {
            headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
        if let Some(exposed) = &self.exposed {
            headers.entry(header::ACCESS_CONTROL_EXPOSE_HEADERS).or_insert_with(|| exposed.clone());
        }
    }

    /// Answers a preflight: with what is allowed, or with 403 and what is not.
    pub(super) fn preflight<B>(&self, request: &Request<B>, shared: &Shared) -> Result<Response<Body>, String> {
        let asked = request.headers();
        let shown = |name: HeaderName| asked.get(name).map_or("", |value| value.to_str().unwrap_or("?"));
        let Some(origin) = self.allowed(asked.get(header::ORIGIN)) else {
            return Err(format!("origin {:?}", shown(header::ORIGIN)));
        };
        let method = asked.get(header::ACCESS_CONTROL_REQUEST_METHOD);
        let methods = method.and_then(|method| self.methods_for(method, request.uri().path(), &shared.routes.read()));
        let Some(methods) = methods else {
            return Err(format!("method {:?}", shown(header::ACCESS_CONTROL_REQUEST_METHOD)));
        };
        let mut response = Response::new(Body::default());
        *response.status_mut() = StatusCode::NO_CONTENT;
        let headers = response.headers_mut();
        let wanted = joined(asked.get_all(header::ACCESS_CONTROL_REQUEST_HEADERS));
        if let Some(wanted) = &wanted {
            let names = wanted.to_str().unwrap_or("?").split(',').map(str::trim).filter(|name| !name.is_empty());
            for name in names {
                let listed =
                    |list: &Vec<HeaderName>| list.iter().any(|known| known.as_str().eq_ignore_ascii_case(name));
                if !self.headers.as_ref().is_none_or(listed) {
                    return Err(format!("header {name:?}"));
                }
            }
        }
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        if self.credentials {
            headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, methods);
        if let Some(wanted) = wanted {
            headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, wanted);
        }
        headers.insert(header::ACCESS_CONTROL_MAX_AGE, self.max_age.into());
        Ok(response)
    }

    /// The value of Access-Control-Allow-Methods, if the method may be used.
    fn methods_for(&self, method: &HeaderValue, path: &str, routes: &Routes) -> Option<HeaderValue> {
        let wanted = Method::from_bytes(method.as_bytes()).ok()?;
        let may = match &self.methods {
            Some(list) => list.contains(&wanted),
            None => matches!(routes.find(&wanted, path), Found::Route { .. }),
        };
        may.then(|| method.clone())
    }
}

/// A preflight for something that is not allowed. Without the headers that would allow it, the browser tells its page.
pub(super) fn refused(what: &str) -> Response<Body> {
    plain(StatusCode::FORBIDDEN, format!("403 Forbidden: CORS does not allow the {what}\n"))
}

/// A list header in one value. `None`: there is none, or it cannot be joined.
fn joined(values: http::header::GetAll<'_, HeaderValue>) -> Option<HeaderValue> {
    let mut values = values.iter();
    let first = values.next()?;
    let Some(second) = values.next() else { return Some(first.clone()) };
    let mut all = first.as_bytes().to_vec();
    for value in std::iter::once(second).chain(values) {
        all.extend_from_slice(b", ");
        all.extend_from_slice(value.as_bytes());
    }
    HeaderValue::from_bytes(&all).ok()
}
