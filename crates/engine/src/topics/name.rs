//! Names of topics and filters for them, as in MQTT 3.1.1 section 4.7: levels between slashes, `+` for one level, `#` at the
//! end for the rest.

use std::fmt;

/// What is wrong with a name or a filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameError {
    /// It has no character.
    Empty,
    /// Longer, in bytes of UTF-8, than `max_topic_length`.
    TooLong(usize),
    /// Control characters: they have no place in a line of an event stream, and MQTT leaves them to be refused.
    Control,
    /// `+` or `#` in what has to be a name.
    Wildcard,
    /// `+` that is not a whole level, or `#` that is not the whole last one.
    Misplaced,
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("a topic has at least one character"),
            Self::TooLong(limit) => write!(f, "the limit is max_topic_length={limit} bytes"),
            Self::Control => f.write_str("a topic has no control characters"),
            Self::Wildcard => f.write_str("+ and # are wildcards, and this has to be the name of one topic"),
            Self::Misplaced => f.write_str("+ stands for a whole level, and # for the last ones"),
        }
    }
}

/// Whether a filter stands for more than the topic of its name.
pub(crate) fn is_pattern(filter: &str) -> bool {
    filter.contains(['+', '#'])
}

fn check(text: &str, limit: usize) -> Result<(), NameError> {
    if text.is_empty() {
        Err(NameError::Empty)
    } else if text.len() > limit {
        Err(NameError::TooLong(limit))
    } else if text.contains(char::is_control) {
        Err(NameError::Control)
    } else {
        Ok(())
    }
}

/// Checks what is to be the name of one topic. `limit`: `max_topic_length`.
///
/// # Errors
/// When it will not do.
pub fn check_name(name: &str, limit: usize) -> Result<(), NameError> {
    check(name, limit)?;
    if is_pattern(name) { Err(NameError::Wildcard) } else { Ok(()) }
}

/// The same for a name or a pattern.
///
/// # Errors
/// When it will not do.
pub fn check_filter(filter: &str, limit: usize) -> Result<(), NameError> {
    check(filter, limit)?;
    let mut levels = filter.split('/').peekable();
    while let Some(level) = levels.next() {
        let fits = match level {
            "+" => true,
            "#" => levels.peek().is_none(),
            _ => !is_pattern(level),
        };
        if !fits {
            return Err(NameError::Misplaced);
        }
    }
    Ok(())
}

/// Whether a filter begins with a wildcard and so does not mean topics that begin with a dollar sign (section 4.7.2).
pub(crate) fn is_hidden(topic: &str) -> bool {
    topic.starts_with('$')
}

/// Whether `filter` means `topic`. Both are well formed.
#[must_use]
pub fn matches(filter: &str, topic: &str) -> bool {
    if is_hidden(topic) && filter.starts_with(['+', '#']) {
        return false;
    }
    let mut levels = topic.split('/');
    for wanted in filter.split('/') {
        match (wanted, levels.next()) {
            // The parent level too: "sport/#" means "sport" (section 4.7.1.2).
            ("#", _) => return true,
            ("+", Some(_)) => {}
            (wanted, Some(level)) if wanted == level => {}
            _ => return false,
        }
    }
    levels.next().is_none()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Of the examples of section 4.7, and of what they leave open: filter, topics that it means, topics that it does not.
    pub(crate) const TABLE: &[(&str, &[&str], &[&str])] = &[
        ("a", &["a"], &["a/b", "/a", "a/", "b"]),
        (
            "sport/tennis/player1/#",
            &["sport/tennis/player1", "sport/tennis/player1/ranking", "sport/tennis/player1/a/b"],
            &["sport/tennis"],
        ),
        ("sport/#", &["sport", "sport/", "sport/a"], &["sports", "a/sport"]),
        ("#", &["a", "/", "a/b/c"], &["$SYS", "$SYS/a"]),
        (
            "sport/tennis/+",
            &["sport/tennis/player1", "sport/tennis/"],
            &["sport/tennis", "sport/tennis/player1/ranking"],
        ),
        ("+", &["finance"], &["/finance", "$SYS"]),
        ("+/+", &["/finance", "a/b"], &["a", "a/b/c", "$SYS/a"]),
        ("/+", &["/finance"], &["finance"]),
        ("+/a/#", &["x/a", "x/a/b"], &["a", "x/b/a", "$SYS/a"]),
        ("$SYS/#", &["$SYS", "$SYS/a"], &["SYS"]),
        ("$SYS/+", &["$SYS/a"], &["$SYS"]),
    ];

    #[test]
    fn filters_mean_what_mqtt_says() {
        for (filter, yes, no) in TABLE {
            assert_eq!(check_filter(filter, 256), Ok(()), "{filter}");
            for topic in *yes {
                assert!(matches(filter, topic), "{filter} {topic}");
            }
            for topic in *no {
                assert!(!matches(filter, topic), "{filter} {topic}");
            }
        }
    }

    #[test]
    fn what_will_not_do_is_refused() {
        assert_eq!(check_name("", 4), Err(NameError::Empty));
        assert_eq!(check_name("abcd", 4), Ok(()));
        assert_eq!(check_name("\u{e9}\u{e9}\u{e9}", 4), Err(NameError::TooLong(4)));
        assert_eq!(check_name("a\nb", 4), Err(NameError::Control));
        assert_eq!(check_name("a\0", 4), Err(NameError::Control));
        assert_eq!(check_name("a/+", 4), Err(NameError::Wildcard));
        for filter in ["a+", "a/+b", "#/a", "a#", "a/#/b", "##"] {
            assert_eq!(check_filter(filter, 256), Err(NameError::Misplaced), "{filter}");
        }
    }
}
