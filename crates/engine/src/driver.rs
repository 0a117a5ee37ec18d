//! Who drives the sockets of an I/O thread: the thread itself, or the program's thread while it waits.
//!
//! The hand-over between two threads costs more than all the rest of a single message's way. So a program that does nothing
//! but wait for the next message and answer it becomes the thread's *guest*: its `tick(timeout)` drives the tokio runtime
//! itself, without the GIL, and what it sends leaves when it waits again. In between, while its callbacks run, nobody drives;
//! the I/O thread takes over when that lasts, so that a program that stops ticking loses nothing. Who is a guest decides
//! [`Rhythm`]: with many messages at a time two threads do more than one.
//!
//! ```text
//! State      | next | when
//! Home       | In   | a guest comes: the I/O thread is woken and lets go of the seat
//! In         | Out  | what the guest waits for is there: it runs callbacks
//! In         | Home | nothing came for LINGER: the guest waits as everybody does
//! Out        | In   | the guest waits again
//! Out        | Home | the guest has been out for GRACE: the I/O thread drives
//! ```

use crate::down::Pump;
use crate::inbox::Inbox;
use crate::runtime::IoThread;
use crate::wake::Waited;
use parking_lot::Mutex;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Poll, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};
use tokio::time::Sleep;

/// How long the sockets may be left alone while a guest runs callbacks: far below what a peer notices, and far above what
/// answering a message takes.
const GRACE: Duration = Duration::from_micros(500);
/// How long a guest drives without an event. Ctrl-C is noticed only when it ends, and tokio's timers count milliseconds.
const LINGER: Duration = Duration::from_millis(5);

/// The I/O thread drives, or is about to.
const HOME: u8 = 0;
/// A guest drives, or is about to.
const IN: u8 = 1;
/// Nobody drives: the guest runs callbacks.
const OUT: u8 = 2;

thread_local! {
    /// Its address is this thread's number.
    static HERE: u8 = const { 0 };
}

fn here() -> usize {
    HERE.with(|here| std::ptr::from_ref(here).addr())
}

/// What only the driving thread uses.
pub(crate) struct Seat {
    pub(crate) pump: Pump,
    /// Ends a guest's stay. Kept, and set anew when half of it is over: a timer for each message would cost more.
    linger: Option<Pin<Box<Sleep>>>,
}

/// The runtime of one I/O thread, and who drives it.
pub(crate) struct Driver {
    tokio: tokio::runtime::Runtime,
    /// Held by the thread that drives, so that the other one waits until it has let go.
    seat: Mutex<Seat>,
    /// One of the above. Sequentially consistent, like `watched` and `DownQueue::pending`: each side writes its own and then
    /// looks at the other's, and one of the two has to see the other.
    state: AtomicU8,
    /// Times that a guest went out: whether it is the same absence that the I/O thread looks at.
    outings: AtomicU32,
    /// The I/O thread looks after a guest that is out, every [`GRACE`]; otherwise it sleeps until it is unparked.
    watched: AtomicBool,
    /// [`here`] of the last guest.
    guest: AtomicUsize,
    /// Wakes whoever drives; the same waker for every thread.
    waker: Waker,
    /// The I/O thread.
    home: OnceLock<Thread>,
}

impl std::fmt::Debug for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver").field("state", &self.state).finish_non_exhaustive()
    }
}

/// A guest at the wheel; dropped, it is out.
struct Guest<'a>(&'a Driver);

impl Drop for Guest<'_> {
    fn drop(&mut self) {
        let driver = self.0;
        driver.outings.fetch_add(1, Ordering::Relaxed);
        driver.state.store(OUT, Ordering::SeqCst);
        if !driver.watched.swap(true, Ordering::SeqCst)
            && let Some(home) = driver.home.get()
        {
            home.unpark();
        }
    }
}

