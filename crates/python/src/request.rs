//! `HttpRequest`: what a handler gets.

use crate::channel::{address_object, path_object, query_object};
use crate::convert;
use bytes::Bytes;
use pyhv_engine::request::{self as engine, HttpResponse};
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyDict, PyList, PyTuple};

/// An HTTP request with its whole body, as a handler gets it.
///
/// All members may be used from any thread; none of them blocks.
#[pyclass(frozen, weakref, module = "pyhv")]
pub(crate) struct HttpRequest {
    inner: engine::HttpRequest,
    headers: PyOnceLock<Py<PyAny>>,
    query: PyOnceLock<Py<PyAny>>,
    params: PyOnceLock<Py<PyDict>>,
    body: PyOnceLock<Py<PyBytes>>,
}

impl HttpRequest {
    pub(crate) fn new(inner: engine::HttpRequest) -> Self {
        Self {
            inner,
            headers: PyOnceLock::new(),
            query: PyOnceLock::new(),
            params: PyOnceLock::new(),
            body: PyOnceLock::new(),
        }
    }

    pub(crate) fn route(&self) -> usize {
        self.inner.route
    }
}

#[pymethods]
impl HttpRequest {
    /// The method, in capitals as sent.
    #[getter]
    fn method(&self) -> &str {
        self.inner.method.as_str()
    }

    /// The request target as sent: path and query.
    #[getter]
    fn url(&self) -> &str {
        &self.inner.url
    }

    /// The path of `url`, percent-decoded.
    #[getter]
    fn path<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        path_object(py, &self.inner.url)
    }

    /// The path parameters by name, percent-decoded.
    #[getter]
    fn params(&self, py: Python<'_>) -> PyResult<Py<PyDict>> {
        let params = self.params.get_or_try_init(py, || {
            let dict = PyDict::new(py);
            for (name, value) in &self.inner.params {
                dict.set_item(&**name, value)?;
            }
            PyResult::Ok(dict.unbind())
        })?;
        Ok(params.clone_ref(py))
    }

    /// The query parameters, as `QueryParams`.
    #[getter]
    fn query(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        Ok(self.query.get_or_try_init(py, || query_object(py, &self.inner.url))?.clone_ref(py))
    }

    /// The headers, as `Headers`.
    #[getter]
    fn headers(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let headers = self.headers.get_or_try_init(py, || {
            let pairs = self.inner.headers.iter().map(|(k, v)| (k.as_str(), convert::latin1(v.as_bytes())));
            let pairs = PyList::new(py, pairs.collect::<Vec<_>>())?;
            PyResult::Ok(py.import("pyhv.http")?.getattr("Headers")?.call1((pairs,))?.unbind())
        })?;
        Ok(headers.clone_ref(py))
    }

    /// The body.
    #[getter]
    fn body(&self, py: Python<'_>) -> Py<PyBytes> {
        self.body.get_or_init(py, || PyBytes::new(py, &self.inner.body).unbind()).clone_ref(py)
    }

    /// The peer's address: (host, port).
    #[getter]
    fn remote_address<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        address_object(py, self.inner.remote)
    }

    /// The body as text. Undecodable bytes raise UnicodeDecodeError.
    ///
    /// encoding: UTF-8 unless told otherwise.
    #[pyo3(signature = (encoding="utf-8"))]
    fn text<'py>(&self, py: Python<'py>, encoding: &str) -> PyResult<Bound<'py, PyAny>> {
        self.body(py).bind(py).call_method1("decode", (encoding,))
    }

    /// The body as JSON. Raises ValueError when it is not.
    fn json<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        py.import("json")?.getattr("loads")?.call1((self.body(py),))
    }

    /// Sends the answer: for `HttpResponse`, not for programs.
    fn _respond(&self, status: u16, headers: Vec<(String, String)>, body: &Bound<'_, PyBytes>) -> PyResult<()> {
        let status = http::StatusCode::from_u16(status)
            .map_err(|_| PyValueError::new_err(format!("status={status} is not between 100 and 999")))?;
        let headers = headers.into_iter().map(|(name, value)| header(&name, &value)).collect::<PyResult<Vec<_>>>()?;
        let response = HttpResponse { status, headers, body: Bytes::copy_from_slice(body.as_bytes()) };
        if !self.inner.responder.respond(response) {
            return Err(PyRuntimeError::new_err("the request was answered already"));
        }
        Ok(())
    }

    fn __repr__(&self) -> String {
        format!("<HttpRequest {} {} from {}>", self.inner.method, self.inner.url, self.inner.remote)
    }
}

/// A header that may be sent: no CR, LF or NUL can get in (RFC 9110 section 5.5).
pub(crate) fn header(name: &str, value: &str) -> PyResult<(http::HeaderName, http::HeaderValue)> {
    let bad = |what: &str| PyValueError::new_err(format!("header {name:?}: {what}"));
    let parsed = http::HeaderName::from_bytes(name.as_bytes()).map_err(|_| bad("not a header name"))?;
    let bytes: Option<Vec<u8>> = value.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect();
    let bytes = bytes.ok_or_else(|| bad(&format!("the value {value:?} has characters outside Latin-1")))?;
    let value = http::HeaderValue::from_bytes(&bytes)
        .map_err(|_| bad(&format!("the value {value:?} has control characters")))?;
    Ok((parsed, value))
}

impl HttpRequest {
    /// Answers 500, unless an answer was given, with nothing of the exception in it.
    pub(crate) fn fail(&self) {
        let body = Bytes::from_static(b"500 Internal Server Error\n");
        let content_type = http::HeaderValue::from_static("text/plain; charset=utf-8");
        let headers = vec![(http::header::CONTENT_TYPE, content_type)];
        let status = http::StatusCode::INTERNAL_SERVER_ERROR;
        self.inner.responder.respond(HttpResponse { status, headers, body });
    }

    pub(crate) fn describe(&self) -> String {
        format!("{} {}", self.inner.method, self.inner.url)
    }
}
