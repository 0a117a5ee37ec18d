//! The process-wide I/O threads. One runtime serves every server and client of the process, so that a thousand
//! clients are not a thousand threads; each thread runs a current-thread tokio runtime and owns its connections.

use crate::connection::ready::{self, Ready};
use crate::down::{DownQueue, deliver};
use crate::driver::Driver;
use crate::endpoint::Endpoint;
use crate::inbox::Event;
use parking_lot::Mutex;
use std::any::Any;
use std::io;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use tokio::sync::Semaphore;

/// The running runtime; `None` before the first endpoint and, in a child, after `fork`. Locked only to look it up.
static RUNTIME: Mutex<Option<Arc<Runtime>>> = Mutex::new(None);
/// Threads of the next runtime.
static IO_THREADS: AtomicUsize = AtomicUsize::new(1);
/// Counts up in the child of every `fork`: what was made before belongs to the parent.
static FORKS: AtomicU32 = AtomicU32::new(0);

/// Reads of files at a time, for each I/O thread: more make no disk faster. A disk that hangs keeps so many threads.
const FILE_READS: usize = 8;
/// Threads for what blocks, for each I/O thread: reads of files, and the system's resolver, which has the rest.
const BLOCKING_THREADS: usize = 32;

/// One I/O thread, as other threads see it.
#[derive(Debug)]
pub struct IoThread {
    /// Its place in [`Runtime::threads`].
    pub index: usize,
    /// To start tasks there.
    pub handle: tokio::runtime::Handle,
    /// The queue going down to it.
    pub down: DownQueue,
    /// Its runtime.
    pub(crate) driver: Driver,
    /// Its connections that have something to do.
    pub(crate) ready: Ready,
    /// A permit for each read of a file.
    pub(crate) file_reads: Arc<Semaphore>,
    /// Everybody to tell of a panic that belongs to no connection.
    endpoints: Mutex<Vec<Weak<Endpoint>>>,
    /// How many of them there are.
    residents: AtomicUsize,
}

impl IoThread {
    /// A panic in the pump: every endpoint hears of it, since any may have lost something.
    pub(crate) fn report_panic(self: &Arc<Self>, panic: &(dyn Any + Send)) {
        let text = panic_text(panic);
        let endpoints: Vec<_> = self.endpoints.lock().iter().filter_map(Weak::upgrade).collect();
        for endpoint in endpoints {
            deliver(self, &endpoint, Event::Fault(text.clone()));
        }
    }

    pub(crate) fn introduce(&self, endpoint: &Arc<Endpoint>) {
        let mut endpoints = self.endpoints.lock();
        endpoints.retain(|e| e.strong_count() > 0);
        endpoints.push(Arc::downgrade(endpoint));
        self.residents.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn dismiss(&self) {
        self.residents.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The I/O threads of the process.
#[derive(Debug)]
pub struct Runtime {
    /// At least one.
    pub threads: Vec<Arc<IoThread>>,
    next: AtomicUsize,
}

impl Runtime {
    /// The runtime, started if need be.
    ///
    /// # Errors
    /// When the system refuses a thread or an epoll descriptor.
    pub fn get() -> io::Result<Arc<Self>> {
        let mut slot = RUNTIME.lock();
        if let Some(runtime) = &*slot {
            return Ok(Arc::clone(runtime));
        }
        let count = IO_THREADS.load(Ordering::Relaxed).max(1);
        let threads = (0..count).map(start_thread).collect::<io::Result<Vec<_>>>()?;
        let runtime = Arc::new(Self { threads, next: AtomicUsize::new(0) });
        *slot = Some(Arc::clone(&runtime));
        Ok(runtime)
    }

    /// The only I/O thread, if it serves one endpoint alone: whoever waits for that one may drive it.
    pub(crate) fn alone(&self) -> Option<&Arc<IoThread>> {
        match &self.threads[..] {
            [io] if io.residents.load(Ordering::Relaxed) == 1 => Some(io),
            _ => None,
        }
    }

    /// The thread for the next connection, in turn.
    #[must_use]
    pub fn next_thread(&self) -> &Arc<IoThread> {
        &self.threads[self.next.fetch_add(1, Ordering::Relaxed) % self.threads.len()]
    }
}

pub(crate) fn start_thread(index: usize) -> io::Result<Arc<IoThread>> {
    // The I/O thread starts the blocking ones, so signals are blocked there too.
    let tokio = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_name(format!("pyhv-block-{index}"))
        .build()?;
    let io = Arc::new(IoThread {
        index,
        handle: tokio.handle().clone(),
        down: DownQueue::default(),
        driver: Driver::new(tokio),
        ready: Ready::default(),
        file_reads: Arc::new(Semaphore::new(FILE_READS)),
        endpoints: Mutex::new(Vec::new()),
        residents: AtomicUsize::new(0),
    });
    let own = Arc::clone(&io);
    io.handle.spawn(ready::serve(Arc::clone(&io)));
    std::thread::Builder::new().name(format!("pyhv-io-{index}")).spawn(move || {
        block_signals();
        own.driver.run(&own);
    })?;
    Ok(io)
}

/// Signals belong to the program's own threads: Ctrl-C has to interrupt the wait in `tick()`, not ours.
fn block_signals() {
    #[cfg(unix)]
    {
        // Fails on an invalid argument only.
        let _ = nix::sys::signal::SigSet::all().thread_block();
    }
}

/// Sets the number of I/O threads (default 1).
///
/// # Errors
/// The number in force, when the threads are running already.
pub fn set_io_threads(count: usize) -> Result<(), usize> {
    if let Some(runtime) = &*RUNTIME.lock() {
        let running = runtime.threads.len();
        return if running == count { Ok(()) } else { Err(running) };
    }
    IO_THREADS.store(count, Ordering::Relaxed);
    Ok(())
}

/// The number of I/O threads, running or to be started.
#[must_use]
pub fn io_threads() -> usize {
    RUNTIME.lock().as_ref().map_or_else(|| IO_THREADS.load(Ordering::Relaxed), |r| r.threads.len())
}

/// In the child of a `fork`: its threads are gone, the next endpoint starts new ones.
pub fn after_fork_in_child() {
    FORKS.fetch_add(1, Ordering::Relaxed);
    // Forgotten, not dropped: the runtime's destructor would wait for threads that do not exist here.
    std::mem::forget(RUNTIME.lock().take());
}

/// How many forks lie between the first ancestor and this process.
#[must_use]
pub fn forks() -> u32 {
    FORKS.load(Ordering::Relaxed)
}

/// What a panic said.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "unknown panic".to_owned())
}
