"""Memory of a connection in each mode, as a Markdown table: python benchmarks/memory_modes.py [CONNECTIONS]

Every row is a server process of its own, with one I/O thread: its resident memory after `CONNECTIONS` connections have
been opened (and, where the row says so, a message has gone each way), less what it was before, divided by their number.
What the kernel keeps for sockets is not in it. It needs Linux, for /proc.
"""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import report
from harness.machine import allowed_files
from harness.memory import MESSAGE, WARM_CONNECTIONS, echo_once, open_connection, settled
from harness.process import Helper, HelperError
from pyhv import _native

#: In each mode, unless the command line says otherwise.
CONNECTIONS = 1000
PEER = Path(__file__).with_name("peers") / "pyhv_server.py"

#: The program under measurement: echoes, and says where it listens.
SERVER = """
import json, sys
sys.path.insert(0, sys.argv[1])
from pyhv_server import EchoServer
server = EchoServer()
server.start(0, **json.loads(sys.argv[2]))
print(server.port, server.tls_port or 0, flush=True)
while True:
    server.tick(None)
"""

#: 8 KiB of JSON as a game might send it; halves and better when compressed.
STATE = json.dumps([{"id": n, "x": n * 37 % 1000, "y": n * 91 % 1000, "name": f"player {n}"} for n in range(200)])[
    : len(MESSAGE)
].encode()
TAIL = b"\x00\x00\xff\xff"  # RFC 7692 section 7.2.1


@dataclass(frozen=True)
class Mode:
    """A row: what is measured, the server's settings, how a connection is made and used."""

    name: str
    settings: dict[str, Any]
    connect: Callable[[int, int], socket.socket]
    use: Callable[[socket.socket], None] | None = None


def _plain(port: int, _tls_port: int) -> socket.socket:
    return open_connection(port)


def _upgraded(connection: socket.socket, extensions: bytes = b"") -> bytes:
    """Makes the opening handshake on a connected socket; returns the head of the answer."""
    key = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
    connection.sendall(
        b"GET /chat HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        + key
        + extensions
        + b"\r\n"
    )
    head = b""
    while b"\r\n\r\n" not in head:
        received = connection.recv(4096)
        if not received:
            raise HelperError("connection closed during the handshake")
        head += received
    if not head.startswith(b"HTTP/1.1 101 "):
        raise HelperError(f"handshake refused: {head.splitlines()[0]!r}")
    return head


def _offering(port: int, _tls_port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=20)
    head = _upgraded(connection, b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n")
    if b"permessage-deflate" not in head:
        raise HelperError("the server does not compress")
    return connection


def _secure(_port: int, tls_port: int) -> socket.socket:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # the certificate is our own, made for this run
    connection = context.wrap_socket(socket.create_connection(("127.0.0.1", tls_port), timeout=20))
    _upgraded(connection)
    return connection


def _echo_compressed(connection: socket.socket, window_bits: int = 15) -> None:
    """Sends one compressed message (masked with zeros, which is a mask too) and reads its echo, compressed too."""
    deflate = zlib.compressobj(1, zlib.DEFLATED, -window_bits)
    payload = (deflate.compress(STATE) + deflate.flush(zlib.Z_SYNC_FLUSH)).removesuffix(TAIL)
    connection.sendall(b"\xc1\xfe" + len(payload).to_bytes(2, "big") + bytes(4) + payload)
    echo = b""
    while len(echo) < 4 or len(echo) < 4 + int.from_bytes(echo[2:4], "big"):
        received = connection.recv(65536)
        if not received:
            raise HelperError("connection closed instead of an echo")
        echo += received
    if echo[:2] != b"\xc1\x7e" or zlib.decompressobj(-15).decompress(echo[4:] + TAIL) != STATE:
        raise HelperError("the echo differs from the message, or is not compressed")


def modes(certfile: str, keyfile: str) -> list[Mode]:
    """The rows of the table."""
    shared, context = {"compression": "shared"}, {"compression": "context"}
    tls = {"tls_port": 0, "certfile": certfile, "keyfile": keyfile, "compression": None}
    return [
        Mode("plain, idle", {"compression": None}, _plain),
        Mode("plain, after a message of 8 KiB each way", {"compression": None}, _plain, echo_once),
        Mode('compression="shared", idle', shared, _offering),
        Mode('compression="shared", after a compressed message each way', shared, _offering, _echo_compressed),
        Mode('compression="context", idle', context, _offering),
        Mode('compression="context", after a compressed message each way', context, _offering, _echo_compressed),
        Mode(
            'compression="context", compression_window_bits=9, after the same',
            {**context, "compression_window_bits": 9},
            _offering,
            partial(_echo_compressed, window_bits=9),
        ),
        Mode("wss, idle", tls, _secure),
        Mode("wss, after a message of 8 KiB each way", tls, _secure, echo_once),
    ]


def measure(mode: Mode, connections: int) -> float:
    """KiB per connection."""
    command = [sys.executable, "-u", "-c", SERVER, str(PEER.parent), json.dumps(mode.settings)]
    core = max(os.sched_getaffinity(0))
    with Helper(command, core, stdout=subprocess.PIPE) as server, ExitStack() as opened:
        assert server.process.stdout is not None
        line = server.process.stdout.readline().split()
        if not line:
            raise HelperError(f"server ended: {server.complaint()}")
        port, tls_port = map(int, line)
        # What is allocated once is not counted: each warm connection does all that the row does.
        for _ in range(WARM_CONNECTIONS):
            connection = opened.enter_context(mode.connect(port, tls_port))
            if mode.use is not None:
                mode.use(connection)
        before = settled(server)
        for _ in range(connections):
            connection = opened.enter_context(mode.connect(port, tls_port))
            if mode.use is not None:
                mode.use(connection)
        return (settled(server) - before) / connections / 1024


def collect(connections: int) -> list[dict[str, Any]]:
    """Every mode as a row of a result, each told to whoever watches."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        _, certificate, key = _native.make_dev_certificates(["127.0.0.1"])
        certfile, keyfile = Path(folder, "cert.pem"), Path(folder, "key.pem")
        certfile.write_text(certificate)
        keyfile.write_text(key)
        for mode in modes(str(certfile), str(keyfile)):
            row: dict[str, Any] = {"repeat": 0, "case": mode.name, "peer": "pyhv", "disturbed": False}
            try:
                row["result"] = {"kib": round(measure(mode, connections), 1)}
            except (HelperError, OSError) as error:
                row["error"] = str(error)
            rows.append(row)
            said = f"{row['result']['kib']:.1f} KiB" if "result" in row else f"FAILED: {row['error']}"
            print(f"{mode.name}: {said}", file=sys.stderr, flush=True)
    return rows


def main() -> int:
    """Measures every mode and prints the table; 1 when one failed."""
    allowed_files()
    rows = collect(int(sys.argv[1]) if len(sys.argv) > 1 else CONNECTIONS)
    print(report.memory_modes_table(rows))
    return int(any("error" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
