//! Received bytes to events (RFC 6455 sections 5.4 to 5.6), as a machine that can stop and go on at any byte.
//!
//! | phase | input | next phase | event |
//! |---|---|---|---|
//! | Header | the header isn't complete | Header | |
//! | Header | a data frame's header | Data | |
//! | Header | a control frame's header | Control | |
//! | Data | the payload isn't complete | Data | |
//! | Data | the payload is complete, FIN is clear | Header | |
//! | Data | the payload is complete, FIN is set | Header | Message |
//! | Control | the payload isn't complete | Control | |
//! | Control | a ping's or pong's payload is complete | Header | Ping, Pong |
//! | Control | a close frame's payload is complete | Closed | Close |
//! | Header, Data, Control | a violation | Failed | |
//! | Closed | anything | Closed | |
//! | Failed | anything | Failed | |
//!
//! A frame that lies whole in the chunk passes through Data or Control without the phase being stored: that is the
//! fast path. Which opcode may come while a message is open is the table at `frame::parse_first`.
//!
//! A message that permessage-deflate compressed goes the same way: its pieces are inflated as they arrive, and what comes
//! out is checked, counted against the limit and held.

use crate::deflate::{Chunk, DeflateParams, Inflation};
use crate::frame::{Body, Control, Expect, MessageKind, PartialHeader, parse_header, parse_header_deflate};
use crate::utf8::Utf8;
use crate::violation::{self, Violation};
use crate::{close, mask};
use std::mem;
use std::ops::Deref;
use std::sync::Arc;

/// What a message that doesn't arrive in one chunk may take from the allocator before its bytes are there: a page.
/// The announced length is the peer's word and costs it nothing, so no more than this is ever given on credit.
const CREDIT: usize = 4096;

/// Which end this is. Section 5.1: a client masks all its frames, a server none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// This end is the server: the peer's frames must be masked.
    Server,
    /// This end is the client: the peer's frames must not be masked.
    Client,
}

/// A message's payload: in the chunk that was fed, or put together from several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payload<'a> {
    /// The message arrived within one chunk and was not copied; or it was inflated in one go.
    Borrowed(&'a [u8]),
    /// The message was put together; the buffer is the receiver's to keep.
    Owned(Vec<u8>),
}

impl Payload<'_> {
    /// The payload as a buffer of its own; copies if it is borrowed.
    pub fn into_vec(self) -> Vec<u8> {
        match self {
            Self::Borrowed(bytes) => bytes.to_vec(),
            Self::Owned(bytes) => bytes,
        }
    }
}

impl Deref for Payload<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Borrowed(bytes) => bytes,
            Self::Owned(bytes) => bytes,
        }
    }
}

