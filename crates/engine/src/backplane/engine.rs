//! What an engine (Redis, NATS) has to be able to do: the one interface that its adapter implements. The rest, the queue, the
//! reconnecting, positions, presence, who hears what, is common, and in the modules beside this one.
//!
//! An adapter makes one attempt to connect, and then serves one link until it fails once. It never reconnects, never
//! subscribes again by itself, and keeps nothing from one link to the next: the common part connects again, says where
//! reading goes on, and tells all interest anew.
//!
//! Both halves of a link are driven by one task on an I/O thread, each by a loop of its own, so that sending and receiving
//! wait for each other nowhere. Futures may be dropped in the middle when the link is given up, and dropping both halves has to
//! end everything that belongs to the link: its sockets, and tasks that the adapter has started.

use crate::topics::Position;
use bytes::Bytes;
use std::fmt;
use std::future::Future;
use std::sync::Arc;

/// Why a link is lost, or could not be made. For the log and `on_backplane`: without secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure(pub(crate) String);

impl Failure {
    pub(crate) fn new(what: &str, why: impl fmt::Display) -> Self {
        Self(format!("{what}: {why}"))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How to reach an engine.
pub(crate) trait Engine: Send + Sync + 'static {
    /// The sending half of a link.
    type Outlet: Outlet;
    /// The receiving half.
    type Inlet: Inlet;

    /// One attempt: connects, authenticates, finds or makes what keeps the history, subscribes to the control channel, and
    /// begins to read the history behind `behind`; `None`: with the oldest message that the engine keeps. The caller cuts it off
    /// after a time.
    ///
    /// If the history cannot go on behind `behind` without a hole (it was cut, or belongs to another epoch and something may
    /// be lost in between), the inlet says [`Arrival::Gap`] before what comes behind the hole.
    fn connect(
        &self,
        behind: Option<Position>,
    ) -> impl Future<Output = Result<Opened<Self::Outlet, Self::Inlet>, Failure>> + Send;
}

/// A link that was made.
#[derive(Debug)]
pub(crate) struct Opened<O, I> {
    /// To send.
    pub(crate) outlet: O,
    /// To receive.
    pub(crate) inlet: I,
    /// The newest message of the history when the link was made, of whatever topic; `seq` is 0, or what the engine counts from,
    /// when there is none. The epoch is the one that all nodes see: another one whenever numbers may mean other messages than before
    /// (the engine was restarted and may have lost some, its data are gone).
    pub(crate) head: Position,
}

/// Something to send. All of it is opaque to the adapter but what is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Parcel {
    /// A message of a topic without history: to all nodes that have told interest in a filter that means the topic; at most
    /// once. It may come back to this node, and twice where filters overlap: both is sorted out by the common part.
    Cast {
        /// For the channel or subject.
        topic: Arc<str>,
        /// What arrives as [`Arrival::Cast`].
        letter: Bytes,
    },
    /// A message of a topic with history: to the end of the one stream, whence all nodes, this one too, read it.
    Append {
        /// For adapters that sort by subject.
        topic: Arc<str>,
        /// Of this node and this message alone, the same when it is sent again because its confirmation was lost: it must not
        /// come into the stream twice. Numbers grow by the order of sending, though not by one.
        number: u64,
        /// What arrives as [`Arrival::Kept`].
        letter: Bytes,
    },
    /// To all nodes, by the control channel; at most once.
    Control(Bytes),
}

impl Parcel {
    /// What is sent.
    pub(crate) fn letter(&self) -> &Bytes {
        match self {
            Self::Cast { letter, .. } | Self::Append { letter, .. } | Self::Control(letter) => letter,
        }
    }
}

/// The sending half of a link.
pub(crate) trait Outlet: Send {
    /// Filters (MQTT's, as of `topics::name`) that this node begins (true) or ceases (false) to want casts of, each one at most
    /// once. Returns when the engine has been told; it need not have answered, but what other nodes send when they hear of
    /// this node afterwards should arrive. The adapter may subscribe to more than the filter means.
    fn interest(&mut self, changes: &[(Arc<str>, bool)]) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Sends parcels in order, as one batch where the engine allows. Returns when all casts were handed to the socket or
    /// confirmed, and all appends are confirmed. After a failure the common part sends the appends of the batch again over the
    /// next link, and none of the rest.
    fn send(&mut self, parcels: &[Parcel]) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Parcels that were left out since this was asked last, because the engine takes none so large.
    fn too_large(&mut self) -> u64 {
        0
    }

    /// The node stops: returns when what was sent has left.
    fn finish(&mut self) -> impl Future<Output = Result<(), Failure>> + Send;
}

/// What comes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// Of [`Parcel::Cast`].
    Cast(Bytes),
    /// Of [`Parcel::Control`]; one's own come back too, and prove that the link is alive.
    Control(Bytes),
    /// The next message of the history. Numbers grow, with or without holes, also from one epoch to the next.
    Kept {
        /// Agreed on by all nodes.
        position: Position,
        /// Of [`Parcel::Append`].
        letter: Bytes,
    },
    /// Between the last message of the history and the next one some are missing.
    Gap,
    /// All of the history up to [`Opened::head`] has been handed over, if there was any. Once for each link.
    Level,
}

/// The receiving half of a link.
pub(crate) trait Inlet: Send {
    /// What comes next, in the order of each sender; casts, controls and the history need no order among each other. Never cancelled
    /// but to end the link. Fails when the link is lost, or when something is silent that must not be. What waits in between is
    /// bounded.
    fn next(&mut self) -> impl Future<Output = Result<Arrival, Failure>> + Send;
}
