"""What only a World has: its clock, its frames, its links, its seed; then the real server for tests, and the fixtures.

That a World keeps the rules of real sockets is tested in test_testing_rules.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import pyhv
from pyhv import HttpRequest, HttpResponse, HvWebServer, HvWebSocketClient, WebSocketChannel, WsUpgrade, _native
from pyhv.testing import Link, LiveServer, ManualClock, World
from pyhv.testing._channel import MemoryChannel
from pyhv.testing._client import MemoryClient
from pyhv.testing._server import MemoryServer
from support import (
    EchoServer,
    RecordingClient,
    RecordingServer,
    open_descriptors,
    python_environment,
    run_python,
    thread_names,
)


@pytest.fixture
def world() -> Iterator[World]:
    with World(seed=3) as made:
        yield made


class Timed(RecordingServer):
    """Records when each message came."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.times: list[float] = []

    def on_ws_message(self, channel: WebSocketChannel, msg: str | bytes) -> None:
        super().on_ws_message(channel, msg)
        self.times.append(self.world.now)


def joined(world: World, server: HvWebServer, **options: Any) -> RecordingClient:
    """A client that is open, and its server knows."""
    before = len(server.channels)
    client = world.connect(RecordingClient(), server, **options)
    world.until(lambda: client.is_connected and len(server.channels) > before)
    return client


# The clock


def test_a_manual_clock() -> None:
    clock = ManualClock()
    assert clock.now() == 0.0
    for _ in range(10):
        clock.advance(0.1)
    assert clock.now() == 1.0
    clock.sleep(2.5)
    assert clock.now() == 3.5
    for wrong in (-0.1, float("nan"), float("inf"), 1e10):
        with pytest.raises(ValueError, match="seconds="):
            clock.advance(wrong)
    assert clock.now() == 3.5


def test_everybody_is_ticked_at_the_frame_rate_in_the_order_of_adoption(world: World) -> None:
    frames: list[tuple[str, float]] = []

    class Loop(HvWebServer):
        def __init__(self, name: str) -> None:
            self.name = name

        def on_tick(self) -> None:
            frames.append((self.name, round(world.now, 6)))

    world.serve(Loop("a"), fps=4)
    world.serve(Loop("b"), fps=2)
    world.advance(1.0)
    a = [(0.25, "a"), (0.5, "a"), (0.5, "b"), (0.75, "a"), (1.0, "a"), (1.0, "b")]
    assert [(when, name) for name, when in frames] == a
    # The World's rate, and no frame is lost or doubled however the time is cut.
    frames.clear()
    world.serve(Loop("c"))
    for _ in range(1000):
        world.advance(0.001)
    assert [name for name, _ in frames].count("c") == 60
    assert world.now == 2.0


def test_step_is_the_body_of_the_main_loop(world: World) -> None:
    class Robot(RecordingServer):
        position = 0.0

        def step(self) -> None:
            self.tick()
            self.position += 1 / 60
            self.broadcast(f"{self.position:.3f}")

    robot = Robot()
    world.serve(robot, step=robot.step)
    client = joined(world, robot)
    world.advance(0.5)
    assert robot.position == pytest.approx(world.now, abs=1 / 60)
    assert len(client.received) >= 29
    assert client.received == sorted(client.received)


def test_a_server_that_is_not_started_yet_is_not_ticked(world: World) -> None:
    server = world.adopt(EchoServer())
    client = world.adopt(RecordingClient())
    world.advance(1.0)
    server.start(9090)
    client.connect("ws://game.example:9090/play")
    world.until(lambda: client.is_connected)
    assert client.remote_address == ("127.0.0.1", 9090)
    server.stop()
    world.advance(1.0)
    assert client.close_code == 1001


def test_a_callback_that_takes_its_time(world: World) -> None:
    class Slow(RecordingServer):
        def on_ws_message(self, channel: WebSocketChannel, msg: str | bytes) -> None:
            super().on_ws_message(channel, msg)
            world.clock.sleep(0.010)

    server = world.serve(Slow())
    client = joined(world, server)
    for number in range(10):
        client.send(str(number))
    world.clock.advance(0.0)
    began = world.now
    # One at least, then until the budget is over.
    assert server.tick(max_ms=1.0) == 1
    assert server.tick(max_ms=25) == 3
    assert world.now - began == pytest.approx(0.040)
    assert server.tick() == 6
    # Its frame is late, and the next one comes a whole frame later.
    client.send("x")
    world.advance(1 / 60)
    assert server.record.count("message") == 11


def test_a_pause_of_everybody_is_no_reason_to_hurry(world: World) -> None:
    ticks = []

    class Loop(HvWebServer):
        def on_tick(self) -> None:
            ticks.append(world.now)

    world.serve(Loop())
    world.advance(0.5)
    ticks.clear()
    world.clock.advance(1.0)
    assert ticks == []
    world.advance(0.5)
    # At once, then every frame: those that were missed are gone.
    assert ticks[0] == 1.5
    assert len(ticks) == 31


