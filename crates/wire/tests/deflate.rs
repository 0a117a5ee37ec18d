//! Compressed messages in the decoder, rule by rule: each input whole, byte by byte and at every split.

mod common;

use common::{
    KEY, Outcome, Seen, assert_at_every_cut_of, compressed, compressed_frames, deflated_well, feed_to, frame, json,
    params,
};
use pyhv_wire::deflate::{Compressor, DeflateParams, compress_shared};
use pyhv_wire::{Decoder, Event, Opcode, Payload, Role, encode_frame, encode_frame_rsv1};

const LIMIT: usize = 1 << 20;

/// RFC 7692 section 7.2.3.1: "Hello", compressed in one block.
const HELLO: &[u8] = &[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00];

fn text(s: &str) -> Seen {
    Seen::Text(s.to_owned())
}

fn server(takeover: bool) -> Decoder {
    Decoder::with_deflate(Role::Server, LIMIT, params(15, takeover))
}

/// Asserts what comes of these bytes at every cut, with context takeover and without.
fn assert_seen(wire: &[u8], seen: &[Seen], fault: Option<(u16, &str)>) {
    for takeover in [false, true] {
        let outcome: Outcome = feed_to(server(takeover), LIMIT, [wire]);
        assert_eq!(outcome.0, seen, "{wire:x?}");
        let found = outcome.1.err().map(|violation| (violation.code, violation.reason));
        let fits = match (fault, found) {
            (Some((code, word)), Some(found)) => found.0 == code && found.1.contains(word),
            (fault, found) => fault.is_none() && found.is_none(),
        };
        assert!(fits, "not {fault:?} but {found:?}: {wire:x?}");
        assert_at_every_cut_of(|| server(takeover), LIMIT, wire, &outcome);
    }
}

fn compress(payload: &[u8]) -> Vec<u8> {
    let mut compressor = Compressor::new(params(15, true).compress_params(Role::Client));
    let mut out = Vec::new();
    assert!(compressor.compress(payload, &mut out));
    out
}

#[test]
fn the_examples_of_the_rfc() {
    let wire = [
        // 7.2.3.1: one block; in two fragments
        compressed(Opcode::Text, HELLO),
        compressed_frames(Role::Server, Opcode::Text, HELLO, &[3]).concat(),
        // 7.2.3.3: a block that isn't compressed
        compressed(Opcode::Text, &[0x00, 0x05, 0x00, 0xfa, 0xff, 0x48, 0x65, 0x6c, 0x6c, 0x6f, 0x00]),
        // 7.2.3.4: BFINAL is set
        compressed(Opcode::Text, &[0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0x00]),
        // 7.2.3.5: two blocks
        compressed(Opcode::Text, &[0xf2, 0x48, 0x05, 0x00, 0x00, 0x00, 0xff, 0xff, 0xca, 0xc9, 0xc9, 0x07, 0x00]),
    ]
    .concat();
    assert_seen(&wire, &vec![text("Hello"); 5], None);
    // 7.2.3.6: an empty message
    assert_seen(&compressed(Opcode::Text, &[0x00]), &[text("")], None);
    // The frame as it stands there
    let mut out = Vec::new();
    encode_frame_rsv1(&mut out, Opcode::Text, true, HELLO, None);
    assert_eq!(out, [0xc1, 0x07, 0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00]);
}

/// 7.2.3.2: the second "Hello" refers to the first.
#[test]
fn the_example_of_a_shared_window() {
    let second = [0xf2, 0x00, 0x11, 0x00, 0x00];
    let wire = [compressed(Opcode::Text, HELLO), compressed(Opcode::Text, &second)].concat();
    let expected = (vec![text("Hello"); 2], Ok(()));
    assert_at_every_cut_of(|| server(true), LIMIT, &wire, &expected);
    // Without takeover there is nothing that it could refer to.
    let (seen, result) = feed_to(server(false), LIMIT, [&wire[..]]);
    assert_eq!(seen, [text("Hello")]);
    assert_eq!(result.map_err(|violation| violation.code), Err(1007));
}

#[test]
fn each_direction_has_its_own_takeover() {
    let params = |server_no_context_takeover| DeflateParams {
        server_no_context_takeover,
        client_no_context_takeover: !server_no_context_takeover,
        server_max_window_bits: 15,
        client_max_window_bits: 15,
    };
    for role in [Role::Server, Role::Client] {
        for server_no_takeover in [false, true] {
            let messages = [HELLO, &[0xf2, 0x00, 0x11, 0x00, 0x00]];
            let frames = messages.map(|payload| compressed_frames(role, Opcode::Text, payload, &[]).concat());
            let decoder = Decoder::with_deflate(role, LIMIT, params(server_no_takeover));
            let (seen, _) = feed_to(decoder, LIMIT, frames.iter().map(Vec::as_slice));
            let peer_takes_over = (role == Role::Client) != server_no_takeover;
            assert_eq!(seen.len(), if peer_takes_over { 2 } else { 1 });
        }
    }
}

