use crate::wire::{Seen, feed};
use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress, inflate_flags};
use pyhv_wire::deflate::{
    Compressor, DeflateConfig, DeflateParams, accept_offer, check_answer, compress_shared, offer,
};
use pyhv_wire::{Decoder, Opcode, Role, encode_frame, encode_frame_rsv1};
use std::iter::{empty, repeat};

const LIMITS: [usize; 4] = [0, 1000, 20_000, 100_000];

/// Invariants, by the input's first byte:
///
/// | bits 0-1 | |
/// |---|---|
/// | 0, 1 | inflating any bytes panics nowhere, never yields more than `max_message_size`, and what it yields is what miniz_oxide does; a message is too big only if it is |
/// | 2 | compressed and inflated is what it was, message after message, for every window, with and without context takeover, with the connection's own context and the shared one |
/// | 3 | any `Sec-WebSocket-Extensions` is read without a panic; what is accepted was offered; two ends of whatever configuration understand each other |
pub fn deflate(data: &[u8]) {
    let Some((&first, rest)) = data.split_first() else { return };
    match first & 3 {
        0 | 1 => inflate_anything(first, rest),
        2 => round_trip(first, rest),
        _ => negotiate(rest),
    }
}

fn params(window_bits: u8, takeover: bool) -> DeflateParams {
    DeflateParams {
        server_no_context_takeover: !takeover,
        client_no_context_takeover: !takeover,
        server_max_window_bits: window_bits,
        client_max_window_bits: window_bits,
    }
}

fn inflate_anything(flags: u8, payload: &[u8]) {
    let limit = LIMITS[usize::from(flags >> 2 & 3)];
    let takeover = flags & 0x10 != 0;
    let opcode = if flags & 0x20 != 0 { Opcode::Text } else { Opcode::Binary };
    let decoder = || Decoder::with_deflate(Role::Client, limit, params(15, takeover));

    let mut wire = Vec::new();
    encode_frame_rsv1(&mut wire, opcode, true, payload, None);
    let (seen, failed) = feed(decoder(), limit, &wire, empty());
    if opcode == Opcode::Binary {
        let (expected, is_whole) = inflate_elsewhere(payload, limit);
        if let [Seen::Binary(data)] = &seen[..] {
            assert!(*data == expected, "{} bytes, elsewhere {}", data.len(), expected.len());
            assert!(is_whole, "elsewhere there's a fault behind {} bytes", data.len());
        }
        if failed.is_some_and(|violation| violation.code == 1009) {
            assert!(expected.len() > limit, "too big for {limit}, elsewhere {}", expected.len());
        }
    }

    // The same in two fragments, a ping between them, in chunks.
    let (left, right) = payload.split_at(payload.len() / 3);
    let mut wire = Vec::new();
    encode_frame_rsv1(&mut wire, opcode, false, left, None);
    encode_frame(&mut wire, Opcode::Ping, true, b"", None);
    encode_frame(&mut wire, Opcode::Continuation, true, right, None);
    let (mut fragmented, failed_too) = feed(decoder(), limit, &wire, repeat(7));
    fragmented.retain(|seen| *seen != Seen::Ping(Vec::new()));
    assert_eq!((fragmented, failed_too), (seen, failed));
}

/// What another implementation makes of a message's payload, up to one byte more than `limit`, and whether it found no
/// fault.
fn inflate_elsewhere(payload: &[u8], limit: usize) -> (Vec<u8>, bool) {
    let input = [payload, &[0x00, 0x00, 0xff, 0xff]].concat();
    let mut input = &input[..];
    let mut all = Vec::new();
    // Each turn is one stream: after a block with BFINAL set another may follow.
    loop {
        let mut output = vec![0; limit + 1 - all.len()];
        let flags = inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF | inflate_flags::TINFL_FLAG_HAS_MORE_INPUT;
        let (status, used, written) = decompress(&mut DecompressorOxide::new(), input, &mut output, 0, flags);
        all.extend_from_slice(&output[..written]);
        input = &input[used..];
        match status {
            // The tail, or what of it there's left, isn't the peer's.
            TINFLStatus::Done if input.len() <= 4 => return (all, true),
            TINFLStatus::Done if all.len() <= limit => {}
            TINFLStatus::NeedsMoreInput => return (all, true),
            _ => return (all, false),
        }
    }
}

