//! Topics as Python sees them: what `Server`, `WebSocketChannel` and `StreamWriter` have of them.

use crate::channel::WebSocketChannel;
use crate::convert::KeyArgument;
use crate::server::Server;
use crate::ticker::check_process;
use parking_lot::Mutex;
use pyhv_engine::connection::Connection;
use pyhv_engine::endpoint::Endpoint;
use pyhv_engine::topics::{
    After, Begin, Keep, NameError, Position, Refusal, Rules, SUBPROTOCOL, Subscriber, Who, check_filter, check_name,
};
use pyhv_engine::wire::{MessageKind, Opcode};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use std::sync::Arc;
use std::time::Duration;

/// What `keep` was told, for this run and the next ones.
#[derive(Default)]
pub(crate) struct Kept(Mutex<Rules>);

impl Kept {
    /// Adds a rule, or takes one away.
    pub(crate) fn set(&self, filter: &str, keep: Option<Keep>, endpoint: Option<&Endpoint>) -> PyResult<()> {
        // Before a run its limit is not known: what is too long for it stands for nothing there.
        let limit = endpoint.map_or(usize::MAX, |endpoint| endpoint.settings.max_topic_length);
        check_filter(filter, limit).map_err(|error| bad(filter, error))?;
        let mut rules = self.0.lock();
        rules.set(filter, keep);
        if let Some(endpoint) = endpoint {
            endpoint.topics.set_rules(rules.clone());
        }
        Ok(())
    }

    /// For a run that begins.
    pub(crate) fn rules(&self) -> Rules {
        self.0.lock().clone()
    }
}

/// The arguments of `keep`.
pub(crate) fn keep(messages: usize, seconds: Option<f64>, bytes: usize) -> PyResult<Keep> {
    let age = seconds.map(|seconds| crate::convert::seconds("seconds", seconds)).transpose()?;
    if age == Some(Duration::ZERO) || messages == 0 || bytes == 0 {
        return Err(PyValueError::new_err("messages, seconds and bytes are above 0: keep nothing with forget()"));
    }
    Ok(Keep { messages, age, bytes })
}

fn bad(topic: &str, error: NameError) -> PyErr {
    PyValueError::new_err(format!("topic={topic:.80?}: {error}"))
}

/// Who is meant by `member=`, as JSON.
fn identity(py: Python<'_>, member: Option<&Bound<'_, PyAny>>) -> PyResult<Option<Arc<str>>> {
    let Some(member) = member else { return Ok(None) };
    let options = PyDict::new(py);
    options.set_item("sort_keys", true)?;
    options.set_item("ensure_ascii", false)?;
    options.set_item("separators", (",", ":"))?;
    let text: String = py.import("json")?.getattr("dumps")?.call((member,), Some(&options))?.extract()?;
    Ok(Some(text.into()))
}

/// `after=`: None, "oldest" or a position.
pub(crate) fn after(value: Option<&str>) -> After {
    match value {
        None => After::Now,
        Some("oldest") => After::Oldest,
        Some(text) => After::Position(Position::parse(text)),
    }
}

/// Subscribes; `None`: the subscriber has ended.
pub(crate) fn subscribe(
    py: Python<'_>,
    endpoint: &Arc<Endpoint>,
    subscriber: Subscriber,
    topics: &[&str],
    after: After,
    member: Option<&Bound<'_, PyAny>>,
    confirm: bool,
) -> PyResult<Option<Begin>> {
    check_process(endpoint, "server")?;
    for topic in topics {
        let limit = endpoint.settings.max_topic_length;
        check_filter(topic, limit).map_err(|error| bad(topic, error))?;
        if member.is_some() {
            // Who is there is asked for by the name of a topic.
            check_name(topic, limit).map_err(|error| bad(topic, error))?;
        }
    }
    let member = identity(py, member)?;
    match endpoint.subscribe(subscriber, topics, after, member.as_ref(), confirm) {
        Ok(begin) => Ok(Some(begin)),
        Err(Refusal::Ended) => Ok(None),
        Err(Refusal::TooMany(limit)) => Err(PyValueError::new_err(format!(
            "topic={:.80?}: it has as many subscriptions as max_subscriptions_per_channel={limit} allows",
            topics.first().copied().unwrap_or_default()
        ))),
    }
}

