//! An HTTP request on its way to a handler, and the answer on its way back.

use crate::down::{Command, DownQueue};
use crate::runtime::IoThread;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
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
    /// The body.
    pub body: Bytes,
    /// The peer.
    pub remote: SocketAddr,
    /// The number that the route was added with.
    pub route: usize,
    /// The path parameters, percent-decoded, in the order of the pattern.
    pub params: Vec<(Arc<str>, String)>,
    /// Where the answer goes.
    pub responder: Responder,
}

/// The answer to one request.
#[derive(Debug)]
pub struct HttpResponse {
    /// The status.
    pub status: StatusCode,
    /// The headers, in order.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// The body.
    pub body: Bytes,
}

/// Takes the answer, once, from any thread. Dropped without one, the I/O thread answers 500.
#[derive(Debug)]
pub struct Responder {
    io: Arc<IoThread>,
    /// Guards that one answer is taken.
    reply: Mutex<Option<oneshot::Sender<HttpResponse>>>,
}

impl Responder {
    pub(crate) fn new(io: &Arc<IoThread>) -> (Self, oneshot::Receiver<HttpResponse>) {
        let (tx, rx) = oneshot::channel();
        (Self { io: Arc::clone(io), reply: Mutex::new(Some(tx)) }, rx)
    }

    /// Sends the answer; false when there was one already.
    pub fn respond(&self, response: HttpResponse) -> bool {
        let Some(reply) = self.reply.lock().take() else { return false };
        DownQueue::push(&self.io, Command::Respond { reply, response });
        true
    }
}
