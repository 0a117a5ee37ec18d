//! Compressed by one end, inflated by the other, and by a strict second opinion (`common/strict.rs`). The invariants: what
//! was sent arrives; no match reaches further back than agreed; messages without context takeover stand alone; the events
//! do not depend on how the bytes were cut; nothing panics.

mod common;

use common::{Outcome, Seen, compressed_frames, deflated_well, feed_to, frame_to, json, noise, params, strict};
use proptest::prelude::*;
use pyhv_wire::deflate::{Compressor, MIN_COMPRESSED, compress_shared, worth_compressing};
use pyhv_wire::{Decoder, Opcode, Role};

const LIMIT: usize = 2 << 20;

/// Text, noise, zeros, and zeros with something in between that recurs at every distance up to beyond the window.
fn payloads(len: usize) -> [Vec<u8>; 4] {
    let mut distant = noise(len, 77);
    for start in (0..len).step_by(300) {
        let end = len.min(start + 40 + start % 251);
        let from = start / 3;
        distant.copy_within(from..from + (end - start).min(len - from), start.min(from.max(start)));
    }
    [json(len, len as u64), noise(len, 3), vec![0; len], distant]
}

/// The message as a peer of `role` sends it: compressed, if that made it smaller.
fn message(role: Role, payload: &[u8], deflated: Option<&[u8]>) -> Vec<u8> {
    match deflated {
        Some(deflated) => compressed_frames(role, Opcode::Binary, deflated, &[]).concat(),
        None => frame_to(role, Opcode::Binary, true, payload),
    }
}

#[test]
fn every_window_takeover_and_size() {
    for bits in 8..=15 {
        for takeover in [false, true] {
            for role in [Role::Server, Role::Client] {
                let params = params(bits, takeover);
                let peer = if role == Role::Server { Role::Client } else { Role::Server };
                let half = params.compress_params(peer);
                let mut compressor = Compressor::new(half);
                let mut decoder = Decoder::with_deflate(role, LIMIT, params);
                let mut chunks: Vec<Vec<u8>> = Vec::new();
                let mut expected = Vec::new();
                for len in [0, 1, 2, 3, 10, 127, 128, 1000, 16_383, 16_384, 16_385, 70_000, 300_000] {
                    for payload in payloads(len) {
                        let mut deflated = Vec::new();
                        let smaller = compressor.compress(&payload, &mut deflated);
                        assert!(smaller || !takeover && deflated.is_empty());
                        chunks.push(message(role, &payload, smaller.then_some(&deflated)));
                        if !takeover {
                            let mut shared = b"before".to_vec();
                            assert_eq!(compress_shared(half, &payload, &mut shared), smaller);
                            assert_eq!(shared, [b"before", &deflated[..]].concat());
                        }
                        expected.push(payload);
                    }
                }
                let mut expected = expected.into_iter();
                for mut chunk in chunks {
                    let mut on_event = |event: pyhv_wire::Event<'_>| {
                        assert!(Seen::from(event) == Seen::Binary(expected.next().unwrap()));
                    };
                    assert_eq!(decoder.decode(&mut chunk, &mut on_event), Ok(()));
                    assert_eq!(decoder.buffered(), 0);
                }
                assert_eq!(expected.next(), None);
            }
        }
    }
}

#[test]
fn a_mebibyte_in_pieces() {
    for payload in payloads(1 << 20) {
        for takeover in [false, true] {
            let params = params(15, takeover);
            let mut deflated = Vec::new();
            let smaller = Compressor::new(params.compress_params(Role::Client)).compress(&payload, &mut deflated);
            let wire = message(Role::Server, &payload, smaller.then_some(&deflated));
            for size in [999, 65536, wire.len()] {
                let decoder = Decoder::with_deflate(Role::Server, LIMIT, params);
                let (seen, result) = feed_to(decoder, LIMIT, wire.chunks(size));
                assert!(seen == [Seen::Binary(payload.clone())] && result.is_ok());
            }
        }
    }
}

