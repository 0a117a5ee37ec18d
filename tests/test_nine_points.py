"""What holds everywhere: the nine points of the design, one section each (static files come with their issue)."""

from __future__ import annotations

import gc
import logging
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path

import pytest

from pyhv import HttpRequest, HttpResponse, HvWebServer, WebSocketChannel, WsOpcode
from support import (
    LIMIT,
    Background,
    EchoServer,
    RawClient,
    RawServer,
    Record,
    RecordingClient,
    RecordingServer,
    ServerThread,
    ask,
    build_frame,
    connected,
    http,
    only_channel,
    port_of,
    python_environment,
    python_process,
    resident_bytes,
    sockets_and_wakes,
    thread_names,
    tick_until,
    url_of,
    wait_until,
)

MIB = 1 << 20
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc or TCP_INFO")


# 1. A callback runs on the thread that called tick(), never elsewhere and never inside another callback


class EveryCallback(RecordingServer):
    """Records the thread of every kind of callback that a server has."""

    def on_init(self) -> None:
        self.get("/", self.handle)
        self.get("/fail", self.fail)

    def handle(self, req: HttpRequest, resp: HttpResponse) -> HTTPStatus:
        self.record.add("request")
        return resp.text("ok")

    def fail(self, req: HttpRequest, resp: HttpResponse) -> HTTPStatus:
        raise LookupError("on purpose")

    def on_tick(self) -> None:
        self.record.add("tick")


def test_every_callback_of_a_server_runs_on_the_thread_that_ticks(
    serve: Callable[..., ServerThread],
) -> None:
    server = EveryCallback()
    running = serve(server)
    with RawClient(running.port) as raw:
        raw.send_text("hello")
        assert http(running.port, "GET", "/").body == b"ok"
        assert http(running.port, "GET", "/fail").status == 500
        raw.send_close()
        raw.read_close()
    wait_until(lambda: server.record.count("close"))
    kinds = {call.what for call in server.record.calls}
    assert kinds == {"open", "message", "close", "request", "error", "tick"}
    assert server.record.threads == {running.ident}
    assert running.ident != threading.get_ident()


def test_every_callback_of_a_client_runs_on_the_thread_that_ticks(
    serve: Callable[..., ServerThread],
) -> None:
    class Raises(RecordingClient):
        def on_message(self, msg: str | bytes) -> None:
            super().on_message(msg)
            raise LookupError("on purpose")

    running = serve(EchoServer())
    client = Raises()

    def live() -> int:
        client.connect(f"ws://127.0.0.1:{running.port}/")
        tick_until(lambda: client.is_connected, client)
        client.send("hello")
        tick_until(lambda: client.close_code, client)
        return threading.get_ident()

    ident = Background(live).result()
    assert [call.what for call in client.record.calls] == ["open", "message", "error", "close"]
    assert client.record.threads == {ident}
    assert ident != threading.get_ident()


def test_without_a_tick_no_callback_runs(server: RecordingServer) -> None:
    client = RecordingClient()
    client.connect(url_of(server))
    with RawClient(port_of(server)) as raw:
        raw.send_text("hello")
        raw.send_ping(b"answered behind the message, without a tick")
        assert raw.read_frame().opcode == WsOpcode.PONG
        assert server.record.calls == []
        tick_until(lambda: server.record.count("open") == 2, server)
    assert client.record.calls == []


def test_a_tick_inside_a_callback_of_the_same_server_raises() -> None:
    raised: dict[str, str] = {}

    class Nested(RecordingServer):
        def on_init(self) -> None:
            self.get("/", self.handle)

        def handle(self, req: HttpRequest, resp: HttpResponse) -> HTTPStatus:
            self.nest("request")
            return resp.text("ok")

        def nest(self, where: str) -> None:
            with pytest.raises(RuntimeError) as caught:
                self.tick()
            raised[where] = str(caught.value)

        def on_ws_open(self, channel: WebSocketChannel, url: str) -> None:
            self.nest("open")

        def on_ws_message(self, channel: WebSocketChannel, msg: str | bytes) -> None:
            self.nest("message")
            channel.close()

        def on_ws_close(self, channel: WebSocketChannel) -> None:
            self.nest("close")

        def on_tick(self) -> None:
            self.nest("tick")

    server = Nested()
    server.start(0)
    with RawClient(port_of(server)) as raw:
        raw.send_text("hello")
        assert ask(server, "GET", "/").body == b"ok"
        tick_until(raw.readable, server)
        assert raw.read_close().close_code == 1000
        raw.send_close()
        tick_until(lambda: "close" in raised, server)
    server.stop()
    assert set(raised) == {"open", "message", "close", "tick", "request"}
    for text in raised.values():
        assert "inside a callback" in text
    assert server.record.calls == []


def test_a_tick_inside_a_callback_of_the_same_client_raises(echo: EchoServer) -> None:
    raised: list[str] = []

    class Nested(RecordingClient):
        def on_message(self, msg: str | bytes) -> None:
            with pytest.raises(RuntimeError) as caught:
                self.tick()
            raised.append(str(caught.value))

    client = Nested()
    client.connect(url_of(echo))
    tick_until(lambda: client.is_connected, client, echo)
    client.send("hello")
    tick_until(lambda: raised, client, echo)
    assert "inside a callback" in raised[0]
    assert client.record.count("error") == 0
    client.close()


def test_a_callback_may_tick_another_object(echo: EchoServer) -> None:
    client = connected(echo)

    class Outer(RecordingServer):
        def on_ws_message(self, channel: WebSocketChannel, msg: str | bytes) -> None:
            client.send(msg)
            tick_until(lambda: client.received, client, echo, limit=5)
            channel.send(client.received[0])

    outer = Outer()
    outer.start(0)
    with RawClient(port_of(outer)) as raw:
        raw.send_text("through both")
        tick_until(raw.readable, outer)
        assert raw.read_message() == "through both"
    client.close()
    outer.stop(0)


def test_a_tick_while_another_thread_ticks_raises_and_names_both_threads() -> None:
    inside, leave = threading.Event(), threading.Event()

    class Holds(HvWebServer):
        def on_tick(self) -> None:
            inside.set()
            assert leave.wait(LIMIT)

    server = Holds()
    server.start(0)
    first = threading.Thread(target=server.tick, name="the-first-thread")
    first.start()
    try:
        assert inside.wait(LIMIT)
        caught: list[RuntimeError] = []

        def second() -> None:
            try:
                server.tick()
            except RuntimeError as error:
                caught.append(error)

        other = threading.Thread(target=second, name="the-second-thread")
        other.start()
        other.join(LIMIT)
        assert "the-first-thread" in str(caught[0])
        assert "the-second-thread" in str(caught[0])
    finally:
        leave.set()
        first.join(LIMIT)
    server.tick()  # the turn was given back
    server.stop()


