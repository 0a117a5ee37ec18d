"""Starlette on uvicorn, uvloop and httptools as an HTTP peer: python starlette_http.py PORT DIRECTORY"""

import sys

import uvicorn
from http_content import DOCUMENT
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles


async def ping(request: Request) -> PlainTextResponse:
    """GET /ping."""
    return PlainTextResponse("pong")


async def json(request: Request) -> JSONResponse:
    """GET /json, encoded anew for each request."""
    return JSONResponse(DOCUMENT)


async def echo(request: Request) -> Response:
    """POST /echo."""
    return Response(await request.body())


def main() -> None:
    """Serves until it is killed."""
    port, directory = int(sys.argv[1]), sys.argv[2]
    routes = [
        Route("/ping", ping),
        Route("/json", json),
        Route("/echo", echo, methods=["POST"]),
        Mount("/files", StaticFiles(directory=directory)),
    ]
    settings = {"loop": "uvloop", "http": "httptools", "access_log": False, "log_level": "warning"}
    uvicorn.run(Starlette(routes=routes), host="127.0.0.1", port=port, **settings)


if __name__ == "__main__":
    main()
