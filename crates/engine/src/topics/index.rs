//! Who has subscribed to what: by the name of the topic, and a tree of levels for patterns.
//!
//! A topic without patterns around it is one look-up. With them the tree is walked, at most twice as many branches for each
//! level as there are patterns with a `+` there: what it costs depends on the patterns that the program has made, never on what
//! a client publishes.

use super::Who;
use super::name::{is_hidden, is_pattern};
use indexmap::IndexMap;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// Walked for each message: densely packed.
type Set<V> = IndexMap<Who, V>;

#[derive(Debug)]
struct Node<V> {
    /// Filters that end here.
    here: Set<V>,
    /// Those that end with `#` behind it.
    rest: Set<V>,
    /// What follows `+`.
    any: Option<Box<Self>>,
    /// What follows a level of this name.
    levels: HashMap<Box<str>, Self>,
}

impl<V> Default for Node<V> {
    fn default() -> Self {
        Self { here: Set::new(), rest: Set::new(), any: None, levels: HashMap::new() }
    }
}

impl<V> Node<V> {
    fn is_empty(&self) -> bool {
        self.here.is_empty() && self.rest.is_empty() && self.any.is_none() && self.levels.is_empty()
    }

    fn insert(&mut self, levels: &mut std::str::Split<'_, char>) -> &mut Set<V> {
        match levels.next() {
            None => &mut self.here,
            Some("#") => &mut self.rest,
            Some("+") => self.any.get_or_insert_default().insert(levels),
            Some(level) => self.levels.entry(level.into()).or_default().insert(levels),
        }
    }

    fn get(&self, levels: &mut std::str::Split<'_, char>) -> Option<&Set<V>> {
        match levels.next() {
            None => Some(&self.here),
            Some("#") => Some(&self.rest),
            Some("+") => self.any.as_ref()?.get(levels),
            Some(level) => self.levels.get(level)?.get(levels),
        }
    }

    /// Removes, and cuts branches that have become empty.
    fn remove(&mut self, levels: &mut std::str::Split<'_, char>, who: Who) -> Option<(V, bool)> {
        fn out<V>(set: &mut Set<V>, who: Who) -> Option<(V, bool)> {
            let value = set.swap_remove(&who)?;
            Some((value, set.is_empty()))
        }
        match levels.next() {
            None => out(&mut self.here, who),
            Some("#") => out(&mut self.rest, who),
            Some("+") => {
                let node = self.any.as_mut()?;
                let removed = node.remove(levels, who);
                if node.is_empty() {
                    self.any = None;
                }
                removed
            }
            Some(level) => {
                let node = self.levels.get_mut(level)?;
                let removed = node.remove(levels, who);
                if node.is_empty() {
                    self.levels.remove(level);
                }
                removed
            }
        }
    }

