"""Topics that keep messages: who comes back gets what it missed, in order and once, or is told that it cannot."""

from __future__ import annotations

import json
import random
import select
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest
import websockets.sync.client

from pyhv import HvWebServer, HvWebSocketClient, Reconnect, WebSocketChannel
from support import HOST, Background, Ticker, tick_until, url_of

PROTOCOL = "pyhv.topics.v1"
SOON = Reconnect(first=0.001, max_delay=0.01)


class Open(HvWebServer):
    """Lets everybody have the topics that begin with "open", and publish to "open/wall"."""

    def __init__(self) -> None:
        self.heard: list[str | bytes] = []
        self.asked: list[str] = []

    def on_subscribe(self, channel: WebSocketChannel, topic: str) -> bool:
        self.asked.append(topic)
        return topic.startswith("open")

    def on_publish(self, channel: WebSocketChannel, topic: str, msg: str | bytes) -> bool:
        return topic == "open/wall"

    def on_ws_message(self, channel: WebSocketChannel, msg: str | bytes) -> None:
        self.heard.append(msg)


class Reader(HvWebSocketClient):
    def __init__(self) -> None:
        self.got: list[tuple[str, str | bytes]] = []
        self.gaps: list[str] = []
        self.refused: list[tuple[str, str]] = []
        self.plain: list[str | bytes] = []

    @property
    def messages(self) -> list[str | bytes]:
        return [msg for _, msg in self.got]

    def on_topic(self, topic: str, msg: str | bytes) -> None:
        self.got.append((topic, msg))

    def on_topic_gap(self, topic: str) -> None:
        self.gaps.append(topic)

    def on_topic_refused(self, topic: str, reason: str) -> None:
        self.refused.append((topic, reason))

    def on_message(self, msg: str | bytes) -> None:
        self.plain.append(msg)


@pytest.fixture
def server() -> Iterator[Open]:
    with Open() as server:
        server.enable_topics(patterns=True)
        server.keep("open/#", messages=1000, max_bytes=1 << 20)
        server.start(0)
        yield server


def reader(server: Open, *topics: str, **options: Any) -> Reader:
    """A client that has subscribed."""
    client = Reader()
    client.connect(url_of(server), topics=True, **options)
    for topic in topics:
        client.subscribe(topic)
    tick_until(lambda: client.is_connected and all(map(client.topic_position, topics)), server, client)
    return client


def lose(server: Open, *clients: Reader) -> None:
    """Ends all connections as a server does that restarts, and waits until that is known."""
    for channel in server.channels:
        channel.close(1012)
    tick_until(lambda: not server.channels, server, *clients)


def caught_up(server: Open, *clients: Reader) -> None:
    server.publish("open/end", "end")
    for client in clients:
        client.subscribe("open/end", after="oldest")
    tick_until(lambda: all("end" in client.messages for client in clients), server, *clients)


# The convention, spoken by somebody else's client


def test_publishes_of_one_tick_come_in_their_form(server: Open) -> None:
    with (
        websockets.sync.client.connect(url_of(server), subprotocols=[PROTOCOL]) as speaker,  # type: ignore[list-item]
        websockets.sync.client.connect(url_of(server)) as other,
    ):
        tick_until(lambda: len(server.channels) == 2, server)
        for channel in server.channels:
            channel.subscribe("a")
        left_out = next(channel for channel in server.channels if channel.subprotocol == PROTOCOL)
        positions: list[Any] = []

        def publish() -> None:
            for number in range(4):
                positions.append(server.publish("a", str(number), exclude=left_out if number == 1 else None))

        server.on_tick = publish  # type: ignore[method-assign]
        server.tick()
        server.on_tick = lambda: None  # type: ignore[method-assign]
        expected = [
            {"pyhv": "message", "topic": "a", "position": positions[number], "text": str(number)}
            for number in (0, 2, 3)
        ]
        assert [json.loads(speaker.recv(timeout=10)) for _ in expected] == expected
        assert [other.recv(timeout=10) for _ in positions] == ["0", "1", "2", "3"]


