//! The decoder, rule by rule: each input whole, byte by byte, at every split, and with trailing data.

mod common;

use common::{KEY, Outcome, Seen, assert_at_every_cut, feed, frame, frame_to};
use pyhv_wire::{Decoder, Event, Opcode, Role, close, encode_frame};

const LIMIT: usize = 1 << 20;

fn text(s: &str) -> Seen {
    Seen::Text(s.to_owned())
}

fn close_frame(code: Option<u16>, reason: &str) -> Vec<u8> {
    let mut payload = Vec::new();
    close::encode_payload(&mut payload, code, reason);
    frame(Opcode::Close, true, &payload)
}

#[test]
fn messages_and_control_frames_arrive_in_order() {
    for role in [Role::Server, Role::Client] {
        let wire = [
            frame_to(role, Opcode::Text, true, "Hellö".as_bytes()),
            frame_to(role, Opcode::Binary, true, &[0, 255, 128]),
            frame_to(role, Opcode::Ping, true, b"p"),
            frame_to(role, Opcode::Text, true, b""),
            frame_to(role, Opcode::Pong, true, b""),
            frame_to(role, Opcode::Binary, true, b""),
            frame_to(role, Opcode::Close, true, b"\x03\xe8bye"),
        ]
        .concat();
        let expected = vec![
            text("Hellö"),
            Seen::Binary(vec![0, 255, 128]),
            Seen::Ping(b"p".to_vec()),
            text(""),
            Seen::Pong(vec![]),
            Seen::Binary(vec![]),
            Seen::Close(Some(1000), "bye".to_owned()),
        ];
        assert_at_every_cut(role, LIMIT, &wire, &(expected, Ok(())));
    }
}

#[test]
fn fragments_become_one_message_with_control_frames_between() {
    // "€" and "😀" are cut by fragments' ends.
    let wire = [
        frame(Opcode::Text, false, b"a\xe2\x82"),
        frame(Opcode::Ping, true, &[1; 125]),
        frame(Opcode::Continuation, false, b""),
        frame(Opcode::Continuation, false, b"\xac\xf0"),
        frame(Opcode::Pong, true, b"x"),
        frame(Opcode::Continuation, true, b"\x9f\x98\x80"),
        frame(Opcode::Binary, false, b""),
        frame(Opcode::Continuation, true, b""),
        frame(Opcode::Binary, false, b"\xff"),
        frame(Opcode::Continuation, true, b""),
        frame(Opcode::Text, true, b"after"),
    ]
    .concat();
    let expected = vec![
        Seen::Ping(vec![1; 125]),
        Seen::Pong(b"x".to_vec()),
        text("a€😀"),
        Seen::Binary(vec![]),
        Seen::Binary(vec![255]),
        text("after"),
    ];
    assert_at_every_cut(Role::Server, LIMIT, &wire, &(expected, Ok(())));
}

#[test]
fn lengths_of_every_form_at_every_split() {
    for len in [124, 125, 126, 127, 300] {
        let payload: Vec<u8> = (0..len).map(|i| i as u8).collect();
        let wire = [frame(Opcode::Binary, true, &payload), frame(Opcode::Ping, true, b"next")].concat();
        let expected = vec![Seen::Binary(payload), Seen::Ping(b"next".to_vec())];
        assert_at_every_cut(Role::Server, LIMIT, &wire, &(expected, Ok(())));
    }
}

