//! The numbers in the headers of `deflate` and `deflate::compress`: time and size by level, and what a compressed message
//! costs end to end. `cargo run --release -p pyhv-wire --example deflate_speed`

#![allow(clippy::print_stdout, reason = "it is what it's for")]

use flate2::{Compress, Compression, FlushCompress};
use pyhv_wire::deflate::{CompressParams, Compressor, DeflateParams, compress_shared};
use pyhv_wire::{Decoder, Event, Opcode, Role, encode_frame, encode_frame_rsv1};
use std::time::{Duration, Instant};

/// JSON of a game's state.
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

/// The best of some runs over the messages, per message.
fn time<'a>(messages: &'a [Vec<u8>], mut run: impl FnMut(&'a [u8])) -> Duration {
    let rounds = (4_000_000 / messages.iter().map(Vec::len).sum::<usize>()).clamp(1, 400);
    let mut best = Duration::MAX;
    for _ in 0..7 {
        let start = Instant::now();
        for _ in 0..rounds {
            messages.iter().for_each(|message| run(message));
        }
        best = best.min(start.elapsed() / (rounds * messages.len()) as u32);
    }
    best
}

fn main() {
    let params = DeflateParams {
        server_no_context_takeover: true,
        client_no_context_takeover: true,
        server_max_window_bits: 15,
        client_max_window_bits: 15,
    };
    let takeover = CompressParams { window_bits: 15, context_takeover: true };
    for len in [64, 96, 128, 192, 256, 1024, 16_384, 65_536, 1 << 20] {
        let count = if len > 10_000 { 8 } else { 64 };
        let messages: Vec<Vec<u8>> = (0..count).map(|i| json(len, i)).collect();
        print!("{len:>8} bytes");
        for level in [1, 2, 4, 6] {
            let mut context = Compress::new(Compression::new(level), false);
            let (mut out, mut left, mut of) = (Vec::with_capacity(2 * len + 100), 0, 0);
            let took = time(&messages, |message| {
                out.clear();
                let _ = context.compress_vec(message, &mut out, FlushCompress::Sync);
                context.reset();
                left += out.len() - 4;
                of += len;
            });
            print!(" | level {level} {took:>9.1?} {:>3.0} %", 100.0 * left as f64 / of as f64);
        }
        println!();

        let half = params.compress_params(Role::Client);
        let mut out = Vec::new();
        let shared = time(&messages, |message| {
            out.clear();
            let _ = compress_shared(half, message, &mut out);
        });
        let mut compressor = Compressor::new(takeover);
        // The same messages again would be found in the window: always other ones.
        let mut seed = count;
        let mut fresh = Vec::new();
        let (mut with, mut left) = (Duration::ZERO, 0);
        for _ in 0..count {
            seed += 1;
            fresh.clone_from(&json(len, seed));
            out.clear();
            let start = Instant::now();
            let _ = compressor.compress(&fresh, &mut out);
            with += start.elapsed() / count as u32;
            left += out.len();
        }
        let deflated: Vec<Vec<u8>> = messages
            .iter()
            .map(|message| {
                let (mut out, mut frame) = (Vec::new(), Vec::new());
                if compress_shared(half, message, &mut out) {
                    encode_frame_rsv1(&mut frame, Opcode::Text, true, &out, Some([1, 2, 3, 4]));
                } else {
                    encode_frame(&mut frame, Opcode::Text, true, message, Some([1, 2, 3, 4]));
                }
                frame
            })
            .collect();
        let mut decoder = Decoder::with_deflate(Role::Server, usize::MAX, params);
        let (mut copy, mut sum) = (Vec::new(), 0);
        let decode = time(&deflated, |frame| {
            copy.clear();
            copy.extend_from_slice(frame);
            let mut on_event = |event: Event<'_>| {
                if let Event::Message { payload, .. } = event {
                    sum += payload.len();
                }
            };
            let _ = decoder.decode(&mut copy, &mut on_event);
        });
        println!(
            "               compress_shared {shared:.1?} | takeover {with:.1?} {:.0} % | decode {decode:.1?}",
            100.0 * left as f64 / (len as u64 * count) as f64
        );
    }
}
