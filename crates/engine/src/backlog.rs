//! What ticks with a budget have left over: fair between channels, and bounded.
//!
//! The channels that have something left take turns, one event each; what belongs to no channel (a request, a warning) has a
//! turn of its own. So a channel that floods delays itself, not the others, and what arrives meanwhile on a quiet one comes
//! next. Within a channel, and among what belongs to none, the order of arrival holds.
//!
//! A batch keeps its memory until its last event has run, and so long the connections that were paused because of it stay
//! paused. No new batch joins while those that are here count more than `max_pending_bytes`.

use crate::connection::Connection;
use crate::inbox::{Batch, Event};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// Where an event lies: the number of its batch, and its place there.
#[derive(Clone, Copy, Debug)]
struct Place {
    batch: u64,
    index: u32,
}

/// Whose turn it is.
#[derive(Debug)]
enum Turn {
    /// The oldest event of a channel.
    Channel(u32),
    /// An event of no channel.
    Single(Place),
}

#[derive(Debug)]
struct Held {
    batch: Batch,
    epoch: u64,
    /// Events that have not run.
    left: usize,
}

/// The events that wait for later ticks.
#[derive(Debug, Default)]
pub struct Backlog {
    batches: VecDeque<Held>,
    /// Number of the first of them.
    first: u64,
    /// The channels that have events here, each with their places.
    lanes: HashMap<u32, VecDeque<Place>>,
    turns: VecDeque<Turn>,
    /// Events in all batches that have not run.
    left: usize,
}

/// An event whose turn it is.
#[derive(Debug)]
pub struct Next<'a> {
    /// The event.
    pub event: Event,
    /// The arena of its batch.
    pub arena: &'a [u8],
}

