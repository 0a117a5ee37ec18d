"""What joining processes costs: python benchmarks/backplane.py [--messages 20000] [--record] [--socketio PYTHON]

For one, two and three nodes, each a process, alone or joined by NATS or Redis: publishes and deliveries per second,
the latency of a message that goes from one node to a client of another, and what the publishing thread pays. All nodes
publish at once; 10 topics, three clients for each, spread over the nodes. Beside it python-socketio with Redis, where
PYTHON (an interpreter that has python-socketio, aiohttp and redis) is given. Engines, nodes and this program share the
machine's cores.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import pyhv
import report
from harness import store
from harness.cases import BENCHMARKS
from harness.machine import allowed_files, describe
from harness.process import HelperError, free_port

PYHV, SOCKETIO = "pyhv", "python-socketio"
PATIENCE = 60.0
TOPICS = 10
CLIENTS = 30
#: Bytes of a message.
SIZE = 200
#: Messages of each node at once: with their letters well within the default of `backplane_buffer`.
ROUND = 5_000
#: Of a paced publisher, for the latency: messages a second.
PACE = 200
#: Where Debian has servers.
PATH = "/usr/local/bin:/usr/bin:/usr/sbin"


@dataclass(frozen=True)
class Case:
    """One row."""

    what: str
    engine: str
    nodes: int
    kept: bool

    @property
    def name(self) -> str:
        """In results and tables."""
        nodes = "1 node" if self.nodes == 1 else f"{self.nodes} nodes"
        if self.engine == "none":
            return f"{nodes} alone"
        return f"{self.engine.upper() if self.engine == 'nats' else 'Redis'}{', `keep`' * self.kept}, {nodes}"


def server_program(kind: str) -> str:
    """Where an engine's server is."""
    program = shutil.which(f"{kind}-server", path=PATH)
    if program is None:
        raise HelperError(f"{kind}-server is not installed")
    return program


