//! The UTF-8 check of text that arrives in pieces (RFC 6455 section 8.1).
//!
//! A fragment, and a chunk even more so, may end inside a character (section 5.6: "a particular text frame might
//! include a partial UTF-8 sequence; however, the whole message MUST contain valid UTF-8"). So the check carries the
//! unfinished character over, and fails at the first byte after which no continuation could make the text valid, not
//! only at the end of the message: a peer that sends garbage is not read to its end.
//!
//! The bulk goes through simdutf8; only a character cut by the end of a piece goes through the table below, which is
//! RFC 3629 section 4 (the same as table 3-7 of the Unicode standard):
//!
//! | first byte | bytes to follow | the next one's range | why not 80-BF |
//! |---|---|---|---|
//! | 00-7F | 0 | | |
//! | C2-DF | 1 | 80-BF | |
//! | E0 | 2 | A0-BF | below is overlong |
//! | E1-EC, EE-EF | 2 | 80-BF | |
//! | ED | 2 | 80-9F | above are surrogates |
//! | F0 | 3 | 90-BF | below is overlong |
//! | F1-F3 | 3 | 80-BF | |
//! | F4 | 3 | 80-8F | above is beyond U+10FFFF |
//! | 80-C1, F5-FF | never valid | | |

/// The text can no longer become valid UTF-8.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct InvalidUtf8;

/// The check's state: the unfinished character at the end of what was fed so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Utf8 {
    /// How many bytes it still lacks; 0 between characters.
    missing: u8,
    /// The range of the next of them; meaningless while `missing` is 0.
    low: u8,
    high: u8,
}

impl Utf8 {
    /// Takes the next piece. After an error the check must be thrown away.
    pub(crate) fn feed(&mut self, piece: &[u8]) -> Result<(), InvalidUtf8> {
        let mut rest = piece;
        while let ([byte, tail @ ..], true) = (rest, self.missing > 0) {
            self.step(*byte)?;
            rest = tail;
        }
        let (whole, cut) = rest.split_at(rest.len() - cut_len(rest));
        simdutf8::basic::from_utf8(whole).map_err(|_| InvalidUtf8)?;
        cut.iter().try_for_each(|&byte| self.step(byte))
    }

    /// Whether the text may end here: no character is unfinished.
    pub(crate) fn is_complete(self) -> bool {
        self.missing == 0
    }

    /// One byte through the table in the module's header.
    fn step(&mut self, byte: u8) -> Result<(), InvalidUtf8> {
        if self.missing > 0 {
            if byte < self.low || byte > self.high {
                return Err(InvalidUtf8);
            }
            *self = Self { missing: self.missing - 1, low: 0x80, high: 0xbf };
            return Ok(());
        }
        let (missing, low, high) = match byte {
            0x00..=0x7f => (0, 0, 0),
            0xc2..=0xdf => (1, 0x80, 0xbf),
            0xe0 => (2, 0xa0, 0xbf),
            0xe1..=0xec | 0xee..=0xef => (2, 0x80, 0xbf),
            0xed => (2, 0x80, 0x9f),
            0xf0 => (3, 0x90, 0xbf),
            0xf1..=0xf3 => (3, 0x80, 0xbf),
            0xf4 => (3, 0x80, 0x8f),
            0x80..=0xc1 | 0xf5..=0xff => return Err(InvalidUtf8),
        };
        *self = Self { missing, low, high };
        Ok(())
    }
}

