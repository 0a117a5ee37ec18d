"""What comes back for an HTTP request: the response, its pieces, server-sent events."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable
from email.message import Message
from http import HTTPStatus
from typing import Any, NamedTuple

from pyhv.errors import HttpStatusError
from pyhv.http import Headers

__all__ = ["Response", "ServerSentEvent"]

#: Encodings of Python that are none of the web's: slow, or they run something like a program.
_NOT_CHARSETS = {"idna", "mbcs", "oem", "punycode", "raw_unicode_escape", "undefined", "unicode_escape"}


class ServerSentEvent(NamedTuple):
    """One event of a stream of server-sent events."""

    #: The lines of data, joined by line feeds.
    data: str
    #: The type, "message" unless the server named another.
    event: str = "message"
    #: The last event ID that the server has set, with this event or an earlier one; "" before the first.
    id: str = ""


class Response:
    """The response to a request. All members may be used from any thread; none blocks."""

    __slots__ = (
        "body",
        "cookies",
        "elapsed",
        "headers",
        "history",
        "http_version",
        "reason",
        "status",
        "url",
    )

    #: The status: an `HTTPStatus` if it is a known one, else an int.
    status: int
    #: The reason phrase that came with the status.
    reason: str
    #: The headers.
    headers: Headers
    #: The URL that answered, after redirects, without user and password.
    url: str
    #: The URLs that redirected, in order.
    history: list[str]
    #: The cookies that this response sets.
    cookies: dict[str, str]
    #: "1.0", "1.1" or "2", as of a request.
    http_version: str
    #: Seconds from the beginning of the request to the end of the response.
    elapsed: float
    #: The body, decompressed; empty if it went to `on_chunk` or `on_event`.
    body: bytes

    def __init__(self, raw: dict[str, Any]) -> None:
        number: int = raw["status"]
        try:
            self.status = HTTPStatus(number)
        except ValueError:
            self.status = number
        self.reason = raw["reason"]
        self.headers = Headers(raw["headers"])
        self.url = raw["url"]
        self.history = raw["history"]
        self.cookies = dict(raw["cookies"])
        self.http_version = raw["http_version"]
        self.elapsed = raw["elapsed"]
        self.body = raw["body"]

    @property
    def ok(self) -> bool:
        """Whether the status is below 400."""
        return self.status < 400

    @property
    def encoding(self) -> str:
        """The charset that the Content-Type header names, if Python knows it, else "utf-8"."""
        return charset_of(self.headers)

    def text(self, encoding: str | None = None) -> str:
        """The body as text; what cannot be decoded becomes U+FFFD.

        :param encoding: instead of `encoding`. An unknown one raises LookupError.
        """
        return self.body.decode(self.encoding if encoding is None else encoding, "replace")

    def json(self) -> Any:
        """The body as JSON. Raises ValueError when it is not."""
        return json.loads(self.body)

    def raise_for_status(self) -> Response:
        """Returns the response itself if it is `ok`, else raises HttpStatusError."""
        if not self.ok:
            raise HttpStatusError(f"{self.url} answered with {int(self.status)} {self.reason}".rstrip(), self)
        return self

    def __repr__(self) -> str:
        return f"<Response {int(self.status)} {self.reason} from {self.url}>"


def charset_of(headers: Headers) -> str:
    kind = Message()
    kind["Content-Type"] = headers.get("Content-Type", "").split(",")[0]
    charset = kind.get_content_charset()
    if charset is None:
        return "utf-8"
    try:
        name = codecs.lookup(charset).name
        "".encode(name)  # LookupError for what makes bytes of bytes: "hex", "zlib"
    except (LookupError, ValueError):
        return "utf-8"
    return "utf-8" if name.replace("-", "_") in _NOT_CHARSETS else name


def status_error(text: str, raw: dict[str, Any]) -> HttpStatusError:
    """For the native side."""
    return HttpStatusError(text, Response(raw))


class Chunks:
    """The pieces of a body on their way to `on_chunk`."""

    def __init__(self, on_chunk: Callable[[Any], object], text_chunks: bool) -> None:
        self._on_chunk = on_chunk
        self._text = text_chunks
        self._decode: Callable[[bytes, bool], str] | None = None

    def begin(self, raw: dict[str, Any]) -> None:
        if self._text:
            charset = charset_of(Headers(raw["headers"]))
            self._decode = codecs.getincrementaldecoder(charset)("replace").decode

    def feed(self, data: bytes, end: bool = False) -> None:
        piece: bytes | str = data if self._decode is None else self._decode(data, end)
        if piece:
            self._on_chunk(piece)

    def sink(self, kind: str, value: Any) -> None:
        if kind == "head":
            self.begin(value)
        else:
            self.feed(value)