@contextmanager
def engine(kind: str) -> Iterator[str | None]:
    """A server of its own, and its URL; for "none" there is none."""
    if kind == "none":
        yield None
        return
    program = server_program(kind)
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        options = {
            "nats": ["-a", "127.0.0.1", "-p", str(port), "-js", "-sd", folder],
            "redis": ["--port", str(port), "--dir", folder, "--save", "", "--appendonly", "yes"],
        }[kind]
        process = subprocess.Popen(
            [program, *options], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            time.sleep(1.0)
            yield f"{kind}://127.0.0.1:{port}"
        finally:
            process.kill()
            process.wait()


class Node:
    """A process of peers/backplane_*.py."""

    def __init__(self, stack: ExitStack, command: list[str]) -> None:
        self.process = stack.enter_context(
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        )
        stack.callback(self.process.kill)
        self.port = int(self.line())
        while self.line() != "connected":
            pass

    def line(self) -> str:
        """The next one that it prints."""
        assert self.process.stdout is not None  # Popen was given a pipe
        line = self.process.stdout.readline()
        if not line:
            raise HelperError("a node has ended")
        return line.strip()

    def ask(self, **what: Any) -> None:
        """Has it publish."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"pause": 0.0, "each": 50, "size": SIZE, **what}) + "\n")
        self.process.stdin.flush()


class Reader(pyhv.HvWebSocketClient):
    """Counts messages, and for the latency remembers when they came."""

    def __init__(self, node: int) -> None:
        self.node = node
        self.count = 0
        self.delays: list[float] | None = None

    def on_message(self, msg: str | bytes) -> None:
        """One more."""
        self.count += 1
        if self.delays is not None:
            now = time.monotonic()
            self.delays.append(now - float(msg.split(None, 1)[0]))


class SocketIoReader(Reader):
    """The little of Engine.IO 4 that a reader needs: open, connect, ping, events."""

    def __init__(self, node: int) -> None:
        super().__init__(node)
        self.ready = False

    def on_message(self, msg: str | bytes) -> None:
        """Events count."""
        assert isinstance(msg, str)
        if msg.startswith("42"):
            super().on_message(json.loads(msg[2:])[1])
        elif msg.startswith("40"):
            self.ready = True
        elif msg.startswith("0"):
            self.send("40")
        elif msg == "2":
            self.send("3")


class Cluster:
    """Nodes and their readers."""

    def __init__(self, stack: ExitStack, case: Case, url: str | None, python: str) -> None:
        peer = "socketio" if case.what == SOCKETIO else "pyhv"
        command = [python, str(BENCHMARKS / "peers" / f"backplane_{peer}.py"), *([url] if url else [])]
        self.nodes = [Node(stack, command) for _ in range(case.nodes)]
        self.topics = [f"{'k' if case.kept else 'p'}/{number}" for number in range(TOPICS)]
        self.readers: list[Reader] = []
        for number in range(CLIENTS):
            topic, node = self.topics[number % TOPICS], (number // TOPICS + number) % case.nodes
            reader = SocketIoReader(node) if peer == "socketio" else Reader(node)
            path = "socket.io/?EIO=4&transport=websocket&" if peer == "socketio" else "?"
            reader.connect(f"ws://127.0.0.1:{self.nodes[node].port}/{path}topic={topic}")
            stack.callback(reader.close)
            self.readers.append(reader)
        self.until(lambda: all(reader.is_connected and getattr(reader, "ready", True) for reader in self.readers))
        # Until each node hears each other one.
        for publisher in self.nodes:
            for topic in self.topics:
                self.warm(publisher, topic)

    def warm(self, node: Node, topic: str) -> None:
        mine = [
            reader
            for reader, number in zip(self.readers, range(CLIENTS), strict=True)
            if self.topics[number % TOPICS] == topic
        ]
        before = [reader.count for reader in mine]
        deadline = time.monotonic() + PATIENCE
        while any(reader.count == count for reader, count in zip(mine, before, strict=True)):
            if time.monotonic() > deadline:
                raise HelperError(f"{topic} does not reach everybody")
            node.ask(topics=[topic], count=1)
            node.line()
            self.tick(0.02)
        self.tick(0.05)

    def tick(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if not sum(reader.tick() for reader in self.readers):
                self.readers[0].tick(0.0005)

    def until(self, condition: Any, watched: Reader | None = None) -> None:
        """Waits at the one that is watched, which has its messages at once; the others come a millisecond later."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            if time.monotonic() > deadline:
                raise HelperError("what was published does not come")
            if not sum(reader.tick() for reader in self.readers):
                (watched or self.readers[0]).tick(0.0005)

    @property
    def total(self) -> int:
        """Deliveries so far."""
        return sum(reader.count for reader in self.readers)

    def throughput(self, messages: int) -> dict[str, float]:
        """Rounds of messages from all nodes at once; each round ends when all of it was delivered."""
        spent, published, began = 0.0, 0, time.monotonic()
        each = CLIENTS // TOPICS
        while published < messages:
            count = ROUND // len(self.nodes)
            goal = self.total + count * len(self.nodes) * each
            for node in self.nodes:
                node.ask(topics=self.topics, count=count)
            self.until(lambda goal=goal: self.total >= goal)
            spent += sum(float(node.line()) for node in self.nodes)
            published += count * len(self.nodes)
        seconds = time.monotonic() - began
        return {
            "publishes": round(published / seconds),
            "deliveries": round(published * each / seconds),
            "microseconds": round(spent / published * 1e6, 2),
        }

    def latency(self, messages: int) -> dict[str, float]:
        """From the first node to a client of the last one, at a pace that fills no queue."""
        far = next(reader for reader in self.readers if reader.node == len(self.nodes) - 1)
        topic = self.topics[self.readers.index(far) % TOPICS]
        far.delays = []
        self.nodes[0].ask(topics=[topic], count=messages, each=1, pause=1 / PACE)
        self.until(lambda: len(far.delays or ()) >= messages, far)
        self.nodes[0].line()
        delays = sorted(far.delays[messages // 10 :])
        far.delays = None
        return {
            "p50": round(statistics.median(delays) * 1e6),
            "p99": round(delays[len(delays) * 99 // 100] * 1e6),
        }


def measure(case: Case, messages: int, socketio: str | None) -> dict[str, float]:
    """What one row found."""
    python = socketio if case.what == SOCKETIO and socketio else sys.executable
    with engine(case.engine) as url, ExitStack() as stack:
        cluster = Cluster(stack, case, url, python)
        latency = cluster.latency(messages // 20)
        return cluster.throughput(messages) | latency


def cases(socketio: bool) -> list[Case]:
    """The rows, in their order."""
    rows = [Case(PYHV, "none", 1, False)]
    rows += [
        Case(PYHV, kind, nodes, kept) for kind in ("nats", "redis") for kept in (False, True) for nodes in (1, 2, 3)
    ]
    if socketio:
        rows += [Case(SOCKETIO, "none", 1, False)]
        rows += [Case(SOCKETIO, "redis", nodes, False) for nodes in (1, 2, 3)]
    return rows


def collect(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every row as a row of a result, each told to whoever watches."""
    rows = []
    for repeat in range(options.repeat):
        for case in cases(bool(options.socketio)):
            row: dict[str, Any] = {"repeat": repeat, "case": case.name, "peer": case.what, "disturbed": False}
            try:
                row["result"] = measure(case, options.messages, options.socketio)
            except (HelperError, OSError) as error:
                row["error"] = str(error)
            rows.append(row)
            print(json.dumps(row), file=sys.stderr, flush=True)
    return rows


def versions(socketio: str | None) -> dict[str, str]:
    """Of all that takes part."""
    found = {"pyhv": metadata.version("pyhv")}
    for kind in ("nats", "redis"):
        program = server_program(kind)
        said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
        number = re.search(r"\d+(\.\d+)+", said)
        found[f"{kind}-server"] = number[0] if number else said.strip()
    if socketio:
        code = "from importlib.metadata import version; print(version('python-socketio'))"
        said = subprocess.run([socketio, "-c", code], capture_output=True, text=True, check=True).stdout
        found[SOCKETIO] = said.strip()
    return found


def main() -> int:
    """Measures and prints; 1 when a row failed."""
    parser = argparse.ArgumentParser(description="What joining processes costs.")
    parser.add_argument("--messages", type=int, default=20_000, help="publishes per row (20000)")
    parser.add_argument("--repeat", type=int, default=3, help="how often, for medians (3)")
    parser.add_argument("--record", action="store_true", help="store the results, for the table of docs/scale.md")
    parser.add_argument("--socketio", metavar="PYTHON", help="an interpreter that has python-socketio, aiohttp, redis")
    options = parser.parse_args()
    allowed_files()
    began = time.monotonic()
    run: dict[str, Any] = {"when": store.now(), "machine": describe(), "versions": versions(options.socketio)}
    rows = collect(options)
    if options.record:
        run["settings"] = {"repeat": options.repeat, "messages": options.messages, "size": SIZE}
        run |= {"skipped": {}, "took_s": round(time.monotonic() - began)}
        store.add(BENCHMARKS / "results", store.BACKPLANE, run, rows)
    print(report.backplane_table({"rows": rows}))
    return int(any("error" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
