//! The engine against real sockets, without Python: a peer made of `std::net` and the wire crate on one side, the
//! queues on the other.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
use pyhv_engine::connection::Connection;
use pyhv_engine::down::Cork;
use pyhv_engine::endpoint::{Endpoint, Side};
use pyhv_engine::farewell::Farewell;
use pyhv_engine::inbox::{Batch, Event};
use pyhv_engine::request::HttpResponse;
use pyhv_engine::router::Router;
use pyhv_engine::server::{Listen, Place, Server, Target, around::Around};
use pyhv_engine::settings::Settings;
use pyhv_engine::wire::{self, Decoder, MessageKind, Opcode, Role};
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(10);

/// What the program's side saw, in words.
#[derive(Debug, PartialEq, Eq, Clone)]
enum Seen {
    Open(String),
    Message(u32, String),
    Close(u32, u16),
    Request(String),
    Log(String),
}

struct Program {
    server: Server,
    conns: HashMap<u32, Arc<Connection>>,
    requests: Vec<pyhv_engine::request::HttpRequest>,
    seen: Vec<Seen>,
    /// Largest arena that a tick took.
    largest: usize,
    echo: bool,
}

impl Program {
    fn start(settings: Settings) -> Self {
        let mut router = Router::default();
        router.add(Some("GET"), "/hello/:name", Target::Program(7)).unwrap();
        let endpoint = Endpoint::new(settings, None).unwrap();
        let place = Place::Port { host: "127.0.0.1".into(), port: 0, reuse_port: false };
        let server = Server::start(endpoint, router, Around::default(), Listen { place, tls: None }).unwrap();
        Self { server, conns: HashMap::new(), requests: Vec::new(), seen: Vec::new(), largest: 0, echo: false }
    }

    fn endpoint(&self) -> &Arc<Endpoint> {
        &self.server.endpoint
    }

    fn tick(&mut self) {
        let _cork = Cork::new();
        let mut batch = Batch::default();
        let epoch = self.server.endpoint.take(&mut batch);
        self.largest = self.largest.max(batch.arena.len());
        for event in std::mem::take(&mut batch.events) {
            match event {
                Event::Open(conn) => {
                    conn.delivered_open();
                    self.seen.push(Seen::Open(conn.handshake.url().to_owned()));
                    self.conns.insert(conn.channel(), conn);
                }
                Event::Message { channel, kind, start, len } => {
                    self.message(channel, kind, &batch.arena[start..start + len]);
                }
                Event::LargeMessage { channel, kind, data } => self.message(channel, kind, &data),
                Event::Close { channel } => {
                    let conn = self.conns.remove(&channel).unwrap();
                    conn.delivered_close();
                    self.server.endpoint.release(channel, Side::Program);
                    self.seen.push(Seen::Close(channel, conn.close_info().unwrap().code));
                }
                Event::Request(request) => {
                    self.seen.push(Seen::Request(request.url.clone()));
                    self.requests.push(*request);
                }
                Event::Log(text) => self.seen.push(Seen::Log(text)),
                other => panic!("unexpected {other:?}"),
            }
        }
        self.server.endpoint.inbox.set_done(epoch);
    }

    fn message(&mut self, channel: u32, kind: MessageKind, payload: &[u8]) {
        if self.echo {
            self.conns[&channel].send(None, kind, true, payload).unwrap();
        }
        self.seen.push(Seen::Message(channel, String::from_utf8_lossy(payload).into_owned()));
    }

    #[track_caller]
    fn tick_until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let end = Instant::now() + LIMIT;
        while !done(self) {
            assert!(Instant::now() < end, "waited for {what}; seen: {:?}", self.seen);
            let _ = self.server.endpoint.inbox.wait(Some(Instant::now() + Duration::from_millis(20))).unwrap();
            self.tick();
        }
    }

    #[track_caller]
    fn open(&mut self) -> (Peer, u32) {
        let before: Vec<u32> = self.conns.keys().copied().collect();
        let peer = Peer::connect(&self.server, b"");
        self.tick_until("open", |p| p.conns.len() > before.len());
        let channel = *self.conns.keys().find(|channel| !before.contains(channel)).unwrap();
        (peer, channel)
    }

    fn logged(&self, part: &str) -> bool {
        self.seen.iter().any(|s| matches!(s, Seen::Log(text) if text.contains(part)))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.server.endpoint.discard();
    }
}

/// A hand-made client.
struct Peer {
    socket: TcpStream,
    decoder: Decoder,
}

impl Peer {
    fn connect(server: &Server, behind: &[u8]) -> Self {
        let mut peer = Self::ask(server, behind);
        peer.answered().unwrap();
        peer
    }

