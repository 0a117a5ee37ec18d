//! Topics on an I/O thread: commands of the queue going down have their turn here.
//!
//! What a topic's subscriber gets is queued on its connection at once, in the shared frame, and written when the pump has
//! applied all that waited: so several topics, sends and broadcasts of a tick leave in one write, in the order of the calls.

use super::message::{Forms, Message, notice};
use super::{Ahead, Begin, Entrance, Position, Shard, Subscriber, Who, matches, message};
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
    let Shard { index, ahead } = &mut *endpoint.topics.shards[io.index].lock();
    let mut forms = Forms::new(endpoint, message);
    index.for_each(&message.topic, |who, subscriber| {
        if exclude != Some(who) && (ahead.is_empty() || !has_had(ahead, who, message)) {
            give(endpoint, subscriber, &mut forms, round, touched);
        }
    });
}

/// Whether a subscriber has come from another node with a message. What the others have come up to is forgotten.
fn has_had(ahead: &mut Ahead, who: Who, message: &Message) -> bool {
    let Message { topic, position, placed, .. } = message;
    let Some(filters) = ahead.get_mut(&who).filter(|_| *placed) else { return false };
    filters.retain(|(_, had)| had.epoch == position.epoch && had.seq >= position.seq);
    let had = filters.iter().any(|(filter, _)| matches(filter, topic));
    if filters.is_empty() {
        ahead.remove(&who);
    }
    had
}

/// The turn of a message that says that some are lost. `told`: who is to hear it, and of which filters.
pub(crate) fn gap(
    io: &IoThread,
    endpoint: &Arc<Endpoint>,
    position: Position,
    told: &[(Who, Vec<Arc<str>>)],
    round: &mut Round,
    touched: &mut Vec<Arc<Connection>>,
) {
    let shard = endpoint.topics.shards[io.index].lock();
    for (who, filters) in told {
        // Those of other threads are not there.
        let Some(subscriber) = filters.first().and_then(|filter| shard.index.get(filter, *who)) else { continue };
        let speaks = match subscriber {
            Subscriber::Channel(conn) => endpoint.topics.are_spoken_by(conn),
            Subscriber::Stream { .. } => true,
        };
        if speaks {
            say(endpoint, subscriber, filters, Begin { position, complete: false }, round, touched);
        }
    }
}

/// Says how a subscription begins, or goes on.
fn say(
    endpoint: &Arc<Endpoint>,
    subscriber: &Subscriber,
    filters: &[Arc<str>],
    begin: Begin,
    round: &mut Round,
    touched: &mut Vec<Arc<Connection>>,
) {
    let Begin { position, complete } = begin;
    match subscriber {
        Subscriber::Channel(conn) => {
            for filter in filters {
                let topic = message::json(filter);
                let text =
                    format!(r#"{{"pyhv":"subscribed","topic":{topic},"position":"{position}","complete":{complete}}}"#);
                queue(conn, &mut notice(endpoint, &text, None), round, touched);
            }
        }
        Subscriber::Stream { stream, .. } => {
            // An id without data is no event, but what the client sends when it comes back (WHATWG HTML section 9.2.6).
            let gap = if complete { "" } else { "event: gap\ndata:\n" };
            let _ = stream.write(format!("id: {position}\n{gap}\n").into());
        }
    }
}

/// The turn of a subscription: says that there is one, and gives what was missed.
pub(crate) fn subscribe(io: &IoThread, entrance: Entrance, round: &mut Round, touched: &mut Vec<Arc<Connection>>) {
    let Entrance { endpoint, subscriber, filters, missed, begin, ahead, confirm } = entrance;
    {
        let shard = &mut *endpoint.topics.shards[io.index].lock();
        // Looked at under the lock under which all are forgotten when the owner goes.
        if endpoint.is_abandoned() {
            return;
        }
        for filter in &filters {
            shard.index.insert(filter, subscriber.who(), subscriber.clone());
        }
        if let Some(position) = ahead {
            let had = shard.ahead.entry(subscriber.who()).or_default();
            had.extend(filters.iter().map(|filter| (Arc::clone(filter), position)));
        }
    }
    if let Some(begin) = begin {
        say(&endpoint, &subscriber, &confirm, begin, round, touched);
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
        let shard = &mut *endpoint.topics.shards[io.index].lock();
        gone.extend(filters.iter().map(|filter| shard.index.remove(filter, who)));
        if let Some(ahead) = shard.ahead.get_mut(&who) {
            ahead.retain(|(filter, _)| !filters.contains(filter));
            if ahead.is_empty() {
                shard.ahead.remove(&who);
            }
        }
    }
    // It may have the last reference to a connection: not under the lock.
    drop(gone);
}
