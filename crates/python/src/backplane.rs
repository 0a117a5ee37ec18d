//! What `start(backplane=...)` is given.

use crate::convert::{self, size, tls_error};
use pyhv_engine::backplane::{Address, Config, Kind, Overflow, shown};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::path::PathBuf;

/// The arguments by name, without "backplane_".
pub(crate) fn config(options: &Bound<'_, PyDict>) -> PyResult<Option<Config>> {
    let Some(url) = options.get_item("url")?.filter(|url| !url.is_none()) else {
        return Ok(None);
    };
    let url: String = url.extract().map_err(|_| PyTypeError::new_err("backplane= is a URL, a str"))?;
    // Said without user and password.
    let named = shown(&url);
    let address = Address::parse(&url)
        .map_err(|error| PyValueError::new_err(format!("backplane={named:?}: {error}; redis://HOST or nats://HOST")))?;
    let mut config = Config::new(address);
    let trust = PyDict::new(options.py());
    for (name, value) in options {
        let name: String = name.extract()?;
        let setting = format!("backplane_{name}");
        match name.as_str() {
            "url" => {}
            "prefix" => {
                let prefix: String = value
                    .extract()
                    .map_err(|_| PyTypeError::new_err(format!("backplane_prefix={value} is not a str")))?;
                let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
                if prefix.is_empty() || prefix.len() > 64 || !prefix.chars().all(fits) {
                    return Err(PyValueError::new_err(format!(
                        "backplane_prefix={prefix:.80?}: up to 64 letters, digits, \"-\" and \"_\" of ASCII"
                    )));
                }
                config.prefix = prefix;
            }
            "buffer" => config.buffer = size(&setting, &value, 0)?,
            "overflow" => {
                config.overflow = match value.extract::<String>().as_deref() {
                    Ok("drop_oldest") => Overflow::DropOldest,
                    Ok("refuse") => Overflow::Refuse,
                    _ => {
                        return Err(PyValueError::new_err(format!(
                            "backplane_overflow={}: one of \"drop_oldest\", \"refuse\"",
                            value.repr()?
                        )));
                    }
                };
            }
            "history" => config.history = convert::count(&setting, &value)?,
            "timeout" => {
                config.timeout = convert::time(&setting, &value)?;
                // Nodes speak four times in it.
                if config.timeout.as_millis() < 100 {
                    return Err(PyValueError::new_err(format!("backplane_timeout={value}: at least 0.1 s")));
                }
            }
            "credentials" if value.is_none() => {}
            "credentials" => {
                let path: PathBuf = value.extract()?;
                if config.address.kind != Kind::Nats {
                    return Err(PyValueError::new_err("backplane_credentials= is for nats:// and tls://"));
                }
                if let Err(error) = std::fs::File::open(&path) {
                    let path = path.display();
                    return Err(PyValueError::new_err(format!("backplane_credentials={path}: {error}")));
                }
                config.credentials = Some(path);
            }
            "ca_file" | "fingerprint" | "client_certfile" | "client_keyfile" if value.is_none() => {}
            "ca_file" | "fingerprint" | "client_certfile" | "client_keyfile" => {
                if !config.address.tls {
                    return Err(PyValueError::new_err(format!(
                        "{setting}= is for an encrypted link: rediss:// or tls://, not {named:?}"
                    )));
                }
                trust.set_item(name, value)?;
            }
            _ => return Err(PyTypeError::new_err(format!("there is no setting {setting}"))),
        }
    }
    let trust = convert::trust(&trust)?;
    config.trust(&trust).map_err(|error| tls_error(&error))?;
    Ok(Some(config))
}