def test_the_convention(server: Open) -> None:
    with websockets.sync.client.connect(url_of(server), subprotocols=[PROTOCOL]) as peer:  # type: ignore[list-item]

        def ask(what: dict[str, Any]) -> None:
            peer.send(json.dumps(what))

        def answer() -> Any:
            tick_until(lambda: server.tick(0.01) == 0, server)
            return json.loads(peer.recv(timeout=10))

        assert peer.subprotocol == PROTOCOL
        tick_until(lambda: server.channels, server)
        first = server.publish("open/a", "one")
        assert first is not None
        ask({"pyhv": "subscribe", "topic": "open/a"})
        tick_until(lambda: server.subscriber_count("open/a"), server)
        assert answer() == {"pyhv": "subscribed", "topic": "open/a", "position": first, "complete": True}
        second = server.publish("open/a", 'two "\u00e9"\n')
        assert answer() == {"pyhv": "message", "topic": "open/a", "position": second, "text": 'two "\u00e9"\n'}
        third = server.publish("open/a", b"\x00\xff")
        assert answer() == {"pyhv": "message", "topic": "open/a", "position": third, "base64": "AP8="}
        ask({"pyhv": "unsubscribe", "topic": "open/a"})
        tick_until(lambda: not server.subscriber_count("open/a"), server)
        assert answer() == {"pyhv": "unsubscribed", "topic": "open/a"}
        ask({"pyhv": "subscribe", "topic": "open/a", "after": first})
        tick_until(lambda: server.subscriber_count("open/a"), server)
        assert answer() == {"pyhv": "subscribed", "topic": "open/a", "position": first, "complete": True}
        assert [answer()["position"] for _ in range(2)] == [second, third]
        questions: list[tuple[dict[str, Any], str]] = [
            ({"pyhv": "subscribe", "topic": "secret"}, "not allowed"),
            ({"pyhv": "subscribe", "topic": "open\n"}, "no control characters"),
            ({"pyhv": "subscribe", "topic": "open/+x"}, "stands for a whole level"),
            ({"pyhv": "subscribe", "topic": "open", "after": 5}, "after is a string"),
            ({"pyhv": "publish", "topic": "open/a", "text": "x"}, "not allowed"),
            ({"pyhv": "publish", "topic": "open/wall"}, "neither text nor base64"),
            ({"pyhv": "publish", "topic": "open/wall", "base64": "?"}, "neither text nor base64"),
            ({"pyhv": "dance", "topic": "open"}, "there is no 'dance'"),
        ]
        for question, why in questions:
            ask(question)
            server.tick(10)
            said = answer()
            assert (said["pyhv"], said["what"], said["topic"]) == ("refused", question["pyhv"], question["topic"])
            assert why in said["reason"]
        # Everything else is the program's.
        others = ['{"pyhv"', '{"pyhv":1,"topic":"a"}', '["pyhv"]', '{"topic":"pyhv"}', "x", "[" * 5000]
        for other in others:
            peer.send(other)
        peer.send(b'{"pyhv":"subscribe","topic":"open/b"}')
        tick_until(lambda: len(server.heard) == len(others) + 1, server)
        assert server.heard[:-1] == others
        assert server.subscriber_count("open/b") == 0


def test_without_enable_topics_clients_ask_in_vain() -> None:
    with Open() as server:
        server.start(0)
        client = Reader()
        client.subscribe("open/a")
        client.connect(url_of(server), topics=True)
        tick_until(lambda: client.refused, server, client)
        assert client.refused == [("open/a", f"the server does not speak {PROTOCOL}")]
        assert client.publish("open/wall", "x") is False
        client.send('{"pyhv":"subscribe","topic":"open/a"}')
        tick_until(lambda: server.heard, server, client)
        assert server.asked == []
        with pytest.raises(RuntimeError, match="while the server runs"):
            server.enable_topics()
        client.close()


def test_by_default_nothing_is_allowed() -> None:
    with HvWebServer() as server:
        server.enable_topics()
        server.start(0)
        client = Reader()
        client.subscribe("a")
        client.subscribe("a/+")
        client.connect(url_of(server), topics=True)
        tick_until(lambda: len(client.refused) == 2, server, client)
        assert client.refused == [("a", "not allowed"), ("a/+", "no wildcards")]
        client.publish("a", "x")
        tick_until(lambda: len(client.refused) == 3, server, client)
        assert client.topics == []
        client.close()


def test_an_exception_in_a_hook_closes_the_channel(server: Open) -> None:
    def fail(channel: WebSocketChannel, topic: str) -> bool:
        raise LookupError(topic)

    server.on_subscribe = fail  # type: ignore[method-assign]
    errors: list[Exception] = []
    server.on_error = errors.append  # type: ignore[method-assign,assignment]
    client = Reader()
    client.subscribe("open/a")
    client.connect(url_of(server), topics=True)
    tick_until(lambda: client.close_code == 1011, server, client)
    assert [type(error) for error in errors] == [LookupError]


