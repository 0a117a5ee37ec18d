"""picows on uvloop as a benchmark peer: python picows_server.py PORT echo|fan   (no HTTP, so no /ping)"""

import sys

import uvloop
from picows import WSFrame, WSListener, WSMsgType, WSTransport, ws_create_server

clients: set[WSTransport] = set()


class Echo(WSListener):
    """Sends each message back to its sender."""

    def on_ws_connected(self, transport: WSTransport) -> None:
        """Joins the room."""
        clients.add(transport)

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        """Leaves the room."""
        clients.discard(transport)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        """Answers a message, and a close with a close."""
        if frame.msg_type == WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code())
            transport.disconnect()
        else:
            self.answer(transport, frame.msg_type, frame.get_payload_as_bytes())

    def answer(self, transport: WSTransport, kind: WSMsgType, payload: bytes) -> None:
        """To the sender."""
        transport.send(kind, payload)


class Fan(Echo):
    """Sends each message to everybody."""

    def answer(self, transport: WSTransport, kind: WSMsgType, payload: bytes) -> None:
        """To the room, the sender included."""
        for client in clients:
            client.send(kind, payload)


async def main() -> None:
    """Serves until it is killed."""
    port, mode = int(sys.argv[1]), sys.argv[2]
    listener = Fan if mode == "fan" else Echo
    server = await ws_create_server(lambda request: listener(), "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
