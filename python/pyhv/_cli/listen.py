"""`pyhv listen`: a server that shows what it gets."""

from __future__ import annotations

import argparse
import logging
from typing import Any, TypeVar

from pyhv import Headers, HttpRequest, HttpResponse, HvWebServer, WebSocketChannel
from pyhv._cli import options as opts
from pyhv._cli.output import Output, clock, terminating
from pyhv._cli.text import hex_dump, is_json, pretty_json, printable, size

_EPILOG = """\
Every path and method is answered with 200, or --status, and an empty body, or --respond, or what came with --echo. A
WebSocket is accepted on every path. Bodies with a Content-Encoding are shown decoded, forms as their fields and files.
Control characters are escaped, and so are those that change the direction of text.

examples:
  pyhv listen                                   on http://127.0.0.1:8080 and ws://127.0.0.1:8080
  pyhv listen -p 0                              on a port that is free; the first line says which
  pyhv listen --respond '{"ok": true}'          answers with JSON
  pyhv listen --status 503 -H 'Retry-After: 1'  how does a client take that?
  pyhv listen --echo                            bodies and messages go back as they came
  pyhv listen --full | tee log                  nothing is cut short

exit status: 0 after Ctrl-C or SIGTERM, 1 it cannot listen, 2 the command line is wrong, 141 nobody reads the output.
"""

_T = TypeVar("_T", str, bytes)

#: Of a body or message, unless --full: characters of text, bytes of anything else.
_MOST_TEXT = 4096
_MOST_BYTES = 256


def add(commands: opts.Commands) -> None:
    """Adds the command to the parser."""
    parser = opts.command(
        commands,
        "listen",
        run,
        help="show every request and message that comes",
        description="Listens for HTTP and WebSocket, and shows every request and message that comes.",
        epilog=_EPILOG,
    )
    opts.add_address(parser, 8080)
    parser.add_argument("--status", type=_status, default=200, metavar="N", help="status to answer requests with (200)")
    parser.add_argument(
        "-H", "--header", type=opts.header, action="append", default=[], metavar="LINE", help="header to answer with"
    )
    answer = parser.add_mutually_exclusive_group()
    answer.add_argument("--respond", metavar="BODY", help="body to answer requests with, as JSON if it is")
    answer.add_argument("--echo", action="store_true", help="answer with the body that came, and send messages back")
    parser.add_argument("--full", action="store_true", help="cut nothing short")
    parser.add_argument("--raw", action="store_true", help="do not lay out JSON")
    parser.add_argument("--cors", action="store_true", help="let pages of every origin read the answers, and connect")
    opts.add_inside(parser)
    parser.add_argument(
        "--max-body", type=opts.positive, default=64 << 20, metavar="N", help="largest body and message, bytes (64 MiB)"
    )


def _status(text: str) -> int:
    value = int(text)
    if not 200 <= value <= 599:
        raise ValueError
    return value


def run(options: argparse.Namespace) -> int:
    """Listens until Ctrl-C or SIGTERM."""
    out = Output.stdout(options.color)
    server = _Listener(options, out)
    access = logging.getLogger("pyhv.access")
    refused = _Refused(options, out)
    access.addHandler(refused)
    access.setLevel(logging.INFO)
    access.propagate = False
    try:
        with terminating(None):
            try:
                server.start(
                    options.port,
                    options.host,
                    max_body_size=options.max_body,
                    max_message_size=options.max_body,
                    max_upload_size=max(options.max_body, 256 << 20),
                    allowed_origins="*",
                )
            except OSError as error:
                raise opts.cannot_listen(error) from None
            where = f"{opts.url_host(options.host)}:{server.port}"
            out.line(f"listening on http://{where}/ and ws://{where}/ (Ctrl-C stops)")
            for line in opts.inside_lines(f"http://{where}", options):
                out.line(line)
            while True:
                server.tick(out.patience)
                out.check()
    except KeyboardInterrupt:
        return 0
    finally:
        server.stop(0.5)
        access.removeHandler(refused)
        access.propagate = True


class _Refused(logging.Handler):
    """Shows the requests that the native side answers by itself, so that no handler sees them: bad ones, above all."""

    def __init__(self, options: argparse.Namespace, out: Output) -> None:
        super().__init__()
        self._ours = {options.status, 101}
        self._inside = options.dashboard or options.metrics
        self._out = out

    def emit(self, record: logging.LogRecord) -> None:
        fields: Any = record
        if fields.status not in self._ours and not (self._inside and opts.is_inside(fields.url)):
            # What is in the fields has been escaped.
            line = f"{fields.client_address} {fields.method} {fields.url} HTTP/{fields.http_version}"
            refused = self._out.paint(f"answered with {fields.status}", "warning")
            self._out.line(f"{self._out.paint(clock(fine=True), 'dim')} {line} {refused}")


