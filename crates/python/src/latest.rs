//! `latest=`: of the messages that wait for one tick, only the newest of each key is delivered.

use crate::client::WebSocketClient;
use crate::convert;
use crate::server::Server;
use crate::ticker::callback_failed;
use pyhv_engine::inbox::{Batch, Event};
use pyo3::PyClass;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::sync::atomic::Ordering;

/// What one pass over a batch needs to know.
pub(crate) trait Keys {
    /// The key of a message, `None` for one that stands alone. Runs the program's function.
    fn key<'py>(&self, py: Python<'py>, event: &Event, arena: &[u8]) -> PyResult<Option<Bound<'py, PyAny>>>;

    /// A message of this channel gave way to a newer one.
    fn skipped(&self, py: Python<'_>, channel: u32);
}

/// Asks the program's function. One that raises is reported, and the message stands alone.
pub(crate) fn key<'py>(
    object: &Bound<'_, impl PyClass>,
    function: &Bound<'py, PyAny>,
    arguments: impl pyo3::call::PyCallArgs<'py>,
) -> PyResult<Option<Bound<'py, PyAny>>> {
    // Hashed here: what has no hash is the function's fault.
    let answer = function.call1(arguments).and_then(|key| key.hash().map(|_| key));
    match answer {
        Ok(key) => Ok(Some(key).filter(|key| !key.is_none())),
        Err(error) => {
            callback_failed(object.as_any(), "latest", error)?;
            Ok(None)
        }
    }
}

/// `latest=` of a server: a function of channel and message.
pub(crate) struct ServerKeys<'a, 'py> {
    pub(crate) server: &'a Bound<'py, Server>,
    pub(crate) function: Py<PyAny>,
}

impl Keys for ServerKeys<'_, '_> {
    fn key<'py>(&self, py: Python<'py>, event: &Event, arena: &[u8]) -> PyResult<Option<Bound<'py, PyAny>>> {
        let (number, kind, payload) = match event {
            Event::Message { channel, kind, start, len } => (*channel, *kind, &arena[*start..*start + *len]),
            Event::LargeMessage { channel, kind, data } => (*channel, *kind, &data[..]),
            _ => return Ok(None),
        };
        // One whose open is in this batch too has no object yet: its messages all come, once.
        let Some(channel) = self.server.get().channel(py, number) else { return Ok(None) };
        let message = convert::message(py, kind, payload)?;
        key(self.server, self.function.bind(py), (channel, message))
    }

    fn skipped(&self, py: Python<'_>, channel: u32) {
        if let Some(channel) = self.server.get().channel(py, channel) {
            channel.get().skipped.fetch_add(1, Ordering::Relaxed);
            channel.get().conn.endpoint().stats.count_skipped();
        }
    }
}

/// `latest=` of a client: a function of the message.
pub(crate) struct ClientKeys<'a, 'py> {
    pub(crate) client: &'a Bound<'py, WebSocketClient>,
    pub(crate) function: Py<PyAny>,
}

impl Keys for ClientKeys<'_, '_> {
    fn key<'py>(&self, py: Python<'py>, event: &Event, arena: &[u8]) -> PyResult<Option<Bound<'py, PyAny>>> {
        let (kind, payload) = match event {
            Event::Message { kind, start, len, .. } => (*kind, &arena[*start..*start + *len]),
            Event::LargeMessage { kind, data, .. } => (*kind, &data[..]),
            _ => return Ok(None),
        };
        let message = convert::message(py, kind, payload)?;
        key(self.client, self.function.bind(py), (message,))
    }

    fn skipped(&self, _py: Python<'_>, _channel: u32) {
        self.client.get().skipped.fetch_add(1, Ordering::Relaxed);
    }
}

/// Where the newest message of each channel and key lies, among those that wait: number of the batch, and place there.
#[derive(Default)]
pub(crate) struct Newest(Option<Py<PyDict>>);

impl Newest {
    /// Forgets all: nothing waits.
    pub(crate) fn clear(&mut self) {
        self.0 = None;
    }

    /// Looks at a new batch, whose number is `number`. What gives way in it is taken out of it at once; `older` takes out
    /// what lies in an older one, and tells whether it was there.
    pub(crate) fn sift(
        &mut self,
        py: Python<'_>,
        keys: &dyn Keys,
        batch: &mut Batch,
        number: u64,
        mut older: impl FnMut(u64, usize) -> bool,
    ) -> PyResult<()> {
        let seen = self.0.get_or_insert_with(|| PyDict::new(py).unbind()).bind(py);
        for index in 0..batch.events.len() {
            let channel = match &batch.events[index] {
                Event::Message { channel, .. } | Event::LargeMessage { channel, .. } => *channel,
                // The number may belong to another channel from here on.
                Event::Close { channel } => {
                    let _ = seen.del_item(channel);
                    continue;
                }
                _ => continue,
            };
            let Some(key) = keys.key(py, &batch.events[index], &batch.arena)? else { continue };
            let places = match seen.get_item(channel)? {
                Some(places) => places.cast_into::<PyDict>()?,
                None => {
                    let places = PyDict::new(py);
                    seen.set_item(channel, &places)?;
                    places
                }
            };
            let before = places.get_item(&key)?;
            places.set_item(&key, (number, index))?;
            if let Some(before) = before {
                let (old, place): (u64, usize) = before.extract()?;
                let gave_way = if old == number { batch.supersede(place) } else { older(old, place) };
                if gave_way {
                    keys.skipped(py, channel);
                }
            }
        }
        Ok(())
    }
}
