//! What the decoder's tests share: events that outlive the callback, frames, and ways to cut the input.

#![allow(dead_code, reason = "each test crate uses its part")]

use flate2::{Compress, Compression, FlushCompress, Status};
use pyhv_wire::deflate::DeflateParams;
use pyhv_wire::{Decoder, Event, MessageKind, Opcode, Role, Violation, encode_frame, encode_frame_rsv1};

pub(crate) mod strict;

/// An [`Event`] that owns its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Seen {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<u16>, String),
    /// A text message that isn't UTF-8: the decoder's promise is broken.
    BrokenText(Vec<u8>),
}

impl From<Event<'_>> for Seen {
    fn from(event: Event<'_>) -> Self {
        match event {
            Event::Message { kind: MessageKind::Text, payload } => match String::from_utf8(payload.into_vec()) {
                Ok(text) => Self::Text(text),
                Err(error) => Self::BrokenText(error.into_bytes()),
            },
            Event::Message { kind: MessageKind::Binary, payload } => Self::Binary(payload.into_vec()),
            Event::Ping(payload) => Self::Ping(payload.to_vec()),
            Event::Pong(payload) => Self::Pong(payload.to_vec()),
            Event::Close { code, reason } => Self::Close(code, reason.to_owned()),
        }
    }
}

/// Everything that came of feeding some chunks.
pub(crate) type Outcome = (Vec<Seen>, Result<(), Violation>);

/// Feeds the chunks to a fresh decoder. The result is that of the last call, or of the first that failed.
pub(crate) fn feed<'a>(role: Role, max_message_size: usize, chunks: impl IntoIterator<Item = &'a [u8]>) -> Outcome {
    feed_to(Decoder::new(role, max_message_size), max_message_size, chunks)
}

/// Feeds the chunks to this decoder.
pub(crate) fn feed_to<'a>(
    mut decoder: Decoder,
    max_message_size: usize,
    chunks: impl IntoIterator<Item = &'a [u8]>,
) -> Outcome {
    let mut seen = Vec::new();
    let mut failed = None;
    for chunk in chunks {
        let before = seen.len();
        let mut on_event = |event: Event<'_>| seen.push(event.into());
        let result = decoder.decode(&mut chunk.to_vec(), &mut on_event);
        // Bounded, and dead after a violation.
        assert!(decoder.buffered() <= max_message_size);
        if let Some(violation) = failed {
            assert_eq!((result, seen.len()), (Err(violation), before));
        }
        failed = failed.or(result.err());
    }
    (seen, failed.map_or(Ok(()), Err))
}

/// Asserts that `wire` comes to `expected` whole, byte by byte, with empty chunks between, and at every split.
pub(crate) fn assert_at_every_cut(role: Role, limit: usize, wire: &[u8], expected: &Outcome) {
    assert_at_every_cut_of(|| Decoder::new(role, limit), limit, wire, expected);
}

/// The same with a decoder of another make.
pub(crate) fn assert_at_every_cut_of(make: impl Fn() -> Decoder, limit: usize, wire: &[u8], expected: &Outcome) {
    assert_eq!(feed_to(make(), limit, [wire]), *expected, "whole");
    assert_eq!(feed_to(make(), limit, wire.chunks(1)), *expected, "by byte");
    let spaced = wire.chunks(1).flat_map(|byte| [&[][..], byte, &[]]);
    assert_eq!(feed_to(make(), limit, spaced), *expected, "with empty chunks");
    for cut in 0..=wire.len() {
        let (left, right) = wire.split_at(cut);
        let outcome = feed_to(make(), limit, [left, right]);
        assert_eq!(outcome, *expected, "split at {cut}");
    }
}

/// A mask key that is no fixed point of any rotation.
pub(crate) const KEY: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// A frame as a peer of `role` sends it.
pub(crate) fn frame_to(role: Role, opcode: Opcode, fin: bool, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let key = (role == Role::Server).then_some(KEY);
    encode_frame(&mut out, opcode, fin, payload, key);
    out
}

/// A frame as a client sends it.
pub(crate) fn frame(opcode: Opcode, fin: bool, payload: &[u8]) -> Vec<u8> {
    frame_to(Role::Server, opcode, fin, payload)
}

/// The frames of a message whose payload is compressed already, in fragments that end at these places.
pub(crate) fn compressed_frames(role: Role, opcode: Opcode, payload: &[u8], ends: &[usize]) -> Vec<Vec<u8>> {
    let key = (role == Role::Server).then_some(KEY);
    let mut start = 0;
    let ends = ends.iter().copied().chain([payload.len()]);
    let count = ends.clone().count();
    let frames = ends.enumerate().map(|(i, end)| {
        let (mut out, fin) = (Vec::new(), i + 1 == count);
        let piece = &payload[start..end];
        start = end;
        if i == 0 {
            encode_frame_rsv1(&mut out, opcode, fin, piece, key);
        } else {
            encode_frame(&mut out, Opcode::Continuation, fin, piece, key);
        }
        out
    });
    frames.collect()
}

/// The frame of such a message as a client sends it.
pub(crate) fn compressed(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
    compressed_frames(Role::Server, opcode, payload, &[]).concat()
}

/// Parameters that are the same for both sides.
pub(crate) fn params(window_bits: u8, takeover: bool) -> DeflateParams {
    DeflateParams {
        server_no_context_takeover: !takeover,
        client_no_context_takeover: !takeover,
        server_max_window_bits: window_bits,
        client_max_window_bits: window_bits,
    }
}

/// A payload compressed as far as it goes: in dynamic blocks, if that's shorter.
pub(crate) fn deflated_well(data: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(data.len() + 100);
    let status = Compress::new(Compression::best(), false).compress_vec(data, &mut out, FlushCompress::Sync);
    assert!(matches!(status, Ok(Status::Ok)));
    assert_eq!(out.split_off(out.len() - 4), [0x00, 0x00, 0xff, 0xff]);
    out
}

/// Text that looks like what games and dashboards send: keys that recur, numbers that don't.
pub(crate) fn json(len: usize, seed: u64) -> Vec<u8> {
    let mut text = String::from("{\"type\":\"state\",\"players\":[");
    let mut state = seed;
    while text.len() < len {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let (id, x, y) = (state >> 52, (state >> 33) % 8000, (state >> 44) % 6000);
        text += &format!("{{\"id\":{id},\"name\":\"pläyer{}\",\"x\":{x},\"y\":{y}}},", id % 100);
    }
    while !text.is_char_boundary(len) {
        text.insert(0, ' ');
    }
    text.truncate(len);
    text.into_bytes()
}

/// Bytes that can't be compressed.
pub(crate) fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut byte = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..len).map(|_| byte()).collect()
}
