//! What the pump does with a connection: queue what the program sent, write it.

use super::{Connection, GONE, Inner, Message, State};
use crate::broadcast::Room;
use crate::down::{Part, deliver};
use crate::inbox::Event;
use crate::outbuf::{Flushed, Late, OutBuf};
use crate::runtime::panic_text;
use crate::settings::SlowPolicy;
use crate::stats::Sent;
use crate::transport::Transport;
use crate::wire::deflate::{Compressor, compress_shared, worth_compressing};
use crate::wire::{self, Role};
use bytes::Bytes;
use futures_util::task::{ArcWake, waker_ref};
use std::any::Any;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use tokio::io::AsyncWrite;

impl Connection {
    /// Queues bytes of the program.
    pub(crate) fn queue(
        self: &Arc<Self>,
        append: impl FnOnce(&mut OutBuf),
        len: usize,
        part: Part,
        sent: Sent,
        touched: &mut Vec<Arc<Self>>,
    ) {
        let inner = &mut *self.inner.lock();
        // Behind our close frame no data may be sent (RFC 6455 section 5.5.1).
        if !matches!(inner.state, State::Open | State::Answering) {
            self.buffered.fetch_sub(len, Ordering::Relaxed);
            return;
        }
        if self.keeps_frames_apart() {
            // What waits in the queue going down counts already: `len` too.
            self.make_room(inner, 0);
        }
        append(&mut inner.out);
        self.counters().sent(sent);
        inner.life.talked = true;
        match part {
            Part::Whole => {}
            Part::More => inner.fragmented = true,
            Part::Last => {
                inner.fragmented = false;
                let held = inner.take_held();
                inner.out.append(held);
            }
        }
        self.touch(inner, touched);
    }

    /// Queues a message of the program that is to be compressed.
    pub(crate) fn queue_message(self: &Arc<Self>, opcode: wire::Opcode, payload: &[u8], touched: &mut Vec<Arc<Self>>) {
        // It counted with its own length while it waited for the pump.
        self.buffered.fetch_sub(payload.len(), Ordering::Relaxed);
        let frame = {
            let inner = &mut *self.inner.lock();
            if !matches!(inner.state, State::Open | State::Answering) {
                return;
            }
            if inner.out.has_late() && self.has_own_context() {
                self.add_buffered(payload.len());
                inner.out.push_late(Late::Message(opcode, Bytes::copy_from_slice(payload)));
                inner.life.talked = true;
                return self.touch(inner, touched);
            }
            self.compressed(inner, opcode, payload)
        };
        let len = frame.len();
        self.add_buffered(len);
        let droppable = self.keeps_frames_apart();
        let push = |out: &mut OutBuf| if droppable { out.push_droppable(frame) } else { out.push_shared(frame) };
        self.queue(push, len, Part::Whole, Sent::messages(1, payload.len()), touched);
    }

    /// Whether what it sends has to be compressed in the order in which it leaves.
    fn has_own_context(&self) -> bool {
        self.compress.is_some_and(|params| params.context_takeover)
    }

    /// A message as one frame, compressed if that makes it smaller.
    fn compressed(&self, inner: &mut Inner, opcode: wire::Opcode, payload: &[u8]) -> Bytes {
        let mut frame = Vec::new();
        self.encode(inner, &mut frame, opcode, payload);
        frame.into()
    }

    /// The same, appended.
    pub(super) fn encode(&self, inner: &mut Inner, frame: &mut Vec<u8>, opcode: wire::Opcode, payload: &[u8]) {
        let mut deflated = Vec::new();
        let params = self.compress.filter(|_| worth_compressing(payload.len()));
        let shrunk = params.is_some_and(|params| {
            if params.context_takeover {
                let compressor = inner.rare().compressor.get_or_insert_with(|| Box::new(Compressor::new(params)));
                compressor.compress(payload, &mut deflated)
            } else {
                compress_shared(params, payload, &mut deflated)
            }
        });
        frame.reserve(wire::MAX_HEADER + if shrunk { deflated.len() } else { payload.len() });
        if shrunk {
            wire::encode_frame_rsv1(frame, opcode, true, &deflated, self.mask());
        } else {
            wire::encode_frame(frame, opcode, true, payload, self.mask());
        }
    }

