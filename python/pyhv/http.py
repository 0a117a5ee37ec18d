"""What HTTP handlers and WebSocket handshakes are made of: headers, query parameters, the response."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

if TYPE_CHECKING:
    from pyhv._native import HttpRequest

__all__ = ["Headers", "HttpResponse", "QueryParams", "WsUpgrade"]

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110 section 5.6.2
#: Headers that the WebSocket handshake itself sets.
_HANDSHAKE = {
    "connection",
    "content-length",
    "sec-websocket-accept",
    "sec-websocket-extensions",
    "sec-websocket-protocol",
    "sec-websocket-version",
    "transfer-encoding",
    "upgrade",
}
_VALUE = re.compile(r"[\t -~\x80-\xff]*")  # RFC 9110 section 5.5: no control characters


def _check_header(name: str, value: str) -> None:
    if not _TOKEN.fullmatch(name):
        raise ValueError(f"{name!r} is not a header name")
    if not _VALUE.fullmatch(value):
        raise ValueError(f"header {name}: {value!r} has control characters or is not Latin-1")


class Headers(Mapping[str, str]):
    """Header fields in the order received; names compare without case.

    `headers["Accept"]` is the combined value of all fields of that name, joined by ", " (RFC 9110 section 5.3);
    `get_all` keeps them apart.
    """

    __slots__ = ("_pairs",)

    def __init__(self, pairs: Iterable[tuple[str, str]] = ()) -> None:
        self._pairs = [(str(name), str(value)) for name, value in pairs]

    def get_all(self, name: str) -> list[str]:
        """Every value of `name`, in order; an empty list if there is none."""
        wanted = name.lower()
        return [value for key, value in self._pairs if key.lower() == wanted]

    def pairs(self) -> list[tuple[str, str]]:
        """All fields as (name, value), repeated ones included."""
        return list(self._pairs)

    def __getitem__(self, name: str) -> str:
        values = self.get_all(name)
        if not values:
            raise KeyError(name)
        # Cookies are no comma-separated list (RFC 6265 section 5.4 sends one; HTTP/2 may split it).
        return ("; " if name.lower() == "cookie" else ", ").join(values)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and bool(self.get_all(name))

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(key.lower() for key, _ in self._pairs))

    def __len__(self) -> int:
        return len({key.lower() for key, _ in self._pairs})

    def __repr__(self) -> str:
        return f"Headers({self._pairs!r})"


class QueryParams(Mapping[str, str]):
    """Query parameters, decoded. `query["x"]` is the first value of `x`; `get_all` has all."""

    __slots__ = ("_pairs",)

    def __init__(self, pairs: Iterable[tuple[str, str]] = ()) -> None:
        self._pairs = list(pairs)

    @classmethod
    def parse(cls, query: str) -> QueryParams:
        """From a query string as it stands behind the "?" of a URL."""
        return cls(parse_qsl(query, keep_blank_values=True))

    def get_all(self, name: str) -> list[str]:
        """Every value of `name`, in order; an empty list if there is none."""
        return [value for key, value in self._pairs if key == name]

    def pairs(self) -> list[tuple[str, str]]:
        """All parameters as (name, value), repeated ones included."""
        return list(self._pairs)

    def __getitem__(self, name: str) -> str:
        for key, value in self._pairs:
            if key == name:
                return value
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(key for key, _ in self._pairs))

    def __len__(self) -> int:
        return len({key for key, _ in self._pairs})

    def __repr__(self) -> str:
        return f"QueryParams({self._pairs!r})"


class HttpResponse:
    """The answer that a handler fills in; 200 with an empty body until it does.

    The helpers (`text`, `json`, …) set body, content type and status, and return the status, so that a handler can
    end with `return resp.text("pong")`. Used on the thread that ticks, inside the handler; nothing blocks.
    """

    __slots__ = ("_body", "_headers", "_status")

    def __init__(self) -> None:
        self._status = HTTPStatus.OK
        self._headers: list[tuple[str, str]] = []
        self._body = b""

    @property
    def status(self) -> HTTPStatus:
        """The status to be sent. Setting an unknown code raises ValueError."""
        return self._status

    @status.setter
    def status(self, status: int) -> None:
        if status < 200:
            raise ValueError(f"status={status}: an answer's status is 200 or above")
        self._status = HTTPStatus(status)

    @property
    def body(self) -> bytes:
        """The body to be sent."""
        return self._body

    def text(self, text: str, status: int = HTTPStatus.OK) -> HTTPStatus:
        """Answers with plain text, as UTF-8."""
        return self.data(text.encode(), "text/plain; charset=utf-8", status)

    def html(self, text: str, status: int = HTTPStatus.OK) -> HTTPStatus:
        """Answers with HTML, as UTF-8."""
        return self.data(text.encode(), "text/html; charset=utf-8", status)

    def json(self, value: Any, status: int = HTTPStatus.OK) -> HTTPStatus:
        """Answers with `value` as JSON. Raises TypeError for what `json.dumps` cannot encode."""
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        return self.data(text.encode(), "application/json", status)

    def data(
        self, data: bytes, content_type: str = "application/octet-stream", status: int = HTTPStatus.OK
    ) -> HTTPStatus:
        """Answers with bytes."""
        self._body = bytes(data)
        self.set_content_type(content_type)
        self.status = status
        return self._status

    def redirect(self, url: str, status: int = HTTPStatus.FOUND) -> HTTPStatus:
        """Sends the client to `url`. Raises ValueError for a status that is no redirection (3xx)."""
        if not 300 <= status <= 399:
            raise ValueError(f"redirect status={status} is not between 300 and 399")
        self.set_header("Location", url)
        self._body = b""
        self.status = status
        return self._status

    def set_header(self, name: str, value: str) -> None:
        """Sets a header, replacing fields of the same name.

        Raises ValueError for a name that is no token or a value with CR, LF or other control characters.
        """
        _check_header(name, value)
        wanted = name.lower()
        self._headers = [pair for pair in self._headers if pair[0].lower() != wanted]
        self._headers.append((name, value))

    def add_header(self, name: str, value: str) -> None:
        """Adds a header beside others of the same name. Raises ValueError as `set_header` does."""
        _check_header(name, value)
        self._headers.append((name, value))

    def set_content_type(self, content_type: str) -> None:
        """Sets the Content-Type header."""
        self.set_header("Content-Type", content_type)

    def _finish(self, result: object) -> None:
        """Takes what the handler returned: a status, or a body to answer with."""
        if result is None:
            return
        if isinstance(result, str):
            self.text(result, self._status)
        elif isinstance(result, (bytes, bytearray, memoryview)):
            self.data(bytes(result), status=self._status)
        elif isinstance(result, (dict, list)):
            self.json(result, self._status)
        elif isinstance(result, int) and not isinstance(result, bool):
            self.status = result
        else:
            raise TypeError(
                "a handler returns a status, str, bytes, dict, list or None, "
                f"not {type(result).__name__} ({result!r:.80})"
            )


class WsUpgrade:
    """A client asks for a WebSocket: what `on_ws_upgrade` decides on.

    `accept` or `refuse` it, or return: None and True accept, False refuses with 403, a status refuses with it. Used on
    the thread that ticks, inside the callback; nothing blocks.
    """

    __slots__ = ("_decision", "_request")

    def __init__(self, request: HttpRequest) -> None:
        self._request = request
        self._decision: tuple[int, list[tuple[str, str]], bytes] | None = None

    @property
    def url(self) -> str:
        """The request target as sent: path and query."""
        return self._request.url

    @property
    def path(self) -> str:
        """The path of `url`, percent-decoded."""
        return self._request.path

    @property
    def query(self) -> QueryParams:
        """The query parameters of `url`."""
        return self._request.query

    @property
    def headers(self) -> Headers:
        """The headers of the request."""
        return self._request.headers

    @property
    def remote_address(self) -> tuple[str, int]:
        """The peer's address: (host, port)."""
        return self._request.remote_address

    @property
    def subprotocols(self) -> list[str]:
        """The subprotocols that the client offers, in its order of preference."""
        offered = ",".join(self.headers.get_all("Sec-WebSocket-Protocol"))
        return [name for name in (part.strip() for part in offered.split(",")) if name]

    def accept(
        self, subprotocol: str | None = None, headers: Mapping[str, str] | Iterable[tuple[str, str]] = ()
    ) -> None:
        """Accepts. Raises ValueError for a subprotocol that was not offered, or a header that cannot be sent.

        :param subprotocol: the one to speak; None: the first of `start(subprotocols=...)` that the client offers.
        :param headers: further headers of the 101 response; those of the handshake itself are not among them.
        """
        pairs = list(headers.items() if isinstance(headers, Mapping) else headers)
        for name, value in pairs:
            _check_header(name, value)
            if name.lower() in _HANDSHAKE:
                raise ValueError(f"headers: {name} is set by the WebSocket handshake itself")
        if subprotocol is not None:
            if subprotocol not in self.subprotocols:
                raise ValueError(f"subprotocol={subprotocol!r} is not among those offered: {self.subprotocols}")
            pairs.append(("Sec-WebSocket-Protocol", subprotocol))
        self._decision = (HTTPStatus.SWITCHING_PROTOCOLS, pairs, b"")

    def refuse(self, status: int = HTTPStatus.FORBIDDEN, text: str | None = None) -> None:
        """Refuses with a status of 300 or above and a plain text, by default the status' own phrase."""
        if status < 300:
            raise ValueError(f"refuse status={status} is not 300 or above")
        status = HTTPStatus(status)
        if text is None:
            text = f"{status.value} {status.phrase}\n"
        self._decision = (status, [("Content-Type", "text/plain; charset=utf-8")], text.encode())

    def _finish(self, result: object) -> None:
        """Answers with what was decided or returned."""
        if self._decision is None:
            if result is None or result is True:
                self.accept()
            elif result is False:
                self.refuse()
            elif isinstance(result, int):
                self.refuse(result)
            else:
                raise TypeError(f"on_ws_upgrade returns None, True, False or a status, not {result!r:.80}")
        if self._decision is not None:
            self._request._respond(*self._decision)
