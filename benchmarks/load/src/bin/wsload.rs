//! wsload: WebSocket load from one thread, the same for every server that is compared.
//!
//! It must never be the bottleneck: every message of a run is the same pre-encoded bytes, a write repeats them
//! straight from one shared block, a read takes whatever is there, and payloads that come back are skipped.
//! Closed-loop, in the phases of [`pyhv_load::pacing`]; prints one line of JSON. A server that closes, sends anything
//! but the message that it was sent, or delivers a message twice ends the run with an error.

use std::error::Error;
use std::io::{ErrorKind, Read, Write};
use std::net::ToSocketAddrs;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use pyhv_load::args::{Flags, Tool};
use pyhv_load::frame::{FrameCounter, PONG, TEXT, client_frame};
use pyhv_load::histogram::Histogram;
use pyhv_load::pacing::{Outgoing, PATIENCE, Phase, READ_BUFFER, Sender, figures};
use pyhv_load::{Mode, handshake, raise_open_files};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const USAGE: &str = "\
wsload: WebSocket load generator; prints one line of JSON
  --port N          port of the server (required)
  --host NAME       its address (127.0.0.1)
  --path PATH       path of its WebSocket (/chat)
  --mode MODE       echo: every connection sends and gets its own messages back (default);
                    fan: the first connection publishes, every connection counts what it gets;
                    listen: nobody sends, every connection counts what it gets
  --connections N   how many (100)
  --depth N         messages that each sender keeps in flight (1)
  --size BYTES      length of the text in each message (64)
  --seconds S       time measured, after a warm-up of a fifth of it (3)";
const FLAGS: [&str; 8] = ["host", "port", "path", "mode", "connections", "depth", "size", "seconds"];

struct Options {
    host: String,
    port: u16,
    path: String,
    mode: Mode,
    connections: usize,
    depth: usize,
    size: usize,
    seconds: f64,
}

impl Options {
    fn from(flags: &Flags) -> std::result::Result<Self, String> {
        let options = Self {
            host: flags.get("host", "127.0.0.1".to_owned())?,
            port: flags.required("port")?,
            path: flags.get("path", "/chat".to_owned())?,
            mode: flags.get("mode", Mode::Echo)?,
            connections: flags.get("connections", 100)?,
            depth: flags.get("depth", 1)?,
            size: flags.get("size", 64)?,
            seconds: flags.get("seconds", 3.0)?,
        };
        let positive = options.connections > 0 && options.depth > 0;
        if !positive || !options.seconds.is_finite() || options.seconds <= 0.0 {
            return Err("--connections, --depth and --seconds must be positive".to_owned());
        }
        Ok(options)
    }
}

struct Connection {
    stream: TcpStream,
    counter: FrameCounter,
    /// Idle on connections that only receive.
    sender: Sender,
    /// An answer to a ping, kept until no message is half written.
    pong: Option<Vec<u8>>,
    received: u64,
    received_measured: u64,
}

