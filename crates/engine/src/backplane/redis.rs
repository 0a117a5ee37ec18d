//! Redis: pub/sub for topics without history, one stream for those with.
//!
//! | name | holds |
//! |---|---|
//! | `PREFIX:t:TOPIC` | channel of a topic |
//! | `PREFIX:control` | channel of the nodes |
//! | `PREFIX:head` | hash: `epoch`, `seq` of the newest message, `run` of the server process that they are of |
//! | `PREFIX:stream` | the messages: id `SEQ-0`, fields `e` (epoch) and `m` (letter) |
//! | `PREFIX:sent:NODE` | the number of the newest message of a node, for a day: what is sent again is not added again |
//!
//! A server process that was started again may have lost its last messages and would give their numbers to others. So each has
//! an epoch of its own, and because a new epoch counts from the clock, in microseconds, numbers grow from one to the next: a reader
//! goes on behind its last id whatever has happened, even if all data are gone.
//!
//! Three connections for a link: commands, subscriptions, and the one that waits for the stream. The crate could reconnect by
//! itself; that is not used, because what is to be told to a new link is known one level up.

use super::config::Config;
use super::engine::{Arrival, Engine, Failure, Inlet, Opened, Outlet, Parcel};
use crate::topics::Position;
use bytes::Bytes;
use futures_util::StreamExt;
use redis::aio::{ConnectionLike, MultiplexedConnection, PubSub, PubSubSink, PubSubStream};
use redis::{AsyncConnectionConfig, Cmd, RedisConnectionInfo, RedisError};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

/// Finds or makes the head. KEYS: head, stream. ARGV: an epoch, should a new one be needed.
const OPEN: &str = r"
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%w+)')
local head = redis.call('HMGET', KEYS[1], 'epoch', 'seq', 'run')
if head[1] and head[2] and head[3] == run then
    return {head[1], head[2]}
end
local time = redis.call('TIME')
local seq = tonumber(time[1]) * 1000000 + tonumber(time[2])
if head[2] then seq = math.max(seq, tonumber(head[2])) end
local last = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)
if last[1] then seq = math.max(seq, tonumber(string.match(last[1][1], '^%d+'))) end
local text = string.format('%.0f', seq)
redis.call('HSET', KEYS[1], 'epoch', ARGV[1], 'seq', text, 'run', run)
return {ARGV[1], text}
";

/// Adds a message, unless it is there. KEYS: head, stream, sent. ARGV: number, most messages, letter.
const APPEND: &str = r"
local epoch = redis.call('HGET', KEYS[1], 'epoch')
if not epoch then return redis.error_reply('HEAD the head of the stream is gone') end
local sent = redis.call('GET', KEYS[3])
if sent and tonumber(sent) >= tonumber(ARGV[1]) then return 0 end
local seq = string.format('%.0f', redis.call('HINCRBY', KEYS[1], 'seq', 1))
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[2], seq .. '-0', 'e', epoch, 'm', ARGV[3])
redis.call('SET', KEYS[3], ARGV[1], 'EX', 86400)
return 1
";

/// Filters that one command names.
const FILTERS_AT_ONCE: usize = 500;
/// Messages that are read at once, and may wait in between.
const READ_AT_ONCE: usize = 64;

/// TCP, or TLS over it.
trait Socket: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Socket for T {}

/// A task of a link, which ends with it.
#[derive(Debug)]
struct Helper(JoinHandle<()>);

impl Drop for Helper {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl From<RedisError> for Failure {
    fn from(error: RedisError) -> Self {
        Self::new("Redis", error)
    }
}

/// How to reach Redis.
#[derive(Debug)]
pub(crate) struct Redis {
    config: Arc<Config>,
    node: u64,
}

/// The sending half.
pub(crate) struct RedisOutlet {
    commands: MultiplexedConnection,
    _driver: Helper,
    subscriptions: PubSubSink,
    prefix: String,
    /// Of [`APPEND`].
    script: String,
    sent: String,
    history: usize,
}

impl fmt::Debug for RedisOutlet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisOutlet").finish_non_exhaustive()
    }
}

