//! What the extension's memory is, counted: the numbers in the header of `deflate`, and what a bomb can take.
//!
//! One test only: others, on other threads, would be counted too.

mod common;

use common::{compressed, compressed_frames, json, params};
use flate2::{Compress, Compression, FlushCompress, Status};
use peak_alloc::PeakAlloc;
use pyhv_wire::deflate::{Compressor, INFLATE_CONTEXT, compress_shared, deflate_context};
use pyhv_wire::{Decoder, Limits, Opcode, Role};
use std::sync::Arc;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// What making this costs, and it.
fn cost<T>(make: impl FnOnce() -> T) -> (usize, T) {
    let before = MEMORY.current_usage();
    let made = make();
    (MEMORY.current_usage() - before, made)
}

fn assert_about(measured: usize, told: usize) {
    assert!(measured <= told && measured * 100 >= told * 98, "measured {measured}, told {told}");
}

/// A message of a gibibyte of zeros as a payload of a mebibyte: a mebibyte of them compressed as far as it goes, again and
/// again.
fn bomb() -> Vec<u8> {
    let mut block = Vec::with_capacity(1 << 16);
    let mut context = Compress::new(Compression::best(), false);
    let status = context.compress_vec(&vec![0; 1 << 20], &mut block, FlushCompress::Sync);
    assert!(matches!(status, Ok(Status::Ok)));
    let mut payload = block.repeat(1024);
    payload.push(0x00);
    payload
}

#[test]
fn memory_is_what_is_told() {
    // One compressor per connection
    for bits in 8..=15 {
        let half = params(bits, true).compress_params(Role::Server);
        let (bytes, compressor) = cost(|| Compressor::new(half));
        assert_about(bytes + size_of_val(&compressor), deflate_context(bits));
        let (bytes, _) = cost(|| compressor);
        assert_eq!(bytes, 0);
    }
    // One per thread and size of window
    let half = params(15, false).compress_params(Role::Server);
    let (payload, mut out) = (json(1000, 1), Vec::with_capacity(10_000));
    let mut shared = || {
        let (bytes, _) = cost(|| assert!(compress_shared(half, &payload, &mut out)));
        out.clear();
        bytes
    };
    assert_about(shared(), deflate_context(15));
    assert_eq!(shared(), 0);

    // Inflating: 16 bytes at rest, and with takeover a context once there was a message. The thread's chunk is made by the
    // first, and without takeover its context is kept by the thread.
    let small = compressed(Opcode::Text, &[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00]);
    let decode = |decoder: &mut Decoder, wire: &[u8]| {
        let mut copy = wire.to_vec();
        let before = MEMORY.current_usage();
        assert_eq!(decoder.decode(&mut copy, &mut |_| {}), Ok(()));
        MEMORY.current_usage() - before
    };
    let limits = Arc::new(Limits { max_message_size: 1 << 24, max_frame_size: 1 << 24, max_fragments: 1 << 24 });
    let make = |takeover| cost(|| Decoder::with_limits(Role::Server, Arc::clone(&limits), Some(params(15, takeover))));
    let (bytes, mut decoder) = make(false);
    assert!(bytes <= 16, "{bytes}");
    let first = decode(&mut decoder, &small);
    assert!(first > 16 << 10 && first <= (16 << 10) + INFLATE_CONTEXT + 100, "{first}");
    assert_eq!(decode(&mut decoder, &small), 0);
    let (_, mut another) = make(false);
    assert_eq!(decode(&mut another, &small), 0);
    // In the middle of a message it has one of its own.
    assert_eq!(decode(&mut decoder, &small[..7]), 0);
    assert_about(decode(&mut another, &small[..7]), INFLATE_CONTEXT);
    drop(another);

    let (_, mut taking) = make(true);
    assert_about(decode(&mut taking, &small), INFLATE_CONTEXT);
    assert_eq!(decode(&mut taking, &small), 0);
    let before = MEMORY.current_usage();
    drop(taking);
    assert!(before - MEMORY.current_usage() >= INFLATE_CONTEXT * 98 / 100);

    // A bomb: a gibibyte in a mebibyte.
    let payload = bomb();
    assert!(payload.len() < 5 << 18, "{}", payload.len());
    for takeover in [false, true] {
        for limit in [0, 1000, 1 << 20, (1 << 24) + 1] {
            for size in [777, 1 << 16, payload.len() + 100] {
                let mut decoder = Decoder::with_deflate(Role::Server, limit, params(15, takeover));
                let mut wire = compressed_frames(Role::Server, Opcode::Binary, &payload, &[5000]).concat();
                let before = MEMORY.current_usage();
                MEMORY.reset_peak_usage();
                let failed = wire.chunks_mut(size).find_map(|chunk| decoder.decode(chunk, &mut |_| {}).err());
                assert_eq!(failed.map(|violation| violation.code), Some(1009));
                // While the buffer doubles, the old one and the new one are there.
                let peak = MEMORY.peak_usage() - before;
                assert!(peak <= limit + limit / 2 + INFLATE_CONTEXT + (16 << 10) + 100, "{limit}: {peak}");
                // A failed connection holds nothing.
                assert_eq!(decoder.buffered(), 0);
                assert!(MEMORY.current_usage() <= before + INFLATE_CONTEXT);
            }
        }
    }
}
