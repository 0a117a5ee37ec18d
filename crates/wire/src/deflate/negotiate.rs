//! `Sec-WebSocket-Extensions`: its grammar (RFC 6455 section 9.1) and the four parameters of permessage-deflate (RFC 7692
//! section 7.1).
//!
//! | parameter | in an offer | in an answer |
//! |---|---|---|
//! | `server_no_context_takeover` | the server must not | the server does not; needs no offer |
//! | `client_no_context_takeover` | a hint: the client does not | the client must not; needs no offer |
//! | `server_max_window_bits=N` | the server must use N or less | the server uses N, not more than offered |
//! | `client_max_window_bits[=N]` | the client can limit its window, and uses N or less | the client must use N; only if offered |
//!
//! All but the last may be answered without having been offered, and of that right an answer here uses what frees
//! somebody's memory: the two that forbid context takeover.

use super::DeflateParams;
use crate::handshake::is_token;
use std::borrow::Cow;
use std::fmt::{self, Write as _};

const NAME: &str = "permessage-deflate";
const SERVER_NO_TAKEOVER: &str = "server_no_context_takeover";
const CLIENT_NO_TAKEOVER: &str = "client_no_context_takeover";
const SERVER_BITS: &str = "server_max_window_bits";
const CLIENT_BITS: &str = "client_max_window_bits";

/// The smallest and the largest window (sections 7.1.2.1 and 7.1.2.2: "between 8 to 15, inclusive").
const MIN_BITS: u8 = 8;
const MAX_BITS: u8 = 15;

/// What this end wants. The default is for many connections and little memory: no context takeover in either
/// direction, so that all connections of a thread share their contexts, and windows of 32 KiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeflateConfig {
    /// The server is not to take its context over. A client that wants this demands it.
    pub server_no_context_takeover: bool,
    /// The client is not to take its context over. A server that wants this demands it.
    pub client_no_context_takeover: bool,
    /// The largest window of the server, 8 to 15 bits (a value outside is taken for the nearest). A client that wants
    /// less than 15 demands it.
    pub server_max_window_bits: u8,
    /// The largest window of the client, 8 to 15 bits (a value outside is taken for the nearest). A server that wants
    /// less than 15 demands it of the clients that can do it; others may use 15.
    pub client_max_window_bits: u8,
}

impl Default for DeflateConfig {
    fn default() -> Self {
        Self {
            server_no_context_takeover: true,
            client_no_context_takeover: true,
            server_max_window_bits: MAX_BITS,
            client_max_window_bits: MAX_BITS,
        }
    }
}

impl DeflateConfig {
    fn server_bits(&self) -> u8 {
        self.server_max_window_bits.clamp(MIN_BITS, MAX_BITS)
    }

    fn client_bits(&self) -> u8 {
        self.client_max_window_bits.clamp(MIN_BITS, MAX_BITS)
    }
}

/// The server's part: accepts the first offer of permessage-deflate that can be met. `headers` are the values of the
/// request's `Sec-WebSocket-Extensions` headers, in order; see [`handshake::extensions`](crate::handshake::extensions).
///
/// Returns what was agreed and the value of the response's `Sec-WebSocket-Extensions`; `None` if there is no such
/// offer, and then the response has no such header. Section 7 has an offer with an unknown, repeated or invalid
/// parameter declined. An error means that a header isn't even well-formed: RFC 6455 section 9.1 demands that the
/// handshake fail, which is status 400.
pub fn accept_offer<'a>(
    headers: impl Iterator<Item = &'a [u8]>,
    config: &DeflateConfig,
) -> Result<Option<(DeflateParams, String)>, ExtensionError> {
    let mut accepted = None;
    for value in headers {
        for extension in parse(value)? {
            if accepted.is_none() && extension.name == NAME {
                let offer = Parameters::read(&extension, true).ok();
                accepted = offer.map(|offer| agree(&offer, config));
            }
        }
    }
    Ok(accepted)
}

fn agree(offer: &Parameters, config: &DeflateConfig) -> (DeflateParams, String) {
    let client_bits = match offer.client_bits {
        Some(most) => most.unwrap_or(MAX_BITS).min(config.client_bits()),
        // It doesn't know the parameter: section 7.1.2.2 forbids to answer with it, and it may use all.
        None => MAX_BITS,
    };
    let params = DeflateParams {
        server_no_context_takeover: offer.server_no_takeover || config.server_no_context_takeover,
        client_no_context_takeover: offer.client_no_takeover || config.client_no_context_takeover,
        server_max_window_bits: offer.server_bits.unwrap_or(MAX_BITS).min(config.server_bits()),
        client_max_window_bits: client_bits,
    };
    let answer = Parameters {
        server_no_takeover: params.server_no_context_takeover,
        client_no_takeover: params.client_no_context_takeover,
        // A limit that the client didn't ask for is kept without a word.
        server_bits: offer.server_bits.map(|_| params.server_max_window_bits),
        client_bits: (client_bits < MAX_BITS).then_some(Some(client_bits)),
    };
    (params, answer.to_string())
}

