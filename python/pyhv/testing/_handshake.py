"""The opening handshake in a World, from the first byte to the open events or the refusal.

What travels is what would: connecting takes one way there and one back, and the request and its answer another.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from pyhv.errors import ConnectError, ConnectionRefused, ConnectTimeout, HandshakeError, TlsError
from pyhv.http import Headers, QueryParams
from pyhv.testing._connection import Connection, Handshake
from pyhv.testing.clock import SECOND, Timer

if TYPE_CHECKING:
    from pyhv.testing._endpoint import Endpoint, Listener
    from pyhv.testing.link import Link

#: What a packet without content counts.
_PACKET = 40
_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 section 1.3


@dataclass(frozen=True)
class Target:
    """What a client asked for."""

    url: str
    port: int
    authority: str
    path: str
    headers: list[tuple[str, str]]
    protocols: list[str]
    secure: bool


@dataclass
class Answer:
    """A server's answer to a handshake; 101 accepts."""

    status: int
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""

    @property
    def size(self) -> int:
        return _PACKET + sum(len(name) + len(value) + 4 for name, value in self.headers) + len(self.body)


def plain(status: int, text: str) -> Answer:
    return Answer(status, [("Content-Type", "text/plain; charset=utf-8")], text.encode())


class Attempt:
    """A client's attempt to connect, on both sides."""

    def __init__(
        self,
        endpoint: Endpoint,
        link: Link,
        target: Target,
        failed: Callable[[ConnectError | None, int | None], None],
        delay: int = 0,
    ) -> None:
        self.target = target
        #: The client cancelled: an open event that is on its way counts no more.
        self.is_cancelled = False
        self.remote = ("127.0.0.1", endpoint.network.client_port())
        self._endpoint = endpoint
        self._failed = failed
        self._link = link
        self._begun = False
        self._server: Listener | None = None
        self._connected = False
        self._answered = False
        #: The client has left, or the connection was lost.
        self._left = False
        #: The client has an end of it: a connection or an error.
        self._over = False
        self._limit: Timer | None = None
        self._question: Timer | None = None
        if delay:
            endpoint.clock.call_later(delay, self._begin)
        else:
            self._begin()

    def _begin(self) -> None:
        if self._over:
            return
        self._begun = True
        endpoint, target = self._endpoint, self.target
        self._wire = self._link._wire()
        self._wire.on_cut = self._cut
        self._limit = endpoint.clock.call_later(round(endpoint.settings["open_timeout"] * SECOND), self._timed_out)
        key = base64.b64encode(self._link._random.randbytes(16)).decode()
        self.headers = [
            ("host", target.authority),
            ("upgrade", "websocket"),
            ("connection", "Upgrade"),
            ("sec-websocket-key", key),
            ("sec-websocket-version", "13"),
        ]
        if target.protocols:
            self.headers.append(("sec-websocket-protocol", ", ".join(target.protocols)))
        self.headers += [(name.lower(), value) for name, value in target.headers]
        self._accept = base64.b64encode(hashlib.sha1((key + _GUID).encode()).digest()).decode()
        self._wire.up.step(_PACKET, self._knock)

    def cancel(self) -> None:
        self.is_cancelled = True
        if not self._over:
            # As an event, on a later tick.
            self._endpoint.clock.call_later(0, lambda: self._fail(None))

    # The client's side

    def _fail(self, error: ConnectError | None, retry_after: int | None = None) -> None:
        if self._over:
            return
        self._over = True
        if self._begun:
            self._settle()
            # The server hears of it when the end of the connection has come to it.
            self._wire.up.step(0, self._leave)
            self._wire.up.end()
            self._wire.over()
        if not self._endpoint.inbox.closed:
            self._failed(error, retry_after)

    def _settle(self) -> None:
        if self._limit is not None:
            self._limit.cancel()
        self._wire.on_cut = self._leave

    def _timed_out(self) -> None:
        limit = self._endpoint.settings["open_timeout"]
        self._fail(ConnectTimeout(f"{self.target.url} did not answer within open_timeout={limit:g} s"))

    def _cut(self) -> None:
        self._leave()
        if self._connected:
            self._fail(HandshakeError(f"{self.target.url} is not a WebSocket server: the connection was lost"))
        else:
            self._fail(ConnectError(f"cannot connect to 127.0.0.1:{self.target.port}: Connection reset by peer"))

    def _established(self) -> None:
        self._connected = True
        size = _PACKET + len(self.target.path) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        self._wire.up.step(size, self._ask)

    def _refused(self) -> None:
        self._fail(ConnectionRefused(f"cannot connect to 127.0.0.1:{self.target.port}: Connection refused"))

    def _no_tls(self) -> None:
        text = "the server does not speak TLS on this port (is it a ws:// URL?)"
        self._fail(TlsError(f"TLS with {self.target.url} failed: {text}"))

    def _hung_up(self) -> None:
        text = "connection closed before message completed"
        self._fail(HandshakeError(f"{self.target.url} is not a WebSocket server: {text}"))

    def _heard(self, answer: Answer) -> None:
        if self._over:
            return
        if answer.status != HTTPStatus.SWITCHING_PROTOCOLS:
            text = answer.body.decode(errors="replace").strip()
            short = 0 < len(text) <= 200 and "<" not in text and all(c.isprintable() for c in text)
            said = f" ({text})" if short else ""
            why = f"the server answered the WebSocket handshake with HTTP status {answer.status}, not 101"
            text = f"{self.target.url} refused the WebSocket handshake: {why}{said}"
            asked = Headers(answer.headers).get("retry-after")
            self._fail(HandshakeError(text, answer.status), None if asked is None else int(asked) * SECOND)
            return
        self._over = True
        self._settle()
        remote = ("127.0.0.1", self.target.port)
        chosen = Headers(answer.headers).get("sec-websocket-protocol")
        handshake = Handshake(self.target.url, answer.headers, remote, "http", chosen)
        Connection(self._endpoint, self._wire, server=False, handshake=handshake)

    # The server's side

    def _knock(self) -> None:
        found = self._endpoint.network.listeners.get(self.target.port)
        down = self._wire.down
        if found is None:
            down.step(_PACKET, self._refused)
            return
        server, secure = found
        if secure != self.target.secure:
            down.step(_PACKET, self._no_tls if self.target.secure else self._hung_up)
            return
        limit = server.seat(self.remote[0])
        if limit is not None:
            text = f"connection of {self.peer} refused: the limit is {limit}={server.endpoint.settings[limit]}"
            server.endpoint.complain(limit, text)
            down.step(_PACKET, self._hung_up)
            return
        self._server = server
        server.endpoint.attempts.append(self)
        down.step(_PACKET, self._established)

    @property
    def peer(self) -> str:
        return f"{self.remote[0]}:{self.remote[1]}"

    def _ask(self) -> None:
        if self._server is not None and not self._left:
            self._server.asked(self)

    def _leave(self) -> None:
        """Nobody waits for an answer any more."""
        self._left = True
        if self._question is not None:
            self._question.cancel()
        if self._server is not None and self in self._server.endpoint.attempts:
            self._server.endpoint.attempts.remove(self)

    def wait_for_answer(self) -> None:
        """The program decides, within `upgrade_timeout`."""
        assert self._server is not None, "a server asked"
        limit = self._server.endpoint.settings["upgrade_timeout"]
        self._question = self._endpoint.clock.call_later(round(limit * SECOND), self._unanswered)

    def _unanswered(self) -> None:
        if self._answered or self._left or self._server is None:
            return
        limit = self._server.endpoint.settings["upgrade_timeout"]
        self._server.endpoint.complain(
            "upgrade_timeout",
            f"WebSocket of {self.peer} refused with 503: on_ws_upgrade did not run within upgrade_timeout={limit:g} s",
        )
        self.answer(plain(503, "503 Service Unavailable\n"), None)

    def hang_up(self) -> None:
        """The server ends without an answer."""
        self._leave()
        self._wire.down.step(0, self._hung_up)

    def answer(self, answer: Answer, subprotocol: str | None) -> bool:
        """Answers the handshake. False: it was answered already, or the client has left."""
        if self._answered or self._server is None:
            return False
        self._answered = True
        if self._left:
            return True
        server = self._server
        self._leave()
        down = self._wire.down
        if answer.status != HTTPStatus.SWITCHING_PROTOCOLS:
            down.step(answer.size, lambda: self._heard(answer))
            return True
        answer.headers += [
            ("upgrade", "websocket"),
            ("connection", "Upgrade"),
            ("sec-websocket-accept", self._accept),
        ]
        if subprotocol is not None:
            answer.headers.append(("sec-websocket-protocol", subprotocol))
        down.step(answer.size, lambda: self._heard(answer))
        scheme = "https" if self.target.secure else "http"
        handshake = Handshake(self.target.path, self.headers, self.remote, scheme, subprotocol)
        Connection(server.endpoint, self._wire, server=True, handshake=handshake)
        self._wire.live()
        return True