/// The receiving half.
pub(crate) struct RedisInlet {
    messages: PubSubStream,
    control: String,
    history: mpsc::Receiver<Result<Arrival, Failure>>,
    _reader: Helper,
}

impl fmt::Debug for RedisInlet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisInlet").finish_non_exhaustive()
    }
}

impl Redis {
    pub(crate) fn new(config: Arc<Config>, node: u64) -> Self {
        Self { config, node }
    }

    async fn socket(&self) -> Result<Box<dyn Socket>, Failure> {
        let Some((host, port)) = self.config.address.hosts.first() else {
            return Err(Failure("there is no host".to_owned()));
        };
        let tcp = TcpStream::connect((host.as_str(), *port)).await.map_err(|e| Failure::new("connecting", e))?;
        tcp.set_nodelay(true).map_err(|e| Failure::new("connecting", e))?;
        let Some(tls) = self.config.tls.as_ref().filter(|_| self.config.address.tls) else { return Ok(Box::new(tcp)) };
        let name = ServerName::try_from(host.clone()).map_err(|e| Failure::new("TLS", e))?;
        let tls = TlsConnector::from(Arc::clone(tls)).connect(name, tcp).await.map_err(|e| Failure::new("TLS", e))?;
        Ok(Box::new(tls))
    }

    fn identity(&self) -> RedisConnectionInfo {
        let address = &self.config.address;
        // An engine that does not know CLIENT SETINFO is none the worse.
        let mut info = RedisConnectionInfo::default().set_db(address.database).set_skip_set_lib_name();
        if let Some(user) = &address.user {
            info = info.set_username(user);
        }
        if let Some(password) = &address.password {
            info = info.set_password(password);
        }
        info
    }

    async fn commands(&self) -> Result<(MultiplexedConnection, Helper), Failure> {
        // The common part has the time limits.
        let config = AsyncConnectionConfig::new().set_response_timeout(None);
        let socket = self.socket().await?;
        let (commands, driver) = MultiplexedConnection::new_with_config(&self.identity(), socket, config).await?;
        Ok((commands, Helper(tokio::spawn(driver))))
    }
}

impl Engine for Redis {
    type Outlet = RedisOutlet;
    type Inlet = RedisInlet;

    async fn connect(&self, behind: Option<Position>) -> Result<Opened<RedisOutlet, RedisInlet>, Failure> {
        let prefix = self.config.prefix.clone();
        let (head_key, stream_key) = (format!("{prefix}:head"), format!("{prefix}:stream"));
        let (mut commands, driver) = self.commands().await?;
        let epoch = format!("{:016x}", rand::random::<u64>());
        let mut open = redis::cmd("EVAL");
        open.arg(OPEN).arg(2).arg(&head_key).arg(&stream_key).arg(epoch);
        let (epoch, seq): (String, String) = open.query_async(&mut commands).await?;
        let bad = || Failure(format!("Redis: {head_key} holds something else"));
        let epoch = u64::from_str_radix(&epoch, 16).map_err(|_| bad())?;
        let head = Position { epoch, seq: seq.parse().map_err(|_| bad())? };
        let mut load = redis::cmd("SCRIPT");
        let script: String = load.arg("LOAD").arg(APPEND).query_async(&mut commands).await?;
        let (mut subscriptions, messages) = PubSub::new(&self.identity(), self.socket().await?).await?.split();
        let control = format!("{prefix}:control");
        subscriptions.subscribe(&control).await?;
        let (reading, reading_driver) = self.commands().await?;
        let (sender, history) = mpsc::channel(READ_AT_ONCE);
        let reader =
            Reader { commands: reading, stream: stream_key, behind, head, wait: self.config.timeout / 4, sender };
        let timeout = self.config.timeout;
        let reader = Helper(tokio::spawn(async move {
            let _driver = reading_driver;
            reader.run(timeout).await;
        }));
        let sent = format!("{prefix}:sent:{:016x}", self.node);
        let history_size = self.config.history;
        let outlet =
            RedisOutlet { commands, _driver: driver, subscriptions, prefix, script, sent, history: history_size };
        let inlet = RedisInlet { messages, control, history, _reader: reader };
        Ok(Opened { outlet, inlet, head })
    }
}