def test_what_a_tick_sends_leaves_when_it_ends(world: World) -> None:
    class Slow(RecordingServer):
        def on_ws_message(self, channel: WebSocketChannel, msg: str | bytes) -> None:
            self.broadcast("answer")
            world.clock.sleep(0.5)
            self.record.add("seen", None, client.pending)

    server = world.serve(Slow())
    client = joined(world, server)
    client.send("x")
    world.clock.advance(0.0)
    server.tick()
    world.clock.advance(0.0)
    assert server.record.values("seen") == [0]
    assert client.pending == 1


def test_a_tick_with_a_timeout_moves_the_clock(world: World) -> None:
    server = world.serve(RecordingServer())
    client = joined(world, server, link=Link(delay=0.2))
    began = world.now
    assert server.tick(0.15) == 0
    assert world.now == pytest.approx(began + 0.15)
    client.send("x")
    assert server.tick(5.0) == 1
    assert world.now == pytest.approx(began + 0.35)
    with pytest.raises(RuntimeError, match="waits for something that never happens"):
        server.tick(None)
    assert server.tick() == 0


def test_until_gives_up(world: World) -> None:
    world.serve(RecordingServer())
    assert world.until(lambda: world.now >= 2.0)
    with pytest.raises(AssertionError, match=r"not within 5 s of the World's time: the condition at .*world.py:\d+"):
        world.until(lambda: False, limit=5.0)
    assert world.now == pytest.approx(7.0, abs=0.1)


def test_a_world_does_not_advance_inside_a_callback(world: World) -> None:
    class Nesting(RecordingServer):
        def on_ws_open(self, channel: WebSocketChannel, url: str) -> None:
            world.advance(1.0)

    server = world.serve(Nesting())
    world.connect(RecordingClient(), server)
    world.advance(1.0)
    (error,) = server.record.values("error")
    assert "a World does not advance inside a callback" in str(error)
    assert server.record.values("close") == [1011]


def test_what_leaves_a_tick_leaves_advance_and_the_next_goes_on(world: World) -> None:
    class Interrupted(RecordingServer):
        def on_ws_message(self, channel: WebSocketChannel, msg: str | bytes) -> None:
            super().on_ws_message(channel, msg)
            if msg == "stop":
                raise SystemExit

    server = world.serve(Interrupted())
    client = joined(world, server)
    for text in ("a", "stop", "b"):
        client.send(text)
    with pytest.raises(SystemExit):
        world.advance(1.0)
    world.advance(1.0)
    assert server.record.values("message") == ["a", "stop", "b"]


def test_a_budget_that_does_not_keep_up_bounds_what_waits(world: World) -> None:
    server = world.serve(RecordingServer(), max_pending_bytes=20_000)
    client = joined(world, server, compression=None)
    for number in range(200):
        client.send(number.to_bytes(2, "big") + bytes(998))
    most = 0
    while server.record.count("message") < 200:
        world.clock.advance(0.0)
        assert 1 <= server.tick(max_events=2) <= 2
        most = max(most, server.pending)
    # Within twice the limit and one message more.
    assert 15 < most <= 41
    assert [int.from_bytes(m[:2], "big") for m in server.record.values("message")] == list(range(200))


def test_errors_of_callbacks_are_gathered(world: World, caplog: pytest.LogCaptureFixture) -> None:
    class Failing(RecordingServer):
        def on_init(self) -> None:
            self.get("/", lambda request, response: [][0])

        def on_ws_message(self, channel: WebSocketChannel, msg: str | bytes) -> None:
            raise LookupError(msg)

    server = world.serve(Failing())
    client = joined(world, server)
    assert world.errors == []
    client.send("a")
    world.advance(0.1)
    assert world.http(server).get("/").status == 500
    assert [type(error) for error in world.errors] == [LookupError, IndexError]
    assert server.record.values("error") == world.errors
    # A connection that failed is none.
    world.connect(client, "ws://127.0.0.1:1/")
    world.advance(0.1)
    assert client.error is not None
    assert len(world.errors) == 2


# Links


def test_delay_is_each_way_and_connecting_takes_four(world: World) -> None:
    server = Timed(world)
    world.serve(server, fps=1000)
    client = world.connect(RecordingClient(), server, link=Link(delay=0.1), fps=1000)
    world.until(lambda: client.is_connected)
    assert world.now == pytest.approx(0.4, abs=0.0021)
    client.send("x")
    sent = world.now
    world.until(lambda: server.times)
    assert server.times[0] - sent == pytest.approx(0.1, abs=0.0021)


def test_bandwidth_and_buffered_amount(world: World) -> None:
    server = Timed(world)
    world.serve(server, fps=1000)
    client = joined(world, server, link=Link(bandwidth=10_000, buffer=4_000), compression=None)
    sent = world.now
    for _ in range(10):
        client.send(bytes(1_000 - 8))  # eight bytes of frame
    # Four thousand bytes are with the system, one of them on its way; the rest waits.
    assert client.buffered_amount == 6_000
    world.advance(0.5)
    assert 0 < client.buffered_amount < 6_000
    world.until(lambda: len(server.times) == 10)
    assert [when - sent for when in server.times] == pytest.approx([n / 10 for n in range(1, 11)], abs=0.003)
    assert client.buffered_amount == 0


