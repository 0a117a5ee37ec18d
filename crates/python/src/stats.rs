//! What is counted, for Python; and where a server shows it.

use crate::convert;
use pyhv_engine::server::inside::{Inside, Show};
use pyhv_engine::stats::Snapshot;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

/// The fields of `ServerStats`, by name.
pub(crate) fn dict<'py>(py: Python<'py>, snapshot: &Snapshot) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    for (name, value) in snapshot.numbers() {
        dict.set_item(name, value)?;
    }
    dict.set_item("started", snapshot.started)?;
    dict.set_item("uptime", snapshot.uptime.as_secs_f64())?;
    dict.set_item("tick_running", snapshot.tick_running.as_secs_f64())?;
    dict.set_item("stall_age", snapshot.stall_age.as_secs_f64())?;
    let by_name = |name: &str, values: &mut dyn Iterator<Item = (&str, u64)>| -> PyResult<()> {
        let counts = PyDict::new(py);
        for (key, value) in values {
            counts.set_item(key, value)?;
        }
        dict.set_item(name, counts)
    };
    by_name("websockets_closed", &mut snapshot.websockets_closed.iter().map(|(code, n)| (code.as_ref(), *n)))?;
    by_name("http_responses", &mut snapshot.http_responses.iter().copied())?;
    by_name("refusals", &mut snapshot.refusals.iter().copied())?;
    let ticks = &snapshot.tick_seconds;
    let buckets: Vec<_> = ticks.buckets.iter().map(|(bound, n)| (bound.as_secs_f64(), *n)).collect();
    dict.set_item("tick_seconds", (buckets, ticks.count, ticks.sum.as_secs_f64()))?;
    Ok(dict)
}

/// The paths of `enable_metrics` or `enable_dashboard`, and what is shown there.
pub(crate) fn inside(what: &str, path: &str, allow: &Bound<'_, PyAny>) -> PyResult<Vec<(String, Inside)>> {
    let allow = convert::networks("allow", allow)?;
    if allow.is_empty() {
        return Err(PyValueError::new_err("allow is empty: nobody could look; list addresses and networks"));
    }
    let shown = |show| Inside { show, allow: allow.clone() };
    if what == "metrics" {
        return Ok(vec![(path.to_owned(), shown(Show::Metrics))]);
    }
    let json = format!("{}/stats.json", path.trim_end_matches('/'));
    Ok(vec![(path.to_owned(), shown(Show::Page)), (json, shown(Show::Json))])
}
