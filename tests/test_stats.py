"""`stats()`: exact counts after traffic that is known."""

from __future__ import annotations

import dataclasses
import json
import math
import threading
import time
from collections.abc import Callable
from io import UnsupportedOperation
from pathlib import Path
from typing import Any

import httpx
import pytest

import pyhv
from pyhv import ClientStats, HvWebServer, HvWebSocketClient, ServerStats, TickTimes, WebSocketChannel, WsOpcode
from pyhv.testing import World
from support import (
    Background,
    EchoServer,
    RawClient,
    RecordingServer,
    ServerThread,
    ask,
    connected,
    http,
    port_of,
    tick_until,
    wait_until,
)
from support_tls import make_certificates, tls_port_of

CLASSES = {"1xx": 0, "2xx": 0, "3xx": 0, "4xx": 0, "5xx": 0}


def settled(server: HvWebServer, **expected: Any) -> ServerStats:
    """The stats, once these are so: the native side may be about to count."""

    def look() -> ServerStats | None:
        stats = server.stats()
        return stats if all(getattr(stats, name) == value for name, value in expected.items()) else None

    try:
        found = tick_until(look, server)
    except AssertionError:
        seen = {name: getattr(server.stats(), name) for name in expected}
        raise AssertionError(f"{seen}, expected {expected}") from None
    assert found is not None
    return found


# Messages


def test_messages_and_their_bytes(echo: EchoServer) -> None:
    with RawClient(port_of(echo)) as client:
        for text in ("", "hello", "grüße"):
            client.send_text(text)
        client.send_binary(bytes(70_000))  # larger than a read, and not copied into the arena
        for _ in range(4):
            tick_until(client.readable, echo)
            client.read_message()
        content = 0 + 5 + 7 + 70_000
        stats = settled(echo, messages_received=4, messages_sent=4)
        assert (stats.message_bytes_received, stats.message_bytes_sent) == (content, content)
        # Heads of frames: 2 bytes up to 125, 10 for the large one; a client's have 4 more.
        assert stats.websocket_bytes_read == content + 3 * 6 + 14
        assert stats.websocket_bytes_written == content + 3 * 2 + 10
        assert (stats.events_delivered, stats.events_pending) == (5, 0)


def test_fragments_count_once_and_control_frames_not(server: RecordingServer) -> None:
    with RawClient(port_of(server)) as client:
        client.send_text("one ", fin=False)
        client.send_frame(WsOpcode.CONTINUATION, b"two", fin=True)
        client.send_ping(b"x")
        (channel,) = tick_until(lambda: server.channels, server)
        assert channel.send("a", fin=False)
        assert channel.send("b", opcode=WsOpcode.CONTINUATION, fin=False)
        assert channel.send("c", opcode=WsOpcode.CONTINUATION)
        assert channel.send(b"?", opcode=WsOpcode.PING)
        assert client.read_message() == "abc"
        stats = settled(server, messages_received=1, messages_sent=1)
        assert (stats.message_bytes_received, stats.message_bytes_sent) == (7, 3)
        assert stats.websocket_bytes_read == 7 + 1 + 3 * 6
        tick_until(lambda: server.stats().websocket_bytes_written == 3 * 3 + 3 + 3, server)


def test_a_broadcast_counts_for_each_who_gets_it(server: RecordingServer) -> None:
    clients = [connected(server) for _ in range(3)]
    server.broadcast("12345")
    server.broadcast(b"123", exclude=server.channels[0])
    server.broadcast("x" * 5000)
    tick_until(lambda: sum(len(client.received) for client in clients) == 8, server, *clients)
    stats = settled(server, messages_sent=8)
    assert stats.message_bytes_sent == 3 * 5 + 2 * 3 + 3 * 5000
    # The large one is compressed: bytes on the wire are few, the content is what it was.
    assert stats.websocket_bytes_written < 1000
    sent = 0
    for client in clients:
        own = client.stats()
        sent += own.messages_received
        assert own.message_bytes_received == sum(len(msg) for msg in client.received)
    assert sent == 8


