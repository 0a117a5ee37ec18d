//! The queue going up: what the I/O threads saw, drained by `tick()`.
//!
//! All messages of a batch share one arena, so that in a steady state nothing is allocated per message: the I/O
//! thread appends, `tick()` swaps the whole batch against the (emptied) previous one.
//!
//! Bounded: when a batch holds `max_pending_bytes`, or one channel's part of it `max_channel_pending_bytes`,
//! reading and accepting pause and TCP pushes back; taking the batch resumes them. So at most two batches exist, the one being
//! filled and the one being run, each within the limit plus one read and one message per connection.

use crate::connection::Connection;
use crate::request::HttpRequest;
use crate::server::access::AccessRecord;
use crate::upload::Form;
use crate::wake::{Waited, Wake};
use crate::wire::{MessageKind, Payload};
use parking_lot::Mutex;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Waker;
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// What an event is counted as beside its payload, so that a flood of empty messages is bounded too.
const EVENT_COST: usize = 64;
/// What a connection or request that waits for a tick is counted as beside what it sent: clients that come and go
/// while the program stalls leave this behind.
const CONNECTION_COST: usize = 1 << 10;
/// What a header field is counted as beside its bytes: an entry of the map.
const FIELD_COST: usize = 64;
/// Payloads from this size on are handed over as they are instead of being copied into the arena.
const LARGE: usize = 32 << 10;
/// Capacity that an emptied batch may keep.
const KEEP: usize = 1 << 20;
/// Batches in a row that use less than a quarter of their memory before it goes back to [`KEEP`].
const PATIENCE: u32 = 32;

/// One thing that happened. A channel's events come in this order: `Open`, `Message`s, `Close` once.
#[derive(Debug)]
pub enum Event {
    /// A WebSocket connection is open.
    Open(Arc<Connection>),
    /// A whole message; its payload is `batch.arena[start..start + len]`.
    Message {
        /// The channel's number within its endpoint.
        channel: u32,
        /// Text is valid UTF-8.
        kind: MessageKind,
        /// First byte in the arena.
        start: usize,
        /// Length in bytes.
        len: usize,
    },
    /// A whole message too large for the arena to copy.
    LargeMessage {
        /// The channel's number within its endpoint.
        channel: u32,
        /// Text is valid UTF-8.
        kind: MessageKind,
        /// The payload.
        data: Vec<u8>,
    },
    /// The end of a channel; code and reason are in `Connection::close_info`.
    Close {
        /// The channel's number within its endpoint.
        channel: u32,
    },
    /// A channel whose socket was full has written everything.
    Drain {
        /// The channel's number within its endpoint.
        channel: u32,
    },
    /// A WebSocket handshake on which the program decides: an answer with status 101 accepts.
    Upgrade(Box<HttpRequest>),
    /// An HTTP request for a handler of the program.
    Request(Box<HttpRequest>),
    /// A streamed response has ended, or its client has left.
    StreamEnd {
        /// Its number.
        stream: u64,
    },
    /// A request is finished: for the access log.
    Access(Box<AccessRecord>),
    /// The client got no connection.
    ConnectFailed(Box<crate::client::ConnectError>),
    /// Something of an HTTP request that the program makes.
    Http(Box<crate::http_client::HttpEvent>),
    /// Somebody has come to a topic, or has left it.
    Presence {
        /// The topic.
        topic: Arc<str>,
        /// Who.
        member: Arc<str>,
        /// Has come.
        joined: bool,
    },
    /// The backplane is there, or away: the state's name.
    Backplane(&'static str),
    /// A warning for the log.
    Log(String),
    /// A panic on a native thread: a bug of ours, surfaces from `tick()`.
    Fault(String),
    /// What remains in the place of an event that was taken out, to be run or because a newer one replaces it.
    Taken,
}

impl Event {
    /// The number of the channel that it is of.
    pub(crate) fn channel(&self) -> Option<u32> {
        match self {
            Self::Open(conn) => Some(conn.channel()),
            Self::Message { channel, .. }
            | Self::LargeMessage { channel, .. }
            | Self::Close { channel }
            | Self::Drain { channel } => Some(*channel),
            _ => None,
        }
    }
}

/// Events in order of arrival, and the bytes they refer to.
#[derive(Debug, Default)]
pub struct Batch {
    /// The events.
    pub events: Vec<Event>,
    /// The payloads.
    pub arena: Vec<u8>,
    /// Payload bytes and event costs together.
    size: usize,
    /// Uses in a row that left most of the memory unused.
    needless: u32,
    /// Connections that stopped reading because this batch is full, to be resumed when it is taken.
    pub paused: Vec<Arc<Connection>>,
}

impl Batch {
    /// Payload bytes and event costs together.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }

