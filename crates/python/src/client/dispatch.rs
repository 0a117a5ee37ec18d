//! What a tick does with each event of a client: its state, the callbacks, the next attempt.

use super::{Life, State, WebSocketClient};
use crate::convert::{self, reason};
use crate::ticker::{self, callback_failed, channel_failed, fault};
use crate::topics;
use pyhv_engine::client::{self as engine, ConnectError};
use pyhv_engine::endpoint::{Endpoint, Side};
use pyhv_engine::inbox::Event;
use pyhv_engine::reconnect::{self, Next};
use pyhv_engine::wire::MessageKind;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use std::sync::Arc;
use std::time::Duration;

/// The members of `WsOpcode` that a message can have.
fn opcode_object(py: Python<'_>, kind: MessageKind) -> PyResult<Py<PyAny>> {
    static MEMBERS: PyOnceLock<(Py<PyAny>, Py<PyAny>)> = PyOnceLock::new();
    let (text, binary) = MEMBERS.get_or_try_init(py, || {
        let opcodes = py.import("pyhv.opcode")?.getattr("WsOpcode")?;
        PyResult::Ok((opcodes.getattr("TEXT")?.unbind(), opcodes.getattr("BINARY")?.unbind()))
    })?;
    Ok(if kind == MessageKind::Text { text.clone_ref(py) } else { binary.clone_ref(py) })
}

/// The declared exception for a failed attempt.
fn error_object(py: Python<'_>, error: &ConnectError) -> PyResult<Py<PyAny>> {
    let text = match error {
        ConnectError::Resolve(host, error) => format!("cannot resolve {host}: {}", reason(error)),
        ConnectError::Connect(address, error) => format!("cannot connect to {address}: {}", reason(error)),
        other => other.to_string(),
    };
    let errors = py.import("pyhv.errors")?;
    let object = match error {
        ConnectError::Resolve(..) => errors.getattr("NameResolutionError")?.call1((text,))?,
        ConnectError::Connect(_, error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
            errors.getattr("ConnectionRefused")?.call1((text,))?
        }
        ConnectError::Connect(..) | ConnectError::Cancelled => errors.getattr("ConnectError")?.call1((text,))?,
        ConnectError::Tls { .. } => errors.getattr("TlsError")?.call1((text,))?,
        ConnectError::TimedOut(_) => errors.getattr("ConnectTimeout")?.call1((text,))?,
        ConnectError::Handshake { status, .. } => errors.getattr("HandshakeError")?.call1((text, *status))?,
    };
    Ok(object.unbind())
}
impl WebSocketClient {
    /// False for one that `connect` has replaced: its last events are nobody's.
    fn is_current(&self, endpoint: &Arc<Endpoint>) -> bool {
        self.endpoint.lock().as_ref().is_some_and(|current| Arc::ptr_eq(current, endpoint))
    }

    /// Runs the callbacks of one event.
    pub(super) fn dispatch(
        slf: &Bound<'_, Self>,
        endpoint: &Arc<Endpoint>,
        event: Event,
        arena: &[u8],
    ) -> PyResult<()> {
        let py = slf.py();
        let this = slf.get();
        match event {
            Event::Message { kind, start, len, .. } => Self::message(slf, kind, &arena[start..start + len]),
            Event::LargeMessage { kind, data, .. } => Self::message(slf, kind, &data),
            Event::Open(conn) => {
                if !this.is_current(endpoint) {
                    return Ok(());
                }
                let closing = {
                    let Life { state, again } = &mut *this.life.lock();
                    // close() came after the attempt had succeeded and before this tick.
                    let closing = !matches!(state, State::Connecting { attempt, .. } if !attempt.is_cancelled());
                    *state = State::Open(Arc::clone(&conn));
                    if let Some(again) = again {
                        again.opened(&conn);
                    }
                    closing
                };
                if closing {
                    conn.close(Some(1000), "");
                    return Ok(());
                }
                this.set_error(None);
                conn.delivered_open();
                if let Err(error) = slf.call_method0(intern!(py, "_on_topics_open")) {
                    channel_failed(slf, "on_topic_refused", error, &conn)?;
                }
                if let Err(error) = slf.call_method0(intern!(py, "on_open")) {
                    channel_failed(slf, "on_open", error, &conn)?;
                }
                Ok(())
            }
            Event::Close { channel } => {
                endpoint.release(channel, Side::Program);
                let Some(conn) = this.connection().filter(|_| this.is_current(endpoint)) else { return Ok(()) };
                // After an exception of a callback the server's code is an answer to ours, and says nothing by itself.
                let ours = conn.is_closed_by_program();
                conn.delivered_close();
                let info = conn.close_info();
                let least = (ours || !info.is_some_and(reconnect::is_final)).then_some(Duration::ZERO);
                let (code, reason) = info.map_or((1006, String::new()), |info| (info.code, info.reason.clone()));
                let next = this.ended(State::Closed { conn: Some(conn), code, reason }, least);
                let told = Self::closed(slf);
                // Before an exception leaves the tick: nothing else would begin the next attempt.
                let begun = this.begin(endpoint, next);
                told?;
                Self::reconnecting(slf, begun)
            }
            Event::ConnectFailed(error) => {
                if !this.is_current(endpoint) {
                    return Ok(());
                }
                // close() may have come after it had failed.
                let closed =
                    matches!(&this.life.lock().state, State::Connecting { attempt, .. } if attempt.is_cancelled());
                let state = State::Closed { conn: None, code: 1006, reason: String::new() };
                let next = this.ended(state, reconnect::after_failure(&error));
                let told = if closed { Ok(()) } else { Self::failed(slf, &error) };
                let begun = this.begin(endpoint, next);
                told?;
                if begun.is_some() {
                    return Self::reconnecting(slf, begun);
                }
                // connect() within on_error takes the place of the next attempt.
                let replaced = next.is_some() && !matches!(this.life.lock().state, State::Closed { .. });
                if replaced { Ok(()) } else { Self::closed(slf) }
            }
            Event::Log(text) => ticker::log(slf, &text),
            Event::Fault(text) => Err(fault(&text)),
            Event::Drain { .. } => Self::drained(slf),
            Event::Request(_)
            | Event::Upgrade(_)
            | Event::StreamEnd { .. }
            | Event::Http(_)
            | Event::Access(_)
            | Event::Presence { .. }
            | Event::Backplane(_)
            | Event::Taken => Ok(()),
        }
    }

