//! httpload: HTTP/1.1 load from one thread over keep-alive connections, the same for every server that is compared.
//!
//! Every request of a run is the same bytes, a write repeats them straight from one shared block, and bodies that come
//! back are counted and skipped. Closed-loop, in the phases of [`pyhv_load::pacing`]; prints one line of JSON. A server
//! that closes a connection, answers with another status than 200, or with a body of another length than the first, ends
//! the run with an error. A POST must come back byte by byte.

use std::error::Error;
use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, ToSocketAddrs};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use pyhv_load::args::{Flags, Tool};
use pyhv_load::histogram::Histogram;
use pyhv_load::http::{AnswerCounter, Expected, request};
use pyhv_load::pacing::{Outgoing, PATIENCE, Phase, READ_BUFFER, Sender, figures};
use pyhv_load::raise_open_files;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const USAGE: &str = "\
httpload: HTTP/1.1 load generator; prints one line of JSON
  --port N          port of the server (required)
  --host NAME       its address (127.0.0.1)
  --path PATH       what is asked for (/ping)
  --post BYTES      POST so many bytes and expect them back; 0: GET (0)
  --length BYTES    length that every answer must have (that of the first)
  --connections N   how many (64)
  --depth N         requests that each keeps in flight (1)
  --seconds S       time measured, after a warm-up of a fifth of it (3)";
const FLAGS: [&str; 8] = ["host", "port", "path", "post", "length", "connections", "depth", "seconds"];

/// What the body of a POST is made of.
const FILL: u8 = b'x';

struct Options {
    host: String,
    port: u16,
    path: String,
    post: usize,
    expected: Expected,
    connections: usize,
    depth: usize,
    seconds: f64,
}

impl Options {
    fn from(flags: &Flags) -> std::result::Result<Self, String> {
        let post = flags.get("post", 0)?;
        // No body is this long: it stands for "not given".
        let length = flags.get("length", usize::MAX)?;
        let options = Self {
            host: flags.get("host", "127.0.0.1".to_owned())?,
            port: flags.required("port")?,
            path: flags.get("path", "/ping".to_owned())?,
            post,
            expected: match (post, length) {
                (0, usize::MAX) => Expected::SameLength(None),
                (0, length) => Expected::Length(length),
                (post, usize::MAX) => Expected::Filled(FILL, post),
                _ => return Err("--length goes with a GET: a POST gets back what it sent".to_owned()),
            },
            connections: flags.get("connections", 64)?,
            depth: flags.get("depth", 1)?,
            seconds: flags.get("seconds", 3.0)?,
        };
        let positive = options.connections > 0 && options.depth > 0;
        if !positive || !options.seconds.is_finite() || options.seconds <= 0.0 {
            return Err("--connections, --depth and --seconds must be positive".to_owned());
        }
        Ok(options)
    }

    fn address(&self) -> Result<SocketAddr> {
        let address = (self.host.as_str(), self.port).to_socket_addrs()?.next();
        Ok(address.ok_or("the host has no address")?)
    }
}

struct Connection {
    stream: TcpStream,
    counter: AnswerCounter,
    sender: Sender,
    received: u64,
    received_measured: u64,
}

impl Connection {
    fn open(address: &SocketAddr, expected: Expected) -> Result<Self> {
        let stream = std::net::TcpStream::connect_timeout(address, PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream: TcpStream::from_std(stream),
            counter: AnswerCounter::new(expected),
            sender: Sender::default(),
            received: 0,
            received_measured: 0,
        })
    }
}

struct Run {
    outgoing: Outgoing,
    connections: Vec<Connection>,
    /// Shared by all connections: no body outlives the read that brought it.
    buffer: Vec<u8>,
    phase: Phase,
    /// Connections that have received nothing yet.
    waiting: usize,
    latencies: Histogram,
}

impl Run {
    /// Reads everything that one connection has, and asks again for each answer.
    ///
    /// Edge-triggered: a full buffer may have left something behind, and a peer that hung up sends no second edge.
    fn on_readable(&mut self, index: usize, hung_up: bool) -> Result<()> {
        let Self { outgoing, buffer, latencies, waiting, .. } = self;
        let measuring = self.phase.is_measuring();
        let connection = &mut self.connections[index];
        loop {
            let read = match connection.stream.read(buffer) {
                Ok(0) => return Err("closed by the server".into()),
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            };
            let answers = connection.counter.feed(&buffer[..read])?;
            if answers > 0 {
                *waiting -= usize::from(connection.received == 0);
                connection.received += u64::from(answers);
                if connection.received > connection.sender.sent {
                    return Err("more answers than requests".into());
                }
                connection.received_measured += if measuring { u64::from(answers) } else { 0 };
                let now = Instant::now();
                connection.sender.answered(answers, now, |latency| {
                    if measuring {
                        latencies.record(latency, 1);
                    }
                });
                connection.sender.queue(answers, now, outgoing);
            }
            if read < buffer.len() && !hung_up {
                break;
            }
        }
        connection.sender.flush(&mut connection.stream, outgoing)?;
        Ok(())
    }
}

fn run(options: &Options) -> Result<String> {
    raise_open_files()?;
    let mut poll = Poll::new()?;
    let opening = Instant::now();
    let address = options.address()?;
    let mut connections = Vec::with_capacity(options.connections);
    for index in 0..options.connections {
        let opened = Connection::open(&address, options.expected.clone());
        connections.push(opened.map_err(|error| format!("connection {index}: {error}"))?);
    }
    let connect_seconds = opening.elapsed().as_secs_f64();
    let message = request(&options.host, options.port, &options.path, &vec![FILL; options.post]);
    let mut run = Run {
        outgoing: Outgoing::new(&message, options.depth),
        connections,
        buffer: vec![0; READ_BUFFER],
        phase: Phase::begin(),
        waiting: options.connections,
        latencies: Histogram::default(),
    };
    let depth = u32::try_from(options.depth)?;
    for (index, connection) in run.connections.iter_mut().enumerate() {
        let interest = Interest::READABLE | Interest::WRITABLE;
        poll.registry().register(&mut connection.stream, Token(index), interest)?;
        connection.sender.queue(depth, Instant::now(), &run.outgoing);
        connection.sender.flush(&mut connection.stream, &run.outgoing)?;
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
                let Connection { stream, sender, .. } = &mut run.connections[index];
                sender.flush(stream, &run.outgoing).map(|_| ()).map_err(Into::into)
            };
            done.map_err(|error| format!("connection {index}: {error}"))?;
        }
    }
    let counts = run.connections.iter().map(|connection| connection.received_measured);
    let total = run.connections.iter().map(|connection| connection.received).sum();
    let figures = figures(run.phase, counts, total, &run.latencies, connect_seconds)?;
    let Options { connections, depth, .. } = options;
    Ok(format!("{{\"connections\":{connections},\"depth\":{depth},{figures}}}"))
}

fn main() -> ExitCode {
    Tool { name: "httpload", usage: USAGE, flags: &FLAGS }.main(Options::from, run)
}