    /// Takes out the event at `index`, if there is one.
    pub fn take(&mut self, index: usize) -> Option<Event> {
        self.events.get_mut(index).map(|event| std::mem::replace(event, Event::Taken))
    }

    /// Takes out a message that a newer one replaces; false if it has been taken already.
    pub fn supersede(&mut self, index: usize) -> bool {
        match self.events.get_mut(index) {
            Some(event @ (Event::Message { .. } | Event::LargeMessage { .. })) => {
                *event = Event::Taken;
                true
            }
            _ => false,
        }
    }

    /// Empties it for reuse. Beyond a modest capacity it keeps what steady traffic needs: giving memory back and asking
    /// for it again each time costs more than the messages.
    pub fn clear(&mut self) {
        let needless = self.arena.len() < self.arena.capacity() / 4 && self.events.len() < self.events.capacity() / 4;
        self.needless = if needless { self.needless + 1 } else { 0 };
        self.events.clear();
        self.arena.clear();
        self.paused.clear();
        self.size = 0;
        if self.needless >= PATIENCE {
            self.needless = 0;
            self.arena.shrink_to(KEEP);
            self.events.shrink_to(KEEP / size_of::<Event>());
        }
    }

    fn push(&mut self, event: Event) {
        self.size += EVENT_COST
            + match &event {
                Event::Message { len, .. } => *len,
                Event::LargeMessage { data, .. } => data.len(),
                Event::Open(conn) => CONNECTION_COST + conn.handshake.size(),
                Event::Request(request) | Event::Upgrade(request) => {
                    let field = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
                        name.as_str().len() + value.len() + FIELD_COST
                    };
                    let head = request.url.len() + request.headers.iter().map(field).sum::<usize>();
                    let form = request.form.as_ref().map_or(0, Form::in_memory);
                    CONNECTION_COST + head + request.body.len() + form
                }
                Event::Http(event) => event.size(),
                Event::Presence { topic, member, .. } => topic.len() + member.len(),
                Event::Log(text) | Event::Fault(text) => text.len(),
                Event::Access(record) => record.size(),
                Event::Close { .. }
                | Event::Drain { .. }
                | Event::StreamEnd { .. }
                | Event::ConnectFailed(_)
                | Event::Backplane(_)
                | Event::Taken => 0,
            };
        self.events.push(event);
    }

    /// Appends a message; returns what it counts.
    pub(crate) fn push_message(&mut self, channel: u32, kind: MessageKind, payload: Payload<'_>) -> usize {
        let len = payload.len();
        if len >= LARGE {
            let data = payload.into_vec();
            self.push(Event::LargeMessage { channel, kind, data });
        } else {
            let start = self.arena.len();
            self.arena.extend_from_slice(&payload);
            self.push(Event::Message { channel, kind, start, len });
        }
        len + EVENT_COST
    }
}

struct Inner {
    /// The batch being filled.
    batch: Batch,
    /// Made when somebody first waits or asks for the descriptor.
    wake: Option<Arc<Wake>>,
    /// The descriptor was handed out: it has to be readable whenever events are pending.
    exported: bool,
    /// A thread is blocked in `wait`, or drives the sockets until something is here.
    waiting: bool,
    /// Wakes the thread that does the latter.
    driving: Option<Waker>,
    /// The descriptor is readable.
    signalled: bool,
    /// No more events are taken: the endpoint was dropped.
    closed: bool,
}

/// The queue of one endpoint. Filled by I/O threads, taken by the thread that ticks.
pub struct Inbox {
    /// Events or a nudge are pending. Release on set, acquire on the tick's one load: a tick that reads true sees
    /// the batch under the lock anyway; a tick that reads false runs nothing.
    ready: AtomicBool,
    /// Number of the batch being filled; counted up at each take. Connections compare it to know whether what they
    /// put in is still waiting. Written under the lock; an unlocked read may be one late, which only delays.
    epoch: AtomicU64,
    /// Newest batch whose callbacks have all run and whose sends have been queued.
    done: AtomicU64,
    /// The batch is full: nobody reads on. Written under the lock, read without it as a hint.
    full: AtomicBool,
    /// Told when a full batch was taken.
    room: Notify,
    max_bytes: usize,
    max_channel_bytes: usize,
    /// Guards the batch and the wake-up state; held for one read's frames, or for a swap. Never while user code runs.
    inner: Mutex<Inner>,
}

impl std::fmt::Debug for Inbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inbox").field("ready", &self.ready).field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

/// The I/O thread's hold on the inbox while it decodes one read: one lock for all its frames.
pub(crate) struct Filling<'a> {
    inbox: &'a Inbox,
    inner: parking_lot::MutexGuard<'a, Inner>,
    /// Events, and what they count, when it began.
    before: usize,
    size: usize,
}

