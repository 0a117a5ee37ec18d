//! The WebSocket protocol (RFC 6455) of pyHV, sans-I/O: bytes in, events out; events in, bytes out.
//!
//! Nothing here opens a socket, reads a clock, draws a random number or knows Python. Whoever owns the connection
//! feeds what it received to a [`Decoder`], writes what [`encode_frame`] appended, and brings the random mask keys and
//! nonces. So every rule of the protocol can be tested in memory, at every cut of the input.
//!
//! | module | holds |
//! |---|---|
//! | [`handshake`] | the opening handshake over parsed HTTP headers, both sides (section 4) |
//! | `frame` | opcodes, frame headers to and from bytes (section 5.2) |
//! | [`mask`] | the XOR mask (section 5.3) |
//! | `decode` | [`Decoder`]: received bytes to events, messages put together (sections 5.4, 5.5) |
//! | `utf8` | the UTF-8 check of text that arrives in pieces (section 8.1) |
//! | `outgoing` | [`Outgoing`]: which opcode the next frame of a program's message carries (section 5.4) |
//! | [`deflate`] | permessage-deflate (RFC 7692): negotiation, inflating, deflating |
//! | [`close`] | close codes and the close frame's payload (sections 5.5.1, 7.4) |
//! | `violation` | [`Violation`]: what a peer can do wrong, and the close code that answers it |
//!
//! Memory: a [`Decoder`] at rest owns no heap memory at all. It allocates only for a message or a control frame that
//! was cut by the end of a chunk, and gives that memory up with the event. The bytes it holds never exceed the
//! `max_message_size` it was made with, plus one control frame.
//!
//! Extensions: permessage-deflate, where it was negotiated. What it costs is told in [`deflate`].

pub mod close;
mod decode;
pub mod deflate;
mod frame;
pub mod handshake;
pub mod mask;
mod outgoing;
mod utf8;
mod violation;

pub use close::MAX_CLOSE_REASON;
pub use decode::{Decoder, Event, Limits, Payload, Role};
pub use frame::{
    MAX_CONTROL_PAYLOAD, MAX_HEADER, MessageKind, Opcode, ReservedOpcode, encode_frame, encode_frame_rsv1,
    encode_header,
};
pub use outgoing::{Outgoing, SequenceError};
pub use violation::Violation;
