//! What a server or a client shares with its connections: the inbox, the settings, the register of channels, and
//! the signal to stop.

use crate::connection::{Connection, keepalive};
use crate::down::{Command, DownQueue, deliver};
use crate::driver::Rhythm;
use crate::farewell::Farewell;
use crate::inbox::{Batch, Event, Inbox};
use crate::runtime::{self, IoThread, Runtime};
use crate::settings::Settings;
use crate::stats::{Delivery, Stats};
use crate::topics::Topics;
use crate::wake::{Waited, Wake};
use crate::wire;
use bytes::Bytes;
use parking_lot::Mutex;
use slab::Slab;
use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Whether the endpoint's tasks should go on. Only ever rises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Yes.
    Running,
    /// The program has said that it is about to stop: HTTP connections end behind their next answer.
    Leaving,
    /// The same, and nothing new is accepted.
    Deaf,
    /// Accept nothing new, finish what has begun.
    Stopping,
    /// End at once.
    Aborting,
}

/// Who has done with a channel; its number is free when both have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The tick has delivered its close.
    Program,
    /// The socket is closed.
    Io,
}

#[derive(Debug)]
struct Entry {
    conn: Arc<Connection>,
    released: Option<Side>,
}

/// One run of a server (from start to stop), or a client's life.
#[derive(Debug)]
pub struct Endpoint {
    /// The queue going up.
    pub inbox: Inbox,
    /// Limits and timeouts.
    pub settings: Settings,
    /// The limits that the codec keeps.
    pub limits: Arc<wire::Limits>,
    /// The I/O threads.
    pub runtime: Arc<Runtime>,
    /// What it counts.
    pub stats: Stats,
    /// Who gets what is published.
    pub topics: Topics,
    /// The channels of each I/O thread. A lock is held to add, to remove, or to walk over the connections without
    /// writing to them, so that the ticking thread, which removes, never waits for a system call.
    shards: Box<[Mutex<Slab<Entry>>]>,
    /// Connections and tasks that still run for this endpoint.
    live: AtomicUsize,
    began: Instant,
    /// The program has called `drain`.
    pub(crate) leaving: AtomicBool,
    pub(crate) stopping: AtomicBool,
    /// How it stops, once that has begun.
    pub(crate) farewell: OnceLock<Farewell>,
    /// The owner is gone: channels need no release by the program.
    abandoned: AtomicBool,
    pub(crate) phase: watch::Sender<Phase>,
    /// [`runtime::forks`] when it was made.
    forks: u32,
    /// When each kind of complaint was last logged, and how many were not since. Guards the map for one look.
    complaints: Mutex<HashMap<&'static str, Complaint>>,
    /// Guards the counts of connections for one look.
    seats: Mutex<Seats>,
    /// Ticks of the program, for the sweeps to see that there are any.
    ticks: AtomicUsize,
    /// [`coarse_millis`] of the last of them; at first when this was made.
    last_tick: AtomicU64,
    /// Broadcasts with a key so far. Relaxed: what one thread has broadcast it sees itself, and between threads there is
    /// no order to keep.
    keyed_broadcasts: AtomicU64,
}

#[derive(Debug)]
struct Complaint {
    logged: Instant,
    silenced: u64,
    /// All there have been.
    count: u64,
}

/// What the limits on connections look at.
#[derive(Debug, Default)]
struct Seats {
    total: usize,
    /// All there have been.
    accepted: u64,
    by_address: HashMap<IpAddr, usize>,
    /// Upgrades that may still happen, and when that was worked out.
    upgrades: Option<(f64, Instant)>,
}

/// One connection counted towards the limits, until it is dropped.
#[derive(Debug)]
pub(crate) struct Seat {
    /// None: a WebSocket keeps it.
    endpoint: Option<Arc<Endpoint>>,
    address: IpAddr,
}

impl Seat {
    /// It is kept by a WebSocket, which knows endpoint and address and calls [`Endpoint::vacate`] when it ends. True.
    pub(crate) fn leave_to_connection(mut self) -> bool {
        self.endpoint.take().is_some()
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some(endpoint) = &self.endpoint {
            endpoint.vacate(Some(self.address));
        }
    }
}

