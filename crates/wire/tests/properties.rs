//! Two ends joined in memory, and inputs that nobody thought of. The invariants: what was sent arrives; the events do
//! not depend on how the bytes were cut; nothing panics; no more is held than the limit.

mod common;

use common::{Outcome, Seen, feed};
use proptest::prelude::*;
use pyhv_wire::{MAX_HEADER, MessageKind, Opcode, Outgoing, Role, close, encode_frame, encode_header};

const LIMIT: usize = 4096;

/// What a peer does.
#[derive(Debug, Clone)]
enum Act {
    /// Sends a message in fragments that end at these places, with these pings before each.
    Message(MessageKind, Vec<u8>, Vec<prop::sample::Index>, Vec<Vec<u8>>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
}

fn act() -> impl Strategy<Value = Act> {
    let control = || prop::collection::vec(any::<u8>(), 0..=125);
    let cuts = || prop::collection::vec(any::<prop::sample::Index>(), 0..4);
    let pings = || prop::collection::vec(control(), 0..3);
    prop_oneof![
        4 => ("\\PC{0,200}", cuts(), pings()).prop_map(|(text, cuts, pings)| {
            Act::Message(MessageKind::Text, text.into_bytes(), cuts, pings)
        }),
        4 => (prop::collection::vec(any::<u8>(), 0..400), cuts(), pings()).prop_map(
            |(bytes, cuts, pings)| Act::Message(MessageKind::Binary, bytes, cuts, pings)
        ),
        1 => control().prop_map(Act::Ping),
        1 => control().prop_map(Act::Pong),
    ]
}

/// What the acts look like on the wire, and what must be seen of them.
fn play(role: Role, acts: &[Act], keys: &mut impl Iterator<Item = [u8; 4]>) -> (Vec<u8>, Vec<Seen>) {
    let (mut wire, mut seen) = (Vec::new(), Vec::new());
    let mut outgoing = Outgoing::default();
    let mut put = |opcode, fin, payload: &[u8]| {
        let key = if role == Role::Server { keys.next() } else { None };
        encode_frame(&mut wire, opcode, fin, payload, key);
    };
    for act in acts {
        match act {
            Act::Ping(payload) => {
                put(Opcode::Ping, true, payload);
                seen.push(Seen::Ping(payload.clone()));
            }
            Act::Pong(payload) => {
                put(Opcode::Pong, true, payload);
                seen.push(Seen::Pong(payload.clone()));
            }
            Act::Message(kind, payload, cuts, pings) => {
                let mut ends: Vec<usize> = cuts.iter().map(|i| i.index(payload.len() + 1)).collect();
                ends.sort_unstable();
                ends.push(payload.len());
                let (mut start, last) = (0, ends.len() - 1);
                let mut pings = pings.iter();
                for (i, end) in ends.into_iter().enumerate() {
                    let opcode = outgoing.next(None, *kind, i == last);
                    assert!(opcode.is_ok());
                    put(opcode.unwrap_or(Opcode::Close), i == last, &payload[start..end]);
                    start = end;
                    if let (true, Some(ping)) = (i < last, pings.next()) {
                        put(Opcode::Ping, true, ping);
                        seen.push(Seen::Ping(ping.clone()));
                    }
                }
                assert!(!outgoing.is_open());
                seen.push(match kind {
                    MessageKind::Text => match String::from_utf8(payload.clone()) {
                        Ok(text) => Seen::Text(text),
                        Err(_) => Seen::BrokenText(payload.clone()),
                    },
                    MessageKind::Binary => Seen::Binary(payload.clone()),
                });
            }
        }
    }
    (wire, seen)
}

/// Cuts `bytes` into chunks of these sizes, again and again.
fn cut<'a>(bytes: &'a [u8], sizes: &'a [usize]) -> impl Iterator<Item = &'a [u8]> {
    let mut rest = bytes;
    let mut sizes = sizes.iter().cycle();
    std::iter::from_fn(move || {
        let size = *sizes.next().unwrap_or(&1);
        let chunk;
        (chunk, rest) = rest.split_at_checked(size).unwrap_or((rest, &[]));
        (!chunk.is_empty()).then_some(chunk)
    })
}

fn role() -> impl Strategy<Value = Role> {
    prop_oneof![Just(Role::Server), Just(Role::Client)]
}

fn sizes() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(prop_oneof![1usize..20, 1usize..600], 1..8)
}

/// The outcome of `wire`, asserted to be the same at these cuts.
fn outcome(role: Role, wire: &[u8], sizes: &[usize]) -> Result<Outcome, TestCaseError> {
    let whole = feed(role, LIMIT, [wire]);
    prop_assert_eq!(&feed(role, LIMIT, cut(wire, sizes)), &whole);
    prop_assert_eq!(&feed(role, LIMIT, wire.chunks(1)), &whole);
    prop_assert!(!whole.0.iter().any(|seen| matches!(seen, Seen::BrokenText(_))));
    Ok(whole)
}