/// One rule broken: the bytes, the index of the byte that proves it, the code, and a word of the reason.
type Broken = (Role, Vec<u8>, usize, u16, &'static str);

/// Asserts that each fails at exactly its byte, after the events of the frame before it, with the same violation
/// however it's cut and whatever follows.
fn assert_broken(prefix: &[u8], before: &[Seen], table: &[Broken]) {
    for (role, bytes, at, code, word) in table {
        let wire = [prefix, bytes].concat();
        let proof = prefix.len() + at;
        let early = feed(*role, LIMIT, [&wire[..proof]]);
        assert_eq!(early, (before.to_vec(), Ok(())), "too early: {bytes:x?}");
        let outcome: Outcome = feed(*role, LIMIT, [&wire[..=proof]]);
        let fault = outcome.1.map_err(|violation| (violation.code, violation.reason));
        let fits = fault.is_err_and(|fault| fault.0 == *code && fault.1.contains(word));
        assert!(fits, "not ({code}, {word:?}) but {fault:?}: {bytes:x?}");
        assert_eq!(outcome.0, before);
        let trailing = [&wire[..], &frame(Opcode::Text, true, b"later")].concat();
        assert_at_every_cut(*role, LIMIT, &trailing, &outcome);
    }
}

#[test]
fn every_broken_rule_of_the_header_at_its_byte() {
    use Role::{Client, Server};
    let mut table: Vec<Broken> = vec![
        // RSV1, RSV2, RSV3, all
        (Server, vec![0xc1, 0x80], 0, 1002, "RSV"),
        (Server, vec![0xa1, 0x80], 0, 1002, "RSV"),
        (Server, vec![0x91, 0x80], 0, 1002, "RSV"),
        (Client, vec![0xf9, 0x00], 0, 1002, "RSV"),
        // Masking
        (Server, vec![0x81, 0x05], 1, 1002, "must be masked"),
        (Server, vec![0x89, 0x00], 1, 1002, "must be masked"),
        (Client, vec![0x81, 0x85], 1, 1002, "must not be masked"),
        (Client, vec![0x88, 0x80], 1, 1002, "must not be masked"),
        // Control frames
        (Server, vec![0x08, 0x80], 0, 1002, "fragmented"),
        (Server, vec![0x09, 0x80], 0, 1002, "fragmented"),
        (Server, vec![0x0a, 0x80], 0, 1002, "fragmented"),
        (Server, vec![0x88, 0xfe], 1, 1002, "125"),
        (Server, vec![0x89, 0xfe], 1, 1002, "125"),
        (Server, vec![0x8a, 0xff], 1, 1002, "125"),
        (Client, vec![0x89, 0x7e, 0, 1], 1, 1002, "125"),
        (Server, vec![0x88, 0x81], 1, 1002, "close code"),
        // A continuation of nothing
        (Server, vec![0x80, 0x80], 0, 1002, "no message is open"),
        (Server, vec![0x00, 0x80], 0, 1002, "no message is open"),
        // Lengths that a shorter form holds: 0 and 125 in 16 bits, 0 and 65535 in 64
        (Server, vec![0x82, 0xfe, 0, 0], 3, 1002, "shortest"),
        (Server, vec![0x82, 0xfe, 0, 125], 3, 1002, "shortest"),
        (Client, vec![0x82, 0x7e, 0, 125], 3, 1002, "shortest"),
        (Server, vec![0x82, 0xff, 0, 0, 0, 0, 0, 0], 7, 1002, "shortest"),
        (Client, vec![0x82, 0x7f, 0, 0, 0, 0, 0, 0, 255, 255], 7, 1002, "shortest"),
        // The top bit, whatever else is wrong
        (Server, vec![0x82, 0xff, 0x80], 2, 1002, "most significant"),
        (Client, vec![0x82, 0x7f, 0xff, 255, 255], 2, 1002, "most significant"),
        // Too large: the limit is 0x10_0000, and the bytes before the last prove it
        (Server, vec![0x82, 0xff, 0, 0, 0, 0, 0, 0x10, 0, 1], 9, 1009, "larger"),
        (Server, vec![0x82, 0xff, 0, 0, 0, 0, 0, 0x11], 7, 1009, "larger"),
        (Server, vec![0x81, 0xff, 0x7f], 2, 1009, "larger"),
        (Client, vec![0x02, 0x7f, 0, 0, 1], 4, 1009, "larger"),
    ];
    for reserved in [3, 4, 5, 6, 7, 11, 12, 13, 14, 15] {
        table.push((Server, vec![0x80 | reserved, 0x80], 0, 1002, "reserved"));
        table.push((Server, vec![reserved, 0x80], 0, 1002, "reserved"));
    }
    assert_broken(b"", &[], &table);
    let table: Vec<Broken> = table.into_iter().filter(|row| row.0 == Server).collect();
    let before = frame(Opcode::Text, true, b"first");
    assert_broken(&before, &[text("first")], &table);
}

#[test]
fn every_broken_rule_inside_a_fragmented_message() {
    let prefix = [frame(Opcode::Ping, true, b""), frame(Opcode::Text, false, b"begun\xe2\x82")].concat();
    let server = |bytes, at, code, word| (Role::Server, bytes, at, code, word);
    assert_broken(
        &prefix,
        &[Seen::Ping(vec![])],
        &[
            server(frame(Opcode::Text, true, b"new"), 0, 1002, "new message"),
            server(frame(Opcode::Binary, false, b"new"), 0, 1002, "new message"),
            // The character that the first fragment began is not continued.
            server(frame(Opcode::Continuation, false, b"x"), 6, 1007, "text"),
            server(frame(Opcode::Continuation, false, b"\xacok\xff-"), 9, 1007, "text"),
            // 7 bytes are held: one more than the limit, in all.
            server(vec![0x00, 0xff, 0, 0, 0, 0, 0, 0x0f, 0xff, 0xfa], 9, 1009, "larger"),
        ],
    );
    // The message ends inside the character: known when FIN's frame is complete.
    let ends = frame(Opcode::Continuation, true, b"");
    assert_broken(&prefix, &[Seen::Ping(vec![])], &[server(ends, 5, 1007, "text")]);
}

#[test]
fn bad_text_fails_at_its_byte_before_the_frame_is_complete() {
    let server = |payload: &[u8], at: usize, word| {
        let bytes = frame(Opcode::Text, true, payload);
        (Role::Server, bytes, 6 + at, 1007, word)
    };
    assert_broken(
        b"",
        &[],
        &[
            server(b"\xff and so on", 0, "text"),
            server(b"ab\xf4\x90\x80\x80cd", 3, "text"),
            server(b"\xed\xa0\x80", 1, "text"),
            server(b"\xe0\x80\x80", 1, "text"),
            server(b"abc\xc0\xaf", 3, "text"),
            server(b"ends inside \xe2\x82", 13, "text"),
        ],
    );
}

#[test]
fn bad_close_frames_fail_at_their_byte() {
    let server = |payload: &[u8], at: usize, code, word| {
        let bytes = frame(Opcode::Close, true, payload);
        (Role::Server, bytes, 6 + at, code, word)
    };
    let mut table = vec![
        server(b"\x03\xe8bad \xff reason", 6, 1007, "reason"),
        server(b"\x03\xe8\xed\xa0\x80", 3, 1007, "reason"),
        server(b"\x03\xe8ends inside \xe2\x82", 15, 1007, "reason"),
        // A bad code is known before the reason.
        server(b"\x03\xecreason", 1, 1002, "close code"),
    ];
    for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535] {
        let payload = u16::to_be_bytes(code);
        table.push(server(&payload, 1, 1002, "close code"));
    }
    assert_broken(b"", &[], &table);
}

