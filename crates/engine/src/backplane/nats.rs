//! NATS: core subjects for topics without history, one JetStream stream for those with.
//!
//! | subject | |
//! |---|---|
//! | `PREFIX.t.…` | casts, by topic: `subject` |
//! | `PREFIX.k.…` | what the stream PREFIX takes, by topic |
//! | `PREFIX.c` | control |
//!
//! A position is the stream's sequence, its epoch the time when the stream was made. async-nats is told to connect once: a
//! link that is lost stays lost, since it is the common part that connects again.
//!
//! Each subscription of async-nats has a queue of its own, and they say nothing of the order in which messages came. It fills
//! them from a task on this very thread, so what lies in all of them at one moment, while no task but ours runs, is all that has come
//! up to then: taken out at once and put into the order of each sender's numbers it is as it was sent.

mod inlet;
mod subject;
#[cfg(test)]
mod tests;

use super::config::Config;
use super::engine::{Engine, Failure, Opened, Outlet, Parcel};
use crate::topics::Position;
use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::consumer::push::OrderedConfig;
use async_nats::jetstream::context::{
    ContextBuilder, CreateStreamError, CreateStreamErrorKind, PublishAckFuture, PublishError, PublishErrorKind,
};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::{self, ConsumerError, ConsumerErrorKind, Info};
use async_nats::{Client, ConnectOptions, Event, ServerAddr, jetstream};
use bytes::Bytes;
use futures_util::FutureExt;
pub(crate) use inlet::NatsInlet;
use inlet::{History, Sub};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};

/// Messages that may lie in one subscription. async-nats reads some megabytes before anybody else has a turn, and what
/// finds no place is lost: this holds them, of whatever size.
const CAPACITY: usize = 1 << 18;
/// How long the stream knows a number that it has had. An append is sent again as soon as there is a link.
const KNOWN: Duration = Duration::from_secs(120);
/// Of an append, beside its letter: `Nats-Msg-Id` and its value.
const HEADERS: usize = 128;
/// Of the stream that is made in a cluster: one of its servers may be lost.
const REPLICAS: usize = 3;
/// Questions to JetStream for which `backplane_timeout` has time. A cluster that elects a leader answers none, so they are asked again.
const ASKED: u32 = 6;
/// Pauses before that: the first, and the longest.
const PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// A new leader of a stream with replicas may not have applied yet what the last one has delivered. After so long it is lost.
const APPLIED: Duration = Duration::from_secs(10);

/// How to reach NATS.
#[derive(Debug)]
pub(crate) struct Nats {
    config: Arc<Config>,
    node: u64,
    /// Something was to be kept, so JetStream has to be there; without, core NATS will do.
    keeps: Arc<AtomicBool>,
    /// Since when the stream ends before what was read. Held for a look.
    short: Mutex<Option<Instant>>,
}

/// Why there is no history yet.
enum Trouble {
    /// Another attempt may find it.
    Passing(Failure),
    Lasting(Failure),
}

impl Nats {
    /// `node`: this node, for what the adapter names after it.
    pub(crate) fn new(config: Arc<Config>, node: u64) -> Self {
        Self { config, node, keeps: Arc::default(), short: Mutex::new(None) }
    }

