"""`pyhv run`: a program's server, in this process or in several."""

from __future__ import annotations

import argparse
import difflib
import inspect
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from pyhv import HvWebServer, listen_fds
from pyhv._cli import options as opts
from pyhv._cli.output import CommandError, Output
from pyhv._cli.program import STOP, Asked, Spec, load, notify, parts_of, serve, set_up_logs
from pyhv._cli.supervisor import Supervisor, bind
from pyhv._cli.text import printable

_EPILOG = """\
APP is MODULE:NAME, where NAME is a class of pyhv.HvWebServer, a function that returns a server, or a server; the module
is looked for in the current folder first. Its on_init adds the routes; whatever `start` takes can be --set.

With --workers N the server runs in N processes that share the port, under a supervisor that starts a new one for one
that dies. A program sees its number in PYHV_WORKER, 1 to N. Nothing else is shared: each worker has its own channels.
Topics reach those of all with a backplane: the environment's PYHV_BACKPLANE, redis://HOST or nats://HOST, where a
password stays out of the list of processes, or --set backplane=URL.

examples:
  pyhv run game:Server                            one process, http://127.0.0.1:8000
  pyhv run game:Server --workers auto             one for each core
  pyhv run game:make_server -p 80 --host 0.0.0.0 --workers 4
  pyhv run game:Server --tls-port 443 --certfile cert.pem --keyfile key.pem
  pyhv run game:Server --set max_connections=1000 --trusted-proxy 127.0.0.1

signals: Ctrl-C and SIGTERM stop gracefully, a second one at once. With --workers, SIGHUP restarts one worker after the
other, so that somebody always serves.

exit status: 0 after Ctrl-C or SIGTERM, 1 it cannot serve, 2 the command line is wrong, 3 no worker became ready, 130
and 143 stopped at once, 141 nobody reads the output.
"""


def add(commands: opts.Commands) -> None:
    """Adds the command to the parser."""
    parser = opts.command(
        commands,
        "run",
        run,
        help="run a program's server, in one process or several",
        description="Runs the HvWebServer of a program, in this process or, with --workers, in several.",
        epilog=_EPILOG,
    )
    parser.add_argument("app", metavar="APP", help="the server, as MODULE:NAME")
    opts.add_address(parser, 8000)
    parser.set_defaults(port=None)
    parser.add_argument("--workers", type=_workers, metavar="N", help="processes under a supervisor; auto: one a core")
    parser.add_argument(
        "--one-socket", action="store_true", help="all workers accept at one socket (Linux: each has its own)"
    )
    parser.add_argument(
        "--interval", type=opts.seconds, metavar="SECONDS", help="longest time between two ticks, for on_tick (none)"
    )
    parser.add_argument(
        "--set",
        type=_setting,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting of HvWebServer.start; VALUE is JSON, or else text; may be repeated",
    )
    parser.add_argument(
        "--trusted-proxy",
        action="append",
        default=[],
        metavar="ADDRESS",
        help="a reverse proxy, whose X-Forwarded-For is believed; may be repeated",
    )
    parser.add_argument("--access-log", action="store_true", help="log each request, on stderr")
    tls = parser.add_argument_group("TLS")
    tls.add_argument("--tls-port", type=opts.port, metavar="N", help="port for https and wss (0: a free one)")
    tls.add_argument("--certfile", "--cert", metavar="FILE", help="PEM file with the certificate")
    tls.add_argument("--keyfile", "--key", metavar="FILE", help="its key, unless it is in the same file")
    end = parser.add_argument_group("the end")
    end.add_argument(
        "--stop-timeout",
        type=opts.seconds,
        default=10.0,
        metavar="SECONDS",
        help="for connections to be closed (10), then they are dropped",
    )
    end.add_argument(
        "--drain",
        type=opts.seconds_or_zero,
        metavar="SECONDS",
        help="before that, for clients to leave by themselves (0; 2 at a restart)",
    )
    end.add_argument(
        "--spread",
        type=opts.seconds_or_zero,
        metavar="SECONDS",
        help="of the stop timeout, to close WebSockets one after the other (0; 2 at a restart)",
    )
    end.add_argument(
        "--start-timeout",
        type=opts.seconds,
        default=60.0,
        metavar="SECONDS",
        help="for a worker to become ready (60), then it is killed",
    )
    parser.add_argument("--pid-file", type=Path, metavar="FILE", help="write the process's id there, while it runs")


