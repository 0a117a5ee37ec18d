//! The adapter with a real nats-server. Where none is installed there is nothing to see; `.ci/run` installs it.

use super::super::config::{Address, Config};
use super::super::engine::{Arrival, Engine, Failure, Inlet, Opened, Outlet, Parcel};
use super::super::letter::Letter;
use super::{Nats, NatsInlet, NatsOutlet, PublishError, PublishErrorKind, is_open};
use crate::topics::Position;
use crate::wire::Opcode;
use bytes::Bytes;
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::timeout;

type Link = Opened<NatsOutlet, NatsInlet>;
const LIMIT: Duration = Duration::from_secs(20);

struct Server {
    folder: tempfile::TempDir,
    port: u16,
    more: &'static [&'static str],
    process: Child,
}

impl Server {
    fn start(more: &'static [&'static str]) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let process = Self::run(folder.path(), port, more)?;
        Some(Self { folder, port, more, process })
    }

    fn run(folder: &std::path::Path, port: u16, more: &[&str]) -> Option<Child> {
        let path = format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default());
        let mut command = Command::new("nats-server");
        command.env("PATH", path).args(["-a", "127.0.0.1", "-p", &port.to_string(), "-sd"]).arg(folder).args(more);
        let process = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().ok()?;
        let began = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(began.elapsed() < LIMIT, "nats-server does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
        Some(process)
    }

    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    fn again(&mut self) {
        self.kill();
        self.process = Self::run(self.folder.path(), self.port, self.more).unwrap();
    }

    fn node(&self, node: u64, change: impl FnOnce(&mut Config)) -> Nats {
        let mut config = Config::new(Address::parse(&format!("nats://127.0.0.1:{}", self.port)).unwrap());
        config.timeout = Duration::from_secs(5);
        change(&mut config);
        Nats::new(Arc::new(config), node)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { timeout(LIMIT, test).await.unwrap() });
}

fn letter(node: u64, number: u64, topic: &str) -> Bytes {
    Letter::write(node, number, Opcode::Text, None, topic, b"x")
}

fn cast(node: u64, number: u64, topic: &str) -> Parcel {
    Parcel::Cast { topic: topic.into(), letter: letter(node, number, topic) }
}

fn append(node: u64, number: u64, topic: &str) -> Parcel {
    Parcel::Append { topic: topic.into(), number, letter: letter(node, number, topic) }
}

async fn want(link: &mut Link, filters: &[&str], begins: bool) {
    let changes: Vec<(Arc<str>, bool)> = filters.iter().map(|&filter| (filter.into(), begins)).collect();
    link.outlet.interest(&changes).await.unwrap();
}

/// Up to a control message.
async fn up_to(link: &mut Link, end: &Bytes) -> Vec<Arrival> {
    let mut all = Vec::new();
    loop {
        match link.inlet.next().await.unwrap() {
            Arrival::Control(letter) if letter == end => return all,
            other => all.push(other),
        }
    }
}

async fn kept(link: &mut Link) -> (Position, Letter) {
    loop {
        match link.inlet.next().await.unwrap() {
            Arrival::Kept { position, letter } => return (position, Letter::read(&letter, 256).unwrap()),
            Arrival::Gap => panic!("a gap"),
            _ => {}
        }
    }
}

async fn failure(link: &mut Link) -> Failure {
    loop {
        if let Err(failure) = link.inlet.next().await {
            return failure;
        }
    }
}

#[test]
fn casts_come_in_the_order_of_their_sender() {
    let Some(server) = Server::start(&[]) else { return };
    run(async {
        let mut here = server.node(1, |_| ()).connect(None).await.unwrap();
        let mut there = server.node(2, |_| ()).connect(None).await.unwrap();
        want(&mut there, &["a/+", "b", "a/1", "c/#", "\u{e9}.x/ "], true).await;
        // Its control message comes behind what it is subscribed to.
        there.outlet.send(&[Parcel::Control("ready".into())]).await.unwrap();
        up_to(&mut here, &"ready".into()).await;
        let topics = ["a/1", "b", "c", "a/2", "c/d/e", "nobody", "\u{e9}.x/ "];
        let parcels: Vec<_> = (0..7000).map(|number| cast(1, number + 1, topics[number as usize % 7])).collect();
        for some in parcels.chunks(100) {
            here.outlet.send(some).await.unwrap();
        }
        here.outlet.send(&[Parcel::Control("end".into())]).await.unwrap();
        let mut numbers = Vec::new();
        while numbers.last() != Some(&7000) {
            if let Arrival::Cast(letter) = there.inlet.next().await.unwrap() {
                numbers.push(Letter::read(&letter, 256).unwrap().number);
            }
        }
        assert!(numbers.is_sorted());
        numbers.dedup();
        let wanted: Vec<u64> = (1..=7000).filter(|number| (number - 1) % 7 != 5).collect();
        assert_eq!(numbers, wanted);

        // What is wanted no more does not come, and what another filter still means does.
        want(&mut there, &["a/+", "b", "c/#"], false).await;
        there.outlet.send(&[Parcel::Control("less".into())]).await.unwrap();
        up_to(&mut here, &"less".into()).await;
        up_to(&mut there, &"less".into()).await;
        let more = [cast(1, 7001, "a/2"), cast(1, 7002, "b"), cast(1, 7003, "a/1"), Parcel::Control("over".into())];
        here.outlet.send(&more).await.unwrap();
        let arrived = up_to(&mut there, &"over".into()).await;
        let casts: Vec<_> = arrived.into_iter().filter(|arrival| matches!(arrival, Arrival::Cast(_))).collect();
        assert_eq!(casts, [Arrival::Cast(letter(1, 7003, "a/1"))]);
        here.outlet.finish().await.unwrap();
    });
}

