"""A line that is edited at the bottom of a terminal, while other lines are printed above it.

Python's readline blocks until a line is there, and knows nothing of what others print; threads and signals do not mix
with it. This one is fed with what was typed and never waits, so that one loop serves the keyboard and the network.

The line takes one row, whatever its length: what does not fit is scrolled to the side. So it can be taken away and put
back without a look at the screen.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import re
import select
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from pyhv._cli.output import Output
from pyhv._cli.text import printable, width

if sys.platform != "win32":
    import termios

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Editor", "History", "supported"]

# Control Sequences (ECMA-48 section 5.4), those of function keys, and Alt with a key. What is not complete waits.
_SEQUENCE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|O.|[^\[O\x1b])", re.DOTALL)
_PASTE_BEGINS, _PASTE_ENDS = "\x1b[200~", "\x1b[201~"

#: A sequence of more is none.
_LONGEST_SEQUENCE = 32
#: A line takes no more characters.
_LONGEST_LINE = 1 << 20

_KEYS = {
    "\x1b[D": "left",
    "\x1bOD": "left",
    "\x02": "left",
    "\x1b[C": "right",
    "\x1bOC": "right",
    "\x06": "right",
    "\x1b[A": "older",
    "\x1bOA": "older",
    "\x10": "older",
    "\x1b[B": "newer",
    "\x1bOB": "newer",
    "\x0e": "newer",
    "\x1b[H": "home",
    "\x1bOH": "home",
    "\x1b[1~": "home",
    "\x01": "home",
    "\x1b[F": "end",
    "\x1bOF": "end",
    "\x1b[4~": "end",
    "\x05": "end",
    "\x1b[3~": "delete",
    "\x7f": "backspace",
    "\x08": "backspace",
    "\x1bb": "word_left",
    "\x1b[1;5D": "word_left",
    "\x1bf": "word_right",
    "\x1b[1;5C": "word_right",
    "\x17": "erase_word",
    "\x1b\x7f": "erase_word",
    "\x15": "erase_to_start",
    "\x0b": "erase_to_end",
    "\x0c": "clear_screen",
    "\x04": "delete_or_end",
    "\r": "enter",
    "\n": "enter",
}


class History:
    """Lines that were typed before, the newest last.

    :param file: where they are kept; None: nowhere.
    """

    _MOST = 1000

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self.lines: list[str] = []
        #: Why the file cannot be used, once that was noticed.
        self.error: OSError | None = None
        if file is None:
            return
        try:
            kept = file.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
        except FileNotFoundError:
            return
        except OSError as error:
            self._fail(error)
            return
        self.lines = [_unescaped(line) for line in kept[-self._MOST :]]
        if len(kept) > 2 * self._MOST:
            self._write("w", kept[-self._MOST :])

    def add(self, line: str) -> None:
        """Keeps a line, unless it is the same as the last, or begins with a space, as in shells: for secrets."""
        if line.startswith(" ") or not line or (self.lines and self.lines[-1] == line):
            return
        self.lines.append(line)
        del self.lines[: -self._MOST]
        self._write("a", [line.replace("\\", "\\\\").replace("\n", "\\n")])

    def _write(self, mode: str, lines: list[str]) -> None:
        if self._file is None:
            return

        def opener(path: str, flags: int) -> int:
            # Nobody else's to read from the first moment on: it may have tokens.
            return os.open(path, flags, 0o600)

        try:
            self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with open(self._file, mode, encoding="utf-8", errors="replace", newline="\n", opener=opener) as file:
                file.write("".join(f"{line}\n" for line in lines))
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        self.error, self._file = error, None


def _unescaped(line: str) -> str:
    return re.sub(r"\\(.)", lambda match: "\n" if match[1] == "n" else match[1], line)


def supported(out: Output) -> bool:
    """Whether there is a terminal for a line to be edited on: standard input and output, and one that moves cursors."""
    return sys.platform != "win32" and out.can_move and sys.stdin is not None and sys.stdin.isatty()


class Editor:
    """A line at the bottom of the terminal; the terminal is as before when the `with` ends.

    :param out: the terminal.
    :param prompt: what stands before the line.
    """

    def __init__(self, out: Output, prompt: str, history: History) -> None:
        self._out = out
        self._prompt = prompt
        self._history = history
        self._place = len(history.lines)  # in the history; behind its end is the new line
        self._new = ""  # the new line, while older ones are looked at
        self._text = ""
        self._cursor = 0
        self._erased = ""  # what Ctrl-Y brings back
        self._shown = False
        self._pasting = False
        self._pending = ""  # a sequence that is not complete yet
        self._decode = codecs.getincrementaldecoder("utf-8")("replace")
        #: No more lines will come: Ctrl-D on an empty one, or the terminal is gone.
        self.ended = False
        self._line: str | None = None  # one that is complete
        self._before: Any = None
        self._handlers: dict[int, Any] = {}
        self._continued = False

    def __enter__(self) -> Self:
        self._set_modes()
        # A handler must not print: it may run in the midst of a print. It makes `read` run.
        for number in (signal.SIGCONT, signal.SIGWINCH):
            self._handlers[number] = signal.signal(number, self._on_signal)
        self._wake, self._waker = os.pipe()
        for end in (self._wake, self._waker):
            os.set_blocking(end, False)
        self._wakeup_before = signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        self.show()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        signal.set_wakeup_fd(self._wakeup_before)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        os.close(self._wake)
        os.close(self._waker)
        # The output may be what failed: the modes are set back all the same.
        try:
            self.hide()
            self._out.write("\x1b[?2004l")
        finally:
            # A terminal that is gone has no modes.
            with contextlib.suppress(termios.error):
                termios.tcsetattr(self.fileno(), termios.TCSADRAIN, self._before)

    def _set_modes(self) -> None:
        """Characters come as they are typed and are not echoed; Ctrl-C and Ctrl-Z stay what they are."""
        if self._before is None:
            self._before = termios.tcgetattr(self.fileno())
        modes = termios.tcgetattr(self.fileno())
        modes[3] &= ~(termios.ECHO | termios.ICANON | termios.IEXTEN)
        modes[6][termios.VMIN], modes[6][termios.VTIME] = 1, 0
        termios.tcsetattr(self.fileno(), termios.TCSADRAIN, modes)
        # Pasted text is then told from typed one, so that its line ends send nothing.
        self._out.write("\x1b[?2004h")

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGCONT:
            self._continued = True

    def fileno(self) -> int:
        """Of the keyboard."""
        return sys.stdin.fileno()

    @property
    def descriptors(self) -> list[int]:
        """When one of them is readable it is time to `read`."""
        return [self.fileno(), self._wake]

    # What is shown

    def hide(self) -> None:
        """Takes the line away, so that something can be printed in its place."""
        if self._shown:
            self._shown = False
            self._out.write("\r\x1b[K")

    def show(self) -> None:
        """Puts the line back, below what was printed."""
        if not self._shown and not self.ended:
            self._draw()

    def _draw(self) -> None:
        """Draws the line, the part of it around the cursor that fits."""
        self._shown = True
        cells = [printable(character) for character in self._text]
        widths = [sum(map(width, cell)) for cell in cells]
        # A column stays free behind the line: in the last one some terminals wrap.
        room = max(1, self._out.columns - len(self._prompt) - 1)
        first = self._cursor
        left = 0
        # Some columns before the cursor at least, the rest behind it.
        while first > 0 and left + widths[first - 1] <= room:
            first -= 1
            left += widths[first]
        last = self._cursor
        right = 0
        while last < len(cells) and left + right + widths[last] <= room:
            right += widths[last]
            last += 1
        back = f"\x1b[{right}D" if right else ""
        prompt = self._out.paint(self._prompt, "sent")
        self._out.write(f"\r\x1b[K{prompt}{''.join(cells[first:last])}{back}")

    # What is typed

    def read(self) -> Iterator[str]:
        """Takes what was typed; gives the lines that are complete, each before what follows counts. Never waits."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake, 4096)
            # A signal: the width may be another now. After a stop by Ctrl-Z the modes are those of the shell.
            if self._continued:
                self._continued = False
                self._set_modes()
            if self._shown:
                self._draw()
        if not select.select([self.fileno()], [], [], 0)[0]:
            return
        try:
            data = os.read(self.fileno(), 65_536)
        except OSError:
            data = b""
        if not data:
            self.hide()
            self.ended = True
            return
        yield from self.feed(data)

    def feed(self, data: bytes) -> Iterator[str]:
        """As `read`, of what was typed."""
        text = self._pending + self._decode.decode(data)
        self._pending = ""
        at = 0
        while at < len(text) and not self.ended:
            key = text[at]
            if key == "\x1b":
                found = _SEQUENCE.match(text, at)
                if found is not None:
                    key = found[0]
                elif len(text) - at < _LONGEST_SEQUENCE:
                    self._pending = text[at:]
                    break
                # Otherwise it is no sequence: what follows Escape counts as typed.
            at += len(key)
            self._key(key)
            if self._line is not None:
                line, self._line = self._line, None
                yield line
        if self._shown:
            self._draw()

    def _key(self, key: str) -> None:
        if key in (_PASTE_BEGINS, _PASTE_ENDS):
            self._pasting = key == _PASTE_BEGINS
        elif self._pasting:
            self._insert("\n" if key == "\r" else key)
        elif key in _KEYS:
            getattr(self, f"_do_{_KEYS[key]}")()
        elif key == "\x19":
            self._insert(self._erased)
        elif len(key) == 1 and (key >= " " or key == "\t"):
            self._insert(key)

    def _insert(self, text: str) -> None:
        text = text[: _LONGEST_LINE - len(self._text)]
        self._text = self._text[: self._cursor] + text + self._text[self._cursor :]
        self._cursor += len(text)

    def _erase(self, start: int, end: int, *, keep: bool = False) -> None:
        if keep and start < end:
            self._erased = self._text[start:end]
        self._text = self._text[:start] + self._text[end:]
        self._cursor = start

    def _set(self, text: str) -> None:
        self._text, self._cursor = text, len(text)

    def _do_left(self) -> None:
        self._cursor = max(0, self._cursor - 1)

    def _do_right(self) -> None:
        self._cursor = min(len(self._text), self._cursor + 1)

    def _do_home(self) -> None:
        self._cursor = 0

    def _do_end(self) -> None:
        self._cursor = len(self._text)

    def _do_word_left(self) -> None:
        while self._cursor and self._text[self._cursor - 1].isspace():
            self._cursor -= 1
        while self._cursor and not self._text[self._cursor - 1].isspace():
            self._cursor -= 1

    def _do_word_right(self) -> None:
        while self._cursor < len(self._text) and self._text[self._cursor].isspace():
            self._cursor += 1
        while self._cursor < len(self._text) and not self._text[self._cursor].isspace():
            self._cursor += 1

    def _do_backspace(self) -> None:
        self._erase(max(0, self._cursor - 1), self._cursor)

    def _do_delete(self) -> None:
        self._erase(self._cursor, self._cursor + 1)

    def _do_erase_word(self) -> None:
        end = self._cursor
        self._do_word_left()
        self._erase(self._cursor, end, keep=True)

    def _do_erase_to_start(self) -> None:
        self._erase(0, self._cursor, keep=True)

    def _do_erase_to_end(self) -> None:
        self._erase(self._cursor, len(self._text), keep=True)

    def _do_clear_screen(self) -> None:
        self._out.write("\x1b[H\x1b[2J")

    def _do_delete_or_end(self) -> None:
        if self._text:
            self._do_delete()
        else:
            self.hide()
            self.ended = True

    def _do_older(self) -> None:
        self._look(self._place - 1)

    def _do_newer(self) -> None:
        self._look(self._place + 1)

    def _look(self, place: int) -> None:
        lines = self._history.lines
        if not 0 <= place <= len(lines):
            return
        if self._place == len(lines):
            self._new = self._text
        self._place = place
        self._set(self._new if place == len(lines) else lines[place])

    def _do_enter(self) -> None:
        """The line stays on the screen, in full, as a record; an empty one is nothing."""
        line = self._text
        self._set("")
        if not line:
            return
        self.hide()
        prompt = self._out.paint(self._prompt, "sent")
        self._out.line(prompt + "\n  ".join(printable(part) for part in line.split("\n")))
        self._history.add(line)
        self._place, self._new = len(self._history.lines), ""
        self._line = line