/// Reads the stream.
struct Reader {
    commands: MultiplexedConnection,
    stream: String,
    behind: Option<Position>,
    head: Position,
    /// How long the server may wait for a message.
    wait: Duration,
    sender: mpsc::Sender<Result<Arrival, Failure>>,
}

/// Id and fields of a message of the stream.
type Entry = (String, Vec<Bytes>);

impl Reader {
    /// Until the link ends: by itself, or because nobody receives any more.
    async fn run(mut self, timeout: Duration) {
        if let Err(failure) = self.read(timeout).await {
            let _ = self.sender.send(Err(failure)).await;
        }
    }

    async fn read(&mut self, timeout: Duration) -> Result<(), Failure> {
        let mut last = self.behind.map_or(0, |behind| behind.seq);
        let mut epoch = self.behind.map(|behind| behind.epoch);
        let mut level = false;
        loop {
            let mut command = redis::cmd("XREAD");
            command.arg("COUNT").arg(READ_AT_ONCE);
            if level {
                command.arg("BLOCK").arg(self.wait.as_millis().max(1).to_string());
            }
            command.arg("STREAMS").arg(&self.stream).arg(format!("{last}-0"));
            let answer = command.query_async::<Option<Vec<(String, Vec<Entry>)>>>(&mut self.commands);
            // Longer than the server waits.
            let answer = tokio::time::timeout(self.wait + timeout, answer).await;
            let answer = answer.map_err(|_| Failure("reading the history: no answer".to_owned()))??;
            let entries = answer.into_iter().flatten().flat_map(|(_, entries)| entries);
            let mut some = false;
            for (id, fields) in entries {
                some = true;
                let bad = || Failure(format!("Redis: {} holds something else", self.stream));
                let seq: u64 = id.strip_suffix("-0").and_then(|seq| seq.parse().ok()).ok_or_else(bad)?;
                let [_, epoch_text, _, letter] = &fields[..] else { return Err(bad()) };
                let text = std::str::from_utf8(epoch_text).map_err(|_| bad())?;
                let its = u64::from_str_radix(text, 16).map_err(|_| bad())?;
                if !level && seq > self.head.seq {
                    level = true;
                    self.say(Arrival::Level).await?;
                }
                // Within an epoch numbers follow each other; into another one the common part looks by itself.
                if epoch == Some(its) && seq != last + 1 {
                    self.say(Arrival::Gap).await?;
                }
                (epoch, last) = (Some(its), seq);
                let position = Position { epoch: its, seq };
                self.say(Arrival::Kept { position, letter: letter.clone() }).await?;
            }
            if !level && (!some || last >= self.head.seq) {
                if epoch == Some(self.head.epoch) && last < self.head.seq {
                    // What there was is not kept any more.
                    self.say(Arrival::Gap).await?;
                }
                level = true;
                (epoch, last) = (Some(self.head.epoch), last.max(self.head.seq));
                self.say(Arrival::Level).await?;
            }
        }
    }

    async fn say(&self, arrival: Arrival) -> Result<(), Failure> {
        self.sender.send(Ok(arrival)).await.map_err(|_| Failure("the link has ended".to_owned()))
    }
}