    /// The connection has ended, or an attempt has failed; returns what follows. `least` as for [`Life::end`].
    fn ended(&self, state: State, least: Option<Duration>) -> Option<Next> {
        let mut life = self.life.lock();
        let old = std::mem::replace(&mut life.state, state);
        let next = life.end(least);
        drop(life);
        // It may have the last reference to a connection: not under the lock.
        drop(old);
        next
    }

    /// Begins the next attempt, unless the callback before it has called `close` or `connect`.
    fn begin(&self, endpoint: &Arc<Endpoint>, next: Option<Next>) -> Option<Next> {
        let next = next?;
        let mut life = self.life.lock();
        let Life { state: state @ State::Closed { .. }, again: Some(again) } = &mut *life else { return None };
        let attempt = engine::connect(endpoint, Arc::clone(&again.target), next.delay);
        let old = std::mem::replace(state, State::Connecting { attempt, again: true });
        drop(life);
        drop(old);
        Some(next)
    }

    fn reconnecting(slf: &Bound<'_, Self>, begun: Option<Next>) -> PyResult<()> {
        let Some(Next { attempt, delay }) = begun else { return Ok(()) };
        if let Err(error) = slf.call_method1(intern!(slf.py(), "on_reconnecting"), (attempt, delay.as_secs_f64())) {
            callback_failed(slf, "on_reconnecting", error)?;
        }
        Ok(())
    }

    fn failed(slf: &Bound<'_, Self>, error: &ConnectError) -> PyResult<()> {
        let py = slf.py();
        if matches!(error, ConnectError::Cancelled) {
            return Ok(());
        }
        let error = error_object(py, error)?;
        slf.get().set_error(Some(error.clone_ref(py)));
        if let Err(raised) = slf.call_method1(intern!(py, "on_error"), (error,)) {
            callback_failed(slf, "on_error", raised)?;
        }
        Ok(())
    }

    fn closed(slf: &Bound<'_, Self>) -> PyResult<()> {
        if let Err(error) = slf.call_method0(intern!(slf.py(), "on_close")) {
            callback_failed(slf, "on_close", error)?;
        }
        Ok(())
    }

    fn drained(slf: &Bound<'_, Self>) -> PyResult<()> {
        if let Err(error) = slf.call_method0(intern!(slf.py(), "on_drain")) {
            callback_failed(slf, "on_drain", error)?;
        }
        Ok(())
    }

    fn message(slf: &Bound<'_, Self>, kind: MessageKind, payload: &[u8]) -> PyResult<()> {
        let py = slf.py();
        let Some(conn) = slf.get().connection() else { return Ok(()) };
        if conn.is_closed_by_program() {
            return Ok(());
        }
        let message = convert::message(py, kind, payload)?;
        if kind == MessageKind::Text && topics::is_spoken_by(&conn) && topics::may_ask(payload) {
            let asked = slf.call_method1(intern!(py, "_on_topics"), (&message,));
            match asked.and_then(|asked| asked.is_truthy()) {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) => return channel_failed(slf, "a callback for topics", error, &conn),
            }
        }
        let opcode = opcode_object(py, kind)?;
        if let Err(error) = slf.call_method1(intern!(py, "on_message_frame"), (message, opcode)) {
            channel_failed(slf, "on_message", error, &conn)?;
        }
        Ok(())
    }
}
