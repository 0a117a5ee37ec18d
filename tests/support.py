"""What the tests share: ticking until something is true, recording servers and clients, a WebSocket by hand.

Nothing here waits for a fixed time: every wait is for a condition, and at a limit fails with what it was for.
"""

from __future__ import annotations

import base64
import hashlib
import os
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypeVar

import pyhv
from pyhv import HvWebServer, HvWebSocketClient, WebSocketChannel, WsOpcode

T = TypeVar("T")
_R = TypeVar("_R", bound="RawPeer")

LIMIT = 20.0  # seconds until a condition counts as never coming true; generous, for loaded machines
_PAUSE = 0.001  # seconds between two looks at a condition when nothing happens

HOST = "127.0.0.1"
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 section 1.3


class Ticker(Protocol):
    """A server or a client."""

    def tick(self, timeout: float | None = 0.0) -> int: ...


def tick_until(condition: Callable[[], T], *tickers: Ticker, limit: float = LIMIT, what: str | None = None) -> T:
    """Ticks `tickers` in turn until `condition()` is true, and returns its value.

    Without tickers it only waits. Raises AssertionError after `limit` seconds, naming `what`.
    """
    deadline = time.monotonic() + limit
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= deadline:
            raise AssertionError(f"not within {limit} s: {what or _describe(condition)}, last {value!r}")
        if not sum(ticker.tick(_PAUSE) for ticker in tickers):
            time.sleep(_PAUSE)


def wait_until(condition: Callable[[], T], limit: float = LIMIT, what: str | None = None) -> T:
    """Looks at `condition()` until it is true, without ticking anything."""
    return tick_until(condition, limit=limit, what=what)


def _describe(condition: Callable[[], object]) -> str:
    code = getattr(condition, "__code__", None)
    return f"the condition at {Path(code.co_filename).name}:{code.co_firstlineno}" if code else repr(condition)


# Servers and clients that record


@dataclass(frozen=True)
class Call:
    """One callback that ran."""

    what: str
    who: Any  # the channel of a server's callback; None for a client's
    value: Any  # the message, URL or exception; for a close the code
    thread: int  # threading.get_ident() of where it ran


@dataclass
class Record:
    """The callbacks of one server or client, in order."""

    calls: list[Call] = field(default_factory=list)

    def add(self, what: str, who: Any = None, value: Any = None) -> None:
        self.calls.append(Call(what, who, value, threading.get_ident()))

    def values(self, what: str, who: Any = None) -> list[Any]:
        """The values of every call of this kind, of one channel if `who` is given."""
        return [call.value for call in self.calls if call.what == what and who in (None, call.who)]

    def count(self, what: str) -> int:
        return sum(call.what == what for call in self.calls)

    def of(self, who: Any) -> list[tuple[str, Any]]:
        """What happened to one channel, in order."""
        return [(call.what, call.value) for call in self.calls if call.who is who]

    @property
    def threads(self) -> set[int]:
        return {call.thread for call in self.calls}


class RecordingServer(HvWebServer):
    """Records open, message, close and error; does nothing else."""

    def __init__(self) -> None:
        self.record = Record()

    def on_ws_open(self, channel: WebSocketChannel, url: str) -> None:
        self.record.add("open", channel, url)

    def on_ws_message(self, channel: WebSocketChannel, msg: str | bytes) -> None:
        self.record.add("message", channel, msg)

    def on_ws_close(self, channel: WebSocketChannel) -> None:
        self.record.add("close", channel, channel.close_code)

    def on_error(self, exc: Exception) -> None:
        self.record.add("error", None, exc)


class EchoServer(RecordingServer):
    """Sends every message back as it came."""

    def on_ws_message(self, channel: WebSocketChannel, msg: str | bytes) -> None:
        super().on_ws_message(channel, msg)
        channel.send(msg)


class RecordingClient(HvWebSocketClient):
    """Records open, message, close and error; does nothing else."""

    def __init__(self) -> None:
        self.record = Record()

    @property
    def received(self) -> list[Any]:
        return self.record.values("message")

    def on_open(self) -> None:
        self.record.add("open")

    def on_message(self, msg: str | bytes) -> None:
        self.record.add("message", None, msg)

    def on_close(self) -> None:
        self.record.add("close", None, self.close_code)

    def on_error(self, exc: Exception) -> None:
        self.record.add("error", None, exc)


def url_of(server: HvWebServer, path: str = "/") -> str:
    return f"ws://{HOST}:{port_of(server)}{path}"