/// What Redis' patterns take as they are not to be taken.
fn escaped(topic: &str) -> String {
    let mut pattern = String::with_capacity(topic.len());
    for c in topic.chars() {
        if matches!(c, '*' | '?' | '[' | ']' | '\\') {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern
}

/// The channel, or the pattern for channels, that a filter needs; a pattern may mean more.
fn channel(prefix: &str, filter: &str) -> (String, bool) {
    if !filter.contains(['+', '#']) {
        return (format!("{prefix}:t:{filter}"), false);
    }
    // "a/#" means "a" too, and a slash is nothing special to Redis. Two stars: "#" must not share the pattern of "+", which may be
    // given up before it.
    let levels: Vec<_> =
        filter.split('/').map(|level| if level == "+" { "*".to_owned() } else { escaped(level) }).collect();
    let pattern = levels.join("/");
    let pattern = match pattern.strip_suffix('#') {
        Some(start) => format!("{}**", start.strip_suffix('/').unwrap_or(start)),
        None => pattern,
    };
    (format!("{}:t:{pattern}", escaped(prefix)), true)
}

impl Outlet for RedisOutlet {
    async fn interest(&mut self, changes: &[(Arc<str>, bool)]) -> Result<(), Failure> {
        for changes in changes.chunks(FILTERS_AT_ONCE) {
            let mut lists: [Vec<String>; 4] = Default::default();
            for (filter, wanted) in changes {
                let (name, pattern) = channel(&self.prefix, filter);
                lists[usize::from(pattern) * 2 + usize::from(*wanted)].push(name);
            }
            let [leave, come, leave_patterns, come_patterns] = lists;
            // Without names they would mean all.
            if !leave.is_empty() {
                self.subscriptions.unsubscribe(leave).await?;
            }
            if !come.is_empty() {
                self.subscriptions.subscribe(come).await?;
            }
            if !leave_patterns.is_empty() {
                self.subscriptions.punsubscribe(leave_patterns).await?;
            }
            if !come_patterns.is_empty() {
                self.subscriptions.psubscribe(come_patterns).await?;
            }
        }
        Ok(())
    }

    async fn send(&mut self, parcels: &[Parcel]) -> Result<(), Failure> {
        let mut pipe = redis::pipe();
        for parcel in parcels {
            let mut command;
            match parcel {
                Parcel::Cast { topic, letter } => {
                    command = redis::cmd("PUBLISH");
                    command.arg(format!("{}:t:{topic}", self.prefix)).arg(&letter[..]);
                }
                Parcel::Control(text) => {
                    command = redis::cmd("PUBLISH");
                    command.arg(format!("{}:control", self.prefix)).arg(&text[..]);
                }
                Parcel::Append { number, letter, .. } => {
                    command = redis::cmd("EVALSHA");
                    let (head, stream) = (format!("{}:head", self.prefix), format!("{}:stream", self.prefix));
                    command.arg(&self.script).arg(3).arg(head).arg(stream).arg(&self.sent);
                    command.arg(*number).arg(self.history).arg(&letter[..]);
                }
            }
            pipe.add_command(command).ignore();
        }
        pipe.query_async::<()>(&mut self.commands).await?;
        Ok(())
    }

    async fn finish(&mut self) -> Result<(), Failure> {
        // The number of this run means nothing to anybody any more.
        let command: Cmd = Cmd::del(&self.sent);
        self.commands.req_packed_command(&command).await?;
        Ok(())
    }
}

impl Inlet for RedisInlet {
    async fn next(&mut self) -> Result<Arrival, Failure> {
        tokio::select! {
            message = self.messages.next() => match message {
                Some(message) if message.get_channel_name() == self.control => {
                    Ok(Arrival::Control(message.get_payload()?))
                }
                Some(message) => Ok(Arrival::Cast(message.get_payload()?)),
                None => Err(Failure("Redis has closed the connection for subscriptions".to_owned())),
            },
            arrival = self.history.recv() => {
                arrival.unwrap_or_else(|| Err(Failure("reading the history has ended".to_owned())))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_patterns_that_mean_no_less() {
        for (filter, name, pattern) in [
            ("a/b*", "p:t:a/b*", false),
            ("a/+/b", "p:t:a/*/b", true),
            ("a/#", "p:t:a**", true),
            ("#", "p:t:**", true),
            ("+", "p:t:*", true),
            ("+/#", "p:t:***", true),
            ("x[1]/+", "p:t:x\\[1\\]/*", true),
        ] {
            assert_eq!(channel("p", filter), (name.to_owned(), pattern), "{filter}");
        }
    }
}
