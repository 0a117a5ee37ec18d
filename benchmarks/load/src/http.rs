//! Requests, and answers counted as they arrive: HTTP/1.1 with Content-Length or in chunks (RFC 9112 section 7.1).

use crate::handshake::{MAX_HEAD, field, head_length};

/// A GET, or with a body a POST.
#[must_use]
pub fn request(host: &str, port: u16, path: &str, body: &[u8]) -> Vec<u8> {
    let mut request = if body.is_empty() {
        format!("GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n")
    } else {
        let length = body.len();
        format!(
            "POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/octet-stream\r\n\
             Content-Length: {length}\r\n\r\n"
        )
    }
    .into_bytes();
    request.extend_from_slice(body);
    request
}

/// What the body of every answer has to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    /// As long as the first one.
    SameLength(Option<usize>),
    /// So many bytes.
    Length(usize),
    /// So many times this byte.
    Filled(u8, usize),
}

impl Expected {
    /// Checks the length of a body.
    fn check(&mut self, length: usize) -> Result<(), String> {
        let expected = match self {
            Self::SameLength(first) => *first.get_or_insert(length),
            Self::Length(length) | Self::Filled(_, length) => *length,
        };
        if length == expected { Ok(()) } else { Err(format!("a body of {length} bytes instead of {expected}")) }
    }
}

/// What comes next on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// A head, up to its empty line.
    Head,
    /// So many bytes of a body with Content-Length.
    Body(usize),
    /// The line with a chunk's size.
    ChunkSize,
    /// So many bytes of a chunk.
    Chunk(usize),
    /// The end of the line behind a chunk.
    ChunkEnd,
    /// The empty line behind the last chunk; trailer fields are not expected.
    Trailer,
}

/// Counts the answers in what one connection receives.
#[derive(Debug)]
pub struct AnswerCounter {
    expected: Expected,
    next: Next,
    /// The beginning of a head or line whose end has not arrived.
    partial: Vec<u8>,
    /// Length of a body in chunks, so far.
    chunked: usize,
}

impl AnswerCounter {
    /// For a connection at its beginning.
    #[must_use]
    pub fn new(expected: Expected) -> Self {
        Self { expected, next: Next::Head, partial: Vec::new(), chunked: 0 }
    }

    /// Takes what one read brought; returns how many answers it completed.
    ///
    /// # Errors
    /// A sentence that says what is wrong with the answer: a status other than 200, a body of unknown or another length,
    /// another body.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Result<u32, String> {
        let mut answers = 0;
        while !bytes.is_empty() {
            if let Next::Body(left) | Next::Chunk(left) = self.next {
                let (body, rest) = bytes.split_at(bytes.len().min(left));
                if let Expected::Filled(fill, _) = self.expected
                    // A fold, which unlike `any` becomes vector instructions.
                    && body.iter().fold(0, |difference, &byte| difference | (byte ^ fill)) != 0
                {
                    return Err("the body is another one than was sent".to_owned());
                }
                bytes = rest;
                let left = left - body.len();
                self.next = match self.next {
                    Next::Body(_) if left == 0 => {
                        answers += 1;
                        Next::Head
                    }
                    Next::Body(_) => Next::Body(left),
                    _ if left == 0 => Next::ChunkEnd,
                    _ => Next::Chunk(left),
                };
                continue;
            }
            let used = if self.partial.is_empty() {
                let Some(end) = self.end_of_text(bytes) else {
                    self.partial.extend_from_slice(bytes);
                    break;
                };
                answers += self.text(&bytes[..end])?;
                end
            } else {
                let mut partial = std::mem::take(&mut self.partial);
                let kept = partial.len();
                partial.extend_from_slice(bytes);
                let Some(end) = self.end_of_text(&partial) else {
                    if partial.len() > MAX_HEAD {
                        return Err(format!("a head of more than {MAX_HEAD} bytes"));
                    }
                    self.partial = partial;
                    break;
                };
                answers += self.text(&partial[..end])?;
                end - kept
            };
            bytes = &bytes[used..];
        }
        Ok(answers)
    }

    /// Length of the head or line that is to come, once all of it is there.
    fn end_of_text(&self, bytes: &[u8]) -> Option<usize> {
        match self.next {
            Next::Head => head_length(bytes),
            _ => bytes.windows(2).position(|window| window == b"\r\n").map(|at| at + 2),
        }
    }

    /// Takes a whole head or line; returns how many answers end with it.
    fn text(&mut self, text: &[u8]) -> Result<u32, String> {
        let text = std::str::from_utf8(text).map_err(|_| "a head that is no text".to_owned())?;
        let mut ended = 0;
        self.next = match self.next {
            Next::Head => match body_length(text)? {
                Some(length) => {
                    self.expected.check(length)?;
                    ended = u32::from(length == 0);
                    if length == 0 { Next::Head } else { Next::Body(length) }
                }
                None => {
                    self.chunked = 0;
                    Next::ChunkSize
                }
            },
            Next::ChunkSize => {
                let size = text.trim_end().split(';').next().unwrap_or_default();
                let size = usize::from_str_radix(size, 16).map_err(|_| format!("a chunk of size {size:?}"))?;
                self.chunked = self.chunked.saturating_add(size);
                if size == 0 { Next::Trailer } else { Next::Chunk(size) }
            }
            Next::ChunkEnd if text == "\r\n" => Next::ChunkSize,
            Next::ChunkEnd => return Err("a chunk is longer than its size".to_owned()),
            Next::Trailer => {
                self.expected.check(self.chunked)?;
                ended = 1;
                Next::Head
            }
            body => body,
        };
        Ok(ended)
    }
}