# 2. Per channel: open, then messages in arrival order, then close exactly once. Nothing after close.


def end_politely(raw: RawClient) -> int:
    raw.send_close(1000)
    return 1000


def end_without_code(raw: RawClient) -> int:
    raw.send_close(None)
    return 1005


def end_by_violation(raw: RawClient) -> int:
    raw.send_frame(3)  # a reserved opcode
    return 1002


def end_by_hanging_up(raw: RawClient) -> int:
    raw.socket.shutdown(socket.SHUT_WR)
    return 1006


@pytest.mark.parametrize("ticked", ["at once", "along the way"])
@pytest.mark.parametrize("end", [end_politely, end_without_code, end_by_violation, end_by_hanging_up])
def test_a_channel_opens_then_gets_its_messages_in_order_then_closes_once(
    server: RecordingServer, end: Callable[[RawClient], int], ticked: str
) -> None:
    peers = [RawClient(port_of(server), f"/{number}") for number in range(10)]
    want = [f"message {number}" for number in range(50)]
    codes = set()
    for message in want:
        for raw in peers:
            raw.send_text(message)
        if ticked == "along the way":
            server.tick()
    for raw in peers:
        codes.add(end(raw))
        raw.send_bytes(b"\x81\x80nope") if end is not end_by_hanging_up else None
    tick_until(lambda: server.record.count("close") == 10, server)
    for raw in peers:
        raw.read_to_end()
        raw.socket.close()
    server.tick()
    (code,) = codes
    by_path = {call.who.url: call.who for call in server.record.calls}
    assert len(by_path) == 10
    for path, channel in by_path.items():
        messages = [("message", message) for message in want]
        assert server.record.of(channel) == [("open", path), *messages, ("close", code)]


def test_a_reset_connection_closes_once_with_1006(server: RecordingServer) -> None:
    raw = RawClient(port_of(server))
    raw.send_text("before")
    tick_until(lambda: server.record.count("message"), server)
    channel = server.channels[0]
    raw.reset()
    tick_until(lambda: server.record.count("close"), server)
    server.tick()
    assert server.record.of(channel) == [("open", "/"), ("message", "before"), ("close", 1006)]


def test_after_the_program_closes_a_channel_it_gets_no_more_messages_and_one_close() -> None:
    class ClosesAtOnce(RecordingServer):
        def on_ws_message(self, channel: WebSocketChannel, msg: str | bytes) -> None:
            super().on_ws_message(channel, msg)
            channel.close(4000, "enough")

    server = ClosesAtOnce()
    server.start(0)
    with RawClient(port_of(server)) as raw:
        for number in range(100):
            raw.send_text(str(number))
        raw.send_ping(b"everything before this has arrived")
        assert raw.read_frame().opcode == WsOpcode.PONG
        tick_until(raw.readable, server)
        raw.send_text("too late")
        close = raw.read_close()
        assert (close.close_code, close.close_reason) == (4000, "enough")
        raw.send_text("later still")
        raw.send_close(4000)
        tick_until(lambda: server.record.count("close"), server)
        raw.expect_end()
    server.stop()
    what = [(call.what, call.value) for call in server.record.calls]
    assert what == [("open", "/"), ("message", "0"), ("close", 4000)]


def test_a_client_opens_then_gets_its_messages_in_order_then_closes_once() -> None:
    want = [f"message {number}" for number in range(200)]
    client = RecordingClient()
    with RawServer() as listener:
        client.connect(listener.url)
        with listener.accept_websocket() as peer:
            for message in want:
                peer.send_text(message)
            peer.send_close(4001, "bye")
            peer.send_text("after the close frame")
            tick_until(lambda: client.close_code, client)
            assert peer.read_close().close_code == 4001
    client.tick()
    messages = [("message", message) for message in want]
    assert client.record.of(None) == [("open", None), *messages, ("close", 4001)]
    assert client.close_reason == "bye"


# 3. What one tick sends to one channel leaves in order and in as few writes as possible


def data_segments_in(raw: RawClient) -> int:
    """TCP segments with data that have arrived: `tcpi_data_segs_in` of Linux's struct tcp_info."""
    info = raw.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    if len(info) < 156:
        pytest.skip("this kernel's TCP_INFO does not count segments")
    return int(struct.unpack_from("I", info, 152)[0])


class Talkative(RecordingServer):
    """Answers "go" with all of `answers`, every `share`th as a broadcast, and closes."""

    def __init__(self, answers: list[str], share: int) -> None:
        super().__init__()
        self.answers = answers
        self.share = share

    def on_ws_message(self, channel: WebSocketChannel, msg: str | bytes) -> None:
        for number, text in enumerate(self.answers):
            if number % self.share:
                channel.send(text)
            else:
                self.broadcast(text)
        channel.close(4000)


@linux
@pytest.mark.parametrize(("count", "share"), [(300, 1000), (60, 3), (300, 1)], ids=["sends", "both", "broadcasts"])
def test_what_one_tick_sends_to_a_channel_leaves_as_one_segment_in_order(count: int, share: int) -> None:
    want = [f"answer {number}" for number in range(count)]
    server = Talkative(want, share)
    server.start(0)
    with RawClient(port_of(server)) as raw, RawClient(port_of(server)) as witness:
        tick_until(lambda: len(server.channels) == 2, server)
        before = data_segments_in(raw)
        raw.send_text("go")
        tick_until(raw.readable, server)
        got = [raw.read_message() for _ in want]
        assert raw.read_close().close_code == 4000
        after = data_segments_in(raw)
        shared = want[::share]
        assert [witness.read_message() for _ in shared] == shared
    server.stop(0)
    assert got == want
    # With TCP_NODELAY every write is at least one segment, so one segment means one write.
    assert after - before == 1


@linux
def test_answers_to_messages_of_one_batch_leave_as_one_segment(echo: EchoServer) -> None:
    with RawClient(port_of(echo)) as raw:
        only_channel(echo)
        for number in range(100):
            raw.send_text(str(number))
        raw.send_ping(b"everything before this has arrived")
        assert raw.read_frame().opcode == WsOpcode.PONG
        before = data_segments_in(raw)
        assert echo.tick() == 100
        assert [raw.read_message() for _ in range(100)] == [str(number) for number in range(100)]
        assert data_segments_in(raw) - before == 1