#[test]
fn close_frames_that_are_right() {
    let longest = "x".repeat(123);
    for (code, reason) in [
        (None, ""),
        (Some(1000), ""),
        (Some(1001), "going away"),
        (Some(1014), ""),
        (Some(3000), "für später"),
        (Some(4999), &longest),
    ] {
        let expected = vec![Seen::Close(code, reason.to_owned())];
        let wire = close_frame(code, reason);
        assert_at_every_cut(Role::Server, LIMIT, &wire, &(expected, Ok(())));
    }
}

#[test]
fn after_the_close_frame_everything_is_ignored() {
    let mut decoder = Decoder::new(Role::Server, LIMIT);
    assert!(!decoder.is_closed());
    let mut wire = close_frame(Some(1000), "");
    // Inside a fragmented message too.
    let mut start = frame(Opcode::Text, false, b"half");
    assert_eq!(decoder.decode(&mut start, &mut |_| {}), Ok(()));
    let mut count = 0;
    assert_eq!(decoder.decode(&mut wire, &mut |_| count += 1), Ok(()));
    assert!(decoder.is_closed());
    let mut later = [frame(Opcode::Text, true, b"x"), vec![0xff; 100]].concat();
    assert_eq!(decoder.decode(&mut later, &mut |_| count += 1), Ok(()));
    assert_eq!(count, 1);

    let wire = [close_frame(None, ""), later].concat();
    let expected = vec![Seen::Close(None, String::new())];
    assert_at_every_cut(Role::Server, LIMIT, &wire, &(expected, Ok(())));
}

#[test]
fn a_violation_is_not_a_close() {
    let mut decoder = Decoder::new(Role::Server, LIMIT);
    assert!(decoder.decode(&mut [0xff], &mut |_| {}).is_err());
    assert!(!decoder.is_closed());
    assert_eq!(decoder.buffered(), 0);
}