/// How many bytes at the end of `bytes` begin a character that isn't all there: 0 to 3.
///
/// It looks at lengths only. What it cuts off is judged by the table, what it leaves by simdutf8.
fn cut_len(bytes: &[u8]) -> usize {
    for (before, &byte) in bytes.iter().rev().take(3).enumerate() {
        let have = before + 1;
        let need = match byte {
            0x00..=0x7f => return 0,
            0x80..=0xbf => continue,
            0xc0..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xff => 4,
        };
        return if have < need { have } else { 0 };
    }
    // Three continuation bytes: the fourth from the end decides, and simdutf8 sees it.
    0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// How many bytes of `bytes` may be fed one by one before the check fails; `None` if it never does.
    fn fails_at(bytes: &[u8]) -> Option<usize> {
        let mut check = Utf8::default();
        bytes.iter().position(|&byte| check.feed(&[byte]).is_err())
    }

    /// The standard library's opinion of the same: the first byte after which no continuation is valid.
    fn std_fails_at(bytes: &[u8]) -> Option<usize> {
        (0..bytes.len()).find(|&i| std::str::from_utf8(&bytes[..=i]).is_err_and(|error| error.error_len().is_some()))
    }

    /// The whole verdict on `pieces`: whether each was accepted and the text may end after the last.
    fn accepts(pieces: &[&[u8]]) -> bool {
        let mut check = Utf8::default();
        pieces.iter().all(|piece| check.feed(piece).is_ok()) && check.is_complete()
    }

    /// Sequences as in the Autobahn test suite's section 6 and Markus Kuhn's stress test, with the index of the byte
    /// at which they must fail; `None`: only their end is wrong.
    const INVALID: &[(&[u8], Option<usize>)] = &[
        // A continuation byte without a lead byte
        (b"\x80", Some(0)),
        (b"\xbf", Some(0)),
        (b"ab\x80", Some(2)),
        (b"\xc3\xa9\xa9", Some(2)),
        // Bytes that occur nowhere
        (b"\xc0", Some(0)),
        (b"\xc1", Some(0)),
        (b"\xf5", Some(0)),
        (b"\xf8", Some(0)),
        (b"\xfc", Some(0)),
        (b"\xfe", Some(0)),
        (b"\xff", Some(0)),
        (b"\xf8\x88\x80\x80\x80", Some(0)),
        (b"\xfc\x84\x80\x80\x80\x80", Some(0)),
        // Overlong
        (b"\xc0\xaf", Some(0)),
        (b"\xe0\x80", Some(1)),
        (b"\xe0\x80\xaf", Some(1)),
        (b"\xe0\x9f\xbf", Some(1)),
        (b"\xf0\x80\x80\xaf", Some(1)),
        (b"\xf0\x8f\xbf\xbf", Some(1)),
        // Surrogates
        (b"\xed\xa0", Some(1)),
        (b"\xed\xa0\x80", Some(1)),
        (b"\xed\xbf\xbf", Some(1)),
        (b"\xed\xa0\x80\xed\xb0\x80", Some(1)),
        (b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xed\xa0\x80edited", Some(12)),
        // Beyond U+10FFFF
        (b"\xf4\x90", Some(1)),
        (b"\xf4\x90\x80\x80", Some(1)),
        (b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xf4\x90\x80\x80edited", Some(12)),
        // A sequence that something else interrupts
        (b"\xc3\x28", Some(1)),
        (b"\xe2\x82a", Some(2)),
        (b"\xe2\xc3\xa9", Some(1)),
        (b"\xf0\x9f\x98\xf0", Some(3)),
        (b"\xf0\x9fa", Some(2)),
        // A sequence that the end cuts: valid so far
        (b"\xc3", None),
        (b"\xe0\xa0", None),
        (b"\xed\x9f", None),
        (b"abc\xf0\x90", None),
        (b"\xf4\x8f\xbf", None),
    ];

    const VALID: &[&str] = &[
        "",
        "\0",
        "a",
        "Hello, world",
        "κόσμε",
        "\u{7f}\u{80}\u{7ff}\u{800}",
        "\u{d7ff}\u{e000}\u{fffd}\u{ffff}",
        "\u{10000}\u{fffff}\u{10ffff}",
        "Hello-µ@ßöäüàá-UTF-8!!",
        "😀😀😀",
    ];

    #[test]
    fn invalid_text_fails_at_the_byte_that_proves_it() {
        for (bytes, at) in INVALID {
            assert_eq!(fails_at(bytes), *at, "{bytes:x?}");
            assert_eq!(std_fails_at(bytes), *at, "the table is wrong: {bytes:x?}");
        }
    }

    #[test]
    fn invalid_text_fails_at_every_split_and_after_a_long_run() {
        for (bytes, at) in INVALID {
            // Long enough for simdutf8 to leave its scalar path.
            for lead in [0, 1, 63, 64, 65, 200] {
                let text = [&vec![b'a'; lead], *bytes].concat();
                for cut in 0..=text.len() {
                    let (left, right) = text.split_at(cut);
                    assert!(!accepts(&[left, right]), "{bytes:x?} {lead} {cut}");
                    let mut check = Utf8::default();
                    let proved = at.is_some_and(|at| cut > lead + at);
                    assert_eq!(check.feed(left).is_err(), proved, "{bytes:x?} {lead} {cut}");
                }
            }
        }
    }

    #[test]
    fn valid_text_passes_at_every_split_and_with_more_after_it() {
        for text in VALID {
            for tail in ["", "z", "é", "😀"] {
                let text = [text.as_bytes(), tail.as_bytes()].concat();
                for cut in 0..=text.len() {
                    let (left, right) = text.split_at(cut);
                    assert!(accepts(&[left, right]), "{text:x?} {cut}");
                }
                assert_eq!(fails_at(&text), None);
            }
        }
    }

    #[test]
    fn every_sequence_of_two_bytes_and_every_start_of_longer_ones_as_in_std() {
        for first in 0..=255 {
            for second in 0..=255 {
                for tail in [&[][..], &[0x80], &[0xbf, 0xbf], &[0x80, 0x41], &[0xc0]] {
                    let bytes = [&[first, second], tail].concat();
                    assert_eq!(fails_at(&bytes), std_fails_at(&bytes), "{bytes:x?}");
                    let valid = std::str::from_utf8(&bytes).is_ok();
                    assert_eq!(accepts(&[&bytes]), valid, "{bytes:x?}");
                }
            }
        }
    }

    /// Text with some bytes spoilt: random bytes alone almost never hold a long character.
    fn nearly_text() -> impl Strategy<Value = Vec<u8>> {
        let spoil = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3);
        ("\\PC{0,100}", spoil).prop_map(|(text, spoil)| {
            let mut bytes = text.into_bytes();
            for (at, byte) in spoil {
                if !bytes.is_empty() {
                    let at = at.index(bytes.len());
                    bytes[at] = byte;
                }
            }
            bytes
        })
    }

    proptest! {
        #[test]
        fn as_in_std_at_every_split(
            bytes in prop_oneof![nearly_text(), prop::collection::vec(any::<u8>(), 0..40)],
        ) {
            let valid = std::str::from_utf8(&bytes).is_ok();
            prop_assert_eq!(fails_at(&bytes), std_fails_at(&bytes));
            for cut in 0..=bytes.len() {
                let (left, right) = bytes.split_at(cut);
                prop_assert_eq!(accepts(&[left, right]), valid);
                let (middle, right) = right.split_at(right.len() / 2);
                prop_assert_eq!(accepts(&[left, middle, right]), valid);
            }
        }
    }
}
