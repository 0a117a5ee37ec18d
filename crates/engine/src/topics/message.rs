//! A message of a topic, where it stands among all others, and the forms in which subscribers get it.

use super::Who;
use crate::broadcast::{Broadcast, Room};
use crate::endpoint::Endpoint;
use crate::wire::{self, Opcode};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use std::fmt::{self, Write};
use std::sync::Arc;

/// The place of a message in the one sequence that all topics of a run share. What a subscriber gets comes in this order, so
/// one position says for any number of topics what has been seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Which sequence: a server that was started again begins another one, in which an old position means nothing.
    pub epoch: u64,
    /// The number in it; the first message has 1.
    pub seq: u64,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{}", self.epoch, self.seq)
    }
}

impl Position {
    /// Reads what `Display` has written; `None` for anything else, which nobody has from us.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (epoch, seq) = text.split_once('-')?;
        let digits = |text: &str, allowed: fn(&u8) -> bool| !text.is_empty() && text.bytes().all(|b| allowed(&b));
        if epoch.len() != 16 || !digits(epoch, u8::is_ascii_hexdigit) || !digits(seq, u8::is_ascii_digit) {
            return None;
        }
        Some(Self { epoch: u64::from_str_radix(epoch, 16).ok()?, seq: seq.parse().ok()? })
    }
}

/// A published message.
#[derive(Debug)]
pub struct Message {
    /// Where it was published.
    pub topic: Arc<str>,
    /// Where it stands.
    pub position: Position,
    /// False: it has no place of its own, and this is the newest there was.
    pub placed: bool,
    /// Text or binary.
    pub opcode: Opcode,
    /// Text is valid UTF-8.
    pub payload: Bytes,
    /// As an uncompressed frame, of which `payload` is a part.
    plain: Bytes,
    /// For a channel it takes the place of one with the same key that has not left.
    key: Option<Bytes>,
}

/// A payload as a frame, and where in it the payload begins.
pub(crate) fn frame(opcode: Opcode, payload: &[u8]) -> (Bytes, usize) {
    let mut frame = Vec::with_capacity(payload.len() + wire::MAX_HEADER);
    wire::encode_frame(&mut frame, opcode, true, payload, None);
    let header = frame.len() - payload.len();
    (frame.into(), header)
}

/// As JSON writes it.
pub(crate) fn json(text: &str) -> String {
    // A string has no map keys that could fail, and a String takes everything.
    serde_json::to_string(text).unwrap_or_default()
}

impl Message {
    /// `frame`: of [`frame`].
    pub(crate) fn new(topic: &str, position: Position, opcode: Opcode, frame: (Bytes, usize)) -> Self {
        let (plain, header) = frame;
        Self { topic: topic.into(), position, placed: true, opcode, payload: plain.slice(header..), plain, key: None }
    }

    /// The same with a key, which is the topic's own: a send with an equal one has nothing to do with it.
    pub(crate) fn with_key(mut self, key: Option<&[u8]>) -> Self {
        // A name has no control characters.
        self.key = key.map(|key| [b"\0", self.topic.as_bytes(), b"\0", key].concat().into());
        self
    }

    /// The key as it was given.
    pub(crate) fn key(&self) -> Option<&[u8]> {
        Some(&self.key.as_ref()?[self.topic.len() + 2..])
    }

    /// The same without a place of its own, behind `position`.
    pub(crate) fn behind(&self, position: Position) -> Self {
        let (topic, payload, plain) = (Arc::clone(&self.topic), self.payload.clone(), self.plain.clone());
        Self { topic, position, placed: false, opcode: self.opcode, payload, plain, key: self.key.clone() }
    }

    /// What it costs to keep it.
    pub(crate) fn size(&self) -> usize {
        // What stands around it in memory: two counts of references, the queue's entry.
        const AROUND: usize = 128;
        self.plain.len() + self.topic.len() + self.key.as_ref().map_or(0, Bytes::len) + AROUND
    }

    fn text(&self) -> Option<&str> {
        // Publishing has checked it; should it be wrong all the same it goes as what is not text.
        (self.opcode == Opcode::Text).then(|| std::str::from_utf8(&self.payload).ok()).flatten()
    }