/// What the peer sent. What is borrowed lives until the callback returns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event<'a> {
    /// A whole message, unfragmented or put together.
    Message {
        /// Text or binary.
        kind: MessageKind,
        /// The payload; of a text message it is valid UTF-8.
        payload: Payload<'a>,
    },
    /// A ping; section 5.5.2: "an endpoint MUST send a Pong frame in response", with the same payload.
    Ping(&'a [u8]),
    /// A pong, solicited or not.
    Pong(&'a [u8]),
    /// The peer's close frame: the last event.
    Close {
        /// The code, valid on the wire; `None` if the frame's body was empty.
        code: Option<u16>,
        /// The reason; empty if there was none.
        reason: &'a str,
    },
}

/// The receiving half of a connection: bytes in, events out.
#[derive(Debug)]
pub struct Decoder {
    /// Where in a frame the received bytes end.
    phase: Phase,
    /// The unfinished message so far, unmasked. Owns memory only between the first piece of a message that was cut or
    /// fragmented and its last.
    assembled: Vec<u8>,
    /// What to accept; shared by all connections of an endpoint.
    limits: Arc<Limits>,
    /// Frames of the message that is open, or was last.
    fragments: u32,
    /// The fragmented message that the next data frame must continue.
    open: Option<MessageKind>,
    /// The check of `assembled`, if that is text. It needs no reset: a message can only end between characters, and
    /// there the check is as good as new.
    utf8: Utf8,
    role: Role,
    /// permessage-deflate, if it was negotiated. On the heap: most connections have none.
    deflate: Option<Box<Inflation>>,
}

/// The machine's state: see the table in the module's header.
#[derive(Debug)]
enum Phase {
    /// Between frames, or inside a header.
    Header(PartialHeader),
    /// Inside a data frame.
    Data(Frame, MessageKind),
    /// Inside a control frame. On the heap, because few control frames are ever cut, and inline it would be most of every
    /// connection's decoder.
    Control(Box<CutControl>),
    /// The peer's close frame was decoded.
    Closed,
    /// The peer broke a rule. On the heap for the same reason.
    Failed(Box<Violation>),
}

/// A control frame that was cut by the end of a chunk.
#[derive(Debug)]
struct CutControl {
    frame: Frame,
    control: Control,
    /// What came in earlier chunks.
    held: Vec<u8>,
}

/// What is left of the frame that is being read.
#[derive(Debug, Clone, Copy)]
struct Frame {
    /// Payload bytes still to come.
    left: usize,
    /// The mask key, rotated so that its first byte belongs to the next payload byte.
    key: Option<[u8; 4]>,
    fin: bool,
    /// The payload is to be inflated.
    compressed: bool,
}

impl Frame {
    /// Takes what belongs to this frame off the front of `data` and unmasks it. Returns that and the rest.
    fn take<'d>(&mut self, data: &'d mut [u8]) -> (&'d [u8], &'d mut [u8]) {
        let (piece, rest) = data.split_at_mut(self.left.min(data.len()));
        if let Some(key) = &mut self.key {
            mask::apply(piece, *key, 0);
            key.rotate_left(piece.len() % 4);
        }
        self.left -= piece.len();
        (piece, rest)
    }
}

/// What a decoder accepts (section 10.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a message's payload, over all fragments and after inflating.
    pub max_message_size: usize,
    /// Bytes of one data frame's payload, as it is on the wire.
    pub max_frame_size: usize,
    /// Frames of one message.
    pub max_fragments: u32,
}

impl Decoder {
    /// A decoder for a fresh connection; `max_message_size` is in bytes of payload, over all fragments. Frames and
    /// fragments have no limit beside it.
    pub fn new(role: Role, max_message_size: usize) -> Self {
        let limits = Limits { max_message_size, max_frame_size: usize::MAX, max_fragments: u32::MAX };
        Self::with_limits(role, Arc::new(limits), None)
    }

    /// A decoder for a fresh connection with these limits, and with permessage-deflate if that was agreed on.
    pub fn with_limits(role: Role, limits: Arc<Limits>, deflate: Option<DeflateParams>) -> Self {
        Self {
            phase: Phase::Header(PartialHeader::default()),
            assembled: Vec::new(),
            limits,
            fragments: 0,
            open: None,
            utf8: Utf8::default(),
            role,
            deflate: deflate.map(|params| Box::new(Inflation::new(role, params))),
        }
    }

    /// A decoder for a fresh connection on which permessage-deflate was agreed on; `max_message_size` is in bytes after
    /// inflating, and holds while inflating: no message, whatever it claims to become, takes more.
    ///
    /// The extension's own memory is told in [`deflate`](crate::deflate).
    pub fn with_deflate(role: Role, max_message_size: usize, params: DeflateParams) -> Self {
        let limits = Limits { max_message_size, max_frame_size: usize::MAX, max_fragments: u32::MAX };
        Self::with_limits(role, Arc::new(limits), Some(params))
    }

