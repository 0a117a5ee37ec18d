//! What this node has to say, until a link has taken it: publishes to a bound; interest and members as what is true now, so
//! that they are bounded by what there is.

use super::config::Overflow;
use super::engine::Parcel;
use super::letter::Letter;
use crate::topics::Who;
use crate::topics::backplane::Route;
use crate::wire::Opcode;
use bytes::Bytes;
use indexmap::IndexSet;
use serde_json::json;
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;

/// A batch is about so large: what one publish waits for another.
const BATCH_BYTES: usize = 256 << 10;
const BATCH_PARCELS: usize = 256;
/// Members that one text about them names.
const MEMBERS_AT_ONCE: usize = 500;

/// A member in a topic.
pub(crate) type Seat = (Arc<str>, Arc<str>);

/// What a link takes in one step.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) interest: Vec<(Arc<str>, bool)>,
    pub(crate) parcels: Vec<Parcel>,
}

impl Batch {
    pub(crate) fn is_empty(&self) -> bool {
        self.interest.is_empty() && self.parcels.is_empty()
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Queue {
    node: u64,
    limit: usize,
    overflow: Overflow,
    /// Of the last message.
    number: u64,
    waiting: VecDeque<Parcel>,
    /// What was taken, and is not confirmed: appends of it are sent again.
    flying: Vec<Parcel>,
    /// Of both.
    bytes: usize,
    /// Publishes that were thrown away or refused because of the bound.
    pub(crate) dropped: u64,
    wanted: HashSet<Arc<str>>,
    /// Filters of which the link has not been told the latest.
    filters: IndexSet<Arc<str>>,
    members: HashSet<Seat>,
    /// The same of members.
    seats: IndexSet<Seat>,
    /// Counts the texts about members.
    version: u64,
    /// The digest of this node's `keep` rules.
    pub(crate) rules: u64,
    /// What others have asked for, or a new link begins with.
    pub(crate) snapshot: bool,
    pub(crate) hello: bool,
    pub(crate) beat: bool,
    /// Nodes whose members are not known.
    pub(crate) ask: Vec<u64>,
    /// Who does not get a message when it comes back, by its number.
    excluded: BTreeMap<u64, Who>,
}

fn size(parcel: &Parcel) -> usize {
    // What stands around it in memory.
    const AROUND: usize = 128;
    match parcel {
        Parcel::Cast { topic, letter } | Parcel::Append { topic, letter, .. } => topic.len() + letter.len() + AROUND,
        Parcel::Control(text) => text.len() + AROUND,
    }
}

impl Queue {
    pub(crate) fn new(node: u64, limit: usize, overflow: Overflow) -> Self {
        Self {
            node,
            limit,
            overflow,
            number: 0,
            waiting: VecDeque::new(),
            flying: Vec::new(),
            bytes: 0,
            dropped: 0,
            wanted: HashSet::new(),
            filters: IndexSet::new(),
            members: HashSet::new(),
            seats: IndexSet::new(),
            version: 0,
            rules: 0,
            snapshot: false,
            hello: false,
            beat: false,
            ask: Vec::new(),
            excluded: BTreeMap::new(),
        }
    }

    /// A local publish. `kept`: its topic has history.
    pub(crate) fn publish(
        &mut self,
        topic: &Arc<str>,
        opcode: Opcode,
        key: Option<&[u8]>,
        payload: &[u8],
        kept: bool,
        exclude: Option<Who>,
    ) -> Route {
        let number = self.number + 1;
        let letter = Letter::write(self.node, number, opcode, key, topic, payload);
        let topic = Arc::clone(topic);
        let parcel = if kept { Parcel::Append { topic, number, letter } } else { Parcel::Cast { topic, letter } };
        let size = size(&parcel);
        if self.bytes + size > self.limit && self.overflow == Overflow::Refuse {
            self.dropped += 1;
            return Route::Refused;
        }
        self.number = number;
        self.bytes += size;
        self.waiting.push_back(parcel);
        if let Some(who) = exclude.filter(|_| kept) {
            self.excluded.insert(number, who);
        }
        while self.bytes > self.limit {
            let Some(oldest) = self.waiting.pop_front() else { break };
            self.forget(&oldest);
            self.dropped += 1;
        }
        if kept { Route::Back } else { Route::Pass }
    }

    fn forget(&mut self, parcel: &Parcel) {
        self.bytes -= size(parcel);
        if let Parcel::Append { number, .. } = parcel {
            self.excluded.remove(number);
        }
    }

    pub(crate) fn interest(&mut self, filter: &str, wanted: bool) {
        let filter: Arc<str> = filter.into();
        let _ = if wanted { self.wanted.insert(Arc::clone(&filter)) } else { self.wanted.remove(&filter) };
        self.filters.insert(filter);
    }

    pub(crate) fn presence(&mut self, topic: &str, member: &str, here: bool) {
        let seat: Seat = (topic.into(), member.into());
        let _ = if here { self.members.insert(seat.clone()) } else { self.members.remove(&seat) };
        self.seats.insert(seat);
    }

    /// Who does not get a message of this node that has come back. What was published before it comes no more.
    pub(crate) fn came_back(&mut self, number: u64) -> Option<Who> {
        let later = self.excluded.split_off(&(number + 1));
        std::mem::replace(&mut self.excluded, later).remove(&number)
    }

    /// A subscriber has ended: its number may soon be that of another.
    pub(crate) fn gone(&mut self, who: Who) {
        self.excluded.retain(|_, excluded| *excluded != who);
    }

    /// A link begins: it is told everything.
    pub(crate) fn linked(&mut self) {
        self.filters = self.wanted.iter().cloned().collect();
        self.hello = true;
        self.snapshot = true;
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.flying.is_empty()
    }

    fn control(&self, mut text: serde_json::Value) -> Parcel {
        text["node"] = format!("{:016x}", self.node).into();
        text["version"] = self.version.into();
        Parcel::Control(Bytes::from(text.to_string()))
    }

    /// As text: 64 bits are more than a number in JSON holds everywhere.
    fn digest(&self) -> String {
        format!("{:016x}", self.rules)
    }

    /// The last text of this node.
    pub(crate) fn bye(&self) -> Parcel {
        self.control(json!({"pyhv": "bye"}))
    }

    /// What is to be sent next, in order.
    pub(crate) fn take(&mut self) -> Batch {
        let mut batch = Batch::default();
        for filter in std::mem::take(&mut self.filters) {
            let wanted = self.wanted.contains(&filter);
            batch.interest.push((filter, wanted));
        }
        if std::mem::take(&mut self.hello) {
            batch.parcels.push(self.control(json!({"pyhv": "hello", "keep": self.digest()})));
        }
        if std::mem::take(&mut self.snapshot) {
            // With what has changed and was not told yet.
            self.seats.clear();
            self.version += 1;
            let members: Vec<_> = self.members.iter().collect();
            let parts = members.len().div_ceil(MEMBERS_AT_ONCE).max(1);
            for part in 0..parts {
                let some = members.iter().skip(part * MEMBERS_AT_ONCE).take(MEMBERS_AT_ONCE);
                let some: Vec<_> = some.map(|(topic, member)| [&**topic, &**member]).collect();
                let text = json!({"pyhv": "members", "part": part, "parts": parts, "all": some});
                batch.parcels.push(self.control(text));
            }
        }
        while !self.seats.is_empty() {
            let left = self.seats.split_off(self.seats.len().min(MEMBERS_AT_ONCE));
            let some = std::mem::replace(&mut self.seats, left);
            let (here, gone): (Vec<_>, Vec<_>) = some.iter().partition(|seat| self.members.contains(*seat));
            let names = |seats: Vec<&Seat>| -> Vec<[String; 2]> {
                seats.into_iter().map(|(topic, member)| [topic.to_string(), member.to_string()]).collect()
            };
            self.version += 1;
            batch.parcels.push(self.control(json!({"pyhv": "change", "here": names(here), "gone": names(gone)})));
        }
        let ask: Vec<_> = std::mem::take(&mut self.ask).iter().map(|node| format!("{node:016x}")).collect();
        if !ask.is_empty() {
            batch.parcels.push(self.control(json!({"pyhv": "ask", "of": ask})));
        }
        if std::mem::take(&mut self.beat) {
            batch.parcels.push(self.control(json!({"pyhv": "beat", "keep": self.digest()})));
        }
        let mut bytes = 0;
        while bytes < BATCH_BYTES && batch.parcels.len() < BATCH_PARCELS {
            let Some(parcel) = self.waiting.pop_front() else { break };
            bytes += size(&parcel);
            self.flying.push(parcel.clone());
            batch.parcels.push(parcel);
        }
        batch
    }

    /// What was taken has been sent, or, when the link failed, perhaps: an append is told by its number and goes again, anything
    /// else might come twice and does not.
    pub(crate) fn sent(&mut self, confirmed: bool) {
        for parcel in std::mem::take(&mut self.flying).into_iter().rev() {
            if !confirmed && matches!(parcel, Parcel::Append { .. }) {
                self.waiting.push_front(parcel);
            } else {
                self.bytes -= size(&parcel);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(messages: usize, overflow: Overflow) -> Queue {
        let letter = Letter::write(7, 1, Opcode::Text, None, "a", b"x");
        let one = size(&Parcel::Cast { topic: "a".into(), letter });
        Queue::new(7, messages * one, overflow)
    }

    fn publish(queue: &mut Queue, payload: &str, kept: bool) -> Route {
        queue.publish(&Arc::from("a"), Opcode::Text, None, payload.as_bytes(), kept, Some(Who::Channel(3)))
    }

    fn letters(batch: &Batch) -> String {
        let mut text = String::new();
        for parcel in &batch.parcels {
            if let Parcel::Cast { letter, .. } | Parcel::Append { letter, .. } = parcel {
                text.push(char::from(*letter.last().unwrap()));
            }
        }
        text
    }

    #[test]
    fn the_bound_holds_for_what_waits_and_what_flies() {
        let mut queue = queue(3, Overflow::DropOldest);
        for payload in ["1", "2", "3", "4"] {
            assert_eq!(publish(&mut queue, payload, true), Route::Back);
        }
        assert_eq!((queue.dropped, queue.excluded.len()), (1, 3));
        assert_eq!(letters(&queue.take()), "234");
        // No more than what flies.
        publish(&mut queue, "5", true);
        assert_eq!((queue.dropped, letters(&queue.take()).as_str()), (2, ""));
        queue.sent(true);
        assert_eq!((queue.bytes, queue.is_empty()), (0, true));
    }

    #[test]
    fn what_is_over_the_bound_is_refused() {
        let mut queue = queue(2, Overflow::Refuse);
        assert_eq!(publish(&mut queue, "1", false), Route::Pass);
        assert_eq!(publish(&mut queue, "2", true), Route::Back);
        assert_eq!(publish(&mut queue, "3", false), Route::Refused);
        assert_eq!((queue.dropped, queue.number, letters(&queue.take()).as_str()), (1, 2, "12"));
    }

    #[test]
    fn after_a_failure_appends_go_again() {
        let mut queue = queue(9, Overflow::DropOldest);
        for (payload, kept) in [("1", true), ("2", false), ("3", true)] {
            publish(&mut queue, payload, kept);
        }
        assert_eq!(letters(&queue.take()), "123");
        publish(&mut queue, "4", false);
        queue.sent(false);
        assert_eq!(letters(&queue.take()), "134");
        queue.sent(true);
        assert_eq!(queue.bytes, 0);
        assert_eq!(queue.came_back(3), Some(Who::Channel(3)));
        assert!(queue.excluded.is_empty());
    }

    #[test]
    fn interest_is_what_is_true_now() {
        let mut queue = queue(1, Overflow::DropOldest);
        for (filter, wanted) in [("a", true), ("b", true), ("a", false), ("c", true)] {
            queue.interest(filter, wanted);
        }
        let told = |batch: Batch| {
            let mut told: Vec<_> = batch.interest.iter().map(|(filter, wanted)| format!("{filter} {wanted}")).collect();
            told.sort();
            told
        };
        assert_eq!(told(queue.take()), ["a false", "b true", "c true"]);
        assert_eq!(told(queue.take()), [""; 0]);
        queue.linked();
        assert_eq!(told(queue.take()), ["b true", "c true"]);
    }
}
