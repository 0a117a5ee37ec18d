//! The invariant and the target's body are in `src/deflate.rs`, which the plain tests call too.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| pyhv_fuzz::deflate(data));
