"""Keep-alive: pings of the native side, what counts as life, and channels that are closed for silence.

"Nothing happens" is checked against something that has to happen later: another connection that is closed.
"""

from __future__ import annotations

import logging
import select
import threading
from collections.abc import Callable
from contextlib import ExitStack

import pytest
from websockets.sync.client import connect

from pyhv import HvWebServer, WsOpcode
from support import (
    HOST,
    LIMIT,
    Background,
    EchoServer,
    Frame,
    RawClient,
    RawPeer,
    RawServer,
    RecordingClient,
    RecordingServer,
    ServerThread,
    build_frame,
    connected,
    only_channel,
    port_of,
    run_python,
    tick_until,
    wait_until,
)

PING, PONG, CLOSE, TEXT = WsOpcode.PING, WsOpcode.PONG, WsOpcode.CLOSE, WsOpcode.TEXT
OFTEN = 0.05  # seconds between pings
SOON = 0.3  # seconds until silence is too long
GENEROUS = 2.0  # the same where the test itself has to be quicker than it


def read_ping(raw: RawPeer) -> Frame:
    """The next frame, which has to be a ping."""
    frame = raw.read_frame()
    shown = frame.payload[:80]
    assert frame.opcode == PING, f"opcode {frame.opcode} {shown!r}"
    return frame


def wait_for_1011(port: int) -> None:
    """A connection of its own that answers no ping is closed; that takes as long as `ping_timeout`."""
    with RawClient(port, "/silent") as silent:
        assert silent.read_close().close_code == 1011


# Pings of the server


def test_pings_come_and_answered_ones_keep_the_channel() -> None:
    with EchoServer() as server:
        server.start(0, ping_interval=OFTEN, ping_timeout=GENEROUS)
        with RawClient(port_of(server)) as raw:  # nobody ticks
            payloads = []
            for _ in range(6):
                frame = read_ping(raw)
                assert frame.fin and not frame.masked
                payloads.append(frame.payload)
                raw.send_frame(PONG, frame.payload)
            assert len(set(payloads)) == 6  # a late pong is not taken for a newer one's
            raw.send_text("still here")
            tick_until(lambda: server.record.count("message"), server)
            assert raw.read_message() == "still here"
            assert server.record.count("close") == 0
        server.stop(0)


def test_the_next_ping_waits_for_the_pong() -> None:
    with RecordingServer() as server:
        server.start(0, ping_interval=OFTEN, ping_timeout=SOON)
        with RawClient(port_of(server)) as raw:
            read_ping(raw)
            assert raw.read_frame().opcode == CLOSE  # no second ping


def test_an_unanswered_ping_is_1011(serve: Callable[..., ServerThread], caplog: pytest.LogCaptureFixture) -> None:
    server = RecordingServer()
    with caplog.at_level(logging.WARNING, "pyhv"):
        thread = serve(server, ping_interval=OFTEN, ping_timeout=SOON)
        with RawClient(thread.port, "/silent") as raw:
            close = raw.read_close()
            assert close.close_code == 1011
            assert "ping" in close.close_reason
            raw.expect_end()
        wait_until(lambda: server.record.count("close"))
        wait_until(lambda: caplog.messages)
    ((channel, code),) = [(call.who, call.value) for call in server.record.calls if call.what == "close"]
    assert code == 1011
    assert channel.close_reason == close.close_reason
    assert not channel.is_open
    assert channel.send("too late") is False
    assert server.refusals == {"ping_timeout": 1}
    (text,) = caplog.messages
    assert "1011" in text and "/silent" in text


def test_an_unanswered_ping_closes_without_a_tick() -> None:
    with RecordingServer() as server:
        server.start(0, ping_interval=OFTEN, ping_timeout=SOON)
        with RawClient(port_of(server)) as raw:
            raw.send_text("before")
            assert raw.read_close().close_code == 1011
            raw.expect_end()
        assert not server.record.calls
        tick_until(lambda: server.record.count("close"), server)
        assert [(call.what, call.value) for call in server.record.calls] == [
            ("open", "/"),
            ("message", "before"),
            ("close", 1011),
        ]


def test_the_log_names_the_setting(caplog: pytest.LogCaptureFixture) -> None:
    with RecordingServer() as server, caplog.at_level(logging.WARNING, "pyhv"):
        server.start(0, ping_interval=OFTEN, ping_timeout=SOON)
        wait_for_1011(port_of(server))
        tick_until(lambda: caplog.messages, server)
        assert f"ping_timeout={SOON}" in caplog.messages[0]


