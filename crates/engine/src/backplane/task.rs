//! The task of a backplane: connects, and again with growing delays; on each link tells all interest, reads the history on from
//! where it was, and sends what waits. Sending, receiving and the clock are three loops of one task, so none waits for another.

use super::engine::{Arrival, Engine, Failure, Inlet, Outlet};
use super::letter::Letter;
use super::members::Others;
use super::queue::Seat;
use super::rules::Strangers;
use super::{Shared, State};
use crate::down::deliver;
use crate::endpoint::{Endpoint, Phase};
use crate::inbox::Event;
use crate::runtime::IoThread;
use crate::task::guarded;
use crate::topics::Position;
use bytes::Bytes;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Delays between attempts: the first, and the longest. Each is cut by up to half at random, so that a hundred nodes do not come
/// back to a restarted engine at the same moment.
const FIRST_DELAY: Duration = Duration::from_millis(100);
const LAST_DELAY: Duration = Duration::from_secs(5);
/// Times in `backplane_timeout` that a node says that it lives.
const BEATS: u32 = 4;
/// How often a stopping node looks whether all others of its endpoint have ended.
const STOP_STEP: Duration = Duration::from_millis(20);

/// What stays from one link to the next.
struct Task<E> {
    endpoint: Arc<Endpoint>,
    io: Arc<IoThread>,
    shared: Arc<Shared>,
    engine: E,
    /// Who is there elsewhere. Locked by the loops of this task alone, and never while one of them waits.
    others: Mutex<Others>,
    /// The same of what they keep.
    strangers: Mutex<Strangers>,
    /// What of the history was handed over; `None`: nothing yet.
    behind: Mutex<Option<Position>>,
}

/// Why a link has ended.
enum End {
    Lost(Failure),
    Stopped,
}

/// Starts the task on an I/O thread.
pub(super) fn start<E: Engine>(endpoint: &Arc<Endpoint>, shared: Arc<Shared>, engine: E) {
    let io = Arc::clone(endpoint.runtime.next_thread());
    let others = Mutex::new(Others::new(shared.node, shared.config.timeout));
    let strangers = Mutex::new(Strangers::new(shared.config.timeout / BEATS));
    let phase = endpoint.phase();
    let task = Task {
        endpoint: Arc::clone(endpoint),
        io: Arc::clone(&io),
        shared,
        engine,
        others,
        strangers,
        behind: Mutex::new(None),
    };
    // A stop waits for it.
    guarded(&io, endpoint, async move {
        let mut aborting = phase.clone();
        tokio::select! {
            () = task.run(phase) => {}
            // An error: nobody can say it any more.
            _ = aborting.wait_for(|phase| *phase == Phase::Aborting) => {}
        }
    });
}

impl<E: Engine> Task<E> {
    async fn run(&self, mut phase: watch::Receiver<Phase>) {
        let mut delay = FIRST_DELAY;
        loop {
            let end = self.link(&phase).await;
            let End::Lost(failure) = end else { return };
            if self.shared.state() == State::Connected {
                delay = FIRST_DELAY;
            }
            self.become_(State::Lost);
            if self.endpoint.is_stopping() {
                return;
            }
            let (engine, hosts) = (self.shared.config.address.kind, &self.shared.config.address.hosts);
            let hosts: Vec<_> = hosts.iter().map(|(host, port)| format!("{host}:{port}")).collect();
            self.endpoint.complain(&self.io, "backplane", || {
                format!("the backplane ({engine:?}, {}) is away: {failure}", hosts.join(", "))
            });
            let wait = delay.mul_f64(1.0 - rand::random::<f64>() / 2.0);
            delay = LAST_DELAY.min(delay * 2);
            let until = Instant::now() + wait;
            while Instant::now() < until {
                self.expire();
                let step = self.shared.config.timeout / 4;
                let nap = step.min(until.saturating_duration_since(Instant::now()));
                tokio::select! {
                    () = tokio::time::sleep(nap) => {}
                    _ = phase.wait_for(|phase| *phase != Phase::Running) => break,
                }
            }
            if self.endpoint.is_stopping() && self.shared.queue.lock().is_empty() {
                return;
            }
        }
    }

