"""The cases that are measured and the peers that are compared, in groups: WebSocket and HTTP; and sweeps over cases."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parent.parent
TOOLS = BENCHMARKS / ".cache" / "target" / "release"
LIMIT = "limit"
MEMORY = "memory"
#: The groups, which `--cases` takes for all cases in them.
WEBSOCKET, HTTP = "websocket", "http"
GROUPS = (WEBSOCKET, HTTP)
#: What the file cases ask for; harness/http.py makes them.
FILES = BENCHMARKS / ".cache" / "files"


@dataclass(frozen=True)
class Case:
    """One situation that every peer is put in."""

    name: str
    title: str
    group: str = WEBSOCKET
    #: How a WebSocket server answers: "echo" or "fan". The memory case uses an echo server.
    mode: str = "echo"
    connections: int = 100
    #: Messages that each sender keeps in flight, and their length in bytes.
    depth: int = 1
    size: int = 64
    #: What an HTTP request asks for, and the length of its body: 0 for a GET.
    path: str = ""
    post: int = 0
    #: The figure that counts, as a key of a result, and its unit in tables.
    figure: str = "msgs_per_s"
    unit: str = "/s"
    higher_is_better: bool = True
    #: Whether a ratio to the limit says anything: the limit keeps nothing for an idle connection, and speaks no HTTP.
    against_limit: bool = True
    #: Whether the case has a line in the table of its group; the others are points of a sweep and nothing else.
    in_table: bool = True
    #: Whether one repeat will do: memory hardly varies, and thousands of connections take their time.
    once: bool = False

    @property
    def has_limit(self) -> bool:
        """Whether the limit server is measured beside each row."""
        return self.group == WEBSOCKET

    @property
    def is_memory(self) -> bool:
        """Whether connections are opened and looked at, instead of loaded."""
        return self.figure == "idle_bytes"

    def performance(self, value: float, reference: float) -> float | None:
        """How many times as good `value` is as `reference`; above 1 is better, whatever the unit."""
        top, bottom = (value, reference) if self.higher_is_better else (reference, value)
        return top / bottom if bottom > 0 else None


def _http(name: str, title: str, path: str, post: int = 0) -> Case:
    """64 keep-alive connections, each with one request in flight."""
    return Case(name, title, group=HTTP, connections=64, path=path, post=post, against_limit=False)


def _point(connections: int = 100, depth: int = 1) -> Case:
    """A point of a sweep that the table has not."""
    title = f"echo, {connections:,} connections, {depth} in flight"
    return Case(f"echo-{connections}x{depth}", title, connections=connections, depth=depth, in_table=False)


def _memory_point(connections: int) -> Case:
    """The memory case with another number of connections."""
    return Case(
        f"{MEMORY}-{connections}",
        f"memory of an idle connection, one of {connections:,}",
        connections=connections,
        figure="idle_bytes",
        unit=" B",
        higher_is_better=False,
        against_limit=False,
        in_table=False,
        once=True,
    )


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
    Case("fan-1000x16", "broadcast to 1,000, 16 in flight, deliveries", mode="fan", connections=1000, depth=16),
    Case("fan-1000x64", "broadcast to 1,000, 64 in flight, deliveries", mode="fan", connections=1000, depth=64),
    Case(
        MEMORY,
        "memory of an idle connection",
        connections=2000,
        figure="idle_bytes",
        unit=" B",
        higher_is_better=False,
        against_limit=False,
    ),
    _http("http-ping", "GET answered by a handler with 4 bytes", "/ping"),
    _http("http-json", "GET answered by a handler with 1 KiB of JSON", "/json"),
    _http("http-post-1k", "POST of 1 KiB, sent back by a handler", "/echo", post=1024),
    _http("http-file-1k", "static file of 1 KiB", "/files/1k.bin"),
    _http("http-file-1m", "static file of 1 MiB", "/files/1m.bin"),
    *(_point(connections=count) for count in (10, 5000)),
    *(_point(depth=depth) for depth in (2, 4, 8, 32, 64)),
    *(_memory_point(count) for count in (500, 8000, 16_000)),
)


@dataclass(frozen=True)
class Sweep:
    """Cases that differ in one number only: what a curve is drawn through."""

    name: str
    title: str
    #: The attribute of a case that differs, and its name in tables and at the axis.
    along: str
    axis: str
    cases: tuple[str, ...]

    def points(self) -> list[tuple[int, Case]]:
        """Its cases, each with the number that it differs in."""
        by_name = {case.name: case for case in CASES}
        return [(getattr(by_name[name], self.along), by_name[name]) for name in self.cases]


SWEEPS = (
    Sweep(
        "sweep-connections",
        "Echoed messages by the number of connections, with 1 in flight on each",
        "connections",
        "connections",
        ("round-trip", "echo-10x1", "echo-100x1", "echo-1000x1", "echo-5000x1"),
    ),
    Sweep(
        "sweep-depth",
        "Echoed messages by the number in flight, on each of 100 connections",
        "depth",
        "in flight",
        ("echo-100x1", "echo-100x2", "echo-100x4", "echo-100x8", "echo-100x16", "echo-100x32", "echo-100x64"),
    ),
    Sweep(
        "sweep-memory",
        "Resident memory by the number of connections, idle again after a message of 8 KiB each way",
        "connections",
        "connections",
        ("memory-500", MEMORY, "memory-8000", "memory-16000"),
    ),
)


@dataclass(frozen=True)
class Peer:
    """A server program in peers/, and the distributions whose versions a result names."""

    name: str
    script: str
    distributions: tuple[str, ...]
    arguments: tuple[str, ...] = ()
    group: str = WEBSOCKET
    #: Whether it runs in the cases that are points of a sweep and nothing else.
    in_sweeps: bool = True

    def takes_part(self, case: Case) -> bool:
        """Whether it is to run in a case."""
        return self.group == case.group and (self.in_sweeps or case.in_table)

    def command(self, port: int, case: Case) -> list[str]:
        """The command line that serves `case` at `port`."""
        what = str(FILES) if self.group == HTTP else case.mode
        return [sys.executable, str(BENCHMARKS / "peers" / self.script), str(port), what, *self.arguments]

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
    # With uvloop it is faster: that one has its curve.
    Peer("websockets", "websockets_server.py", ("websockets",), in_sweeps=False),
    Peer("websockets-uvloop", "websockets_server.py", ("websockets", "uvloop"), ("uvloop",)),
    Peer("aiohttp", "aiohttp_server.py", ("aiohttp", "uvloop")),
    Peer("socketify", "socketify_server.py", ("socketify",)),
    Peer("pyhv", "pyhv_http.py", ("pyhv",), group=HTTP),
    Peer("aiohttp", "aiohttp_http.py", ("aiohttp", "uvloop"), group=HTTP),
    Peer("starlette", "starlette_http.py", ("starlette", "uvicorn", "uvloop", "httptools"), group=HTTP),
    Peer("granian-asgi", "granian_http.py", ("granian", "uvloop"), ("asgi",), group=HTTP),
    Peer("granian-rsgi", "granian_http.py", ("granian", "uvloop"), ("rsgi",), group=HTTP),
    Peer("robyn", "robyn_http.py", ("robyn",), group=HTTP),
    Peer("socketify", "socketify_http.py", ("socketify",), group=HTTP),
)


def limit_command(port: int, mode: str) -> list[str]:
    """The command line of the limit server."""
    return [str(TOOLS / "wslimit"), "--port", str(port), "--mode", mode]


def load_command(case: Case, port: int, seconds: float) -> list[str]:
    """The command line of the load generator in one case."""
    flags: dict[str, object] = {"port": port, "connections": case.connections, "depth": case.depth, "seconds": seconds}
    if case.group == HTTP:
        flags |= {"path": case.path, "post": case.post}
    else:
        flags |= {"mode": case.mode, "size": case.size}
    return [
        str(TOOLS / ("httpload" if case.group == HTTP else "wsload")),
        *(word for name, value in flags.items() for word in (f"--{name}", str(value))),
    ]