@pytest.mark.parametrize(("keyed", "delay"), [(True, 0.0), (True, 0.1), (False, 0.0)])
def test_at_one_percent_of_the_rate_a_client_sees_fresh_state(world: World, keyed: bool, delay: float) -> None:
    size, fps = 1000, 60

    class Clock(RecordingServer):
        now = 0

        def on_tick(self) -> None:
            self.now += 1
            self.broadcast(f"{self.now}".ljust(size, "."), key="now" if keyed else None)

    server = world.serve(Clock(), fps=fps)
    rate = size * fps / 100
    client = joined(world, server, link=Link(delay=delay, bandwidth=rate), fps=fps)
    ages: list[int] = []
    while len(ages) < 15:
        before = len(client.received)
        world.until(lambda before=before: len(client.received) > before, limit=10)  # type: ignore[misc]
        ages.append(server.now - int(str(client.received[-1]).rstrip(".")))
        assert not keyed or server.channels[0].buffered_amount < 2 * size
    # Two intervals, and what was sent while the message was on its way. The first met the handshake on the line.
    on_its_way = ((size + 4) / rate + delay) * fps
    if keyed:
        assert max(ages[1:]) <= on_its_way + 2, ages
        assert server.channels[0].replaced > 14 * 97
    else:
        assert ages[-1] > 14 * on_its_way


def test_jitter_varies_but_nothing_overtakes(world: World) -> None:
    server = Timed(world)
    world.serve(server, fps=1000)
    client = joined(world, server, link=Link(delay=0.05, jitter=0.05))
    delays = []

    def have_come(count: int) -> bool:
        return len(server.times) == count

    for number in range(50):
        sent = world.now
        client.send(str(number))
        world.until(partial(have_come, number + 1))
        delays.append(server.times[-1] - sent)
    assert 0.05 <= min(delays) < 0.06
    assert 0.09 < max(delays) <= 0.103
    for number in range(200):
        client.send(f"burst {number}")
        world.clock.advance(0.001)
    world.advance(1.0)
    assert server.record.values("message")[50:] == [f"burst {number}" for number in range(200)]


def test_a_stall_holds_everything_back_and_loses_nothing(world: World) -> None:
    server = Timed(world)
    world.serve(server)
    client = joined(world, server, link=Link(delay=0.02))
    link = world.link(client)
    client.send("before")
    link.stall(2.0)
    began = world.now
    for number in range(5):
        client.send(str(number))
        server.broadcast(str(number))
        world.advance(0.1)
    assert server.times == []
    assert client.received == []
    link.stall(1.0)  # ends sooner: changes nothing
    world.advance(2.0)
    assert server.record.values("message") == ["before", "0", "1", "2", "3", "4"]
    assert client.received == ["0", "1", "2", "3", "4"]
    assert server.times[0] == pytest.approx(began + 2.0, abs=0.02)
    assert client.is_connected


def test_a_stall_of_one_direction(world: World) -> None:
    server = world.serve(EchoServer())
    client = joined(world, server)
    world.link(client).stall(1.0, "down")
    client.send("x")
    world.advance(0.5)
    assert server.record.values("message") == ["x"]
    assert client.received == []
    world.advance(0.6)
    assert client.received == ["x"]


def test_a_large_message_on_a_slow_link_is_a_sign_of_life(world: World) -> None:
    server = world.serve(RecordingServer(), ping_interval=1.0, ping_timeout=2.0, compression=None)
    client = joined(world, server, link=Link(bandwidth=10_000), ping_interval=1.0, ping_timeout=2.0)
    client.send(bytes(100_000))
    server.broadcast(bytes(100_000))
    world.advance(9.0)
    assert client.received == []
    world.advance(2.0)
    assert len(client.received) == server.record.count("message") == 1
    assert client.is_connected


def test_what_arrives_behind_our_close_is_dropped(world: World) -> None:
    server = world.serve(RecordingServer())
    client = joined(world, server, link=Link(delay=0.2))
    client.send("in time")
    world.clock.advance(0.2)
    client.send("too late")
    server.stop()
    assert server.record.values("message") == ["in time"]


def test_all_together_may_have_no_more_pending_than_their_limit(world: World) -> None:
    server = world.serve(RecordingServer(), max_pending_bytes=20_000)
    clients = [joined(world, server, compression=None) for _ in range(10)]
    for client in clients:
        for _ in range(10):
            client.send(bytes(1_000))
    world.clock.advance(0.0)
    # The limit, and one message more.
    assert 18 < server.pending < 21
    world.advance(1.0)
    assert server.record.count("message") == 100


def test_a_long_stall_ends_the_connection_by_its_pings(world: World) -> None:
    server = world.serve(RecordingServer(), ping_interval=5.0, ping_timeout=5.0)
    client = joined(world, server)
    world.link(client).stall(60.0)
    world.advance(30.0)
    assert server.record.values("close") == [1011]
    world.advance(60.0)
    assert client.close_code is not None


def test_cut_loses_what_is_under_way_and_the_client_comes_back(world: World) -> None:
    class Stubborn(RecordingClient):
        def on_close(self) -> None:
            super().on_close()
            self.connect(f"ws://127.0.0.1:{server.port}/again")

    server = world.serve(EchoServer())
    client = world.connect(Stubborn(), server, link=Link(delay=0.1))
    world.until(lambda: client.is_connected and server.channels)
    client.send("lost")
    world.advance(0.05)
    link = world.link(client)
    link.cut()
    world.until(lambda: client.record.count("open") == 2 and server.channels)
    assert client.record.values("close") == server.record.values("close") == [1006]
    assert server.record.values("message") == []
    assert server.channels[0].path == "/again"
    # The other way: no connection, no effect.
    server.stop(0)
    world.advance(0.05)
    link.cut()