/// The client's part: the value of the request's `Sec-WebSocket-Extensions`.
pub fn offer(config: &DeflateConfig) -> String {
    let limited = |bits| (bits < MAX_BITS).then_some(bits);
    let offer = Parameters {
        server_no_takeover: config.server_no_context_takeover,
        client_no_takeover: config.client_no_context_takeover,
        server_bits: limited(config.server_bits()),
        // Without a value too: "the client supports it" is what lets the server limit the window at all.
        client_bits: Some(limited(config.client_bits())),
    };
    offer.to_string()
}

/// The client's part: checks the server's answer to [`offer`]`(config)`. `headers` are the values of the response's
/// `Sec-WebSocket-Extensions` headers, in order. `None`: the server declined. After an error the client must fail the
/// connection (section 7).
pub fn check_answer<'a>(
    headers: impl Iterator<Item = &'a [u8]>,
    config: &DeflateConfig,
) -> Result<Option<DeflateParams>, ExtensionError> {
    let mut agreed = None;
    for value in headers {
        let extensions = parse(value)?;
        if extensions.is_empty() {
            return Err(ExtensionError::malformed(value));
        }
        for extension in extensions {
            if extension.name != NAME {
                let name = extension.name.to_owned();
                return Err(ExtensionError::NotOffered { name });
            }
            if agreed.is_some() {
                return Err(ExtensionError::Twice);
            }
            let answer = Parameters::read(&extension, false)?;
            agreed = Some(check_parameters(&answer, config)?);
        }
    }
    Ok(agreed)
}

fn check_parameters(answer: &Parameters, config: &DeflateConfig) -> Result<DeflateParams, ExtensionError> {
    // Sections 7.1.1.1 and 7.1.2.1: a server accepts such an offer by including the parameter.
    if config.server_no_context_takeover && !answer.server_no_takeover {
        return Err(ExtensionError::Missing { name: SERVER_NO_TAKEOVER });
    }
    if config.server_bits() < MAX_BITS && answer.server_bits.is_none() {
        return Err(ExtensionError::Missing { name: SERVER_BITS });
    }
    let check = |name, bits: u8, most| {
        if bits > most {
            return Err(ExtensionError::Parameter { shown: format!("{name}={bits}") });
        }
        Ok(bits)
    };
    let server_bits = answer.server_bits.unwrap_or(MAX_BITS);
    let client_bits = answer.client_bits.flatten().unwrap_or(config.client_bits());
    Ok(DeflateParams {
        server_no_context_takeover: answer.server_no_takeover,
        client_no_context_takeover: answer.client_no_takeover || config.client_no_context_takeover,
        server_max_window_bits: check(SERVER_BITS, server_bits, config.server_bits())?,
        client_max_window_bits: check(CLIENT_BITS, client_bits, config.client_bits())?,
    })
}

/// Why a header is wrong. Its text is meant for the body of the response, or for the client's programmer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExtensionError {
    /// The header doesn't follow the grammar.
    Malformed {
        /// The header's value.
        value: String,
    },
    /// The server uses an extension that wasn't offered.
    NotOffered {
        /// The extension's name.
        name: String,
    },
    /// The server accepted permessage-deflate more than once.
    Twice,
    /// The server answered with a parameter that is unknown, repeated, invalid, or more than what was offered.
    Parameter {
        /// The parameter as it stands in the header.
        shown: String,
    },
    /// The server accepted permessage-deflate, but not this parameter that was demanded.
    Missing {
        /// The parameter's name.
        name: &'static str,
    },
}

impl ExtensionError {
    fn malformed(value: &[u8]) -> Self {
        Self::Malformed { value: String::from_utf8_lossy(value).into_owned() }
    }
}

impl fmt::Display for ExtensionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed { value } => write!(f, "Sec-WebSocket-Extensions: {value:?} is not well-formed"),
            Self::NotOffered { name } => {
                write!(f, "the server uses the extension {name:?}, which was not offered")
            }
            Self::Twice => f.write_str("the server accepted permessage-deflate more than once"),
            Self::Parameter { shown } => {
                write!(f, "the server answered permessage-deflate with {shown:?}, which is not valid")
            }
            Self::Missing { name } => {
                write!(f, "the server accepted permessage-deflate, but not its parameter {name}")
            }
        }
    }
}

impl std::error::Error for ExtensionError {}

/// The parameters of an offer or an answer.
#[derive(Debug, Default)]
struct Parameters {
    server_no_takeover: bool,
    client_no_takeover: bool,
    server_bits: Option<u8>,
    /// Present, and with which value: in an offer it may have none.
    client_bits: Option<Option<u8>>,
}