def foreign_origin(attempt: Attempt, allowed: Any) -> str | None:
    """Why a page's WebSocket is refused, if it is (RFC 6455 section 10.2): its origin."""
    headers = Headers(attempt.headers)
    if "origin" not in headers:
        return None
    origin = headers["origin"].lower()
    if allowed == "*":
        return None
    if allowed is None:
        return None if urlsplit(origin).netloc == headers["host"].lower() else origin
    return None if origin in [entry.lower() for entry in allowed] else origin


class UpgradeRequest:
    """What `on_ws_upgrade` gets to see of a handshake: the members of `pyhv.HttpRequest` that `WsUpgrade` has."""

    method = "GET"
    http_version = "1.1"
    body = b""

    def __init__(self, attempt: Attempt, subprotocol: str | None) -> None:
        self._attempt = attempt
        self._subprotocol = subprotocol
        self.url = attempt.target.path
        self.path = unquote(self.url.partition("?")[0])
        self.query = QueryParams.parse(self.url.partition("?")[2])
        self.headers = Headers(attempt.headers)
        self.remote_address = attempt.remote
        self.client_address = attempt.remote[0]
        self.scheme = "https" if attempt.target.secure else "http"

    def _respond(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        subprotocol = self._subprotocol
        kept = []
        for name, value in headers:
            if name.lower() == "sec-websocket-protocol":
                subprotocol = value
            else:
                kept.append((name.lower(), value))
        if not self._attempt.answer(Answer(status, kept, body), subprotocol):
            raise RuntimeError("the request was answered already")

    def fail(self) -> None:
        self._attempt.answer(plain(500, "500 Internal Server Error\n"), None)
