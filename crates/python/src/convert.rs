//! Messages, timeouts, settings and errors from and to Python.

use bytes::Bytes;
use pyhv_engine::server::ListenError;
use pyhv_engine::settings::{Origins, Settings, SlowPolicy};
use pyhv_engine::tls::{TlsError, Trust};
use pyhv_engine::wire::deflate::DeflateConfig;
use pyhv_engine::wire::{self, MessageKind, Opcode};
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyOSError, PyOverflowError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes, PyDict, PyMemoryView, PyString};
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Longest time a setting or timeout may have; beyond it the clock's arithmetic would overflow.
const MAX_SECONDS: f64 = 1e9;

/// Calls `f` with the bytes of a message and the kind its type suggests. `str` and `bytes` are not copied.
pub(crate) fn with_payload<R>(
    msg: &Bound<'_, PyAny>,
    f: impl FnOnce(MessageKind, &[u8]) -> PyResult<R>,
) -> PyResult<R> {
    if let Ok(text) = msg.cast::<PyString>() {
        return f(MessageKind::Text, text.to_str()?.as_bytes());
    }
    if let Ok(bytes) = msg.cast::<PyBytes>() {
        return f(MessageKind::Binary, bytes.as_bytes());
    }
    if let Ok(array) = msg.cast::<PyByteArray>() {
        // Copied: the program may change it while the frame is made.
        return f(MessageKind::Binary, &array.to_vec());
    }
    if let Ok(buffer) = PyBuffer::<u8>::get(msg) {
        return f(MessageKind::Binary, &buffer.to_vec(msg.py())?);
    }
    // Any other item type, an array of floats say: its bytes as they lie in memory.
    match PyMemoryView::from(msg) {
        Ok(view) => {
            let bytes = view.call_method0("tobytes")?;
            f(MessageKind::Binary, bytes.cast::<PyBytes>()?.as_bytes())
        }
        Err(_) => {
            let name = msg.get_type().fully_qualified_name()?;
            Err(PyTypeError::new_err(format!("a message is str or bytes-like, not {name}")))
        }
    }
}

/// A copy of anything bytes-like.
pub(crate) fn bytes_like(data: &Bound<'_, PyAny>) -> PyResult<Bytes> {
    if data.is_instance_of::<PyString>() {
        return Err(PyTypeError::new_err("bytes-like data was expected, not str"));
    }
    with_payload(data, |_, bytes| Ok(Bytes::copy_from_slice(bytes)))
        .map_err(|_| PyTypeError::new_err(format!("bytes-like data was expected, not {}", data.get_type())))
}

/// The opcode argument of `send`.
pub(crate) struct OpcodeArgument(pub(crate) Opcode);

impl<'py> FromPyObject<'_, 'py> for OpcodeArgument {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let number = small_int(&object)?;
        number.and_then(|n| Opcode::try_from(u8::try_from(n).ok()?).ok()).map(Self).ok_or_else(|| {
            PyValueError::new_err(format!(
                "opcode={} is none of RFC 6455's: use a member of WsOpcode",
                object.to_owned()
            ))
        })
    }
}

/// The key argument of `send`, `broadcast`.
pub(crate) struct KeyArgument(pub(crate) Bytes);

impl<'py> FromPyObject<'_, 'py> for KeyArgument {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        // The kind first: in Python "x" and b"x" are two keys of a dict.
        if let Ok(text) = object.cast::<PyString>() {
            return Ok(Self([b"t", text.to_str()?.as_bytes()].concat().into()));
        }
        if let Ok(bytes) = object.cast::<PyBytes>() {
            return Ok(Self([b"b", bytes.as_bytes()].concat().into()));
        }
        let name = object.get_type().fully_qualified_name()?;
        Err(PyTypeError::new_err(format!("a key is str or bytes, not {name}")))
    }
}

impl KeyArgument {
    /// Only whole messages can replace each other.
    pub(crate) fn check(&self, opcode: Option<Opcode>, fin: bool) -> PyResult<()> {
        if let Some(opcode) = opcode
            && !matches!(opcode, Opcode::Text | Opcode::Binary)
        {
            let name = match opcode {
                Opcode::Continuation => "CONTINUATION",
                Opcode::Ping => "PING",
                Opcode::Pong => "PONG",
                _ => "CLOSE",
            };
            return Err(PyValueError::new_err(format!(
                "a {name} frame has no key: only whole text and binary messages replace each other"
            )));
        }
        if !fin {
            return Err(PyValueError::new_err(
                "fin=False does not go with a key: only whole messages replace each other",
            ));
        }
        Ok(())
    }
}

