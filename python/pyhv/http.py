"""What HTTP handlers and WebSocket handshakes are made of: headers, query parameters, the response."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl

__all__ = ["Headers", "HttpResponse", "QueryParams"]

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110 section 5.6.2
_VALUE = re.compile(r"[\t -~\x80-\xff]*")  # RFC 9110 section 5.5: no control characters


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
        self._check(name, value)
        wanted = name.lower()
        self._headers = [pair for pair in self._headers if pair[0].lower() != wanted]
        self._headers.append((name, value))

    def add_header(self, name: str, value: str) -> None:
        """Adds a header beside others of the same name. Raises ValueError as `set_header` does."""
        self._check(name, value)
        self._headers.append((name, value))

    def set_content_type(self, content_type: str) -> None:
        """Sets the Content-Type header."""
        self.set_header("Content-Type", content_type)

    @staticmethod
    def _check(name: str, value: str) -> None:
        if not _TOKEN.fullmatch(name):
            raise ValueError(f"{name!r} is not a header name")
        if not _VALUE.fullmatch(value):
            raise ValueError(f"header {name}: {value!r} has control characters or is not Latin-1")

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
