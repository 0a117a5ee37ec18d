"""The access log: one record for each finished request, whoever answered it, on the thread that ticks."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from pyhv import HttpResponse, StreamWriter
from support import (
    HOST,
    Background,
    RawClient,
    RecordingServer,
    ServerThread,
    ask,
    port_of,
    tick_until,
    wait_until,
)
from support_tls import make_certificates, tls_port_of

LINE = re.compile(r'(\S+) - - \[(\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4})\] "([^"\\]|\\.)*" \d{3} (\d+|-)')


class Records(logging.Handler):
    """Keeps the records, and the threads that logged them."""

    def __init__(self) -> None:
        super().__init__()
        self.all: list[Any] = []
        self.threads: set[int] = set()

    def emit(self, record: logging.LogRecord) -> None:
        self.all.append(record)
        self.threads.add(threading.get_ident())

    @property
    def statuses(self) -> list[int]:
        return [record.status for record in self.all]


@pytest.fixture
def log() -> Iterator[Records]:
    records = Records()
    logger = logging.getLogger("pyhv.access")
    logger.addHandler(records)
    logger.setLevel(logging.INFO)
    try:
        yield records
    finally:
        logger.removeHandler(records)
        logger.setLevel(logging.NOTSET)


@pytest.fixture
def site(server: RecordingServer) -> RecordingServer:
    server.get("/text", lambda req, resp: resp.text("some text"))
    server.enable_access_log()
    return server


def test_off_by_default(server: RecordingServer, log: Records) -> None:
    ask(server, "GET", "/nope")
    server.stop()
    assert log.all == []


def test_a_line_and_its_attributes(site: RecordingServer, log: Records) -> None:
    before = time.time()
    ask(site, "GET", "/text?a=1", [("Referer", "http://r.example/"), ("User-Agent", "agent/1")])
    tick_until(lambda: log.all, site)
    (record,) = log.all
    line = record.getMessage()
    assert LINE.fullmatch(line), line
    assert '"GET /text?a=1 HTTP/1.1" 200 9' in line
    stamp = time.mktime(time.strptime(line.split("[")[1].split(" ")[0], "%d/%b/%Y:%H:%M:%S"))
    assert int(before) <= stamp <= time.time()
    assert (record.name, record.levelno) == ("pyhv.access", logging.INFO)
    assert (record.client_address, record.method, record.url, record.http_version) == (HOST, "GET", "/text?a=1", "1.1")
    assert (record.status, record.size, record.referer, record.user_agent) == (200, 9, None, None)
    assert before - 1 <= record.started <= time.time()
    assert 0 < record.duration < 60
    assert log.threads == {threading.get_ident()}


def test_combined_has_referer_and_user_agent(site: RecordingServer, log: Records) -> None:
    site.enable_access_log("combined")
    ask(site, "GET", "/text", [("Referer", "http://r.example/"), ("User-Agent", "agent/1")])
    ask(site, "GET", "/text")
    tick_until(lambda: len(log.all) == 2, site)
    assert log.all[0].getMessage().endswith(' 200 9 "http://r.example/" "agent/1"')
    assert log.all[1].getMessage().endswith(' 200 9 "-" "-"')
    assert (log.all[0].referer, log.all[0].user_agent) == ("http://r.example/", "agent/1")


def test_nothing_from_outside_ends_a_line_or_a_field(site: RecordingServer, log: Records) -> None:
    site.enable_access_log("combined")
    with RawClient(port_of(site), upgrade=False) as raw:
        agent = b'a" 200 1 "\\"\t\x85\xe9\x9b31m'
        raw.send_bytes(b'GET /n\xc3\xa9"?\\%0a HTTP/1.1\r\nHost: h\r\nUser-Agent: ' + agent + b"\r\n\r\n")
        raw.read_head()
    tick_until(lambda: log.all, site)
    line = log.all[0].getMessage()
    assert line.isascii() and line.isprintable()
    assert LINE.match(line), line
    assert line.endswith(r'"a\" 200 1 \"\\\"\x09\x85\xe9\x9b31m"')
    assert log.all[0].url == r"/n\xc3\xa9\"?\\%0a"
    assert log.all[0].user_agent == r"a\" 200 1 \"\\\"\x09\x85\xe9\x9b31m"


def test_what_the_native_side_answers_is_there_too(server: RecordingServer, log: Records) -> None:
    server.stop()
    server.start(0, max_body_size=10, handler_timeout=0.05)
    server.post("/text", lambda req, resp: None)
    server.enable_access_log()
    server.enable_healthz()
    server.allow_cors()
    port = port_of(server)
    expected = []

    def once(method: str, path: str, status: int, headers: Any = (), body: bytes | None = None) -> None:
        with RawClient(port, upgrade=False) as raw:
            raw.request(method, path, headers, body)
            assert raw.read_answer().status == status
        expected.append(status)
        tick_until(lambda: len(log.all) == len(expected), server)

    once("GET", "/nope", 404)
    once("GET", "/text", 405)
    once("POST", "/text", 413, (), b"x" * 11)
    once("POST", "/text", 503, (), b"x")
    once("GET", "/healthz", 200)
    once("OPTIONS", "/text", 204, [("Origin", "http://o"), ("Access-Control-Request-Method", "POST")])
    assert log.statuses == expected
    assert all(LINE.fullmatch(record.getMessage()) for record in log.all)


def test_handshakes(site: RecordingServer, log: Records) -> None:
    with RawClient(port_of(site), "/ws?x"):
        tick_until(lambda: log.all, site)
    with RawClient(port_of(site), upgrade=False) as raw:
        headers = [("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Origin", "http://evil.example")]
        raw.request("GET", "/ws", [*headers, ("Sec-WebSocket-Key", "x" * 22 + "=="), ("Sec-WebSocket-Version", "13")])
        raw.read_answer()
    tick_until(lambda: len(log.all) == 2, site)
    assert '"GET /ws?x HTTP/1.1" 101 -' in log.all[0].getMessage()
    assert log.statuses[1] in (400, 403)


def test_head_sends_nothing(site: RecordingServer, log: Records) -> None:
    ask(site, "HEAD", "/text")
    tick_until(lambda: log.all, site)
    assert '"HEAD /text HTTP/1.1" 200 -' in log.all[0].getMessage()
    assert log.all[0].size == 0


def test_a_stream_is_logged_at_its_end(site: RecordingServer, log: Records) -> None:
    site.stream("/stream", lambda req, writer: None)
    with RawClient(port_of(site), upgrade=False) as raw:
        raw.request("GET", "/stream")
        tick_until(lambda: site.streams, site)
        (writer,) = site.streams
        writer.write("x" * 1000)
        tick_until(raw.readable, site)
        assert log.all == []
        writer.close()
        tick_until(lambda: log.all, site)
    assert (log.all[0].status, log.all[0].size) == (200, 1000)


def test_bytes_are_those_that_were_sent(site: RecordingServer, log: Records) -> None:
    whole = b"x" * (32 << 20)
    site.get("/huge", lambda req, resp: resp.data(whole))
    site.compress_responses()
    site.get("/json", lambda req, resp: resp.json("x" * 10_000))
    with RawClient(port_of(site), upgrade=False, receive_buffer=4096) as raw:
        raw.request("GET", "/huge")
        tick_until(raw.readable, site)
        raw.reset()
    tick_until(lambda: log.all, site)
    assert log.all[0].status == 200
    assert 0 < log.all[0].size < len(whole) / 2
    answer = Background(lambda: httpx.get(f"http://{HOST}:{port_of(site)}/huge").content).result(site)
    assert answer == whole
    body = ask(site, "GET", "/json", [("Accept-Encoding", "br")]).body
    tick_until(lambda: len(log.all) == 3, site)
    assert [record.size for record in log.all[1:]] == [len(whole), len(body)]


def test_a_client_that_left_before_the_answer(site: RecordingServer, log: Records) -> None:
    kept: list[HttpResponse] = []
    writers: list[StreamWriter] = []
    site.get("/later", lambda req, resp: kept.append(resp.defer()))
    site.stream("/stream", lambda req, writer: writers.append(writer))
    with RawClient(port_of(site), upgrade=False) as raw:
        raw.request("GET", "/later")
        tick_until(lambda: kept, site)
        raw.reset()
    with RawClient(port_of(site), upgrade=False) as raw:
        raw.request("GET", "/stream")
        tick_until(raw.readable, site)
        raw.reset()
    tick_until(lambda: any(record.url == "/stream" for record in log.all), site)
    kept[0].text("late")
    tick_until(lambda: len(log.all) == 2, site)
    sizes = {record.url: (record.status, record.size) for record in log.all}
    assert sizes["/stream"] == (200, 0)
    assert sizes["/later"][0] in (200, 499)


def test_http2(tmp_path: Path, serve: Callable[..., ServerThread], log: Records) -> None:
    server = RecordingServer()
    server.get("/text", lambda req, resp: resp.text("some text"))
    server.enable_access_log()
    certificates = make_certificates(tmp_path)
    thread = serve(server, **certificates.settings)
    with httpx.Client(http2=True, verify=certificates.context()) as client:
        url = f"https://localhost:{tls_port_of(server)}/text"
        client.get(url)
        client.head(url)
    wait_until(lambda: len(log.all) == 2)
    lines = sorted(record.getMessage() for record in log.all)
    assert '"GET /text HTTP/2.0" 200 9' in lines[0]
    assert '"HEAD /text HTTP/2.0" 200 -' in lines[1]
    assert {record.http_version for record in log.all} == {"2"}
    assert log.threads == {thread.ident}


def test_it_is_the_client_behind_a_proxy(server: RecordingServer, log: Records) -> None:
    server.stop()
    server.start(0, trusted_proxies=[HOST])
    server.enable_access_log()
    ask(server, "GET", "/nope", [("X-Forwarded-For", "192.0.2.7")])
    tick_until(lambda: log.all, server)
    assert log.all[0].getMessage().startswith("192.0.2.7 - - [")


def test_a_stalled_program_keeps_a_bounded_log(server: RecordingServer, log: Records) -> None:
    server.stop()
    server.start(0, max_pending_bytes=20_000)
    server.enable_access_log()
    server.get("/text", lambda req, resp: resp.text("some text"))
    asked = 200
    with RawClient(port_of(server), upgrade=False) as raw:
        for _ in range(asked):
            raw.request("GET", "/nope")
            assert raw.read_answer().status == 404
        dropped = wait_until(lambda: server.refusals.get("access_log", 0))
        wait_until(lambda: server.refusals["access_log"] + 150 > asked)
        # Requests are still taken, and once the program ticks again it hears of some of them.
        assert ask(server, "GET", "/text").status == 200
        tick_until(lambda: len(log.all) + server.refusals["access_log"] == asked + 1, server)
    assert dropped > 0
    assert 0 < len(log.all) < asked
    assert ask(server, "GET", "/nope").status == 404
    tick_until(lambda: len(log.all) + server.refusals["access_log"] == asked + 2, server)


def test_the_last_requests_are_logged_by_stop(site: RecordingServer, log: Records) -> None:
    with RawClient(port_of(site), upgrade=False) as raw:
        raw.request("GET", "/nope")
        raw.read_answer()
    site.stop()
    assert log.statuses == [404]


def test_a_logger_that_does_not_want_it_costs_no_line(site: RecordingServer, log: Records) -> None:
    logging.getLogger("pyhv.access").setLevel(logging.WARNING)
    ask(site, "GET", "/text")
    site.stop()
    assert log.all == []


def test_misuse_raises(server: RecordingServer) -> None:
    with pytest.raises(ValueError, match="format='short'"):
        server.enable_access_log("short")  # type: ignore[arg-type]
