//! A file as an answer: its headers, its first bytes, and the rest as a body that reads as fast as the client does.

use super::conditions::{Asked, Validators, Verdict, judge};
use super::tree::{open, read_at};
use crate::body::{Body, BodyError};
use crate::runtime::IoThread;
use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Response, StatusCode};
use hyper::body::{Frame, SizeHint};
use parking_lot::Mutex;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use std::fs::{File, Metadata};
use std::future::Future;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::SystemTime;

/// How much of a file is read at a time, and kept for a client that does not take it.
const CHUNK: usize = 128 << 10;
/// Buffers that are kept for the next chunk, whoever needs it: larger ones come from the system each time, page by page.
const KEPT: usize = 16;

static BUFFERS: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

/// A buffer that returns when hyper has written it.
struct Chunk {
    buffer: Vec<u8>,
    length: usize,
}

impl AsRef<[u8]> for Chunk {
    fn as_ref(&self) -> &[u8] {
        &self.buffer[..self.length]
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        let mut buffers = BUFFERS.lock();
        if buffers.len() < KEPT {
            buffers.push(std::mem::take(&mut self.buffer));
        }
    }
}

/// So many bytes from there on; `UnexpectedEof` when the file has become shorter.
fn chunk(length: usize, read: impl FnOnce(&mut [u8]) -> io::Result<usize>) -> io::Result<Bytes> {
    let whole = |n| if n == length { Ok(()) } else { Err(io::Error::from(io::ErrorKind::UnexpectedEof)) };
    if length <= CHUNK / 2 {
        let mut buffer = vec![0; length];
        whole(read(&mut buffer)?)?;
        return Ok(buffer.into());
    }
    let kept = BUFFERS.lock().pop();
    let mut chunk = Chunk { buffer: kept.unwrap_or_else(|| vec![0; CHUNK]), length };
    whole(read(&mut chunk.buffer[..length])?)?;
    Ok(Bytes::from_owner(chunk))
}

fn up_to_chunk(left: u64) -> usize {
    usize::try_from(left).map_or(CHUNK, |left| left.min(CHUNK))
}

/// An open file with what its answer says about it.
#[derive(Clone, Debug)]
pub struct Source {
    /// Shared with the threads that read it.
    pub(super) file: Arc<File>,
    pub(super) length: u64,
    pub(super) validators: Validators,
    pub(super) content_type: HeaderValue,
}

/// What makes one state of a file another than the next. The inode and its time of change tell a file that has replaced
/// another of the same size and date; hashed, since they are nobody's business.
fn tag(metadata: &Metadata, modified: Option<SystemTime>) -> String {
    let mut hasher = DefaultHasher::new();
    modified.hash(&mut hasher);
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        (metadata.ino(), metadata.ctime(), metadata.ctime_nsec()).hash(&mut hasher);
    }
    format!("{:x}-{:x}", metadata.len(), hasher.finish())
}

impl Source {
    /// Takes what was opened at `path`; `None` when it is not a file any more.
    pub(super) fn new(file: File, path: &Path) -> io::Result<Option<Self>> {
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Ok(None);
        }
        let modified = metadata.modified().ok();
        let validators = Validators::new(tag(&metadata, modified), modified, SystemTime::now());
        Ok(Some(Self { file: Arc::new(file), length: metadata.len(), validators, content_type: content_type(path) }))
    }

    /// Opens a file of the program's choice. Blocks for as long as the disk takes.
    ///
    /// # Errors
    /// When it is not there, is not a regular file (`IsADirectory`, `InvalidInput`), or may not be read.
    pub fn open(path: &Path) -> io::Result<Self> {
        // Looked at first: opening a FIFO or a device may do something.
        let metadata = std::fs::metadata(path)?;
        let wrong = |metadata: &Metadata| {
            io::Error::from(if metadata.is_dir() { io::ErrorKind::IsADirectory } else { io::ErrorKind::InvalidInput })
        };
        if !metadata.is_file() {
            return Err(wrong(&metadata));
        }
        Self::new(open(path)?, path)?.ok_or_else(|| wrong(&metadata))
    }

    /// What the file's name says of its content.
    #[must_use]
    pub fn content_type(&self) -> &HeaderValue {
        &self.content_type
    }
}

/// The content type of a file name; text is UTF-8.
#[must_use]
pub fn content_type(path: &Path) -> HeaderValue {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    // RFC 9239 has JavaScript as text; mime_guess knows that of ".js" alone.
    if extension.eq_ignore_ascii_case("mjs") || extension.eq_ignore_ascii_case("cjs") {
        return HeaderValue::from_static("text/javascript; charset=utf-8");
    }
    match mime_guess::from_ext(extension).first_raw() {
        Some(known) if known.starts_with("text/") => {
            HeaderValue::from_str(&format!("{known}; charset=utf-8")).unwrap_or(OCTETS)
        }
        Some(known) => HeaderValue::from_static(known),
        None => OCTETS,
    }
}

