//! The handlers of HTTP requests: running the one that a route names, and the streams that handlers have opened.

use crate::convert;
use crate::request::HttpRequest;
use crate::response::HttpResponse;
use crate::ticker::callback_failed_with;
use crate::writer::StreamWriter;
use parking_lot::Mutex;
use pyhv_engine::endpoint::Endpoint;
use pyhv_engine::request::HttpRequest as RawRequest;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// How a handler answers.
#[derive(Clone, Copy)]
enum Answer {
    /// With a response.
    Whole,
    /// With a stream of events, and a comment when it is quiet for so long.
    Events(Option<Duration>),
    /// With a stream.
    Stream,
}

/// A handler, and how it answers.
pub(crate) struct Handler {
    handler: Py<PyAny>,
    answer: Answer,
}

impl Handler {
    /// answer and comments: as `Server._add_route` gets them.
    pub(crate) fn new(handler: Py<PyAny>, answer: &str, comments: Option<f64>) -> PyResult<Self> {
        let comments = comments.map(|seconds| convert::seconds("keep_alive", seconds)).transpose()?;
        let answer = match answer {
            "sse" => Answer::Events(comments),
            "stream" => Answer::Stream,
            _ => Answer::Whole,
        };
        Ok(Self { handler, answer })
    }
}

/// What a server keeps to answer requests with.
#[derive(Default)]
pub(crate) struct Handlers {
    /// By the number that the router knows. Guards the list while it is read or changed; no Python code runs under it.
    handlers: Mutex<Vec<Handler>>,
    /// Open streamed responses, by number. Guards them while they are looked up or changed; no Python code runs under it.
    streams: Mutex<BTreeMap<u64, Py<StreamWriter>>>,
}

impl Handlers {
    /// The number that `add` gives next; the lock of the routes keeps others from adding meanwhile.
    pub(crate) fn next(&self) -> usize {
        self.handlers.lock().len()
    }

    pub(crate) fn add(&self, handler: Handler) {
        self.handlers.lock().push(handler);
    }

    /// Runs the handler of a request to `server`, which is told of its exceptions.
    pub(crate) fn run(&self, server: &Bound<'_, PyAny>, endpoint: &Arc<Endpoint>, request: RawRequest) -> PyResult<()> {
        let py = server.py();
        if request.responder.is_over() {
            // Answered with 503 after handler_timeout, or taken back by the client: the program need not work for it.
            return Ok(());
        }
        let handler = {
            let handlers = self.handlers.lock();
            handlers.get(request.route).map(|entry| (entry.handler.clone_ref(py), entry.answer))
        };
        let Some((handler, answer)) = handler else { return Ok(()) };
        let responder = Arc::clone(&request.responder);
        let request = Py::new(py, HttpRequest::new(request))?;
        let ran = match answer {
            Answer::Whole => Bound::new(py, HttpResponse::to(&responder)).and_then(|response| {
                let result = handler.bind(py).call1((&request, &response))?;
                HttpResponse::finish(&response, &result)
            }),
            Answer::Events(_) | Answer::Stream => {
                let comments = if let Answer::Events(comments) = answer { comments } else { None };
                let events = matches!(answer, Answer::Events(_));
                let writer = StreamWriter::new(request.clone_ref(py), &responder, endpoint, events, comments);
                Bound::new(py, writer).and_then(|writer| {
                    let begun = handler
                        .bind(py)
                        .call1((&request, &writer))
                        .and_then(|result| writer.get().begin(&responder, &result));
                    if matches!(begun, Ok(true)) {
                        let id = writer.get().stream.id;
                        self.streams.lock().insert(id, writer.unbind());
                    } else {
                        // No end of it will be told: the handler may have subscribed before it refused.
                        endpoint.leave_topics(&writer.get().subscriber());
                    }
                    begun.map(|_| ())
                })
            }
        };
        let Err(error) = ran else { return Ok(()) };
        if request.get().refuse(py, &error)? {
            return Ok(());
        }
        let name = format!("the handler of {}", request.get().describe());
        // Explicitly: the traceback keeps the request object alive.
        callback_failed_with(server, &name, error, || request.get().fail())
    }

    /// The open streams, the oldest first.
    pub(crate) fn streams(&self, py: Python<'_>) -> Vec<Py<StreamWriter>> {
        self.streams.lock().values().map(|writer| writer.clone_ref(py)).collect()
    }

    /// The numbers of the open streams, the oldest first.
    pub(crate) fn streams_open(&self) -> Vec<u64> {
        self.streams.lock().keys().copied().collect()
    }

    /// Closes some streams; each still ends by itself.
    pub(crate) fn close_oldest(&self, ids: &[u64]) {
        let streams = self.streams.lock();
        for writer in ids.iter().filter_map(|id| streams.get(id)) {
            writer.get().stream.close();
        }
    }

    /// Closes every open stream; each still ends by itself.
    pub(crate) fn close_streams(&self) {
        for writer in self.streams.lock().values() {
            writer.get().stream.close();
        }
    }

    /// Forgets a stream that has ended.
    pub(crate) fn take_stream(&self, id: u64) -> Option<Py<StreamWriter>> {
        self.streams.lock().remove(&id)
    }

    /// Forgets all streams; the caller drops them, where Python code may run.
    pub(crate) fn take_streams(&self) -> BTreeMap<u64, Py<StreamWriter>> {
        std::mem::take(&mut *self.streams.lock())
    }

    pub(crate) fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        // Locked elsewhere means in use, so alive: nothing to find here this time.
        if let Some(streams) = self.streams.try_lock() {
            for writer in streams.values() {
                visit.call(writer)?;
            }
        }
        if let Some(handlers) = self.handlers.try_lock() {
            for entry in handlers.iter() {
                visit.call(&entry.handler)?;
            }
        }
        Ok(())
    }

    /// Gives up every reference.
    pub(crate) fn clear(&self) {
        let streams = self.take_streams();
        let handlers = std::mem::take(&mut *self.handlers.lock());
        drop((streams, handlers));
    }
}
