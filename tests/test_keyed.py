"""`send(key=)` and `broadcast(key=)`: of the messages with one key that have not left, only the newest does."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import aiohttp
import pytest
import websockets.sync.client

from pyhv import HvWebServer, HvWebSocketClient, Reconnect, WebSocketChannel, WsOpcode
from support import (
    HOST,
    Background,
    RawClient,
    RawPeer,
    RawServer,
    RecordingClient,
    RecordingServer,
    connected,
    only_channel,
    port_of,
    tick_until,
    url_of,
    wait_until,
)
from support_slow import Line, SlowReader
from support_tls import make_certificates, secure_url_of

Script = Callable[["Scripted", WebSocketChannel], None]


class Scripted(RecordingServer):
    """Runs `script` in the callback of a message, so that what it sends leaves together."""

    script: Script

    def on_ws_message(self, channel: WebSocketChannel, msg: str | bytes) -> None:
        type(self).script(self, channel)


@contextlib.contextmanager
def scripted(script: Script, **settings: Any) -> Iterator[Scripted]:
    class Server(Scripted):
        pass

    Server.script = staticmethod(script)
    with Server() as server:
        server.start(0, **settings)
        yield server


def ran(script: Script, **settings: Any) -> tuple[list[Any], WebSocketChannel]:
    """What a client gets of one tick that runs `script`, up to the message "end", and its channel."""

    def with_end(server: Scripted, channel: WebSocketChannel) -> None:
        script(server, channel)
        channel.send("end")

    with scripted(with_end, **settings) as server:
        client = connected(server)
        channel = only_channel(server)
        client.send("go")
        tick_until(lambda: "end" in client.received, client, server)
        return client.received[:-1], channel


# One tick


def test_the_newest_leaves_at_the_place_of_the_first() -> None:
    def script(_: Scripted, channel: WebSocketChannel) -> None:
        assert channel.send("a1", key="a")
        assert channel.send("plain")
        assert channel.send("b1", key="b")
        assert channel.send("a2", key="a")
        assert channel.send(b"a3", key="a")

    received, channel = ran(script)
    assert received == [b"a3", "plain", "b1"]
    assert (channel.replaced, channel.dropped, channel.buffered_amount) == (2, 0, 0)


def test_str_and_bytes_are_different_keys_and_may_be_empty() -> None:
    def script(_: Scripted, channel: WebSocketChannel) -> None:
        for key in ("k", b"k", "", b"", "k\u00e9", "k\u00e9"):
            channel.send(repr(key), key=key)
        channel.send("named", WsOpcode.BINARY, key=b"k")

    received, channel = ran(script)
    assert received == ["'k'", b"named", "''", "b''", "'k\u00e9'"]
    assert channel.replaced == 2


def test_what_has_left_is_not_replaced() -> None:
    with RecordingServer() as server:
        server.start(0)
        client = connected(server)
        channel = only_channel(server)
        for number in range(20):
            channel.send(str(number), key="a")
            tick_until(lambda number=number: len(client.received) > number, client, server)  # type: ignore[misc]
        assert client.received == [str(number) for number in range(20)]
        assert channel.replaced == 0


@pytest.mark.parametrize("compression", [None, "shared", "context"])
def test_broadcasts_and_sends_replace_each_other(compression: Literal["shared", "context"] | None) -> None:
    def script(server: Scripted, channel: WebSocketChannel) -> None:
        channel.send("a, sent", key="a")
        server.broadcast("a, broadcast " * 50, key="a")
        channel.send("b, sent", key="b")
        server.broadcast("b, broadcast", key="b")
        channel.send("b, sent last " * 50, key="b")
        server.broadcast("c, broadcast", key="c")
        channel.send("c, sent", key="c")
        server.broadcast("d", key="d")
        server.broadcast("d, last", key="d")

    received, channel = ran(script, compression=compression)
    assert received == ["a, broadcast " * 50, "b, sent last " * 50, "c, sent", "d, last"]
    assert channel.replaced == 5


def test_broadcasts_of_one_tick_leave_out_who_is_excluded() -> None:
    with RecordingServer() as server:
        server.start(0)
        one, two = connected(server), connected(server)
        tick_until(lambda: len(server.channels) == 2, server)
        first = server.channels[0]

        class Once(RecordingClient):
            """Its callback makes the broadcasts of one tick of its own: corked all the same."""

            def on_open(self) -> None:
                server.broadcast("x1", key="x")
                server.broadcast("y1", key="y", exclude=first)
                server.broadcast("x2", key="x")
                server.broadcast("y2", key="y", exclude=first)
                server.broadcast("y3", key="y")
                server.broadcast("end")

        third = Once()
        third.connect(url_of(server))
        tick_until(lambda: "end" in one.received and "end" in two.received, server, one, two, third)
        assert {tuple(one.received), tuple(two.received)} >= {("x2", "y3", "end")}
        for client in (one, two):
            assert client.received[0] == "x2"
            assert client.received[-2:] == ["y3", "end"]
        assert first.replaced == 1
        third.close()


def test_a_closed_channel_takes_none() -> None:
    with RecordingServer() as server:
        server.start(0)
        client = connected(server)
        channel = only_channel(server)
        channel.send("last", key="a")
        channel.close()
        assert channel.send("too late", key="a") is False
        tick_until(lambda: client.close_code == 1000, client, server)
        server.broadcast("nobody", key="a")
        assert client.received == ["last"]
        assert client.send("x", key="a") is False
        assert (channel.replaced, channel.buffered_amount) == (0, 0)


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"key": 7}, TypeError, "a key is str or bytes, not int"),
    ({"key": bytearray(b"k")}, TypeError, "a key is str or bytes, not bytearray"),
    ({"key": "k", "fin": False}, ValueError, "fin=False does not go with a key"),
    ({"key": "k", "opcode": WsOpcode.PING}, ValueError, "a PING frame has no key"),
    ({"key": "k", "opcode": WsOpcode.CONTINUATION}, ValueError, "a CONTINUATION frame has no key"),
]


@pytest.mark.parametrize(("options", "error", "text"), BAD, ids=lambda value: ascii(value)[:30])
def test_what_can_have_no_key(options: dict[str, Any], error: type[Exception], text: str) -> None:
    with RecordingServer() as server:
        server.start(0)
        client = connected(server)
        for end in (client, only_channel(server), RecordingClient()):
            with pytest.raises(error, match=text):
                end.send("x", **options)
        if error is TypeError:
            with pytest.raises(error, match=text):
                server.broadcast("x", **options)


def test_no_key_inside_a_message_sent_in_fragments() -> None:
    def script(server: Scripted, channel: WebSocketChannel) -> None:
        channel.send("one, ", fin=False)
        with pytest.raises(ValueError, match="a fragmented message is open"):
            channel.send("x", key="a")
        server.broadcast("held", key="a")
        server.broadcast("held, and replaced", key="a")
        channel.send("two")
        channel.send("behind", key="a")

    received, channel = ran(script)
    assert received == ["one, two", "behind"]
    assert channel.replaced == 2


def test_threads() -> None:
    """Each has a key of its own, and all have one in common."""
    each, count = 3000, 4
    with RecordingServer() as server:
        server.start(0)
        client = connected(server)
        channel = only_channel(server)

        def sending(name: int) -> None:
            for number in range(each):
                assert channel.send(f"{name}:{number}", key=str(name))
                assert channel.send(f"common:{number}", key="common")

        threads = [threading.Thread(target=sending, args=(name,)) for name in range(count)]
        for thread in threads:
            thread.start()
        last = {f"{name}:{each - 1}" for name in range(count)}
        tick_until(lambda: last <= set(client.received), client, server)
        for thread in threads:
            thread.join()
        tick_until(lambda: len(client.received) + channel.replaced == 2 * each * count, client, server)
        for name in range(count):
            numbers = [int(msg.split(":")[1]) for msg in client.received if msg.startswith(f"{name}:")]
            assert numbers == sorted(set(numbers))
        wait_until(lambda: channel.buffered_amount == 0)


# A peer that has not read what it was sent: it does not answer the ping


def next_frame(peer: RawPeer) -> tuple[int, bytes]:
    frame = peer.read_frame()
    return frame.opcode, frame.payload


def message_of(peer: RawPeer) -> str:
    """The next message; pings before it are answered."""
    while True:
        opcode, payload = next_frame(peer)
        if opcode != WsOpcode.PING:
            assert opcode == WsOpcode.TEXT, (opcode, payload)
            return payload.decode()
        peer.send_frame(WsOpcode.PONG, payload)


@contextlib.contextmanager
def held(**settings: Any) -> Iterator[tuple[RecordingServer, WebSocketChannel, RawClient, bytes]]:
    """A server, and a channel whose peer has not answered the first ping; the payload of that ping."""
    with RecordingServer() as server:
        server.start(0, **{"compression": None, "ping_interval": None, **settings})
        with RawClient(port_of(server)) as client:
            channel = only_channel(server)
            channel.send("first", key="first")
            opcode, ping = next_frame(client)
            assert opcode == WsOpcode.PING
            assert next_frame(client) == (WsOpcode.TEXT, b"first")
            wait_until(lambda: channel.buffered_amount == 0)
            yield server, channel, client, ping


def test_until_the_peer_has_read_the_newest_waits() -> None:
    with held() as (server, channel, client, ping):
        for number in range(1000):
            assert channel.send(f"a{number}", key="a")
            server.broadcast(f"b{number}", key="b")
            assert channel.buffered_amount < 1000
        wait_until(lambda: channel.replaced == 2 * 999)
        assert not client.readable(0.05)
        client.send_frame(WsOpcode.PONG, ping)
        assert {message_of(client), message_of(client)} == {"a999", "b999"}
        wait_until(lambda: channel.buffered_amount == 0)


def test_what_is_sent_behind_waits_with_it_but_pongs_do_not() -> None:
    with held(ping_interval=0.05) as (server, channel, client, ping):
        channel.send("a1", key="a")
        channel.send("plain")
        server.broadcast("to all")
        channel.send("a2", key="a")
        client.send_ping(b"are you there?")
        got = {next_frame(client), next_frame(client)}
        # And the keep-alive ping does not wait either, whose pong answers both.
        newest = (int.from_bytes(ping, "big") + 1).to_bytes(4, "big")
        assert got == {(WsOpcode.PONG, b"are you there?"), (WsOpcode.PING, newest)}
        client.send_frame(WsOpcode.PONG, newest)
        assert [message_of(client) for _ in range(3)] == ["a2", "plain", "to all"]
        assert channel.latency is not None
        assert channel.replaced == 1


def test_an_earlier_or_a_strange_pong_is_no_answer() -> None:
    with held() as (_, channel, client, ping):
        channel.send("a1", key="a")
        number = int.from_bytes(ping, "big")
        for payload in (b"", b"x" * 4, b"x" * 5, (number - 1).to_bytes(4, "big"), (number + 1).to_bytes(4, "big")):
            client.send_frame(WsOpcode.PONG, payload)
        client.send_text("read so far")
        wait_until(lambda: channel.is_open)
        assert not client.readable(0.05)
        client.send_frame(WsOpcode.PONG, ping)
        assert message_of(client) == "a1"


def test_closing_waits_for_no_pong() -> None:
    with held() as (server, channel, client, _):
        channel.send("a1", key="a")
        channel.send("plain")
        channel.send("a2", key="a")
        channel.close(4000, "bye")
        assert next_frame(client) == (WsOpcode.TEXT, b"a2")
        assert next_frame(client) == (WsOpcode.TEXT, b"plain")
        assert client.answer_close() == 4000
        tick_until(lambda: server.record.count("close"), server)
        assert channel.close_code == 4000


def test_stop_lets_the_newest_leave() -> None:
    with held() as (server, channel, client, _):
        channel.send("a1", key="a")
        channel.send("a2", key="a")
        stopping = Background(lambda: (client.read_message(), client.answer_close()))
        server.stop()
        assert stopping.result() == ("a2", 1001)


def test_a_lost_connection_leaves_nothing_behind() -> None:
    with held() as (server, channel, client, _):
        for number in range(100):
            channel.send("x" * 1000, key=str(number))
        wait_until(lambda: channel.buffered_amount > 100_000)
        client.reset()
        tick_until(lambda: server.record.count("close"), server)
        wait_until(lambda: channel.buffered_amount == 0)


def test_one_that_never_answers_gets_what_others_get() -> None:
    with held() as (_, channel, client, ping):
        channel.send("a1", key="a")
        channel.send("a2", key="a")
        # Five seconds later; nothing else happens meanwhile.
        assert next_frame(client) == (WsOpcode.TEXT, b"a2")
        for number in range(5):
            channel.send(f"b{number}", key="b")
            assert next_frame(client) == (WsOpcode.TEXT, f"b{number}".encode())
        # It does answer: from here on it is as with the others.
        client.send_frame(WsOpcode.PONG, ping)
        while channel.send("c", key="c") and next_frame(client)[0] != WsOpcode.PING:
            pass
        assert next_frame(client) == (WsOpcode.TEXT, b"c")


# Limits


def test_close_policy_counts_keys_not_messages() -> None:
    with held(max_buffered=10_000) as (server, channel, client, _):
        for number in range(1000):
            assert channel.send(f"{number:1000}", key="a")
            server.broadcast(f"{number:1000}", key="b")
        wait_until(lambda: channel.replaced == 2 * 999)
        assert channel.buffered_amount == 2 * (1000 + 1 + 64)
        for number in range(7):
            assert channel.send("x" * 1000, key=f"k{number}")
        # Longer than its predecessor it needs room, shorter it makes some.
        assert channel.send("y" * 900, key="a")
        assert not channel.send("y" * 2000, key="a")
        assert client.read_close().close_code == 1008
        tick_until(lambda: server.record.count("close"), server)


def test_a_broadcast_can_be_one_too_many() -> None:
    with held(max_buffered=10_000) as (server, channel, client, _):
        for number in range(20):
            server.broadcast("x" * 1000, key=f"k{number}")
        assert client.read_close().close_code == 1008
        wait_until(lambda: channel.buffered_amount == 0)


def test_keys_without_end_are_bounded() -> None:
    with held(max_buffered=100_000, slow_policy="drop_newest") as (_, channel, _client, _ping):
        sent = sum(channel.send("", key=f"{number:06}") for number in range(10_000))
        assert sent == 100_000 // (6 + 64)
        assert channel.dropped == 10_000 - sent
        assert channel.buffered_amount <= 100_000


def test_drop_newest_keeps_the_predecessor() -> None:
    with held(max_buffered=1000, slow_policy="drop_newest") as (server, channel, client, ping):
        assert channel.send("a" * 500, key="a")
        assert not channel.send("b" * 500, key="b")
        assert not channel.send("a" * 1000, key="a") or channel.buffered_amount <= 1065
        server.broadcast("c" * 500, key="c")
        wait_until(lambda: channel.dropped >= 2)
        client.send_frame(WsOpcode.PONG, ping)
        assert message_of(client)[0] == "a"


@pytest.mark.parametrize("how", ["send", "broadcast"])
def test_drop_oldest_drops_the_keys_that_have_waited_longest(how: str) -> None:
    with held(max_buffered=10_000, slow_policy="drop_oldest") as (server, channel, client, ping):
        for number in range(100):
            text = f"{number}".ljust(1000)
            if how == "send":
                assert channel.send(text, key=f"k{number}")
            else:
                server.broadcast(text, key=f"k{number}")
        wait_until(lambda: channel.dropped == 91)
        assert channel.buffered_amount <= 10_000
        client.send_frame(WsOpcode.PONG, ping)
        assert [int(message_of(client)) for _ in range(9)] == list(range(91, 100))
        wait_until(lambda: channel.buffered_amount == 0)


def test_drop_oldest_of_one_long_tick() -> None:
    def script(_: Scripted, channel: WebSocketChannel) -> None:
        for number in range(1000):
            channel.send(f"{number}".ljust(1000), key=f"k{number}")
            assert channel.buffered_amount <= 12_000

    received, channel = ran(script, max_buffered=10_000, slow_policy="drop_oldest")
    numbers = [int(msg) for msg in received]
    assert numbers[-1] == 999
    assert numbers == sorted(numbers)
    assert len(numbers) + channel.dropped == 1000


# Compression, TLS, clients


def until_held(channel: WebSocketChannel, text: str) -> None:
    """Sends until the channel waits for a pong, which does not come."""
    with contextlib.suppress(AssertionError):
        while True:
            channel.send(text, key="a")
            wait_until(lambda: channel.buffered_amount == 0, limit=1.0)


@pytest.mark.parametrize("mode", ["shared", "context"])
def test_compressed_messages_leave_in_the_order_in_which_they_were_compressed(
    mode: Literal["shared", "context"],
) -> None:
    with RecordingServer() as server:
        server.start(0, compression=mode, ping_interval=None)
        with Line(port_of(server)) as line:
            opening = Background(lambda: websockets.sync.client.connect(f"ws://{HOST}:{line.port}/", close_timeout=1))
            client = opening.result(server)
            with client:
                channel = only_channel(server)
                assert channel.is_compressed
                for number in range(3):
                    channel.send(f"warm {number} " * 50, key="warm")
                    assert client.recv(10) == f"warm {number} " * 50
                line.up_held = True  # with its pongs
                until_held(channel, "a1 " * 50)
                expected = []
                for number in range(20):
                    channel.send(f"plain {number} " * 50)
                    expected.append(f"plain {number} " * 50)
                    server.broadcast(f"to all {number} " * 50)
                    expected.append(f"to all {number} " * 50)
                    channel.send(f"a{number} " * 50, key="a")
                    server.broadcast(f"b{number} " * 50, key="b")
                wait_until(lambda: channel.replaced >= 38)
                line.up_held = False
                received: list[Any] = []
                while received.count("b19 " * 50) == 0 or received[-1] != expected[-1]:
                    received.append(client.recv(10))
                    assert len(received) < 100_000
                assert [msg for msg in received if msg[0] in "pt"] == expected
                assert [msg for msg in received if msg[0] == "b"] == ["b19 " * 50]
                assert received.index("a19 " * 50) < received.index(expected[0])
                channel.send("and behind " * 50)
                assert client.recv(10) == "and behind " * 50
                wait_until(lambda: channel.buffered_amount == 0)


def test_over_tls(tmp_path: Path) -> None:
    certificates = make_certificates(tmp_path)
    with RecordingServer() as server:
        server.start(0, **certificates.settings)
        client = RecordingClient()
        client.connect(secure_url_of(server), ca_file=certificates.ca)
        tick_until(lambda: client.is_connected and server.channels, client, server)
        (channel,) = server.channels
        for number in range(2000):
            channel.send(f"{number:1000}", key="a")
            server.broadcast(f"{number:1000}", key="b")
            client.send(f"{number:1000}", key="c")
        wanted = f"{1999:1000}"
        tick_until(lambda: client.received.count(wanted) == 2, client, server)
        tick_until(lambda: wanted in server.record.values("message"), client, server)
        assert len(client.received) + channel.replaced == 4000
        assert len(server.record.values("message")) + client.replaced == 2000


def test_a_client_waits_for_its_server_too() -> None:
    with RawServer() as listener:
        client = RecordingClient()
        client.connect(listener.url, compression=None, ping_interval=None)
        peer = listener.accept_websocket()
        with peer:
            tick_until(lambda: client.is_connected, client)
            client.send("first", key="first")
            opcode, ping = next_frame(peer)
            assert opcode == WsOpcode.PING
            assert next_frame(peer) == (WsOpcode.TEXT, b"first")
            # The peer may have read it before it is counted as written.
            wait_until(lambda: client.buffered_amount == 0)
            for number in range(1000):
                assert client.send(f"a{number}", key="a")
            wait_until(lambda: client.replaced == 999)
            assert client.buffered_amount == 4 + 1 + 64
            peer.send_frame(WsOpcode.PONG, ping)
            assert message_of(peer) == "a999"
        client.close()


def test_what_waits_for_the_next_connection_is_the_newest() -> None:
    with RawServer() as listener:
        client = RecordingClient()
        reconnect = Reconnect(first=0.01, queue_bytes=340)
        client.connect(listener.url, reconnect=reconnect, compression=None, ping_interval=None)
        listener.accept_websocket().reset()
        tick_until(lambda: client.is_reconnecting, client)
        for number in range(100):
            assert client.send(f"a{number:02}", key="a")
            assert client.send(f"plain {number:02}") is (number < 9)
            assert client.send(f"b{number:02}", key="b")
        assert client.replaced == 2 * 99
        assert client.buffered_amount == 2 * (3 + 1 + 64) + 9 * (8 + 14)
        assert client.send("x" * 300, key="b") is False
        with listener.accept_websocket() as peer:
            tick_until(lambda: client.is_connected, client)
            expected = ["a99", "plain 00", "b99", *(f"plain {number:02}" for number in range(1, 9))]
            assert [message_of(peer) for _ in expected] == expected
            assert client.replaced == 2 * 99
            wait_until(lambda: client.buffered_amount == 0)
        client.close()


# Freshness

SIZE = 1000
#: The line takes 1 % of what is sent.
SHARE = SIZE // 100
#: Ticks that one message takes on it, with its head and the ping behind it.
DELAY = -(-(SIZE + 4 + 6) // SHARE)


def ages(how: str, *, keyed: bool, steps: int) -> tuple[list[int], int, WebSocketChannel]:
    """The ages of what a client gets, in ticks of the sender, and the most bytes that waited in the meantime."""
    with RecordingServer() as server:
        server.start(0, compression=None, ping_interval=None)
        with SlowReader(port_of(server), receive_buffer=4096) as client:
            channel = only_channel(server)
            options: dict[str, Any] = {"key": "state"} if keyed else {}
            found, most = [], 0
            for now in range(steps):
                state = now.to_bytes(4, "big").ljust(SIZE, b".")
                if how == "send":
                    channel.send(state, **options)
                else:
                    server.broadcast(state, **options)
                server.tick(0.001)
                most = max(most, channel.buffered_amount)
                found += [now - int.from_bytes(msg[:4], "big") for msg in client.take(SHARE)]
            return found, most, channel


@pytest.mark.parametrize("how", ["send", "broadcast"])
def test_at_one_percent_of_the_rate_a_client_sees_fresh_state(how: str) -> None:
    found, most, channel = ages(how, keyed=True, steps=1000)
    assert len(found) >= 7
    # Two intervals, and what was sent while the message was on its way. The middle one, because a machine that is busy
    # may keep the I/O thread from its turn once.
    assert sorted(found)[len(found) // 2] <= DELAY + 2, found
    assert max(found) <= 2 * DELAY, found
    assert most <= 2 * (SIZE + 100)
    assert channel.replaced > 900


def test_without_a_key_it_sees_a_backlog() -> None:
    found, _, channel = ages("send", keyed=False, steps=1000)
    assert found == sorted(found)
    assert found[-1] > 7 * DELAY
    assert channel.replaced == 0


def test_a_client_that_keeps_up_gets_everything() -> None:
    with RecordingServer() as server:
        server.start(0, compression=None, ping_interval=None)
        with SlowReader(port_of(server)) as client:
            channel = only_channel(server)
            received: list[bytes] = []

            def has_left() -> bool:
                received.extend(client.take(1 << 16))
                return channel.buffered_amount == 0

            for number in range(300):
                channel.send(str(number), key="state")
                tick_until(has_left, server)
            wait_until(lambda: has_left() and received[-1] == b"299")
            assert len(received) + channel.replaced == 300
            assert len(received) > 150


class Clock(HvWebServer):
    """Sends the time, in its own ticks, as the robot does."""

    def __init__(self) -> None:
        self.now = 0

    def on_tick(self) -> None:
        self.now += 1
        self.broadcast(f"{self.now}".ljust(SIZE, "."), key="state")


def behind_a_narrow_line(read: Callable[[int, Callable[[str], None]], None]) -> tuple[list[int], Clock]:
    """The ages in ticks of what a client gets over a line that takes a hundredth of what is sent."""
    with Clock() as server:
        server.start(0, compression=None)
        found: list[int] = []

        def got(text: str) -> None:
            found.append(server.now - int(text.rstrip(".")))

        rate = 500  # ticks a second
        with Line(port_of(server)) as line:
            client = Background(lambda: read(line.port, got))
            tick_until(lambda: server.channels, server)
            line.rate = rate * SIZE / 100
            due = time.monotonic()
            while not client.done():
                due += 1 / rate
                server.tick(max(0.0, due - time.monotonic()))
            client.result(server)
        return found, server


def by_websockets(port: int, got: Callable[[str], None]) -> None:
    with websockets.sync.client.connect(f"ws://{HOST}:{port}/", compression=None) as client:
        for _ in range(8):
            got(str(client.recv(20)))


def by_aiohttp(port: int, got: Callable[[str], None]) -> None:
    async def run() -> None:
        async with aiohttp.ClientSession() as session, session.ws_connect(f"ws://{HOST}:{port}/") as client:
            for _ in range(8):
                got(str(await client.receive_str(timeout=20)))

    asyncio.run(run())


@pytest.mark.parametrize("read", [by_websockets, by_aiohttp])
def test_real_clients_behind_a_narrow_line_see_fresh_state(
    read: Callable[[int, Callable[[str], None]], None],
) -> None:
    found, _ = behind_a_narrow_line(read)
    # A message takes a hundred ticks of its line, and a backlog would be that much more with each.
    settled = found[2:]
    assert sorted(settled)[len(settled) // 2] <= 1.5 * DELAY, found
    assert max(settled) <= 3 * DELAY, found


def test_the_client_object_forgets_nothing_it_was_given() -> None:
    """`replaced` is there before a connection is."""
    client = HvWebSocketClient()
    assert client.replaced == 0
    assert client.send("x", key="a") is False