def test_a_peer_that_vanishes_without_a_word_is_1011_and_its_socket_is_freed() -> None:
    with RecordingServer() as server:
        server.start(0, ping_interval=OFTEN, ping_timeout=SOON, close_timeout=0.2, max_connections=1)
        with RawClient(port_of(server)):  # reads nothing, says nothing, does not close
            tick_until(lambda: server.record.count("close"), server)
            assert server.record.values("close") == [1011]

            def answered() -> bool:
                with RawClient(port_of(server), upgrade=False) as other:
                    try:
                        other.request("GET", "/", [("Connection", "close")])
                    except (BrokenPipeError, ConnectionResetError):
                        return False
                    return other.read_to_end().startswith(b"HTTP/1.1 404")

            wait_until(answered, what="the connection is no longer counted")


def test_a_peer_that_sends_but_never_pongs_stays() -> None:
    with EchoServer() as server:
        server.start(0, ping_interval=OFTEN, ping_timeout=GENEROUS)
        with RawClient(port_of(server), "/talker") as talker:
            silent = Background(lambda: wait_for_1011(port_of(server)))
            count = 0
            while not silent.done():
                count += 1
                talker.send_text(str(count))
                tick_until(lambda: server.record.count("message") >= count, server)  # noqa: B023
                assert talker.read_message() == str(count)
            silent.result()
            talker.send_text("still here")
            tick_until(lambda: "still here" in server.record.values("message"), server)
            assert talker.read_message() == "still here"
        server.stop(0)


def test_a_peer_that_falls_silent_after_talking_is_closed() -> None:
    with EchoServer() as server:
        server.start(0, ping_interval=OFTEN, ping_timeout=SOON)
        with RawClient(port_of(server)) as raw:
            for number in range(20):
                raw.send_text(str(number))
            assert raw.read_close().close_code == 1011


def test_a_wrong_pong_is_life_but_no_answer() -> None:
    with RecordingServer() as server:
        server.start(0, ping_interval=OFTEN, ping_timeout=SOON)
        with RawClient(port_of(server)) as raw:
            channel = only_channel(server)
            read_ping(raw)
            raw.send_frame(PONG, b"something else")
            assert raw.read_frame().close_code == 1011
            assert channel.latency is None


def test_an_unsolicited_pong_beside_the_answer_does_not_hide_it() -> None:
    """RFC 6455 section 5.5.3: a pong may come unasked, as a heartbeat in one direction."""
    with RecordingServer() as server:
        server.start(0, ping_interval=OFTEN, ping_timeout=SOON)
        with RawClient(port_of(server)) as raw:
            for _ in range(3):
                frame = read_ping(raw)
                # In one write, so that both come in one read.
                raw.send_bytes(build_frame(PONG, frame.payload) + build_frame(PONG, b"heartbeat"))


def test_each_of_many_is_pinged_again_and_again() -> None:
    # More than are looked at in one step, and more than have their turn before the pump has its.
    with EchoServer() as server, ExitStack() as opened:
        server.start(0, ping_interval=OFTEN, ping_timeout=LIMIT)
        clients = [opened.enter_context(RawClient(port_of(server))) for _ in range(350)]
        for _ in range(2):
            for raw in clients:
                raw.send_frame(PONG, read_ping(raw).payload)
        for number, raw in enumerate(clients):
            raw.send_text(str(number))
        tick_until(lambda: server.record.count("message") == len(clients), server)
        for number, raw in enumerate(clients):
            while (frame := raw.read_frame()).opcode == PING:
                raw.send_frame(PONG, frame.payload)
            assert frame.payload == str(number).encode()
        server.stop(0)


def test_ping_interval_none_sends_none() -> None:
    with RecordingServer() as server:
        server.start(0, ping_interval=None, idle_timeout=0.5)
        with RawClient(port_of(server)) as raw:
            frame = raw.read_frame()  # the end, and nothing before it
            assert (frame.opcode, frame.close_code) == (CLOSE, 1001)
    with RecordingServer() as server:
        server.start(0, ping_interval=OFTEN, idle_timeout=0.5)
        with RawClient(port_of(server)) as raw:
            assert raw.read_frame().opcode == PING


