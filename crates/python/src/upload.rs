//! `Upload`: a file of a form as the native side keeps it. `pyhv.forms.UploadedFile` is what programs get.

use pyhv_engine::upload::{self as engine, Content, Form};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};
use std::path::PathBuf;
use std::sync::Arc;

/// A file of a form, in memory or in a temporary file that is deleted with it. Any thread; nothing blocks.
#[pyclass(frozen, module = "pyhv._native")]
pub(crate) struct Upload {
    inner: Arc<engine::Upload>,
}

#[pymethods]
impl Upload {
    /// The name of the form's field.
    #[getter]
    fn name(&self) -> &str {
        &self.inner.name
    }

    /// The name of the file, as sent.
    #[getter]
    fn filename(&self) -> &str {
        &self.inner.filename
    }

    /// The type, as sent.
    #[getter]
    fn content_type(&self) -> &str {
        &self.inner.content_type
    }

    /// Bytes.
    #[getter]
    fn size(&self) -> u64 {
        self.inner.size
    }

    /// Whether it is in a temporary file, which may be moved.
    #[getter]
    fn is_temporary(&self) -> bool {
        self.inner.is_temporary()
    }

    /// The bytes, or the path of a file with them.
    fn content(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        Ok(match self.inner.content() {
            Content::Bytes(bytes) => PyBytes::new(py, &bytes).into_any().unbind(),
            Content::File(path) => path.into_os_string().into_pyobject(py)?.into_any().unbind(),
        })
    }

    /// Tells that the temporary file was moved.
    fn moved(&self, path: PathBuf) {
        self.inner.moved(path);
    }
}

/// `pyhv.forms.FormData` of pairs.
pub(crate) fn form_object(py: Python<'_>, pairs: Vec<(String, String)>) -> PyResult<Py<PyAny>> {
    Ok(py.import("pyhv.forms")?.getattr("FormData")?.call1((pairs,))?.unbind())
}

/// `pyhv.forms.UploadedFiles` of a form, or empty.
pub(crate) fn files_object(py: Python<'_>, form: Option<&Form>) -> PyResult<Py<PyAny>> {
    let forms = py.import("pyhv.forms")?;
    let class = forms.getattr("UploadedFile")?;
    let pairs = PyList::empty(py);
    for file in form.iter().flat_map(|form| &form.files) {
        pairs.append((&file.name, class.call1((Upload { inner: Arc::clone(file) },))?))?;
    }
    Ok(forms.getattr("UploadedFiles")?.call1((pairs,))?.unbind())
}
