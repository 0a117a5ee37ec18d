//! The program's side with streams for subscribers, which need no network, and a backplane that writes down what it is told.

use super::*;
use crate::stream::StreamBody;
use bytes::Bytes;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// What a node is told, and what it answers.
#[derive(Debug, Default)]
struct Recorder {
    told: Mutex<Vec<String>>,
    back: AtomicBool,
    rules: AtomicU64,
}

impl Recorder {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.told.lock())
    }
}

impl Backplane for Recorder {
    fn rules(&self, digest: u64) {
        self.rules.store(digest, Ordering::Relaxed);
    }

    fn gone(&self, _: Who) {}

    fn publish(&self, message: &Arc<Message>, _: bool, exclude: Option<Who>) -> Route {
        let Message { topic, position, .. } = &**message;
        self.told.lock().push(format!("publish {topic} {} {}", position.seq, exclude.is_some()));
        if self.back.load(Ordering::Relaxed) { Route::Back } else { Route::Here }
    }

    fn interest(&self, filter: &str, wanted: bool) {
        self.told.lock().push(format!("interest {filter} {wanted}"));
    }

    fn presence(&self, topic: &str, member: &str, here: bool) {
        self.told.lock().push(format!("presence {topic} {member} {here}"));
    }
}

struct Node {
    endpoint: Arc<Endpoint>,
    backplane: Arc<Recorder>,
}

impl Node {
    fn new() -> Self {
        let endpoint = Endpoint::new(Settings::default(), None).unwrap();
        let backplane = Arc::new(Recorder::default());
        endpoint.join(Arc::<Recorder>::clone(&backplane), false);
        Self { endpoint, backplane }
    }

    fn stream(&self) -> (Subscriber, StreamBody) {
        let (stream, body) = Stream::new(&self.endpoint.runtime.threads[0], &self.endpoint, None, true);
        (Subscriber::Stream { stream, named: false }, body)
    }

    fn subscribe(&self, subscriber: &Subscriber, filter: &str, member: Option<&str>) {
        let member = member.map(Arc::from);
        self.endpoint.subscribe(subscriber.clone(), &[filter], After::Now, member.as_ref(), false).unwrap();
    }

    fn publish(&self, topic: &str) -> Option<u64> {
        self.endpoint.publish(topic, Opcode::Text, b"x", None, None).flatten().map(|position| position.seq)
    }

    fn arrived(&self, topic: &str, position: Option<(u64, u64)>) -> bool {
        let position = position.map(|(epoch, seq)| Position { epoch, seq });
        self.endpoint.arrived(topic, Opcode::Text, &Bytes::from_static(b"y"), None, position, None)
    }
}

