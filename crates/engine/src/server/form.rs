//! Forms in requests: `multipart/form-data` (RFC 7578) is taken apart as it arrives, by multer. A body of
//! `application/x-www-form-urlencoded` is one like any other until the program asks for its fields: curl calls all that it
//! sends so.
//!
//! What a part is called is read here: multer does not know `filename*` (RFC 8187) nor what browsers write for a quotation
//! mark.

use super::coding::Pieces;
use super::content::Unread;
use crate::endpoint::Endpoint;
use crate::upload::{Form, Receiving, Upload};
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use http::header::{self, HeaderMap};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

/// RFC 2046 section 5.1.1.
const MAX_BOUNDARY: usize = 70;

/// The boundary of a multipart form; `None` for any other content.
///
/// # Errors
/// When there is none, or it is no boundary.
pub(super) fn boundary(headers: &HeaderMap) -> Result<Option<String>, Unread> {
    let Some(value) = content_type(headers, "multipart/form-data") else { return Ok(None) };
    let bad = |why: &str| Err(Unread::Bad(format!("multipart/form-data {why}")));
    let Some((_, boundary)) = parameters(value).find(|(name, _)| name == "boundary") else {
        return bad("without a boundary");
    };
    // RFC 2046 section 5.1.1 has fewer characters, but all that cannot end a line do.
    let fits = (1..=MAX_BOUNDARY).contains(&boundary.len()) && !boundary.ends_with(b" ");
    if !fits || !boundary.iter().all(|b| (b' '..=b'~').contains(b)) {
        return bad("with a boundary that is none");
    }
    Ok(Some(String::from_utf8_lossy(&boundary).into_owned()))
}

/// Whether the content is an `application/x-www-form-urlencoded` form.
pub(crate) fn is_urlencoded(headers: &HeaderMap) -> bool {
    content_type(headers, "application/x-www-form-urlencoded").is_some()
}

/// The Content-Type, if it is this one.
fn content_type<'a>(headers: &'a HeaderMap, wanted: &str) -> Option<&'a [u8]> {
    let value = headers.get(header::CONTENT_TYPE)?.as_bytes();
    let essence = value.split(|b| *b == b';').next()?.trim_ascii();
    essence.eq_ignore_ascii_case(wanted.as_bytes()).then_some(value)
}

/// Hands multer one piece at a time. multer takes all that is ready before it looks at any, and gathers a preamble or a
/// part's head without a limit: here is the limit.
struct Spoon {
    pieces: Pieces,
    /// Bytes that may still be handed over before a part's head has to be complete.
    room: Arc<AtomicUsize>,
    /// One was handed over in this poll.
    given: bool,
    /// It asked for more since there was no room.
    asked: bool,
}

impl Stream for Spoon {
    type Item = Result<Bytes, Unread>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let full = self.room.load(Ordering::Relaxed) == 0;
        // It asks for more before it has looked at what it has.
        if std::mem::take(&mut self.given) || (full && !std::mem::replace(&mut self.asked, true)) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if full {
            return Poll::Ready(Some(Err(Unread::Bad("the head of a part is too large".to_owned()))));
        }
        self.asked = false;
        let polled = self.pieces.as_mut().poll_next(cx);
        if let Poll::Ready(Some(Ok(piece))) = &polled {
            self.given = true;
            let room = self.room.load(Ordering::Relaxed);
            if room != usize::MAX {
                self.room.store(room.saturating_sub(piece.len()), Ordering::Relaxed);
            }
        }
        polled
    }
}

