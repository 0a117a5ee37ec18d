"""One measurement: server on one core, generator on another, and a look at who else used the machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

from harness import memory
from harness.cases import HTTP, Case, load_command
from harness.http import probe
from harness.process import Helper, HelperError, cpu_seconds, machine_seconds

#: Others' CPU (and steal), as a share of one core, above which a row counts as disturbed.
DISTURBED_FROM = 0.10
#: How much longer than asked for a generator may take: connecting, priming, a server that lags.
GENERATOR_GRACE = 60.0

#: How long a look at the machine takes that `wait_for_quiet` makes.
GLANCE = 0.3

Result = dict[str, Any]


@dataclass(frozen=True)
class Cores:
    """Which core each side is pinned to."""

    server: int
    generator: int


def choose_cores() -> Cores:
    """The first two cores that this process may use."""
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        print("one core only: server and generator share it, the figures mean little", file=sys.stderr)
    return Cores(server=allowed[0], generator=allowed[min(1, len(allowed) - 1)])


def wait_for_quiet(patience: float) -> None:
    """Returns when others take less of the machine than would disturb a row, or after `patience` seconds."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        began, (busy, steal) = time.monotonic(), machine_seconds()
        time.sleep(GLANCE)
        now_busy, now_steal = machine_seconds()
        if (now_busy + now_steal - busy - steal) / (time.monotonic() - began) < DISTURBED_FROM:
            return


class Window:
    """CPU shares of a stretch of time: the server's, and of all that is no part of the measurement."""

    def __init__(self, server: Helper) -> None:
        self._server = server
        self._began = self._read()

    def _read(self) -> tuple[float, float, float, float, float]:
        return (
            time.monotonic(),
            *machine_seconds(),
            cpu_seconds(self._server.process.pid),
            time.process_time(),
        )

    def shares(self, generator_seconds: float) -> Result:
        """The shares since the window was opened, each of one core."""
        elapsed, busy, steal, server, runner = (
            end - begin for begin, end in zip(self._began, self._read(), strict=True)
        )
        other = max(0.0, busy - server - generator_seconds - runner)
        return {
            "server_cpu": round(server / elapsed, 3),
            "server_cpu_s": round(server, 3),
            "generator_cpu": round(generator_seconds / elapsed, 3),
            "other_cpu": round(other / elapsed, 3),
            "steal": round(steal / elapsed, 3),
            "disturbed": (other + steal) / elapsed > DISTURBED_FROM,
        }


def measure(command: list[str], port: int, case: Case, seconds: float, cores: Cores) -> Result:
    """Starts a server and measures it in one case.

    Raises HelperError when either side fails, NotServedError when the server has nothing for the case.
    """
    with Helper(command, cores.server) as server:
        server.wait_for_port(port)
        if case.group == HTTP:
            probe(port, case)
        window = Window(server)
        if case.is_memory:
            # The connections are this process's own; and what else runs takes no memory from the server.
            result = memory.measure(server, port, case.connections)
            return result | window.shares(0.0) | {"disturbed": False}
        result = run_generator(load_command(case, port, seconds), cores.generator, seconds)
        if server.process.poll() is not None:
            raise HelperError(f"server ended: {server.complaint()}")
        result |= window.shares(result["cpu_s"])
        return result | {"server_us": round(1e6 * result["server_cpu_s"] / result["msgs"], 3)}


def run_generator(command: list[str], core: int, seconds: float) -> Result:
    """Runs the generator to its end and returns the line that it prints."""
    with Helper(command, core, stdout=subprocess.PIPE) as generator:
        try:
            output, _ = generator.process.communicate(timeout=seconds + GENERATOR_GRACE)
        except subprocess.TimeoutExpired:
            raise HelperError("the generator does not end") from None
        if generator.process.returncode:
            raise HelperError(generator.complaint())
        result: Result = json.loads(output)
        return result
