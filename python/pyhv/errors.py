"""The exceptions of pyHV.

::

    PyHVError
    ├── BadRequest                what a client sent will not do (also a ValueError); uncaught it is answered by 400
    └── ConnectError              a client got no connection; `HvWebSocketClient.on_error` gets one of these
        ├── NameResolutionError   the host name has no address
        ├── ConnectionRefused     nobody listens there (also a ConnectionRefusedError)
        ├── TlsError              no TLS, or the server's certificate is not to be trusted
        ├── ConnectTimeout        open_timeout passed (also a TimeoutError)
        └── HandshakeError        somebody answered, but not as a WebSocket server; `status` tells how

Misuse raises Python's own ValueError, TypeError and RuntimeError at the call; what the system refuses raises OSError.
What a peer does wrong never raises: it ends that peer's channel, and the close code says why.
"""

from __future__ import annotations

__all__ = [
    "BadRequest",
    "ConnectError",
    "ConnectTimeout",
    "ConnectionRefused",
    "HandshakeError",
    "NameResolutionError",
    "PyHVError",
    "TlsError",
]


class PyHVError(Exception):
    """Base of every exception that pyHV declares."""


class BadRequest(PyHVError, ValueError):  # noqa: N818 - named like its status
    """What a client sent will not do: `request.json()` and its like raise it, and handlers may.

    A handler that lets it go answers with 400 and the exception's text; nothing is logged.
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
    """Resolving, connecting and the opening handshake took longer than `open_timeout`."""


class HandshakeError(ConnectError):
    """Somebody answered, but not as a WebSocket server (RFC 6455 section 4.1)."""

    def __init__(self, text: str, status: int | None = None) -> None:
        super().__init__(text)
        #: The HTTP status of the answer; None if it was not HTTP.
        self.status = status
