"""The server under test: echoes text as text and binary as binary.

    python compliance/server.py [--compression context]

Prints its URL, then serves until Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import argparse

import pyhv


class EchoServer(pyhv.HvWebServer):
    """Sends each message back to its sender, as what it came."""

    def on_ws_message(self, channel: pyhv.WebSocketChannel, msg: str | bytes) -> None:
        """A str leaves as text, bytes leave as binary."""
        channel.send(msg)

    def on_error(self, exc: Exception) -> None:
        """It has been logged; the case that it happened in fails, because the channel is closed with 1011."""


def main() -> None:
    """Serves on a free port, with the default settings but for the pings."""
    parser = argparse.ArgumentParser(description="Echo server for the conformance suite.")
    parser.add_argument("--compression", choices=["shared", "context"], default="shared")
    options = parser.parse_args()
    server = EchoServer()
    # No pings: the cases compare all events that they see, and a ping of ours is an event.
    server.start(0, ping_interval=None, compression=options.compression)
    print(f"ws://127.0.0.1:{server.port}", flush=True)
    try:
        while True:
            server.tick(None)
    except KeyboardInterrupt:
        pass
    finally:
        server.stop()


if __name__ == "__main__":
    main()
