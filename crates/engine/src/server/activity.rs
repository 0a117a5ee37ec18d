//! What a connection is doing while hyper speaks HTTP on it: requests under way, streams, bytes moved. hyper keeps that
//! to itself, and three things need it: closing an idle HTTP/2 connection, saying farewell to one when the server
//! stops, and noticing that the client of a stream has left.

use super::counted::Counted;
use crate::transport::Transport;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::Sleep;

/// Shared by a connection's I/O, its requests and its watch. Touched by one I/O thread alone: the atomics are for `Send`.
#[derive(Debug, Default)]
pub(crate) struct Activity {
    /// Requests whose answers are not completely handed to hyper.
    in_flight: AtomicUsize,
    /// Those of them that are streams over HTTP/1.
    streams: AtomicUsize,
    /// Requests that have begun, ever.
    begun: AtomicUsize,
    /// Bytes written.
    written: AtomicU64,
    /// Nothing more is to be written.
    broken: AtomicBool,
    /// Something the client sends was refused and is not read.
    lingers: AtomicBool,
}

impl Activity {
    pub(super) fn begin(self: &Arc<Self>) -> InFlight {
        self.begun.fetch_add(1, Ordering::Relaxed);
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight { activity: Arc::clone(self), stream: false }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.in_flight.load(Ordering::Relaxed) == 0
    }

    /// Requests that have begun, ever.
    pub(super) fn begun(&self) -> usize {
        self.begun.load(Ordering::Relaxed)
    }

    /// Bytes written, ever.
    pub(super) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// What the client still sends is thrown away for a while when the connection is closed: closed with data unread, it
    /// would be reset, and the refusal lost (RFC 9112 section 9.6).
    pub(super) fn linger(&self) {
        self.lingers.store(true, Ordering::Relaxed);
    }

    pub(super) fn lingers(&self) -> bool {
        self.lingers.load(Ordering::Relaxed)
    }

    /// The next write fails, and with it the connection.
    pub(crate) fn break_off(&self) {
        self.broken.store(true, Ordering::Relaxed);
    }

    fn streams(&self) -> bool {
        self.streams.load(Ordering::Relaxed) > 0
    }
}

/// One request under way, until it is dropped with its answer's body.
#[derive(Debug)]
pub(crate) struct InFlight {
    activity: Arc<Activity>,
    stream: bool,
}

impl InFlight {
    pub(crate) fn activity(&self) -> &Arc<Activity> {
        &self.activity
    }

    /// The answer is a stream: from here on the end of what the client sends is taken for its leaving.
    pub(crate) fn streams(&mut self) {
        if !self.stream {
            self.stream = true;
            self.activity.streams.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.activity.in_flight.fetch_sub(1, Ordering::Relaxed);
        if self.stream {
            self.activity.streams.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Bytes of a next request that are kept while a stream is being written: enough for one head, and its end is seen.
const AHEAD: usize = 16 << 10;
/// How long and how much is thrown away of what was refused. 5 s is nginx's lingering_timeout.
const LINGER: Duration = Duration::from_secs(5);
const MOST_REFUSED: usize = 64 << 20;

/// A connection's transport as hyper sees it.
#[derive(Debug)]
pub(super) struct Watched {
    inner: TokioIo<Counted>,
    activity: Arc<Activity>,
    /// What was read while looking whether a stream's client is still there; hyper gets it first.
    ahead: Vec<u8>,
    send_timeout: Duration,
    /// Runs while the socket takes nothing.
    stalled: Option<Pin<Box<Sleep>>>,
    /// Runs while what was refused is thrown away; how much that was.
    lingering: Option<(Pin<Box<Sleep>>, usize)>,
}

impl Watched {
    pub(super) fn new(transport: Counted, activity: Arc<Activity>, send_timeout: Duration) -> Self {
        Self {
            inner: TokioIo::new(transport),
            activity,
            ahead: Vec::new(),
            send_timeout,
            stalled: None,
            lingering: None,
        }
    }

    pub(super) fn into_inner(self) -> Transport {
        self.inner.into_inner().into_inner()
    }

    /// hyper does not read while it writes an answer, since a client may have closed its sending side and still be
    /// reading (RFC 9112 section 9.6). Nobody reads a stream like that, and a stream may be silent for hours: so the
    /// end of input means that its client has left.
    fn look(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        while self.activity.streams() && self.ahead.len() < AHEAD {
            let mut space = [0; 1024];
            let mut buf = ReadBuf::new(&mut space);
            match Pin::new(self.inner.inner_mut()).poll_read(cx, &mut buf) {
                Poll::Pending => break,
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Ready(Ok(())) if buf.filled().is_empty() => {
                    return Err(io::Error::new(io::ErrorKind::ConnectionReset, "the client has left"));
                }
                Poll::Ready(Ok(())) => self.ahead.extend_from_slice(buf.filled()),
            }
        }
        Ok(())
    }

    /// Counts what was written, and for how long nothing could be.
    fn wrote(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match written {
            Poll::Ready(Ok(n)) => {
                self.activity.written.fetch_add(n as u64, Ordering::Relaxed);
                self.stalled = None;
            }
            Poll::Pending => {
                let limit = self.send_timeout;
                let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
                if stalled.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, SEND_TIMEOUT)));
                }
            }
            Poll::Ready(Err(_)) => {}
        }
        written
    }

    fn check(&self) -> io::Result<()> {
        if self.activity.broken.load(Ordering::Relaxed) {
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "broken off"));
        }
        Ok(())
    }
}

/// The text of the error for a client that takes nothing.
pub(super) const SEND_TIMEOUT: &str = "nothing was taken within send_timeout";

impl Read for Watched {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, mut buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.ahead.is_empty() {
            return Pin::new(&mut this.inner).poll_read(cx, buf);
        }
        let n = this.ahead.len().min(buf.remaining());
        buf.put_slice(&this.ahead[..n]);
        this.ahead.drain(..n);
        if this.ahead.is_empty() {
            this.ahead = Vec::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl Write for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.check()?;
        let written = Pin::new(&mut self.inner).poll_write(cx, data);
        self.wrote(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check()?;
        let written = Pin::new(&mut self.inner).poll_write_vectored(cx, slices);
        self.wrote(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check()?;
        self.look(cx)?;
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.activity.lingers() {
            return Pin::new(&mut this.inner).poll_shutdown(cx);
        }
        if this.lingering.is_none() {
            ready!(Pin::new(&mut this.inner).poll_shutdown(cx))?;
        }
        let (limit, refused) = this.lingering.get_or_insert_with(|| (Box::pin(tokio::time::sleep(LINGER)), 0));
        let mut space = [0; 16 << 10];
        loop {
            if *refused >= MOST_REFUSED || limit.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Ok(()));
            }
            let mut buf = ReadBuf::new(&mut space);
            match ready!(Pin::new(this.inner.inner_mut()).poll_read(cx, &mut buf)) {
                Ok(()) if !buf.filled().is_empty() => *refused += buf.filled().len(),
                _ => return Poll::Ready(Ok(())),
            }
        }
    }
}