impl Filling<'_> {
    /// The batch to append to. After the endpoint was dropped what is appended is thrown away on release.
    pub(crate) fn batch(&mut self) -> &mut Batch {
        &mut self.inner.batch
    }

    /// Number of the batch.
    pub(crate) fn epoch(&self) -> u64 {
        self.inbox.epoch.load(Ordering::Relaxed)
    }

    pub(crate) fn push(&mut self, event: Event) {
        self.inner.batch.push(event);
    }

    /// Where nothing but messages was put in: how many, and the bytes of their content.
    pub(crate) fn messages(&self) -> (usize, usize) {
        let count = self.inner.batch.events.len() - self.before;
        (count, self.inner.batch.size - self.size - count * EVENT_COST)
    }

    /// Whether a connection with `pending` bytes in this batch has to stop reading; if so it is resumed by the take.
    pub(crate) fn pause_if_full(&mut self, conn: &Arc<Connection>, pending: usize) -> bool {
        let pause = pending >= self.inbox.max_channel_bytes || self.inner.batch.size >= self.inbox.max_bytes;
        if pause {
            self.inner.batch.paused.push(Arc::clone(conn));
        }
        pause
    }

    /// Lets go. True: the ticking thread wants to be woken, by [`Inbox::signal`], before the I/O thread sleeps.
    pub(crate) fn finish(mut self) -> bool {
        let inner = &mut *self.inner;
        if inner.closed {
            inner.batch.clear();
            return false;
        }
        if inner.batch.events.len() == self.before {
            return false;
        }
        self.inbox.ready.store(true, Ordering::Release);
        if inner.batch.size >= self.inbox.max_bytes {
            self.inbox.full.store(true, Ordering::Relaxed);
        }
        (inner.exported || inner.waiting) && !inner.signalled
    }
}

impl Inbox {
    /// An empty queue. `wake`: the descriptor of an earlier run of the same object, kept so that `fileno()` stays.
    #[must_use]
    pub fn new(max_bytes: usize, max_channel_bytes: usize, wake: Option<Arc<Wake>>) -> Self {
        Self {
            ready: AtomicBool::new(false),
            epoch: AtomicU64::new(1),
            done: AtomicU64::new(0),
            full: AtomicBool::new(false),
            room: Notify::new(),
            max_bytes,
            max_channel_bytes,
            inner: Mutex::new(Inner {
                batch: Batch::default(),
                exported: wake.is_some(),
                wake,
                waiting: false,
                driving: None,
                signalled: false,
                closed: false,
            }),
        }
    }

