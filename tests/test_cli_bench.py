"""`pyhv bench`: what it counts, how it is shown, and whom it leaves alone."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyhv import HttpRequest, HttpResponse, WebSocketChannel
from pyhv._cli.charts import Latencies, bar, curve, histogram, seconds
from pyhv._cli.output import Output
from support import HOST, EchoServer, RecordingServer, ServerThread
from support_cli import Terminal, pyhv
from support_tls import make_certificates, tls_port_of

Serve = Callable[..., ServerThread]


class Server(EchoServer):
    def on_init(self) -> None:
        self.requests: list[HttpRequest] = []
        self.get("/", self.answer)
        self.post("/", self.answer)
        self.get("/broken", lambda req, resp: resp.text("no", 503))

    def answer(self, req: HttpRequest, resp: HttpResponse) -> None:
        self.requests.append(req)
        resp.text("four")


@pytest.fixture
def server(serve: Serve) -> ServerThread:
    return serve(Server())


def requests_of(server: ServerThread) -> list[HttpRequest]:
    assert isinstance(server.server, Server)
    return server.server.requests


def bench(*arguments: str | Path) -> dict[str, Any]:
    done = pyhv("bench", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    report = json.loads(done.stdout)
    assert isinstance(report, dict)
    return report


def test_requests(server: ServerThread) -> None:
    report = bench(f"http://{HOST}:{server.port}/", "-n", "200", "-c", "4", "-H", "X-A: b")
    assert len(requests_of(server)) == 200
    assert all(request.headers["X-A"] == "b" for request in requests_of(server))
    assert len({request.remote_address for request in requests_of(server)}) == 4
    assert report["answers"] == 200
    assert report["bytes_received"] == 800
    assert report["statuses"] == {"200": 200}
    assert (report["failed"], report["errors"]) == (0, {})
    times = report["latency_us"]
    order = [times[name] for name in ("min", "p50", "p90", "p99", "p99.9", "max")]
    assert order == sorted(order) and order[0] > 0
    assert report["rate"] == pytest.approx(200 / report["seconds"], rel=0.2)


def test_bodies(server: ServerThread) -> None:
    bench(f"http://{HOST}:{server.port}/", "-n", "3", "-c", "1", "--size", "1000")
    assert [(request.method, len(request.body)) for request in requests_of(server)] == [("POST", 1000)] * 3


def test_messages(server: ServerThread) -> None:
    report = bench(f"ws://{HOST}:{server.port}/", "-n", "500", "-c", "3", "-i", "8", "--size", "100", "--binary")
    assert isinstance(server.server, RecordingServer)
    assert server.server.record.values("message") == [b"x" * 100] * 500
    assert report["answers"] == 500
    assert report["bytes_received"] == 50_000
    assert server.server.record.values("close") == [1000] * 3


def test_a_time(server: ServerThread) -> None:
    report = bench(f"ws://{HOST}:{server.port}/", "-d", "0.5", "-c", "2")
    assert report["answers"] > 0
    assert report["seconds"] >= 0.5
    over_time = report["rate_over_time"]
    assert over_time["step"] == 0.1
    assert len(over_time["values"]) >= 5
    counted = sum(over_time["values"]) * over_time["step"]
    assert counted == pytest.approx(report["answers"], rel=0.5)


def test_tls(serve: Serve, tmp_path: Path) -> None:
    made = make_certificates(tmp_path)
    server = serve(Server(), **made.settings)
    for scheme in ("https", "wss"):
        url = f"{scheme}://{HOST}:{tls_port_of(server.server)}/"
        assert bench(url, "-n", "20", "-c", "2", "-i", "2", "--ca", made.ca)["answers"] == 20
        done = pyhv("bench", url, "-n", "20")
        assert done.returncode == 1
        assert "--ca FILE" in done.stderr and done.stderr.count("\n") == 1


def test_the_report(server: ServerThread) -> None:
    done = pyhv("bench", f"http://u:p@{HOST}:{server.port}/", "-n", "100")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.startswith(f"http://{HOST}:{server.port}/: 10 connections, ")
    assert re.search(r"^requests +[\d,]+/s, 100 answered, ", done.stdout, re.MULTILINE)
    assert re.search(r"^latency +p50 .+, p90 .+, p99 .+, max .+, mean .+$", done.stdout, re.MULTILINE)
    assert "status    200: 100\n" in done.stdout
    assert "█" in done.stdout and "\x1b" not in done.stdout
    plain = pyhv("bench", f"http://{HOST}:{server.port}/", "-n", "100", environment={"PYTHONIOENCODING": "ascii"})
    assert plain.stdout.isascii() and "####" in plain.stdout


def test_a_progress_bar_on_a_terminal(server: ServerThread) -> None:
    with Terminal("bench", f"ws://{HOST}:{server.port}/", "-d", "1") as t:
        t.wait_for(re.compile(r"\[.*█.*\] +\d+%.* [\d,]+/s").search)  # type: ignore[arg-type]
        assert t.finish() == 0
        # Taken away again, for the report.
        assert f"\r\x1b[Kws://{HOST}:{server.port}/: 10 connections" in t.output


def test_ctrl_c_reports_what_there_is(server: ServerThread) -> None:
    with Terminal("bench", f"ws://{HOST}:{server.port}/", "-d", "60") as t:
        t.wait_for("/s, 0 failed")
        t.type("\x03")
        assert t.finish() == 130
        assert "\r\nmessages  " in t.output


def test_bad_statuses_are_a_failure(server: ServerThread) -> None:
    done = pyhv("bench", f"http://{HOST}:{server.port}/broken", "-n", "10")
    assert done.returncode == 3
    assert "status    503: 10\n" in done.stdout


def test_connections_that_are_closed(serve: Serve) -> None:
    class Closing(Server):
        def on_ws_message(self, channel: WebSocketChannel, msg: str | bytes) -> None:
            super().on_ws_message(channel, msg)
            if len(self.record.values("message")) >= 20:
                channel.close(1011)

    done = pyhv("bench", f"ws://{HOST}:{serve(Closing()).port}/", "-c", "2", "-d", "30")
    assert done.returncode == 3
    assert "failed    closed with 1011: " in done.stdout


def test_nobody_answers_messages(serve: Serve) -> None:
    done = pyhv("bench", f"ws://{HOST}:{serve(RecordingServer()).port}/", "--timeout", "0.3")
    assert done.returncode == 1
    assert "no answer within 0.3 s" in done.stderr


@pytest.mark.parametrize("scheme", ["http", "ws"])
def test_nobody_listens(scheme: str) -> None:
    with socket.socket() as free:
        free.bind((HOST, 0))
        done = pyhv("bench", f"{scheme}://{HOST}:{free.getsockname()[1]}/")
    assert done.returncode == 1
    assert "refused" in done.stderr.lower() and done.stderr.count("\n") == 1


@pytest.mark.parametrize("url", ["http://192.0.2.1/", "ws://example.invalid/", "http://127.0.0.1.example.invalid/"])
def test_others_are_left_alone(url: str) -> None:
    done = pyhv("bench", url)
    assert done.returncode == 2
    assert "is not this machine: --yes" in done.stderr


def test_others_on_demand() -> None:
    done = pyhv("bench", "http://example.invalid/", "--yes", "-n", "1", "--timeout", "5")
    assert done.returncode == 1
    assert "--yes" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["http://localhost/", "-n", "1", "-d", "1"],
        ["http://localhost/", "-i", "2"],
        ["http://localhost/", "-c", "0"],
        ["http://localhost/", "--ca", "x"],
        ["ftp://localhost/"],
        ["http://[::1/"],
        ["http://localhost/", "-H", "Content-Length: 1"],
    ],
)
def test_a_wrong_command_line(arguments: list[str]) -> None:
    done = pyhv("bench", *arguments)
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("pyhv bench: ")


# The charts


def test_latencies_keep_to_their_precision() -> None:
    latencies = Latencies()
    values = [17 * number**2 for number in range(1, 10_000)]
    for value in values:
        latencies.add(value)
    for part in (0.0, 0.01, 0.5, 0.9, 0.99, 0.999, 1.0):
        exact = values[max(0, min(len(values) - 1, round(part * len(values)) - 1))]
        assert latencies.percentile(part) == pytest.approx(exact, rel=0.02)
    assert (latencies.least, latencies.most, latencies.count) == (17, values[-1], 9_999)
    assert latencies.mean == sum(values) / len(values)
    assert len(latencies.buckets()) < 2_000
    assert sum(count for _, count in latencies.buckets()) == 9_999


def test_a_bar_is_as_long_as_it_says() -> None:
    for part in range(101):
        for unicode in (True, False):
            assert len(bar(part / 100, 20, unicode=unicode)) == 20
    assert bar(1, 3, unicode=True) == "███"
    assert bar(0, 3, unicode=True) == "   "
    assert bar(0.5, 1, unicode=True) == "▌"
    assert bar(2, 3, unicode=False) == "###"


def test_a_histogram_and_a_curve() -> None:
    out = Output(None)
    latencies = Latencies()
    for value in [900] * 1000 + [1_500] * 500 + [45_000]:
        latencies.add(value)
    lines = histogram(latencies, out, columns=10)
    assert [line.split()[1] for line in lines] == ["1", "2", "5", "10", "20", "50"]
    assert "██████████" in lines[0] and "█████     " in lines[1] and "▏" in lines[-1]
    assert lines[0].split()[-2:] == ["1,000", "66.6%"]
    assert [line[11:] for line in curve([1.0, 2.0, 4.0], out, 0.5, rows=2)] == ["  █", "▄██", "0 s 1.5 s"]
    assert len(curve([1.0] * 1000, out, 0.1)[0]) <= 11 + 60
    assert histogram(Latencies(), out) == curve([], out, 1.0) == []


def test_times_for_people() -> None:
    assert [seconds(value) for value in (1, 1_000, 1_234_567, 2e9)] == ["1 ns", "1 us", "1.23 ms", "2 s"]