/// No match reaches further back than the window agreed on, by a reader that would notice: 8 bits included, for which zlib
/// is set to 9.
#[test]
fn a_strict_reader_with_just_the_window_reads_it() {
    for bits in 8..=15 {
        for takeover in [false, true] {
            let half = params(bits, takeover).compress_params(Role::Server);
            let mut compressor = Compressor::new(half);
            let mut past = Vec::new();
            for len in [0, 100, 2000, 20_000, 100_000, 2000] {
                for payload in payloads(len) {
                    let mut deflated = Vec::new();
                    if !compressor.compress(&payload, &mut deflated) {
                        continue;
                    }
                    if !takeover {
                        past.clear();
                    }
                    let before = past.len();
                    let read = strict::inflate(&deflated, 1 << bits, &mut past);
                    assert_eq!(read, Some(()), "{bits} {takeover} {len}");
                    assert!(past[before..] == payload, "{bits} {takeover} {len}");
                }
            }
        }
    }
    // It does notice: a window of half the size isn't enough, where there's something far back to find.
    for bits in 10..=15 {
        let block = noise((1 << (bits - 1)) + 50, 9);
        let payload = [&block[..], &block].concat();
        let mut deflated = Vec::new();
        assert!(compress_shared(params(bits, false).compress_params(Role::Server), &payload, &mut deflated));
        assert_eq!(strict::inflate(&deflated, 1 << bits, &mut Vec::new()), Some(()));
        assert_eq!(strict::inflate(&deflated, 1 << (bits - 1), &mut Vec::new()), None);
    }
}

#[test]
fn takeover_makes_the_second_message_refer_to_the_first() {
    let payload = json(1000, 4);
    let mut sizes = Vec::new();
    for takeover in [true, false] {
        let mut compressor = Compressor::new(params(15, takeover).compress_params(Role::Client));
        for _ in 0..2 {
            let mut out = Vec::new();
            assert!(compressor.compress(&payload, &mut out));
            sizes.push(out.len());
        }
    }
    let [first, second, third, fourth] = sizes[..] else { panic!("{sizes:?}") };
    assert!(second * 10 < first && first == third && third == fourth, "{sizes:?}");
}

/// One compressor for all: each message stands alone, in whatever order and on whatever connection it arrives.
#[test]
fn the_shared_compressors_messages_are_independent() {
    let mut connections: Vec<(u8, Decoder)> =
        (0..6).map(|i| (9 + i, Decoder::with_deflate(Role::Client, LIMIT, params(9 + i, false)))).collect();
    for round in 0..20u64 {
        for (i, (bits, decoder)) in connections.iter_mut().enumerate() {
            // Not everybody gets everything.
            if (round + i as u64).is_multiple_of(3) {
                continue;
            }
            let payload = json(200 + 37 * round as usize, round);
            let mut deflated = Vec::new();
            assert!(compress_shared(params(*bits, false).compress_params(Role::Server), &payload, &mut deflated));
            let mut wire = compressed_frames(Role::Client, Opcode::Text, &deflated, &[]).concat();
            let mut seen = Vec::new();
            assert_eq!(decoder.decode(&mut wire, &mut |event| seen.push(Seen::from(event))), Ok(()));
            assert_eq!(seen, [Seen::Text(String::from_utf8(payload).unwrap())]);
        }
    }
}

/// Compressed messages in pieces, on connections that take turns: the contexts that they borrow don't mix.
#[test]
fn interleaved_connections_that_are_cut_do_not_mix() {
    for takeover in [false, true] {
        let params = params(12, takeover);
        let mut connections: Vec<_> = (0..10u64)
            .map(|i| {
                let mut compressor = Compressor::new(params.compress_params(Role::Client));
                let payloads: Vec<Vec<u8>> = (0..5).map(|n| json(3000, 100 * i + n)).collect();
                let mut wire = Vec::new();
                for payload in &payloads {
                    let mut out = Vec::new();
                    assert!(compressor.compress(payload, &mut out));
                    wire.extend(compressed_frames(Role::Server, Opcode::Binary, &out, &[100]).concat());
                }
                (Decoder::with_deflate(Role::Server, LIMIT, params), wire, Vec::new(), payloads)
            })
            .collect();
        let longest = connections.iter().map(|c| c.1.len()).max().unwrap();
        for start in (0..longest).step_by(61) {
            for (decoder, wire, seen, _) in &mut connections {
                let end = wire.len().min(start + 61);
                let piece = &mut wire[start.min(end)..end];
                assert_eq!(decoder.decode(piece, &mut |event| seen.push(Seen::from(event))), Ok(()));
            }
        }
        for (_, _, seen, payloads) in connections {
            assert_eq!(seen, payloads.into_iter().map(Seen::Binary).collect::<Vec<_>>());
        }
    }
}

