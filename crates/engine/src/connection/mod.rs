//! One WebSocket connection: the codec joined to a socket, an out-buffer, and the closing handshake.
//!
//! The I/O side is one small task (`task::Drive`) per connection, which reads and, when the socket was full, writes; the
//! pump of the I/O thread writes directly. Both run on the same thread.
//!
//! | module | holds |
//! |---|---|
//! | this one | what a connection is, and what the program's threads may do with it |
//! | `task` | reading; writing when the socket was full |
//! | `pump` | queueing and writing what the program sent |
//! | `keepalive` | pings, and what has been silent for too long |
//! | `closing` | the closing handshake as a state machine |

mod closing;
pub(crate) mod keepalive;
pub(crate) mod pump;
mod task;

use crate::down::{Command, DownQueue, Part};
use crate::endpoint::{Endpoint, Live, Seat};
use crate::inbox::Event;
use crate::outbuf::OutBuf;
use crate::proxy::Sender;
use crate::runtime::IoThread;
use crate::settings::SlowPolicy;
use crate::transport::Transport;
use crate::wire::deflate::{Compressor, DeflateParams, worth_compressing};
use crate::wire::{self, Decoder, MessageKind, Outgoing, Role, SequenceError};
use bytes::Bytes;
pub(crate) use closing::TOO_SLOW;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::Waker;
use std::time::{Duration, Instant};
use task::Drive;
use tokio::task::AbortHandle;

/// The program may send.
const OPEN: u8 = 0;
/// The socket is gone, or the close event was delivered: sending is pointless.
const GONE: u8 = 1;
/// The program called close: what still arrives is dropped, as WHATWG's WebSocket does in its closing state.
const CLOSED: u8 = 2;

/// What the opening handshake told; lives as long as the channel.
#[derive(Debug)]
pub struct Handshake {
    /// Server: the request target as sent, path and query. Client: the URL.
    pub url: String,
    /// Server: the request's headers; client: the response's. `name: value` lines, each ended by LF.
    pub headers: Box<[u8]>,
    /// The peer.
    pub remote: Option<SocketAddr>,
    /// Server: who asked, the peer or the client of a trusted proxy.
    pub sender: Option<Sender>,
    /// The subprotocol agreed on.
    pub subprotocol: Option<String>,
    /// What was agreed on permessage-deflate, if anything.
    pub deflate: Option<DeflateParams>,
}

/// How a channel ended.
#[derive(Debug)]
pub struct CloseInfo {
    /// The code of the peer's close frame, 1005 if it had none; without a close frame the code this side failed the
    /// connection with, else 1006 (RFC 6455 section 7.1.5).
    pub code: u16,
    /// The reason that goes with it.
    pub reason: String,
}

/// Why a close frame is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseKind {
    /// The program asked.
    Local,
    /// The tick has delivered the close event: the peer's close, or its violation, is answered now.
    Reply,
    /// The peer reads too slowly: what waits is thrown away.
    Overflow,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    Answering,
    Closing,
    Draining,
    Closed,
}