def test_sends_of_several_ticks_and_kinds_arrive_in_the_order_in_which_they_were_made(
    server: RecordingServer,
) -> None:
    with RawClient(port_of(server)) as raw:
        channel = only_channel(server)
        want: list[str | bytes] = []
        for number in range(400):
            size = (0, 10, 5000, 70_000)[number % 4]  # small ones are gathered, large ones travel alone
            message: str | bytes = f"{number}".ljust(size) if number % 3 else f"{number}".encode().ljust(size)
            want.append(message)
            if number % 5:
                assert channel.send(message)
            else:
                server.broadcast(message)
            if number % 7 == 0:
                server.tick()
        server.tick()
        assert [raw.read_message() for _ in want] == want


# 4. The native threads never take the GIL: a main loop that stalls loses no connection


def test_while_nobody_ticks_handshakes_are_done_and_pings_and_unknown_paths_answered(
    server: RecordingServer,
) -> None:
    peers = [RawClient(port_of(server), f"/{number}") for number in range(20)]
    for number, raw in enumerate(peers):
        raw.send_ping(f"ping {number}".encode())
        raw.send_text(f"text {number}")
    for number, raw in enumerate(peers):
        frame = raw.read_frame()
        assert (frame.opcode, frame.payload) == (WsOpcode.PONG, f"ping {number}".encode())
    assert http(port_of(server), "GET", "/unknown").status == 404
    assert server.record.calls == []
    tick_until(lambda: server.record.count("message") == 20, server)
    assert sorted(server.record.values("message")) == sorted(f"text {number}" for number in range(20))
    for raw in peers:
        raw.socket.close()


def test_while_nobody_ticks_a_client_connects_and_answers_pings() -> None:
    client = RecordingClient()
    with RawServer() as listener:
        client.connect(listener.url)
        with listener.accept_websocket() as peer:
            peer.send_ping(b"are you there?")
            frame = peer.read_frame()
            assert (frame.opcode, frame.payload, frame.masked) == (WsOpcode.PONG, b"are you there?", True)
            assert client.record.calls == []
            tick_until(lambda: client.is_connected, client)
            client.close()
            peer.read_close()
            peer.send_close()


# The main thread waits for a byte inside a C call that keeps the GIL, so no Python code of the process runs; another
# thread answers lines, which shows it.
HOLDS_THE_GIL = """
import ctypes, os, sys, threading
from support import EchoServer, tick_until

held, beat_in, beat_out = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])

def beat():
    while os.read(beat_in, 1):
        os.write(beat_out, b"b")

threading.Thread(target=beat, daemon=True).start()
server = EchoServer()
server.start(0)
print(server.port, flush=True)
buffer = ctypes.create_string_buffer(1)
print(ctypes.PyDLL(None).read(held, buffer, 1), flush=True)
tick_until(lambda: server.record.count("message") == 20, server)
print(server.record.count("open"), server.record.count("message"), flush=True)
sys.stdin.readline()
server.stop(0)
"""


def test_while_the_gil_is_held_handshakes_are_done_and_pings_and_http_answered() -> None:
    pipes = [os.pipe() for _ in range(3)]
    (held_read, held_write), (beat_read, beat_write), (beats_read, beats_write) = pipes
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS_THE_GIL, str(held_read), str(beat_read), str(beats_write)],
        env=python_environment(),
        pass_fds=(held_read, beat_read, beats_write),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        port = int(process.stdout.readline())

        def beats() -> bool:
            os.write(beat_write, b"?")
            if not select.select([beats_read], [], [], 0.5)[0]:
                return True
            os.read(beats_read, 100)
            return False

        wait_until(beats, what="the process holds its GIL")
        peers = [RawClient(port, f"/{number}") for number in range(20)]
        for _ in range(5):
            for raw in peers:
                raw.send_ping(b"are you there?")
            for raw in peers:
                assert raw.read_frame().opcode == WsOpcode.PONG
        for raw in peers:
            raw.send_text("hello")
        assert http(port, "GET", "/unknown").status == 404
        assert not select.select([beats_read], [], [], 0)[0], "the GIL was free: this test shows nothing"

        os.write(held_write, b"!")
        assert process.stdout.readline() == "1\n"
        assert process.stdout.readline() == "20 20\n"
        assert [raw.read_message() for raw in peers] == ["hello"] * 20
        for raw in peers:
            raw.socket.close()
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.wait(LIMIT) == 0
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()
        for read, write in pipes:
            os.close(read)
            os.close(write)


# 5. tick() with nothing pending: no system call


