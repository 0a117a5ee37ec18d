//! Opcodes, and frame headers to and from bytes (RFC 6455 section 5.2).
//!
//! ```text
//!   byte 0             byte 1             then
//!   FIN RSV1-3 opcode  MASK length        [length, 2 or 8 bytes, big endian] [mask key, 4 bytes, if MASK] payload
//!    1    3      4      1     7           length 126: 2 bytes follow; 127: 8 bytes follow
//! ```

use crate::mask;
use crate::violation::{self, Violation};
use std::fmt;

/// The longest frame header: 2 bytes, a 64-bit length and a mask key.
pub const MAX_HEADER: usize = 14;

/// Section 5.5: "All control frames MUST have a payload length of 125 bytes or less".
pub const MAX_CONTROL_PAYLOAD: usize = 125;

const FIN: u8 = 0x80;
const RSV: u8 = 0x70;
/// RFC 7692 section 6: "Per-Message Compressed".
const RSV1: u8 = 0x40;
const OPCODE: u8 = 0x0f;
const MASK: u8 = 0x80;
const LENGTH: u8 = 0x7f;
/// Values of the 7-bit length that announce a longer one.
const LENGTH_16: u8 = 126;
const LENGTH_64: u8 = 127;

/// What a frame is (section 5.2, and the registry in section 11.8).
#[repr(u8)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Opcode {
    /// A further fragment of the open message.
    Continuation = 0,
    /// A text message, or its first fragment.
    Text = 1,
    /// A binary message, or its first fragment.
    Binary = 2,
    /// The closing handshake.
    Close = 8,
    /// A ping.
    Ping = 9,
    /// The answer to a ping, or an unsolicited sign of life.
    Pong = 10,
}

impl Opcode {
    /// Whether this is a control opcode. Section 5.5: "Control frames are identified by opcodes where the most
    /// significant bit of the opcode is 1."
    pub const fn is_control(self) -> bool {
        self as u8 & 0x8 != 0
    }
}

impl TryFrom<u8> for Opcode {
    type Error = ReservedOpcode;

    fn try_from(value: u8) -> Result<Self, ReservedOpcode> {
        Ok(match value {
            0 => Self::Continuation,
            1 => Self::Text,
            2 => Self::Binary,
            8 => Self::Close,
            9 => Self::Ping,
            10 => Self::Pong,
            _ => return Err(ReservedOpcode(value)),
        })
    }
}

/// A number that is not an opcode: section 5.2 reserves 3-7 and 11-15, and four bits hold no more than 15.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReservedOpcode(pub u8);

impl fmt::Display for ReservedOpcode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is not a WebSocket opcode: use 0, 1, 2, 8, 9 or 10", self.0)
    }
}

impl std::error::Error for ReservedOpcode {}

/// What a message holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MessageKind {
    /// UTF-8 text.
    Text,
    /// Any bytes.
    Binary,
}

/// Writes the header of a frame whose payload has `payload_len` bytes and, if `mask` is given, will be masked with it.
/// Returns how many bytes of `buf` it used.
pub fn encode_header(
    buf: &mut [u8; MAX_HEADER],
    opcode: Opcode,
    fin: bool,
    payload_len: usize,
    mask: Option<[u8; 4]>,
) -> usize {
    buf[0] = opcode as u8 | if fin { FIN } else { 0 };
    let mask_bit = if mask.is_some() { MASK } else { 0 };
    // Section 5.2: "in all cases, the minimal number of bytes MUST be used to encode the length".
    let mut used = if payload_len < LENGTH_16 as usize {
        buf[1] = mask_bit | payload_len as u8;
        2
    } else if let Ok(length) = u16::try_from(payload_len) {
        buf[1] = mask_bit | LENGTH_16;
        buf[2..4].copy_from_slice(&length.to_be_bytes());
        4
    } else {
        buf[1] = mask_bit | LENGTH_64;
        buf[2..10].copy_from_slice(&(payload_len as u64).to_be_bytes());
        10
    };
    if let Some(key) = mask {
        buf[used..used + 4].copy_from_slice(&key);
        used += 4;
    }
    used
}