def port_of(server: HvWebServer) -> int:
    port = server.port
    assert port is not None, "the server does not run"
    return port


def connected(server: HvWebServer, *others: Ticker, path: str = "/", **options: Any) -> RecordingClient:
    """A recording client, open, of a server that this thread ticks."""
    client = RecordingClient()
    client.connect(url_of(server, path), **options)
    tick_until(lambda: client.is_connected or client.error, client, server, *others, what="the client opens")
    assert client.error is None, client.error
    return client


def only_channel(server: RecordingServer) -> WebSocketChannel:
    """The channel of the only connection, once `on_ws_open` has run."""
    channels = tick_until(lambda: server.channels, server, what="a channel opens")
    assert len(channels) == 1
    return channels[0]


class ServerThread:
    """A server that a thread of its own ticks until a flag is set, for clients that block."""

    def __init__(self, server: HvWebServer) -> None:
        self.server = server
        self.port = port_of(server)
        self.ident = 0  # of the thread
        self._stop = threading.Event()
        self._thread = Background(self._run, name="server-ticker")

    def _run(self) -> None:
        self.ident = threading.get_ident()
        while not self._stop.is_set():
            self.server.tick(0.02)
        # A peer that is still there reads no more and would not answer: no reason to wait long.
        self.server.stop(timeout=0.5)

    def stop(self) -> None:
        """Ends the thread, and checks that every callback ran on it."""
        self._stop.set()
        self._thread.result()
        record = getattr(self.server, "record", None)
        if isinstance(record, Record):
            assert record.threads <= {self.ident}, "a callback ran on another thread than the one that ticks"


@contextmanager
def serving(server: HvWebServer, **settings: Any) -> Iterator[ServerThread]:
    """Starts `server` on a port of the system's choice and ticks it on a thread of its own."""
    server.start(0, **settings)
    thread = ServerThread(server)
    try:
        yield thread
    finally:
        thread.stop()


# A WebSocket by hand


@dataclass(frozen=True)
class Frame:
    """One frame as it came over the wire."""

    fin: bool
    rsv: int
    opcode: int
    masked: bool
    payload: bytes

    @property
    def close_code(self) -> int | None:
        """Of a close frame: its code; None if it has none."""
        assert self.opcode == WsOpcode.CLOSE, self
        return struct.unpack("!H", self.payload[:2])[0] if self.payload else None

    @property
    def close_reason(self) -> str:
        assert self.opcode == WsOpcode.CLOSE, self
        return self.payload[2:].decode()


def build_frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    mask: bytes | None = b"\x37\xfa\x21\x3d",
    rsv: int = 0,
    length: int | None = None,
) -> bytes:
    """The bytes of a frame; masked as a client's unless `mask` is None. `length`: a length to claim instead."""
    claimed = len(payload) if length is None else length
    head = bytes([(0x80 if fin else 0) | rsv << 4 | opcode])
    flag = 0x80 if mask is not None else 0
    if claimed < 126:
        head += bytes([flag | claimed])
    elif claimed < 1 << 16:
        head += bytes([flag | 126]) + struct.pack("!H", claimed)
    else:
        head += bytes([flag | 127]) + struct.pack("!Q", claimed)
    if mask is None:
        return head + payload
    return head + mask + apply_mask(payload, mask)


