"""What the tests of `pyhv run` and of deployment share: a program, and its processes."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType

import pytest

from support import RawClient, wait_until
from support_cli import Command

unix = pytest.mark.skipif(os.name != "posix", reason="processes under a supervisor are for Unix")

#: Tells who answers.
PROGRAM = """
import os
import time

from pyhv import HvWebServer


class Server(HvWebServer):
    def on_init(self):
        self.get("/who", lambda req, resp: resp.json([os.environ["PYHV_WORKER"], os.getpid(), req.client_address]))
        self.get("/slow", self.get_slow)
        self.post("/length", lambda req, resp: resp.text(str(len(req.body))))
        self.sse("/events", self.get_events)
        self.enable_healthz()
        self.enable_readyz()

    def get_slow(self, req, resp):
        print("slow begins", flush=True)
        time.sleep(float(req.query.get("seconds", "0.3")))
        return resp.text("done")

    def get_events(self, req, writer):
        writer.event("ready")

    def on_ws_open(self, channel, url):
        channel.send(str(os.getpid()))

    def on_ws_message(self, channel, msg):
        channel.send(f"{channel.client_address} {msg}")
"""

READY = re.compile(r"worker (\d+) \(pid (\d+)\) is ready")


class Run(Command):
    """`pyhv run` with these arguments; all of its processes are gone at the end of the `with`."""

    def __init__(
        self, folder: Path, app: str, *arguments: str | Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self._folder = folder
        environment = {"PYTHONPATH": str(folder), **(environment or {})}
        super().__init__("run", app, "-p", "0", *arguments, environment=environment)

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        super().__exit__(kind, exc, traceback)
        for _, pid in READY.findall(self.output):
            if is_worker(int(pid)):
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)

    @property
    def port(self) -> int:
        found = re.compile(r"http://\S+:(\d+)/\n")
        match = found.search(self.wait_for(lambda output: bool(found.search(output))))
        assert match is not None
        return int(match[1])

    def has(self, text: str) -> bool:
        """Whether it has been printed by now."""
        self._receive(0.0)
        return text in self.output

    @property
    def pids(self) -> dict[str, int]:
        """The newest process that has become ready, by the number of the worker."""
        return {number: int(pid) for number, pid in READY.findall(self.output)}

    def wait_for_ready(self, count: int) -> dict[str, int]:
        """Waits until so many workers have become ready, ever."""
        self.wait_for(lambda output: len(READY.findall(output)) >= count)
        return self.pids


def is_worker(pid: int) -> bool:
    """Whether there is such a process."""
    if sys.platform != "linux":
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        return True
    try:
        return b"pyhv._cli.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def pause(pid: int) -> None:
    """Stops a process, with all of its threads."""
    os.kill(pid, signal.SIGSTOP)
    if sys.platform == "linux":
        tasks = Path(f"/proc/{pid}/task")
        wait_until(lambda: all(b") T " in (task / "stat").read_bytes() for task in tasks.iterdir()))


def wait_until_gone(pids: list[int]) -> None:
    wait_until(lambda: not any(is_worker(pid) for pid in pids), what="the workers end")


@contextmanager
def sockets_on_each(port: int, pids: set[int]) -> Iterator[dict[int, RawClient]]:
    """A WebSocket to each of these processes, closed at the end."""
    found: dict[int, RawClient] = {}
    with ExitStack() as stack:
        while set(found) != pids:
            client = stack.enter_context(RawClient(port))
            found.setdefault(int(client.read_message()), client)
        yield found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With the module `game`."""
    (tmp_path / "game.py").write_text(PROGRAM, encoding="utf-8")
    return tmp_path