def test_ping_timeout_none_never_gives_up() -> None:
    with RecordingServer() as patient, RecordingServer() as strict:
        patient.start(0, ping_interval=OFTEN, ping_timeout=None)
        strict.start(0, ping_interval=OFTEN, ping_timeout=SOON)
        with RawClient(port_of(patient)) as raw:
            read_ping(raw)
            for _ in range(2):
                wait_for_1011(port_of(strict))
            raw.send_ping(b"there?")
            frame = raw.read_frame()
            assert (frame.opcode, frame.payload) == (PONG, b"there?")


def test_websocket_libraries_answer(serve: Callable[..., ServerThread]) -> None:
    server = EchoServer()
    thread = serve(server, ping_interval=OFTEN, ping_timeout=GENEROUS)
    with connect(f"ws://{HOST}:{thread.port}/", ping_interval=None) as client:
        wait_until(lambda: server.channels)
        channel = server.channels[0]
        # It answers on a thread of its own.
        wait_until(lambda: channel.latency is not None)
        client.send("still here")
        assert client.recv(timeout=LIMIT) == "still here"


# Latency


def test_latency(serve: Callable[..., ServerThread]) -> None:
    server = RecordingServer()
    thread = serve(server, ping_interval=OFTEN, ping_timeout=GENEROUS)
    with RawClient(thread.port) as raw:
        wait_until(lambda: server.channels)
        (channel,) = server.channels
        frame = read_ping(raw)
        assert channel.latency is None  # not answered yet
        raw.send_frame(PONG, frame.payload)
        first = wait_until(lambda: channel.latency)
        assert isinstance(first, float)
        assert 0 < first < LIMIT


def test_latency_is_that_of_the_answer() -> None:
    """A pong held back until something else is over has a latency of at least that."""
    with RecordingServer() as server, RecordingServer() as clock:
        server.start(0, ping_interval=OFTEN, ping_timeout=None)
        clock.start(0, ping_interval=OFTEN, ping_timeout=SOON)
        with RawClient(port_of(server)) as raw:
            channel = only_channel(server)
            frame = read_ping(raw)
            wait_for_1011(port_of(clock))  # takes SOON and more
            raw.send_frame(PONG, frame.payload)
            latency = wait_until(lambda: channel.latency)
            assert latency is not None and latency >= SOON


def test_latency_of_a_client() -> None:
    with EchoServer() as server:
        server.start(0, ping_interval=None)
        client = connected(server, ping_interval=OFTEN)
        assert client.latency is None or client.latency > 0
        latency = tick_until(lambda: client.latency, client, server)
        assert latency is not None and 0 < latency < LIMIT
        assert only_channel(server).latency is None  # the server does not ask
        client.close()
        tick_until(lambda: client.close_code, client, server)


# While the program does not tick


def flood(raw: RawClient) -> int:
    """Sends text frames until no more is taken; returns how many went out whole."""
    frame = build_frame(TEXT, b"x" * 1000)
    data = frame * 100
    sent = 0
    raw.socket.setblocking(False)
    # A moment without room is not the end: the server reads on until it pauses.
    while select.select([], [raw.socket], [], 0.3)[1]:
        start = sent % len(data)
        sent += raw.socket.send(data[start:])
        assert sent < 1 << 28, "the flood was taken whole: nothing paused"
    raw.socket.settimeout(LIMIT)
    return sent // len(frame)


def test_a_flooding_paused_channel_is_not_killed_for_its_pongs() -> None:
    with RecordingServer() as server:
        server.start(0, ping_interval=OFTEN, ping_timeout=SOON, max_channel_pending_bytes=10_000)
        with RawClient(port_of(server), "/flood") as raw:
            count = flood(raw)  # its pongs would wait behind that
            wait_for_1011(port_of(server))
            tick_until(lambda: server.record.count("message") >= count, server)
            channel = next(call.who for call in server.record.calls if call.value == "/flood")
            assert channel.is_open
            assert [what for what, _ in server.record.of(channel)] == ["open"] + ["message"] * count


def test_a_flooding_paused_channel_is_not_idle() -> None:
    with RecordingServer() as server:
        server.start(0, ping_interval=None, idle_timeout=SOON, max_channel_pending_bytes=10_000)
        with RawClient(port_of(server), "/flood") as raw:
            count = flood(raw)
            with RawClient(port_of(server)) as idle:
                assert idle.read_close().close_code == 1001
            assert not raw.readable(), "its own messages wait in our queue"
            tick_until(lambda: server.record.count("message") >= count, server)


