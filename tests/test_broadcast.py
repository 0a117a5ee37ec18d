"""Broadcasts and publishes of one tick, among all else that it sends: each peer gets what was for it, in order."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest

from pyhv import HvWebServer, WebSocketChannel, WsOpcode
from support import Background, RawClient, RecordingClient, RecordingServer, port_of, tick_until, url_of, wait_until
from support_tls import SecureRawClient, make_certificates, tls_port_of

Message = str | bytes
TEXT, CONTINUATION, CLOSE = WsOpcode.TEXT, WsOpcode.CONTINUATION, WsOpcode.CLOSE


class Directed(RecordingServer):
    """Runs `scene`, inside a tick, when somebody says "go"."""

    def __init__(self) -> None:
        super().__init__()
        self.scene: Any = None

    def on_ws_message(self, channel: WebSocketChannel, msg: Message) -> None:
        super().on_ws_message(channel, msg)
        if msg == "go":
            self.scene()

    def play(self, scene: Any, director: RawClient) -> None:
        """Has one tick run `scene`."""
        count = self.record.values("message").count("go")
        self.scene = scene
        director.send_text("go")
        tick_until(lambda: self.record.values("message").count("go") > count, self)
        assert self.record.count("error") == 0


class Play:
    """Random scenes, and what each peer is to receive."""

    def __init__(self, server: HvWebServer, seed: int) -> None:
        self.server = server
        self.dice = random.Random(seed)
        self.channels = {channel.path: channel for channel in server.channels}
        self.topics = {"all": list(self.channels), "some": list(self.channels)[::2]}
        for topic, paths in self.topics.items():
            for path in paths:
                assert self.channels[path].subscribe(topic)
        self.expected: dict[str, list[Message]] = {path: [] for path in self.channels}
        self.begun: dict[str, str] = {}  # what has been sent of messages that are sent in fragments
        self.held: dict[str, list[Message]] = {path: [] for path in self.channels}
        self.number = 0

    def message(self) -> Message:
        """A new one: short, worth compressing, more than an out-buffer copies, or more than a round joins."""
        self.number += 1
        size = self.dice.choice([0, 0, 0, 10, 200, 200, 1500, 5_000, 70_000])
        text = f"{self.number} " + "".join(self.dice.choices("0123456789abcdef", k=min(size, 64))) * (size // 64 + 1)
        return text.encode() if self.dice.random() < 0.3 else text

    def broadcast(self, exclude: str | None = None) -> None:
        message = self.message()
        self.server.broadcast(message, None if exclude is None else self.channels[exclude])
        self.expect(message, self.channels, exclude)

    def publish(self, topic: str, exclude: str | None = None) -> None:
        message = self.message()
        self.server.publish(topic, message, exclude=None if exclude is None else self.channels[exclude])
        self.expect(message, self.topics[topic], exclude)

    def expect(self, message: Message, paths: Iterable[str], exclude: str | None) -> None:
        for path in paths:
            if path != exclude:
                (self.held if path in self.begun else self.expected)[path].append(message)

    def send(self, path: str) -> None:
        message = self.message()
        if path not in self.begun:
            assert self.channels[path].send(message)
            self.expected[path].append(message)
        elif self.dice.random() < 0.5:
            assert self.channels[path].send("more ", CONTINUATION, False)
            self.begun[path] += "more "
        else:
            self.end_fragments(path)

    def begin_fragments(self, path: str) -> None:
        if path not in self.begun:
            assert self.channels[path].send("begun ", TEXT, False)
            self.begun[path] = "begun "

    def end_fragments(self, path: str) -> None:
        """Behind its last fragment come the broadcasts that waited for it."""
        assert self.channels[path].send("end", CONTINUATION, True)
        self.expected[path] += [self.begun.pop(path) + "end", *self.held[path]]
        self.held[path].clear()

    def scene(self) -> None:
        """What one tick does: broadcasts alone, publishes alone, or all sorts of things."""
        kind = self.dice.choice(["broadcasts", "publishes", "mixed", "mixed", "mixed"])
        alone = self.dice.choice(list(self.channels))
        topics = self.dice.choice([["all"], ["some"], ["all", "some"]])
        for _ in range(self.dice.choice([1, 2, 16, 40])):
            path = self.dice.choice(list(self.channels))
            how = self.dice.random()
            exclude = None if how < 0.5 else path if how < 0.7 else alone
            if kind == "broadcasts":
                self.broadcast(exclude)
            elif kind == "publishes":
                self.publish(self.dice.choice(topics), exclude)
            elif how < 0.2:
                self.broadcast()
            elif how < 0.3:
                self.broadcast(exclude=path)
            elif how < 0.5:
                self.publish(self.dice.choice(topics))
            elif how < 0.6:
                self.publish(self.dice.choice(topics), exclude=path)
            elif how < 0.9:
                self.send(path)
            else:
                self.begin_fragments(path)

    def last_scene(self) -> None:
        for path in list(self.begun):
            self.end_fragments(path)
        self.server.broadcast("that was all")
        for expected in self.expected.values():
            expected.append("that was all")


def broadcast_all(server: HvWebServer, messages: list[str]) -> None:
    for message in messages:
        server.broadcast(message)


def read_all(raw: RawClient) -> Iterator[Message]:
    message: Message = ""
    while message != "that was all":
        message = raw.read_message()
        yield message


@pytest.mark.parametrize(
    ("compression", "policy"),
    [(None, "close"), ("shared", "close"), ("context", "close"), ("context", "drop_newest"), ("shared", "drop_oldest")],
)
def test_every_peer_gets_its_messages_in_the_order_of_the_calls(
    compression: Literal["shared", "context"] | None,
    policy: Literal["close", "drop_newest", "drop_oldest"],
    tmp_path: Path,
) -> None:
    certificates = make_certificates(tmp_path)
    with ExitStack() as stack:
        server = stack.enter_context(Directed())
        server.start(
            0,
            **certificates.settings,
            compression=compression,
            slow_policy=policy,
            max_buffered=1 << 30,
            ping_interval=None,
        )
        port = port_of(server)
        director = RawClient(port, "/director")
        raws = {"/director": director} | {
            f"/plain-{number}": RawClient(port, f"/plain-{number}") for number in range(3)
        }
        # Never read until the end: writes to it stop anywhere.
        raws["/slow"] = RawClient(port, "/slow", receive_buffer=4096)
        raws["/tls"] = SecureRawClient(tls_port_of(server), certificates.context(), "/tls")
        for raw in raws.values():
            stack.enter_context(raw)
        clients = {f"/client-{bits}": RecordingClient() for bits in (15, 12, 9)}
        for path, client in clients.items():
            bits = int(path.rsplit("-", 1)[1])
            client.connect(url_of(server, path), compression_window_bits=bits, max_message_size=1 << 20)
            stack.callback(client.close)
        tick_until(lambda: len(server.channels) == len(raws) + len(clients), server, *clients.values())
        agreed = sum(channel.is_compressed for channel in server.channels)
        assert agreed == (0 if compression is None else len(clients))
        play = Play(server, seed=7)
        for _ in range(60):
            server.play(play.scene, director)
            for client in clients.values():
                client.tick()
        server.play(play.last_scene, director)
        readers = {path: Background(lambda raw=raw: list(read_all(raw))) for path, raw in raws.items()}  # type: ignore[misc]
        for path, reader in readers.items():
            assert reader.result(server, *clients.values()) == play.expected[path], path
        for path, client in clients.items():
            expected = play.expected[path]
            tick_until(lambda client=client, expected=expected: len(client.received) >= len(expected), client)  # type: ignore[misc]
            assert client.received == expected, path
        wait_until(lambda: all(channel.buffered_amount == 0 for channel in server.channels), what="nothing waits")


@pytest.mark.parametrize("published", [False, True], ids=["broadcast", "published"])
@pytest.mark.parametrize("policy", ["close", "drop_oldest"])
def test_a_write_that_stops_anywhere_goes_on_there(policy: Literal["close", "drop_oldest"], published: bool) -> None:
    """Nothing but broadcasts, or publishes to one topic: written without a queue until the socket takes no more."""
    with ExitStack() as stack:
        server = stack.enter_context(Directed())
        server.start(0, slow_policy=policy, max_buffered=1 << 30, ping_interval=None)
        director = stack.enter_context(RawClient(port_of(server), "/director"))
        slow = {path: RawClient(port_of(server), path, receive_buffer=4096) for path in ("/a", "/b", "/c", "/d")}
        for raw in slow.values():
            stack.enter_context(raw)
        tick_until(lambda: len(server.channels) == 1 + len(slow), server)
        channels = [channel for channel in server.channels if channel.path != "/director"]
        for channel in server.channels:
            channel.subscribe("all")
        dice = random.Random(3)
        for _ in range(4):
            sent: dict[str, list[str]] = {channel.path: [] for channel in server.channels}

            def scene(sent: dict[str, list[str]] = sent) -> None:
                for number in range(16):
                    text = f"{number} " + "x" * dice.randrange(1900)
                    excluded = dice.choice([None, None, *channels])
                    if published:
                        server.publish("all", text, exclude=excluded)
                    else:
                        server.broadcast(text, excluded)
                    for path, theirs in sent.items():
                        if excluded is None or path != excluded.path:
                            theirs.append(text)

            while not all(channel.buffered_amount for channel in channels):
                server.play(scene, director)
                assert [director.read_message() for _ in range(16)] == sent["/director"][-16:]
            readers = {
                path: Background(lambda raw=raw, theirs=sent[path]: [raw.read_message() for _ in theirs])  # type: ignore[misc]
                for path, raw in slow.items()
            }
            for path, reader in readers.items():
                assert reader.result(server) == sent[path], path
            wait_until(lambda: not any(channel.buffered_amount for channel in channels))


def test_a_broadcast_reaches_a_channel_from_its_open_to_its_close() -> None:
    """Among commands of the same tick: before the one it is too early, behind the other too late."""
    with Directed() as server:
        server.start(0)
        with RawClient(port_of(server), "/witness") as witness:
            tick_until(lambda: server.channels, server)
            (first,) = server.channels
            server.scene = lambda: server.broadcast("too early")
            witness.send_text("go")
            with RawClient(port_of(server), "/guest") as guest:
                tick_until(lambda: len(server.channels) == 2, server)
                assert witness.read_message() == "too early"
                (leaving,) = (channel for channel in server.channels if channel is not first)

                def scene() -> None:
                    server.broadcast("one")
                    server.broadcast("two", exclude=first)
                    leaving.close(4000)
                    server.broadcast("three")

                server.play(scene, witness)
                assert [guest.read_message(), guest.read_message()] == ["one", "two"]
                assert guest.read_close().close_code == 4000
                assert [witness.read_message(), witness.read_message()] == ["one", "three"]


def test_broadcasts_leave_before_the_close_of_a_stop() -> None:
    server = Directed()
    server.start(0)
    with RawClient(port_of(server)) as raw:
        tick_until(lambda: server.channels, server)
        for number in range(20):
            server.broadcast(f"{number}")
        reading = Background(lambda: ([raw.read_message() for _ in range(20)], raw.answer_close()))
        server.stop()
        assert reading.result() == ([f"{number}" for number in range(20)], 1001)


@pytest.mark.parametrize("policy", ["drop_newest", "drop_oldest", "close"])
def test_more_broadcasts_in_a_tick_than_may_wait_go_by_the_policy(
    policy: Literal["drop_newest", "drop_oldest", "close"],
) -> None:
    """As much as `max_buffered` in one tick is for everybody; what is more is dropped as for a slow peer."""
    with Directed() as server:
        server.start(0, slow_policy=policy, max_buffered=10_000)
        with RawClient(port_of(server)) as raw:
            tick_until(lambda: server.channels, server)
            (channel,) = server.channels
            fitting = [f"{number:098}" for number in range(100)]
            server.play(partial(broadcast_all, server, fitting), raw)
            assert [raw.read_message() for _ in fitting] == fitting
            assert channel.dropped == 0
            server.play(partial(broadcast_all, server, ["first", *fitting]), raw)
            if policy == "close":
                assert raw.read_close().close_code == 1008
            else:
                expected = ["first", *fitting[:99]] if policy == "drop_newest" else fitting
                assert [raw.read_message() for _ in expected] == expected
                assert channel.dropped == 1
