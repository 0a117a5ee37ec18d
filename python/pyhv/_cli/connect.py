"""`pyhv connect`: a WebSocket client in the terminal."""

from __future__ import annotations

import argparse
import os
import queue
import select
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

from pyhv import HvWebSocketClient, TlsError, WsOpcode
from pyhv._cli import editor
from pyhv._cli import options as opts
from pyhv._cli.output import CommandError, Output, clock, state_folder, terminating
from pyhv._cli.text import hex_dump, is_json, plain, pretty_json, printable

_EPILOG = """\
On a terminal a line that is typed is a message, and a line that begins with a slash is a command:
  /ping [TEXT]           send a ping
  /binary HEX | @FILE    send a binary message: /binary 0a0b
  /close [CODE [REASON]] close: /close 1000 goodbye
  /headers               what the server answered to the handshake
  /help, /quit           what there is; leave
  //text                 the message "/text"
Ctrl-D leaves, Ctrl-C breaks off. Lines are kept for the next time, but for those that begin with a space.

When input comes from somewhere else each of its lines is a message as it stands. When it ends, the connection is closed
as soon as nothing has come for --wait seconds.

Messages to a terminal have their control characters escaped; to a file or pipe they go as they came, a line each.

examples:
  pyhv connect ws://localhost:9090/chat
  pyhv connect localhost:9090                         the same without a path
  pyhv connect wss://example.com/feed -H 'Authorization: Bearer TOKEN' --subprotocol v2
  pyhv connect wss://localhost:8443/ --ca pyhv-dev-ca.pem
  pyhv connect ws://localhost:9090/ -m hello --once   send, print the answer, leave
  pyhv connect ws://localhost:9090/ <messages.txt >answers.txt
  pyhv connect ws://localhost:9090/ --no-input | jq .price

exit status: 0 closed normally: by you, or by the server with 1000 or without a code; 1 there was no connection; 2 the
command line is wrong; 3 closed otherwise; 4 no answer within --timeout with --once; 130 Ctrl-C, 141 nobody reads the
output, 143 SIGTERM.
"""

_COMMANDS = """\
/ping [TEXT]            send a ping
/binary HEX or @FILE    send a binary message
/close [CODE [REASON]]  close
/headers                what the server answered to the handshake
/quit                   leave
//text                  send /text"""

#: While more than this waits to be sent no more input is read.
_HIGH_WATER = 1 << 20  # bytes

#: Seconds between two looks at what cannot be waited for.
_POLL = 0.05

#: Seconds that the server has to answer our close after Ctrl-C.
_LEAVING = 1.0

_MOST_BYTES = 512  # of a binary message on a terminal, unless --full
_MOST_TEXT = 65_536  # characters of a text there


def add(commands: opts.Commands) -> None:
    """Adds the command to the parser."""
    parser = opts.command(
        commands,
        "connect",
        run,
        help="talk to a WebSocket server",
        description="Connects to a WebSocket server: what is typed is sent, what comes is shown.",
        epilog=_EPILOG,
    )
    parser.add_argument("url", metavar="URL", help="ws://..., wss://..., or HOST:PORT/PATH")
    parser.add_argument(
        "-H", "--header", type=opts.header, action="append", default=[], metavar="LINE", help="header, 'Name: value'"
    )
    parser.add_argument("--origin", metavar="ORIGIN", help="the same as -H 'Origin: ORIGIN'")
    parser.add_argument(
        "-s", "--subprotocol", action="append", default=[], metavar="NAME", help="subprotocol to offer; may be repeated"
    )
    parser.add_argument(
        "-m", "--message", action="append", default=[], metavar="TEXT", help="send this first; may be repeated"
    )
    parser.add_argument("-1", "--once", action="store_true", help="leave after the first message that comes")
    parser.add_argument("--no-input", action="store_true", help="read no input; stay until the server closes")
    parser.add_argument(
        "--wait", type=opts.seconds_or_zero, default=1.0, metavar="S", help="silence after the end of the input (1)"
    )
    parser.add_argument(
        "--timeout",
        type=opts.seconds,
        default=10.0,
        metavar="S",
        help="for connecting, and for what --once waits for (10)",
    )
    parser.add_argument(
        "--ping-interval", type=opts.seconds_or_zero, default=20.0, metavar="S", help="between pings (20; 0: none)"
    )
    parser.add_argument("--no-compression", action="store_true", help="do not offer permessage-deflate")
    opts.add_tls(parser)
    show = parser.add_argument_group("what is shown")
    layout = show.add_mutually_exclusive_group()
    layout.add_argument("--json", action="store_true", help="lay out JSON, also when it does not go to a terminal")
    layout.add_argument("--raw", action="store_true", help="do not lay out JSON")
    show.add_argument("-t", "--timestamps", action="store_true", help="when each message came")
    show.add_argument("-v", "--verbose", action="store_true", help="the headers of the server's answer")
    show.add_argument("-q", "--quiet", action="store_true", help="messages and errors only")
    show.add_argument("--full", action="store_true", help="cut nothing short on a terminal")
    show.add_argument("--no-history", action="store_true", help="neither read nor keep what was typed")


