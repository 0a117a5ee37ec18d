"""Topics: who gets what is published, in which order, and what the program is told of it."""

from __future__ import annotations

import gc
import json
import socket
import threading
import weakref
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import websockets.sync.client

from pyhv import WebSocketChannel
from support import HOST, RecordingClient, RecordingServer, connected, port_of, tick_until, url_of

HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


class Rooms(RecordingServer):
    """Records who comes and goes."""

    def __init__(self) -> None:
        super().__init__()
        self.presences: list[tuple[str, str, Any]] = []

    def on_join(self, topic: str, member: Any) -> None:
        self.presences.append(("join", topic, member))

    def on_leave(self, topic: str, member: Any) -> None:
        self.presences.append(("leave", topic, member))


@pytest.fixture
def server() -> Iterator[Rooms]:
    with Rooms() as server:
        server.start(0)
        yield server


def joined(server: Rooms, *topics: str, **options: Any) -> tuple[RecordingClient, WebSocketChannel]:
    """A client and its channel, with subscriptions."""
    before = set(server.channels)
    client = connected(server, **options)
    (channel,) = tick_until(lambda: set(server.channels) - before, server, client)
    for topic in topics:
        assert channel.subscribe(topic)
    return client, channel


def close(*clients: RecordingClient) -> None:
    for client in clients:
        client.close()


def received(server: Rooms, *clients: RecordingClient) -> list[list[Any]]:
    """What has come to each, once all that was sent so far has."""
    server.broadcast("end")
    tick_until(lambda: all("end" in client.received for client in clients), server, *clients)
    found = [client.received[: client.received.index("end")] for client in clients]
    for client in clients:
        client.record.calls.clear()
    return found


def test_a_publish_reaches_the_subscribers_of_its_topic(server: Rooms) -> None:
    (one, _), (two, channel), (three, _) = joined(server, "a"), joined(server, "a", "b"), joined(server)
    position = server.publish("a", "1")
    assert isinstance(position, str)
    server.publish("b", b"2")
    server.publish("a", "3", exclude=channel)
    server.publish("c", "4")
    assert received(server, one, two, three) == [["1", "3"], ["1", b"2"], []]
    close(one, two, three)


def test_wildcards_are_those_of_mqtt_and_a_message_comes_once(server: Rooms) -> None:
    filters = [["room/+"], ["room/#"], ["#"], ["room/7", "room/+", "+/7", "#"], ["+"], ["$SYS/#", "#"]]
    clients = [joined(server, *topics)[0] for topics in filters]
    for topic in ("room/7", "room/7/x", "room", "other", "$SYS/a"):
        server.publish(topic, topic)
    assert received(server, *clients) == [
        ["room/7"],
        ["room/7", "room/7/x", "room"],
        ["room/7", "room/7/x", "room", "other"],
        ["room/7", "room/7/x", "room", "other"],
        ["room", "other"],
        ["room/7", "room/7/x", "room", "other", "$SYS/a"],
    ]
    close(*clients)


def test_calls_take_effect_in_their_order(server: Rooms) -> None:
    client, channel = joined(server)
    server.publish("a", "before")
    channel.subscribe("a")
    server.publish("a", "1")
    channel.send("2")
    server.broadcast("3")
    server.publish("a", "4")
    channel.send("fragment ", fin=False)
    server.publish("a", "6")
    server.broadcast("7")
    channel.send("5")
    channel.unsubscribe("a")
    server.publish("a", "after")
    channel.subscribe("a")
    server.publish("a", "8")
    assert received(server, client) == [["1", "2", "3", "4", "fragment 5", "6", "7", "8"]]
    close(client)


@pytest.mark.parametrize("topics", ["ab", "a"])
def test_what_one_tick_publishes_leaves_in_one_write(server: Rooms, topics: str) -> None:
    client, channel = joined(server, "a", "b", compression=None)
    channel.send("x")
    received(server, client)

    def publish() -> None:
        for number in range(100):
            server.publish(topics[number % len(topics)], str(number))

    server.on_tick = publish  # type: ignore[method-assign]
    server.tick()
    server.on_tick = lambda: None  # type: ignore[method-assign]
    tick_until(lambda: client.received, client)
    # All of it was in the first read.
    assert client.received == [str(number) for number in range(100)]
    close(client)