pub(super) const HTML: HeaderValue = HeaderValue::from_static("text/html; charset=utf-8");
const OCTETS: HeaderValue = HeaderValue::from_static("application/octet-stream");

/// Whether smaller copies of a file are worth looking for: pictures, films, sounds and fonts are compressed already.
pub(super) fn compresses(content_type: &HeaderValue) -> bool {
    let kind = content_type.as_bytes();
    kind.starts_with(b"image/svg")
        || ![&b"image/"[..], b"video/", b"audio/", b"font/woff"].iter().any(|prefix| kind.starts_with(prefix))
}

/// Bytes that RFC 8187's `attr-char` has as they are.
const ATTRIBUTE: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'!')
    .remove(b'#')
    .remove(b'$')
    .remove(b'&')
    .remove(b'+')
    .remove(b'-')
    .remove(b'.')
    .remove(b'^')
    .remove(b'_')
    .remove(b'`')
    .remove(b'|')
    .remove(b'~');

/// Content-Disposition of a file to be saved under a name (RFC 6266): in ASCII, and in full (RFC 8187) where that is not
/// the same. `None`: a name with control characters or slashes, or none at all.
#[must_use]
pub fn attachment(filename: &str) -> Option<HeaderValue> {
    if filename.is_empty() || filename.chars().any(|c| c.is_control() || c == '/' || c == '\\') {
        return None;
    }
    let plain: String = filename.chars().map(|c| if c.is_ascii() && !"\"%".contains(c) { c } else { '_' }).collect();
    let mut value = format!("attachment; filename=\"{plain}\"");
    if plain != filename {
        value.push_str("; filename*=UTF-8''");
        value.extend(utf8_percent_encode(filename, ATTRIBUTE));
    }
    HeaderValue::from_str(&value).ok()
}

