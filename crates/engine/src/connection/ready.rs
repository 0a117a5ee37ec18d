//! Which connections of an I/O thread have something to read or to write, and the one task that serves them.
//!
//! A task of tokio's for each connection would do the same. But its memory begins at 128 bytes that have to lie at a
//! multiple of 128, which costs an allocator as much again in holes: a quarter of what an idle connection takes.

use super::Connection;
use crate::courtesy::Courtesy;
use crate::runtime::IoThread;
use futures_util::task::{ArcWake, AtomicWaker, waker_ref};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use tokio::task::{unconstrained, yield_now};

/// Connections served before the pump and the other tasks get their turn: as many tasks as tokio runs in a row.
const CONNECTIONS_PER_TURN: usize = 61;
/// Places that the emptied queue may keep.
const KEEP: usize = 1 << 10;

/// The connections of one I/O thread that were woken, each once, in that order.
#[derive(Debug, Default)]
pub(crate) struct Ready {
    /// Guards the queue for one push or a swap. Pushed to by the I/O thread itself, as far as we know: wakers may be
    /// used anywhere.
    queue: Mutex<VecDeque<Arc<Connection>>>,
    /// The task, while it waits: told when the queue is no longer empty.
    task: AtomicWaker,
}

impl Ready {
    fn push(&self, conn: Arc<Connection>) {
        let first = {
            let mut queue = self.queue.lock();
            queue.push_back(conn);
            queue.len() == 1
        };
        if first {
            self.task.wake();
        }
    }

    async fn filled(&self) {
        poll_fn(|cx| {
            // Registered before the look, so that a push in between is not missed.
            self.task.register(cx.waker());
            if self.queue.lock().is_empty() { Poll::Pending } else { Poll::Ready(()) }
        })
        .await;
    }
}

impl ArcWake for Connection {
    fn wake_by_ref(conn: &Arc<Self>) {
        // Acquire and release, here and where it is cleared: the turn that follows sees what was done before the wake.
        if !conn.woken.swap(true, Ordering::AcqRel) {
            conn.io.ready.push(Arc::clone(conn));
        }
    }
}

/// Serves the connections of an I/O thread for as long as it lives. Outside tokio's budget for tasks that behave, which
/// is meant for one connection: each of ours has its own bound.
pub(crate) fn serve(io: Arc<IoThread>) -> impl Future<Output = ()> {
    unconstrained(run(io))
}

async fn run(io: Arc<IoThread>) {
    let mut turn = VecDeque::new();
    loop {
        io.ready.filled().await;
        let mut courtesy = Courtesy::default();
        loop {
            if turn.is_empty() {
                std::mem::swap(&mut *io.ready.queue.lock(), &mut turn);
            }
            for conn in turn.drain(..turn.len().min(CONNECTIONS_PER_TURN)) {
                conn.woken.swap(false, Ordering::AcqRel);
                let waker = waker_ref(&conn);
                let mut cx = Context::from_waker(&waker);
                catch_unwind(AssertUnwindSafe(|| conn.turn(&mut cx))).unwrap_or_else(|panic| conn.fault(&*panic));
                courtesy.served();
            }
            if turn.is_empty() && io.ready.queue.lock().is_empty() {
                turn.shrink_to(KEEP);
                break;
            }
            yield_now().await;
        }
    }
}
