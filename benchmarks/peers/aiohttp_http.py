"""aiohttp on uvloop as an HTTP peer: python aiohttp_http.py PORT DIRECTORY"""

import sys

import uvloop
from aiohttp import web
from http_content import DOCUMENT


async def ping(request: web.Request) -> web.Response:
    """GET /ping."""
    return web.Response(text="pong")


async def json(request: web.Request) -> web.Response:
    """GET /json, encoded anew for each request."""
    return web.json_response(DOCUMENT)


async def echo(request: web.Request) -> web.Response:
    """POST /echo."""
    return web.Response(body=await request.read())


def main() -> None:
    """Serves until it is killed."""
    port, directory = int(sys.argv[1]), sys.argv[2]
    app = web.Application()
    app.router.add_get("/ping", ping)
    app.router.add_get("/json", json)
    app.router.add_post("/echo", echo)
    app.router.add_static("/files", directory)
    loop = uvloop.new_event_loop()
    web.run_app(app, host="127.0.0.1", port=port, print=None, access_log=None, loop=loop)


if __name__ == "__main__":
    main()
