//! Close codes and the close frame's payload (RFC 6455 sections 5.5.1 and 7.4).

use crate::frame::MAX_CONTROL_PAYLOAD;
use crate::violation::{self, Violation};
use std::fmt;

/// The longest close reason in bytes of UTF-8: a control frame's payload less the two bytes of the code.
pub const MAX_CLOSE_REASON: usize = MAX_CONTROL_PAYLOAD - 2;

/// Whether `code` may stand in a close frame.
///
/// | codes | | why |
/// |---|---|---|
/// | 0-999 | no | 7.4.2: "not used" |
/// | 1000-1003 | yes | 7.4.1 |
/// | 1004 | no | 7.4.1: "Reserved" |
/// | 1005, 1006 | no | 7.4.1: "MUST NOT be set as a status code in a Close control frame by an endpoint" |
/// | 1007-1011 | yes | 7.4.1 |
/// | 1012-1014 | yes | registered with IANA since (section 11.7): service restart, try again later, bad gateway |
/// | 1015 | no | as 1005: stands for a failed TLS handshake |
/// | 1016-2999 | no | 7.4.2: "reserved for definition by this protocol", not defined yet |
/// | 3000-4999 | yes | 7.4.2: libraries and applications |
/// | 5000- | no | in no range of 7.4.2 |
pub const fn is_valid_on_wire(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

/// Checks what a program asks to send.
pub fn check(code: u16, reason: &str) -> Result<(), InvalidClose> {
    if !is_valid_on_wire(code) {
        return Err(InvalidClose::Code(code));
    }
    if reason.len() > MAX_CLOSE_REASON {
        return Err(InvalidClose::ReasonTooLong(reason.len()));
    }
    Ok(())
}

/// Why a close can't be sent as asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InvalidClose {
    /// This code must not be sent.
    Code(u16),
    /// The reason has this many bytes of UTF-8, more than [`MAX_CLOSE_REASON`].
    ReasonTooLong(usize),
}

impl fmt::Display for InvalidClose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "close code {code} must not be sent: use 1000-1003, 1007-1014 or 3000-4999"),
            Self::ReasonTooLong(len) => write!(
                f,
                "the close reason takes {len} bytes of UTF-8: at most {MAX_CLOSE_REASON} fit into a close frame"
            ),
        }
    }
}

impl std::error::Error for InvalidClose {}

/// Appends the payload of a close frame. Without a code it's empty and the reason is dropped: section 5.5.1 has no way
/// to send a reason alone. A reason that is too long is cut at a character's boundary.
pub fn encode_payload(out: &mut Vec<u8>, code: Option<u16>, reason: &str) {
    if let Some(code) = code {
        out.extend_from_slice(&code.to_be_bytes());
        let fits = reason.floor_char_boundary(MAX_CLOSE_REASON);
        out.extend_from_slice(&reason.as_bytes()[..fits]);
    }
}

/// Reads the whole payload of a close frame.
pub(crate) fn decode_payload(payload: &[u8]) -> Result<(Option<u16>, &str), Violation> {
    let (code, reason) = match payload {
        [] => return Ok((None, "")),
        [_] => return Err(violation::CLOSE_ONE_BYTE),
        [high, low, reason @ ..] => (u16::from_be_bytes([*high, *low]), reason),
    };
    if !is_valid_on_wire(code) {
        return Err(violation::CLOSE_CODE);
    }
    match std::str::from_utf8(reason) {
        Ok(reason) => Ok((Some(code), reason)),
        Err(_) => Err(violation::REASON_NOT_UTF8),
    }
}

