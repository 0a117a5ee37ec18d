"""A server under mixed load for minutes or hours: does anything grow, and does anything get lost?

    python scripts/soak.py --minutes 10 --svg soak.svg

One process serves, this one is the load: pyHV clients whose every message must come back once and in order, peers made
of sockets that break every rule they can, and HTTP requests. Memory, descriptors and threads of both processes are
sampled; at the end they are plotted as text (and as SVG), and the verdict is the exit code. docs/soak.md has what it
has shown so far.
"""

from __future__ import annotations

import argparse
import base64
import collections
import http.client
import json
import os
import platform
import random
import select
import socket
import statistics
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyhv
from pyhv import HttpRequest, HttpResponse, HvWebServer, HvWebSocketClient, WebSocketChannel

HOST = "127.0.0.1"

#: What the server is started with: limits low enough for the load to reach them.
SETTINGS = {
    "max_message_size": 1 << 20,
    "max_buffered": 1 << 20,
    "max_pending_bytes": 8 << 20,
    "header_timeout": 2.0,
    "body_timeout": 2.0,
    "handshake_timeout": 2.0,
    "close_timeout": 1.0,
    "ping_interval": 5.0,
    "ping_timeout": 5.0,
}
CLIENTS = 20
WINDOW = 8  # messages that a client has under way
PACE = 0.02  # seconds between two messages of a client
#: How many samples the plot is made of, and the shortest time between two, in seconds.
SAMPLES = 120
SHORTEST = 0.25
#: The share of the samples that is warm-up: pools and the allocator's arenas grow to their size.
WARM_UP = 0.25
#: The growth of resident memory, from after the warm-up to the end, that is still the allocator's noise.
ALLOWED_GROWTH = 0.05
ALLOWED_BYTES = 3 << 20


# The server, in a process of its own


class SoakServer(HvWebServer):
    """Echoes, broadcasts numbers, and counts; keeps nothing."""

    def on_init(self) -> None:
        self.opened = self.closed = self.messages = self.errors = self.broadcasts = 0
        self.get("/stats", self.get_stats)
        self.post("/echo", lambda request, response: response.data(request.body))
        self.get("/ping", lambda request, response: response.text("pong"))

    def get_stats(self, request: HttpRequest, response: HttpResponse) -> None:
        names = ("opened", "closed", "messages", "errors", "broadcasts")
        response.json({**{name: getattr(self, name) for name in names}, "channels": len(self.channels)})

    def on_ws_open(self, channel: WebSocketChannel, url: str) -> None:
        self.opened += 1

    def on_ws_message(self, channel: WebSocketChannel, msg: str | bytes) -> None:
        self.messages += 1
        if msg == "bye":
            channel.close(1000, "bye")
        else:
            channel.send(msg)

    def on_ws_close(self, channel: WebSocketChannel) -> None:
        self.closed += 1

    def on_error(self, exc: Exception) -> None:
        self.errors += 1


def serve(seed: int) -> None:
    """Serves until its stdin ends; stalls now and then, as programs do."""
    dice = random.Random(seed)
    server = SoakServer()
    server.start(0, **SETTINGS)  # type: ignore[arg-type]
    print(server.port, flush=True)
    next_broadcast = time.monotonic()
    while not select.select([sys.stdin], [], [], 0)[0]:
        server.tick(0.01)
        if time.monotonic() >= next_broadcast:
            next_broadcast += 0.1
            server.broadcast(f"b {server.broadcasts}")
            server.broadcasts += 1
            if dice.random() < 0.02:
                time.sleep(dice.random())  # the stall
    server.stop(5.0)
    print(json.dumps({"opened": server.opened, "closed": server.closed, "errors": server.errors}), flush=True)


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


@dataclass
class Counts:
    """What the load has seen. Each is written by one thread only."""

    sent: int = 0
    echoed: int = 0
    broadcasts: int = 0
    sessions: int = 0
    lost: int = 0
    doubled: int = 0
    corrupt: int = 0
    http: int = 0
    mischief: collections.Counter[str] = field(default_factory=collections.Counter)
    unexpected: list[str] = field(default_factory=list)  # what must not happen, in words


# The load: well-behaved clients


