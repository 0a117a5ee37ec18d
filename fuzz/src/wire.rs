//! What the targets that read frames share: from the fuzzer's bytes to a wire, a limit and cuts; events that stay.

use pyhv_wire::deflate::DeflateParams;
use pyhv_wire::{Decoder, Event, MessageKind, Role, Violation};

/// Around every number at which the format or the allocation changes.
const LIMITS: [usize; 8] = [0, 1, 100, 125, 126, 1000, 5000, 66_000];

/// Payloads longer than a fuzzer's input.
const LONG: [usize; 6] = [126, 127, 1000, 4097, 65_535, 65_536];

/// What one input says.
///
/// | byte | is |
/// |---|---|
/// | 0 | bit 0: this end is the server; bit 1: the rest describes frames instead of being the wire; bits 2-4: the limit; bit 5: permessage-deflate; bit 6: with context takeover |
/// | 1-3 | the sizes of the chunks, in turn; 0 is all that is left; a wire of more than 2000 bytes is cut in larger ones |
/// | 4- | the wire, or its description |
pub(crate) struct Case {
    pub(crate) role: Role,
    pub(crate) limit: usize,
    pub(crate) deflate: Option<DeflateParams>,
    pub(crate) sizes: [u8; 3],
    pub(crate) wire: Vec<u8>,
}

impl Case {
    pub(crate) fn read(data: &[u8]) -> Option<Self> {
        let (&[flags, a, b, c], rest) = data.split_first_chunk()?;
        let role = if flags & 1 != 0 { Role::Server } else { Role::Client };
        let no_takeover = flags & 0x40 == 0;
        let params = DeflateParams {
            server_no_context_takeover: no_takeover,
            client_no_context_takeover: no_takeover,
            server_max_window_bits: 15,
            client_max_window_bits: 15,
        };
        Some(Self {
            role,
            limit: LIMITS[usize::from(flags >> 2 & 7)],
            deflate: (flags & 0x20 != 0).then_some(params),
            sizes: [a, b, c],
            wire: if flags & 2 != 0 { build(role, rest) } else { rest.to_vec() },
        })
    }

    /// A fresh decoder; `with_deflate`: as the case says.
    pub(crate) fn decoder(&self, with_deflate: bool) -> Decoder {
        match self.deflate {
            Some(params) if with_deflate => Decoder::with_deflate(self.role, self.limit, params),
            _ => Decoder::new(self.role, self.limit),
        }
    }

    /// The lengths of the chunks in which a wire of `len` bytes arrives.
    pub(crate) fn cuts(&self, len: usize) -> impl Iterator<Item = usize> + use<> {
        // Thousands of chunks show nothing that hundreds don't, and take long.
        let factor = if len > 2000 { 41 } else { 1 };
        let all = move |size| if size == 0 { usize::MAX } else { usize::from(size) * factor };
        self.sizes.into_iter().cycle().map(all)
    }
}

/// Frames of which the header is right more often than a fuzzer would get it. Of each frame:
///
/// | byte | is |
/// |---|---|
/// | 0 | as on the wire (FIN, RSV, opcode), but RSV2: the mask bit is wrong, and RSV3: the length is in its longest form |
/// | 1 | how many bytes of payload follow; from 250 on a length of `LONG`, made of the byte that follows |
fn build(role: Role, mut rest: &[u8]) -> Vec<u8> {
    let mut wire = Vec::new();
    while let Some((&[first, length], after)) = rest.split_first_chunk() {
        let repeated;
        let payload = if let Some(&long) = usize::from(length).checked_sub(250).map(|i| &LONG[i]) {
            let Some((&byte, after)) = after.split_first() else { break };
            rest = after;
            repeated = vec![byte; long];
            &repeated
        } else {
            let payload;
            (payload, rest) = after.split_at(after.len().min(usize::from(length)));
            payload
        };
        let masked = (role == Role::Server) != (first & 0x20 != 0);
        let mask_bit = if masked { 0x80 } else { 0 };
        wire.push(first & 0xcf);
        match payload.len() {
            n if first & 0x10 != 0 || n > 0xffff => {
                wire.push(mask_bit | 127);
                wire.extend((n as u64).to_be_bytes());
            }
            n @ 126.. => {
                wire.push(mask_bit | 126);
                wire.extend((n as u16).to_be_bytes());
            }
            n => wire.push(mask_bit | n as u8),
        }
        if masked {
            let key = [0x37, 0xfa, 0x21, length];
            wire.extend(key);
            wire.extend(payload.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key));
        } else {
            wire.extend(payload);
        }
        // Enough for every rule, and a bound on the time of one input.
        if wire.len() > 140_000 {
            break;
        }
    }
    wire
}

/// An [`Event`] that owns its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Seen {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<u16>, String),
}

impl From<Event<'_>> for Seen {
    fn from(event: Event<'_>) -> Self {
        match event {
            Event::Message { kind: MessageKind::Text, payload } => {
                Self::Text(String::from_utf8(payload.into_vec()).expect("a text message is UTF-8"))
            }
            Event::Message { kind: MessageKind::Binary, payload } => Self::Binary(payload.into_vec()),
            Event::Ping(payload) => Self::Ping(payload.to_vec()),
            Event::Pong(payload) => Self::Pong(payload.to_vec()),
            Event::Close { code, reason } => Self::Close(code, reason.to_owned()),
        }
    }
}

/// Takes the next chunk of this length, or what there is, off the front of `wire`; `None` at its end.
pub(crate) fn next_chunk<'a>(wire: &mut &'a mut [u8], len: Option<usize>) -> Option<&'a mut [u8]> {
    let all = std::mem::take(wire);
    let (chunk, rest) = all.split_at_mut(len.unwrap_or(usize::MAX).min(all.len()));
    *wire = rest;
    (!chunk.is_empty()).then_some(chunk)
}

/// Feeds the wire to this decoder in chunks of these lengths, and asserts what holds at each: no more than `limit` is held
/// or delivered, nothing follows a violation or a close frame.
pub(crate) fn feed(
    mut decoder: Decoder,
    limit: usize,
    wire: &[u8],
    mut cuts: impl Iterator<Item = usize>,
) -> (Vec<Seen>, Option<Violation>) {
    let mut wire = wire.to_vec();
    let mut rest = &mut wire[..];
    let mut seen = Vec::new();
    let mut failed = None;
    while let Some(chunk) = next_chunk(&mut rest, cuts.next()) {
        let before = seen.len();
        let was_closed = decoder.is_closed();
        let mut on_event = |event: Event<'_>| {
            if let Event::Message { payload, .. } = &event {
                assert!(payload.len() <= limit, "a message of {} bytes, the limit is {limit}", payload.len());
            }
            seen.push(event.into());
        };
        let result = decoder.decode(chunk, &mut on_event);
        assert!(decoder.buffered() <= limit, "{} bytes are held, the limit is {limit}", decoder.buffered());
        if failed.is_some() {
            assert_eq!((result.err(), seen.len()), (failed, before), "after a violation");
        }
        if was_closed {
            assert_eq!((result, seen.len()), (Ok(()), before), "after the close frame");
        }
        failed = failed.or(result.err());
    }
    (seen, failed)
}
