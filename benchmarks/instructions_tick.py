"""The work of the program's thread for `instructions.py`, which runs this under callgrind and counts what happens
between two marks. By itself it counts nothing: it prints the rows, and how many items each has.

Only one tick at a time lies between two marks, and when it begins, the I/O thread has read all that was sent to it and
has nothing left to do: what the two threads do at the same time would differ from run to run. A tick that did not find
all is left out of the count.
"""

from __future__ import annotations

import base64
import gc
import hashlib
import os
import socket
import struct
import sys
from collections.abc import Callable

import pyhv

HOST = "127.0.0.1"
KEY = "dGhlIHNhbXBsZSBub25jZQ=="
GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 section 1.3
LIMIT = 60.0  # seconds for one wait; under callgrind all is fifty times as slow

#: Ticks that are not counted: arenas and lists grow to their size in them.
WARM_UP = 4
#: Ticks that are counted.
ROUNDS = 5
#: A thread that is slow to wake makes a tick that does not find all. So many are unheard of.
TRIES = 50

CONNECTIONS = 10
MESSAGES = 1000
REQUESTS = 100
BROADCASTS = 100
EMPTY_TICKS = 1000

#: libc's getppid, which nothing else calls: there callgrind writes down what it has counted, and begins anew.
mark = os.getppid


class Ignoring(pyhv.HvWebServer):
    """Has a callback for messages, which does nothing."""

    def on_ws_message(self, channel: pyhv.WebSocketChannel, msg: str | bytes) -> None:
        """The least that a callback can be."""


class Echoing(pyhv.HvWebServer):
    """Sends back what it gets."""

    def on_ws_message(self, channel: pyhv.WebSocketChannel, msg: str | bytes) -> None:
        """One message."""
        channel.send(msg)


class Broadcasting(pyhv.HvWebServer):
    """Sends to all what it has to tell, once a tick."""

    times = 0

    def on_tick(self) -> None:
        """As a game that tells its state, but more often."""
        for _ in range(self.times):
            self.broadcast(STATE)


class Answering(pyhv.HvWebServer):
    """One route, one handler."""

    def on_init(self) -> None:
        """Before the start."""
        self.get("/ping", lambda req, resp: resp.text("pong"))


class IgnoringClient(pyhv.HvWebSocketClient):
    """Has a callback for messages, which does nothing."""

    def on_message(self, msg: str | bytes) -> None:
        """The least that a callback can be."""


class EchoingClient(pyhv.HvWebSocketClient):
    """Sends back what it gets."""

    def on_message(self, msg: str | bytes) -> None:
        """One message."""
        self.send(msg)


STATE = "x" * 200


def frame(size: int, masked: bool, opcode: int = 0x1) -> bytes:
    """A frame of `size` bytes; its mask is of zeros, since the I/O thread is not counted."""
    mask_bit = 0x80 if masked else 0
    length = bytes([mask_bit | size]) if size < 126 else bytes([mask_bit | 126]) + struct.pack(">H", size)
    return bytes([0x80 | opcode]) + length + bytes(4 if masked else 0) + b"x" * size


def read(peer: socket.socket, count: int) -> bytes:
    """Exactly so many bytes."""
    data = b""
    while len(data) < count:
        piece = peer.recv(min(count - len(data), 1 << 20))
        if not piece:
            raise ConnectionError(f"the connection ended after {len(data)} of {count} bytes")
        data += piece
    return data


def read_head(peer: socket.socket) -> bytes:
    """The head of a request or response, and not a byte more."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += read(peer, 1)
    return head


def plain(server: pyhv.HvWebServer) -> socket.socket:
    """A connection that has sent nothing yet."""
    return socket.create_connection((HOST, server.port or 0), LIMIT)


def websocket(server: pyhv.HvWebServer) -> socket.socket:
    """A WebSocket by hand."""
    peer = plain(server)
    request = f"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {KEY}"
    peer.sendall(f"{request}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode())
    assert read_head(peer).startswith(b"HTTP/1.1 101 ")
    return peer


class Probe:
    """Tells when the I/O thread has read everything that was sent before."""

    def __init__(self, server: pyhv.HvWebServer) -> None:
        self.peer = plain(server)

    def settle(self) -> None:
        """Asks for what is not there. The I/O thread says so by itself, when it has read what arrived earlier."""
        for _ in range(2):
            self.peer.sendall(b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n")
            head = read_head(self.peer)
            assert head.startswith(b"HTTP/1.1 404 ")
            lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            read(self.peer, int(lengths[0].partition(b":")[2]))


def count_ticks(
    row: str, items: int, fill: Callable[[], None], tick: Callable[[], int], events: int, drain: Callable[[], None]
) -> None:
    """Counts ticks that each run `events` callbacks for what `fill` sent; `drain` reads what came of them."""
    counted = 0
    for _ in range(TRIES):
        fill()
        mark()
        ran = tick()
        mark()
        complete = ran == events
        counted += complete
        print(items if complete and counted > WARM_UP else 0, row)
        while ran < events:
            ran += tick()
        drain()
        if counted == WARM_UP + ROUNDS:
            return
    sys.exit(f"{row}: in {TRIES} rounds only {counted} ticks found all that had been sent")


def messages(row: str, server: pyhv.HvWebServer, size: int, count: int, echoes: bool) -> None:
    """A server's tick of `count` messages, over all connections."""
    server.start(0)
    peers = [websocket(server) for _ in range(CONNECTIONS)]
    probe = Probe(server)
    opened = 0
    while opened < CONNECTIONS:
        opened += server.tick(LIMIT)
    each = count // CONNECTIONS
    burst = frame(size, masked=True) * each
    answer = len(frame(size, masked=False)) * each

    def fill() -> None:
        for peer in peers:
            peer.sendall(burst)
        probe.settle()

    def drain() -> None:
        if echoes:
            for peer in peers:
                read(peer, answer)
        probe.settle()

    count_ticks(row, count, fill, server.tick, count, drain)
    server.stop(0)


