//! What topics keep of their last messages, and what a subscriber that comes back gets of it.
//!
//! All is bounded: each topic by its own [`Keep`], all together by `max_history_bytes` and `max_topics`, where the topic that
//! was published to longest ago is forgotten first. Whatever is thrown away leaves the number of its newest message, so that
//! nobody who missed it is told that nothing was missed.

use super::message::Message;
use super::name::{is_pattern, matches};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How much a topic keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    /// At most so many messages.
    pub messages: usize,
    /// None older than this; `None`: of any age.
    pub age: Option<Duration>,
    /// So many bytes at most, with what is kept of each beside its payload.
    pub bytes: usize,
}

/// What topics keep, by filter: the newest rule that means a topic counts.
#[derive(Clone, Debug, Default)]
pub struct Rules(Vec<(Arc<str>, Keep)>);

impl Rules {
    /// Adds a rule, or replaces the one of the same filter. `None`: what it means is kept no more.
    pub fn set(&mut self, filter: &str, keep: Option<Keep>) {
        self.0.retain(|(other, _)| &**other != filter);
        self.0.extend(keep.map(|keep| (Arc::from(filter), keep)));
    }

    pub(crate) fn of(&self, topic: &str) -> Option<Keep> {
        self.0.iter().rev().find(|(filter, _)| matches(filter, topic)).map(|(_, keep)| *keep)
    }

    /// A number that is the same for the same rules, in any process and on any platform, in whatever order they were given.
    pub(crate) fn digest(&self) -> u64 {
        let mut sorted: Vec<_> = self.0.iter().collect();
        sorted.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        let mut hash = Sha256::new();
        for (filter, Keep { messages, age, bytes }) in sorted {
            for number in [filter.len(), *messages, *bytes] {
                hash.update((number as u64).to_le_bytes());
            }
            hash.update(age.map_or(u128::MAX, |age| age.as_nanos()).to_le_bytes());
            hash.update(filter.as_bytes());
        }
        hash.finalize().iter().take(8).fold(0, |digest, byte| digest << 8 | u64::from(*byte))
    }
}

/// What is kept of one topic.
#[derive(Debug)]
struct Record {
    keep: Keep,
    messages: VecDeque<(Instant, Arc<Message>)>,
    bytes: usize,
    /// The newest message that is not kept any more.
    lost: u64,
    /// The newest one.
    newest: u64,
}

impl Record {
    /// Throws away what is over its limits; returns how many bytes that were.
    fn trim(&mut self, now: Instant) -> usize {
        let before = self.bytes;
        while let Some((then, oldest)) = self.messages.front() {
            let old = self.keep.age.is_some_and(|age| now.saturating_duration_since(*then) > age);
            if !old && self.messages.len() <= self.keep.messages && self.bytes <= self.keep.bytes {
                break;
            }
            self.bytes -= oldest.size();
            self.lost = oldest.position.seq;
            self.messages.pop_front();
        }
        before - self.bytes
    }
}

/// What somebody missed.
#[derive(Debug)]
pub(crate) struct Missed {
    /// In order.
    pub(crate) messages: Vec<Arc<Message>>,
    /// There was nothing else.
    pub(crate) complete: bool,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct History {
    rules: Rules,
    records: HashMap<Arc<str>, Record>,
    /// Topics by their newest message.
    order: BTreeMap<u64, Arc<str>>,
    bytes: usize,
    /// Up to here there may have been messages of topics that have no record.
    floor: u64,
    max_topics: usize,
    max_bytes: usize,
}

impl History {
    pub(crate) fn new(max_topics: usize, max_bytes: usize) -> Self {
        let (rules, records, order) = (Rules::default(), HashMap::new(), BTreeMap::new());
        Self { rules, records, order, bytes: 0, floor: 0, max_topics, max_bytes }
    }

    pub(crate) fn rules(&self) -> &Rules {
        &self.rules
    }

    /// Whether messages of a topic are kept.
    pub(crate) fn keeps(&self, topic: &str) -> bool {
        self.rules.of(topic).is_some()
    }

    /// Other rules from here on. `newest`: the last message so far, of whatever topic.
    pub(crate) fn set_rules(&mut self, rules: Rules, newest: u64) {
        self.rules = rules;
        // What a topic that was not kept has had is gone.
        self.floor = newest;
        let topics: Vec<_> = self.records.keys().cloned().collect();
        for topic in topics {
            match (self.rules.of(&topic), self.records.get_mut(&topic)) {
                (Some(keep), Some(record)) => {
                    record.keep = keep;
                    self.bytes -= record.trim(Instant::now());
                }
                _ => self.forget(&topic),
            }
        }
    }

