//! The content of an HTTP response: whole, streamed by the program, or made by a native service.

use crate::server::activity::InFlight;
use crate::stream::StreamBody;
use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::{Frame, SizeHint};
use std::pin::Pin;
use std::task::{Context, Poll};

/// Why a content broke off; hyper then ends the connection, so that the client sees that something is missing.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;

#[derive(Debug)]
enum Kind {
    /// Taken when hyper has it.
    Whole(Option<Bytes>),
    Stream(StreamBody),
    /// Files, compression, whatever else makes a body.
    Boxed(UnsyncBoxBody<Bytes, BodyError>),
}

/// A response's content. Whoever drops it has sent it, or has given up.
#[derive(Debug)]
pub struct Body {
    kind: Kind,
    /// Counts the request as under way for as long as its answer is being written.
    in_flight: Option<InFlight>,
}

impl Default for Body {
    fn default() -> Self {
        Bytes::new().into()
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self { kind: Kind::Whole(Some(bytes)), in_flight: None }
    }
}

impl From<String> for Body {
    fn from(text: String) -> Self {
        Bytes::from(text).into()
    }
}

impl From<&'static str> for Body {
    fn from(text: &'static str) -> Self {
        Bytes::from_static(text.as_bytes()).into()
    }
}

impl From<StreamBody> for Body {
    fn from(stream: StreamBody) -> Self {
        Self { kind: Kind::Stream(stream), in_flight: None }
    }
}

impl Body {
    /// Any body whose chunks are bytes.
    pub fn boxed<B>(body: B) -> Self
    where
        B: hyper::body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BodyError>,
    {
        use http_body_util::BodyExt;
        Self { kind: Kind::Boxed(body.map_err(Into::into).boxed_unsync()), in_flight: None }
    }

    /// Keeps the request counted as under way until this is dropped.
    pub(crate) fn hold(&mut self, mut in_flight: InFlight, http2: bool) {
        if let Kind::Stream(stream) = &self.kind {
            in_flight.streams();
            if !http2 {
                stream.tie(in_flight.activity());
            }
        }
        self.in_flight = Some(in_flight);
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut self.kind {
            Kind::Whole(bytes) => Poll::Ready(bytes.take().filter(|b| !b.is_empty()).map(|b| Ok(Frame::data(b)))),
            Kind::Stream(stream) => stream.poll(cx).map(|chunk| chunk.map(|c| c.map(Frame::data))),
            Kind::Boxed(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Whole(bytes) => bytes.as_ref().is_none_or(Bytes::is_empty),
            Kind::Stream(_) => false,
            Kind::Boxed(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Kind::Stream(_) => SizeHint::default(),
            Kind::Boxed(body) => body.size_hint(),
        }
    }
}
