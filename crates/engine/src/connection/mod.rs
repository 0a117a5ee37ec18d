//! One WebSocket connection: the codec joined to a socket, an out-buffer, and the closing handshake.
//!
//! The I/O side is a turn (`turn`) whenever there is something to read or, when the socket was full, to write; the pump of
//! the I/O thread writes directly. Both run on the same thread.
//!
//! | module | holds |
//! |---|---|
//! | this one | what a connection is, and what the program's threads may do with it |
//! | `handshake` | what the opening handshake told |
//! | `ready` | which connections have something to do |
//! | `turn` | reading; writing when the socket was full |
//! | `pump` | queueing and writing what the program sent |
//! | `keyed` | messages with a key, of which only the newest leaves |
//! | `gate` | when they may |
//! | `keepalive` | pings, and what has been silent for too long |
//! | `closing` | the closing handshake as a state machine |

mod closing;
mod gate;
mod handshake;
pub(crate) mod keepalive;
mod keyed;
pub(crate) mod pump;
pub(crate) mod ready;
mod turn;

use crate::down::{Command, DownQueue, Part};
use crate::endpoint::{Endpoint, Seat};
use crate::inbox::Event;
use crate::outbuf::OutBuf;
use crate::runtime::IoThread;
use crate::settings::SlowPolicy;
use crate::stats::Counters;
use crate::transport::Transport;
use crate::wire::deflate::{CompressParams, Compressor, worth_compressing};
use crate::wire::{self, Decoder, MessageKind, Outgoing, Role, SequenceError};
use bytes::Bytes;
pub(crate) use closing::TOO_SLOW;
use futures_util::task::ArcWake;
use gate::Gate;
pub use handshake::Handshake;
use keepalive::Life;
use keyed::Keyed;
pub(crate) use keyed::{KEPT, Message};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::task::AbortHandle;

/// The program may send.
const OPEN: u8 = 0;
/// The socket is gone, or the close event was delivered: sending is pointless.
const GONE: u8 = 1;
/// The program called close: what still arrives is dropped, as WHATWG's WebSocket does in its closing state.
const CLOSED: u8 = 2;

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
    /// The socket was full: a turn comes when it is writable.
    blocked: bool,
    /// Being closed because the peer does not read.
    too_slow: bool,
    /// In the pump's list of connections to flush.
    touched: bool,
    /// Of this round's broadcasts, how many it has heard; see `broadcast`.
    heard: u32,
    /// All that it has to write so far is what was published to a topic in this round: its number there plus one, else 0.
    awaited: u32,
    /// A message is being sent in fragments: broadcasts wait in `held`.
    fragmented: bool,
    /// Reading stopped until the batch is taken.
    paused: bool,
    /// It counts towards the limits on connections.
    seated: bool,
    /// Batch of the newest event, and what this connection has in it.
    epoch: u64,
    pending: usize,
    life: Life,
    rare: Option<Box<Rare>>,
}

/// What few connections need, or none for long: the others do not carry it.
#[derive(Debug, Default)]
struct Rare {
    /// Ends the closing handshake when it takes too long.
    timer: Option<AbortHandle>,
    /// Broadcasts that wait for the end of a message sent in fragments.
    held: OutBuf,
    /// The newest ping that came while the socket was full; older ones need no answer (RFC 6455 section 5.5.3).
    pong: Option<Box<[u8]>>,
    /// What to answer with in state Answering.
    answer: Option<(Option<u16>, &'static str)>,
    /// Where a context per connection was agreed on, from the first compressed message on: some hundred kilobytes.
    compressor: Option<Box<Compressor>>,
    /// When messages with a key may leave.
    gate: Gate,
}

/// The same of the program's side.
#[derive(Debug, Default)]
struct Aside {
    /// Messages dropped because the peer reads too slowly.
    dropped: AtomicU64,
    /// Under the policy to drop the oldest: what the pump has not fetched yet. Locked for one message.
    mailbox: Mutex<Mailbox>,
    /// Messages with a key that have not left. Locked for one message, by either side.
    keyed: Mutex<Keyed>,
    /// How many of them newer ones have replaced.
    replaced: AtomicU64,
    /// How it ended.
    closed: OnceLock<CloseInfo>,
}

/// Messages by number.
#[derive(Debug, Default)]
struct Mailbox {
    messages: VecDeque<(u64, wire::Opcode, Bytes)>,
    bytes: usize,
    next: u64,
}

/// One WebSocket connection, shared by the program's channel object and the I/O thread.
#[derive(Debug)]
pub struct Connection {
    endpoint: Arc<Endpoint>,
    io: Arc<IoThread>,
    /// Its number, from when it is registered on.
    channel: AtomicU32,
    role: Role,
    /// How messages are compressed for the peer, if they are; beside the fields that every broadcast looks at.
    compress: Option<CompressParams>,
    /// It waits for its turn.
    woken: AtomicBool,
    /// What the opening handshake told.
    pub handshake: Handshake,
    /// [`OPEN`], [`GONE`] or [`CLOSED`]; only ever rises. Relaxed: it decides whether a frame is worth queueing, and
    /// the I/O thread looks at its own state again.
    shut: AtomicU8,
    /// Bytes queued and not yet written.
    buffered: AtomicUsize,
    /// The tick has delivered the close event. Relaxed: set and read with the GIL, or by who ticks.
    ended: AtomicBool,
    /// The sequence of fragments; held while a frame is queued, so that sequence and queue agree.
    outgoing: Mutex<Outgoing>,
    /// Round-trip time of the newest answered ping in microseconds, plus one; 0: none yet.
    round_trip: AtomicU32,
    /// A message was refused or dropped since the last drain.
    refused: AtomicBool,
    aside: OnceLock<Box<Aside>>,
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

