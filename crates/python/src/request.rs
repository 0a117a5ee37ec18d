//! `HttpRequest`: what a handler gets.

use crate::around::version_name;
use crate::channel::{address_object, path_object, query_object};
use crate::convert;
use crate::response::{internal_error, plain};
use crate::upload::{files_object, form_object};
use bytes::Bytes;
use http::HeaderMap;
use pyhv_engine::request::{self as engine, HttpResponse};
use pyhv_engine::upload;
use pyo3::exceptions::{PyRuntimeError, PyUnicodeDecodeError, PyValueError};
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
    form: PyOnceLock<Py<PyAny>>,
    files: PyOnceLock<Py<PyAny>>,
    cookies: PyOnceLock<Py<PyAny>>,
}

impl HttpRequest {
    pub(crate) fn new(inner: engine::HttpRequest) -> Self {
        Self {
            inner,
            headers: PyOnceLock::new(),
            query: PyOnceLock::new(),
            params: PyOnceLock::new(),
            body: PyOnceLock::new(),
            form: PyOnceLock::new(),
            files: PyOnceLock::new(),
            cookies: PyOnceLock::new(),
        }
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
        let headers = self.headers.get_or_try_init(py, || headers_of(py, &self.inner.headers))?;
        Ok(headers.clone_ref(py))
    }

    /// The cookies: a dict of names and values.
    ///
    /// Values are UTF-8, without the quotation marks that they may be in. Of several with one name the first counts:
    /// browsers send the one of the longest path first (RFC 6265 section 5.4). What is no pair is passed over.
    #[getter]
    fn cookies(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let parse = || {
            let headers = self.headers(py)?;
            PyResult::Ok(py.import("pyhv.cookies")?.getattr("_parse")?.call1((headers,))?.unbind())
        };
        Ok(self.cookies.get_or_try_init(py, parse)?.clone_ref(py))
    }

    /// The body, decoded if it came with a Content-Encoding. b"" for `multipart/form-data`, which `form()` and `files` have
    /// instead.
    #[getter]
    fn body(&self, py: Python<'_>) -> Py<PyBytes> {
        self.body.get_or_init(py, || PyBytes::new(py, &self.inner.body).unbind()).clone_ref(py)
    }

