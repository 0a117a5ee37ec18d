"""Broken networks and rude peers on real sockets: a bystander still echoes, and descriptors and memory return.

The server runs in a process of its own, whose descriptors and memory are nobody else's.

Elsewhere already: one byte at a time and every split in two (test_messages: `test_byte_by_byte`,
`test_every_split_of_handshake_and_frames`), frames glued to the handshake (test_messages:
`test_frames_glued_to_the_handshake`), 63-bit lengths (test_hostile_input: "length of 2 to the 63 less 1",
`test_claimed_lengths_allocate_nothing`), ping flood and the reader that is too slow for `max_buffered`
(test_hostile_input), one drip of a head (test_hostile_input: `test_a_head_that_drips_ends_the_connection`).
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING

import pytest

from pyhv import HttpRequest, HttpResponse, WebSocketChannel, WsOpcode, _native
from support import HOST, LIMIT, Background, RawClient, build_frame, http, resident_bytes, tick_until, wait_until
from support_load import CountingServer, CountingServerProgram, Program, allow_descriptors, sockets_of

if TYPE_CHECKING:
    from typing_extensions import Self

KIB, MIB = 1 << 10, 1 << 20
TEXT, BINARY = WsOpcode.TEXT, WsOpcode.BINARY
#: Bytes by which the server's memory may have grown after a fault: a multiple of what any of them may hold for long.
MARGIN = 8 * MIB
LARGE = 8 * MIB  # of the response that nobody reads

HANDSHAKE = (
    b"GET /fault HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
UPLOAD = b"POST /upload HTTP/1.1\r\nHost: x\r\n"


class FaultyServer(CountingServer):
    def on_init(self) -> None:
        super().on_init()
        self.post("/upload", self.post_upload)
        self.get("/large", self.get_large)
        self.get("/codes", lambda req, resp: resp.json(self.codes))
        self.codes: list[int | None] = []

    def on_ws_close(self, channel: WebSocketChannel) -> None:
        super().on_ws_close(channel)
        self.codes.append(channel.close_code)

    def post_upload(self, req: HttpRequest, resp: HttpResponse) -> str:
        return str(len(req.body))

    def get_large(self, req: HttpRequest, resp: HttpResponse) -> bytes:
        return bytes(LARGE)


def serve_faulty() -> None:
    """The main program: serves until its stdin ends."""
    server = FaultyServer()
    server.start(0, **json.loads(sys.argv[1]))
    print(server.port, server.tls_port or 0, flush=True)
    while True:
        ready, _, _ = select.select([sys.stdin, server], [], [])
        server.tick()
        if sys.stdin in ready:
            break
    server.stop(1.0)
    print("stopped", flush=True)


class FaultyProgram(CountingServerProgram):
    """A `FaultyServer` in a Python of its own, with a bystander."""

    bystander: RawClient

    def __init__(self, **settings: object) -> None:
        # Not that of CountingServerProgram, which starts another server.
        code = "from test_faults import serve_faulty; serve_faulty()"
        Program.__init__(self, "-c", code, json.dumps({"close_timeout": 0.3, **settings}), stdin=subprocess.PIPE)
        try:
            self.port, self.tls_port = map(int, self.wait_for("\n").split())
            self.bystander = RawClient(self.port, "/bystander")
            self.echoes = 0
            self.check_bystander()
            # What is allocated once is there: a large message and a request have passed.
            self.bystander.send_binary(bytes(MIB))
            assert self.bystander.read_message() == bytes(MIB)
            self.sockets = sockets_of(self.pid)
            self.counts()
            self.memory = resident_bytes(self.pid)
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if hasattr(self, "bystander"):
            self.bystander.socket.close()
        super().__exit__(kind, exc, traceback)

    def check_bystander(self) -> None:
        self.echoes += 1
        self.bystander.send_text(f"echo {self.echoes}")
        assert self.bystander.read_message() == f"echo {self.echoes}"

    def codes(self) -> list[int | None]:
        """The codes that channels have closed with, in order."""
        codes: list[int | None] = json.loads(http(self.port, "GET", "/codes").body)
        return codes

    def check(self) -> None:
        """After the fault, whose sockets the test has closed: all is as before, and the server stops well."""
        self.check_bystander()
        wait_until(lambda: self.counts()["channels"] == 1, what="every other channel is closed")
        counts = self.counts()
        assert counts["opened"] == counts["closed"] + 1
        wait_until(lambda: sockets_of(self.pid) <= self.sockets, what="the sockets of the fault are closed")
        wait_until(lambda: resident_bytes(self.pid) - self.memory < MARGIN, what="memory is back")
        self.check_bystander()
        assert self.stop_program() == 0
        assert "Traceback" not in self.output

    def stop_program(self) -> int:
        """Has it stop, and answers the bystander's close; returns the exit code."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.bystander.answer_close() == 1001
        code = self.finish()
        assert self.lines[-1] == "stopped", self.output
        return code


