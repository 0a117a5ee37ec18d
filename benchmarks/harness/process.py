"""Helper processes on chosen cores, and what /proc tells about them and about the machine."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
START_LIMIT = 20.0


class HelperError(Exception):
    """A server or the generator did not do its part; the message is one line."""


class Helper:
    """A process of ours, pinned to one core, that does not outlive its `with` block.

    It leads a session of its own: Ctrl-C in a terminal reaches only the runner, which ends its helpers.
    """

    def __init__(self, command: list[str], core: int, stdout: int = subprocess.DEVNULL) -> None:
        # A file, closed in __exit__: a pipe would fill up and stall a server that logs much.
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=self._stderr,
            start_new_session=True,
            # Before the exec, so that every thread the program ever starts inherits it.
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )

    def __enter__(self) -> Helper:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Its own session, hence its own process group: exactly the helper and what it started.
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()
        self._stderr.close()

    def complaint(self) -> str:
        """The last line that it wrote to stderr."""
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        return lines[-1][:200] if lines else f"exit status {self.process.poll()}, no message"

    def wait_for_port(self, port: int) -> None:
        """Returns once something accepts at `port`; raises HelperError if that takes too long."""
        deadline = time.monotonic() + START_LIMIT
        while True:
            if self.process.poll() is not None:
                raise HelperError(f"server ended: {self.complaint()}")
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
            except OSError:
                if time.monotonic() > deadline:
                    raise HelperError(f"server does not listen after {START_LIMIT:.0f} s") from None
                time.sleep(0.02)
            else:
                return


def free_port() -> int:
    """A port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def family(pid: int) -> list[int]:
    """A process and its descendants."""
    found = [pid]
    try:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            for child in (thread / "children").read_text().split():
                found += family(int(child))
    except OSError:
        pass  # it ended while we looked
    return found


def cpu_seconds(pid: int) -> float:
    """CPU time of a process and its living descendants, user and system."""
    total = 0
    for member in family(pid):
        try:
            # The name, in parentheses, may hold anything; the fields after it are numbers.
            fields = Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += int(fields[11]) + int(fields[12])
    return total / TICKS_PER_SECOND


def resident_bytes(pid: int) -> int:
    """Resident memory of a process and its descendants, in bytes."""
    pages = 0
    for member in family(pid):
        try:
            pages += int(Path(f"/proc/{member}/statm").read_text().split()[1])
        except OSError:
            continue
    return pages * os.sysconf("SC_PAGE_SIZE")


def machine_seconds() -> tuple[float, float]:
    """CPU time that the whole machine has spent busy, and time that its host withheld (steal)."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(
        int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    )
    return (user + nice + system + irq + softirq) / TICKS_PER_SECOND, steal / TICKS_PER_SECOND