    /// Takes received bytes (unmasking them in place) and calls `on_event`, in order, for everything they complete.
    ///
    /// An error means that the connection must be failed; it comes after the events of the bytes before it, and again
    /// at every later call. After a close frame everything is ignored: section 1.4, "after receiving a control frame
    /// indicating the connection should be closed, a peer discards any further data received".
    pub fn decode(&mut self, data: &mut [u8], on_event: &mut impl FnMut(Event<'_>)) -> Result<(), Violation> {
        let outcome = self.advance(data, on_event);
        if let Err(violation) = outcome {
            self.end(Phase::Failed(Box::new(violation)));
        }
        outcome
    }

    /// How many bytes of an unfinished message are held.
    pub fn buffered(&self) -> usize {
        self.assembled.len()
    }

    /// Whether the peer's close frame was decoded.
    pub fn is_closed(&self) -> bool {
        matches!(self.phase, Phase::Closed)
    }

    /// Runs the table in the module's header over `rest` until it needs more bytes.
    fn advance(&mut self, mut rest: &mut [u8], on_event: &mut impl FnMut(Event<'_>)) -> Result<(), Violation> {
        loop {
            match &mut self.phase {
                Phase::Closed => return Ok(()),
                Phase::Failed(violation) => return Err(**violation),
                // Only what a chunk's end cut is ever resumed, so there is something to wait for.
                _ if rest.is_empty() => return Ok(()),
                Phase::Header(partial) => {
                    let expect = Expect {
                        masked: self.role == Role::Server,
                        open: self.open,
                        room: self.limits.max_message_size - self.assembled.len(),
                    };
                    let parsed = match &self.deflate {
                        None => partial.advance(rest, |bytes| parse_header(bytes, expect))?,
                        Some(deflate) => {
                            partial.advance(rest, |bytes| parse_header_deflate(bytes, expect, deflate.open))?
                        }
                    };
                    let Some((header, used)) = parsed else {
                        return Ok(());
                    };
                    partial.clear();
                    rest = &mut rest[used..];
                    let compressed = matches!(header.body, Body::Compressed(_));
                    let frame = Frame { left: header.len, key: header.key, fin: header.fin, compressed };
                    if !matches!(header.body, Body::Control(_)) {
                        self.fragments = if self.open.is_none() { 1 } else { self.fragments.saturating_add(1) };
                        if self.fragments > self.limits.max_fragments {
                            return Err(violation::TOO_MANY_FRAGMENTS);
                        }
                        if header.len > self.limits.max_frame_size {
                            return Err(violation::FRAME_TOO_BIG);
                        }
                    }
                    rest = match header.body {
                        Body::Data(kind) => {
                            self.open = if header.fin { None } else { Some(kind) };
                            self.data(frame, kind, rest, on_event)?
                        }
                        Body::Compressed(kind) => {
                            self.open = if header.fin { None } else { Some(kind) };
                            self.inflate(frame, kind, rest, on_event)?
                        }
                        // An empty Vec allocates nothing.
                        Body::Control(control) => self.control(frame, control, Vec::new(), rest, on_event)?,
                    };
                }
                Phase::Data(frame, kind) => {
                    let (frame, kind) = (*frame, *kind);
                    self.phase = Phase::Header(PartialHeader::default());
                    rest = if frame.compressed {
                        self.inflate(frame, kind, rest, on_event)?
                    } else {
                        self.data(frame, kind, rest, on_event)?
                    };
                }
                Phase::Control(cut) => {
                    let (frame, control, held) = (cut.frame, cut.control, mem::take(&mut cut.held));
                    self.phase = Phase::Header(PartialHeader::default());
                    rest = self.control(frame, control, held, rest, on_event)?;
                }
            }
        }
    }

    /// Goes on with a data frame; the phase is Header and becomes Data if the frame is cut. Reports the message if this
    /// completes it. Returns what follows the frame.
    fn data<'d>(
        &mut self,
        mut frame: Frame,
        kind: MessageKind,
        data: &'d mut [u8],
        on_event: &mut impl FnMut(Event<'_>),
    ) -> Result<&'d mut [u8], Violation> {
        let (piece, rest) = frame.take(data);
        let last = frame.fin && frame.left == 0;
        if last && self.assembled.is_empty() {
            if kind == MessageKind::Text && simdutf8::basic::from_utf8(piece).is_err() {
                return Err(violation::TEXT_NOT_UTF8);
            }
            let payload = Payload::Borrowed(piece);
            on_event(Event::Message { kind, payload });
            return Ok(rest);
        }

        if frame.left > 0 {
            self.phase = Phase::Data(frame, kind);
        }
        if kind == MessageKind::Text {
            let fed = self.utf8.feed(piece);
            if fed.is_err() || last && !self.utf8.is_complete() {
                return Err(violation::TEXT_NOT_UTF8);
            }
        }
        self.assemble(piece, frame);
        if last {
            let payload = Payload::Owned(mem::take(&mut self.assembled));
            on_event(Event::Message { kind, payload });
        }
        Ok(rest)
    }

    /// As [`Self::data`], for a frame of a compressed message.
    fn inflate<'d>(
        &mut self,
        mut frame: Frame,
        kind: MessageKind,
        data: &'d mut [u8],
        on_event: &mut impl FnMut(Event<'_>),
    ) -> Result<&'d mut [u8], Violation> {
        let (piece, rest) = frame.take(data);
        let last = frame.fin && frame.left == 0;
        if frame.left > 0 {
            self.phase = Phase::Data(frame, kind);
        }
        // Only `parse_header_deflate` lets a compressed frame pass. Lent, because `hold` needs the rest of `self`.
        let Some(mut deflate) = self.deflate.take() else {
            return Err(violation::RSV);
        };
        deflate.open = !frame.fin;
        let mut chunk = Chunk::new();
        let inflated = deflate.inflate(piece, last, &mut chunk, |full| self.hold(kind, full));
        self.deflate = Some(deflate);

        // Nothing is held, so all of the message is in the chunk.
        if last && inflated.is_ok() && self.assembled.is_empty() && chunk.len() <= self.limits.max_message_size {
            if kind == MessageKind::Text && simdutf8::basic::from_utf8(&chunk).is_err() {
                return Err(violation::TEXT_NOT_UTF8);
            }
            let payload = Payload::Borrowed(&chunk);
            on_event(Event::Message { kind, payload });
            return Ok(rest);
        }

        // What came before a fault counts before it.
        self.hold(kind, &chunk)?;
        inflated?;
        if last {
            if kind == MessageKind::Text && !self.utf8.is_complete() {
                return Err(violation::TEXT_NOT_UTF8);
            }
            let payload = Payload::Owned(mem::take(&mut self.assembled));
            on_event(Event::Message { kind, payload });
        }
        Ok(rest)
    }

