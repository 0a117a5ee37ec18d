//! Whether other nodes keep what this one keeps. Each says a digest of its rules with every beat; one that has another is told to the
//! program once.
//!
//! A difference counts when a later text still says it: where a program calls `keep` while it runs, its nodes do so one after the
//! other.

use crate::endpoint::COMPLAIN_EVERY;
use indexmap::IndexMap;
use std::time::{Duration, Instant};

/// Differences that are remembered; then the oldest is forgotten.
const REMEMBERED: usize = 4096;

#[derive(Debug)]
struct Seen {
    /// Since when, and what this node's own digest was then.
    since: Instant,
    mine: u64,
    told: bool,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Strangers {
    /// Two texts that are further apart are not those of a moment in which all change.
    patience: Duration,
    /// By node and its digest.
    seen: IndexMap<(u64, u64), Seen>,
    /// The log takes no more than one line in a while: the others have their turn later.
    told: Option<Instant>,
}

impl Strangers {
    /// `beat`: how often a node says what it keeps.
    pub(crate) fn new(beat: Duration) -> Self {
        // A beat may be late, and the next one in time.
        Self { patience: beat / 2, seen: IndexMap::new(), told: None }
    }

    /// A node has said what it keeps: whether that is to be told now.
    pub(crate) fn hear(&mut self, node: u64, theirs: u64, mine: u64, now: Instant) -> bool {
        if theirs == mine {
            return false;
        }
        if self.seen.len() >= REMEMBERED && !self.seen.contains_key(&(node, theirs)) {
            self.seen.shift_remove_index(0);
        }
        let seen = self.seen.entry((node, theirs)).or_insert(Seen { since: now, mine, told: false });
        if seen.mine != mine {
            (seen.mine, seen.since) = (mine, now);
        }
        let quiet = self.told.is_none_or(|told| now.duration_since(told) >= COMPLAIN_EVERY);
        if seen.told || !quiet || now.duration_since(seen.since) < self.patience {
            return false;
        }
        seen.told = true;
        self.told = Some(now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topics::{Keep, Rules};

    const BEAT: Duration = Duration::from_millis(2500);

    #[test]
    fn a_node_is_told_once_for_each_of_its_digests() {
        let (mut strangers, mut now) = (Strangers::new(BEAT), Instant::now());
        let mut beats = |theirs, mine| {
            let mut told: Vec<u32> = Vec::new();
            for beat in 0..6 {
                now += BEAT;
                if strangers.hear(1, theirs, mine, now) {
                    told.push(beat);
                }
            }
            told
        };
        assert_eq!(beats(7, 7), [0; 0]);
        // Not at once.
        assert_eq!(beats(8, 7), [1]);
        assert_eq!(beats(8, 7), [0; 0]);
        assert_eq!(beats(9, 7), [1]);
        assert_eq!(beats(8, 7), [0; 0]);
        // However this node changes.
        assert_eq!(beats(9, 6), [0; 0]);
        assert_eq!(beats(7, 6), [1]);
    }

    #[test]
    fn several_have_their_turns() {
        let (mut strangers, mut now) = (Strangers::new(BEAT), Instant::now());
        let mut told = Vec::new();
        for beat in 0..20 {
            now += BEAT;
            told.extend((1..=3).filter(|node| strangers.hear(*node, 8, 7, now)).map(|node| (beat, node)));
        }
        assert_eq!(told, [(1, 1), (5, 2), (9, 3)]);
    }

    #[test]
    fn nodes_that_change_one_after_the_other_are_not_told() {
        let (mut strangers, now) = (Strangers::new(BEAT), Instant::now());
        let at = |beats: f64| now + BEAT.mul_f64(beats);
        // Node 1 is first, then this one, then node 2.
        assert!(!strangers.hear(1, 8, 7, at(1.0)));
        assert!(!strangers.hear(2, 7, 8, at(1.1)));
        assert!(!strangers.hear(1, 8, 8, at(2.0)));
        assert!(!strangers.hear(2, 8, 8, at(2.1)));
        // A difference that was there before this node changed is another one now.
        assert!(!strangers.hear(3, 6, 8, at(3.0)));
        assert!(!strangers.hear(3, 6, 9, at(4.0)));
        assert!(strangers.hear(3, 6, 9, at(5.0)));
    }

    #[test]
    fn memory_is_bounded() {
        let (mut strangers, now) = (Strangers::new(BEAT), Instant::now());
        (0..3 * REMEMBERED as u64).for_each(|node| assert!(!strangers.hear(node, 8, 7, now)));
        assert_eq!(strangers.seen.len(), REMEMBERED);
    }

    #[test]
    fn digests_are_those_of_the_rules() {
        let keep = |messages| Some(Keep { messages, age: None, bytes: 1 << 20 });
        let rules = |list: &[(&str, Option<Keep>)]| {
            let mut rules = Rules::default();
            list.iter().for_each(|(filter, keep)| rules.set(filter, *keep));
            rules.digest()
        };
        // In every process, on every platform, with every version: never another one.
        assert_eq!(rules(&[]), 0xe3b0_c442_98fc_1c14);
        assert_eq!(rules(&[("a/+", keep(100)), ("b", keep(7))]), 0x2043_f9ea_89c8_50c3);
        let one = rules(&[("a", keep(100)), ("b", keep(7))]);
        assert_eq!(one, rules(&[("b", keep(7)), ("c", keep(1)), ("a", keep(5)), ("a", keep(100)), ("c", None)]));
        let old = Some(Keep { messages: 100, age: Some(Duration::from_secs(60)), bytes: 1 << 20 });
        let small = Some(Keep { messages: 100, age: None, bytes: 1 << 10 });
        for other in [keep(99), old, small] {
            assert_ne!(one, rules(&[("a", other), ("b", keep(7))]));
        }
        assert_ne!(rules(&[("ab", keep(7))]), rules(&[("a", keep(7))]));
    }
}
