"""`pyhv serve`: the files of a folder."""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import time
from pathlib import Path
from typing import Any

from pyhv import HvWebServer, WebSocketChannel, WsUpgrade
from pyhv._cli import options as opts
from pyhv._cli.dev_cert import NAMES, files_in, make
from pyhv._cli.output import CommandError, Output, clock, state_folder, terminating
from pyhv._cli.reload import SCRIPT_PATH, SOCKET_PATH, Pages
from pyhv._cli.text import printable, size

_EPILOG = """\
Files come with entity tags and ranges; browsers ask each time whether they have changed. Hidden names (.git) and links
that lead out of the folder are not served. --reload adds a script to every HTML page; it looks for changes every 0.3 s,
less often in large folders, and reloads style sheets without the page.

examples:
  pyhv serve                              the current folder on http://127.0.0.1:8000
  pyhv serve site --reload                pages reload when a file changes
  pyhv serve build -p 0 --host 0.0.0.0    a free port, for the whole network
  pyhv serve site --tls                   also https, with a certificate for development
  pyhv serve site --tls --cert cert.pem --key key.pem
  pyhv serve site --echo /ws              and a WebSocket that sends back what it gets

exit status: 0 after Ctrl-C or SIGTERM, 1 it cannot serve, 2 the command line is wrong, 141 nobody reads the output.
"""

#: Seconds for which a certificate that was made here is used again. Made ones are valid for 397 days.
_CERTIFICATE_AGE = 300 * 86_400

#: Seconds that connections have at the end.
_STOP_TIMEOUT = 0.5


def add(commands: opts.Commands) -> None:
    """Adds the command to the parser."""
    parser = opts.command(
        commands,
        "serve",
        run,
        help="serve the files of a folder",
        description="Serves the files of a folder by HTTP, and by HTTPS too with --tls.",
        epilog=_EPILOG,
    )
    parser.add_argument("dir", nargs="?", type=Path, default=Path(), metavar="DIR", help="the folder (the current one)")
    opts.add_address(parser, 8000)
    parser.add_argument("--reload", action="store_true", help="pages reload when a file changes")
    parser.add_argument(
        "--echo", nargs="?", const="/echo", metavar="PATH", help="a WebSocket that sends back what it gets (/echo)"
    )
    parser.add_argument("--home-page", default="index.html", metavar="NAME", help="file for a folder (index.html)")
    parser.add_argument("--no-listing", action="store_true", help="do not list folders without a home page")
    parser.add_argument("--cors", action="store_true", help="let pages of every origin read, and connect to the echo")
    parser.add_argument(
        "--cache-control", default="no-cache", metavar="VALUE", help="header for files (no-cache: ask each time)"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="no line for each request")
    opts.add_inside(parser)
    tls = parser.add_argument_group("TLS")
    tls.add_argument("--tls", action="store_true", help="serve https and wss too")
    tls.add_argument(
        "--tls-port", type=opts.port, metavar="N", help="port for it (8443, or a free one with --port 0; 0: a free one)"
    )
    tls.add_argument("--cert", metavar="FILE", help="PEM file with the certificate (one for development)")
    tls.add_argument("--key", metavar="FILE", help="its key, unless it is in the same file")


def run(options: argparse.Namespace) -> int:
    """Serves until Ctrl-C or SIGTERM."""
    if not options.tls and (options.cert or options.key or options.tls_port is not None):
        raise CommandError("--cert, --key and --tls-port need --tls", 2)
    if options.key and not options.cert:
        raise CommandError("--key needs --cert", 2)
    if options.echo is not None and not options.echo.startswith("/"):
        raise CommandError(f"--echo {options.echo!r} does not begin with a slash", 2)
    if not options.dir.is_dir():
        raise CommandError(f"{options.dir} is {'not a folder' if options.dir.exists() else 'not there'}")
    out = Output.stdout(options.color)
    server = _Server(options, out)
    log = logging.getLogger("pyhv.access")
    lines = _AccessLines(out, options.dashboard or options.metrics)
    try:
        with terminating(None):
            authority = _start(server, options)
            for text in _greeting(server, options, authority):
                out.line(text)
            if not options.quiet:
                log.addHandler(lines)
                log.setLevel(logging.INFO)
                log.propagate = False
            while True:
                server.tick(min((limit for limit in (server.wait(), out.patience) if limit is not None), default=None))
                out.check()
    except KeyboardInterrupt:
        return 0
    finally:
        server.stop(_STOP_TIMEOUT)
        log.removeHandler(lines)
        log.propagate = True