/// The code argument of `close`.
pub(crate) struct CloseCode(pub(crate) u16);

impl CloseCode {
    pub(crate) const NORMAL: Self = Self(1000);
}

impl<'py> FromPyObject<'_, 'py> for CloseCode {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let code = small_int(&object)?.and_then(|n| u16::try_from(n).ok());
        code.map(Self).ok_or_else(|| {
            PyValueError::new_err(format!(
                "close code {} must not be sent: use 1000-1003, 1007-1014 or 3000-4999",
                object.to_owned()
            ))
        })
    }
}

/// An int, or `None` for one too large for any argument of ours; TypeError for what is no int.
pub(crate) fn small_int(object: &Bound<'_, PyAny>) -> PyResult<Option<i64>> {
    match object.extract::<i64>() {
        Ok(number) => Ok(Some(number)),
        Err(error) if error.is_instance_of::<PyOverflowError>(object.py()) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A control frame's payload fits (RFC 6455 section 5.5); a text frame's is UTF-8 (section 5.6).
pub(crate) fn check_payload(opcode: Option<Opcode>, text: bool, kind: MessageKind, payload: &[u8]) -> PyResult<()> {
    if opcode.is_some_and(Opcode::is_control) && payload.len() > wire::MAX_CONTROL_PAYLOAD {
        return Err(PyValueError::new_err(format!(
            "a ping or pong carries at most {} bytes, not {}",
            wire::MAX_CONTROL_PAYLOAD,
            payload.len()
        )));
    }
    if text && kind == MessageKind::Binary && std::str::from_utf8(payload).is_err() {
        return Err(PyValueError::new_err("a text message has to be UTF-8, and these bytes are not"));
    }
    Ok(())
}

/// A message as Python sees it: `str` for text, `bytes` for binary.
pub(crate) fn message<'py>(py: Python<'py>, kind: MessageKind, payload: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    Ok(match kind {
        MessageKind::Text => PyString::from_bytes(py, payload)?.into_any(),
        MessageKind::Binary => PyBytes::new(py, payload).into_any(),
    })
}

/// Bytes of a header as Python sees them: each byte is one character (RFC 9110 section 5.5 calls them opaque).
pub(crate) fn latin1(bytes: &[u8]) -> String {
    bytes.iter().map(|&b| char::from(b)).collect()
}

/// A number of seconds that is an argument called `name`.
pub(crate) fn seconds(name: &str, value: f64) -> PyResult<Duration> {
    if !(0.0..=MAX_SECONDS).contains(&value) {
        return Err(PyValueError::new_err(format!(
            "{name}={value} is not a number of seconds from 0 to {MAX_SECONDS:e}"
        )));
    }
    Ok(Duration::from_secs_f64(value))
}

/// `tick`'s timeout: `None` for no end, else the moment it is over. For 0, which does not wait, the clock is not read.
pub(crate) fn deadline(timeout: Option<f64>) -> PyResult<Option<Instant>> {
    timeout.filter(|t| *t != 0.0).map(|t| Ok(Instant::now() + seconds("timeout", t)?)).transpose()
}

/// Settings by name; those absent keep their defaults.
pub(crate) fn settings(options: &Bound<'_, PyDict>) -> PyResult<Settings> {
    let mut settings = Settings::default();
    let (mut compression, mut window_bits) = (None, 15);
    for (name, value) in options {
        let name: String = name.extract()?;
        match name.as_str() {
            "max_message_size" => settings.max_message_size = size(&name, &value, 1)?,
            "max_frame_size" if value.is_none() => settings.max_frame_size = None,
            "max_frame_size" => settings.max_frame_size = Some(size(&name, &value, 1)?),
            "max_fragments" => settings.max_fragments = u32::try_from(count(&name, &value)?).unwrap_or(u32::MAX),
            "max_buffered" => settings.max_buffered = size(&name, &value, 1)?,
            "max_pending_bytes" => settings.max_pending_bytes = size(&name, &value, 1)?,
            "max_channel_pending_bytes" => settings.max_channel_pending_bytes = size(&name, &value, 1)?,
            // hyper reads into a buffer of at least this size.
            "max_header_size" => settings.max_header_size = size(&name, &value, 8192)?,
            "max_body_size" => settings.max_body_size = size(&name, &value, 0)?,
            "max_form_parts" => settings.max_form_parts = count(&name, &value)?,
            "max_form_field_size" => settings.max_form_field_size = size(&name, &value, 0)?,
            "max_upload_size" => settings.max_upload_size = size(&name, &value, 0)?,
            "upload_threshold" => settings.upload_threshold = size(&name, &value, 0)?,
            "upload_dir" => settings.upload_dir = directory(&name, &value)?,
            "header_timeout" => settings.header_timeout = time(&name, &value)?,
            "body_timeout" => settings.body_timeout = time(&name, &value)?,
            "handler_timeout" => settings.handler_timeout = time(&name, &value)?,
            "send_timeout" => settings.send_timeout = time(&name, &value)?,
            "close_timeout" => settings.close_timeout = time(&name, &value)?,
            "open_timeout" => settings.open_timeout = time(&name, &value)?,
            "handshake_timeout" => settings.handshake_timeout = time(&name, &value)?,
            "upgrade_timeout" => settings.upgrade_timeout = time(&name, &value)?,
            "ping_interval" => settings.ping_interval = optional_time(&name, &value)?,
            "ping_timeout" => settings.ping_timeout = optional_time(&name, &value)?,
            "idle_timeout" => settings.idle_timeout = optional_time(&name, &value)?,
            "app_stall_timeout" => settings.app_stall_timeout = optional_time(&name, &value)?,
            "slow_policy" => settings.slow_policy = slow_policy(&value)?,
            "tell_drain" => settings.tell_drain = value.extract()?,
            "ask_upgrade" => settings.ask_upgrade = value.extract()?,
            "max_connections" => settings.max_connections = count(&name, &value)?,
            "max_connections_per_address" if value.is_none() => settings.max_connections_per_address = None,
            "max_connections_per_address" => {
                settings.max_connections_per_address = Some(count(&name, &value)?);
            }
            "max_concurrent_streams" => {
                settings.max_concurrent_streams = u32::try_from(count(&name, &value)?).unwrap_or(u32::MAX);
            }
            "max_headers" => settings.max_headers = count(&name, &value)?,
            "max_upgrades_per_second" if value.is_none() => settings.max_upgrades_per_second = None,
            "max_upgrades_per_second" => settings.max_upgrades_per_second = Some(rate(&name, &value)?),
            "max_topic_length" => settings.max_topic_length = count(&name, &value)?,
            "max_subscriptions_per_channel" => settings.max_subscriptions_per_channel = count(&name, &value)?,
            "max_topics" => settings.max_topics = count(&name, &value)?,
            "max_history_bytes" => settings.max_history_bytes = size(&name, &value, 0)?,
            "trusted_proxies" => settings.trusted_proxies = networks("trusted_proxies", &value)?,
            "allowed_origins" => settings.allowed_origins = origins(&value)?,
            "compression" => compression = Some(value),
            "compression_window_bits" => window_bits = window(&value)?,
            "subprotocols" => {
                let names = value
                    .extract()
                    .map_err(|_| PyValueError::new_err(format!("subprotocols={value} is not a list of names")))?;
                settings.subprotocols = subprotocols(names)?;
            }
            _ => return Err(PyTypeError::new_err(format!("there is no setting {name}"))),
        }
    }
    if let Some(value) = compression {
        settings.compression = deflate(&value, window_bits)?;
    }
    if settings.slow_policy == SlowPolicy::DropOldest
        && settings.compression.is_some_and(|c| !c.server_no_context_takeover)
    {
        return Err(PyValueError::new_err(
            "slow_policy=\"drop_oldest\" does not go with compression=\"context\": each message is compressed with the \
             ones before it, so none can be left out",
        ));
    }
    Ok(settings)
}

pub(crate) fn size(name: &str, value: &Bound<'_, PyAny>, least: usize) -> PyResult<usize> {
    let most = usize::try_from(i64::MAX).unwrap_or(usize::MAX);
    match value.extract::<usize>() {
        Ok(n) if (least..=most).contains(&n) => Ok(n),
        _ => Err(PyValueError::new_err(format!("{name}={value} is not a number of bytes of at least {least}"))),
    }
}

/// A directory that is there, or None.
fn directory(name: &str, value: &Bound<'_, PyAny>) -> PyResult<Option<PathBuf>> {
    let path: Option<PathBuf> =
        value.extract().map_err(|_| PyTypeError::new_err(format!("{name}={value} is not a path")))?;
    match path {
        Some(path) if !path.is_dir() => {
            Err(PyValueError::new_err(format!("{name}={} is not a directory", path.display())))
        }
        path => Ok(path),
    }
}

pub(crate) fn time(name: &str, value: &Bound<'_, PyAny>) -> PyResult<Duration> {
    let number = value
        .extract::<f64>()
        .map_err(|_| PyTypeError::new_err(format!("{name}={value} is not a number of seconds")))?;
    seconds(name, number)
}

/// A number of seconds, or None for never.
fn optional_time(name: &str, value: &Bound<'_, PyAny>) -> PyResult<Option<Duration>> {
    if value.is_none() {
        return Ok(None);
    }
    match time(name, value)? {
        Duration::ZERO => Err(PyValueError::new_err(format!("{name}=0 would never let anything live: None is never"))),
        time => Ok(Some(time)),
    }
}

pub(crate) fn count(name: &str, value: &Bound<'_, PyAny>) -> PyResult<usize> {
    match value.extract::<usize>() {
        Ok(n) if n > 0 => Ok(n),
        _ => Err(PyValueError::new_err(format!("{name}={value} is not a number of at least 1"))),
    }
}

fn rate(name: &str, value: &Bound<'_, PyAny>) -> PyResult<f64> {
    match value.extract::<f64>() {
        Ok(rate) if rate > 0.0 && rate.is_finite() => Ok(rate),
        _ => Err(PyValueError::new_err(format!("{name}={value} is not a number above 0"))),
    }
}

fn slow_policy(value: &Bound<'_, PyAny>) -> PyResult<SlowPolicy> {
    let name =
        value.extract::<String>().map_err(|_| PyTypeError::new_err(format!("slow_policy={value} is not a str")))?;
    Ok(match name.as_str() {
        "close" => SlowPolicy::Close,
        "drop_newest" => SlowPolicy::DropNewest,
        "drop_oldest" => SlowPolicy::DropOldest,
        other => {
            return Err(PyValueError::new_err(format!(
                "slow_policy={other:?} is none of \"close\", \"drop_newest\", \"drop_oldest\""
            )));
        }
    })
}

/// None for the same host, "*" for all, or a list of origins.
fn origins(value: &Bound<'_, PyAny>) -> PyResult<Origins> {
    if value.is_none() {
        return Ok(Origins::SameHost);
    }
    if let Ok(text) = value.extract::<String>() {
        if text == "*" {
            return Ok(Origins::Any);
        }
        return Err(PyValueError::new_err(format!("allowed_origins={text:?}: give a list of origins, None or \"*\"")));
    }
    let list: Vec<String> = value.extract()?;
    for origin in &list {
        check_origin("allowed_origins", origin)?;
    }
    Ok(Origins::Listed(list.iter().map(|origin| origin.to_ascii_lowercase()).collect()))
}

/// An origin as browsers send it (RFC 6454 section 6.2). `what`: the setting, for the error.
pub(crate) fn check_origin(what: &str, origin: &str) -> PyResult<()> {
    let (scheme, host) = origin.split_once("://").unwrap_or_default();
    let whole = !scheme.is_empty() && !host.is_empty();
    if origin != "null" && (!whole || host.contains(['/', '*', '?', '#', '@', ' '])) {
        return Err(PyValueError::new_err(format!(
            "{what}: {origin:?} is not an origin like \"https://example.com\" or \"http://localhost:8000\""
        )));
    }
    Ok(())
}

/// Addresses and networks.
pub(crate) fn networks(name: &str, value: &Bound<'_, PyAny>) -> PyResult<Vec<ipnet::IpNet>> {
    let Ok(list) = value.extract::<Vec<String>>() else {
        return Err(PyValueError::new_err(format!("{name}={value} is not a list of addresses and networks")));
    };
    let network = |text: &String| {
        pyhv_engine::proxy::network(text).ok_or_else(|| {
            PyValueError::new_err(format!(
                "{name}: {text:?} is not an address like \"127.0.0.1\" or a network like \"10.0.0.0/8\""
            ))
        })
    };
    list.iter().map(network).collect()
}

/// None, "shared" or "context".
fn deflate(value: &Bound<'_, PyAny>, window_bits: u8) -> PyResult<Option<DeflateConfig>> {
    let no_takeover = match value.extract::<Option<String>>().ok().flatten().as_deref() {
        Some("shared") => true,
        Some("context") => false,
        _ if value.is_none() => return Ok(None),
        _ => {
            return Err(PyValueError::new_err(format!(
                "compression={} is none of \"shared\", \"context\", None",
                value.repr()?
            )));
        }
    };
    Ok(Some(DeflateConfig {
        server_no_context_takeover: no_takeover,
        client_no_context_takeover: no_takeover,
        server_max_window_bits: window_bits,
        client_max_window_bits: window_bits,
    }))
}

fn window(value: &Bound<'_, PyAny>) -> PyResult<u8> {
    match value.extract::<u8>() {
        Ok(bits) if (8..=15).contains(&bits) => Ok(bits),
        _ => Err(PyValueError::new_err(format!("compression_window_bits={value} is not between 8 and 15"))),
    }
}

/// Names of subprotocols: tokens, each once (RFC 6455 section 4.1).
pub(crate) fn subprotocols(names: Vec<String>) -> PyResult<Vec<String>> {
    for (i, name) in names.iter().enumerate() {
        if !wire::handshake::is_token(name) || names[..i].contains(name) {
            return Err(PyValueError::new_err(format!("subprotocols: {name:?} is not a token, or is there twice")));
        }
    }
    Ok(names)
}

/// An error's text without Rust's "(os error N)".
pub(crate) fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error ").next().unwrap_or(&text).to_owned()
}

