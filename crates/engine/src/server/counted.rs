//! A connection's transport while it speaks HTTP, with its bytes counted: hyper does not tell how many there were.

use crate::endpoint::Endpoint;
use crate::stats::Counters;
use crate::transport::Transport;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Used by the I/O thread that owns the connection alone, as [`Counters`] ask for.
#[derive(Debug)]
pub(super) struct Counted {
    transport: Transport,
    endpoint: Arc<Endpoint>,
    thread: usize,
}

impl Counted {
    /// `thread`: the number of the I/O thread.
    pub(super) fn new(transport: Transport, endpoint: &Arc<Endpoint>, thread: usize) -> Self {
        Self { transport, endpoint: Arc::clone(endpoint), thread }
    }

    pub(super) fn into_inner(self) -> Transport {
        self.transport
    }

    fn counters(&self) -> &Counters {
        self.endpoint.stats.on(self.thread)
    }

    fn wrote(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(n)) = written {
            self.counters().http_written.add(n);
        }
        written
    }
}

impl AsyncRead for Counted {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let read = Pin::new(&mut this.transport).poll_read(cx, buf);
        this.counters().http_read.add(buf.filled().len() - before);
        read
    }
}

impl AsyncWrite for Counted {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.transport).poll_write(cx, data);
        this.wrote(written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.transport).poll_write_vectored(cx, slices);
        this.wrote(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.transport.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().transport).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().transport).poll_shutdown(cx)
    }
}