    /// Asks for a WebSocket without waiting for the answer.
    fn ask(server: &Server, behind: &[u8]) -> Self {
        let mut socket = TcpStream::connect(server.addresses[0]).unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        let mut request = b"GET /chat?x=1 HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
            Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
            .to_vec();
        request.extend_from_slice(behind);
        socket.write_all(&request).unwrap();
        Self { socket, decoder: Decoder::new(Role::Client, usize::MAX) }
    }

    /// Reads the answer to the handshake.
    fn answered(&mut self) -> std::io::Result<()> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            self.socket.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap().to_lowercase();
        assert!(head.starts_with("http/1.1 101 "), "{head}");
        assert!(head.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="), "{head}");
        Ok(())
    }

    fn send(&mut self, frames: &[u8]) {
        self.socket.write_all(frames).unwrap();
    }

    /// Reads until `count` events or the end; events in words.
    #[track_caller]
    fn read(&mut self, count: usize) -> Vec<String> {
        let mut events = Vec::new();
        let mut buf = vec![0; 1 << 16];
        while events.len() < count {
            match self.socket.read(&mut buf) {
                Ok(0) => {
                    events.push("eof".to_owned());
                    break;
                }
                Ok(n) => self
                    .decoder
                    .decode(&mut buf[..n], &mut |event| {
                        events.push(match event {
                            wire::Event::Message { payload, .. } => String::from_utf8_lossy(&payload).into_owned(),
                            wire::Event::Ping(p) => format!("ping {}", String::from_utf8_lossy(p)),
                            wire::Event::Pong(p) => format!("pong {}", String::from_utf8_lossy(p)),
                            wire::Event::Close { code, .. } => format!("close {code:?}"),
                        });
                    })
                    .unwrap(),
                Err(error) => panic!("{error}, after {events:?}"),
            }
        }
        events
    }
}

fn frame(opcode: Opcode, fin: bool, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    wire::encode_frame(&mut out, opcode, fin, payload, Some([1, 2, 3, 4]));
    out
}

fn text(payload: &str) -> Vec<u8> {
    frame(Opcode::Text, true, payload.as_bytes())
}

fn close(code: u16) -> Vec<u8> {
    frame(Opcode::Close, true, &code.to_be_bytes())
}

fn short_close() -> Settings {
    Settings { close_timeout: Duration::from_millis(100), ..Settings::default() }
}

#[test]
fn frames_glued_to_the_handshake_arrive_behind_the_open() {
    let mut program = Program::start(Settings::default());
    let _peer = Peer::connect(&program.server, &[text("a"), text("b")].concat());
    program.tick_until("b", |p| p.seen.len() == 3);
    assert_eq!(
        program.seen,
        [Seen::Open("/chat?x=1".into()), Seen::Message(0, "a".into()), Seen::Message(0, "b".into())]
    );
}

#[test]
fn sends_broadcasts_and_close_keep_the_order_of_the_calls() {
    let mut program = Program::start(Settings::default());
    let (mut peer, channel) = program.open();
    let conn = Arc::clone(&program.conns[&channel]);
    {
        let _cork = Cork::new();
        conn.send(None, MessageKind::Text, true, b"1").unwrap();
        program.endpoint().broadcast(Opcode::Text, b"2", None, None);
        conn.send(None, MessageKind::Text, true, b"3").unwrap();
        program.endpoint().broadcast(Opcode::Text, b"not for this one", Some(channel), None);
        conn.send(None, MessageKind::Text, true, &vec![b'4'; 5000]).unwrap();
        program.endpoint().broadcast(Opcode::Text, b"5", None, None);
        assert!(conn.close(Some(1000), "bye"));
        assert!(conn.send(None, MessageKind::Text, true, b"6").is_err());
    }
    assert_eq!(peer.read(6), ["1", "2", "3", &"4".repeat(5000), "5", "close Some(1000)"]);
    peer.send(&close(1000));
    program.tick_until("close", |p| p.seen.contains(&Seen::Close(channel, 1000)));
    assert_eq!(peer.read(1), ["eof"]);
    assert_eq!(conn.buffered_amount(), 0);
}

#[test]
fn a_broadcast_waits_for_the_end_of_a_fragmented_message_and_a_ping_does_not() {
    let mut program = Program::start(Settings::default());
    let (mut peer, channel) = program.open();
    let conn = Arc::clone(&program.conns[&channel]);
    conn.send(None, MessageKind::Text, false, b"one ").unwrap();
    program.endpoint().broadcast(Opcode::Text, b"broadcast", None, None);
    conn.send(Some(Opcode::Ping), MessageKind::Binary, true, b"!").unwrap();
    conn.send(None, MessageKind::Text, true, b"message").unwrap();
    assert_eq!(peer.read(3), ["ping !", "one message", "broadcast"]);
}