    /// Whether a tick has anything to do: the one atomic load of an empty `tick()`.
    #[inline]
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    /// How many events wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.inner.lock().batch.events.len()
    }

    /// How many events wait, and what they count towards `max_pending_bytes`.
    pub(crate) fn load(&self) -> (usize, usize) {
        let inner = self.inner.lock();
        (inner.batch.events.len(), inner.batch.size)
    }

    /// Whether none does.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether a thread is blocked in [`Inbox::wait`].
    pub(crate) fn is_waited_for(&self) -> bool {
        self.inner.lock().waiting
    }

    pub(crate) fn is_full(&self) -> bool {
        self.full.load(Ordering::Relaxed)
    }

    /// Until the batch is not full.
    pub(crate) async fn has_room(&self) {
        while self.is_full() {
            let mut notified = std::pin::pin!(self.room.notified());
            // Registered before the look, so that a take in between is not missed.
            notified.as_mut().enable();
            if !self.is_full() {
                return;
            }
            notified.await;
        }
    }

    /// Whether everything put into batch `epoch` has been delivered and answered.
    pub(crate) fn is_done(&self, epoch: u64) -> bool {
        self.done.load(Ordering::Acquire) >= epoch
    }

    /// Whether no event waits, and the callbacks of all there were have run.
    pub(crate) fn is_delivered(&self) -> bool {
        let inner = self.inner.lock();
        inner.batch.events.is_empty() && self.done.load(Ordering::Acquire) + 1 >= self.epoch.load(Ordering::Acquire)
    }

    pub(crate) fn fill(&self) -> Filling<'_> {
        let inner = self.inner.lock();
        Filling { inbox: self, before: inner.batch.events.len(), size: inner.batch.size, inner }
    }

    /// Appends one event; true as in [`Filling::finish`].
    pub(crate) fn push(&self, event: Event) -> bool {
        let mut filling = self.fill();
        filling.push(event);
        filling.finish()
    }

    /// The same for what may be dropped; `None`: it was, because half of `max_bytes` waits already.
    pub(crate) fn push_if_room(&self, event: Event) -> Option<bool> {
        let mut filling = self.fill();
        if filling.batch().size >= self.max_bytes / 2 {
            return None;
        }
        filling.push(event);
        Some(filling.finish())
    }

    /// Makes the descriptor readable if anybody looks at it.
    pub fn signal(&self) {
        let mut inner = self.inner.lock();
        if let Some(waker) = &inner.driving {
            waker.wake_by_ref();
        }
        // Signals come some time after the event: a tick may have taken it since.
        let wanted =
            (inner.exported || (inner.waiting && inner.driving.is_none())) && !inner.signalled && !inner.closed;
        if wanted && self.is_ready() {
            if let Some(wake) = &inner.wake {
                wake.signal();
            }
            inner.signalled = true;
        }
    }

    /// Ends a `wait` without an event, so that the ticking thread looks at other state (a stop request).
    pub fn nudge(&self) {
        self.ready.store(true, Ordering::Release);
        self.signal();
    }

    /// Swaps the pending batch into `batch`, which has to be empty, and returns its number.
    pub fn take(&self, batch: &mut Batch) -> u64 {
        let mut inner = self.inner.lock();
        std::mem::swap(&mut inner.batch, batch);
        let epoch = self.epoch.fetch_add(1, Ordering::Release);
        self.ready.store(false, Ordering::Release);
        if self.full.swap(false, Ordering::Relaxed) {
            self.room.notify_waiters();
        }
        if inner.signalled {
            if let Some(wake) = &inner.wake {
                wake.clear();
            }
            inner.signalled = false;
        }
        epoch
    }

    /// The callbacks of batch `epoch` have run.
    pub fn set_done(&self, epoch: u64) {
        self.done.store(epoch, Ordering::Release);
    }

    /// Throws away what waits and takes nothing more.
    pub fn close(&self) {
        let mut inner = self.inner.lock();
        inner.closed = true;
        if let Some(wake) = inner.wake.as_ref().filter(|_| inner.signalled) {
            // The next run's inbox may use it: it begins unreadable.
            wake.clear();
        }
        let batch = std::mem::take(&mut inner.batch);
        drop(inner);
        // Dropping events can drop the last reference to a connection: not under the lock.
        drop(batch);
    }

    fn ensure_wake(inner: &mut Inner) -> io::Result<Arc<Wake>> {
        if let Some(wake) = &inner.wake {
            return Ok(Arc::clone(wake));
        }
        let wake = Arc::new(Wake::new()?);
        inner.wake = Some(Arc::clone(&wake));
        Ok(wake)
    }

    /// The descriptor, which from now on is readable whenever events are pending. `pending`: a tick left events over.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn export(&self, pending: bool) -> io::Result<Arc<Wake>> {
        let mut inner = self.inner.lock();
        let wake = Self::ensure_wake(&mut inner)?;
        inner.exported = true;
        drop(inner);
        if pending || self.is_ready() {
            self.signal();
        }
        Ok(wake)
    }

    /// The descriptor if it was handed out, for the inbox of the object's next run.
    pub fn exported(&self) -> Option<Arc<Wake>> {
        let inner = self.inner.lock();
        inner.exported.then(|| inner.wake.clone()).flatten()
    }

    /// For a thread that drives the sockets until something is pending: whether that is so; if not, `waker` is woken then.
    pub(crate) fn is_driven(&self, waker: &Waker) -> bool {
        if self.is_ready() {
            return true;
        }
        let mut inner = self.inner.lock();
        if inner.driving.is_none() {
            inner.waiting = true;
            inner.driving = Some(waker.clone());
        }
        self.is_ready()
    }

    /// It does so no more.
    pub(crate) fn is_left(&self) {
        let mut inner = self.inner.lock();
        if inner.driving.take().is_some() {
            inner.waiting = false;
        }
    }

    /// Blocks until something is pending, the deadline, or a signal. The caller has let go of the GIL.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn wait(&self, deadline: Option<Instant>) -> io::Result<Waited> {
        /// A signal that arrives between the caller's check and the poll is seen after this time at the latest.
        const SLICE: Duration = Duration::from_secs(1);
        let wake = {
            let mut inner = self.inner.lock();
            if self.is_ready() {
                return Ok(Waited::Ready);
            }
            let wake = Self::ensure_wake(&mut inner)?;
            inner.waiting = true;
            wake
        };
        let left = deadline.map(|d| d.saturating_duration_since(Instant::now()));
        let mut waited = wake.wait(Some(left.map_or(SLICE, |l| l.min(SLICE))));
        self.inner.lock().waiting = false;
        if waited == Waited::TimedOut && left.is_none_or(|l| l > SLICE) {
            waited = Waited::Interrupted;
        }
        Ok(if self.is_ready() { Waited::Ready } else { waited })
    }
}