    fn rare(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }

    /// Takes the broadcasts that wait for the end of a message sent in fragments.
    fn take_held(&mut self) -> OutBuf {
        self.rare.as_mut().map(|rare| std::mem::take(&mut rare.held)).unwrap_or_default()
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
        seat: Option<Seat>,
    ) {
        let decoder = Decoder::with_limits(role, Arc::clone(&endpoint.limits), handshake.deflate);
        let conn = Arc::new(Self {
            endpoint: Arc::clone(endpoint),
            io: Arc::clone(io),
            channel: AtomicU32::new(u32::MAX),
            role,
            compress: handshake.deflate.map(|agreed| agreed.compress_params(role)),
            woken: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            handshake,
            shut: AtomicU8::new(OPEN),
            buffered: AtomicUsize::new(0),
            outgoing: Mutex::new(Outgoing::default()),
            round_trip: AtomicU32::new(0),
            refused: AtomicBool::new(false),
            aside: OnceLock::new(),
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
                heard: 0,
                awaited: 0,
                fragmented: false,
                paused: false,
                seated: seat.is_some_and(Seat::leave_to_connection),
                epoch: 0,
                pending: 0,
                life: Life::new(endpoint),
                rare: None,
            }),
        });
        endpoint.begin();
        conn.counters().opened.add(1);
        // Read by those who got the connection through a lock: the register's or the inbox's.
        conn.channel.store(endpoint.register(&conn), Ordering::Relaxed);
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
            let (code, reason) = endpoint.parting();
            conn.send_close(CloseKind::Local, Some(code), reason, &mut touched);
            touched.iter().for_each(|conn| conn.flush_touched(&mut []));
        }
        Self::wake_by_ref(&conn);
    }

    /// The number of the channel within its endpoint.
    #[must_use]
    pub fn channel(&self) -> u32 {
        self.channel.load(Ordering::Relaxed)
    }

    /// The endpoint it belongs to.
    #[must_use]
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    pub(crate) fn io(&self) -> &Arc<IoThread> {
        &self.io
    }

    /// What its I/O thread counts; for that thread.
    fn counters(&self) -> &Counters {
        self.endpoint.stats.on(self.io.index)
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

    /// Whether the tick has delivered the close event.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    fn aside(&self) -> &Aside {
        self.aside.get_or_init(Box::default)
    }

    pub(crate) fn add_buffered(&self, len: usize) {
        self.buffered.fetch_add(len, Ordering::Relaxed);
    }

    /// How it ended, once it has.
    #[must_use]
    pub fn close_info(&self) -> Option<&CloseInfo> {
        self.aside.get()?.closed.get()
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
            let mailbox = &mut *self.aside().mailbox.lock();
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
        let mailbox = &mut *self.aside.get()?.mailbox.lock();
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
        self.compress.is_some() && worth_compressing(len)
    }

    /// Whether `more` bytes are more than may wait. One message of any size may: the program chose it.
    fn is_over(&self, more: usize) -> bool {
        let buffered = self.buffered_amount();
        buffered > 0 && buffered + more > self.endpoint.settings.max_buffered
    }

    fn count_dropped(&self, messages: u64) {
        if messages > 0 {
            self.aside().dropped.fetch_add(messages, Ordering::Relaxed);
            self.endpoint.stats.dropped.fetch_add(messages, Ordering::Relaxed);
        }
    }

    /// Messages dropped because the peer reads too slowly.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.aside.get().map_or(0, |aside| aside.dropped.load(Ordering::Relaxed))
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
        self.ended.store(true, Ordering::Relaxed);
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
            Some(remote) => format!("{} from {remote}", self.handshake.url()),
            None => self.handshake.url().to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every connection has these for life. A change that makes them grow should be noticed: docs/memory.md.
    #[test]
    #[cfg(target_pointer_width = "64")]
    fn a_connection_is_small() {
        assert!(size_of::<Connection>() <= 392, "{}", size_of::<Connection>());
        assert!(size_of::<Inner>() <= 240, "{}", size_of::<Inner>());
    }
}
