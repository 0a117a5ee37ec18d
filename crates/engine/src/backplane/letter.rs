//! What a published message looks like between nodes: one line, then the payload as it is.
//!
//! `1 NODE NUMBER t TOPIC\n`: the version, the publishing node in 16 hexadecimal digits, a number that grows with each message of
//! that node, `t` or `b` for text or binary, which a message with a key follows with `=` and the key in base64. Documented in docs/backplane.md, since other programs may publish too.

use crate::topics::check_name;
use crate::wire::Opcode;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Letter {
    /// Who has published it.
    pub(crate) node: u64,
    /// Grows with each letter of that node; 0: not counted.
    pub(crate) number: u64,
    /// Text or binary.
    pub(crate) opcode: Opcode,
    /// What a newer one replaces it by.
    pub(crate) key: Option<Vec<u8>>,
    /// Where.
    pub(crate) topic: String,
    /// Text is valid UTF-8.
    pub(crate) payload: Bytes,
}

impl Letter {
    pub(crate) fn write(
        node: u64,
        number: u64,
        opcode: Opcode,
        key: Option<&[u8]>,
        topic: &str,
        payload: &[u8],
    ) -> Bytes {
        let kind = if opcode == Opcode::Text { 't' } else { 'b' };
        let key = key.map(|key| format!("={}", BASE64.encode(key))).unwrap_or_default();
        let mut letter = format!("1 {node:016x} {number} {kind}{key} {topic}\n").into_bytes();
        letter.extend_from_slice(payload);
        letter.into()
    }

    /// Reads what another node, or whoever may publish there, has written; `None`: it will not do.
    pub(crate) fn read(letter: &Bytes, max_topic_length: usize) -> Option<Self> {
        let end = letter.iter().position(|byte| *byte == b'\n')?;
        let line = std::str::from_utf8(&letter[..end]).ok()?;
        let mut parts = line.splitn(5, ' ');
        if parts.next()? != "1" {
            return None;
        }
        let node = u64::from_str_radix(parts.next()?, 16).ok()?;
        let number = parts.next()?.parse().ok()?;
        let payload = letter.slice(end + 1..);
        let kind = parts.next()?;
        let (kind, key) = kind.split_once('=').map_or((kind, None), |(kind, key)| (kind, Some(key)));
        let key = key.map(|key| BASE64.decode(key)).transpose().ok()?;
        let opcode = match kind {
            "t" => Opcode::Text,
            "b" => Opcode::Binary,
            _ => return None,
        };
        if opcode == Opcode::Text {
            std::str::from_utf8(&payload).ok()?;
        }
        let topic = parts.next()?;
        check_name(topic, max_topic_length).ok()?;
        Some(Self { node, number, opcode, key, topic: topic.to_owned(), payload })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_letter_is_read_as_it_was_written() {
        for (opcode, payload) in [(Opcode::Text, &b"a\nb"[..]), (Opcode::Binary, b"\xff\0"), (Opcode::Text, b"")] {
            for key in [None, Some(&b""[..]), Some(b"a key\n\xff")] {
                let letter = Letter::write(0xab, 7, opcode, key, "a room/1", payload);
                let (payload, key) = (Bytes::from_static(payload), key.map(<[u8]>::to_vec));
                let wanted = Letter { node: 0xab, number: 7, opcode, key, topic: "a room/1".to_owned(), payload };
                assert_eq!(Letter::read(&letter, 256), Some(wanted));
                assert_eq!(Letter::read(&letter, 7), None);
            }
        }
    }

    #[test]
    fn what_others_put_there_is_looked_at() {
        for bad in [
            &b""[..],
            b"hello",
            b"2 00000000000000ab 1 t a\nx",
            b"1 zz 1 t a\nx",
            b"1 ab -1 t a\nx",
            b"1 ab 1 x a\nx",
            b"1 ab 1 t=? a\nx",
            b"1 ab 1 t a/+\nx",
            b"1 ab 1 t \nx",
            b"1 ab 1 t a\n\xff",
            b"1 ab 1 t a",
        ] {
            assert_eq!(Letter::read(&Bytes::from_static(bad), 256), None, "{bad:?}");
        }
        assert!(Letter::read(&Bytes::from_static(b"1 0 0 b a\n\xff"), 256).is_some());
    }
}
