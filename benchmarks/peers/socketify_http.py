"""socketify as an HTTP peer: python socketify_http.py PORT DIRECTORY"""

import sys

from http_content import DOCUMENT
from socketify import App, Request, Response


def ping(response: Response, request: Request) -> None:
    """GET /ping."""
    response.end("pong")


def json(response: Response, request: Request) -> None:
    """GET /json, encoded anew for each request."""
    response.end(DOCUMENT)


def echo(response: Response, request: Request) -> None:
    """POST /echo."""
    parts: list[bytes] = []

    def on_data(response: Response, chunk: bytes | None, is_last: bool) -> None:
        parts.append(chunk or b"")
        if is_last:
            response.end(b"".join(parts))

    response.on_data(on_data)


def main() -> None:
    """Serves until it is killed."""
    port, directory = int(sys.argv[1]), sys.argv[2]
    app = App()
    app.get("/ping", ping)
    app.get("/json", json)
    app.post("/echo", echo)
    app.static("/files", directory)
    app.listen({"port": port, "host": "127.0.0.1"}, lambda config: None)
    app.run()


if __name__ == "__main__":
    main()
