//! The queue going down: what the program sends, in the order in which it sent it, and the pump that empties it.
//!
//! One queue per I/O thread. `send` encodes its frame into the queue's arena under one short lock; a broadcast is one
//! command whatever the number of channels; closing and answering are commands too. Because everything takes its
//! turn in one log, what a program sends to a channel leaves in order, broadcasts and close frames included.
//!
//! The I/O thread is woken once per tick: during a tick the thread is *corked* ([`Cork`]) and the wake-up follows at
//! its end. A ticking thread that drives the sockets itself (see `driver`) wakes nobody.

use crate::broadcast::{Broadcast, Round};
use crate::connection::{CloseKind, Connection};
use crate::courtesy::Courtesy;
use crate::endpoint::Endpoint;
use crate::inbox::Event;
use crate::outbuf::OutBuf;
use crate::request::HttpResponse;
use crate::runtime::IoThread;
use crate::stats::Sent;
use crate::stream::Stream;
use crate::topics::{self, Entrance, Who};
use crate::wire;
use bytes::Bytes;
use parking_lot::Mutex;
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::oneshot;

/// Frames from this size on travel in a buffer of their own instead of being copied into the arena and out again.
pub(crate) const LARGE: usize = 4 << 10;
/// Arena size at which a corked thread wakes the pump before its tick ends, so that a long tick's output begins to
/// leave and the arena stays small.
const KICK: usize = 256 << 10;
/// The same for the number of commands.
const MANY: usize = 4 << 10;
/// Capacity that an emptied arena may keep.
const KEEP: usize = 1 << 20;

/// Where a frame stands in a message sent in fragments. Between first and last no other data frame may enter
/// (RFC 6455 section 5.4), so broadcasts wait for the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// A whole message, or a control frame.
    Whole,
    /// First or later fragment: more follow.
    More,
    /// The fragment with FIN.
    Last,
}

/// One thing to do on the I/O thread.
pub(crate) enum Command {
    /// Frames in the arena.
    Frames { conn: Arc<Connection>, start: usize, len: usize, part: Part, sent: Sent },
    /// A frame in its own buffer.
    Frame { conn: Arc<Connection>, bytes: Bytes, part: Part, sent: Sent },
    /// A message to be compressed.
    Message { conn: Arc<Connection>, opcode: wire::Opcode, payload: Bytes },
    /// A message that waits in the connection's mailbox, unless newer ones have taken its room.
    Fetch { conn: Arc<Connection>, number: u64 },
    /// A message with a key that was posted, unless it has gone.
    FetchKeyed { conn: Arc<Connection>, number: u64 },
    /// The program knows the channel from here on: broadcasts reach it.
    Announce(Arc<Connection>),
    /// A frame for every announced open channel of the endpoint on this thread but one.
    Broadcast {
        endpoint: Arc<Endpoint>,
        opcode: wire::Opcode,
        frame: Bytes,
        payload: usize,
        exclude: Option<u32>,
        key: Option<Bytes>,
    },
    /// Begin or answer the closing handshake.
    Close { conn: Arc<Connection>, kind: CloseKind, code: Option<u16>, reason: String },
    /// From here on a channel or a stream gets what is published to some topics.
    Subscribe(Box<Entrance>),
    /// Up to here.
    Unsubscribe { endpoint: Arc<Endpoint>, who: Who, filters: Vec<Arc<str>> },
    /// Some messages are lost: those who can be told are.
    Gap { endpoint: Arc<Endpoint>, position: topics::Position, told: Arc<[(Who, Vec<Arc<str>>)]> },
    /// A message for the subscribers of its topic on this thread but one.
    Publish { endpoint: Arc<Endpoint>, message: Arc<topics::Message>, exclude: Option<Who> },
    /// Something that the program is told in its place behind the commands before it.
    Tell { endpoint: Arc<Endpoint>, event: Box<Event> },
    /// Close every channel of the endpoint on this thread.
    CloseAll { endpoint: Arc<Endpoint> },
    /// Drop every connection of the endpoint on this thread at once.
    AbortAll { endpoint: Arc<Endpoint> },
    /// Readers that were paused may go on.
    Resume(Vec<Arc<Connection>>),
    /// A stream has something to send.
    Stream(Arc<Stream>),
    /// The answer to an HTTP request.
    Respond { reply: oneshot::Sender<HttpResponse>, response: HttpResponse },
}

