//! The backplane: topics of several processes and machines, joined by an engine that all of them reach.
//!
//! | module | holds |
//! |---|---|
//! | `config` | settings, and the engine's address |
//! | `queue` | what this node has to say |
//! | `members` | who is there on other nodes |
//! | `rules` | whether other nodes keep what this one keeps |
//! | `task` | what runs: connects, again and again, and moves what there is |
//! | `engine` | the one interface that an engine's adapter implements |
//! | `redis`, `nats` | the adapters |
//! | `letter` | what a message looks like between nodes |
//!
//! The calls of [`Joined`] only note what they are told; one task on an I/O thread does the rest. Messages of topics that keep some
//! go through one stream of the whole system and are delivered when they come back from it, so that all nodes have them in the same
//! order with the same positions. All others are delivered at once and passed on.

mod config;
mod engine;
mod letter;
mod members;
mod nats;
mod queue;
mod redis;
mod rules;
mod task;

pub use config::{Address, AddressError, Config, Kind, Overflow, shown};

use crate::endpoint::Endpoint;
use crate::topics::backplane::{Backplane, Route};
use crate::topics::{Message, Who};
use nats::Nats;
use parking_lot::Mutex;
use queue::Queue;
use redis::Redis;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use tokio::sync::Notify;

/// How it stands with the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// For the first time.
    Connecting,
    /// This node hears and is heard, and its history is level with the engine's.
    Connected,
    /// It is away.
    Lost,
}

impl State {
    /// As Python names it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Connected => "connected",
            Self::Lost => "lost",
        }
    }
}

/// What the program's side and the task share.
struct Shared {
    config: Arc<Config>,
    /// This run of this process.
    node: u64,
    /// Guards what is to be said; held for one call.
    queue: Mutex<Queue>,
    /// There is something to be said.
    work: Notify,
    state: AtomicU8,
}

/// An endpoint's backplane.
#[derive(Clone)]
pub struct Joined(Arc<Shared>);

impl fmt::Debug for Joined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Joined").field("state", &self.state()).finish_non_exhaustive()
    }
}

impl Joined {
    /// Joins an endpoint to others. Returns at once; the endpoint counts as busy until it has stopped.
    #[must_use]
    pub fn start(endpoint: &Arc<Endpoint>, config: Config) -> Self {
        let node = rand::random();
        let config = Arc::new(config);
        let queue = Mutex::new(Queue::new(node, config.buffer, config.overflow));
        let state = AtomicU8::new(State::Connecting as u8);
        let shared = Arc::new(Shared { config: Arc::clone(&config), node, queue, work: Notify::new(), state });
        let joined = Self(Arc::clone(&shared));
        endpoint.join(Arc::new(joined.clone()), true);
        match config.address.kind {
            Kind::Redis => task::start(endpoint, shared, Redis::new(config, node)),
            Kind::Nats => task::start(endpoint, shared, Nats::new(config, node)),
        }
        joined
    }

    /// How it stands.
    #[must_use]
    pub fn state(&self) -> State {
        self.0.state()
    }

    /// Publishes that were thrown away or refused because of `backplane_buffer`.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.0.queue.lock().dropped
    }
}

impl Shared {
    fn state(&self) -> State {
        match self.state.load(Ordering::Relaxed) {
            0 => State::Connecting,
            1 => State::Connected,
            _ => State::Lost,
        }
    }

    /// Changes what is to be said, and wakes the task.
    fn tell<T>(&self, change: impl FnOnce(&mut Queue) -> T) -> T {
        let result = change(&mut self.queue.lock());
        self.work.notify_one();
        result
    }
}

impl Backplane for Joined {
    fn publish(&self, message: &Arc<Message>, kept: bool, exclude: Option<Who>) -> Route {
        let Message { topic, opcode, payload, .. } = &**message;
        self.0.tell(|queue| queue.publish(topic, *opcode, message.key(), payload, kept, exclude))
    }

    fn gone(&self, who: Who) {
        self.0.queue.lock().gone(who);
    }

    fn interest(&self, filter: &str, wanted: bool) {
        self.0.tell(|queue| queue.interest(filter, wanted));
    }

    fn rules(&self, digest: u64) {
        // The next beat says it.
        self.0.queue.lock().rules = digest;
    }

    fn presence(&self, topic: &str, member: &str, here: bool) {
        self.0.tell(|queue| queue.presence(topic, member, here));
    }
}