EMPTY_TICKS = """
import os
from support import EchoServer, connected, tick_until

server = EchoServer()
server.start(0)
client = connected(server)
client.send("x")
tick_until(lambda: client.received, client, server)
os.access("/pyhv-begin", os.F_OK)
for _ in range(20_000):
    server.tick()
    client.tick()
os.access("/pyhv-end", os.F_OK)
client.close()
server.stop(0)
"""


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_an_empty_tick_makes_no_system_call(tmp_path: Path) -> None:
    log = tmp_path / "strace.log"
    traced = subprocess.run(
        ["strace", "-f", "-o", str(log), sys.executable, "-c", EMPTY_TICKS],
        env=python_environment(),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    if not lines:
        pytest.skip(f"strace cannot trace here: {traced.stderr}")
    assert traced.returncode == 0, traced.stderr
    (begin,) = (number for number, line in enumerate(lines) if "/pyhv-begin" in line)
    (end,) = (number for number, line in enumerate(lines) if "/pyhv-end" in line)
    main = lines[begin].split()[0]
    assert [line for line in lines[begin + 1 : end] if line.split()[0] == main] == []


# 6. Memory is bounded from both sides


class Flooder:
    """Sends frames as fast as the socket takes them, without blocking, and knows how many bytes it got rid of."""

    def __init__(self, port: int, total: int, payload: bytes) -> None:
        self.raw = RawClient(port)
        self.raw.socket.setblocking(False)
        self.frame = build_frame(WsOpcode.BINARY, payload)
        self.count = total // len(self.frame)
        self.total = self.count * len(self.frame)
        self.sent = 0

    def push(self) -> None:
        """Sends until the socket takes no more or all is sent."""
        while self.sent < self.total:
            at = self.sent % len(self.frame)
            left = self.total - self.sent
            chunk = (self.frame[at:] + self.frame * (256 * 1024 // len(self.frame)))[:left]
            try:
                self.sent += self.raw.socket.send(chunk)
            except BlockingIOError:
                return

    def push_until_stuck(self) -> None:
        """Sends until the socket has taken nothing for a while: nobody reads at the other end."""
        while self.sent < self.total:
            self.push()
            if self.sent < self.total and not select.select([], [self.raw.socket], [], 0.5)[1]:
                return


@linux
@pytest.mark.parametrize("payload", [b"", b"x" * 100, b"x" * 300_000], ids=["empty", "100 bytes", "300 kB"])
def test_while_nobody_ticks_a_flood_is_held_back_and_afterwards_all_of_it_arrives(payload: bytes) -> None:
    server = RecordingServer()
    # Below the kernel's buffers, so that the flood ends in them.
    server.start(0, max_channel_pending_bytes=256 << 10, max_pending_bytes=1 << 20)
    flooder = Flooder(port_of(server), 12 * MIB if not payload else 100 * MIB, payload)
    gc.collect()
    before = resident_bytes()
    flooder.push_until_stuck()
    grown = resident_bytes() - before
    assert flooder.sent < flooder.total, "the flood was taken whole: nothing pushed back"
    # The limit, one message, one read, one batch's bookkeeping; the rest is for the test itself.
    assert grown < 8 * MIB, f"{grown} bytes more for {flooder.sent} bytes sent"

    counted = 0

    class Counting(Record):
        def add(self, what: str, who: object = None, value: object = None) -> None:
            nonlocal counted
            if what == "message":
                assert value == payload
                counted += 1

    server.record = Counting()

    def all_here() -> bool:
        flooder.push()
        return counted == flooder.count

    tick_until(all_here, server, limit=60)
    flooder.raw.socket.close()
    server.stop(0)


@linux
def test_while_nobody_ticks_a_flood_of_many_connections_is_held_back_together() -> None:
    server = RecordingServer()
    server.start(0, max_channel_pending_bytes=MIB, max_pending_bytes=2 * MIB)
    flooders = [Flooder(port_of(server), 40 * MIB, b"x" * 1000) for _ in range(6)]
    gc.collect()
    before = resident_bytes()
    for flooder in flooders:
        flooder.push_until_stuck()
        assert flooder.sent < flooder.total
    grown = resident_bytes() - before
    assert grown < 12 * MIB, f"{grown} bytes more for {sum(f.sent for f in flooders)} bytes sent"
    # A paused server still takes part: somebody new gets in, and is heard once the others are.
    with RawClient(port_of(server), "/new") as raw:
        raw.send_text("me too")
        tick_until(lambda: "me too" in server.record.values("message"), server)
    for flooder in flooders:
        flooder.raw.socket.close()
    server.stop(0)


@linux
def test_while_nobody_ticks_a_client_holds_a_flood_back() -> None:
    client = RecordingClient()
    with RawServer() as listener:
        client.connect(listener.url, max_pending_bytes=256 << 10)
        with listener.accept_websocket() as peer:
            peer.socket.setblocking(False)
            frame = b"\x82\x7e\x27\x10" + b"x" * 10_000
            chunk = memoryview(frame * 50)
            gc.collect()
            before = resident_bytes()
            sent = 0
            while sent < 200 * MIB and select.select([], [peer.socket], [], 0.5)[1]:
                sent += peer.socket.send(chunk[sent % len(frame) :])
            grown = resident_bytes() - before
            assert sent < 200 * MIB, "the flood was taken whole: nothing pushed back"
            assert grown < 8 * MIB, f"{grown} bytes more for {sent} bytes sent"
            tick_until(lambda: len(client.received) >= sent // len(frame), client)


@linux
def test_a_peer_that_does_not_read_is_closed_with_1008_and_nobody_else_notices(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = EchoServer()
    server.start(0, max_buffered=2 * MIB)
    with RawClient(port_of(server), "/slow", receive_buffer=4096) as slow, RawClient(port_of(server)) as good:
        tick_until(lambda: len(server.channels) == 2, server)
        (channel,) = (channel for channel in server.channels if channel.url == "/slow")
        chunk = b"x" * 50_000
        echoed = 0
        gc.collect()
        before = resident_bytes()
        while channel.send(chunk):
            assert channel.buffered_amount <= 2 * MIB + len(chunk) + 14
            good.send_text(str(echoed))
            tick_until(good.readable, server)
            assert good.read_message() == str(echoed)
            echoed += 1
        assert resident_bytes() - before < 8 * MIB
        assert echoed >= 2 * MIB // len(chunk)
        assert not channel.is_open
        tick_until(lambda: server.record.count("close"), server)
        assert server.record.of(channel) == [("open", "/slow"), ("close", 1008)]
        assert channel.close_reason is not None
        assert "max_buffered" in channel.close_reason
        assert any("/slow" in text and "max_buffered=2097152" in text for text in caplog.messages)
        good.send_text("still here")
        tick_until(good.readable, server)
        assert good.read_message() == "still here"
        # The slow peer reads at last: whole frames, and then why it was closed.
        while (frame := slow.read_frame()).opcode == WsOpcode.BINARY:
            assert frame.payload == chunk
        assert (frame.opcode, frame.close_code) == (WsOpcode.CLOSE, 1008)
    wait_until(lambda: channel.buffered_amount == 0)
    server.stop(0)


@linux
def test_a_broadcast_to_a_peer_that_does_not_read_closes_that_one_with_1008() -> None:
    server = RecordingServer()
    server.start(0, max_buffered=MIB)
    with RawClient(port_of(server), "/slow", receive_buffer=4096), RawClient(port_of(server), "/good") as good:
        tick_until(lambda: len(server.channels) == 2, server)
        chunk = b"x" * 50_000
        count = 0
        while not server.record.count("close"):
            server.broadcast(chunk)
            count += 1
            assert good.read_message() == chunk
            server.tick()
            assert count < 10_000, "a peer that reads nothing is served for ever"
        assert [(call.who.url, call.value) for call in server.record.calls if call.what == "close"] == [("/slow", 1008)]
        server.broadcast("still here")
        assert good.read_message() == "still here"
    server.stop(0)


@linux
def test_a_client_whose_server_does_not_read_closes_with_1008() -> None:
    client = RecordingClient()
    with RawServer(receive_buffer=4096) as listener:
        client.connect(listener.url, max_buffered=MIB)
        with listener.accept_websocket():
            tick_until(lambda: client.is_connected, client)
            chunk = b"x" * 50_000
            count = 0
            while client.send(chunk):
                count += 1
                assert client.buffered_amount <= MIB + len(chunk) + 14
                assert count < 10_000
                client.tick()
            tick_until(lambda: client.close_code, client)
    assert client.close_code == 1008
    assert client.record.of(None) == [("open", None), ("close", 1008)]


# 7. send and close may be called from any thread; a send to a closed channel returns False, it never raises


def test_sends_from_many_threads_all_arrive_each_threads_in_its_order(server: RecordingServer) -> None:
    threads, each = 8, 250
    with RawClient(port_of(server)) as raw:
        channel = only_channel(server)
        barrier = threading.Barrier(threads)

        def send(sender: int) -> bool:
            barrier.wait(LIMIT)
            return [channel.send(f"{sender}:{number}") for number in range(each)] == [True] * each

        def read() -> list[str | bytes]:
            return [raw.read_message() for _ in range(threads * each)]

        reader = Background(read)
        senders = [Background(lambda sender=sender: send(sender)) for sender in range(threads)]  # type: ignore[misc]
        assert all(sender.result(server) for sender in senders)
        got = reader.result(server)
    for sender in range(threads):
        mine = [message for message in got if message.startswith(f"{sender}:")]
        assert mine == [f"{sender}:{number}" for number in range(each)]


def test_sends_and_broadcasts_of_other_threads_leave_while_nobody_ticks(server: RecordingServer) -> None:
    with RawClient(port_of(server)) as raw:
        channel = only_channel(server)
        assert Background(lambda: channel.send("sent")).result() is True
        assert raw.read_message() == "sent"
        Background(lambda: server.broadcast("broadcast")).result()
        assert raw.read_message() == "broadcast"


def test_a_channel_closed_by_another_thread_closes_once(server: RecordingServer) -> None:
    with RawClient(port_of(server)) as raw:
        channel = only_channel(server)
        closers = [Background(lambda: channel.close(4002, "by a thread")) for _ in range(4)]
        for closer in closers:
            closer.result(server)
        close = raw.read_close()
        assert (close.close_code, close.close_reason) == (4002, "by a thread")
        raw.send_close(4002)
        raw.expect_end()
        tick_until(lambda: server.record.count("close"), server)
    server.tick()
    assert server.record.of(channel) == [("open", "/"), ("close", 4002)]


def test_sends_that_race_with_a_close_return_a_bool_and_what_was_true_before_the_close_arrives(
    server: RecordingServer,
) -> None:
    for _ in range(10):
        with RawClient(port_of(server)) as raw:
            channel = only_channel(server)
            go = threading.Event()

            def send(channel: WebSocketChannel = channel, go: threading.Event = go) -> list[bool]:
                assert go.wait(LIMIT)
                results: list[bool] = []
                while True:
                    results.append(channel.send(f"{len(results)}"))
                    if results[-1] is False:
                        return results

            sender = Background(send)
            go.set()
            raw.read_frame()  # the race is on
            channel.close()
            results = sender.result(server)
            assert results[:-1] == [True] * (len(results) - 1)
            raw.read_close()
            raw.send_close()
            tick_until(lambda: not server.channels, server)


def test_a_send_to_a_closed_channel_returns_false(server: RecordingServer) -> None:
    with RawClient(port_of(server)) as raw:
        channel = only_channel(server)
        assert channel.send("open") is True
        channel.close()
        assert channel.send("closing") is False
        raw.read_close()
        raw.send_close()
        tick_until(lambda: not server.channels, server)
        assert channel.send("closed") is False
        assert channel.send(b"closed") is False
        assert channel.send("closed", WsOpcode.PING) is False
        assert channel.send("closed", fin=False) is False
        channel.close()


def test_a_send_to_a_peer_that_has_gone_returns_false(server: RecordingServer) -> None:
    raw = RawClient(port_of(server))
    channel = only_channel(server)
    raw.reset()
    wait_until(lambda: channel.send("anybody there?") is False)  # without a tick
    tick_until(lambda: not server.channels, server)
    assert channel.send("closed") is False


def test_a_send_after_the_stop_of_the_server_returns_false() -> None:
    server = RecordingServer()
    server.start(0)
    raw = RawClient(port_of(server))
    channel = only_channel(server)
    server.stop(0)
    assert channel.send("stopped") is False
    channel.close()
    server.broadcast("stopped")
    raw.socket.close()


def test_a_channel_outlives_its_server_object() -> None:
    server = RecordingServer()
    server.start(0)
    with RawClient(port_of(server)) as raw:
        channel = only_channel(server)
        del server
        gc.collect()
        wait_until(lambda: channel.send("orphan") is False)
        assert not channel.is_open
        raw.read_to_end()


# 8. An exception in a callback is logged and goes to on_error; the server goes on


class Failing(EchoServer):
    """Raises where it is told to."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where

    def on_init(self) -> None:
        self.get("/", self.handle)

    def check(self, where: str) -> None:
        if where == self.where:
            raise LookupError(f"secret in {where}")

    def handle(self, req: HttpRequest, resp: HttpResponse) -> HTTPStatus:
        self.check("request")
        return resp.text("fine")

    def on_ws_open(self, channel: WebSocketChannel, url: str) -> None:
        super().on_ws_open(channel, url)
        if url == "/fail":
            self.check("open")

    def on_ws_message(self, channel: WebSocketChannel, msg: str | bytes) -> None:
        if msg == "fail":
            self.check("message")
        super().on_ws_message(channel, msg)

    def on_ws_close(self, channel: WebSocketChannel) -> None:
        super().on_ws_close(channel)
        self.check("close")

    def on_tick(self) -> None:
        self.check("tick")


def assert_logged(caplog: pytest.LogCaptureFixture, logger: str, error: BaseException) -> None:
    """The exception is in the log with its traceback, once."""
    entries = [entry for entry in caplog.records if entry.exc_info and entry.exc_info[1] is error]
    assert len(entries) == 1
    assert (entries[0].name, entries[0].levelno) == (logger, logging.ERROR)
    assert entries[0].exc_info is not None
    assert entries[0].exc_info[2] is not None


@pytest.mark.parametrize("where", ["open", "message"])
def test_an_exception_in_a_callback_closes_its_channel_with_1011_and_the_server_goes_on(
    caplog: pytest.LogCaptureFixture, where: str
) -> None:
    server = Failing(where)
    server.start(0)
    with RawClient(port_of(server), "/fail") as raw, RawClient(port_of(server)) as other:
        raw.send_text("fail")
        tick_until(raw.readable, server)
        close = raw.read_close()
        assert close.close_code == 1011
        assert "secret" not in close.close_reason
        raw.send_close(1011)
        tick_until(lambda: server.record.count("close"), server)
        (error,) = server.record.values("error")
        assert isinstance(error, LookupError)
        assert str(error) == f"secret in {where}"
        assert_logged(caplog, "pyhv.server", error)
        other.send_text("still here")
        tick_until(other.readable, server)
        assert other.read_message() == "still here"
    server.stop(0)


def test_an_exception_in_a_handler_is_answered_with_500_and_nothing_of_it_on_the_wire(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = Failing("request")
    server.start(0)
    answer = ask(server, "GET", "/")
    assert answer.status == 500
    everything = f"{answer.headers} {answer.body!r}"
    for word in ("secret", "LookupError", "Traceback", ".py"):
        assert word not in everything
    (error,) = server.record.values("error")
    assert_logged(caplog, "pyhv.server", error)
    server.where = ""
    assert ask(server, "GET", "/").body == b"fine"
    server.stop(0)


def test_an_exception_in_on_ws_close_is_told_and_the_server_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    server = Failing("close")
    server.start(0)
    with RawClient(port_of(server)) as raw:
        raw.send_close()
        tick_until(lambda: server.record.count("error"), server)
    assert server.record.count("close") == 1
    assert_logged(caplog, "pyhv.server", server.record.values("error")[0])
    assert ask(server, "GET", "/").body == b"fine"
    server.stop()


def test_an_exception_in_on_tick_is_told_each_time_and_the_server_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = Failing("tick")
    server.start(0)
    server.tick()
    server.tick()
    first, second = server.record.values("error")
    assert_logged(caplog, "pyhv.server", first)
    assert_logged(caplog, "pyhv.server", second)
    assert ask(server, "GET", "/").body == b"fine"
    server.stop()


def test_an_exception_in_on_error_is_logged_and_the_server_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    class FailsTwice(Failing):
        def on_error(self, exc: Exception) -> None:
            raise ArithmeticError("in on_error")

    server = FailsTwice("message")
    server.start(0)
    with RawClient(port_of(server)) as raw:
        raw.send_text("fail")
        tick_until(raw.readable, server)
        assert raw.read_close().close_code == 1011
    assert ask(server, "GET", "/").body == b"fine"
    server.stop(0)
    raised = [entry.exc_info[0] for entry in caplog.records if entry.exc_info]
    assert raised == [LookupError, ArithmeticError]


@pytest.mark.parametrize("where", ["on_open", "on_message", "on_message_frame"])
def test_an_exception_in_a_callback_of_a_client_closes_with_1011(
    echo: EchoServer, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    def fail(*arguments: object) -> None:
        raise LookupError("on purpose")

    client = RecordingClient()
    setattr(client, where, fail)
    client.connect(url_of(echo))
    tick_until(lambda: client.is_connected or client.close_code, client, echo)
    client.send("hello")
    tick_until(lambda: client.close_code, client, echo)
    tick_until(lambda: echo.record.count("close"), echo)
    assert echo.record.values("close") == [1011]
    (error,) = client.record.values("error")
    assert_logged(caplog, "pyhv.client", error)
    assert client.record.count("close") == 1
    # The client is usable again.
    delattr(client, where)
    client.connect(url_of(echo))
    tick_until(lambda: client.is_connected, client, echo)
    client.close()


def test_an_exception_in_on_close_of_a_client_is_told(echo: EchoServer, caplog: pytest.LogCaptureFixture) -> None:
    class Fails(RecordingClient):
        def on_close(self) -> None:
            super().on_close()
            raise LookupError("on purpose")

    client = Fails()
    client.connect(url_of(echo))
    tick_until(lambda: client.is_connected, client, echo)
    client.close()
    tick_until(lambda: client.record.count("error"), client, echo)
    assert [call.what for call in client.record.calls] == ["open", "close", "error"]
    assert_logged(caplog, "pyhv.client", client.record.values("error")[0])


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_keyboard_interrupt_and_system_exit_leave_tick_and_the_next_tick_runs_the_rest(
    kind: type[BaseException],
) -> None:
    class Interrupted(RecordingServer):
        def on_ws_message(self, channel: WebSocketChannel, msg: str | bytes) -> None:
            super().on_ws_message(channel, msg)
            if msg == "interrupt":
                raise kind

    server = Interrupted()
    server.start(0)
    with RawClient(port_of(server), "/1") as first, RawClient(port_of(server), "/2") as second:
        tick_until(lambda: len(server.channels) == 2, server)
        channels = {channel.url: channel for channel in server.channels}
        for raw in (first, second):
            raw.send_text("before")
            if raw is first:
                raw.send_text("interrupt")
            raw.send_text("after")
            raw.send_ping()  # answered when all of it has arrived
            assert raw.read_frame().opcode == WsOpcode.PONG
        with pytest.raises(kind):
            server.tick()
        assert server.record.values("message") == ["before", "interrupt"]
        assert server.tick() > 0
        assert server.record.values("message", channels["/2"]) == ["before", "after"]
        assert server.record.values("message", channels["/1"]) == ["before", "interrupt", "after"]
        assert server.record.count("error") == 0
        assert [channel.is_open for channel in channels.values()] == [True, True]
    server.stop(0)


def test_the_descriptor_stays_readable_for_what_an_interrupt_left() -> None:
    class Interrupted(RecordingServer):
        def on_ws_open(self, channel: WebSocketChannel, url: str) -> None:
            super().on_ws_open(channel, url)
            if self.record.count("open") == 1:
                raise KeyboardInterrupt

    server = Interrupted()
    server.start(0)
    with RawClient(port_of(server)), RawClient(port_of(server)) as second:
        second.send_ping()
        assert second.read_frame().opcode == WsOpcode.PONG
        assert select.select([server], [], [], LIMIT)[0]
        with pytest.raises(KeyboardInterrupt):
            server.tick()
        assert server.record.count("open") == 1
        assert select.select([server], [], [], LIMIT)[0]
        assert server.tick(None) > 0
        assert server.record.count("open") == 2
    server.stop(0)


def test_ctrl_c_inside_a_callback_leaves_tick() -> None:
    class Signalled(RecordingServer):
        def on_ws_message(self, channel: WebSocketChannel, msg: str | bytes) -> None:
            super().on_ws_message(channel, msg)
            if msg == "ctrl-c":
                signal.raise_signal(signal.SIGINT)

    server = Signalled()
    server.start(0)
    with RawClient(port_of(server)) as raw:
        only_channel(server)
        raw.send_text("ctrl-c")
        with pytest.raises(KeyboardInterrupt):
            tick_until(lambda: False, server)
        with RawClient(port_of(server)) as other:
            other.send_text("after")
            tick_until(lambda: "after" in server.record.values("message"), server)
    server.stop(0)


def test_an_interrupted_handler_is_answered_with_500(server: RecordingServer) -> None:
    @server.get("/interrupt")
    def interrupt(req: HttpRequest, resp: HttpResponse) -> None:
        raise KeyboardInterrupt

    with RawClient(port_of(server), upgrade=False) as raw:
        raw.request("GET", "/interrupt")
        with pytest.raises(KeyboardInterrupt):
            tick_until(lambda: False, server)
        assert raw.read_answer().status == 500
    assert ask(server, "GET", "/unknown").status == 404


# 9. stop() is graceful


def test_stop_sends_what_is_queued_closes_everybody_with_1001_and_runs_the_last_callbacks_here() -> None:
    server = RecordingServer()
    server.start(0)
    port = port_of(server)
    peers = [RawClient(port, f"/{number}") for number in range(10)]
    tick_until(lambda: len(server.channels) == 10, server)
    channels = server.channels
    for channel in channels:
        for number in range(20):
            assert channel.send(f"{number}".ljust(50_000))

    def read(raw: RawClient) -> list[str | bytes]:
        got = [raw.read_message() for _ in range(20)]
        close = raw.read_close()
        assert close.close_code == 1001
        raw.send_close(1001)
        raw.expect_end()
        return got

    readers = [Background(lambda raw=raw: read(raw)) for raw in peers]  # type: ignore[misc]
    server.stop(timeout=LIMIT)
    assert not server.is_running
    assert server.port is None
    assert server.channels == []
    for channel in channels:
        assert server.record.of(channel) == [("open", channel.url), ("close", 1001)]
        assert channel.close_code == 1001
        assert channel.send("late") is False
    for reader in readers:
        assert reader.result() == [f"{number}".ljust(50_000) for number in range(20)]
    assert server.record.threads == {threading.get_ident()}
    with pytest.raises(ConnectionRefusedError):
        RawClient(port)
    assert server.tick() == 0
    for raw in peers:
        raw.socket.close()


def test_stop_delivers_what_has_arrived_before_it(server: RecordingServer) -> None:
    with RawClient(port_of(server)) as raw:
        raw.send_text("hello")
        raw.send_ping()
        assert raw.read_frame().opcode == WsOpcode.PONG
        answering = Background(raw.answer_close)
        server.stop()
        answering.result()
    what = [(call.what, call.value) for call in server.record.calls]
    assert what == [("open", "/"), ("message", "hello"), ("close", 1001)]


def test_stop_answers_a_request_that_waits_for_its_handler() -> None:
    server = RecordingServer()
    server.start(0)

    @server.get("/late")
    def late(req: HttpRequest, resp: HttpResponse) -> HTTPStatus:
        return resp.text("just in time")

    with RawClient(port_of(server), upgrade=False) as raw:
        raw.request("GET", "/late")
        wait_until(lambda: select.select([server], [], [], 0)[0])
        server.stop()
        answer = raw.read_answer()
        assert (answer.status, answer.body) == (200, b"just in time")
        raw.expect_end()


def test_stop_returns_within_its_timeout_when_a_peer_does_not_answer() -> None:
    server = RecordingServer()
    server.start(0, close_timeout=1000)
    with RawClient(port_of(server)) as raw:
        channel = only_channel(server)
        server.stop(timeout=0.2)  # with close_timeout it would take longer than this test may
        assert not server.is_running
        assert server.record.of(channel) == [("open", "/"), ("close", 1006)]
        assert raw.read_close().close_code == 1001
        raw.expect_end()


def test_stop_returns_within_its_timeout_when_a_peer_does_not_read() -> None:
    server = RecordingServer()
    server.start(0, close_timeout=1000, max_buffered=100 * MIB)
    with RawClient(port_of(server), receive_buffer=4096):
        channel = only_channel(server)
        for _ in range(20):
            assert channel.send(b"x" * MIB)
        server.stop(timeout=0.2)
        assert server.record.of(channel) == [("open", "/"), ("close", 1006)]
    assert channel.buffered_amount == 0


def test_stop_with_timeout_0_drops_everybody_at_once_and_still_delivers_the_closes() -> None:
    server = RecordingServer()
    server.start(0, close_timeout=1000)
    peers = [RawClient(port_of(server)) for _ in range(5)]
    tick_until(lambda: len(server.channels) == 5, server)
    server.stop(timeout=0)
    assert not server.is_running
    assert server.record.count("close") == 5
    for raw in peers:
        raw.read_to_end()
        raw.socket.close()


def test_stop_does_nothing_when_the_server_does_not_run() -> None:
    server = RecordingServer()
    server.stop()
    server.start(0)
    server.stop()
    server.stop()
    assert server.record.calls == []


@pytest.mark.parametrize("timeout", [-1, float("nan"), float("inf")])
def test_stop_refuses_a_timeout_that_is_none(server: RecordingServer, timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout"):
        server.stop(timeout)
    assert server.is_running


def test_a_stopped_server_starts_again_with_its_routes() -> None:
    inits = 0

    class Again(EchoServer):
        def on_init(self) -> None:
            nonlocal inits
            inits += 1
            self.get("/", lambda req, resp: resp.text("again"))

    server = Again()
    for run in range(3):
        server.start(0)
        with RawClient(port_of(server)) as raw:
            raw.send_text(f"run {run}")
            tick_until(raw.readable, server)
            assert raw.read_message() == f"run {run}"
        assert ask(server, "GET", "/").body == b"again"
        server.stop()
    assert inits == 1
    assert server.record.values("message") == ["run 0", "run 1", "run 2"]
    assert server.record.count("open") == server.record.count("close") == 3


def test_a_stopped_server_starts_again_on_the_same_port() -> None:
    server = RecordingServer()
    server.start(0)
    port = port_of(server)
    with RawClient(port):
        only_channel(server)
        server.stop(0)
        server.start(port)
        assert server.port == port
    server.stop()


@linux
def test_starting_and_stopping_leaks_no_threads_and_no_descriptors() -> None:
    server, client = EchoServer(), RecordingClient()

    def live() -> None:
        server.start(0)
        client.connect(url_of(server))
        raws = [RawClient(port_of(server)) for _ in range(5)]
        tick_until(lambda: client.is_connected and len(server.channels) == 6, client, server)
        client.send("x")
        tick_until(lambda: client.received, client, server)
        server.stop(0.05)  # the raw clients do not answer
        tick_until(lambda: client.close_code, client)
        for raw in raws:
            raw.socket.close()
        # A channel that somebody keeps would keep its run's descriptors.
        client.record.calls.clear()
        server.record.calls.clear()

    live()
    gc.collect()
    threads, descriptors = thread_names(), sockets_and_wakes()
    for _ in range(10):
        live()
    gc.collect()
    wait_until(lambda: not Counter(thread_names()) - Counter(threads), what=f"no more threads than {threads}")
    wait_until(lambda: sockets_and_wakes() <= descriptors, what=f"no more than {descriptors} sockets and wakes")


@linux
def test_hundreds_of_clients_and_servers_share_one_native_thread() -> None:
    server = EchoServer()
    server.start(0)
    clients = [RecordingClient() for _ in range(200)]
    for client in clients:
        client.connect(url_of(server))
    tick_until(lambda: all(client.is_connected for client in clients), server, *clients)
    others = [RecordingServer() for _ in range(20)]
    for other in others:
        other.start(0)
    assert [name for name in thread_names() if name.startswith("pyhv")] == ["pyhv-io-0"]
    for other in others:
        other.stop()
    server.stop(0)
    tick_until(lambda: all(client.close_code for client in clients), *clients)


def test_stop_inside_a_callback_takes_effect_when_the_tick_ends() -> None:
    class StopsItself(RecordingServer):
        def on_ws_message(self, channel: WebSocketChannel, msg: str | bytes) -> None:
            super().on_ws_message(channel, msg)
            if msg == "stop":
                channel.send("good-bye")
                self.stop()
                assert self.is_running
                self.record.add("stop called")

    server = StopsItself()
    server.start(0)
    with RawClient(port_of(server)) as raw, RawClient(port_of(server)) as other:
        tick_until(lambda: len(server.channels) == 2, server)
        peers = Background(lambda: [peer.answer_close() for peer in (other, raw)])
        raw.send_text("stop")
        raw.send_text("still delivered")
        tick_until(lambda: not server.is_running, server)
        peers.result()
        assert server.record.count("close") == 2
        assert server.record.values("close") == [1001, 1001]
        what = [call.what for call in server.record.calls]
        assert what.index("stop called") < what.index("close")
    assert server.tick() == 0


def test_stop_by_another_thread_is_made_by_the_one_that_ticks() -> None:
    server = RecordingServer()
    server.start(0)
    ticking = threading.Event()

    def run() -> int:
        while server.is_running:
            ticking.set()
            server.tick(None)
        return threading.get_ident()

    ticker = Background(run)
    assert ticking.wait(LIMIT)
    with RawClient(port_of(server)) as raw:
        wait_until(lambda: server.channels)
        peer = Background(raw.answer_close)
        server.stop()
        assert not server.is_running
        ident = ticker.result()
        assert peer.result() == 1001
    assert [call.what for call in server.record.calls] == ["open", "close"]
    assert server.record.threads == {ident}


def test_stop_by_another_thread_is_made_also_when_the_tick_ends_by_an_exception() -> None:
    inside = threading.Event()

    class Leaves(RecordingServer):
        def on_ws_message(self, channel: WebSocketChannel, msg: str | bytes) -> None:
            inside.set()
            # The other thread's stop() makes the descriptor readable, to wake us.
            assert select.select([self], [], [], LIMIT)[0]
            raise SystemExit

    server = Leaves()
    server.start(0)
    with RawClient(port_of(server)) as raw:
        only_channel(server)
        raw.send_text("hello")

        def run() -> None:
            with pytest.raises(SystemExit):
                tick_until(lambda: False, server)

        ticker = Background(run)
        assert inside.wait(LIMIT)
        server.stop(timeout=0.2)
        ticker.result()
        assert not server.is_running
        raw.read_to_end()


def test_stop_by_another_thread_between_two_ticks_is_made_there() -> None:
    server = RecordingServer()
    server.start(0)
    with RawClient(port_of(server)) as raw:
        only_channel(server)
        Background(raw.answer_close)

        def stop() -> int:
            server.stop()
            return threading.get_ident()

        ident = Background(stop).result()
    assert not server.is_running
    (closed,) = (call for call in server.record.calls if call.what == "close")
    assert (closed.value, closed.thread) == (1001, ident)


def test_ctrl_c_in_a_close_callback_leaves_stop_and_the_server_is_stopped_all_the_same() -> None:
    class Interrupted(RecordingServer):
        def on_ws_close(self, channel: WebSocketChannel) -> None:
            super().on_ws_close(channel)
            if self.record.count("close") == 2:
                raise KeyboardInterrupt

    server = Interrupted()
    server.start(0)
    peers = [RawClient(port_of(server)) for _ in range(5)]
    tick_until(lambda: len(server.channels) == 5, server)
    with pytest.raises(KeyboardInterrupt):
        server.stop(0.2)
    assert not server.is_running
    assert server.record.count("close") == 5
    server.start(0)
    server.stop()
    for raw in peers:
        raw.socket.close()


RUNS = """
from support import RecordingServer

class Server(RecordingServer):
    told = False

    def on_tick(self):
        if not self.told:
            self.told = True
            print(self.port, flush=True)

    def on_ws_open(self, channel, url):
        print("opened", flush=True)

    def on_ws_close(self, channel):
        print("closed", channel.close_code, flush=True)

server = Server()
server.run(0, interval=0.05)
print("stopped", server.is_running, flush=True)
"""


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_run_serves_until_a_signal_and_stops_gracefully(number: signal.Signals) -> None:
    with python_process(RUNS) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        with RawClient(port) as raw:
            assert process.stdout.readline() == "opened\n"
            process.send_signal(number)
            assert raw.read_close().close_code == 1001
            raw.send_close(1001)
            raw.expect_end()
        assert process.stdout.read() == "closed 1001\nstopped False\n"
        assert process.wait(LIMIT) == 0


def test_run_returns_after_a_stop_in_a_callback() -> None:
    class StopsItself(RecordingServer):
        def on_tick(self) -> None:
            self.record.add("tick")
            if self.record.count("tick") == 3:
                self.stop()

    server = StopsItself()
    server.run(0, interval=0.001)
    assert server.record.count("tick") == 3
    assert not server.is_running


WAITS = """
from support import RecordingServer

server = RecordingServer()
server.start(0)
try:
    print("waiting", flush=True)
    server.tick(None)
except KeyboardInterrupt:
    print("interrupted", flush=True)
server.stop()
print("stopped", server.is_running, flush=True)
"""


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
def test_ctrl_c_while_a_tick_waits_without_end_leaves_it() -> None:
    with python_process(WAITS) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        # Whether it is inside tick() already or not quite yet: both have to end.
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "interrupted\n"
        assert process.stdout.read() == "stopped False\n"
        assert process.wait(LIMIT) == 0