def _start(server: _Server, options: argparse.Namespace) -> Path | None:
    """Listens; returns the authority of a certificate that was made here."""
    settings: dict[str, Any] = {"allowed_origins": "*" if options.cors else None}
    authority = None
    if options.tls:
        settings["tls_port"] = options.tls_port if options.tls_port is not None else 8443 if options.port else 0
        if options.cert:
            settings["certfile"], settings["keyfile"] = options.cert, options.key
        else:
            try:
                files = _certificate(options.host)
            except OSError as error:
                raise CommandError(f"no certificate can be kept: {error} (--cert FILE names one)") from None
            settings["certfile"], settings["keyfile"], authority = files["cert"], files["key"], files["ca"]
    try:
        server.start(options.port, options.host, **settings)
    except OSError as error:
        raise opts.cannot_listen(error) from None
    except ValueError as error:
        raise CommandError(str(error)) from None
    return authority


def _certificate(host: str) -> dict[str, Path]:
    """A certificate for development, the same as last time unless it is old, so that browsers need to be told once."""
    names = list(NAMES)
    if host not in (*names, "0.0.0.0", "::"):
        names.append(host)
    tag = hashlib.sha256("\0".join(names).encode()).hexdigest()[:12]
    folder = state_folder() / f"dev-cert-{tag}"
    files = files_in(folder)
    try:
        if all(time.time() - file.stat().st_mtime < _CERTIFICATE_AGE for file in files.values()):
            return files
    except OSError:
        pass
    try:
        return make(folder, names)
    except ValueError as error:
        raise CommandError(str(error)) from None


def _greeting(server: _Server, options: argparse.Namespace, authority: Path | None) -> list[str]:
    host = opts.url_host(options.host)
    what = f"{os.path.abspath(options.dir)}{' (reloading)' if options.reload else ''}"
    lines = [f"serving {printable(what)} (Ctrl-C stops)", f"  http://{host}:{server.port}/"]
    if server.tls_port is not None:
        lines.append(f"  https://{host}:{server.tls_port}/")
    if authority is not None:
        lines.append(f"    clients trust it with --ca {authority}; browsers ask")
    if options.echo is not None:
        lines.append(f"  ws://{host}:{server.port}{printable(options.echo)} sends back what it gets")
        if server.tls_port is not None:
            lines.append(f"  wss://{host}:{server.tls_port}{printable(options.echo)}")
    return lines + opts.inside_lines(f"http://{host}:{server.port}", options)


class _Server(HvWebServer):
    def __init__(self, options: argparse.Namespace, out: Output) -> None:
        self._options = options
        self._out = out
        self._pages: Pages | None = None
        if options.reload:
            self._pages = Pages(
                options.dir,
                home_page=options.home_page,
                listing=not options.no_listing,
                cache_control=options.cache_control,
            )

    def on_init(self) -> None:
        options = self._options
        if options.cors:
            self.allow_cors()
        if not options.quiet:
            self.enable_access_log()
        opts.enable_inside(self, options)
        if self._pages is not None:
            self.get(SCRIPT_PATH, self._pages.script)
            self.get("/", self._pages.answer)
            self.get("/*path", self._pages.answer)
        else:
            self.static(
                "/",
                options.dir,
                home_page=options.home_page,
                listing=not options.no_listing,
                cache_control=options.cache_control,
            )

    def wait(self) -> float | None:
        """Seconds until something is to be done without anybody asking for it."""
        return None if self._pages is None else self._pages.watcher.wait

    def on_tick(self) -> None:
        news = None if self._pages is None else self._pages.look()
        if news is None:
            return
        changed, message = news
        if not self._options.quiet:
            rest = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
            text = f"changed: {printable(changed[0])}{rest}"
            self._out.line(f"{self._out.paint(clock(), 'dim')} {self._out.paint(text, 'info')}")
        for channel in self.channels:
            if channel.path == SOCKET_PATH:
                channel.send(message)

    def on_ws_upgrade(self, request: WsUpgrade) -> bool | int:
        wanted = (self._options.echo, SOCKET_PATH if self._pages is not None else None)
        return True if request.path in wanted else 404

    def on_ws_open(self, channel: WebSocketChannel, url: str) -> None:
        if self._pages is not None and channel.path == SOCKET_PATH:
            self._pages.greet(channel)

    def on_ws_message(self, channel: WebSocketChannel, msg: str | bytes) -> None:
        if channel.path != SOCKET_PATH:
            channel.send(msg)


class _AccessLines(logging.Handler):
    """Requests as lines for people."""

    def __init__(self, out: Output, inside: bool) -> None:
        super().__init__()
        self._out = out
        self._inside = inside

    def emit(self, record: logging.LogRecord) -> None:
        fields: Any = record
        if fields.url.startswith("/.pyhv/") or (self._inside and opts.is_inside(fields.url)):
            return
        out, status = self._out, fields.status
        style = "error" if status >= 500 else "warning" if status >= 400 else "info" if status >= 300 else "good"
        # What a client sent has been escaped in the record.
        out.line(
            f"{out.paint(clock(fields.started), 'dim')} {out.paint(str(status), style)} {fields.method} {fields.url} "
            + out.paint(f"{size(fields.size)}, {fields.duration * 1000:.1f} ms, {fields.client_address}", "dim")
        )
