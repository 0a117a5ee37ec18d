//! The opening handshake (RFC 6455 section 4), over HTTP headers that somebody else parsed.
//!
//! Headers come as `(name, value)` in the order received. Names compare without regard to case, and a header that is a
//! list may come in several lines (RFC 9110 section 5.3). Values are bytes, as HTTP has them.

use crate::deflate::{self, DeflateConfig, DeflateParams, ExtensionError};
use base64::Engine as _;
use base64::alphabet;
use base64::engine::general_purpose::{GeneralPurpose, PAD, STANDARD};
use sha1::{Digest as _, Sha1};
use std::fmt;

/// Section 1.3: the GUID "which is unlikely to be used by network endpoints that do not understand the WebSocket
/// Protocol".
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Section 4.1: "The value of this header field MUST be 13."
const VERSION: &[u8] = b"13";

/// Reads keys. The last character's low four bits encode nothing; section 4.2.2 says that "it is not necessary for the
/// server to base64-decode" the key at all, so a client that leaves them set is served.
const KEY: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, PAD.with_decode_allow_trailing_bits(true));

/// `Sec-WebSocket-Accept` for a `Sec-WebSocket-Key`, which proves that the server understood the handshake (section
/// 4.2.2, step 5.4).
pub fn accept_key(key: &str) -> String {
    let mut hash = Sha1::new();
    hash.update(key.as_bytes());
    hash.update(GUID.as_bytes());
    STANDARD.encode(hash.finalize())
}

/// `Sec-WebSocket-Key` for a nonce of 16 bytes, "selected randomly for each connection" (section 4.1).
pub fn encode_key(nonce: [u8; 16]) -> String {
    STANDARD.encode(nonce)
}

/// Whether a request asks for an upgrade to WebSocket at all, of any version; if not it is plain HTTP.
pub fn is_upgrade<'a>(headers: impl Iterator<Item = (&'a str, &'a [u8])>) -> bool {
    elements(headers, "upgrade").any(|protocol| protocol.eq_ignore_ascii_case(b"websocket"))
}

/// Whether `s` is a token (RFC 9110 section 5.6.2), which a subprotocol's name must be (section 4.1).
pub fn is_token(s: &str) -> bool {
    !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

/// A client's handshake that can be accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The value to answer as `Sec-WebSocket-Accept`.
    pub accept: String,
    /// The subprotocols offered, in the client's order of preference.
    pub protocols: Vec<String>,
}

/// Checks a client's handshake (section 4.2.1).
pub fn check_request<'a>(
    method: &str,
    http11: bool,
    headers: impl Iterator<Item = (&'a str, &'a [u8])> + Clone,
) -> Result<Request, Refusal> {
    // "An HTTP/1.1 or higher GET request"
    if method != "GET" {
        return Err(Refusal::Method);
    }
    if !http11 {
        return Err(Refusal::HttpVersion);
    }
    // "A |Host| header field containing the server's authority." RFC 9112 section 3.2 wants exactly one.
    if lines(headers.clone(), "host").count() != 1 {
        return Err(Refusal::Host);
    }
    // "An |Upgrade| header field containing the value "websocket", treated as an ASCII case-insensitive value."
    if !is_upgrade(headers.clone()) {
        return Err(Refusal::Upgrade);
    }
    // "A |Connection| header field that includes the token "Upgrade", treated as an ASCII case-insensitive value."
    if !connection_upgrades(headers.clone()) {
        return Err(Refusal::Connection);
    }
    // "A |Sec-WebSocket-Version| header field, with a value of 13." Before the key: other versions had other keys.
    if only(lines(headers.clone(), "sec-websocket-version")) != Some(VERSION) {
        return Err(Refusal::Version);
    }
    let accept = accept_key(check_key(headers.clone())?);
    // Extensions aren't looked at here: a server accepts one by naming it in the response, so an offer that is left alone
    // is declined (section 4.2.2). For permessage-deflate, `deflate::accept_offer` reads the offers.
    let protocols = check_offer(headers)?;
    Ok(Request { accept, protocols })
}

/// "A |Sec-WebSocket-Key| header field with a base64-encoded [...] value that, when decoded, is 16 bytes in length";
/// section 11.3.1: it "MUST NOT appear more than once in an HTTP request".
fn check_key<'a>(headers: impl Iterator<Item = (&'a str, &'a [u8])> + Clone) -> Result<&'a str, Refusal> {
    let keys = lines(headers, "sec-websocket-key");
    let malformed = Refusal::Key { found: keys.clone().count() };
    let Some(key) = only(keys).and_then(|key| std::str::from_utf8(key).ok()) else {
        return Err(malformed);
    };
    // 24 characters of base64 hold up to 18 bytes; 16 if the last two are padding.
    let mut nonce = [0; 18];
    match KEY.decode_slice(key, &mut nonce) {
        Ok(16) => Ok(key),
        _ => Err(malformed),
    }
}

