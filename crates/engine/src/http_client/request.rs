//! What is asked for: the parts of a request as the program gives them, and the request that reqwest sends.

use super::Client;
use super::cookies::Jar;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use reqwest::{Body, Url, multipart};
use std::fmt;
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio_util::io::ReaderStream;

/// Bytes of a file that are read at a time.
const FILE_READ: usize = 64 << 10;

/// How the response reaches the program.
#[derive(Clone, Debug)]
pub enum Delivery {
    /// At the end, with its body, of so many bytes at most.
    Whole(Option<usize>),
    /// The body in pieces as they come.
    Chunks,
    /// Server-sent events, of so many bytes at most. What is no event stream comes as `Whole` with the second limit.
    Events(usize, Option<usize>),
}

/// How an event source connects again.
#[derive(Clone, Debug)]
pub struct Reconnect {
    /// The pause before it, unless the server names another.
    pub delay: Duration,
    /// The longest pause.
    pub max_delay: Duration,
    /// Where to go on.
    pub last_event_id: Arc<str>,
    /// Largest event in bytes.
    pub max_event_size: usize,
}

/// What a part of a multipart body has in it.
#[derive(Debug)]
pub enum Content {
    /// Bytes in memory.
    Bytes(Bytes),
    /// A file that is read while it is sent, and its size.
    File(File, u64),
}

/// A part of a multipart body (RFC 7578).
#[derive(Debug)]
pub struct Part {
    /// The field's name.
    pub name: String,
    /// The file's name, for a file.
    pub filename: Option<String>,
    /// The content type, if it is known.
    pub content_type: Option<String>,
    /// The content.
    pub content: Content,
}

/// The body of a request.
#[derive(Debug)]
pub enum RequestBody {
    /// Nothing.
    None,
    /// Bytes in memory.
    Bytes(Bytes),
    /// Fields and files.
    Multipart(Vec<Part>),
}

/// A request as the program gives it.
#[derive(Debug)]
pub struct Parts {
    /// The method.
    pub method: Method,
    /// Checked by [`parse_url`]. A user and password in it become basic authentication, unless there is a header for it.
    pub url: Url,
    /// The headers.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// The body.
    pub body: RequestBody,
    /// Cookies of this request alone.
    pub cookies: Vec<(String, String)>,
    /// For the whole request; with [`Delivery::Events`] and for event sources up to the response's head.
    pub timeout: Option<Duration>,
    /// Most redirects that are followed; beyond it an error. 0: the redirect is the response.
    pub redirects: usize,
}

/// A request ready to be sent.
pub struct Request {
    pub(crate) inner: reqwest::Request,
    /// With user and password taken out.
    pub(crate) url: Url,
    pub(crate) jar: Arc<Jar>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) redirects: usize,
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request").field("url", &super::shown(&self.url)).finish_non_exhaustive()
    }
}

/// A URL that can be asked.
///
/// # Errors
/// What is wrong with it.
pub fn parse_url(text: &str) -> Result<Url, String> {
    // The URL standard drops or encodes these; in a program they are a mistake.
    if text.chars().any(|c| c <= ' ' || c == '\x7f') {
        return Err("it has spaces or control characters".to_owned());
    }
    let url = Url::parse(text).map_err(|error| {
        let missing = if text.contains("://") { "" } else { " (begin it with http:// or https://)" };
        format!("{error}{missing}")
    })?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err("it does not begin with http:// or https://".to_owned());
    }
    if url.port() == Some(0) {
        return Err("port 0 cannot be connected to".to_owned());
    }
    Ok(url)
}

/// A name within a Content-Disposition header, as HTML has it (section 4.10.21.8): reqwest would let a line feed through,
/// and with it headers.
fn escaped(name: &str) -> String {
    name.replace('\r', "%0D").replace('\n', "%0A").replace('"', "%22")
}

impl Parts {
    /// Makes the request. Files are opened already; none is read here.
    ///
    /// # Errors
    /// What cannot be sent.
    pub fn build(self, client: &Client) -> Result<Request, String> {
        let mut bare = self.url.clone();
        // These fail for URLs without a host, which `parse_url` does not let through.
        let _ = bare.set_username("");
        let _ = bare.set_password(None);
        let authorized = self.headers.iter().any(|(name, _)| *name == http::header::AUTHORIZATION);
        let jar = Arc::new(Jar::default());
        for (name, value) in &self.cookies {
            jar.take(&format!("{name}={value}; Path=/"), &bare);
        }
        let mut headers = HeaderMap::new();
        for (name, value) in self.headers {
            headers.append(name, value);
        }
        // reqwest makes basic authentication of what is in the URL.
        let url = if authorized { bare.clone() } else { self.url };
        if matches!(self.body, RequestBody::None) && [Method::POST, Method::PUT, Method::PATCH].contains(&self.method) {
            // RFC 9110 section 8.6: a method that expects a body says so when there is none. hyper leaves it out.
            headers.insert(http::header::CONTENT_LENGTH, HeaderValue::from_static("0"));
        }
        let builder = client.inner.request(self.method, url).headers(headers);
        let builder = match self.body {
            RequestBody::None => builder,
            RequestBody::Bytes(bytes) => builder.body(bytes),
            RequestBody::Multipart(parts) => {
                let mut form = multipart::Form::new().percent_encode_noop();
                for part in parts {
                    form = form.part(escaped(&part.name), part.into_part()?);
                }
                builder.multipart(form)
            }
        };
        let inner = builder.build().map_err(|error| error.to_string())?;
        Ok(Request { inner, url: bare, jar, timeout: self.timeout, redirects: self.redirects })
    }
}

impl Part {
    fn into_part(self) -> Result<multipart::Part, String> {
        let mut part = match self.content {
            Content::Bytes(bytes) => {
                let length = bytes.len() as u64;
                multipart::Part::stream_with_length(bytes, length)
            }
            Content::File(file, length) => {
                // What grows meanwhile is sent as far as it was announced.
                let file = tokio::fs::File::from_std(file).take(length);
                let body = Body::wrap_stream(ReaderStream::with_capacity(file, FILE_READ));
                multipart::Part::stream_with_length(body, length)
            }
        };
        if let Some(filename) = &self.filename {
            part = part.file_name(escaped(filename));
        }
        if let Some(kind) = &self.content_type {
            part = part.mime_str(kind).map_err(|_| format!("{kind:?} is not a content type"))?;
        }
        Ok(part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        for good in
            ["http://a.test", "https://[::1]:8443/x?y#z", "http://u:p@a.test/", "http://b\u{fc}cher.test/\u{fc}"]
        {
            assert!(parse_url(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "a.test",
            "/x",
            "ftp://a.test/",
            "ws://a.test/",
            "http://",
            "http://a b/",
            " http://a.test/",
            "http://a.test/\n",
            "http://a.test:0/",
            "http://a.test:99999/",
            "file:///etc/passwd",
        ] {
            assert!(parse_url(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_file_name_cannot_bring_headers_along() {
        assert_eq!(escaped("a\r\nX: 1\"b"), "a%0D%0AX: 1%22b");
    }
}