    /// The peer's address: (host, port).
    #[getter]
    fn remote_address<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        address_object(py, self.inner.remote)
    }

    /// The address of the client: the peer's, or behind `trusted_proxies` the one that they tell.
    #[getter]
    fn client_address(&self) -> String {
        self.inner.sender.address.to_string()
    }

    /// "https" if the client speaks TLS, to this server or to one of `trusted_proxies`; else "http".
    #[getter]
    fn scheme(&self) -> &'static str {
        self.inner.sender.scheme()
    }

    /// The version of HTTP that the peer speaks: "1.0", "1.1" or "2".
    #[getter]
    fn http_version(&self) -> &'static str {
        version_name(self.inner.version)
    }

    /// The body as text.
    ///
    /// encoding: UTF-8 unless told otherwise. Raises BadRequest (a ValueError) for bytes that are none: a handler that
    /// lets it go answers with 400. LookupError for an unknown encoding.
    #[pyo3(signature = (encoding="utf-8"))]
    fn text<'py>(&self, py: Python<'py>, encoding: &str) -> PyResult<Bound<'py, PyAny>> {
        self.body(py).bind(py).call_method1("decode", (encoding,)).map_err(|error| {
            if !error.is_instance_of::<PyUnicodeDecodeError>(py) {
                return error;
            }
            bad_request(py, &format!("the body is not {encoding}"), Some(error))
        })
    }

    /// The body as JSON, decoded by msgspec where it is installed, else by the standard library.
    ///
    /// Raises BadRequest (a ValueError) when it is not JSON: a handler that lets it go answers with 400.
    fn json<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let decode = py.import("pyhv.http")?.getattr("_json_value")?;
        decode.call1((self.body(py),)).map_err(|error| {
            if !error.is_instance_of::<PyValueError>(py) {
                return error;
            }
            bad_request(py, "the body is not JSON", Some(error))
        })
    }

    /// The text fields of a form, `multipart/form-data` or `application/x-www-form-urlencoded`, as `FormData`.
    ///
    /// Text is UTF-8; bytes that are none become U+FFFD. Raises BadRequest (a ValueError) for a body of another type, or one
    /// of more than `max_form_parts` fields: a handler that lets it go answers with 400.
    fn form(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let parse = || {
            if let Some(form) = &self.inner.form {
                return form_object(py, form.fields.clone());
            }
            if upload::is_urlencoded(&self.inner.headers) {
                let limit = self.inner.max_form_parts;
                let pairs: Vec<_> = upload::urlencoded(&self.inner.body).take(limit.saturating_add(1)).collect();
                if pairs.len() > limit {
                    let text = format!("the form has more fields than max_form_parts={limit}");
                    return Err(bad_request(py, &text, None));
                }
                return form_object(py, pairs);
            }
            let sent = self.header("content-type").map(|value| convert::latin1(value.as_bytes()));
            let sent = sent.map_or_else(|| "it has no Content-Type".to_owned(), |s| format!("its Content-Type is {s}"));
            let wanted = "multipart/form-data or application/x-www-form-urlencoded";
            Err(bad_request(py, &format!("the body is not a form: {sent}, not {wanted}"), None))
        };
        Ok(self.form.get_or_try_init(py, parse)?.clone_ref(py))
    }

    /// The files of a `multipart/form-data` body, as `UploadedFiles`; empty for any other.
    ///
    /// Those in temporary files are deleted when nobody holds the request nor them any more.
    #[getter]
    fn files(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let files = self.files.get_or_try_init(py, || files_object(py, self.inner.form.as_ref()))?;
        Ok(files.clone_ref(py))
    }

    /// Sends the answer: for `HttpResponse`, not for programs.
    fn _respond(&self, status: u16, headers: Vec<(String, String)>, body: &Bound<'_, PyBytes>) -> PyResult<()> {
        let status = http::StatusCode::from_u16(status)
            .map_err(|_| PyValueError::new_err(format!("status={status} is not between 100 and 999")))?;
        let mut fields = HeaderMap::new();
        for (name, value) in headers {
            let (name, value) = header(&name, &value)?;
            fields.append(name, value);
        }
        let body = Bytes::copy_from_slice(body.as_bytes()).into();
        let response = HttpResponse { status, headers: fields, body };
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

/// `pyhv.http.Headers` of a header map.
pub(crate) fn headers_of(py: Python<'_>, headers: &HeaderMap) -> PyResult<Py<PyAny>> {
    let pairs = headers.iter().map(|(k, v)| (k.as_str(), convert::latin1(v.as_bytes())));
    let pairs = PyList::new(py, pairs.collect::<Vec<_>>())?;
    Ok(py.import("pyhv.http")?.getattr("Headers")?.call1((pairs,))?.unbind())
}

/// A `BadRequest`, which a tick answers with 400 and this text.
pub(crate) fn bad_request(py: Python<'_>, text: &str, cause: Option<PyErr>) -> PyErr {
    let make = || PyResult::Ok(PyErr::from_value(py.import("pyhv.errors")?.getattr("BadRequest")?.call1((text,))?));
    let error = make().unwrap_or_else(|failed| failed);
    error.set_cause(py, cause);
    error
}

impl HttpRequest {
    /// A header, if there is one of the name.
    pub(crate) fn header(&self, name: &str) -> Option<&http::HeaderValue> {
        self.inner.headers.get(name)
    }

    /// The handler raised: answers 500, with nothing of the exception in it, unless an answer was given.
    pub(crate) fn fail(&self) {
        self.inner.responder.respond(internal_error());
    }

    /// The handler raised a `BadRequest`: answers 400 with its text; false when it is another error.
    pub(crate) fn refuse(&self, py: Python<'_>, error: &PyErr) -> PyResult<bool> {
        if !error.is_instance(py, &py.import("pyhv.errors")?.getattr("BadRequest")?) {
            return Ok(false);
        }
        let text = format!("400 Bad Request: {}\n", error.value(py).str()?.to_string_lossy());
        self.inner.responder.respond(plain(http::StatusCode::BAD_REQUEST, text));
        Ok(true)
    }

    pub(crate) fn describe(&self) -> String {
        format!("{} {}", self.inner.method, self.inner.url)
    }
}