#[test]
fn a_broadcast_reaches_no_channel_whose_open_was_not_delivered() {
    let mut program = Program::start(Settings::default());
    let (mut known, _) = program.open();
    let mut unknown = Peer::connect(&program.server, b"");
    let end = Instant::now() + LIMIT;
    while !program.endpoint().inbox.is_ready() {
        assert!(Instant::now() < end, "no second open");
    }
    program.endpoint().broadcast(Opcode::Text, b"early", None, None);
    assert_eq!(known.read(1), ["early"]);
    program.tick_until("second open", |p| p.conns.len() == 2);
    program.endpoint().broadcast(Opcode::Text, b"late", None, None);
    assert_eq!(unknown.read(1), ["late"]);
}

#[test]
fn a_flood_pauses_its_sender_and_loses_nothing() {
    const COUNT: usize = 20_000;
    let settings = Settings { max_channel_pending_bytes: 64 << 10, ..Settings::default() };
    let mut program = Program::start(settings);
    let (peer, channel) = program.open();
    let mut socket = peer.socket.try_clone().unwrap();
    let sender = std::thread::spawn(move || {
        for i in 0..COUNT {
            socket.write_all(&text(&format!("{i:0>100}"))).unwrap();
        }
    });
    program.tick_until("all messages", |p| p.seen.len() == COUNT + 1);
    sender.join().unwrap();
    for (i, seen) in program.seen[1..].iter().enumerate() {
        assert_eq!(*seen, Seen::Message(channel, format!("{i:0>100}")));
    }
    // The limit, and one read that was under way.
    assert!(program.largest <= 128 << 10, "{}", program.largest);
}

#[test]
fn clients_that_come_and_go_without_a_tick_wait_when_the_queue_is_full() {
    let mut program = Program::start(Settings { max_pending_bytes: 64 << 10, ..Settings::default() });
    let mut answered = 0;
    let waiting = loop {
        let mut peer = Peer::ask(&program.server, b"");
        peer.socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        match peer.answered() {
            Ok(()) => answered += 1,
            Err(_) => break peer,
        }
        assert!(answered <= 64, "every one of them counts a kilobyte");
    };
    let mut waiting = waiting;
    waiting.socket.set_read_timeout(Some(LIMIT)).unwrap();
    program.tick_until("the last", |p| p.seen.iter().filter(|s| matches!(s, Seen::Open(_))).count() == answered + 1);
    waiting.answered().unwrap();
}

#[test]
fn complaints_of_one_kind_are_logged_once() {
    let mut program = Program::start(short_close());
    for _ in 0..3 {
        let (mut peer, channel) = program.open();
        peer.send(&[0xff]);
        program.tick_until("close", |p| p.seen.contains(&Seen::Close(channel, 1002)));
        program.seen.retain(|s| matches!(s, Seen::Log(_)));
    }
    assert_eq!(program.seen.len(), 1, "{:?}", program.seen);
}

#[test]
fn pings_are_answered_without_a_tick() {
    let program = Program::start(Settings::default());
    let mut peer = Peer::connect(&program.server, b"");
    peer.send(&frame(Opcode::Ping, true, b"are you there"));
    assert_eq!(peer.read(1), ["pong are you there"]);
}

#[test]
fn what_is_sent_for_messages_before_a_close_leaves_before_the_answer() {
    let mut program = Program::start(Settings::default());
    program.echo = true;
    let (mut peer, channel) = program.open();
    peer.send(&[text("last words"), close(3000)].concat());
    program.tick_until("close", |p| p.seen.contains(&Seen::Close(channel, 3000)));
    assert_eq!(peer.read(3), ["last words", "close Some(3000)", "eof"]);
}

#[test]
fn a_violation_takes_its_place_and_is_answered_even_without_a_tick() {
    let mut program = Program::start(short_close());
    program.echo = true;
    let (mut peer, channel) = program.open();
    let mut bad = text("unmasked");
    bad[1] &= 0x7f;
    peer.send(&[text("good"), bad].concat());
    // Nobody ticks: after close_timeout the close frame leaves all the same.
    assert_eq!(peer.read(1), ["close Some(1002)"]);
    program.tick_until("close", |p| p.seen.contains(&Seen::Close(channel, 1002)));
    assert!(program.seen.contains(&Seen::Message(channel, "good".into())));
    assert!(program.logged("closed with 1002"));

    // With ticks, what the program sends for the message before it leaves first; one byte is enough to see that no
    // mask will follow.
    program.seen.clear();
    let (mut peer, channel) = program.open();
    peer.send(&[text("good"), vec![0x81, 0x05]].concat());
    program.tick_until("close", |p| p.seen.iter().any(|s| matches!(s, Seen::Close(c, _) if *c == channel)));
    assert_eq!(peer.read(2), ["good", "close Some(1002)"]);
}

