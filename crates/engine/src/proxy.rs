//! Who asks when a reverse proxy stands in between, by the headers that trusted proxies write.
//!
//! Anybody can write these headers, so they count only as far as the addresses that wrote them are trusted: the list is
//! walked from its right end, where the nearest proxy has put the address that it saw, and the walk ends at the first
//! address that is no trusted proxy. Everything further left is that client's word.
//!
//! `X-Forwarded-For` is looked at before `Forwarded` (RFC 7239): nearly all proxies write the former and pass on what a
//! client puts into the latter. A proxy that writes `Forwarded` has to remove `X-Forwarded-For`.

use http::HeaderMap;
use http::header::{FORWARDED, HeaderName};
use ipnet::IpNet;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Who asks, and by what scheme.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sender {
    /// The client's address, as far as it is known.
    pub address: IpAddr,
    /// The client speaks TLS, to us or to the proxy.
    pub secure: bool,
}

impl Sender {
    /// The scheme of the request.
    #[must_use]
    pub fn scheme(&self) -> &'static str {
        if self.secure { "https" } else { "http" }
    }

    /// Who has sent a request that came from `peer`. `secure`: the connection is TLS.
    pub(crate) fn of(trusted: &[IpNet], peer: SocketAddr, secure: bool, headers: &HeaderMap) -> Self {
        let address = peer.ip().to_canonical();
        let own = Self { address, secure };
        if !is_trusted(trusted, address) {
            return own;
        }
        if headers.contains_key(X_FORWARDED_FOR) || headers.contains_key(X_FORWARDED_PROTO) {
            own.behind(trusted, &elements(headers, &X_FORWARDED_FOR), &elements(headers, &X_FORWARDED_PROTO))
        } else if headers.contains_key(FORWARDED) {
            let pairs = quoted_elements(headers);
            let named = |name| pairs.iter().map(move |element| parameter(element, name).unwrap_or_default());
            own.behind(trusted, &named("for").collect::<Vec<_>>(), &named("proto").collect::<Vec<_>>())
        } else {
            own
        }
    }

    /// Walks from the right. `hops`: the addresses; `schemes`: those of the same hops, or fewer.
    fn behind(mut self, trusted: &[IpNet], hops: &[&str], schemes: &[&str]) -> Self {
        let mut walked = 0;
        for hop in hops.iter().rev() {
            let Some(address) = node(hop) else { break };
            self.address = address;
            walked += 1;
            if !is_trusted(trusted, address) {
                break;
            }
        }
        // What the proxy that saw the client has written. Most proxies pass on a single value that the first has set.
        let place = schemes.len().saturating_sub(walked.max(1));
        if let Some(scheme) = schemes.get(place) {
            let is = |name: &str| scheme.eq_ignore_ascii_case(name);
            // Traefik writes the schemes of WebSockets.
            if is("https") || is("wss") {
                self.secure = true;
            } else if is("http") || is("ws") {
                self.secure = false;
            }
        }
        self
    }
}

fn is_trusted(trusted: &[IpNet], address: IpAddr) -> bool {
    trusted.iter().any(|net| net.contains(&address))
}

/// A network, `10.0.0.0/8`, or a single address. One of IPv4 written as IPv6 is taken as IPv4, as peers are.
#[must_use]
pub fn network(text: &str) -> Option<IpNet> {
    let net = match text.parse::<IpAddr>() {
        Ok(address) => IpNet::from(address),
        Err(_) => text.parse().ok()?,
    };
    Some(match net {
        IpNet::V6(v6) if v6.prefix_len() >= 96 => match v6.addr().to_ipv4_mapped() {
            Some(v4) => IpNet::new(v4.into(), v6.prefix_len() - 96).ok()?,
            None => net,
        },
        _ => net,
    })
}

/// The elements of a list header, all of its fields one behind the other (RFC 9110 section 5.3).
fn elements<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Vec<&'a str> {
    // A field that is not ASCII is one element that is no address.
    headers.get_all(name).iter().flat_map(|value| value.to_str().unwrap_or("?").split(',').map(str::trim)).collect()
}

