"""`pyhv bench`: how many requests or messages a second a server answers, and how fast.

The load is made by pyHV's own clients, ticked in one loop: each answer is followed by the next request at once.
"""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import json
import selectors
import time
from collections import Counter, deque
from collections.abc import Sequence
from typing import Any, Protocol
from urllib.parse import urlsplit

from pyhv import HttpClient, HvWebSocketClient, PyHVError, Response, TlsError
from pyhv._cli import options as opts
from pyhv._cli.charts import Latencies, bar, curve, histogram, seconds
from pyhv._cli.output import CommandError, Output, terminating
from pyhv._cli.text import printable, size

_EPILOG = """\
http:// and https:// make requests, ws:// and wss:// send messages, for each of which the server has to send one back.
Each answer is followed by the next request at once, so the load is what the server and this program can do together.
The clients run on two threads, one of Python: a fast server is not at its limit when they are, and the report says so.

Whatever is not this machine needs --yes: load without being asked for is an attack.

examples:
  pyhv bench http://localhost:8000/                 10 connections for 10 s
  pyhv bench ws://localhost:9090/ -c 100 -i 16      100 connections with 16 messages under way on each
  pyhv bench ws://localhost:9090/ --size 16384 -n 20000
  pyhv bench https://localhost:8443/ --ca pyhv-dev-ca.pem --json | jq .rate

exit status: 0 all was answered; 1 nothing could be measured; 2 the command line is wrong; 3 something failed, or was
answered with a status of 400 or above; 130 Ctrl-C, after which the report is of what there is; 141, 143 as ever.
"""

#: Seconds until a request follows one that failed: nobody is hammered with attempts.
_AFTER_FAILURE = 0.1
#: Seconds between two looks at the clock by the progress bar.
_PROGRESS = 0.1
#: Points of the rate over time that are kept at most.
_MOST_POINTS = 600
#: A thread of this program is taken for the limit from this part of the time on.
_BUSY = 0.9


def add(commands: opts.Commands) -> None:
    """Adds the command to the parser."""
    parser = opts.command(
        commands,
        "bench",
        run,
        help="measure how much a server does",
        description="Makes requests, or sends messages, as fast as the server answers, and measures how fast that is.",
        epilog=_EPILOG,
    )
    parser.add_argument("url", metavar="URL", help="http://, https://, ws:// or wss://")
    parser.add_argument("-c", "--connections", type=opts.positive, default=10, metavar="N", help="connections (10)")
    parser.add_argument(
        "-i",
        "--in-flight",
        "--depth",
        type=opts.positive,
        default=1,
        metavar="N",
        help="requests under way on each (1)",
    )
    parser.add_argument("-d", "--duration", type=opts.seconds, metavar="S", help="seconds (10)")
    parser.add_argument("-n", "--requests", type=opts.positive, metavar="N", help="so many instead of a time")
    parser.add_argument("--size", type=_size, metavar="N", help="bytes of a message (64), or of a body (none)")
    parser.add_argument("--binary", action="store_true", help="binary messages instead of text")
    parser.add_argument("-X", "--method", metavar="NAME", help="method (GET, with --size POST)")
    parser.add_argument(
        "-H", "--header", type=opts.header, action="append", default=[], metavar="LINE", help="header, 'Name: value'"
    )
    parser.add_argument("-s", "--subprotocol", action="append", default=[], metavar="NAME", help="of WebSockets")
    parser.add_argument("--timeout", type=opts.seconds, default=10.0, metavar="S", help="for each answer (10)")
    parser.add_argument(
        "--compression", action="store_true", help="offer permessage-deflate, ask for compressed bodies"
    )
    parser.add_argument("--json", action="store_true", help="the report as JSON")
    parser.add_argument("--yes", action="store_true", help="the server is not this machine, and I may do this to it")
    opts.add_tls(parser)