#[test]
fn the_limit_is_inclusive_and_counts_all_fragments() {
    let limit = 200;
    let outcome = |fragments: &[usize]| {
        let mut wire = Vec::new();
        for (i, &len) in fragments.iter().enumerate() {
            let opcode = if i == 0 { Opcode::Binary } else { Opcode::Continuation };
            wire.extend(frame(opcode, i + 1 == fragments.len(), &vec![7; len]));
            wire.extend(frame(Opcode::Ping, true, &[0; 125]));
        }
        let (seen, result) = feed(Role::Server, limit, [&wire[..]]);
        let messages = seen.iter().filter(|e| matches!(e, Seen::Binary(_))).count();
        (messages, result.map_err(|violation| violation.code))
    };
    assert_eq!(outcome(&[200]), (1, Ok(())));
    assert_eq!(outcome(&[201]), (0, Err(1009)));
    assert_eq!(outcome(&[100, 100]), (1, Ok(())));
    assert_eq!(outcome(&[100, 101]), (0, Err(1009)));
    assert_eq!(outcome(&[200, 0, 0]), (1, Ok(())));
    assert_eq!(outcome(&[200, 0, 1]), (0, Err(1009)));
    assert_eq!(outcome(&[1; 200]), (1, Ok(())));
    assert_eq!(outcome(&[1; 201]), (0, Err(1009)));

    // A limit of nothing admits empty messages and control frames.
    let wire =
        [frame(Opcode::Ping, true, b"ping"), frame(Opcode::Text, true, b""), frame(Opcode::Text, true, b"x")].concat();
    let (seen, result) = feed(Role::Server, 0, [&wire[..]]);
    assert_eq!(seen, [Seen::Ping(b"ping".to_vec()), text("")]);
    assert_eq!(result.map_err(|violation| violation.code), Err(1009));
}

#[test]
fn no_limit_at_all() {
    let mut decoder = Decoder::new(Role::Client, usize::MAX);
    let mut wire = [0x82, 0x7f, 0x7f, 255, 255, 255, 255, 255, 255, 255, 1, 2, 3];
    assert_eq!(decoder.decode(&mut wire, &mut |_| {}), Ok(()));
    assert_eq!(decoder.buffered(), 3);
}

#[test]
fn buffered_counts_the_unfinished_message_only() {
    let mut decoder = Decoder::new(Role::Server, LIMIT);
    let mut feed = |bytes: &[u8]| {
        assert_eq!(decoder.decode(&mut bytes.to_vec(), &mut |_| {}), Ok(()));
        decoder.buffered()
    };
    assert_eq!(feed(&frame(Opcode::Text, true, b"whole")), 0);
    assert_eq!(feed(&frame(Opcode::Text, false, b"four")), 4);
    assert_eq!(feed(&frame(Opcode::Ping, true, b"ping")), 4);
    let end = frame(Opcode::Continuation, true, b"0123456789");
    assert_eq!(feed(&end[..3]), 4);
    assert_eq!(feed(&end[3..9]), 7);
    assert_eq!(feed(&end[9..]), 0);
}

#[test]
fn many_small_frames_in_one_chunk() {
    let wire: Vec<u8> = (0..1000u32)
        .flat_map(|i| {
            let mut out = Vec::new();
            let key = (i.wrapping_mul(0x9e37_79b9)).to_be_bytes();
            encode_frame(&mut out, Opcode::Text, true, i.to_string().as_bytes(), Some(key));
            out
        })
        .collect();
    let expected: Vec<Seen> = (0..1000).map(|i| text(&i.to_string())).collect();
    assert_eq!(feed(Role::Server, LIMIT, [&wire[..]]), (expected, Ok(())));
}

#[test]
fn a_panicking_callback_leaves_the_decoder_usable() {
    let mut decoder = Decoder::new(Role::Server, LIMIT);
    let mut wire = frame(Opcode::Text, true, b"boom");
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        decoder.decode(&mut wire, &mut |_| panic!("the callback's own fault"))
    }));
    assert!(panicked.is_err());
    let mut seen = Vec::new();
    let mut on_event = |event: Event<'_>| seen.push(Seen::from(event));
    let mut wire = frame(Opcode::Text, true, b"next");
    assert_eq!(decoder.decode(&mut wire, &mut on_event), Ok(()));
    assert_eq!(seen, [text("next")]);
}

#[test]
fn the_key_is_applied_across_chunks_of_any_size() {
    assert_eq!(KEY.iter().collect::<std::collections::HashSet<_>>().len(), 4);
    let payload: Vec<u8> = (0..1000).map(|i| (i * 7) as u8).collect();
    let wire = frame(Opcode::Binary, true, &payload);
    for size in 1..70 {
        let outcome = feed(Role::Server, LIMIT, wire.chunks(size));
        assert_eq!(outcome, (vec![Seen::Binary(payload.clone())], Ok(())));
    }
}
