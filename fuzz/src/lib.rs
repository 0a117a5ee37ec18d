//! The bodies of the fuzz targets. `fuzz_targets/` hands them libFuzzer's inputs, `tests/seeds.rs` the seeds of the tree.
//!
//! | target | invariant |
//! |---|---|
//! | [`decode`] | the decoder and tungstenite see the same events and fail on the same inputs, both roles, however the bytes are cut; the deliberate differences are a table in its source |
//! | [`recut`] | the same events and the same violation for any cut, with and without permessage-deflate; never more than `max_message_size` held or delivered |
//! | [`handshake`] | no panic; accepted is exactly what RFC 6455 section 4 allows, by a second reading of it |
//! | [`deflate`] | inflating any bytes: no panic, never more than `max_message_size`, and what a second inflater makes of them; compressed and inflated is what it was; negotiation ends in agreement |
//!
//! None of them panics but for a broken invariant.

mod decode;
mod deflate;
mod handshake;
mod recut;
mod wire;

pub use decode::decode;
pub use deflate::deflate;
pub use handshake::handshake;
pub use recut::recut;