    /// One link, from connecting to its end.
    async fn link(&self, phase: &watch::Receiver<Phase>) -> End {
        if self.endpoint.is_stopping() && self.shared.queue.lock().is_empty() {
            return End::Stopped;
        }
        let behind = *self.behind.lock();
        let timeout = self.shared.config.timeout;
        let opened = match tokio::time::timeout(timeout, self.engine.connect(behind)).await {
            Ok(Ok(opened)) => opened,
            Ok(Err(failure)) => return End::Lost(failure),
            Err(_) => {
                return End::Lost(Failure::new("connecting", format!("no answer in {} s", timeout.as_secs_f64())));
            }
        };
        self.shared.tell(super::queue::Queue::linked);
        let heard = Mutex::new(Instant::now());
        let end = tokio::select! {
            end = self.sending(opened.outlet, phase.clone()) => end,
            failure = self.receiving(opened.inlet, opened.head, &heard) => End::Lost(failure),
            failure = self.clock(&heard) => End::Lost(failure),
        };
        // What was in the air when the link broke.
        self.shared.queue.lock().sent(false);
        end
    }

    async fn sending(&self, mut outlet: E::Outlet, phase: watch::Receiver<Phase>) -> End {
        loop {
            // Before the queue is looked at: what it may hold when this is false was put there by the last others.
            let last = *phase.borrow() != Phase::Running && self.endpoint.is_idle_but_for_one();
            let batch = self.shared.queue.lock().take();
            if !batch.is_empty() {
                let sent = async {
                    if !batch.interest.is_empty() {
                        outlet.interest(&batch.interest).await?;
                    }
                    if batch.parcels.is_empty() { Ok(()) } else { outlet.send(&batch.parcels).await }
                };
                match tokio::time::timeout(self.shared.config.timeout, sent).await {
                    Ok(Ok(())) => {
                        let too_large = outlet.too_large();
                        let mut queue = self.shared.queue.lock();
                        queue.sent(true);
                        queue.dropped += too_large;
                        drop(queue);
                        if too_large > 0 {
                            self.endpoint.complain(&self.io, "backplane_size", || {
                                format!(
                                    "{too_large} messages are larger than the backplane's engine takes: not passed on"
                                )
                            });
                        }
                    }
                    Ok(Err(failure)) => return End::Lost(failure),
                    Err(_) => return End::Lost(Failure::new("sending", "no answer")),
                }
                continue;
            }
            if last {
                let bye = self.shared.queue.lock().bye();
                let ended = async {
                    outlet.send(&[bye]).await?;
                    outlet.finish().await
                };
                return match tokio::time::timeout(self.shared.config.timeout, ended).await {
                    Ok(Err(failure)) => End::Lost(failure),
                    _ => End::Stopped,
                };
            }
            if *phase.borrow() == Phase::Running {
                let mut phase = phase.clone();
                tokio::select! {
                    () = self.shared.work.notified() => {}
                    _ = phase.wait_for(|phase| *phase != Phase::Running) => {}
                }
            } else {
                let _ = tokio::time::timeout(STOP_STEP, self.shared.work.notified()).await;
            }
        }
    }

    async fn receiving(&self, mut inlet: E::Inlet, head: Position, heard: &Mutex<Instant>) -> Failure {
        let mut level = false;
        // At most once for a link.
        let mut told = false;
        loop {
            let arrival = match inlet.next().await {
                Ok(arrival) => arrival,
                Err(failure) => return failure,
            };
            match arrival {
                Arrival::Cast(letter) => self.cast(&letter),
                Arrival::Control(text) => {
                    let news = self.others.lock().hear(&text, Instant::now());
                    if news.own {
                        *heard.lock() = Instant::now();
                    }
                    if news.answer || news.ask.is_some() {
                        self.shared.tell(|queue| {
                            queue.snapshot |= news.answer;
                            queue.ask.extend(news.ask);
                        });
                    }
                    if let Some((node, theirs)) = news.rules {
                        self.compare(node, theirs);
                    }
                    self.apply(news.changes);
                }
                Arrival::Kept { position, letter } => {
                    if !level && position.seq > head.seq {
                        level = true;
                        self.level(head, &mut told);
                    }
                    self.kept(position, &letter, level, head, &mut told);
                }
                Arrival::Gap => self.gap(&mut told),
                Arrival::Level => {
                    if !level {
                        level = true;
                        self.level(head, &mut told);
                    }
                }
            }
        }
    }