def test_membership_is_right_at_once(server: Rooms) -> None:
    (one, first), (two, second) = joined(server), joined(server)
    assert server.subscriber_count("a/b") == 0
    assert server.subscribers("a/b") == []
    assert first.subscribe("a/b")
    assert first.subscribe("a/b")
    assert first.subscribe("a/+")
    assert second.subscribe("#")
    assert server.subscriber_count("a/b") == 2
    assert set(server.subscribers("a/b")) == {first, second}
    assert server.subscribers("x") == [second]
    assert first.topics == ["a/b", "a/+"]
    assert first.unsubscribe("a/b") is True
    assert first.unsubscribe("a/b") is False
    assert first.topics == ["a/+"]
    assert server.subscriber_count("a/b") == 2
    close(one, two)


def test_membership_ends_with_the_channel(server: Rooms) -> None:
    (one, channel), (two, other) = joined(server, "a", "b/#"), joined(server, "a")
    one.close()
    tick_until(lambda: channel.close_code is not None, server, one)
    assert channel.topics == []
    assert server.subscribers("a") == [other]
    assert server.subscriber_count("b") == 0
    assert channel.subscribe("a") is False
    # The next channel has its number.
    three, _ = joined(server)
    server.publish("a", "1")
    assert received(server, two, three) == [["1"], []]
    close(two, three)


def test_a_channel_that_the_program_closed_subscribes_no_more(server: Rooms) -> None:
    client, channel = joined(server)
    channel.close()
    assert channel.subscribe("a") is False
    assert server.subscriber_count("a") == 0
    close(client)


@pytest.mark.parametrize(
    ("topic", "why"),
    [
        ("", "at least one character"),
        ("a\n", "no control characters"),
        ("x" * 257, "max_topic_length=256"),
        ("\u00e9" * 129, "max_topic_length=256"),
    ],
)
def test_names_that_will_not_do_raise(server: Rooms, topic: str, why: str) -> None:
    client, channel = joined(server)
    for call in (channel.subscribe, lambda name: server.publish(name, "x"), server.keep):
        with pytest.raises(ValueError, match=why):
            call(topic)
    close(client)


def test_misuse_of_wildcards_raises(server: Rooms) -> None:
    client, channel = joined(server)
    for topic in ("a+", "#/a", "a/#b"):
        with pytest.raises(ValueError, match="stands for a whole level"):
            channel.subscribe(topic)
    with pytest.raises(ValueError, match="the name of one topic"):
        server.publish("a/+", "x")
    with pytest.raises(ValueError, match="the name of one topic"):
        channel.subscribe("a/+", member="ann")
    with pytest.raises(TypeError, match="a message is str or bytes-like"):
        server.publish("a", 5)  # type: ignore[arg-type]
    assert channel.topics == []
    close(client)


def test_subscriptions_are_limited() -> None:
    with Rooms() as server:
        server.start(0, max_subscriptions_per_channel=2)
        client, channel = joined(server, "a", "b")
        assert channel.subscribe("a")
        with pytest.raises(ValueError, match="max_subscriptions_per_channel=2"):
            channel.subscribe("c")
        assert channel.topics == ["a", "b"]
        channel.unsubscribe("a")
        assert channel.subscribe("c")
        close(client)


def test_without_a_run_nothing_happens() -> None:
    server = Rooms()
    assert server.publish("a", "x") is None
    assert server.subscribers("a") == []
    assert server.subscriber_count("a") == 0
    assert server.presence("a") == []