impl Command {
    /// The one connection that it writes to, or that begins to hear broadcasts with it.
    fn connection(&self) -> Option<&Arc<Connection>> {
        match self {
            Self::Frames { conn, .. }
            | Self::Frame { conn, .. }
            | Self::Message { conn, .. }
            | Self::Fetch { conn, .. }
            | Self::FetchKeyed { conn, .. }
            | Self::Announce(conn)
            | Self::Close { conn, .. } => Some(conn),
            Self::Broadcast { .. }
            | Self::Subscribe(_)
            | Self::Unsubscribe { .. }
            | Self::Gap { .. }
            | Self::Publish { .. }
            | Self::Tell { .. }
            | Self::CloseAll { .. }
            | Self::AbortAll { .. }
            | Self::Resume(_)
            | Self::Stream(_)
            | Self::Respond { .. } => None,
        }
    }
}

#[derive(Default)]
struct Log {
    commands: Vec<Command>,
    arena: Vec<u8>,
}

/// The queue of one I/O thread; see the module.
#[derive(Default)]
pub struct DownQueue {
    /// Guards the log; held while one frame is appended, or for a swap.
    log: Mutex<Log>,
    /// The pump has something to do: set behind what it has to find, taken by it before it looks.
    pending: AtomicBool,
}

impl std::fmt::Debug for DownQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DownQueue").finish_non_exhaustive()
    }
}

thread_local! {
    /// How many ticks run on this thread, one inside the other (a server's callback may tick a client).
    static CORKED: Cell<u32> = const { Cell::new(0) };
    /// I/O threads to wake when one of them ends.
    static TOUCHED: RefCell<Vec<Arc<IoThread>>> = const { RefCell::new(Vec::new()) };
    /// I/O thread only: endpoints whose ticking threads are to be woken when this round of reads is over.
    static WAKES: RefCell<Vec<Arc<Endpoint>>> = const { RefCell::new(Vec::new()) };
}

/// While it lives, commands of this thread gather; dropped, the I/O threads they are for are woken.
#[derive(Debug)]
pub struct Cork(());

impl Cork {
    /// Begins to gather.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "a guard is made for its effect")]
    pub fn new() -> Self {
        CORKED.with(|c| c.set(c.get() + 1));
        Self(())
    }
}

impl Drop for Cork {
    fn drop(&mut self) {
        CORKED.with(|c| c.set(c.get() - 1));
        // Also when a tick inside another one ends: its callbacks may wait for the answer to what they sent.
        TOUCHED.with(|t| {
            for io in t.borrow_mut().drain(..) {
                DownQueue::wake(&io);
            }
        });
    }
}

impl DownQueue {
    /// Makes the pump run: at once, or, for a guest of the I/O thread, when it waits again.
    fn wake(io: &IoThread) {
        if !io.down.pending.swap(true, Ordering::SeqCst) && !io.driver.is_looked_after() {
            io.driver.wake();
        }
    }

    fn kick(io: &Arc<IoThread>, now: bool) {
        if now || CORKED.with(Cell::get) == 0 {
            Self::wake(io);
            return;
        }
        TOUCHED.with(|t| {
            let mut touched = t.borrow_mut();
            if !touched.iter().any(|other| Arc::ptr_eq(other, io)) {
                touched.push(Arc::clone(io));
            }
        });
    }

    pub(crate) fn push(io: &Arc<IoThread>, command: Command) {
        let now = {
            let mut log = io.down.log.lock();
            log.commands.push(command);
            log.commands.len() >= MANY
        };
        Self::kick(io, now);
    }