#[test]
fn the_history_goes_on_where_it_was() {
    let Some(mut server) = Server::start(&["-js"]) else { return };
    run(async {
        let (one, two) = (server.node(1, |_| ()), server.node(2, |_| ()));
        let mut here = one.connect(None).await.unwrap();
        assert_eq!(here.head.seq, 0);
        assert_eq!(here.inlet.next().await.unwrap(), Arrival::Level);
        let first: Vec<_> = (1..=100).map(|number| append(1, number, "a")).collect();
        here.outlet.send(&first).await.unwrap();
        // A second time: its confirmation might have been lost.
        here.outlet.send(&first[50..]).await.unwrap();
        here.outlet.send(&[append(1, 101, "b/c")]).await.unwrap();
        let mut last = here.head;
        for number in 1..=101 {
            let (position, letter) = kept(&mut here).await;
            assert_eq!((position, letter.number), (Position { seq: number, ..here.head }, number));
            last = position;
        }
        let mut there = two.connect(None).await.unwrap();
        assert_eq!(there.head, last);
        for number in 1..=101 {
            assert_eq!(kept(&mut there).await.1.number, number);
        }
        assert_eq!(there.inlet.next().await.unwrap(), Arrival::Level);
        drop(there);

        server.kill();
        failure(&mut here).await;
        assert!(one.connect(Some(last)).await.is_err());
        server.again();
        let mut there = two.connect(Some(last)).await.unwrap();
        assert_eq!(there.head, last);
        there.outlet.send(&[append(2, 1, "a")]).await.unwrap();
        here = one.connect(Some(last)).await.unwrap();
        for link in [&mut here, &mut there] {
            let (position, letter) = kept(link).await;
            assert_eq!((position.seq, position.epoch, letter.node), (102, last.epoch, 2));
        }
    });
}

#[test]
fn a_hole_in_the_history_is_told() {
    let Some(server) = Server::start(&["-js"]) else { return };
    run(async {
        let node = server.node(1, |config| config.history = 10);
        let mut here = node.connect(None).await.unwrap();
        let epoch = here.head.epoch;
        here.outlet.send(&(1..=30).map(|number| append(1, number, "a")).collect::<Vec<_>>()).await.unwrap();
        for (behind, wanted) in [(19, 21), (20, 21), (25, 26), (0, 21)] {
            let mut link = node.connect(Some(Position { epoch, seq: behind })).await.unwrap();
            if behind < 20 {
                assert_eq!(link.inlet.next().await.unwrap(), Arrival::Gap);
            }
            assert_eq!(kept(&mut link).await.0.seq, wanted);
        }
        let mut link = node.connect(Some(Position { epoch: epoch - 1, seq: 25 })).await.unwrap();
        assert_eq!(link.inlet.next().await.unwrap(), Arrival::Gap);
        assert_eq!(kept(&mut link).await.0.seq, 21);

        // Numbers that were given out are gone: nobody may see them again.
        let mut link = node.connect(Some(Position { epoch, seq: 40 })).await.unwrap();
        assert!(link.head.epoch != epoch && link.head.seq == 0, "{:?}", link.head);
        assert_eq!(link.inlet.next().await.unwrap(), Arrival::Gap);
        assert_eq!(link.inlet.next().await.unwrap(), Arrival::Level);
        failure(&mut here).await;
        // As it was made, whoever finds that.
        let other = server.node(2, |config| config.history = 99);
        let link = other.connect(Some(Position { epoch: link.head.epoch, seq: 1 })).await.unwrap();
        let stream = link.outlet.context.get_stream("pyhv").await.unwrap();
        assert_eq!(stream.cached_info().config.max_messages, 10);
        assert_eq!(stream.cached_info().state.last_sequence, 0);
    });
}