    /// Forgets all messages; up to `floor` there may have been some.
    pub(crate) fn clear(&mut self, floor: u64) {
        self.records.clear();
        self.order.clear();
        (self.bytes, self.floor) = (0, floor);
    }

    fn forget(&mut self, topic: &str) {
        let Some(record) = self.records.remove(topic) else { return };
        self.order.remove(&record.newest);
        self.bytes -= record.bytes;
        self.floor = self.floor.max(record.newest);
    }

    /// Keeps a message, the newest of all, if its topic is to be kept.
    pub(crate) fn note(&mut self, message: &Arc<Message>, now: Instant) {
        let (topic, seq) = (&message.topic, message.position.seq);
        if let Some(record) = self.records.get(topic) {
            self.order.remove(&record.newest);
        } else {
            let Some(keep) = self.rules.of(topic) else { return };
            let record = Record { keep, messages: VecDeque::new(), bytes: 0, lost: self.floor, newest: seq };
            self.records.insert(Arc::clone(topic), record);
        }
        let Some(record) = self.records.get_mut(topic) else { return };
        record.newest = seq;
        record.bytes += message.size();
        record.messages.push_back((now, Arc::clone(message)));
        self.bytes += message.size();
        self.bytes -= record.trim(now);
        self.order.insert(seq, Arc::clone(topic));
        while self.records.len() > self.max_topics || self.bytes > self.max_bytes {
            let Some((_, oldest)) = self.order.first_key_value() else { break };
            let oldest = Arc::clone(oldest);
            self.forget(&oldest);
        }
    }