    /// The same, without waiting for the tick's end.
    pub(crate) fn push_now(io: &Arc<IoThread>, command: Command) {
        io.down.log.lock().commands.push(command);
        Self::kick(io, true);
    }

    /// Encodes a frame for one connection; returns its size on the wire.
    pub(crate) fn push_frame(
        conn: &Arc<Connection>,
        opcode: wire::Opcode,
        fin: bool,
        payload: &[u8],
        mask: Option<[u8; 4]>,
        part: Part,
    ) -> usize {
        let io = conn.io();
        let sent = Sent::frame(opcode, fin, payload.len());
        let (len, now);
        if payload.len() >= LARGE || conn.keeps_frames_apart() {
            let mut frame = Vec::with_capacity(payload.len() + wire::MAX_HEADER);
            wire::encode_frame(&mut frame, opcode, fin, payload, mask);
            len = frame.len();
            conn.add_buffered(len);
            let command = Command::Frame { conn: Arc::clone(conn), bytes: frame.into(), part, sent };
            io.down.log.lock().commands.push(command);
            now = false;
        } else {
            let mut log = io.down.log.lock();
            let log = &mut *log;
            let start = log.arena.len();
            wire::encode_frame(&mut log.arena, opcode, fin, payload, mask);
            len = log.arena.len() - start;
            conn.add_buffered(len);
            match log.commands.last_mut() {
                // The arena is contiguous and only frames add to it: the last command's bytes end where ours begin.
                Some(Command::Frames { conn: last, len: n, part: Part::Whole, sent: all, .. })
                    if part == Part::Whole && Arc::ptr_eq(last, conn) =>
                {
                    *n += len;
                    all.join(sent);
                }
                _ => log.commands.push(Command::Frames { conn: Arc::clone(conn), start, len, part, sent }),
            }
            now = log.arena.len() >= KICK;
        }
        Self::kick(io, now);
        len
    }

    /// How many commands wait, and the bytes of their frames in the arena.
    pub(crate) fn load(&self) -> (usize, usize) {
        let log = self.log.lock();
        (log.commands.len(), log.arena.len())
    }

    /// Queues a message that the I/O thread compresses.
    pub(crate) fn push_message(conn: &Arc<Connection>, opcode: wire::Opcode, payload: &[u8]) {
        conn.add_buffered(payload.len());
        let payload = Bytes::copy_from_slice(payload);
        Self::push(conn.io(), Command::Message { conn: Arc::clone(conn), opcode, payload });
    }

    /// I/O thread: wake `endpoint`'s ticking thread when the reads that are due now have been made, so that it finds
    /// all of them in one batch. The pump's task stands behind them in tokio's first-in-first-out run queue.
    pub(crate) fn wake_later(io: &Arc<IoThread>, endpoint: &Arc<Endpoint>) {
        WAKES.with(|w| {
            let mut wakes = w.borrow_mut();
            if !wakes.iter().any(|other| Arc::ptr_eq(other, endpoint)) {
                wakes.push(Arc::clone(endpoint));
                Self::wake(io);
            }
        });
    }
}

/// Empties the queue, on whatever thread drives the sockets.
#[derive(Default)]
pub(crate) struct Pump {
    /// Swapped against the queue's, so that both keep their capacity.
    log: Log,
    round: Round,
    touched: Vec<Arc<Connection>>,
}

impl Pump {
    /// Does what there is to do.
    pub(crate) fn run(&mut self, io: &Arc<IoThread>) {
        if !io.down.pending.swap(false, Ordering::SeqCst) {
            return;
        }
        let Self { log, round, touched } = self;
        std::mem::swap(&mut *io.down.log.lock(), log);
        for command in log.commands.drain(..) {
            // A bug that panics in one command must not cost the others theirs.
            let _ = catch_unwind(AssertUnwindSafe(|| apply(io, command, &log.arena, round, touched)))
                .inspect_err(|panic| io.report_panic(panic.as_ref()));
        }
        topics::fanout::deliver(io, round, touched);
        round.finish(io);
        log.arena.clear();
        log.arena.shrink_to(KEEP);
        log.commands.shrink_to(KEEP / size_of::<Command>());
        let mut courtesy = Courtesy::default();
        for conn in touched.drain(..) {
            let _ = catch_unwind(AssertUnwindSafe(|| conn.flush_touched(&mut round.published)))
                .inspect_err(|panic| conn.fault(panic.as_ref()));
            courtesy.served();
        }
        round.published.clear();
        WAKES.with(|w| {
            for endpoint in w.borrow_mut().drain(..) {
                endpoint.inbox.signal();
            }
        });
    }
}

