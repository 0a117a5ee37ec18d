//! The sequence of data frames that a program sends on one channel (RFC 6455 section 5.4).
//!
//! The whole state is whether a fragmented message is open, and of which kind:
//!
//! | open | opcode asked for | fin | on the wire | open afterwards |
//! |---|---|---|---|---|
//! | none | none | yes | the message's kind | none |
//! | none | none | no | the message's kind | that kind |
//! | none | text, binary | yes | as asked | none |
//! | none | text, binary | no | as asked | that kind |
//! | none | continuation | any | `NothingToContinue` | none |
//! | a kind | none, continuation | yes | continuation | none |
//! | a kind | none, continuation | no | continuation | the same kind |
//! | a kind | text, binary | any | `MessageOpen` | the same kind |
//! | any | ping, pong | yes | as asked | unchanged |
//! | any | ping, pong | no | `FragmentedControl` | unchanged |
//! | any | close | any | `UseClose` | unchanged |

use crate::frame::{MessageKind, Opcode};
use std::fmt;

/// The send side of a channel: decides the opcode of each frame. A refused frame changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Outgoing {
    /// The kind of the fragmented message that is open.
    open: Option<MessageKind>,
}

impl Outgoing {
    /// The opcode to put on the wire for the next frame. `opcode` is what the caller asked for, `kind` what the message
    /// object itself suggests, `fin` whether the frame ends its message.
    pub fn next(&mut self, opcode: Option<Opcode>, kind: MessageKind, fin: bool) -> Result<Opcode, SequenceError> {
        let (send, open) = transition(self.open, opcode, kind, fin)?;
        self.open = open;
        Ok(send)
    }

    /// Whether a fragmented message is open.
    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// The kind of the message that is open.
    pub fn kind(&self) -> Option<MessageKind> {
        self.open
    }
}

/// The table in the module's header: what goes on the wire, and what is open afterwards.
fn transition(
    open: Option<MessageKind>,
    opcode: Option<Opcode>,
    kind: MessageKind,
    fin: bool,
) -> Result<(Opcode, Option<MessageKind>), SequenceError> {
    let begin = |send, kind| Ok((send, if fin { None } else { Some(kind) }));
    match (open, opcode) {
        (_, Some(Opcode::Close)) => Err(SequenceError::UseClose),
        (_, Some(Opcode::Ping | Opcode::Pong)) if !fin => Err(SequenceError::FragmentedControl),
        (_, Some(control @ (Opcode::Ping | Opcode::Pong))) => Ok((control, open)),
        (None, None) => match kind {
            MessageKind::Text => begin(Opcode::Text, kind),
            MessageKind::Binary => begin(Opcode::Binary, kind),
        },
        (None, Some(Opcode::Text)) => begin(Opcode::Text, MessageKind::Text),
        (None, Some(Opcode::Binary)) => begin(Opcode::Binary, MessageKind::Binary),
        (None, Some(Opcode::Continuation)) => Err(SequenceError::NothingToContinue),
        (Some(_), None | Some(Opcode::Continuation)) => Ok((Opcode::Continuation, if fin { None } else { open })),
        (Some(_), Some(Opcode::Text | Opcode::Binary)) => Err(SequenceError::MessageOpen),
    }
}

/// Why a frame can't be sent now. The text is what the Python programmer reads in a `ValueError`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SequenceError {
    /// A continuation was asked for, but no fragmented message is open.
    NothingToContinue,
    /// A new message was asked for while a fragmented one is open.
    MessageOpen,
    /// A ping or pong was asked for with `fin=False`.
    FragmentedControl,
    /// A close frame was asked for: the channel's `close` sends it and waits for the answer.
    UseClose,
}

impl fmt::Display for SequenceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NothingToContinue => {
                "no fragmented message is open on this channel: begin one with fin=False before continuing it"
            }
            Self::MessageOpen => {
                "a fragmented message is open on this channel: finish it with fin=True before sending another one"
            }
            Self::FragmentedControl => "a ping or pong can't be fragmented: send it with fin=True",
            Self::UseClose => "a close frame can't be sent as a message: call close(code, reason)",
        })
    }
}

impl std::error::Error for SequenceError {}

#[cfg(test)]
mod tests {
    use super::*;
    use MessageKind::{Binary, Text};
    use Opcode::{Close, Continuation, Ping, Pong};
    use SequenceError::{FragmentedControl, MessageOpen, NothingToContinue, UseClose};

    type Row =
        (Option<MessageKind>, Option<Opcode>, MessageKind, bool, Result<Opcode, SequenceError>, Option<MessageKind>);