/// Ends a subscription; false: there was none.
pub(crate) fn unsubscribe(endpoint: &Arc<Endpoint>, subscriber: &Subscriber, topic: &str) -> PyResult<bool> {
    check_process(endpoint, "server")?;
    Ok(endpoint.unsubscribe(subscriber, topic))
}

/// What a subscriber has subscribed to.
pub(crate) fn of(endpoint: &Endpoint, subscriber: &Subscriber) -> PyResult<Vec<String>> {
    check_process(endpoint, "server")?;
    Ok(endpoint.topics.of(subscriber.who()).iter().map(|topic| topic.to_string()).collect())
}

/// `Server.publish`.
pub(crate) fn publish(
    server: &Server,
    topic: &str,
    msg: &Bound<'_, PyAny>,
    exclude: Option<&Bound<'_, WebSocketChannel>>,
    key: Option<&KeyArgument>,
) -> PyResult<Option<String>> {
    crate::convert::with_payload(msg, |kind, payload| {
        let Some(run) = server.running() else { return Ok(None) };
        let endpoint = &run.endpoint;
        check_process(endpoint, "server")?;
        check_name(topic, endpoint.settings.max_topic_length).map_err(|error| bad(topic, error))?;
        let opcode = match kind {
            MessageKind::Text => Opcode::Text,
            MessageKind::Binary => Opcode::Binary,
        };
        let excluded = exclude.map(|channel| &channel.get().conn);
        // A channel of another server or of an earlier run has a number that means somebody else here.
        let excluded = excluded.filter(|conn| Arc::ptr_eq(conn.endpoint(), endpoint));
        let excluded = excluded.map(|conn| Who::Channel(conn.channel()));
        let position = endpoint.publish(topic, opcode, payload, excluded, key.map(|KeyArgument(key)| key.as_ref()));
        Ok(position.map(|position| position.map(|position| position.to_string()).unwrap_or_default()))
    })
}

/// `Server.subscribers`.
pub(crate) fn subscribers<'py>(py: Python<'py>, server: &Server, topic: &str) -> PyResult<Bound<'py, PyList>> {
    let list = PyList::empty(py);
    let Some(run) = server.running() else { return Ok(list) };
    check_process(&run.endpoint, "server")?;
    let mut streams = None;
    for who in run.endpoint.topics.subscribers(topic) {
        match who {
            Who::Channel(number) => {
                if let Some(channel) = server.channel(py, number) {
                    list.append(channel)?;
                }
            }
            Who::Stream(id) => {
                let streams = streams.get_or_insert_with(|| server.handlers.streams(py));
                if let Some(writer) = streams.iter().find(|writer| writer.get().stream.id == id) {
                    list.append(writer)?;
                }
            }
        }
    }
    Ok(list)
}

/// Whether a client's connection speaks the convention.
pub(crate) fn is_spoken_by(conn: &Connection) -> bool {
    conn.handshake.subprotocol() == Some(SUBPROTOCOL)
}

/// Whether a text message may be one of the convention: Python looks closer.
pub(crate) fn may_ask(payload: &[u8]) -> bool {
    const MARK: &[u8] = b"\"pyhv\"";
    payload.first() == Some(&b'{') && payload.windows(MARK.len()).take(64).any(|part| part == MARK)
}

/// What a client's question for a topic came to, for `WebSocketChannel._ask`.
pub(crate) fn refusal(error: PyErr, py: Python<'_>) -> PyResult<Option<String>> {
    if error.is_instance_of::<PyValueError>(py) && !error.is_instance_of::<PyTypeError>(py) {
        return Ok(Some(error.value(py).str()?.to_string()));
    }
    Err(error)
}