#[test]
fn the_threshold_is_where_compressing_begins_to_pay() {
    assert!(!worth_compressing(0) && !worth_compressing(MIN_COMPRESSED - 1));
    assert!(worth_compressing(MIN_COMPRESSED) && worth_compressing(usize::MAX));
    let half = params(15, false).compress_params(Role::Server);
    for seed in 0..20 {
        assert!(compress_shared(half, &json(2 * MIN_COMPRESSED, seed), &mut Vec::new()));
        assert!(!compress_shared(half, &json(MIN_COMPRESSED / 4, seed), &mut Vec::new()));
    }
    // What doesn't become smaller is left alone.
    let mut out = b"before".to_vec();
    assert!(!compress_shared(half, &noise(10_000, 1), &mut out));
    assert_eq!(out, b"before");
    assert!(compress_shared(half, b"", &mut out));
    assert_eq!(out, b"before\0");
}

/// What a peer sends: payload, where its frames end, whether it is compressed.
type Message = (Vec<u8>, Vec<prop::sample::Index>, bool);

fn messages() -> impl Strategy<Value = Vec<Message>> {
    let payload = prop_oneof![
        "\\PC{0,100}".prop_map(String::into_bytes),
        prop::collection::vec(0u8..4, 0..2000),
        prop::collection::vec(any::<u8>(), 0..300),
        (0usize..40_000, any::<u64>()).prop_map(|(len, seed)| json(len, seed)),
    ];
    let ends = prop::collection::vec(any::<prop::sample::Index>(), 0..4);
    prop::collection::vec((payload, ends, prop::bool::weighted(0.8)), 0..6)
}

fn play(role: Role, bits: u8, takeover: bool, messages: &[Message]) -> (Vec<u8>, Vec<Seen>) {
    let peer = if role == Role::Server { Role::Client } else { Role::Server };
    let mut compressor = Compressor::new(params(bits, takeover).compress_params(peer));
    let (mut wire, mut seen) = (Vec::new(), Vec::new());
    for (payload, ends, compress) in messages {
        let mut deflated = Vec::new();
        if *compress && compressor.compress(payload, &mut deflated) {
            let mut ends: Vec<usize> = ends.iter().map(|end| end.index(deflated.len() + 1)).collect();
            ends.sort_unstable();
            for frame in compressed_frames(role, Opcode::Binary, &deflated, &ends) {
                wire.extend(frame_to(role, Opcode::Ping, true, b"ping"));
                seen.push(Seen::Ping(b"ping".to_vec()));
                wire.extend(frame);
            }
        } else {
            wire.extend(frame_to(role, Opcode::Binary, true, payload));
        }
        seen.push(Seen::Binary(payload.clone()));
    }
    (wire, seen)
}

fn outcome(
    role: Role,
    params: pyhv_wire::deflate::DeflateParams,
    limit: usize,
    wire: &[u8],
    size: usize,
) -> Result<Outcome, TestCaseError> {
    let decoder = || Decoder::with_deflate(role, limit, params);
    let whole = feed_to(decoder(), limit, [wire]);
    prop_assert!(feed_to(decoder(), limit, wire.chunks(size)) == whole);
    if wire.len() < 5000 {
        prop_assert!(feed_to(decoder(), limit, wire.chunks(1)) == whole);
    }
    prop_assert!(!whole.0.iter().any(|seen| matches!(seen, Seen::BrokenText(_))));
    Ok(whole)
}