/// Appends a whole frame: the header, then the payload, masked if `mask` is given.
pub fn encode_frame(out: &mut Vec<u8>, opcode: Opcode, fin: bool, payload: &[u8], mask: Option<[u8; 4]>) {
    let mut header = [0; MAX_HEADER];
    let used = encode_header(&mut header, opcode, fin, payload.len(), mask);
    out.reserve(used + payload.len());
    out.extend_from_slice(&header[..used]);
    let start = out.len();
    out.extend_from_slice(payload);
    if let Some(key) = mask {
        mask::apply(&mut out[start..], key, 0);
    }
}

/// Appends a whole frame as [`encode_frame`] does, with RSV1 set: the first frame of a message that permessage-deflate
/// compressed (RFC 7692 section 6). `payload` is compressed already; control and continuation frames can't be.
pub fn encode_frame_rsv1(out: &mut Vec<u8>, opcode: Opcode, fin: bool, payload: &[u8], mask: Option<[u8; 4]>) {
    debug_assert!(matches!(opcode, Opcode::Text | Opcode::Binary));
    let start = out.len();
    encode_frame(out, opcode, fin, payload, mask);
    out[start] |= RSV1;
}

/// A decoded header, with the opcode already resolved to what the payload belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) body: Body,
    pub(crate) fin: bool,
    pub(crate) len: usize,
    pub(crate) key: Option<[u8; 4]>,
}

/// What a frame's payload belongs to. A continuation frame is what the message that it continues is, of its kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Body {
    Data(MessageKind),
    /// A message compressed by permessage-deflate.
    Compressed(MessageKind),
    Control(Control),
}

/// The control frames (section 5.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Control {
    Close,
    Ping,
    Pong,
}

/// What the next frame is allowed to be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Expect {
    /// Whether the peer's frames must be masked (it's a client) or must not be (it's a server).
    pub(crate) masked: bool,
    /// The fragmented message that is open, if one is.
    pub(crate) open: Option<MessageKind>,
    /// How many bytes of payload the message may still take.
    pub(crate) room: usize,
}

/// Reads a header from the front of `bytes`: the header and its length, or `None` if more bytes are needed.
///
/// Each violation is reported as soon as the bytes prove it, so that the outcome does not depend on how they were cut.
#[inline]
pub(crate) fn parse_header(bytes: &[u8], expect: Expect) -> Result<Option<(Header, usize)>, Violation> {
    let Some(&first) = bytes.first() else {
        return Ok(None);
    };
    let body = parse_first(first, expect.open)?;
    parse_rest(bytes, first, body, expect)
}

/// [`parse_header`] where permessage-deflate was negotiated; `compressed`: the open message is.
pub(crate) fn parse_header_deflate(
    bytes: &[u8],
    expect: Expect,
    compressed: bool,
) -> Result<Option<(Header, usize)>, Violation> {
    let Some(&first) = bytes.first() else {
        return Ok(None);
    };
    let body = parse_first_deflate(first, expect.open, compressed)?;
    // A compressed payload may be longer than the message: DEFLATE can be as wasteful as it likes. Its bytes aren't held,
    // and what they become is counted as they do.
    let room = if matches!(body, Body::Compressed(_)) { usize::MAX } else { expect.room };
    parse_rest(bytes, first, body, Expect { room, ..expect })
}