/// The answer with a file. `status`: of the whole; conditions and ranges are for 200 alone. `headers`: what goes with the
/// content, and with 304. `read`: how the first bytes are read, perhaps not at all (`WouldBlock`).
pub(super) fn respond(
    source: &Source,
    read: impl FnOnce(&File, &mut [u8], u64) -> io::Result<usize>,
    asked: &Asked,
    status: StatusCode,
    mut headers: HeaderMap,
    io: &Arc<IoThread>,
) -> io::Result<Response<Body>> {
    let Source { file, length, validators, content_type } = source;
    let length = *length;
    let verdict = if status == StatusCode::OK { judge(asked, validators, length) } else { Verdict::Whole };
    if status == StatusCode::OK {
        headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        for (name, value) in [(header::ETAG, validators.etag()), (header::LAST_MODIFIED, validators.last_modified())] {
            if let Some(value) = value {
                headers.insert(name, value);
            }
        }
    }
    let (status, start, length, whole) = match verdict {
        Verdict::Whole => (status, 0, length, length),
        Verdict::Part(first, last) => (StatusCode::PARTIAL_CONTENT, first, last - first + 1, length),
        Verdict::NotModified => (StatusCode::NOT_MODIFIED, 0, 0, length),
        Verdict::Failed => (StatusCode::PRECONDITION_FAILED, 0, 0, length),
        Verdict::Unsatisfiable => (StatusCode::RANGE_NOT_SATISFIABLE, 0, 0, length),
    };
    let range = match verdict {
        Verdict::Part(first, last) => Some(format!("bytes {first}-{last}/{whole}")),
        Verdict::Unsatisfiable => Some(format!("bytes */{whole}")),
        _ => None,
    };
    if let Some(range) = range.and_then(|text| HeaderValue::from_str(&text).ok()) {
        headers.insert(header::CONTENT_RANGE, range);
    }
    let body = match verdict {
        Verdict::Whole | Verdict::Part(..) => {
            headers.entry(header::CONTENT_TYPE).or_insert_with(|| content_type.clone());
            if asked.head {
                headers.insert(header::CONTENT_LENGTH, length.into());
                Body::default()
            } else {
                let first = chunk(up_to_chunk(length), |buf| read(file, buf, start))?;
                let taken = first.len() as u64;
                if taken == length {
                    first.into()
                } else {
                    let (at, left) = (start + taken, length - taken);
                    Body::boxed(FileBody {
                        file: Arc::clone(file),
                        next: Next::Chunk(first),
                        at,
                        left,
                        io: Arc::clone(io),
                    })
                }
            }
        }
        Verdict::NotModified => {
            headers.remove(header::CONTENT_TYPE);
            headers.remove(header::CONTENT_ENCODING);
            Body::default()
        }
        Verdict::Failed | Verdict::Unsatisfiable => {
            headers.remove(header::CONTENT_ENCODING);
            headers.remove(header::CONTENT_DISPOSITION);
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
            let reason = status.canonical_reason().unwrap_or_default();
            format!("{} {reason}\n", status.as_u16()).into()
        }
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    Ok(response)
}

enum Next {
    Chunk(Bytes),
    Reading(Pin<Box<dyn Future<Output = io::Result<Bytes>> + Send>>),
    End,
}

/// The rest of a file. A chunk is read when hyper asks for it, so a client that does not read keeps one or two in memory.
/// The announced length is kept: a file that grows is cut, one that shrinks ends the connection.
struct FileBody {
    file: Arc<File>,
    next: Next,
    /// Behind what was read.
    at: u64,
    /// To be read.
    left: u64,
    io: Arc<IoThread>,
}

impl FileBody {
    /// Begins, once it is polled, to read what comes next.
    fn following(&self) -> Next {
        if self.left == 0 {
            return Next::End;
        }
        let (file, at, length) = (Arc::clone(&self.file), self.at, up_to_chunk(self.left));
        let io = Arc::clone(&self.io);
        let read = async move { super::blocking(&io, move || chunk(length, |buf| read_at(&file, buf, at))).await };
        Next::Reading(Box::pin(read))
    }
}

impl hyper::body::Body for FileBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let bytes = match std::mem::replace(&mut this.next, Next::End) {
            Next::Chunk(bytes) => bytes,
            Next::Reading(mut read) => match read.as_mut().poll(cx) {
                Poll::Pending => {
                    this.next = Next::Reading(read);
                    return Poll::Pending;
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                Poll::Ready(Ok(bytes)) => {
                    this.at += bytes.len() as u64;
                    this.left -= bytes.len() as u64;
                    bytes
                }
            },
            Next::End => return Poll::Ready(None),
        };
        this.next = this.following();
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.next, Next::End)
    }

    fn size_hint(&self) -> SizeHint {
        let waiting = match &self.next {
            Next::Chunk(bytes) => bytes.len() as u64,
            _ => 0,
        };
        SizeHint::with_exact(self.left + waiting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_that_browsers_are_strict_about() {
        for (name, expected) in [
            ("a.html", "text/html; charset=utf-8"),
            ("a.css", "text/css; charset=utf-8"),
            ("a.js", "text/javascript; charset=utf-8"),
            ("a.mjs", "text/javascript; charset=utf-8"),
            ("A.TXT", "text/plain; charset=utf-8"),
            ("a.json", "application/json"),
            ("a.wasm", "application/wasm"),
            ("a.svg", "image/svg+xml"),
            ("a.woff2", "font/woff2"),
            ("a.webm", "video/webm"),
            ("a.mp4", "video/mp4"),
            ("a.webmanifest", "application/manifest+json"),
            ("a.tar.gz", "application/gzip"),
            ("a", "application/octet-stream"),
            ("a.nobody-knows", "application/octet-stream"),
        ] {
            assert_eq!(content_type(Path::new(name)), expected, "{name}");
        }
        for (name, expected) in
            [("a.js", true), ("a.svg", true), ("a.wasm", true), ("a.png", false), ("a.woff2", false)]
        {
            assert_eq!(compresses(&content_type(Path::new(name))), expected, "{name}");
        }
    }

    #[test]
    fn names_to_save_under() {
        for (name, expected) in [
            ("a b.txt", "attachment; filename=\"a b.txt\""),
            ("50%.txt", "attachment; filename=\"50_.txt\"; filename*=UTF-8''50%25.txt"),
            ("\u{20ac} \"x\".txt", "attachment; filename=\"_ _x_.txt\"; filename*=UTF-8''%E2%82%AC%20%22x%22.txt"),
        ] {
            assert_eq!(attachment(name).unwrap(), expected, "{name}");
        }
        for name in ["", "a\r\nb", "a/b", "a\\b", "\u{7f}"] {
            assert!(attachment(name).is_none(), "{name:?}");
        }
    }

    #[test]
    fn a_chunk_is_whole_or_an_error() {
        let short = chunk(10, |buf| Ok(buf.len() - 1)).unwrap_err();
        assert_eq!(short.kind(), io::ErrorKind::UnexpectedEof);
        let large = chunk(CHUNK, |buf| {
            buf.fill(7);
            Ok(buf.len())
        });
        assert!(large.unwrap().iter().all(|b| *b == 7));
    }
}
