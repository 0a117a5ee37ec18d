//! What the server shows of itself: its metrics, and a page that draws them. Native, because one looks when the program
//! does not tick.
//!
//! It tells about the program, so it is for some alone: by the client's address, as far as trusted proxies tell it. Three
//! ways around that are closed. A proxy that is not trusted would make everybody a client of this machine: what says that
//! it came through one is refused. A page of another site whose name was changed to this address (DNS rebinding) would read
//! with its visitor's address: a client of this machine has to ask for this machine by its own name. And what CORS lets
//! pages of other origins read is not this.

use super::http::{Client, plain, with};
use crate::body::Body;
use crate::stats::Snapshot;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Request, Response, StatusCode};
use ipnet::IpNet;
use std::net::IpAddr;

/// What is shown at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Show {
    /// Text for Prometheus.
    Metrics,
    /// The page.
    Page,
    /// What the page asks for again and again.
    Json,
}

/// A path where the server shows itself.
#[derive(Clone, Debug)]
pub struct Inside {
    /// What is shown.
    pub show: Show,
    /// To whom.
    pub allow: Vec<IpNet>,
}

/// The page: HTML, script and style in one. NONCE stands where the policy's nonce goes.
const PAGE: &str = include_str!("inside.html");

/// What a proxy leaves behind.
const PROXIED: [&str; 4] = ["x-forwarded-for", "x-real-ip", "forwarded", "via"];

impl Inside {
    /// The method that made it, for messages; and for `refusals`.
    fn setting(&self) -> &'static str {
        if self.show == Show::Metrics { "enable_metrics" } else { "enable_dashboard" }
    }

    pub(super) fn answer<B>(&self, request: &Request<B>, client: &Client) -> Response<Body> {
        if let Err(why) = self.may(request.headers(), request.uri(), client) {
            let setting = self.setting();
            let path = request.uri().path();
            client.shared.endpoint.complain(&client.io, setting, || {
                format!("request of {} for {path} refused with 403: {why} ({setting})", client.remote)
            });
            return plain(StatusCode::FORBIDDEN, format!("403 Forbidden: {why} ({setting})\n"));
        }
        let snapshot = || client.shared.endpoint.snapshot();
        let (text, kind, policy) = match self.show {
            Show::Metrics => (snapshot().prometheus(), "text/plain; version=0.0.4; charset=utf-8", None),
            Show::Json => (Snapshot::json(&snapshot()), "application/json", None),
            Show::Page => {
                let nonce = format!("{:032x}", rand::random::<u128>());
                (PAGE.replace("NONCE", &nonce), "text/html; charset=utf-8", policy(&nonce))
            }
        };
        let mut response = with(plain(StatusCode::OK, text), header::CONTENT_TYPE, HeaderValue::from_static(kind));
        let headers = response.headers_mut();
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        if let Some(policy) = policy {
            headers.insert(header::CONTENT_SECURITY_POLICY, policy);
            headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        }
        response
    }

    /// Whether it is for who asks; if not, why.
    fn may(&self, headers: &HeaderMap, uri: &http::Uri, client: &Client) -> Result<(), String> {
        let sender = client.sender(headers);
        let address = sender.address;
        let trusted = &client.shared.endpoint.settings.trusted_proxies;
        let peer = client.remote.ip().to_canonical();
        let through = PROXIED.iter().find(|name| headers.contains_key(**name));
        if !trusted.iter().any(|net| net.contains(&peer))
            && let Some(name) = through
        {
            return Err(format!("it came through a proxy, by its header {name}, and {peer} is not in trusted_proxies"));
        }
        if !self.allow.iter().any(|net| net.contains(&address)) {
            return Err(format!("{address} is not in allow="));
        }
        // HTTP/2 has the name in the URI.
        let named = uri.authority().map(|authority| authority.as_str());
        let host = named.or_else(|| headers.get(header::HOST)?.to_str().ok()).unwrap_or_default();
        if address.is_loopback() && !is_own_name(host) {
            return Err(format!("{host:?} is not a name for this machine: ask for localhost or an address"));
        }
        if let Some(origin) = headers.get(header::ORIGIN) {
            let authority = origin.to_str().ok().and_then(|origin| origin.split_once("://")).map(|(_, rest)| rest);
            if !authority.is_some_and(|authority| authority.eq_ignore_ascii_case(host)) {
                return Err("it is not for pages of another origin".to_owned());
            }
        }
        Ok(())
    }
}

/// Nothing but the page's own script and style runs, and it talks to where it came from alone.
fn policy(nonce: &str) -> Option<HeaderValue> {
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    HeaderValue::from_str(&policy).ok()
}

/// Whether this is what a client on this machine calls it: an address, or a name that no server on the net can take
/// (RFC 6761 section 6.3). With or without a port.
fn is_own_name(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    name.parse::<IpAddr>().is_ok() || name == "localhost" || name.ends_with(".localhost")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_cannot_be_taken() {
        for own in
            ["127.0.0.1", "127.0.0.1:9090", "localhost", "LocalHost:1", "localhost.", "a.localhost:80", "[::1]:80"]
        {
            assert!(is_own_name(own), "{own}");
        }
        for other in ["", ":80", "example.com", "127.0.0.1.example.com:80", "localhost.example.com", "xlocalhost"] {
            assert!(!is_own_name(other), "{other}");
        }
    }

    #[test]
    fn the_page_takes_the_nonce_and_has_nothing_from_elsewhere() {
        let page = PAGE.replace("NONCE", "x");
        assert_eq!(page.matches("nonce=\"x\"").count(), 2);
        assert!(!page.contains("style=\"") && !page.contains(" src=") && !page.contains("http://"));
        assert!(policy("00ff").is_some());
    }
}