def test_a_publish_counts_for_each_who_gets_it(server: RecordingServer) -> None:
    clients = [connected(server) for _ in range(3)]
    for channel in server.channels[:2]:
        channel.subscribe("a")

    def publish() -> None:
        server.publish("a", "12345")
        server.publish("a", b"123", exclude=server.channels[0])
        server.publish("a", "x" * 5000)
        server.publish("b", "to nobody")

    server.on_tick = publish  # type: ignore[method-assign]
    server.tick()
    server.on_tick = lambda: None  # type: ignore[method-assign]
    tick_until(lambda: sum(len(client.received) for client in clients) == 5, server, *clients)
    stats = settled(server, messages_sent=5)
    assert stats.message_bytes_sent == 2 * 5 + 3 + 2 * 5000
    assert stats.websocket_bytes_written < 1000


@pytest.mark.parametrize("policy", ["drop_newest", "drop_oldest"])
def test_dropped_by_policy(policy: Any) -> None:
    server = RecordingServer()
    server.start(0, slow_policy=policy, max_buffered=100_000, ping_interval=None, compression=None)
    try:
        with RawClient(port_of(server), receive_buffer=4096):
            (channel,) = tick_until(lambda: server.channels, server)

            def filled() -> ServerStats | None:
                """Once the socket has had some, and something is left behind it that is told by both."""
                for _ in range(20):
                    channel.send(b"0" * 10_000)
                stats = settled(server, commands_pending=0)
                still = stats.buffered_bytes == channel.buffered_amount and stats.messages_dropped == channel.dropped
                enough = stats.buffered_bytes > 0 and stats.messages_sent > 10 and stats.messages_dropped >= 10
                return stats if still and enough else None

            stats = tick_until(filled, server)
            assert stats is not None
            assert stats.websockets_behind == 1
            assert stats.refusals == {}
    finally:
        server.stop(0)
    assert server.stats().messages_dropped >= 10


def test_closed_for_being_too_slow() -> None:
    server = RecordingServer()
    server.start(0, max_buffered=100_000, close_timeout=0.1)
    try:
        with RawClient(port_of(server), receive_buffer=4096):
            (channel,) = tick_until(lambda: server.channels, server)
            while channel.send(b"0" * 50_000):
                server.tick()
            stats = settled(server, websockets=0, websockets_closed={"1008": 1})
            assert (stats.refusals, stats.messages_dropped) == ({"max_buffered": 1}, 0)
    finally:
        server.stop(0)


def test_replaced_by_key() -> None:
    class Server(RecordingServer):
        def on_ws_message(self, channel: pyhv.WebSocketChannel, msg: str | bytes) -> None:
            for number in range(5):
                channel.send(str(number), key="k")

    server = Server()
    server.start(0)
    try:
        with RawClient(port_of(server)) as client:
            (channel,) = tick_until(lambda: server.channels, server)
            client.send_text("go")
            tick_until(client.readable, server)
            assert client.read_message() == "4"
            stats = settled(server, messages_sent=1)
            assert stats.messages_replaced == channel.replaced == 4
            assert (stats.messages_sent, stats.message_bytes_sent) == (1, 1)
    finally:
        server.stop(0)


def test_skipped_by_latest() -> None:
    server = RecordingServer()
    server.start(0, latest=lambda channel, msg: "key")
    try:
        with RawClient(port_of(server)) as client:
            (channel,) = tick_until(lambda: server.channels, server)
            for n in range(5):
                client.send_text(str(n))
            wait_until(lambda: server.stats().messages_received == 5)
            server.tick()
            assert server.record.values("message") == ["4"]
            stats = server.stats()
            assert stats.messages_skipped == channel.skipped == 4
    finally:
        server.stop(0)


# Connections and requests


def test_closes_by_code(server: RecordingServer) -> None:
    for code, name in [(1000, "1000"), (1001, "1001"), (None, "1005"), (3999, "3xxx"), (4000, "4xxx"), (4999, "4xxx")]:
        with RawClient(port_of(server)) as client:
            tick_until(lambda: server.channels, server)
            client.send_close(code)
            tick_until(lambda: not server.channels, server)
            client.read_close()
        assert settled(server, websockets=0).websockets_closed[name]
    with RawClient(port_of(server)) as client:
        tick_until(lambda: server.channels, server)
        client.reset()
        tick_until(lambda: not server.channels, server)
    with RawClient(port_of(server)) as client:
        tick_until(lambda: server.channels, server)
        stats = settled(server, websockets=1, websockets_opened=8, connections_accepted=8, http_connections=0)
        assert stats.websockets_closed == {"1000": 1, "1001": 1, "1005": 1, "1006": 1, "3xxx": 1, "4xxx": 2}
        assert sum(stats.websockets_closed.values()) + stats.websockets == stats.websockets_opened
        assert stats.http_responses == {**CLASSES, "1xx": 8}