def test_while_a_link_stalls_a_client_cannot_connect(world: World) -> None:
    server = world.serve(RecordingServer())
    client = joined(world, server)
    world.link(client).cut()
    world.link(client).stall(30.0)
    world.until(lambda: client.close_code == 1006)
    world.connect(client, server, open_timeout=5.0)
    world.until(lambda: client.close_code, limit=6.0)
    assert isinstance(client.error, pyhv.ConnectTimeout)
    assert str(client.error).endswith("did not answer within open_timeout=5 s")
    world.connect(client, server, open_timeout=60.0)
    world.until(lambda: client.is_connected)


@pytest.mark.parametrize(("when", "kind"), [(0.1, pyhv.ConnectError), (0.5, pyhv.HandshakeError)])
def test_cut_while_connecting(world: World, when: float, kind: type[Exception]) -> None:
    server = world.serve(RecordingServer())
    client = world.connect(RecordingClient(), server, link=Link(delay=0.2))
    world.advance(when)
    world.link(client).cut()
    world.advance(1.0)
    assert type(client.error) is kind
    assert server.channels == []
    assert server.record.calls == []


def test_a_client_that_leaves_before_the_decision(world: World) -> None:
    class Deciding(RecordingServer):
        def on_ws_upgrade(self, request: WsUpgrade) -> None:
            self.record.add("upgrade")

    server = world.serve(Deciding())
    client = world.connect(RecordingClient(), server)
    world.clock.advance(0.0)
    assert server.pending == 1
    world.link(client).cut()
    world.advance(1.0)
    assert [call.what for call in server.record.calls] == ["upgrade"]
    assert client.close_code == 1006


def test_connections_live_for_as_long_as_the_seed_says() -> None:
    def lives(seed: int) -> list[float]:
        with World(seed=seed) as world:
            server = world.serve(RecordingServer())
            client = world.connect(RecordingClient(), server, link=Link(mean_life=10.0))
            found = []
            for _ in range(30):
                world.until(lambda: client.is_connected)
                began = world.now
                world.until(lambda: client.close_code == 1006, limit=1000.0)
                found.append(world.now - began)
                world.connect(client, server)
            return found

    first = lives(1)
    assert lives(1) == first
    assert lives(2) != first
    assert 5.0 < sum(first) / len(first) < 20.0


def test_a_link_may_change(world: World) -> None:
    server = Timed(world)
    world.serve(server, fps=1000)
    client = joined(world, server, link=Link(delay=0.5))
    world.link(client).change(delay=0.01)
    sent = world.now
    client.send("x")
    world.until(lambda: server.times)
    assert server.times[0] - sent == pytest.approx(0.01, abs=0.0021)


@pytest.mark.parametrize(
    "options",
    [
        {"delay": -1},
        {"jitter": -1},
        {"delay": float("nan")},
        {"bandwidth": 0},
        {"bandwidth": float("inf")},
        {"buffer": 0},
        {"mean_life": 0},
    ],
)
def test_a_link_that_cannot_be(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Link(**options)


def test_a_link_has_one_client(world: World) -> None:
    server = world.serve(RecordingServer())
    link = Link()
    with pytest.raises(RuntimeError, match="a link that no client has"):
        link.stall(1.0)
    link.cut()
    client = joined(world, server, link=link)
    assert world.link(client) is link
    with pytest.raises(ValueError, match="a link has one client"):
        world.connect(RecordingClient(), server, link=link)
    with pytest.raises(ValueError, match="this client has its link already"):
        world.connect(client, server, link=Link())
    with pytest.raises(ValueError, match="direction='sideways'"):
        link.stall(1.0, "sideways")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="link= is for clients"):
        world.adopt(RecordingServer(), link=Link())


# Main loops


def test_a_main_loop_that_stalls_loses_no_connection(world: World) -> None:
    server = world.serve(RecordingServer(), ping_interval=1.0, ping_timeout=2.0)
    client = joined(world, server, ping_interval=1.0, ping_timeout=2.0)
    before = server.record.count("message")
    world.stall(server, 10.0)
    client.send("while it hangs")
    late = world.connect(RecordingClient(), server)
    world.advance(9.9)
    assert server.record.count("message") == before
    assert client.is_connected
    assert late.is_connected, "the native side does the handshake"
    world.advance(0.2)
    assert server.record.values("message") == ["while it hangs"]
    assert len(server.channels) == 2


# What a World is told


