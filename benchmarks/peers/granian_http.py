"""Granian as an HTTP peer: python granian_http.py PORT DIRECTORY asgi|rsgi   (no framework on top of it)"""

import json
import sys
from pathlib import Path
from typing import Any

from granian import Granian
from http_content import DOCUMENT


async def asgi(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """The routes, as an ASGI application."""
    if scope["type"] != "http":
        raise NotImplementedError(scope["type"])
    kind = b"text/plain; charset=utf-8"
    if scope["path"] == "/ping":
        body = b"pong"
    elif scope["path"] == "/json":
        body, kind = json.dumps(DOCUMENT).encode(), b"application/json"
    else:
        body, more = b"", True
        while more:
            message = await receive()
            body += message["body"]
            more = message["more_body"]
    headers = [(b"content-type", kind), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def rsgi(scope: Any, protocol: Any) -> None:
    """The routes, as an application of Granian's own interface."""
    if scope.path == "/ping":
        protocol.response_str(200, [("content-type", "text/plain; charset=utf-8")], "pong")
    elif scope.path == "/json":
        protocol.response_str(200, [("content-type", "application/json")], json.dumps(DOCUMENT))
    else:
        protocol.response_bytes(200, [("content-type", "application/octet-stream")], await protocol())


def main() -> None:
    """Serves until it is killed: one worker process, one runtime thread."""
    port, directory, interface = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    Granian(
        f"granian_http:{interface}",
        port=port,
        interface=interface,  # type: ignore[arg-type, unused-ignore]
        loop="uvloop",  # type: ignore[arg-type, unused-ignore]
        http="1",  # type: ignore[arg-type, unused-ignore]
        websockets=False,
        log_enabled=False,
        working_dir=Path(__file__).parent,
        static_path_route=["/files"],
        static_path_mount=[directory],
    ).serve()


if __name__ == "__main__":
    main()
