"""aiohttp on uvloop as a benchmark peer: python aiohttp_server.py PORT echo|fan"""

import sys

import uvloop
from aiohttp import WSMsgType, web

clients: set[web.WebSocketResponse] = set()


async def ping(request: web.Request) -> web.Response:
    """GET /ping."""
    return web.Response(text="pong")


async def echo(request: web.Request) -> web.WebSocketResponse:
    """Sends each message back to its sender."""
    socket = web.WebSocketResponse(compress=False)
    await socket.prepare(request)
    async for message in socket:
        if message.type == WSMsgType.TEXT:
            await socket.send_str(message.data)
    return socket


async def fan(request: web.Request) -> web.WebSocketResponse:
    """Sends each message to everybody, the sender included."""
    socket = web.WebSocketResponse(compress=False)
    await socket.prepare(request)
    clients.add(socket)
    try:
        async for message in socket:
            if message.type == WSMsgType.TEXT:
                # A copy: somebody may come or go while a send waits.
                for client in tuple(clients):
                    await client.send_str(message.data)
    finally:
        clients.discard(socket)
    return socket


def main() -> None:
    """Serves until it is killed."""
    port, mode = int(sys.argv[1]), sys.argv[2]
    app = web.Application()
    app.router.add_get("/chat", fan if mode == "fan" else echo)
    app.router.add_get("/ping", ping)
    loop = uvloop.new_event_loop()
    web.run_app(app, host="127.0.0.1", port=port, print=None, access_log=None, loop=loop)


if __name__ == "__main__":
    main()