# Where lines come from


class _Source(Protocol):
    """Lines of input."""

    ended: bool

    @property
    def descriptors(self) -> list[int] | None:
        """What to wait for; None: it has to be asked from time to time."""

    def read(self) -> Iterable[str]:
        """The lines that are there; never waits if `descriptors` said that there are some."""


class _Nothing:
    """No input, and no end of it."""

    ended = False

    @property
    def descriptors(self) -> list[int] | None:
        return []

    def read(self) -> list[str]:
        return []


class _Stream:
    """Standard input as it is: a file, a pipe, or a terminal that does its own editing."""

    _MOST = 16 << 20  # bytes of a line; more would not be sent either

    def __init__(self) -> None:
        self.ended = False
        # Started with it closed sys.stdin is None: the same as an empty input.
        self._input = sys.stdin.fileno() if sys.stdin else os.open(os.devnull, os.O_RDONLY)
        self._rest = b""

    @property
    def descriptors(self) -> list[int] | None:
        return [self._input]

    def read(self) -> list[str]:
        # os.read, not readline: a line in Python's own buffer would be invisible to select.
        try:
            data = os.read(self._input, 65_536)
        except OSError:
            data = b""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > self._MOST:
            raise CommandError(f"a line of the input is longer than {self._MOST >> 20} MiB")
        if not data:
            self.ended = True
            lines, self._rest = ([self._rest] if self._rest else []), b""
        return [line.removesuffix(b"\r").decode(errors="replace") for line in lines]


class _Thread:
    """Standard input where nothing can wait for it and for the network at once: Windows. A thread reads it."""

    def __init__(self) -> None:
        self.ended = False
        self._lines: queue.Queue[str | None] = queue.Queue(1000)
        # Blocked in a read when the command ends.
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        for line in sys.stdin or ():
            self._lines.put(line.rstrip("\r\n"))
        self._lines.put(None)

    @property
    def descriptors(self) -> list[int] | None:
        return None

    def read(self) -> list[str]:
        lines = []
        while not self.ended and not self._lines.empty():
            line = self._lines.get()
            if line is None:
                self.ended = True
            else:
                lines.append(line)
        return lines


# The connection


