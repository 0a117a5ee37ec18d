"""The cases that are measured and the peers that are compared."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parent.parent
TOOLS = BENCHMARKS / ".cache" / "target" / "release"
LIMIT = "limit"
MEMORY = "memory"


@dataclass(frozen=True)
class Case:
    """One situation that every peer is put in."""

    name: str
    title: str
    #: How the server answers: "echo" or "fan". The memory case uses an echo server.
    mode: str = "echo"
    connections: int = 100
    #: Messages that each sender keeps in flight, and their length in bytes.
    depth: int = 1
    size: int = 64
    #: The figure that counts, as a key of a result, and its unit in tables.
    figure: str = "msgs_per_s"
    unit: str = "/s"
    higher_is_better: bool = True
    #: Whether a ratio to the limit says anything: the limit keeps nothing for an idle connection.
    against_limit: bool = True

    def performance(self, value: float, reference: float) -> float | None:
        """How many times as good `value` is as `reference`; above 1 is better, whatever the unit."""
        top, bottom = (value, reference) if self.higher_is_better else (reference, value)
        return top / bottom if bottom > 0 else None


CASES = (
    Case("echo-100x1", "echo, 100 connections, 1 in flight"),
    Case("echo-100x16", "echo, 100 connections, 16 in flight", depth=16),
    Case("echo-1000x1", "echo, 1,000 connections, 1 in flight", connections=1000),
    Case("echo-10x8-16k", "echo, 10 connections, 8 in flight, 16 KiB", connections=10, depth=8, size=16 * 1024),
    Case(
        "round-trip",
        "one connection, round trip",
        connections=1,
        figure="p50_us",
        unit=" µs",
        higher_is_better=False,
    ),
    Case("fan-1000", "broadcast to 1,000, deliveries", mode="fan", connections=1000),
    Case("fan-100", "broadcast to 100, deliveries", mode="fan"),
    Case(
        MEMORY,
        "memory of an idle connection",
        connections=2000,
        figure="idle_bytes",
        unit=" B",
        higher_is_better=False,
        against_limit=False,
    ),
)


@dataclass(frozen=True)
class Peer:
    """A server program in peers/, and the distributions whose versions a result names."""

    name: str
    script: str
    distributions: tuple[str, ...]
    arguments: tuple[str, ...] = ()

    def command(self, port: int, mode: str) -> list[str]:
        """The command line that serves `mode` at `port`."""
        return [sys.executable, str(BENCHMARKS / "peers" / self.script), str(port), mode, *self.arguments]

    def why_not(self) -> str | None:
        """Why this peer cannot run here, in one line; None when it can.

        Imports for real, in a process of its own: an installed package may lack a shared library.
        """
        for module in self.distributions:
            done = subprocess.run([sys.executable, "-c", f"import {module}"], capture_output=True, text=True)
            if done.returncode:
                last = (done.stderr.strip().splitlines() or ["no message"])[-1]
                # A failed dlopen says where the library is installed: of no interest, and private.
                return last.replace(sys.prefix, "").replace(str(BENCHMARKS), "")[:160]
        return None


PEERS = (
    Peer("pyhv", "pyhv_server.py", ("pyhv",)),
    Peer("picows", "picows_server.py", ("picows", "uvloop")),
    Peer("websockets", "websockets_server.py", ("websockets",)),
    Peer("websockets-uvloop", "websockets_server.py", ("websockets", "uvloop"), ("uvloop",)),
    Peer("aiohttp", "aiohttp_server.py", ("aiohttp", "uvloop")),
    Peer("socketify", "socketify_server.py", ("socketify",)),
)


def limit_command(port: int, mode: str) -> list[str]:
    """The command line of the limit server."""
    return [str(TOOLS / "wslimit"), "--port", str(port), "--mode", mode]


def load_command(case: Case, port: int, seconds: float) -> list[str]:
    """The command line of the load generator in one case."""
    flags = {
        "port": port,
        "mode": case.mode,
        "connections": case.connections,
        "depth": case.depth,
        "size": case.size,
        "seconds": seconds,
    }
    return [
        str(TOOLS / "wsload"),
        *(word for name, value in flags.items() for word in (f"--{name}", str(value))),
    ]
