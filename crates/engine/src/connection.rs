//! One WebSocket connection: the codec joined to a socket, an out-buffer, and the closing handshake.
//!
//! The I/O side is one small task ([`Drive`]) per connection, which reads and, when the socket was full, writes; the
//! pump of the I/O thread writes directly. Both run on the same thread.
//!
//! The closing handshake (RFC 6455 section 7), seen from the I/O thread:
//!
//! | state     | peer's close      | violation         | program's close    | tick reached the close, or timeout | EOF, reset | flushed |
//! |-----------|-------------------|-------------------|--------------------|------------------------------------|------------|---------|
//! | Open      | event; Answering  | event; Answering  | frame; Closing     | -                                  | event; Closed | - |
//! | Answering | -                 | -                 | frame; Draining    | frame; Draining                    | Closed     | - |
//! | Closing   | event; Draining   | event; Draining   | -                  | event; Closed                      | event; Closed | - |
//! | Draining  | -                 | -                 | -                  | Closed                             | Closed     | Closed if the peer's close is here and we are the server |
//!
//! *event* is the close event, put behind the messages that came before it; *frame* is our close frame, queued behind
//! what the program has sent. Answering waits for the tick, so that what the program sends for the earlier messages
//! leaves before the close frame; it is skipped in effect when the program has nothing undelivered.

use crate::down::{Command, DownQueue, Part, deliver};
use crate::endpoint::{Endpoint, Live, Side};
use crate::inbox::Event;
use crate::outbuf::{Flushed, OutBuf};
use crate::runtime::{IoThread, panic_text};
use crate::transport::Transport;
use crate::wire::{self, Decoder, MessageKind, Outgoing, Role, SequenceError, Violation};
use bytes::Bytes;
use parking_lot::Mutex;
use std::any::Any;
use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Size of the read buffer that all connections of an I/O thread share.
const SCRATCH: usize = 64 << 10;
/// Reads in a row before other connections get their turn.
const READS_PER_TURN: usize = 4;

/// The program may send.
const OPEN: u8 = 0;
/// The socket is gone, or the close event was delivered: sending is pointless.
const GONE: u8 = 1;
/// The program called close: what still arrives is dropped, as WHATWG's WebSocket does in its closing state.
const CLOSED: u8 = 2;

thread_local! {
    static READ_BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; SCRATCH]);
}

