"""pyHV in a 60 Hz main loop: see frames.py."""

from __future__ import annotations

import sys

import frames

import pyhv


class Server(pyhv.HvWebServer):
    """Echoes, and counts."""

    count = 0
    answered = 0

    def on_ws_open(self, channel: pyhv.WebSocketChannel, url: str) -> None:
        """One more."""
        self.count += 1

    def on_ws_close(self, channel: pyhv.WebSocketChannel) -> None:
        """One less."""
        self.count -= 1

    def on_ws_message(self, channel: pyhv.WebSocketChannel, msg: str | bytes) -> None:
        """Echoes, from inside tick()."""
        channel.send(msg)
        self.answered += 1


class Network(frames.Network):
    """One tick a frame."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def clients(self) -> int:
        """How many are there."""
        return self.server.count

    def answer(self) -> int:
        """Ticks, which answers."""
        self.server.answered = 0
        self.server.tick()
        return self.server.answered

    def broadcast(self, message: str) -> None:
        """One call, whatever the number of clients."""
        self.server.broadcast(message)


def main() -> None:
    """Serves until it is killed."""
    server = Server()
    server.start(int(sys.argv[1]), ping_interval=None)
    frames.run(Network(server))


if __name__ == "__main__":
    main()
