"""A server under mixed load for minutes or hours: does anything grow, and does anything get lost?

    python scripts/soak.py --minutes 10 --svg soak.svg

One process serves, this one is the load (soak_load.py): pyHV clients whose every message must come back once and in
order, with and without TLS and compression; HTTP and HTTPS requests; peers made of sockets that break every rule they
can, read nothing, or never go on. Memory, descriptors and threads of both processes are sampled; at the end they are
plotted as text (and as SVG), and the verdict is the exit code. docs/soak.md has what it has shown so far.
"""

from __future__ import annotations

import argparse
import collections
import http.client
import json
import os
import platform
import random
import select
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyhv
from pyhv import HttpRequest, HttpResponse, HvWebServer, WebSocketChannel, _native
from soak_load import HOST, JOBS, OVER_TLS, Client, Counts, Job, Target, broadcast_text, kernel_sockets

#: Between two requests of a connection too: not so short that a load without a processor runs into it every time.
HEADER_TIMEOUT = 5.0
#: What the server is started with: limits low enough for the load to reach them.
SETTINGS = {
    "max_message_size": 1 << 20,
    "max_buffered": 1 << 20,
    "max_pending_bytes": 8 << 20,
    "header_timeout": HEADER_TIMEOUT,
    "body_timeout": 2.0,
    "handshake_timeout": 2.0,
    "close_timeout": 1.0,
    "ping_interval": 5.0,
    "ping_timeout": 5.0,
    # A context for each channel, where the client agrees: what costs most.
    "compression": "context",
}
CLIENTS = 24
#: How many samples the plot is made of, and the shortest time between two, in seconds.
SAMPLES = 120
SHORTEST = 0.25
#: The share of the samples that is warm-up: pools and the allocator's arenas grow to their size.
WARM_UP = 0.25
#: The growth of resident memory, from after the warm-up to the end, that is still the allocator's noise.
ALLOWED_GROWTH = 0.05
ALLOWED_BYTES = 3 << 20
#: What a channel at /flood is sent each time.
FLOOD = bytes(range(256)) * 256


# The server, in a process of its own


class SoakServer(HvWebServer):
    """Echoes, broadcasts numbers, floods who asks for it, and counts; keeps nothing."""

    def on_init(self) -> None:
        self.opened = self.closed = self.messages = self.errors = self.broadcasts = 0
        self.compressed = 0  # messages over channels with compression
        self.flooded = self.flooded_closed = 0  # channels, and those of them closed with 1008
        self.flooding: set[WebSocketChannel] = set()
        self.get("/stats", self.get_stats)
        self.post("/echo", lambda request, response: response.data(request.body))
        self.get("/ping", lambda request, response: response.text("pong"))

    def get_stats(self, request: HttpRequest, response: HttpResponse) -> None:
        response.json({**self.counts(), "channels": len(self.channels)})

    def counts(self) -> dict[str, int]:
        names = ("opened", "closed", "messages", "errors", "broadcasts", "compressed", "flooded", "flooded_closed")
        return {name: getattr(self, name) for name in names}

    def on_ws_open(self, channel: WebSocketChannel, url: str) -> None:
        self.opened += 1
        if url == "/flood":
            self.flooded += 1
            self.flooding.add(channel)

    def on_ws_message(self, channel: WebSocketChannel, msg: str | bytes) -> None:
        self.messages += 1
        self.compressed += channel.is_compressed
        if msg == "bye":
            channel.close(1000, "bye")
        else:
            channel.send(msg)

    def on_ws_close(self, channel: WebSocketChannel) -> None:
        self.closed += 1
        if channel in self.flooding:
            self.flooding.remove(channel)
            self.flooded_closed += channel.close_code == 1008

    def on_tick(self) -> None:
        for channel in self.flooding:
            channel.send(FLOOD)

    def on_error(self, exc: Exception) -> None:
        self.errors += 1


def serve(seed: int, folder: Path) -> None:
    """Serves until its stdin ends; stalls now and then, as programs do. The certificate is in `folder`."""
    dice = random.Random(seed)
    server = SoakServer()
    secure = {"tls_port": 0, "certfile": folder / "cert.pem", "keyfile": folder / "key.pem"}
    server.start(0, **secure, **SETTINGS)  # type: ignore[arg-type]
    print(server.port, server.tls_port, flush=True)
    next_broadcast = time.monotonic()
    while not select.select([sys.stdin], [], [], 0)[0]:
        server.tick(0.01)
        if time.monotonic() >= next_broadcast:
            next_broadcast += 0.1
            server.broadcast(broadcast_text(server.broadcasts))
            server.broadcasts += 1
            if dice.random() < 0.02:
                time.sleep(dice.random())  # the stall
    server.stop(5.0)