    /// The sets of the filters that mean a topic. `wild`: wildcards count at this level.
    fn find<'a>(&'a self, mut levels: std::str::Split<'_, char>, wild: bool, found: &mut Vec<&'a Set<V>>) {
        if wild && !self.rest.is_empty() {
            found.push(&self.rest);
        }
        match levels.next() {
            None if !self.here.is_empty() => found.push(&self.here),
            None => {}
            Some(level) => {
                if let Some(node) = self.levels.get(level) {
                    node.find(levels.clone(), true, found);
                }
                if let Some(node) = self.any.as_ref().filter(|_| wild) {
                    node.find(levels, true, found);
                }
            }
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Index<V> {
    exact: HashMap<Arc<str>, Set<V>>,
    patterns: Node<V>,
}

impl<V> Default for Index<V> {
    fn default() -> Self {
        Self { exact: HashMap::new(), patterns: Node::default() }
    }
}

impl<V> Index<V> {
    /// Adds a subscriber, or replaces its value; true: the first of this filter.
    pub(crate) fn insert(&mut self, filter: &Arc<str>, who: Who, value: V) -> bool {
        let set = if is_pattern(filter) {
            self.patterns.insert(&mut filter.split('/'))
        } else {
            self.exact.entry(Arc::clone(filter)).or_default()
        };
        set.insert(who, value);
        set.len() == 1
    }

    /// Removes a subscriber; returns its value, and whether it was the last of this filter.
    pub(crate) fn remove(&mut self, filter: &str, who: Who) -> Option<(V, bool)> {
        if is_pattern(filter) {
            return self.patterns.remove(&mut filter.split('/'), who);
        }
        let set = self.exact.get_mut(filter)?;
        let value = set.swap_remove(&who)?;
        let last = set.is_empty();
        if last {
            self.exact.remove(filter);
        }
        Some((value, last))
    }

    /// The value of one subscriber of a filter.
    pub(crate) fn get(&self, filter: &str, who: Who) -> Option<&V> {
        if is_pattern(filter) {
            return self.patterns.get(&mut filter.split('/'))?.get(&who);
        }
        self.exact.get(filter)?.get(&who)
    }

    /// The sets of the filters that mean a topic, none of them empty.
    fn sets(&self, topic: &str) -> Vec<&Set<V>> {
        let mut found = Vec::new();
        if !self.patterns.is_empty() {
            self.patterns.find(topic.split('/'), !is_hidden(topic), &mut found);
        }
        found.extend(self.exact.get(topic));
        found
    }

    /// Whether anybody gets what is published to a topic.
    pub(crate) fn has(&self, topic: &str) -> bool {
        self.exact.contains_key(topic) || !self.sets(topic).is_empty()
    }

    /// Each subscriber of a topic once, however many of its filters mean it.
    pub(crate) fn for_each(&self, topic: &str, mut each: impl FnMut(Who, &V)) {
        if self.patterns.is_empty() {
            self.exact.get(topic).into_iter().flatten().for_each(|(who, value)| each(*who, value));
            return;
        }
        match &self.sets(topic)[..] {
            [] => {}
            [set] => set.iter().for_each(|(who, value)| each(*who, value)),
            sets => {
                let mut seen = HashSet::new();
                for (who, value) in sets.iter().copied().flatten() {
                    if seen.insert(*who) {
                        each(*who, value);
                    }
                }
            }
        }
    }

    /// How many that are.
    pub(crate) fn count(&self, topic: &str) -> usize {
        match &self.sets(topic)[..] {
            [set] => set.len(),
            sets => sets.iter().copied().flatten().map(|(who, _)| *who).collect::<HashSet<_>>().len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::name::tests::TABLE;
    use super::*;

    fn of(index: &Index<()>, topic: &str) -> Vec<Who> {
        let mut found = Vec::new();
        index.for_each(topic, |who, ()| found.push(who));
        assert_eq!(found.len(), index.count(topic));
        assert_eq!(!found.is_empty(), index.has(topic));
        found.sort_unstable();
        found
    }

    #[test]
    fn it_finds_what_the_filters_mean_and_forgets_it_all() {
        let mut index = Index::default();
        for (number, (filter, ..)) in TABLE.iter().enumerate() {
            assert!(index.insert(&Arc::from(*filter), Who::Stream(number as u64), ()));
        }
        for topic in TABLE.iter().flat_map(|(_, yes, no)| yes.iter().chain(*no)) {
            let wanted: Vec<_> = (0..TABLE.len())
                .filter(|&number| super::super::name::matches(TABLE[number].0, topic))
                .map(|number| Who::Stream(number as u64))
                .collect();
            assert_eq!(of(&index, topic), wanted, "{topic}");
        }
        for (number, (filter, ..)) in TABLE.iter().enumerate() {
            assert_eq!(index.remove(filter, Who::Stream(99)), None);
            assert_eq!(index.get(filter, Who::Stream(99)), None);
            assert_eq!(index.get(filter, Who::Stream(number as u64)), Some(&()));
            assert_eq!(index.remove(filter, Who::Stream(number as u64)), Some(((), true)));
            assert_eq!(index.remove(filter, Who::Stream(number as u64)), None);
        }
        assert!(index.exact.is_empty() && index.patterns.is_empty());
    }

    #[test]
    fn overlapping_filters_mean_a_subscriber_once() {
        let mut index = Index::default();
        for filter in ["a/b", "a/+", "#", "+/b", "a/#"] {
            index.insert(&Arc::from(filter), Who::Channel(7), ());
        }
        assert!(!index.insert(&Arc::from("a/b"), Who::Channel(8), ()));
        assert_eq!(of(&index, "a/b"), [Who::Channel(7), Who::Channel(8)]);
        assert_eq!(index.remove("a/b", Who::Channel(7)), Some(((), false)));
        assert_eq!(of(&index, "a/b"), [Who::Channel(7), Who::Channel(8)]);
    }
}
