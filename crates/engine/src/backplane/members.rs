//! Who is there on other nodes, as far as their texts on the control channel say.
//!
//! | text | from a node that | what is done about it |
//! |---|---|---|
//! | `hello` | has a new link | answer with all of one's members |
//! | `members` | was asked, in `parts` | what differs comes or goes |
//! | `change` | has members who have come or gone | the same, if no text before it was missed; else ask |
//! | `ask` | does not know the members of those nodes | one of them answers with all of its own |
//! | `beat` | lives | ask, if a text before it was missed |
//! | `bye` | stops | its members go |
//!
//! `hello` and `beat` say with `keep` what the node keeps, as a digest, for `rules`; an older node says nothing of it.
//!
//! Each text about members counts `version` up by one; a snapshot and every other text say which one is the newest. Of a node that
//! was silent for too long the members go.

use super::queue::Seat;
use bytes::Bytes;
use serde_json::Value;
use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

#[derive(Debug)]
struct Node {
    heard: Instant,
    /// Its members are those of this text; `None`: not known.
    version: Option<u64>,
    members: BTreeSet<Seat>,
    /// A snapshot that is coming: its version, the next part, and what has come.
    coming: Option<(u64, u64, BTreeSet<Seat>)>,
    asked: Option<Instant>,
}

/// What a text means for this node.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct News {
    /// Topic, member, has come.
    pub(crate) changes: Vec<(Seat, bool)>,
    /// Somebody wants to know who is here.
    pub(crate) answer: bool,
    /// A node whose members are to be asked for.
    pub(crate) ask: Option<u64>,
    /// It was one's own: the link is alive.
    pub(crate) own: bool,
    /// A node, and the digest of its `keep` rules.
    pub(crate) rules: Option<(u64, u64)>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Others {
    me: u64,
    timeout: Duration,
    nodes: HashMap<u64, Node>,
    /// The newest cast of each node, for those that come by several subscriptions.
    casts: HashMap<u64, (u64, Instant)>,
}

fn seats(value: &Value) -> BTreeSet<Seat> {
    let pair = |pair: &Value| Some((pair.get(0)?.as_str()?.into(), pair.get(1)?.as_str()?.into()));
    value.as_array().map(|list| list.iter().filter_map(pair).collect()).unwrap_or_default()
}

/// Of a node, or a digest.
fn node_id(value: &Value) -> Option<u64> {
    u64::from_str_radix(value.as_str()?, 16).ok()
}

impl Node {
    fn become_(&mut self, members: BTreeSet<Seat>, changes: &mut Vec<(Seat, bool)>) {
        changes.extend(members.difference(&self.members).map(|seat| (seat.clone(), true)));
        changes.extend(self.members.difference(&members).map(|seat| (seat.clone(), false)));
        self.members = members;
    }
}

impl Others {
    pub(crate) fn new(me: u64, timeout: Duration) -> Self {
        Self { me, timeout, nodes: HashMap::new(), casts: HashMap::new() }
    }

    /// Whether a cast is new: each node's come in its order, and where filters overlap more than once.
    pub(crate) fn is_new(&mut self, node: u64, number: u64, now: Instant) -> bool {
        if node == self.me {
            return false;
        }
        if number == 0 {
            return true;
        }
        let (newest, heard) = self.casts.entry(node).or_insert((0, now));
        *heard = now;
        let new = number > *newest;
        *newest = number.max(*newest);
        new
    }

