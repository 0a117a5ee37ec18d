"""pyHV as a benchmark peer: python pyhv_server.py PORT echo|fan"""

from __future__ import annotations

import sys

import pyhv


class EchoServer(pyhv.HvWebServer):
    """Sends each message back to its sender."""

    def on_init(self) -> None:
        """Answers GET /ping beside the WebSockets."""
        self.get("/ping", lambda request, response: response.text("pong"))

    def on_ws_message(self, channel: pyhv.WebSocketChannel, msg: str | bytes) -> None:
        """Echoes, from inside tick()."""
        channel.send(msg)


class FanServer(EchoServer):
    """Sends each message to everybody."""

    def on_ws_message(self, channel: pyhv.WebSocketChannel, msg: str | bytes) -> None:
        """Broadcasts, the sender included."""
        self.broadcast(msg)


def main() -> None:
    """Serves until it is killed."""
    port, mode = int(sys.argv[1]), sys.argv[2]
    server = FanServer() if mode == "fan" else EchoServer()
    server.start(port)
    try:
        while True:
            server.tick(None)
    except KeyboardInterrupt:
        pass
    finally:
        server.stop()


if __name__ == "__main__":
    main()
