"""Does an installed pyHV work? A server, a client and an HTTP request in one process.

    python scripts/smoke.py

Prints what works and exits with 0, or ends with a traceback. `make smoke PYTHON=python3.12` builds and installs pyHV
for that interpreter first, in an environment of its own.
"""

from __future__ import annotations

import http.client
import platform
import sys
import threading
import time
from pathlib import Path

import pyhv

LIMIT = 20.0  # seconds that everything together may take

MESSAGES: tuple[str | bytes, ...] = ("", "hello", "zero \0 inside", "\N{SNOWMAN}", b"", b"\x00\xff", b"x" * 100_000)


class Server(pyhv.HvWebServer):
    closed = 0

    def on_init(self) -> None:
        self.get("/ping", lambda request, response: response.text("pong"))

    def on_ws_message(self, channel: pyhv.WebSocketChannel, msg: str | bytes) -> None:
        channel.send(msg)

    def on_ws_close(self, channel: pyhv.WebSocketChannel) -> None:
        self.closed += 1

    def on_error(self, exc: Exception) -> None:
        raise SystemExit(f"a callback of the server raised {exc!r}")


class Client(pyhv.HvWebSocketClient):
    def __init__(self) -> None:
        self.received: list[str | bytes] = []

    def on_open(self) -> None:
        for message in MESSAGES:
            self.send(message)

    def on_message(self, msg: str | bytes) -> None:
        self.received.append(msg)
        if len(self.received) == len(MESSAGES):
            self.close(1000, "done")

    def on_error(self, exc: Exception) -> None:
        raise SystemExit(f"the client failed: {exc!r}")


def main() -> None:
    deadline = time.monotonic() + LIMIT
    server, client = Server(), Client()
    server.start(0)
    port = server.port
    assert port is not None

    answers: list[tuple[int, bytes]] = []

    def ask() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT)
        connection.request("GET", "/ping")
        answer = connection.getresponse()
        answers.append((answer.status, answer.read()))
        connection.close()

    asking = threading.Thread(target=ask)
    asking.start()
    client.connect(f"ws://127.0.0.1:{port}/")
    while client.close_code is None or server.closed < 1 or asking.is_alive():
        assert time.monotonic() < deadline, f"not within {LIMIT} s: {client!r} received {len(client.received)}"
        server.tick(timeout=0.01)
        client.tick()
    asking.join()
    server.stop()

    assert tuple(client.received) == MESSAGES, client.received
    assert client.close_code == 1000, client.close_code
    assert answers == [(200, b"pong")], answers
    python = f"{platform.python_implementation()} {platform.python_version()}, {sys.platform}"
    print(f"pyHV {pyhv.__version__} works on {python} (from {Path(pyhv.__file__).parent})")


if __name__ == "__main__":
    main()
