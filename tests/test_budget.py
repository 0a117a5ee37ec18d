"""`tick(max_ms=, max_events=)`: a tick that fits a frame, and what it leaves for the next."""

from __future__ import annotations

import select
import time
from typing import Any

import pytest

import pyhv
from pyhv import WebSocketChannel
from support import HOST, RawClient, RecordingServer, connected, port_of, tick_until, wait_until


class Slow(RecordingServer):
    """Takes a while for each message."""

    pause = 0.0

    def on_ws_message(self, channel: WebSocketChannel, msg: str | bytes) -> None:
        super().on_ws_message(channel, msg)
        until = time.perf_counter() + self.pause
        while time.perf_counter() < until:
            pass


def flood(server: pyhv.HvWebServer, count: int, name: str = "") -> RawClient:
    """A client whose `count` messages wait for a tick."""
    before = server.pending
    client = RawClient(port_of(server))
    for number in range(count):
        client.send_text(f"{name}{number}")
    # The open, too.
    wait_until(lambda: server.pending >= before + count + 1, what="the messages wait")
    return client


def test_max_events_stops_and_keeps_the_rest_in_order() -> None:
    with RecordingServer() as server:
        server.start(0)
        with flood(server, 100):
            assert server.pending == 101
            assert server.tick(max_events=1) == 1
            assert server.record.count("open") == 1
            assert server.pending == 100
            for done in range(0, 100, 7):
                assert server.record.values("message") == [str(n) for n in range(done)]
                assert server.tick(max_events=7) == min(7, 100 - done)
            assert server.pending == 0
            assert server.tick(max_events=7) == 0
            assert server.record.values("message") == [str(n) for n in range(100)]


def test_max_ms_stops_behind_the_event_that_went_over() -> None:
    with Slow() as server:
        server.start(0)
        with flood(server, 50):
            server.tick(max_events=1)
            server.pause = 0.02
            # One at least, however small the budget; and not two, of which the first is over it.
            assert server.tick(max_ms=0.001) == 1
            assert server.tick(max_ms=10) == 1
            # An hour is enough for all.
            server.pause = 0.0
            assert server.tick(max_ms=3_600_000) == 48


def test_the_budget_begins_after_the_wait() -> None:
    with Slow() as server:
        server.start(0)
        with RawClient(port_of(server)) as client:
            tick_until(lambda: server.channels, server)
            assert server.tick(timeout=0.2, max_ms=1000) == 0
            client.send_text("a")
            assert server.tick(timeout=20, max_ms=1e-6) == 1


@pytest.mark.parametrize("options", [{"max_events": 10}, {"max_ms": 1e-6}], ids=["max_events", "max_ms"])
def test_a_channel_that_floods_delays_itself_alone(options: dict[str, Any]) -> None:
    with RecordingServer() as server:
        server.start(0)
        with flood(server, 5000, "flood"):
            server.tick(**options)
            waiting = server.pending
            with RawClient(port_of(server)) as quiet:
                quiet.send_text("quiet")
                wait_until(lambda: server.pending >= waiting + 2, what="its open and its message wait too")
                ticks = 0
                while "quiet" not in server.record.values("message"):
                    server.tick(**options)
                    ticks += 1
                # Its turn comes in each round: the open in one, the message in the next.
                assert ticks <= 5
                assert server.pending > 4000
            tick_until(lambda: server.record.count("close") == 1, server)
        messages = server.record.values("message")
        assert [m for m in messages if m != "quiet"] == [f"flood{n}" for n in range(5000)]


def test_every_channel_keeps_its_order_and_gets_its_close() -> None:
    with RecordingServer() as server:
        server.start(0)
        for number in range(20):
            with RawClient(port_of(server)) as client:
                for message in range(number):
                    client.send_text(f"{number}: {message}")
                client.send_close()
            if number % 5 == 4:
                server.tick(max_events=3)
        tick_until(lambda: server.record.count("close") == 20, server)
        for number, channel in enumerate(call.who for call in server.record.calls if call.what == "open"):
            happened = server.record.of(channel)
            assert [what for what, _ in happened] == ["open", *["message"] * (len(happened) - 2), "close"], number
            texts = [value for what, value in happened if what == "message"]
            assert texts == [f"{len(texts)}: {n}" for n in range(len(texts))]


def test_what_is_left_keeps_the_descriptor_readable_and_ends_a_wait() -> None:
    with RecordingServer() as server:
        server.start(0)
        with flood(server, 10):
            descriptor = server.fileno()
            for _ in range(11):
                assert select.select([descriptor], [], [], 20)[0]
                assert server.tick(timeout=None, max_events=1) == 1
            assert not select.select([descriptor], [], [], 0)[0]


