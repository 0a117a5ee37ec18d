"""Responses written piece by piece: `sse` and `stream`, and answers that come later."""

from __future__ import annotations

import gc
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http import HTTPStatus

import pytest

from pyhv import HttpRequest, HttpResponse, StreamWriter
from support import HOST, LIMIT, RecordingServer, ask, port_of, tick_until


class StreamServer(RecordingServer):
    """Records the ends of streams beside everything else."""

    def on_stream_close(self, writer: StreamWriter) -> None:
        self.record.add("stream close", None, writer)


@pytest.fixture
def server() -> Iterator[StreamServer]:
    server = StreamServer()
    server.start(0)
    yield server
    server.stop()


class Reader:
    """A client that reads a stream from a plain socket."""

    def __init__(self, server: StreamServer, path: str, method: str = "GET", headers: str = "") -> None:
        self.sock = socket.create_connection((HOST, port_of(server)), timeout=LIMIT)
        self.sock.sendall(f"{method} {path} HTTP/1.1\r\nHost: {HOST}\r\n{headers}\r\n".encode())
        self.sock.setblocking(False)
        self.received = b""
        self.ended = False

    def read(self) -> bytes:
        try:
            while data := self.sock.recv(65536):
                self.received += data
            self.ended = True
        except BlockingIOError:
            pass
        except ConnectionResetError:
            self.ended = True
        return self.received

    def has(self, part: bytes) -> bool:
        return part in self.read()

    def content(self) -> bytes:
        """The chunks joined, as far as they are there."""
        rest = self.read().split(b"\r\n\r\n", 1)[1]
        joined = b""
        while b"\r\n" in rest:
            size, rest = rest.split(b"\r\n", 1)
            length = int(size, 16)
            joined += rest[:length]
            rest = rest[length + 2 :]
        return joined

    def over(self) -> bool:
        self.read()
        return self.ended

    def close(self) -> None:
        self.sock.close()


def test_events_have_the_form_of_the_standard(server: StreamServer) -> None:
    def events(req: HttpRequest, writer: StreamWriter) -> None:
        assert writer.event("one")
        assert writer.event("two\nlines\r\nand\ra third", event="news", id="7", retry=1500)
        assert writer.event({"a": [1, "é"]})
        assert writer.event("")
        assert writer.comment("still here")
        writer.close()
        assert not writer.event("late")

    server.sse("/events", events)
    answer = ask(server, "GET", "/events")
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.body.decode() == (
        "data: one\n\n"
        "event: news\nid: 7\nretry: 1500\ndata: two\ndata: lines\ndata: and\ndata: a third\n\n"
        'data: {"a":[1,"é"]}\n\n'
        "data: \n\n"
        ": still here\n\n"
    )
    tick_until(lambda: len(server.record.values("stream close")) == 1, server)
    (writer,) = server.record.values("stream close")
    assert not writer.is_connected
    assert server.streams == []


def test_an_event_that_would_break_the_form_raises(server: StreamServer) -> None:
    writers: list[StreamWriter] = []
    server.sse("/events", lambda req, writer: writers.append(writer))
    reader = Reader(server, "/events")
    tick_until(lambda: bool(writers), server)
    (writer,) = writers
    with pytest.raises(ValueError, match=r"event='a\\nb'|event=\"a\\nb\""):
        writer.event("x", event="a\nb")
    with pytest.raises(ValueError, match="id="):
        writer.event("x", id="a\rb")
    with pytest.raises(ValueError, match="id="):
        writer.event("x", id="a\0b")
    with pytest.raises(ValueError, match="retry=-1"):
        writer.event("x", retry=-1)
    with pytest.raises(TypeError, match="not int"):
        writer.event(7)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="comment"):
        writer.comment("a\n\ndata: b")
    reader.close()


def test_a_writer_outlives_its_handler_and_writes_from_any_thread(server: StreamServer) -> None:
    server.sse("/events", lambda req, writer: None)
    readers = [Reader(server, "/events") for _ in range(3)]
    tick_until(lambda: len(server.streams) == 3, server)
    for writer in server.streams:
        writer.event("first")
    tick_until(lambda: all(reader.has(b"data: first\n\n") for reader in readers), server)

    def write() -> None:
        for writer in server.streams:
            for number in range(100):
                assert writer.event(str(number))

    thread = threading.Thread(target=write)
    thread.start()
    thread.join()
    tick_until(lambda: all(reader.has(b"data: 99\n\n") for reader in readers), server)
    expected = "data: first\n\n" + "".join(f"data: {n}\n\n" for n in range(100))
    assert [reader.content().decode() for reader in readers] == [expected] * 3
    for reader in readers:
        reader.close()
    tick_until(lambda: server.streams == [], server)
    assert len(server.record.values("stream close")) == 3