#[test]
fn ways_to_end_a_message() {
    for (payload, seen) in [
        (&[][..], ""),
        (&[0x00], ""),
        // The empty message as an empty block with fixed codes, and twice
        (&[0x02, 0x00], ""),
        (&[0x00, 0x00, 0x00, 0xff, 0xff, 0x00], ""),
        // The tail was left in place.
        (&[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0x00, 0x00, 0xff, 0xff], "Hello"),
        (&[0x00, 0x00, 0x00, 0xff, 0xff], ""),
        // BFINAL, and not the byte behind it
        (&[0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00], "Hello"),
        (&[0x03, 0x00], ""),
        (&[0x01, 0x00, 0x00, 0xff, 0xff], ""),
        // BFINAL in the middle, several times
        (&[0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00], "HelloHello"),
        (&[0x03, 0x00, 0x03, 0x00, 0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0x00], "Hello"),
    ] {
        // What comes after it is fine too, and a last frame without payload changes nothing.
        let wire = [
            compressed(Opcode::Text, payload),
            compressed(Opcode::Text, HELLO),
            compressed_frames(Role::Server, Opcode::Text, payload, &[payload.len()]).concat(),
            compressed_frames(Role::Server, Opcode::Text, payload, &[0, payload.len() / 2]).concat(),
            frame(Opcode::Text, true, b"plain"),
        ]
        .concat();
        assert_seen(&wire, &[text(seen), text("Hello"), text(seen), text(seen), text("plain")], None);
    }
}

#[test]
fn messages_that_are_cut_off() {
    let stored = [0x00, 0x05, 0x00, 0xfa, 0xff, 0x48, 0x65, 0x6c, 0x6c, 0x6f, 0x00];
    // The first byte of the stored block alone is the empty message.
    for (payload, first) in [(HELLO, 1), (&stored, 2)] {
        for end in first..payload.len() {
            let wire = [frame(Opcode::Text, true, b"before"), compressed(Opcode::Text, &payload[..end])].concat();
            assert_seen(&wire, &[text("before")], Some((1007, "compressed message")));
        }
    }
    // Inside the code lengths of a dynamic block, of which there may be more than the tail has bits.
    let lengths = b"\xec\xc1\x31\x01\0\0\0\xc2\xa0\xf5\x4f\x6d\x0d\x0f\xa0\0\0\0\0\0\0\0\0\0\xc6\0\0\0\0\0\0\0\xb8\x30";
    let dynamic = deflated_well(&json(3000, 1));
    assert_eq!(dynamic[0] & 6, 4);
    for (payload, first) in [(&lengths[..], 1), (&dynamic, 1)] {
        for end in first..payload.len() {
            let wire = [frame(Opcode::Text, true, b"before"), compressed(Opcode::Binary, &payload[..end])].concat();
            assert_seen(&wire, &[text("before")], Some((1007, "compressed message")));
        }
    }
    // Ends at a block's end, but not with the header of the next.
    let ends = &[0x00, 0x05, 0x00, 0xfa, 0xff, 0x48, 0x65, 0x6c, 0x6c, 0x6f];
    assert_seen(&compressed(Opcode::Text, ends), &[], Some((1007, "ends inside")));
}

