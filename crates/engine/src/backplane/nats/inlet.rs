//! What comes from NATS, put into the order in which each node has sent it.

use super::super::engine::{Arrival, Failure, Inlet};
use crate::topics::Position;
use async_nats::Subscriber;
use async_nats::jetstream::consumer::push::Ordered;
use bytes::Bytes;
use futures_util::Stream;
use futures_util::stream::SelectAll;
use std::collections::VecDeque;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::sync::{mpsc, oneshot, watch};

/// So much of the history is taken before the rest has a turn.
const SOME: usize = 256;

/// One subscription to casts, until it is wanted no more.
#[derive(Debug)]
pub(super) struct Sub {
    subscriber: Subscriber,
    over: oneshot::Receiver<()>,
}

impl Sub {
    /// `over`: its sender is dropped when nobody wants it.
    pub(super) fn new(subscriber: Subscriber, over: oneshot::Receiver<()>) -> Self {
        Self { subscriber, over }
    }
}

impl Stream for Sub {
    type Item = Bytes;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        // Dropped by whoever polls it then, which tells the server.
        if Pin::new(&mut self.over).poll(cx).is_ready() {
            return Poll::Ready(None);
        }
        Pin::new(&mut self.subscriber).poll_next(cx).map(|message| message.map(|message| message.payload))
    }
}

/// The stream as this node reads it.
pub(super) struct History {
    pub(super) messages: Ordered,
    pub(super) epoch: u64,
    /// The sequence that comes next if nothing is missing.
    pub(super) next: u64,
    /// Something was missing when it began.
    pub(super) gap: bool,
}

/// See the module.
pub(crate) struct NatsInlet {
    control: Subscriber,
    subs: SelectAll<Sub>,
    new_subs: mpsc::UnboundedReceiver<Sub>,
    history: Option<History>,
    /// The newest message when the link was made, until all up to it was handed over.
    head: Option<u64>,
    /// Why the connection has ended.
    lost: Pin<Box<dyn Future<Output = Failure> + Send>>,
    /// What has come and was not asked for yet.
    ready: VecDeque<Arrival>,
    /// Of one look at the subscriptions; here to keep its memory.
    casts: Vec<(Sender, Bytes)>,
}

impl fmt::Debug for NatsInlet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NatsInlet").finish_non_exhaustive()
    }
}

/// The node that has sent a letter, and its number there.
type Sender = (u64, u64);

/// Reads as much of a letter's first line. What is no letter keeps its place among others like it.
fn sender(letter: &[u8]) -> Sender {
    let read = || {
        let text = std::str::from_utf8(letter.get(..letter.len().min(40))?.split(|byte| *byte == b'\n').next()?).ok();
        let mut parts = text?.split(' ').skip(1);
        let node = u64::from_str_radix(parts.next()?, 16).ok()?;
        Some((node, parts.next()?.parse().ok()?))
    };
    read().unwrap_or_default()
}

/// Waits for the end of a connection, and says why.
pub(super) async fn reason(mut lost: watch::Receiver<Option<String>>) -> Failure {
    let why = match lost.wait_for(Option::is_some).await {
        Ok(why) => why.clone().unwrap_or_default(),
        Err(_) => "the connection has ended".to_owned(),
    };
    Failure(why)
}

impl NatsInlet {
    pub(super) fn new(
        control: Subscriber,
        new_subs: mpsc::UnboundedReceiver<Sub>,
        history: Option<History>,
        head: Position,
        lost: watch::Receiver<Option<String>>,
    ) -> Self {
        let mut ready = VecDeque::new();
        if history.as_ref().is_some_and(|history| history.gap) {
            ready.push_back(Arrival::Gap);
        }
        let lost = Box::pin(reason(lost));
        let (subs, head) = (SelectAll::new(), Some(head.seq));
        let mut inlet = Self { control, subs, new_subs, history, head, lost, ready, casts: Vec::new() };
        let next = inlet.history.as_ref().map_or(u64::MAX, |history| history.next);
        inlet.level(next);
        inlet
    }

    /// Says once that what comes next is new. `next`: no message before it is missing any more.
    fn level(&mut self, next: u64) {
        if self.head.take_if(|head| next > *head).is_some() {
            self.ready.push_back(Arrival::Level);
        }
    }

    /// All that lies in the subscriptions: nothing may come into them while this runs.
    fn take_casts(&mut self, cx: &mut Context<'_>) -> Result<(), Failure> {
        while let Poll::Ready(Some(sub)) = self.new_subs.poll_recv(cx) {
            self.subs.push(sub);
        }
        while let Poll::Ready(Some(letter)) = Pin::new(&mut self.subs).poll_next(cx) {
            self.casts.push((sender(&letter), letter));
        }
        // Stable: what has no numbers stays as it was.
        self.casts.sort_by_key(|(sender, _)| *sender);
        self.ready.extend(self.casts.drain(..).map(|(_, letter)| Arrival::Cast(letter)));
        while let Poll::Ready(message) = Pin::new(&mut self.control).poll_next(cx) {
            let message = message.ok_or_else(|| Failure("the connection has ended".to_owned()))?;
            self.ready.push_back(Arrival::Control(message.payload));
        }
        Ok(())
    }

    /// Some of the history.
    fn take_history(&mut self, cx: &mut Context<'_>) -> Result<(), Failure> {
        for _ in 0..SOME {
            let Some(history) = &mut self.history else { return Ok(()) };
            let message = match Pin::new(&mut history.messages).poll_next(cx) {
                Poll::Pending => return Ok(()),
                Poll::Ready(None) => return Err(Failure("JetStream has ended".to_owned())),
                Poll::Ready(Some(message)) => message.map_err(|error| Failure::new("JetStream", error))?,
            };
            let seq = message.info().map_err(|error| Failure::new("JetStream", error))?.stream_sequence;
            // It may begin again with what we have.
            if seq < history.next {
                continue;
            }
            if seq > history.next {
                self.ready.push_back(Arrival::Gap);
            }
            history.next = seq + 1;
            let position = Position { epoch: history.epoch, seq };
            // Up to the head nothing is left.
            self.level(seq);
            self.ready.push_back(Arrival::Kept { position, letter: message.message.payload });
            self.level(seq + 1);
        }
        cx.waker().wake_by_ref();
        Ok(())
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Arrival, Failure>> {
        if self.ready.is_empty() {
            if let Poll::Ready(failure) = self.lost.as_mut().poll(cx) {
                return Poll::Ready(Err(failure));
            }
            self.take_casts(cx)?;
            self.take_history(cx)?;
        }
        self.ready.pop_front().map_or(Poll::Pending, |arrival| Poll::Ready(Ok(arrival)))
    }
}

impl Inlet for NatsInlet {
    async fn next(&mut self) -> Result<Arrival, Failure> {
        if let Some(arrival) = self.ready.pop_front() {
            return Ok(arrival);
        }
        // Unconstrained: tokio's budget would break a look at the subscriptions off in the middle, and with it the order. What
        // one look can find is what the connection's task, which has a budget, has read.
        tokio::task::coop::unconstrained(poll_fn(|cx| self.poll(cx))).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_say_who_has_sent_them() {
        assert_eq!(sender(b"1 00000000000000ab 17 t a b\npayload"), (0xab, 17));
        assert_eq!(sender(b"1 ffffffffffffffff 18446744073709551615 b x\n"), (u64::MAX, u64::MAX));
        for other in [&b""[..], b"hello", b"1 xx 1 t a\n", b"1 ab x t a\n", b"\xff 1 2"] {
            assert_eq!(sender(other), (0, 0));
        }
    }
}