def test_a_client_that_leaves_is_noticed_at_once_though_nothing_is_written(server: StreamServer) -> None:
    server.sse("/events", lambda req, writer: None, keep_alive=None)
    server.stream("/bytes", lambda req, writer: None)
    for path in ("/events", "/bytes"):
        reader = Reader(server, path)
        tick_until(lambda: len(server.streams) == 1, server)
        (writer,) = server.streams
        tick_until(lambda reader=reader: reader.has(b"\r\n\r\n"), server)  # type: ignore[misc]
        assert writer.is_connected
        reader.close()
        tick_until(lambda: server.streams == [], server)
        assert not writer.is_connected
        assert writer.write("x") is False
    assert len(server.record.values("stream close")) == 2


def test_a_next_request_sent_during_a_stream_is_answered_behind_it(server: StreamServer) -> None:
    server.stream("/bytes", lambda req, writer: writer.write(b"begun") and None)
    server.get("/ping", lambda req, resp: resp.text("pong"))
    reader = Reader(server, "/bytes")
    tick_until(lambda: reader.has(b"begun"), server)
    reader.sock.sendall(f"GET /ping HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
    (writer,) = server.streams
    writer.write(b"ended")
    writer.close()
    tick_until(lambda: reader.has(b"pong"), server)
    assert reader.received.index(b"ended") < reader.received.index(b"pong")
    reader.close()


def test_a_quiet_event_stream_gets_comments(server: StreamServer) -> None:
    server.sse("/events", lambda req, writer: None, keep_alive=0.02)
    reader = Reader(server, "/events")
    tick_until(lambda: reader.read().count(b":\n\n") >= 3, server)
    with pytest.raises(ValueError, match="keep_alive=0"):
        server.sse("/other", lambda req, writer: None, keep_alive=0)
    reader.close()


def test_a_handler_may_refuse_or_fail_before_the_head_is_sent(server: StreamServer) -> None:
    def fail(req: HttpRequest, writer: StreamWriter) -> None:
        writer.event("never sent")
        raise RuntimeError("on purpose")

    def wrong(req: HttpRequest, writer: StreamWriter) -> str:
        return "text"

    server.sse("/refused", lambda req, writer: 401)
    server.sse("/fails", fail)
    server.sse("/wrong", wrong)
    answer = ask(server, "GET", "/refused")
    assert (answer.status, answer.body) == (401, b"401 Unauthorized\n")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert ask(server, "GET", "/fails").status == 500
    assert ask(server, "GET", "/wrong").status == 500
    tick_until(lambda: True, server)
    assert server.record.values("stream close") == []
    assert [type(error) for error in server.record.values("error")] == [RuntimeError, TypeError]


def test_status_and_headers_are_set_before_the_handler_returns(server: StreamServer) -> None:
    def handler(req: HttpRequest, writer: StreamWriter) -> None:
        writer.status = 201
        writer.set_header("X-A", "b")
        writer.set_content_type("text/plain")
        with pytest.raises(ValueError, match="content-length"):
            writer.set_header("Content-Length", "3")
        writer.write("abc")

    server.stream("/s", handler)
    reader = Reader(server, "/s")
    tick_until(lambda: reader.has(b"abc"), server)
    head = reader.received.split(b"\r\n\r\n")[0].lower()
    assert head.startswith(b"http/1.1 201 created")
    assert b"x-a: b" in head
    assert b"content-type: text/plain" in head
    (writer,) = server.streams
    assert writer.status is None
    with pytest.raises(RuntimeError, match="before its handler returns"):
        writer.set_header("X-B", "c")
    with pytest.raises(RuntimeError, match="sse routes"):
        writer.event("x")
    writer.data = {"seen": 1}
    assert writer.data == {"seen": 1}
    assert writer.request.path == "/s"
    reader.close()


def test_the_last_event_id_is_readable(server: StreamServer) -> None:
    seen: list[str | None] = []

    def handler(req: HttpRequest, writer: StreamWriter) -> None:
        seen.append(writer.last_event_id)
        writer.close()

    server.sse("/events", handler)
    ask(server, "GET", "/events")
    reader = Reader(server, "/events", headers="Last-Event-ID: é-7\r\n")
    tick_until(lambda: len(seen) == 2, server)
    assert seen == [None, "é-7"]
    reader.close()


@pytest.mark.parametrize("policy", ["close", "drop_newest", "drop_oldest"])
def test_a_client_that_does_not_read_costs_no_more_than_max_buffered(policy: str) -> None:
    server = StreamServer()
    server.start(0, max_buffered=200_000, slow_policy=policy)  # type: ignore[arg-type]
    server.sse("/events", lambda req, writer: None)
    server.get("/ping", lambda req, resp: resp.text("pong"))
    reader = Reader(server, "/events")
    tick_until(lambda: len(server.streams) == 1, server)
    (writer,) = server.streams
    text = "x" * 10_000
    end = time.monotonic() + LIMIT
    refused = 0
    # Until the sockets' buffers and ours are full.
    while refused < 50 and (policy != "drop_oldest" or writer.dropped < 50) and time.monotonic() < end:
        refused += not writer.event(text)
        assert writer.buffered_amount <= 200_000
        server.tick()
    if policy == "close":
        assert not writer.is_connected
        tick_until(lambda: server.streams == [], server)
        assert server.refusals["max_buffered"] == 1
        tick_until(reader.over, server)
    else:
        assert writer.is_connected
        assert writer.dropped >= 50
        writer.event("the newest")
        writer.close()
        tick_until(lambda: reader.over() or reader.read().endswith(b"0\r\n\r\n"), server)
        content = reader.content()
        assert (b"data: the newest\n\n" in content) == (policy == "drop_oldest" or writer.dropped == refused)
        # Whole events alone are left out.
        assert set(content.split(b"\n\n")) <= {b"data: " + text.encode(), b"data: the newest", b""}
    assert ask(server, "GET", "/ping").body == b"pong"
    reader.close()
    server.stop()


def test_raw_content_is_never_left_out_but_broken_off() -> None:
    server = StreamServer()
    server.start(0, max_buffered=100_000, slow_policy="drop_oldest")
    server.stream("/bytes", lambda req, writer: None)
    reader = Reader(server, "/bytes")
    tick_until(lambda: len(server.streams) == 1, server)
    (writer,) = server.streams
    end = time.monotonic() + LIMIT
    while writer.write(b"x" * 50_000) and time.monotonic() < end:
        server.tick()
    tick_until(lambda: server.streams == [], server)
    tick_until(reader.over, server)
    assert not reader.received.endswith(b"0\r\n\r\n"), "the client must see that something is missing"
    reader.close()
    server.stop()


def test_a_client_that_takes_nothing_of_an_answer_is_dropped_after_send_timeout() -> None:
    server = StreamServer()
    server.start(0, send_timeout=0.2)
    server.get("/large", lambda req, resp: resp.data(bytes(32 << 20)))
    server.get("/ping", lambda req, resp: resp.text("pong"))
    reader = Reader(server, "/large")
    tick_until(lambda: server.refusals.get("send_timeout") == 1, server)
    assert ask(server, "GET", "/ping").body == b"pong"
    tick_until(reader.over, server)
    assert len(reader.received) < 32 << 20
    reader.close()
    server.stop()


def test_stop_ends_open_streams_behind_what_was_written(server: StreamServer) -> None:
    server.sse("/events", lambda req, writer: writer.event("hello") and None)
    reader = Reader(server, "/events")
    tick_until(lambda: reader.has(b"hello"), server)
    (writer,) = server.streams
    writer.event("last words")
    server.stop()
    assert server.record.values("stream close") == [writer]
    end = time.monotonic() + LIMIT
    while not reader.over() and time.monotonic() < end:
        time.sleep(0.001)
    assert reader.received.endswith(b"0\r\n\r\n")
    assert b"last words" in reader.received
    reader.close()


def test_one_stream_of_many_megabytes_arrives_whole(server: StreamServer) -> None:
    sent = bytes(range(256)) * 4096  # 1 MiB

    def handler(req: HttpRequest, writer: StreamWriter) -> None:
        for _ in range(12):
            writer.write(sent)
        writer.close()

    server.stream("/large", handler)
    answer = ask(server, "GET", "/large")
    assert answer.body == sent * 12


# Answers that come later


def test_a_deferred_answer_is_given_later_from_another_thread(server: StreamServer) -> None:
    kept: list[HttpResponse] = []

    @server.get("/later")
    def later(req: HttpRequest, resp: HttpResponse) -> HttpResponse:
        kept.append(resp)
        return resp.defer()

    reader = Reader(server, "/later")
    tick_until(lambda: bool(kept), server)
    (resp,) = kept
    assert resp.is_awaited
    assert not resp.is_sent
    resp.set_header("X-A", "b")
    thread = threading.Thread(target=lambda: resp.json({"done": True}, 201))
    thread.start()
    thread.join()
    tick_until(lambda: reader.has(b'{"done":true}'), server)
    assert reader.received.startswith(b"HTTP/1.1 201")
    assert b"x-a: b" in reader.received
    assert resp.is_sent
    assert not resp.is_awaited
    for again in (lambda: resp.text("twice"), resp.send, lambda: resp.set_header("X", "y")):
        with pytest.raises(RuntimeError, match="answered already"):
            again()
    reader.close()


def test_send_answers_without_a_body_and_belongs_to_deferred_answers(server: StreamServer) -> None:
    @server.get("/now")
    def now(req: HttpRequest, resp: HttpResponse) -> HTTPStatus:
        with pytest.raises(RuntimeError, match="deferred"):
            resp.send()
        return HTTPStatus.ACCEPTED

    @server.get("/deferred")
    def deferred(req: HttpRequest, resp: HttpResponse) -> None:
        resp.defer()
        resp.status = 204
        resp.send()
        with pytest.raises(RuntimeError, match="not answered or deferred"):
            resp.defer()

    assert ask(server, "GET", "/now").status == 202
    assert ask(server, "GET", "/deferred").status == 204
    with pytest.raises(RuntimeError, match="not answered or deferred"):
        HttpResponse().defer()
    assert server.record.values("error") == []


def test_an_answer_returned_beside_a_deferred_one_is_a_mistake_that_is_told(server: StreamServer) -> None:
    def handler(req: HttpRequest, resp: HttpResponse) -> str:
        resp.defer()
        return "text"

    server.get("/x", handler)
    assert ask(server, "GET", "/x").status == 500
    (error,) = server.record.values("error")
    assert "deferred its answer and then returned one" in str(error)


def test_a_deferred_answer_that_nobody_holds_any_more_is_500_at_once(server: StreamServer) -> None:
    def forget(req: HttpRequest, resp: HttpResponse) -> None:
        resp.defer()

    server.get("/x", forget)
    assert ask(server, "GET", "/x").status == 500
    gc.collect()


def test_a_request_that_nobody_answers_gets_503_after_handler_timeout() -> None:
    server = StreamServer()
    server.start(0, handler_timeout=0.1)
    kept: list[HttpResponse] = []
    server.get("/x", lambda req, resp: kept.append(resp.defer()))
    answer = ask(server, "GET", "/x")
    assert answer.status == 503
    (resp,) = kept
    assert not resp.is_awaited
    resp.text("too late")  # goes nowhere, and does not raise: it could not know
    assert server.refusals["handler_timeout"] == 1
    server.stop()


def test_a_stalled_program_is_not_bothered_with_requests_that_were_answered_for_it() -> None:
    server = StreamServer()
    ran: list[str] = []
    server.get("/x", lambda req, resp: ran.append(req.url))
    server.start(0, handler_timeout=0.1)
    reader = Reader(server, "/x?1")
    end = time.monotonic() + LIMIT
    while not reader.has(b"503 Service Unavailable\n") and time.monotonic() < end:
        time.sleep(0.001)  # the program does not tick
    assert reader.received.startswith(b"HTTP/1.1 503")
    assert ask(server, "GET", "/x?2").status == 200
    assert ran == ["/x?2"]
    reader.close()
    server.stop()


def test_json_is_the_same_with_and_without_msgspec() -> None:
    script = """
import sys
if sys.argv[1] == "without":
    sys.modules["msgspec"] = None
from pyhv import HttpResponse
from pyhv.http import _json_value
resp = HttpResponse()
for value in ({"a": [1, 2.5, None, True, "é\\u2028"]}, [], {1: "int key"}, {"nested": {"x": (1, 2)}}, float("inf")):
    resp.json(value)
    sys.stdout.buffer.write(resp.body + b"\\n")
print(_json_value(b'{"a": [1, 2.5, null]}'))
for wrong in (b"{", b"", b"\\xff", b"[1,]"):
    try:
        print(_json_value(wrong))
    except ValueError:
        print("ValueError")
try:
    resp.json({"x": object()})
except TypeError:
    print("TypeError")
"""
    said = [
        subprocess.run(
            [sys.executable, "-c", script, with_or_without], capture_output=True, check=True, timeout=LIMIT
        ).stdout
        for with_or_without in ("with", "without")
    ]
    assert said[0].count(b"ValueError") == 4
    assert said[0].splitlines()[:4] == said[1].splitlines()[:4]
    assert said[0].splitlines()[5:] == said[1].splitlines()[5:]
