//! Refuses requests that two readers, a proxy in front and us, could take for two different things: what hyper lets
//! through, and request smuggling lives on (RFC 9112 section 11.2).

use super::http::plain;
use crate::body::Body;
use http::header::{self, HeaderValue};
use http::uri::Authority;
use http::{Method, Request, Response, StatusCode, Version};
use hyper::body::Incoming;

/// A name and a port, and nothing else: no user (RFC 9110 section 4.2.4), no port that is no number.
fn is_odd(authority: &Authority) -> bool {
    let text = authority.as_str();
    let behind = text.get(authority.host().len()..).unwrap_or_default();
    text.contains('@')
        || behind.strip_prefix(':').is_some_and(|port| !port.is_empty() && authority.port_u16().is_none())
}

/// Letters, digits, dots and hyphens, and a port that is one.
fn is_plain(host: &[u8]) -> bool {
    let colon = host.iter().position(|b| *b == b':').unwrap_or(host.len());
    let (name, port) = host.split_at(colon);
    let number = |port: &[u8]| std::str::from_utf8(port).is_ok_and(|port| port.parse::<u16>().is_ok());
    !name.is_empty()
        && name.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-'))
        && port.strip_prefix(b":").is_none_or(|port| port.is_empty() || (port[0] != b'+' && number(port)))
}

/// The answer to a request that is not clear, if it is not; otherwise makes Host the host that is meant.
pub(super) fn unclear(request: &mut Request<Incoming>) -> Option<Response<Body>> {
    let bad = |why: &str| Some(plain(StatusCode::BAD_REQUEST, format!("400 Bad Request: {why}\n")));
    let version = request.version();
    // RFC 9112 section 6.1: hyper decodes chunked alone, and takes any list that ends in it.
    let mut codings = request.headers().get_all(header::TRANSFER_ENCODING).iter();
    if codings.next().is_some_and(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"chunked"))
        || codings.next().is_some()
    {
        return Some(plain(StatusCode::NOT_IMPLEMENTED, "501 Not Implemented: the transfer coding is not chunked\n"));
    }
    // RFC 9110 section 9.3.6: we are no proxy.
    if request.method() == Method::CONNECT {
        return Some(plain(StatusCode::NOT_IMPLEMENTED, "501 Not Implemented\n"));
    }
    if request.uri().scheme_str().is_some_and(|scheme| scheme != "http" && scheme != "https") {
        return bad("the scheme is not http");
    }
    // RFC 9113 section 8.2.1; HTTP/1.1 has white space around its values, and hyper takes it away.
    let padded = |value: &HeaderValue| {
        let ends = [value.as_bytes().first(), value.as_bytes().last()];
        ends.iter().any(|end| matches!(end, Some(b' ' | b'\t')))
    };
    if version == Version::HTTP_2 && request.headers().values().any(padded) {
        return bad("a field begins or ends with white space");
    }
    // RFC 9112 section 3.2: no Host, more than one, or one that is none.
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() || (host.is_none() && version == Version::HTTP_11) {
        return bad("one Host header is required");
    }
    // A plain name or address with at most a number behind it, as nearly all are, needs no parser.
    if request.uri().authority().is_none() && host.is_some_and(|host| is_plain(host.as_bytes())) {
        return None;
    }
    let named = match host.map(HeaderValue::as_bytes).filter(|host| !host.is_empty()).map(Authority::try_from) {
        Some(Err(_)) => return bad("the Host header is none"),
        Some(Ok(named)) => Some(named),
        None => None,
    };
    let meant = request.uri().authority();
    if named.as_ref().is_some_and(is_odd) || meant.is_some_and(is_odd) {
        return bad("the Host header is none");
    }
    // RFC 9113 section 8.3.1.
    if version == Version::HTTP_2 && meant.is_some() && named.is_some() && named.as_ref() != meant {
        return bad("the Host header is not the authority");
    }
    // The target's own authority counts (RFC 9112 section 3.2.2), and HTTP/2's (RFC 9113 section 8.3.1): a program finds
    // it where HTTP/1.1 has it.
    if let Some(meant) = meant.and_then(|a| HeaderValue::from_str(a.as_str()).ok()) {
        request.headers_mut().insert(header::HOST, meant);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_plain_is_an_authority_and_not_odd() {
        for host in ["localhost", "127.0.0.1:8080", "a-b.example:", "x:0", "X:65535"] {
            assert!(is_plain(host.as_bytes()), "{host}");
            assert!(!is_odd(&Authority::try_from(host).unwrap()), "{host}");
        }
        for host in ["", ":80", "x:65536", "x:+80", "x:8 0", "u@x", "x/a", "x, y", "[::1]:80", "x_y", "x:80:80", "é"] {
            assert!(!is_plain(host.as_bytes()), "{host}");
        }
    }
}
