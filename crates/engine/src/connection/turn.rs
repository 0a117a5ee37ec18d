//! A connection's turn: reading, and writing when the socket was full.

use super::{Connection, Inner, State};
use crate::down::DownQueue;
use crate::wire::{self, Role};
use std::cell::RefCell;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, ReadBuf};

/// Size of the read buffer that all connections of an I/O thread share.
const SCRATCH: usize = 64 << 10;
/// Reads in a row before other connections get their turn.
const READS_PER_TURN: usize = 4;

thread_local! {
    static READ_BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; SCRATCH]);
}

impl Connection {
    /// Bytes arrived.
    pub(super) fn received(self: &Arc<Self>, inner: &mut Inner, data: &mut [u8]) {
        if !matches!(inner.state, State::Open | State::Closing) || inner.peer_closed {
            return;
        }
        let deliver_messages = inner.state == State::Open;
        let read = data.len();
        inner.life.stirred = true;
        let channel = self.channel();
        let mut closed = None;
        let mut pong = None;
        let mut ponged = None;
        let mut talked = false;
        let mut filling = self.endpoint.inbox.fill();
        let epoch = filling.epoch();
        let Inner { decoder, epoch: last_epoch, pending, out, blocked, .. } = inner;
        let mut pongs = 0;
        let result = decoder.decode(data, &mut |event| match event {
            wire::Event::Message { kind, payload } => {
                talked = true;
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
                let mask = self.mask();
                let tail = out.control();
                let before = tail.len();
                wire::encode_frame(tail, wire::Opcode::Pong, true, payload, mask);
                pongs += tail.len() - before;
            }
            // Others are heartbeats that nobody asked for (RFC 6455 section 5.5.3).
            wire::Event::Pong(payload) => {
                ponged = <[u8; 4]>::try_from(payload).map(u32::from_be_bytes).ok().or(ponged);
            }
            wire::Event::Close { code, reason } => closed = Some((code, reason.to_owned())),
        });
        if deliver_messages {
            let waiting = if inner.epoch == epoch { inner.pending } else { 0 };
            let full = filling.pause_if_full(self, waiting);
            self.pause_if(inner, full);
        }
        // Before the program can see them: what a tick has delivered is counted.
        let (messages, content) = filling.messages();
        let counters = self.counters();
        counters.ws_read.add(read);
        if messages > 0 {
            counters.messages_received.add(messages);
            counters.message_bytes_received.add(content);
        }
        if filling.finish() {
            DownQueue::wake_later(&self.io, &self.endpoint);
        }
        inner.life.talked |= talked;
        if let Some(number) = ponged {
            self.pong(inner, number);
        }
        if pong.is_some() {
            inner.rare().pong = pong;
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

    /// Reads what is there. `cx`: wakes this connection.
    pub(super) fn turn(self: &Arc<Self>, cx: &mut Context<'_>) {
        let inner = &mut *self.inner.lock();
        if inner.blocked {
            self.flush(inner);
        }
        for _ in 0..READS_PER_TURN {
            if inner.state == State::Closed {
                return;
            }
            if inner.state == State::Open && !inner.paused && self.endpoint.inbox.is_full() {
                let full = self.endpoint.inbox.fill().pause_if_full(self, 0);
                self.pause_if(inner, full);
            }
            // Only an open channel is paused: one that closes must read on to see the peer's close or its end.
            if inner.read_ended || inner.state == State::Open && inner.paused {
                return;
            }
            let more = READ_BUFFER.with_borrow_mut(|scratch| {
                let Some(stream) = &mut inner.stream else { return false };
                let mut buf = ReadBuf::new(scratch);
                match Pin::new(stream).poll_read(cx, &mut buf) {
                    Poll::Pending => return false,
                    Poll::Ready(Ok(())) if !buf.filled().is_empty() => self.received(inner, buf.filled_mut()),
                    // It may only have ended its direction: our answer is on its way or waits for the tick.
                    Poll::Ready(Ok(())) if self.role == Role::Server && inner.answers() => {
                        inner.read_ended = true;
                    }
                    Poll::Ready(_) => self.lost(inner),
                }
                true
            });
            if !more {
                return;
            }
        }
        // More may wait to be read: after the others' turn.
        cx.waker().wake_by_ref();
    }
}