def test_a_world_takes_what_is_not_running() -> None:
    with World() as world, World() as other:
        server = world.serve(RecordingServer(), 9000)
        client = joined(world, server)
        with pytest.raises(RuntimeError, match="this RecordingServer is in a World already"):
            other.adopt(server)
        with pytest.raises(ValueError, match="this RecordingServer is not in this World"):
            other.connect(RecordingClient(), server)
        with pytest.raises(ValueError, match="this RecordingClient is not in this World"):
            other.stall(client, 1.0)
        with pytest.raises(ValueError, match="a server has no link"):
            world.link(server)  # type: ignore[arg-type]
        server.stop()
        with pytest.raises(RuntimeError, match="this RecordingServer does not run"):
            world.connect(RecordingClient(), server)
        # Ports are each World's own.
        other.serve(RecordingServer(), 9000)
    with EchoServer() as running:
        running.start(0)
        with World() as world, pytest.raises(RuntimeError, match="give it to the World before start"):
            world.adopt(running)
        with HvWebSocketClient() as connecting:
            connecting.connect(f"ws://127.0.0.1:{running.port}/")
            with World() as world, pytest.raises(RuntimeError, match="give it to the World before connect"):
                world.adopt(connecting)
    with pytest.raises(ValueError, match="fps=0"):
        World(fps=0)


def test_a_world_is_for_one_thread(world: World) -> None:
    server = world.serve(RecordingServer())
    client = joined(world, server)
    (channel,) = server.channels
    raised = []

    def use() -> None:
        for call in (
            lambda: world.advance(1.0),
            lambda: server.tick(),
            lambda: client.tick(),
            lambda: channel.send("x"),
            lambda: client.close(),
        ):
            try:
                call()
            except RuntimeError as error:
                raised.append(str(error))

    thread = threading.Thread(target=use)
    thread.start()
    thread.join(20)
    assert raised == ["a World, with all that runs in it, is for the thread that made it"] * 5


def test_a_closed_world() -> None:
    with World() as world:
        server = world.serve(RecordingServer())
        client = joined(world, server)
    # Dropped, without callbacks.
    assert server.record.values("close") == client.record.values("close") == []
    assert not server.is_running
    for call in (lambda: world.advance(1.0), lambda: server.tick(), lambda: client.tick(), lambda: server.start(0)):
        with pytest.raises(RuntimeError, match="the World is closed"):
            call()
    server.stop()
    world.close()


def test_tls_is_told_apart_but_not_made(world: World, tmp_path: Path) -> None:
    server = world.serve(RecordingServer(), 80, tls_port=443, certfile=tmp_path / "none.pem")
    assert (server.port, server.tls_port) == (80, 443)
    secure = world.connect(RecordingClient(), "wss://game.example/play")
    plain = world.connect(RecordingClient(), "ws://game.example/play")
    world.until(lambda: len(server.channels) == 2)
    assert [channel.scheme for channel in server.channels] == ["https", "http"]
    assert [channel.headers["host"] for channel in server.channels] == ["game.example"] * 2
    wrong = [world.connect(RecordingClient(), url) for url in ("wss://game.example:80/", "ws://game.example:443/")]
    world.until(lambda: all(client.error for client in wrong))
    assert [type(client.error) for client in wrong] == [pyhv.TlsError, pyhv.HandshakeError]
    assert secure.is_connected
    assert plain.is_connected


def test_what_a_world_has_not(world: World) -> None:
    server = world.serve(RecordingServer())
    client = joined(world, server)
    for what in (server, client):
        with pytest.raises(io.UnsupportedOperation, match="fileno"):
            what.fileno()
    assert client.is_compressed is server.channels[0].is_compressed is False


# The program's classes


class Strict(HvWebServer):
    """With slots, and a say in who subclasses it."""

    __slots__ = ("level",)

    def __init_subclass__(cls, *, level: int) -> None:
        raise AssertionError("the program's own affair")

    def __init__(self) -> None:
        self.level = 5
        self.get("/level", lambda request, response: str(self.level))

    def on_ws_open(self, channel: WebSocketChannel, url: str) -> None:
        channel.send(str(self.level))


def test_a_class_of_any_shape(world: World) -> None:
    server = world.serve(Strict())
    client = joined(world, server)
    world.advance(1.0)
    assert client.received == ["5"]
    # An override on the object counts too.
    client.on_message = lambda msg: client.record.add("own", None, msg)  # type: ignore[method-assign]
    server.broadcast("x")
    world.advance(1.0)
    assert client.record.values("own") == ["x"]


def public(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}


def test_nothing_is_missing() -> None:
    """A member that the native side gets has to get its stand-in, or it would work on what does not run."""
    assert public(WebSocketChannel) <= public(MemoryChannel)
    assert public(_native.WebSocketClient) <= set(vars(MemoryClient))
    assert public(_native.Server) - {"streams"} <= set(vars(MemoryServer))
    # What the classes above call.
    above = {"_connect", "_start", "_set_latest"}
    assert above & set(dir(_native.WebSocketClient)) <= set(vars(MemoryClient))
    assert above & set(dir(_native.Server)) <= set(vars(MemoryServer))


# Determinism