/// Puts an event into an endpoint's inbox from its I/O thread.
pub(crate) fn deliver(io: &Arc<IoThread>, endpoint: &Arc<Endpoint>, event: Event) {
    if endpoint.inbox.push(event) {
        DownQueue::wake_later(io, endpoint);
    }
}

fn apply(io: &Arc<IoThread>, command: Command, arena: &[u8], round: &mut Round, touched: &mut Vec<Arc<Connection>>) {
    if !matches!(command, Command::Publish { .. }) {
        topics::fanout::deliver(io, round, touched);
    }
    if let Some(conn) = command.connection() {
        round.catch_up(conn, touched);
    }
    match command {
        Command::Frames { conn, start, len, part, sent } => {
            conn.queue(|out| out.tail().extend_from_slice(&arena[start..start + len]), len, part, sent, touched);
        }
        Command::Frame { conn, bytes, part, sent } => {
            let len = bytes.len();
            let droppable = part == Part::Whole && conn.keeps_frames_apart() && bytes[0] & 0x08 == 0;
            let push = |out: &mut OutBuf| if droppable { out.push_droppable(bytes) } else { out.push_shared(bytes) };
            conn.queue(push, len, part, sent, touched);
        }
        Command::Announce(conn) => conn.announce(),
        Command::Message { conn, opcode, payload } => conn.queue_message(opcode, &payload, touched),
        Command::Fetch { conn, number } => {
            if let Some((opcode, payload)) = conn.fetch(number) {
                conn.queue_message(opcode, &payload, touched);
            }
        }
        Command::FetchKeyed { conn, number } => conn.queue_keyed(number, touched),
        Command::Broadcast { endpoint, opcode, frame, payload, exclude, key } => {
            round.note(endpoint, Broadcast::new(opcode, frame, payload, exclude, key));
        }
        Command::Subscribe(entrance) => topics::fanout::subscribe(io, *entrance, round, touched),
        Command::Gap { endpoint, position, told } => {
            topics::fanout::gap(io, &endpoint, position, &told, round, touched);
        }
        Command::Unsubscribe { endpoint, who, filters } => topics::fanout::unsubscribe(io, &endpoint, who, &filters),
        Command::Publish { endpoint, message, exclude } => {
            topics::fanout::publish(io, endpoint, message, exclude, round, touched);
        }
        Command::Tell { endpoint, event } => {
            deliver(io, &endpoint, *event);
            endpoint.end();
        }
        Command::Close { conn, kind, code, reason } => conn.send_close(kind, code, &reason, touched),
        Command::CloseAll { endpoint } => {
            let (code, reason) = endpoint.parting();
            endpoint.for_each_on(io.index, |_, conn| {
                round.catch_up(conn, touched);
                conn.send_close(CloseKind::Local, Some(code), reason, touched);
            });
        }
        Command::AbortAll { endpoint } => {
            let mut all = Vec::new();
            endpoint.for_each_on(io.index, |_, conn| all.push(Arc::clone(conn)));
            for conn in all {
                round.catch_up(&conn, touched);
                conn.abort();
            }
        }
        Command::Resume(conns) => {
            for conn in conns {
                conn.resume();
            }
        }
        Command::Stream(stream) => stream.wake_now(),
        Command::Respond { reply, response } => {
            // The client may have gone in the meantime: then nobody waits for it.
            let _ = reply.send(response);
        }
    }
}
