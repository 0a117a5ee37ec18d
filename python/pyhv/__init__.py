"""pyHV: HTTP and WebSocket, server and client, for programs that own their main loop.

Native threads do the I/O without the GIL; the program calls `tick()`, and every callback runs there, on its own
thread. Start with `HvWebServer` and `HvWebSocketClient`.
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
    ConnectError,
    ConnectionRefused,
    ConnectTimeout,
    HandshakeError,
    NameResolutionError,
    PyHVError,
    TlsError,
)
from pyhv.http import Headers, QueryParams, WsUpgrade
from pyhv.opcode import WsOpcode
from pyhv.server import Handler, HvWebServer, StreamHandler

__all__ = [
    "BadRequest",
    "ConnectError",
    "ConnectTimeout",
    "ConnectionRefused",
    "Handler",
    "HandshakeError",
    "Headers",
    "HttpRequest",
    "HttpResponse",
    "HvWebServer",
    "HvWebSocketClient",
    "NameResolutionError",
    "PyHVError",
    "QueryParams",
    "StreamHandler",
    "StreamWriter",
    "TlsError",
    "WebSocketChannel",
    "WsOpcode",
    "WsUpgrade",
    "__version__",
    "io_threads",
    "set_io_threads",
]

__version__ = _version("pyhv")

if hasattr(_os, "register_at_fork"):
    _os.register_at_fork(after_in_child=_native._after_fork_in_child)

# Functions registered later, such as a program's own, run before it.
_atexit.register(_native._before_exit)
