//! The seam where processes are joined: what a backplane (NATS, Redis) is told, and how it hands over what others did.
//!
//! A process by itself has [`Alone`]. Another one gets into an endpoint with [`Endpoint::join`](crate::endpoint::Endpoint::join),
//! before anything is published. [`Joined`](crate::backplane::Joined) is what there is.
//!
//! # Rules of order
//!
//! 1. All calls of a [`Backplane`] are made under the lock of the topics: one at a time, publishes in the order of their
//!    positions, interest and presence in their places between them. So they must not block and must not call back: they put
//!    what they are told into a queue of their own that a task on an I/O thread empties, in order.
//! 2. That task hands over what came from elsewhere with `arrived` and `presence_elsewhere` of the endpoint, one call after the
//!    other in the order in which it came. Each takes its turn in the same log as the program's calls, behind what was queued
//!    before: a local subscriber sees one order, which is that of the positions.
//! 3. With [`Route::Here`] a node gives positions of its own to what arrives from others. They mean something to that node
//!    alone, and a client that resumes at another one is told that it may have missed something. What two nodes publish at the same
//!    time their subscribers may get in different orders.
//! 4. With [`Route::Back`] a local publish is not delivered until it comes back through `arrived` with a position that all nodes
//!    agree on: an epoch of the whole system and a number that only grows (the sequence of a JetStream stream, INCR in the
//!    script that publishes in Redis). Then any node can resume any client, for as long as each keeps history for the topics
//!    that it hears. A node that lost its link hands over what it missed, or uses another epoch when it cannot.
//!    With [`Route::Pass`] a message is delivered at once, here and by `passed` on the other nodes, and its position is the newest
//!    one known: whoever resumes behind that is told that something of such a topic may be missing. Both kinds go together,
//!    since these leave the common sequence alone.
//! 5. The echo of what went [`Route::Here`] or [`Route::Pass`] is the backplane's to drop: it knows by the node's identity, which it
//!    puts into what it sends.
//! 6. Interest is told when the first local subscriber of a filter comes and when the last one goes. A node that keeps history
//!    for topics without local subscribers has to hear them all the same: that is the backplane's setting.
//!    A node that has joined and is not level yet, [`Endpoint::level`](crate::endpoint::Endpoint::level), does not know what it
//!    has missed: subscriptions that resume get what is published, and wait with what they missed, and with their confirmation.
//! 7. Presence is told once for each member of this node, however many channels it has here. When another node is lost the
//!    backplane takes back each member that this one had announced.

use super::Who;
use super::message::Message;
use std::fmt::Debug;
use std::sync::Arc;

/// What becomes of a local publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// Local subscribers get it now.
    Here,
    /// They get it now, and it has no place among the positions: nobody resumes behind it.
    Pass,
    /// They get it when it comes back.
    Back,
    /// Nobody gets it: the backplane takes no more.
    Refused,
}

/// What joins this process to others; see the module for who calls when.
pub trait Backplane: Debug + Send + Sync {
    /// A local publish. Its position is the node's own. `kept`: the nodes are together, and its topic keeps messages. `exclude`: who does not
    /// get it, known to this node alone.
    fn publish(&self, message: &Arc<Message>, kept: bool, exclude: Option<Who>) -> Route;

    /// A subscriber has ended: its number may soon be that of another.
    fn gone(&self, who: Who);

    /// The first local subscriber of a filter has come, or the last one has gone.
    fn interest(&self, filter: &str, wanted: bool);

    /// What topics keep from here on, as [`Rules::digest`](super::Rules) has it: all nodes should have the same.
    fn rules(&self, digest: u64);

    /// The first local channel of a member has come to a topic, or the last one has left.
    fn presence(&self, topic: &str, member: &str, here: bool);
}

/// The embedded default: there are no others.
#[derive(Clone, Copy, Debug)]
pub struct Alone;

impl Backplane for Alone {
    fn publish(&self, _: &Arc<Message>, _: bool, _: Option<Who>) -> Route {
        Route::Here
    }

    fn gone(&self, _: Who) {}

    fn interest(&self, _: &str, _: bool) {}

    fn rules(&self, _: u64) {}

    fn presence(&self, _: &str, _: &str, _: bool) {}
}
