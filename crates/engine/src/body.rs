//! The content of an HTTP response: whole, streamed by the program, or made by a native service.

use crate::files::Source;
use crate::server::access::Access;
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
    /// A file of the program's choice, which becomes one of the others before hyper has it.
    File(Box<Source>),
}

/// A response's content. Whoever drops it has sent it, or has given up.
#[derive(Debug)]
pub struct Body {
    kind: Kind,
    /// Counts the request as under way for as long as its answer is being written.
    in_flight: Option<InFlight>,
    /// Counts what is handed over, where the program wants an access log.
    access: Option<Access>,
}

/// With an access log a whole content is handed over in pieces of this size: what a client that leaves in the middle did
/// not get is not counted as sent.
const PIECE: usize = 64 << 10;

impl Default for Body {
    fn default() -> Self {
        Bytes::new().into()
    }
}

impl From<Kind> for Body {
    fn from(kind: Kind) -> Self {
        Self { kind, in_flight: None, access: None }
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Kind::Whole(Some(bytes)).into()
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
        Kind::Stream(stream).into()
    }
}

impl From<Source> for Body {
    fn from(file: Source) -> Self {
        Self { kind: Kind::File(Box::new(file)), in_flight: None, access: None }
    }
}

impl Body {
    /// The file that the program answers with, if it does.
    pub(crate) fn as_file(&self) -> Option<&Source> {
        if let Kind::File(file) = &self.kind { Some(file) } else { None }
    }

    /// Any body whose chunks are bytes.
    pub fn boxed<B>(body: B) -> Self
    where
        B: hyper::body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BodyError>,
    {
        use http_body_util::BodyExt;
        Kind::Boxed(body.map_err(Into::into).boxed_unsync()).into()
    }

    /// Whether the program writes it piece by piece.
    pub(crate) fn is_stream(&self) -> bool {
        matches!(self.kind, Kind::Stream(_))
    }

    /// Takes the content out, if it is there as a whole.
    pub(crate) fn whole(&mut self) -> Option<Bytes> {
        if let Kind::Whole(bytes) = &mut self.kind { bytes.take() } else { None }
    }

    /// Has the request put on record when this is dropped.
    pub(crate) fn log(&mut self, access: Access) {
        self.access = Some(access);
    }

    /// Keeps the request counted as under way until this is dropped.
    pub(crate) fn hold(&mut self, mut in_flight: InFlight, http2: bool) {
        // HTTP/2 reads on while it writes, and notices by itself.
        if let Kind::Stream(stream) = &self.kind
            && !http2
        {
            in_flight.streams();
            stream.tie(in_flight.activity());
        }
        self.in_flight = Some(in_flight);
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Self { kind, access, .. } = &mut *self;
        let frame = match kind {
            Kind::Whole(bytes) => {
                let piece = match bytes {
                    Some(rest) if access.is_some() && rest.len() > PIECE => Some(rest.split_to(PIECE)),
                    _ => bytes.take().filter(|b| !b.is_empty()),
                };
                Poll::Ready(piece.map(|b| Ok(Frame::data(b))))
            }
            Kind::Stream(stream) => stream.poll(cx).map(|chunk| chunk.map(|c| c.map(Frame::data))),
            Kind::Boxed(body) => Pin::new(body).poll_frame(cx),
            Kind::File(_) => Poll::Ready(Some(Err("a file was not opened for sending".into()))),
        };
        if let (Some(access), Poll::Ready(Some(Ok(frame)))) = (access, &frame) {
            access.sent(frame.data_ref().map_or(0, Bytes::len));
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Whole(bytes) => bytes.as_ref().is_none_or(Bytes::is_empty),
            Kind::Stream(_) | Kind::File(_) => false,
            Kind::Boxed(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Kind::Stream(_) | Kind::File(_) => SizeHint::default(),
            Kind::Boxed(body) => body.size_hint(),
        }
    }
}
