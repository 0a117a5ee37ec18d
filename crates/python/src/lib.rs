//! The bridge of pyHV: the extension module `pyhv._native`, and the only crate that knows Python.
//!
//! Native threads never attach to the interpreter and hold no Python object: everything here runs on threads that
//! Python made. Locks of this crate are held for a few instructions, never while Python code runs.
//!
//! * [`channel`]: `WebSocketChannel`; [`server`]: `Server`, the base of `HvWebServer`; [`client`]: `WebSocketClient`,
//!   the base of `HvWebSocketClient`, [`reconnect`]: what it keeps to connect again; [`handler`]: the handlers of requests; [`request`], [`response`]: `HttpRequest`,
//!   `HttpResponse`; [`writer`]: `StreamWriter`; [`http_client`]: the HTTP client; [`upload`]: the files of forms;
//!   [`around`]: what is done around every answer; [`sockets`]: where a server listens; [`topics`]: what those have of topics;
//! * [`ticker`]: what a tick is: taking a batch, running it, surviving exceptions, waiting;
//! * [`convert`]: messages, timeouts, settings and errors from and to Python.

mod around;
mod backplane;
mod channel;
mod client;
mod convert;
mod handler;
mod http_client;
mod latest;
mod reconnect;
mod request;
mod response;
mod server;
mod sockets;
mod stats;
mod stopping;
mod ticker;
mod topics;
mod upload;
mod writer;

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;

/// Sets how many native I/O threads serve the servers and clients of the process: 1 to 64, 1 unless set.
///
/// Raises ValueError for another number, and RuntimeError once they run, so call it before the first `start()` or
/// `connect()`. Any thread; never blocks.
#[pyfunction]
#[pyo3(text_signature = "(count)")]
fn set_io_threads(count: &Bound<'_, PyAny>) -> PyResult<()> {
    let number = convert::small_int(count)?.and_then(|n| usize::try_from(n).ok());
    let Some(count) = number.filter(|count| (1..=64).contains(count)) else {
        return Err(PyValueError::new_err(format!("io_threads={count} is not between 1 and 64")));
    };
    pyhv_engine::runtime::set_io_threads(count).map_err(|running| {
        PyRuntimeError::new_err(format!(
            "the I/O threads run already ({running} of them): call set_io_threads({count}) before the first start() \
             or connect()"
        ))
    })
}

/// The number of native I/O threads.
#[pyfunction]
fn io_threads() -> usize {
    pyhv_engine::runtime::io_threads()
}

/// Makes a local authority and a certificate for `names`: PEM of the authority, of the certificate with its chain, and
/// of the certificate's key.
#[pyfunction]
fn make_dev_certificates(names: Vec<String>) -> PyResult<(String, String, String)> {
    if names.is_empty() {
        return Err(PyValueError::new_err("names is empty: a certificate is for at least one host name or address"));
    }
    let made = pyhv_engine::tls::dev_certificates(&names).map_err(|error| convert::tls_error(&error))?;
    Ok((made.authority, made.certificate, made.key))
}

/// Whether this was built with optimisation and without debug assertions: only then speed means anything.
#[pyfunction]
fn _is_optimized() -> bool {
    !cfg!(debug_assertions)
}

/// Registered with `atexit`.
#[pyfunction]
fn _before_exit(py: Python<'_>) -> PyResult<()> {
    ticker::before_exit(py)
}

/// Registered with `os.register_at_fork`.
#[pyfunction]
fn _after_fork_in_child() {
    pyhv_engine::runtime::after_fork_in_child();
}

// `gil_used`: free-threaded Python is declared supported when the tests have run on it, not before.
#[pymodule(gil_used = true)]
mod _native {
    #[pymodule_export]
    use super::channel::WebSocketChannel;
    #[pymodule_export]
    use super::client::WebSocketClient;
    #[pymodule_export]
    use super::http_client::{HttpClient, http_request};
    #[pymodule_export]
    use super::request::HttpRequest;
    #[pymodule_export]
    use super::response::HttpResponse;
    #[pymodule_export]
    use super::server::Server;
    #[pymodule_export]
    use super::upload::Upload;
    #[pymodule_export]
    use super::writer::StreamWriter;
    #[pymodule_export]
    use super::{_after_fork_in_child, _before_exit, _is_optimized, io_threads, make_dev_certificates, set_io_threads};
}
