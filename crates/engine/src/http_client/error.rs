//! Why there is no response: one error, made of what reqwest and the crates below it say.

use super::Head;
use reqwest::Url;
use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::time::Duration;
use tokio_rustls::rustls;

/// What failed.
#[derive(Debug)]
pub enum ErrorKind {
    /// The name does not resolve.
    Resolve,
    /// Nobody listens there.
    Refused,
    /// No connection for another reason, a proxy's refusal for instance.
    Connect,
    /// TLS failed: the certificate, usually.
    Tls,
    /// `connect_timeout` passed.
    ConnectTimeout,
    /// `timeout` passed.
    Timeout,
    /// More redirects than `redirects` allows.
    TooManyRedirects,
    /// More bytes than `max_response_size` or `max_event_size` allows.
    TooLarge,
    /// What came is not HTTP, or not in the encoding that it claims.
    Protocol,
    /// The connection ended too early, or anything else.
    Lost,
    /// An event source was answered, but not with an event stream; the response, with the beginning of its body.
    Status(Box<(Head, Vec<u8>)>),
}

/// Why there is no response.
#[derive(Debug)]
pub struct HttpError {
    /// What failed.
    pub kind: ErrorKind,
    /// The URL that was asked, without user and password.
    pub url: String,
    /// The whole sentence, with the URL in it.
    pub text: String,
}

impl fmt::Display for HttpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl StdError for HttpError {}

/// The limits that an error can name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) connect_timeout: Option<Duration>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) redirects: usize,
}

/// What our redirect policy says.
#[derive(Debug)]
pub(crate) struct TooManyRedirects;

impl fmt::Display for TooManyRedirects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("too many redirects")
    }
}

impl StdError for TooManyRedirects {}

/// A URL as it may be shown: no user, no password.
#[must_use]
pub fn shown(url: &Url) -> String {
    if url.username().is_empty() && url.password().is_none() {
        return url.as_str().to_owned();
    }
    let mut url = url.clone();
    // These fail for URLs without a host, which are not asked.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.into()
}

fn seconds(time: Option<Duration>) -> f64 {
    time.unwrap_or_default().as_secs_f64()
}

impl HttpError {
    pub(crate) fn new(kind: ErrorKind, url: &Url, text: impl FnOnce(&str) -> String) -> Self {
        let url = shown(url);
        Self { kind, text: text(&url), url }
    }

    /// `timeout` passed.
    pub(crate) fn timeout(url: &Url, limits: &Limits) -> Self {
        let limit = seconds(limits.timeout);
        Self::new(ErrorKind::Timeout, url, |url| format!("{url} did not answer wholly within timeout={limit} s"))
    }

    /// What reqwest says about the request for `url`.
    pub(crate) fn from_reqwest(error: &reqwest::Error, url: &Url, limits: &Limits) -> Self {
        let url = error.url().unwrap_or(url);
        let chain = Chain(error);
        if chain.find::<TooManyRedirects>().is_some() {
            let limit = limits.redirects;
            return Self::new(ErrorKind::TooManyRedirects, url, |url| {
                format!("{url} redirects once more, after redirects={limit}")
            });
        }
        if error.is_timeout() && error.is_connect() && !chain.is_timed_out_by_system() {
            let limit = seconds(limits.connect_timeout);
            return Self::new(ErrorKind::ConnectTimeout, url, |url| {
                format!("no connection to {url} within connect_timeout={limit} s")
            });
        }
        let last = chain.last();
        if error.is_dns() {
            let host = url.host_str().unwrap_or_default().to_owned();
            return Self::new(ErrorKind::Resolve, url, |url| format!("cannot resolve {host} for {url}: {last}"));
        }
        let io = chain.find::<io::Error>().map(io::Error::kind);
        if let Some(tls) = chain.find::<rustls::Error>() {
            let text = explained(tls);
            return Self::new(ErrorKind::Tls, url, |url| format!("TLS with {url} failed: {text}"));
        }
        if error.is_connect() {
            if url.scheme() == "https" && io == Some(io::ErrorKind::UnexpectedEof) {
                return Self::new(ErrorKind::Tls, url, |url| format!("TLS with {url} failed: {last}"));
            }
            let kind =
                if io == Some(io::ErrorKind::ConnectionRefused) { ErrorKind::Refused } else { ErrorKind::Connect };
            return Self::new(kind, url, |url| format!("cannot connect to {url}: {last}"));
        }
        if error.is_builder() {
            return Self::new(ErrorKind::Lost, url, |url| format!("cannot ask {url}: {last}"));
        }
        let hyper = chain.find::<hyper::Error>();
        let malformed = hyper.is_some_and(hyper::Error::is_parse)
            || matches!(io, Some(io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput | io::ErrorKind::Other))
            || error.is_decode() && io != Some(io::ErrorKind::ConnectionReset) && hyper.is_none();
        if malformed {
            return Self::new(ErrorKind::Protocol, url, |url| format!("{url} did not answer in proper HTTP: {last}"));
        }
        Self::new(ErrorKind::Lost, url, |url| format!("the connection to {url} failed: {last}"))
    }
}

/// An error and what caused it.
struct Chain<'a>(&'a (dyn StdError + 'static));

impl<'a> Chain<'a> {
    fn causes(&self) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
        std::iter::successors(Some(self.0), |error: &&'a (dyn StdError + 'static)| {
            let error: &'a (dyn StdError + 'static) = *error;
            // An io::Error's source leaves out the error that it carries.
            match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
                Some(inner) => Some(inner as &(dyn StdError + 'static)),
                None => error.source(),
            }
        })
    }

    fn find<E: StdError + 'static>(&self) -> Option<&'a E> {
        self.causes().find_map(|error| error.downcast_ref::<E>())
    }

    /// ETIMEDOUT, which is the kernel's patience and not a setting of ours.
    fn is_timed_out_by_system(&self) -> bool {
        self.causes()
            .filter_map(|e| e.downcast_ref::<io::Error>())
            .any(|e| e.kind() == io::ErrorKind::TimedOut && e.raw_os_error().is_some())
    }

    /// What the innermost says, without Rust's "(os error N)" and rustls' "see https://docs.rs/…".
    fn last(&self) -> String {
        let text = self.causes().last().map(ToString::to_string).unwrap_or_default();
        let text = text.split(" (os error ").next().unwrap_or(&text);
        text.split(": https://").next().unwrap_or(text).to_owned()
    }
}

/// rustls' word, with what is probably meant where that is not what the user did.
fn explained(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType) => {
            "the server does not speak TLS on this port (is it an http:// URL?)".to_owned()
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_password_is_shown() {
        let url = Url::parse("https://ann:secret@a.test/x?y=1").unwrap();
        assert_eq!(shown(&url), "https://a.test/x?y=1");
        assert_eq!(HttpError::new(ErrorKind::Lost, &url, |url| format!("{url}!")).text, "https://a.test/x?y=1!");
    }
}