/// The subprotocols offered. Section 4.1: the elements "MUST be non-empty strings with characters in the range U+0021
/// to U+007E not including separator characters" and "MUST all be unique strings".
fn check_offer<'a>(headers: impl Iterator<Item = (&'a str, &'a [u8])> + Clone) -> Result<Vec<String>, Refusal> {
    const NAME: &str = "sec-websocket-protocol";
    let mut protocols: Vec<String> = Vec::new();
    for element in elements(headers.clone(), NAME) {
        let name = String::from_utf8_lossy(element).into_owned();
        if !is_token(&name) {
            return Err(Refusal::Protocol { name });
        }
        if protocols.contains(&name) {
            return Err(Refusal::ProtocolTwice { name });
        }
        protocols.push(name);
    }
    // The header's grammar is 1#token (section 4.3): if it is there, it offers something.
    if protocols.is_empty() && lines(headers, NAME).next().is_some() {
        let name = String::new();
        return Err(Refusal::Protocol { name });
    }
    Ok(protocols)
}

/// Why a client's handshake is refused. Its text is meant for the body of the response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The method is not GET.
    Method,
    /// The request is older than HTTP/1.1.
    HttpVersion,
    /// There isn't exactly one `Host` header.
    Host,
    /// `Upgrade` doesn't name websocket. The response must carry `Upgrade: websocket` (RFC 9110 section 15.5.22).
    Upgrade,
    /// `Connection` doesn't name upgrade.
    Connection,
    /// The version isn't 13. The response must carry `Sec-WebSocket-Version: 13` (section 4.4) and, as its status is
    /// 426, `Upgrade: websocket`.
    Version,
    /// There isn't exactly one key, or it isn't the base64 of 16 bytes.
    Key {
        /// How many `Sec-WebSocket-Key` headers there were.
        found: usize,
    },
    /// An offered subprotocol isn't a token.
    Protocol {
        /// The offered name; empty if the header was.
        name: String,
    },
    /// A subprotocol is offered more than once.
    ProtocolTwice {
        /// The offered name.
        name: String,
    },
}

impl Refusal {
    /// The status of the HTTP response: 400, 405 or 426.
    pub fn status(&self) -> u16 {
        match self {
            Self::Method => 405,
            Self::Upgrade | Self::Version => 426,
            Self::HttpVersion
            | Self::Host
            | Self::Connection
            | Self::Key { .. }
            | Self::Protocol { .. }
            | Self::ProtocolTwice { .. } => 400,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Method => f.write_str("a WebSocket handshake must be a GET request"),
            Self::HttpVersion => f.write_str("a WebSocket handshake needs HTTP/1.1"),
            Self::Host => f.write_str("the request must have exactly one Host header"),
            Self::Upgrade => f.write_str("the Upgrade header must contain \"websocket\""),
            Self::Connection => f.write_str("the Connection header must contain \"Upgrade\""),
            Self::Version => f.write_str("Sec-WebSocket-Version must be 13"),
            Self::Key { found: 0 } => f.write_str("the Sec-WebSocket-Key header is missing"),
            Self::Key { found: 1 } => f.write_str("Sec-WebSocket-Key must be 16 bytes in base64"),
            Self::Key { found } => write!(f, "Sec-WebSocket-Key must be sent once, but was sent {found} times"),
            Self::Protocol { name } => {
                write!(f, "Sec-WebSocket-Protocol: {name:?} is not a token")
            }
            Self::ProtocolTwice { name } => {
                write!(f, "Sec-WebSocket-Protocol: {name:?} is offered twice")
            }
        }
    }
}

impl std::error::Error for Refusal {}

/// The values of the `Sec-WebSocket-Extensions` headers, in order; for [`deflate::accept_offer`].
pub fn extensions<'a, H>(headers: H) -> impl Iterator<Item = &'a [u8]> + use<'a, H> + Clone
where
    H: Iterator<Item = (&'a str, &'a [u8])> + Clone,
{
    lines(headers, "sec-websocket-extensions")
}

/// Checks a server's answer (section 4.1, the client's validation of the response) to a request that carried `key` and
/// `offered` these subprotocols. Returns the subprotocol that the server chose, if it chose one.
pub fn check_response<'a>(
    status: u16,
    headers: impl Iterator<Item = (&'a str, &'a [u8])> + Clone,
    key: &str,
    offered: &[String],
) -> Result<Option<String>, Rejected> {
    check_response_with(status, headers, key, offered, None).map(|accepted| accepted.protocol)
}

/// What a server accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// The subprotocol that it chose, if it chose one.
    pub protocol: Option<String>,
    /// What was agreed on permessage-deflate, if it accepted that.
    pub deflate: Option<DeflateParams>,
}