#[test]
fn data_that_is_not_deflate() {
    for payload in [
        // BTYPE 3
        &[0x06, 0x00][..],
        // A stored block whose length and complement disagree
        &[0x00, 0x05, 0x00, 0xfa, 0xfe, 0x48],
        // A distance before the message's begin: "Hello" of the second example
        &[0xf2, 0x00, 0x11, 0x00, 0x00],
        // After BFINAL the window is empty.
        &[0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0xf2, 0x00, 0x11, 0x00, 0x00],
        // More codes than there are
        &[0xfc, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
    ] {
        assert_seen(&compressed(Opcode::Binary, payload), &[], Some((1007, "DEFLATE data")));
    }
}

#[test]
fn rsv1_belongs_to_the_first_frame_of_a_data_message() {
    let open = compressed_frames(Role::Server, Opcode::Text, HELLO, &[3]);
    let plain = frame(Opcode::Text, false, b"plain");
    for (before, first) in [
        // RSV2, RSV3, with and without RSV1
        (&[][..], 0xa1),
        (&[], 0x91),
        (&[], 0xe1),
        (&[], 0xd2),
        (&[], 0xb9),
        // Control frames
        (&[], 0xc8),
        (&[], 0xc9),
        (&[], 0xca),
        (&open[0], 0xc9),
        // Continuation frames, of a compressed message, of another, of none
        (&open[0], 0xc0),
        (&open[0], 0x40),
        (&plain, 0xc0),
        (&[], 0xc0),
        // Reserved opcodes
        (&[], 0xc3),
        (&[], 0xcb),
    ] {
        let wire = [before, &[first, 0x80]].concat();
        assert_seen(&wire, &[], Some((1002, "permessage-deflate")));
        // The first byte is enough.
        assert!(feed_to(server(false), LIMIT, [&wire[..=before.len()]]).1.is_err());
    }
    for first in [0xc1, 0x42] {
        assert_seen(&[&open[0][..], &[first, 0x80]].concat(), &[], Some((1002, "new message")));
    }
}

#[test]
fn compressed_and_plain_messages_and_control_frames_mix() {
    let payload = json(700, 5);
    let message = Seen::Text(String::from_utf8(payload.clone()).unwrap());
    let frames = compressed_frames(Role::Server, Opcode::Text, &compress(&payload), &[1, 2, 2, 100]);
    let mut wire = frame(Opcode::Text, true, b"first");
    for frame_bytes in &frames {
        wire.extend_from_slice(&frame(Opcode::Ping, true, b"between"));
        wire.extend_from_slice(frame_bytes);
    }
    wire.extend(frame(Opcode::Binary, false, b"\xff"));
    wire.extend(frame(Opcode::Continuation, true, b"\xfe"));
    wire.extend(compressed(Opcode::Binary, HELLO));
    wire.extend(frame(Opcode::Close, true, b"\x03\xe8"));
    wire.extend(compressed(Opcode::Text, b"\xff\xff ignored"));
    let mut expected = vec![text("first")];
    expected.extend(vec![Seen::Ping(b"between".to_vec()); 5]);
    expected.push(message);
    expected.push(Seen::Binary(vec![0xff, 0xfe]));
    expected.push(Seen::Binary(b"Hello".to_vec()));
    expected.push(Seen::Close(Some(1000), String::new()));
    assert_seen(&wire, &expected, None);
}

#[test]
fn inflated_text_fails_at_the_byte_that_spoils_it() {
    let tail = json(2000, 9);
    for (bad, len) in [(&b"\xff"[..], 0), (b"\xed\xa0\x80", 1), (b"\xf4\x90\x80\x80", 1)] {
        let payload = [b"fine ", bad, &tail].concat();
        let wire = compressed(Opcode::Text, &compress(&payload));
        assert_seen(&wire, &[], Some((1007, "UTF-8")));
        // Fixed codes of 8 or 9 bits: known after so many bytes of text, and a little.
        let proof = 8 + 5 + len + 3;
        let (_, result) = feed_to(server(false), LIMIT, [&wire[..proof + 8]]);
        assert!(result.is_err(), "late: {bad:x?}");
        assert!(wire.len() > 10 * proof);
        // Binary messages may hold anything.
        let wire = compressed(Opcode::Binary, &compress(&payload));
        assert_seen(&wire, &[Seen::Binary(payload)], None);
    }
    // It ends inside a character.
    let wire = compressed(Opcode::Text, &compress(b"ends inside \xe2\x82"));
    assert_seen(&wire, &[], Some((1007, "UTF-8")));
    // A character cut by the ends of fragments and chunks is none the worse for it.
    let payload = "€😀ü".repeat(40);
    let deflated = compress(payload.as_bytes());
    for end in 0..deflated.len() {
        let wire = compressed_frames(Role::Server, Opcode::Text, &deflated, &[end]).concat();
        let outcome = feed_to(server(false), LIMIT, wire.chunks(1));
        assert_eq!(outcome, (vec![text(&payload)], Ok(())));
    }
}

#[test]
fn the_limit_is_inclusive_and_counts_what_was_inflated() {
    for len in [1, 1000, 16384, 16385, 50_000] {
        for (limit, fits) in [(len - 1, false), (len, true), (len + 1, true)] {
            let payload = vec![b'z'; len];
            let wire = compressed(Opcode::Text, &compress(&payload));
            for size in [1, 7, wire.len()] {
                let decoder = Decoder::with_deflate(Role::Server, limit, params(15, false));
                let (seen, result) = feed_to(decoder, limit, wire.chunks(size));
                assert_eq!(seen.len(), usize::from(fits), "{len} {limit}");
                let code = result.map_err(|violation| violation.code);
                assert_eq!(code, if fits { Ok(()) } else { Err(1009) });
            }
        }
    }
    // A payload that is longer compressed isn't measured by that.
    let payload = [&[0x00, 0x00, 0x00, 0xff, 0xff].repeat(100)[..], HELLO].concat();
    let decoder = || Decoder::with_deflate(Role::Server, 5, params(15, false));
    let expected = (vec![text("Hello")], Ok(()));
    assert_at_every_cut_of(decoder, 5, &compressed(Opcode::Text, &payload), &expected);
    // An uncompressed one is, on the same connection.
    let (_, result) = feed_to(decoder(), 5, [&frame(Opcode::Text, true, b"longer")[..]]);
    assert_eq!(result.map_err(|violation| violation.code), Err(1009));
}

/// Of bad text beyond the limit, the limit is what's told, at every cut; of bad text before it, the text.
#[test]
fn what_comes_first_is_told() {
    for (at, code) in [(10, 1007), (99, 1007), (100, 1009), (150, 1009)] {
        let mut payload = json(200, 3);
        payload.fill(b'x');
        payload[at] = 0xff;
        let wire = compressed(Opcode::Text, &compress(&payload));
        for size in 1..wire.len() {
            let decoder = Decoder::with_deflate(Role::Server, 100, params(15, true));
            let (_, result) = feed_to(decoder, 100, wire.chunks(size));
            assert_eq!(result.map_err(|violation| violation.code), Err(code), "{at} {size}");
        }
    }
}

#[test]
fn any_byte_spoilt_does_no_harm_and_the_same_at_every_cut() {
    let payload = json(500, 11);
    let mut shared = Vec::new();
    assert!(compress_shared(params(9, false).compress_params(Role::Client), &payload, &mut shared));
    let after = compressed(Opcode::Text, HELLO);
    for at in 0..shared.len() {
        for flip in [0x01, 0x02, 0x10, 0x80, 0xff] {
            let mut spoilt = shared.clone();
            spoilt[at] ^= flip;
            let wire = [compressed(Opcode::Binary, &spoilt), after.clone()].concat();
            for takeover in [false, true] {
                let whole = feed_to(server(takeover), LIMIT, [&wire[..]]);
                assert_eq!(feed_to(server(takeover), LIMIT, wire.chunks(1)), whole, "{at} {flip:x}");
                assert_eq!(feed_to(server(takeover), LIMIT, wire.chunks(13)), whole, "{at} {flip:x}");
            }
        }
    }
}

#[test]
fn short_messages_are_borrowed_and_a_callback_may_decode() {
    let mut outer = server(false);
    let mut seen = Vec::new();
    let mut wire = compressed(Opcode::Text, HELLO);
    let mut on_event = |event: Event<'_>| {
        let Event::Message { payload: Payload::Borrowed(bytes), .. } = event else {
            panic!("{event:?}");
        };
        let inner = feed_to(server(false), LIMIT, [&compressed(Opcode::Text, &compress(b"inner"))[..]]);
        seen.push((bytes.to_vec(), inner.0));
    };
    assert_eq!(outer.decode(&mut wire, &mut on_event), Ok(()));
    assert_eq!(seen, [(b"Hello".to_vec(), vec![text("inner")])]);
}