    /// Reads a text; what nobody of us has written means nothing.
    pub(crate) fn hear(&mut self, text: &Bytes, now: Instant) -> News {
        let mut news = News::default();
        let Ok(text) = serde_json::from_slice::<Value>(text) else { return news };
        let (Some(id), Some(version)) = (node_id(&text["node"]), text["version"].as_u64()) else { return news };
        let kind = text["pyhv"].as_str().unwrap_or_default();
        if id == self.me {
            news.own = true;
            return news;
        }
        if kind == "bye" {
            news.changes = self.remove(id);
            return news;
        }
        news.rules = node_id(&text["keep"]).map(|rules| (id, rules));
        let me = self.me;
        let new = || Node { heard: now, version: None, members: BTreeSet::new(), coming: None, asked: None };
        let node = self.nodes.entry(id).or_insert_with(new);
        node.heard = now;
        match kind {
            "hello" => news.answer = true,
            "ask" => news.answer = text["of"].as_array().is_some_and(|of| of.iter().any(|n| node_id(n) == Some(me))),
            "members" => {
                let (part, parts) = (text["part"].as_u64(), text["parts"].as_u64());
                let coming = match node.coming.take() {
                    _ if part == Some(0) => Some((version, 0, BTreeSet::new())),
                    Some(coming) if coming.0 == version && part == Some(coming.1) => Some(coming),
                    _ => None,
                };
                if let Some((version, part, mut members)) = coming {
                    members.extend(seats(&text["all"]));
                    if Some(part + 1) == parts {
                        node.version = Some(version);
                        node.become_(members, &mut news.changes);
                    } else {
                        node.coming = Some((version, part + 1, members));
                    }
                }
                return news;
            }
            "change" if node.version == version.checked_sub(1) && node.version.is_some() => {
                node.version = Some(version);
                let mut members = node.members.clone();
                members.extend(seats(&text["here"]));
                let gone = seats(&text["gone"]);
                members.retain(|seat| !gone.contains(seat));
                node.become_(members, &mut news.changes);
            }
            _ => {}
        }
        let patience = self.timeout / 4;
        if node.version != Some(version) && node.asked.is_none_or(|asked| now.duration_since(asked) >= patience) {
            node.asked = Some(now);
            news.ask = Some(id);
        }
        news
    }

    fn remove(&mut self, id: u64) -> Vec<(Seat, bool)> {
        let members = self.nodes.remove(&id).map(|node| node.members).unwrap_or_default();
        members.into_iter().map(|seat| (seat, false)).collect()
    }

    /// Members of nodes that have been silent for too long.
    pub(crate) fn expire(&mut self, now: Instant) -> Vec<(Seat, bool)> {
        let timeout = self.timeout;
        // Much later: a node that was cut off and comes back goes on counting.
        self.casts.retain(|_, (_, heard)| now.duration_since(*heard) < 60 * timeout);
        let silent = |(id, node): (&u64, &Node)| (now.duration_since(node.heard) > timeout).then_some(*id);
        let gone: Vec<u64> = self.nodes.iter().filter_map(silent).collect();
        gone.into_iter().flat_map(|id| self.remove(id)).collect()
    }

