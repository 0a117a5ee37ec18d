"""What a message costs the program's thread: python benchmarks/messages.py [--rounds 200] [--messages 1000] [--json]

A server ticks; a peer in the same process sends it bursts of 64-byte texts over plain sockets, before the tick.
Measured is the CPU time of the ticking thread inside `tick()`, per message: taking the batch, making the `str`,
calling `on_ws_message`, and with `echo` also `channel.send`. The I/O thread's share is not in it: `run.py` has that.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import time
from statistics import median

import pyhv

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
SIZE = 64


class Server(pyhv.HvWebServer):
    """Counts messages, and answers them where `echo` is set."""

    echo = False
    count = 0

    def on_ws_message(self, channel: pyhv.WebSocketChannel, msg: str | bytes) -> None:
        """One message of a burst."""
        self.count += 1
        if self.echo:
            channel.send(msg)


def connect(server: Server) -> socket.socket:
    """A WebSocket by hand: the handshake needs no tick."""
    peer = socket.create_connection(("127.0.0.1", server.port or 0), 10)
    request = f"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {KEY}"
    peer.sendall(f"{request}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode())
    head = b""
    while b"\r\n\r\n" not in head:
        head += peer.recv(4096)
    return peer


def drain(peer: socket.socket, expected: int) -> None:
    """Reads the echoes, so that the socket is empty for the next round."""
    while expected > 0:
        expected -= len(peer.recv(1 << 20))


def burst(server: Server, peers: list[socket.socket], frames: bytes, expected: int) -> float:
    """Nanoseconds of this thread's CPU per message, for one burst from every peer."""
    for peer in peers:
        peer.sendall(frames)
    spent = 0
    server.count = 0
    while server.count < expected:
        began = time.thread_time_ns()
        handled = server.tick(0)
        if handled:
            spent += time.thread_time_ns() - began
        else:
            os.sched_yield()
    if server.echo:
        for peer in peers:
            drain(peer, expected // len(peers) * (SIZE + 2))
    return spent / expected


def main() -> int:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="CPU of the ticking thread per message.")
    parser.add_argument("--rounds", type=int, default=200, help="bursts whose median is taken (200)")
    parser.add_argument("--messages", type=int, default=1000, help="messages of a burst, over 10 connections (1000)")
    parser.add_argument("--json", action="store_true", help="print one line of JSON instead")
    options = parser.parse_args()
    frame = bytes([0x81, 0x80 | SIZE, 0, 0, 0, 0]) + b"x" * SIZE
    each = max(1, options.messages // 10)
    server = Server()
    server.start(0)
    peers = [connect(server) for _ in range(10)]
    samples: dict[str, list[float]] = {"receive": [], "echo": []}
    for turn in range(options.rounds + 20):
        for name, values in samples.items():
            server.echo = name == "echo"
            cost = burst(server, peers, frame * each, each * len(peers))
            if turn >= 20:
                values.append(cost)
    for peer in peers:
        peer.close()
    server.stop()
    result = {f"{name}_ns": round(median(values), 1) for name, values in samples.items()}
    if options.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name:10s} {value:8,.0f} per message")
    return 0


if __name__ == "__main__":
    sys.exit(main())