    /// Adds to the unfinished message what was inflated, if it is text only as UTF-8, and up to the limit.
    fn hold(&mut self, kind: MessageKind, inflated: &[u8]) -> Result<(), Violation> {
        let room = self.limits.max_message_size - self.assembled.len();
        let allowed = &inflated[..inflated.len().min(room)];
        if kind == MessageKind::Text && self.utf8.feed(allowed).is_err() {
            return Err(violation::TEXT_NOT_UTF8);
        }
        if allowed.len() < inflated.len() {
            return Err(violation::TOO_BIG);
        }
        // How long the message becomes, its frames don't tell.
        self.append(inflated, self.limits.max_message_size);
        Ok(())
    }

    /// Goes on with a control frame, of which earlier chunks brought `held`; the phase is Header and becomes Control if
    /// the frame is cut. Returns what follows the frame.
    fn control<'d>(
        &mut self,
        mut frame: Frame,
        control: Control,
        mut held: Vec<u8>,
        data: &'d mut [u8],
        on_event: &mut impl FnMut(Event<'_>),
    ) -> Result<&'d mut [u8], Violation> {
        let (piece, rest) = frame.take(data);
        let payload = if frame.left > 0 || !held.is_empty() {
            held.reserve_exact(piece.len() + frame.left);
            held.extend_from_slice(piece);
            &held
        } else {
            piece
        };
        if frame.left > 0 {
            if control == Control::Close {
                close::check_partial(payload)?;
            }
            self.phase = Phase::Control(Box::new(CutControl { frame, control, held }));
            return Ok(rest);
        }
        match control {
            Control::Ping => on_event(Event::Ping(payload)),
            Control::Pong => on_event(Event::Pong(payload)),
            Control::Close => {
                let (code, reason) = close::decode_payload(payload)?;
                self.end(Phase::Closed);
                on_event(Event::Close { code, reason });
            }
        }
        Ok(rest)
    }

    /// Appends a piece to the unfinished message, which can still become what is announced if this is the last frame,
    /// else as long as the limit.
    fn assemble(&mut self, piece: &[u8], frame: Frame) {
        let announced = self.assembled.len() + piece.len() + frame.left;
        self.append(piece, if frame.fin { announced } else { self.limits.max_message_size });
    }

    /// Appends a piece to the unfinished message. The buffer doubles as bytes arrive, but never past `most`, what the
    /// message can become.
    fn append(&mut self, piece: &[u8], most: usize) {
        let needed = self.assembled.len() + piece.len();
        if needed > self.assembled.capacity() {
            let grown = (2 * self.assembled.capacity()).max(CREDIT);
            let target = grown.min(most).max(needed);
            self.assembled.reserve_exact(target - self.assembled.len());
        }
        self.assembled.extend_from_slice(piece);
    }

    /// Enters a final phase. No byte will be added to the unfinished message: its memory goes now, not with the
    /// connection.
    fn end(&mut self, phase: Phase) {
        self.phase = phase;
        self.assembled = Vec::new();
        self.deflate = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{MAX_HEADER, Opcode, encode_frame, encode_header};

    const KEY: [u8; 4] = [1, 2, 3, 4];

    fn frame(opcode: Opcode, fin: bool, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        encode_frame(&mut out, opcode, fin, payload, Some(KEY));
        out
    }

    /// Every connection has one of these for life. A change that makes it grow should be noticed.
    #[test]
    fn a_decoder_is_small() {
        assert!(size_of::<Decoder>() <= 80, "{}", size_of::<Decoder>());
    }

    #[test]
    fn frames_and_fragments_have_limits_of_their_own() {
        let decoder = || {
            let limits = Limits { max_message_size: 100, max_frame_size: 10, max_fragments: 3 };
            Decoder::with_limits(Role::Client, Arc::new(limits), None)
        };
        let ten = [&[0x02, 10][..], &[7; 10], &[0x00, 10], &[7; 10], &[0x89, 0], &[0x80, 10], &[7; 10]].concat();
        let mut messages = 0;
        let mut count = |event: Event<'_>| messages += usize::from(matches!(event, Event::Message { .. }));
        let mut both = decoder();
        // Twice: the count begins anew with each message.
        for _ in 0..2 {
            assert_eq!(both.decode(&mut ten.clone(), &mut count), Ok(()));
        }
        assert_eq!(messages, 2);
        assert_eq!(decoder().decode(&mut [0x82, 11], &mut |_| ()), Err(violation::FRAME_TOO_BIG));
        let mut four = [0x02, 0, 0x00, 0, 0x00, 0, 0x80, 0];
        assert_eq!(decoder().decode(&mut four, &mut |_| ()), Err(violation::TOO_MANY_FRAGMENTS));
    }

    #[test]
    fn a_decoder_at_rest_owns_no_memory() {
        let mut decoder = Decoder::new(Role::Server, 1 << 20);
        let wire = [
            frame(Opcode::Text, false, b"ab"),
            frame(Opcode::Ping, true, &[7; 125]),
            frame(Opcode::Continuation, true, b"cd"),
            frame(Opcode::Binary, true, &[0; 10_000]),
        ]
        .concat();
        for byte in wire {
            assert_eq!(decoder.decode(&mut [byte], &mut |_| {}), Ok(()));
        }
        assert_eq!(decoder.assembled.capacity(), 0);
        assert!(matches!(decoder.phase, Phase::Header(_)));
    }

    #[test]
    fn an_announced_length_is_not_allocated() {
        let mut decoder = Decoder::new(Role::Server, 1 << 30);
        let mut header = [0; MAX_HEADER];
        let used = encode_header(&mut header, Opcode::Binary, true, 1 << 30, Some(KEY));
        assert_eq!(decoder.decode(&mut header[..used], &mut |_| {}), Ok(()));
        assert_eq!(decoder.assembled.capacity(), 0);
        assert_eq!(decoder.decode(&mut [0], &mut |_| {}), Ok(()));
        assert!(decoder.assembled.capacity() <= CREDIT);
    }

    #[test]
    fn the_buffer_never_grows_past_what_the_message_can_become() {
        const LIMIT: usize = 100_000;
        // In one frame the end is known; in fragments only the limit is.
        for fin in [true, false] {
            let mut decoder = Decoder::new(Role::Server, LIMIT);
            let announced = 70_000;
            let mut wire = frame(Opcode::Binary, fin, &vec![5; announced]);
            let last = wire.split_off(wire.len() - 1);
            for chunk in wire.chunks_mut(999) {
                assert_eq!(decoder.decode(chunk, &mut |_| {}), Ok(()));
                let held = decoder.assembled.capacity();
                assert!(held <= if fin { announced } else { LIMIT }, "{held}");
                assert!(held <= CREDIT.max(2 * decoder.buffered()), "{held}");
            }
            assert_eq!(decoder.buffered(), announced - 1);
            let mut capacity = None;
            let mut on_event = |event: Event<'_>| {
                if let Event::Message { payload, .. } = event {
                    capacity = Some(payload.into_vec().capacity());
                }
            };
            assert_eq!(decoder.decode(&mut last.clone(), &mut on_event), Ok(()));
            assert_eq!(capacity, fin.then_some(announced));
        }
    }

    #[test]
    fn the_end_frees_the_unfinished_message() {
        for end in [frame(Opcode::Close, true, b""), b"\xff".to_vec()] {
            let mut decoder = Decoder::new(Role::Server, 1 << 20);
            let mut start = frame(Opcode::Text, false, b"half");
            assert_eq!(decoder.decode(&mut start, &mut |_| {}), Ok(()));
            assert_eq!(decoder.buffered(), 4);
            let _ = decoder.decode(&mut end.clone(), &mut |_| {});
            assert_eq!(decoder.buffered(), 0);
            assert_eq!(decoder.assembled.capacity(), 0);
        }
    }

    #[test]
    fn a_payload_in_the_chunk_is_borrowed_and_one_put_together_is_owned() {
        let owned = |chunks: &[&[u8]]| {
            let mut decoder = Decoder::new(Role::Server, 1 << 20);
            let mut owned = Vec::new();
            for chunk in chunks {
                let mut on_event = |event: Event<'_>| {
                    if let Event::Message { payload, .. } = event {
                        owned.push((matches!(payload, Payload::Owned(_)), payload.into_vec()));
                    }
                };
                assert_eq!(decoder.decode(&mut chunk.to_vec(), &mut on_event), Ok(()));
            }
            owned
        };
        let wire = frame(Opcode::Text, true, b"abc");
        let message = |owned| vec![(owned, b"abc".to_vec())];
        assert_eq!(owned(&[&wire]), message(false));
        // The header alone in its chunk costs no copy.
        assert_eq!(owned(&[&wire[..6], &wire[6..]]), message(false));
        assert_eq!(owned(&[&wire[..7], &wire[7..]]), message(true));
        let empty_first = frame(Opcode::Text, false, b"");
        let rest = frame(Opcode::Continuation, true, b"abc");
        assert_eq!(owned(&[&empty_first, &rest]), message(false));
    }
}
