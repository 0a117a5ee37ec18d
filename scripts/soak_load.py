"""The load of soak.py: clients that keep the rules, HTTP requests, and peers that break the rules.

Each thing here is the load of one thread, and writes down in `Counts` what it has seen. What a server may not do is put
into words, in `Counts.unexpected`.
"""

from __future__ import annotations

import base64
import collections
import http.client
import os
import random
import select
import socket
import ssl
import struct
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from pyhv import HvWebSocketClient

HOST = "127.0.0.1"

WINDOW = 8  # messages that a client has under way
PACE = 0.02  # seconds between two messages of a client
LIMIT = 20.0  # seconds for whatever the server has to do
#: From this size on a message is compressed, where that was agreed on.
COMPRESSED = 128
#: The end of the names of what is counted over TLS apart.
OVER_TLS = ", over TLS"


@dataclass(frozen=True)
class Target:
    """The server, as the load sees it."""

    port: int
    tls_port: int
    ca: Path  # the authority that its certificate is from
    header_timeout: float
    #: Set when the run is over.
    over: threading.Event = field(default_factory=threading.Event)

    def context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.ca))

    def connect(self, context: ssl.SSLContext | None, receive_buffer: int | None = None) -> socket.socket:
        """A connection, over TLS with a context."""
        peer = socket.socket()
        try:
            peer.settimeout(LIMIT)
            if receive_buffer is not None:
                # Before connecting: shrunk later, what the server has sent lies beyond the window. Linux then throws
                # away all that comes, resets too, until its own next probe, and that may take half a minute.
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            peer.connect((HOST, self.port if context is None else self.tls_port))
            return peer if context is None else context.wrap_socket(peer, server_hostname=HOST)
        except BaseException:
            peer.close()
            raise


@dataclass
class Counts:
    """What the load has seen. Each is written by one thread only, or under its lock."""

    sent: int = 0
    compressed: int = 0  # of those sent: over a connection with permessage-deflate, and large enough for it
    secure: int = 0  # of those sent: over TLS
    echoed: int = 0
    broadcasts: int = 0
    sessions: int = 0
    lost: int = 0
    doubled: int = 0
    corrupt: int = 0
    http: collections.Counter[str] = field(default_factory=collections.Counter)
    #: Requests asked again on a new connection, because the one used before was closed while it was idle.
    retried: int = 0
    windows_shut: int = 0
    mischief: collections.Counter[str] = field(default_factory=collections.Counter)
    idlers: collections.Counter[str] = field(default_factory=collections.Counter)
    unexpected: list[str] = field(default_factory=list)  # what must not happen, in words
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, where: collections.Counter[str], what: str) -> None:
        with self.lock:
            where[what] += 1


def broadcast_text(number: int) -> str:
    """The server's broadcast of that number; half of them are large enough to be compressed."""
    return f"b {number} " + "all of you, " * (number % 2 * 40)


# Well-behaved clients


