//! Compressing the content of responses: by which coding (RFC 9110 section 12.5.3), which contents, and the work itself.
//!
//! The work is done where the content is sent, in pieces, and between two pieces everybody else on the I/O thread has a
//! turn: a large content takes longer than on a thread of its own, but costs no copy of it in memory, stops when its
//! client reads slowly or leaves, and needs no pool. Small contents, most there are, are compressed at once and have a
//! Content-Length.
//!
//! Our own around the codings' crates instead of tower-http's `CompressionLayer`: that one turns answers into 406, keeps
//! strong ETags, has its own order of codings, and compresses as much in one go as the socket takes.

use super::around::vary;
use crate::body::{Body, BodyError};
use brotli::enc::BrotliEncoderParams;
use bytes::Bytes;
use flate2::write::GzEncoder;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use hyper::body::{Body as _, Frame};
use std::io::{self, Write};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

/// Contents up to this size are compressed in one go: less than a millisecond.
const AT_ONCE: u64 = 16 << 10;
/// The same for the pieces of a larger one.
const PIECE: usize = 16 << 10;
/// Compressed bytes that are worth a frame.
const ENOUGH: usize = 8 << 10;

/// A content coding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    /// RFC 8878.
    Zstd,
    /// RFC 7932.
    Brotli,
    /// RFC 1952.
    Gzip,
}

impl Coding {
    /// By its registered name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "zstd" => Self::Zstd,
            "br" => Self::Brotli,
            "gzip" => Self::Gzip,
            _ => return None,
        })
    }

    fn name(self) -> &'static str {
        match self {
            Self::Zstd => "zstd",
            Self::Brotli => "br",
            Self::Gzip => "gzip",
        }
    }

    /// The coding's own level for one of ours, 1 to 9, or for none. By default what suits contents that are compressed anew
    /// for each request: zlib's and zstd's own defaults, and for Brotli, whose own is meant for files compressed once, that
    /// of tower-http. Brotli's levels end at 6 here: from 7 on its block of 64 KiB takes 5 ms and more, in which nobody else
    /// has a turn.
    fn level(self, ours: Option<u32>) -> u32 {
        match (self, ours) {
            (Self::Zstd, None) => 3,
            (Self::Brotli, None) => 4,
            (Self::Gzip, None) => 6,
            (Self::Brotli, Some(level)) => 1 + (level - 1) * 5 / 8,
            (_, Some(level)) => level,
        }
    }
}

/// How contents are compressed.
#[derive(Clone, Debug)]
pub struct Compression {
    /// Smaller contents are left as they are.
    pub min_size: u64,
    /// The preferred first.
    pub codings: Vec<Coding>,
    /// 1 to 9; `None`: each coding's own.
    pub level: Option<u32>,
}

/// What a request says about codings.
#[derive(Debug)]
pub(super) struct Accepted {
    coding: Option<Coding>,
    head: bool,
    if_none_match: Option<HeaderValue>,
}

impl Compression {
    pub(super) fn negotiate<B>(&self, request: &Request<B>) -> Accepted {
        let headers = request.headers();
        Accepted {
            coding: choose(headers, &self.codings),
            head: request.method() == Method::HEAD,
            if_none_match: headers.get(header::IF_NONE_MATCH).cloned(),
        }
    }

    /// Compresses a response's content if that is worth it and the client takes it.
    pub(super) fn apply(&self, accepted: &Accepted, response: &mut Response<Body>) {
        if response.status() == StatusCode::NOT_MODIFIED {
            not_modified(accepted, response.headers_mut());
            return;
        }
        let Some(size) = self.is_worth_it(accepted, response) else { return };
        // Whatever this client takes, another may take something else.
        vary(response.headers_mut(), "Accept-Encoding");
        let Some(coding) = accepted.coding else { return };
        let level = coding.level(self.level);
        let mut body = std::mem::take(response.body_mut());
        if body.is_end_stream() {
            // The answer to HEAD, without the content that GET would have: the same head, but of unknown length.
            body = Body::boxed(Unsized(None));
        } else {
            let made = Encoder::new(coding, level, size).and_then(|encoder| match body.whole() {
                Some(bytes) if bytes.len() as u64 <= AT_ONCE => encoder.whole(&bytes).map(Body::from),
                Some(bytes) => Ok(Body::boxed(Compressed::new(Body::from(bytes), encoder))),
                None => Ok(Body::boxed(Compressed::new(std::mem::take(&mut body), encoder))),
            });
            body = made.unwrap_or_else(|error| Body::boxed(Unsized(Some(error))));
        }
        *response.body_mut() = body;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(coding.name()));
        headers.remove(header::CONTENT_LENGTH);
        // Ranges would be of the content that is not sent.
        headers.remove(header::ACCEPT_RANGES);
        weaken(headers);
    }

    /// The size of a content that is to be compressed for those who take it; `Some(None)`: it is unknown.
    #[expect(clippy::option_option, reason = "whether, and how much")]
    fn is_worth_it(&self, accepted: &Accepted, response: &Response<Body>) -> Option<Option<u64>> {
        let (status, headers, body) = (response.status(), response.headers(), response.body());
        let partial = status == StatusCode::PARTIAL_CONTENT || headers.contains_key(header::CONTENT_RANGE);
        let coded = headers.contains_key(header::CONTENT_ENCODING);
        // A stream leaves as it was written: each piece is there when the program has written it.
        if partial || coded || body.is_stream() || forbids(headers) || !is_compressible(headers) {
            return None;
        }
        let announced = || headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok();
        let size = match body.size_hint().exact() {
            Some(0) if accepted.head => announced(),
            exact => exact,
        };
        match size {
            Some(size) => (size >= self.min_size.max(1)).then_some(Some(size)),
            None if accepted.head && body.is_end_stream() => None,
            None => Some(None),
        }
    }
}