/// The elements of `Forwarded`: a comma within quotes separates nothing (RFC 7239 section 4). A quote that is not closed
/// may be a client's attempt to swallow what the proxy has written behind it: nothing of such a field counts.
fn quoted_elements(headers: &HeaderMap) -> Vec<&str> {
    let mut all = Vec::new();
    for value in headers.get_all(FORWARDED) {
        let text = value.to_str().unwrap_or("\"");
        let (begin, mut from) = (all.len(), 0);
        let (mut quoted, mut escaped) = (false, false);
        for (at, byte) in text.bytes().enumerate() {
            match byte {
                _ if escaped => escaped = false,
                b'\\' if quoted => escaped = true,
                b'"' => quoted = !quoted,
                b',' if !quoted => {
                    all.push(text[from..at].trim());
                    from = at + 1;
                }
                _ => {}
            }
        }
        all.push(text[from..].trim());
        if quoted {
            all.truncate(begin);
            all.push("");
        }
    }
    all
}

/// The value of a parameter of a `Forwarded` element, without its quotes (RFC 7239 section 4).
fn parameter<'a>(element: &'a str, name: &str) -> Option<&'a str> {
    element.split(';').find_map(|pair| {
        let (key, value) = pair.split_once('=')?;
        // No address and no scheme has a character that would need a backslash.
        key.trim().eq_ignore_ascii_case(name).then(|| value.trim().trim_matches('"'))
    })
}

/// The address of a node, with or without brackets and port (RFC 7239 section 6). `None`: there is none in it, as in
/// "unknown" or "_hidden".
fn node(text: &str) -> Option<IpAddr> {
    let address = match text.parse::<IpAddr>() {
        Ok(address) => address,
        Err(_) => match text.strip_prefix('[') {
            Some(rest) => {
                let (address, port) = rest.split_once(']')?;
                (port.is_empty() || is_port(port.strip_prefix(':')?)).then_some(())?;
                address.parse::<Ipv6Addr>().ok()?.into()
            }
            None => {
                let (address, port) = text.split_once(':')?;
                is_port(port).then_some(())?;
                IpAddr::V4(address.parse().ok()?)
            }
        },
    };
    Some(address.to_canonical())
}

