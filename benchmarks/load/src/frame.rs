//! Just enough of RFC 6455 section 5 for closed-loop load: headers out, and frames counted on the way in.

use std::fmt;

/// Opcode of a text message.
pub const TEXT: u8 = 0x1;
/// Opcode of a binary message.
pub const BINARY: u8 = 0x2;
/// Opcode of a close frame.
pub const CLOSE: u8 = 0x8;
/// Opcode of a ping.
pub const PING: u8 = 0x9;
/// Opcode of a pong.
pub const PONG: u8 = 0xA;

const FIN: u8 = 0x80;
const MASKED: u8 = 0x80;
/// Control frames carry at most this much (section 5.5).
const MAX_CONTROL: u8 = 125;
/// Any key will do for a benchmark, except zero, which would spare the server its work.
const MASK: [u8; 4] = [0x12, 0x34, 0x56, 0x78];

/// Appends the header of a whole, unmasked frame.
#[allow(clippy::cast_possible_truncation)] // each cast stands behind the comparison that makes it exact
pub fn push_header(out: &mut Vec<u8>, opcode: u8, length: usize) {
    out.push(FIN | opcode);
    if length <= usize::from(MAX_CONTROL) {
        out.push(length as u8);
    } else if let Ok(length) = u16::try_from(length) {
        out.push(126);
        out.extend_from_slice(&length.to_be_bytes());
    } else {
        out.push(127);
        out.extend_from_slice(&(length as u64).to_be_bytes());
    }
}

/// A whole frame as a client sends it: masked.
#[must_use]
pub fn client_frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(payload.len() + 14);
    push_header(&mut frame, opcode, payload.len());
    frame[1] |= MASKED;
    frame.extend_from_slice(&MASK);
    frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, key)| byte ^ key));
    frame
}

/// A client's frame inside a server's read buffer.
#[derive(Debug, PartialEq, Eq)]
pub struct ClientFrame {
    /// First byte of the header: FIN, reserved bits, opcode.
    pub first: u8,
    /// The masking key.
    pub mask: [u8; 4],
    /// Where the payload begins.
    pub start: usize,
    /// Where the payload, and with it the frame, ends.
    pub end: usize,
}

/// Finds the frame at the beginning of `bytes`: `None` while it is not all there.
///
/// # Errors
/// A frame that no client may send (unmasked), or one longer than `max_length`.
pub fn client_frame_at(bytes: &[u8], max_length: usize) -> Result<Option<ClientFrame>, &'static str> {
    let &[first, second, ref rest @ ..] = bytes else {
        return Ok(None);
    };
    if second & MASKED == 0 {
        return Err("unmasked frame");
    }
    let (length, header) = match (second & !MASKED, rest) {
        (126, &[a, b, ..]) => (usize::from(u16::from_be_bytes([a, b])), 4),
        (127, &[a, b, c, d, e, f, g, h, ..]) => {
            (usize::try_from(u64::from_be_bytes([a, b, c, d, e, f, g, h])).unwrap_or(usize::MAX), 10)
        }
        (126 | 127, _) => return Ok(None),
        (short, _) => (usize::from(short), 2),
    };
    if length > max_length {
        return Err("frame too long");
    }
    let (start, end) = (header + 4, header + 4 + length);
    match bytes.get(header..start) {
        Some(&[a, b, c, d]) if bytes.len() >= end => Ok(Some(ClientFrame { first, mask: [a, b, c, d], start, end })),
        _ => Ok(None),
    }
}

/// Masks or unmasks in place (section 5.3); eight bytes at a time, which the compiler widens further.
pub fn apply_mask(payload: &mut [u8], mask: [u8; 4]) {
    let [a, b, c, d] = mask;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (words, tail) = payload.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    for (byte, key) in tail.iter_mut().zip(mask) {
        *byte ^= key;
    }
    if let [_, _, _, _, rest @ ..] = tail {
        for (byte, key) in rest.iter_mut().zip(mask) {
            *byte ^= key;
        }
    }
}

/// Why a server fails the benchmark.
#[derive(Debug, PartialEq, Eq)]
pub enum Violation {
    /// The server sent a close frame.
    Closed {
        /// The close code, where the frame carried one.
        code: Option<u16>,
        /// The reason that came with it.
        reason: String,
    },
    /// The server sent a frame other than the message that it was sent.
    Header {
        /// The header as far as it was read.
        got: Vec<u8>,
        /// The header that every message of this run has.
        expected: Vec<u8>,
    },
    /// A control frame that is masked, fragmented, too long or of an unknown opcode.
    Control([u8; 2]),
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed { code: Some(code), reason } => write!(f, "close frame, code {code}, reason {reason:?}"),
            Self::Closed { code: None, .. } => write!(f, "close frame without a code"),
            Self::Header { got, expected } => {
                write!(f, "frame header {got:02x?} where {expected:02x?} was expected (one whole, unmasked text frame)")
            }
            Self::Control(header) => write!(f, "malformed control frame {header:02x?}"),
        }
    }
}

impl std::error::Error for Violation {}

/// Counts the messages that arrive on one connection; all of them have the same length, so that a message is
/// recognised by comparing its header, and payloads are skipped and never copied.
#[derive(Debug)]
pub struct FrameCounter {
    /// The header that every message has, and the length of its payload.
    expected: Vec<u8>,
    size: usize,
    /// Bytes of the current message's payload that are still to come.
    body_left: usize,
    /// A header (or a control frame) that the last read cut short; at most 127 bytes.
    held: Vec<u8>,
    /// Payload of the latest ping, until somebody takes it; older ones need no answer (section 5.5.3).
    pub ping: Option<Vec<u8>>,
}