SCENARIO = """
import sys
from pyhv import HvWebServer, HvWebSocketClient
from pyhv.testing import Link, World

class Game(HvWebServer):
    def on_ws_open(self, channel, url):
        channel.data = set()
        print(f"{world.now!r} open {url} {channel.remote_address} {dict(channel.headers)}")
        self.broadcast(f"{url} is here", exclude=channel)

    def on_ws_message(self, channel, msg):
        print(f"{world.now!r} {channel.path} {msg} {channel.buffered_amount} {channel.latency!r}")
        channel.data.add(msg)
        self.broadcast(msg)

    def on_ws_close(self, channel):
        print(f"{world.now!r} close {channel.path} {channel.close_code} {len(channel.data)}")

class Player(HvWebSocketClient):
    def __init__(self, name):
        self.name, self.sent = name, 0

    def step(self):
        self.tick()
        if self.is_connected and world.now > self.sent + 0.5:
            self.sent = world.now
            self.send(f"{self.name} at {world.now!r}")

    def on_message(self, msg):
        print(f"{world.now!r} {self.name} got {msg}")

    def on_close(self):
        print(f"{world.now!r} {self.name} closed {self.close_code} {self.error}")
        world.connect(self, game, path=f"/{self.name}")

with World(seed=int(sys.argv[1])) as world:
    game = world.serve(Game(), ping_interval=1.0, slow_policy="drop_oldest", max_buffered=2000)
    for number in range(8):
        player = Player(f"player{number}")
        link = Link(delay=0.03, jitter=0.02, bandwidth=3_000, buffer=1_000, mean_life=4.0)
        world.connect(player, game, path=f"/{player.name}", link=link, step=player.step)
    world.advance(20.0)
    print(world.now, sum(channel.dropped for channel in game.channels))
"""


def scenario(seed: int, hash_seed: str) -> bytes:
    environment = {**python_environment(), "PYTHONHASHSEED": hash_seed}
    done = subprocess.run(
        [sys.executable, "-c", SCENARIO, str(seed)], env=environment, capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def test_the_same_seed_gives_the_same_events_byte_for_byte() -> None:
    first = scenario(1, "1")
    assert first.count(b"\n") > 1000
    assert first.count(b" close /") > 10
    assert scenario(1, "2") == first
    assert scenario(2, "1") != first


def test_a_client_more_changes_no_other_links_chances() -> None:
    def arrivals(others: int) -> list[float]:
        with World(seed=5) as world:
            server = Timed(world)
            world.serve(server, fps=1000)
            client = world.connect(RecordingClient(), server, path="/first", link=Link(delay=0.1, jitter=0.1))
            for _ in range(others):
                world.connect(RecordingClient(), server, link=Link(delay=0.1, jitter=0.1))
            world.until(lambda: client.is_connected)
            for _ in range(20):
                client.send("x")
                world.advance(0.3)
            return server.times

    assert arrivals(0) == arrivals(3)


def test_no_real_time_and_no_chance_but_the_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*arguments: Any) -> Any:
        raise AssertionError("a World has its own")

    with monkeypatch.context() as patched:
        for name in ("time", "monotonic", "perf_counter", "sleep", "time_ns", "monotonic_ns", "perf_counter_ns"):
            patched.setattr(time, name, forbidden)
        for name in ("random", "randint", "uniform", "expovariate", "choice", "randbytes"):
            patched.setattr(random, name, forbidden)
        patched.setattr(os, "urandom", forbidden)
        with World(seed=1) as world:
            server = world.serve(EchoServer(), ping_interval=0.1)
            client = joined(world, server, link=Link(delay=0.01, jitter=0.01, mean_life=100.0))
            client.send("x")
            world.until(lambda: client.received)
            server.stop()


def test_no_sockets_and_no_threads() -> None:
    done = run_python(
        "from support import open_descriptors, thread_names\n"
        "from pyhv import HvWebServer, HvWebSocketClient\n"
        "from pyhv.testing import World\n"
        "before = open_descriptors(), thread_names()\n"
        "with World() as world:\n"
        "    server = world.serve(HvWebServer())\n"
        "    client = world.connect(HvWebSocketClient(), server)\n"
        "    world.until(lambda: client.is_connected and server.channels)\n"
        "    server.stop()\n"
        "    assert (open_descriptors(), thread_names()) == before\n"
        "print('none')\n"
    )
    assert done.stdout == "none\n", done.stderr


def test_import_pyhv_does_not_import_it() -> None:
    done = run_python(
        "import sys, pyhv\n"
        "assert not [name for name in sys.modules if name.startswith('pyhv.testing')]\n"
        "import pyhv.testing\n"
        "assert 'pytest' not in sys.modules\n"
        "print('not')\n"
    )
    assert done.stdout == "not\n", done.stderr


# HTTP of a server in a World


