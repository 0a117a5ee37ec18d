//! What stands around every answer, from Python: CORS, compression, the access log's records.

use crate::convert;
use http::{HeaderName, HeaderValue, Method};
use pyhv_engine::server::access::AccessRecord;
use pyhv_engine::server::compress::{Coding, Compression};
use pyhv_engine::server::cors::Cors;
use pyhv_engine::server::health::{Probe, Share};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use std::time::{Duration, UNIX_EPOCH};

/// Arguments of `allow_cors`, checked. Lists that are `None` stand for everything.
pub(crate) fn cors(
    origins: Option<Vec<String>>,
    methods: Option<Vec<String>>,
    headers: Option<Vec<String>>,
    expose_headers: &[String],
    credentials: bool,
    max_age: f64,
) -> PyResult<Cors> {
    if credentials && origins.is_none() {
        return Err(PyValueError::new_err(
            "origins=\"*\" does not go with credentials=True: every page on the web could act with its visitor's \
             cookies. List the origins",
        ));
    }
    let origins = origins.map(|list| list.iter().map(|origin| normal_origin(origin)).collect()).transpose()?;
    let method = |name: &String| {
        let known = Method::from_bytes(name.as_bytes()).ok();
        known.ok_or_else(|| PyValueError::new_err(format!("methods: {name:?} is not an HTTP method")))
    };
    let methods = methods.map(|list| list.iter().map(method).collect()).transpose()?;
    let names = |what: &'static str, list: &[String]| -> PyResult<Vec<HeaderName>> {
        let name = |name: &String| {
            let known = HeaderName::from_bytes(name.as_bytes()).ok();
            known.ok_or_else(|| PyValueError::new_err(format!("{what}: {name:?} is not a header name")))
        };
        list.iter().map(name).collect()
    };
    let headers = headers.map(|list| names("headers", &list)).transpose()?;
    let exposed = names("expose_headers", expose_headers)?;
    let exposed = exposed.iter().map(HeaderName::as_str).collect::<Vec<_>>().join(", ");
    let exposed = if exposed.is_empty() { None } else { HeaderValue::from_str(&exposed).ok() };
    let max_age = convert::seconds("max_age", max_age)?.as_secs();
    Ok(Cors { origins, methods, headers, exposed, credentials, max_age })
}

/// An origin as browsers send it: in lower case, without the port that is the scheme's own (RFC 6454 section 6.2).
fn normal_origin(text: &str) -> PyResult<String> {
    convert::check_origin("origins", text)?;
    let origin = text.to_ascii_lowercase();
    let default = match origin.split_once("://") {
        Some(("http", _)) => ":80",
        Some(("https", _)) => ":443",
        _ => "",
    };
    Ok(origin.strip_suffix(default).map(str::to_owned).unwrap_or(origin))
}

/// Arguments of `compress_responses`, checked.
pub(crate) fn compression(min_size: i64, codings: &[String], level: Option<i64>) -> PyResult<Compression> {
    let min_size = u64::try_from(min_size)
        .map_err(|_| PyValueError::new_err(format!("min_size={min_size} is not a number of bytes of at least 0")))?;
    let mut known = Vec::new();
    for name in codings {
        match Coding::named(name) {
            Some(coding) if !known.contains(&coding) => known.push(coding),
            Some(_) => return Err(PyValueError::new_err(format!("codings: {name:?} is there twice"))),
            None => {
                return Err(PyValueError::new_err(format!("codings: {name:?} is none of \"zstd\", \"br\", \"gzip\"")));
            }
        }
    }
    if known.is_empty() {
        return Err(PyValueError::new_err("codings is empty: name at least one of \"zstd\", \"br\", \"gzip\""));
    }
    let level = match level {
        None => None,
        Some(level) => match u32::try_from(level) {
            Ok(level @ 1..=9) => Some(level),
            _ => return Err(PyValueError::new_err(format!("level={level} is not between 1 and 9, or None"))),
        },
    };
    Ok(Compression { min_size, codings: known, level })
}

/// Arguments of `enable_healthz` and `enable_readyz`, checked.
pub(crate) fn probe(readiness: bool, max_tick_age: Option<f64>, max_load: Option<f64>) -> PyResult<Probe> {
    let max_tick_age = max_tick_age.map(|seconds| convert::seconds("max_tick_age", seconds)).transpose()?;
    if max_tick_age == Some(Duration::ZERO) {
        return Err(PyValueError::new_err("max_tick_age=0 would never be kept: None is no limit"));
    }
    if let Some(load) = max_load
        && !(load > 0.0 && load <= 1.0)
    {
        return Err(PyValueError::new_err(format!(
            "max_load={load} is not a part of max_connections: above 0, at most 1"
        )));
    }
    Ok(Probe { readiness, max_tick_age, max_load: max_load.map(Share) })
}

/// A version of HTTP as `http_version` has it.
pub(crate) fn version_name(version: http::Version) -> &'static str {
    match version {
        http::Version::HTTP_10 => "1.0",
        http::Version::HTTP_2 => "2",
        _ => "1.1",
    }
}

/// Hands a record to the method that logs it.
pub(crate) fn log_access(object: &Bound<'_, PyAny>, record: &AccessRecord) -> PyResult<()> {
    let started = record.started.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let arguments = (
        record.address.to_string(),
        record.method.as_str(),
        &record.url,
        version_name(record.version),
        record.status,
        record.sent,
        started,
        record.duration.as_secs_f64(),
        record.referer.as_deref(),
        record.user_agent.as_deref(),
    );
    object.call_method1(pyo3::intern!(object.py(), "_on_access"), arguments)?;
    Ok(())
}
