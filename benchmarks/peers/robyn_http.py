"""Robyn as an HTTP peer: python robyn_http.py PORT DIRECTORY

Plain functions: it runs them faster than coroutines.
"""

import sys

from http_content import DOCUMENT

PORT, DIRECTORY = int(sys.argv[1]), sys.argv[2]
# Robyn reads the command line of whatever program it is in, when it is imported.
sys.argv[1:] = ["--processes", "1", "--workers", "1", "--log-level", "ERROR", "--disable-openapi"]

from robyn import Request, Response, Robyn  # noqa: E402


def ping() -> str:
    """GET /ping."""
    return "pong"


def json() -> dict[str, object]:
    """GET /json, encoded anew for each request, by orjson, which Robyn brings along."""
    return DOCUMENT


def echo(request: Request) -> Response:
    """POST /echo."""
    return Response(200, {"content-type": "application/octet-stream"}, request.body)


def main() -> None:
    """Serves until it is killed."""
    app = Robyn(__file__)
    app.get("/ping")(ping)
    app.get("/json")(json)
    app.post("/echo")(echo)
    app.serve_directory(route="/files", directory_path=DIRECTORY)
    app.start(host="127.0.0.1", port=PORT)


if __name__ == "__main__":
    main()