#[test]
fn a_decoder_moves_between_threads_in_the_middle_of_a_message() {
    fn is_send<T: Send>(value: T) -> T {
        value
    }
    for takeover in [false, true] {
        let mut decoder = is_send(server(takeover));
        let mut seen = Vec::new();
        let payload = json(3000, 1);
        let wire = [compressed(Opcode::Text, &compress(&payload)), compressed(Opcode::Text, HELLO)].concat();
        for chunk in wire.chunks(100) {
            let run = std::thread::spawn({
                let mut chunk = chunk.to_vec();
                move || {
                    let mut seen = Vec::new();
                    let result = decoder.decode(&mut chunk, &mut |event| seen.push(Seen::from(event)));
                    (decoder, seen, result)
                }
            });
            let (back, events, result) = run.join().unwrap();
            assert_eq!(result, Ok(()));
            decoder = back;
            seen.extend(events);
        }
        assert_eq!(seen, [Seen::Text(String::from_utf8(payload).unwrap()), text("Hello")]);
    }
}

#[test]
fn a_panicking_callback_leaves_the_decoder_usable() {
    let mut decoder = server(true);
    let mut wire = compressed(Opcode::Text, HELLO);
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        decoder.decode(&mut wire, &mut |_| panic!("the callback's own fault"))
    }));
    assert!(panicked.is_err());
    let mut second = compressed(Opcode::Text, &[0xf2, 0x00, 0x11, 0x00, 0x00]);
    let mut seen = Vec::new();
    assert_eq!(decoder.decode(&mut second, &mut |event| seen.push(Seen::from(event))), Ok(()));
    assert_eq!(seen, [text("Hello")]);
}

#[test]
fn frames_with_rsv1_are_masked_and_appended_like_others() {
    let mut plain = b"before".to_vec();
    let mut marked = plain.clone();
    encode_frame(&mut plain, Opcode::Binary, false, b"payload", Some(KEY));
    encode_frame_rsv1(&mut marked, Opcode::Binary, false, b"payload", Some(KEY));
    assert_eq!(marked[6], plain[6] | 0x40);
    marked[6] = plain[6];
    assert_eq!(marked, plain);
}