    /// A connection that ends when it is lost; the receiver has the reason then.
    async fn client(&self) -> Result<(Client, watch::Receiver<Option<String>>), Failure> {
        let Config { address, timeout, .. } = &*self.config;
        let (lost, why) = watch::channel(None);
        let mut options = ConnectOptions::new()
            .name(format!("pyhv-{:016x}", self.node))
            // It tries once more after a loss and then gives up; by then this link has been given up.
            .max_reconnects(address.hosts.len())
            .ignore_discovered_servers()
            .connection_timeout(*timeout)
            .request_timeout(Some(*timeout))
            // It takes the third ping without an answer for the end.
            .ping_interval(*timeout / 4)
            .subscription_capacity(CAPACITY)
            .event_callback(move |event| {
                let why = match event {
                    Event::Connected | Event::Draining | Event::LameDuckMode => None,
                    Event::Disconnected | Event::Closed => Some("the connection was lost".to_owned()),
                    Event::SlowConsumer(_) => Some("this node is too slow for what comes".to_owned()),
                    // A permission that is missing, most of all.
                    Event::ServerError(error) => Some(error.to_string()),
                    Event::ClientError(error) => Some(error.to_string()),
                };
                if let Some(why) = why {
                    // The first reason counts.
                    lost.send_if_modified(|lost| {
                        lost.is_none() && {
                            *lost = Some(why);
                            true
                        }
                    });
                }
                std::future::ready(())
            });
        options = match (&address.user, &address.password) {
            (Some(user), Some(password)) => options.user_and_password(user.clone(), password.clone()),
            (None, Some(token)) | (Some(token), None) => options.token(token.clone()),
            (None, None) => options,
        };
        if let Some(file) = &self.config.credentials {
            let failed = |error| Failure::new("the credentials", error);
            options = options.credentials_file(file).await.map_err(failed)?;
        }
        if let Some(tls) = &self.config.tls {
            options = options.require_tls(true).tls_client_config((**tls).clone());
        }
        let mut servers: Vec<ServerAddr> = Vec::with_capacity(address.hosts.len());
        for (host, port) in &address.hosts {
            let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
            let server = format!("nats://{host}:{port}").parse();
            servers.push(server.map_err(|error| Failure::new("the address", error))?);
        }
        let client = options.connect(servers).await.map_err(|error| Failure::new("connecting", error))?;
        Ok((client, why))
    }

    fn root(&self, kind: &str) -> String {
        format!("{}.{kind}", self.config.prefix)
    }

    /// The stream, made if there is none. One that is there stays as it is: somebody may have chosen replicas or other limits.
    async fn stream(&self, context: &jetstream::Context) -> Result<stream::Stream, CreateStreamError> {
        let wanted = |num_replicas| stream::Config {
            name: self.config.prefix.clone(),
            description: Some("Messages of pyHV's topics with history".to_owned()),
            subjects: vec![format!("{}.>", self.root("k"))],
            max_messages: i64::try_from(self.config.history).unwrap_or(i64::MAX),
            duplicate_window: KNOWN,
            num_replicas,
            ..stream::Config::default()
        };
        let is_refused = |found: &Result<_, CreateStreamError>| {
            found.as_ref().is_err_and(|error| !is_missing(error) && !is_passing(error))
        };
        let is_cluster = context.client().server_info().cluster.is_some();
        let mut found = context.get_or_create_stream(wanted(if is_cluster { REPLICAS } else { 1 })).await;
        if is_cluster && is_refused(&found) {
            // It may have too few servers with JetStream, or no room: then one replica has to do.
            found = context.get_or_create_stream(wanted(1)).await;
        }
        // Another node may have made it between the look and the attempt, which the server calls an overlap.
        if is_refused(&found)
            && let Ok(stream) = context.get_stream(&self.config.prefix).await
        {
            found = Ok(stream);
        }
        found
    }

    /// The stream, and from where it is read; `None`: there is no JetStream, and it was not needed.
    async fn history(
        &self,
        context: &jetstream::Context,
        behind: Option<Position>,
    ) -> Result<Option<(History, Position)>, Failure> {
        let began = Instant::now();
        loop {
            match self.look(context, behind).await {
                Ok(found) => return Ok(found),
                Err(Trouble::Lasting(failure)) => return Err(failure),
                Err(Trouble::Passing(failure)) if began.elapsed() > self.config.timeout / ASKED * (ASKED - 1) => {
                    return Err(failure);
                }
                Err(Trouble::Passing(_)) => tokio::time::sleep(PAUSE).await,
            }
        }
    }

