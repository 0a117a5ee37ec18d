"""What the tests of HTTP share: a server that records every request, and exchanges byte by byte."""

from __future__ import annotations

import socket
from contextlib import suppress
from dataclasses import dataclass

from pyhv import HttpRequest, HttpResponse
from support import Answer, EchoServer, RawClient


@dataclass(frozen=True)
class Seen:
    """A request as a handler got it."""

    method: str
    url: str
    headers: dict[str, str]
    body: bytes

    @property
    def brief(self) -> tuple[str, str, bytes]:
        return self.method, self.url, self.body


class CatchAllServer(EchoServer):
    """Records every request and every WebSocket, whatever its path; answers with the body's length."""

    def on_init(self) -> None:
        self.seen: list[Seen] = []
        self.any("/", self.take)
        self.any("/*rest", self.take)

    def take(self, req: HttpRequest, resp: HttpResponse) -> None:
        self.seen.append(Seen(req.method, req.url, dict(req.headers), req.body))
        resp.text(str(len(req.body)))


class Target:
    """The server on a thread of its own, and a bystander whose connection is kept."""

    def __init__(self, server: CatchAllServer, port: int) -> None:
        self.server = server
        self.port = port
        self.bystander = RawClient(port, upgrade=False)

    def seen(self) -> list[Seen]:
        """What handlers got since the last call. The bystander's request stands behind all of it in the inbox."""
        self.bystander.request("GET", "/bystander")
        assert self.bystander.read_answer().status == 200, "the bystander is not served"
        seen, self.server.seen[:] = list(self.server.seen), []
        assert seen.pop().url == "/bystander"
        assert self.server.record.count("error") == 0
        return seen


def answers_in(data: bytes, *, heads: frozenset[int] = frozenset()) -> list[Answer]:
    """The responses in what a connection sent until its end. `heads`: the numbers of those that answer HEAD."""
    found: list[Answer] = []
    while data:
        head, gap, data = data.partition(b"\r\n\r\n")
        assert gap, f"the connection ended within a head: {head!r}"
        first, *lines = head.decode("latin-1").split("\r\n")
        assert first.startswith("HTTP/1."), first
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        status = int(first.split()[1])
        bare = len(found) in heads or status in (100, 101, 204, 304)
        length = 0 if bare else int(headers.get("content-length", 0))
        found.append(Answer(status, headers, data[:length]))
        data = data[length:]
    return found


def exchange(port: int, data: bytes, *, bytewise: bool = False) -> bytes:
    """Sends `data` and then the end of it (RFC 9112 section 9.6); returns all that the server sends until its end."""
    with RawClient(port, upgrade=False) as raw:
        with suppress(OSError):  # refused before its end
            for piece in (data[i : i + 1] for i in range(len(data))) if bytewise else (data,):
                raw.send_bytes(piece)
            raw.socket.shutdown(socket.SHUT_WR)
        return raw.read_to_end()


def head(line: bytes, *fields: bytes, host: bytes = b"Host: x") -> bytes:
    """A request's head. `host`: its Host field, b"" for none."""
    return b"\r\n".join([line, *([host] if host else []), *fields, b"", b""])


def get(line: bytes = b"GET /first HTTP/1.1", *fields: bytes) -> bytes:
    return head(line, *fields)