/// [`check_response`] to a request that also offered permessage-deflate, with [`deflate::offer`] of this configuration;
/// `None` if it didn't.
pub fn check_response_with<'a>(
    status: u16,
    headers: impl Iterator<Item = (&'a str, &'a [u8])> + Clone,
    key: &str,
    offered: &[String],
    deflate: Option<&DeflateConfig>,
) -> Result<Accepted, Rejected> {
    if status != 101 {
        return Err(Rejected::Status(status));
    }
    // "If the response lacks an |Upgrade| header field or the |Upgrade| header field contains a value that is not an
    // ASCII case-insensitive match for the value "websocket"": unlike the request's, it may name nothing else.
    let mut upgrade = elements(headers.clone(), "upgrade").peekable();
    if upgrade.peek().is_none() || !upgrade.all(|p| p.eq_ignore_ascii_case(b"websocket")) {
        return Err(Rejected::Upgrade);
    }
    if !connection_upgrades(headers.clone()) {
        return Err(Rejected::Connection);
    }
    // Section 11.3.3: "MUST NOT appear more than once in an HTTP response".
    let accept = only(lines(headers.clone(), "sec-websocket-accept"));
    if accept != Some(accept_key(key).as_bytes()) {
        return Err(Rejected::Accept);
    }
    // "If the response includes a |Sec-WebSocket-Extensions| header field and this header field indicates the use of an
    // extension that was not present in the client's handshake"
    let mut extensions = extensions(headers.clone());
    let deflate = match (deflate, extensions.clone().next()) {
        (None, Some(first)) => {
            return Err(Rejected::Extensions { named: String::from_utf8_lossy(first).into_owned() });
        }
        (Some(config), _) => deflate::check_answer(&mut extensions, config).map_err(Rejected::Deflate)?,
        (None, None) => None,
    };
    // Section 11.3.4: the protocol header "MUST NOT appear more than once in an HTTP response", and its value must be
    // one of those offered; one that's a list is none of them.
    let mut chosen = lines(headers, "sec-websocket-protocol");
    let Some(first) = chosen.next() else {
        return Ok(Accepted { protocol: None, deflate });
    };
    if chosen.next().is_some() {
        return Err(Rejected::SeveralProtocols);
    }
    match offered.iter().find(|name| name.as_bytes() == first) {
        Some(name) => Ok(Accepted { protocol: Some(name.clone()), deflate }),
        None => Err(Rejected::Protocol { chosen: String::from_utf8_lossy(first).into_owned() }),
    }
}

/// Why a client must fail the connection instead of opening it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rejected {
    /// The status isn't 101.
    Status(u16),
    /// `Upgrade` is missing or isn't websocket.
    Upgrade,
    /// `Connection` doesn't name upgrade.
    Connection,
    /// `Sec-WebSocket-Accept` is missing, doubled, or doesn't match the key.
    Accept,
    /// The server uses extensions, but none was offered.
    Extensions {
        /// The header's value.
        named: String,
    },
    /// The server's answer to the offer of permessage-deflate isn't valid.
    Deflate(ExtensionError),
    /// The server chose a subprotocol that wasn't offered.
    Protocol {
        /// The name it chose.
        chosen: String,
    },
    /// The server sent more than one `Sec-WebSocket-Protocol` header.
    SeveralProtocols,
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => {
                write!(f, "the server answered the WebSocket handshake with HTTP status {status}, not 101")
            }
            Self::Upgrade => f.write_str("the server's Upgrade header is not \"websocket\""),
            Self::Connection => f.write_str("the server's Connection header does not contain \"Upgrade\""),
            Self::Accept => f.write_str("the server's Sec-WebSocket-Accept does not match the key it was sent"),
            Self::Extensions { named } => write!(f, "the server uses the extensions {named:?}, but none was offered"),
            Self::Protocol { chosen } => {
                write!(f, "the server chose the subprotocol {chosen:?}, which was not offered")
            }
            Self::Deflate(error) => error.fmt(f),
            Self::SeveralProtocols => f.write_str("the server chose several subprotocols"),
        }
    }
}

impl std::error::Error for Rejected {}

/// Whether `Connection` includes the token "Upgrade".
fn connection_upgrades<'a>(headers: impl Iterator<Item = (&'a str, &'a [u8])>) -> bool {
    elements(headers, "connection").any(|option| option.eq_ignore_ascii_case(b"upgrade"))
}

/// The values of the headers called `name`, without the whitespace around them.
fn lines<'a, H>(headers: H, name: &'static str) -> impl Iterator<Item = &'a [u8]> + use<'a, H> + Clone
where
    H: Iterator<Item = (&'a str, &'a [u8])> + Clone,
{
    headers.filter(move |(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim_ascii())
}

/// The elements of a list header called `name`, over all its lines. RFC 9110 section 5.6.1.2: a recipient "MUST parse
/// and ignore a reasonable number of empty list elements".
fn elements<'a, H>(headers: H, name: &'static str) -> impl Iterator<Item = &'a [u8]> + use<'a, H>
where
    H: Iterator<Item = (&'a str, &'a [u8])>,
{
    headers
        .filter(move |(found, _)| found.eq_ignore_ascii_case(name))
        .flat_map(|(_, value)| value.split(|&b| b == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|element| !element.is_empty())
}

/// The only item, if there is exactly one.
fn only<T>(mut items: impl Iterator<Item = T>) -> Option<T> {
    let first = items.next()?;
    items.next().is_none().then_some(first)
}