    /// How many other nodes live.
    #[cfg(test)]
    pub(crate) fn count(&self) -> usize {
        self.nodes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::super::config::Overflow;
    use super::super::engine::Parcel;
    use super::super::queue::Queue;
    use super::*;

    struct Pair {
        queue: Queue,
        others: Others,
        now: Instant,
    }

    impl Pair {
        fn new() -> Self {
            let queue = Queue::new(1, 1 << 20, Overflow::DropOldest);
            Self { queue, others: Others::new(2, Duration::from_secs(10)), now: Instant::now() }
        }

        /// What the queue says, heard but for texts at some places.
        fn hear(&mut self, but: &[usize]) -> (Vec<String>, bool) {
            let (mut changes, mut ask) = (Vec::new(), false);
            for (place, parcel) in self.queue.take().parcels.into_iter().enumerate() {
                let Parcel::Control(text) = parcel else { continue };
                if but.contains(&place) {
                    continue;
                }
                let news = self.others.hear(&text, self.now);
                changes.extend(news.changes.iter().map(|((t, m), here)| format!("{t} {m} {here}")));
                ask |= news.ask == Some(1);
            }
            (changes, ask)
        }
    }

    fn lines(lines: &[&str]) -> Vec<String> {
        lines.iter().map(|line| (*line).to_owned()).collect()
    }

    #[test]
    fn members_come_and_go() {
        let mut pair = Pair::new();
        pair.queue.linked();
        assert_eq!(pair.hear(&[0]), (vec![], false));
        pair.queue.presence("t", "ann", true);
        assert_eq!(pair.hear(&[]), (lines(&["t ann true"]), false));
        pair.queue.presence("t", "ann", false);
        pair.queue.presence("t", "bob", true);
        assert_eq!(pair.hear(&[]), (lines(&["t bob true", "t ann false"]), false));
        let Parcel::Control(bye) = pair.queue.bye() else { panic!() };
        assert_eq!(pair.others.hear(&bye, pair.now).changes.len(), 1);
        assert_eq!(pair.others.count(), 0);
    }

    #[test]
    fn a_text_that_was_missed_is_asked_for() {
        let mut pair = Pair::new();
        pair.queue.snapshot = true;
        pair.hear(&[]);
        pair.queue.presence("t", "ann", true);
        assert_eq!(pair.hear(&[0]), (vec![], false));
        pair.queue.beat = true;
        assert_eq!(pair.hear(&[]), (vec![], true));
        // Not asked for again and again.
        pair.queue.beat = true;
        assert_eq!(pair.hear(&[]), (vec![], false));
        pair.queue.snapshot = true;
        assert_eq!(pair.hear(&[]), (lines(&["t ann true"]), false));
    }

    #[test]
    fn a_large_snapshot_comes_whole_or_not() {
        let mut pair = Pair::new();
        (0..1200).for_each(|n| pair.queue.presence("t", &n.to_string(), true));
        pair.queue.snapshot = true;
        assert_eq!(pair.hear(&[1]).0.len(), 0);
        pair.queue.snapshot = true;
        assert_eq!(pair.hear(&[]).0.len(), 1200);
    }

    #[test]
    fn members_of_a_silent_node_go() {
        let mut pair = Pair::new();
        pair.queue.presence("t", "ann", true);
        pair.queue.snapshot = true;
        pair.hear(&[]);
        pair.now += Duration::from_secs(9);
        pair.queue.beat = true;
        pair.hear(&[]);
        pair.now += Duration::from_secs(9);
        assert_eq!(pair.others.expire(pair.now), []);
        pair.now += Duration::from_secs(2);
        assert_eq!(pair.others.expire(pair.now), [(("t".into(), "ann".into()), false)]);
    }

    #[test]
    fn casts_come_once() {
        let mut pair = Pair::new();
        let mut new = |node, number| pair.others.is_new(node, number, pair.now);
        assert_eq!(
            [new(1, 1), new(1, 1), new(1, 3), new(2, 9), new(3, 2), new(0, 0), new(0, 0)],
            [true, false, true, false, true, true, true]
        );
    }

    #[test]
    fn a_node_says_what_it_keeps() {
        let mut pair = Pair::new();
        pair.queue.rules = u64::MAX - 1;
        pair.queue.linked();
        let mut said = |queue: &mut Queue| -> Vec<Option<(u64, u64)>> {
            let parcels = queue.take().parcels;
            parcels.iter().map(|parcel| pair.others.hear(parcel.letter(), pair.now).rules).collect()
        };
        assert_eq!(said(&mut pair.queue), [Some((1, u64::MAX - 1)), None]);
        pair.queue.rules = 7;
        pair.queue.beat = true;
        assert_eq!(said(&mut pair.queue), [Some((1, 7))]);
        // What an older node says, and what none would say.
        for keep in ["", r#","keep":7"#, r#","keep":"x""#, r#","keep":null"#] {
            let text = format!(r#"{{"pyhv":"beat","node":"3","version":0{keep}}}"#);
            assert_eq!(pair.others.hear(&Bytes::from(text), pair.now).rules, None);
        }
        assert_eq!(pair.others.count(), 2);
    }

    #[test]
    fn nonsense_means_nothing() {
        let mut others = Others::new(2, Duration::from_secs(1));
        for text in ["", "x", "{}", "[]", r#"{"node":"zz","version":1}"#, r#"{"node":"1","version":-1}"#] {
            assert_eq!(others.hear(&Bytes::from(text.to_owned()), Instant::now()), News::default());
        }
        assert_eq!(others.count(), 0);
    }
}
