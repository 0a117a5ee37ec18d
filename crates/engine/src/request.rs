//! An HTTP request on its way to a handler, and the answer on its way back.

use crate::body::Body;
use crate::down::{Command, DownQueue};
use crate::proxy::Sender;
use crate::runtime::IoThread;
use crate::upload::Form;
use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, Version};
use parking_lot::Mutex;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::sync::oneshot;

/// A request with its whole body.
#[derive(Debug)]
pub struct HttpRequest {
    /// The method.
    pub method: Method,
    /// The request target's path and query, as sent.
    pub url: String,
    /// The headers; repeated ones are kept.
    pub headers: HeaderMap,
    /// The body, decoded; empty for a multipart form.
    pub body: Bytes,
    /// What a multipart form held.
    pub form: Option<Form>,
    /// Most fields that a form may have.
    pub max_form_parts: usize,
    /// The version of HTTP.
    pub version: Version,
    /// The peer.
    pub remote: SocketAddr,
    /// Who asks: the peer, or the client of a trusted proxy.
    pub sender: Sender,
    /// The number that the route was added with.
    pub route: usize,
    /// The path parameters, percent-decoded, in the order of the pattern.
    pub params: Vec<(Arc<str>, String)>,
    /// Where the answer goes.
    pub responder: Arc<Responder>,
}

/// The answer to one request.
#[derive(Debug)]
pub struct HttpResponse {
    /// The status.
    pub status: StatusCode,
    /// The headers, in order.
    pub headers: HeaderMap,
    /// The body.
    pub body: Body,
}

/// Takes the answer, once, from any thread. Dropped without one, the I/O thread answers 500.
#[derive(Debug)]
pub struct Responder {
    io: Arc<IoThread>,
    /// Guards that one answer is taken.
    reply: Mutex<Option<oneshot::Sender<HttpResponse>>>,
}

impl Responder {
    pub(crate) fn new(io: &Arc<IoThread>) -> (Arc<Self>, oneshot::Receiver<HttpResponse>) {
        let (tx, rx) = oneshot::channel();
        (Arc::new(Self { io: Arc::clone(io), reply: Mutex::new(Some(tx)) }), rx)
    }

    /// The I/O thread that waits for it.
    #[must_use]
    pub fn io(&self) -> &Arc<IoThread> {
        &self.io
    }

    /// Whether nobody waits for an answer any more: the client has got one without the program, or has left.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.reply.lock().as_ref().is_none_or(oneshot::Sender::is_closed)
    }

    /// Gives up: the I/O thread answers 500 and logs it.
    pub fn abandon(&self) {
        drop(self.reply.lock().take());
    }

    /// Sends the answer; false when there was one already.
    pub fn respond(&self, response: HttpResponse) -> bool {
        let Some(reply) = self.reply.lock().take() else { return false };
        DownQueue::push(&self.io, Command::Respond { reply, response });
        true
    }
}