def test_requests_by_the_class_of_their_answers(server: RecordingServer) -> None:
    server.get("/ok", lambda req, resp: "fine")
    server.get("/away", lambda req, resp: resp.redirect("/ok"))
    server.get("/broken", lambda req, resp: 1 / 0)
    for path, times in [("/ok", 3), ("/away", 2), ("/nowhere", 4), ("/broken", 1)]:
        for _ in range(times):
            ask(server, "GET", path)
    stats = settled(server, http_requests=10, http_requests_active=0)
    assert stats.http_responses == {**CLASSES, "2xx": 3, "3xx": 2, "4xx": 4, "5xx": 1}
    assert stats.http_requests_abandoned == 0
    assert stats.http_bytes_read > 10 * 30
    assert stats.http_bytes_written > 10 * 30


def test_a_request_that_waits(server: RecordingServer) -> None:
    server.get("/wait", lambda req, resp: "late")
    with RawClient(port_of(server), upgrade=False) as client:
        client.request("GET", "/wait")
        wait_until(lambda: server.stats().events_pending == 1)
        stats = server.stats()
        assert stats.http_requests_active == 1
        assert (stats.http_requests, stats.http_connections, stats.events_pending) == (1, 1, 1)
        assert stats.events_pending_bytes > 1000
        settled(server, http_requests_active=0, http_responses={**CLASSES, "2xx": 1})
    settled(server, http_connections=0)


def test_a_request_whose_client_left(tmp_path: Path) -> None:
    """Over HTTP/2, where it is noticed."""
    server = RecordingServer()
    server.get("/wait", lambda req, resp: "late")
    certificates = make_certificates(tmp_path)
    server.start(0, **certificates.settings)
    try:
        with httpx.Client(http2=True, verify=certificates.context(), timeout=0.2) as client:
            with pytest.raises(httpx.ReadTimeout):
                client.get(f"https://localhost:{tls_port_of(server)}/wait")
            assert server.stats().http_requests_active == 1
        wait_until(lambda: server.stats().http_requests_abandoned == 1)
        stats = server.stats()
        assert (stats.http_requests, stats.http_requests_active, stats.http_responses) == (1, 0, CLASSES)
    finally:
        server.stop(0)


def test_refusals_are_those_of_the_property(serve: Callable[..., ServerThread]) -> None:
    server = RecordingServer()
    port = serve(server, max_header_size=8192, max_message_size=10).port
    assert http(port, "GET", "/", headers=[("X", "x" * 10_000)]).status == 431
    with RawClient(port) as client:
        client.send_text("x" * 11)
        assert client.read_close().close_code == 1009
    wait_until(lambda: len(server.stats().refusals) == 2 and server.stats().websockets_closed)
    stats = server.stats()
    assert stats.refusals == server.refusals == {"max_header_size": 1, "max_message_size": 1}
    assert stats.websockets_closed == {"1009": 1}
    # What no request could be made of is not one.
    assert stats.http_requests == 1


def test_a_handler_that_does_not_answer_in_time() -> None:
    server = RecordingServer()
    server.get("/", lambda req, resp: "late")
    server.start(0, handler_timeout=0.05)
    try:
        assert http(port_of(server), "GET", "/").status == 503
        settled(server, refusals={"handler_timeout": 1}, http_responses={**CLASSES, "5xx": 1})
    finally:
        server.stop(0)


def test_pings_and_what_becomes_of_them() -> None:
    server = RecordingServer()
    server.start(0, ping_interval=0.05, ping_timeout=0.2, close_timeout=0.1)
    try:
        client = connected(server)
        tick_until(lambda: server.stats().pings_answered >= 2, server, client)
        client.close()
        tick_until(lambda: server.stats().websockets == 0, server, client)
        before = server.stats()
        assert before.pings_sent - before.pings_answered - before.pings_unanswered == before.pings_waiting == 0
        with RawClient(port_of(server)) as silent:
            tick_until(lambda: server.stats().pings_waiting == 1, server)
            assert silent.read_frame().opcode == WsOpcode.PING
            after = settled(server, pings_waiting=0, pings_unanswered=before.pings_unanswered + 1)
            assert after.refusals["ping_timeout"] == 1
            assert after.pings_sent == before.pings_sent + 1
    finally:
        server.stop(0)