/// What a payload means to the second opinion, if it is whole: ended by a tail, or by BFINAL with nothing behind.
fn read_strictly(payload: &[u8]) -> Option<Vec<u8>> {
    [payload.to_vec(), [payload, &[0x00]].concat()].iter().find_map(|payload| {
        let mut read = Vec::new();
        strict::inflate(payload, 1 << 15, &mut read).map(|()| read)
    })
}

fn roles() -> impl Strategy<Value = Role> {
    prop_oneof![Just(Role::Server), Just(Role::Client)]
}

proptest! {
    #[test]
    fn what_was_sent_arrives_however_it_is_cut(
        role in roles(),
        bits in 8u8..=15,
        takeover in any::<bool>(),
        messages in messages(),
        size in 1usize..700,
    ) {
        let (wire, seen) = play(role, bits, takeover, &messages);
        let outcome = outcome(role, params(bits, takeover), LIMIT, &wire, size)?;
        prop_assert!(outcome == (seen, Ok(())));
    }

    #[test]
    fn spoilt_messages_come_to_the_same_however_they_are_cut(
        role in roles(),
        takeover in any::<bool>(),
        messages in messages(),
        spoil in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        size in 1usize..700,
        limit in prop_oneof![Just(LIMIT), 0usize..3000],
    ) {
        let (mut wire, _) = play(role, 15, takeover, &messages);
        for (at, byte) in spoil {
            if !wire.is_empty() {
                let at = at.index(wire.len());
                wire[at] = byte;
            }
        }
        let _same = outcome(role, params(15, takeover), limit, &wire, size)?;
    }

    /// Garbage for a payload, begun plausibly or not, as text and as binary.
    #[test]
    fn garbage_comes_to_the_same_however_it_is_cut(
        garbage in prop::collection::vec(any::<u8>(), 0..300),
        begin in prop::sample::select(vec![&b""[..], b"\xf2\x48\xcd\xc9\xc9\x07\x00", b"\x05", b"\x00\x01\x00\xfe\xffx", b"\x03\x00"]),
        text in any::<bool>(),
        takeover in any::<bool>(),
        size in 1usize..50,
        limit in prop_oneof![Just(LIMIT), 0usize..300],
    ) {
        let opcode = if text { Opcode::Text } else { Opcode::Binary };
        let payload = [begin, &garbage].concat();
        let wire = [
            compressed_frames(Role::Client, opcode, &payload, &[payload.len() / 2]).concat(),
            compressed_frames(Role::Client, opcode, b"\xf2\x48\xcd\xc9\xc9\x07\x00", &[]).concat(),
        ]
        .concat();
        let whole = outcome(Role::Client, params(15, takeover), limit, &wire, size)?;
        // The second opinion: whatever passes is whole, and what the payload means.
        if let (Some(Seen::Binary(first)), false) = (whole.0.first(), payload.ends_with(b"\xff")) {
            prop_assert_eq!(Some(first.clone()), read_strictly(&payload));
        }
    }

    /// A dynamic block that is cut, and spoilt before: inside its code lengths too, which zlib takes in without a word.
    #[test]
    fn a_spoilt_block_that_is_cut_passes_only_if_it_is_whole(
        seed in any::<u64>(),
        spoil in prop::collection::vec((0usize..80, any::<u8>()), 0..3),
        end in 1usize..120,
        takeover in any::<bool>(),
    ) {
        let mut payload = deflated_well(&json(3000, seed));
        prop_assert_eq!(payload[0] & 6, 4, "not a dynamic block");
        for (at, byte) in spoil {
            payload[at] = byte;
        }
        payload.truncate(end);
        let wire = compressed_frames(Role::Client, Opcode::Binary, &payload, &[]).concat();
        let (seen, _) = outcome(Role::Client, params(15, takeover), LIMIT, &wire, 7)?;
        if let (Some(Seen::Binary(first)), false) = (seen.first(), payload.ends_with(b"\xff")) {
            prop_assert_eq!(Some(first.clone()), read_strictly(&payload));
        }
    }
}
