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
//! leaves before the close frame; it is skipped in effect when the program has nothing undelivered. An EOF that comes
//! while our answer waits or is not completely written ends the peer's direction alone: the answer is still sent, and the
//! connection is closed when it is flushed.

use super::{CloseInfo, CloseKind, Connection, GONE, Inner, State};
use crate::down::{Command, DownQueue, deliver};
use crate::endpoint::Side;
use crate::inbox::Event;
use crate::wire::{self, Violation};
use futures_util::task::ArcWake;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// The reason that goes with 1008 where the peer does not read.
pub(crate) const TOO_SLOW: &str = "too slow: more than max_buffered bytes waited to be sent";

impl Connection {
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
        Self::wake_by_ref(self);
    }

    pub(super) fn close_frame(&self, inner: &mut Inner, code: Option<u16>, reason: &str) {
        let mut payload = Vec::new();
        wire::close::encode_payload(&mut payload, code, reason);
        self.control(inner, wire::Opcode::Close, &payload);
        // Broadcasts held back for a message that will never be finished.
        let held = self.discard_unsent(inner.take_held());
        self.buffered.fetch_sub(held, Ordering::Relaxed);
    }

    pub(super) fn answer(self: &Arc<Self>, inner: &mut Inner) {
        let (code, reason) = inner.rare().answer.take().unwrap_or((None, ""));
        self.close_frame(inner, code, reason);
        self.drain(inner);
    }

    pub(super) fn drain(self: &Arc<Self>, inner: &mut Inner) {
        inner.state = State::Draining;
        self.start_timer(inner);
    }

    /// The peer does not read: throw away what waits, tell the program, say why if the peer ever reads.
    pub(super) fn drop_slow(self: &Arc<Self>, inner: &mut Inner) {
        inner.too_slow = true;
        let waited = self.buffered_amount();
        let unsent = inner.out.take_unsent();
        let dropped = self.discard_unsent(unsent);
        self.buffered.fetch_sub(dropped, Ordering::Relaxed);
        self.endpoint.complain(&self.io, "max_buffered", || {
            format!(
                "channel {} closed with 1008: {waited} bytes waited to be sent, the limit is max_buffered={}",
                self.describe(),
                self.endpoint.settings.max_buffered
            )
        });
        self.close_frame(inner, Some(1008), TOO_SLOW);
        self.tell_close(inner, 1008, TOO_SLOW);
        self.drain(inner);
        Self::wake_by_ref(self);
    }

    /// Puts the close event into the inbox, once.
    pub(super) fn tell_close(&self, inner: &mut Inner, code: u16, reason: &str) {
        if inner.told {
            return;
        }
        inner.told = true;
        self.counters().closed(code);
        let _ = self.aside().closed.set(CloseInfo { code, reason: reason.to_owned() });
        deliver(&self.io, &self.endpoint, Event::Close { channel: self.channel() });
    }

    /// The socket is gone.
    pub(super) fn lost(self: &Arc<Self>, inner: &mut Inner) {
        if inner.state == State::Closed {
            return;
        }
        self.shut.fetch_max(GONE, Ordering::Relaxed);
        self.tell_close(inner, 1006, "");
        self.finish(inner);
    }

    pub(super) fn finish(self: &Arc<Self>, inner: &mut Inner) {
        inner.state = State::Closed;
        inner.stream = None;
        let counters = self.counters();
        counters.finished.add(1);
        counters.pings_lost.add(usize::from(inner.life.awaits_pong()));
        counters.resumed.add(usize::from(std::mem::take(&mut inner.paused)));
        // What is still in the queue going down counts until the pump throws it away.
        let held = self.discard_unsent(inner.take_held());
        let unsent = self.discard_unsent(std::mem::take(&mut inner.out)) + held;
        self.buffered.fetch_sub(unsent, Ordering::Relaxed);
        if let Some(timer) = inner.rare.take().and_then(|rare| rare.timer) {
            timer.abort();
        }
        self.endpoint.release(self.channel(), Side::Io);
        if std::mem::take(&mut inner.seated) {
            self.endpoint.vacate(self.handshake.remote.map(|remote| remote.ip()));
        }
        self.endpoint.end();
    }

    pub(super) fn start_timer(self: &Arc<Self>, inner: &mut Inner) {
        let conn = Arc::downgrade(self);
        let after = self.endpoint.settings.close_timeout;
        let timer = tokio::spawn(async move {
            tokio::time::sleep(after).await;
            if let Some(conn) = conn.upgrade() {
                conn.timed_out();
            }
        });
        // The one before is over, and the memory it held with it.
        if let Some(old) = inner.rare().timer.replace(timer.abort_handle()) {
            old.abort();
        }
    }

    pub(super) fn timed_out(self: &Arc<Self>) {
        let inner = &mut *self.inner.lock();
        match inner.state {
            State::Answering => {
                self.answer(inner);
                self.flush(inner);
                Self::wake_by_ref(self);
            }
            State::Open | State::Closed => {}
            State::Closing | State::Draining => {
                self.abandon(inner);
                self.lost(inner);
            }
        }
    }

    /// We give up. A peer that does not read is reset: while its window is shut the kernel would keep the socket, with
    /// megabytes behind it, for as long as the peer answers its probes. That the socket takes no more shows it; one that
    /// was too slow may have had the little left pass into the kernel's buffer, which grows.
    pub(super) fn abandon(&self, inner: &Inner) {
        if (inner.blocked || inner.too_slow)
            && let Some(stream) = &inner.stream
        {
            stream.reset_on_drop();
        }
    }

    pub(super) fn violated(self: &Arc<Self>, inner: &mut Inner, violation: &Violation) {
        let Violation { code, reason } = *violation;
        let limits = &self.endpoint.limits;
        let (kind, hint) = match violation.limit() {
            Some(name) => {
                let value = match name {
                    "max_frame_size" => limits.max_frame_size,
                    "max_fragments" => limits.max_fragments as usize,
                    _ => limits.max_message_size,
                };
                (name, format!("; the limit is {name}={value}"))
            }
            None if code == 1007 => ("invalid data", String::new()),
            None => ("protocol error", String::new()),
        };
        self.endpoint
            .complain(&self.io, kind, || format!("channel {} closed with {code}: {reason}{hint}", self.describe()));
        self.ending(inner, code, reason, (Some(code), reason));
    }

    /// The peer's close frame or its violation, in its place behind the messages before it.
    pub(super) fn ending(
        self: &Arc<Self>,
        inner: &mut Inner,
        code: u16,
        reason: &str,
        answer: (Option<u16>, &'static str),
    ) {
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
        inner.rare().answer = Some(answer);
        if caught_up {
            // Through the queue, behind what the program has sent and the pump has not seen yet.
            let conn = Arc::clone(self);
            let command = Command::Close { conn, kind: CloseKind::Reply, code: None, reason: String::new() };
            DownQueue::push(&self.io, command);
        } else {
            self.start_timer(inner);
        }
    }
}