impl Connection {
    /// Opens one connection, waiting for its handshake.
    fn open(options: &Options) -> Result<Self> {
        let address = (options.host.as_str(), options.port).to_socket_addrs()?.next();
        let address = address.ok_or("the host has no address")?;
        let mut stream = std::net::TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(handshake::request(&options.host, options.port, &options.path).as_bytes())?;
        let (mut head, mut chunk) = (Vec::new(), [0; 4096]);
        let end = loop {
            let read = stream.read(&mut chunk)?;
            head.extend_from_slice(&chunk[..read]);
            if let Some(end) = handshake::head_length(&head) {
                break end;
            }
            if read == 0 || head.len() > handshake::MAX_HEAD {
                return Err("handshake cut short".into());
            }
        };
        let text = String::from_utf8_lossy(&head[..end]);
        if !text.starts_with("HTTP/1.1 101 ")
            || handshake::field(&text, "sec-websocket-accept") != Some(handshake::ACCEPT)
        {
            return Err(format!("handshake refused: {:?}", text.lines().next().unwrap_or_default()).into());
        }
        // A server may greet in the same segment; what it says must be a frame like any other.
        let mut counter = FrameCounter::new(options.size);
        counter.feed(&head[end..])?;
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream: TcpStream::from_std(stream),
            counter,
            sender: Sender::default(),
            pong: None,
            received: 0,
            received_measured: 0,
        })
    }

    /// Writes what is owed, then a pong; the poll reports when a full socket has room again.
    fn flush(&mut self, outgoing: &Outgoing) -> Result<()> {
        if !self.sender.flush(&mut self.stream, outgoing)? {
            return Ok(());
        }
        if let Some(pong) = self.pong.take() {
            match self.stream.write(&pong) {
                Ok(written) if written == pong.len() => {}
                Ok(_) => return Err("a pong was cut short".into()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.pong = Some(pong),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

struct Run {
    mode: Mode,
    outgoing: Outgoing,
    connections: Vec<Connection>,
    /// Shared by all connections: no payload outlives the read that brought it.
    buffer: Vec<u8>,
    phase: Phase,
    /// Connections that have received nothing yet.
    waiting: usize,
    /// Messages sent by the one publisher of a fan-out.
    published: u64,
    latencies: Histogram,
}

impl Run {
    /// Reads everything that one connection has, and answers it.
    ///
    /// Edge-triggered: a full buffer may have left something behind, and a peer that hung up sends no second edge.
    fn on_readable(&mut self, index: usize, hung_up: bool) -> Result<()> {
        loop {
            let connection = &mut self.connections[index];
            let read = match connection.stream.read(&mut self.buffer) {
                Ok(0) => return Err("closed by the server without a close frame".into()),
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            };
            let messages = connection.counter.feed(&self.buffer[..read])?;
            if let Some(payload) = connection.counter.ping.take() {
                connection.pong = Some(client_frame(PONG, &payload));
            }
            if messages > 0 {
                self.on_messages(index, messages)?;
            }
            if read < self.buffer.len() && !hung_up {
                break;
            }
        }
        self.connections[index].flush(&self.outgoing)
    }

    fn on_messages(&mut self, index: usize, messages: u32) -> Result<()> {
        let connection = &mut self.connections[index];
        self.waiting -= usize::from(connection.received == 0);
        connection.received += u64::from(messages);
        let expected = match self.mode {
            Mode::Echo => connection.sender.sent,
            Mode::Fan => self.published,
            Mode::Listen => u64::MAX,
        };
        if connection.received > expected {
            return Err(format!("{} messages received of {expected} sent", connection.received).into());
        }
        let measuring = self.phase.is_measuring();
        if measuring {
            connection.received_measured += u64::from(messages);
        }
        if self.mode == Mode::Echo || (self.mode == Mode::Fan && index == 0) {
            // One clock reading a batch: the messages of one read arrived together.
            let now = Instant::now();
            connection.sender.answered(messages, now, |latency| {
                if measuring {
                    self.latencies.record(latency, 1);
                }
            });
            connection.sender.queue(messages, now, &self.outgoing);
            self.published += u64::from(messages);
        }
        Ok(())
    }
}

fn run(options: &Options) -> Result<String> {
    raise_open_files()?;
    let mut poll = Poll::new()?;
    let opening = Instant::now();
    let mut connections = Vec::with_capacity(options.connections);
    for index in 0..options.connections {
        let opened = Connection::open(options).map_err(|error| format!("connection {index}: {error}"))?;
        connections.push(opened);
    }
    let connect_seconds = opening.elapsed().as_secs_f64();
    let mut run = Run {
        mode: options.mode,
        outgoing: Outgoing::new(&client_frame(TEXT, &vec![b'x'; options.size]), options.depth),
        connections,
        buffer: vec![0; READ_BUFFER],
        phase: Phase::begin(),
        waiting: options.connections,
        published: 0,
        latencies: Histogram::default(),
    };
    for (index, connection) in run.connections.iter_mut().enumerate() {
        let interest = Interest::READABLE | Interest::WRITABLE;
        poll.registry().register(&mut connection.stream, Token(index), interest)?;
    }
    let depth = u32::try_from(options.depth)?;
    let senders = match options.mode {
        Mode::Echo => options.connections,
        Mode::Fan => 1,
        Mode::Listen => 0,
    };
    for connection in &mut run.connections[..senders] {
        connection.sender.queue(depth, Instant::now(), &run.outgoing);
        run.published += u64::from(depth);
        connection.flush(&run.outgoing)?;
    }
    let mut events = Events::with_capacity(1024);
    while !run.phase.advance(run.waiting, options.seconds)? {
        match poll.poll(&mut events, Some(Duration::from_millis(50))) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            other => other?,
        }
        for event in &events {
            let index = event.token().0;
            let done = if event.is_readable() || event.is_error() {
                run.on_readable(index, event.is_read_closed() || event.is_error())
            } else {
                run.connections[index].flush(&run.outgoing)
            };
            done.map_err(|error| format!("connection {index}: {error}"))?;
        }
    }
    let counts = run.connections.iter().map(|connection| connection.received_measured);
    let total = run.connections.iter().map(|connection| connection.received).sum();
    let figures = figures(run.phase, counts, total, &run.latencies, connect_seconds)?;
    let Options { mode, connections, depth, size, .. } = options;
    let mode = mode.name();
    Ok(format!("{{\"mode\":\"{mode}\",\"connections\":{connections},\"depth\":{depth},\"size\":{size},{figures}}}"))
}

fn main() -> ExitCode {
    Tool { name: "wsload", usage: USAGE, flags: &FLAGS }.main(Options::from, run)
}