def test_a_client_reads_and_publishes(server: Open) -> None:
    one, two = reader(server, "open/wall"), reader(server, "open/+")
    assert one.publish("open/wall", "h\u00e9llo")
    assert two.publish("open/wall", b"\x00")
    for client in (one, two):
        tick_until(partial(lambda c: len(c.got) == 2, client), server, one, two)
        assert sorted(client.got, key=str) == [("open/wall", "h\u00e9llo"), ("open/wall", b"\x00")]
    # What the program says beside topics comes as it is.
    server.channels[0].send('{"some": "json"}')
    server.broadcast("all")
    tick_until(lambda: "all" in one.plain and "all" in two.plain, server, one, two)
    one.unsubscribe("open/wall")
    server.publish("open/wall", "3")
    tick_until(lambda: len(two.got) == 3, server, one, two)
    assert one.topics == []
    caught_up(server, one)
    assert len(one.got) == 3
    one.close()
    two.close()


# Coming back


def test_what_was_missed_comes_once_and_in_order(server: Open) -> None:
    client = reader(server, "open/a", "open/b", reconnect=SOON)
    server.publish("open/a", "1")
    tick_until(lambda: client.got, server, client)
    lose(server, client)
    for number in range(2, 6):
        server.publish(f"open/{'ab'[number % 2]}", str(number))
    tick_until(lambda: len(client.got) == 5, server, client)
    server.publish("open/a", "6")
    tick_until(lambda: len(client.got) == 6, server, client)
    assert sorted(client.messages) == list("123456")
    assert [msg for topic, msg in client.got if topic == "open/a"] == ["1", "2", "4", "6"]
    assert client.gaps == []
    client.close()


def test_overlapping_subscriptions_resume_without_doubles(server: Open) -> None:
    client = reader(server, "open/+", "open/a", "open/#", reconnect=SOON)
    for number in range(10):
        lose(server, client)
        server.publish("open/a", str(number))
        server.publish("open/b", str(number))
    caught_up(server, client)
    for topic in ("open/a", "open/b"):
        assert [msg for name, msg in client.got if name == topic] == [str(number) for number in range(10)]
    assert client.gaps == []
    client.close()


def test_a_gap_that_is_too_old_is_told() -> None:
    with Open() as server:
        server.enable_topics()
        server.keep("open/a", messages=3)
        server.start(0)
        client = reader(server, "open/a", "open/unkept", reconnect=SOON)
        lose(server, client)
        for number in range(5):
            server.publish("open/a", str(number))
        tick_until(lambda: len(client.got) == 3, server, client)
        assert client.messages == ["2", "3", "4"]
        tick_until(lambda: len(client.gaps) == 2, server, client)
        assert sorted(client.gaps) == ["open/a", "open/unkept"]
        client.close()


def test_a_server_that_was_started_again_is_a_gap(server: Open) -> None:
    client = reader(server, "open/a", reconnect=SOON)
    server.publish("open/a", "1")
    tick_until(lambda: client.got, server, client)
    port = server.port
    assert port is not None
    server.stop()
    server.start(port)
    for number in range(3):
        server.publish("open/a", f"new {number}")
    tick_until(lambda: len(client.got) == 4, server, client)
    assert client.messages == ["1", "new 0", "new 1", "new 2"]
    assert client.gaps == ["open/a"]
    client.close()


def test_the_oldest_and_a_position_of_an_earlier_run(server: Open) -> None:
    positions = [server.publish("open/a", str(number)) for number in range(5)]
    client = reader(server)
    client.subscribe("open/a", after="oldest")
    tick_until(lambda: len(client.got) == 5, server, client)
    assert client.topic_position("open/a") == positions[-1]
    other = reader(server)
    other.subscribe("open/a", after=positions[2])
    tick_until(lambda: len(other.got) == 2, server, client, other)
    assert other.messages == ["3", "4"]
    for forged in ("nonsense", "0" * 16 + "-3", str(positions[0])[:17] + "99999"):
        another = reader(server)
        another.subscribe("open/a", after=forged)
        tick_until(partial(lambda c: len(c.got) == 5, another), server, another)
        assert another.gaps == ["open/a"]
        another.close()
    client.close()
    other.close()


def test_channels_without_the_convention_resume_by_the_program(server: Open) -> None:
    positions = [server.publish("open/a", str(number)) for number in range(5)]
    with websockets.sync.client.connect(url_of(server)) as peer:
        (channel,) = tick_until(lambda: server.channels, server)
        assert channel.subscribe("open/a", after=positions[1])
        server.publish("open/a", "5")
        assert [peer.recv(timeout=10) for _ in range(4)] == ["2", "3", "4", "5"]


