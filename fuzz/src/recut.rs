use crate::wire::{Case, feed};
use std::iter::{empty, repeat};

/// Invariant: whole, byte by byte, and cut as the input says, the same bytes come to the same events and the same
/// violation, with and without permessage-deflate; and never are more than `max_message_size` bytes held or delivered.
pub fn recut(data: &[u8]) {
    let Some(case) = Case::read(data) else { return };
    let whole = feed(case.decoder(true), case.limit, &case.wire, empty());
    let cut = feed(case.decoder(true), case.limit, &case.wire, case.cuts(case.wire.len()));
    assert_eq!(cut, whole, "cut {:?}", case.sizes);
    // Byte by byte takes its time, and what it can show shows in short inputs.
    if case.wire.len() <= 2000 {
        let by_byte = feed(case.decoder(true), case.limit, &case.wire, repeat(1));
        assert_eq!(by_byte, whole, "byte by byte");
    }
}