class _Client(HvWebSocketClient):
    """Prints what happens; the loop asks how it stands."""

    def __init__(self, options: argparse.Namespace, url: str) -> None:
        self._options = options
        self._url = url
        self.out = Output.stdout(options.color)
        self.err = Output.stderr(options.color)
        self.editor: editor.Editor | None = None
        self.opened = False
        self.answered = False
        self.leaving = False  # the close is ours
        self.heard = time.monotonic()  # when something came

    # What is printed

    def above(self, write: Callable[[str], None], text: str) -> None:
        """Prints above the line that is edited; the loop puts that back."""
        if self.editor is not None:
            self.editor.hide()
        write(text)

    def note(self, text: str, style: str = "dim") -> None:
        """Something that is no message."""
        out = self.out if self.editor is not None else self.err
        self.above(out.line, out.paint(text, style))

    def chat(self, text: str) -> None:
        """A note that --quiet leaves out."""
        if not self._options.quiet:
            self.note(text)

    def on_message(self, msg: str | bytes) -> None:
        if self._options.once and self.answered:
            return
        self.answered = True
        self.heard = time.monotonic()
        stamp = self.out.paint(clock(fine=True), "dim") + " " if self._options.timestamps else ""
        mark = self.out.paint("< ", "received") if self.editor is not None else ""
        lines = self._shown(msg)
        # Further lines are indented: none looks like a message of its own.
        text = ("\n  " if self.out.is_terminal else "\n").join(lines)
        self.above(self.out.write, f"{stamp}{mark}{text}\n")

    def _shown(self, msg: str | bytes) -> list[str]:
        out, options = self.out, self._options
        cut = out.is_terminal and not options.full
        rest = ""
        if isinstance(msg, bytes):
            lines = hex_dump(msg, _MOST_BYTES if cut else None)
            if cut and len(msg) > _MOST_BYTES:
                rest = f"... {len(msg) - _MOST_BYTES:,} more bytes (--full)"
            lines = [out.paint(f"binary, {len(msg):,} bytes", "dim"), *lines]
        elif (options.json or (out.is_terminal and not options.raw)) and is_json(msg):
            lines = pretty_json(msg, out.paint if out.is_terminal or out.color else plain).split("\n")
        elif out.is_terminal:
            lines = printable(msg[:_MOST_TEXT] if cut else msg, out.paint, lines=True).split("\n")
            if cut and len(msg) > _MOST_TEXT:
                rest = f"... {len(msg) - _MOST_TEXT:,} more characters (--full)"
        else:
            lines = [msg]
        return [*lines, out.paint(rest, "dim")] if rest else lines

    # What happens

    def on_open(self) -> None:
        self.opened = True
        self.heard = time.monotonic()
        about = [f"subprotocol {printable(self.subprotocol)}"] if self.subprotocol else []
        about += ["compressed"] if self.is_compressed else []
        self.chat(f"connected to {printable(self._url)}" + (f" ({', '.join(about)})" if about else ""))
        if self._options.verbose:
            self.show_headers()
        for message in self._options.message:
            self._send(message)

    def on_drain(self) -> None:
        """Ends the wait: more input may be read."""

    def show_headers(self) -> None:
        for name, value in self.headers.pairs() if self.headers is not None else ():
            self.note(f"  {printable(name)}: {printable(value)}")

    # What is typed

    def line(self, line: str, *, commands: bool) -> None:
        """A line of input."""
        if self.leaving:
            return
        if not commands or not line.startswith("/"):
            self._send(line)
        elif line.startswith("//"):
            self._send(line[1:])
        else:
            word, _, rest = line[1:].partition(" ")
            try:
                self._command(word, rest.strip())
            except (ValueError, OSError) as error:
                self.note(printable(str(error)), "warning")

    def _send(self, msg: str | bytes) -> None:
        try:
            self.send(msg)
        except ValueError as error:
            self.note(printable(str(error)), "warning")

    def _command(self, word: str, rest: str) -> None:
        if word == "ping":
            self.send(rest, WsOpcode.PING)
            known = "" if self.latency is None else f"; the last one that pyHV sent took {self.latency * 1000:.1f} ms"
            self.chat(f"ping sent{known}")
        elif word == "binary":
            self.send(_bytes(rest))
        elif word == "close":
            code, _, reason = rest.partition(" ")
            if code and not code.isdecimal():
                raise ValueError("/close 1000 goodbye: first the code")
            self.leave(int(code or 1000), reason.strip())
        elif word == "quit":
            self.leave()
        elif word == "headers":
            self.show_headers()
        else:
            unknown = f"there is no /{printable(word)}; //{printable(word)} is sent as a message\n"
            self.note(_COMMANDS if word == "help" else unknown + _COMMANDS)

    def leave(self, code: int = 1000, reason: str = "") -> None:
        """Closes. What was sent before goes out first."""
        self.close(code, reason)
        self.leaving = True


def _bytes(text: str) -> bytes:
    """What /binary says."""
    if text.startswith("@"):
        return Path(text[1:]).expanduser().read_bytes()
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise ValueError("/binary 0a0b, in hexadecimal digits, or /binary @FILE") from None


def run(options: argparse.Namespace) -> int:
    """Stays until the connection has ended."""
    url = opts.complete_url(options.url, "ws", {"ws": "ws", "wss": "wss", "http": "ws", "https": "wss"})
    settings = _settings(options, url)
    client = _Client(options, url)
    try:
        with terminating(143):
            try:
                client.connect(url, **settings)
            except ValueError as error:
                raise CommandError(str(error), 2) from None
            except OSError as error:
                raise CommandError(str(error)) from None
            return _Loop(client, options).run()
    except KeyboardInterrupt:
        _break_off(client)
        return 130
    except SystemExit:
        _break_off(client)
        raise


def _settings(options: argparse.Namespace, url: str) -> dict[str, Any]:
    headers = list(options.header)
    if options.origin is not None:
        headers.append(("Origin", options.origin))
    interval = options.ping_interval or None
    return {
        **opts.tls_settings(options, url),
        "headers": headers,
        "subprotocols": options.subprotocol,
        "open_timeout": options.timeout,
        "ping_interval": interval,
        "ping_timeout": interval,
        "compression": None if options.no_compression else "shared",
    }


