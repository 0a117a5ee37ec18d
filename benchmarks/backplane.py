"""What joining processes costs: python benchmarks/backplane.py [--messages 20000] [--json FILE] [--socketio PYTHON]

For one, two and three nodes, each a process, alone or joined by NATS or Redis: publishes and deliveries per second,
the latency of a message that goes from one node to a client of another, and what the publishing thread pays. All nodes
publish at once; 10 topics, three clients for each, spread over the nodes. Beside it python-socketio with Redis, where
PYTHON (an interpreter that has python-socketio, aiohttp and redis) is given. Engines, nodes and this program share the
machine's cores.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import pyhv
import report
from harness.cases import BENCHMARKS
from harness.machine import allowed_files, describe
from harness.process import HelperError, free_port

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


@contextmanager
def engine(kind: str) -> Iterator[str | None]:
    """A server of its own, and its URL; for "none" there is none."""
    if kind == "none":
        yield None
        return
    program = shutil.which(f"{kind}-server", path=PATH)
    if program is None:
        raise HelperError(f"{kind}-server is not installed")
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

    def __init__(self, stack: ExitStack, what: str, url: str | None, nodes: int, python: str, kept: bool) -> None:
        peer = "socketio" if what == "python-socketio" else "pyhv"
        command = [python, str(BENCHMARKS / "peers" / f"backplane_{peer}.py"), *([url] if url else [])]
        self.nodes = [Node(stack, command) for _ in range(nodes)]
        self.topics = [f"{'k' if kept else 'p'}/{number}" for number in range(TOPICS)]
        self.readers: list[Reader] = []
        for number in range(CLIENTS):
            topic, node = self.topics[number % TOPICS], (number // TOPICS + number) % nodes
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

    def until(self, condition: Any) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            if time.monotonic() > deadline:
                raise HelperError("what was published does not come")
            if not sum(reader.tick() for reader in self.readers):
                self.readers[0].tick(0.0005)

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
        self.until(lambda: len(far.delays or ()) >= messages)
        self.nodes[0].line()
        delays = sorted(far.delays[messages // 10 :])
        far.delays = None
        return {
            "p50": round(statistics.median(delays) * 1e6),
            "p99": round(delays[len(delays) * 99 // 100] * 1e6),
        }


def measure(what: str, kind: str, nodes: int, kept: bool, options: argparse.Namespace) -> dict[str, Any]:
    """One row."""
    python = options.socketio if what == "python-socketio" else sys.executable
    with engine(kind) as url, ExitStack() as stack:
        cluster = Cluster(stack, what, url, nodes, python, kept)
        latency = cluster.latency(options.messages // 20)
        return (
            {"what": what, "engine": kind, "nodes": nodes, "kept": kept}
            | cluster.throughput(options.messages)
            | latency
        )


def main() -> int:
    """Measures and prints; 1 when a row failed."""
    parser = argparse.ArgumentParser(description="What joining processes costs.")
    parser.add_argument("--messages", type=int, default=20_000, help="publishes per row (20000)")
    parser.add_argument("--json", type=Path, help="a file for all rows")
    parser.add_argument("--socketio", metavar="PYTHON", help="an interpreter that has python-socketio, aiohttp, redis")
    options = parser.parse_args()
    allowed_files()
    cases = [("pyHV", "none", 1, False)]
    cases += [
        ("pyHV", kind, nodes, kept) for kind in ("nats", "redis") for kept in (False, True) for nodes in (1, 2, 3)
    ]
    if options.socketio:
        cases += [("python-socketio", "none", 1, False)]
        cases += [("python-socketio", "redis", nodes, False) for nodes in (1, 2, 3)]
    rows, failed = [], False
    for case in cases:
        try:
            rows.append(measure(*case, options))
        except (HelperError, OSError) as error:
            failed = True
            print(f"{case}: FAILED: {error}", file=sys.stderr)
            continue
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    if options.json:
        document = {"machine": describe(), "pyhv": metadata.version("pyhv"), "size": SIZE, "rows": rows}
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    header = ["", "nodes", "publishes/s", "deliveries/s", "main thread per publish", "latency p50", "p99"]
    lines = []
    for row in rows:
        name = f"{row['what']}, {row['engine']}{', keep' if row['kept'] else ''}"
        figures = [f"{row['publishes']:,}", f"{row['deliveries']:,}", f"{row['microseconds']} µs"]
        lines.append([name, str(row["nodes"]), *figures, f"{row['p50']:,} µs", f"{row['p99']:,} µs"])
    print(report.table(header, lines))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