/// RFC 9110 section 15.4.5: what a 200 would have told of the content, a 304 tells too. Which of the two it is about, the
/// client says by the tag that it has.
fn not_modified(accepted: &Accepted, headers: &mut HeaderMap) {
    let Some(tag) = headers.get(header::ETAG).and_then(|tag| tag.to_str().ok()) else { return };
    let weak = format!("W/{tag}");
    let asked = accepted.if_none_match.as_ref().and_then(|tags| tags.to_str().ok());
    if asked.is_some_and(|tags| tags.contains(&weak)) {
        vary(headers, "Accept-Encoding");
        weaken(headers);
    }
}

/// Other bytes under the same tag: it says from here on that the meaning is the same (RFC 9110 section 8.8.3).
fn weaken(headers: &mut HeaderMap) {
    let Some(tag) = headers.get(header::ETAG).filter(|tag| tag.as_bytes().starts_with(b"\"")) else { return };
    if let Ok(weak) = HeaderValue::from_bytes(&[b"W/", tag.as_bytes()].concat()) {
        headers.insert(header::ETAG, weak);
    }
}

/// RFC 9111 section 5.2.2.6 speaks to proxies; a program may use it to keep a response from being compressed.
fn forbids(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::CACHE_CONTROL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .any(|value| value.split(',').any(|directive| directive.trim().eq_ignore_ascii_case("no-transform")))
}

/// Whether contents of the type get smaller: text in all its forms, and the binary types that are known to.
fn is_compressible(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()) else { return false };
    let essence = value.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    let Some((kind, name)) = essence.split_once('/') else { return false };
    if ["+json", "+xml", "+text", "+yaml"].iter().any(|suffix| name.ends_with(suffix)) {
        return true;
    }
    match kind {
        // Events have to leave at once.
        "text" => name != "event-stream",
        "application" => matches!(
            name,
            "json"
                | "ndjson"
                | "x-ndjson"
                | "jsonl"
                | "json-seq"
                | "javascript"
                | "x-javascript"
                | "ecmascript"
                | "xml"
                | "xml-dtd"
                | "wasm"
                | "yaml"
                | "x-yaml"
                | "toml"
                | "graphql"
                | "rtf"
                | "sql"
                | "x-sh"
                | "tar"
                | "x-tar"
                | "vnd.ms-fontobject"
        ),
        "font" => matches!(name, "ttf" | "otf" | "sfnt" | "collection"),
        "image" => matches!(name, "bmp" | "x-ms-bmp" | "vnd.microsoft.icon" | "x-icon"),
        _ => false,
    }
}

/// The coding that the client likes best of `ours`; the first of those that it likes as much. `None`: as it is.
fn choose(headers: &HeaderMap, ours: &[Coding]) -> Option<Coding> {
    let (mut star, mut identity) = (None, None);
    let mut wanted: [Option<u16>; 3] = [None; 3];
    for value in headers.get_all(header::ACCEPT_ENCODING) {
        for item in value.to_str().ok()?.split(',') {
            let mut parts = item.split(';').map(str::trim);
            let name = parts.next().unwrap_or("").to_ascii_lowercase();
            // What cannot be read is not wanted.
            let weight = parts.next().map_or(Some(1000), weight).unwrap_or(0);
            match &*name {
                "*" => star = Some(weight),
                "identity" => identity = Some(weight),
                "x-gzip" => wanted[Coding::Gzip as usize] = Some(weight),
                name => {
                    if let Some(coding) = Coding::named(name) {
                        wanted[coding as usize] = Some(weight);
                    }
                }
            }
        }
    }
    let mut best = (identity.unwrap_or(0), None);
    // From the back: of equals the last one looked at stays.
    for &coding in ours.iter().rev() {
        let weight = wanted[coding as usize].or(star).unwrap_or(0);
        if weight > 0 && weight >= best.0 {
            best = (weight, Some(coding));
        }
    }
    best.1
}