impl Driver {
    pub(crate) fn new(tokio: tokio::runtime::Runtime) -> Self {
        // tokio's waker of what `block_on` runs belongs to the runtime, not to the call.
        let waker = tokio.block_on(poll_fn(|cx| Poll::Ready(cx.waker().clone())));
        Self {
            tokio,
            seat: Mutex::new(Seat { pump: Pump::default(), linger: None }),
            state: AtomicU8::new(HOME),
            outings: AtomicU32::new(0),
            watched: AtomicBool::new(false),
            guest: AtomicUsize::new(0),
            waker,
            home: OnceLock::new(),
        }
    }

    /// Makes whoever drives look at the queue going down.
    pub(crate) fn wake(&self) {
        self.waker.wake_by_ref();
    }

    /// Whether the calling thread is a guest that is out: somebody looks at the queue, without being woken, when it comes
    /// in again or when it does not.
    pub(crate) fn is_looked_after(&self) -> bool {
        self.state.load(Ordering::SeqCst) == OUT && self.guest.load(Ordering::Relaxed) == here()
    }

    /// The I/O thread's life.
    pub(crate) fn run(&self, io: &Arc<IoThread>) {
        // The only call.
        let _ = self.home.set(std::thread::current());
        loop {
            let mut seat = self.seat.lock();
            // Outside tokio's budget for tasks that behave: a broadcast to thousands would use it up and leave each
            // connection to its own task.
            self.tokio.block_on(tokio::task::unconstrained(poll_fn(|_| {
                seat.pump.run(io);
                if self.state.load(Ordering::SeqCst) == HOME { Poll::Pending } else { Poll::Ready(()) }
            })));
            drop(seat);
            self.stand_by();
        }
    }

    /// Until the I/O thread is to drive again.
    fn stand_by(&self) {
        loop {
            let outings = self.outings.load(Ordering::Relaxed);
            if self.watched.load(Ordering::SeqCst) {
                std::thread::park_timeout(GRACE);
            } else {
                std::thread::park();
            }
            match self.state.load(Ordering::SeqCst) {
                HOME => return,
                IN => {
                    self.watched.store(false, Ordering::SeqCst);
                    // It may have gone out in between, and seen that it was watched.
                    if self.state.load(Ordering::SeqCst) == OUT {
                        self.watched.store(true, Ordering::SeqCst);
                    }
                }
                _ => {
                    let absent = outings == self.outings.load(Ordering::Relaxed);
                    if absent && self.state.compare_exchange(OUT, HOME, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
                        self.watched.store(false, Ordering::SeqCst);
                        return;
                    }
                }
            }
        }
    }

    /// Drives until `inbox` has something, which is true, or for [`LINGER`]. `None`: another guest is here.
    fn visit(&self, io: &Arc<IoThread>, inbox: &Inbox, now: Instant) -> Option<bool> {
        let from = loop {
            let state = self.state.load(Ordering::SeqCst);
            if state == IN {
                return None;
            }
            if self.state.compare_exchange(state, IN, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
                break state;
            }
        };
        let guest = Guest(self);
        self.guest.store(here(), Ordering::Relaxed);
        if from == HOME {
            self.wake();
        }
        let mut seat = self.seat.lock();
        let Seat { pump, linger } = &mut *seat;
        let ready = self.tokio.block_on(tokio::task::unconstrained(poll_fn(|cx| {
            pump.run(io);
            if inbox.is_driven(cx.waker()) {
                return Poll::Ready(true);
            }
            let sleep = linger.get_or_insert_with(|| Box::pin(tokio::time::sleep(LINGER)));
            if sleep.deadline().into_std() < now + LINGER / 2 {
                sleep.as_mut().reset((now + LINGER).into());
            }
            sleep.as_mut().poll(cx).map(|()| false)
        })));
        inbox.is_left();
        drop(seat);
        if ready {
            drop(guest);
        } else {
            std::mem::forget(guest);
            self.state.store(HOME, Ordering::SeqCst);
            if let Some(home) = self.home.get() {
                home.unpark();
            }
        }
        Some(ready)
    }
}