    /// Queues the broadcasts of this round that it has not heard, because something is to be queued behind them.
    pub(crate) fn hear(self: &Arc<Self>, room: &mut Room, touched: &mut Vec<Arc<Self>>) {
        let inner = &mut *self.inner.lock();
        let heard = std::mem::replace(&mut inner.heard, u32::try_from(room.count()).unwrap_or(u32::MAX));
        if self.queue_broadcasts(inner, room, heard, false) {
            self.touch(inner, touched);
        }
    }

    /// The end of the round: hears what is left of its broadcasts, and writes. `published`: before them.
    pub(crate) fn hear_and_write(self: &Arc<Self>, room: &mut Room, published: &mut [Room]) {
        let inner = &mut *self.inner.lock();
        if let Some(room) = Self::take_awaited(inner, published) {
            self.queue_broadcasts(inner, room, 0, false);
        }
        let heard = std::mem::take(&mut inner.heard);
        self.write_or_queue(inner, room, heard);
    }

    /// Writes the messages of `room` from the one numbered `from` on.
    #[inline]
    fn write_or_queue(self: &Arc<Self>, inner: &mut Inner, room: &mut Room, from: u32) {
        if from == 0 && self.write_broadcasts(inner, room) {
            return;
        }
        // One that is touched writes when all of those do.
        if self.queue_broadcasts(inner, room, from, true) && !inner.blocked && !inner.touched {
            self.flush(inner);
        }
    }

    /// Whether broadcasts are for this connection now.
    fn hears(inner: &Inner) -> bool {
        inner.announced && matches!(inner.state, State::Open | State::Answering)
    }

    /// Writes all broadcasts of the round at once, unless something is in the way: then does nothing and returns false.
    fn write_broadcasts(self: &Arc<Self>, inner: &mut Inner, room: &mut Room) -> bool {
        let free = Self::hears(inner) && !inner.fragmented && !inner.blocked && inner.out.is_empty();
        let own_context = self.compress.is_some_and(|params| params.context_takeover);
        if !free || own_context || room.has_keys() && !self.keyed_flow(inner, true) {
            return false;
        }
        // Where they do not all fit, it goes by each of them.
        let fits = match self.buffered_amount() {
            0 if room.count() == 1 => true,
            waiting => waiting + room.len() <= self.endpoint.settings.max_buffered,
        };
        let (Some(Transport::Tcp(stream)), true) = (&mut inner.stream, fits) else {
            return false;
        };
        let (keyed, replaced) = (room.has_keys(), room.replaced(self.channel()));
        let Some(share) = room.share(self.compress, self.channel()) else { return false };
        let len = share.len();
        if len == 0 {
            return true;
        }
        inner.life.talked = true;
        let counters = self.endpoint.stats.on(self.io.index);
        counters.sent(share.sent());
        let written = match share.write(Pin::new(stream), &mut Context::from_waker(&waker_ref(self))) {
            Poll::Ready(Ok(written)) => written,
            // Then the write is tried again from the out-buffer, which knows what each error means.
            Poll::Ready(Err(_)) | Poll::Pending => 0,
        };
        counters.ws_written.add(written);
        if written < len {
            self.add_buffered(len - written);
            inner.out.push_rest(share.frames(), written, self.keeps_frames_apart());
            self.flush(inner);
        } else if self.refused.load(Ordering::SeqCst) {
            // Something was refused in the meantime: the program is told that there is room again.
            self.flush(inner);
        }
        if keyed {
            self.count_replaced(replaced);
            inner.rare().gate.left();
        }
        true
    }