/// What the opening handshake told; lives as long as the channel.
#[derive(Debug)]
pub struct Handshake {
    /// Server: the request target as sent, path and query. Client: the URL.
    pub url: String,
    /// Server: the request's headers; client: the response's. `name: value` lines, each ended by LF.
    pub headers: Box<[u8]>,
    /// The peer.
    pub remote: Option<SocketAddr>,
    /// The subprotocol agreed on.
    pub subprotocol: Option<String>,
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
    /// The close event is in the inbox: exactly one.
    told: bool,
    /// The socket was full: the task waits for it to be writable.
    blocked: bool,
    /// In the pump's list of connections to flush.
    touched: bool,
    /// A message is being sent in fragments: broadcasts wait in `held`.
    fragmented: bool,
    /// Reading stopped until the batch is taken.
    paused: bool,
    /// Which timer is the valid one.
    timer: u32,
    /// Batch of the newest event, and what this connection has in it.
    epoch: u64,
    pending: usize,
    held: Vec<Bytes>,
    /// The newest ping that came while the socket was full; older ones need no answer (RFC 6455 section 5.5.3).
    pong: Option<Box<[u8]>>,
    /// What to answer with in state Answering.
    answer: Option<(Option<u16>, &'static str)>,
    waker: Option<Waker>,
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
    closed: OnceLock<Box<CloseInfo>>,
    /// The I/O side. Locked by the I/O thread alone, so never contended; the lock is what makes it shareable.
    inner: Mutex<Inner>,
}

/// Why a frame was not sent.
#[derive(Debug, PartialEq, Eq)]
pub enum SendError {
    /// The channel is closed.
    Closed,
    /// The caller's mistake.
    Sequence(SequenceError),
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
    ) {
        let conn = Arc::new(Self {
            endpoint: Arc::clone(endpoint),
            io: Arc::clone(io),
            channel: OnceLock::new(),
            role,
            handshake: Box::new(handshake),
            shut: AtomicU8::new(OPEN),
            buffered: AtomicUsize::new(0),
            outgoing: Mutex::new(Outgoing::default()),
            closed: OnceLock::new(),
            inner: Mutex::new(Inner {
                stream: Some(stream),
                decoder: Decoder::new(role, endpoint.settings.max_message_size),
                out: OutBuf::default(),
                state: State::Open,
                announced: false,
                peer_closed: false,
                told: false,
                blocked: false,
                touched: false,
                fragmented: false,
                paused: false,
                timer: 0,
                epoch: 0,
                pending: 0,
                held: Vec::new(),
                pong: None,
                answer: None,
                waker: None,
            }),
        });
        let live = Live::new(endpoint);
        let _ = conn.channel.set(endpoint.register(&conn));
        {
            let inner = &mut *conn.inner.lock();
            inner.epoch = endpoint.inbox.epoch();
            deliver(io, endpoint, Event::Open(Arc::clone(&conn)));
            if !first.is_empty() {
                conn.received(inner, &mut first.to_vec());
            }
        }
        if endpoint.is_stopping() {
            // The stop's close-all went by before this connection was registered.
            let mut touched = Vec::new();
            conn.send_close(CloseKind::Local, Some(1001), "", &mut touched);
        }
        tokio::spawn(Drive { conn, _live: live });
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
        let opcode = outgoing.next(opcode, kind, fin).map_err(SendError::Sequence)?;
        let buffered = self.buffered_amount();
        if buffered > 0 && buffered + payload.len() > self.endpoint.settings.max_buffered {
            drop(outgoing);
            self.overflow();
            return Err(SendError::Closed);
        }
        let part = match (opcode.is_control(), fin, opcode) {
            (false, false, _) => Part::More,
            (false, true, wire::Opcode::Continuation) => Part::Last,
            _ => Part::Whole,
        };
        // RFC 6455 section 5.3: a client masks every frame with a fresh unpredictable key.
        let mask = (self.role == Role::Client).then(rand::random);
        DownQueue::push_frame(self, opcode, fin, payload, mask, part);
        Ok(())
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

    // The pump's side: on the I/O thread.

    /// Queues bytes of the program.
    pub(crate) fn queue(
        self: &Arc<Self>,
        append: impl FnOnce(&mut OutBuf),
        len: usize,
        part: Part,
        touched: &mut Vec<Arc<Self>>,
    ) {
        let inner = &mut *self.inner.lock();
        // Behind our close frame nothing may be sent (RFC 6455 section 5.5.1).
        if !matches!(inner.state, State::Open | State::Answering) {
            self.buffered.fetch_sub(len, Ordering::Relaxed);
            return;
        }
        append(&mut inner.out);
        match part {
            Part::Whole => {}
            Part::More => inner.fragmented = true,
            Part::Last => {
                inner.fragmented = false;
                for bytes in std::mem::take(&mut inner.held) {
                    inner.out.push_shared(bytes);
                }
            }
        }
        self.touch(inner, touched);
    }

    pub(crate) fn queue_broadcast(self: &Arc<Self>, bytes: &Bytes, touched: &mut Vec<Arc<Self>>) {
        let inner = &mut *self.inner.lock();
        if !inner.announced || !matches!(inner.state, State::Open | State::Answering) {
            return;
        }
        let buffered = self.buffered_amount();
        if buffered > 0 && buffered + bytes.len() > self.endpoint.settings.max_buffered {
            self.shut.fetch_max(GONE, Ordering::Relaxed);
            self.drop_slow(inner);
        } else {
            self.add_buffered(bytes.len());
            if inner.fragmented {
                inner.held.push(bytes.clone());
            } else {
                inner.out.push_shared(bytes.clone());
            }
        }
        self.touch(inner, touched);
    }

    fn touch(self: &Arc<Self>, inner: &mut Inner, touched: &mut Vec<Arc<Self>>) {
        if !inner.touched {
            inner.touched = true;
            touched.push(Arc::clone(self));
        }
    }

    /// Queues a close frame where the state allows one.
    pub(crate) fn send_close(
        self: &Arc<Self>,
        kind: CloseKind,
        code: Option<u16>,
        reason: &str,
        touched: &mut Vec<Arc<Self>>,
    ) {
        self.shut.fetch_max(GONE, Ordering::Relaxed);
        let inner = &mut *self.inner.lock();
        match (inner.state, kind) {
            (State::Open, CloseKind::Local) => {
                self.close_frame(inner, code, reason);
                inner.state = State::Closing;
                self.start_timer(inner);
            }
            (State::Open, CloseKind::Overflow) => self.drop_slow(inner),
            (State::Answering, CloseKind::Local) if inner.peer_closed => {
                self.close_frame(inner, code, reason);
                self.drain(inner);
            }
            (State::Answering, _) => self.answer(inner),
            _ => return,
        }
        self.touch(inner, touched);
        self.wake(inner);
    }

    pub(crate) fn announce(&self) {
        self.inner.lock().announced = true;
    }

    /// Writes what the pump has queued.
    pub(crate) fn flush_touched(self: &Arc<Self>) {
        let inner = &mut *self.inner.lock();
        inner.touched = false;
        if !inner.blocked {
            self.flush(inner);
        }
    }

    /// The batch was taken: read on.
    pub(crate) fn resume(&self) {
        let inner = &mut *self.inner.lock();
        inner.paused = false;
        self.wake(inner);
    }

    /// Drops the connection without a closing handshake.
    pub(crate) fn abort(self: &Arc<Self>) {
        let inner = &mut *self.inner.lock();
        // A last try without waiting: a close frame queued just now still leaves.
        if !inner.blocked {
            self.flush(inner);
        }
        self.lost(inner);
    }

    /// A panic while this connection was served: it ends, and the tick raises.
    pub(crate) fn fault(self: &Arc<Self>, panic: &(dyn Any + Send)) {
        deliver(&self.io, &self.endpoint, Event::Fault(panic_text(panic)));
        self.abort();
    }

    // Below: with the lock held.

    fn wake(&self, inner: &mut Inner) {
        if let Some(waker) = &inner.waker {
            waker.wake_by_ref();
        }
    }

    fn control(&self, inner: &mut Inner, opcode: wire::Opcode, payload: &[u8]) {
        let mask = (self.role == Role::Client).then(rand::random);
        let tail = inner.out.tail();
        let before = tail.len();
        wire::encode_frame(tail, opcode, true, payload, mask);
        let len = tail.len() - before;
        self.add_buffered(len);
    }

    fn close_frame(&self, inner: &mut Inner, code: Option<u16>, reason: &str) {
        let mut payload = Vec::new();
        wire::close::encode_payload(&mut payload, code, reason);
        self.control(inner, wire::Opcode::Close, &payload);
        // Broadcasts held back for a message that will never be finished.
        let held: usize = std::mem::take(&mut inner.held).iter().map(Bytes::len).sum();
        self.buffered.fetch_sub(held, Ordering::Relaxed);
    }

    fn answer(self: &Arc<Self>, inner: &mut Inner) {
        let (code, reason) = inner.answer.take().unwrap_or((None, ""));
        self.close_frame(inner, code, reason);
        self.drain(inner);
    }

    fn drain(self: &Arc<Self>, inner: &mut Inner) {
        inner.state = State::Draining;
        self.start_timer(inner);
    }

    /// The peer does not read: throw away what waits, tell the program, say why if the peer ever reads.
    fn drop_slow(self: &Arc<Self>, inner: &mut Inner) {
        const REASON: &str = "too slow: more than max_buffered bytes waited to be sent";
        let dropped = inner.out.drop_unsent();
        self.buffered.fetch_sub(dropped, Ordering::Relaxed);
        self.endpoint.complain(&self.io, "max_buffered", || {
            format!(
                "channel {} closed with 1008: {dropped} bytes waited to be sent, the limit is max_buffered={}",
                self.describe(),
                self.endpoint.settings.max_buffered
            )
        });
        self.close_frame(inner, Some(1008), REASON);
        self.tell_close(inner, 1008, REASON);
        self.drain(inner);
        self.wake(inner);
    }

    fn describe(&self) -> String {
        match self.handshake.remote {
            Some(remote) => format!("{} from {remote}", self.handshake.url),
            None => self.handshake.url.clone(),
        }
    }

    /// Puts the close event into the inbox, once.
    fn tell_close(&self, inner: &mut Inner, code: u16, reason: &str) {
        if inner.told {
            return;
        }
        inner.told = true;
        let _ = self.closed.set(Box::new(CloseInfo { code, reason: reason.to_owned() }));
        deliver(&self.io, &self.endpoint, Event::Close { channel: self.channel() });
    }

    /// The socket is gone.
    fn lost(self: &Arc<Self>, inner: &mut Inner) {
        if inner.state == State::Closed {
            return;
        }
        self.shut.fetch_max(GONE, Ordering::Relaxed);
        self.tell_close(inner, 1006, "");
        self.finish(inner);
    }

    fn finish(self: &Arc<Self>, inner: &mut Inner) {
        inner.state = State::Closed;
        inner.stream = None;
        // What is still in the queue going down counts until the pump throws it away.
        let held: usize = std::mem::take(&mut inner.held).iter().map(Bytes::len).sum();
        let unsent = std::mem::take(&mut inner.out).len() + held;
        self.buffered.fetch_sub(unsent, Ordering::Relaxed);
        inner.pong = None;
        self.endpoint.release(self.channel(), Side::Io);
        self.wake(inner);
    }

    fn start_timer(self: &Arc<Self>, inner: &mut Inner) {
        inner.timer += 1;
        let (conn, timer) = (Arc::downgrade(self), inner.timer);
        let after: Duration = self.endpoint.settings.close_timeout;
        tokio::spawn(async move {
            tokio::time::sleep(after).await;
            if let Some(conn) = conn.upgrade() {
                conn.timed_out(timer);
            }
        });
    }

    fn timed_out(self: &Arc<Self>, timer: u32) {
        let inner = &mut *self.inner.lock();
        if inner.timer != timer {
            return;
        }
        match inner.state {
            State::Answering => {
                self.answer(inner);
                self.flush(inner);
                self.wake(inner);
            }
            State::Open | State::Closed => {}
            State::Closing | State::Draining => self.lost(inner),
        }
    }

    /// Writes until nothing is left or the socket is full; in the latter case the task is woken when it is not.
    fn flush(self: &Arc<Self>, inner: &mut Inner) {
        let Some(stream) = &mut inner.stream else { return };
        // The pump writes on behalf of the task: with the task's waker a full socket wakes the task, not the pump.
        let Some(waker) = &inner.waker else {
            inner.blocked = true;
            return;
        };
        let mut cx = Context::from_waker(waker);
        let (written, result) =
            inner.out.flush(|slices| match Pin::new(&mut *stream).poll_write_vectored(&mut cx, slices) {
                Poll::Ready(result) => result,
                Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
            });
        self.buffered.fetch_sub(written, Ordering::Relaxed);
        let result = match result {
            Ok(Flushed::All) => match Pin::new(stream).poll_flush(&mut cx) {
                Poll::Ready(result) => result.map(|()| Flushed::All),
                Poll::Pending => Ok(Flushed::Blocked),
            },
            other => other,
        };
        match result {
            Ok(Flushed::All) => {
                inner.blocked = false;
                self.flushed(inner);
            }
            Ok(Flushed::Blocked) => inner.blocked = true,
            Err(_) => self.lost(inner),
        }
    }

    /// Nothing is left to write: the closing handshake may be over.
    fn flushed(self: &Arc<Self>, inner: &mut Inner) {
        if let Some(payload) = inner.pong.take()
            && matches!(inner.state, State::Open | State::Answering)
        {
            self.control(inner, wire::Opcode::Pong, &payload);
            return self.flush(inner);
        }
        if inner.state != State::Draining {
            return;
        }
        match (self.role, inner.peer_closed) {
            // RFC 6455 section 7.1.1: the server closes the TCP connection first.
            (Role::Server, true) => {
                self.half_close(inner);
                self.finish(inner);
            }
            // The peer broke the protocol or does not read: half-close and read on until it has gone, because
            // closing with unread input would reset the connection and take our close frame with it.
            (Role::Server, false) => {
                self.half_close(inner);
            }
            // The client waits for the server to close.
            (Role::Client, _) => {}
        }
    }

    /// Ends our direction: TLS's close_notify, then TCP's FIN.
    fn half_close(&self, inner: &mut Inner) {
        if let (Some(stream), Some(waker)) = (&mut inner.stream, &inner.waker) {
            // Not waited for: a socket too full for it is dropped by the timer.
            let _ = Pin::new(stream).poll_shutdown(&mut Context::from_waker(waker));
        }
    }

    /// Bytes arrived.
    fn received(self: &Arc<Self>, inner: &mut Inner, data: &mut [u8]) {
        if !matches!(inner.state, State::Open | State::Closing) || inner.peer_closed {
            return;
        }
        let deliver_messages = inner.state == State::Open;
        let channel = self.channel();
        let mut closed = None;
        let mut pong = None;
        let mut filling = self.endpoint.inbox.fill();
        let epoch = filling.epoch();
        let Inner { decoder, epoch: last_epoch, pending, out, blocked, .. } = inner;
        let mut pongs = 0;
        let result = decoder.decode(data, &mut |event| match event {
            wire::Event::Message { kind, payload } => {
                if deliver_messages {
                    if *last_epoch != epoch {
                        *last_epoch = epoch;
                        *pending = 0;
                    }
                    *pending += filling.batch().push_message(channel, kind, payload);
                }
            }
            wire::Event::Ping(payload) if *blocked => pong = Some(Box::from(payload)),
            wire::Event::Ping(payload) => {
                let mask = (self.role == Role::Client).then(rand::random);
                let tail = out.tail();
                let before = tail.len();
                wire::encode_frame(tail, wire::Opcode::Pong, true, payload, mask);
                pongs += tail.len() - before;
            }
            wire::Event::Pong(_) => {}
            wire::Event::Close { code, reason } => closed = Some((code, reason.to_owned())),
        });
        if deliver_messages {
            let waiting = if inner.epoch == epoch { inner.pending } else { 0 };
            inner.paused |= filling.pause_if_full(self, waiting);
        }
        if filling.finish() {
            DownQueue::wake_later(&self.io, &self.endpoint);
        }
        if pong.is_some() {
            inner.pong = pong;
        }
        if let Some((code, reason)) = closed {
            inner.peer_closed = true;
            self.ending(inner, code.unwrap_or(1005), &reason, (code, ""));
        } else if let Err(violation) = result {
            self.violated(inner, &violation);
        }
        if pongs > 0 {
            self.add_buffered(pongs);
            if !inner.blocked {
                self.flush(inner);
            }
        }
    }

    fn violated(self: &Arc<Self>, inner: &mut Inner, violation: &Violation) {
        let Violation { code, reason } = *violation;
        let limit = self.endpoint.settings.max_message_size;
        let (kind, hint) = match code {
            1009 => ("max_message_size", format!("; the limit is max_message_size={limit}")),
            1007 => ("invalid data", String::new()),
            _ => ("protocol error", String::new()),
        };
        self.endpoint
            .complain(&self.io, kind, || format!("channel {} closed with {code}: {reason}{hint}", self.describe()));
        self.ending(inner, code, reason, (Some(code), reason));
    }

    /// The peer's close frame or its violation, in its place behind the messages before it.
    fn ending(self: &Arc<Self>, inner: &mut Inner, code: u16, reason: &str, answer: (Option<u16>, &'static str)) {
        let caught_up = self.endpoint.inbox.is_done(inner.epoch);
        self.tell_close(inner, code, reason);
        if inner.state == State::Closing {
            // Our own close frame is out or queued: a second one is not sent.
            self.drain(inner);
            if !inner.blocked {
                self.flush(inner);
            }
            return;
        }
        inner.state = State::Answering;
        inner.answer = Some(answer);
        if caught_up {
            // Through the queue, behind what the program has sent and the pump has not seen yet.
            let conn = Arc::clone(self);
            let command = Command::Close { conn, kind: CloseKind::Reply, code: None, reason: String::new() };
            DownQueue::push(&self.io, command);
        } else {
            self.start_timer(inner);
        }
    }

    fn poll(self: &Arc<Self>, cx: &mut Context<'_>) -> Poll<()> {
        let inner = &mut *self.inner.lock();
        if !inner.waker.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
            inner.waker = Some(cx.waker().clone());
        }
        if inner.blocked {
            self.flush(inner);
        }
        for _ in 0..READS_PER_TURN {
            if inner.state == State::Closed {
                return Poll::Ready(());
            }
            if inner.state == State::Open && !inner.paused && self.endpoint.inbox.is_full() {
                inner.paused = self.endpoint.inbox.fill().pause_if_full(self, 0);
            }
            // Only an open channel is paused: one that closes must read on to see the peer's close or its end.
            if inner.state == State::Open && inner.paused {
                return Poll::Pending;
            }
            let done = READ_BUFFER.with_borrow_mut(|scratch| {
                let stream = inner.stream.as_mut()?;
                let mut buf = ReadBuf::new(scratch);
                match Pin::new(stream).poll_read(cx, &mut buf) {
                    Poll::Pending => return Some(Poll::Pending),
                    Poll::Ready(Ok(())) if !buf.filled().is_empty() => self.received(inner, buf.filled_mut()),
                    Poll::Ready(_) => self.lost(inner),
                }
                None
            });
            if let Some(done) = done {
                return done;
            }
        }
        if inner.state == State::Closed {
            return Poll::Ready(());
        }
        // More may wait to be read: after the others' turn.
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

/// The task of one connection.
struct Drive {
    conn: Arc<Connection>,
    _live: Live,
}

impl Future for Drive {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let conn = &self.conn;
        catch_unwind(AssertUnwindSafe(|| conn.poll(cx))).unwrap_or_else(|panic| {
            conn.fault(panic.as_ref());
            Poll::Ready(())
        })
    }
}
