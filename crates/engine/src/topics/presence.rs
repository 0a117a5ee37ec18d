//! Who is in a topic: members by the identity that the program gave them, each once however many channels it has.

use indexmap::IndexMap;
use std::collections::HashMap;
use std::sync::Arc;

/// How many channels a member has.
#[derive(Debug, Default)]
struct Count {
    here: usize,
    elsewhere: usize,
}

/// What a step has changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Change {
    /// For this node: its first channel has come, or its last one has gone.
    pub(crate) here: bool,
    /// For everybody.
    pub(crate) all: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Presence(HashMap<Arc<str>, IndexMap<Arc<str>, Count>>);

impl Presence {
    /// A channel of a member has come. `here`: to this node.
    pub(crate) fn join(&mut self, topic: &Arc<str>, member: &Arc<str>, here: bool) -> Change {
        let members = self.0.entry(Arc::clone(topic)).or_default();
        let count = members.entry(Arc::clone(member)).or_default();
        let change = Change { here: here && count.here == 0, all: count.here + count.elsewhere == 0 };
        if here {
            count.here += 1;
        } else {
            count.elsewhere += 1;
        }
        change
    }

    /// One has gone.
    pub(crate) fn leave(&mut self, topic: &str, member: &str, here: bool) -> Change {
        let Some(members) = self.0.get_mut(topic) else { return Change::default() };
        let Some(count) = members.get_mut(member) else { return Change::default() };
        let side = if here { &mut count.here } else { &mut count.elsewhere };
        if *side == 0 {
            return Change::default();
        }
        *side -= 1;
        let change = Change { here: here && count.here == 0, all: count.here + count.elsewhere == 0 };
        if change.all {
            // The others keep the order in which they came.
            members.shift_remove(member);
            if members.is_empty() {
                self.0.remove(topic);
            }
        }
        change
    }

    /// The members of a topic, in the order in which they came.
    pub(crate) fn members(&self, topic: &str) -> Vec<Arc<str>> {
        self.0.get(topic).map(|members| members.keys().cloned().collect()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_is_there_once() {
        let mut presence = Presence::default();
        let (topic, ann, bob) = (Arc::from("t"), Arc::from("ann"), Arc::from("bob"));
        let change = |here, all| Change { here, all };
        assert_eq!(presence.join(&topic, &ann, true), change(true, true));
        assert_eq!(presence.join(&topic, &ann, true), change(false, false));
        assert_eq!(presence.join(&topic, &bob, false), change(false, true));
        assert_eq!(presence.join(&topic, &ann, false), change(false, false));
        assert_eq!(presence.members("t"), [Arc::clone(&ann), Arc::clone(&bob)]);
        assert_eq!(presence.leave("t", "ann", true), change(false, false));
        assert_eq!(presence.leave("t", "ann", true), change(true, false));
        assert_eq!(presence.leave("t", "ann", true), change(false, false));
        assert_eq!(presence.leave("t", "ann", false), change(false, true));
        assert_eq!(presence.members("t"), [bob]);
        assert_eq!(presence.leave("t", "bob", false), change(false, true));
        assert_eq!(presence.leave("x", "bob", false), change(false, false));
        assert!(presence.0.is_empty());
    }
}