    /// Queues the broadcasts of this round from the one numbered `from` on: the frames that all share, or those that all
    /// with the same compression share. True: there is something to write.
    /// `at_once`: when it is written directly afterwards.
    fn queue_broadcasts(self: &Arc<Self>, inner: &mut Inner, room: &mut Room, from: u32, at_once: bool) -> bool {
        let mut queued = false;
        for index in from as usize..room.count() {
            // Looked at for each: one may end the channel.
            if !Self::hears(inner) {
                break;
            }
            queued |= self.queue_broadcast(inner, room, index, at_once);
        }
        queued
    }

    /// Queues the messages of `room`, to topics that it has subscribed to.
    pub(crate) fn queue_published(self: &Arc<Self>, room: &mut Room, touched: &mut Vec<Arc<Self>>) {
        let inner = &mut *self.inner.lock();
        if self.queue_broadcasts(inner, room, 0, false) {
            self.touch(inner, touched);
        }
    }

    /// Leaves what was published, by its number in the round, for the end of the round, unless it has something to write
    /// already: then does nothing and returns false.
    pub(crate) fn await_published(self: &Arc<Self>, number: usize, touched: &mut Vec<Arc<Self>>) -> bool {
        let inner = &mut *self.inner.lock();
        let Ok(number) = u32::try_from(number + 1) else { return false };
        if inner.touched {
            return false;
        }
        inner.awaited = number;
        self.touch(inner, touched);
        true
    }

    /// Something is to be queued behind what it awaits.
    pub(crate) fn queue_awaited(self: &Arc<Self>, published: &mut [Room]) {
        let inner = &mut *self.inner.lock();
        if let Some(room) = Self::take_awaited(inner, published) {
            self.queue_broadcasts(inner, room, 0, false);
        }
    }