# Queues


def test_what_waits_for_a_tick_and_who_is_not_read() -> None:
    server = RecordingServer()
    server.start(0, max_channel_pending_bytes=100_000)
    try:
        # Twice: what has ended is not counted on.
        for _ in range(2):
            with RawClient(port_of(server)) as client:
                (_channel,) = tick_until(lambda: server.channels, server)
                before = server.stats()
                client.socket.setblocking(False)
                try:
                    while True:
                        client.send_binary(bytes(10_000))
                except BlockingIOError:
                    pass
                wait_until(lambda: server.stats().websockets_paused == 1)
                # Messages are counted when the batch that has them is there.
                wait_until(lambda: server.stats().messages_received - before.messages_received > 5)  # noqa: B023
                stats = server.stats()
                received = stats.messages_received - before.messages_received
                assert stats.events_pending == received
                assert stats.events_pending_bytes == received * (10_000 + 64)
                server.tick(max_events=1)
                assert server.stats().events_pending >= received - 1
            tick_until(lambda: server.stats().websockets == 0, server)
            settled(server, websockets_paused=0, events_pending=0, events_pending_bytes=0, http_connections=0)
    finally:
        server.stop(0)


def test_what_is_on_its_way_to_the_io_thread(server: RecordingServer) -> None:
    with RawClient(port_of(server)):
        (channel,) = tick_until(lambda: server.channels, server)
        seen: list[ServerStats] = []
        settled(server, commands_pending=0)

        def on_tick() -> None:
            channel.send("12345678")
            seen.append(server.stats())

        server.on_tick = on_tick  # type: ignore[method-assign]
        server.tick()
        server.on_tick = lambda: None  # type: ignore[method-assign]
        assert (seen[0].commands_pending, seen[0].commands_pending_bytes) == (1, 10)
        assert (seen[0].websockets_behind, seen[0].buffered_bytes) == (1, 10)
        settled(server, commands_pending=0, commands_pending_bytes=0, buffered_bytes=0, messages_sent=1)


# Ticks


def test_ticks_and_how_long_they_took(server: RecordingServer) -> None:
    for _ in range(10):
        server.tick()
    stats = server.stats()
    assert stats.ticks == 10
    assert stats.tick_seconds.count == stats.events_delivered == 0  # nothing was to be delivered
    bounds = [bound for bound, _ in stats.tick_seconds.buckets]
    assert bounds == [1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10]
    server.on_ws_message = lambda channel, msg: time.sleep(0.03)  # type: ignore[method-assign]
    with RawClient(port_of(server)) as client:
        tick_until(lambda: server.channels, server)
        before = server.stats().tick_seconds
        client.send_text("x")
        wait_until(lambda: server.stats().events_pending == 1)
        server.tick()
        after = server.stats().tick_seconds
        assert after.count == before.count + 1
        assert after.sum - before.sum >= 0.03
        assert after.quantile(1) >= 0.05
        assert dict(after.buckets)[0.02] == dict(before.buckets)[0.02]


def test_a_callback_that_hangs_and_a_program_that_does_not_tick(server: RecordingServer) -> None:
    with RawClient(port_of(server)) as client:
        tick_until(lambda: server.channels, server)
        wait_until(lambda: server.stats().stall_age > 0.05)
        assert server.stats().tick_running == 0
        release = threading.Event()

        def hang(channel: WebSocketChannel, msg: str | bytes) -> None:
            release.wait(20)

        server.on_ws_message = hang  # type: ignore[method-assign]
        client.send_text("x")
        wait_until(lambda: server.stats().events_pending == 1)
        ticking = Background(lambda: server.tick())
        wait_until(lambda: server.stats().tick_running > 0.05)
        assert server.stats().stall_age > 0.02
        release.set()
        ticking.result()
        stats = server.stats()
        assert stats.tick_running == 0
        assert stats.tick_seconds.sum >= 0.05