    async fn look(
        &self,
        context: &jetstream::Context,
        behind: Option<Position>,
    ) -> Result<Option<(History, Position)>, Trouble> {
        let failed = |error: String| Trouble::Lasting(Failure::new("JetStream", error));
        let found = self.stream(context).await;
        if found.is_err() {
            // Whoever answers next may be new too.
            *self.short.lock() = None;
        }
        let mut stream = match found {
            Ok(stream) => stream,
            Err(error) if self.is_without(context, behind, &error) => return Ok(None),
            Err(error) if is_passing(&error) => return Err(Trouble::Passing(no_stream(error))),
            Err(error) => return Err(Trouble::Lasting(no_stream(error))),
        };
        let mut head = head_of(stream.cached_info());
        if behind.is_some_and(|behind| behind.epoch == head.epoch && behind.seq > head.seq) {
            let config = stream.cached_info().config.clone();
            if !self.is_cut(config.num_replicas, Instant::now()) {
                return Err(Trouble::Passing(Failure::new("JetStream", "the stream ends before what was read")));
            }
            // The server has lost the end of it, as it may when its machine fails, and would give numbers again that have meant
            // other messages: another stream is another epoch.
            context.delete_stream(&self.config.prefix).await.map_err(|error| failed(error.to_string()))?;
            stream = match context.create_stream(config).await {
                Ok(stream) => stream,
                // Another node may have been faster.
                Err(error) => {
                    let found = context.get_stream(&self.config.prefix).await;
                    found.map_err(|_| Trouble::Lasting(no_stream(error)))?
                }
            };
            head = head_of(stream.cached_info());
        }
        *self.short.lock() = None;
        let first = stream.cached_info().state.first_sequence.max(1);
        let (next, gap) = match behind {
            None => (first, false),
            Some(behind) if behind.epoch == head.epoch => (first.max(behind.seq + 1), first > behind.seq + 1),
            Some(_) => (first, true),
        };
        let config = OrderedConfig {
            deliver_subject: context.client().new_inbox(),
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: next },
            ..OrderedConfig::default()
        };
        let consumer = stream.create_consumer(config).await.map_err(|error| {
            let failure = Failure::new("JetStream", &error);
            if is_unanswered(&error) { Trouble::Passing(failure) } else { Trouble::Lasting(failure) }
        })?;
        let messages = consumer.messages().await.map_err(|error| failed(error.to_string()))?;
        Ok(Some((History { messages, epoch: head.epoch, next, gap }, head)))
    }

    /// Whether a stream that ends before what was read has lost its end.
    fn is_cut(&self, replicas: usize, now: Instant) -> bool {
        let since = *self.short.lock().get_or_insert(now);
        replicas <= 1 || now.duration_since(since) >= APPLIED
    }

    /// Whether there is no JetStream, and nothing that needs it. Servers of a cluster that have none themselves do not say so, since
    /// others may have it: nobody answers.
    fn is_without(&self, context: &jetstream::Context, behind: Option<Position>, error: &CreateStreamError) -> bool {
        if self.keeps.load(Ordering::Relaxed) {
            return false;
        }
        let silent = error.kind() == CreateStreamErrorKind::TimedOut && !context.client().server_info().jetstream;
        is_missing(error) || silent && behind.is_none_or(|behind| behind.epoch == 0)
    }
}

/// Whether the server has no JetStream at all.
fn is_missing(error: &CreateStreamError) -> bool {
    match error.kind() {
        CreateStreamErrorKind::JetStreamUnavailable => true,
        CreateStreamErrorKind::JetStream(error) => {
            [ErrorCode::JETSTREAM_NOT_ENABLED, ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT]
                .contains(&error.error_code())
        }
        _ => false,
    }
}

/// Whether a cluster says, by an answer or none, that it has no leader at the moment.
fn is_passing(error: &CreateStreamError) -> bool {
    match error.kind() {
        CreateStreamErrorKind::TimedOut => true,
        CreateStreamErrorKind::JetStream(error) => error.error_code() == ErrorCode::CLUSTER_NOT_AVAILABLE,
        _ => false,
    }
}

/// The same of a consumer.
fn is_unanswered(error: &ConsumerError) -> bool {
    match error.kind() {
        ConsumerErrorKind::TimedOut => true,
        ConsumerErrorKind::JetStream(error) => error.error_code() == ErrorCode::CLUSTER_NOT_AVAILABLE,
        _ => false,
    }
}

