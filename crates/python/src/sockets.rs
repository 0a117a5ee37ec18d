//! Where a server listens, from Python: a port, or descriptors of sockets that others have made.

use pyhv_engine::server::{Place, Socket};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

/// A port, or descriptors.
#[derive(FromPyObject)]
pub(crate) enum Where {
    /// To be made.
    Port(i64),
    /// There already.
    Descriptors(Vec<i64>),
}

impl Where {
    /// `name`: of the argument with the port.
    pub(crate) fn place(self, name: &str, host: &str, reuse_port: bool) -> PyResult<Place> {
        match self {
            Self::Port(port) => {
                let Ok(port) = u16::try_from(port) else {
                    return Err(PyValueError::new_err(format!("{name}={port} is not between 0 and 65535")));
                };
                Ok(Place::Port { host: host.to_owned(), port, reuse_port })
            }
            Self::Descriptors(list) => {
                Ok(Place::Sockets(list.into_iter().map(duplicate).collect::<PyResult<Vec<_>>>()?))
            }
        }
    }
}

/// A descriptor of our own for the socket, so that whoever gave theirs may do with it what they like.
#[cfg(unix)]
fn duplicate(number: i64) -> PyResult<Socket> {
    use pyo3::exceptions::PyOSError;
    use std::os::fd::{BorrowedFd, RawFd};

    let wrong = || PyValueError::new_err(format!("sockets: {number} is not a descriptor"));
    let raw = RawFd::try_from(number).ok().filter(|raw| *raw >= 0).ok_or_else(wrong)?;
    // There is no safe way from a number to a descriptor: nothing but the caller's word says whose it is.
    #[expect(unsafe_code, reason = "borrowed for the call that duplicates it, which fails for one that is not open")]
    // SAFETY: it is not -1, and it is used for fcntl(F_DUPFD_CLOEXEC) alone, while the GIL keeps whoever called from
    // closing it.
    let borrowed = unsafe { BorrowedFd::borrow_raw(raw) };
    let owned = borrowed.try_clone_to_owned().map_err(|error| {
        PyOSError::new_err((error.raw_os_error().unwrap_or(0), format!("sockets: {number} is not an open descriptor")))
    })?;
    Ok(Socket::from(owned))
}

#[cfg(not(unix))]
fn duplicate(_number: i64) -> PyResult<Socket> {
    Err(PyValueError::new_err("sockets= takes descriptors, which this system has not: give a port"))
}