/// A port, or an obfuscated one.
fn is_port(text: &str) -> bool {
    text.parse::<u16>().is_ok() || text.starts_with('_')
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    /// Who asks, with 10.0.0.0/8 and ::1 trusted.
    fn sender(peer: &str, headers: &[(&'static str, &str)]) -> String {
        let trusted = [network("10.0.0.0/8").unwrap(), network("::1").unwrap()];
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_str(value).unwrap());
        }
        let peer = SocketAddr::new(peer.parse().unwrap(), 1);
        let sender = Sender::of(&trusted, peer, false, &map);
        format!("{} {}", sender.scheme(), sender.address)
    }

    #[test]
    fn the_rightmost_address_that_is_no_proxy() {
        for (peer, list, expected) in [
            ("10.1.1.1", "192.0.2.1", "http 192.0.2.1"),
            ("192.0.2.9", "192.0.2.1", "http 192.0.2.9"),
            ("::ffff:10.1.1.1", "192.0.2.1", "http 192.0.2.1"),
            ("::1", "::ffff:192.0.2.1", "http 192.0.2.1"),
            ("10.1.1.1", "6.6.6.6, 192.0.2.1, 10.2.2.2,10.3.3.3", "http 192.0.2.1"),
            ("10.1.1.1", "10.4.4.4, 10.2.2.2", "http 10.4.4.4"),
            ("10.1.1.1", "6.6.6.6, nonsense, 10.2.2.2", "http 10.2.2.2"),
            ("10.1.1.1", "6.6.6.6, nonsense", "http 10.1.1.1"),
            ("10.1.1.1", "6.6.6.6,", "http 10.1.1.1"),
            ("10.1.1.1", "", "http 10.1.1.1"),
            ("10.1.1.1", "192.0.2.1:4711", "http 192.0.2.1"),
            ("10.1.1.1", "192.0.2.1:99999", "http 10.1.1.1"),
            ("10.1.1.1", "[2001:db8::1]:4711", "http 2001:db8::1"),
            ("10.1.1.1", "2001:db8::1", "http 2001:db8::1"),
            ("10.1.1.1", "[2001:db8::1", "http 10.1.1.1"),
        ] {
            assert_eq!(sender(peer, &[("x-forwarded-for", list)]), expected, "{peer} {list}");
        }
        assert_eq!(
            sender("10.1.1.1", &[("x-forwarded-for", "6.6.6.6"), ("x-forwarded-for", "1.2.3.4")]),
            "http 1.2.3.4"
        );
    }

    #[test]
    fn the_scheme_of_the_hop_that_saw_the_client() {
        let with = |list, schemes| sender("10.1.1.1", &[("x-forwarded-for", list), ("x-forwarded-proto", schemes)]);
        assert_eq!(with("1.2.3.4", "https"), "https 1.2.3.4");
        assert_eq!(with("1.2.3.4", "HTTPS"), "https 1.2.3.4");
        assert_eq!(with("1.2.3.4", "gopher"), "http 1.2.3.4");
        assert_eq!(with("1.2.3.4, 10.2.2.2", "https"), "https 1.2.3.4");
        assert_eq!(with("1.2.3.4, 10.2.2.2", "https, http"), "https 1.2.3.4");
        // What the client has put in front is the client's word.
        assert_eq!(with("6.6.6.6, 1.2.3.4, 10.2.2.2", "https, http, http"), "http 1.2.3.4");
        assert_eq!(sender("10.1.1.1", &[("x-forwarded-proto", "wss")]), "https 10.1.1.1");
        assert_eq!(sender("10.1.1.1", &[("x-forwarded-proto", "https, http")]), "http 10.1.1.1");
        assert_eq!(sender("192.0.2.9", &[("x-forwarded-proto", "https")]), "http 192.0.2.9");
    }

    #[test]
    fn the_standard_header_has_quotes_and_hidden_nodes() {
        let with = |value| sender("10.1.1.1", &[("forwarded", value)]);
        assert_eq!(with("for=192.0.2.60;proto=https;by=203.0.113.43"), "https 192.0.2.60");
        assert_eq!(with("For=\"[2001:db8:cafe::17]:4711\" ; Proto=HTTPS"), "https 2001:db8:cafe::17");
        assert_eq!(with("for=6.6.6.6, for=192.0.2.43;proto=https, for=10.2.2.2;proto=http"), "https 192.0.2.43");
        assert_eq!(with("for=6.6.6.6, for=unknown"), "http 10.1.1.1");
        assert_eq!(with("for=6.6.6.6, for=\"_a,b\", for=10.2.2.2"), "http 10.2.2.2");
        assert_eq!(with("for=6.6.6.6, proto=https"), "https 10.1.1.1");
        assert_eq!(with("for=6.6.6.6;x=\", for=1.2.3.4"), "http 10.1.1.1");
        assert_eq!(with("for=6.6.6.6;x=\"\\, for=\"[::2]\";by=\"[::3]\""), "http 10.1.1.1");
        // The one that proxies write wins over the one that they pass on.
        assert_eq!(sender("10.1.1.1", &[("forwarded", "for=6.6.6.6"), ("x-forwarded-for", "1.2.3.4")]), "http 1.2.3.4");
    }

    #[test]
    fn networks() {
        for (text, expected) in [
            ("10.0.0.0/8", Some("10.0.0.0/8")),
            ("127.0.0.1", Some("127.0.0.1/32")),
            ("::1", Some("::1/128")),
            ("::ffff:10.0.0.0/104", Some("10.0.0.0/8")),
            ("10.0.0.0/33", None),
            ("*", None),
            ("localhost", None),
            ("10.0.0", None),
            ("", None),
        ] {
            assert_eq!(network(text).map(|net| net.to_string()).as_deref(), expected, "{text}");
        }
    }
}
