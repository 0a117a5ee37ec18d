//! A response that the program writes piece by piece: streamed content and server-sent events.
//!
//! The program's side ([`Stream`]) appends chunks from any thread; hyper takes them out through [`StreamBody`] as fast
//! as the client reads. What waits in between is bounded by `max_buffered`. The body is dropped when the content has
//! ended, or when the client has left: both put `Event::StreamEnd` into the inbox, once, if the stream was opened.

use crate::body::BodyError;
use crate::down::{Command, DownQueue, deliver};
use crate::endpoint::Endpoint;
use crate::inbox::Event;
use crate::runtime::IoThread;
use crate::server::activity::Activity;
use crate::settings::SlowPolicy;
use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::time::{Instant, Sleep};

/// Small chunks that wait are joined up to this size: each costs a chunk header and a slice of the write.
const JOIN: usize = 16 << 10;
/// The comment that keeps proxies and the client's idea of the connection alive (WHATWG HTML section 9.2.7).
const COMMENT: &[u8] = b":\n\n";

#[derive(Debug, Default)]
struct Inner {
    chunks: VecDeque<Bytes>,
    /// Bytes in `chunks`.
    buffered: usize,
    /// The program has closed it: what waits still goes out.
    closed: bool,
    /// Broken off when so many bytes waited: nothing more goes out.
    failed: Option<usize>,
    /// The body is gone: nothing more goes out.
    gone: bool,
    /// The connection's task; known once it has asked for a chunk.
    waker: Option<Waker>,
    /// It has asked for a chunk, there was none, and no wake-up is on its way.
    asked: bool,
    /// For HTTP/1: to break the connection off while hyper waits for its socket and asks for nothing.
    activity: Option<Arc<Activity>>,
}

/// The program's side of a streamed response.
pub struct Stream {
    /// Its number, unlike any other's in the process.
    pub id: u64,
    io: Arc<IoThread>,
    endpoint: Arc<Endpoint>,
    /// Guards the queue for one append or one take.
    inner: Mutex<Inner>,
    /// Whole chunks may be left out when the client is slow: events are, raw content is not.
    droppable: bool,
    dropped: AtomicU64,
    /// The program has opened it and is still to be told of its end. One that a handler refused has none, and its body is
    /// dropped on the program's thread, which must not put anything into the inbox.
    owed: AtomicBool,
    /// That it was broken off is counted and logged. The body may have told the end before.
    complained: AtomicBool,
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").field("id", &self.id).finish_non_exhaustive()
    }
}

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

impl Stream {
    /// A stream and its content for the response. `comments`: how often a comment is sent while nothing else is, for
    /// event streams; `droppable`: `slow_policy` may leave chunks out.
    #[must_use]
    pub fn new(
        io: &Arc<IoThread>,
        endpoint: &Arc<Endpoint>,
        comments: Option<Duration>,
        droppable: bool,
    ) -> (Arc<Self>, StreamBody) {
        let stream = Arc::new(Self {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            io: Arc::clone(io),
            endpoint: Arc::clone(endpoint),
            inner: Mutex::default(),
            droppable,
            dropped: AtomicU64::new(0),
            owed: AtomicBool::new(false),
            complained: AtomicBool::new(false),
        });
        (Arc::clone(&stream), StreamBody { stream, comments, quiet: None, ended: false })
    }

    /// What it belongs to.
    #[must_use]
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    /// The thread that it is on.
    pub(crate) fn io(&self) -> &Arc<IoThread> {
        &self.io
    }

    /// Queues a chunk; false when the stream is closed, or `slow_policy` left the chunk out or broke the stream off.
    pub fn write(self: &Arc<Self>, chunk: Bytes) -> bool {
        let limit = self.endpoint.settings.max_buffered;
        let mut inner = self.inner.lock();
        if inner.closed || inner.gone || inner.failed.is_some() {
            return false;
        }
        if chunk.is_empty() {
            return true;
        }
        // As with a channel, one chunk may be larger than the limit if nothing else waits.
        if inner.buffered > 0 && inner.buffered + chunk.len() > limit {
            match self.endpoint.settings.slow_policy {
                SlowPolicy::DropNewest if self.droppable => {
                    self.dropped.fetch_add(1, Ordering::Relaxed);
                    return false;
                }
                SlowPolicy::DropOldest if self.droppable => {
                    while inner.buffered > 0 && inner.buffered + chunk.len() > limit {
                        let Some(oldest) = inner.chunks.pop_front() else { break };
                        inner.buffered -= oldest.len();
                        self.dropped.fetch_add(1, Ordering::Relaxed);
                    }
                }
                _ => {
                    let waited = inner.buffered;
                    inner.failed = Some(waited);
                    inner.chunks.clear();
                    inner.buffered = 0;
                    inner.asked = true;
                    self.wake(inner);
                    return false;
                }
            }
        }
        inner.buffered += chunk.len();
        inner.chunks.push_back(chunk);
        self.wake(inner);
        true
    }

    /// The body is about to be handed over as an answer: from here on the end is told.
    pub fn open(&self) {
        self.owed.store(true, Ordering::Relaxed);
    }

    /// Ends the content behind what waits. Ending it again does nothing.
    pub fn close(self: &Arc<Self>) {
        let mut inner = self.inner.lock();
        if !inner.closed {
            inner.closed = true;
            self.wake(inner);
        }
    }