def test_from_other_threads_each_channel_gets_all_in_the_order_of_positions(server: Rooms) -> None:
    pairs = [joined(server, "a") for _ in range(3)]
    clients = [client for client, _ in pairs]
    published: list[tuple[int, str]] = []

    def publish(who: int) -> None:
        for number in range(300):
            text = f"{who}:{number}"
            position = server.publish("a", text)
            assert position is not None
            published.append((int(position.partition("-")[2]), text))

    threads = [threading.Thread(target=publish, args=(who,)) for who in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wanted = [text for _, text in sorted(published)]
    assert received(server, *clients) == [wanted] * 3
    close(*clients)


def test_a_compressed_publish_arrives_with_every_kind_of_compression() -> None:
    text = "the same words again and again, " * 20
    for compression in ("shared", "context", None):
        with Rooms() as server:
            server.start(0, compression=compression)
            one, first = joined(server, "a")
            two, _ = joined(server, "a", compression=None)
            assert first.is_compressed is (compression is not None)
            for number in range(5):
                server.publish("a", f"{number} {text}")
            assert received(server, one, two) == [[f"{number} {text}" for number in range(5)]] * 2
            close(one, two)


def test_a_slow_subscriber_meets_its_policy() -> None:
    with Rooms() as server:
        server.start(0, max_buffered=200_000, slow_policy="drop_newest", compression=None)
        with socket.create_connection((HOST, port_of(server))) as slow:
            slow.sendall(HANDSHAKE)
            (channel,) = tick_until(lambda: server.channels, server)
            channel.subscribe("a")
            fast, _ = joined(server, "a")
            for number in range(400):
                server.publish("a", f"{number} " + "x" * 50_000)
                tick_until(partial(lambda n: len(fast.received) > n, number), server, fast)
            assert channel.dropped > 0
            assert channel.buffered_amount <= 200_000
            assert channel.is_open
            close(fast)


def test_presence_is_who_the_program_says(server: Rooms) -> None:
    (one, first), (two, second), (three, third) = joined(server), joined(server), joined(server)
    ann, bob = {"name": "Ann", "id": 1}, "bob"
    first.subscribe("a", member=ann)
    second.subscribe("a", member={"id": 1, "name": "Ann"})
    third.subscribe("a", member=bob)
    third.subscribe("a")
    joined(server, "a")[0].close()
    assert server.presence("a") == [ann, bob]
    assert server.presence("b") == []
    tick_until(lambda: len(server.presences) == 2, server)
    assert server.presences == [("join", "a", ann), ("join", "a", bob)]
    first.unsubscribe("a")
    assert server.presence("a") == [ann, bob]
    third.subscribe("a", member="robert")
    assert server.presence("a") == [ann, "robert"]
    two.close()
    tick_until(lambda: len(server.presences) == 5, server, two)
    assert server.presences[2:] == [("join", "a", "robert"), ("leave", "a", bob), ("leave", "a", ann)]
    with pytest.raises(TypeError):
        first.subscribe("b", member=object())
    assert first.topics == []
    close(one, three)


def test_a_stop_tells_who_leaves() -> None:
    server = Rooms()
    for _ in range(3):
        server.start(0)
        client, channel = joined(server)
        channel.subscribe("a", member="ann")
        server.stop()
        assert server.presences == [("join", "a", "ann"), ("leave", "a", "ann")]
        assert channel.subscribe("a") is False
        assert channel.topics == []
        assert server.presence("a") == []
        server.presences.clear()
        close(client)


def test_a_channel_that_subscribed_is_let_go_with_its_server() -> None:
    class Thing:
        pass

    server = Rooms()
    server.start(0)
    client, channel = joined(server, "a", "b/+")
    channel.data = Thing()
    alive = weakref.ref(channel.data)
    del channel
    server.publish("a", "x")
    del server
    gc.collect()
    assert alive() is None
    client.close()


def test_other_clients_get_publishes(server: Rooms) -> None:
    with websockets.sync.client.connect(url_of(server)) as other:
        (channel,) = tick_until(lambda: server.channels, server)
        channel.subscribe("a/+")
        server.publish("a/b", "text " * 100)
        server.publish("a/b", b"\x00\xff")
        assert other.recv(timeout=10) == "text " * 100
        assert other.recv(timeout=10) == b"\x00\xff"


def test_json_is_what_a_member_becomes(server: Rooms) -> None:
    client, channel = joined(server)
    channel.subscribe("a", member=("x", 1))
    assert server.presence("a") == json.loads(json.dumps([["x", 1]]))
    close(client)
