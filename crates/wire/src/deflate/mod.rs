//! permessage-deflate (RFC 7692): negotiation, inflating what comes in, deflating what goes out.
//!
//! | module | holds |
//! |---|---|
//! | `negotiate` | offers and answers in `Sec-WebSocket-Extensions`, both sides (section 7.1) |
//! | `inflate` | the receiving side: a message's payload to its data, as it arrives (section 7.2.2) |
//! | `compress` | the sending side (section 7.2.1): [`compress_shared`] and [`Compressor`] |
//!
//! What is agreed is [`DeflateParams`]. A [`Decoder`](crate::Decoder) made by
//! [`Decoder::with_deflate`](crate::Decoder::with_deflate) then takes both compressed and uncompressed messages, and
//! the program sends either: compression is a choice made per message, and RSV1 of its first frame tells (section 6).
//!
//! # The engine below
//!
//! zlib-rs: because inflating is parsing a stranger's bytes, which is no place for C, and because it honours a window
//! smaller than 32 KiB when it deflates (miniz_oxide has but one size). It needs no `unsafe` here. To deflate it is called
//! through flate2, the interface that the ecosystem shares; flate2 prefers a C zlib when any crate of the build turns that
//! feature on, and all holds then as well, except the memory below. To inflate it is called itself: whether a message is
//! whole is told by stopping at the end of a block (zlib's `Z_BLOCK`), which flate2 doesn't pass on.
//!
//! Two of its limits are met: zlib cannot deflate raw with a window of 256 bytes (8 bits); see `compress` for why 9 bits
//! serve. And what inflates always has the whole window of 32 KiB, so that whether a distance is valid never depends on
//! how the bytes were cut. A peer that reaches further back than it agreed to costs nothing then, and isn't refused.
//!
//! # Memory
//!
//! Measured on x86-64 by `tests/deflate_memory.rs`, per connection:
//!
//! | mode | at rest | during a compressed message, besides the message |
//! |---|---|---|
//! | not negotiated | 0 | - |
//! | negotiated, the peer without context takeover | 16 bytes | one inflate context, if the message is cut |
//! | the peer with context takeover | 16 bytes, from the first message on one inflate context | the same |
//! | we without context takeover | 0 | 0: [`compress_shared`] |
//! | we with context takeover | one deflate context: [`Compressor`] | the same |
//!
//! An inflate context takes [`INFLATE_CONTEXT`] bytes (47 KiB, whatever the window), a deflate context
//! [`deflate_context`] bytes:
//!
//! | window bits | 8, 9 | 10 | 11 | 12 | 13 | 14 | 15 |
//! |---|---|---|---|---|---|---|---|
//! | KiB | 245 | 247 | 251 | 259 | 275 | 307 | 371 |
//!
//! Of that, 128 KiB are the hash table of zlib-rs, which has one size only, and 112 KiB its buffers at `memLevel` 8,
//! which flate2 doesn't let be changed (zlib-rs itself does: at `memLevel` 5 it would be 98 KiB less). So a small window
//! saves a third at most: it is the peer that it helps.
//!
//! Per thread, shared by all connections: up to 4 inflate contexts, one chunk of 16 KiB, and one deflate context for
//! each size of window in use.

mod compress;
mod inflate;
mod negotiate;

pub use compress::{Compressor, LEVEL, MIN_COMPRESSED, compress_shared, deflate_context, worth_compressing};
pub use inflate::INFLATE_CONTEXT;
pub(crate) use inflate::{Chunk, Inflation};
pub use negotiate::{DeflateConfig, ExtensionError, accept_offer, check_answer, offer};

use crate::decode::Role;

/// The end of what zlib's sync flush puts out: length and complement of an empty stored block. Section 7.2.1: the
/// sender removes it from the end of a message, and section 7.2.2: the receiver puts it back.
const TAIL: [u8; 4] = [0x00, 0x00, 0xff, 0xff];

/// What two ends agreed on (section 7.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DeflateParams {
    /// The server begins each message with an empty window.
    pub server_no_context_takeover: bool,
    /// The client begins each message with an empty window.
    pub client_no_context_takeover: bool,
    /// The server's window has at most 2 to the power of this many bytes: 8 to 15.
    pub server_max_window_bits: u8,
    /// The client's window has at most 2 to the power of this many bytes: 8 to 15.
    pub client_max_window_bits: u8,
}

impl DeflateParams {
    /// What the end that is `role` must compress with.
    pub fn compress_params(self, role: Role) -> CompressParams {
        match role {
            Role::Server => CompressParams {
                window_bits: self.server_max_window_bits,
                context_takeover: !self.server_no_context_takeover,
            },
            Role::Client => CompressParams {
                window_bits: self.client_max_window_bits,
                context_takeover: !self.client_no_context_takeover,
            },
        }
    }

    /// Whether what the end that is `role` receives may refer to earlier messages.
    fn peer_takes_over(self, role: Role) -> bool {
        let peer = match role {
            Role::Server => Role::Client,
            Role::Client => Role::Server,
        };
        self.compress_params(peer).context_takeover
    }
}

/// One direction's half of [`DeflateParams`]. What is compressed once without context takeover fits every connection
/// whose half is equal: the key under which a broadcast is compressed once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CompressParams {
    /// The window has at most 2 to the power of this many bytes: 8 to 15.
    pub window_bits: u8,
    /// A message may refer to earlier ones of the connection.
    pub context_takeover: bool,
}
