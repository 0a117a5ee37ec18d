//! What a peer can do wrong, in one place: the close code that answers it and the words its developer will read.
//!
//! RFC 6455 section 7.1.7, "Fail the WebSocket Connection": the endpoint "SHOULD send a Close frame with an appropriate
//! status code". Section 7.4.1 gives the codes: 1002 a protocol error, 1007 data "not consistent with the type of the
//! message (e.g., non-UTF-8 [RFC3629] data within a text message)", 1009 a message "too big for it to process".

use std::fmt;

/// A rule of the protocol that the peer broke: the connection is to be failed with this code and reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Violation {
    /// The close code to send: 1002, 1007 or 1009.
    pub code: u16,
    /// The close reason to send; fits into a close frame (at most 123 bytes).
    pub reason: &'static str,
}

impl Violation {
    /// The field of [`Limits`](crate::Limits) that was exceeded, if it was one of them.
    pub fn limit(&self) -> Option<&'static str> {
        [(TOO_BIG, "max_message_size"), (FRAME_TOO_BIG, "max_frame_size"), (TOO_MANY_FRAGMENTS, "max_fragments")]
            .into_iter()
            .find_map(|(violation, name)| (violation == *self).then_some(name))
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.reason, self.code)
    }
}

impl std::error::Error for Violation {}

/// The constants below and the list of them all, which the tests walk.
macro_rules! violations {
    ($($(#[$doc:meta])* $name:ident = $code:literal $reason:literal;)*) => {
        $($(#[$doc])* pub(crate) const $name: Violation = Violation { code: $code, reason: $reason };)*
        #[cfg(test)]
        const ALL: &[Violation] = &[$($name),*];
    };
}

violations! {
    /// Section 5.2: "If a nonzero value is received and none of the negotiated extensions defines the meaning of such a
    /// nonzero value, the receiving endpoint MUST _Fail the WebSocket Connection_."
    RSV = 1002 "a reserved bit (RSV1-3) is set, but no extension was negotiated";
    /// RFC 7692 section 6: RSV1 is the "Per-Message Compressed" bit. Section 6.1: it may not be set on "control frames and
    /// non-first fragments of a data message. An endpoint receiving such a frame MUST _Fail the WebSocket Connection_."
    /// RSV2 and RSV3 still have no meaning.
    RSV_DEFLATE = 1002 "a reserved bit (RSV1-3) is set where permessage-deflate has no meaning for it";
    /// Section 5.2: "If an unknown opcode is received, the receiving endpoint MUST _Fail the WebSocket Connection_."
    OPCODE = 1002 "the frame's opcode is reserved";
    /// Section 5.5: control frames "MUST NOT be fragmented".
    CONTROL_FRAGMENTED = 1002 "a control frame must not be fragmented";
    /// Section 5.5: "All control frames MUST have a payload length of 125 bytes or less".
    CONTROL_TOO_LONG = 1002 "a control frame must not carry more than 125 bytes";
    /// Section 5.4: a continuation frame belongs to a message that a frame with another opcode began.
    NOTHING_TO_CONTINUE = 1002 "a continuation frame arrived, but no message is open";
    /// Section 5.4: "The fragments of one message MUST NOT be interleaved between the fragments of another message
    /// unless an extension has been negotiated that can interpret the interleaving."
    MESSAGE_OPEN = 1002 "a new message began before the fragmented one was finished";
    /// Section 5.1: "The server MUST close the connection upon receiving a frame that is not masked."
    UNMASKED = 1002 "a client's frames must be masked";
    /// Section 5.1: "A server MUST NOT mask any frames that it sends to the client. A client MUST close a connection if
    /// it detects a masked frame."
    MASKED = 1002 "a server's frames must not be masked";
    /// Section 5.2: "in all cases, the minimal number of bytes MUST be used to encode the length".
    LENGTH_NOT_MINIMAL = 1002 "the payload length is not in its shortest form";
    /// Section 5.2: of the 64-bit length "the most significant bit MUST be 0".
    LENGTH_TOP_BIT = 1002 "the payload length has its most significant bit set";
    /// Section 5.5.1: "If there is a body, the first two bytes of the body MUST be a 2-byte unsigned integer".
    CLOSE_ONE_BYTE = 1002 "a close frame of one byte has no room for a close code";
    /// Section 7.4: the code is reserved, or may not be sent (1005, 1006, 1015), or is outside 1000-4999.
    CLOSE_CODE = 1002 "the close code must not be sent";
    /// Section 8.1: "When an endpoint is to interpret a byte stream as UTF-8 but finds that the byte stream is not, in
    /// fact, a valid UTF-8 stream, that endpoint MUST _Fail the WebSocket Connection_."
    TEXT_NOT_UTF8 = 1007 "a text message is not valid UTF-8";
    /// Section 8.1 again: section 5.5.1 makes the reason "UTF-8-encoded data".
    REASON_NOT_UTF8 = 1007 "the close reason is not valid UTF-8";
    /// RFC 7692 section 7.2.2. Why 1007 is told in `deflate::inflate`.
    DEFLATE_CORRUPT = 1007 "a compressed message is not valid DEFLATE data";
    /// RFC 7692 section 7.2.1: a message ends with the first bits of an empty DEFLATE block.
    DEFLATE_CUT_OFF = 1007 "a compressed message ends inside a DEFLATE block";
    /// Section 10.4: an implementation with limits "SHOULD impose a limit on frame sizes and the total message size
    /// after reassembly from multiple frames".
    TOO_BIG = 1009 "the message is larger than this endpoint accepts";
    /// Section 10.4 again, for one frame.
    FRAME_TOO_BIG = 1009 "the frame is larger than this endpoint accepts";
    /// Section 10.4 again: each fragment costs work whatever its size.
    TOO_MANY_FRAGMENTS = 1009 "the message has more fragments than this endpoint accepts";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_violation_can_be_sent_in_a_close_frame() {
        for violation in ALL {
            assert!(matches!(violation.code, 1002 | 1007 | 1009), "{violation:?}");
            assert_eq!(crate::close::check(violation.code, violation.reason), Ok(()), "{violation:?}");
        }
    }

    #[test]
    fn no_two_violations_read_the_same() {
        for (i, one) in ALL.iter().enumerate() {
            assert!(ALL[i + 1..].iter().all(|other| other.reason != one.reason), "{one:?}");
        }
    }

    #[test]
    fn display_names_the_rule_and_the_code() {
        assert_eq!(OPCODE.to_string(), "the frame's opcode is reserved (1002)");
    }
}