#[test]
fn a_new_leader_is_given_time() {
    let address = Address::parse("nats://nowhere").unwrap();
    let node = Nats::new(Arc::new(Config::new(address)), 1);
    let now = Instant::now();
    assert!(node.is_cut(1, now));
    assert!(!node.is_cut(3, now + Duration::from_secs(9)));
    assert!(node.is_cut(3, now + Duration::from_secs(10)));
    *node.short.lock() = None;
    assert!(!node.is_cut(3, now + Duration::from_secs(10)));
}

#[test]
fn an_append_goes_again_while_nobody_takes_it() {
    let Some(server) = Server::start(&["-js"]) else { return };
    run(async {
        let node = server.node(1, |_| ());
        let mut link = node.connect(None).await.unwrap();
        let context = link.outlet.context.clone();
        let config = context.get_stream("pyhv").await.unwrap().cached_info().config.clone();
        let few: Vec<_> = (1..=10).map(|number| append(1, number, "a")).collect();
        // As it is while a cluster elects a leader: nobody listens to the stream's subjects.
        context.delete_stream("pyhv").await.unwrap();
        let again = async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            context.create_stream(config).await.unwrap();
        };
        let (sent, ()) = tokio::join!(link.outlet.send(&few), again);
        sent.unwrap();
        // Or nobody answers for longer than one wait.
        let signal = |name: &str| {
            let sent = Command::new("kill").args([name, &server.process.id().to_string()]).status();
            assert!(sent.unwrap().success());
        };
        signal("-STOP");
        let again = async {
            tokio::time::sleep(Duration::from_millis(1500)).await;
            signal("-CONT");
        };
        let more: Vec<_> = (11..=20).map(|number| append(1, number, "a")).collect();
        let (sent, ()) = tokio::join!(link.outlet.send(&more), again);
        sent.unwrap();
        let mut link = node.connect(None).await.unwrap();
        assert_eq!(link.head.seq, 20);
        for number in 1..=20 {
            assert_eq!(kept(&mut link).await.1.number, number);
        }
    });
}

#[test]
fn what_may_pass_goes_again() {
    let error = |code: u64| {
        let text = format!(r#"{{"code":503,"err_code":{code},"description":"x"}}"#);
        let source: async_nats::jetstream::Error = serde_json::from_str(&text).unwrap();
        PublishError::with_source(PublishErrorKind::Other, source)
    };
    assert!(is_open(&error(10008)) && is_open(&error(10158)));
    assert!(!is_open(&error(10077)) && !is_open(&PublishError::new(PublishErrorKind::BrokenPipe)));
}

#[test]
fn what_does_not_fit_is_said() {
    let Some(server) = Server::start(&["--user", "me", "--pass", "secret"]) else { return };
    run(async {
        let wrong = server.node(1, |config| config.address.password = Some("hunter2".to_owned()));
        let failure = wrong.connect(None).await.unwrap_err().to_string();
        assert!(failure.contains("authorization") && !failure.contains("hunter2"), "{failure}");
        let right = |config: &mut Config| {
            config.address.user = Some("me".to_owned());
            config.address.password = Some("secret".to_owned());
        };
        // Without JetStream all goes well until something is to be kept.
        let without = server.node(1, right);
        let mut link = without.connect(None).await.unwrap();
        assert_eq!(link.head, Position { epoch: 0, seq: 0 });
        assert_eq!(link.inlet.next().await.unwrap(), Arrival::Level);
        link.outlet.send(&[cast(1, 1, "a"), Parcel::Control("x".into())]).await.unwrap();
        assert_eq!(link.inlet.next().await.unwrap(), Arrival::Control("x".into()));
        let failure = link.outlet.send(&[append(1, 2, "a")]).await.unwrap_err().to_string();
        assert!(failure.contains("need JetStream"), "{failure}");
        let failure = without.connect(None).await.unwrap_err().to_string();
        assert!(failure.contains("need JetStream"), "{failure}");
        // What is too large for the server is left out, and the rest of its batch is not.
        let large = Parcel::Cast { topic: "a".into(), letter: vec![b'x'; 1 << 20].into() };
        link.outlet.send(&[large, Parcel::Control("y".into())]).await.unwrap();
        assert_eq!((link.outlet.too_large(), link.outlet.too_large()), (1, 0));
        assert_eq!(link.inlet.next().await.unwrap(), Arrival::Control("y".into()));
        let missing = server.node(1, |config| config.credentials = Some("/nowhere/x.creds".into()));
        let failure = missing.connect(None).await.unwrap_err().to_string();
        assert!(failure.contains("/nowhere/x.creds"), "{failure}");
    });
}