    /// open, opcode asked for, the object's kind, fin, on the wire, open afterwards
    #[rustfmt::skip]
    const TABLE: &[Row] = &[
        (None, None, Text, true, Ok(Opcode::Text), None),
        (None, None, Text, false, Ok(Opcode::Text), Some(Text)),
        (None, None, Binary, true, Ok(Opcode::Binary), None),
        (None, None, Binary, false, Ok(Opcode::Binary), Some(Binary)),
        // What the caller asks for outranks what the object suggests.
        (None, Some(Opcode::Text), Text, true, Ok(Opcode::Text), None),
        (None, Some(Opcode::Text), Binary, true, Ok(Opcode::Text), None),
        (None, Some(Opcode::Text), Binary, false, Ok(Opcode::Text), Some(Text)),
        (None, Some(Opcode::Binary), Binary, true, Ok(Opcode::Binary), None),
        (None, Some(Opcode::Binary), Text, true, Ok(Opcode::Binary), None),
        (None, Some(Opcode::Binary), Text, false, Ok(Opcode::Binary), Some(Binary)),
        (None, Some(Continuation), Text, true, Err(NothingToContinue), None),
        (None, Some(Continuation), Text, false, Err(NothingToContinue), None),
        // A message keeps the kind that it began with, whatever the later objects are.
        (Some(Text), None, Text, true, Ok(Continuation), None),
        (Some(Text), None, Text, false, Ok(Continuation), Some(Text)),
        (Some(Text), None, Binary, false, Ok(Continuation), Some(Text)),
        (Some(Binary), None, Text, false, Ok(Continuation), Some(Binary)),
        (Some(Binary), None, Binary, true, Ok(Continuation), None),
        (Some(Text), Some(Continuation), Text, true, Ok(Continuation), None),
        (Some(Text), Some(Continuation), Text, false, Ok(Continuation), Some(Text)),
        (Some(Binary), Some(Continuation), Text, false, Ok(Continuation), Some(Binary)),
        (Some(Text), Some(Opcode::Text), Text, true, Err(MessageOpen), Some(Text)),
        (Some(Text), Some(Opcode::Text), Text, false, Err(MessageOpen), Some(Text)),
        (Some(Text), Some(Opcode::Binary), Binary, true, Err(MessageOpen), Some(Text)),
        (Some(Binary), Some(Opcode::Binary), Binary, false, Err(MessageOpen), Some(Binary)),
        // Control frames leave the message alone.
        (None, Some(Ping), Text, true, Ok(Ping), None),
        (None, Some(Pong), Binary, true, Ok(Pong), None),
        (Some(Text), Some(Ping), Binary, true, Ok(Ping), Some(Text)),
        (Some(Binary), Some(Pong), Text, true, Ok(Pong), Some(Binary)),
        (None, Some(Ping), Text, false, Err(FragmentedControl), None),
        (None, Some(Pong), Text, false, Err(FragmentedControl), None),
        (Some(Text), Some(Ping), Text, false, Err(FragmentedControl), Some(Text)),
        (Some(Binary), Some(Pong), Text, false, Err(FragmentedControl), Some(Binary)),
        (None, Some(Close), Text, true, Err(UseClose), None),
        (None, Some(Close), Text, false, Err(UseClose), None),
        (Some(Text), Some(Close), Text, true, Err(UseClose), Some(Text)),
        (Some(Binary), Some(Close), Text, false, Err(UseClose), Some(Binary)),
    ];

    #[test]
    fn row_by_row() {
        for &(open, opcode, kind, fin, wire, after) in TABLE {
            let mut outgoing = Outgoing { open };
            let row = (open, opcode, kind, fin);
            assert_eq!(outgoing.next(opcode, kind, fin), wire, "{row:?}");
            assert_eq!(outgoing.kind(), after, "{row:?}");
            assert_eq!(outgoing.is_open(), after.is_some(), "{row:?}");
        }
    }

    #[test]
    fn nothing_is_open_at_first() {
        assert!(!Outgoing::default().is_open());
        assert_eq!(Outgoing::default().kind(), None);
    }

    #[test]
    fn each_error_tells_the_programmer_what_to_do() {
        for (error, advice) in [
            (NothingToContinue, "begin one with fin=False"),
            (MessageOpen, "finish it with fin=True"),
            (FragmentedControl, "send it with fin=True"),
            (UseClose, "call close(code, reason)"),
        ] {
            assert!(error.to_string().contains(advice), "{error}");
        }
    }
}
