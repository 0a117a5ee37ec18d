"""The client under test: goes through the cases of a fuzzing server.

    python compliance/client.py URL [--compression context]

The suite's protocol: /getCaseCount tells how many cases there are; each connection to /runCase?case=N is one of them,
in which the client echoes until it is closed; /updateReports says that all are done.
"""

from __future__ import annotations

import argparse
from typing import Literal

import pyhv

Compression = Literal["shared", "context"]
AGENT = "client"


class Client(pyhv.HvWebSocketClient):
    """A client that is told its settings once, and ticks until its connection has ended."""

    def __init__(self, url: str, compression: Compression) -> None:
        self.url = url
        self.compression = compression

    def visit(self, path: str) -> None:
        """Connects to `path` and returns when the connection has ended, or when there was none."""
        # No pings: the cases compare all events that they see, and a ping of ours is an event.
        self.connect(self.url + path, ping_interval=None, compression=self.compression)
        while self.close_code is None:
            self.tick(None)


class Counter(Client):
    """Learns how many cases there are."""

    count = 0

    def on_message(self, msg: str | bytes) -> None:
        """The number, in JSON."""
        self.count = int(msg)


class Echo(Client):
    """Sends each message back."""

    def on_message(self, msg: str | bytes) -> None:
        """A str leaves as text, bytes leave as binary."""
        self.send(msg)


def main() -> None:
    """Every case, one after the other, each in a new connection of one client."""
    parser = argparse.ArgumentParser(description="Echo client for the conformance suite.")
    parser.add_argument("url")
    parser.add_argument("--compression", choices=["shared", "context"], default="shared")
    options = parser.parse_args()
    counter = Counter(options.url, options.compression)
    counter.visit("/getCaseCount")
    if counter.error is not None:
        raise SystemExit(f"{options.url}: {counter.error}")
    echo = Echo(options.url, options.compression)
    for number in range(1, counter.count + 1):
        echo.visit(f"/runCase?case={number}&agent={AGENT}")
    echo.visit(f"/updateReports?agent={AGENT}")


if __name__ == "__main__":
    main()
