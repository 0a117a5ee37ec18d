//! Topics on an I/O thread: commands of the queue going down have their turn here.
//!
//! What a topic's subscriber gets is queued on its connection at once, in the shared frame, and written when the pump has
//! applied all that waited: so several topics, sends and broadcasts of a tick leave in one write, in the order of the calls.

use super::message::{Forms, Message, notice};
use super::{Begin, Entrance, Subscriber, Who, message};
use crate::broadcast::{Room, Round};
use crate::connection::Connection;
use crate::endpoint::Endpoint;
use crate::runtime::IoThread;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// After so much of what was missed it is written in between, so that a long history need not wait whole.
const WRITE_AT: usize = 256 << 10;

/// Queues on one connection, behind what the round has for it.
fn queue(conn: &Arc<Connection>, room: &mut Room, round: &mut Round, touched: &mut Vec<Arc<Connection>>) {
    // A bug that panics for one connection must not cost the others theirs.
    let _ = catch_unwind(AssertUnwindSafe(|| {
        round.catch_up(conn, touched);
        conn.queue_published(room, touched);
    }))
    .inspect_err(|panic| conn.fault(panic.as_ref()));
}

/// What one subscriber gets of a message.
fn give(
    endpoint: &Endpoint,
    subscriber: &Subscriber,
    forms: &mut Forms<'_>,
    round: &mut Round,
    touched: &mut Vec<Arc<Connection>>,
) {
    match subscriber {
        Subscriber::Channel(conn) if endpoint.topics.are_spoken_by(conn) => {
            queue(conn, forms.envelope(), round, touched);
        }
        Subscriber::Channel(conn) => queue(conn, forms.plain(), round, touched),
        // False: it has ended or is too slow, which it counts and tells by itself.
        Subscriber::Stream { stream, named } => {
            let _ = stream.write(forms.event(*named));
        }
    }
}

/// The turn of a publish.
pub(crate) fn publish(
    io: &IoThread,
    endpoint: &Arc<Endpoint>,
    message: &Message,
    exclude: Option<Who>,
    round: &mut Round,
    touched: &mut Vec<Arc<Connection>>,
) {
    let index = endpoint.topics.shards[io.index].lock();
    let mut forms = Forms::new(endpoint, message);
    index.for_each(&message.topic, |who, subscriber| {
        if exclude != Some(who) {
            give(endpoint, subscriber, &mut forms, round, touched);
        }
    });
}

/// The turn of a subscription: says that there is one, and gives what was missed.
pub(crate) fn subscribe(io: &IoThread, entrance: Entrance, round: &mut Round, touched: &mut Vec<Arc<Connection>>) {
    let Entrance { endpoint, subscriber, filters, missed, begin, confirm } = entrance;
    {
        let mut index = endpoint.topics.shards[io.index].lock();
        // Looked at under the lock under which all are forgotten when the owner goes.
        if endpoint.is_abandoned() {
            return;
        }
        for filter in &filters {
            index.insert(filter, subscriber.who(), subscriber.clone());
        }
    }
    let Begin { position, complete } = begin;
    match &subscriber {
        Subscriber::Channel(conn) => {
            for filter in &confirm {
                let topic = message::json(filter);
                let text =
                    format!(r#"{{"pyhv":"subscribed","topic":{topic},"position":"{position}","complete":{complete}}}"#);
                queue(conn, &mut notice(&endpoint, &text, None), round, touched);
            }
        }
        Subscriber::Stream { stream, .. } => {
            // An id without data is no event, but what the client sends when it comes back (WHATWG HTML section 9.2.6).
            let gap = if complete { "" } else { "event: gap\ndata:\n" };
            let _ = stream.write(format!("id: {position}\n{gap}\n").into());
        }
    }
    let mut queued = 0;
    for message in missed {
        give(&endpoint, &subscriber, &mut Forms::new(&endpoint, &message), round, touched);
        queued += message.size();
        if queued >= WRITE_AT
            && let Subscriber::Channel(conn) = &subscriber
        {
            queued = 0;
            conn.flush_early();
        }
    }
}

/// The turn of the end of some subscriptions.
pub(crate) fn unsubscribe(io: &IoThread, endpoint: &Endpoint, who: Who, filters: &[Arc<str>]) {
    let mut gone = Vec::with_capacity(filters.len());
    {
        let mut index = endpoint.topics.shards[io.index].lock();
        gone.extend(filters.iter().map(|filter| index.remove(filter, who)));
    }
    // It may have the last reference to a connection: not under the lock.
    drop(gone);
}