    fn take_awaited<'a>(inner: &mut Inner, published: &'a mut [Room]) -> Option<&'a mut Room> {
        let number = std::mem::take(&mut inner.awaited).checked_sub(1)?;
        published.get_mut(number as usize)
    }

    /// Writes what is queued so far, though more will follow in this round.
    pub(crate) fn flush_early(self: &Arc<Self>) {
        let inner = &mut *self.inner.lock();
        if !inner.blocked {
            self.flush(inner);
        }
    }

    /// False: it is not for this channel.
    fn queue_broadcast(self: &Arc<Self>, inner: &mut Inner, room: &mut Room, index: usize, at_once: bool) -> bool {
        let Some(message) = room.message(index, self.channel()) else { return false };
        let keyed = message.key.is_some();
        if let Some(key) = &message.key {
            self.count_replaced(message.replaced);
            if !at_once || !self.keyed_flow(inner, false) {
                let message = Message { opcode: message.opcode, payload: message.payload.clone() };
                self.queue_keyed_broadcast(inner, key, message);
                return true;
            }
        }
        // Decided before it is compressed: a context that has seen a message which is then dropped would be out of step
        // with the peer's.
        let len = message.plain.len();
        let policy = self.endpoint.settings.slow_policy;
        if policy == SlowPolicy::DropOldest && !inner.fragmented {
            self.make_room(inner, len);
        }
        if !self.is_over(len) {
            self.counters().sent(Sent::messages(1, message.payload.len()));
            let late = inner.out.has_late() || inner.fragmented && inner.rare().held.has_late();
            let bytes = match self.compress {
                Some(params) if params.context_takeover && late => {
                    self.add_buffered(message.payload.len());
                    let late = Late::Message(message.opcode, message.payload.clone());
                    if inner.fragmented { &mut inner.rare().held } else { &mut inner.out }.push_late(late);
                    inner.life.talked = true;
                    return true;
                }
                Some(params) if params.context_takeover => self.compressed(inner, message.opcode, &message.payload),
                params => room.frames(params, index)[index].clone(),
            };
            self.add_buffered(bytes.len());
            if inner.fragmented {
                inner.rare().held.push_shared(bytes);
            } else if self.keeps_frames_apart() {
                inner.out.push_droppable(bytes);
            } else {
                inner.out.push_shared(bytes);
            }
            inner.life.talked = true;
            if keyed {
                self.keyed_flowed(inner);
            }
        } else if policy == SlowPolicy::Close {
            self.shut.fetch_max(GONE, Ordering::Relaxed);
            self.drop_slow(inner);
        } else {
            self.refused.store(true, Ordering::SeqCst);
            self.count_dropped(1);
        }
        true
    }

    /// Under the policy to drop the oldest: drops until `more` bytes fit or nothing droppable is left.
    pub(super) fn make_room(&self, inner: &mut Inner, more: usize) {
        let excess = (self.buffered_amount() + more).saturating_sub(self.endpoint.settings.max_buffered);
        if excess > 0 {
            let mut forgotten = 0;
            let forget = |key: &Bytes| {
                let counted = self.discard_keyed(key);
                forgotten += counted;
                counted
            };
            let (messages, bytes) = inner.out.drop_oldest(excess, forget);
            self.count_dropped(messages);
            if messages > 0 {
                self.refused.store(true, Ordering::SeqCst);
            }
            self.buffered.fetch_sub(bytes - forgotten, Ordering::Relaxed);
        }
    }

    pub(super) fn touch(self: &Arc<Self>, inner: &mut Inner, touched: &mut Vec<Arc<Self>>) {
        if !inner.touched {
            inner.touched = true;
            touched.push(Arc::clone(self));
        }
    }

    /// Writes what the pump has queued, or what it awaits of what was published.
    pub(crate) fn flush_touched(self: &Arc<Self>, published: &mut [Room]) {
        let inner = &mut *self.inner.lock();
        inner.touched = false;
        if let Some(room) = Self::take_awaited(inner, published) {
            self.write_or_queue(inner, room, 0);
        } else if !inner.blocked {
            self.flush(inner);
        }
    }

    pub(crate) fn announce(&self) {
        self.inner.lock().announced = true;
    }

    /// It stops reading if the batch is full.
    pub(super) fn pause_if(&self, inner: &mut Inner, full: bool) {
        if full && !inner.paused {
            inner.paused = true;
            self.counters().paused.add(1);
        }
    }

    /// The batch was taken: read on.
    pub(crate) fn resume(self: &Arc<Self>) {
        if std::mem::take(&mut self.inner.lock().paused) {
            self.counters().resumed.add(1);
        }
        Self::wake_by_ref(self);
    }

    /// Drops the connection without a closing handshake.
    pub(crate) fn abort(self: &Arc<Self>) {
        let inner = &mut *self.inner.lock();
        // A last try without waiting: a close frame queued just now still leaves.
        if !inner.blocked {
            self.flush(inner);
        }
        self.abandon(inner);
        self.lost(inner);
    }

    /// A panic while this connection was served: it ends, and the tick raises.
    pub(crate) fn fault(self: &Arc<Self>, panic: &(dyn Any + Send)) {
        deliver(&self.io, &self.endpoint, Event::Fault(panic_text(panic)));
        self.abort();
    }

    pub(super) fn control(&self, inner: &mut Inner, opcode: wire::Opcode, payload: &[u8]) {
        let mask = self.mask();
        // Pings and pongs need not wait for messages; a close frame is the last.
        let tail = if opcode == wire::Opcode::Close { inner.out.tail() } else { inner.out.control() };
        let before = tail.len();
        wire::encode_frame(tail, opcode, true, payload, mask);
        let len = tail.len() - before;
        self.add_buffered(len);
    }

    /// Writes until nothing is left or the socket is full; in the latter case a turn follows when it is not.
    pub(super) fn flush(self: &Arc<Self>, inner: &mut Inner) {
        // So that what has waited leaves in one write with what is before it.
        if inner.out.has_late() {
            self.admit(inner);
        }
        // The pump writes on behalf of the connection: with its waker a full socket wakes it, not the pump.
        let waker = waker_ref(self);
        let mut cx = Context::from_waker(&waker);
        let (written, result) = loop {
            let Some(stream) = &mut inner.stream else { return };
            let (written, result) = inner.out.flush(|slices| {
                let stream = Pin::new(&mut *stream);
                let poll = match slices {
                    // The system does less for one slice than for a vector of one.
                    [one] => stream.poll_write(&mut cx, one),
                    many => stream.poll_write_vectored(&mut cx, many),
                };
                match poll {
                    Poll::Ready(result) => result,
                    Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
                }
            });
            self.buffered.fetch_sub(written, Ordering::Relaxed);
            self.counters().ws_written.add(written);
            if !matches!(result, Ok(Flushed::Late)) || !self.admit(inner) {
                break (written, result);
            }
        };
        let Some(stream) = &mut inner.stream else { return };
        let result = match result {
            Ok(Flushed::All) => match Pin::new(stream).poll_flush(&mut cx) {
                Poll::Ready(result) => result.map(|()| Flushed::All),
                Poll::Pending => Ok(Flushed::Blocked),
            },
            other => other,
        };
        match result {
            Ok(Flushed::Late) => self.flushed_to_late(inner),
            Ok(Flushed::All) => {
                let was_blocked = std::mem::take(&mut inner.blocked);
                inner.life.stirred |= was_blocked;
                let refused = self.refused.swap(false, Ordering::SeqCst);
                let told = self.endpoint.settings.tell_drain && inner.state == State::Open && inner.announced;
                if (was_blocked || refused) && told {
                    deliver(&self.io, &self.endpoint, Event::Drain { channel: self.channel() });
                }
                self.flushed(inner);
            }
            Ok(Flushed::Blocked) => {
                inner.life.stirred |= written > 0;
                inner.blocked = true;
            }
            Err(_) => self.lost(inner),
        }
    }

    /// Only messages are left that wait for the peer to have read what is before them.
    #[cold]
    fn flushed_to_late(self: &Arc<Self>, inner: &mut Inner) {
        let flushed = match &mut inner.stream {
            Some(stream) => Pin::new(stream).poll_flush(&mut Context::from_waker(&waker_ref(self))),
            None => return,
        };
        match flushed {
            Poll::Pending => inner.blocked = true,
            Poll::Ready(Err(_)) => self.lost(inner),
            Poll::Ready(Ok(())) => {
                if std::mem::take(&mut inner.blocked) {
                    inner.life.stirred = true;
                    // The program hears of it when all has left.
                    self.refused.store(true, Ordering::SeqCst);
                }
                if self.answer_ping(inner) {
                    self.flush(inner);
                }
            }
        }
    }

    /// Queues the answer to a ping that came while the socket was full.
    fn answer_ping(&self, inner: &mut Inner) -> bool {
        if let Some(payload) = inner.rare.as_mut().and_then(|rare| rare.pong.take())
            && matches!(inner.state, State::Open | State::Answering)
        {
            self.control(inner, wire::Opcode::Pong, &payload);
            return true;
        }
        false
    }

    /// Nothing is left to write: the closing handshake may be over.
    pub(super) fn flushed(self: &Arc<Self>, inner: &mut Inner) {
        if self.answer_ping(inner) {
            return self.flush(inner);
        }
        if inner.state != State::Draining {
            return;
        }
        match (self.role, inner.peer_closed || inner.read_ended) {
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
    pub(super) fn half_close(self: &Arc<Self>, inner: &mut Inner) {
        if let Some(stream) = &mut inner.stream {
            // Not waited for: a socket too full for it is dropped by the timer.
            let _ = Pin::new(stream).poll_shutdown(&mut Context::from_waker(&waker_ref(self)));
        }
    }
}
