"""pyHV: HTTP and WebSocket, server and client, for programs that own their main loop.

Native threads do the I/O without the GIL; the program calls `tick()`, and every callback runs there, on its own
thread. Start with `HvWebServer`, `HvWebSocketClient`, `get` and `HttpClient`.
"""

from __future__ import annotations

import atexit as _atexit
import os as _os
from importlib.metadata import version as _version

from pyhv import _native
from pyhv._native import HttpRequest, HttpResponse, StreamWriter, WebSocketChannel, io_threads, set_io_threads
from pyhv.client import HvWebSocketClient
from pyhv.errors import (
    BadRequest,
    BodyTooLarge,
    ConnectError,
    ConnectionRefused,
    ConnectTimeout,
    HandshakeError,
    HttpError,
    HttpStatusError,
    HttpTimeout,
    NameResolutionError,
    ProtocolError,
    PyHVError,
    RequestFailed,
    TlsError,
    TooManyRedirects,
)
from pyhv.event_source import EventSource
from pyhv.forms import FormData, UploadedFile, UploadedFiles, safe_filename
from pyhv.http import Headers, QueryParams, WsUpgrade
from pyhv.http_client import (
    HttpCall,
    HttpClient,
    delete,
    get,
    head,
    options,
    patch,
    post,
    put,
    request,
)
from pyhv.listening import listen_fds
from pyhv.opcode import WsOpcode
from pyhv.reconnect import Reconnect
from pyhv.response import Response, ServerSentEvent
from pyhv.server import Handler, HvWebServer, StreamHandler
from pyhv.stats import ClientStats, ServerStats, TickTimes

__all__ = [
    "BadRequest",
    "BodyTooLarge",
    "ClientStats",
    "ConnectError",
    "ConnectTimeout",
    "ConnectionRefused",
    "EventSource",
    "FormData",
    "Handler",
    "HandshakeError",
    "Headers",
    "HttpCall",
    "HttpClient",
    "HttpError",
    "HttpRequest",
    "HttpResponse",
    "HttpStatusError",
    "HttpTimeout",
    "HvWebServer",
    "HvWebSocketClient",
    "NameResolutionError",
    "ProtocolError",
    "PyHVError",
    "QueryParams",
    "Reconnect",
    "RequestFailed",
    "Response",
    "ServerSentEvent",
    "ServerStats",
    "StreamHandler",
    "StreamWriter",
    "TickTimes",
    "TlsError",
    "TooManyRedirects",
    "UploadedFile",
    "UploadedFiles",
    "WebSocketChannel",
    "WsOpcode",
    "WsUpgrade",
    "__version__",
    "delete",
    "get",
    "head",
    "io_threads",
    "listen_fds",
    "options",
    "patch",
    "post",
    "put",
    "request",
    "safe_filename",
    "set_io_threads",
]

__version__ = _version("pyhv")

if hasattr(_os, "register_at_fork"):
    _os.register_at_fork(after_in_child=_native._after_fork_in_child)

# Functions registered later, such as a program's own, run before it.
_atexit.register(_native._before_exit)