#[test]
fn a_message_over_the_limit_is_1009_and_the_log_names_the_setting() {
    let mut program = Program::start(Settings { max_message_size: 10, ..short_close() });
    let (mut peer, channel) = program.open();
    peer.send(&text("eleven byte"));
    program.tick_until("close", |p| p.seen.contains(&Seen::Close(channel, 1009)));
    assert_eq!(peer.read(2), ["close Some(1009)", "eof"]);
    assert!(program.logged("max_message_size=10"), "{:?}", program.seen);
}

#[test]
fn a_peer_that_does_not_read_is_closed_with_1008_and_forgotten() {
    let mut program = Program::start(Settings { max_buffered: 1 << 20, ..short_close() });
    let (_slow, channel) = program.open();
    let (mut other, _) = program.open();
    let conn = Arc::clone(&program.conns[&channel]);
    let chunk = vec![b'x'; 100_000];
    let end = Instant::now() + LIMIT;
    while conn.send(None, MessageKind::Binary, true, &chunk).is_ok() {
        assert!(conn.buffered_amount() <= (1 << 20) + chunk.len() && Instant::now() < end);
    }
    program.tick_until("close", |p| p.seen.contains(&Seen::Close(channel, 1008)));
    assert!(program.logged("max_buffered=1048576"));
    other.send(&frame(Opcode::Ping, true, b"fine"));
    assert_eq!(other.read(1), ["pong fine"]);
    program.tick_until("memory back", |_| conn.buffered_amount() == 0);
}

#[test]
fn a_stop_closes_everybody_and_comes_to_rest() {
    let mut program = Program::start(Settings::default());
    let (mut peer, channel) = program.open();
    let mut spare = TcpStream::connect(program.server.addresses[0]).unwrap();
    program.endpoint().stop(Farewell { code: 1001, reason: String::new(), spread: Duration::ZERO });
    assert_eq!(peer.read(1), ["close Some(1001)"]);
    peer.send(&close(1001));
    program.tick_until("rest", |p| p.endpoint().is_idle() && p.seen.contains(&Seen::Close(channel, 1001)));
    assert_eq!(spare.read(&mut [0]).unwrap_or(0), 0);
    assert!(TcpStream::connect(program.server.addresses[0]).is_err());
}

#[test]
fn an_abort_drops_everybody_with_a_close_event() {
    let mut program = Program::start(Settings::default());
    let (_peer, channel) = program.open();
    program.endpoint().abort();
    program.tick_until("rest", |p| p.endpoint().is_idle() && p.seen.contains(&Seen::Close(channel, 1006)));
}

fn http(server: &Server, request: &str) -> std::thread::JoinHandle<String> {
    let mut socket = TcpStream::connect(server.addresses[0]).unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    socket.write_all(request.as_bytes()).unwrap();
    std::thread::spawn(move || {
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        answer
    })
}

#[test]
fn http_beside_websocket() {
    let mut program = Program::start(Settings::default());
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
    // Without a tick:
    let missing = http(&program.server, &get("/missing")).join().unwrap();
    assert!(missing.starts_with("HTTP/1.1 404 "), "{missing}");
    let other = http(&program.server, &get("/hello/you").replace("GET", "PUT")).join().unwrap();
    assert!(other.starts_with("HTTP/1.1 405 ") && other.contains("allow: GET, HEAD, OPTIONS"), "{other}");
    // With one:
    let answered = http(&program.server, &get("/hello/a%2Fb?q"));
    program.tick_until("request", |p| p.requests.len() == 1);
    let request = program.requests.pop().unwrap();
    assert_eq!((request.route, &*request.params[0].1, &*request.url), (7, "a/b", "/hello/a%2Fb?q"));
    let response =
        HttpResponse { status: http::StatusCode::CREATED, headers: http::HeaderMap::new(), body: "done".into() };
    assert!(request.responder.respond(response));
    let answered = answered.join().unwrap();
    assert!(answered.starts_with("HTTP/1.1 201 ") && answered.ends_with("\r\n\r\ndone"), "{answered}");
    // Dropped without an answer:
    let dropped = http(&program.server, &get("/hello/x"));
    program.tick_until("request", |p| p.requests.len() == 1);
    program.requests.clear();
    assert!(dropped.join().unwrap().starts_with("HTTP/1.1 500 "));
}