/// What follows the first byte.
#[inline]
fn parse_rest(bytes: &[u8], first: u8, body: Body, expect: Expect) -> Result<Option<(Header, usize)>, Violation> {
    let fin = first & FIN != 0;
    let Some(&second) = bytes.get(1) else {
        return Ok(None);
    };
    if (second & MASK != 0) != expect.masked {
        return Err(if expect.masked { violation::UNMASKED } else { violation::MASKED });
    }
    let short = second & LENGTH;
    let (len, end) = match (body, short) {
        (Body::Control(_), LENGTH_16 | LENGTH_64) => return Err(violation::CONTROL_TOO_LONG),
        (Body::Control(Control::Close), 1) => return Err(violation::CLOSE_ONE_BYTE),
        (_, LENGTH_16) => (parse_length::<2>(&bytes[2..], expect.room)?, 4),
        (_, LENGTH_64) => (parse_length::<8>(&bytes[2..], expect.room)?, 10),
        (Body::Data(_), _) if usize::from(short) > expect.room => return Err(violation::TOO_BIG),
        _ => (Some(usize::from(short)), 2),
    };
    let Some(len) = len else { return Ok(None) };

    let header = |key| Header { body, fin, len, key };
    if !expect.masked {
        return Ok(Some((header(None), end)));
    }
    Ok(bytes[end..].first_chunk().map(|&key| (header(Some(key)), end + 4)))
}

/// The first byte: FIN, RSV and opcode, checked against the message that is open.
///
/// | opcode | no message open | message open |
/// |---|---|---|
/// | text, binary | begins a message | 1002 |
/// | continuation | 1002 | continues it |
/// | control, FIN | allowed | allowed |
/// | control, no FIN | 1002 | 1002 |
/// | reserved | 1002 | 1002 |
fn parse_first(first: u8, open: Option<MessageKind>) -> Result<Body, Violation> {
    if first & RSV != 0 {
        return Err(violation::RSV);
    }
    let opcode = Opcode::try_from(first & OPCODE).map_err(|_| violation::OPCODE)?;
    let control = |control| {
        if first & FIN == 0 {
            return Err(violation::CONTROL_FRAGMENTED);
        }
        Ok(Body::Control(control))
    };
    match (opcode, open) {
        (Opcode::Text, None) => Ok(Body::Data(MessageKind::Text)),
        (Opcode::Binary, None) => Ok(Body::Data(MessageKind::Binary)),
        (Opcode::Continuation, Some(kind)) => Ok(Body::Data(kind)),
        (Opcode::Text | Opcode::Binary, Some(_)) => Err(violation::MESSAGE_OPEN),
        (Opcode::Continuation, None) => Err(violation::NOTHING_TO_CONTINUE),
        (Opcode::Close, _) => control(Control::Close),
        (Opcode::Ping, _) => control(Control::Ping),
        (Opcode::Pong, _) => control(Control::Pong),
    }
}

/// The first byte where permessage-deflate was negotiated. RFC 7692 section 6 gives RSV1 a meaning:
///
/// | RSV1 | opcode | |
/// |---|---|---|
/// | set | text, binary | as without RSV1; the message is compressed |
/// | set | any other | 1002 |
/// | clear | continuation | as ever; the message is what it began as |
/// | clear | any other | as ever; the message isn't compressed |
fn parse_first_deflate(first: u8, open: Option<MessageKind>, compressed: bool) -> Result<Body, Violation> {
    let begins = matches!(Opcode::try_from(first & OPCODE), Ok(Opcode::Text | Opcode::Binary));
    let marked = first & RSV == RSV1 && begins;
    if first & RSV != 0 && !marked {
        return Err(violation::RSV_DEFLATE);
    }
    let body = parse_first(first & !RSV, open)?;
    Ok(match body {
        // If a message is open, this is its continuation.
        Body::Data(kind) if marked || open.is_some() && compressed => Body::Compressed(kind),
        _ => body,
    })
}

/// The length of `WIDTH` (2 or 8) bytes at the front of `bytes`, or `None` if they haven't all arrived.
fn parse_length<const WIDTH: usize>(bytes: &[u8], room: usize) -> Result<Option<usize>, Violation> {
    let given = &bytes[..bytes.len().min(WIDTH)];
    let missing = WIDTH - given.len();
    let least = given.iter().fold(0, |n: u64, &b| n << 8 | u64::from(b));
    // The length is at least this: the bytes to come can only add to it.
    let least = if missing < 8 { least << (8 * missing) } else { 0 };

    if WIDTH == 8 {
        if least >> 63 != 0 {
            return Err(violation::LENGTH_TOP_BIT);
        }
        // All but the last two bytes are zero: 16 bits would have held it.
        if missing <= 2 && least <= u64::from(u16::MAX) {
            return Err(violation::LENGTH_NOT_MINIMAL);
        }
    } else if missing == 0 && least < u64::from(LENGTH_16) {
        return Err(violation::LENGTH_NOT_MINIMAL);
    }
    if least > room as u64 {
        return Err(violation::TOO_BIG);
    }
    // The cast loses nothing: it's no more than `room`, which is a usize.
    Ok((missing == 0).then_some(least as usize))
}