/// Thousandths of a `q=` parameter (RFC 9110 section 12.4.2).
fn weight(parameter: &str) -> Option<u16> {
    let (name, value) = parameter.split_once('=')?;
    let (name, value) = (name.trim_end(), value.trim_start());
    let (whole, fraction) = value.split_once('.').unwrap_or((value, ""));
    if !name.eq_ignore_ascii_case("q") || fraction.len() > 3 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let thousandths = format!("{fraction:0<3}").parse::<u16>().ok()?;
    match whole {
        "0" => Some(thousandths),
        "1" if thousandths == 0 => Some(1000),
        _ => None,
    }
}

/// A compressor that writes into memory.
enum Encoder {
    Zstd(zstd::stream::write::Encoder<'static, Vec<u8>>),
    Brotli(Box<brotli::CompressorWriter<Vec<u8>>>),
    Gzip(GzEncoder<Vec<u8>>),
}

impl Encoder {
    fn new(coding: Coding, level: u32, size: Option<u64>) -> io::Result<Self> {
        Ok(match coding {
            Coding::Zstd => {
                let mut encoder =
                    zstd::stream::write::Encoder::new(Vec::new(), i32::try_from(level).unwrap_or_default())?;
                // The tables are made for it. Only what is sure: another size than the announced one is an error.
                if let Some(size) = size.filter(|size| *size <= AT_ONCE) {
                    encoder.set_pledged_src_size(Some(size))?;
                }
                // RFC 9659: no larger window than 8 MiB; the levels that there are stay below.
                Self::Zstd(encoder)
            }
            Coding::Brotli => {
                // A window of 1 MiB at most, since each response under way has one.
                let bits = size.map_or(20, |size| (64 - size.leading_zeros()).clamp(16, 20));
                let params = BrotliEncoderParams {
                    quality: i32::try_from(level).unwrap_or_default(),
                    lgwin: i32::try_from(bits).unwrap_or(20),
                    // 64 KiB are compressed in one go, whatever the size of the pieces.
                    lgblock: 16,
                    size_hint: size.and_then(|size| usize::try_from(size).ok()).unwrap_or(0),
                    ..BrotliEncoderParams::default()
                };
                Self::Brotli(Box::new(brotli::CompressorWriter::with_params(Vec::new(), 4096, &params)))
            }
            Coding::Gzip => Self::Gzip(GzEncoder::new(Vec::new(), flate2::Compression::new(level))),
        })
    }

    fn write(&mut self, data: &[u8]) -> io::Result<()> {
        match self {
            Self::Zstd(encoder) => encoder.write_all(data),
            Self::Brotli(encoder) => encoder.write_all(data),
            Self::Gzip(encoder) => encoder.write_all(data),
        }
    }

    fn made(&mut self) -> &mut Vec<u8> {
        match self {
            Self::Zstd(encoder) => encoder.get_mut(),
            Self::Brotli(encoder) => encoder.get_mut(),
            Self::Gzip(encoder) => encoder.get_mut(),
        }
    }

    /// Ends the content; what is left of it.
    fn finish(self) -> io::Result<Bytes> {
        Ok(match self {
            Self::Zstd(encoder) => encoder.finish()?,
            Self::Brotli(encoder) => encoder.into_inner(),
            Self::Gzip(encoder) => encoder.finish()?,
        }
        .into())
    }

    fn whole(mut self, data: &[u8]) -> io::Result<Bytes> {
        self.write(data)?;
        self.finish()
    }
}

/// A content being compressed.
struct Compressed {
    inner: Body,
    /// `None`: all is done.
    encoder: Option<Encoder>,
    /// What was taken from `inner` and not yet compressed.
    rest: Bytes,
    /// A piece was compressed since somebody else had a turn.
    worked: bool,
}

impl Compressed {
    fn new(inner: Body, encoder: Encoder) -> Self {
        Self { inner, encoder: Some(encoder), rest: Bytes::new(), worked: false }
    }