def test_a_long_history_comes_whole() -> None:
    with Open() as server:
        server.enable_topics()
        server.keep("open/a", messages=100_000, max_bytes=32 << 20)
        server.start(0, max_buffered=4 << 20)
        for number in range(2000):
            server.publish("open/a", f"{number:04}" * 1000)
        client = reader(server)
        client.subscribe("open/a", after="oldest")
        tick_until(lambda: len(client.got) == 2000 or client.close_code, server, client)
        assert [str(msg)[:4] for msg in client.messages] == [f"{number:04}" for number in range(2000)]
        client.close()


class Cutter:
    """Passes bytes on between clients and a server, and resets each connection after some of them, wherever that is."""

    def __init__(self, to: int, choose: random.Random) -> None:
        self._listener = socket.create_server((HOST, 0))
        self.port: int = self._listener.getsockname()[1]
        self._to, self._choose = to, choose
        self.cuts = 0
        self.gentle = threading.Event()  # set: cuts no more
        self._over = threading.Event()
        self._thread = Background(self._run, name="cutter")

    def close(self) -> None:
        self._over.set()
        self._thread.result()
        self._listener.close()

    def _run(self) -> None:
        other: dict[socket.socket, socket.socket] = {}
        left: dict[socket.socket, int] = {}  # bytes that a server's socket may still give

        def end(one: socket.socket) -> None:
            for each in (one, other.pop(one)):
                other.pop(each, None)
                left.pop(each, None)
                each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                each.close()

        while not self._over.is_set():
            for one in select.select([self._listener, *other], [], [], 0.02)[0]:
                if one is self._listener:
                    near, far = one.accept()[0], socket.create_connection((HOST, self._to))
                    other[near], other[far] = far, near
                    left[far] = self._choose.randrange(500, 40_000)
                elif one in other:
                    try:
                        data = one.recv(1 << 16)
                        if one in left and not self.gentle.is_set():
                            data = data[: left[one]]
                            left[one] -= len(data)
                        other[one].sendall(data)
                    except OSError:
                        data = b""
                    if not data or left.get(one) == 0:
                        self.cuts += 1
                        end(one)
        for one in list(other):
            if one in other:
                end(one)


@pytest.mark.parametrize("seed", range(3))
def test_ten_thousand_messages_through_random_disconnects(seed: int) -> None:
    """None is missing and none comes twice, whoever cuts the connection, and however."""
    choose = random.Random(seed)
    with Open() as server, ExitStack() as stack:
        server.enable_topics(patterns=True)
        server.keep("open/#", messages=10_000, max_bytes=16 << 20)
        server.start(0, close_timeout=0.2)
        assert server.port is not None
        cutter = Cutter(server.port, choose)
        stack.callback(cutter.close)
        clients = [Reader() for _ in range(3)]
        for client, topics in zip(clients, (["open/0"], ["open/1", "open/2"], ["open/+"]), strict=True):
            client.connect(f"ws://{HOST}:{cutter.port}/", topics=True, reconnect=SOON)
            for topic in topics:
                client.subscribe(topic, after="oldest")
        published: list[tuple[str, str]] = []
        cuts = 0
        while len(published) < 10_000:
            for _ in range(choose.randrange(1, 60)):
                topic, text = f"open/{choose.randrange(3)}", str(len(published))
                published.append((topic, text))
                server.publish(topic, text)
            for channel in server.channels:
                if choose.random() < 0.05:
                    cuts += 1
                    channel.close(choose.choice((1001, 1011, 1012, 4000)))
            # Both sides tick now and then, not in step: much is on the way when a connection ends.
            tickers: list[Ticker] = [server, *clients]
            for ticker in tickers:
                if choose.random() < 0.7:
                    ticker.tick(choose.choice((0, 0.001)))
        wanted = [
            [(topic, text) for topic, text in published if topic in topics]
            for topics in (["open/0"], ["open/1", "open/2"], ["open/0", "open/1", "open/2"])
        ]
        cutter.gentle.set()
        caught_up(server, *clients)
        assert cuts > 10
        assert cutter.cuts > 10
        for client, want in zip(clients, wanted, strict=True):
            got = [entry for entry in client.got if entry[0] != "open/end"]
            # In order for each topic: two subscriptions are resumed one after the other.
            for topic in ("open/0", "open/1", "open/2"):
                assert [e for e in got if e[0] == topic] == [e for e in want if e[0] == topic]
            assert client.gaps == []
            client.close()
