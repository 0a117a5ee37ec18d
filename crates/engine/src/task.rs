//! Tasks on the I/O threads, whose panics surface from `tick()`.

use crate::down::deliver;
use crate::endpoint::{Endpoint, Live};
use crate::inbox::Event;
use crate::runtime::{IoThread, panic_text};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// A task whose panic surfaces from `tick()`.
struct Guarded {
    task: Pin<Box<dyn Future<Output = ()> + Send>>,
    io: Arc<IoThread>,
    live: Live,
}

impl Future for Guarded {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let task = &mut self.task;
        catch_unwind(AssertUnwindSafe(|| task.as_mut().poll(cx))).unwrap_or_else(|panic| {
            deliver(&self.io, &self.live.0, Event::Fault(panic_text(panic.as_ref())));
            Poll::Ready(())
        })
    }
}

/// Runs a task for an endpoint on an I/O thread.
pub(crate) fn guarded(io: &Arc<IoThread>, endpoint: &Arc<Endpoint>, task: impl Future<Output = ()> + Send + 'static) {
    let task = Guarded { task: Box::pin(task), io: Arc::clone(io), live: Live::new(endpoint) };
    io.handle.spawn(task);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inbox::Batch;
    use crate::settings::Settings;
    use std::time::{Duration, Instant};

    #[test]
    fn a_panic_on_a_native_thread_becomes_an_event_and_the_task_is_over() {
        let endpoint = Endpoint::new(Settings::default(), None).unwrap();
        let io = Arc::clone(&endpoint.runtime.threads[0]);
        guarded(&io, &endpoint, async { panic!("on purpose") });
        let mut batch = Batch::default();
        let waited = endpoint.inbox.wait(Some(Instant::now() + Duration::from_secs(10))).unwrap();
        assert_eq!(waited, crate::wake::Waited::Ready);
        endpoint.take(&mut batch);
        assert!(matches!(&batch.events[..], [Event::Fault(text)] if text == "on purpose"), "{:?}", batch.events);
        let end = Instant::now() + Duration::from_secs(10);
        while !endpoint.is_idle() {
            assert!(Instant::now() < end, "the task is still counted");
            std::thread::yield_now();
        }
    }
}
