"""Standard output and error: a terminal or none, with colours or without, until nobody reads them any more."""

from __future__ import annotations

import io
import os
import select
import shutil
import signal
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn, TextIO

__all__ = ["CommandError", "Output", "clock", "state_folder", "terminating"]

#: SGR parameters (ECMA-48 section 8.3.117), by what is meant.
_STYLES = {
    "dim": "2",
    "bold": "1",
    "escape": "7",
    "error": "1;31",
    "warning": "33",
    "good": "32",
    "info": "36",
    "sent": "36",
    "received": "32",
    "key": "34",
    "string": "32",
    "number": "33",
    "bar": "36",
}


#: Seconds until the end of a pipe is noticed by a command that prints nothing.
_PATIENCE = 1.0


class CommandError(Exception):
    """Ends a command with a line on stderr and an exit status."""

    def __init__(self, text: str, status: int = 1) -> None:
        super().__init__(text)
        self.status = status


class Output:
    """A stream to print to.

    :param stream: None, as Python has it when the descriptor was closed, takes everything and keeps nothing.
    :param color: "auto": on a terminal, unless NO_COLOR or TERM=dumb says otherwise; "always" or "never".
    """

    def __init__(self, stream: TextIO | None, color: str = "auto") -> None:
        self._stream = stream
        self.is_terminal = stream is not None and stream.isatty()
        #: Whether the cursor can be moved on it.
        self.can_move = self.is_terminal and os.environ.get("TERM", "" if os.name == "nt" else "dumb") != "dumb"
        if self.is_terminal and os.name == "nt":
            self.can_move = self.can_move and _windows_escapes()
        # https://no-color.org: whatever its value, unless it is empty.
        wanted = self.can_move and not os.environ.get("NO_COLOR")
        self.color = color == "always" or (color == "auto" and wanted)
        self._is_pipe = hasattr(select, "poll") and _is_pipe(stream)
        self.encoding = "utf-8"
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
            self.encoding = stream.encoding

    @classmethod
    def stdout(cls, color: str = "auto") -> Output:
        """Standard output."""
        return cls(sys.stdout, color)

    @classmethod
    def stderr(cls, color: str = "auto") -> Output:
        """Standard error."""
        return cls(sys.stderr, color)

    @property
    def columns(self) -> int:
        """Its width; 80 where there is none."""
        return shutil.get_terminal_size().columns

    def can_show(self, characters: str) -> bool:
        """Whether its encoding has these."""
        try:
            characters.encode(self.encoding)
        except (UnicodeError, LookupError):
            return False
        return True

    def paint(self, text: str, style: str) -> str:
        """`text` in a colour, if there are colours. Each line of it by itself."""
        if not self.color or not text:
            return text
        start, end = f"\x1b[{_STYLES[style]}m", "\x1b[0m"
        return "\n".join(f"{start}{line}{end}" if line else line for line in text.split("\n"))

    @property
    def patience(self) -> float | None:
        """Seconds after which to `check` again while there is nothing to print; None: never."""
        return _PATIENCE if self._is_pipe else None

    def check(self) -> None:
        """Ends the process as `write` does, if nobody reads any more, without printing anything."""
        if not self._is_pipe or self._stream is None:
            return
        poll = select.poll()
        poll.register(self._stream.fileno(), 0)  # an error is told unasked
        if any(event & select.POLLERR for _, event in poll.poll(0)):
            self._end(self._stream)

    def _end(self, stream: TextIO) -> NoReturn:
        # What is still in its buffer must not fail once more when Python ends.
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())
        self._stream = None
        raise SystemExit(141)

    def line(self, text: str = "") -> None:
        """Prints a line at once."""
        self.write(text + "\n")

    def write(self, text: str) -> None:
        """Prints at once. Ends the process with 141, as SIGPIPE would, when nobody reads it any more.

        By SystemExit, which leaves callbacks and `tick()`, so that whoever has something to close does.
        """
        if self._stream is None:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except (BrokenPipeError, ConnectionResetError):
            self._end(self._stream)
        except OSError as error:
            # A full disk, or a terminal that is gone.
            self._stream = None
            raise CommandError(f"the output cannot be written: {error.strerror}") from None


def _is_pipe(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stat.S_ISFIFO(os.fstat(stream.fileno()).st_mode)
    except (OSError, ValueError):
        return False


def _windows_escapes() -> bool:
    """Turns escape sequences on in a Windows console; False where it has none."""
    if sys.platform != "win32":
        return False
    import ctypes

    kernel = ctypes.windll.kernel32
    handle = kernel.GetStdHandle(-11)
    mode = ctypes.c_uint32()
    enable_virtual_terminal_processing = 4
    return bool(
        kernel.GetConsoleMode(handle, ctypes.byref(mode))
        and kernel.SetConsoleMode(handle, mode.value | enable_virtual_terminal_processing)
    )


def clock(seconds: float | None = None, *, fine: bool = False) -> str:
    """Local time as 12:34:56, or 12:34:56.789."""
    seconds = time.time() if seconds is None else seconds
    text = time.strftime("%H:%M:%S", time.localtime(seconds))
    return f"{text}.{int(seconds * 1000) % 1000:03}" if fine else text


def state_folder() -> Path:
    """Where what outlives a command is kept: $XDG_STATE_HOME/pyhv, by default ~/.local/state/pyhv."""
    if os.name == "nt":
        base = os.environ.get("LOCALAPPDATA")
        return Path(base or Path.home() / "AppData" / "Local") / "pyhv"
    base = os.environ.get("XDG_STATE_HOME", "")
    # The specification: a relative path is to be ignored.
    return (Path(base) if os.path.isabs(base) else Path.home() / ".local" / "state") / "pyhv"


@contextmanager
def terminating(status: int | None) -> Iterator[None]:
    """While it lasts, SIGTERM raises SystemExit with this status, or, for None, KeyboardInterrupt as Ctrl-C does."""

    def handle(_number: int, _frame: FrameType | None) -> None:
        if status is None:
            raise KeyboardInterrupt
        raise SystemExit(status)

    before = signal.signal(signal.SIGTERM, handle)
    # A shell's background job ignores Ctrl-C, and that is meant.
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