/// The bytes of a header that was cut by the end of a chunk.
#[derive(Debug, Default)]
pub(crate) struct PartialHeader {
    bytes: [u8; MAX_HEADER],
    len: u8,
}

impl PartialHeader {
    /// Goes on with `data`: the header and how much of `data` it took, or `None` if it took all and isn't complete.
    #[inline]
    pub(crate) fn advance(
        &mut self,
        data: &[u8],
        parse: impl Fn(&[u8]) -> Result<Option<(Header, usize)>, Violation>,
    ) -> Result<Option<(Header, usize)>, Violation> {
        if self.len == 0 {
            let parsed = parse(data)?;
            if parsed.is_none() {
                self.bytes[..data.len()].copy_from_slice(data);
                self.len = data.len() as u8;
            }
            return Ok(parsed);
        }
        for (i, &byte) in data.iter().enumerate() {
            self.bytes[usize::from(self.len)] = byte;
            self.len += 1;
            // Rare and short: a header is read anew at most 13 times.
            let held = &self.bytes[..usize::from(self.len)];
            if let Some((header, _)) = parse(held)? {
                return Ok(Some((header, i + 1)));
            }
        }
        Ok(None)
    }

    /// The header is complete: the next begins.
    #[inline]
    pub(crate) fn clear(&mut self) {
        self.len = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

    #[test]
    fn opcodes_are_those_of_the_registry() {
        let table = [
            (0, Opcode::Continuation, false),
            (1, Opcode::Text, false),
            (2, Opcode::Binary, false),
            (8, Opcode::Close, true),
            (9, Opcode::Ping, true),
            (10, Opcode::Pong, true),
        ];
        for value in 0..=255 {
            match table.iter().find(|row| row.0 == value) {
                Some(&(_, opcode, control)) => {
                    assert_eq!(Opcode::try_from(value), Ok(opcode));
                    assert_eq!(opcode as u8, value);
                    assert_eq!(opcode.is_control(), control);
                }
                None => assert_eq!(Opcode::try_from(value), Err(ReservedOpcode(value))),
            }
        }
        assert_eq!(ReservedOpcode(3).to_string(), "3 is not a WebSocket opcode: use 0, 1, 2, 8, 9 or 10");
    }

    /// The examples of section 5.7, byte for byte.
    #[test]
    fn frames_look_like_the_examples_of_the_rfc() {
        let encode = |opcode, fin, payload: &[u8], mask| {
            let mut out = Vec::new();
            encode_frame(&mut out, opcode, fin, payload, mask);
            out
        };
        assert_eq!(encode(Opcode::Text, true, b"Hello", None), b"\x81\x05Hello");
        assert_eq!(
            encode(Opcode::Text, true, b"Hello", Some(KEY)),
            [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58]
        );
        assert_eq!(encode(Opcode::Text, false, b"Hel", None), b"\x01\x03Hel");
        assert_eq!(encode(Opcode::Continuation, true, b"lo", None), b"\x80\x02lo");
        assert_eq!(encode(Opcode::Ping, true, b"Hello", None), b"\x89\x05Hello");
        let binary = encode(Opcode::Binary, true, &[7; 256], None);
        assert_eq!(binary[..4], [0x82, 0x7e, 0x01, 0x00]);
        let binary = encode(Opcode::Binary, true, &[7; 65536], None);
        assert_eq!(binary[..10], [0x82, 0x7f, 0, 0, 0, 0, 0, 1, 0, 0]);
    }

    #[test]
    fn encode_frame_appends() {
        let mut out = b"before".to_vec();
        encode_frame(&mut out, Opcode::Binary, true, b"x", Some(KEY));
        assert_eq!(out, b"before\x82\x81\x37\xfa\x21\x3d\x4f");
    }

    /// Every length that changes the header's form, both ends of each form.
    const LENGTHS: [(usize, usize); 9] = [
        (0, 2),
        (1, 2),
        (125, 2),
        (126, 4),
        (127, 4),
        (65535, 4),
        (65536, 10),
        (1 << 24, 10),
        (isize::MAX as usize, 10),
    ];

    #[test]
    fn headers_come_back_as_they_were_written() {
        for (len, size) in LENGTHS {
            for key in [None, Some(KEY)] {
                for fin in [false, true] {
                    let mut buf = [0; MAX_HEADER];
                    let used = encode_header(&mut buf, Opcode::Binary, fin, len, key);
                    assert_eq!(used, size + if key.is_some() { 4 } else { 0 });
                    let expect = Expect { masked: key.is_some(), open: None, room: usize::MAX };
                    for cut in 0..used {
                        assert_eq!(parse_header(&buf[..cut], expect), Ok(None), "{len} {cut}");
                    }
                    let body = Body::Data(MessageKind::Binary);
                    let header = Header { body, fin, len, key };
                    assert_eq!(parse_header(&buf[..used], expect), Ok(Some((header, used))));
                    // Trailing data is the payload's affair.
                    assert_eq!(parse_header(&buf, expect), Ok(Some((header, used))));
                }
            }
        }
    }

    #[test]
    fn first_byte_row_by_row_with_deflate() {
        use MessageKind::{Binary, Text};
        for open in [None, Some(Text), Some(Binary)] {
            for compressed in [false, true] {
                for first in 0..=255 {
                    let plain = parse_first(first & !RSV, open);
                    let expected = match (first & RSV, first & OPCODE, plain) {
                        (0, 0, Ok(Body::Data(kind))) if compressed => Ok(Body::Compressed(kind)),
                        (0, _, plain) => plain,
                        (RSV1, 1 | 2, Ok(Body::Data(kind))) => Ok(Body::Compressed(kind)),
                        (RSV1, 1 | 2, Err(violation)) => Err(violation),
                        _ => Err(violation::RSV_DEFLATE),
                    };
                    let parsed = parse_first_deflate(first, open, compressed);
                    assert_eq!(parsed, expected, "{first:#x} {open:?} {compressed}");
                }
            }
        }
    }

    #[test]
    fn first_byte_row_by_row() {
        use MessageKind::{Binary, Text};
        const FRAGMENT: u8 = 0;
        for open in [None, Some(Text), Some(Binary)] {
            for fin in [FRAGMENT, FIN] {
                for opcode in 0..16 {
                    let expected = match (opcode, open, fin) {
                        (1, None, _) => Ok(Body::Data(Text)),
                        (2, None, _) => Ok(Body::Data(Binary)),
                        (1 | 2, Some(_), _) => Err(violation::MESSAGE_OPEN),
                        (0, None, _) => Err(violation::NOTHING_TO_CONTINUE),
                        (0, Some(kind), _) => Ok(Body::Data(kind)),
                        (8..=10, _, FRAGMENT) => Err(violation::CONTROL_FRAGMENTED),
                        (8, _, _) => Ok(Body::Control(Control::Close)),
                        (9, _, _) => Ok(Body::Control(Control::Ping)),
                        (10, _, _) => Ok(Body::Control(Control::Pong)),
                        _ => Err(violation::OPCODE),
                    };
                    assert_eq!(parse_first(fin | opcode, open), expected, "{opcode} {open:?}");
                    for rsv in 1..8 {
                        let first = fin | rsv << 4 | opcode;
                        assert_eq!(parse_first(first, open), Err(violation::RSV));
                    }
                }
            }
        }
    }
}