def test_http_of_a_server_in_a_world(world: World, caplog: pytest.LogCaptureFixture) -> None:
    class Full(Scores):
        def __init__(self) -> None:
            super().__init__()
            self.ticks = 0
            self.kept: list[HttpResponse] = []
            # Before it came into the World.
            self.get("/early", lambda request, response: response.html("<p>early"))

        def on_init(self) -> None:
            super().on_init()
            self.get("/fails", lambda request, response: 1 / 0)
            self.get("/nests", lambda request, response: self.tick())
            self.get("/stops", lambda request, response: self.stop())
            self.get("/defers", lambda request, response: self.kept.append(response.defer()))

        def on_tick(self) -> None:
            self.ticks += 1

    server = Full()
    with pytest.raises(ValueError, match="is not in this World"):
        world.http(server)
    world.serve(server, max_body_size=100)
    client = joined(world, server, link=Link(delay=0.1))
    http = world.http(server)
    with pytest.raises(ValueError, match="a client has no handlers"):
        world.http(client)  # type: ignore[arg-type]
    before = world.now, server.ticks, list(vars(server))
    answer = http.put("/scores/An%6E", json=7)
    assert (answer.status, answer.text()) == (201, "noted")
    assert http.get("/scores").json() == [["Ann", 7]]
    assert http.get("/early").headers["content-type"] == "text/html; charset=utf-8"
    assert http.get("/nowhere").status == 404
    assert http.delete("/scores").status == 405
    assert http.put("/scores/Bob", data="x" * 101).status == 413
    assert http.put("/scores/Bob", data="no JSON").status == 400
    assert http.get("/fails").status == 500
    assert http.get("/nests").status == 500
    division, nested = server.record.values("error")
    assert isinstance(division, ZeroDivisionError)
    assert str(nested) == "tick() was called inside a callback of the same object: callbacks never nest"
    with pytest.raises(pyhv.HttpTimeout):
        http.get("/defers", timeout=0.05)
    # The World has stood still.
    assert (world.now, server.ticks, list(vars(server))) == before
    assert client.received == []
    world.advance(0.2)
    assert client.received == ["Ann has 7"]
    assert http.get("/stops").status == 200
    assert not server.is_running
    with pytest.raises(RuntimeError, match="this Full does not run"):
        http.get("/scores")
    world.advance(1.0)
    assert client.close_code == 1001
    server.start(0)
    assert http.get("/scores").json() == [["Ann", 7]]


def test_the_native_side_ends_with_the_server(world: World) -> None:
    def is_running() -> Any:
        return _native.Server.is_running.__get__(server)

    server = world.serve(Scores())
    assert not is_running()
    assert world.http(server).get("/scores").json() == []
    assert is_running()
    server.stop()
    assert not is_running()
    server.start(0)
    assert world.http(server).get("/scores").json() == []
    world.close()
    assert not is_running()


def test_http_inside_a_callback_of_the_same_server(world: World) -> None:
    class Asking(Scores):
        def on_ws_open(self, channel: WebSocketChannel, url: str) -> None:
            world.http(self).get("/scores")

    server = world.serve(Asking())
    world.connect(RecordingClient(), server)
    world.advance(0.1)
    (error,) = server.record.values("error")
    assert str(error).startswith("request() was called inside a callback of the same object")


# The real server


class Scores(EchoServer):
    def on_init(self) -> None:
        self.scores: list[Any] = []
        self.get("/scores", lambda request, response: self.scores)
        self.put("/scores/:name", self.put_score)

    def put_score(self, request: HttpRequest, response: HttpResponse) -> Any:
        self.scores.append([request.params["name"], request.json()])
        self.broadcast(f"{request.params['name']} has {request.json()}")
        response.add_cookie("last", request.params["name"])
        return response.text("noted", 201)


def test_a_live_server_answers_http_and_its_clients_are_ticked() -> None:
    before = len(open_descriptors())
    with LiveServer(Scores(), max_body_size=100) as live:
        assert live.get("/scores").json() == []
        player = live.connect(RecordingClient(), "/play")
        live.until(lambda: live.server.channels)
        answer = live.put("/scores/Ann", json=7)
        assert (answer.status, answer.text()) == (201, "noted")
        assert answer.headers["set-cookie"].startswith("last=Ann")
        assert live.get("/scores").json() == [["Ann", 7]]
        assert live.until(lambda: player.received) == ["Ann has 7"]
        # What the native side answers needs no handler.
        assert live.get("/nowhere").status == 404
        assert live.delete("/scores").status == 405
        assert live.put("/scores/Bob", data="x" * 101).status == 413
        assert live.request("PUT", "/scores/Bob", data="no JSON").status == 400
        assert live.post("/scores").status == live.patch("/scores").status == 405
        with pytest.raises(pyhv.HandshakeError), LiveServer(Refusing()) as refusing:
            refusing.connect(RecordingClient())
        with pytest.raises(AssertionError, match=r"not within 0\.05 s: the condition at"):
            live.until(lambda: False, limit=0.05)
        port = live.server.port
        assert live.url == f"http://127.0.0.1:{port}"
    assert player.close_code in (1000, 1001)
    assert not live.server.is_running
    assert len(open_descriptors()) <= before + 8  # what the native threads keep


class Refusing(RecordingServer):
    def on_ws_upgrade(self, request: WsUpgrade) -> bool:
        return False


def test_a_live_server_that_cannot_start_leaves_nothing() -> None:
    before = thread_names()
    with pytest.raises(ValueError, match="max_body_size"):
        LiveServer(Scores(), max_body_size=-1)
    assert len(thread_names()) <= len(before) + 1


# The fixtures


FAILING = """
import pytest
from pyhv import HvWebServer, HvWebSocketClient

class Game(HvWebServer):
    def on_ws_open(self, channel, url):
        raise LookupError("no such room")

def enter(world):
    world.connect(HvWebSocketClient(), world.serve(Game()))
    world.advance(1.0)

def test_missed(pyhv_world):
    enter(pyhv_world)

def test_meant(pyhv_world):
    enter(pyhv_world)
    pyhv_world.errors.clear()
"""


