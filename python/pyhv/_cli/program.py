"""The program's server, found by name, and served until it is to end: what a process of `pyhv run` does."""

from __future__ import annotations

import difflib
import importlib
import inspect
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pyhv import HvWebServer
from pyhv._cli.output import CommandError

__all__ = ["Asked", "Spec", "load", "notify", "parts_of", "serve", "set_up_logs"]

#: RFC 6455 section 7.4.1, "going away", and "service restart", as IANA has registered it.
STOP, RESTART = 1001, 1012
_REASONS = {STOP: "the server stops", RESTART: "the server restarts"}

#: Seconds of draining, and of spreading closes, where the command line says nothing. At a restart others are there.
_LEAVE = {STOP: 0.0, RESTART: 2.0}


@dataclass
class Spec:
    """What is served, and how. Times are in seconds."""

    app: str
    #: For `start`.
    settings: dict[str, Any] = field(default_factory=dict)
    access_log: bool = False
    #: Longest time between two ticks.
    interval: float | None = None
    #: For clients to leave by themselves, and over which the others are closed; None: as _LEAVE has it.
    drain: float | None = None
    spread: float | None = None
    stop_timeout: float = 10.0

    def drain_for(self, code: int) -> float:
        return _LEAVE[code] if self.drain is None else self.drain

    def spread_for(self, code: int) -> float:
        return min(_LEAVE[code], self.stop_timeout) if self.spread is None else self.spread

    def leave_for(self, code: int) -> float:
        """How long the end may take."""
        return self.drain_for(code) + self.stop_timeout


# The server


def load(app: str) -> HvWebServer:
    """The server that `module:name` stands for: a class of it, a function that makes one, or one.

    Raises CommandError when it is none of them, and whatever the program raises.
    """
    module_name, name = parts_of(app)
    # As `python -m` does; the script `pyhv` lies elsewhere.
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # Not one that the module itself looks for in vain.
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise CommandError(f"there is no module {error.name!r} in {os.getcwd()} or where Python looks") from None
    for part in name.split("."):
        if not hasattr(found, part):
            raise CommandError(_no_attribute(app, found, part))
        found = getattr(found, part)
    if isinstance(found, HvWebServer):
        server = found
    elif isinstance(found, type) and not issubclass(found, HvWebServer):
        raise CommandError(f"{app} is a class, but none of pyhv.HvWebServer")
    elif callable(found):
        try:
            inspect.signature(found).bind()
        except TypeError as error:
            raise CommandError(f"{app} cannot be called without arguments: {error}") from None
        except ValueError:
            pass  # made in C, without a signature
        made: object = found()
        if not isinstance(made, HvWebServer):
            raise CommandError(f"{app}() returned {type(made).__name__}, not a pyhv.HvWebServer")
        server = made
    else:
        raise CommandError(f"{app} is of type {type(found).__name__}, not a pyhv.HvWebServer or what makes one")
    if server.is_running:
        raise CommandError(f"{app} runs already: `pyhv run` starts it, the module must not")
    return server


def parts_of(app: str) -> tuple[str, str]:
    """Module and name. Raises CommandError for what is neither."""
    module_name, colon, name = app.partition(":")
    if not (colon and module_name and name):
        raise CommandError(f"{app!r} is not MODULE:NAME, such as game:Server", 2)
    if module_name.endswith(".py") or os.sep in module_name:
        guess = os.path.splitext(module_name)[0].strip("./").replace(os.sep, ".")
        raise CommandError(f"{module_name} is a file: name its module, {guess}:{name}", 2)
    return module_name, name


def _no_attribute(app: str, found: Any, part: str) -> str:
    where = getattr(found, "__name__", None) or repr(found)
    close = difflib.get_close_matches(part, dir(found), 1)
    servers = [
        name
        for name, value in vars(found).items()
        if isinstance(value, type) and issubclass(value, HvWebServer) and value is not HvWebServer
    ]
    hint = close or servers
    return f"{app}: {where} has no {part!r}" + (f"; did you mean {hint[0]!r}?" if hint else "")


def set_up_logs(prefix: str, access_log: bool) -> None:
    """What the program and the library log goes to stderr, unless the program has seen to that."""
    root = logging.getLogger()
    if not root.handlers:
        logging.basicConfig(level=logging.INFO, format=f"%(asctime)s {prefix}%(levelname)s %(name)s: %(message)s")
    if access_log:
        logging.getLogger("pyhv.access").setLevel(logging.INFO)


# Its life


class Asked:
    """Whether a server is to end, and how. `ask` may be called on any thread and by a signal's handler."""

    def __init__(self) -> None:
        #: STOP or RESTART.
        self.code: int | None = None
        self._server: HvWebServer | None = None
        # One that the thread which holds it may take again: a handler may come in between.
        self._lock = threading.RLock()

    def ask(self, code: int) -> None:
        """The server is to end; the first call counts."""
        with self._lock:
            if self.code is None:
                self.code = code
            self._tell()

    def watch(self, server: HvWebServer) -> None:
        """From here on `ask` ends this one's wait for something to happen."""
        with self._lock:
            self._server = server
            if self.code is not None:
                self._tell()

    def _tell(self) -> None:
        if self._server is not None:
            # After a restart others accept at the same socket. At a stop a load balancer has to notice first.
            self._server.drain(accept=self.code == STOP)


def serve(server: HvWebServer, spec: Spec, asked: Asked, ready: Callable[[], None]) -> None:
    """Starts the server and ticks it until it is asked to end, or ends itself.

    Raises what `start` raises, and KeyboardInterrupt and SystemExit of callbacks.
    """
    if spec.access_log:
        server.enable_access_log()
    settings = dict(spec.settings)
    if backplane := os.environ.get("PYHV_BACKPLANE"):
        # Not by way of the command line of a worker, which everybody on the machine can read.
        settings.setdefault("backplane", backplane)
    server.start(**settings)
    timeout, leave = 0.0, STOP
    try:
        server.tick()
        asked.watch(server)
        if asked.code is None:
            ready()
        while server.is_running and asked.code is None:
            server.tick(spec.interval)
        leave = asked.code or STOP
        end = time.monotonic() + spec.drain_for(leave)
        while server.is_running and server._connections():
            left = end - time.monotonic()
            if left <= 0:
                break
            # That a connection has ended wakes nobody.
            server.tick(min(left, 0.1))
        timeout = spec.stop_timeout
    finally:
        # At once, if an exception is on its way.
        spread = min(spec.spread_for(leave), timeout)
        server.stop(timeout, code=leave, reason=_REASONS[leave], spread=spread)


def notify(**values: object) -> None:
    """Tells a service manager, if there is one that wants to know (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address or not hasattr(socket, "AF_UNIX"):
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    text = "\n".join(f"{name}={value}" for name, value in values.items())
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.connect(address)
            manager.sendall(text.encode())
    except OSError as error:
        # It will complain by itself that nothing came.
        logging.getLogger("pyhv.run").warning("the service manager cannot be told: %s", error)