impl FrameCounter {
    /// Expects unfragmented text messages of `size` bytes.
    #[must_use]
    pub fn new(size: usize) -> Self {
        let mut expected = Vec::new();
        push_header(&mut expected, TEXT, size);
        Self { expected, size, body_left: 0, held: Vec::new(), ping: None }
    }

    /// Takes what one read brought and returns how many messages it completed.
    ///
    /// # Errors
    /// The server's first violation; the connection is of no use afterwards.
    pub fn feed(&mut self, data: &[u8]) -> Result<u32, Violation> {
        let mut data = data;
        let mut messages = 0;
        while !data.is_empty() {
            if self.body_left > 0 {
                let step = self.body_left.min(data.len());
                self.body_left -= step;
                data = &data[step..];
                messages += u32::from(self.body_left == 0);
            } else if self.held.is_empty()
                && data.len() >= self.expected.len() + self.size
                && data.starts_with(&self.expected)
            {
                data = &data[self.expected.len() + self.size..];
                messages += 1;
            } else {
                self.held.push(data[0]);
                data = &data[1..];
                messages += u32::from(self.read_held()?);
            }
        }
        Ok(messages)
    }

    /// Looks at a header byte by byte; true when it completes a message, which only an empty one does.
    fn read_held(&mut self) -> Result<bool, Violation> {
        let &[first, second, ref payload @ ..] = self.held.as_slice() else {
            return Ok(false);
        };
        if first & 0x08 == 0 {
            if !self.expected.starts_with(&self.held) {
                return Err(Violation::Header { got: self.held.clone(), expected: self.expected.clone() });
            }
            if self.held.len() == self.expected.len() {
                self.held.clear();
                self.body_left = self.size;
                return Ok(self.size == 0);
            }
            return Ok(false);
        }
        if second > MAX_CONTROL || !matches!(first, 0x88..=0x8A) {
            return Err(Violation::Control([first, second]));
        }
        if payload.len() < usize::from(second) {
            return Ok(false);
        }
        match (first & 0x0F, payload) {
            (CLOSE, &[a, b, ref reason @ ..]) => {
                let reason = String::from_utf8_lossy(reason).into_owned();
                return Err(Violation::Closed { code: Some(u16::from_be_bytes([a, b])), reason });
            }
            (CLOSE, _) => {
                return Err(Violation::Closed { code: None, reason: String::new() });
            }
            (PING, payload) => self.ping = Some(payload.to_vec()),
            _ => {}
        }
        self.held.clear();
        Ok(false)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const SIZES: [usize; 8] = [0, 1, 64, 125, 126, 65_535, 65_536, 70_000];

    fn server_frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        push_header(&mut frame, opcode, payload.len());
        frame.extend_from_slice(payload);
        frame
    }

    #[test]
    fn client_frames_read_back() {
        for size in SIZES {
            let payload: Vec<u8> = (0..size).map(|i| u8::try_from(i % 251).unwrap()).collect();
            let mut bytes = client_frame(TEXT, &payload);
            for end in 0..bytes.len().min(16) {
                assert_eq!(client_frame_at(&bytes[..end], size), Ok(None));
            }
            bytes.extend_from_slice(b"trailing");
            let frame = client_frame_at(&bytes, size).unwrap().unwrap();
            assert_eq!((frame.first, frame.end), (0x81, bytes.len() - 8));
            let body = &mut bytes[frame.start..frame.end];
            apply_mask(body, frame.mask);
            assert_eq!(body, payload);
        }
        assert!(client_frame_at(&client_frame(TEXT, b"four"), 3).is_err());
        assert!(client_frame_at(&server_frame(TEXT, b"x"), 9).is_err());
    }

    #[test]
    fn messages_count_once_wherever_the_reads_cut() {
        for size in SIZES {
            let mut bytes = server_frame(TEXT, &vec![b'x'; size]).repeat(2);
            bytes.extend(server_frame(PING, b"are you there"));
            bytes.extend(server_frame(TEXT, &vec![b'x'; size]));
            assert_eq!(FrameCounter::new(size).feed(&bytes), Ok(3));
            for cut in (0..bytes.len()).step_by(1 + size / 100) {
                let mut counter = FrameCounter::new(size);
                let messages = counter.feed(&bytes[..cut]).unwrap() + counter.feed(&bytes[cut..]).unwrap();
                assert_eq!((messages, counter.ping.as_deref()), (3, Some(&b"are you there"[..])));
            }
            let mut counter = FrameCounter::new(size);
            let messages: u32 = bytes.iter().map(|&byte| counter.feed(&[byte]).unwrap()).sum();
            assert_eq!(messages, 3);
        }
    }

    #[test]
    fn anything_else_is_a_violation() {
        let fed = |bytes: &[u8]| FrameCounter::new(64).feed(bytes).unwrap_err();
        assert!(matches!(fed(&server_frame(BINARY, &[0; 64])), Violation::Header { .. }));
        assert!(matches!(fed(&server_frame(TEXT, &[0; 63])), Violation::Header { .. }));
        assert!(matches!(fed(&server_frame(TEXT, &[0; 640])), Violation::Header { .. }));
        assert!(matches!(fed(&client_frame(TEXT, &[0; 64])), Violation::Header { .. }));
        assert!(matches!(fed(&[0x01, 64]), Violation::Header { .. }));
        assert_eq!(fed(&[0x8B, 0]), Violation::Control([0x8B, 0]));
        assert_eq!(fed(&[0x89, 126]), Violation::Control([0x89, 126]));
        let closed = Violation::Closed { code: Some(1001), reason: "bye".to_owned() };
        assert_eq!(fed(&server_frame(CLOSE, b"\x03\xe9bye")), closed);
        assert_eq!(fed(&server_frame(CLOSE, b"")), Violation::Closed { code: None, reason: String::new() });
    }
}