/// Checks the part of a close frame's payload that has arrived: an error if no bytes to come could make it right.
pub(crate) fn check_partial(payload: &[u8]) -> Result<(), Violation> {
    let [high, low, reason @ ..] = payload else {
        return Ok(());
    };
    if !is_valid_on_wire(u16::from_be_bytes([*high, *low])) {
        return Err(violation::CLOSE_CODE);
    }
    match std::str::from_utf8(reason) {
        // `error_len` is None where the text merely ends inside a character.
        Err(error) if error.error_len().is_some() => Err(violation::REASON_NOT_UTF8),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table at `is_valid_on_wire`, as ranges that cover every number once.
    const CODES: &[(u16, u16, bool)] = &[
        (0, 999, false),
        (1000, 1003, true),
        (1004, 1006, false),
        (1007, 1014, true),
        (1015, 2999, false),
        (3000, 4999, true),
        (5000, u16::MAX, false),
    ];

    #[test]
    fn every_code() {
        let mut next = 0;
        for &(first, last, valid) in CODES {
            assert_eq!(u32::from(first), next, "the table has a gap");
            next = u32::from(last) + 1;
            for code in first..=last {
                assert_eq!(is_valid_on_wire(code), valid, "{code}");
                let checked = check(code, "");
                assert_eq!(checked.is_ok(), valid, "{code}");
                let payload = code.to_be_bytes();
                let decoded = decode_payload(&payload);
                let expected = if valid { Ok((Some(code), "")) } else { Err(violation::CLOSE_CODE) };
                assert_eq!(decoded, expected, "{code}");
                assert_eq!(check_partial(&payload).is_ok(), valid, "{code}");
            }
        }
        assert_eq!(next, 65536);
    }

    #[test]
    fn a_program_is_told_what_is_wrong() {
        assert_eq!(check(1000, &"x".repeat(123)), Ok(()));
        let long = check(1000, &"é".repeat(62));
        assert_eq!(long, Err(InvalidClose::ReasonTooLong(124)));
        assert_eq!(
            InvalidClose::ReasonTooLong(124).to_string(),
            "the close reason takes 124 bytes of UTF-8: at most 123 fit into a close frame"
        );
        assert_eq!(check(1006, "x"), Err(InvalidClose::Code(1006)));
        assert_eq!(
            InvalidClose::Code(1006).to_string(),
            "close code 1006 must not be sent: use 1000-1003, 1007-1014 or 3000-4999"
        );
    }

    #[test]
    fn payloads_come_back_as_they_were_written() {
        let longest = "x".repeat(MAX_CLOSE_REASON);
        for (code, reason) in [
            (None, ""),
            (Some(1000), ""),
            (Some(1001), "going away"),
            (Some(4999), "für später"),
            (Some(3000), &longest),
        ] {
            let mut payload = Vec::new();
            encode_payload(&mut payload, code, reason);
            assert!(payload.len() <= MAX_CONTROL_PAYLOAD);
            assert_eq!(decode_payload(&payload), Ok((code, reason)));
        }
    }

    #[test]
    fn a_reason_without_a_code_is_dropped() {
        let mut payload = Vec::new();
        encode_payload(&mut payload, None, "why");
        assert!(payload.is_empty());
    }

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        for (pad, character, kept) in [(122, 'é', 122), (121, 'é', 123), (120, '😀', 120)] {
            let reason = format!("{}{character}{character}", "x".repeat(pad));
            let mut payload = b"before".to_vec();
            encode_payload(&mut payload, Some(1000), &reason);
            assert_eq!(payload[..8], *b"before\x03\xe8");
            assert_eq!(payload[8..], reason.as_bytes()[..kept]);
        }
    }

    #[test]
    fn bad_payloads() {
        assert_eq!(decode_payload(b"\x03"), Err(violation::CLOSE_ONE_BYTE));
        let cut = b"\x03\xe8ab\xc3";
        assert_eq!(decode_payload(cut), Err(violation::REASON_NOT_UTF8));
        assert_eq!(check_partial(cut), Ok(()));
        let bad = b"\x03\xe8ab\xc3\x28";
        assert_eq!(decode_payload(bad), Err(violation::REASON_NOT_UTF8));
        assert_eq!(check_partial(bad), Err(violation::REASON_NOT_UTF8));
        assert_eq!(check_partial(b""), Ok(()));
        assert_eq!(check_partial(b"\x03"), Ok(()));
    }
}