def test_a_program_that_waits_in_tick_does_not_stall(server: RecordingServer) -> None:
    seen: list[ServerStats] = []
    server.on_ws_open = lambda channel, url: seen.append(server.stats())  # type: ignore[method-assign]
    ticking = Background(lambda: server.tick(None))
    wait_until(lambda: server.stats().ticks == 1)
    # A tick is counted before it waits. Long after that, no age can only come of the waiting.
    began = time.monotonic()
    wait_until(lambda: server.stats().stall_age == 0 and time.monotonic() - began > 0.1)
    while time.monotonic() - began < 0.3:
        assert server.stats().stall_age == 0
    with RawClient(port_of(server)):
        ticking.result()
    # The wait is over: what it delivers has only begun.
    assert seen[0].stall_age < 0.15


# Life


def test_before_and_after(server: RecordingServer) -> None:
    assert RecordingServer().stats() == ServerStats()
    assert HvWebSocketClient().stats() == ClientStats()
    with RawClient(port_of(server)) as client:
        tick_until(lambda: server.channels, server)
        client.send_text("last words")
        wait_until(lambda: server.stats().events_pending == 1)
        stopping = Background(server.stop)
        client.answer_close()
        stopping.result()
    stats = server.stats()
    assert (stats.messages_received, stats.websockets, stats.websockets_closed) == (1, 0, {"1001": 1})
    assert stats == server.stats()
    server.start(0)
    assert server.stats().messages_received == 0
    assert server.stats().started > stats.started


def test_a_client_counts_its_connections_together(server: RecordingServer) -> None:
    client = connected(server, reconnect=pyhv.Reconnect(first=0.01))
    client.send("1")
    tick_until(lambda: server.record.count("message") == 1, server, client)
    server.channels[0].close(1012)
    tick_until(lambda: client.stats().websockets_opened == 2 and client.is_connected, server, client)
    client.send("22")
    tick_until(lambda: client.stats().messages_sent == server.record.count("message") == 2, server, client)
    stats = client.stats()
    assert (stats.messages_sent, stats.message_bytes_sent, stats.websockets_closed) == (2, 3, {"1012": 1})
    assert stats.uptime > 0
    client.close()
    tick_until(lambda: client.close_code, server, client)


def test_from_any_thread_and_inside_callbacks(serve: Callable[..., ServerThread]) -> None:
    class Telling(EchoServer):
        def on_ws_message(self, channel: WebSocketChannel, msg: str | bytes) -> None:
            assert self.stats().tick_running > 0
            super().on_ws_message(channel, msg)

    server = Telling()
    port = serve(server).port
    with RawClient(port) as client:
        for _ in range(50):
            client.send_text("x")
        looks = [server.stats() for _ in range(200)]
        assert [client.read_message() for _ in range(50)] == ["x"] * 50
    assert server.record.count("error") == 0
    received = [look.messages_received for look in looks]
    assert received == sorted(received)


def test_as_dict_is_for_json(echo: EchoServer) -> None:
    connected(echo)
    values = json.loads(json.dumps(echo.stats().as_dict()))
    assert list(values) == [field.name for field in dataclasses.fields(ServerStats)]
    assert values["tick_seconds"].keys() == {"buckets", "count", "sum"}
    with pytest.raises(dataclasses.FrozenInstanceError):
        echo.stats().websockets = 7  # type: ignore[misc]


def test_quantiles() -> None:
    times = TickTimes(buckets=((0.1, 50), (0.2, 99), (0.5, 99)), count=100, sum=12.0)
    assert times.mean == 0.12
    assert [times.quantile(q) for q in (0, 0.5, 0.51, 0.99, 1)] == [0.1, 0.1, 0.2, 0.2, math.inf]
    assert (TickTimes().mean, TickTimes().quantile(0.5)) == (0.0, 0.0)
    for q in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=f"q={q}"):
            times.quantile(q)


def test_a_world_counts_nothing() -> None:
    with World() as world:
        server, client = RecordingServer(), HvWebSocketClient()
        world.adopt(server)
        world.adopt(client)
        for there in (server, client):
            with pytest.raises(UnsupportedOperation, match="World"):
                there.stats()