proptest! {
    #[test]
    fn what_was_sent_arrives_however_it_is_cut(
        role in role(),
        acts in prop::collection::vec(act(), 0..12),
        keys in prop::collection::vec(any::<[u8; 4]>(), 1..5),
        sizes in sizes(),
    ) {
        let (wire, seen) = play(role, &acts, &mut keys.into_iter().cycle());
        prop_assert_eq!(outcome(role, &wire, &sizes)?, (seen, Ok(())));
    }

    #[test]
    fn spoilt_frames_come_to_the_same_however_they_are_cut(
        role in role(),
        acts in prop::collection::vec(act(), 1..8),
        key in any::<[u8; 4]>(),
        spoil in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        sizes in sizes(),
    ) {
        let (mut wire, _) = play(role, &acts, &mut std::iter::repeat(key));
        for (at, byte) in spoil {
            let at = at.index(wire.len());
            wire[at] = byte;
        }
        let _same = outcome(role, &wire, &sizes)?;
    }

    #[test]
    fn garbage_comes_to_the_same_however_it_is_cut(
        role in role(),
        garbage in prop::collection::vec(any::<u8>(), 0..600),
        sizes in sizes(),
    ) {
        let _same = outcome(role, &garbage, &sizes)?;
    }

    /// Headers that are plausible, with any length, before garbage: gets deeper than garbage alone.
    #[test]
    fn plausible_headers_before_garbage_come_to_the_same_however_they_are_cut(
        role in role(),
        frames in prop::collection::vec(
            (
                prop::sample::select(vec![0u8, 1, 2, 8, 9, 10]),
                any::<bool>(),
                prop_oneof![0usize..10, 120usize..130, 0usize..5000, any::<usize>()],
                prop::collection::vec(any::<u8>(), 0..200),
            ),
            0..8,
        ),
        sizes in sizes(),
    ) {
        let mut wire = Vec::new();
        for (opcode, fin, len, garbage) in frames {
            let mut header = [0; MAX_HEADER];
            let opcode = Opcode::try_from(opcode).expect("selected from the valid ones");
            // Keyed with zeros half of the time, so that text and close codes have a chance.
            let key = (role == Role::Server).then_some(if fin { [0; 4] } else { [9; 4] });
            let used = encode_header(&mut header, opcode, fin, len, key);
            wire.extend_from_slice(&header[..used]);
            wire.extend(garbage.iter().map(|b| b % 0x80).take(len));
        }
        let _same = outcome(role, &wire, &sizes)?;
    }

    #[test]
    fn close_payloads_arrive(code in any::<u16>(), reason in "\\PC{0,150}") {
        let mut payload = Vec::new();
        close::encode_payload(&mut payload, Some(code), &reason);
        let mut wire = Vec::new();
        encode_frame(&mut wire, Opcode::Close, true, &payload, None);
        let (seen, result) = outcome(Role::Client, &wire, &[3])?;
        if close::is_valid_on_wire(code) {
            let [Seen::Close(Some(got), kept)] = &seen[..] else {
                return Err(TestCaseError::fail(format!("{seen:?}")));
            };
            prop_assert_eq!(*got, code);
            prop_assert!(reason.starts_with(kept.as_str()));
            prop_assert!(kept.len() <= 123 && (kept.len() == reason.len() || kept.len() > 119));
            prop_assert_eq!(close::check(code, &reason).is_ok(), *kept == reason);
        } else {
            prop_assert_eq!(result.map_err(|violation| violation.code), Err(1002));
            prop_assert!(close::check(code, "").is_err());
        }
    }
}

#[test]
fn messages_of_every_size_arrive() {
    const MOST: usize = 16 << 20;
    for role in [Role::Server, Role::Client] {
        for len in [0, 1, 125, 126, 127, 65535, 65536, MOST] {
            let payload: Vec<u8> = (0..len).map(|i| ((i * 31) >> 3) as u8 & 0x7f).collect();
            let text = String::from_utf8(payload.clone()).unwrap();
            let key = (role == Role::Server).then_some([9, 8, 7, 6]);
            let mut wire = Vec::new();
            encode_frame(&mut wire, Opcode::Binary, true, &payload, key);
            encode_frame(&mut wire, Opcode::Text, true, &payload, key);
            let expected = (vec![Seen::Binary(payload), Seen::Text(text)], Ok(()));
            assert!(feed(role, MOST, [&wire[..]]) == expected, "{len} whole");
            assert!(feed(role, MOST, wire.chunks(4093)) == expected, "{len} cut");
            if len <= 65536 {
                assert!(feed(role, MOST, wire.chunks(1)) == expected, "{len} by byte");
            }
        }
    }
}