/// The same of an append: no answer, no stream that takes it, or one that has its number and does not know yet whether it stays.
fn is_open(error: &PublishError) -> bool {
    use std::error::Error;
    let code = || error.source()?.downcast_ref::<jetstream::Error>().map(jetstream::Error::error_code);
    match error.kind() {
        PublishErrorKind::TimedOut | PublishErrorKind::StreamNotFound => true,
        _ => {
            [ErrorCode::CLUSTER_NOT_AVAILABLE, ErrorCode::STREAM_DUPLICATE_MESSAGE_CONFLICT].map(Some).contains(&code())
        }
    }
}

fn no_stream(error: impl Display) -> Failure {
    Failure::new("topics that keep messages need JetStream (nats-server -js)", error)
}

fn head_of(info: &Info) -> Position {
    // Nanoseconds since 1970 take 61 bits; a stream that was made again has another one.
    let epoch = u64::try_from(info.created.unix_timestamp_nanos()).unwrap_or_default();
    Position { epoch, seq: info.state.last_sequence }
}

impl Engine for Nats {
    type Outlet = NatsOutlet;
    type Inlet = NatsInlet;

    async fn connect(&self, behind: Option<Position>) -> Result<Opened<NatsOutlet, NatsInlet>, Failure> {
        let (client, lost) = self.client().await?;
        let context = ContextBuilder::new().timeout(self.config.timeout / ASKED).build(client.clone());
        let control = client.subscribe(self.root("c")).await.map_err(|error| Failure::new("subscribing", error))?;
        // A right that is missing is told besides, and the request is never answered.
        let history = tokio::select! {
            history = self.history(&context, behind) => history?,
            failure = inlet::reason(lost.clone()) => return Err(failure),
        };
        let (history, head) = match history {
            Some((history, head)) => (Some(history), head),
            None => (None, Position { epoch: 0, seq: 0 }),
        };
        let (subs, new_subs) = mpsc::unbounded_channel();
        let outlet = NatsOutlet {
            context,
            subs,
            wanted: HashMap::new(),
            casts: self.root("t"),
            appends: self.root("k"),
            control: self.root("c"),
            node: self.node,
            keeps: history.is_none().then(|| Arc::clone(&self.keeps)),
            timeout: self.config.timeout,
            max_payload: client.server_info().max_payload,
            too_large: 0,
            client,
        };
        let inlet = NatsInlet::new(control, new_subs, history, head, lost);
        Ok(Opened { outlet, inlet, head })
    }
}

/// What one subject is wanted for.
#[derive(Debug)]
struct Wanted {
    /// So many filters.
    filters: usize,
    /// Dropped when it is wanted no more.
    _over: oneshot::Sender<()>,
}

#[derive(Debug)]
pub(crate) struct NatsOutlet {
    client: Client,
    context: jetstream::Context,
    /// Subscriptions on their way to the inlet.
    subs: mpsc::UnboundedSender<Sub>,
    /// By subject.
    wanted: HashMap<String, Wanted>,
    casts: String,
    appends: String,
    control: String,
    node: u64,
    /// There is no JetStream; here is to be said that there should be.
    keeps: Option<Arc<AtomicBool>>,
    /// For what is sent at once.
    timeout: Duration,
    /// What the server takes in one message.
    max_payload: usize,
    too_large: u64,
}

impl NatsOutlet {
    async fn flush(&self) -> Result<(), Failure> {
        self.client.flush().await.map_err(|error| Failure::new("sending", error))
    }

    async fn append(&self, topic: &str, number: u64, letter: &Bytes) -> Result<PublishAckFuture, PublishError> {
        let id = format!("{:016x}-{number}", self.node);
        let publish = PublishMessage::build().message_id(id).payload(letter.clone());
        self.context.send_publish(subject::of_topic(&self.appends, topic), publish).await
    }

