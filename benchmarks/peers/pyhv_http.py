"""pyHV as an HTTP peer: python pyhv_http.py PORT DIRECTORY"""

from __future__ import annotations

import sys
from http import HTTPStatus

from http_content import DOCUMENT

import pyhv
from pyhv import HttpRequest, HttpResponse


def ping(request: HttpRequest, response: HttpResponse) -> HTTPStatus:
    """GET /ping."""
    return response.text("pong")


def json(request: HttpRequest, response: HttpResponse) -> HTTPStatus:
    """GET /json, encoded anew for each request."""
    return response.json(DOCUMENT)


def echo(request: HttpRequest, response: HttpResponse) -> HTTPStatus:
    """POST /echo."""
    return response.data(request.body)


class Server(pyhv.HvWebServer):
    """Serves all routes."""

    def on_init(self) -> None:
        """Adds the routes; static files where this version has them."""
        self.get("/ping", ping)
        self.get("/json", json)
        self.post("/echo", echo)
        static = getattr(self, "static", None)
        if static is not None:
            static("/files", sys.argv[2])


def main() -> None:
    """Serves until it is killed."""
    server = Server()
    server.start(int(sys.argv[1]))
    try:
        while True:
            server.tick(None)
    except KeyboardInterrupt:
        pass
    finally:
        server.stop()


if __name__ == "__main__":
    main()