/// The Content-Length of a head, which must be that of a 200; `None` if the body comes in chunks.
fn body_length(head: &str) -> Result<Option<usize>, String> {
    if !head.starts_with("HTTP/1.1 200") {
        return Err(format!("answered {:?}", head.lines().next().unwrap_or_default()));
    }
    match field(head, "content-length") {
        Some(length) => length.parse().map(Some).map_err(|_| format!("Content-Length: {length:?}")),
        None if field(head, "transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) => {
            Ok(None)
        }
        None => Err("neither Content-Length nor chunks".to_owned()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const PONG: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-LENGTH: 4\r\nServer: x\r\n\r\npong";
    const EMPTY: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";

    fn counter(expected: Expected) -> AnswerCounter {
        AnswerCounter::new(expected)
    }

    #[test]
    fn answers_are_counted_wherever_reads_cut_them() {
        let stream = PONG.repeat(3);
        for cut in 0..=stream.len() {
            let mut counter = counter(Expected::Length(4));
            let (first, second) = stream.split_at(cut);
            assert_eq!(counter.feed(first).unwrap() + counter.feed(second).unwrap(), 3, "cut at {cut}");
        }
        let chunks =
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\n\r\n";
        let stream = chunks.repeat(2);
        for cut in 0..=stream.len() {
            let mut counter = self::counter(Expected::Length(13));
            let (first, second) = stream.split_at(cut);
            assert_eq!(counter.feed(first).unwrap() + counter.feed(second).unwrap(), 2, "cut at {cut}");
        }
        let mut counter = counter(Expected::Filled(b'x', 4));
        let filled = [b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nxxxx".as_slice()].concat();
        assert_eq!(filled.iter().map(|&byte| counter.feed(&[byte]).unwrap()).sum::<u32>(), 1);
    }

    #[test]
    fn an_empty_body_is_an_answer() {
        assert_eq!(counter(Expected::Length(0)).feed(&EMPTY.repeat(2)), Ok(2));
    }

    #[test]
    fn wrong_answers_are_named() {
        let wrong = |expected, bytes: &[u8]| counter(expected).feed(bytes).unwrap_err();
        let same = || Expected::SameLength(None);
        assert!(wrong(same(), b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").contains("404"));
        assert!(wrong(same(), b"HTTP/1.1 200 OK\r\nServer: x\r\n\r\n").contains("neither Content-Length"));
        let chunked = |rest: &[u8]| [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", rest].concat();
        assert!(wrong(same(), &chunked(b"y\r\n")).contains("\"y\""));
        assert!(wrong(same(), &chunked(b"1\r\nabc\r\n")).contains("longer than its size"));
        assert!(wrong(Expected::Length(5), &chunked(b"1\r\na\r\n0\r\n\r\n")).contains("1 bytes instead of 5"));
        assert!(wrong(same(), b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n").contains("\"x\""));
        assert!(wrong(Expected::Length(5), PONG).contains("4 bytes instead of 5"));
        assert!(wrong(Expected::Filled(b'x', 4), PONG).contains("another one"));
        assert!(wrong(same(), &[PONG, EMPTY].concat()).contains("0 bytes instead of 4"));
    }

    #[test]
    fn an_endless_head_is_refused() {
        let mut counter = counter(Expected::SameLength(None));
        assert_eq!(counter.feed(&[b'x'; MAX_HEAD]), Ok(0));
        assert!(counter.feed(b"xx").unwrap_err().contains("head of more than"));
    }

    #[test]
    fn requests_have_what_a_server_needs() {
        let get = String::from_utf8(request("h", 1, "/ping", b"")).unwrap();
        assert_eq!(get, "GET /ping HTTP/1.1\r\nHost: h:1\r\n\r\n");
        let post = String::from_utf8(request("h", 1, "/echo", b"xx")).unwrap();
        assert!(
            post.starts_with("POST /echo HTTP/1.1\r\n") && post.ends_with("\r\nContent-Length: 2\r\n\r\nxx"),
            "{post}"
        );
    }
}