    /// Wakes the connection once for all that a tick writes.
    fn wake(self: &Arc<Self>, mut inner: parking_lot::MutexGuard<'_, Inner>) {
        if std::mem::take(&mut inner.asked) {
            drop(inner);
            DownQueue::push(&self.io, Command::Stream(Arc::clone(self)));
        }
    }

    /// I/O thread: the wake-up has arrived.
    pub(crate) fn wake_now(&self) {
        let (waker, failed) = {
            let inner = self.inner.lock();
            if let (Some(_), Some(activity)) = (inner.failed, &inner.activity) {
                activity.break_off();
            }
            (inner.waker.clone(), inner.failed)
        };
        if let Some(waited) = failed
            && !self.complained.swap(true, Ordering::Relaxed)
        {
            self.endpoint.complain(&self.io, "max_buffered", || {
                let limit = self.endpoint.settings.max_buffered;
                format!("stream broken off: {waited} bytes waited to be sent, the limit is max_buffered={limit}")
            });
            self.tell_end();
        }
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// I/O thread: nothing more goes out.
    fn tell_end(&self) {
        if self.owed.swap(false, Ordering::Relaxed) {
            deliver(&self.io, &self.endpoint, Event::StreamEnd { stream: self.id });
        }
    }

    /// Whether `write` would queue a chunk.
    #[must_use]
    pub fn is_open(&self) -> bool {
        let inner = self.inner.lock();
        !inner.closed && !inner.gone && inner.failed.is_none()
    }

    /// Bytes that wait for the client to read.
    #[must_use]
    pub fn buffered_amount(&self) -> usize {
        self.inner.lock().buffered
    }

    /// Chunks that `slow_policy` has left out.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

/// What hyper sends; see the module.
pub struct StreamBody {
    stream: Arc<Stream>,
    comments: Option<Duration>,
    /// Runs out when nothing was sent for so long.
    quiet: Option<Pin<Box<Sleep>>>,
    ended: bool,
}

impl fmt::Debug for StreamBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamBody").field("stream", &self.stream.id).finish_non_exhaustive()
    }
}

impl StreamBody {
    /// Ties it to an HTTP/1 connection, which ends with it if it is broken off.
    pub(crate) fn tie(&self, activity: &Arc<Activity>) {
        self.stream.inner.lock().activity = Some(Arc::clone(activity));
    }

    /// The next chunk.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let next = {
            let mut inner = self.stream.inner.lock();
            if inner.failed.is_some() {
                self.ended = true;
                return Poll::Ready(Some(Err("more than max_buffered bytes waited to be sent".into())));
            }
            let chunk = take(&mut inner);
            if chunk.is_none() {
                if inner.closed {
                    self.ended = true;
                    return Poll::Ready(None);
                }
                inner.asked = true;
            }
            if inner.waker.as_ref().is_none_or(|known| !known.will_wake(cx.waker())) {
                inner.waker = Some(cx.waker().clone());
            }
            chunk
        };
        let Some(every) = self.comments else {
            return next.map_or(Poll::Pending, |chunk| Poll::Ready(Some(Ok(chunk))));
        };
        let quiet = self.quiet.get_or_insert_with(|| Box::pin(tokio::time::sleep(every)));
        if let Some(chunk) = next {
            quiet.as_mut().reset(Instant::now() + every);
            return Poll::Ready(Some(Ok(chunk)));
        }
        if quiet.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        quiet.as_mut().reset(Instant::now() + every);
        Poll::Ready(Some(Ok(Bytes::from_static(COMMENT))))
    }
}

/// Takes out what goes into one write: one large chunk as it is, or small ones joined.
fn take(inner: &mut Inner) -> Option<Bytes> {
    let first = inner.chunks.pop_front()?;
    let fits = |next: &Bytes, len: usize| len + next.len() <= JOIN;
    let joined = if inner.chunks.front().is_some_and(|next| fits(next, first.len())) {
        let mut joined = BytesMut::from(&first[..]);
        while let Some(next) = inner.chunks.pop_front_if(|next| fits(next, joined.len())) {
            joined.extend_from_slice(&next);
        }
        joined.freeze()
    } else {
        first
    };
    inner.buffered -= joined.len();
    Some(joined)
}

impl Drop for StreamBody {
    fn drop(&mut self) {
        let stream = &self.stream;
        {
            let mut inner = stream.inner.lock();
            *inner = Inner { gone: true, failed: inner.failed, ..Inner::default() };
        }
        stream.tell_end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Settings;

    #[test]
    fn only_a_stream_that_was_opened_tells_its_end() {
        let endpoint = Endpoint::new(Settings::default(), None).unwrap();
        let io = Arc::clone(&endpoint.runtime.threads[0]);
        let (refused, body) = Stream::new(&io, &endpoint, None, false);
        drop(body);
        assert!(!refused.is_open() && !refused.write(Bytes::from_static(b"x")));
        assert!(!endpoint.inbox.is_ready());
        let (opened, body) = Stream::new(&io, &endpoint, None, false);
        opened.open();
        drop(body);
        assert!(!opened.is_open());
        assert!(endpoint.inbox.is_ready());
    }
}