def _size(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 16 << 20:
        raise ValueError
    return value


class _Results:
    """What has been measured."""

    def __init__(self) -> None:
        self.latencies = Latencies()
        self.bytes = 0
        self.statuses: Counter[int] = Counter()
        self.errors: Counter[str] = Counter()
        self.failed = 0
        self.error: Exception | None = None  # the first
        self.started = time.perf_counter_ns()
        self.ended = 0
        self._clocks = (0.0, 0.0)
        #: Part of the time for which the busier of the two was: this thread, or the native ones together.
        self.busy = 0.0
        self.last = self.started  # when the last answer came
        self.points: list[int] = []  # answers in each step of time
        self.step = 100_000_000  # nanoseconds

    def begin(self) -> None:
        """From now on."""
        self._clocks = (time.thread_time(), time.process_time())
        self.started = self.last = time.perf_counter_ns()

    def end(self) -> None:
        """Until now."""
        if not self.ended:
            self.ended = time.perf_counter_ns()
            python, all_of_it = time.thread_time() - self._clocks[0], time.process_time() - self._clocks[1]
            self.busy = min(1.0, max(python, all_of_it - python) / self.seconds)

    def answered(self, sent: int, count: int) -> None:
        """An answer of so many bytes to what was sent at that time."""
        now = self.last = time.perf_counter_ns()
        self.latencies.add(now - sent)
        self.bytes += count
        at = (now - self.started) // self.step
        while at >= _MOST_POINTS:
            self.points = [sum(self.points[i : i + 2]) for i in range(0, len(self.points), 2)]
            self.step *= 2
            at //= 2
        while len(self.points) <= at:
            self.points.append(0)
        self.points[at] += 1

    def fail(self, kind: str, count: int = 1, error: Exception | None = None) -> None:
        """Something was not answered."""
        self.failed += count
        self.errors[kind] += count
        self.error = self.error or error

    @property
    def seconds(self) -> float:
        """How long it took, or has taken up to now."""
        return max(1, (self.ended or time.perf_counter_ns()) - self.started) / 1e9

    @property
    def rate(self) -> float:
        """Answers a second."""
        return self.latencies.count / self.seconds


class _Budget:
    """How much is to be done."""

    def __init__(self, results: _Results, requests: int | None, duration: float) -> None:
        self._results = results
        self._requests = requests
        self._duration = duration
        self._taken = 0
        self.over = False

    def take(self) -> bool:
        """Whether one more is to be begun."""
        if self.over or (self._requests is not None and self._taken >= self._requests):
            return False
        self._taken += 1
        return True

    @property
    def part(self) -> float:
        """How much of it is done, 0 to 1."""
        results = self._results
        if self._requests is not None:
            return min(1.0, (results.latencies.count + results.failed) / self._requests)
        return min(1.0, results.seconds / self._duration)


class _Worker(Protocol):
    """A client of the load."""

    def tick(self, timeout: float | None = 0.0) -> int: ...
    def fileno(self) -> int: ...
    def close(self) -> None: ...
    def begin(self) -> None:
        """Makes the first requests."""

    def wake(self, now: float) -> float | None:
        """Does what is due; returns when there is something again."""

    def finish(self) -> None:
        """Counts what has been waiting too long."""

    @property
    def is_lost(self) -> bool:
        """Whether nothing can come of it any more."""


class _Socket(HvWebSocketClient):
    """A WebSocket with messages under way."""

    def __init__(self, options: argparse.Namespace, results: _Results, budget: _Budget) -> None:
        self._results = results
        self._budget = budget
        count = 64 if options.size is None else options.size
        self._message: str | bytes = b"x" * count if options.binary else "x" * count
        self._depth: int = options.in_flight
        self._timeout: float = options.timeout
        self._sent: deque[int] = deque()
        self._closing = False
        self.is_lost = False

    def begin(self) -> None:
        for _ in range(self._depth):
            self._next()

    def wake(self, now: float) -> float | None:
        return None

    def _next(self) -> None:
        if self._budget.take():
            self._sent.append(time.perf_counter_ns())
            self.send(self._message)

    def on_message(self, msg: str | bytes) -> None:
        if self._sent and not self._budget.over:
            self._results.answered(self._sent.popleft(), len(msg))
            self._next()

    def on_error(self, exc: Exception) -> None:
        self._results.fail(_kind(exc), 1, exc)

    def on_close(self) -> None:
        self.is_lost = True
        if not self._closing and self.error is None:
            self._results.fail(f"closed with {self.close_code}", max(1, len(self._sent)))
            self._sent.clear()

    def finish(self) -> None:
        if self._closing:
            return
        self._closing = True
        limit = time.perf_counter_ns() - int(self._timeout * 1e9)
        late = sum(sent <= limit for sent in self._sent)
        if late:
            self._results.fail(f"no answer within {self._timeout:g} s", late)


class _Http(HttpClient):
    """A client with requests under way."""

    def __init__(
        self, options: argparse.Namespace, url: str, tls: dict[str, Any], results: _Results, budget: _Budget
    ) -> None:
        super().__init__(
            headers=options.header,
            timeout=options.timeout,
            redirects=False,
            keep_cookies=False,
            connect_timeout=options.timeout,
            decompress=options.compression,
            # What is measured is the server, not a way to it.
            proxy=False,
            **tls,
        )
        self._results = results
        self._budget = budget
        self._url = url
        self._method: str = options.method or ("GET" if options.size is None else "POST")
        self._data = None if options.size is None else b"x" * options.size
        self._depth: int = options.in_flight
        self._again: deque[float] = deque()  # when one follows that failed
        self.is_lost = False

    def begin(self) -> None:
        for _ in range(self._depth):
            self._next()

    def wake(self, now: float) -> float | None:
        while self._again and self._again[0] <= now:
            self._again.popleft()
            self._next()
        return self._again[0] if self._again else None

    def _next(self) -> None:
        if not self._budget.take():
            return
        sent = time.perf_counter_ns()

        def on_response(response: Response) -> None:
            if self._budget.over:
                return
            self._results.answered(sent, len(response.body))
            self._results.statuses[int(response.status)] += 1
            self._next()

        def on_error(error: PyHVError) -> None:
            if not self._budget.over:
                self._results.fail(_kind(error), 1, error)
                self._again.append(time.monotonic() + _AFTER_FAILURE)

        self.request(self._method, self._url, on_response, on_error=on_error, data=self._data)

    def finish(self) -> None:
        """Each request has its own limit."""


def _kind(error: Exception) -> str:
    """What errors are counted by: their class, and the status if there is one."""
    status = getattr(error, "status", None)
    return type(error).__name__ + (f" {status}" if status is not None else "")


def run(options: argparse.Namespace) -> int:
    """Measures, and reports."""
    url = opts.complete_url(options.url, "http", {name: name for name in ("http", "https", "ws", "wss")})
    if options.requests is not None and options.duration is not None:
        raise CommandError("--requests and --duration exclude one another", 2)
    sockets = url.startswith("ws")
    if options.in_flight > 1 and url.startswith("http:"):
        raise CommandError("HTTP/1.1 has one request under way on a connection: more --connections instead", 2)
    _ask(options, url)
    out, err = Output.stdout(options.color), Output.stderr(options.color)
    results = _Results()
    budget = _Budget(results, options.requests, options.duration or 10.0)
    load = _Load(options, results, budget, err)
    status = 0
    try:
        with terminating(143):
            try:
                if sockets:
                    load.connect(url)
                else:
                    load.requests(url)
            except ValueError as error:
                raise CommandError(str(error), 2) from None
            except OSError as error:
                raise CommandError(str(error)) from None
            load.measure()
    except KeyboardInterrupt:
        status = 130
    finally:
        results.end()
        load.close()
    if not results.latencies.count and status == 0:
        why = results.error
        hint = f" ({opts.TRUST_HINT})" if isinstance(why, TlsError) else ""
        raise CommandError(f"nothing could be measured: {why or load.why or 'no answer'}{hint}")
    bad = sum(count for number, count in results.statuses.items() if number >= 400)
    for text in _json(url, options, results) if options.json else _report(url, options, results, out):
        out.line(text)
    return status or (3 if results.failed or bad else 0)


def _ask(options: argparse.Namespace, url: str) -> None:
    """Refuses to put load on what is not this machine, unless told to."""
    try:
        host = urlsplit(url).hostname or ""
    except ValueError as error:
        raise CommandError(f"{url!r}: {error}", 2) from None
    local = host == "localhost" or host.endswith(".localhost")
    with contextlib.suppress(ValueError):
        local = local or ipaddress.ip_address(host).is_loopback
    if not (local or options.yes):
        raise CommandError(f"{host} is not this machine: --yes says that you may put load on it", 2)


class _Load:
    """The clients, and the loop that ticks them."""

    def __init__(self, options: argparse.Namespace, results: _Results, budget: _Budget, err: Output) -> None:
        self._options = options
        self._results = results
        self._budget = budget
        self._err = err
        self._workers: list[_Worker] = []
        self._selector = selectors.DefaultSelector()
        self._drawn = 0.0
        self._bar = False
        #: Why there is nothing to measure.
        self.why = ""

    def connect(self, url: str) -> None:
        """Opens the WebSockets."""
        options = self._options
        clients = [_Socket(options, self._results, self._budget) for _ in range(options.connections)]
        for client in clients:
            client.connect(
                url,
                headers=options.header,
                subprotocols=options.subprotocol,
                open_timeout=options.timeout,
                compression="shared" if options.compression else None,
                **opts.tls_settings(options, url),
            )
            self._add(client)
        while any(client.is_connecting for client in clients):
            self._tick(_PROGRESS)
            self._progress("connecting", sum(not client.is_connecting for client in clients) / len(clients))
        if not any(client.is_connected for client in clients):
            self.why = "every connection was closed at once"

    def requests(self, url: str) -> None:
        """Makes the HTTP clients."""
        options, tls = self._options, opts.tls_settings(self._options, url)
        for _ in range(options.connections):
            self._add(_Http(options, url, tls, self._results, self._budget))

    def _add(self, worker: _Worker) -> None:
        self._workers.append(worker)
        self._selector.register(worker.fileno(), selectors.EVENT_READ)

    def measure(self) -> None:
        """Until the budget is used up, or nothing comes any more."""
        results, budget = self._results, self._budget
        results.begin()
        for worker in self._workers:
            worker.begin()
        while (part := budget.part) < 1:
            now = time.monotonic()
            due = [at for worker in self._workers if (at := worker.wake(now)) is not None]
            self._tick(max(0.0, min([now + _PROGRESS, *due]) - now))
            if all(worker.is_lost for worker in self._workers):
                self.why = self.why or "every connection was closed"
                break
            if not results.latencies.count and results.failed >= len(self._workers) * self._options.in_flight:
                break  # not one of the first was answered
            if results.seconds - (results.last - results.started) / 1e9 > self._options.timeout + 1:
                self.why = (
                    f"no answer within {self._options.timeout:g} s; a WebSocket server has to answer each message"
                )
                break
            self._progress("", part)
        results.end()
        budget.over = True
        for worker in self._workers:
            worker.finish()

    def _tick(self, timeout: float) -> None:
        """Delivers what has come; waits for something only when there is nothing."""
        if not sum([worker.tick() for worker in self._workers]):
            self._selector.select(timeout)

    def _progress(self, what: str, part: float) -> None:
        err = self._err
        now = time.monotonic()
        if not err.can_move or now < self._drawn + _PROGRESS:
            return
        self._drawn, self._bar = now, True
        drawn = bar(part, 30, unicode=err.can_show("▏█"))
        text = what or f"{self._results.rate:,.0f}/s, {self._results.failed:,} failed"
        err.write(f"\r\x1b[K[{err.paint(drawn, 'bar')}] {part:4.0%} {text}")

    def close(self) -> None:
        """Ends every connection."""
        self._budget.over = True
        if self._bar:
            self._err.write("\r\x1b[K")
        sockets = [worker for worker in self._workers if isinstance(worker, _Socket)]
        for worker in self._workers:
            worker.finish()
            worker.close()
        end = time.monotonic() + 1.0
        while any(socket.remote_address and not socket.is_lost for socket in sockets) and time.monotonic() < end:
            for socket in sockets:
                socket.tick()
            self._selector.select(0.01)
        self._selector.close()


# The report


def _points(results: _Results) -> tuple[float, list[float]]:
    """Seconds of a step, and answers a second in each; the last one is left out unless it was a whole step."""
    step = results.step / 1e9
    whole = int(results.seconds / step)
    points = [float(count) / step for count in [*results.points, *([0] * whole)][:whole]]
    return step, points or [results.rate]


def _json(url: str, options: argparse.Namespace, results: _Results) -> list[str]:
    latencies = results.latencies
    step, points = _points(results)
    report = {
        "url": _without_password(url),
        "connections": options.connections,
        "in_flight": options.in_flight,
        "seconds": round(results.seconds, 3),
        "answers": latencies.count,
        "rate": round(results.rate, 1),
        "bytes_received": results.bytes,
        "latency_us": {
            **{f"p{part:g}": round(latencies.percentile(part / 100) / 1000, 1) for part in (50, 90, 99, 99.9)},
            "min": round(latencies.least / 1000, 1),
            "mean": round(latencies.mean / 1000, 1),
            "max": round(latencies.most / 1000, 1),
        },
        "statuses": {str(status): count for status, count in sorted(results.statuses.items())},
        "errors": dict(results.errors),
        "failed": results.failed,
        "client_busy": round(results.busy, 3),
        "rate_over_time": {"step": step, "values": [round(value, 1) for value in points]},
    }
    return [json.dumps(report, indent=2)]


def _report(url: str, options: argparse.Namespace, results: _Results, out: Output) -> Sequence[str]:
    latencies = results.latencies
    noun = "messages" if url.startswith("ws") else "requests"
    flight = f", {options.in_flight} in flight on each" if options.in_flight > 1 else ""
    lines = [
        f"{printable(_without_password(url))}: {options.connections} connections{flight}, {results.seconds:.1f} s",
        "",
        f"{noun:<9} {out.paint(f'{results.rate:,.0f}/s', 'bold')}, {latencies.count:,} answered, "
        f"{size(results.bytes / results.seconds)}/s received",
        "latency   "
        + ", ".join(f"p{part:g} {seconds(latencies.percentile(part / 100))}" for part in (50, 90, 99))
        + f", max {seconds(latencies.most)}, mean {seconds(latencies.mean)}",
    ]
    for status, count in sorted(results.statuses.items()):
        lines.append(out.paint(f"status    {status}: {count:,}", "warning" if status >= 400 else "dim"))
    for kind, count in results.errors.most_common():
        lines.append(out.paint(f"failed    {printable(kind)}: {count:,}", "error"))
    if results.busy > _BUSY:
        lines.append(
            out.paint(
                f"          a thread of this program was busy {results.busy:.0%} of the time: the server may do more",
                "warning",
            )
        )
    step, points = _points(results)
    lines += ["", out.paint("latency", "bold"), *histogram(latencies, out)]
    lines += ["", out.paint(f"{noun} a second", "bold"), *curve(points, out, step)]
    return lines


def _without_password(url: str) -> str:
    """A URL as a report may show it."""
    head, separator, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    return f"{head}{separator}{authority.rpartition('@')[2]}{slash}{path}"
