//! What a tick does with each event of a server.

use super::Server;
use crate::around;
use crate::channel::WebSocketChannel;
use crate::convert;
use crate::request::HttpRequest;
use crate::ticker::{self, callback_failed, callback_failed_with, channel_failed, fault};
use crate::topics;
use pyhv_engine::endpoint::{Endpoint, Side};
use pyhv_engine::inbox::Event;
use pyhv_engine::topics::Subscriber;
use pyhv_engine::wire::MessageKind;
use pyo3::intern;
use pyo3::prelude::*;
use std::sync::Arc;

impl Server {
    /// Runs one event. Errors that a tick survives do not come out.
    pub(super) fn dispatch(
        slf: &Bound<'_, Self>,
        endpoint: &Arc<Endpoint>,
        event: Event,
        arena: &[u8],
    ) -> PyResult<()> {
        let py = slf.py();
        let this = slf.get();
        match event {
            Event::Message { channel, kind, start, len } => {
                this.message(slf, channel, kind, &arena[start..start + len])
            }
            Event::LargeMessage { channel, kind, data } => this.message(slf, channel, kind, &data),
            Event::Open(conn) => {
                let number = conn.channel() as usize;
                let channel = Py::new(py, WebSocketChannel::new(Arc::clone(&conn)))?;
                let mut channels = this.channels.lock();
                if channels.len() <= number {
                    channels.resize_with(number + 1, || None);
                }
                channels[number] = Some(channel.clone_ref(py));
                drop(channels);
                conn.delivered_open();
                let url = conn.handshake.url();
                if let Err(error) = slf.call_method1(intern!(py, "on_ws_open"), (channel, url)) {
                    channel_failed(slf, "on_ws_open", error, &conn)?;
                }
                Ok(())
            }
            Event::Close { channel: number } => {
                let channel = this.channels.lock().get_mut(number as usize).and_then(Option::take);
                if let Some(conn) = channel.as_ref().map(|channel| &channel.get().conn) {
                    conn.delivered_close();
                    // While the number is still its own.
                    endpoint.leave_topics(&Subscriber::Channel(Arc::clone(conn)));
                }
                endpoint.release(number, Side::Program);
                let Some(channel) = channel else { return Ok(()) };
                if let Err(error) = slf.call_method1(intern!(py, "on_ws_close"), (channel,)) {
                    callback_failed(slf, "on_ws_close", error)?;
                }
                Ok(())
            }
            Event::Request(request) => this.handlers.run(slf, endpoint, *request),
            Event::StreamEnd { stream } => {
                let Some(writer) = this.handlers.take_stream(stream) else { return Ok(()) };
                endpoint.leave_topics(&writer.get().subscriber());
                if let Err(error) = slf.call_method1(intern!(py, "on_stream_close"), (writer,)) {
                    callback_failed(slf, "on_stream_close", error)?;
                }
                Ok(())
            }
            Event::Upgrade(question) => {
                let request = Py::new(py, HttpRequest::new(*question))?;
                if let Err(error) = slf.call_method1(intern!(py, "_on_upgrade"), (&request,)) {
                    callback_failed_with(slf, "on_ws_upgrade", error, || request.get().fail())?;
                }
                Ok(())
            }
            Event::Drain { channel } => {
                let Some(channel) = this.channel(py, channel) else { return Ok(()) };
                let conn = &channel.get().conn;
                if let Err(error) = slf.call_method1(intern!(py, "on_ws_drain"), (&channel,)) {
                    channel_failed(slf, "on_ws_drain", error, conn)?;
                }
                Ok(())
            }
            Event::Presence { topic, member, joined } => {
                if let Err(error) = slf.call_method1(intern!(py, "_on_presence"), (&*topic, &*member, joined)) {
                    callback_failed(slf, if joined { "on_join" } else { "on_leave" }, error)?;
                }
                Ok(())
            }
            Event::Backplane(state) => {
                if let Err(error) = slf.call_method1(intern!(py, "on_backplane"), (state,)) {
                    callback_failed(slf, "on_backplane", error)?;
                }
                Ok(())
            }
            Event::Access(record) => match around::log_access(slf, &record) {
                Err(error) => callback_failed(slf, "the access log", error),
                Ok(()) => Ok(()),
            },
            Event::Log(text) => ticker::log(slf, &text),
            Event::Fault(text) => Err(fault(&text)),
            Event::ConnectFailed(_) | Event::Http(_) | Event::Taken => Ok(()),
        }
    }

    fn message(&self, slf: &Bound<'_, Self>, channel: u32, kind: MessageKind, payload: &[u8]) -> PyResult<()> {
        let py = slf.py();
        let Some(channel) = self.channel(py, channel) else { return Ok(()) };
        let conn = &channel.get().conn;
        if conn.is_closed_by_program() {
            return Ok(());
        }
        let message = convert::message(py, kind, payload)?;
        if kind == MessageKind::Text && conn.endpoint().topics.are_spoken_by(conn) && topics::may_ask(payload) {
            let asked = slf.call_method1(intern!(py, "_on_topics"), (&channel, &message));
            match asked.and_then(|asked| asked.is_truthy()) {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) => return channel_failed(slf, "a callback for topics", error, conn),
            }
        }
        if let Err(error) = slf.call_method1(intern!(py, "on_ws_message"), (&channel, message)) {
            channel_failed(slf, "on_ws_message", error, conn)?;
        }
        Ok(())
    }
}
