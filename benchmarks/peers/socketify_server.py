"""socketify as a benchmark peer: python socketify_server.py PORT echo|fan"""

import sys

from socketify import App, OpCode, Request, Response, WebSocket


def ping(response: Response, request: Request) -> None:
    """GET /ping."""
    response.end("pong")


def join(socket: WebSocket) -> None:
    """Every connection is in the room."""
    socket.subscribe("room")


def echo(socket: WebSocket, message: str | bytes, opcode: OpCode) -> None:
    """Sends each message back to its sender."""
    socket.send(message, opcode)


def fan(socket: WebSocket, message: str | bytes, opcode: OpCode) -> None:
    """Sends each message to everybody: socketify's publish reaches the sender too."""
    socket.publish("room", message, opcode)


def main() -> None:
    """Serves until it is killed."""
    port, mode = int(sys.argv[1]), sys.argv[2]
    app = App()
    settings = {"compression": 0, "max_payload_length": 16 * 1024 * 1024, "idle_timeout": 120}
    app.ws("/*", {**settings, "open": join, "message": fan if mode == "fan" else echo})
    app.get("/ping", ping)
    app.listen({"port": port, "host": "127.0.0.1"}, lambda config: None)
    app.run()


if __name__ == "__main__":
    main()