def _break_off(client: _Client) -> None:
    """Closes, and gives the server a moment to hear of it."""
    client.leave()
    end = time.monotonic() + _LEAVING
    while client.opened and client.close_code is None and time.monotonic() < end:
        client.tick(0.05)


class _Loop:
    """Waits for the network and for the input, and serves both."""

    def __init__(self, client: _Client, options: argparse.Namespace) -> None:
        self._client = client
        self._options = options
        self._source: _Source = _Nothing()
        self._commands = False  # whether a slash begins one
        self._asked = 0.0  # when the connection was open, and the answer of --once is waited for

    def run(self) -> int:
        client = self._client
        with ExitStack() as stack:
            while client.close_code is None:
                if client.opened and not self._asked:
                    self._begin(stack)
                self._turn()
                if self._options.once and client.answered and not client.leaving:
                    client.leave()
                if self._is_late():
                    raise CommandError(f"no answer within {self._options.timeout:g} s", 4)
        return self._status()

    def _begin(self, stack: ExitStack) -> None:
        """The connection is open: now there is something to type for."""
        options, client = self._options, self._client
        self._asked = time.monotonic()
        if options.no_input:
            return
        self._commands = sys.stdin is not None and sys.stdin.isatty()
        if editor.supported(client.out):
            history = editor.History(None if options.no_history else state_folder() / "connect_history")
            line = editor.Editor(client.out, "> ", history)
            client.editor = self._source = stack.enter_context(line)
            if history.error is not None:
                client.note(f"what is typed is not kept: {history.error}", "warning")
        else:
            self._source = _Thread() if os.name == "nt" else _Stream()

    def _turn(self) -> None:
        client, source = self._client, self._source
        # What is not taken from us is not read either, so that a large file does not end up in memory.
        full = client.buffered_amount >= _HIGH_WATER
        descriptors = [] if source.ended or client.leaving or full else source.descriptors
        timeout = self._timeout(polled=descriptors is None or full)
        ready: list[int] = []
        if os.name == "nt":
            client.tick(timeout)
        else:
            ready = select.select([client.fileno(), *(descriptors or ())], [], [], timeout)[0]
            client.tick()
        if descriptors is None or any(descriptor in ready for descriptor in descriptors):
            for line in source.read():
                client.line(line, commands=self._commands)
            if source.ended:
                client.heard = time.monotonic()
        client.out.check()
        if source.ended and not client.leaving and self._is_silent():
            client.leave()
        if client.editor is not None and not client.leaving:
            client.editor.show()

    def _timeout(self, *, polled: bool) -> float | None:
        """Seconds until something is to be looked at although nothing has happened."""
        client, now = self._client, time.monotonic()
        if client.leaving or not self._asked:
            return None  # the native side has its own limits
        times = [_POLL] if polled else []
        if client.out.patience is not None:
            times.append(client.out.patience)
        if self._source.ended:
            times.append(_POLL if client.buffered_amount else max(0.0, client.heard + self._quiet - now))
        if self._options.once:
            times.append(max(0.0, self._asked + self._options.timeout - now))
        return min(times, default=None)

    @property
    def _quiet(self) -> float:
        """Seconds without a message after which a connection without input is over."""
        return 0.0 if self._client.editor is not None else self._options.wait

    def _is_silent(self) -> bool:
        client = self._client
        if self._options.once and client.editor is None:
            return False  # the answer ends it
        return client.buffered_amount == 0 and time.monotonic() - client.heard >= self._quiet

    def _is_late(self) -> bool:
        client = self._client
        if not self._options.once or client.answered or client.leaving or not self._asked:
            return False
        return time.monotonic() >= self._asked + float(self._options.timeout)

    def _status(self) -> int:
        client = self._client
        if not client.opened:
            hint = f" ({opts.TRUST_HINT})" if isinstance(client.error, TlsError) else ""
            raise CommandError(f"{client.error}{hint}")
        reason = f" {printable(client.close_reason)}" if client.close_reason else ""
        normal = client.leaving or client.close_code in (1000, 1005)
        who = (
            "closed" if client.leaving else "the server closed" if client.close_code != 1006 else "lost the connection"
        )
        if normal:
            client.chat(f"{who} ({client.close_code}{reason})")
            return 0
        client.note(f"{who} ({client.close_code}{reason})", "warning")
        return 3
