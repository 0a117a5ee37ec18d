"""What the tests of the command line share: commands that run to their end, and commands on a terminal."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyte

from support import LIMIT, python_environment
from support_load import Program

#: As on a terminal that can do everything, for which nobody has said otherwise.
PLAIN = {"TERM": "xterm-256color", "NO_COLOR": ""}


def pyhv(
    *arguments: str | Path, stdin: str | bytes | None = None, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """`python -m pyhv` with these arguments, to its end. Without `stdin` its input is empty."""
    data = stdin.encode() if isinstance(stdin, str) else stdin or b""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-m", "pyhv", *map(str, arguments)],
        input=data,
        capture_output=True,
        env={**python_environment(), "PYTHONIOENCODING": "utf-8", **(environment or {})},
        timeout=60,
        check=False,
    )
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


class Command(Program):
    """`python -m pyhv` with these arguments, running; stdout and stderr are one pipe."""

    def __init__(self, *arguments: str | Path, environment: Mapping[str, str] | None = None, **options: Any) -> None:
        super().__init__(
            "-X",
            "dev",
            "-W",
            "error",
            "-m",
            "pyhv",
            *arguments,
            environment={**PLAIN, **(environment or {})},
            **options,
        )


class Terminal(Command):
    """The same on a terminal of 80 × 24, whose screen an emulator shows."""

    def __init__(self, *arguments: str | Path, environment: Mapping[str, str] | None = None) -> None:
        self.screen = pyte.Screen(80, 24)
        self._stream = pyte.ByteStream(self.screen)
        self._fed = 0
        super().__init__(*arguments, environment=environment, terminal=True)

    def _receive(self, timeout: float) -> None:
        super()._receive(timeout)
        new, self._fed = self.output[self._fed :], len(self.output)
        self._stream.feed(new.encode())

    @property
    def rows(self) -> list[str]:
        """What the screen shows, without spaces at the ends of rows and empty rows at its end."""
        rows = [row.rstrip() for row in self.screen.display]
        while rows and not rows[-1]:
            rows.pop()
        return rows

    @property
    def cursor(self) -> tuple[int, int]:
        """Row and column of the cursor, from 0."""
        return self.screen.cursor.y, self.screen.cursor.x

    def wait_for_rows(self, condition: Callable[[list[str]], bool] | list[str]) -> list[str]:
        """Reads until the screen shows what is wanted: a list is what the last rows are."""
        deadline = time.monotonic() + LIMIT
        while True:
            rows = self.rows
            if condition(rows) if callable(condition) else rows[-len(condition) :] == condition:
                return rows
            left = deadline - time.monotonic()
            assert left > 0, f"waiting for {condition}, the screen shows {rows}"
            assert not self._ended, f"waiting for {condition}, the program ended, the screen shows {rows}"
            self._receive(min(left, 0.2))

    def resize(self, columns: int, rows: int = 24) -> None:
        """The user changes the size of the window."""
        self.screen.resize(rows, columns)
        fcntl.ioctl(self._read, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    @property
    def is_cooked(self) -> bool:
        """Whether the terminal echoes and edits lines by itself, as it does for a shell."""
        modes = termios.tcgetattr(self._read)[3]
        return bool(modes & termios.ECHO and modes & termios.ICANON)

    def cook(self) -> None:
        """Sets the modes that a shell sets."""
        modes = termios.tcgetattr(self._read)
        modes[3] |= termios.ECHO | termios.ICANON
        termios.tcsetattr(self._read, termios.TCSANOW, modes)

    def send_signal(self, number: int) -> None:
        os.kill(self.process.pid, number)
