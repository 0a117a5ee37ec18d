//! The sending side (RFC 7692 section 7.2.1): a message's data to a compressed payload, for a frame with RSV1 set.
//!
//! Without context takeover one context per thread and size of window serves all connections, and what it made can be
//! sent to each of them. With context takeover every connection has its own.
//!
//! A message that is sent in fragments as the program produces it is sent uncompressed: the engine doesn't know it whole,
//! and whether it's worth it shows only at the end.
//!
//! Whole messages without a past, JSON of a game's state, one core; the best of five runs of `examples/deflate_speed.rs`:
//! time to compress and, behind it, what is left.
//!
//! | bytes | level 1 | level 2 | level 4 | level 6 |
//! |---|---|---|---|---|
//! | 64 | 1.5 µs 94 % | 3.7 µs 94 % | 3.8 µs 94 % | 3.8 µs 94 % |
//! | 128 | 1.7 µs 78 % | 4.7 µs 73 % | 4.8 µs 73 % | 4.8 µs 73 % |
//! | 256 | 1.9 µs 57 % | 5.4 µs 50 % | 5.6 µs 50 % | 5.5 µs 50 % |
//! | 1,024 | 2.8 µs 38 % | 7.5 µs 29 % | 9.0 µs 28 % | 9.1 µs 28 % |
//! | 65,536 | 110 µs 29 % | 190 µs 20 % | 360 µs 18 % | 590 µs 17 % |
//!
//! Of the short ones' time, 1.2 µs is the reset of the context (its hash table of 128 KiB). With context takeover there is
//! none: 64 bytes take 0.14 µs and leave 25 %, 256 bytes 0.6 µs and 31 %.

use super::{CompressParams, TAIL};
use flate2::{Compress, CompressError, Compression, FlushCompress};
use std::cell::RefCell;

/// zlib's level: the fastest, for the table in the module's header. Level 2 leaves an eighth (of short messages) to a third
/// (of long ones) less for two to three times the time, and the peer needs longer to read it; on the thread of a program
/// with a frame rate, time is what there is less of. Higher levels leave hardly less.
pub const LEVEL: u32 = 1;

/// The shortest message worth compressing, in bytes. It costs one and a half microseconds in any case, and saves 4 bytes of
/// 64, 9 of 96, 28 of 128, 110 of 256: below, not worth it even to those who pay for each byte.
pub const MIN_COMPRESSED: usize = 128;

/// The smallest window that zlib can deflate raw with.
///
/// It serves for 8 bits (256 bytes) as well: zlib keeps `MIN_LOOKAHEAD`, 262 bytes, of its window ahead of the matches,
/// so with 512 bytes none reaches further back than 250. That is tested, with an inflater that would notice.
const MIN_BITS: u8 = 9;
const MAX_BITS: u8 = 15;

/// Windows from [`MIN_BITS`] to [`MAX_BITS`].
const SIZES: usize = (MAX_BITS - MIN_BITS + 1) as usize;

thread_local! {
    /// The contexts without takeover, by size of window; made when first used, reset after each use.
    static SHARED: RefCell<[Option<Box<Compress>>; SIZES]> = const { RefCell::new([const { None }; SIZES]) };
}

/// Whether a message of `len` bytes is worth compressing; see [`MIN_COMPRESSED`].
pub fn worth_compressing(len: usize) -> bool {
    len >= MIN_COMPRESSED
}

/// What one context for deflating takes from the allocator, in bytes. On x86-64; see the module's header.
pub const fn deflate_context(window_bits: u8) -> usize {
    let bits = if window_bits < MIN_BITS { MIN_BITS } else { window_bits };
    // The window twice, and two bytes per position in it for the chains.
    249_112 + (4 << bits)
}