#[derive(Debug)]
struct Inner {
    stream: Option<Transport>,
    decoder: Decoder,
    out: OutBuf,
    state: State,
    /// The tick has delivered the open event: a broadcast made before it is not for this channel.
    announced: bool,
    /// The peer's close frame has arrived.
    peer_closed: bool,
    /// The peer has ended its direction while we answer its close frame or violation: there is nothing more to read.
    read_ended: bool,
    /// The close event is in the inbox: exactly one.
    told: bool,
    /// The socket was full: the task waits for it to be writable.
    blocked: bool,
    /// Being closed because the peer does not read.
    too_slow: bool,
    /// In the pump's list of connections to flush.
    touched: bool,
    /// A message is being sent in fragments: broadcasts wait in `held`.
    fragmented: bool,
    /// Reading stopped until the batch is taken.
    paused: bool,
    /// Ends the closing handshake when it takes too long.
    timer: Option<AbortHandle>,
    /// Batch of the newest event, and what this connection has in it.
    epoch: u64,
    pending: usize,
    held: Vec<Bytes>,
    /// The newest ping that came while the socket was full; older ones need no answer (RFC 6455 section 5.5.3).
    pong: Option<Box<[u8]>>,
    /// What to answer with in state Answering.
    answer: Option<(Option<u16>, &'static str)>,
    waker: Option<Waker>,
    /// Where a context per connection was agreed on, from the first compressed message on: some hundred kilobytes.
    compressor: Option<Box<Compressor>>,
    life: Life,
}

/// Messages by number.
#[derive(Debug, Default)]
struct Mailbox {
    messages: VecDeque<(u64, wire::Opcode, Bytes)>,
    bytes: usize,
    next: u64,
}

/// What the keep-alive sweep knows; see `keepalive`.
#[derive(Debug, Default)]
struct Life {
    /// Something was read, or written after the socket had been full, since the last sweep.
    stirred: bool,
    /// A message passed since the last sweep.
    talked: bool,
    /// When the unanswered ping was sent, and its number.
    ping: Option<Instant>,
    ping_number: u32,
    /// Milliseconds since the last ping; that the ping has been unanswered in silence; without a message.
    since_ping: u32,
    unanswered: u32,
    idle: u32,
}

/// One WebSocket connection, shared by the program's channel object and the I/O thread.
#[derive(Debug)]
pub struct Connection {
    endpoint: Arc<Endpoint>,
    io: Arc<IoThread>,
    channel: OnceLock<u32>,
    role: Role,
    /// What the opening handshake told.
    pub handshake: Box<Handshake>,
    /// [`OPEN`], [`GONE`] or [`CLOSED`]; only ever rises. Relaxed: it decides whether a frame is worth queueing, and
    /// the I/O thread looks at its own state again.
    shut: AtomicU8,
    /// Bytes queued and not yet written.
    buffered: AtomicUsize,
    /// The sequence of fragments; held while a frame is queued, so that sequence and queue agree.
    outgoing: Mutex<Outgoing>,
    /// Round-trip time of the newest answered ping in microseconds, plus one; 0: none yet.
    round_trip: AtomicU32,
    /// Messages dropped because the peer reads too slowly.
    dropped: AtomicU64,
    /// A message was refused or dropped since the last drain.
    refused: AtomicBool,
    /// Under the policy to drop the oldest: what the pump has not fetched yet. Locked for one message.
    mailbox: OnceLock<Box<Mutex<Mailbox>>>,
    closed: OnceLock<Box<CloseInfo>>,
    /// The I/O side. Locked by the I/O thread alone, so never contended; the lock is what makes it shareable.
    inner: Mutex<Inner>,
}

/// Why a frame was not sent.
#[derive(Debug, PartialEq, Eq)]
pub enum SendError {
    /// The channel is closed.
    Closed,
    /// Too much waits for the peer: the message was dropped.
    Dropped,
    /// The caller's mistake.
    Sequence(SequenceError),
}

impl Inner {
    /// Whether the answer to the peer's close frame or violation is still to be made or written.
    fn answers(&self) -> bool {
        match self.state {
            State::Answering => true,
            State::Draining => !self.out.is_empty(),
            State::Open | State::Closing | State::Closed => false,
        }
    }
}

impl Connection {
    /// Takes over an upgraded socket, on the I/O thread that owns it: tells the program, then reads.
    /// `first`: bytes that came right behind the handshake.
    pub(crate) fn open(
        endpoint: &Arc<Endpoint>,
        io: &Arc<IoThread>,
        role: Role,
        stream: Transport,
        handshake: Handshake,
        first: &[u8],
        seat: Option<Arc<Seat>>,
    ) {
        let decoder = Decoder::with_limits(role, Arc::clone(&endpoint.limits), handshake.deflate);
        let conn = Arc::new(Self {
            endpoint: Arc::clone(endpoint),
            io: Arc::clone(io),
            channel: OnceLock::new(),
            role,
            handshake: Box::new(handshake),
            shut: AtomicU8::new(OPEN),
            buffered: AtomicUsize::new(0),
            outgoing: Mutex::new(Outgoing::default()),
            round_trip: AtomicU32::new(0),
            dropped: AtomicU64::new(0),
            refused: AtomicBool::new(false),
            mailbox: OnceLock::new(),
            closed: OnceLock::new(),
            inner: Mutex::new(Inner {
                stream: Some(stream),
                decoder,
                out: OutBuf::default(),
                state: State::Open,
                announced: false,
                peer_closed: false,
                read_ended: false,
                told: false,
                blocked: false,
                too_slow: false,
                touched: false,
                fragmented: false,
                paused: false,
                timer: None,
                epoch: 0,
                pending: 0,
                held: Vec::new(),
                pong: None,
                answer: None,
                waker: None,
                compressor: None,
                life: Life::default(),
            }),
        });
        let live = Live::new(endpoint);
        let _ = conn.channel.set(endpoint.register(&conn));
        {
            let inner = &mut *conn.inner.lock();
            let mut filling = endpoint.inbox.fill();
            inner.epoch = filling.epoch();
            filling.push(Event::Open(Arc::clone(&conn)));
            if filling.finish() {
                DownQueue::wake_later(io, endpoint);
            }
            if !first.is_empty() {
                conn.received(inner, &mut first.to_vec());
            }
        }
        if endpoint.is_stopping() {
            // The stop's close-all went by before this connection was registered.
            let mut touched = Vec::new();
            conn.send_close(CloseKind::Local, Some(1001), "", &mut touched);
        }
        tokio::spawn(Drive { conn, _live: live, _seat: seat });
    }