# Facts


@dataclass(frozen=True)
class Facts:
    """What a process has at one moment."""

    resident: int  # bytes
    descriptors: int
    threads: int


def facts(pid: int) -> Facts:
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    descriptors = len(os.listdir(f"/proc/{pid}/fd"))
    return Facts(int(status["VmRSS"].split()[0]) * 1024, descriptors, int(status["Threads"]))


@dataclass(frozen=True)
class Sample:
    """One look at both processes, `at` seconds after the load began."""

    at: float
    server: Facts
    load: Facts


# The run


@dataclass
class Run:
    """What a run has found."""

    seconds: float
    before: Facts  # the server without load
    after: Facts  # the same, afterwards
    samples: list[Sample]
    counts: Counts
    stats: dict[str, int]  # of the server, after the load
    left: int  # sockets of the server's that the kernel still has
    exit_code: int
    faults: list[str] = field(default_factory=list)

    @property
    def steady(self) -> list[Sample]:
        return self.samples[int(len(self.samples) * WARM_UP) :]

    def growth(self, of: Callable[[Sample], int]) -> tuple[float, float]:
        """Medians of the first and the last third of the samples after the warm-up."""
        values = [of(sample) for sample in self.steady]
        third = max(1, len(values) // 3)
        return statistics.median(values[:third]), statistics.median(values[-third:])

    def judge(self) -> None:
        """Fills in `faults`."""
        counts = self.counts
        for name in ("lost", "doubled", "corrupt"):
            if getattr(counts, name):
                self.faults.append(f"{getattr(counts, name)} messages {name}")
        self.faults += [f"{said} (x{n})" for said, n in collections.Counter(counts.unexpected).most_common(10)]
        load = (counts.secure, counts.compressed, counts.broadcasts, counts.http["http"], counts.http["https"])
        if not all((*load, counts.echoed, counts.mischief, counts.idlers, counts.windows_shut)):
            self.faults.append("there was no load of some kind")
        if self.stats["flooded"] != self.stats["flooded_closed"]:
            self.faults.append("a channel whose peer reads nothing was not closed with 1008")
        if self.left:
            self.faults.append(f"the kernel still has {self.left} sockets of closed connections")
        if self.stats["opened"] != self.stats["closed"]:
            self.faults.append(f"{self.stats['opened']} channels were opened, {self.stats['closed']} closed")
        if self.stats["errors"]:
            self.faults.append(f"on_error ran {self.stats['errors']} times")
        if self.exit_code:
            self.faults.append(f"the server ended with {self.exit_code}")
        if self.after.descriptors > self.before.descriptors:
            self.faults.append(f"descriptors: {self.before.descriptors} before, {self.after.descriptors} after")
        if self.after.threads != self.before.threads or len({s.server.threads for s in self.samples}) != 1:
            self.faults.append("the server's threads are not always as many")
        for name, of in (("server", lambda s: s.server.resident), ("load", lambda s: s.load.resident)):
            first, last = self.growth(of)
            # A short run is all warm-up.
            if self.seconds >= 120 and last - first > max(ALLOWED_BYTES, ALLOWED_GROWTH * first):
                self.faults.append(f"the memory of the {name} grew from {mib(first)} to {mib(last)}")


def mib(count: float) -> str:
    return f"{count / (1 << 20):.1f} MiB"


def run(seconds: float, seed: int) -> Run:
    """Starts the server, is the load for `seconds`, and ends both."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = _native.make_dev_certificates([HOST])
        for file, text in zip(("ca.pem", "cert.pem", "key.pem"), texts, strict=True):
            (folder / file).write_text(text)
        return run_with(folder, seconds, seed)


def run_with(folder: Path, seconds: float, seed: int) -> Run:
    code = [sys.executable, __file__, "--serve", str(seed), "--certificates", str(folder)]
    process = subprocess.Popen(code, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None and process.stdout is not None
    target: Target | None = None
    threads: list[threading.Thread] = []
    try:
        port, tls_port = map(int, process.stdout.readline().split())
        target = Target(port, tls_port, folder / "ca.pem", HEADER_TIMEOUT)
        stats_of(port)
        before = facts(process.pid)
        counts = Counts()

        def repeat(target: Target, job: Job, number: int, pause: float) -> None:
            dice = random.Random(seed * 1000 + number)
            while not target.over.is_set():
                job(target, counts, dice)
                target.over.wait(pause * dice.random())

        for number, (job, pause) in enumerate(JOBS):
            threads.append(threading.Thread(target=repeat, args=(target, job, number, pause)))
            threads[-1].start()
        samples = drive(target, process.pid, counts, seconds, random.Random(seed))
        target.over.set()
        for thread in threads:
            thread.join(60)
        stats, after, left = settle(target, process.pid, before)
        process.stdin.close()
        exit_code = process.wait(30)
        return Run(seconds, before, after, samples, counts, stats, left, exit_code)
    finally:
        if target is not None:
            target.over.set()
        if process.poll() is None:
            process.kill()
            process.wait()
        process.stdin.close()
        process.stdout.close()


def drive(target: Target, pid: int, counts: Counts, seconds: float, dice: random.Random) -> list[Sample]:
    """The main loop of the load: ticks the clients, and looks at the processes."""
    clients = [Client(target, number, counts, dice) for number in range(CLIENTS)]
    for client in clients:
        client.begin()
    samples: list[Sample] = []
    begin = time.monotonic()
    end, patience = begin + seconds, begin + seconds + 30
    every = max(SHORTEST, seconds / SAMPLES)
    while True:
        now = time.monotonic()
        for client in clients:
            client.tick()
            client.step(now, now >= end)
            if not client.is_connected and not client.is_connecting and client.close_code is not None and now < end:
                client.begin()
        if now < end and now - begin >= every * len(samples):
            samples.append(Sample(now - begin, facts(pid), facts(os.getpid())))
        if now >= end and not any(client.is_connected or client.is_connecting for client in clients):
            break
        if now >= patience:
            counts.unexpected.append("clients still had messages under way 30 s after the end")
            break
        time.sleep(0.002)  # the frame
    for client in clients:
        client.tick()
    return samples


def stats_of(port: int) -> dict[str, int]:
    connection = http.client.HTTPConnection(HOST, port, timeout=20)
    try:
        connection.request("GET", "/stats", headers={"Connection": "close"})
        stats: dict[str, int] = json.loads(connection.getresponse().read())
        return stats
    finally:
        connection.close()


def settle(target: Target, pid: int, before: Facts) -> tuple[dict[str, int], Facts, int]:
    """What the server, and the kernel for it, has when everybody has left; it gets 20 s to notice."""
    deadline = time.monotonic() + 20
    while True:
        stats, after = stats_of(target.port), facts(pid)
        left = kernel_sockets(target.port) + kernel_sockets(target.tls_port)
        quiet = stats["channels"] == 0 and stats["opened"] == stats["closed"] and not left
        if (quiet and after.descriptors <= before.descriptors) or time.monotonic() > deadline:
            return stats, after, left
        time.sleep(0.05)


# The report

SERIES: Sequence[tuple[str, Callable[[Sample], float]]] = (
    ("server: resident memory, MiB", lambda s: s.server.resident / (1 << 20)),
    ("load: resident memory, MiB", lambda s: s.load.resident / (1 << 20)),
    ("server: descriptors", lambda s: s.server.descriptors),
    ("server: threads", lambda s: s.server.threads),
)
WIDTH, HEIGHT = 72, 8


def plot(title: str, samples: Sequence[Sample], of: Callable[[Sample], float]) -> str:
    """A series as text: time to the right, each column the median of its samples; the axis begins at 0."""
    columns: list[list[float]] = [[] for _ in range(WIDTH)]
    last = samples[-1].at or 1.0
    for sample in samples:
        columns[min(WIDTH - 1, int(sample.at / last * WIDTH))].append(of(sample))
    top = max(of(sample) for sample in samples) or 1.0
    heights = [round(statistics.median(column) / top * HEIGHT) if column else 0 for column in columns]
    lines = [title]
    for level in range(HEIGHT, 0, -1):
        axis = f"{top * level / HEIGHT:9.1f} |"
        lines.append((axis + "".join("*" if height >= level else " " for height in heights)).rstrip())
    lines.append(f"{0:9.1f} +{'-' * WIDTH}")
    lines.append(f"{'':10} 0 s{f'{last:.0f} s':>{WIDTH - 3}}")
    return "\n".join(lines)


def svg(samples: Sequence[Sample]) -> str:
    """The series one below the other."""
    width, height, gap = 720, 120, 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width + 100}" height="{len(SERIES) * (height + gap) + 20}"',
        ' font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>',
    ]
    last = samples[-1].at or 1.0
    for number, (title, of) in enumerate(SERIES):
        top = max(of(sample) for sample in samples) or 1.0
        base = number * (height + gap) + gap + height - 10
        points = " ".join(f"{60 + s.at / last * width:.1f},{base - of(s) / top * height:.1f}" for s in samples)
        parts += [
            f'<text x="60" y="{base - height - 6}">{title}</text>',
            f'<text x="55" y="{base - height + 10}" text-anchor="end">{top:.1f}</text>',
            f'<text x="55" y="{base}" text-anchor="end">0</text>',
            f'<path d="M60 {base - height}V{base}H{60 + width}" fill="none" stroke="gray"/>',
            f'<polyline points="{points}" fill="none" stroke="#36c" stroke-width="1.5"/>',
        ]
    parts.append(
        f'<text x="{60 + width}" y="{len(SERIES) * (height + gap) + 12}" text-anchor="end">{last:.0f} s</text>'
    )
    return "\n".join([*parts, "</svg>", ""])


def table(counted: collections.Counter[str]) -> list[str]:
    """What was counted without and with TLS."""
    names = sorted({name.removesuffix(OVER_TLS) for name in counted})
    return [
        f"    {'':<48} {'TCP':>8} {'TLS':>8}",
        *(f"    {name:<48} {counted[name]:>8,} {counted[name + OVER_TLS]:>8,}" for name in names),
    ]


def report(found: Run) -> str:
    counts = found.counts
    first, last = found.growth(lambda s: s.server.resident)
    load_first, load_last = found.growth(lambda s: s.load.resident)
    most = max(s.server.descriptors for s in found.samples)
    lines = [
        f"pyHV {pyhv.__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}, "
        f"{os.cpu_count()} cores, {found.seconds:.0f} s",
        "",
        *(plot(title, found.samples, of) + "\n" for title, of in SERIES),
        f"messages sent by clients     {counts.sent:>10,}",
        f"    over TLS                 {counts.secure:>10,}",
        f"    compressed               {counts.compressed:>10,}",
        f"echoes received              {counts.echoed:>10,}",
        f"broadcasts received          {counts.broadcasts:>10,}",
        f"lost / doubled / corrupt     {counts.lost} / {counts.doubled} / {counts.corrupt}",
        f"sessions of clients          {counts.sessions:>10,}",
        *(f"{name + ' requests':<29}{count:>10,}" for name, count in sorted(counts.http.items())),
        f"    asked again              {counts.retried:>10,}   (the connection had idled out)",
        f"windows held shut            {counts.windows_shut:>10,}   (all closed with 1008, then reset)",
        f"peers that never went on     {sum(counts.idlers.values()):>10,}",
        *table(counts.idlers),
        f"peers that misbehaved        {sum(counts.mischief.values()):>10,}",
        *table(counts.mischief),
        f"channels opened / closed     {found.stats['opened']:,} / {found.stats['closed']:,}",
        f"server's memory              {mib(found.before.resident)} before, {mib(first)} after the warm-up, "
        f"{mib(last)} at the end, {mib(found.after.resident)} without load",
        f"load's memory                {mib(load_first)} after the warm-up, {mib(load_last)} at the end",
        f"server's descriptors         {found.before.descriptors} before, at most {most}, "
        f"{found.after.descriptors} after",
        f"server's threads             {found.before.threads} before, {found.after.threads} after",
        "",
        *(f"FAULT: {fault}" for fault in found.faults),
        "verdict: " + (f"{len(found.faults)} faults" if found.faults else "nothing lost, nothing left behind"),
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="how long the load lasts (default: 10)")
    parser.add_argument("--seed", type=int, default=1, help="of the dice (default: 1)")
    parser.add_argument("--svg", type=Path, help="write the plot there too")
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--certificates", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve is not None:
        serve(options.serve, options.certificates)
        return 0
    found = run(options.minutes * 60, options.seed)
    found.judge()
    print(report(found))
    if options.svg is not None:
        options.svg.write_text(svg(found.samples), encoding="utf-8")
    return 1 if found.faults else 0


if __name__ == "__main__":
    sys.exit(main())