/// Compresses a whole message with the thread's shared context: appends to `out` the payload for one frame with RSV1 set,
/// which every connection with these parameters can read.
///
/// False: it would not have become smaller. Nothing was appended; send it uncompressed.
///
/// Only for parameters without context takeover. A peer that keeps its context puts this message into it, while the
/// connection's [`Compressor`] knows nothing of it: from then on they'd disagree. To such a connection, what is sent to
/// many goes through its own compressor, or uncompressed, which leaves contexts alone.
#[must_use]
pub fn compress_shared(params: CompressParams, payload: &[u8], out: &mut Vec<u8>) -> bool {
    debug_assert!(!params.context_takeover, "the connection has a context of its own");
    let bits = params.window_bits.clamp(MIN_BITS, MAX_BITS);
    // The thread-local is gone only while the thread ends.
    let compressed = SHARED.try_with(|shared| {
        let slot = &mut shared.borrow_mut()[usize::from(bits - MIN_BITS)];
        compress_once(slot.get_or_insert_with(|| Box::new(context(bits))), payload, out)
    });
    compressed.unwrap_or(false)
}

/// Compresses the messages of one connection, each with what came before it as its context, if the parameters allow that.
#[derive(Debug)]
pub struct Compressor {
    context: Compress,
    takes_over: bool,
}

impl Compressor {
    /// A compressor for a fresh connection; takes [`deflate_context`] bytes.
    pub fn new(params: CompressParams) -> Self {
        Self { context: context(params.window_bits), takes_over: params.context_takeover }
    }

    /// Compresses a whole message: appends to `out` the payload for one frame with RSV1 set. It must be sent, and in the
    /// order of the calls: the peer needs it as the context of later ones.
    ///
    /// False: nothing was appended; send it uncompressed. Without context takeover, because it would not have become
    /// smaller; with it, only if zlib failed, which it has no reason to.
    #[must_use]
    pub fn compress(&mut self, payload: &[u8], out: &mut Vec<u8>) -> bool {
        if !self.takes_over {
            return compress_once(&mut self.context, payload, out);
        }
        let start = out.len();
        let compressed = deflate(&mut self.context, payload, out).is_ok();
        if !compressed {
            // Without a past it refers to nothing that the peer doesn't have.
            self.context.reset();
            out.truncate(start);
        }
        compressed
    }
}

fn context(window_bits: u8) -> Compress {
    let bits = window_bits.clamp(MIN_BITS, MAX_BITS);
    Compress::new_with_window_bits(Compression::new(LEVEL), false, bits)
}

/// Compresses a message without a past, if that makes it smaller.
fn compress_once(context: &mut Compress, payload: &[u8], out: &mut Vec<u8>) -> bool {
    let start = out.len();
    let result = deflate(context, payload, out);
    context.reset();
    // The empty message's one byte is allowed: sections 7.2.3.6.
    let smaller = out.len() - start < payload.len().max(2);
    if result.is_err() || !smaller {
        out.truncate(start);
        return false;
    }
    true
}

/// Appends the blocks for `payload`, less the tail.
fn deflate(context: &mut Compress, payload: &[u8], out: &mut Vec<u8>) -> Result<(), CompressError> {
    if payload.is_empty() {
        // Section 7.2.3.6. zlib would be right to answer a flush after a flush with nothing.
        out.push(0x00);
        return Ok(());
    }
    let mut input = payload;
    let mut room = payload.len() / 2;
    loop {
        // zlib.h: "In the case of a Z_FULL_FLUSH or Z_SYNC_FLUSH, make sure that avail_out is greater than six".
        out.reserve(room + 64);
        let before = context.total_in();
        context.compress_vec(input, out, FlushCompress::Sync)?;
        // The cast loses nothing: it's no more than `input` has.
        input = &input[(context.total_in() - before) as usize..];
        // It stops only for want of room, or of input.
        if input.is_empty() && out.len() < out.capacity() {
            break;
        }
        room = input.len();
    }
    debug_assert!(out.ends_with(&TAIL));
    out.truncate(out.len() - TAIL.len());
    Ok(())
}
