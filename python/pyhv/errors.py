"""The exceptions of pyHV.

::

    PyHVError
    ├── BadRequest                what a client sent will not do (also a ValueError); uncaught it is answered by 400
    ├── ConnectError              a client got no connection
    │   ├── NameResolutionError   the host name has no address
    │   ├── ConnectionRefused     nobody listens there (also a ConnectionRefusedError)
    │   ├── TlsError              no TLS, or the server's certificate is not to be trusted
    │   ├── ConnectTimeout        open_timeout, of HTTP connect_timeout, passed (also a TimeoutError)
    │   └── HandshakeError        somebody answered, but not as a WebSocket server; `status` tells how
    └── HttpError                 there was a connection, but an HTTP request got no response that can be used
        ├── HttpTimeout           timeout passed (also a TimeoutError)
        ├── TooManyRedirects      more of them than redirects allows
        ├── BodyTooLarge          more bytes than max_response_size or max_event_size allows
        ├── ProtocolError         what came is not proper HTTP
        ├── RequestFailed         the connection ended too early, or anything else
        └── HttpStatusError       of `Response.raise_for_status`; `response` has it

`HvWebSocketClient.on_error` gets a ConnectError. A request gets either kind; each names its URL, without user and
password.

Misuse raises Python's own ValueError, TypeError and RuntimeError at the call; what the system refuses raises OSError.
What a peer does wrong never raises: it ends that peer's channel, and the close code says why.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyhv.response import Response

__all__ = [
    "BadRequest",
    "BodyTooLarge",
    "ConnectError",
    "ConnectTimeout",
    "ConnectionRefused",
    "HandshakeError",
    "HttpError",
    "HttpStatusError",
    "HttpTimeout",
    "NameResolutionError",
    "ProtocolError",
    "PyHVError",
    "RequestFailed",
    "TlsError",
    "TooManyRedirects",
]


class PyHVError(Exception):
    """Base of every exception that pyHV declares."""


class BadRequest(PyHVError, ValueError):  # noqa: N818 - named like its status
    """What a client sent will not do: `request.json()` and its like raise it, and handlers may.

    A handler that lets it go answers with 400 and "400 Bad Request: " before the exception's text; nothing is logged.
    """


class ConnectError(PyHVError):
    """A client got no connection."""


class NameResolutionError(ConnectError):
    """The host name has no address."""


class ConnectionRefused(ConnectError, ConnectionRefusedError):  # noqa: N818 - named like its builtin base
    """Nobody listens at the address."""


class TlsError(ConnectError):
    """The server does not speak TLS, or its certificate is not to be trusted."""


class ConnectTimeout(ConnectError, TimeoutError):  # noqa: N818 - named like its builtin base
    """Resolving, connecting and the opening handshake took longer than `open_timeout`, for HTTP `connect_timeout`."""


class HandshakeError(ConnectError):
    """Somebody answered, but not as a WebSocket server (RFC 6455 section 4.1)."""

    def __init__(self, text: str, status: int | None = None) -> None:
        super().__init__(text)
        #: The HTTP status of the answer; None if it was not HTTP.
        self.status = status


class HttpError(PyHVError):
    """An HTTP request got no response that can be used."""


class HttpTimeout(HttpError, TimeoutError):  # noqa: N818 - named like its builtin base
    """The whole request took longer than `timeout`."""


class TooManyRedirects(HttpError):  # noqa: N818 - the name that it has everywhere
    """The server redirects more often than `redirects` allows."""


class BodyTooLarge(HttpError):  # noqa: N818 - says what happened
    """The response is larger than `max_response_size`, or one of its events than `max_event_size`."""


class ProtocolError(HttpError):
    """What came is not HTTP, or not in the encoding that it claims to have."""


class RequestFailed(HttpError):  # noqa: N818 - says what happened
    """The connection ended before the whole response had come, or something else went wrong on the way."""


class HttpStatusError(HttpError):
    """The response has an error status."""

    def __init__(self, text: str, response: Response) -> None:
        super().__init__(text)
        #: The response.
        self.response = response