def test_a_tick_without_a_budget_runs_what_is_left_and_what_came_since() -> None:
    with RecordingServer() as server:
        server.start(0)
        with flood(server, 10, "a"):
            server.tick(max_events=5)
            with flood(server, 10, "b"):
                assert server.tick() == 6 + 11
                assert sorted(server.record.values("message")) == sorted(f"{c}{n}" for c in "ab" for n in range(10))


def test_reading_pauses_while_the_budget_does_not_keep_up() -> None:
    """One event a tick: what waits stays bounded, nothing is lost, and the flood goes on when there is room."""
    limit = 64 << 10
    with RecordingServer() as server:
        server.start(0, max_pending_bytes=limit, max_channel_pending_bytes=limit // 2)
        with RawClient(port_of(server)) as client:
            client.socket.setblocking(False)
            frame = b"\x82\xfe\x03\xe8" + client.mask + b"m" * 1000
            sent = 0
            buffer = b""
            highest = 0
            total = 2000
            until = time.monotonic() + 60
            while server.record.count("message") < total:
                assert time.monotonic() < until
                while sent < total or buffer:
                    buffer = buffer or frame * min(50, total - sent)
                    if buffer and len(buffer) % len(frame) == 0:
                        sent += len(buffer) // len(frame)
                    try:
                        buffer = buffer[client.socket.send(buffer) :]
                    except BlockingIOError:
                        break
                server.tick(max_events=1 if server.record.count("message") < 300 else 100)
                highest = max(highest, server.pending)
            assert server.record.count("message") == total
            # At most two batches and one read wait, of messages that count a thousand bytes at least.
            assert 0 < highest <= (2 * limit + (64 << 10)) // 1000 + 1


def test_an_exception_leaves_the_rest_for_the_next_tick() -> None:
    class Interrupted(RecordingServer):
        def on_ws_message(self, channel: WebSocketChannel, msg: str | bytes) -> None:
            super().on_ws_message(channel, msg)
            if msg in ("3", "6"):
                raise KeyboardInterrupt

    with Interrupted() as server:
        server.start(0)
        with flood(server, 10):
            with pytest.raises(KeyboardInterrupt):
                server.tick()
            assert server.pending == 6
            assert server.tick(max_events=2) == 2
            with pytest.raises(KeyboardInterrupt):
                server.tick(max_events=5)
            assert server.tick(max_events=5) == 3
            assert server.record.values("message") == [str(n) for n in range(10)]


def test_requests_are_not_behind_a_flood() -> None:
    with RecordingServer() as server:
        server.get("/", lambda _request, response: response.text("here"))
        server.start(0)
        with flood(server, 1000), RawClient(port_of(server), upgrade=False) as asking:
            server.tick(max_events=10)
            before = server.pending
            asking.request("GET", "/")
            wait_until(lambda: server.pending > before)
            server.tick(max_events=10)
            assert asking.read_answer().body == b"here"
            assert server.pending > 900


def test_stop_runs_everything_that_is_left() -> None:
    server = RecordingServer()
    server.start(0)
    with flood(server, 100) as client:
        server.tick(max_events=10)
        client.socket.setblocking(True)
        server.stop()
    assert server.record.values("message") == [str(n) for n in range(100)]
    assert server.record.count("close") == 1


def test_the_client_has_a_budget_too() -> None:
    class Greeting(RecordingServer):
        def on_ws_open(self, channel: WebSocketChannel, url: str) -> None:
            for number in range(50):
                channel.send(str(number))

    with Greeting() as server:
        server.start(0)
        client = connected(server)
        wait_until(lambda: client.pending + len(client.received) >= 50, what="all have come")
        while len(client.received) < 50:
            before = len(client.received)
            assert client.tick(max_events=3) <= 3
            assert len(client.received) - before <= 3
        assert client.received == [str(n) for n in range(50)]
        client.close()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"max_events": 0}, "max_events=0"),
        ({"max_ms": 0}, "max_ms=0"),
        ({"max_ms": -1.5}, "max_ms=-1.5"),
        ({"max_ms": float("nan")}, "max_ms=NaN"),
    ],
)
def test_a_budget_of_nothing_is_refused(options: dict[str, Any], text: str) -> None:
    with RecordingServer() as server:
        server.start(0, host=HOST)
        for ticking in (server, pyhv.HvWebSocketClient(), pyhv.HttpClient()):
            with pytest.raises(ValueError, match=text):
                ticking.tick(**options)