class _Listener(HvWebServer):
    def __init__(self, options: argparse.Namespace, out: Output) -> None:
        self._options = options
        self._out = out
        self._numbers = 0

    def on_init(self) -> None:
        if self._options.cors:
            self.allow_cors()
        self.enable_access_log()
        opts.enable_inside(self, self._options)
        for path in ("/", "/*path"):
            self.any(path, self._request)

    # HTTP

    def _request(self, request: HttpRequest, response: HttpResponse) -> int:
        out = self._out
        host, port = request.remote_address
        first = f"{out.paint(printable(request.method), 'bold')} {printable(request.url)} HTTP/{request.http_version}"
        out.line(f"{self._when()} {printable(host)}:{port} {first}")
        self._headers(request.headers)
        self._content(request)
        out.line()
        return self._answer(request, response)

    def _answer(self, request: HttpRequest, response: HttpResponse) -> int:
        status: int = self._options.status
        if self._options.echo:
            kind = request.headers.get("Content-Type", "application/octet-stream")
            response.data(request.body, kind, status=status)
        elif self._options.respond is not None:
            body: str = self._options.respond
            response.text(body, status=status)
            if is_json(body):
                response.set_content_type("application/json")
        for name, value in self._options.header:
            response.add_header(name, value)
        return status

    def _headers(self, headers: Headers) -> None:
        for name, value in headers.pairs():
            self._out.line(f"  {self._out.paint(printable(name), 'key')}: {printable(value)}")

    def _content(self, request: HttpRequest) -> None:
        if request.headers.get("Content-Type", "").lower().startswith("multipart/form-data"):
            self._form(request)
        elif request.body:
            self._out.line()
            try:
                self._text(request.text())
            except ValueError:
                self._binary(request.body)

    def _form(self, request: HttpRequest) -> None:
        out = self._out
        out.line()
        for name, text in request.form().pairs():
            shown, rest = self._cut(text, _MOST_TEXT)
            out.line(f"  {out.paint(printable(name), 'key')} = {printable(shown, out.paint)}{rest}")
        for name, file in request.files.pairs():
            kind = printable(f"{file.filename!r}, {file.content_type}")
            out.line(f"  {out.paint(printable(name), 'key')} = file {kind}, {size(file.size)}")

    # WebSocket

    def on_ws_open(self, channel: WebSocketChannel, url: str) -> None:
        self._numbers += 1
        channel.data = self._numbers
        address = channel.remote_address
        whence = "" if address is None else f" {printable(address[0])}:{address[1]}"
        self._out.line(f"{self._when()}{whence} {self._name(channel)} open {printable(url)}")
        self._headers(channel.headers)
        self._out.line()

    def on_ws_message(self, channel: WebSocketChannel, msg: str | bytes) -> None:
        kind = f"text, {len(msg):,} characters" if isinstance(msg, str) else f"binary, {len(msg):,} bytes"
        self._out.line(f"{self._when()} {self._name(channel)} {kind}")
        if isinstance(msg, str):
            self._text(msg)
        else:
            self._binary(msg)
        self._out.line()
        if self._options.echo:
            channel.send(msg)

    def on_ws_close(self, channel: WebSocketChannel) -> None:
        reason = f" {printable(channel.close_reason)}" if channel.close_reason else ""
        self._out.line(f"{self._when()} {self._name(channel)} closed with {channel.close_code}{reason}")
        self._out.line()

    # What is shown

    def _name(self, channel: WebSocketChannel) -> str:
        return self._out.paint(f"WebSocket {channel.data}", "bold")

    def _when(self) -> str:
        return self._out.paint(clock(fine=True), "dim")

    def _cut(self, content: _T, most: int) -> tuple[_T, str]:
        """What is shown, and a note about what is not."""
        if self._options.full or len(content) <= most:
            return content, ""
        unit = "characters" if isinstance(content, str) else "bytes"
        note = self._out.paint(f"... {len(content) - most:,} more {unit} (--full)", "dim")
        return content[:most], note

    def _text(self, text: str) -> None:
        out = self._out
        if not self._options.raw and is_json(text):
            # Cut behind the layout: half of a text is no JSON.
            lines = pretty_json(text, out.paint).split("\n")
            most = len(lines) if self._options.full else 100
            shown = "\n".join(lines[:most])
            rest = "" if most >= len(lines) else out.paint(f"... {len(lines) - most:,} more lines (--full)", "dim")
        else:
            cut, rest = self._cut(text, _MOST_TEXT)
            shown = printable(cut, out.paint, lines=True)
        for line in [*shown.split("\n"), *([rest] if rest else [])]:
            out.line(f"  {line}" if line else "")

    def _binary(self, data: bytes) -> None:
        cut, rest = self._cut(data, _MOST_BYTES)
        for line in [*hex_dump(cut), *([rest] if rest else [])]:
            self._out.line(f"  {line}")