def _workers(text: str) -> int:
    return _cores() if text == "auto" else opts.positive(text)


def _cores() -> int:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def run(options: argparse.Namespace) -> int:
    """Serves until Ctrl-C or SIGTERM."""
    _check(options)
    out = Output.stdout(options.color)
    spec = _spec(options)
    with _Places(options) as places, _own_logs(), _pid_file(options.pid_file):
        places.check(options)
        if options.workers is None:
            return _alone(spec, places, options, out)
        return _supervised(spec, places, options, out)


def _check(options: argparse.Namespace) -> None:
    parts_of(options.app)
    if options.keyfile and not options.certfile:
        raise CommandError("--keyfile needs --certfile", 2)
    for name in ("certfile", "keyfile"):
        path = getattr(options, name)
        if path is not None and not Path(path).is_file():
            raise CommandError(f"--{name}: {path} is not there")
    if options.spread is not None and options.spread > options.stop_timeout:
        raise CommandError(f"--spread {options.spread:g} is more than --stop-timeout {options.stop_timeout:g}", 2)
    if options.one_socket and options.workers is None:
        raise CommandError("--one-socket needs --workers", 2)
    if options.workers is not None and os.name != "posix":
        raise CommandError("--workers needs a Unix system: without it one process serves", 2)


def _spec(options: argparse.Namespace) -> Spec:
    settings = dict(options.set)
    taken = {"port", "host", "sockets", "tls_port", "tls_sockets", "certfile", "keyfile", "reuse_port"} & set(settings)
    if taken:
        raise CommandError(f"--set {min(taken)}: there is an option of its own for that", 2)
    known = set(inspect.signature(HvWebServer.start).parameters) - {"self", "latest"}
    unknown = sorted(set(settings) - known)
    if unknown:
        close = difflib.get_close_matches(unknown[0], known, 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise CommandError(f"--set {unknown[0]}: HvWebServer.start has no such setting{hint}", 2)
    if options.trusted_proxy:
        settings["trusted_proxies"] = options.trusted_proxy
    if options.certfile:
        settings.update(certfile=options.certfile, keyfile=options.keyfile)
    return Spec(
        app=options.app,
        settings=settings,
        access_log=options.access_log,
        interval=options.interval,
        drain=options.drain,
        spread=options.spread,
        stop_timeout=options.stop_timeout,
    )


@contextmanager
def _own_logs() -> Iterator[None]:
    """The library's lines go where the program's go, and not, as with other commands, to stderr by themselves."""
    log = logging.getLogger("pyhv")
    handlers, propagate = log.handlers[:], log.propagate
    log.handlers.clear()
    log.propagate = True
    try:
        yield
    finally:
        log.handlers[:] = handlers
        log.propagate = propagate


@contextmanager
def _pid_file(path: Path | None) -> Iterator[None]:
    own = f"{os.getpid()}\n"
    if path is not None:
        try:
            path.write_text(own, encoding="ascii")
        except OSError as error:
            raise CommandError(f"--pid-file: {error}") from None
    try:
        yield
    finally:
        # Unless it is another's by now.
        if path is not None and path.is_file() and path.read_text(encoding="ascii") == own:
            path.unlink()


class _Places:
    """Where to listen: at a service manager's sockets, or at ports. Closes all sockets at its end."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.host: str = options.host
        self.port: int = 8000 if options.port is None else options.port
        self.tls_port: int | None = options.tls_port
        self.https = listen_fds("https")
        others = {each.getsockname() for each in self.https}
        self._open = [*self.https, *listen_fds()]
        self.http = [each for each in self._open[len(self.https) :] if each.getsockname() not in others]
        self.given = bool(self._open)

    def check(self, options: argparse.Namespace) -> None:
        """Raises CommandError for what does not go together."""
        named = [name for name in ("port", "tls_port") if getattr(options, name) is not None]
        if self.given and named:
            option = named[0].replace("_", "-")
            raise CommandError(f"the service manager has opened the sockets: leave --{option} to its unit", 2)
        if self.given and not self.http:
            raise CommandError("the service manager has opened a socket named https alone: one for http is needed too")
        if (options.certfile is None) != (options.tls_port is None and not self.https):
            raise CommandError("--tls-port and --certfile need each other", 2)

    def bound(self, workers: int, each: bool) -> list[tuple[list[socket.socket], list[socket.socket]]]:
        """Sockets for every worker; `each`: its own, for the same ports."""
        if self.given:
            return [(self.http, self.https)] * workers
        try:
            self.port, http = self._bound(self.port, workers, each)
            https: list[list[socket.socket]] = [[] for _ in range(workers)]
            if self.tls_port is not None:
                self.tls_port, https = self._bound(self.tls_port, workers, each)
        except OSError as error:
            text = f"cannot listen on {self.host}: {error.strerror}"
            raise opts.cannot_listen(OSError(error.errno, text)) from None
        return list(zip(http, https, strict=True))

    def _bound(self, port: int, workers: int, each: bool) -> tuple[int, list[list[socket.socket]]]:
        first = bind(self.host, port)
        port = first[0].getsockname()[1]
        if not each:
            self._open += first
            return port, [first] * workers
        # It was there to see that nobody listens yet: among those with SO_REUSEPORT that would be no error.
        for one in first:
            one.close()
        made = []
        for _ in range(workers):
            made.append(bind(self.host, port, reuse_port=True))
            self._open += made[-1]
        return port, made

    def __enter__(self) -> _Places:
        return self

    def __exit__(self, *_: object) -> None:
        for each in self._open:
            each.close()


def _greeting(what: str, host: str, port: int | None, tls_port: int | None) -> list[str]:
    shown = opts.url_host(host)
    lines = [f"serving {printable(what)} (Ctrl-C stops)", f"  http://{shown}:{port}/"]
    if tls_port is not None:
        lines.append(f"  https://{shown}:{tls_port}/")
    return lines


# Several processes


def _supervised(spec: Spec, places: _Places, options: argparse.Namespace, out: Output) -> int:
    count: int = options.workers
    # Elsewhere SO_REUSEPORT is there, but one socket may get all the clients.
    each = sys.platform == "linux" and not options.one_socket and count > 1
    sockets = places.bound(count, each)
    http, https = sockets[0]
    host, port = http[0].getsockname()[:2]
    tls_port = https[0].getsockname()[1] if https else None
    many = "1 worker" if count == 1 else f"{count} workers"
    what = f"{spec.app} with {many}, pid {os.getpid()}"
    for line in _greeting(what, host if places.given else options.host, port, tls_port):
        out.line(line)
    return Supervisor(spec, sockets, options.start_timeout, out).run()


# One process


def _alone(spec: Spec, places: _Places, options: argparse.Namespace, out: Output) -> int:
    if places.given:
        spec.settings["sockets"] = places.http
        if places.https:
            spec.settings["tls_sockets"] = places.https
    else:
        spec.settings.update(port=places.port, host=places.host, tls_port=places.tls_port)
    os.environ.setdefault("PYHV_WORKER", "1")
    os.environ.setdefault("PYHV_WORKERS", "1")
    asked = Asked()
    with _signals(asked) as seen:
        server = load(spec.app)
        set_up_logs("", spec.access_log)
        try:
            serve(server, spec, asked, lambda: _ready(server, spec, options, out))
        except KeyboardInterrupt:
            return 128 + seen[-1] if seen else 130
        except OSError as error:
            if server.is_running or "cannot listen" not in str(error):
                raise
            raise opts.cannot_listen(error) from None
    return 0


def _ready(server: HvWebServer, spec: Spec, options: argparse.Namespace, out: Output) -> None:
    host = options.host
    for line in _greeting(f"{spec.app}, pid {os.getpid()}", host, server.port, server.tls_port):
        out.line(line)
    notify(READY=1)


@contextmanager
def _signals(asked: Asked) -> Iterator[list[int]]:
    """The first Ctrl-C or SIGTERM asks, a second one insists."""
    seen: list[int] = []

    def handle(number: int, _frame: FrameType | None) -> None:
        seen.append(number)
        if asked.code is not None:
            raise KeyboardInterrupt
        notify(STOPPING=1)
        asked.ask(STOP)

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