class Client(HvWebSocketClient):
    """Sends numbered messages, and checks that each comes back once, in order and whole."""

    def __init__(self, url: str, counts: Counts, dice: random.Random) -> None:
        self.url = url
        self.counts = counts
        self.dice = dice
        self.under_way: collections.deque[str | bytes] = collections.deque()
        self.done: collections.deque[str | bytes] = collections.deque(maxlen=4 * WINDOW)
        self.number = 0
        self.heard: int | None = None  # the last broadcast of this session
        self.next_send = self.until = 0.0
        self.leaving = False

    def begin(self) -> None:
        self.counts.sessions += 1
        self.under_way.clear()
        self.done.clear()
        self.heard, self.leaving = None, False
        self.until = time.monotonic() + self.dice.uniform(2, 20)
        self.connect(self.url, ping_interval=5.0)

    def step(self, now: float, ending: bool) -> None:
        """Sends if it is time to; leaves when the session is over and everything has come back."""
        if not self.is_connected or self.leaving:
            return
        if ending or now >= self.until:
            if not self.under_way:
                self.leaving = True
                if self.dice.random() < 0.5:
                    self.close(1000, "over")
                else:
                    self.send("bye")
        elif now >= self.next_send and len(self.under_way) < WINDOW:
            self.next_send = now + PACE
            self.number += 1
            size = self.dice.choice((0, 0, 10, 100, 1000, 1000, 20_000, 100_000 if self.dice.random() < 0.1 else 60))
            text = f"e {self.number} {'ä' * (size // 2)}"
            message = text if self.dice.random() < 0.5 else text.encode()
            if self.send(message):
                self.under_way.append(message)
                self.counts.sent += 1

    def on_message(self, msg: str | bytes) -> None:
        if isinstance(msg, str) and msg.startswith("b "):
            number = int(msg[2:])
            self.counts.broadcasts += 1
            if self.heard is not None and number != self.heard + 1:
                if number <= self.heard:
                    self.counts.doubled += 1
                else:
                    self.counts.lost += number - self.heard - 1
            self.heard = number
        elif self.under_way and msg == self.under_way[0]:
            self.counts.echoed += 1
            self.done.append(self.under_way.popleft())
        elif msg in self.under_way:
            while self.under_way.popleft() != msg:
                self.counts.lost += 1
        elif msg in self.done:
            self.counts.doubled += 1
        else:
            self.counts.corrupt += 1

    def on_close(self) -> None:
        if not self.leaving or self.close_code != 1000:
            said = f"a client was closed with {self.close_code} {self.close_reason!r} {self.error}"
            self.counts.unexpected.append(said)
        self.counts.lost += len(self.under_way)


# The load: HTTP


def ask(port: int, counts: Counts, dice: random.Random) -> None:
    """A few requests on one connection; every answer must be right."""
    connection = http.client.HTTPConnection(HOST, port, timeout=20)
    method, path, waited, since = (
        "",
        "",
        0.0,
        time.monotonic(),
    )  # `since`: when the connection began to wait for a request
    try:
        connection.connect()
        for _ in range(dice.randrange(1, 6)):
            body = dice.randbytes(dice.choice((0, 10, 1000, 100_000)))
            method, path = dice.choice((("GET", "/ping"), ("POST", "/echo"), ("GET", "/nowhere")))
            waited = time.monotonic() - since
            connection.request(method, path, body if method == "POST" else None)
            answer = connection.getresponse()
            expected = {"/ping": (200, b"pong"), "/echo": (200, body)}.get(path)
            got = (answer.status, answer.read())
            if got != expected and not (expected is None and got[0] == 404):
                counts.unexpected.append(f"{method} {path} was answered with {got[0]} and {len(got[1])} bytes")
            counts.http += 1
            since = time.monotonic()
    except (OSError, http.client.HTTPException) as error:
        # A load that does not get its share of the processor runs into header_timeout.
        times = f"{waited:.2f} s after the one before, {time.monotonic() - since:.2f} s ago"
        counts.unexpected.append(f"{method} {path}, {times}, failed: {error!r}")
    finally:
        connection.close()


# The load: peers that misbehave