impl Backlog {
    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.left == 0
    }

    /// How many events wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.left
    }

    /// What the batches count, what has run of them included.
    #[must_use]
    pub fn size(&self) -> usize {
        self.batches.iter().map(|held| held.batch.size()).sum()
    }

    /// The number of the next batch.
    #[must_use]
    pub fn next_number(&self) -> u64 {
        self.first + self.batches.len() as u64
    }

    /// Takes out a message that a newer one replaces; false if it has run already. Its turn remains, as [`Event::Taken`].
    pub fn supersede(&mut self, batch: u64, index: usize) -> bool {
        let held = batch.checked_sub(self.first).and_then(|n| self.batches.get_mut(usize::try_from(n).ok()?));
        held.is_some_and(|held| held.batch.supersede(index))
    }

    /// Takes the events of a batch from `from` on.
    pub fn add(&mut self, batch: Batch, epoch: u64, from: usize) {
        let number = self.next_number();
        for (index, event) in batch.events.iter().enumerate().skip(from) {
            // A batch is bounded by max_pending_bytes, far below 2^32 events.
            let place = Place { batch: number, index: u32::try_from(index).unwrap_or(u32::MAX) };
            match event.channel() {
                None => self.turns.push_back(Turn::Single(place)),
                Some(channel) => {
                    let lane = self.lanes.entry(channel).or_default();
                    if lane.is_empty() {
                        self.turns.push_back(Turn::Channel(channel));
                    }
                    lane.push_back(place);
                }
            }
        }
        let left = batch.events.len().saturating_sub(from);
        self.left += left;
        self.batches.push_back(Held { batch, epoch, left });
    }

    /// The next event.
    pub fn pop(&mut self) -> Option<Next<'_>> {
        let place = match self.turns.pop_front()? {
            Turn::Single(place) => place,
            Turn::Channel(channel) => {
                let lane = self.lanes.get_mut(&channel)?;
                let place = lane.pop_front()?;
                if lane.is_empty() {
                    self.lanes.remove(&channel);
                } else {
                    self.turns.push_back(Turn::Channel(channel));
                }
                place
            }
        };
        let held = self.batches.get_mut(usize::try_from(place.batch - self.first).ok()?)?;
        held.left -= 1;
        self.left -= 1;
        let event = held.batch.take(place.index as usize)?;
        Some(Next { event, arena: &held.batch.arena })
    }

    /// Lets go of the batches that have run: returns the connections that may read on, and the newest batch up to which all
    /// have run, if there is a newer one than before.
    pub fn settle(&mut self) -> (Vec<Arc<Connection>>, Option<u64>) {
        let mut paused = Vec::new();
        for held in self.batches.iter_mut().filter(|held| held.left == 0) {
            paused.append(&mut held.batch.paused);
        }
        let mut done = None;
        while let Some(held) = self.batches.pop_front_if(|held| held.left == 0) {
            done = Some(held.epoch);
            self.first += 1;
        }
        (paused, done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::MessageKind;

    /// A batch of messages, each of the channel given and with its number as its text; channel 0: of none.
    fn batch(channels: &[u32], first: usize) -> Batch {
        let mut batch = Batch::default();
        for (n, &channel) in channels.iter().enumerate() {
            let text = (first + n).to_string();
            if channel == 0 {
                batch.events.push(Event::Log(text));
            } else {
                let start = batch.arena.len();
                batch.arena.extend_from_slice(text.as_bytes());
                let (kind, len) = (MessageKind::Text, text.len());
                batch.events.push(Event::Message { channel, kind, start, len });
            }
        }
        batch
    }

    fn drain(backlog: &mut Backlog, count: usize) -> Vec<String> {
        let mut ran = Vec::new();
        while ran.len() < count
            && let Some(Next { event, arena }) = backlog.pop()
        {
            ran.push(match event {
                Event::Message { channel, start, len, .. } => {
                    format!("{channel}:{}", std::str::from_utf8(&arena[start..start + len]).unwrap())
                }
                Event::Log(text) => format!("-:{text}"),
                other => panic!("{other:?}"),
            });
        }
        ran
    }

    #[test]
    fn channels_take_turns_and_keep_their_order() {
        let mut backlog = Backlog::default();
        backlog.add(batch(&[1, 1, 1, 1, 2, 0, 3, 2, 0], 0), 7, 1);
        assert_eq!(backlog.len(), 8);
        assert_eq!(drain(&mut backlog, 9), ["1:1", "2:4", "-:5", "3:6", "-:8", "1:2", "2:7", "1:3"]);
        assert!(backlog.is_empty());
        assert_eq!(backlog.settle().1, Some(7));
        assert_eq!(backlog.size(), 0);
    }

    #[test]
    fn what_comes_later_on_a_quiet_channel_overtakes_a_flood() {
        let mut backlog = Backlog::default();
        backlog.add(batch(&[1; 100], 0), 1, 0);
        assert_eq!(drain(&mut backlog, 2), ["1:0", "1:1"]);
        backlog.add(batch(&[2, 1, 2], 100), 2, 0);
        assert_eq!(drain(&mut backlog, 4), ["1:2", "2:100", "1:3", "2:102"]);
        let rest = drain(&mut backlog, 1000);
        assert_eq!(rest.len(), 97);
        assert_eq!(rest[96], "1:101");
    }

    #[test]
    fn a_batch_is_done_when_it_and_all_before_it_are() {
        let mut backlog = Backlog::default();
        backlog.add(batch(&[1, 1, 1], 0), 4, 0);
        backlog.add(batch(&[2], 3), 5, 0);
        assert_eq!(drain(&mut backlog, 2), ["1:0", "2:3"]);
        assert_eq!(backlog.settle().1, None);
        assert_eq!(drain(&mut backlog, 9), ["1:1", "1:2"]);
        assert_eq!(backlog.settle().1, Some(5));
        assert_eq!(backlog.settle().1, None);
        backlog.add(batch(&[], 0), 6, 0);
        assert_eq!(backlog.settle().1, Some(6));
    }
}