/// Reads a multipart form.
pub(super) async fn read(pieces: Pieces, boundary: String, endpoint: &Arc<Endpoint>) -> Result<Form, Unread> {
    let settings = &endpoint.settings;
    let room = Arc::new(AtomicUsize::new(0));
    let mut spoon = Spoon { pieces, room: Arc::clone(&room), given: false, asked: false };
    let mut multipart = multer::Multipart::new(&mut spoon, boundary);
    let mut form = Form::default();
    let mut parts = 0;
    // Bytes of finished parts in memory. One form has no more of it than any other body.
    let mut kept = 0;
    loop {
        room.store(settings.max_header_size, Ordering::Relaxed);
        let Some(mut part) = multipart.next_field().await.map_err(why)? else { break };
        room.store(usize::MAX, Ordering::Relaxed);
        parts += 1;
        if parts > settings.max_form_parts {
            return Err(Unread::TooLarge("max_form_parts", settings.max_form_parts));
        }
        let Some((name, filename)) = names(part.headers()) else {
            return Err(Unread::Bad("a part of the form has no name".to_owned()));
        };
        kept += name.len();
        let Some(filename) = filename else {
            let mut value = Vec::new();
            while let Some(piece) = part.chunk().await.map_err(why)? {
                if value.len() + piece.len() > settings.max_form_field_size {
                    return Err(Unread::TooLarge("max_form_field_size", settings.max_form_field_size));
                }
                if kept + value.len() + piece.len() > settings.max_body_size {
                    return Err(Unread::TooLarge("max_body_size", settings.max_body_size));
                }
                value.extend_from_slice(&piece);
            }
            kept += value.len();
            form.fields.push((name, text(&value)));
            continue;
        };
        let content_type = part.headers().get(header::CONTENT_TYPE).map(|value| text(value.as_bytes()));
        let mut file = Receiving::new(endpoint);
        while let Some(piece) = part.chunk().await.map_err(why)? {
            let room = settings.upload_threshold.min(settings.max_body_size.saturating_sub(kept));
            file.push(&piece, room).await.map_err(Unread::NotStored)?;
        }
        kept += filename.len() + content_type.as_ref().map_or(0, String::len) + file.in_memory();
        let (place, size) = file.finish().await.map_err(Unread::NotStored)?;
        // What a browser sends for a file that nobody has chosen (WHATWG HTML section 4.10.21.4).
        if filename.is_empty() && size == 0 {
            continue;
        }
        let content_type = content_type.unwrap_or_else(|| "application/octet-stream".to_owned());
        form.files.push(Upload::new(name, filename, content_type, size, place));
    }
    drop(multipart);
    // What follows the last boundary means nothing (RFC 2046 section 5.1.1), but has to be read for the next request.
    room.store(usize::MAX, Ordering::Relaxed);
    while let Some(piece) = spoon.next().await {
        piece?;
    }
    Ok(form)
}