    fn read(&self, letter: &Bytes) -> Option<Letter> {
        let letter_read = Letter::read(letter, self.endpoint.settings.max_topic_length);
        if letter_read.is_none() {
            self.endpoint.complain(&self.io, "backplane_letter", || {
                "something was published to the backplane that is no message: left out".to_owned()
            });
        }
        letter_read
    }

    fn cast(&self, letter: &Bytes) {
        let Some(Letter { node, number, opcode, key, topic, payload }) = self.read(letter) else { return };
        if self.others.lock().is_new(node, number, Instant::now()) {
            self.endpoint.passed(&topic, opcode, &payload, key.as_deref());
        }
    }

    /// What was in the engine when this node first joined is history. What comes later is for its subscribers too.
    fn kept(&self, position: Position, letter: &Bytes, level: bool, head: Position, told: &mut bool) {
        let before = self.behind.lock().replace(position);
        let Some(Letter { node, number, opcode, key, topic, payload }) = self.read(letter) else { return };
        let exclude = (node == self.shared.node).then(|| self.shared.queue.lock().came_back(number)).flatten();
        if !level && self.endpoint.is_waiting_for_level() {
            // Of an epoch that has ended: nobody can resume behind it.
            if position.epoch == head.epoch {
                self.endpoint.refill(&topic, opcode, &payload, key.as_deref(), position);
            }
            return;
        }
        if before.is_some_and(|before| before.epoch != position.epoch) {
            self.gap(told);
        }
        self.endpoint.arrived(&topic, opcode, &payload, key.as_deref(), Some(position), exclude);
    }

    fn gap(&self, told: &mut bool) {
        if !std::mem::replace(told, true) {
            self.endpoint.gap();
        }
    }

    /// The history is level with what the engine had when this link was made.
    fn level(&self, head: Position, told: &mut bool) {
        let before = {
            let mut behind = self.behind.lock();
            let before = *behind;
            if before.is_none_or(|before| before.epoch != head.epoch || before.seq < head.seq) {
                *behind = Some(head);
            }
            before
        };
        let first = self.endpoint.is_waiting_for_level();
        self.endpoint.level(head);
        if !first && before.is_some_and(|before| before.epoch != head.epoch) {
            self.gap(told);
        }
        self.become_(State::Connected);
    }

    /// Says that this node lives, and fails when it does not hear itself.
    async fn clock(&self, heard: &Mutex<Instant>) -> Failure {
        let timeout = self.shared.config.timeout;
        let mut clock = tokio::time::interval(timeout / BEATS);
        clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            clock.tick().await;
            if heard.lock().elapsed() > timeout {
                return Failure::new("listening", format!("silent for {} s", timeout.as_secs_f64()));
            }
            self.shared.tell(|queue| queue.beat = true);
            self.expire();
        }
    }

    /// Another node has said what it keeps.
    fn compare(&self, node: u64, theirs: u64) {
        let mine = self.shared.queue.lock().rules;
        if self.strangers.lock().hear(node, theirs, mine, Instant::now()) {
            self.endpoint.complain(&self.io, "backplane_keep", || {
                let me = self.shared.node;
                format!(
                    "node {node:016x} of the backplane has other keep rules than this node, {me:016x}: what one of them keeps \
                     the other may not. Call keep() with the same arguments on all nodes"
                )
            });
        }
    }

    fn expire(&self) {
        let gone = self.others.lock().expire(Instant::now());
        self.apply(gone);
    }

    fn apply(&self, changes: Vec<(Seat, bool)>) {
        for ((topic, member), here) in changes {
            self.endpoint.presence_elsewhere(&topic, &member, here);
        }
    }

    fn become_(&self, state: State) {
        let before = self.shared.state.swap(state as u8, Ordering::Relaxed);
        if before != state as u8 {
            deliver(&self.io, &self.endpoint, Event::Backplane(state.name()));
        }
    }
}
