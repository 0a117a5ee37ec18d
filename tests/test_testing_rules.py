"""The rules that a World keeps, side by side with real sockets: each test runs over both.

What only a World has, its clock, its links and its fixtures, is tested in test_testing_world.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

import pyhv
from pyhv import HvWebServer, HvWebSocketClient, WebSocketChannel, WsOpcode, WsUpgrade
from support import EchoServer, Record, RecordingClient, RecordingServer
from support_net import MemoryNet, Net, RealNet, opened

NESTED = "tick\\(\\) was called inside a callback of the same object: callbacks never nest"


@pytest.fixture(params=[RealNet, MemoryNet], ids=["real", "memory"])
def net(request: pytest.FixtureRequest) -> Iterator[Net]:
    made: Net = request.param()
    try:
        yield made
    finally:
        made.close()


def kinds(record: Any) -> list[str]:
    return [call.what for call in record.calls]


# Callbacks


def test_open_then_messages_in_order_then_close_once(net: Net) -> None:
    server = net.serve(EchoServer())
    client, channel = opened(net, server, "/play?level=3")
    for number in range(100):
        assert client.send(f"{number}" if number % 2 else f"{number}".encode())
    client.close(4001, "bye")
    net.until(lambda: client.close_code is not None and channel.close_code is not None)
    sent = [f"{number}" if number % 2 else f"{number}".encode() for number in range(100)]
    assert server.record.of(channel) == [
        ("open", "/play?level=3"),
        *[("message", msg) for msg in sent],
        ("close", 4001),
    ]
    assert channel.close_reason == "bye"
    # The echoes came behind the client's close.
    assert kinds(client.record) == ["open", "close"]
    assert (client.close_code, client.close_reason) == (4001, "")


def test_what_the_server_echoes_arrives_as_it_was_sent(net: Net) -> None:
    server = net.serve(EchoServer())
    client, _ = opened(net, server)
    messages: list[Any] = ["", "x", b"", b"\0", "h\u00e9llo \U0001f600", "y" * 70_000, b"z" * 300_000]
    for message in messages:
        assert client.send(message)
    net.until(lambda: len(client.received) == len(messages))
    assert client.received == messages
    assert client.send(bytearray(b"ab"))
    assert client.send(memoryview(b"abcd")[::2])
    net.until(lambda: len(client.received) == len(messages) + 2)
    assert client.received[-2:] == [b"ab", b"ac"]


def test_without_a_tick_no_callback_runs(net: Net) -> None:
    server = net.serve(RecordingServer())
    client = net.connect(RecordingClient(), server)
    net.wait(lambda: server.pending == 1)
    net.wait(lambda: client.pending == 1)
    assert server.record.calls == client.record.calls == []
    assert client.is_connecting
    assert not client.is_connected
    assert client.tick() == 1
    assert client.is_connected
    assert kinds(client.record) == ["open"]
    assert server.tick() == 1
    assert kinds(server.record) == ["open"]
    assert server.tick() == client.tick() == 0


@pytest.mark.parametrize("where", ["on_ws_open", "on_ws_message", "on_ws_close", "on_tick"])
def test_a_tick_inside_a_callback_of_the_server_raises(net: Net, where: str) -> None:
    class Nesting(RecordingServer):
        pass

    def nest(self: Nesting, *args: Any) -> None:
        with pytest.raises(RuntimeError, match=NESTED):
            self.tick()
        self.record.add("nested")

    setattr(Nesting, where, nest)
    server = net.serve(Nesting())
    client = net.connect(RecordingClient(), server)
    net.until(lambda: client.is_connected)
    client.send("x")
    client.close()
    net.until(lambda: "nested" in kinds(server.record))
    assert "error" not in kinds(server.record)


@pytest.mark.parametrize("where", ["on_open", "on_message", "on_close"])
def test_a_tick_inside_a_callback_of_the_client_raises(net: Net, where: str) -> None:
    class Nesting(RecordingClient):
        pass

    def nest(self: Nesting, *args: Any) -> None:
        with pytest.raises(RuntimeError, match=NESTED):
            self.tick()
        self.record.add("nested")

    setattr(Nesting, where, nest)
    server = net.serve(RecordingServer())
    client = net.connect(Nesting(), server)
    net.until(lambda: server.channels)
    server.channels[0].send("x")
    server.channels[0].close()
    net.until(lambda: "nested" in kinds(client.record))
    assert "error" not in kinds(client.record)


def test_a_callback_may_tick_another_object_and_gets_its_answer(net: Net) -> None:
    server = net.serve(EchoServer())

    class Asking(RecordingServer):
        def on_ws_message(self, channel: WebSocketChannel, msg: str | bytes) -> None:
            inner.send(msg)
            for _ in range(10_000):
                if inner.received:
                    break
                server.tick(0.001)
                inner.tick(0.001)
            channel.send(f"asked: {inner.received[0]}")

    inner, _ = opened(net, server)
    asking = net.serve(Asking())
    client, _ = opened(net, asking)
    client.send("what")
    net.until(lambda: client.received)
    assert client.received == ["asked: what"]


def test_keyboard_interrupt_leaves_the_tick_and_the_rest_follows(net: Net) -> None:
    class Interrupted(RecordingServer):
        def on_ws_message(self, channel: WebSocketChannel, msg: str | bytes) -> None:
            super().on_ws_message(channel, msg)
            if msg in ("3", "6"):
                raise KeyboardInterrupt

    server = net.serve(Interrupted())
    client, channel = opened(net, server)
    for number in range(10):
        client.send(str(number))
    net.wait(lambda: server.pending == 10)
    with pytest.raises(KeyboardInterrupt):
        server.tick()
    assert server.pending == 6
    assert server.tick(max_events=2) == 2
    with pytest.raises(KeyboardInterrupt):
        server.tick(max_events=5)
    assert server.tick(max_events=5) == 3
    assert server.record.values("message") == [str(number) for number in range(10)]
    assert channel.is_open


def test_on_tick_runs_after_the_callbacks_and_may_raise(net: Net, caplog: pytest.LogCaptureFixture) -> None:
    class Ticking(RecordingServer):
        def on_tick(self) -> None:
            self.record.add("tick")
            if self.record.count("message"):
                raise ZeroDivisionError

    server = net.serve(Ticking())
    client, channel = opened(net, server)
    client.send("x")
    net.until(lambda: "error" in kinds(server.record))
    happened = kinds(server.record)
    assert happened[happened.index("message") + 1 :][:2] == ["tick", "error"]
    assert caplog.messages[0] == "on_tick of Ticking raised"
    assert channel.is_open


# Budgets


def test_a_budget_and_what_it_leaves(net: Net) -> None:
    server = net.serve(RecordingServer())
    loud, loud_channel = opened(net, server)
    quiet, quiet_channel = opened(net, server)
    for number in range(100):
        loud.send(str(number))
    net.wait(lambda: server.pending == 100)
    assert server.tick(max_events=10) == 10
    assert server.pending == 90
    quiet.send("quiet")
    net.wait(lambda: server.pending == 91)
    assert server.tick(max_events=2) == 2
    assert server.record.values("message", quiet_channel) == ["quiet"]
    assert server.tick(max_ms=1000) == 89
    assert server.pending == 0
    assert server.record.values("message", loud_channel) == [str(number) for number in range(100)]


def test_a_channel_that_floods_delays_itself_alone(net: Net) -> None:
    server = net.serve(RecordingServer())
    clients = [net.connect(RecordingClient(), server, f"/{number}") for number in range(3)]
    net.until(lambda: len(server.channels) == 3 and all(client.is_connected for client in clients))
    for client, count in zip(clients, (20, 4, 1), strict=True):
        for number in range(count):
            client.send(str(number))
    net.wait(lambda: server.pending == 25)
    # The first tick takes its events in the order of arrival; what it leaves goes round.
    while server.pending:
        server.tick(max_events=3)
    assert [call.value for call in server.record.calls if call.who.path == "/0" and call.what == "message"] == [
        str(number) for number in range(20)
    ]
    order = [call.who.path for call in server.record.calls if call.what == "message"]
    assert set(order[-10:]) == {"/0"}


@pytest.mark.parametrize("options", [{"max_events": 0}, {"max_ms": 0}, {"max_ms": -1.5}, {"max_ms": float("nan")}])
def test_a_budget_of_nothing_is_refused(net: Net, options: dict[str, Any]) -> None:
    server = net.serve(RecordingServer())
    client = RecordingClient()
    net.own(client)
    for ticking in (server, client):
        with pytest.raises(ValueError, match=next(iter(options))):
            ticking.tick(**options)


# Waiting


def test_a_tick_waits_for_what_happens(net: Net) -> None:
    server = net.serve(EchoServer())
    client, _ = opened(net, server)
    client.send("x")
    assert server.tick(10.0) == 1
    assert client.tick(None) == 1
    assert client.received == ["x"]
    assert client.tick(0.01) == 0
    client.close()
    assert server.tick(10.0) == 1
    assert client.tick(10.0) == 1
    # It is over: nothing is waited for.
    assert client.tick(None) == 0


@pytest.mark.parametrize("timeout", [-1, float("nan"), 1e10])
def test_a_timeout_that_cannot_be(net: Net, timeout: float) -> None:
    server = net.serve(RecordingServer())
    with pytest.raises(ValueError, match="is not a number of seconds from 0 to 1e9"):
        server.tick(timeout)
    with pytest.raises(ValueError, match="is not a number of seconds from 0 to 1e9"):
        server.stop(timeout)


# Sending


def test_send_before_open_and_after_the_end_returns_false(net: Net) -> None:
    server = net.serve(RecordingServer())
    client = RecordingClient()
    net.own(client)
    assert client.send("x") is False
    client.close()
    net.connect(client, server)
    assert client.send("x") is False
    net.until(lambda: client.is_connected and server.channels)
    (channel,) = server.channels
    assert channel.send("x") is True
    channel.close()
    channel.close(4000, "again")
    assert not channel.is_open
    assert channel.send("y") is False
    net.until(lambda: client.close_code == 1000 and channel.close_code == 1000)
    assert client.send("x") is False
    assert channel.send("x") is False
    assert client.received == ["x"]
    assert (client.buffered_amount, channel.buffered_amount) == (0, 0)


BAD_SENDS: list[tuple[Any, ...]] = [
    ("x", 77),
    ("x", -1),
    ("x", 1 << 70),
    ("x", "text"),
    ("x", WsOpcode.CLOSE),
    ("x", WsOpcode.CONTINUATION),
    ("x", WsOpcode.PING, False),
    ("x" * 126, WsOpcode.PING),
    (b"\xff", WsOpcode.TEXT),
    (5,),
    (None,),
    ("\ud800",),
    ("x", None, "fin"),
]


def test_the_newest_of_a_key_leaves_at_the_place_of_the_first(net: Net) -> None:
    class Answering(RecordingServer):
        def on_ws_message(self, channel: WebSocketChannel, msg: str | bytes) -> None:
            channel.send("a1", key="a")
            channel.send("plain")
            self.broadcast("b1", key="b")
            channel.send(b"a2", key="a")
            channel.send("c", key=b"a")
            channel.send("b2", WsOpcode.BINARY, key="b")
            self.broadcast("c2", key=b"a")

    server = net.serve(Answering())
    client, channel = opened(net, server)
    client.send("go")
    net.until(lambda: len(client.received) == 4)
    assert client.received == [b"a2", "plain", b"b2", "c2"]
    assert (channel.replaced, channel.dropped, channel.buffered_amount) == (3, 0, 0)


def test_until_the_peer_has_read_the_newest_waits(net: Net) -> None:
    server = net.serve(RecordingServer(), compression=None)
    client, channel = opened(net, server)
    net.block(client)
    channel.send("a00", key="a")
    net.wait(lambda: channel.buffered_amount == 0)
    for number in range(1, 100):
        assert channel.send(f"a{number:02}", key="a")
    server.broadcast("b00", key="b")
    channel.send("plain")
    server.broadcast("b01", key="b")
    net.wait(lambda: channel.replaced == 99)
    assert channel.buffered_amount == 2 * (3 + 1 + 64) + 7
    net.unblock(client)
    net.until(lambda: len(client.received) == 4)
    assert client.received == ["a00", "a99", "b01", "plain"]
    net.wait(lambda: channel.buffered_amount == 0)
    # The server waits for it in the same way, from the other side.
    for number in range(3):
        assert client.send(f"{number}", key="a")
    net.until(lambda: server.record.count("message") + client.replaced == 3)
    assert server.record.values("message")[-1] == "2"


def test_closing_waits_for_no_pong(net: Net) -> None:
    server = net.serve(RecordingServer())
    client, channel = opened(net, server)
    net.block(client)
    channel.send("first", key="a")
    net.wait(lambda: channel.buffered_amount == 0)
    channel.send("second", key="a")
    channel.send("third", key="a")
    channel.close(4000)
    assert channel.send("too late", key="a") is False
    net.unblock(client)
    net.until(lambda: client.close_code is not None)
    assert (client.received, client.close_code) == (["first", "third"], 4000)


@pytest.mark.parametrize("policy", ["close", "drop_newest", "drop_oldest"])
def test_keys_count_towards_the_limit(net: Net, policy: str) -> None:
    server = net.serve(RecordingServer(), max_buffered=1000, slow_policy=policy, compression=None, ping_interval=None)
    client, channel = opened(net, server)
    net.block(client)
    channel.send("first", key="first")
    net.wait(lambda: channel.buffered_amount == 0)
    sent = [channel.send(f"{number}".ljust(235, "."), key=f"{number % 3}") for number in range(30)]
    assert sent == [True] * 30
    net.wait(lambda: channel.buffered_amount == 3 * 300)
    sent = [channel.send(f"{number}".ljust(235, "."), key=f"{number}") for number in range(90, 95)]
    expected = {"close": [False] * 5, "drop_newest": [False] * 5, "drop_oldest": [True] * 5}
    assert sent == expected[policy]
    if policy == "close":
        net.until(lambda: channel.close_code == 1008)
        return
    net.wait(lambda: channel.dropped == 5)
    assert channel.replaced == 27
    net.unblock(client)
    net.until(lambda: len(client.received) == 4)
    numbers = [int(str(msg).rstrip(".")) for msg in client.received[1:]]
    assert numbers == ([27, 28, 29] if policy == "drop_newest" else [92, 93, 94])


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"key": 5}, TypeError),
        ({"key": bytearray(b"a")}, TypeError),
        ({"key": "a", "fin": False}, ValueError),
        ({"key": "a", "opcode": WsOpcode.PONG}, ValueError),
        ({"key": "a", "opcode": WsOpcode.CONTINUATION}, ValueError),
    ],
)
def test_what_can_have_no_key(net: Net, options: dict[str, Any], error: type[Exception]) -> None:
    server = net.serve(RecordingServer())
    client, channel = opened(net, server)
    for end in (client, channel):
        with pytest.raises(error, match="key"):
            end.send("x", **options)
    if error is TypeError:
        with pytest.raises(error, match="key"):
            server.broadcast("x", **options)
    channel.send("begun", fin=False)
    with pytest.raises(ValueError, match="a fragmented message is open"):
        channel.send("x", key="a")


def have_one(*records: Record) -> bool:
    return all(record.count("message") for record in records)


@pytest.mark.parametrize("arguments", BAD_SENDS, ids=lambda arguments: ascii(arguments)[:40])
def test_what_cannot_be_sent_raises_the_same(arguments: tuple[Any, ...]) -> None:
    raised = []
    for kind in (RealNet, MemoryNet):
        net: Net = kind()
        try:
            server = net.serve(RecordingServer())
            client, channel = opened(net, server)
            for sending in (channel, client):
                with pytest.raises((ValueError, TypeError, UnicodeError)) as failed:
                    sending.send(*arguments)
                raised.append((type(failed.value), str(failed.value)))
                # It has changed nothing.
                assert sending.send("good")
            net.until(partial(have_one, client.record, server.record))
            assert client.received == server.record.values("message") == ["good"]
        finally:
            net.close()
    assert raised[:2] == raised[2:]


@pytest.mark.parametrize("arguments", [(1005,), (999,), (5000,), (1000, "x" * 124), ("1000",), (1 << 70,), (1000, 5)])
def test_what_cannot_be_closed_with_raises_the_same(arguments: tuple[Any, ...]) -> None:
    raised = []
    for kind in (RealNet, MemoryNet):
        net: Net = kind()
        try:
            client, channel = opened(net, net.serve(RecordingServer()))
            for closing in (channel, client):
                with pytest.raises((ValueError, TypeError)) as failed:
                    closing.close(*arguments)
                raised.append((type(failed.value), str(failed.value)))
            assert channel.is_open
            assert client.is_connected
        finally:
            net.close()
    assert raised[:2] == raised[2:]


def test_fragments_are_put_together_and_broadcasts_wait(net: Net) -> None:
    server = net.serve(RecordingServer())
    client, channel = opened(net, server)
    assert channel.send("one ", fin=False)
    with pytest.raises(ValueError, match="finish it with fin=True before sending another one"):
        channel.send("x", WsOpcode.TEXT)
    server.broadcast("between")
    assert channel.send("", WsOpcode.PING)
    assert channel.send("two ", WsOpcode.CONTINUATION, fin=False)
    assert channel.send(b"three")
    assert channel.send(b"\x01", fin=False)
    assert channel.send(b"\x02", fin=True)
    assert channel.send(b"as text", WsOpcode.TEXT)
    assert channel.send("as binary", WsOpcode.BINARY)
    net.until(lambda: len(client.received) == 5)
    assert client.received == ["one two three", "between", b"\x01\x02", "as text", b"as binary"]
    with pytest.raises(ValueError, match="a text message has to be UTF-8"):
        channel.send("begun", fin=False) and channel.send(b"\xff")


def test_broadcast_and_exclude(net: Net) -> None:
    server = net.serve(RecordingServer())
    others = net.serve(RecordingServer())
    (first, one), (second, two), (stranger, other) = opened(net, server), opened(net, server), opened(net, others)
    server.broadcast("all")
    server.broadcast(b"not one", exclude=one)
    server.broadcast("of another server", exclude=other)
    two.send("two")
    net.until(lambda: len(second.received) == 4 and len(first.received) == 2)
    assert first.received == ["all", "of another server"]
    assert second.received == ["all", b"not one", "of another server", "two"]
    assert stranger.received == []
    for wrong in (5, None):
        with pytest.raises(TypeError, match="a message is str or bytes-like"):
            server.broadcast(wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="is not an instance of 'WebSocketChannel'"):
        server.broadcast("x", exclude=5)  # type: ignore[arg-type]


def test_a_broadcast_does_not_reach_a_channel_whose_open_has_not_run(net: Net) -> None:
    class Announcing(RecordingServer):
        def on_ws_open(self, channel: WebSocketChannel, url: str) -> None:
            super().on_ws_open(channel, url)
            self.broadcast(f"here is {url}")

    server = net.serve(Announcing())
    client = net.connect(RecordingClient(), server, "/a")
    net.wait(lambda: server.pending == 1 and client.pending == 1)
    client.tick()
    server.broadcast("too early")
    server.tick()
    net.until(lambda: client.received)
    assert client.received == ["here is /a"]


# Closing


def test_a_close_by_the_server(net: Net) -> None:
    class Leaving(RecordingServer):
        def on_ws_message(self, channel: WebSocketChannel, msg: str | bytes) -> None:
            super().on_ws_message(channel, msg)
            channel.send("last words")
            channel.close(4321, "caf\u00e9")

    server = net.serve(Leaving())
    client, channel = opened(net, server)
    client.send("one")
    client.send("two, which comes too late")
    net.until(lambda: client.close_code and channel.close_code)
    assert client.received == ["last words"]
    assert (client.close_code, client.close_reason) == (4321, "caf\u00e9")
    assert (channel.close_code, channel.close_reason) == (4321, "")
    assert server.record.values("message") == ["one"]
    assert server.channels == []


def test_a_client_that_closes_in_a_callback_gets_no_more_messages(net: Net) -> None:
    class Leaving(RecordingClient):
        def on_message(self, msg: str | bytes) -> None:
            super().on_message(msg)
            self.close(4000)

    server = net.serve(RecordingServer())
    client = net.connect(Leaving(), server)
    net.until(lambda: server.channels and client.is_connected)
    for text in ("one", "two", "three"):
        server.broadcast(text)
    net.wait(lambda: client.pending == 3)
    net.until(lambda: client.close_code)
    assert client.received == ["one"]
    assert server.record.values("close") == [4000]


def test_close_codes_are_none_before_the_callback(net: Net) -> None:
    server = net.serve(RecordingServer())
    client, channel = opened(net, server)
    client.close()
    net.wait(lambda: server.pending == 1)
    assert (channel.close_code, channel.close_reason) == (None, None)
    assert client.close_code is None
    # The peer has been answered, because the program has had every message; but it does not know.
    assert not channel.is_open
    assert channel.send("x") is False
    server.tick()
    assert (channel.close_code, channel.close_reason) == (1000, "")
    net.until(lambda: client.close_code == 1000)


def test_what_is_sent_for_messages_before_the_close_arrives(net: Net) -> None:
    server = net.serve(EchoServer())
    client, channel = opened(net, server)
    client.send("hello")
    channel.close()
    # Sent before our close arrived there; the channel is closed by the program, so nothing is delivered.
    net.until(lambda: client.close_code and channel.close_code)
    assert server.record.values("message") == []


def test_stop_closes_with_1001_behind_what_was_sent(net: Net) -> None:
    server = net.serve(EchoServer())
    # Nobody ticks them during stop(): with a message undelivered they answer after their close_timeout.
    clients = [opened(net, server, close_timeout=0.2)[0] for _ in range(3)]
    clients[0].send("pending")
    net.wait(lambda: server.pending == 1)
    server.broadcast("goodbye")
    server.stop(timeout=5.0)
    assert not server.is_running
    assert server.port is None
    assert server.channels == []
    assert server.record.values("close") == [1001, 1001, 1001]
    assert server.record.values("message") == ["pending"]
    net.until(lambda: all(client.close_code for client in clients))
    assert [client.close_code for client in clients] == [1001] * 3
    # What a stop has closed gets no answers any more.
    assert [client.received for client in clients] == [["goodbye"]] * 3
    assert server.tick() == 0
    server.stop()
    server.broadcast("nobody")


@pytest.mark.parametrize("spread", [0.0, 0.05])
def test_stop_says_what_it_is_told_to(net: Net, spread: float) -> None:
    server = net.serve(RecordingServer())
    clients = [opened(net, server, close_timeout=0.2)[0] for _ in range(3)]
    server.stop(timeout=5.0, code=1012, reason="new version", spread=spread)
    assert server.record.values("close") == [1012, 1012, 1012]
    net.until(lambda: all(client.close_code for client in clients))
    assert [(client.close_code, client.close_reason) for client in clients] == [(1012, "new version")] * 3


def test_a_stop_that_cannot_be(net: Net) -> None:
    server = net.serve(RecordingServer())
    with pytest.raises(ValueError, match="spread=2 is more than timeout=1"):
        server.stop(1.0, spread=2.0)
    with pytest.raises(ValueError, match="1005"):
        server.stop(code=1005)
    assert server.is_running


def test_draining(net: Net) -> None:
    server = net.serve(EchoServer())
    client, _ = opened(net, server)
    server.drain()
    assert server.is_draining
    late, _ = opened(net, server)
    for each in (client, late):
        each.send("x")
    net.until(lambda: client.received == late.received == ["x"])
    server.stop(0)
    server.start(0)
    assert not server.is_draining


def test_stop_at_once_drops(net: Net) -> None:
    server = net.serve(RecordingServer())
    client, _ = opened(net, server)
    net.block(client)
    server.stop(0)
    assert server.record.values("close") == [1006]
    net.unblock(client)
    net.until(lambda: client.close_code)
    assert client.close_code == 1006


def test_stop_inside_a_callback_takes_effect_when_the_tick_ends(net: Net) -> None:
    class Stopping(RecordingServer):
        def on_ws_message(self, channel: WebSocketChannel, msg: str | bytes) -> None:
            super().on_ws_message(channel, msg)
            self.stop()
            assert self.is_running
            channel.send("before the end")

    server = net.serve(Stopping())
    client, _ = opened(net, server, close_timeout=0.2)
    client.send("x")
    net.until(lambda: client.close_code)
    assert not server.is_running
    assert client.close_code == 1001
    assert client.received == ["before the end"]


def test_a_server_starts_again(net: Net) -> None:
    server = net.serve(RecordingServer())
    first, channel = opened(net, server)
    server.stop()
    net.until(lambda: first.close_code)
    server.start(0)
    second, again = opened(net, server)
    assert again is not channel
    server.broadcast("new", exclude=channel)
    net.until(lambda: second.received)


def test_a_lost_connection_is_1006_on_both_sides(net: Net) -> None:
    server = net.serve(RecordingServer())
    client, channel = opened(net, server)
    net.lose(client)
    net.until(lambda: client.close_code and channel.close_code)
    assert (client.close_code, client.close_reason) == (1006, "")
    assert (channel.close_code, channel.close_reason) == (1006, "")
    assert kinds(server.record) == ["open", "close"]
    assert kinds(client.record) == ["open", "close"]
    assert client.error is None


@pytest.mark.parametrize(
    ("setting", "send", "reason"),
    [
        (
            {"max_message_size": 100},
            lambda end: end.send("x" * 101),
            "the message is larger than this endpoint accepts",
        ),
        (
            {"max_message_size": 100},
            lambda end: end.send(b"x" * 60, fin=False) and end.send(b"x" * 60),
            "the message is larger than this endpoint accepts",
        ),
        ({"max_frame_size": 50}, lambda end: end.send("x" * 51), "the frame is larger than this endpoint accepts"),
        (
            {"max_fragments": 2},
            lambda end: all(end.send("x", fin=False) for _ in range(3)),
            "the message has more fragments than this endpoint accepts",
        ),
    ],
)
@pytest.mark.parametrize("side", ["server", "client"])
def test_what_is_too_large_is_1009(
    net: Net,
    setting: dict[str, Any],
    send: Callable[[Any], Any],
    reason: str,
    side: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = net.serve(RecordingServer(), **(setting if side == "server" else {}))
    client, channel = opened(net, server, compression=None, **(setting if side == "client" else {}))
    sending, limited = (client, channel) if side == "server" else (channel, client)
    assert sending.send("fits")
    send(sending)
    net.until(lambda: client.close_code and channel.close_code)
    # The one with the limit has failed the connection; the other one was told.
    assert (limited.close_code, limited.close_reason) == (1009, reason)
    assert (sending.close_code, sending.close_reason) == (1009, reason)
    name, value = next(iter(setting.items()))
    (warning,) = caplog.messages
    assert warning.endswith(f"closed with 1009: {reason}; the limit is {name}={value}")
    assert server.refusals == ({name: 1} if side == "server" else {})


@pytest.mark.parametrize("where", ["on_ws_open", "on_ws_message", "on_open", "on_message"])
def test_an_exception_in_a_callback_is_1011_and_logged(net: Net, where: str, caplog: pytest.LogCaptureFixture) -> None:
    class Failing:
        pass

    def fail(self: Any, *args: Any) -> None:
        raise LookupError(where)

    server_kind = type("Game", (RecordingServer,), {where: fail} if "ws" in where else {})
    client_kind = type("Player", (RecordingClient,), {} if "ws" in where else {where: fail})
    server = net.serve(server_kind())
    client = net.connect(client_kind(), server)
    net.until(lambda: (client.is_connected and server.channels) or client.close_code)
    if where in ("on_ws_message", "on_message"):
        (client if "ws" in where else server.channels[0]).send("x")
    net.until(lambda: client.close_code and "close" in kinds(server.record))
    assert client.close_code == 1011
    assert server.record.values("close") == [1011]
    failed, other = (server, client) if "ws" in where else (client, server)
    (error,) = failed.record.values("error")
    assert isinstance(error, LookupError)
    assert other.record.values("error") == []
    (logged,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert logged.getMessage() == f"{where} of {'Game' if 'ws' in where else 'Player'} raised"
    assert logged.exc_info is not None
    assert logged.name == ("pyhv.server" if "ws" in where else "pyhv.client")


# Slow peers


MESSAGE = 10_000


def build(number: int) -> bytes:
    return number.to_bytes(4, "big") + bytes(MESSAGE - 4)


class Draining(RecordingServer):
    def on_ws_drain(self, channel: WebSocketChannel) -> None:
        self.record.add("drain", channel, channel.buffered_amount)


@pytest.mark.parametrize("how", ["send", "broadcast"])
@pytest.mark.parametrize("policy", ["close", "drop_newest", "drop_oldest"])
def test_a_slow_client(net: Net, policy: str, how: str, caplog: pytest.LogCaptureFixture) -> None:
    limit = 20 * MESSAGE
    server = net.serve(Draining(), slow_policy=policy, max_buffered=limit, compression=None, ping_interval=None)
    client, channel = opened(net, server)
    bystander, other = opened(net, server)

    def has_got(count: int) -> bool:
        return len(bystander.received) == count

    net.block(client)
    sent, accepted = 0, []
    while channel.is_open and channel.dropped < 10:
        assert sent < 10_000, "everything fits into the buffers?"
        if how == "broadcast":
            server.broadcast(build(sent))
        else:
            assert other.send(build(sent))
            if channel.send(build(sent)):
                accepted.append(sent)
        sent += 1
        # What the bystander has got was queued for the slow one too.
        net.until(partial(has_got, sent))
        assert channel.buffered_amount <= limit + MESSAGE + 100
    assert other.dropped == 0
    net.unblock(client)
    if policy == "close":
        net.until(lambda: "close" in kinds(server.record))
        assert channel.close_code == 1008
        assert channel.close_reason == "too slow: more than max_buffered bytes waited to be sent"
        assert channel.dropped == 0
        net.until(lambda: client.close_code)
        assert client.close_code == 1008
        assert [int.from_bytes(m[:4], "big") for m in client.received] == list(range(len(client.received)))
        net.until(lambda: caplog.messages)
        assert any("closed with 1008" in message and f"max_buffered={limit}" in message for message in caplog.messages)
        assert server.refusals == {"max_buffered": 1}
        return
    net.until(lambda: channel.buffered_amount == 0)
    assert channel.send("that was all")
    net.until(lambda: "that was all" in client.received)
    numbers = [int.from_bytes(m[:4], "big") for m in client.received[:-1]]
    assert numbers == sorted(set(numbers))
    assert len(numbers) + channel.dropped == sent
    if policy == "drop_newest":
        # The oldest have come without a gap.
        assert numbers[:15] == list(range(15))
        if how == "send":
            assert numbers == accepted
    else:
        assert numbers[-19:] == list(range(sent - 19, sent))
    net.until(lambda: server.record.count("drain"))
    assert {call.who for call in server.record.calls if call.what == "drain"} == {channel}


def test_a_refused_send_is_followed_by_a_drain(net: Net) -> None:
    class Feeder(RecordingServer):
        next = 0

        def feed(self, channel: WebSocketChannel) -> None:
            while self.next < 200 and channel.send(build(self.next)):
                self.next += 1

        def on_ws_message(self, channel: WebSocketChannel, msg: str | bytes) -> None:
            self.feed(channel)

        def on_ws_drain(self, channel: WebSocketChannel) -> None:
            self.record.add("drain")
            self.feed(channel)

    server = net.serve(Feeder(), slow_policy="drop_newest", max_buffered=3 * MESSAGE)
    client, _ = opened(net, server)
    client.send("go")
    net.until(lambda: len(client.received) == 200)
    assert client.received == [build(number) for number in range(200)]
    assert server.record.count("drain") > 0


@pytest.mark.parametrize("policy", ["drop_newest", "drop_oldest"])
def test_a_fragment_that_does_not_fit_closes_under_every_policy(net: Net, policy: str) -> None:
    server = net.serve(RecordingServer(), slow_policy=policy, max_buffered=5 * MESSAGE, compression=None)
    client, channel = opened(net, server)
    net.block(client)
    assert channel.send(build(0), fin=False)
    sent = 1
    while channel.is_open:
        assert sent < 10_000, "everything fits into the buffers?"
        net.until(lambda: True)
        channel.send(build(sent), fin=False)
        sent += 1
    assert channel.dropped == 0
    net.until(lambda: channel.close_code)
    assert channel.close_code == 1008


def test_a_single_message_larger_than_the_limit_is_sent(net: Net) -> None:
    server = net.serve(RecordingServer(), max_buffered=1000)
    client, channel = opened(net, server)
    assert channel.send(b"x" * 100_000)
    net.until(lambda: client.received)
    assert channel.is_open


def test_reading_pauses_while_the_program_does_not_tick(net: Net) -> None:
    server = net.serve(RecordingServer(), max_channel_pending_bytes=50_000)
    client, _ = opened(net, server, max_buffered=1 << 30, compression=None)
    count = 3000
    for number in range(count):
        assert client.send(build(number))
    net.wait(lambda: server.pending > 0)
    most = 0
    while server.record.count("message") < count:
        net.wait(lambda: server.pending)
        most = max(most, server.pending)
        server.tick()
    # One read more than the limit, of 64 KiB at most.
    assert most <= (50_000 + (64 << 10)) // MESSAGE + 1
    assert server.record.values("message") == [build(number) for number in range(count)]


# Keep-alive


def test_pings_are_answered_without_a_tick_and_tell_the_latency(net: Net) -> None:
    server = net.serve(RecordingServer(), ping_interval=0.05, ping_timeout=20.0)
    client, channel = opened(net, server, ping_interval=0.05)
    net.wait(lambda: channel.latency is not None and client.latency is not None)
    assert channel.latency is not None
    assert 0.0 <= channel.latency < 20.0


def test_a_silent_channel_is_closed_with_1001(net: Net) -> None:
    server = net.serve(RecordingServer(), idle_timeout=0.3)
    client, channel = opened(net, server)
    net.until(lambda: client.close_code and channel.close_code)
    assert (client.close_code, client.close_reason) == (1001, "no message for idle_timeout")
    assert channel.close_code == 1001


def test_a_peer_that_is_gone_is_noticed(net: Net) -> None:
    server = net.serve(RecordingServer(), ping_interval=0.1, ping_timeout=0.2, close_timeout=0.2)
    client, channel = opened(net, server, ping_interval=None)
    net.block(client)
    net.until(lambda: channel.close_code)
    assert (channel.close_code, channel.close_reason) == (1011, "keep-alive ping was not answered")


def test_a_stalled_program_is_closed_with_1013(net: Net, caplog: pytest.LogCaptureFixture) -> None:
    server = net.serve(RecordingServer(), app_stall_timeout=0.2)
    client, channel = opened(net, server)
    net.wait(lambda: client.pending)
    net.until(lambda: client.close_code and channel.close_code)
    assert (client.close_code, client.close_reason) == (1013, "the program does not answer")
    assert any("no tick for app_stall_timeout=0.2 s" in message for message in caplog.messages)


# The handshake


class Deciding(RecordingServer):
    def __init__(self, decide: Callable[[WsUpgrade], Any]) -> None:
        super().__init__()
        self.decide = decide

    def on_ws_upgrade(self, request: WsUpgrade) -> Any:
        self.record.add("upgrade", None, (request.path, dict(request.query), request.subprotocols))
        return self.decide(request)


def test_what_the_handshake_tells(net: Net) -> None:
    def accept(request: WsUpgrade) -> None:
        assert request.headers["X-Name"] == "Ann"
        assert request.scheme == "http"
        assert request.http_version == "1.1"
        assert request.remote_address[0] == request.client_address == "127.0.0.1"
        assert request.url == "/sp%20ace?x=1&x=2&y="
        request.accept("b", headers=[("X-Served-By", "me"), ("X-Served-By", "you")])

    server = net.serve(Deciding(accept))
    options = {"subprotocols": ["a", "b"], "headers": {"X-Name": "Ann"}}
    client, channel = opened(net, server, "/sp%20ace?x=1&x=2&y=", **options)
    assert server.record.values("upgrade") == [("/sp ace", {"x": "1", "y": ""}, ["a", "b"])]
    assert client.subprotocol == channel.subprotocol == "b"
    assert client.headers is not None
    assert client.headers.get_all("X-Served-By") == ["me", "you"]
    assert client.headers["upgrade"] == "websocket"
    assert channel.url == "/sp%20ace?x=1&x=2&y="
    assert channel.path == "/sp ace"
    assert channel.query.get_all("x") == ["1", "2"]
    assert channel.headers["x-name"] == "Ann"
    assert channel.headers["Sec-WebSocket-Version"] == "13"
    assert {"host", "upgrade", "connection", "sec-websocket-key", "sec-websocket-protocol"} <= set(channel.headers)
    assert channel.remote_address is not None
    assert channel.remote_address[0] == channel.client_address == "127.0.0.1"
    assert channel.scheme == "http"
    assert client.remote_address is not None
    assert client.remote_address[0] == "127.0.0.1"


@pytest.mark.parametrize(
    ("decide", "status", "text"),
    [
        (lambda request: False, 403, "403 Forbidden"),
        (lambda request: 418, 418, "418 I'm a Teapot"),
        (lambda request: request.refuse(401, "who are you?"), 401, "who are you?"),
        (lambda request: 1 / 0, 500, "500 Internal Server Error"),
        (lambda request: "yes", 500, "500 Internal Server Error"),
        (lambda request: request.accept("never offered"), 500, "500 Internal Server Error"),
    ],
)
def test_a_refusal(net: Net, decide: Callable[[WsUpgrade], Any], status: int, text: str) -> None:
    server = net.serve(Deciding(decide))
    client = net.connect(RecordingClient(), server, "/secret")
    net.until(lambda: client.close_code)
    assert kinds(client.record) == ["error", "close"]
    assert isinstance(client.error, pyhv.HandshakeError)
    assert client.error.status == status
    told = f"the server answered the WebSocket handshake with HTTP status {status}, not 101 ({text})"
    assert str(client.error).endswith(f"/secret refused the WebSocket handshake: {told}")
    assert (client.close_code, client.close_reason) == (1006, "")
    assert (client.headers, client.remote_address, client.subprotocol) == (None, None, None)
    assert server.channels == []
    assert server.record.count("error") == (status == 500)
    # The client may try again.
    server.decide = lambda request: True
    net.connect(client, server)
    net.until(lambda: client.is_connected)
    assert client.error is None


@pytest.mark.parametrize("decision", [None, True])
def test_accepting_without_a_word(net: Net, decision: bool | None) -> None:
    server = net.serve(Deciding(lambda request: decision), subprotocols=["b", "a"])
    client, _ = opened(net, server, subprotocols=["a", "b"])
    assert client.subprotocol == "b"
    other, channel = opened(net, server, subprotocols=["c"])
    assert other.subprotocol is channel.subprotocol is None


def test_a_decision_that_comes_too_late(net: Net, caplog: pytest.LogCaptureFixture) -> None:
    server = net.serve(Deciding(lambda request: True), upgrade_timeout=0.1)
    client = net.connect(RecordingClient(), server)
    net.wait(lambda: client.pending)
    client.tick()
    assert isinstance(client.error, pyhv.HandshakeError)
    assert client.error.status == 503
    net.until(lambda: caplog.messages)
    assert "on_ws_upgrade did not run within upgrade_timeout=0.1 s" in caplog.text
    assert server.channels == []


@pytest.mark.parametrize(
    ("allowed", "origin", "accepted"),
    [
        (None, "https://example.com", False),
        ("*", "https://example.com", True),
        (["https://Example.com"], "https://example.com", True),
        (["https://example.com"], "https://example.org", False),
        (None, None, True),
    ],
)
def test_origins(net: Net, allowed: Any, origin: str | None, accepted: bool, caplog: pytest.LogCaptureFixture) -> None:
    server = net.serve(RecordingServer(), allowed_origins=allowed)
    client = net.connect(RecordingClient(), server, headers={} if origin is None else {"Origin": origin})
    net.until(lambda: client.is_connected or client.error)
    assert client.is_connected is accepted
    if not accepted:
        assert isinstance(client.error, pyhv.HandshakeError)
        assert client.error.status == 403
        net.until(lambda: caplog.messages)
        assert caplog.messages[0].endswith(f'refused with 403: its page\'s origin "{origin}" is not in allowed_origins')
        assert server.refusals == {"allowed_origins": 1}


def test_limits_on_connections(net: Net) -> None:
    server = net.serve(RecordingServer(), max_connections=1)
    first, _ = opened(net, server)
    second = net.connect(RecordingClient(), server)
    net.until(lambda: second.error)
    assert isinstance(second.error, pyhv.ConnectError)
    assert server.refusals == {"max_connections": 1}
    first.close()
    net.until(lambda: first.close_code and not server.channels)


# Life of a client


def test_nobody_listens(net: Net) -> None:
    server = net.serve(RecordingServer())
    port = server.port
    server.stop()
    client = RecordingClient()
    net.own(client)
    client.connect(f"ws://127.0.0.1:{port}/")
    assert client.is_connecting
    net.until(lambda: client.close_code)
    assert isinstance(client.error, pyhv.ConnectionRefused)
    assert str(client.error) == f"cannot connect to 127.0.0.1:{port}: Connection refused"
    assert client.record.values("error") == [client.error]
    assert kinds(client.record) == ["error", "close"]


def test_connecting_twice_raises(net: Net) -> None:
    server = net.serve(RecordingServer())
    client, _ = opened(net, server)
    with pytest.raises(RuntimeError, match="the client is connected or connecting: close\\(\\) it"):
        client.connect(f"ws://127.0.0.1:{server.port}/")


def test_close_while_connecting_gives_up_without_an_error(net: Net) -> None:
    server = net.serve(Deciding(lambda request: True))
    client = net.connect(RecordingClient(), server)
    client.close()
    net.until(lambda: client.close_code)
    assert client.error is None
    assert kinds(client.record) == ["close"]
    assert client.close_code == 1006


def test_close_before_the_tick_that_would_have_opened(net: Net) -> None:
    server = net.serve(RecordingServer())
    client = net.connect(RecordingClient(), server)
    net.wait(lambda: client.pending)
    client.close()
    net.until(lambda: client.close_code)
    assert kinds(client.record) == ["close"]
    net.until(lambda: server.record.count("close") == 1)


def test_a_client_connects_again_inside_on_close(net: Net) -> None:
    class Again(RecordingClient):
        def on_close(self) -> None:
            super().on_close()
            if self.record.count("close") < 3:
                net.connect(self, server, f"/{self.record.count('close')}")

    server = net.serve(RecordingServer())
    client = net.connect(Again(), server, "/0")

    def is_there(count: int) -> bool:
        return server.record.count("open") == count and client.is_connected

    def is_gone(count: int) -> bool:
        return client.record.count("close") == count

    for number in range(3):
        net.until(partial(is_there, number + 1))
        server.channels[0].close(4000 + number)
        net.until(partial(is_gone, number + 1))
    assert server.record.values("open") == ["/0", "/1", "/2"]
    assert client.record.values("close") == [4000, 4001, 4002]


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ({"headers": {"a b": "c"}}, ValueError),
        ({"headers": {"Upgrade": "x"}}, ValueError),
        ({"headers": {"x": "\n"}}, ValueError),
        ({"subprotocols": ["a", "a"]}, ValueError),
        ({"max_buffered": 0}, ValueError),
        ({"slow_policy": "wait"}, ValueError),
        ({"ping_interval": 0}, ValueError),
        ({"compression": "zip"}, ValueError),
        ({"open_timeout": "x"}, TypeError),
    ],
)
def test_what_a_client_cannot_be_told_raises_the_same(arguments: dict[str, Any], kind: type[Exception]) -> None:
    raised = []
    for net in (RealNet(), MemoryNet()):
        client = RecordingClient()
        net.own(client)
        with pytest.raises(kind) as failed:
            client.connect("ws://127.0.0.1:9/", **arguments)
        raised.append(str(failed.value))
        assert not client.is_connecting
        net.close()
    assert raised[0] == raised[1]


# Life of a server


@pytest.mark.parametrize(
    "settings",
    [
        {"port": 70_000},
        {"port": -1},
        {"max_message_size": 0},
        {"max_buffered": -1},
        {"close_timeout": -1},
        {"ping_timeout": 0},
        {"slow_policy": "none"},
        {"subprotocols": "a"},
        {"allowed_origins": "example.com"},
        {"trusted_proxies": ["x"]},
        {"slow_policy": "drop_oldest", "compression": "context"},
        {"tls_port": 0},
    ],
)
def test_what_a_server_cannot_be_told_raises_the_same(settings: dict[str, Any]) -> None:
    raised = []
    for net in (RealNet(), MemoryNet()):
        server = RecordingServer()
        net.own(server)
        with pytest.raises(ValueError) as failed:  # noqa: PT011 - compared below
            server.start(**{"port": 0, **settings})
        raised.append(str(failed.value))
        assert not server.is_running
        net.close()
    assert raised[0] == raised[1]


def test_tick_before_start_and_a_second_start_raise(net: Net) -> None:
    server = RecordingServer()
    net.own(server)
    with pytest.raises(RuntimeError, match="tick\\(\\) before start\\(\\): the server does not run"):
        server.tick()
    assert (server.port, server.is_running, server.channels, server.refusals, server.pending) == (
        None,
        False,
        [],
        {},
        0,
    )
    server.broadcast("nobody")
    server.stop()
    server.start(0)
    with pytest.raises(RuntimeError, match=f"the server runs already, on 127.0.0.1:{server.port}: stop\\(\\) it first"):
        server.start(0)
    other = RecordingServer()
    net.own(other)
    with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{server.port}: Address already in use") as failed:
        other.start(server.port or 0)
    assert failed.value.errno == errno.EADDRINUSE


def test_on_init_runs_once_and_routes_may_be_added(net: Net) -> None:
    class Routed(RecordingServer):
        def on_init(self) -> None:
            self.record.add("init")
            self.get("/x", lambda request, response: "x")

    server = net.serve(Routed())
    with pytest.raises(ValueError, match="GET /x has a handler already"):
        server.get("/x", lambda request, response: "again")
    server.stop()
    server.start(0)
    assert kinds(server.record) == ["init"]
    assert server.streams == []


def test_contexts(net: Net) -> None:
    server = EchoServer()
    net.own(server)
    with server:
        server.start(0)
        client = RecordingClient()
        net.own(client)
        with client:
            client.connect(f"ws://127.0.0.1:{server.port}/")
            net.until(lambda: server.channels and client.is_connected)
        assert client.close_code == 1000
    assert not server.is_running
    assert server.record.values("close") == [1000]


# What a channel is


def test_a_channel(net: Net) -> None:
    server = net.serve(RecordingServer())
    _, channel = opened(net, server, "/x")
    assert isinstance(channel, WebSocketChannel)
    assert channel.data is None
    channel.data = {"name": "Ann"}
    assert server.channels[0].data == {"name": "Ann"}
    assert channel == server.channels[0]
    assert len({channel, server.channels[0]}) == 1
    with pytest.raises(AttributeError):
        channel.name = "Ann"  # type: ignore[attr-defined]
    with pytest.raises(AttributeError):
        channel.url = "/y"  # type: ignore[misc]
    assert channel.remote_address is not None
    host, port = channel.remote_address
    assert repr(channel) == f"<WebSocketChannel /x from {host}:{port}, open>"
    channel.close()
    assert repr(channel).endswith(", closed>")


def test_on_message_frame_tells_the_opcode(net: Net) -> None:
    class Framed(RecordingClient):
        def on_message_frame(self, msg: str | bytes, opcode: WsOpcode) -> None:
            self.record.add("frame", None, opcode)
            super().on_message_frame(msg, opcode)

    server = net.serve(RecordingServer())
    client = net.connect(Framed(), server)
    net.until(lambda: server.channels)
    server.broadcast("text")
    server.broadcast(b"binary")
    net.until(lambda: len(client.received) == 2)
    assert client.record.values("frame") == [WsOpcode.TEXT, WsOpcode.BINARY]
    assert all(type(opcode) is WsOpcode for opcode in client.record.values("frame"))


def test_the_program_sees_its_own_classes(net: Net) -> None:
    class Game(HvWebServer):
        def __init__(self, name: str) -> None:
            self.name = name

        def tick(self, *arguments: Any, **options: Any) -> int:
            self.ticked = True
            return super().tick(*arguments, **options)

    class Player(HvWebSocketClient):
        def connect(self, url: str, **options: Any) -> None:
            self.asked = url
            super().connect(url, **options)

    game, player = net.serve(Game("one")), Player()
    net.connect(player, game)
    net.until(lambda: game.channels and player.is_connected)
    assert isinstance(game, Game)
    assert type(game).__name__ == "Game"
    assert type(game).__qualname__.endswith("Game")
    assert type(game).__module__ == __name__
    assert (game.name, game.ticked) == ("one", True)
    assert player.asked.startswith("ws://")
