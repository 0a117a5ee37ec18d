//! Requests, and answers counted as they arrive: HTTP/1.1 with Content-Length, which is what the servers under test
//! send for bodies whose length they know.

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
    fn length(&mut self, announced: usize) -> usize {
        match self {
            Self::SameLength(first) => *first.get_or_insert(announced),
            Self::Length(length) | Self::Filled(_, length) => *length,
        }
    }
}

/// Counts the answers in what one connection receives.
#[derive(Debug)]
pub struct AnswerCounter {
    expected: Expected,
    /// The beginning of a head whose end has not arrived.
    head: Vec<u8>,
    /// Bytes of the body that are still to come.
    body_left: usize,
}

impl AnswerCounter {
    /// For a connection at its beginning.
    #[must_use]
    pub fn new(expected: Expected) -> Self {
        Self { expected, head: Vec::new(), body_left: 0 }
    }

    /// Takes what one read brought; returns how many answers it completed.
    ///
    /// # Errors
    /// A sentence that says what is wrong with the answer: a status other than 200, no or another Content-Length, another
    /// body.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Result<u32, String> {
        let mut answers = 0;
        while !bytes.is_empty() {
            if self.body_left > 0 {
                let (body, rest) = bytes.split_at(bytes.len().min(self.body_left));
                if let Expected::Filled(fill, _) = self.expected
                    // A fold, which unlike `any` becomes vector instructions.
                    && body.iter().fold(0, |difference, &byte| difference | (byte ^ fill)) != 0
                {
                    return Err("the body is another one than was sent".to_owned());
                }
                self.body_left -= body.len();
                bytes = rest;
                answers += u32::from(self.body_left == 0);
                continue;
            }
            let kept = self.head.len();
            let (length, used) = if kept == 0 {
                let Some(end) = head_length(bytes) else {
                    self.head.extend_from_slice(bytes);
                    break;
                };
                (content_length(&bytes[..end])?, end)
            } else {
                self.head.extend_from_slice(bytes);
                let Some(end) = head_length(&self.head) else {
                    if self.head.len() > MAX_HEAD {
                        return Err(format!("a head of more than {MAX_HEAD} bytes"));
                    }
                    break;
                };
                (content_length(&self.head[..end])?, end - kept)
            };
            self.head.clear();
            let expected = self.expected.length(length);
            if length != expected {
                return Err(format!("Content-Length: {length} instead of {expected}"));
            }
            self.body_left = length;
            bytes = &bytes[used..];
            answers += u32::from(length == 0);
        }
        Ok(answers)
    }
}

/// The Content-Length of a head, which must be that of a 200.
fn content_length(head: &[u8]) -> Result<usize, String> {
    let head = std::str::from_utf8(head).map_err(|_| "a head that is no text".to_owned())?;
    if !head.starts_with("HTTP/1.1 200") {
        return Err(format!("answered {:?}", head.lines().next().unwrap_or_default()));
    }
    let length = field(head, "content-length").ok_or("no Content-Length")?;
    length.parse().map_err(|_| format!("Content-Length: {length:?}"))
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
        assert!(wrong(same(), b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").contains("no Content-Length"));
        assert!(wrong(same(), b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n").contains("\"x\""));
        assert!(wrong(Expected::Length(5), PONG).contains("4 instead of 5"));
        assert!(wrong(Expected::Filled(b'x', 4), PONG).contains("another one"));
        assert!(wrong(same(), &[PONG, EMPTY].concat()).contains("0 instead of 4"));
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