# idle_timeout


def test_idle_timeout_is_1001(serve: Callable[..., ServerThread]) -> None:
    server = RecordingServer()
    thread = serve(server, idle_timeout=SOON)
    with RawClient(thread.port) as raw:
        close = raw.read_close()
        assert close.close_code == 1001
        assert "idle_timeout" in close.close_reason
        raw.send_close(1001)
        raw.expect_end()
    wait_until(lambda: server.record.values("close") == [1001])


def test_pings_and_pongs_are_no_messages() -> None:
    with RecordingServer() as server:
        server.start(0, ping_interval=OFTEN, ping_timeout=GENEROUS, idle_timeout=SOON)
        with RawClient(port_of(server)) as raw:
            while (frame := raw.read_frame()).opcode != CLOSE:
                if frame.opcode == PING:
                    raw.send_frame(PONG, frame.payload)
                    raw.send_ping(b"and you?")
            assert frame.close_code == 1001


@pytest.mark.parametrize("direction", ["up", "down", "broadcast"])
def test_messages_in_either_direction_are_no_idleness(direction: str) -> None:
    with RecordingServer() as server:
        server.start(0, ping_interval=None, idle_timeout=GENEROUS)
        with RawClient(port_of(server), "/talker") as talker:
            channel = only_channel(server)

            def idle() -> None:
                with RawClient(port_of(server), "/idle") as raw:
                    assert raw.read_close().close_code == 1001

            waiting = None if direction == "broadcast" else Background(idle)
            rounds = 0
            while rounds < 20 or not (waiting is None or waiting.done()):
                rounds += 1
                if direction == "up":
                    talker.send_text("up")
                    tick_until(lambda: server.record.count("message") >= rounds, server)  # noqa: B023
                else:
                    if direction == "down":
                        channel.send("down")
                    else:
                        server.broadcast("down")
                    server.tick()
                    assert talker.read_message() == "down"
            if waiting is not None:
                waiting.result()
            assert channel.is_open
        server.stop(0)


# app_stall_timeout


def test_a_program_that_does_not_tick_is_1013(caplog: pytest.LogCaptureFixture) -> None:
    with RecordingServer() as server, caplog.at_level(logging.WARNING, "pyhv"):
        server.start(0, app_stall_timeout=1.0)
        with RawClient(port_of(server), "/one") as one, RawClient(port_of(server), "/two") as two:
            for raw in (one, two):
                close = raw.read_close()
                assert close.close_code == 1013
                assert close.close_reason
                raw.expect_end()
        tick_until(lambda: server.record.count("close") == 2, server)
        assert server.record.values("close") == [1013, 1013]
        tick_until(lambda: any("1013" in text for text in caplog.messages), server)
        # A tick, and it lives again.
        with RawClient(port_of(server)) as raw:
            tick_until(lambda: server.channels, server)
            raw.send_ping()
            tick_until(raw.readable, server)
            assert raw.read_frame().opcode == PONG
        server.stop(0)


def test_a_stall_names_its_setting_and_is_counted_once(caplog: pytest.LogCaptureFixture) -> None:
    with RecordingServer() as server, RecordingServer() as later, caplog.at_level(logging.WARNING, "pyhv"):
        server.start(0, app_stall_timeout=SOON)
        with RawClient(port_of(server)) as raw:
            assert raw.read_close().close_code == 1013
        later.start(0, app_stall_timeout=2 * SOON)
        with RawClient(port_of(later)) as raw:
            assert raw.read_close().close_code == 1013
        assert server.refusals == {"app_stall_timeout": 1}
        tick_until(lambda: caplog.messages, server)
        assert f"app_stall_timeout={SOON}" in caplog.messages[0]


def stalled_elsewhere(timeout: float) -> None:
    """Returns when a server that nobody ticks has given up after this time."""
    with RecordingServer() as other:
        other.start(0, app_stall_timeout=timeout)
        with RawClient(port_of(other)) as raw:
            assert raw.read_close().close_code == 1013


def test_a_program_that_ticks_is_left_alone(serve: Callable[..., ServerThread]) -> None:
    server = EchoServer()
    thread = serve(server, app_stall_timeout=GENEROUS)
    with RawClient(thread.port) as raw:
        stalled_elsewhere(GENEROUS)
        stalled_elsewhere(SOON)
        raw.send_text("still here")
        assert raw.read_message() == "still here"