    /// For a peer that speaks the convention of docs/topics.md.
    fn envelope(&self) -> String {
        let (name, value) = match self.text() {
            Some(text) => ("text", json(text)),
            None => ("base64", format!("\"{}\"", BASE64.encode(&self.payload))),
        };
        let topic = json(&self.topic);
        let position = if self.placed { format!(r#""position":"{}","#, self.position) } else { String::new() };
        format!(r#"{{"pyhv":"message","topic":{topic},{position}"{name}":{value}}}"#)
    }

    /// For an event stream (WHATWG HTML section 9.2.5). `named`: the type of the event is the topic.
    pub(crate) fn event(&self, named: bool) -> String {
        let encoded;
        let data = match self.text() {
            Some(text) => text,
            None => {
                encoded = BASE64.encode(&self.payload);
                &encoded
            }
        };
        let mut event = String::with_capacity(data.len() + self.topic.len() + 64);
        // Writing to a String cannot fail.
        let _ = writeln!(event, "id: {}", self.position);
        if named {
            let _ = writeln!(event, "event: {}", self.topic);
        }
        let unified;
        let data = if data.contains('\r') {
            unified = data.replace("\r\n", "\n").replace('\r', "\n");
            &unified
        } else {
            data
        };
        for line in data.split('\n') {
            let _ = writeln!(event, "data: {line}");
        }
        event.push('\n');
        event
    }
}

/// A message, and who of the subscribers does not get it.
pub(crate) type Published = (Arc<Message>, Option<Who>);

/// A form for channels: the message by itself, or with its topic and position, as JSON.
#[derive(Clone, Copy)]
pub(crate) enum Form {
    Plain,
    Envelope,
}

impl Form {
    /// Messages in this form.
    pub(crate) fn of(self, endpoint: &Arc<Endpoint>, messages: &[Published]) -> Room {
        let made = messages.iter().map(|(message, exclude)| {
            let exclude = match exclude {
                Some(Who::Channel(channel)) => Some(*channel),
                Some(Who::Stream(_)) | None => None,
            };
            let key = message.key.clone();
            match self {
                Self::Plain => {
                    let header = message.plain.len() - message.payload.len();
                    Broadcast::new(message.opcode, message.plain.clone(), header, exclude, key)
                }
                Self::Envelope => text(&message.envelope(), exclude, key),
            }
        });
        Room::of(endpoint, made)
    }
}

/// A text of the convention.
pub(crate) fn notice(endpoint: &Arc<Endpoint>, notice: &str) -> Room {
    Room::of(endpoint, [text(notice, None, None)])
}

fn text(text: &str, exclude: Option<u32>, key: Option<Bytes>) -> Broadcast {
    let (frame, header) = frame(Opcode::Text, text.as_bytes());
    Broadcast::new(Opcode::Text, frame, header, exclude, key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(opcode: Opcode, payload: &[u8]) -> Message {
        Message::new("r\u{e9}/7", Position { epoch: 0xab, seq: 12 }, opcode, frame(opcode, payload))
    }

    #[test]
    fn a_position_is_read_as_it_was_written() {
        let position = Position { epoch: u64::MAX - 5, seq: 1 << 60 };
        assert_eq!(Position::parse(&position.to_string()), Some(position));
        for bad in ["", "1-2", "00000000000000ab", "00000000000000ab-", "00000000000000ab--1", "+0000000000000ab-1"] {
            assert_eq!(Position::parse(bad), None, "{bad}");
        }
        assert_eq!(Position::parse(&format!("00000000000000ab-{}0", u64::MAX)), None);
    }

    #[test]
    fn forms() {
        let text = message(Opcode::Text, b"a\"\r\nb");
        assert_eq!(
            text.envelope(),
            r#"{"pyhv":"message","topic":"ré/7","position":"00000000000000ab-12","text":"a\"\r\nb"}"#
        );
        assert_eq!(text.behind(text.position).envelope(), r#"{"pyhv":"message","topic":"ré/7","text":"a\"\r\nb"}"#);
        assert_eq!(text.event(false), "id: 00000000000000ab-12\ndata: a\"\ndata: b\n\n");
        assert_eq!(text.event(true), "id: 00000000000000ab-12\nevent: ré/7\ndata: a\"\ndata: b\n\n");
        let binary = message(Opcode::Binary, &[0, 255, 10]);
        assert!(binary.envelope().ends_with(r#","base64":"AP8K"}"#));
        assert_eq!(binary.event(false), "id: 00000000000000ab-12\ndata: AP8K\n\n");
    }
}
