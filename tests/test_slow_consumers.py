"""Peers that read too slowly: what is dropped, what arrives when they read at last, and who else notices.

Every message carries its number, so that what arrived tells what was dropped. Each batch that is sent is waited for
with a bystander: the native side takes everything in one order, so what the bystander has got was queued for the slow
peer too.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pyhv import WebSocketChannel, WsOpcode
from support import (
    Background,
    EchoServer,
    Frame,
    RawClient,
    RawPeer,
    RawServer,
    RecordingClient,
    RecordingServer,
    port_of,
    resident_bytes,
    tick_until,
    wait_until,
)

MIB = 1 << 20
BINARY, TEXT, PING, PONG, CLOSE = WsOpcode.BINARY, WsOpcode.TEXT, WsOpcode.PING, WsOpcode.PONG, WsOpcode.CLOSE
MOST = 200 * MIB  # no socket buffers this much


@dataclass(frozen=True)
class Size:
    """Of the messages, and of what may wait for the peer."""

    message: int
    max_buffered: int
    batch: int  # messages until the bystander is waited for; less than max_buffered

    def build(self, number: int) -> bytes:
        return number.to_bytes(4, "big") + b"%d" % (number % 10) * (self.message - 4)

    def number(self, message: str | bytes) -> int:
        """The number of a message, which has to be whole."""
        assert isinstance(message, bytes)
        number = int.from_bytes(message[:4], "big")
        assert message == self.build(number), "a message was torn"
        return number

    @property
    def frame(self) -> int:
        """Bytes on the wire, at least."""
        return self.message + 2


SIZES = {"small": Size(100, 100_000, 200), "large": Size(50_000, 600_000, 4)}


@dataclass
class Scene:
    """A slow peer, a bystander, and what was sent to the slow one."""

    server: RecordingServer
    size: Size
    how: str
    slow: RawClient
    bystander: RawClient
    channels: dict[str, WebSocketChannel]
    sent: int = 0
    accepted: list[int] = field(default_factory=list)  # of send: the numbers for which it returned True

    @property
    def channel(self) -> WebSocketChannel:
        return self.channels["/slow"]

    def send_batch(self) -> None:
        for number in range(self.sent, self.sent + self.size.batch):
            message = self.size.build(number)
            if self.how == "broadcast":
                self.server.broadcast(message)
            else:
                if self.channel.send(message):
                    self.accepted.append(number)
                assert self.channels["/bystander"].send(message)
        for number in range(self.sent, self.sent + self.size.batch):
            assert self.size.number(self.bystander.read_message()) == number
        self.sent += self.size.batch
        assert self.channel.buffered_amount <= self.size.max_buffered + self.size.message
        self.server.tick()

    def fill(self, dropped: int = 100) -> None:
        """Sends until so many messages were dropped."""
        while self.channel.dropped < dropped:
            assert self.sent * self.size.message < MOST, "everything fits into the socket's buffers?"
            self.send_batch()

    def read_all(self) -> list[int]:
        """Lets the slow peer read everything that waits; returns the numbers."""
        reading = Background(lambda: self._read())
        wait_until(lambda: self.channel.buffered_amount == 0, what="everything has left")
        assert self.channel.send("that was all")
        result: list[int] = reading.result(self.server)
        return result

    def _read(self) -> list[int]:
        numbers = []
        while (message := self.slow.read_message()) != "that was all":
            numbers.append(self.size.number(message))
        return numbers


@contextmanager
def scene(policy: str, size: Size, how: str = "send", server: RecordingServer | None = None) -> Iterator[Scene]:
    server = server or RecordingServer()
    server.start(0, slow_policy=policy, max_buffered=size.max_buffered, ping_interval=None)  # type: ignore[arg-type]
    try:
        with (
            RawClient(port_of(server), "/slow", receive_buffer=4096) as slow,
            RawClient(port_of(server), "/bystander") as bystander,
        ):
            tick_until(lambda: len(server.channels) == 2, server)
            channels = {channel.path: channel for channel in server.channels}
            # Announced to the native side, so that the first broadcast reaches both.
            for channel, raw in ((channels["/slow"], slow), (channels["/bystander"], bystander)):
                assert channel.send("welcome")
                assert raw.read_message() == "welcome"
            yield Scene(server, size, how, slow, bystander, channels)
            assert server.record.count("error") == 0
            # The bystander has seen nothing of all that.
            assert channels["/bystander"].dropped == 0
            bystander.send_text("still here")
            tick_until(lambda: "still here" in server.record.values("message"), server)
            assert channels["/bystander"].is_open
    finally:
        server.stop(0)


every_case = pytest.mark.parametrize(
    ("size", "how"),
    [(SIZES[size], how) for size in SIZES for how in ("send", "broadcast")],
    ids=[f"{size} {how}" for size in SIZES for how in ("send", "broadcast")],
)


@every_case
def test_drop_newest_keeps_the_oldest(size: Size, how: str) -> None:
    with scene("drop_newest", size, how) as on:
        on.fill()
        received = on.read_all()
        assert received == sorted(set(received))
        assert len(received) == on.sent - on.channel.dropped
        if how == "send":
            assert received == on.accepted  # send() told
        # What was there before the first drop is all there, and it is at least what may wait.
        first_gap = next(n for n, number in enumerate([*received, -1]) if number != n)
        assert first_gap * (size.message + 10) >= size.max_buffered - size.message
        assert on.channel.is_open


@every_case
def test_drop_oldest_keeps_the_newest(size: Size, how: str) -> None:
    with scene("drop_oldest", size, how) as on:
        on.fill()
        received = on.read_all()
        assert received == sorted(set(received))
        assert len(received) == on.sent - on.channel.dropped
        # The last ones are all there, as many as may wait.
        newest = (size.max_buffered - 2 * size.message) // (size.message + 10)
        assert received[-newest:] == list(range(on.sent - newest, on.sent))
        # Something in between is missing, and what had begun to leave is not.
        assert received[0] == 0
        assert on.channel.is_open
        if how == "send":
            assert on.accepted == list(range(on.sent))  # nothing that was given was refused


@every_case
def test_close_ends_the_channel_and_drops_nothing_before(size: Size, how: str) -> None:
    with scene("close", size, how) as on:
        while on.channel.is_open:
            assert on.sent * size.message < MOST
            on.send_batch()
        tick_until(lambda: on.server.record.count("close"), on.server)
        assert on.server.record.values("close", on.channel) == [1008]
        assert on.channel.dropped == 0
        assert on.channel.send("more") is False
        on.server.broadcast("more")
        assert on.bystander.read_message() == "more"
        numbers = []
        while (frame := on.slow.read_frame()).opcode == BINARY:
            numbers.append(size.number(frame.payload))
        assert numbers == list(range(len(numbers)))
        assert (frame.opcode, frame.close_code) == (CLOSE, 1008)
        assert "max_buffered" in frame.close_reason
        assert len(numbers) < on.sent


@pytest.mark.parametrize("policy", ["drop_newest", "drop_oldest"])
def test_a_channel_that_was_slow_gets_everything_again(policy: str) -> None:
    with scene(policy, SIZES["large"]) as on:
        on.fill(10)
        on.read_all()
        dropped = on.channel.dropped
        for text in ("one", "two", "three"):
            assert on.channel.send(text)
            assert on.slow.read_message() == text
        assert on.channel.dropped == dropped


@pytest.mark.parametrize("how", ["send", "broadcast"])
def test_drop_oldest_keeps_the_newest_of_one_long_tick(how: str) -> None:
    """What one tick sends is handed over at its end: more than may wait, and still the newest count."""
    size = SIZES["large"]
    count = 200

    class Burst(RecordingServer):
        def on_ws_message(self, channel: WebSocketChannel, msg: str | bytes) -> None:
            super().on_ws_message(channel, msg)
            if msg != "burst":
                return
            slow = next(channel for channel in self.channels if channel.path == "/slow")
            for number in range(count):
                if how == "broadcast":
                    self.broadcast(size.build(number), exclude=channel)
                else:
                    slow.send(size.build(number))

    with scene("drop_oldest", size, how, Burst()) as on:
        on.bystander.send_text("burst")
        tick_until(lambda: "burst" in on.server.record.values("message"), on.server)
        received = on.read_all()
        assert received == sorted(set(received))
        assert len(received) == count - on.channel.dropped
        assert received[-1] == count - 1, f"the newest was dropped, {received[-1]} was the last to arrive"


def test_a_single_message_larger_than_the_limit_is_sent() -> None:
    size = Size(1_000_000, 100_000, 1)
    for policy in ("close", "drop_newest", "drop_oldest"):
        with scene(policy, size) as on:
            assert on.channel.send(size.build(0))
            assert on.read_all() == [0]
            assert on.channel.dropped == 0


@pytest.mark.parametrize("policy", ["drop_newest", "drop_oldest"])
def test_control_frames_pass(policy: str) -> None:
    with scene(policy, SIZES["large"]) as on:
        on.fill(10)
        assert on.channel.send(b"from the program", WsOpcode.PING)
        assert on.channel.send(b"unasked", WsOpcode.PONG)
        on.slow.send_ping(b"from the peer")
        on.slow.send_text("and a message behind it")
        tick_until(lambda: "and a message behind it" in on.server.record.values("message"), on.server)
        on.send_batch()  # more is dropped
        on.channel.close(4000, "enough")
        frames: list[Frame] = []
        while not frames or frames[-1].opcode != CLOSE:
            frames.append(on.slow.read_frame())
        on.slow.send_close(4000)
        control = {(frame.opcode, frame.payload) for frame in frames if frame.opcode in (PING, PONG)}
        assert (PING, b"from the program") in control
        assert (PONG, b"unasked") in control
        assert (PONG, b"from the peer") in control or frames[-1].opcode == CLOSE
        assert (frames[-1].close_code, frames[-1].close_reason) == (4000, "enough")
        numbers = [on.size.number(frame.payload) for frame in frames if frame.opcode == BINARY]
        assert numbers == sorted(set(numbers))
        assert len(numbers) + on.channel.dropped == on.sent
        on.slow.expect_end()
        tick_until(lambda: on.server.record.count("close"), on.server)
        assert on.server.record.values("close") == [4000]


@pytest.mark.parametrize("policy", ["drop_newest", "drop_oldest"])
def test_a_pong_is_owed_even_to_a_slow_peer(policy: str) -> None:
    with scene(policy, SIZES["large"]) as on:
        on.fill(10)
        on.slow.send_ping(b"there?")
        on.slow.send_text("behind it")
        tick_until(lambda: "behind it" in on.server.record.values("message"), on.server)

        def read() -> Frame:
            while (frame := on.slow.read_frame()).opcode != PONG:
                on.size.number(frame.payload)
            return frame

        assert Background(read).result(on.server).payload == b"there?"


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="the kernel does not tell here")
def test_a_peer_that_never_reads_is_reset_in_the_end() -> None:
    """Closed in the usual way, its socket would stay with the kernel for as long as the peer keeps its window shut, and
    megabytes of what was sent with it."""
    server = RecordingServer()
    server.start(0, max_buffered=100_000, close_timeout=0.5)
    with server, RawClient(port_of(server), "/shut", receive_buffer=4096) as shut:
        tick_until(lambda: server.channels, server)
        (channel,) = server.channels
        tick_until(lambda: not channel.send(bytes(100_000)), server)
        tick_until(lambda: server.record.count("close"), server)
        assert channel.close_code == 1008
        # The peer need not hear of it: a reset may not fit through a window that is shut.
        mine, theirs = f":{port_of(server):04X}", f":{shut.socket.getsockname()[1]:04X}"

        def kept() -> bool:
            lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()]
            return any(line[1].endswith(mine) and line[2].endswith(theirs) for line in lines)

        assert kept()
        tick_until(lambda: not kept(), server)


def messages_of(frames: list[Frame]) -> list[bytes]:
    """Puts fragments together (RFC 6455 section 5.4); a frame out of sequence is an error."""
    messages: list[bytes] = []
    parts: list[bytes] | None = None
    for frame in frames:
        if frame.opcode in (PING, PONG, CLOSE):
            continue
        if frame.opcode == WsOpcode.CONTINUATION:
            assert parts is not None, "a fragment without its beginning"
            parts.append(frame.payload)
        else:
            assert parts is None, "a message inside another"
            parts = [frame.payload]
        if frame.fin:
            messages.append(b"".join(parts))
            parts = None
    return messages


@pytest.mark.parametrize("policy", ["drop_newest", "drop_oldest"])
@pytest.mark.parametrize("begun", ["before", "while full"])
def test_fragments_are_never_torn(policy: str, begun: str) -> None:
    """A message in fragments arrives whole or not at all; and what it costs is 1008 at worst."""
    with scene(policy, SIZES["large"], "broadcast") as on:
        on.send_batch()
        if begun == "while full":
            on.fill(10)
        told = [on.channel.send(b"begin", fin=False)]
        if begun == "before":
            while not on.channel.dropped and on.channel.is_open:  # broadcasts wait for the message to end
                assert on.sent * on.size.message < MOST
                on.send_batch()
        told.append(on.channel.send(b"middle" * 1000, WsOpcode.CONTINUATION, fin=False) if all(told) else False)
        told.append(on.channel.send(b"end", WsOpcode.CONTINUATION) if all(told) else False)

        def read() -> list[Frame]:
            frames = [on.slow.read_frame()]
            while frames[-1].opcode != CLOSE and frames[-1].payload != b"that was all":
                frames.append(on.slow.read_frame())
            return frames

        reading = Background(read)
        if on.channel.is_open:
            wait_until(lambda: on.channel.buffered_amount == 0)
            assert on.channel.send("that was all")
        frames = reading.result(on.server)
        messages = messages_of(frames)
        whole = b"begin" + b"middle" * 1000 + b"end"
        assert [message for message in messages if message.startswith(b"begin")] == [whole] * all(told)
        numbers = [on.size.number(m) for m in messages if m != whole and m != b"that was all"]
        assert numbers == sorted(set(numbers))
        if frames[-1].opcode == CLOSE:
            assert not all(told)
            assert frames[-1].close_code == 1008


@pytest.mark.parametrize("policy", ["drop_newest", "drop_oldest"])
def test_a_fragmented_message_does_not_close_a_channel_whose_policy_is_to_drop(policy: str) -> None:
    with scene(policy, SIZES["large"], "broadcast") as on:
        on.fill(10)
        on.channel.send(b"begin", fin=False)
        on.channel.send(b"end", WsOpcode.CONTINUATION)
        on.send_batch()
        assert on.channel.is_open


@pytest.mark.parametrize("policy", ["drop_newest", "drop_oldest"])
@pytest.mark.parametrize("how", ["send", "broadcast"])
def test_memory_is_bounded(policy: str, how: str) -> None:
    with scene(policy, Size(50_000, MIB, 10), how) as on:
        on.fill(5)
        gc.collect()
        before = resident_bytes()
        for _ in range(100):  # 50 MB
            on.send_batch()
        on.accepted.clear()
        assert resident_bytes() - before < 8 * MIB


# on_ws_drain


class DrainServer(EchoServer):
    def on_ws_drain(self, channel: WebSocketChannel) -> None:
        self.record.add("drain", channel, channel.buffered_amount)


@pytest.mark.parametrize("policy", ["close", "drop_newest", "drop_oldest"])
def test_drain_is_told_when_all_has_left(policy: str) -> None:
    server = DrainServer()
    size = Size(50_000, 100 * MIB, 4)
    with scene(policy, size, "send", server) as on:
        while on.channel.buffered_amount < 4 * MIB:
            on.send_batch()
        server.tick()
        assert server.record.count("drain") == 0
        received = on.read_all()
        assert received == list(range(on.sent))
        tick_until(lambda: server.record.count("drain"), server)
        drained = [call.who for call in server.record.calls if call.what == "drain"]
        assert set(drained) == {on.channel}
        assert on.channel.send("writable")
        assert on.slow.read_message() == "writable"
        # The next time is told again.
        told = server.record.count("drain")
        while on.channel.buffered_amount < 4 * MIB:
            on.send_batch()
        on.read_all()
        tick_until(lambda: server.record.count("drain") > told, server)


class Feeder(RecordingServer):
    """Sends pieces until one is refused, and goes on when told that the channel is writable."""

    def __init__(self, size: Size, pieces: int) -> None:
        super().__init__()
        self.size = size
        self.pieces = pieces
        self.next = 0

    def feed(self, channel: WebSocketChannel) -> None:
        while self.next < self.pieces and channel.send(self.size.build(self.next)):
            self.next += 1

    def on_ws_message(self, channel: WebSocketChannel, msg: str | bytes) -> None:
        self.feed(channel)

    def on_ws_drain(self, channel: WebSocketChannel) -> None:
        self.record.add("drain", channel)
        self.feed(channel)


@pytest.mark.parametrize(
    "size", [Size(300_000, 20 * MIB, 1), Size(500, 1000, 1)], ids=["the socket is full", "the socket is not full"]
)
def test_a_refused_send_is_followed_by_a_drain(size: Size) -> None:
    """Or a program that waits for it would wait for ever."""
    pieces = 200
    with Feeder(size, pieces) as server:
        server.start(0, slow_policy="drop_newest", max_buffered=size.max_buffered, ping_interval=None)
        with RawClient(port_of(server), receive_buffer=64 << 10) as raw:
            raw.send_text("go")
            tick_until(lambda: server.next, server)
            assert server.next < pieces
            reading = Background(lambda: [size.number(raw.read_message()) for _ in range(pieces)])
            assert reading.result(server, limit=10) == list(range(pieces))
            assert server.record.count("drain") > 0
        server.stop(0)


def test_broadcasts_that_push_others_out_are_followed_by_a_drain() -> None:
    """Even if what is left fits into the socket."""

    class Server(DrainServer):
        def on_ws_message(self, channel: WebSocketChannel, msg: str | bytes) -> None:
            # In a tick, so that they are handed over together and none leaves in between.
            for _ in range(100):
                self.broadcast("m" * 1000)

    with Server() as server:
        server.start(0, slow_policy="drop_oldest", max_buffered=4096)
        with RawClient(port_of(server)) as raw:
            raw.send_text("go")
            tick_until(lambda: server.record.count("drain"), server)
            assert server.channels[0].dropped > 0
            assert raw.read_message() == "m" * 1000


def test_no_drain_without_a_full_socket() -> None:
    with DrainServer() as server:
        server.start(0)
        with RawClient(port_of(server)) as raw:
            for number in range(50):
                raw.send_text(str(number))
                tick_until(lambda: server.record.count("message") > number, server)  # noqa: B023
                assert raw.read_message() == str(number)
            raw.send_close()
            tick_until(lambda: server.record.count("close"), server)
        assert server.record.count("drain") == 0


def test_no_event_for_a_drain_that_nobody_wants() -> None:
    server = RecordingServer()
    size = Size(50_000, 100 * MIB, 4)
    with scene("close", size, "send", server) as on:
        while on.channel.buffered_amount < 4 * MIB:
            on.send_batch()
        reading = Background(on._read)
        wait_until(lambda: on.channel.buffered_amount == 0)
        assert on.channel.send("that was all")
        assert wait_until(reading.done) and reading.result() == list(range(on.sent))
        on.slow.send_ping(b"there?")
        assert on.slow.read_frame().payload == b"there?"
        assert server.tick() == 0


def test_a_drain_that_raises_closes_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    class OnPurposeError(Exception):
        pass

    class Raising(RecordingServer):
        def on_ws_drain(self, channel: WebSocketChannel) -> None:
            raise OnPurposeError

    with Raising() as server:
        # The first drain may come while megabytes are still to be read: the close frame stands behind them.
        server.start(0, max_buffered=100 * MIB, ping_interval=None, close_timeout=60)
        with (
            RawClient(port_of(server), "/slow", receive_buffer=4096) as slow,
            RawClient(port_of(server), "/good") as good,
        ):
            tick_until(lambda: len(server.channels) == 2, server)
            channels = {channel.path: channel for channel in server.channels}
            message = bytes(50_000)
            sent = 0
            # Still there after the I/O thread has answered others: the socket is full, and not merely the thread late.
            while channels["/slow"].buffered_amount < 4 * MIB:
                while channels["/slow"].buffered_amount < 8 * MIB:
                    assert channels["/slow"].send(message)
                    sent += 1
                for _ in range(3):
                    good.send_ping()
                    assert good.read_frame().opcode == PONG
            reading = Background(lambda: [slow.read_message() == message for _ in range(sent)])
            assert all(reading.result(server))
            tick_until(lambda: server.record.count("error"), server)
            assert isinstance(server.record.values("error")[0], OnPurposeError)
            assert any("on_ws_drain" in text for text in caplog.messages)
            assert channels["/good"].send("hello")
            assert good.read_message() == "hello"
        server.stop(0)


# Clients


@pytest.mark.parametrize("policy", ["drop_newest", "drop_oldest"])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_a_client_with_a_slow_server(policy: str, size: Size) -> None:
    client = RecordingClient()
    with RawServer(receive_buffer=4096) as listener:
        client.connect(listener.url, slow_policy=policy, max_buffered=size.max_buffered, ping_interval=None)  # type: ignore[arg-type]
        with listener.accept_websocket() as peer:
            tick_until(lambda: client.is_connected, client)
            sent = 0
            accepted = []
            while client.dropped < 100:
                assert sent * size.message < MOST
                for _ in range(size.batch):
                    if client.send(size.build(sent)):
                        accepted.append(sent)
                    sent += 1
                # The native side has taken the batch.
                wait_until(lambda: client.buffered_amount <= size.max_buffered)
            client.tick()
            received = read_numbers(peer, size, client)
            assert received == sorted(set(received))
            assert len(received) + client.dropped == sent
            if policy == "drop_newest":
                assert received == accepted
            else:
                assert accepted == list(range(sent))
                newest = (size.max_buffered - 2 * size.message) // (size.message + 10)
                assert received[-newest:] == list(range(sent - newest, sent))
            assert client.is_connected


def read_numbers(peer: RawPeer, size: Size, client: RecordingClient) -> list[int]:
    """Lets the peer read everything that the client has for it."""

    def read() -> list[int]:
        numbers = []
        while (message := peer.read_message()) != "that was all":
            numbers.append(size.number(message))
        return numbers

    reading = Background(read)
    tick_until(lambda: client.buffered_amount == 0, client)
    assert client.send("that was all")
    result: list[int] = reading.result(client)
    return result


class DrainClient(RecordingClient):
    def on_drain(self) -> None:
        self.record.add("drain")


@pytest.mark.parametrize("kind", [DrainClient, RecordingClient])
def test_a_client_is_told_of_a_drain(kind: Callable[[], RecordingClient]) -> None:
    client = kind()
    size = Size(50_000, 100 * MIB, 4)
    with RawServer(receive_buffer=4096) as listener:
        client.connect(listener.url, max_buffered=size.max_buffered, ping_interval=None)
        with listener.accept_websocket() as peer:
            tick_until(lambda: client.is_connected, client)
            sent = 0
            while client.buffered_amount < 4 * MIB:
                assert client.send(size.build(sent))
                sent += 1
            client.tick()
            assert client.record.count("drain") == 0
            assert read_numbers(peer, size, client) == list(range(sent))
            if isinstance(client, DrainClient):
                tick_until(lambda: client.record.count("drain"), client)
            assert client.dropped == 0
            peer.send_text("the end")
            tick_until(lambda: client.received, client)
            assert bool(client.record.count("drain")) == isinstance(client, DrainClient)


def test_a_client_does_not_drain_without_need() -> None:
    client = DrainClient()
    with EchoServer() as server:
        server.start(0)
        client.connect(f"ws://127.0.0.1:{port_of(server)}/")
        tick_until(lambda: client.is_connected, client, server)
        for number in range(20):
            client.send(str(number))
            tick_until(lambda: len(client.received) > number, client, server)  # noqa: B023
        assert client.record.count("drain") == 0
        client.close()
        tick_until(lambda: client.close_code, client, server)


def test_dropped_of_a_fresh_channel_and_client_is_zero() -> None:
    client = RecordingClient()
    counts: dict[str, Any] = {"before connect": client.dropped}
    assert counts == {"before connect": 0}