/// Why a server cannot listen, as OSError.
pub(crate) fn listen_error(failed: &ListenError) -> PyErr {
    let text = format!("cannot listen on {}: {}", failed.place, reason(&failed.error));
    match failed.error.raw_os_error() {
        Some(errno) => PyOSError::new_err((errno, text)),
        None => PyOSError::new_err(text),
    }
}

/// What is wrong with a certificate file, as Python says such things: OSError for the file, ValueError for its content.
pub(crate) fn tls_error(error: &TlsError) -> PyErr {
    let text = error.to_string();
    match error {
        TlsError::File { error, .. } => match error.raw_os_error() {
            Some(errno) => PyOSError::new_err((errno, text.split(" (os error ").next().unwrap_or(&text).to_owned())),
            None => PyOSError::new_err(text),
        },
        TlsError::Content { .. } | TlsError::Other(_) => PyValueError::new_err(text),
    }
}

/// A client's `tls` argument: None without TLS, else a dict of the arguments that were given.
pub(crate) fn trust(options: &Bound<'_, PyDict>) -> PyResult<Trust> {
    let mut trust = Trust::default();
    let (mut certfile, mut keyfile) = (None, None);
    for (name, value) in options {
        let name: String = name.extract()?;
        match name.as_str() {
            "ca_file" => trust.ca_file = Some(value.extract()?),
            "fingerprint" => trust.fingerprint = Some(fingerprint(&value.extract::<String>()?)?),
            "client_certfile" => certfile = Some(value.extract::<PathBuf>()?),
            "client_keyfile" => keyfile = Some(value.extract::<PathBuf>()?),
            "accept_any_certificate" => trust.anybody = value.extract()?,
            _ => return Err(PyTypeError::new_err(format!("there is no TLS setting {name}"))),
        }
    }
    if let Some(certfile) = certfile {
        let keyfile = keyfile.unwrap_or_else(|| certfile.clone());
        trust.identity = Some((certfile, keyfile));
    }
    Ok(trust)
}

/// 32 bytes in hexadecimal, with or without colons.
fn fingerprint(text: &str) -> PyResult<[u8; 32]> {
    let digits: Vec<u8> = text.bytes().filter(|b| *b != b':').collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let bytes: Option<Vec<u8>> = digits.chunks(2).map(byte).collect();
    bytes
        .filter(|_| digits.len() == 64 && digits.iter().all(u8::is_ascii_hexdigit))
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or_else(|| {
            PyValueError::new_err(format!(
                "fingerprint={text:?} is not a SHA-256: 64 hexadecimal digits, colons allowed"
            ))
        })
}