    /// Lets the I/O thread look at its sockets first: a wake-up by the waker alone would come before that.
    fn give_way(&mut self, cx: &mut Context<'_>) {
        self.worked = false;
        // Dropped at once: the first poll has put the waker where the runtime finds it.
        let _ = std::pin::pin!(tokio::task::yield_now()).poll(cx);
    }
}

impl hyper::body::Body for Compressed {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        loop {
            if this.worked {
                this.give_way(cx);
                return Poll::Pending;
            }
            let Some(encoder) = &mut this.encoder else { return Poll::Ready(None) };
            if this.rest.is_empty() {
                match ready!(Pin::new(&mut this.inner).poll_frame(cx)) {
                    Some(Ok(frame)) => this.rest = frame.into_data().unwrap_or_default(),
                    Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                    None => {
                        let Some(encoder) = this.encoder.take() else { return Poll::Ready(None) };
                        return Poll::Ready(Some(encoder.finish().map(Frame::data).map_err(Into::into)));
                    }
                }
                continue;
            }
            let piece = this.rest.split_to(this.rest.len().min(PIECE));
            encoder.write(&piece)?;
            this.worked = true;
            let made = encoder.made();
            if made.len() >= ENOUGH {
                return Poll::Ready(Some(Ok(Frame::data(std::mem::take(made).into()))));
            }
        }
    }
}

/// No content, of a length that nobody knows; with an error one that could not be begun, so that hyper breaks off.
struct Unsized(Option<io::Error>);

impl hyper::body::Body for Unsized {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Poll::Ready(self.0.take().map(|error| Err(error.into())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(accept: &[&str], ours: &[Coding]) -> Option<Coding> {
        let mut headers = HeaderMap::new();
        for value in accept {
            headers.append(header::ACCEPT_ENCODING, HeaderValue::from_str(value).unwrap());
        }
        choose(&headers, ours)
    }

    #[test]
    fn the_clients_weights_come_before_our_order() {
        use Coding::{Brotli, Gzip, Zstd};
        let all = [Zstd, Brotli, Gzip];
        for (accept, expected) in [
            ("", None),
            ("identity", None),
            ("gzip, deflate, br, zstd", Some(Zstd)),
            ("gzip, deflate, br", Some(Brotli)),
            ("GZIP", Some(Gzip)),
            ("x-gzip", Some(Gzip)),
            ("deflate", None),
            ("gzip;q=1.0, br;q=0.5, zstd;q=0.500", Some(Gzip)),
            ("gzip;q=0.001", Some(Gzip)),
            ("gzip;q=0", None),
            ("gzip ; q=0.2 , br ; q=0.8", Some(Brotli)),
            ("*", Some(Zstd)),
            ("*;q=0", None),
            ("zstd;q=0, *", Some(Brotli)),
            ("*;q=0.1, gzip", Some(Gzip)),
            ("gzip;q=0.5, identity", None),
            ("gzip;q=0.5, identity;q=0.5", Some(Gzip)),
            ("identity;q=0", None),
            ("identity;q=0, gzip;q=0.1", Some(Gzip)),
            ("gzip;q=2", None),
            ("gzip;q=0.1234", None),
            ("gzip;q=1.001", None),
            ("gzip;q=-1", None),
            ("gzip;level=1", None),
            (";;,,=", None),
        ] {
            assert_eq!(chosen(&[accept], &all), expected, "{accept}");
        }
        assert_eq!(chosen(&[], &all), None);
        assert_eq!(chosen(&["gzip;q=0.5", "br;q=0.6"], &all), Some(Brotli));
        assert_eq!(chosen(&["gzip, br"], &[Gzip, Brotli]), Some(Gzip));
        assert_eq!(chosen(&["br"], &[Gzip]), None);
    }

    #[test]
    fn the_answer_to_head_that_has_no_content_gets_the_head_of_get() {
        let compression = Compression { min_size: 100, codings: vec![Coding::Gzip], level: None };
        let request = Request::head("/").header("accept-encoding", "gzip").body(()).unwrap();
        for (length, coded) in [(100, true), (99, false)] {
            let mut response = Response::builder()
                .header("content-type", "text/css")
                .header("content-length", length)
                .header("etag", "\"a\"")
                .body(Body::default())
                .unwrap();
            compression.apply(&compression.negotiate(&request), &mut response);
            let headers = response.headers();
            assert_eq!(headers.contains_key("content-encoding"), coded);
            assert_eq!(headers.contains_key("content-length"), !coded);
            assert_eq!(headers["etag"], if coded { "W/\"a\"" } else { "\"a\"" });
            assert_eq!(response.body().size_hint().exact().is_none(), coded);
        }
    }

    #[test]
    fn texts_are_compressible_pictures_are_not() {
        for (content_type, expected) in [
            ("text/html; charset=utf-8", true),
            ("TEXT/PLAIN", true),
            ("text/event-stream", false),
            ("application/json", true),
            ("application/problem+json", true),
            ("image/svg+xml", true),
            ("application/octet-stream", false),
            ("image/png", false),
            ("font/woff2", false),
            ("video/mp4", false),
            ("text", false),
            ("", false),
        ] {
            let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_str(content_type).unwrap())]);
            assert_eq!(is_compressible(&headers), expected, "{content_type}");
        }
    }
}