    /// The number of the channel within its endpoint.
    #[must_use]
    pub fn channel(&self) -> u32 {
        self.channel.get().copied().unwrap_or(u32::MAX)
    }

    /// The endpoint it belongs to.
    #[must_use]
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    pub(crate) fn io(&self) -> &Arc<IoThread> {
        &self.io
    }

    // The program's side: from any thread.

    /// Whether the program may send.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.shut.load(Ordering::Relaxed) == OPEN
    }

    /// Whether the program called [`Connection::close`]: messages that are still queued are not for it.
    #[must_use]
    pub fn is_closed_by_program(&self) -> bool {
        self.shut.load(Ordering::Relaxed) == CLOSED
    }

    /// Bytes queued and not yet written to the socket.
    #[must_use]
    pub fn buffered_amount(&self) -> usize {
        self.buffered.load(Ordering::Relaxed)
    }

    pub(crate) fn add_buffered(&self, len: usize) {
        self.buffered.fetch_add(len, Ordering::Relaxed);
    }

    /// How it ended, once it has.
    #[must_use]
    pub fn close_info(&self) -> Option<&CloseInfo> {
        self.closed.get().map(|info| &**info)
    }

    /// Queues a frame. `opcode` and `fin` as in [`Outgoing::next`].
    ///
    /// # Errors
    /// When the channel is closed, or the frame does not fit the sequence of fragments.
    pub fn send(
        self: &Arc<Self>,
        opcode: Option<wire::Opcode>,
        kind: MessageKind,
        fin: bool,
        payload: &[u8],
    ) -> Result<(), SendError> {
        if !self.is_open() {
            return Err(SendError::Closed);
        }
        let mut outgoing = self.outgoing.lock();
        let before = *outgoing;
        let opcode = outgoing.next(opcode, kind, fin).map_err(SendError::Sequence)?;
        // Only a whole message can be left out: fragments belong together.
        let whole = fin && !before.is_open() && !opcode.is_control();
        let policy = self.endpoint.settings.slow_policy;
        if whole && policy == SlowPolicy::DropOldest {
            self.post(opcode, payload);
            return Ok(());
        }
        if !opcode.is_control() && self.is_over(payload.len()) {
            // Said before the second look: the pump, which tells of a drain, sees one or the other.
            self.refused.store(true, Ordering::SeqCst);
            if self.is_over(payload.len()) {
                if whole && policy == SlowPolicy::DropNewest {
                    self.count_dropped(1);
                    return Err(SendError::Dropped);
                }
                drop(outgoing);
                self.overflow();
                return Err(SendError::Closed);
            }
        }
        let part = match (opcode.is_control(), fin, opcode) {
            (false, false, _) => Part::More,
            (false, true, wire::Opcode::Continuation) => Part::Last,
            _ => Part::Whole,
        };
        if part == Part::Whole && !opcode.is_control() && self.would_compress(payload.len()) {
            DownQueue::push_message(self, opcode, payload);
        } else {
            DownQueue::push_frame(self, opcode, fin, payload, self.mask(), part);
        }
        Ok(())
    }