/// How a program waits: whether its thread should drive the sockets meanwhile.
#[derive(Debug, Default)]
pub struct Rhythm {
    /// When the last wait ended with an event.
    returned: Option<Instant>,
    /// Waits in a row that began soon after the last one and ended soon.
    streak: u8,
}

impl Rhythm {
    /// Longest time from one wait to the next for a program that does nothing but answer.
    const PAUSE: Duration = Duration::from_micros(200);
    /// Waits of this kind after which the next is believed to be one too.
    const STEADY: u8 = 8;
    /// Events of one batch from which on two threads do more than one.
    const MANY: usize = 16;

    /// What the last wait brought.
    pub fn brought(&mut self, events: usize) {
        if events > Self::MANY {
            self.streak = 0;
        }
    }

    /// Waits until `inbox` has something or the deadline, by driving the sockets if that is worth it.
    pub(crate) fn wait(
        &mut self,
        io: Option<&Arc<IoThread>>,
        inbox: &Inbox,
        deadline: Option<Instant>,
    ) -> io::Result<Waited> {
        let now = Instant::now();
        let soon = self.returned.take().is_some_and(|then| now.duration_since(then) < Self::PAUSE);
        self.streak = if soon { (self.streak + 1).min(Self::STEADY) } else { 0 };
        if self.streak == Self::STEADY
            && deadline.is_none_or(|deadline| deadline > now + LINGER)
            && let Some(io) = io
        {
            match io.driver.visit(io, inbox, now) {
                Some(true) => {
                    self.returned = Some(Instant::now());
                    return Ok(Waited::Ready);
                }
                Some(false) => {
                    self.streak = 0;
                    // A signal may have arrived, which interrupted nothing.
                    return Ok(Waited::Interrupted);
                }
                None => {}
            }
        }
        let waited = inbox.wait(deadline)?;
        if waited == Waited::Ready {
            self.returned = Some(Instant::now());
        }
        Ok(waited)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::down::{Command, DownQueue};
    use crate::inbox::{Batch, Event};
    use crate::request::HttpResponse;
    use crate::runtime::start_thread;
    use std::sync::mpsc::{Receiver, channel};

    const LIMIT: Duration = Duration::from_secs(20);

    fn inbox() -> Arc<Inbox> {
        Arc::new(Inbox::new(1 << 20, 1 << 20, None))
    }

    /// Lets whoever drives put an event into the inbox.
    fn deliver(io: &IoThread, inbox: &Arc<Inbox>) {
        let inbox = Arc::clone(inbox);
        io.handle.spawn(async move {
            inbox.push(Event::Log("hello".to_owned()));
            inbox.signal();
        });
    }

    /// The thread that drives, from inside.
    fn driving_thread(io: &IoThread) -> Receiver<std::thread::ThreadId> {
        let (tell, told) = channel();
        io.handle.spawn(async move { tell.send(std::thread::current().id()) });
        told
    }

    fn take(inbox: &Inbox) -> usize {
        let mut batch = Batch::default();
        inbox.take(&mut batch);
        batch.events.len()
    }

    #[test]
    fn a_guest_drives_and_gets_its_events() {
        let io = start_thread(0).unwrap();
        let inbox = inbox();
        for _ in 0..100 {
            let who = driving_thread(&io);
            deliver(&io, &inbox);
            // From Home the I/O thread may have done it before it let go; what was asked for is there all the same.
            assert_eq!(io.driver.visit(&io, &inbox, Instant::now()), Some(true));
            assert_eq!(take(&inbox), 1);
            who.recv_timeout(LIMIT).unwrap();
        }
        // A guest that goes in and out drives by itself, unless the machine kept it out for longer than GRACE.
        let mine = (0..1000).any(|_| {
            let who = driving_thread(&io);
            deliver(&io, &inbox);
            assert_eq!(io.driver.visit(&io, &inbox, Instant::now()), Some(true));
            assert_eq!(take(&inbox), 1);
            who.recv_timeout(LIMIT).unwrap() == std::thread::current().id()
        });
        assert!(mine);
    }

    #[test]
    fn the_io_thread_takes_over_from_a_guest_that_stays_out() {
        let io = start_thread(0).unwrap();
        let inbox = inbox();
        deliver(&io, &inbox);
        assert_eq!(io.driver.visit(&io, &inbox, Instant::now()), Some(true));
        let who = driving_thread(&io).recv_timeout(LIMIT).unwrap();
        assert_eq!(Some(who), io.driver.home.get().map(Thread::id));
        assert_eq!(io.driver.state.load(Ordering::SeqCst), HOME);
    }

    #[test]
    fn a_guest_leaves_when_nothing_comes() {
        let io = start_thread(0).unwrap();
        assert_eq!(io.driver.visit(&io, &inbox(), Instant::now()), Some(false));
        let who = driving_thread(&io).recv_timeout(LIMIT).unwrap();
        assert_eq!(Some(who), io.driver.home.get().map(Thread::id));
    }

    #[test]
    fn one_guest_at_a_time() {
        let io = start_thread(0).unwrap();
        io.driver.state.store(IN, Ordering::SeqCst);
        assert_eq!(io.driver.visit(&io, &inbox(), Instant::now()), None);
    }

    #[test]
    fn another_thread_can_end_the_visit() {
        let io = start_thread(0).unwrap();
        let inbox = inbox();
        for _ in 0..50 {
            let nudger = {
                let inbox = Arc::clone(&inbox);
                std::thread::spawn(move || inbox.nudge())
            };
            // The nudge may come after the LINGER of a first visit.
            while io.driver.visit(&io, &inbox, Instant::now()) != Some(true) {}
            nudger.join().unwrap();
            take(&inbox);
        }
    }

    #[test]
    fn what_goes_down_while_a_guest_is_out_is_done() {
        let io = start_thread(0).unwrap();
        let inbox = inbox();
        for round in 0..300 {
            deliver(&io, &inbox);
            while io.driver.visit(&io, &inbox, Instant::now()) != Some(true) {}
            assert_eq!(take(&inbox), 1);
            let (reply, mut answer) = tokio::sync::oneshot::channel();
            let (status, headers, body) = (http::StatusCode::OK, http::HeaderMap::new(), bytes::Bytes::new().into());
            let response = HttpResponse { status, headers, body };
            DownQueue::push(&io, Command::Respond { reply, response });
            // Every third time the guest does not come back, so that the I/O thread has to.
            if round % 3 > 0 {
                io.driver.visit(&io, &inbox, Instant::now());
            }
            let end = Instant::now() + LIMIT;
            while answer.try_recv().is_err() {
                assert!(Instant::now() < end, "round {round}");
                std::thread::yield_now();
            }
        }
    }

    #[test]
    fn steady_single_events_make_a_guest_and_crowds_do_not() {
        let io = start_thread(0).unwrap();
        let inbox = inbox();
        let mut rhythm = Rhythm::default();
        let wait = |rhythm: &mut Rhythm, events| {
            let before = io.driver.outings.load(Ordering::Relaxed);
            deliver(&io, &inbox);
            while rhythm.wait(Some(&io), &inbox, None).unwrap() != Waited::Ready {}
            take(&inbox);
            rhythm.brought(events);
            io.driver.outings.load(Ordering::Relaxed) > before
        };
        assert!((0..10_000).any(|_| wait(&mut rhythm, 1)));
        rhythm.brought(100);
        assert!(!(0..1000).any(|_| wait(&mut rhythm, 100)));
        let mut alone = Rhythm::default();
        for _ in 0..100 {
            let before = io.driver.outings.load(Ordering::Relaxed);
            deliver(&io, &inbox);
            while alone.wait(None, &inbox, None).unwrap() != Waited::Ready {}
            take(&inbox);
            assert_eq!(io.driver.outings.load(Ordering::Relaxed), before);
        }
    }
}
