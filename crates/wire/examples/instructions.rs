//! The codec's work for `benchmarks/instructions.py`, which runs this under callgrind and counts what happens between two
//! marks. By itself it counts nothing: it prints the rows, and how many items each has.

#![allow(clippy::print_stdout, reason = "it is what it's for")]
#![allow(clippy::panic, reason = "a program that counts the wrong thing has to stop")]

use pyhv_wire::deflate::{CompressParams, Compressor, DeflateParams, compress_shared};
use pyhv_wire::{Decoder, Event, Opcode, Role, encode_frame, encode_frame_rsv1};
use std::hint::black_box;

const KEY: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
const NO_LIMIT: usize = usize::MAX;
const SMALL: usize = 64;
const LARGE: usize = 16 * 1024;
const KIB: usize = LARGE / 1024;

/// Calls libc's getppid, which nothing else here calls: there callgrind writes down what it has counted, and begins anew.
fn mark() {
    // Elsewhere there is no callgrind.
    #[cfg(unix)]
    black_box(std::os::unix::process::parent_id());
}

/// Between two marks lies the work of one row.
///
/// It is done once before: what is looked up and allocated at first use is not the codec's cost.
fn count<T>(row: &str, items: usize, prepare: impl Fn() -> T, work: impl Fn(&mut T)) {
    work(&mut prepare());
    let mut input = black_box(prepare());
    mark();
    work(&mut input);
    mark();
    drop(black_box(input));
    println!("{items} {row}");
}

/// `count` reads of `messages` frames each. The decoder unmasks in place, so every read is decoded only once.
fn reads(count: usize, messages: usize, payload: &[u8], kind: Opcode, mask: Option<[u8; 4]>) -> Vec<Vec<u8>> {
    let mut read = Vec::new();
    for _ in 0..messages {
        encode_frame(&mut read, kind, true, payload, mask);
    }
    vec![read; count]
}

/// Decodes them all on one connection, and checks the number of messages.
fn decode(mut decoder: Decoder, reads: &mut [Vec<u8>], expected: usize) {
    let mut seen = 0;
    for read in reads {
        let mut on_event = |event: Event<'_>| {
            if let Event::Message { payload, .. } = event {
                black_box(&*payload);
                seen += 1;
            }
        };
        if let Err(violation) = decoder.decode(read, &mut on_event) {
            panic!("{violation}");
        }
    }
    assert_eq!(seen, expected);
}

/// JSON as a game sends it, of exactly `len` bytes; no two alike.
fn json(len: usize, seed: u64) -> Vec<u8> {
    let mut text = String::from("{\"type\":\"state\",\"players\":[");
    let mut state = seed;
    while text.len() < len {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let (id, x, y) = (state >> 52, (state >> 33) % 8000, (state >> 44) % 6000);
        text += &format!("{{\"id\":{id},\"name\":\"player{}\",\"x\":{x},\"y\":{y},\"alive\":true}},", id % 100);
    }
    text.truncate(len);
    text.into_bytes()
}

fn decoding() {
    let server = || Decoder::new(Role::Server, NO_LIMIT);
    let row = |name: &str, count: usize, messages: usize, payload: &[u8], kind, items: usize| {
        let input = || reads(count, messages, payload, kind, Some(KEY));
        let total = count * messages;
        self::count(name, total * items, input, |reads| decode(server(), reads, total));
    };
    let small = vec![b'x'; SMALL];
    let large = vec![b'x'; LARGE];
    // Two, three and four bytes a character, words between them.
    let phrase = "mañana 今日は 😀 good ";
    let mut world = phrase.repeat(LARGE / phrase.len()).into_bytes();
    world.resize(LARGE, b'.');
    row("decode text, 64 B, 100 in a read", 20, 100, &small, Opcode::Text, 1);
    row("decode text, 64 B, 1 in a read", 2000, 1, &small, Opcode::Text, 1);
    row("decode text, 16 KiB, per KiB", 40, 1, &large, Opcode::Text, KIB);
    row("decode text, 16 KiB, not ASCII, per KiB", 40, 1, &world, Opcode::Text, KIB);
    row("decode binary, 16 KiB, per KiB", 40, 1, &large, Opcode::Binary, KIB);

    let cut = || {
        let whole = reads(40, 1, &world, Opcode::Text, Some(KEY));
        whole.iter().flat_map(|read| read.chunks(4000)).map(<[u8]>::to_vec).collect::<Vec<_>>()
    };
    count("decode text, 16 KiB, not ASCII, in 5 reads, per KiB", 40 * KIB, cut, |reads| decode(server(), reads, 40));

    let unmasked = || reads(20, 100, &small, Opcode::Text, None);
    count("decode text, 64 B, as a client, 100 in a read", 2000, unmasked, |reads| {
        decode(Decoder::new(Role::Client, NO_LIMIT), reads, 2000);
    });
}

fn encoding() {
    let row = |name: &str, count: usize, payload: &[u8], mask: Option<[u8; 4]>, items: usize| {
        // As in the engine: what many messages become lies in one buffer that has grown already.
        let prepare = || Vec::with_capacity(count * (payload.len() + 14));
        self::count(name, count * items, prepare, |out| {
            for _ in 0..count {
                encode_frame(out, black_box(Opcode::Text), true, black_box(payload), black_box(mask));
            }
        });
    };
    let small = vec![b'x'; SMALL];
    let large = vec![b'x'; LARGE];
    row("encode text, 64 B", 2000, &small, None, 1);
    row("encode text, 64 B, as a client", 2000, &small, Some(KEY), 1);
    row("encode text, 16 KiB, per KiB", 40, &large, None, KIB);
    row("encode text, 16 KiB, as a client, per KiB", 40, &large, Some(KEY), KIB);
}

fn deflating() {
    const MESSAGES: usize = 100;
    const LEN: usize = 1024;
    let params = |no_context_takeover| DeflateParams {
        server_no_context_takeover: no_context_takeover,
        client_no_context_takeover: no_context_takeover,
        server_max_window_bits: 15,
        client_max_window_bits: 15,
    };
    let messages: Vec<Vec<u8>> = (0..MESSAGES as u64).map(|seed| json(LEN, seed)).collect();
    let half = |context_takeover| CompressParams { window_bits: 15, context_takeover };
    let compress = |takes_over: bool, out: &mut Vec<Vec<u8>>| {
        let mut own = takes_over.then(|| Compressor::new(half(true)));
        for (message, out) in messages.iter().zip(out) {
            let done = match &mut own {
                Some(own) => own.compress(message, out),
                None => compress_shared(half(false), message, out),
            };
            assert!(done);
        }
    };
    let room = || (0..MESSAGES).map(|_| Vec::with_capacity(2 * LEN)).collect::<Vec<_>>();
    for (takes_over, suffix) in [(false, ""), (true, ", with context")] {
        count(&format!("deflate JSON, 1 KiB{suffix}"), MESSAGES, room, |out| compress(takes_over, out));
        let mut deflated = room();
        compress(takes_over, &mut deflated);
        let frames = || {
            let frame = |payload: &Vec<u8>| {
                let mut read = Vec::new();
                encode_frame_rsv1(&mut read, Opcode::Text, true, payload, Some(KEY));
                read
            };
            deflated.iter().map(frame).collect::<Vec<_>>()
        };
        count(&format!("inflate JSON, 1 KiB{suffix}"), MESSAGES, frames, |reads| {
            decode(Decoder::with_deflate(Role::Server, NO_LIMIT, params(!takes_over)), reads, MESSAGES);
        });
    }
}

fn main() {
    decoding();
    encoding();
    deflating();
}