    /// What came after message `after` to the topics that `filters` mean. `newest`: the last message of whatever topic.
    pub(crate) fn since(&mut self, filters: &[&str], after: u64, newest: u64, now: Instant) -> Missed {
        let mut missed = Missed { messages: Vec::new(), complete: true };
        for filter in filters {
            let topics: Vec<_> = if is_pattern(filter) {
                missed.complete &= after >= self.floor;
                self.records.keys().filter(|topic| matches(filter, topic)).cloned().collect()
            } else if let Some((topic, _)) = self.records.get_key_value(*filter) {
                vec![Arc::clone(topic)]
            } else {
                let unknown = if self.rules.of(filter).is_some() { self.floor } else { newest };
                missed.complete &= after >= unknown;
                continue;
            };
            for topic in topics {
                let Some(record) = self.records.get_mut(&topic) else { continue };
                self.bytes -= record.trim(now);
                missed.complete &= after >= record.lost;
                let first = record.messages.partition_point(|(_, message)| message.position.seq <= after);
                missed.messages.extend(record.messages.range(first..).map(|(_, message)| Arc::clone(message)));
            }
        }
        if filters.len() > 1 || filters.iter().any(|filter| is_pattern(filter)) {
            missed.messages.sort_unstable_by_key(|message| message.position.seq);
            missed.messages.dedup_by_key(|message| message.position.seq);
        }
        missed
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::{Position, frame};
    use super::*;
    use crate::wire::Opcode;

    const KEEP: Keep = Keep { messages: 3, age: None, bytes: 1 << 20 };

    struct Kept {
        history: History,
        seq: u64,
        now: Instant,
    }

    impl Kept {
        fn new(rules: &[(&str, Keep)], max_topics: usize, max_bytes: usize) -> Self {
            let mut history = History::new(max_topics, max_bytes);
            let mut all = Rules::default();
            rules.iter().for_each(|(filter, keep)| all.set(filter, Some(*keep)));
            history.set_rules(all, 0);
            Self { history, seq: 0, now: Instant::now() }
        }

        fn publish(&mut self, topic: &str) -> u64 {
            self.seq += 1;
            let position = Position { epoch: 1, seq: self.seq };
            let message = Message::new(topic, position, Opcode::Text, frame(Opcode::Text, b"0123456789"));
            self.history.note(&Arc::new(message), self.now);
            self.seq
        }

        fn since(&mut self, filters: &[&str], after: u64) -> (Vec<u64>, bool) {
            let missed = self.history.since(filters, after, self.seq, self.now);
            (missed.messages.iter().map(|message| message.position.seq).collect(), missed.complete)
        }

        fn check(&self) {
            let bytes: usize = self.history.records.values().map(|record| record.bytes).sum();
            assert_eq!(self.history.bytes, bytes);
            assert_eq!(self.history.order.len(), self.history.records.len());
        }
    }

    #[test]
    fn the_last_messages_are_kept_and_what_is_gone_is_known() {
        let mut kept = Kept::new(&[("a", KEEP)], 10, 1 << 20);
        assert_eq!(kept.since(&["a"], 0), (vec![], true));
        for _ in 0..5 {
            kept.publish("a");
        }
        assert_eq!(kept.since(&["a"], 5), (vec![], true));
        assert_eq!(kept.since(&["a"], 3), (vec![4, 5], true));
        assert_eq!(kept.since(&["a"], 2), (vec![3, 4, 5], true));
        assert_eq!(kept.since(&["a"], 1), (vec![3, 4, 5], false));
        kept.check();
    }

    #[test]
    fn a_topic_that_is_not_kept_has_missed_whatever_there_was() {
        let mut kept = Kept::new(&[("a", KEEP)], 10, 1 << 20);
        kept.publish("b");
        assert_eq!(kept.since(&["b"], 1), (vec![], true));
        assert_eq!(kept.since(&["b"], 0), (vec![], false));
        assert_eq!(kept.since(&["a"], 0), (vec![], true));
        assert_eq!(kept.since(&["a", "b"], 0), (vec![], false));
    }

    #[test]
    fn messages_grow_old() {
        let mut kept = Kept::new(&[("a", Keep { age: Some(Duration::from_secs(10)), ..KEEP })], 10, 1 << 20);
        kept.publish("a");
        kept.now += Duration::from_secs(6);
        kept.publish("a");
        assert_eq!(kept.since(&["a"], 0), (vec![1, 2], true));
        kept.now += Duration::from_secs(5);
        assert_eq!(kept.since(&["a"], 0), (vec![2], false));
        assert_eq!(kept.since(&["a"], 1), (vec![2], true));
        kept.check();
    }

    #[test]
    fn bytes_are_bounded_for_a_topic_and_for_all() {
        let one =
            Message::new("a", Position { epoch: 1, seq: 1 }, Opcode::Text, frame(Opcode::Text, b"0123456789")).size();
        let mut kept = Kept::new(&[("#", Keep { messages: 100, bytes: 2 * one, ..KEEP })], 100, 5 * one);
        for topic in ["a", "a", "a", "b", "b", "c"] {
            kept.publish(topic);
        }
        assert_eq!(kept.since(&["a"], 0), (vec![2, 3], false));
        assert_eq!(kept.since(&["b"], 3), (vec![4, 5], true));
        // The sixth message kept is one too many: the topic that was published to longest ago goes.
        kept.publish("c");
        kept.check();
        assert_eq!(kept.since(&["a"], 2), (vec![], false));
        assert_eq!(kept.since(&["a"], 3), (vec![], true));
        assert_eq!(kept.since(&["b", "c"], 4), (vec![5, 6, 7], true));
        // One that is forgotten and begins anew remembers that.
        kept.publish("a");
        assert_eq!(kept.since(&["a"], 2), (vec![8], false));
        assert_eq!(kept.since(&["a"], 3), (vec![8], true));
    }

    #[test]
    fn topics_are_bounded() {
        let mut kept = Kept::new(&[("+", KEEP)], 2, 1 << 20);
        for topic in ["a", "b", "a", "c"] {
            kept.publish(topic);
        }
        kept.check();
        assert_eq!(kept.since(&["b"], 1), (vec![], false));
        assert_eq!(kept.since(&["a"], 0), (vec![1, 3], true));
        assert_eq!(kept.since(&["+"], 1), (vec![3, 4], false));
        assert_eq!(kept.since(&["+"], 2), (vec![3, 4], true));
    }

    #[test]
    fn several_filters_give_one_sequence() {
        let mut kept = Kept::new(&[("#", KEEP)], 10, 1 << 20);
        for topic in ["a/1", "b", "a/2", "b", "a/1"] {
            kept.publish(topic);
        }
        assert_eq!(kept.since(&["a/+", "b", "a/1"], 1), (vec![2, 3, 4, 5], true));
    }

    #[test]
    fn rules_that_change_forget() {
        let mut kept = Kept::new(&[("#", KEEP)], 10, 1 << 20);
        kept.publish("a");
        kept.publish("b");
        let mut rules = Rules::default();
        rules.set("a", Some(Keep { messages: 1, ..KEEP }));
        kept.history.set_rules(rules.clone(), kept.seq);
        kept.check();
        assert_eq!(kept.since(&["a"], 0), (vec![1], true));
        kept.publish("b");
        assert_eq!(kept.since(&["b"], 2), (vec![], false));
        rules.set("b", Some(KEEP));
        kept.history.set_rules(rules, kept.seq);
        kept.publish("b");
        assert_eq!(kept.since(&["b"], 2), (vec![4], false));
        assert_eq!(kept.since(&["b"], 3), (vec![4], true));
    }
}