    /// Under the policy to drop the oldest: puts a message into the mailbox, where those that have waited longest make
    /// room, and leaves its place in the queue going down to a command that fetches it if it is still there.
    fn post(self: &Arc<Self>, opcode: wire::Opcode, payload: &[u8]) {
        let number = {
            let mailbox = &mut *self.mailbox.get_or_init(Box::default).lock();
            self.add_buffered(payload.len());
            mailbox.bytes += payload.len();
            mailbox.messages.push_back((mailbox.next, opcode, Bytes::copy_from_slice(payload)));
            while mailbox.bytes > self.endpoint.settings.max_buffered && mailbox.messages.len() > 1 {
                if let Some((_, _, oldest)) = mailbox.messages.pop_front() {
                    mailbox.bytes -= oldest.len();
                    self.buffered.fetch_sub(oldest.len(), Ordering::Relaxed);
                    self.count_dropped(1);
                    self.refused.store(true, Ordering::SeqCst);
                }
            }
            mailbox.next += 1;
            mailbox.next - 1
        };
        DownQueue::push(&self.io, Command::Fetch { conn: Arc::clone(self), number });
    }

    /// Takes a message out of the mailbox, unless newer ones have taken its room.
    pub(crate) fn fetch(&self, number: u64) -> Option<(wire::Opcode, Bytes)> {
        let mailbox = &mut *self.mailbox.get()?.lock();
        if mailbox.messages.front()?.0 != number {
            return None;
        }
        let (_, opcode, payload) = mailbox.messages.pop_front()?;
        mailbox.bytes -= payload.len();
        Some((opcode, payload))
    }

    /// RFC 6455 section 5.3: a client masks every frame with a fresh unpredictable key.
    fn mask(&self) -> Option<[u8; 4]> {
        (self.role == Role::Client).then(rand::random)
    }

    /// Whether a message of this length is to be compressed for this peer. What a program sends in fragments is not: it
    /// would need a compressor of its own until it is finished.
    fn would_compress(&self, len: usize) -> bool {
        self.handshake.deflate.is_some() && worth_compressing(len)
    }

    /// Whether `more` bytes are more than may wait. One message of any size may: the program chose it.
    fn is_over(&self, more: usize) -> bool {
        let buffered = self.buffered_amount();
        buffered > 0 && buffered + more > self.endpoint.settings.max_buffered
    }

    fn count_dropped(&self, messages: u64) {
        self.dropped.fetch_add(messages, Ordering::Relaxed);
    }

    /// Messages dropped because the peer reads too slowly.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Round-trip time of the newest ping that was answered.
    #[must_use]
    pub fn round_trip(&self) -> Option<Duration> {
        let micros = self.round_trip.load(Ordering::Relaxed).checked_sub(1)?;
        Some(Duration::from_micros(micros.into()))
    }

    /// Whether each frame has to stay a chunk of its own, so that it can be dropped.
    pub(crate) fn keeps_frames_apart(&self) -> bool {
        self.endpoint.settings.slow_policy == SlowPolicy::DropOldest
    }

    /// Of a message sent in fragments that is not finished: its kind.
    #[must_use]
    pub fn open_message(&self) -> Option<MessageKind> {
        self.outgoing.lock().kind()
    }

    /// Begins the closing handshake behind what has been sent. False: it was closed already.
    pub fn close(self: &Arc<Self>, code: Option<u16>, reason: &str) -> bool {
        if self.shut.fetch_max(CLOSED, Ordering::Relaxed) != OPEN {
            return false;
        }
        let conn = Arc::clone(self);
        let command = Command::Close { conn, kind: CloseKind::Local, code, reason: reason.to_owned() };
        DownQueue::push(&self.io, command);
        true
    }

    /// The tick delivers the open event: broadcasts from now on are for this channel too.
    pub fn delivered_open(self: &Arc<Self>) {
        DownQueue::push(&self.io, Command::Announce(Arc::clone(self)));
    }

    /// The tick delivers the close event: nothing more is sent, and the peer is answered.
    pub fn delivered_close(self: &Arc<Self>) {
        self.shut.fetch_max(GONE, Ordering::Relaxed);
        let conn = Arc::clone(self);
        let command = Command::Close { conn, kind: CloseKind::Reply, code: None, reason: String::new() };
        DownQueue::push(&self.io, command);
    }

    fn overflow(self: &Arc<Self>) {
        if self.shut.fetch_max(GONE, Ordering::Relaxed) != OPEN {
            return;
        }
        let conn = Arc::clone(self);
        let command = Command::Close { conn, kind: CloseKind::Overflow, code: None, reason: String::new() };
        DownQueue::push(&self.io, command);
    }

    /// Whose connection, for a log line.
    fn describe(&self) -> String {
        match self.handshake.remote {
            Some(remote) => format!("{} from {remote}", self.handshake.url),
            None => self.handshake.url.clone(),
        }
    }
}