def test_a_program_that_waits_inside_tick_is_not_stalled() -> None:
    """`tick(None)` is what `run()` does: it waits for events, it does not neglect them."""
    with EchoServer() as server:
        server.start(0, app_stall_timeout=SOON)
        stop = threading.Event()

        def loop() -> None:
            while not stop.is_set():
                server.tick(None)

        ticking = Background(loop)
        try:
            with RawClient(port_of(server)) as raw:
                raw.send_text("hello")
                assert raw.read_message() == "hello"
                stalled_elsewhere(3 * SOON)
                raw.send_text("still here")
                assert raw.read_message() == "still here"
        finally:
            stop.set()
            server.stop(0.5)
            ticking.result()


TWO_THREADS = """
import pyhv
from support import EchoServer, RawClient, RecordingServer, port_of

pyhv.set_io_threads(2)
server, clock = EchoServer(), RecordingServer()
server.start(0, app_stall_timeout=1.0)
clock.start(0, app_stall_timeout=4.0)  # nobody ticks it: it tells when four seconds are over
with RawClient(port_of(clock)) as timer:
    peers = [RawClient(port_of(server)) for _ in range(4)]
    while not timer.readable():
        server.tick(0.3)
    server.tick()
    for number, peer in enumerate(peers):
        peer.send_text(str(number))
    while server.record.count("message") < 4:
        assert server.tick(20.0), server.record.values("close")
        assert not server.record.values("close"), server.record.values("close")
    print("fine")
    for peer in peers:
        peer.socket.close()
server.stop(0)
clock.stop(0)
"""


def test_rare_ticks_are_seen_by_every_io_thread() -> None:
    done = run_python(TWO_THREADS)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "fine\n"


# Clients


def test_a_client_pings_and_stays() -> None:
    client = RecordingClient()
    with RawServer() as listener:
        client.connect(listener.url, ping_interval=OFTEN, ping_timeout=GENEROUS)
        with listener.accept_websocket() as peer:  # the client does not tick
            for _ in range(4):
                frame = read_ping(peer)
                assert frame.masked
                peer.send_frame(PONG, frame.payload)
            peer.send_text("hello")
            tick_until(lambda: client.received, client)
            assert client.is_connected
            tick_until(lambda: client.latency, client)


def test_a_client_whose_server_is_silent_is_1011() -> None:
    client = RecordingClient()
    with RawServer() as listener:
        client.connect(listener.url, ping_interval=OFTEN, ping_timeout=SOON)
        with listener.accept_websocket() as peer:
            assert read_ping(peer).masked
            assert peer.read_close().close_code == 1011  # without a tick
        tick_until(lambda: client.close_code, client)
    assert client.close_code == 1011
    assert client.close_reason is not None and "ping" in client.close_reason
    assert [call.what for call in client.record.calls] == ["open", "close"]


def test_a_client_with_ping_interval_none_sends_none() -> None:
    quiet, strict = RecordingClient(), RecordingClient()
    with RawServer() as listener:
        quiet.connect(listener.url, ping_interval=None, ping_timeout=SOON)
        with listener.accept_websocket() as quiet_peer:
            strict.connect(listener.url, ping_interval=OFTEN, ping_timeout=SOON)
            with listener.accept_websocket() as strict_peer:
                assert strict_peer.read_close().close_code == 1011
            assert not quiet_peer.readable()
            quiet_peer.send_ping(b"there?")
            frame = quiet_peer.read_frame()
            assert (frame.opcode, frame.payload) == (PONG, b"there?")


def test_both_sides_ping_each_other() -> None:
    with EchoServer() as server:
        server.start(0, ping_interval=OFTEN, ping_timeout=GENEROUS)
        client = connected(server, ping_interval=OFTEN, ping_timeout=GENEROUS)
        channel = only_channel(server)
        tick_until(lambda: client.latency and channel.latency, client, server)
        assert client.is_connected and channel.is_open
        client.close()
        tick_until(lambda: client.close_code, client, server)
        assert client.close_code == 1000


def test_the_type_of_a_servers_callbacks_does_not_matter() -> None:
    """A server without any override still closes silent channels."""
    with HvWebServer() as server:
        server.start(0, ping_interval=OFTEN, ping_timeout=SOON)
        wait_for_1011(port_of(server))
