//! The subjects of topics: levels between dots instead of slashes, and what NATS gives a meaning of its own, or refuses, in
//! another form.
//!
//! | topic | subject, behind the prefix |
//! |---|---|
//! | `room/7` | `room.7` |
//! | `a//b` | `a.=.b`: a level without characters |
//! | `v1.2`, `café` | `v1=2E2`, `caf=C3=A9`: `.`, `*`, `>`, `=`, blanks and what is not ASCII as `=` and two hexadecimal digits |
//! | longer than [`LONG`] | `=long`, which all of them share |
//!
//! `+` is `*`. `#` is `>` for the levels below, and the subject of the level above for that one. What a subject has beyond the
//! filter is sorted out by the index of topics.

use std::fmt::Write;

/// A longer subject is [`SHARED`]: nats-server takes lines of 4,096 bytes (max_control_line), inbox and sizes included.
const LONG: usize = 2048;

/// For topics whose subjects would be too long. No level looks like that: behind `=` stand digits, or nothing.
const SHARED: &str = "=long";

fn level(subject: &mut String, level: &str) {
    if level.is_empty() {
        subject.push('=');
    }
    for byte in level.bytes() {
        if byte.is_ascii_graphic() && !b".*>=".contains(&byte) {
            subject.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(subject, "={byte:02X}");
        }
    }
}

/// The subject of a topic. `root`: what stands before it.
pub(super) fn of_topic(root: &str, topic: &str) -> String {
    let mut subject = root.to_owned();
    for name in topic.split('/') {
        subject.push('.');
        level(&mut subject, name);
    }
    if subject.len() > LONG { format!("{root}.{SHARED}") } else { subject }
}

/// The subjects of the topics that a filter means.
pub(super) fn of_filter(root: &str, filter: &str) -> Vec<String> {
    if !filter.contains(['+', '#']) {
        return vec![of_topic(root, filter)];
    }
    let mut subjects = Vec::with_capacity(3);
    let mut subject = root.to_owned();
    for name in filter.split('/') {
        match name {
            "#" if subject == root => {}
            // The level above too (MQTT 3.1.1 section 4.7.1.2).
            "#" => subjects.push(subject.clone()),
            _ => {}
        }
        subject.push('.');
        match name {
            "+" => subject.push('*'),
            "#" => subject.push('>'),
            name => level(&mut subject, name),
        }
    }
    // A topic that it means may be too long, and is if this is.
    if subject != format!("{root}.>") {
        subjects.push(format!("{root}.{SHARED}"));
    }
    subjects.push(subject);
    subjects.retain(|subject| subject.len() <= LONG);
    subjects
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topics::matches;

    /// Whether NATS gives a subscription to `wanted` what is published to `subject`.
    fn gets(wanted: &str, subject: &str) -> bool {
        let mut tokens = subject.split('.');
        for wanted in wanted.split('.') {
            match (wanted, tokens.next()) {
                (">", Some(_)) => return true,
                ("*", Some(_)) => {}
                (wanted, Some(token)) if wanted == token => {}
                _ => return false,
            }
        }
        tokens.next().is_none()
    }

    #[test]
    fn topics_have_subjects_of_their_own() {
        for (topic, subject) in [
            ("room/7", "p.t.room.7"),
            ("/", "p.t.=.="),
            ("a//b", "p.t.a.=.b"),
            ("v1.2", "p.t.v1=2E2"),
            ("=", "p.t.=3D"),
            ("a b*>", "p.t.a=20b=2A=3E"),
            ("caf\u{e9}", "p.t.caf=C3=A9"),
            ("$SYS", "p.t.$SYS"),
        ] {
            assert_eq!(of_topic("p.t", topic), subject);
            assert_eq!(of_filter("p.t", topic), [subject]);
        }
        assert_eq!(of_topic("p.t", &"\u{e9}".repeat(400)), "p.t.=long");
    }

    #[test]
    fn a_filter_has_the_subjects_of_what_it_means() {
        let long = format!("a/{}", "\u{e9}".repeat(400));
        let topics = ["a", "a/", "a/b", "a/b/c", "b", "/", "/a", "a.b", "a/b.c", "=", &long, "a/*", "$SYS", "$SYS/a"];
        let filters = ["#", "+", "+/+", "a/#", "a/+", "+/b", "/+", "a/+/c", "a/b/#", "$SYS/#", "a", "/#", &long, "+/#"];
        for filter in filters {
            let subjects = of_filter("p.t", filter);
            for topic in topics {
                let subject = of_topic("p.t", topic);
                let given = subjects.iter().any(|wanted| gets(wanted, &subject));
                assert!(given || !matches(filter, topic), "{filter} {subjects:?} {topic} {subject}");
                // And not much else: all that a wildcard at the beginning does not hide, and what is too long.
                let hidden = topic.starts_with('$') && filter.starts_with(['+', '#']);
                assert!(!given || matches(filter, topic) || hidden || topic == long, "{filter} {topic}");
            }
        }
    }
}
