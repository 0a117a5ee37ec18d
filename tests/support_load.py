"""What the load, hostile-input and chat tests share beside support.py."""

from __future__ import annotations

import json
import os
import resource
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import pytest

from pyhv import HttpRequest, HttpResponse, HvWebServer, WebSocketChannel
from support import HOST, LIMIT, http, open_descriptors, python_environment, thread_names, wait_until

if TYPE_CHECKING:
    from typing_extensions import Self

ROOT = Path(__file__).resolve().parent.parent
CHAT = ROOT / "examples" / "chat"
ARTIFACTS = ROOT / "tests" / "artifacts"

# Becomes the program, with Ctrl-C as it is in a terminal: a shell's background job ignores it, and children
# inherit that.
_AS_USUAL = "import os,signal as s,sys; s.signal(s.SIGINT,s.SIG_DFL); os.execv(sys.argv[1],sys.argv[1:])"

# The same, with stdin as the terminal of its session, so that Ctrl-C typed there is a signal.
_ON_TERMINAL = f"import fcntl,termios; fcntl.ioctl(0,termios.TIOCSCTTY,0); {_AS_USUAL}"


class Program:
    """A program under test; killed by its pid at the end of the `with` if it is still running.

    What it writes to stdout and stderr comes together in `output`. With `terminal=True` stdin, stdout and
    stderr are one pseudo-terminal.
    """

    def __init__(
        self,
        *arguments: str | Path,
        terminal: bool = False,
        stdin: int | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        command = [sys.executable, *map(str, arguments)]
        environment = {**python_environment(), "PYTHONIOENCODING": "utf-8", "TERM": "dumb", **(environment or {})}
        self.output = ""
        self._ended = False
        if terminal:
            self._read, slave = os.openpty()
            self.process = subprocess.Popen(
                [sys.executable, "-c", _ON_TERMINAL, *command],
                stdin=slave,
                stdout=slave,
                stderr=slave,
                start_new_session=True,
                env=environment,
            )
            os.close(slave)
        else:
            self._read, write = os.pipe()
            self.process = subprocess.Popen(
                [sys.executable, "-c", _AS_USUAL, *command],
                stdin=stdin,
                stdout=write,
                stderr=write,
                env=environment,
            )
            os.close(write)
        self._terminal = terminal

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()
        os.close(self._read)

    def _receive(self, timeout: float) -> None:
        ready, _, _ = select.select([self._read], [], [], timeout)
        if not ready:
            return
        try:
            chunk = os.read(self._read, 65536)
        except OSError:  # a pseudo-terminal whose other side is closed
            chunk = b""
        if chunk:
            self.output += chunk.decode(errors="replace")
        else:
            self._ended = True

    def wait_for(self, text: str | Callable[[str], bool], limit: float = LIMIT) -> str:
        """Reads until `text` is in the output, and returns all of it."""
        found = text if callable(text) else lambda output: text in output
        deadline = time.monotonic() + limit
        while not found(self.output):
            left = deadline - time.monotonic()
            assert left > 0, f"waiting for {text!r}, got {self.output!r}"
            assert not self._ended, f"waiting for {text!r}, the program ended after {self.output!r}"
            self._receive(left)
        return self.output

    def type(self, text: str) -> None:
        """Types on the pseudo-terminal."""
        assert self._terminal
        os.write(self._read, text.encode())

    def finish(self, limit: float = LIMIT) -> int:
        """Reads to the end of the output and returns the exit code."""
        deadline = time.monotonic() + limit
        while not self._ended:
            left = deadline - time.monotonic()
            assert left > 0, f"still running after {limit} s: {self.output!r}"
            self._receive(left)
        return self.process.wait(max(0.1, deadline - time.monotonic()))

    @property
    def lines(self) -> list[str]:
        return self.output.splitlines()


class ChatServerProgram(Program):
    """The chat example's server, listening."""

    def __init__(self, port: int = 0) -> None:
        super().__init__(CHAT / "server.py", "--port", str(port))
        try:
            line = self.wait_for("(Ctrl-C stops)").splitlines()[0]
        except BaseException:
            self.__exit__(None, None, None)
            raise
        self.url = line.split()[3]
        self.port = int(self.url.rpartition(":")[2])

    @property
    def ws_url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/chat"


# A server in a process of its own, whose threads, descriptors and memory are nobody else's


class CountingServer(HvWebServer):
    """Echoes and counts, and keeps nothing. A client that says "close" is closed."""

    def on_init(self) -> None:
        self.opened = 0
        self.closed = 0
        self.get("/counts", self.get_counts)

    def get_counts(self, req: HttpRequest, resp: HttpResponse) -> None:
        resp.json({"opened": self.opened, "closed": self.closed, "channels": len(self.channels)})

    def on_ws_open(self, channel: WebSocketChannel, url: str) -> None:
        self.opened += 1

    def on_ws_message(self, channel: WebSocketChannel, msg: str | bytes) -> None:
        if msg == "close":
            channel.close(1000, "as you like")
        else:
            channel.send(msg)

    def on_ws_close(self, channel: WebSocketChannel) -> None:
        self.closed += 1


def serve_counting() -> None:
    """The main program of `CountingServerProgram`: serves until its stdin ends."""
    server = CountingServer()
    server.start(0, **json.loads(sys.argv[1]))
    print(server.port, flush=True)
    while True:
        ready, _, _ = select.select([sys.stdin, server], [], [])
        server.tick()
        if sys.stdin in ready:
            break
    server.stop()


@dataclass(frozen=True)
class Facts:
    """What a process has open."""

    threads: list[str]
    sockets: int


class CountingServerProgram(Program):
    """A `CountingServer` in a Python of its own; `settings` are those of `start`."""

    def __init__(self, **settings: object) -> None:
        code = "from support_load import serve_counting; serve_counting()"
        super().__init__("-c", code, json.dumps(settings), stdin=subprocess.PIPE)
        try:
            self.port = int(self.wait_for("\n"))
        except BaseException:
            self.__exit__(None, None, None)
            raise

    @property
    def pid(self) -> int:
        return self.process.pid

    def counts(self) -> dict[str, int]:
        counts: dict[str, int] = json.loads(http(self.port, "GET", "/counts").body)
        return counts

    def facts(self) -> Facts:
        """Threads and sockets while nobody is connected."""
        return Facts(thread_names(self.pid), sockets_of(self.pid))

    def wait_until_empty(self) -> None:
        """Until every channel has had its close."""

        def empty() -> bool:
            counts = self.counts()
            return counts["channels"] == 0 and counts["opened"] == counts["closed"]

        wait_until(empty, what="every channel is closed")

    def stop(self) -> None:
        """Ends the program, which has to end well."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.finish() == 0, self.output


def sockets_of(pid: int | str = "self") -> int:
    return sum(target.startswith("socket:") for target in open_descriptors(pid).values())


def allow_descriptors(count: int) -> None:
    """Raises the soft limit of open descriptors where it is lower. Fails when the hard limit forbids it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        pytest.fail(f"the test needs {count} descriptors; ulimit -Hn is {hard}")
    if soft != resource.RLIM_INFINITY and soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


def refusing_port() -> tuple[socket.socket, int]:
    """A port where nobody listens and that nobody else gets while the socket is kept."""
    bound = socket.socket()
    bound.bind((HOST, 0))
    return bound, bound.getsockname()[1]