@pytest.fixture
def fault() -> Iterator[Callable[..., FaultyProgram]]:
    """`fault(**settings)` starts the server; when the test has passed, it is checked and stopped."""
    with contextlib.ExitStack() as stack:
        started: list[FaultyProgram] = []

        def start(**settings: object) -> FaultyProgram:
            program = stack.enter_context(FaultyProgram(**settings))
            started.append(program)
            return program

        yield start
        for program in started:
            if program.process.poll() is None:
                program.check()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """Settings for a server that speaks TLS too."""
    folder = tmp_path_factory.mktemp("certificate")
    _, certificate, key = _native.make_dev_certificates([HOST])
    (folder / "cert.pem").write_text(certificate)
    (folder / "key.pem").write_text(key)
    return {"tls_port": 0, "certfile": str(folder / "cert.pem"), "keyfile": str(folder / "key.pem")}


def connect(port: int, receive_buffer: int | None = None) -> socket.socket:
    """A TCP connection, and nothing said on it."""
    connection = socket.socket()
    connection.settimeout(LIMIT)
    try:
        if receive_buffer is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        connection.connect((HOST, port))
    except BaseException:
        connection.close()
        raise
    return connection


def reset(connection: socket.socket) -> None:
    """Closes with RST instead of FIN."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def ended(connection: socket.socket) -> bool:
    """Whether the server has ended the connection; what it said before is thrown away."""
    connection.setblocking(False)
    try:
        while connection.recv(1 << 16):
            pass
    except BlockingIOError:
        return False
    except ConnectionResetError:
        pass
    return True


# Resets

FRAME = build_frame(BINARY, bytes(70_000))  # a header of 14 bytes
STARTS: dict[str, tuple[bytes, bytes]] = {
    "nothing": (b"", b""),
    "a request line": (b"", b"GET /cou"),
    "a handshake": (b"", HANDSHAKE[:-1]),
    "a body": (b"", UPLOAD + b"Content-Length: 100000\r\n\r\n" + bytes(50_000)),
    "a chunk": (b"", UPLOAD + b"Transfer-Encoding: chunked\r\n\r\n1000\r\n" + bytes(100)),
    **{f"a frame, {n} bytes of it": (HANDSHAKE, FRAME[:n]) for n in (0, 1, 2, 9, 10, 13, 14, 15, 60_000)},
    "a fragmented message": (HANDSHAKE, build_frame(TEXT, b"x" * 50_000, fin=False)),
    "a whole message": (HANDSHAKE, FRAME),
    "a close": (HANDSHAKE, build_frame(WsOpcode.CLOSE, b"\x03\xe8")[:-1]),
}


@pytest.mark.parametrize(("first", "then"), STARTS.values(), ids=STARTS)
def test_connections_that_break_in_the_middle(fault: Callable[..., FaultyProgram], first: bytes, then: bytes) -> None:
    server = fault()
    count = 30
    before = server.counts()["opened"]
    for turn, end in enumerate((reset, socket.socket.close), 1):
        connections = [connect(server.port) for _ in range(count)]
        for connection in connections:
            connection.sendall(first + then)
        if first:
            opened = before + turn * count
            tick_until(lambda opened=opened: server.counts()["opened"] == opened, what="all are open")  # type: ignore[misc]
        for connection in connections:
            end(connection)
        server.check_bystander()
    if first:
        wait_until(lambda: len(server.codes()) == 2 * count, what="all are closed")
        assert set(server.codes()) == {1006}


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_thousand_connections_reset_as_they_come(
    fault: Callable[..., FaultyProgram], certificate: dict[str, object], tls: bool
) -> None:
    server = fault(**certificate if tls else {})
    for number in range(1000):
        connection = connect(server.tls_port if tls else server.port)
        if number % 3 == 1:
            connection.sendall(b"\x16\x03\x01\x02\x00" if tls else HANDSHAKE)
        reset(connection)
        if number % 100 == 0:
            server.check_bystander()


# Half-closes


def test_half_closed_in_the_middle_of_a_frame_ends_with_1006(fault: Callable[..., FaultyProgram]) -> None:
    server = fault()
    for cut in (1, 5, 13, 14, 1000):
        with RawClient(server.port) as raw:
            raw.send_bytes(FRAME[:cut])
            raw.socket.shutdown(socket.SHUT_WR)
            raw.read_to_end()  # whatever it says, it ends
    wait_until(lambda: server.codes() == [1006] * 5, what="all are told")


def test_half_closed_behind_messages_without_a_close_frame_is_a_lost_connection(
    fault: Callable[..., FaultyProgram],
) -> None:
    """RFC 6455 section 7.1.5 calls it abnormal: the messages are delivered, what answers them may not get out."""
    server = fault()
    with RawClient(server.port) as raw:
        raw.send_bytes(b"".join(build_frame(BINARY, bytes([n]) * 5000) for n in range(100)))
        raw.socket.shutdown(socket.SHUT_WR)
        raw.read_to_end()
    wait_until(lambda: server.codes() == [1006], what="the program is told")


def test_half_closed_behind_a_close_frame_ends_cleanly(fault: Callable[..., FaultyProgram]) -> None:
    server = fault()
    with RawClient(server.port) as raw:
        raw.send_text("last words")
        raw.send_close(4000, "bye")
        raw.socket.shutdown(socket.SHUT_WR)
        assert raw.read_message() == "last words"
        assert raw.read_close().close_code == 4000
        raw.expect_end()


def test_half_closed_in_the_middle_of_a_body_ends(fault: Callable[..., FaultyProgram]) -> None:
    server = fault()
    for begin in (UPLOAD[:20], HANDSHAKE[:-1], UPLOAD + b"Content-Length: 1000\r\n\r\n" + bytes(500)):
        with contextlib.closing(connect(server.port)) as connection:
            connection.sendall(begin)
            connection.shutdown(socket.SHUT_WR)
            wait_until(lambda connection=connection: ended(connection))  # type: ignore[misc]


def test_half_closed_behind_a_request_still_gets_its_answer(fault: Callable[..., FaultyProgram]) -> None:
    """RFC 9112 section 9.6: a client that closes its sending side has sent its last request, not left."""
    server = fault()
    for _ in range(20):
        with RawClient(server.port, upgrade=False) as raw:
            raw.request("POST", "/upload", body=bytes(50_000))
            raw.socket.shutdown(socket.SHUT_WR)
            assert raw.read_answer().body == b"50000"
            raw.expect_end()


# Windows of zero


def test_peers_whose_window_is_zero_hold_nobody_up_and_get_all_when_they_read(
    fault: Callable[..., FaultyProgram],
) -> None:
    """As much waits for each as `max_buffered` allows; the others go on meanwhile."""
    server = fault(ping_interval=None)
    peers = [RawClient(server.port, receive_buffer=4096) for _ in range(10)]
    payload = bytes(range(256)) * 256
    count = 5 * MIB // len(payload)
    for raw in peers:
        sender = Background(lambda raw=raw: raw.send_bytes(build_frame(BINARY, payload) * count))  # type: ignore[misc]
        sender.result()
    for _ in range(500):
        server.check_bystander()
    for raw in peers[::2]:
        assert [raw.read_message() for _ in range(count)] == [payload] * count
        raw.send_close()
        assert raw.read_close().close_code == 1000
        raw.expect_end()
        raw.socket.close()
    for raw in peers[1::2]:
        raw.reset()


def test_responses_that_nobody_reads_hold_nobody_up(fault: Callable[..., FaultyProgram]) -> None:
    server = fault()
    connections = [connect(server.port, receive_buffer=4096) for _ in range(10)]
    for connection in connections:
        connection.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
    for connection in connections:
        wait_until(lambda connection=connection: connection.recv(1, socket.MSG_PEEK))  # type: ignore[misc]
    for _ in range(200):
        server.check_bystander()
    for connection in connections:
        reset(connection)


def test_a_peer_that_reads_a_byte_at_a_time(fault: Callable[..., FaultyProgram]) -> None:
    server = fault()
    with RawClient(server.port, receive_buffer=4096) as raw:
        raw.send_text("x" * 3000)
        received = b""
        while len(received) < 4 + 3000:
            received += raw.socket.recv(1)
        assert received == build_frame(TEXT, b"x" * 3000, mask=None)


# Dribbles, in crowds

DRIBBLES: dict[str, bytes] = {
    "heads": b"GET /counts HTTP/1.1\r\nHost: x\r\nX-Drip: ",
    "handshakes": HANDSHAKE[:-2] + b"X-Drip: ",
    "bodies": UPLOAD + b"Content-Length: 1000000\r\n\r\n",
    "chunks": UPLOAD + b"Transfer-Encoding: chunked\r\n\r\nfffff\r\n",
    "chunk sizes": UPLOAD + b"Transfer-Encoding: chunked\r\n\r\n1;x=",
}


@pytest.mark.parametrize("begin", DRIBBLES.values(), ids=DRIBBLES)
def test_a_crowd_that_drips_is_turned_out(fault: Callable[..., FaultyProgram], begin: bytes) -> None:
    """A hundred slowloris at once: every byte is no new grace."""
    server = fault(header_timeout=0.5, body_timeout=0.5)
    crowd = [connect(server.port) for _ in range(100)]
    for connection in crowd:
        connection.sendall(begin)
    left = list(crowd)
    deadline = time.monotonic() + LIMIT
    while left:
        assert time.monotonic() < deadline, f"{len(left)} are still connected"
        server.check_bystander()
        select.select(left, [], [], 0.05)
        for connection in left[:]:
            try:
                if ended(connection):
                    left.remove(connection)
                    continue
                connection.send(b"x")
            except (BrokenPipeError, ConnectionResetError):
                left.remove(connection)
    for connection in crowd:
        connection.close()


def test_dribbled_frames_of_a_crowd_arrive(fault: Callable[..., FaultyProgram]) -> None:
    """Slow is not hostile: without a timeout of its own a message may take as long as it wants."""
    server = fault(header_timeout=0.2, body_timeout=0.2, handshake_timeout=0.2)
    crowd = [RawClient(server.port) for _ in range(50)]
    frame = build_frame(TEXT, "dribbled é".encode())
    for index in range(len(frame)):
        for raw in crowd:
            raw.send_bytes(frame[index : index + 1])
        server.check_bystander()
    for raw in crowd:
        assert raw.read_message() == "dribbled é"
        raw.reset()


# Floods


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("say", [b"", b"\x16", b"\x16\x03\x01\x02\x00\x01"], ids=["nothing", "a byte", "six bytes"])
def test_a_flood_of_connections_that_never_speak(
    fault: Callable[..., FaultyProgram], certificate: dict[str, object], tls: bool, say: bytes
) -> None:
    allow_descriptors(2000)
    settings = certificate if tls else {}
    server = fault(handshake_timeout=0.5, header_timeout=0.5, **settings)
    port = server.tls_port if tls else server.port
    flood = []
    try:
        for number in range(500):
            flood.append(connect(port))
            if say:
                flood[-1].sendall(say)
            if number % 50 == 0:
                server.check_bystander()
        left = list(flood)

        def none_left() -> bool:
            left[:] = [connection for connection in left if not ended(connection)]
            return not left

        wait_until(none_left, what="the server ends them all")
    finally:
        for connection in flood:
            connection.close()


def test_garbage_on_the_tls_port(fault: Callable[..., FaultyProgram], certificate: dict[str, object]) -> None:
    server = fault(**certificate)
    for garbage in (HANDSHAKE, bytes(1000), b"\x16\x03\x01\xff\xff" + bytes(70_000), b"\x80\x2e\x01\x00\x02" * 20):
        for _ in range(20):
            with contextlib.closing(connect(server.tls_port)) as connection:
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    connection.sendall(garbage)
                wait_until(lambda connection=connection: ended(connection))  # type: ignore[misc]


# stop() in the middle of it


@pytest.mark.parametrize(
    "begun",
    [
        [(False, b""), (True, b"")],
        [(False, HANDSHAKE[:30]), (False, HANDSHAKE[:-1])],
        [(False, UPLOAD), (False, UPLOAD + b"Content-Length: 1000000\r\n\r\n" + bytes(1000))],
        [(True, b"\x16\x03\x01\x02\x00\x01")],
        [(False, HANDSHAKE + FRAME[:1000])],
    ],
    ids=["silence", "handshakes", "uploads", "TLS handshakes", "frames"],
)
def test_the_server_stops_while_many_are_half_way(
    fault: Callable[..., FaultyProgram], certificate: dict[str, object], begun: list[tuple[bool, bytes]]
) -> None:
    """They do not keep it longer than its timeout, and nothing is left of them."""
    server = fault(**certificate)
    connections = []
    for _ in range(50):
        for tls, data in begun:
            connection = connect(server.tls_port if tls else server.port)
            connection.sendall(data)
            connections.append(connection)
    server.check_bystander()
    assert server.stop_program() == 0
    assert "Traceback" not in server.output
    for connection in connections:
        wait_until(lambda connection=connection: ended(connection))  # type: ignore[misc]
        connection.close()


@pytest.mark.parametrize("what", ["connections", "handshakes", "messages", "uploads"])
def test_the_server_stops_in_the_middle_of_a_flood(fault: Callable[..., FaultyProgram], what: str) -> None:
    server = fault()
    enough = threading.Event()
    done: list[int] = []

    def flood() -> None:
        count = 0
        while not enough.is_set():
            try:
                with contextlib.closing(connect(server.port)) as connection:
                    if what == "handshakes":
                        connection.sendall(HANDSHAKE)
                        connection.recv(1)
                    elif what == "messages":
                        connection.sendall(HANDSHAKE + build_frame(TEXT, b"x" * 200) * 200)
                        connection.recv(1)
                    elif what == "uploads":
                        connection.sendall(UPLOAD + b"Content-Length: 100000\r\n\r\n" + bytes(100_000))
                        connection.recv(1)
                    count += 1
                    done.append(1)
            except ConnectionRefusedError:
                break
            except (ConnectionError, TimeoutError):
                continue

    attackers = [Background(flood) for _ in range(4)]
    try:
        wait_until(lambda: len(done) > 100, what="the flood is on")
        assert server.stop_program() == 0
        assert "Traceback" not in server.output
        for attacker in attackers:
            attacker.result()  # the port refuses: it has stopped for good
    finally:
        enough.set()


def test_starting_again_after_a_flood_serves_on() -> None:
    """The same server object, stopped while five hundred connect, on the same port."""
    server = CountingServer()
    allow_descriptors(4000)
    server.start(0)
    port = server.port
    assert port is not None
    flood: list[socket.socket] = []
    try:
        for _ in range(3):
            flood += [connect(port) for _ in range(200)]
            for connection in flood[-100:]:
                connection.sendall(HANDSHAKE + FRAME[:100])
            tick_until(lambda: len(server.channels) == 100, server)
            server.stop(0.2)
            assert not server.is_running
            assert not server.channels
            assert server.opened == server.closed
            for connection in flood:
                wait_until(lambda connection=connection: ended(connection))  # type: ignore[misc]
            server.start(port)
        with RawClient(port) as raw:
            raw.send_text("here")
            tick_until(raw.readable, server)
            assert raw.read_message() == "here"
    finally:
        for connection in flood:
            connection.close()
        server.stop(0)