def frame(first: int, payload: bytes = b"", *, masked: bool = True, length: int | None = None) -> bytes:
    """A frame's bytes: `first` has FIN, RSV and opcode; `length` is a length to claim instead."""
    claimed = len(payload) if length is None else length
    bit = 0x80 if masked else 0
    if claimed < 126:
        head = bytes([first, bit | claimed])
    elif claimed < 1 << 16:
        head = struct.pack("!BBH", first, bit | 126, claimed)
    else:
        head = struct.pack("!BBQ", first, bit | 127, claimed)
    # A key of zeros masks nothing.
    return head + (bytes(4) if masked else b"") + payload


def handshake() -> bytes:
    key = base64.b64encode(os.urandom(16)).decode()
    return (
        f"GET /bad HTTP/1.1\r\nHost: {HOST}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    ).encode()


#: Behind a handshake, what ends the connection; the peer reads to the end.
VIOLATIONS: dict[str, bytes] = {
    "a reserved bit": frame(0xC2, b"x"),
    "a reserved opcode": frame(0x83, b"x"),
    "no mask": frame(0x81, b"x", masked=False),
    "a text that is not UTF-8": frame(0x81, b"\xff\xfe"),
    "a text cut inside a character": frame(0x81, b"\xe2\x82"),
    "a 63-bit length": frame(0x82, b"x" * 100, length=(1 << 63) - 1),
    "a message over the limit, in fragments": frame(0x02, bytes(900_000)) + frame(0x80, bytes(900_000)),
    "a continuation of nothing": frame(0x80, b"x"),
    "a ping in fragments": frame(0x09, b"x"),
    "a close code that may not be sent": frame(0x88, b"\x03\xed"),
    "a close frame": frame(0x88, b"\x03\xe8"),
    "an HTTP request instead of frames": b"GET / HTTP/1.1\r\n\r\n",
}


def violate(peer: socket.socket, dice: random.Random) -> str:
    name = dice.choice(sorted(VIOLATIONS))
    good = frame(0x81, b"good") * dice.randrange(3)
    peer.sendall(handshake() + good + VIOLATIONS[name])
    read_to_end(peer)
    return name


def reset_inside(peer: socket.socket, dice: random.Random) -> str:
    whole = handshake() + frame(0x81, b"m" * 1000) * 3 + frame(0x82, bytes(200_000))
    peer.sendall(whole[: dice.randrange(1, len(whole))])
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return "a reset anywhere"


def leave_inside(peer: socket.socket, dice: random.Random) -> str:
    whole = handshake() + frame(0x01, b"m" * 1000) + frame(0x89, b"ping")
    peer.sendall(whole[: dice.randrange(1, len(whole))])
    if dice.random() < 0.5:
        peer.shutdown(socket.SHUT_WR)
    return "an end anywhere"


def noise(peer: socket.socket, dice: random.Random) -> str:
    peer.sendall((handshake() if dice.random() < 0.5 else b"") + dice.randbytes(dice.randrange(1, 5000)))
    peer.shutdown(socket.SHUT_WR)
    read_to_end(peer)
    return "random bytes"


def dribble(peer: socket.socket, dice: random.Random) -> str:
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in handshake() + frame(0x81, b"slow") + frame(0x88, b"\x03\xe8"):
        peer.sendall(bytes([byte]))
    read_to_end(peer)
    return "byte by byte"


def flood_pings(peer: socket.socket, dice: random.Random) -> str:
    peer.sendall(handshake() + frame(0x89, bytes(125)) * 2000)
    return "a flood of pings, pongs unread"


def never_read(peer: socket.socket, dice: random.Random) -> str:
    """Asks for more echoes than `max_buffered` and the sockets' buffers hold: is closed with 1008."""
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    peer.sendall(handshake() + frame(0x82, bytes(500_000)) * 20)
    return "echoes never read"


def crawl(peer: socket.socket, dice: random.Random) -> str:
    """Half a request: the server gives up at header_timeout."""
    half = dice.choice((b"GET / HTTP/1.1\r\nHo", b"", b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n1"))
    peer.sendall(half)
    read_to_end(peer)
    return "half a request"


def big_head(peer: socket.socket, dice: random.Random) -> str:
    peer.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X-Y: zzzzzzzzzz\r\n" * dice.choice((90, 5000)) + b"\r\n")
    peer.shutdown(socket.SHUT_WR)
    read_to_end(peer)
    return "a large head"


MISCHIEF: Sequence[Callable[[socket.socket, random.Random], str]] = (
    *(violate,) * 5,
    *(reset_inside,) * 3,
    *(leave_inside,) * 2,
    noise,
    dribble,
    flood_pings,
    never_read,
    crawl,
    big_head,
)


def read_to_end(peer: socket.socket) -> None:
    while peer.recv(1 << 16):
        pass


def misbehave(port: int, counts: Counts, dice: random.Random) -> None:
    """One peer that breaks a rule. The server must end the connection within its timeouts, or be left."""
    try:
        with socket.create_connection((HOST, port), timeout=20) as peer:
            try:
                counts.mischief[dice.choice(MISCHIEF)(peer, dice)] += 1
            except TimeoutError:
                counts.unexpected.append("the server kept a misbehaving peer for 20 s")
            except OSError:  # reset by the server, in the middle of the mischief
                counts.mischief["cut short by the server"] += 1
    except OSError as error:
        counts.unexpected.append(f"connecting failed: {error!r}")


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
        if not (counts.echoed and counts.broadcasts and counts.http and counts.mischief):
            self.faults.append("there was no load of some kind")
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
    code = [sys.executable, __file__, "--serve", str(seed)]
    process = subprocess.Popen(code, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None and process.stdout is not None
    over = threading.Event()
    threads: list[threading.Thread] = []
    try:
        port = int(process.stdout.readline())
        stats_of(port)
        before = facts(process.pid)
        counts = Counts()

        def repeat(function: Callable[[int, Counts, random.Random], None], number: int, pause: float) -> None:
            dice = random.Random(seed * 1000 + number)
            while not over.is_set():
                function(port, counts, dice)
                over.wait(pause * dice.random())

        jobs = [(ask, 1, 0.2), (misbehave, 2, 0.05), (misbehave, 3, 0.05), (misbehave, 4, 0.05)]
        threads = [threading.Thread(target=repeat, args=job) for job in jobs]
        for thread in threads:
            thread.start()
        samples = drive(port, process.pid, counts, seconds, random.Random(seed))
        over.set()
        for thread in threads:
            thread.join(60)
        stats, after = settle(port, process.pid, before)
        process.stdin.close()
        exit_code = process.wait(30)
        return Run(seconds, before, after, samples, counts, stats, exit_code)
    finally:
        over.set()
        if process.poll() is None:
            process.kill()
            process.wait()
        process.stdin.close()
        process.stdout.close()


def drive(port: int, pid: int, counts: Counts, seconds: float, dice: random.Random) -> list[Sample]:
    """The main loop of the load: ticks the clients, and looks at the processes."""
    clients = [Client(f"ws://{HOST}:{port}/good", counts, dice) for _ in range(CLIENTS)]
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


def settle(port: int, pid: int, before: Facts) -> tuple[dict[str, int], Facts]:
    """What the server has when everybody has left; it gets 20 s to notice."""
    deadline = time.monotonic() + 20
    while True:
        stats, after = stats_of(port), facts(pid)
        quiet = stats["channels"] == 0 and stats["opened"] == stats["closed"]
        if (quiet and after.descriptors <= before.descriptors) or time.monotonic() > deadline:
            return stats, after
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
        f"echoes received              {counts.echoed:>10,}",
        f"broadcasts received          {counts.broadcasts:>10,}",
        f"lost / doubled / corrupt     {counts.lost} / {counts.doubled} / {counts.corrupt}",
        f"sessions of clients          {counts.sessions:>10,}",
        f"HTTP requests                {counts.http:>10,}",
        f"peers that misbehaved        {sum(counts.mischief.values()):>10,}",
        *(f"    {name:<40} {count:>7,}" for name, count in sorted(counts.mischief.items())),
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
    options = parser.parse_args(arguments)
    if options.serve is not None:
        serve(options.serve)
        return 0
    found = run(options.minutes * 60, options.seed)
    found.judge()
    print(report(found))
    if options.svg is not None:
        options.svg.write_text(svg(found.samples), encoding="utf-8")
    return 1 if found.faults else 0


if __name__ == "__main__":
    sys.exit(main())