def test_the_fixture_does_not_miss_an_error(tmp_path: Path) -> None:
    (tmp_path / "test_game.py").write_text(FAILING, encoding="utf-8")
    done = run_pytest(tmp_path, "-p", "pyhv.testing.pytest_plugin")
    assert "2 passed, 1 error" in done.stdout, done.stdout + done.stderr
    assert "LookupError: no such room" in done.stdout
    assert "ERROR test_game.py::test_missed" in done.stdout


def run_pytest(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", *arguments],
        cwd=directory,
        # Others' plugins are none of it.
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


TESTS = """
from pyhv import HvWebServer, HvWebSocketClient

class Game(HvWebServer):
    def on_init(self):
        self.get("/players", lambda request, response: str(len(self.channels)))

def test_world(pyhv_world):
    game = pyhv_world.serve(Game())
    pyhv_world.connect(HvWebSocketClient(), game)
    pyhv_world.advance(1.0)
    assert len(game.channels) == 1

def test_live(pyhv_live):
    live, other = pyhv_live(Game()), pyhv_live(Game(), max_connections=5)
    live.connect(HvWebSocketClient())
    live.until(lambda: live.server.channels)
    assert live.get("/players").text() == "1"
    assert other.get("/players").text() == "0"
"""


def test_the_plugin_is_there_when_asked_for(tmp_path: Path) -> None:
    (tmp_path / "test_game.py").write_text(TESTS, encoding="utf-8")
    done = run_pytest(tmp_path)
    assert done.returncode == 1
    assert "fixture 'pyhv_world' not found" in done.stdout
    done = run_pytest(tmp_path, "-p", "pyhv.testing.pytest_plugin")
    assert "2 passed" in done.stdout, done.stdout + done.stderr
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["pyhv.testing.pytest_plugin"]\n', encoding="utf-8")
    done = run_pytest(tmp_path)
    assert "2 passed" in done.stdout, done.stdout + done.stderr


def test_the_tests_on_the_page_pass(tmp_path: Path) -> None:
    """Behind the page's programs, whose classes they are about."""
    page = (Path(__file__).parent.parent / "docs" / "testing.md").read_text(encoding="utf-8")
    found = re.findall(r"^```(python run|python compiled)\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    programs = [text for kind, text in found if kind == "python run"]
    conftest, tests = [text for kind, text in found if kind == "python compiled"]
    (tmp_path / "conftest.py").write_text(conftest, encoding="utf-8")
    (tmp_path / "test_page.py").write_text("\n".join([*programs, tests]), encoding="utf-8")
    done = run_pytest(tmp_path)
    assert "2 passed" in done.stdout, done.stdout + done.stderr


def test_the_chat_of_the_examples_runs_in_a_world(world: World) -> None:
    """A program that knows nothing of it."""
    path = Path(__file__).parent.parent / "examples" / "chat" / "server.py"
    spec = importlib.util.spec_from_file_location("chat_server", path)
    assert spec is not None
    assert spec.loader is not None
    chat = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(chat)
    server = world.serve(chat.ChatServer())
    ann = joined(world, server, path="/chat?nick=ann", link=Link(delay=0.05, jitter=0.02))
    bob = joined(world, server, path="/chat?nick=bob")
    ann.send(json.dumps({"type": "chat", "text": "hello"}))
    world.advance(1.0)
    said = json.loads(bob.received[-1])
    assert (said["nick"], said["text"]) == ("ann", "hello")
    assert world.http(server).get("/ping").text() == "pong"
    assert world.http(server).get("/status").json()["clients"] == 2
    world.link(ann).cut()
    world.advance(1.0)
    assert json.loads(bob.received[-1]) == {"type": "nicks", "nicks": ["bob"]}
    assert world.errors == []


# The end of a server


def test_a_drain_shows_in_readiness_and_may_close_the_door(world: World) -> None:
    server = RecordingServer()
    server.enable_readyz()
    world.serve(server, fps=1)
    http = world.http(server)

    def ready() -> tuple[int, str]:
        answer = http.get("/readyz")
        return answer.status, answer.json()["status"]

    world.until(lambda: server.tick() == 0)
    assert ready() == (200, "ok")
    server.drain()
    assert ready() == (503, "draining")
    first = world.connect(RecordingClient(), server)
    world.until(lambda: first.is_connected)
    port = server.port
    server.drain(accept=False)
    late = world.connect(RecordingClient(), f"ws://127.0.0.1:{port}/")
    world.until(lambda: late.error)
    assert first.is_connected


def test_closes_are_spread_over_the_worlds_time(world: World) -> None:
    server = world.serve(RecordingServer())
    clients = [world.connect(RecordingClient(), server) for _ in range(4)]
    world.until(lambda: len(server.channels) == len(clients))
    began = world.now
    server.stop(20.0, spread=8.0)
    assert world.now - began >= 8.0


def test_given_sockets_are_for_real_servers(world: World) -> None:
    server = world.serve(RecordingServer())
    server.stop()
    with pytest.raises(ValueError, match="in a World give a port"):
        server.start(sockets=[3])
    with pytest.raises(ValueError, match="in a World give a port"):
        server.start(9090, tls_sockets=[3], certfile="none")