class Client(HvWebSocketClient):
    """Sends numbered messages, and checks that each comes back once, in order and whole."""

    def __init__(self, target: Target, number: int, counts: Counts, dice: random.Random) -> None:
        self.is_secure = number % 2 == 1
        url = f"wss://{HOST}:{target.tls_port}/good" if self.is_secure else f"ws://{HOST}:{target.port}/good"
        self.compression = (None, "shared", "context")[number % 3]
        options: dict[str, Any] = {"compression": self.compression, "ping_interval": 5.0}
        if self.is_secure:
            options["ca_file"] = target.ca
        self.url, self.options = url, options
        self.counts = counts
        self.dice = dice
        self.under_way: collections.deque[str | bytes] = collections.deque()
        self.done: collections.deque[str | bytes] = collections.deque(maxlen=4 * WINDOW)
        self.number = 0
        self.heard: int | None = None  # the last broadcast of this session
        self.next_send = self.until = 0.0
        self.leaving = False

    def begin(self) -> None:
        self.counts.sessions += 1
        self.under_way.clear()
        self.done.clear()
        self.heard, self.leaving = None, False
        self.until = time.monotonic() + self.dice.uniform(2, 20)
        self.connect(self.url, **self.options)

    def build(self) -> str | bytes:
        """A message: text or binary, of a size, and of data that can be compressed well, somewhat or not at all."""
        dice = self.dice
        size = dice.choice((0, 0, 10, 100, 1000, 1000, 20_000, 100_000 if dice.random() < 0.1 else 60))
        kind = dice.randrange(4)
        if kind == 0:
            return b"e %d " % self.number + dice.randbytes(size)
        text = f"e {self.number} "
        if kind == 1:
            text += "ä" * (size // 2)
        else:
            text += f'{{"x": {dice.random()}, "y": {dice.random()}, "who": "{self.number}"}}, ' * (size // 60)
        return text.encode() if kind == 3 else text

    def step(self, now: float, ending: bool) -> None:
        """Sends if it is time to; leaves when the session is over and everything has come back."""
        if not self.is_connected or self.leaving:
            return
        if ending or now >= self.until:
            if not self.under_way:
                self.leaving = True
                if self.dice.random() < 0.5:
                    self.close(1000, "over")
                else:
                    self.send("bye")
        elif now >= self.next_send and len(self.under_way) < WINDOW:
            self.next_send = now + PACE
            self.number += 1
            message = self.build()
            if self.send(message):
                self.under_way.append(message)
                self.counts.sent += 1
                self.counts.secure += self.is_secure
                size = len(message if isinstance(message, bytes) else message.encode())
                self.counts.compressed += self.is_compressed and size >= COMPRESSED

    def on_open(self) -> None:
        if self.is_compressed != (self.compression is not None):
            self.counts.unexpected.append(f"compression={self.compression!r} was answered with {self.is_compressed}")

    def on_message(self, msg: str | bytes) -> None:
        if isinstance(msg, str) and msg.startswith("b "):
            number = int(msg.split(" ")[1])
            self.counts.broadcasts += 1
            self.counts.corrupt += msg != broadcast_text(number)
            if self.heard is not None and number != self.heard + 1:
                if number <= self.heard:
                    self.counts.doubled += 1
                else:
                    self.counts.lost += number - self.heard - 1
            self.heard = number
        elif self.under_way and msg == self.under_way[0]:
            self.counts.echoed += 1
            self.done.append(self.under_way.popleft())
        elif msg in self.under_way:
            while self.under_way.popleft() != msg:
                self.counts.lost += 1
        elif msg in self.done:
            self.counts.doubled += 1
        else:
            self.counts.corrupt += 1

    def on_close(self) -> None:
        if not self.leaving or self.close_code != 1000:
            said = f"a client was closed with {self.close_code} {self.close_reason!r} {self.error}"
            self.counts.unexpected.append(said)
        self.counts.lost += len(self.under_way)


# HTTP

#: How a connection fails that the other side has closed.
ENDED = (ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError)


class UnansweredError(Exception):
    """The connection ended before any byte of an answer."""


class Answer(http.client.HTTPResponse):
    """Tells an answer that did not begin from one that broke off."""

    def begin(self) -> None:
        try:
            first = self.fp.peek(1)
        except ENDED as error:
            raise UnansweredError(repr(error)) from error
        if not first:
            raise UnansweredError("closed")
        super().begin()


class Requester:
    """One connection after the other, each used for several requests."""

    def __init__(self, target: Target, secure: bool, counts: Counts, dice: random.Random) -> None:
        self.target = target
        self.counts = counts
        self.dice = dice
        self.name = "https" if secure else "http"
        if secure:
            context = target.context()
            self.connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                HOST, target.tls_port, timeout=LIMIT, context=context
            )
        else:
            self.connection = http.client.HTTPConnection(HOST, target.port, timeout=LIMIT)
        self.connection.response_class = Answer

    def talk(self, pause: Callable[[], float]) -> None:
        """A few requests on one connection, `pause()` seconds between them; every answer must be right."""
        what, since = "connecting", time.monotonic()
        try:
            for number in range(self.dice.randrange(2, 6)):
                if number and self.target.over.wait(pause()):
                    break
                method, path = self.dice.choice((("GET", "/ping"), ("POST", "/echo"), ("GET", "/nowhere")))
                body = self.dice.randbytes(self.dice.choice((0, 10, 1000, 100_000)))
                what = f"{self.name}: {method} {path}, {time.monotonic() - since:.2f} s after the answer before"
                self.ask(method, path, body)
                since = time.monotonic()
        except (OSError, http.client.HTTPException, UnansweredError) as error:
            # An answer that was too late for a machine without time for it, or a fault.
            self.counts.unexpected.append(f"{what}, failed: {error!r}")
        finally:
            self.connection.close()

    def ask(self, method: str, path: str, body: bytes) -> None:
        """Asks, and checks the answer.

        A server closes a connection that has been idle for too long, and may do so while a request is on its way to it.
        RFC 9112 section 9.3.1 and RFC 9110 section 9.2.2 leave that to the client, which may ask again where asking
        twice is the same as asking once: as with all of these requests, the echo among them. Once, on a new
        connection, and only if the connection has served before and no byte of an answer has come.
        """
        reused = self.connection.sock is not None
        try:
            status, content = self.exchange(method, path, body)
        except UnansweredError:
            if not reused:
                raise
            self.connection.close()
            with self.counts.lock:
                self.counts.retried += 1
            status, content = self.exchange(method, path, body)
        expected = {"/ping": (200, b"pong"), "/echo": (200, body)}.get(path)
        if (status, content) != expected and not (expected is None and status == 404):
            said = f"{self.name}: {method} {path} was answered with {status} and {len(content)} bytes"
            self.counts.unexpected.append(said)
        self.counts.count(self.counts.http, self.name)

    def exchange(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        try:
            self.connection.request(method, path, body if method == "POST" else None)
        except ENDED:
            # The server has closed. If it has answered before, the answer can still be read.
            if self.connection.sock is None:
                raise
        answer = self.connection.getresponse()
        return answer.status, answer.read()


def ask(target: Target, counts: Counts, dice: random.Random) -> None:
    """Requests one right behind the other."""
    Requester(target, dice.random() < 0.5, counts, dice).talk(lambda: 0.0)


def ask_late(target: Target, counts: Counts, dice: random.Random) -> None:
    """Requests about as far apart as `header_timeout` allows: some find the connection closed."""
    pause = target.header_timeout
    Requester(target, dice.random() < 0.5, counts, dice).talk(lambda: dice.uniform(0.9 * pause, 1.1 * pause))


# Peers that do nothing


def kernel_sockets(port: int, peer: int | None = None) -> int:
    """Connections of a local port (to that one of a peer) that have not ended, open in a process or not."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    fields = [line.split() for line in lines]
    end = "" if peer is None else f":{peer:04X}"
    # 0A is LISTEN, 06 TIME_WAIT, which keeps nothing but its number.
    return sum(
        field[1].endswith(f":{port:04X}") and field[2].endswith(end) and field[3] not in ("0A", "06")
        for field in fields
    )


def hold_window_shut(target: Target, counts: Counts, dice: random.Random) -> None:
    """Opens a WebSocket that the server sends to as fast as it can, and reads nothing: the window goes to zero, and
    stays there until the server resets the connection. Not every reset fits through a window that is shut, so the
    server's end is looked at too.
    """
    context = target.context() if dice.random() < 0.5 else None
    try:
        with target.connect(context, receive_buffer=4096) as peer:
            peer.sendall(handshake("/flood"))
            here, there = peer.getsockname()[1], peer.getpeername()[1]
            poll = select.poll()
            poll.register(peer, 0)  # POLLERR and POLLHUP are always told
            deadline = time.monotonic() + LIMIT
            while not poll.poll(500) and kernel_sockets(there, here):
                if time.monotonic() > deadline:
                    counts.unexpected.append(f"a peer that reads nothing was still connected after {LIMIT:.0f} s")
                    return
            with counts.lock:
                counts.windows_shut += 1
    except OSError as error:
        counts.unexpected.append(f"a peer that reads nothing could not connect: {error!r}")


def idle_in_handshake(target: Target, counts: Counts, dice: random.Random) -> None:
    """Begins, and goes no further: the server ends it at header_timeout, body_timeout or handshake_timeout."""
    name = dice.choice(sorted(UNFINISHED))
    secure, begin = UNFINISHED[name]
    try:
        with target.connect(target.context() if secure else None) as peer:
            peer.sendall(begin)
            counts.count(counts.idlers, name) if ends(peer) else counts.unexpected.append(f"{name} was let be")
    except OSError as error:
        counts.unexpected.append(f"{name}: {error!r}")


def idle_in_tls(target: Target, counts: Counts, dice: random.Random) -> None:
    """The same with half of TLS's first message."""
    outgoing = ssl.MemoryBIO()
    tls = target.context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=HOST)
    try:
        tls.do_handshake()
    except ssl.SSLWantReadError:
        hello = outgoing.read()
    try:
        with socket.create_connection((HOST, target.tls_port), LIMIT) as peer:
            peer.sendall(hello[: dice.randrange(len(hello))])
            if ends(peer):
                counts.count(counts.idlers, "part of a TLS handshake" + OVER_TLS)
            else:
                counts.unexpected.append("part of a TLS handshake was let be")
    except OSError as error:
        counts.unexpected.append(f"part of a TLS handshake: {error!r}")


def idle(target: Target, counts: Counts, dice: random.Random) -> None:
    dice.choice((idle_in_handshake, idle_in_handshake, idle_in_tls))(target, counts, dice)


def ends(peer: socket.socket) -> bool:
    """Whether the server ends the connection in time."""
    try:
        read_to_end(peer)
    except TimeoutError:
        return False
    except ENDED:
        pass
    return True


# Peers that misbehave


def frame(first: int, payload: bytes = b"", *, masked: bool = True, length: int | None = None) -> bytes:
    """A frame's bytes: `first` has FIN, RSV and opcode; `length` is a length to claim instead."""
    claimed = len(payload) if length is None else length
    bit = 0x80 if masked else 0
    if claimed < 126:
        head = bytes([first, bit | claimed])
    elif claimed < 1 << 16:
        head = struct.pack("!BBH", first, bit | 126, claimed)
    else:
        head = struct.pack("!BBQ", first, bit | 127, claimed)
    # A key of zeros masks nothing.
    return head + (bytes(4) if masked else b"") + payload


def handshake(path: str = "/bad", *, deflate: bool = False) -> bytes:
    key = base64.b64encode(os.urandom(16)).decode()
    extension = "Sec-WebSocket-Extensions: permessage-deflate\r\n" if deflate else ""
    return (
        f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{extension}"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    ).encode()


def deflated(data: bytes) -> bytes:
    """A compressed message's payload."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    return (compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


#: What is begun and not gone on with: whether over TLS, and the bytes.
UNFINISHED: dict[str, tuple[bool, bytes]] = {
    "nothing at all": (False, b""),
    "nothing at all" + OVER_TLS: (True, b""),
    "part of a request": (False, b"GET / HTTP/1.1\r\nHo"),
    "part of a request" + OVER_TLS: (True, b"GET / HTTP/1.1\r\nHo"),
    "part of a WebSocket handshake": (False, handshake()[:-3]),
    "part of a WebSocket handshake" + OVER_TLS: (True, handshake()[:-3]),
    "part of a body": (False, b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n1"),
    "part of a body" + OVER_TLS: (True, b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n1"),
}
#: Behind a handshake, what ends the connection; the peer reads to the end.
VIOLATIONS: dict[str, bytes] = {
    "a reserved bit": frame(0xC2, b"x"),
    "a reserved opcode": frame(0x83, b"x"),
    "no mask": frame(0x81, b"x", masked=False),
    "a text that is not UTF-8": frame(0x81, b"\xff\xfe"),
    "a text cut inside a character": frame(0x81, b"\xe2\x82"),
    "a 63-bit length": frame(0x82, b"x" * 100, length=(1 << 63) - 1),
    "a message over the limit, in fragments": frame(0x02, bytes(900_000)) + frame(0x80, bytes(900_000)),
    "a continuation of nothing": frame(0x80, b"x"),
    "a ping in fragments": frame(0x09, b"x"),
    "a close code that may not be sent": frame(0x88, b"\x03\xed"),
    "a close frame": frame(0x88, b"\x03\xe8"),
    "an HTTP request instead of frames": b"GET / HTTP/1.1\r\n\r\n",
    "compressed data that is none": frame(0xC2, b"\xff" * 300),
    "compressed data that is cut off": frame(0xC1, deflated(b"x" * 10_000 + os.urandom(1000))[:-100]),
    "a little compressed data that becomes too much": frame(0xC2, deflated(bytes(50_000_000))),
}


def violate(peer: socket.socket, dice: random.Random) -> str:
    name = dice.choice(sorted(VIOLATIONS))
    good = frame(0x81, b"good") * dice.randrange(3)
    peer.sendall(handshake(deflate="compressed" in name) + good + VIOLATIONS[name])
    read_to_end(peer)
    return name


def reset_inside(peer: socket.socket, dice: random.Random) -> str:
    whole = handshake() + frame(0x81, b"m" * 1000) * 3 + frame(0x82, bytes(200_000))
    peer.sendall(whole[: dice.randrange(1, len(whole))])
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return "a reset anywhere"


def leave_inside(peer: socket.socket, dice: random.Random) -> str:
    whole = handshake() + frame(0x01, b"m" * 1000) + frame(0x89, b"ping")
    peer.sendall(whole[: dice.randrange(1, len(whole))])
    if dice.random() < 0.5:
        peer.shutdown(socket.SHUT_WR)
    return "an end anywhere"


def noise(peer: socket.socket, dice: random.Random) -> str:
    peer.sendall((handshake() if dice.random() < 0.5 else b"") + dice.randbytes(dice.randrange(1, 5000)))
    peer.shutdown(socket.SHUT_WR)
    read_to_end(peer)
    return "random bytes"


def dribble(peer: socket.socket, dice: random.Random) -> str:
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in handshake() + frame(0x81, b"slow") + frame(0x88, b"\x03\xe8"):
        peer.sendall(bytes([byte]))
    read_to_end(peer)
    return "byte by byte"


def flood_pings(peer: socket.socket, dice: random.Random) -> str:
    peer.sendall(handshake() + frame(0x89, bytes(125)) * 2000)
    return "a flood of pings, pongs unread"


def never_read(peer: socket.socket, dice: random.Random) -> str:
    """Asks for more echoes than `max_buffered` and the sockets' buffers hold: is closed with 1008."""
    peer.sendall(handshake() + frame(0x82, bytes(500_000)) * 20)
    return "echoes never read"


def big_head(peer: socket.socket, dice: random.Random) -> str:
    peer.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X-Y: zzzzzzzzzz\r\n" * dice.choice((90, 5000)) + b"\r\n")
    peer.shutdown(socket.SHUT_WR)
    read_to_end(peer)
    return "a large head"


MISCHIEF: Sequence[Callable[[socket.socket, random.Random], str]] = (
    *(violate,) * 5,
    *(reset_inside,) * 3,
    *(leave_inside,) * 2,
    noise,
    dribble,
    flood_pings,
    never_read,
    big_head,
)


def read_to_end(peer: socket.socket) -> None:
    while peer.recv(1 << 16):
        pass


def misbehave(target: Target, counts: Counts, dice: random.Random) -> None:
    """One peer that breaks a rule, perhaps over TLS. The server must end the connection in time, or be left."""
    secure = dice.random() < 0.3
    where = OVER_TLS if secure else ""
    mischief = dice.choice(MISCHIEF)
    receive_buffer = 4096 if mischief is never_read else None
    try:
        with target.connect(target.context() if secure else None, receive_buffer) as peer:
            try:
                counts.count(counts.mischief, mischief(peer, dice) + where)
            except TimeoutError:
                counts.unexpected.append(f"the server kept a peer for {LIMIT:.0f} s: {mischief.__name__}{where}")
            except OSError:  # reset by the server, in the middle of the mischief
                counts.count(counts.mischief, "cut short by the server" + where)
    except OSError as error:
        counts.unexpected.append(f"connecting failed: {error!r}")


def mistake_the_port(target: Target, counts: Counts, dice: random.Random) -> None:
    """Speaks anything but TLS where TLS is spoken."""
    begin = dice.choice(
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", handshake(), dice.randbytes(500), b"\x16\x03\x01\xff\xff")
    )
    try:
        with socket.create_connection((HOST, target.tls_port), LIMIT) as peer:
            peer.sendall(begin)
            peer.shutdown(socket.SHUT_WR)
            if ends(peer):
                counts.count(counts.mischief, "no TLS on the port for TLS")
            else:
                counts.unexpected.append(f"no TLS on the port for TLS was put up with for {LIMIT:.0f} s")
    except OSError as error:
        counts.unexpected.append(f"connecting to the port for TLS failed: {error!r}")


Job: TypeAlias = Callable[[Target, Counts, random.Random], None]

#: What the load consists of, beside the clients: each a thread of its own, with the longest pause between two turns.
JOBS: Sequence[tuple[Job, float]] = (
    (ask, 0.2),
    (ask, 0.2),
    (ask_late, 0.2),
    (hold_window_shut, 0.0),
    (idle, 0.2),
    (idle, 0.2),
    (misbehave, 0.05),
    (misbehave, 0.05),
    (misbehave, 0.05),
    (mistake_the_port, 0.5),
)