    /// Waits until all appends of a batch are confirmed. A cluster that elects a leader, or moves it, loses what comes meanwhile:
    /// that goes again, as long as there is time, so that the link need not end with all that has nothing to do with it.
    async fn confirm(&self, mut flying: Vec<(&Parcel, PublishAckFuture)>) -> Result<(), Failure> {
        let (began, step) = (Instant::now(), self.timeout / ASKED);
        let mut pause = PAUSE;
        loop {
            let mut open: Vec<&Parcel> = Vec::new();
            let mut why = None;
            for (parcel, ack) in flying {
                let answer = match &why {
                    None => Some(ack.await),
                    // They were sent together: one wait is enough for all.
                    Some(_) => ack.into_future().now_or_never(),
                };
                match answer {
                    // A leader that has the number and no message for it yet may lose it.
                    Some(Ok(ack)) if ack.duplicate && ack.sequence == 0 => open.push(parcel),
                    Some(Ok(_)) => continue,
                    Some(Err(error)) if !is_open(&error) => return Err(Failure::new("JetStream", error)),
                    Some(Err(error)) => {
                        open.push(parcel);
                        why.get_or_insert(error);
                    }
                    None => open.push(parcel),
                }
            }
            if open.is_empty() {
                return Ok(());
            }
            if began.elapsed() + pause + step / 2 > self.timeout {
                return Err(why.map_or_else(
                    || Failure::new("JetStream", "not confirmed"),
                    |error| Failure::new("JetStream", error),
                ));
            }
            tokio::time::sleep(pause).await;
            pause = LONGEST_PAUSE.min(pause * 2);
            flying = Vec::with_capacity(open.len());
            for parcel in open {
                if let Parcel::Append { topic, number, letter } = parcel {
                    let ack = self.append(topic, *number, letter).await;
                    flying.push((parcel, ack.map_err(|error| Failure::new("publishing", error))?));
                }
            }
            self.flush().await?;
        }
    }
}

impl Outlet for NatsOutlet {
    async fn interest(&mut self, changes: &[(Arc<str>, bool)]) -> Result<(), Failure> {
        for (filter, begins) in changes {
            for subject in subject::of_filter(&self.casts, filter) {
                if !begins {
                    if let Some(wanted) = self.wanted.get_mut(&subject) {
                        wanted.filters -= 1;
                        if wanted.filters == 0 {
                            self.wanted.remove(&subject);
                        }
                    }
                } else if let Some(wanted) = self.wanted.get_mut(&subject) {
                    wanted.filters += 1;
                } else {
                    let subscriber = self.client.subscribe(subject.clone()).await;
                    let subscriber = subscriber.map_err(|error| Failure::new("subscribing", error))?;
                    let (over, is_over) = oneshot::channel();
                    self.wanted.insert(subject, Wanted { filters: 1, _over: over });
                    self.subs
                        .send(Sub::new(subscriber, is_over))
                        .map_err(|error| Failure::new("subscribing", error))?;
                }
            }
        }
        self.flush().await
    }

    async fn send(&mut self, parcels: &[Parcel]) -> Result<(), Failure> {
        let mut acks = Vec::new();
        for parcel in parcels {
            if parcel.letter().len() + HEADERS > self.max_payload {
                self.too_large += 1;
                continue;
            }
            let failed = match parcel {
                Parcel::Cast { topic, letter } => {
                    let subject = subject::of_topic(&self.casts, topic);
                    self.client.publish(subject, letter.clone()).await.err().map(|error| error.to_string())
                }
                Parcel::Control(letter) => {
                    self.client.publish(self.control.clone(), letter.clone()).await.err().map(|error| error.to_string())
                }
                Parcel::Append { topic, number, letter } => {
                    if let Some(keeps) = &self.keeps {
                        keeps.store(true, Ordering::Relaxed);
                        return Err(no_stream("it is not enabled"));
                    }
                    match self.append(topic, *number, letter).await {
                        Ok(ack) => {
                            acks.push((parcel, ack));
                            None
                        }
                        Err(error) => Some(error.to_string()),
                    }
                }
            };
            if let Some(error) = failed {
                return Err(Failure::new("publishing", error));
            }
        }
        self.flush().await?;
        self.confirm(acks).await
    }

    fn too_large(&mut self) -> u64 {
        std::mem::take(&mut self.too_large)
    }

    async fn finish(&mut self) -> Result<(), Failure> {
        self.flush().await
    }
}