/// A monotonic clock for what is looked at every tick. Linux keeps a coarse one, some milliseconds wide, in memory: reading
/// it is no system call, whatever the clock source.
fn coarse_millis() -> u64 {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        use nix::time::{ClockId, clock_gettime};
        // Fails for an unknown clock only: this one is there since Linux 2.6.32.
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).map_or(Duration::ZERO, Duration::from);
        u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
    }
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    {
        static BEGAN: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
        u64::try_from(BEGAN.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// How often one kind of complaint is logged: a hostile client must not fill the log.
pub(crate) const COMPLAIN_EVERY: Duration = Duration::from_secs(10);

impl Drop for Endpoint {
    fn drop(&mut self) {
        for io in &self.runtime.threads {
            io.dismiss();
        }
    }
}

/// Keeps an endpoint counted as busy.
#[derive(Debug)]
pub(crate) struct Live(pub(crate) Arc<Endpoint>);

impl Live {
    pub(crate) fn new(endpoint: &Arc<Endpoint>) -> Self {
        endpoint.begin();
        Self(Arc::clone(endpoint))
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// Shows up to `most` of what is in a slab, from a key on. Returns the key to go on from, 0 after the last.
fn walk<T>(slab: &Slab<T>, from: usize, most: usize, mut each: impl FnMut(&T)) -> usize {
    let mut left = most;
    for key in from..slab.capacity() {
        if let Some(value) = slab.get(key) {
            if left == 0 {
                return key;
            }
            left -= 1;
            each(value);
        }
    }
    0
}

impl Endpoint {
    /// A new endpoint. `wake`: the descriptor handed out by an earlier run of the same object.
    ///
    /// # Errors
    /// When the I/O threads cannot be started.
    pub fn new(settings: Settings, wake: Option<Arc<Wake>>) -> io::Result<Arc<Self>> {
        let runtime = Runtime::get()?;
        let shards = runtime.threads.iter().map(|_| Mutex::new(Slab::new())).collect();
        let endpoint = Arc::new(Self {
            inbox: Inbox::new(settings.max_pending_bytes, settings.max_channel_pending_bytes, wake),
            limits: Arc::new(settings.wire()),
            topics: Topics::new(&settings, runtime.threads.len()),
            settings,
            shards,
            live: AtomicUsize::new(0),
            began: Instant::now(),
            leaving: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            farewell: OnceLock::new(),
            abandoned: AtomicBool::new(false),
            phase: watch::Sender::new(Phase::Running),
            forks: runtime::forks(),
            complaints: Mutex::default(),
            seats: Mutex::default(),
            ticks: AtomicUsize::new(0),
            last_tick: AtomicU64::new(coarse_millis()),
            stats: Stats::new(runtime.threads.len()),
            keyed_broadcasts: AtomicU64::new(0),
            runtime,
        });
        for io in &endpoint.runtime.threads {
            io.introduce(&endpoint);
            io.handle.spawn(keepalive::sweep(Arc::downgrade(&endpoint), io.index));
        }
        Ok(endpoint)
    }

    /// False in a child of the process that made it: its threads are not there.
    #[must_use]
    pub fn is_of_this_process(&self) -> bool {
        self.forks == runtime::forks()
    }

    /// Logs what a client did wrong, at most once per kind and [`COMPLAIN_EVERY`]; the next line tells how many were
    /// left out.
    pub(crate) fn complain(self: &Arc<Self>, io: &Arc<IoThread>, kind: &'static str, text: impl FnOnce() -> String) {
        let now = Instant::now();
        let silenced = {
            let mut complaints = self.complaints.lock();
            let complaint = complaints.entry(kind).or_insert(Complaint { logged: now, silenced: 0, count: 0 });
            complaint.count += 1;
            if complaint.count > 1 && now.duration_since(complaint.logged) < COMPLAIN_EVERY {
                complaint.silenced += 1;
                return;
            }
            complaint.logged = now;
            std::mem::take(&mut complaint.silenced)
        };
        let mut text = text();
        if silenced > 0 {
            text.push_str(&format!(" ({silenced} more of this kind were not logged)"));
        }
        deliver(io, self, Event::Log(text));
    }

    /// How many complaints of each kind there have been; limits go by the name of their setting.
    #[must_use]
    pub fn complaints(&self) -> Vec<(&'static str, u64)> {
        self.complaints.lock().iter().map(|(kind, complaint)| (*kind, complaint.count)).collect()
    }

    /// Counts a connection in, or names the limit that it is over.
    pub(crate) fn seat(self: &Arc<Self>, address: IpAddr) -> Result<Seat, &'static str> {
        let mut seats = self.seats.lock();
        if seats.total >= self.settings.max_connections {
            return Err("max_connections");
        }
        if let Some(limit) = self.settings.max_connections_per_address {
            let count = seats.by_address.entry(address).or_default();
            if *count >= limit {
                return Err("max_connections_per_address");
            }
            *count += 1;
        }
        seats.total += 1;
        seats.accepted += 1;
        Ok(Seat { endpoint: Some(Arc::clone(self)), address })
    }

    /// The end of a connection that was counted in.
    pub(crate) fn vacate(&self, address: Option<IpAddr>) {
        let mut seats = self.seats.lock();
        seats.total -= 1;
        // Only counted by address where there is a limit.
        if let Some(address) = address
            && let Some(count) = seats.by_address.get_mut(&address)
        {
            *count -= 1;
            if *count == 0 {
                seats.by_address.remove(&address);
            }
        }
    }

    /// A connection or a task begins to run for this endpoint.
    pub(crate) fn begin(&self) {
        self.live.fetch_add(1, Ordering::Relaxed);
    }

    /// It has ended.
    pub(crate) fn end(&self) {
        // Release: whoever sees zero (acquire) also sees everything that it did.
        if self.live.fetch_sub(1, Ordering::Release) == 1 && self.stopping.load(Ordering::Relaxed) {
            self.inbox.nudge();
        }
    }

    /// Whether one more upgrade keeps to `max_upgrades_per_second`: a bucket of one second's worth, filled evenly.
    pub(crate) fn may_upgrade(&self) -> bool {
        let Some(rate) = self.settings.max_upgrades_per_second else { return true };
        let now = Instant::now();
        let mut seats = self.seats.lock();
        let full = rate.max(1.0);
        let left = seats.upgrades.map_or(full, |(left, then)| full.min(left + rate * (now - then).as_secs_f64()));
        let may = left >= 1.0;
        seats.upgrades = Some((if may { left - 1.0 } else { left }, now));
        may
    }

    /// The program ticks.
    #[inline]
    pub fn note_tick(&self) {
        self.ticks.fetch_add(1, Ordering::Relaxed);
        self.last_tick.store(coarse_millis(), Ordering::Relaxed);
    }

    /// It has waited in a tick, which only begins now.
    pub fn note_end_of_wait(&self) {
        self.last_tick.store(coarse_millis(), Ordering::Relaxed);
    }

    /// A tick begins to deliver what is pending.
    #[must_use]
    pub fn delivery(&self) -> Delivery<'_> {
        Delivery::begin(self)
    }

    /// How long ago the program last began a tick; none for one that waits in it.
    pub(crate) fn tick_age(&self) -> Duration {
        if self.inbox.is_waited_for() {
            return Duration::ZERO;
        }
        Duration::from_millis(coarse_millis().saturating_sub(self.last_tick.load(Ordering::Relaxed)))
    }

    /// Connections that there are.
    pub fn connections(&self) -> usize {
        self.seats.lock().total
    }

    /// The same, and all there have been.
    pub(crate) fn connections_and_accepted(&self) -> (usize, u64) {
        let seats = self.seats.lock();
        (seats.total, seats.accepted)
    }

    /// Those of them that are WebSockets.
    pub(crate) fn channels(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }

    pub(crate) fn ticks(&self) -> usize {
        self.ticks.load(Ordering::Relaxed)
    }

    /// A function that logs complaints of one kind, for an owner that may outlive the endpoint.
    pub fn reporter(self: &Arc<Self>, kind: &'static str) -> impl Fn(String) + Send + Sync + 'static {
        let endpoint = Arc::downgrade(self);
        let io = Arc::clone(&self.runtime.threads[0]);
        move |text| {
            if let Some(endpoint) = endpoint.upgrade() {
                endpoint.complain(&io, kind, || text);
            }
        }
    }

    pub(crate) fn register(&self, conn: &Arc<Connection>) -> u32 {
        let shards = self.shards.len();
        let shard = conn.io().index;
        let key = self.shards[shard].lock().insert(Entry { conn: Arc::clone(conn), released: None });
        // 2^32 connections at a time are beyond any descriptor limit.
        u32::try_from(key * shards + shard).unwrap_or(u32::MAX)
    }

    /// One side has done with a channel.
    pub fn release(&self, channel: u32, side: Side) {
        let channel = channel as usize;
        let mut shard = self.shards[channel % self.shards.len()].lock();
        let key = channel / self.shards.len();
        let Some(entry) = shard.get_mut(key) else { return };
        match entry.released {
            None if !self.abandoned.load(Ordering::Relaxed) => entry.released = Some(side),
            other if other != Some(side) => {
                let entry = shard.remove(key);
                drop(shard);
                drop(entry);
            }
            _ => {}
        }
    }

    /// How long ago it was made.
    pub(crate) fn age(&self) -> Duration {
        self.began.elapsed()
    }

    /// How old it was then.
    pub(crate) fn age_at(&self, then: Instant) -> Duration {
        then.saturating_duration_since(self.began)
    }

    /// How many channels have something that waits to be sent, and how many bytes that is.
    pub(crate) fn buffered(&self) -> (usize, usize) {
        /// Connections looked at under one lock, which the ticking thread takes too.
        const STEP: usize = 256;
        let (mut behind, mut bytes) = (0, 0);
        for shard in &self.shards {
            let mut place = 0;
            loop {
                place = walk(&shard.lock(), place, STEP, |entry| {
                    let waits = entry.conn.buffered_amount();
                    behind += usize::from(waits > 0);
                    bytes += waits;
                });
                if place == 0 {
                    break;
                }
            }
        }
        (behind, bytes)
    }

    /// Channels of one I/O thread.
    pub(crate) fn channels_on(&self, thread: usize) -> usize {
        self.shards[thread].lock().len()
    }

    /// Adds up to `most` connections of an I/O thread, from a place in the register on. Returns the place to go on from,
    /// which after the last is the first again.
    pub(crate) fn next_on(&self, thread: usize, from: usize, most: usize, into: &mut Vec<Arc<Connection>>) -> usize {
        walk(&self.shards[thread].lock(), from, most, |entry| into.push(Arc::clone(&entry.conn)))
    }

    pub(crate) fn for_each_on(&self, thread: usize, mut each: impl FnMut(u32, &Arc<Connection>)) {
        let shards = self.shards.len();
        for (key, entry) in self.shards[thread].lock().iter() {
            each(u32::try_from(key * shards + thread).unwrap_or(u32::MAX), &entry.conn);
        }
    }

    /// The next connections of a thread, from a place in its register on, at most `count`; returns where the ones after
    /// them begin. For a walk that writes, which must not hold the lock.
    pub(crate) fn some_on(
        &self,
        thread: usize,
        from: usize,
        count: usize,
        some: &mut Vec<Arc<Connection>>,
    ) -> Option<usize> {
        let shard = self.shards[thread].lock();
        for key in from..shard.capacity() {
            if let Some(entry) = shard.get(key) {
                some.push(Arc::clone(&entry.conn));
                if some.len() == count {
                    return Some(key + 1);
                }
            }
        }
        None
    }

    /// How many broadcasts with a key there have been.
    pub(crate) fn keyed_broadcasts(&self) -> u64 {
        self.keyed_broadcasts.load(Ordering::Relaxed)
    }

    /// Sends a message to every open channel but one. Costs the caller one encoding, whatever their number. `key`: it takes
    /// the place of one with the same key that has not left.
    pub fn broadcast(
        self: &Arc<Self>,
        opcode: wire::Opcode,
        payload: &[u8],
        exclude: Option<u32>,
        key: Option<&Bytes>,
    ) {
        if key.is_some() {
            self.keyed_broadcasts.fetch_add(1, Ordering::Relaxed);
        }
        let mut frame = Vec::with_capacity(payload.len() + wire::MAX_HEADER);
        wire::encode_frame(&mut frame, opcode, true, payload, None);
        let header = frame.len() - payload.len();
        let frame = Bytes::from(frame);
        for io in &self.runtime.threads {
            let (endpoint, frame, key) = (Arc::clone(self), frame.clone(), key.cloned());
            DownQueue::push(io, Command::Broadcast { endpoint, opcode, frame, payload: header, exclude, key });
        }
    }

    /// Swaps what is pending into `batch`, which has to be empty, and lets paused connections read on. Returns the
    /// batch's number for [`Inbox::set_done`].
    pub fn take(&self, batch: &mut Batch) -> u64 {
        let epoch = self.inbox.take(batch);
        self.resume(&mut batch.paused);
        epoch
    }

    /// Lets connections read on that were paused because of a batch.
    pub fn resume(&self, paused: &mut Vec<Arc<Connection>>) {
        if paused.is_empty() {
            return;
        }
        for io in &self.runtime.threads {
            let theirs = paused.iter().filter(|conn| Arc::ptr_eq(conn.io(), io)).cloned().collect();
            DownQueue::push_now(io, Command::Resume(theirs));
        }
        paused.clear();
    }

    /// Blocks until something is pending, the deadline, or a signal. The caller has let go of the GIL. `rhythm`: its last
    /// waits.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn wait(&self, rhythm: &mut Rhythm, deadline: Option<Instant>) -> io::Result<Waited> {
        rhythm.wait(self.runtime.alone(), &self.inbox, deadline)
    }

    /// Ends everything at once: connections are dropped, each with its close event.
    pub fn abort(self: &Arc<Self>) {
        self.stopping.store(true, Ordering::Relaxed);
        self.phase.send_replace(Phase::Aborting);
        for io in &self.runtime.threads {
            DownQueue::push(io, Command::AbortAll { endpoint: Arc::clone(self) });
        }
    }

    /// Ends everything without delivering anything more, for an owner that goes away.
    pub fn discard(self: &Arc<Self>) {
        self.inbox.close();
        // Nobody will deliver the close events: the channels are the I/O side's alone from here on. Before the abort,
        // so that a connection that ends in between finds this side done.
        self.abandoned.store(true, Ordering::Relaxed);
        for shard in &self.shards {
            let mut over = Vec::new();
            shard.lock().retain(|_, entry| {
                let keep = entry.released != Some(Side::Io);
                if !keep {
                    over.push(Arc::clone(&entry.conn));
                }
                keep
            });
        }
        self.topics.clear();
        self.abort();
    }

    /// Whether the owner is gone.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Relaxed)
    }

    /// Whether a stop has begun.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// Whether nothing runs for this endpoint any more; what is in the inbox then is all there will be.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.live.load(Ordering::Acquire) == 0
    }

    /// Whether one task is all that runs for this endpoint, and the program has heard of the end of all others.
    pub(crate) fn is_idle_but_for_one(&self) -> bool {
        self.live.load(Ordering::Acquire) == 1 && self.inbox.is_delivered()
    }

    pub(crate) fn phase(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_walk_in_steps_sees_everyone_once_and_begins_anew() {
        let mut slab: Slab<usize> = (0..1000).map(|n| (n, n)).collect();
        for gone in (0..1000).filter(|n| n % 3 == 0 || *n > 900) {
            slab.remove(gone);
        }
        let there: Vec<usize> = slab.iter().map(|(_, n)| *n).collect();
        for most in [1, 7, 100, there.len(), usize::MAX] {
            let mut place = 0;
            for _ in 0..2 {
                let mut seen = Vec::new();
                loop {
                    let before = seen.len();
                    place = walk(&slab, place, most, |n| seen.push(*n));
                    assert!(seen.len() - before <= most);
                    if place == 0 {
                        break;
                    }
                }
                assert_eq!(seen, there, "{most}");
            }
        }
        assert_eq!(walk(&Slab::<usize>::new(), 5, 1, |_| unreachable!()), 0);
    }
}