/// What multer found wrong, or what went through it.
fn why(error: multer::Error) -> Unread {
    match error {
        multer::Error::StreamReadFailed(error) => match error.downcast::<Unread>() {
            Ok(unread) => *unread,
            Err(error) => Unread::Bad(error.to_string()),
        },
        _ => Unread::Bad("the content is not multipart/form-data, or ends too early".to_owned()),
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The name of a part's field, and of its file if it is one. `None`: it has no name.
fn names(headers: &HeaderMap) -> Option<(String, Option<String>)> {
    let value = headers.get(header::CONTENT_DISPOSITION)?.as_bytes();
    let kind = value.split(|b| *b == b';').next()?.trim_ascii();
    if !kind.eq_ignore_ascii_case(b"form-data") {
        return None;
    }
    let (mut name, mut filename) = (None, None);
    let (mut extended_name, mut extended_filename) = (None, None);
    for (parameter, value) in parameters(value) {
        // The first of each counts.
        match parameter.as_str() {
            "name" if name.is_none() => name = Some(browser_text(&value)),
            "filename" if filename.is_none() => filename = Some(browser_text(&value)),
            "name*" if extended_name.is_none() => extended_name = extended(&value),
            "filename*" if extended_filename.is_none() => extended_filename = extended(&value),
            _ => {}
        }
    }
    // RFC 6266 section 4.3: the extended one is preferred. RFC 7578 section 4.2 has none, but senders do.
    Some((extended_name.or(name)?, extended_filename.or(filename)))
}

/// UTF-8, with the three characters that browsers escape (WHATWG HTML section 4.10.21.8).
fn browser_text(bytes: &[u8]) -> String {
    let text = text(bytes);
    if !text.contains('%') {
        return text;
    }
    text.replace("%22", "\"").replace("%0D", "\r").replace("%0d", "\r").replace("%0A", "\n").replace("%0a", "\n")
}

/// An extended value (RFC 8187 section 3.2): `UTF-8'en'%e2%82%ac`.
fn extended(value: &[u8]) -> Option<String> {
    let mut parts = value.splitn(3, |b| *b == b'\'');
    let (charset, _language, coded) = (parts.next()?, parts.next()?, parts.next()?);
    let bytes: Vec<u8> = percent_encoding::percent_decode(coded).collect();
    if charset.eq_ignore_ascii_case(b"utf-8") {
        return String::from_utf8(bytes).ok();
    }
    // RFC 5987, its predecessor, has this one too.
    charset.eq_ignore_ascii_case(b"iso-8859-1").then(|| bytes.iter().map(|b| char::from(*b)).collect())
}

/// The parameters of a header value behind its first semicolon: names in lower case, values unquoted.
fn parameters(value: &[u8]) -> impl Iterator<Item = (String, Vec<u8>)> {
    let mut rest = value.iter().position(|b| *b == b';').map_or(&value[..0], |at| &value[at + 1..]);
    std::iter::from_fn(move || {
        loop {
            rest = rest.trim_ascii_start();
            if rest.is_empty() {
                return None;
            }
            let end = rest.iter().position(|b| matches!(b, b'=' | b';')).unwrap_or(rest.len());
            let name = text(rest[..end].trim_ascii()).to_ascii_lowercase();
            if rest.get(end) != Some(&b'=') {
                // No value: passed over.
                rest = rest.get(end + 1..).unwrap_or(&[]);
                continue;
            }
            rest = rest[end + 1..].trim_ascii_start();
            let value = if rest.first() == Some(&b'"') {
                let (value, used) = unquoted(&rest[1..]);
                rest = &rest[1 + used..];
                let end = rest.iter().position(|b| *b == b';').map_or(rest.len(), |at| at + 1);
                rest = &rest[end..];
                value
            } else {
                let end = rest.iter().position(|b| *b == b';').unwrap_or(rest.len());
                let value = rest[..end].trim_ascii().to_vec();
                rest = rest.get(end + 1..).unwrap_or(&[]);
                value
            };
            return Some((name, value));
        }
    })
}

/// A quoted string behind its first quotation mark, and how many bytes it takes with its last. A backslash quotes a
/// quotation mark or another backslash; any other stands for itself, as in the paths that some browsers have sent.
fn unquoted(quoted: &[u8]) -> (Vec<u8>, usize) {
    let mut value = Vec::with_capacity(quoted.len());
    let mut at = 0;
    while let Some(&byte) = quoted.get(at) {
        at += 1;
        match (byte, quoted.get(at)) {
            (b'"', _) => break,
            (b'\\', Some(&next @ (b'"' | b'\\'))) => {
                value.push(next);
                at += 1;
            }
            _ => value.push(byte),
        }
    }
    (value, at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Settings;
    use crate::upload::Content;
    use futures_util::stream;
    use http::HeaderValue;

    fn named(value: &[u8]) -> Option<(String, Option<String>)> {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_DISPOSITION, HeaderValue::from_bytes(value).unwrap());
        names(&headers)
    }

    #[test]
    fn names_are_read_as_senders_write_them() {
        let table: [(&[u8], &str, Option<&str>); 12] = [
            (b"form-data; name=\"a\"", "a", None),
            (b"Form-Data; NAME=a ; other", "a", None),
            (b"form-data;name=a;filename=b c.txt", "a", Some("b c.txt")),
            (b"form-data; name=\"a;b=\\\"c\\\"\"; filename=\"C:\\x\\\\y.txt\"", "a;b=\"c\"", Some("C:\\x\\y.txt")),
            (b"form-data; name=\"%22%0D%0a%41\"; filename=\"\"", "\"\r\n%41", Some("")),
            (b"form-data; name=\"\xc3\xa9\"; filename=\"\xff\"", "\u{e9}", Some("\u{fffd}")),
            (b"form-data; filename*=UTF-8''%e2%82%ac.txt; filename=x; name=a", "a", Some("\u{20ac}.txt")),
            (b"form-data; name=a; filename=x; filename*=utf-8'en'%ff", "a", Some("x")),
            (b"form-data; name=a; filename*=iso-8859-1''%e9", "a", Some("\u{e9}")),
            (b"form-data; name=a; filename*=nonsense", "a", None),
            (b"form-data; filename=name; name=\"\"; name=b", "", Some("name")),
            (b"form-data; name=\"open; filename=x", "open; filename=x", None),
        ];
        for (value, name, filename) in table {
            let expected = Some((name.to_owned(), filename.map(str::to_owned)));
            assert_eq!(named(value), expected, "{}", String::from_utf8_lossy(value));
        }
        for none in [&b"form-data"[..], b"form-data; filename=x", b"attachment; name=a", b""] {
            assert_eq!(named(none), None);
        }
    }

    fn boundary_of(value: &'static str) -> Result<Option<String>, ()> {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(value));
        boundary(&headers).map_err(drop)
    }

    #[test]
    fn a_boundary_is_short_and_of_characters_that_show() {
        const SEVENTY: &str =
            "multipart/form-data; boundary=0123456789012345678901234567890123456789012345678901234567890123456789";
        const MORE: &str =
            "multipart/form-data; boundary=01234567890123456789012345678901234567890123456789012345678901234567890";
        assert_eq!(boundary_of(SEVENTY).unwrap().unwrap().len(), MAX_BOUNDARY);
        assert_eq!(boundary_of("Multipart/Form-Data ; charset=x; Boundary=\"a b\"").unwrap().as_deref(), Some("a b"));
        assert_eq!(boundary_of("multipart/mixed; boundary=x").unwrap(), None);
        assert_eq!(boundary_of("text/plain").unwrap(), None);
        for bad in
            [MORE, "multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=\"a \""]
        {
            assert!(boundary_of(bad).is_err(), "{bad}");
        }
    }

    /// Reads a form that arrives in these pieces; also how many of them were taken.
    fn read_pieces(pieces: Vec<Vec<u8>>, settings: Settings) -> (Result<Form, Unread>, usize) {
        let endpoint = Endpoint::new(settings, None).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let taken = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&taken);
        let pieces = stream::iter(pieces).map(move |piece| {
            counter.fetch_add(1, Ordering::Relaxed);
            Ok(Bytes::from(piece))
        });
        let form = runtime.block_on(read(pieces.boxed(), "b-o".to_owned(), &endpoint));
        (form, taken.load(Ordering::Relaxed))
    }

    fn small() -> Settings {
        Settings { upload_threshold: 8, max_header_size: 200, ..Settings::default() }
    }

    /// Name, content, whether it is in a temporary file.
    type File = (String, Vec<u8>, bool);

    /// Fields and files.
    fn held(form: &Form) -> (Vec<(String, String)>, Vec<File>) {
        let files = form.files.iter().map(|file| {
            let content = match file.content() {
                Content::Bytes(bytes) => bytes.to_vec(),
                Content::File(path) => std::fs::read(path).unwrap(),
            };
            assert_eq!(content.len() as u64, file.size);
            (file.filename.clone(), content, file.is_temporary())
        });
        (form.fields.clone(), files.collect())
    }

    const BODY: &[u8] = b"preamble\r\n--b-o\r\nContent-Disposition: form-data; name=a\r\n\r\nv\r\n--b-\r\n\r\n\
        --b-o \t\r\nContent-Disposition: form-data; name=f; filename=x\r\nContent-Type: a/b\r\n\r\n12345678\r\n\
        --b-o\r\nContent-Disposition: form-data; name=f; filename=y\r\n\r\n\r\r\n--\r\n--b123\r\r\n\
        --b-o\r\nContent-Disposition: form-data; name=e\r\n\r\n\r\n--b-o--\r\nepilogue";

    #[test]
    fn a_form_is_the_same_however_it_is_cut() {
        let fields = [("a", "v\r\n--b-\r\n"), ("e", "")].map(|(n, v)| (n.to_owned(), v.to_owned()));
        let files =
            [("x".to_owned(), b"12345678".to_vec(), false), ("y".to_owned(), b"\r\r\n--\r\n--b123\r".to_vec(), true)];
        let expected = (fields.to_vec(), files.to_vec());
        for cut in 0..=BODY.len() {
            let (one, two) = BODY.split_at(cut);
            let (form, _) = read_pieces(vec![one.to_vec(), two.to_vec()], small());
            assert_eq!(held(&form.unwrap()), expected, "cut at {cut}");
        }
        let (form, _) = read_pieces(BODY.iter().map(|b| vec![*b]).collect(), small());
        assert_eq!(held(&form.unwrap()), expected);
        // Every shorter one is refused, but for one that lacks the epilogue alone.
        let whole = BODY.len() - b"\r\nepilogue".len();
        for end in 0..whole {
            let (form, _) = read_pieces(vec![BODY[..end].to_vec()], small());
            assert!(matches!(form, Err(Unread::Bad(_))), "ends at {end}");
        }
    }

    #[test]
    fn what_has_no_end_is_not_gathered() {
        let start = b"--b-o\r\nContent-Disposition: form-data; name=a\r\nX: ";
        for start in [&b""[..], b"--b-o", start] {
            let mut pieces = vec![start.to_vec()];
            pieces.extend(std::iter::repeat_n(vec![b' '; 100], 1000));
            let (form, taken) = read_pieces(pieces, small());
            assert!(matches!(form, Err(Unread::Bad(_))), "{form:?}");
            assert!(taken <= 6, "{taken} pieces were taken");
        }
    }

    #[test]
    fn limits_are_named() {
        let limit_of = |settings| match read_pieces(vec![BODY.to_vec()], settings).0 {
            Err(Unread::TooLarge(name, _)) => Some(name),
            _ => None,
        };
        assert_eq!(limit_of(Settings { max_form_parts: 4, ..small() }), None);
        assert_eq!(limit_of(Settings { max_form_parts: 3, ..small() }), Some("max_form_parts"));
        assert_eq!(limit_of(Settings { max_form_field_size: 9, ..small() }), None);
        assert_eq!(limit_of(Settings { max_form_field_size: 8, ..small() }), Some("max_form_field_size"));
        assert_eq!(limit_of(Settings { max_body_size: 9, ..small() }), Some("max_body_size"));
    }
}
