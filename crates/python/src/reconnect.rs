//! What a client that connects again keeps between two connections.

use crate::convert;
use pyhv_engine::client::Target;
use pyhv_engine::connection::Connection;
use pyhv_engine::reconnect::{Backoff, Policy, Queue};
use pyhv_engine::settings::Settings;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Of a `connect` with `reconnect`, from there to the end.
#[derive(Debug)]
pub(crate) struct Again {
    /// As the first time.
    pub(crate) target: Arc<Target>,
    pub(crate) backoff: Backoff,
    /// What was sent while there was no connection.
    pub(crate) queue: Queue,
}

impl Again {
    /// Of the fields of `pyhv.Reconnect`, which has checked what has nothing to do with other settings.
    pub(crate) fn new(options: &Bound<'_, PyDict>, settings: &Settings, target: &Arc<Target>) -> PyResult<Self> {
        let (mut limit, zero) = (0, Duration::ZERO);
        let mut policy =
            Policy { first: zero, factor: 1.0, max_delay: zero, jitter: 0.0, max_attempts: None, min_uptime: zero };
        for (name, value) in options {
            let name: String = name.extract()?;
            match name.as_str() {
                "first" => policy.first = convert::seconds(&name, value.extract()?)?,
                "factor" => policy.factor = value.extract()?,
                "max_delay" => policy.max_delay = convert::seconds(&name, value.extract()?)?,
                "jitter" => policy.jitter = value.extract()?,
                "max_attempts" => policy.max_attempts = value.extract()?,
                "min_uptime" => policy.min_uptime = convert::seconds(&name, value.extract()?)?,
                "queue_bytes" => limit = convert::size(&name, &value, 0)?,
                _ => return Err(PyTypeError::new_err(format!("Reconnect has no setting {name}"))),
            }
        }
        if limit > settings.max_buffered {
            return Err(PyValueError::new_err(format!(
                "queue_bytes={limit} is more than max_buffered={}: sending what has waited would close the connection",
                settings.max_buffered
            )));
        }
        Ok(Self { target: Arc::clone(target), backoff: Backoff::new(policy), queue: Queue::new(limit) })
    }

    /// A connection is open: what has waited goes first.
    pub(crate) fn opened(&mut self, conn: &Arc<Connection>) {
        self.backoff.opened(Instant::now());
        self.queue.send(conn);
    }
}
