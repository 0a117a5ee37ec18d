"""websockets as a benchmark peer: python websockets_server.py PORT echo|fan [uvloop]

Compression and keep-alive pings are off, as for every peer.
"""

import asyncio
import sys
from http import HTTPStatus

from websockets.asyncio.server import ServerConnection, broadcast, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

clients: set[ServerConnection] = set()


def answer_ping(connection: ServerConnection, request: Request) -> Response | None:
    """GET /ping; everything else goes on to the WebSocket handshake."""
    return connection.respond(HTTPStatus.OK, "pong") if request.path == "/ping" else None


async def echo(connection: ServerConnection) -> None:
    """Sends each message back to its sender."""
    async for message in connection:
        await connection.send(message)


async def fan(connection: ServerConnection) -> None:
    """Sends each message to everybody, the sender included."""
    clients.add(connection)
    try:
        async for message in connection:
            broadcast(clients, message)
    except ConnectionClosed:
        pass
    finally:
        clients.discard(connection)


async def main() -> None:
    """Serves until it is killed."""
    port, mode = int(sys.argv[1]), sys.argv[2]
    handler = fan if mode == "fan" else echo
    serving = serve(handler, "127.0.0.1", port, process_request=answer_ping, compression=None, ping_interval=None)
    async with serving as server:
        await server.serve_forever()


if __name__ == "__main__":
    if "uvloop" in sys.argv[3:]:
        import uvloop

        uvloop.run(main())
    else:
        asyncio.run(main())
