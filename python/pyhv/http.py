"""What HTTP handlers and WebSocket handshakes are made of: headers, query parameters, the decision on a handshake."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import parse_qsl

if TYPE_CHECKING:
    from pyhv._native import HttpRequest

__all__ = ["Headers", "QueryParams", "WsUpgrade"]

_T = TypeVar("_T")

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


try:
    import msgspec as _msgspec
except ImportError:
    _msgspec = None  # type: ignore[assignment, unused-ignore]


def _json_bytes(value: Any) -> bytes:
    """JSON of `value`: what msgspec does not take, the standard library is asked for."""
    if _msgspec is not None:
        try:
            return bytes(_msgspec.json.encode(value))
        except TypeError:
            pass
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _json_value(data: bytes) -> Any:
    """The value of JSON in UTF-8. Raises ValueError."""
    return json.loads(data) if _msgspec is None else _msgspec.json.decode(data)


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


class FirstOfMany(Mapping[str, _T]):
    """A mapping of what may be there several times: `x["name"]` is the first, `get_all` has all."""

    __slots__ = ("_pairs",)

    def __init__(self, pairs: Iterable[tuple[str, _T]] = ()) -> None:
        self._pairs = list(pairs)

    def get_all(self, name: str) -> list[_T]:
        """Every value of `name`, in order; an empty list if there is none."""
        return [value for key, value in self._pairs if key == name]

    def pairs(self) -> list[tuple[str, _T]]:
        """All as (name, value), repeated ones included, in order."""
        return list(self._pairs)

    def __getitem__(self, name: str) -> _T:
        for key, value in self._pairs:
            if key == name:
                return value
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(key for key, _ in self._pairs))

    def __len__(self) -> int:
        return len({key for key, _ in self._pairs})

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._pairs!r})"


class QueryParams(FirstOfMany[str]):
    """Query parameters, decoded. `query["x"]` is the first value of `x`; `get_all` has all."""

    __slots__ = ()

    @classmethod
    def parse(cls, query: str) -> QueryParams:
        """From a query string as it stands behind the "?" of a URL."""
        return cls(parse_qsl(query, keep_blank_values=True))


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
    def client_address(self) -> str:
        """The address of the client: the peer's, or behind `trusted_proxies` the one that they tell."""
        return self._request.client_address

    @property
    def scheme(self) -> str:
        """ "https" if the client speaks TLS (wss), to this server or to one of `trusted_proxies`; else "http"."""
        return self._request.scheme

    @property
    def http_version(self) -> str:
        """The version of HTTP that the peer speaks."""
        return self._request.http_version

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
