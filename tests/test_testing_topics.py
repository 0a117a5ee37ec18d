"""Topics in a World, side by side with real sockets: each test runs over both."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from pyhv import Reconnect, WebSocketChannel
from support import RecordingClient, RecordingServer, url_of
from support_net import MemoryNet, Net, RealNet, opened


@pytest.fixture(params=[RealNet, MemoryNet], ids=["real", "memory"])
def net(request: pytest.FixtureRequest) -> Iterator[Net]:
    made: Net = request.param()
    try:
        yield made
    finally:
        made.close()


class Rooms(RecordingServer):
    """Lets clients have every topic, and publish to "wall"."""

    def on_init(self) -> None:
        self.enable_topics(patterns=True)
        self.keep("kept/#", messages=3)

    def on_subscribe(self, channel: WebSocketChannel, topic: str) -> bool:
        if topic == "raise":
            raise LookupError(topic)
        return topic != "secret"

    def on_publish(self, channel: WebSocketChannel, topic: str, msg: str | bytes) -> bool:
        return topic == "wall"

    def on_join(self, topic: str, member: Any) -> None:
        self.record.add("join", None, (topic, member))

    def on_leave(self, topic: str, member: Any) -> None:
        self.record.add("leave", None, (topic, member))


class Reader(RecordingClient):
    def on_topic(self, topic: str, msg: str | bytes) -> None:
        self.record.add("topic", None, (topic, msg))

    def on_topic_gap(self, topic: str) -> None:
        self.record.add("gap", None, topic)

    def on_topic_refused(self, topic: str, reason: str) -> None:
        self.record.add("refused", None, (topic, reason))


def settled(net: Net, server: RecordingServer, *clients: RecordingClient) -> None:
    """Until all that was sent has arrived."""
    count = [client.received.count("settled") for client in clients]
    server.broadcast("settled")
    net.until(lambda: all(c.received.count("settled") > n for c, n in zip(clients, count, strict=True)))


def test_subscribe_publish_unsubscribe(net: Net) -> None:
    server = net.serve(Rooms())
    (one, first), (two, second) = opened(net, server, "/1"), opened(net, server, "/2")
    assert first.subscribe("a/b")
    assert first.subscribe("a/#")
    assert second.subscribe("+/b")
    assert server.subscriber_count("a/b") == 2
    assert set(server.subscribers("a/b")) == {first, second}
    assert server.subscribers("a/c") == [first]
    assert server.subscribers("x/b") == [second]
    server.publish("a/b", "1")
    first.send("2")
    server.publish("a/b", b"3", exclude=second)
    first.send("frag", fin=False)
    server.publish("a", "5")
    first.send("4")
    assert first.topics == ["a/b", "a/#"]
    assert first.unsubscribe("a/#") and not first.unsubscribe("a/#")
    server.publish("a/c", "nobody")
    server.publish("a/b", "6")
    settled(net, server, one, two)
    assert one.received == ["1", "2", b"3", "frag4", "5", "6", "settled"]
    assert two.received == ["1", "6", "settled"]
    one.close()
    net.until(lambda: first.close_code is not None)
    assert server.subscribers("a/b") == [second]
    assert first.topics == []
    assert not first.subscribe("a")


@pytest.mark.parametrize("topic", ["", "a\n", "\x80", "x" * 9, "\u00e9" * 5, "a+", "#/a", "a/#b", "a/b+"])
def test_what_will_not_do_raises_alike(net: Net, topic: str) -> None:
    server = net.serve(Rooms(), max_topic_length=8)
    _, channel = opened(net, server)
    said = []
    for call in (channel.subscribe, lambda name: server.publish(name, ""), server.keep):
        with pytest.raises(ValueError, match="topic=") as caught:
            call(topic)
        said.append(str(caught.value).partition(": ")[2])
    known = {
        "a topic has at least one character",
        "a topic has no control characters",
        "the limit is max_topic_length=8 bytes",
        "+ stands for a whole level, and # for the last ones",
        "+ and # are wildcards, and this has to be the name of one topic",
    }
    assert set(said) <= known
    assert said[0] == said[2]


def test_other_misuse_raises_alike(net: Net) -> None:
    server = net.serve(Rooms(), max_subscriptions_per_channel=1)
    _, channel = opened(net, server)
    channel.subscribe("a")
    with pytest.raises(ValueError, match='topic="b": it has as many subscriptions as max_subscriptions_per_channel=1'):
        channel.subscribe("b")
    with pytest.raises(ValueError, match="are above 0"):
        server.keep("a", messages=0)
    with pytest.raises(TypeError):
        server.publish("a", None)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="while the server runs"):
        server.enable_topics()


def test_clients_ask(net: Net) -> None:
    server = net.serve(Rooms())
    client = net.connect(Reader(), server, topics=True)
    for topic in ("wall", "secret", "kept/+"):
        client.subscribe(topic)
    net.until(lambda: client.topic_position("kept/+"))
    assert client.record.values("refused") == [("secret", "not allowed")]
    assert client.topics == ["wall", "kept/+"]
    client.publish("wall", "h\u00e9")
    client.publish("wall", b"\0")
    client.publish("kept/a", "no")
    client.send('{"pyhv": "is mine"}')
    server.publish("kept/a", "1")
    net.until(lambda: len(client.record.values("refused")) == 2 and len(client.record.values("topic")) == 3)
    assert sorted(client.record.values("topic"), key=str) == [("kept/a", "1"), ("wall", "h\u00e9"), ("wall", b"\0")]
    assert server.record.values("message") == ['{"pyhv": "is mine"}']
    client.unsubscribe("wall")
    client.subscribe("raise")
    net.until(lambda: client.close_code == 1011)
    assert [type(error) for error in server.record.values("error")] == [LookupError]


def test_they_resume(net: Net) -> None:
    server = net.serve(Rooms())
    client = Reader()
    net.own(client)
    # Not through a relay, which is for one connection.
    client.connect(url_of(server), topics=True, reconnect=Reconnect(first=0.01, jitter=0))
    client.subscribe("kept/a")
    client.subscribe("gone")
    net.until(lambda: client.topic_position("gone"))
    for count in (2, 3, 5):
        for channel in server.channels:
            channel.close(1012)
        net.until(lambda: not server.channels)
        for number in range(count):
            server.publish("kept/a", f"{count} {number}")
        last = ("kept/a", f"{count} {count - 1}")
        net.until(partial(lambda last: last in client.record.values("topic"), last))
        net.until(lambda: server.subscriber_count("gone"))
        settled(net, server, client)
    assert [msg for _, msg in client.record.values("topic")] == ["2 0", "2 1", "3 0", "3 1", "3 2", "5 2", "5 3", "5 4"]
    assert client.record.values("gap") == ["gone", "gone", "kept/a", "gone"]


def test_a_client_that_asks_for_what_it_has_is_told_what_it_lacks(net: Net) -> None:
    class Placing(Rooms):
        def on_ws_open(self, channel: WebSocketChannel, url: str) -> None:
            super().on_ws_open(channel, url)
            channel.subscribe("kept/a")

        def on_subscribe(self, channel: WebSocketChannel, topic: str) -> Any:
            return {"name": "ann"}

    server = net.serve(Placing())
    old = server.publish("kept/a", "1")
    server.publish("kept/a", "2")
    client = net.connect(Reader(), server, topics=True)
    client.subscribe("kept/a", after=old)
    net.until(lambda: client.record.values("gap"))
    assert server.presence("kept/a") == [{"name": "ann"}]
    server.publish("kept/a", "3")
    net.until(lambda: client.record.values("topic"))
    client.subscribe("kept/a", after=client.topic_position("kept/a"))
    server.publish("kept/a", "4")
    net.until(lambda: len(client.record.values("topic")) == 2)
    settled(net, server, client)
    assert client.record.values("topic") == [("kept/a", "3"), ("kept/a", "4")]
    assert client.record.values("gap") == ["kept/a"]


def test_presence(net: Net) -> None:
    server = net.serve(Rooms())
    (one, first), (_, second) = opened(net, server), opened(net, server)
    first.subscribe("a", member={"id": 1, "name": "Ann"})
    second.subscribe("a", member={"name": "Ann", "id": 1})
    second.subscribe("a", member="bob")
    assert server.presence("a") == [{"id": 1, "name": "Ann"}, "bob"]
    one.close()
    net.until(lambda: server.record.count("leave"))
    calls = [(call.what, call.value[1]) for call in server.record.calls if call.what in ("join", "leave")]
    ann = {"id": 1, "name": "Ann"}
    assert calls == [("join", ann), ("join", "bob"), ("leave", ann)]
    assert server.presence("a") == ["bob"]


@pytest.mark.parametrize("seed", range(10))
def test_random_programs_agree(seed: int) -> None:
    """What a World says of membership, history and delivery is what the sockets say."""
    topics = ["kept/a", "kept/b", "kept", "x", "$x"]
    filters = [*topics, "kept/+", "#", "+", "kept/#", "$x/#"]
    found = []
    for make in (MemoryNet, RealNet):
        chance = random.Random(seed)
        net: Net = make()
        said: list[Any] = []
        try:
            server = net.serve(Rooms(), max_subscriptions_per_channel=4, max_topics=2)
            pairs = [opened(net, server, f"/{number}") for number in range(3)]
            positions: list[str | None] = [None, "oldest", "?"]
            for _ in range(60):
                _, channel = chance.choice(pairs)
                what = chance.random()
                if what < 0.4:
                    positions.append(server.publish(chance.choice(topics), str(len(positions))))
                elif what < 0.8:
                    try:
                        after, member = chance.choice(positions), chance.choice([None, None, "m", "n"])
                        said.append(channel.subscribe(chance.choice(filters), after=after, member=member))
                    except ValueError as error:
                        said.append(str(error))
                else:
                    said.append(channel.unsubscribe(chance.choice(filters)))
                said.append([channel.topics for _, channel in pairs])
                said.append([sorted(c.url for c in server.subscribers(t)) for t in topics])  # type: ignore[union-attr]
                said.append([server.presence(topic) for topic in topics])
            clients = [client for client, _ in pairs]
            settled(net, server, *clients)
            said.append([client.received for client in clients])
            net.until(partial(lambda server: server.tick() == 0, server))
            said.append([(call.what, call.value) for call in server.record.calls if call.what in ("join", "leave")])
        finally:
            net.close()
        found.append(said)
    assert found[0] == found[1]