def apply_mask(payload: bytes, mask: bytes) -> bytes:
    """Masks or unmasks (RFC 6455 section 5.3)."""
    if not payload:
        return b""
    repeated = mask * (len(payload) // 4 + 1)
    number = int.from_bytes(payload, "big") ^ int.from_bytes(repeated[: len(payload)], "big")
    return number.to_bytes(len(payload), "big")


def close_payload(code: int, reason: str = "") -> bytes:
    return struct.pack("!H", code) + reason.encode()


@dataclass(frozen=True)
class Answer:
    """An HTTP response."""

    status: int
    headers: dict[str, str]  # names in lower case
    body: bytes


class RawPeer:
    """A connected socket that speaks HTTP and WebSocket only as far as the test says.

    Reads block up to `timeout` seconds, then raise TimeoutError: where a tick has to happen first, make it happen
    before the read, or have the server tick on a thread of its own.
    """

    mask: bytes | None = None  # of the frames it sends

    def __init__(self, connection: socket.socket, timeout: float = LIMIT) -> None:
        self.socket = connection
        self.socket.settimeout(timeout)
        self.buffer = b""  # read and not yet used

    def __enter__(self: _R) -> _R:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.socket.close()

    @property
    def address(self) -> tuple[str, int]:
        """Our own address, which the server knows as `remote_address`."""
        host, port = self.socket.getsockname()
        return host, port

    # Bytes

    def send_bytes(self, data: bytes) -> None:
        self.socket.sendall(data)

    def read_exactly(self, count: int) -> bytes:
        while len(self.buffer) < count:
            data = self.socket.recv(1 << 20)
            if not data:
                raise EOFError(f"the connection ended after {len(self.buffer)} of {count} bytes")
            self.buffer += data
        data, self.buffer = self.buffer[:count], self.buffer[count:]
        return data

    def read_to_end(self) -> bytes:
        """Everything until the server ends the connection; a reset counts as an end."""
        try:
            while data := self.socket.recv(1 << 20):
                self.buffer += data
        except ConnectionResetError:
            pass
        data, self.buffer = self.buffer, b""
        return data

    def readable(self, timeout: float = 0.0) -> bool:
        """Whether there is something to read, the end included."""
        return bool(self.buffer) or bool(select.select([self.socket], [], [], timeout)[0])

    def reset(self) -> None:
        """Ends the connection without a word: the server sees ECONNRESET."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    # HTTP

    def request(
        self, method: str, target: str, headers: Iterable[tuple[str, str]] = (), body: bytes | None = None
    ) -> None:
        """Sends a request; Host and Content-Length are added."""
        lines = [f"{method} {target} HTTP/1.1", f"Host: {HOST}"]
        lines += [f"{name}: {value}" for name, value in headers]
        if body is not None:
            lines.append(f"Content-Length: {len(body)}")
        self.send_bytes("\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b""))

    def read_head(self) -> tuple[int, dict[str, str]]:
        """Status and headers of the next response."""
        first, headers = self.read_head_lines()
        return int(first.split()[1]), headers

    def read_head_lines(self) -> tuple[str, dict[str, str]]:
        """First line and headers of what comes next."""
        while b"\r\n\r\n" not in self.buffer:
            data = self.socket.recv(1 << 16)
            if not data:
                raise EOFError(f"the connection ended within a head: {self.buffer!r}")
            self.buffer += data
        head, self.buffer = self.buffer.split(b"\r\n\r\n", 1)
        first, *lines = head.decode("latin-1").split("\r\n")
        headers: dict[str, str] = {}
        for line in lines:
            name, value = line.split(":", 1)
            name = name.lower()
            headers[name] = f"{headers[name]}, {value.strip()}" if name in headers else value.strip()
        return first, headers

    def read_answer(self, *, to_head: bool = False) -> Answer:
        """The next response. `to_head`: it answers a HEAD request, so it has no body."""
        status, headers = self.read_head()
        if to_head or status in (101, 204, 304):
            return Answer(status, headers, b"")
        if "content-length" in headers:
            return Answer(status, headers, self.read_exactly(int(headers["content-length"])))
        if headers.get("transfer-encoding") == "chunked":
            return Answer(status, headers, self.read_chunks())
        return Answer(status, headers, self.read_to_end())

    def read_chunks(self) -> bytes:
        """A chunked body (RFC 9112 section 7.1)."""
        joined = b""
        while True:
            while b"\r\n" not in self.buffer:
                more = self.read_exactly(len(self.buffer) + 1)
                self.buffer = more + self.buffer
            size, self.buffer = self.buffer.split(b"\r\n", 1)
            joined += self.read_exactly(int(size, 16))
            assert self.read_exactly(2) == b"\r\n"
            if size == b"0":
                return joined

    # WebSocket

    def send_frame(
        self,
        opcode: int,
        payload: bytes = b"",
        *,
        fin: bool = True,
        rsv: int = 0,
        length: int | None = None,
    ) -> None:
        self.send_bytes(build_frame(opcode, payload, fin=fin, mask=self.mask, rsv=rsv, length=length))

    def send_text(self, text: str, *, fin: bool = True) -> None:
        self.send_frame(WsOpcode.TEXT, text.encode(), fin=fin)

    def send_binary(self, data: bytes, *, fin: bool = True) -> None:
        self.send_frame(WsOpcode.BINARY, data, fin=fin)

    def send_ping(self, data: bytes = b"") -> None:
        self.send_frame(WsOpcode.PING, data)

    def send_close(self, code: int | None = 1000, reason: str = "") -> None:
        self.send_frame(WsOpcode.CLOSE, b"" if code is None else close_payload(code, reason))

    def read_frame(self) -> Frame:
        """The next frame. Raises EOFError when the connection ends first."""
        first, second = self.read_exactly(2)
        length = second & 0x7F
        if length == 126:
            (length,) = struct.unpack("!H", self.read_exactly(2))
        elif length == 127:
            (length,) = struct.unpack("!Q", self.read_exactly(8))
        mask = self.read_exactly(4) if second & 0x80 else None
        payload = self.read_exactly(length)
        if mask is not None:
            payload = apply_mask(payload, mask)
        return Frame(bool(first & 0x80), first >> 4 & 7, first & 0x0F, mask is not None, payload)

    def read_message(self) -> str | bytes:
        """The next data message, fragments put together; pings and pongs are passed over."""
        parts: list[Frame] = []
        while True:
            frame = self.read_frame()
            if frame.opcode in (WsOpcode.PING, WsOpcode.PONG):
                continue
            assert frame.opcode != WsOpcode.CLOSE, f"closed with {frame.close_code} {frame.close_reason!r}"
            parts.append(frame)
            if frame.fin:
                data = b"".join(part.payload for part in parts)
                return data.decode() if parts[0].opcode == WsOpcode.TEXT else data

    def read_close(self) -> Frame:
        """The close frame, whatever comes before it."""
        while True:
            frame = self.read_frame()
            if frame.opcode == WsOpcode.CLOSE:
                return frame

    def answer_close(self) -> int | None:
        """Reads up to the close frame and answers it; returns its code."""
        frame = self.read_close()
        self.send_frame(WsOpcode.CLOSE, frame.payload)
        return frame.close_code

    def expect_end(self) -> None:
        """The server ends the connection, and sends nothing more."""
        rest = self.read_to_end()
        assert rest == b"", f"unexpected bytes before the end: {rest[:100]!r}"


class RawClient(RawPeer):
    """A client made of a socket; `upgrade=False` leaves it at the TCP connection."""

    mask = b"\x37\xfa\x21\x3d"

    def __init__(
        self,
        port: int,
        path: str = "/",
        headers: Iterable[tuple[str, str]] = (),
        *,
        upgrade: bool = True,
        timeout: float = LIMIT,
        receive_buffer: int | None = None,
    ) -> None:
        super().__init__(socket.socket(socket.AF_INET, socket.SOCK_STREAM), timeout)
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.answer: Answer | None = None  # to the handshake
        try:
            self.socket.connect((HOST, port))
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if upgrade:
                self.upgrade(path, headers)
        except BaseException:
            self.socket.close()
            raise

    def upgrade(self, path: str = "/", headers: Iterable[tuple[str, str]] = ()) -> None:
        """The opening handshake, which the server makes without a tick."""
        key = base64.b64encode(os.urandom(16))
        handshake = [
            ("Upgrade", "websocket"),
            ("Connection", "Upgrade"),
            ("Sec-WebSocket-Key", key.decode()),
            ("Sec-WebSocket-Version", "13"),
        ]
        self.request("GET", path, [*handshake, *headers])
        status, answered = self.read_head()
        self.answer = Answer(status, answered, b"")
        assert status == 101, f"the handshake was answered with {status} {answered} {self.buffer!r}"
        assert answered.get("sec-websocket-accept") == accept_key(key.decode())


def accept_key(key: str) -> str:
    """`Sec-WebSocket-Accept` for a `Sec-WebSocket-Key`."""
    return base64.b64encode(hashlib.sha1(key.encode() + GUID).digest()).decode()


@dataclass(frozen=True)
class Handshake:
    """What a client asked of a RawServer."""

    method: str
    target: str
    headers: dict[str, str]  # names in lower case


class RawServer:
    """A listening socket, for what no proper server would answer."""

    def __init__(self, *, receive_buffer: int | None = None) -> None:
        self.listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        if receive_buffer is not None:
            self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.listener.bind((HOST, 0))
        self.listener.listen()
        self.listener.settimeout(LIMIT)
        self.port: int = self.listener.getsockname()[1]

    def __enter__(self) -> RawServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.listener.close()

    @property
    def url(self) -> str:
        return f"ws://{HOST}:{self.port}/"

    def accept(self) -> RawPeer:
        """The next connection; pyHV's clients connect without a tick."""
        return RawPeer(self.listener.accept()[0])

    def accept_handshake(self) -> tuple[RawPeer, Handshake]:
        """The next connection and its request, not answered yet."""
        peer = self.accept()
        first, headers = peer.read_head_lines()
        method, target, _ = first.split(" ")
        return peer, Handshake(method, target, headers)

    def accept_websocket(self, headers: Iterable[tuple[str, str]] = (), behind: bytes = b"") -> RawPeer:
        """The next connection with its opening handshake done; `behind` is sent in one piece with it."""
        peer, handshake = self.accept_handshake()
        lines = [
            "HTTP/1.1 101 Switching Protocols",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Accept: {accept_key(handshake.headers['sec-websocket-key'])}",
            *(f"{name}: {value}" for name, value in headers),
        ]
        peer.send_bytes("\r\n".join([*lines, "", ""]).encode() + behind)
        return peer


def http(
    port: int,
    method: str,
    target: str,
    headers: Iterable[tuple[str, str]] = (),
    body: bytes | None = None,
) -> Answer:
    """One request on a connection of its own; blocks, so something else has to tick for a handler to run."""
    with RawClient(port, upgrade=False) as raw:
        raw.request(method, target, [("Connection", "close"), *headers], body)
        return raw.read_answer(to_head=method == "HEAD")


def ask(
    server: HvWebServer,
    method: str,
    target: str,
    headers: Iterable[tuple[str, str]] = (),
    body: bytes | None = None,
) -> Answer:
    """The same for a server that this thread ticks."""
    with RawClient(port_of(server), upgrade=False) as raw:
        raw.request(method, target, headers, body)
        tick_until(raw.readable, server, what=f"{method} {target} is answered")
        return raw.read_answer(to_head=method == "HEAD")


# Threads and processes


class Background:
    """Runs `function` on a thread, so that the test can tick meanwhile; `result()` has what it returned."""

    def __init__(self, function: Callable[[], Any], name: str = "background") -> None:
        pool = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._future: Future[Any] = pool.submit(function)
        pool.shutdown(wait=False)

    def done(self) -> bool:
        return self._future.done()

    def result(self, *tickers: Ticker, limit: float = LIMIT) -> Any:
        """Waits, ticking `tickers`, for the end; returns what the function returned or raises what it raised."""
        tick_until(self.done, *tickers, limit=limit, what="the background thread ends")
        return self._future.result()


def python_environment() -> dict[str, str]:
    """For child processes: this folder is importable, output is not buffered."""
    here = str(Path(__file__).parent)
    path = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": f"{here}{os.pathsep}{path}" if path else here, "PYTHONUNBUFFERED": "1"}


def run_python(
    code: str, *arguments: str, prefix: Sequence[str] = (), limit: float = 60.0
) -> subprocess.CompletedProcess[str]:
    """Runs `code` in a Python of its own, which is killed at the limit."""
    return subprocess.run(
        [*prefix, sys.executable, "-c", code, *arguments],
        env=python_environment(),
        capture_output=True,
        text=True,
        timeout=limit,
        check=False,
    )


@contextmanager
def python_process(code: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Starts `code` in a Python of its own with pipes; kills it, by its pid, if it outlives the block."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env=python_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


# Facts from /proc (Linux)


def thread_names(pid: int | str = "self") -> list[str]:
    """Names of the native threads of a process, sorted."""
    names = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            names.append((task / "comm").read_text().strip())
        except FileNotFoundError:  # it ended while we looked
            continue
    return sorted(names)


def open_descriptors(pid: int | str = "self") -> dict[int, str]:
    """Open descriptors of a process and what they are, without the one that this look itself needs."""
    found: dict[int, str] = {}
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found[int(entry.name)] = os.readlink(entry)
        except FileNotFoundError:
            continue
    return found


def sockets_and_wakes(pid: int | str = "self") -> int:
    """How many sockets and eventfds a process has open."""
    return sum(target.startswith(("socket:", "anon_inode:[eventfd")) for target in open_descriptors(pid).values())


def resident_bytes(pid: int | str = "self") -> int:
    """Resident set size of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"/proc/{pid}/status has no VmRSS")


__all__ = [
    "HOST",
    "LIMIT",
    "Answer",
    "Background",
    "Call",
    "EchoServer",
    "Frame",
    "Handshake",
    "RawClient",
    "RawPeer",
    "RawServer",
    "Record",
    "RecordingClient",
    "RecordingServer",
    "ServerThread",
    "Ticker",
    "accept_key",
    "apply_mask",
    "ask",
    "build_frame",
    "close_payload",
    "connected",
    "http",
    "only_channel",
    "open_descriptors",
    "port_of",
    "pyhv",
    "python_environment",
    "python_process",
    "resident_bytes",
    "run_python",
    "serving",
    "sockets_and_wakes",
    "thread_names",
    "tick_until",
    "url_of",
    "wait_until",
]
