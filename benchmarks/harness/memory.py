"""Memory of an idle connection: growth of the server's resident memory over many of them."""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack

from harness.process import Helper, HelperError, resident_bytes

#: Opened and used before the baseline, so that what a server allocates once is not counted.
WARM_CONNECTIONS = 10
#: One message of this length goes through each connection for the second figure.
MESSAGE = b"x" * 8192
SETTLE_LIMIT = 8.0
SETTLE_STEP = 0.25
KEY, ACCEPT = b"dGhlIHNhbXBsZSBub25jZQ==", b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # the pair of RFC 6455 section 1.3
REQUEST = (
    b"GET /chat HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: " + KEY + b"\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def open_connection(port: int) -> socket.socket:
    """A WebSocket connection as a bare socket, its handshake done."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=20)
    connection.sendall(REQUEST)
    head = b""
    while b"\r\n\r\n" not in head:
        received = connection.recv(4096)
        if not received:
            raise HelperError("connection closed during the handshake")
        head += received
    if not head.startswith(b"HTTP/1.1 101 ") or ACCEPT not in head:
        raise HelperError(f"handshake refused: {head.splitlines()[0]!r}")
    return connection


def echo_once(connection: socket.socket) -> None:
    """Sends one message (masked with zeros, which is a mask too) and reads its echo."""
    length = len(MESSAGE).to_bytes(2, "big")
    connection.sendall(b"\x81\xfe" + length + bytes(4) + MESSAGE)
    echo = b""
    while len(echo) < 4 + len(MESSAGE):
        received = connection.recv(65536)
        if not received:
            raise HelperError("connection closed instead of an echo")
        echo += received
    if echo != b"\x81\x7e" + length + MESSAGE:
        raise HelperError("the echo differs from the message")


def settled(server: Helper) -> int:
    """Resident memory once it has stopped changing, or after a while of changing."""
    deadline = time.monotonic() + SETTLE_LIMIT
    before = resident_bytes(server.process.pid)
    while True:
        time.sleep(SETTLE_STEP)
        now = resident_bytes(server.process.pid)
        if now == before or time.monotonic() > deadline:
            return now
        before = now


def measure(server: Helper, port: int, connections: int) -> dict[str, float]:
    """Bytes per connection after the handshake, and after one message of 8 KiB was echoed on each.

    Memory that the kernel keeps for sockets is not in it.
    """
    with ExitStack() as opened:
        for _ in range(WARM_CONNECTIONS):
            echo_once(opened.enter_context(open_connection(port)))
        base = settled(server)
        began = time.monotonic()
        idle = [opened.enter_context(open_connection(port)) for _ in range(connections)]
        connect_s = time.monotonic() - began
        after_handshake = settled(server)
        for connection in idle:
            echo_once(connection)
        after_message = settled(server)
    return {
        "connections": connections,
        "base_bytes": base,
        "idle_bytes": round((after_handshake - base) / connections),
        "used_bytes": round((after_message - base) / connections),
        "connect_s": round(connect_s, 3),
    }
