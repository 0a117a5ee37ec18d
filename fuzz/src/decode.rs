use crate::wire::{Case, Seen, feed};
use pyhv_wire::{Role, Violation};
use std::io::{self, Read, Write};
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::protocol::{Role as TheirRole, WebSocketConfig};
use tungstenite::{Error, Message, WebSocket};

/// Invariant: the decoder and tungstenite, an independent implementation, see the same events in the same bytes, and where
/// one fails the other does; both roles, cut as the input says. Deliberate differences:
///
/// | | the decoder | tungstenite 0.30 |
/// |---|---|---|
/// | a violation | fails as soon as the bytes prove it | when the frame is complete: it's given zeros until it is |
/// | a length not in its shortest form | fails (RFC 6455 section 5.2, "MUST") | reads it, a control frame's too if it is short |
/// | a close code that may not be sent | fails | reports 1002 as if the peer had sent that |
/// | close code 1014 | reads it (IANA's registry has it) | as above |
pub fn decode(data: &[u8]) {
    let Some(case) = Case::read(data) else { return };
    let (ours, failed) = feed(case.decoder(false), case.limit, &case.wire, case.cuts(case.wire.len()));
    let (theirs, end) = match failed {
        None => theirs(&case, &case.wire),
        Some(_) => {
            let rest = vec![0; case.limit.max(125) + 14];
            theirs(&case, &[&case.wire[..], &rest].concat())
        }
    };
    match failed {
        None => {
            assert_eq!(theirs, ours.into_iter().map(as_theirs).collect::<Vec<_>>());
            assert!(end != End::Failed, "only tungstenite fails");
        }
        Some(Violation {
            reason:
                "the payload length is not in its shortest form" | "a control frame must not carry more than 125 bytes",
            ..
        }) => {
            assert!(theirs.starts_with(&ours), "{ours:?} {theirs:?}");
        }
        Some(Violation { reason: "the close code must not be sent", .. }) => {
            assert!(theirs.starts_with(&ours), "{ours:?} {theirs:?}");
            // Which comes first to tungstenite: that the reason isn't UTF-8, or that the frame is well-formed.
            let last = theirs.get(ours.len());
            let expected = matches!(last, Some(Seen::Close(Some(1002), _))) || last.is_none() && end == End::Failed;
            assert!(expected, "{last:?} {end:?}");
        }
        Some(violation) => {
            assert_eq!(theirs, ours, "{violation}");
            assert_eq!(end, End::Failed, "only the decoder fails: {violation}");
        }
    }
}

/// 1014 is nothing to tungstenite.
fn as_theirs(seen: Seen) -> Seen {
    match seen {
        Seen::Close(Some(1014), _) => Seen::Close(Some(1002), "Protocol violation".to_owned()),
        _ => seen,
    }
}

#[derive(Debug, PartialEq, Eq)]
enum End {
    /// It waits for more, or has read the close frame.
    Fine,
    Failed,
}

/// What tungstenite sees.
fn theirs(case: &Case, wire: &[u8]) -> (Vec<Seen>, End) {
    let role = if case.role == Role::Server { TheirRole::Server } else { TheirRole::Client };
    let config = WebSocketConfig::default()
        .read_buffer_size(4096)
        .max_message_size(Some(case.limit))
        // Its limit of frames is for control frames too.
        .max_frame_size(Some(case.limit.max(125)));
    let pipe = Pipe { wire, chunk: 0, cuts: case.cuts(wire.len()) };
    let mut socket = WebSocket::from_raw_socket(pipe, role, Some(config));
    let mut seen = Vec::new();
    loop {
        match socket.read() {
            Ok(Message::Text(text)) => seen.push(Seen::Text(text.as_str().to_owned())),
            Ok(Message::Binary(data)) => seen.push(Seen::Binary(data.to_vec())),
            Ok(Message::Ping(data)) => seen.push(Seen::Ping(data.to_vec())),
            Ok(Message::Pong(data)) => seen.push(Seen::Pong(data.to_vec())),
            Ok(Message::Close(frame)) => {
                let code = frame.as_ref().map(|frame| CloseCode::into(frame.code));
                let reason = frame.map_or(String::new(), |frame| frame.reason.as_str().to_owned());
                seen.push(Seen::Close(code, reason));
                return (seen, End::Fine);
            }
            Ok(Message::Frame(_)) => unreachable!("only for writing"),
            Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => return (seen, End::Fine),
            Err(_) => return (seen, End::Failed),
        }
    }
}

/// A socket that gives the wire in chunks of these lengths, and takes everything.
struct Pipe<'a, C> {
    wire: &'a [u8],
    /// How much of the chunk that has arrived is left.
    chunk: usize,
    cuts: C,
}

impl<C: Iterator<Item = usize>> Read for Pipe<'_, C> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.wire.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if self.chunk == 0 {
            self.chunk = self.cuts.next().unwrap_or(usize::MAX).min(self.wire.len());
        }
        let len = self.chunk.min(buffer.len());
        buffer[..len].copy_from_slice(&self.wire[..len]);
        self.wire = &self.wire[len..];
        self.chunk -= len;
        Ok(len)
    }
}

impl<C> Write for Pipe<'_, C> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