fn round_trip(flags: u8, rest: &[u8]) {
    const LIMIT: usize = 200_000;
    let (bits, takeover) = (8 + (flags >> 2 & 7), flags & 0x20 != 0);
    let role = if flags & 0x40 != 0 { Role::Server } else { Role::Client };
    let peer = if role == Role::Server { Role::Client } else { Role::Server };
    let params = params(bits, takeover);
    let half = params.compress_params(peer);
    let key = (role == Role::Server).then_some([1, 2, 3, 4]);
    let mut compressor = Compressor::new(half);
    let (mut wire, mut expected) = (Vec::new(), Vec::new());
    // A newline ends a message; a message that begins with a digit is repeated, to be larger than a window.
    for piece in rest.split(|&byte| byte == b'\n').take(20) {
        let message = match piece {
            [digit @ b'0'..=b'9', more @ ..] => more.repeat(1 << (digit - b'0')),
            _ => piece.to_vec(),
        };
        if message.len() > LIMIT {
            continue;
        }
        let mut deflated = Vec::new();
        let smaller = compressor.compress(&message, &mut deflated);
        assert!(smaller || deflated.is_empty());
        if !takeover {
            let mut shared = Vec::new();
            assert_eq!((compress_shared(half, &message, &mut shared), &shared), (smaller, &deflated));
        }
        if smaller {
            encode_frame_rsv1(&mut wire, Opcode::Binary, true, &deflated, key);
        } else {
            encode_frame(&mut wire, Opcode::Binary, true, &message, key);
        }
        expected.push(Seen::Binary(message));
    }
    let decoder = Decoder::with_deflate(role, LIMIT, params);
    assert!(feed(decoder, LIMIT, &wire, empty()) == (expected, None));
}

fn negotiate(rest: &[u8]) {
    let Some((&[flags, server_bits, client_bits], text)) = rest.split_first_chunk() else { return };
    let config = |flags: u8, server: u8, client: u8| DeflateConfig {
        server_no_context_takeover: flags & 1 != 0,
        client_no_context_takeover: flags & 2 != 0,
        server_max_window_bits: server,
        client_max_window_bits: client,
    };
    let server = config(flags, server_bits & 15, server_bits >> 4);
    let client = config(flags >> 2, client_bits & 15, client_bits >> 4);

    // Any text, as an offer and as an answer.
    let headers = || text.split(|&byte| byte == b'\n');
    if let Ok(Some((params, answer))) = accept_offer(headers(), &server) {
        let offered = |name: &str| text.windows(name.len()).any(|window| window == name.as_bytes());
        for name in ["client_max_window_bits", "server_max_window_bits"] {
            assert!(!answer.contains(name) || offered(name), "{answer:?} answers what was not offered");
        }
        assert_params(params);
        assert!(params.server_max_window_bits <= server.server_max_window_bits.clamp(8, 15));
        assert!(!server.server_no_context_takeover || params.server_no_context_takeover);
        assert!(!server.client_no_context_takeover || params.client_no_context_takeover);
    }
    if let Ok(Some(params)) = check_answer(headers(), &client) {
        assert_params(params);
        assert!(params.server_max_window_bits <= client.server_max_window_bits.clamp(8, 15));
        assert!(params.client_max_window_bits <= client.client_max_window_bits.clamp(8, 15));
        assert!(!client.server_no_context_takeover || params.server_no_context_takeover);
    }

    // Two ends.
    let offered = offer(&client);
    let accepted = accept_offer([offered.as_bytes()].into_iter(), &server).expect("our offer is well-formed");
    let (at_server, answer) = accepted.expect("our offer can be met");
    let agreed = check_answer([answer.as_bytes()].into_iter(), &client).expect("our answer is right");
    let at_client = agreed.expect("it was accepted");
    // Each end must be able to read what the other writes.
    assert!(at_server.server_max_window_bits <= at_client.server_max_window_bits);
    assert!(at_client.client_max_window_bits <= at_server.client_max_window_bits);
    assert!(at_server.server_no_context_takeover || !at_client.server_no_context_takeover);
    assert!(at_client.client_no_context_takeover || !at_server.client_no_context_takeover);
}

fn assert_params(params: DeflateParams) {
    assert!((8..=15).contains(&params.server_max_window_bits), "{params:?}");
    assert!((8..=15).contains(&params.client_max_window_bits), "{params:?}");
}