impl Parameters {
    /// Section 7: no parameter that isn't defined, none with an invalid value, none twice.
    fn read(extension: &Extension<'_>, is_offer: bool) -> Result<Self, ExtensionError> {
        let mut found = Self::default();
        for (name, value) in &extension.params {
            let bits = value.as_deref().map(window_bits);
            let fits = match (*name, bits) {
                (SERVER_NO_TAKEOVER, None) => !std::mem::replace(&mut found.server_no_takeover, true),
                (CLIENT_NO_TAKEOVER, None) => !std::mem::replace(&mut found.client_no_takeover, true),
                (SERVER_BITS, Some(Some(bits))) => found.server_bits.replace(bits).is_none(),
                (CLIENT_BITS, Some(Some(bits))) => found.client_bits.replace(Some(bits)).is_none(),
                (CLIENT_BITS, None) => is_offer && found.client_bits.replace(None).is_none(),
                _ => false,
            };
            if !fits {
                let shown = match value {
                    Some(value) => format!("{name}={value}"),
                    None => (*name).to_owned(),
                };
                return Err(ExtensionError::Parameter { shown });
            }
        }
        Ok(found)
    }
}

/// The header's value.
impl fmt::Display for Parameters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(NAME)?;
        for (name, is_there) in
            [(SERVER_NO_TAKEOVER, self.server_no_takeover), (CLIENT_NO_TAKEOVER, self.client_no_takeover)]
        {
            if is_there {
                write!(f, "; {name}")?;
            }
        }
        for (name, value) in [(SERVER_BITS, self.server_bits.map(Some)), (CLIENT_BITS, self.client_bits)] {
            match value {
                Some(Some(bits)) => write!(f, "; {name}={bits}")?,
                Some(None) => write!(f, "; {name}")?,
                None => {}
            }
        }
        Ok(())
    }
}

/// "a decimal integer value without leading zeroes between 8 to 15, inclusive"
fn window_bits(value: &str) -> Option<u8> {
    let bits = value.parse().ok().filter(|bits| (MIN_BITS..=MAX_BITS).contains(bits))?;
    // `parse` takes "+9" and "09" too.
    (bits.to_string() == value).then_some(bits)
}

/// An element of the header's list.
struct Extension<'a> {
    name: &'a str,
    params: Vec<(&'a str, Option<Cow<'a, str>>)>,
}

/// Reads one header:
///
/// ```text
/// extension-list  = 1#extension
/// extension       = extension-token *( ";" extension-param )
/// extension-param = token [ "=" ( token / quoted-string ) ]
/// ```
///
/// with whitespace between any two of these, and empty elements, which RFC 9110 section 5.6.1.2 has a recipient ignore.
/// So an empty header comes out as an empty list.
fn parse(value: &[u8]) -> Result<Vec<Extension<'_>>, ExtensionError> {
    let malformed = || ExtensionError::malformed(value);
    // All of it is ASCII, which `Scanner` checks as it goes; slicing needs to know that it is text.
    let mut scanner = Scanner(std::str::from_utf8(value).map_err(|_| malformed())?);
    let mut extensions = Vec::new();
    loop {
        while scanner.skip(',') {}
        if scanner.at_end() {
            return Ok(extensions);
        }
        extensions.push(scanner.extension().ok_or_else(malformed)?);
        if !scanner.at_end() && !scanner.skip(',') {
            return Err(malformed());
        }
    }
}

/// What is left of a header. `None` from its methods: not well-formed.
struct Scanner<'a>(&'a str);

impl<'a> Scanner<'a> {
    fn extension(&mut self) -> Option<Extension<'a>> {
        let name = self.token()?;
        let mut params = Vec::new();
        while self.skip(';') {
            let param = self.token()?;
            let value = if self.skip('=') { Some(self.value()?) } else { None };
            params.push((param, value));
        }
        Some(Extension { name, params })
    }

    fn blanks(&mut self) {
        self.0 = self.0.trim_start_matches([' ', '\t']);
    }

    fn at_end(&mut self) -> bool {
        self.blanks();
        self.0.is_empty()
    }

    /// Takes `separator` if it comes next.
    fn skip(&mut self, separator: char) -> bool {
        self.blanks();
        let rest = self.0.strip_prefix(separator);
        self.0 = rest.unwrap_or(self.0);
        rest.is_some()
    }

    fn token(&mut self) -> Option<&'a str> {
        self.blanks();
        let end = self.0.find([' ', '\t', ',', ';', '=']).unwrap_or(self.0.len());
        let (token, rest) = self.0.split_at(end);
        self.0 = rest;
        is_token(token).then_some(token)
    }

    /// A token or a quoted string. "When using the quoted-string syntax variant, the value after quoted-string
    /// unescaping MUST conform to the 'token' ABNF."
    fn value(&mut self) -> Option<Cow<'a, str>> {
        if !self.skip('"') {
            return self.token().map(Cow::Borrowed);
        }
        let mut value = String::new();
        let mut chars = self.0.chars();
        loop {
            match chars.next()? {
                '"' => break,
                '\\' => value.write_char(chars.next()?).ok()?,
                plain => value.write_char(plain).ok()?,
            }
        }
        self.0 = chars.as_str();
        is_token(&value).then_some(Cow::Owned(value))
    }
}