/// The numbers of the messages that a stream has been given, once one of them is `last`.
fn given(body: &mut StreamBody, last: u64) -> Vec<u64> {
    let mut text = String::new();
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    for _ in 0..1000 {
        while let std::task::Poll::Ready(Some(Ok(chunk))) = body.poll(&mut context) {
            text.push_str(std::str::from_utf8(&chunk).unwrap());
        }
        let events = text.split("\n\n").filter(|event| event.contains("\ndata") && !event.contains("event: gap"));
        let ids: Vec<u64> = events.filter_map(|event| event.split_once('-')?.1.lines().next()?.parse().ok()).collect();
        if ids.contains(&last) {
            return ids;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("message {last} has not come: {text:?}");
}

#[test]
fn a_backplane_is_told_the_rules() {
    let node = Node::new();
    let told = |backplane: &Recorder| backplane.rules.load(Ordering::Relaxed);
    assert_eq!(told(&node.backplane), Rules::default().digest());
    let mut rules = Rules::default();
    rules.set("a", Some(Keep { messages: 1, age: None, bytes: 1 }));
    node.endpoint.topics.set_rules(rules.clone());
    assert_eq!(told(&node.backplane), rules.digest());
    // What was said before it joined, too.
    let late = Arc::new(Recorder::default());
    node.endpoint.join(Arc::<Recorder>::clone(&late), false);
    assert_eq!(told(&late), rules.digest());
}

#[test]
fn interest_is_told_for_the_first_and_the_last() {
    let node = Node::new();
    let ((one, _body), (two, _other)) = (node.stream(), node.stream());
    node.subscribe(&one, "a", None);
    node.subscribe(&one, "a", None);
    node.subscribe(&two, "a", None);
    node.subscribe(&two, "b/+", None);
    assert_eq!(node.backplane.take(), ["interest a true", "interest b/+ true"]);
    assert!(node.endpoint.unsubscribe(&one, "a"));
    assert!(!node.endpoint.unsubscribe(&one, "a"));
    assert_eq!(node.backplane.take(), [""; 0]);
    node.endpoint.leave_topics(&two);
    node.endpoint.leave_topics(&two);
    assert_eq!(node.backplane.take(), ["interest a false", "interest b/+ false"]);
    assert_eq!(node.endpoint.topics.count("a"), 0);
}

#[test]
fn publishes_go_both_ways_in_one_sequence() {
    let node = Node::new();
    let (one, mut body) = node.stream();
    node.subscribe(&one, "a", None);
    assert_eq!(node.publish("a"), Some(1));
    assert!(node.arrived("a", None));
    assert_eq!(node.publish("a"), Some(3));
    assert_eq!(given(&mut body, 3), [1, 2, 3]);
    assert_eq!(node.backplane.take(), ["interest a true", "publish a 1 false", "publish a 3 false"]);
}

#[test]
fn what_comes_back_has_the_position_of_all_nodes() {
    let node = Node::new();
    node.backplane.back.store(true, Ordering::Relaxed);
    let mut rules = Rules::default();
    rules.set("a", Some(Keep { messages: 10, age: None, bytes: 1 << 20 }));
    node.endpoint.topics.set_rules(rules);
    let (one, mut body) = node.stream();
    node.subscribe(&one, "a", None);
    assert_eq!(node.publish("a"), None);
    assert!(node.arrived("a", Some((7, 40))));
    assert!(node.arrived("a", Some((7, 45))));
    // Handed over twice, after a link that was lost.
    assert!(!node.arrived("a", Some((7, 45))));
    assert!(node.arrived("b", Some((7, 46))));
    assert!(node.arrived("a", Some((7, 47))));
    assert_eq!(given(&mut body, 47), [40, 45, 47]);
    let resume = |epoch, seq| {
        let (stream, _body) = node.stream();
        let after = After::Position(Some(Position { epoch, seq }));
        node.endpoint.subscribe(stream, &["a"], after, None, false).unwrap()
    };
    assert_eq!(resume(7, 40), Begin { position: Position { epoch: 7, seq: 40 }, complete: true });
    // Of before the epoch that all agree on.
    assert!(!resume(7, 20).complete);
    assert!(!resume(6, 40).complete);
    // The backplane could not hand over what was missed.
    assert!(node.arrived("a", Some((8, 3))));
    assert!(!resume(7, 47).complete);
    assert_eq!(resume(8, 2), Begin { position: Position { epoch: 8, seq: 2 }, complete: true });
}

#[test]
fn members_are_those_of_all_nodes() {
    let node = Node::new();
    let ((one, _body), (two, _other)) = (node.stream(), node.stream());
    node.endpoint.presence_elsewhere("a", "ann", true);
    node.subscribe(&one, "a", Some("ann"));
    node.subscribe(&two, "a", Some("ann"));
    node.subscribe(&two, "a", Some("bob"));
    assert_eq!(node.endpoint.topics.members("a"), [Arc::from("ann"), Arc::from("bob")]);
    node.endpoint.leave_topics(&one);
    let told: Vec<_> = node.backplane.take().into_iter().filter(|line| line.starts_with("presence")).collect();
    assert_eq!(told, ["presence a ann true", "presence a bob true", "presence a ann false"]);
    assert_eq!(node.endpoint.topics.members("a"), [Arc::from("ann"), Arc::from("bob")]);
    node.endpoint.presence_elsewhere("a", "ann", false);
    assert_eq!(node.endpoint.topics.members("a"), [Arc::from("bob")]);
}

#[test]
fn a_subscriber_that_has_ended_is_refused() {
    let node = Node::new();
    let (one, body) = node.stream();
    drop(body);
    assert_eq!(node.endpoint.subscribe(one, &["a"], After::Now, None, false), Err(Refusal::Ended));
    assert_eq!(node.endpoint.topics.count("a"), 0);
}

#[test]
fn a_stream_is_not_given_more_than_may_wait() {
    let endpoint = Endpoint::new(Settings { max_buffered: 4000, ..Settings::default() }, None).unwrap();
    let node = Node { endpoint, backplane: Arc::default() };
    let mut rules = Rules::default();
    rules.set("a", Some(Keep { messages: 100, age: None, bytes: 1 << 20 }));
    node.endpoint.topics.set_rules(rules);
    for _ in 0..50 {
        node.publish("a");
    }
    let (one, mut body) = node.stream();
    let begin = node.endpoint.subscribe(one, &["a"], After::Oldest, None, false).unwrap();
    let events = given(&mut body, 50);
    assert!(!begin.complete);
    assert_eq!(events, (begin.position.seq + 1..=50).collect::<Vec<_>>());
    assert!((10..20).contains(&events.len()));
}

/// A node that is together with others, as the backplane of this crate makes it.
fn together() -> Node {
    let node = Node::new();
    node.endpoint.join(Arc::<Recorder>::clone(&node.backplane), true);
    node.backplane.back.store(true, Ordering::Relaxed);
    let mut rules = Rules::default();
    rules.set("a", Some(Keep { messages: 10, age: None, bytes: 1 << 20 }));
    node.endpoint.topics.set_rules(rules);
    node
}

fn at(seq: u64) -> Position {
    Position { epoch: 7, seq }
}

#[test]
fn who_resumes_before_the_node_is_level_waits_for_what_it_missed() {
    let node = together();
    let ((one, mut body), (two, mut other)) = (node.stream(), node.stream());
    node.endpoint.subscribe(one, &["a"], After::Position(Some(at(41))), None, false).unwrap();
    node.endpoint.subscribe(two, &["a"], After::Now, None, false).unwrap();
    for seq in 40..=44 {
        node.endpoint.refill("a", Opcode::Text, &Bytes::from_static(b"y"), None, at(seq));
    }
    node.endpoint.level(at(44));
    assert!(node.arrived("a", Some((7, 45))));
    assert_eq!(given(&mut body, 45), [42, 43, 44, 45]);
    assert_eq!(given(&mut other, 45), [45]);
}

#[test]
fn who_comes_from_a_node_that_was_ahead_gets_nothing_twice() {
    let node = together();
    node.endpoint.level(at(40));
    let (one, mut body) = node.stream();
    let begin = node.endpoint.subscribe(one, &["a"], After::Position(Some(at(42))), None, false).unwrap();
    assert_eq!(begin, Begin { position: at(42), complete: true });
    for seq in 41..=44 {
        assert!(node.arrived("a", Some((7, seq))));
    }
    assert_eq!(given(&mut body, 44), [43, 44]);
    // What another epoch says of its numbers is nothing to go by.
    let (two, _body) = node.stream();
    let after = After::Position(Some(Position { epoch: 6, seq: 99 }));
    assert!(!node.endpoint.subscribe(two, &["a"], after, None, false).unwrap().complete);
}

#[test]
fn messages_without_a_place_leave_the_positions_alone() {
    let node = together();
    node.endpoint.level(at(40));
    let before = node.endpoint.topics.position();
    node.endpoint.passed("b", Opcode::Text, &Bytes::from_static(b"y"), None);
    assert_eq!(node.endpoint.topics.position(), before);
    // Who comes back to such a topic may have missed something, however new its position is.
    let (one, _body) = node.stream();
    let begin = node.endpoint.subscribe(one, &["b"], After::Position(Some(at(40))), None, false).unwrap();
    assert!(!begin.complete);
}