def broadcasts() -> None:
    """A tick whose `on_tick` broadcasts."""
    server = Broadcasting()
    server.start(0)
    peers = [websocket(server) for _ in range(CONNECTIONS)]
    probe = Probe(server)
    opened = 0
    while opened < CONNECTIONS:
        opened += server.tick(LIMIT)
    server.times = BROADCASTS
    expected = len(frame(len(STATE), masked=False)) * BROADCASTS

    def drain() -> None:
        for peer in peers:
            read(peer, expected)
        probe.settle()

    count_ticks("broadcast of 200 B to 10 channels", BROADCASTS, probe.settle, server.tick, 0, drain)
    server.stop(0)


def requests() -> None:
    """A tick of requests, each on a connection of its own."""
    server = Answering()
    server.start(0)
    peers = [plain(server) for _ in range(REQUESTS)]
    probe = Probe(server)

    def fill() -> None:
        for peer in peers:
            peer.sendall(b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n")
        probe.settle()

    def drain() -> None:
        for peer in peers:
            read_head(peer)
            assert read(peer, 4) == b"pong"
        probe.settle()

    count_ticks("request answered with text", REQUESTS, fill, server.tick, REQUESTS, drain)
    server.stop(0)


def client_messages(row: str, client: pyhv.HvWebSocketClient, echoes: bool) -> None:
    """A client's tick; the server is a socket."""
    with socket.create_server((HOST, 0)) as listener:
        client.connect(f"ws://{HOST}:{listener.getsockname()[1]}/")
        peer, _ = listener.accept()
    peer.settimeout(LIMIT)
    head = read_head(peer).decode("latin-1")
    (key,) = (
        line.partition(":")[2].strip() for line in head.split("\r\n") if line.lower().startswith("sec-websocket-key:")
    )
    accept = base64.b64encode(hashlib.sha1((key + GUID).encode()).digest()).decode()
    answer = f"HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
    peer.sendall(answer.encode())
    while not client.is_connected:
        client.tick(LIMIT)
    # Less than the I/O thread takes in one read, so that none is cut.
    parts = 4
    burst = frame(64, masked=False) * (MESSAGES // parts)
    echo = len(frame(64, masked=True)) * MESSAGES
    ping = frame(0, masked=False, opcode=0x9)
    pong = len(frame(0, masked=True))

    def settle() -> None:
        # The second pong is made after all that came with the first ping has been passed on.
        for _ in range(2):
            peer.sendall(ping)
            read(peer, pong)

    def fill() -> None:
        for _ in range(parts):
            peer.sendall(burst)
            settle()

    def drain() -> None:
        if echoes:
            read(peer, echo)
        settle()

    count_ticks(row, MESSAGES, fill, client.tick, MESSAGES, drain)
    peer.close()
    while client.close_code is None:
        client.tick(LIMIT)


def empty_ticks() -> None:
    """Ticks of a server that nobody talks to; the loop is counted with them."""
    server = Ignoring()
    server.start(0)
    probe = Probe(server)
    probe.settle()
    server.tick()
    tick = server.tick
    for _ in range(WARM_UP + ROUNDS):
        mark()
        for _ in range(EMPTY_TICKS):
            tick()
        mark()
        print(EMPTY_TICKS, "empty tick")
    server.stop(0)


def main() -> None:
    """All rows."""
    # When it runs depends on all that was allocated before, and it is not what a message costs.
    gc.collect()
    gc.disable()
    empty_ticks()
    messages("message of 64 B, ignored", Ignoring(), 64, MESSAGES, echoes=False)
    messages("message of 64 B, echoed", Echoing(), 64, MESSAGES, echoes=True)
    # Few enough that the I/O thread is woken once, behind the tick.
    messages("message of 16 KiB, echoed", Echoing(), 16 * 1024, CONNECTIONS, echoes=True)
    broadcasts()
    requests()
    client_messages("client: message of 64 B, ignored", IgnoringClient(), echoes=False)
    client_messages("client: message of 64 B, echoed", EchoingClient(), echoes=True)


if __name__ == "__main__":
    main()
