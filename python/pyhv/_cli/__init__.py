"""The command line, `pyhv` or `python -m pyhv`. `import pyhv` imports none of it.

| module | holds |
|---|---|
| this one | the parser of all commands, and how they end |
| `run`, `dev_cert`, `serve`, `connect`, `listen`, `bench` | a command each |
| `program` | a program's server, found by name and served, for `run` |
| `supervisor`, `worker` | the processes of `run --workers` |
| `reload` | pages that reload themselves, for `serve` |
| `editor` | a line that is edited while others are printed above it, for `connect` |
| `charts` | bars and curves of text, for `bench` |
| `options` | options that several commands have |
| `output` | a terminal that may be none, colours, the end of a pipe |
| `text` | what peers send, made fit for a terminal: escapes, hex dumps, JSON |
"""

from __future__ import annotations

import argparse
import logging

from pyhv import __version__
from pyhv._cli import bench, connect, dev_cert, listen, run, serve
from pyhv._cli.output import CommandError, Output
from pyhv._cli.text import printable

__all__ = ["main"]

_EPILOG = """\
examples:
  pyhv run game:Server --workers 4          a program's server, in four processes
  pyhv serve site --reload                  a folder as a website; pages reload when files change
  pyhv connect ws://localhost:9090/chat     talk to a WebSocket server
  pyhv listen                               see what a client sends
  pyhv bench http://localhost:8000/         how many requests a second
  pyhv dev-cert localhost 192.168.0.7       a certificate for development

exit status: 0 it went well, 1 it did not, 2 the command line is wrong, 130 Ctrl-C, 141 nobody reads the output any
more, 143 SIGTERM. Where a command has others, or means something else by them, its own --help says so.

Colours are for terminals alone; NO_COLOR=1, TERM=dumb and --color never turn them off.
"""


def parser() -> argparse.ArgumentParser:
    """Of all commands."""
    made = argparse.ArgumentParser(
        prog="pyhv",
        description="Tools beside the pyHV library.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--version", action="version", version=f"pyhv {__version__}")
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (run, serve, connect, listen, bench, dev_cert):
        module.add(commands)
    return made


class _Warnings(logging.Handler):
    """What the library logs, such as requests that it refuses, as lines on stderr."""

    def __init__(self, err: Output) -> None:
        super().__init__(logging.WARNING)
        self._err = err

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            text += f": {record.exc_info[1]!r}"
        self._err.line(self._err.paint(f"{record.levelname.lower()}: {printable(text)}", "warning"))


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; returns the exit status.

    :param arguments: those of the process, if None.

    Raises SystemExit with the status for a wrong command line, SIGTERM and a closed pipe.
    """
    options = parser().parse_args(arguments)
    err = Output.stderr(getattr(options, "color", "auto"))
    log = logging.getLogger("pyhv")
    warnings = _Warnings(err)
    log.addHandler(warnings)
    # Without a handler at the root Python would print them again.
    propagate, log.propagate = log.propagate, False
    try:
        status: int = options.run(options)
        return status
    except CommandError as error:
        err.line(f"{err.paint(f'pyhv {options.command}:', 'error')} {printable(str(error))}")
        return error.status
    except KeyboardInterrupt:
        # Before a command had begun, or a second one while it ends.
        return 130
    finally:
        log.removeHandler(warnings)
        log.propagate = propagate
