"""The dasHV tutorial HV-07, "SSE and streaming", row by row with pyHV's words; then streams that go on.

The server lives on a thread of its own; requests are made here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import pyhv
from pyhv import EventSource, HttpClient, HttpRequest, HvWebServer, ServerSentEvent, StreamWriter
from support import HOST, RawClient, ServerThread, http, serving, tick_until, wait_until

pytestmark = pytest.mark.usefixtures("no_proxy")

EVENTS = "event: message\ndata: first\n\nevent: message\ndata: second\n\nevent: complete\ndata: all done\n\n"


class StreamServer(HvWebServer):
    """Section 1: the server."""

    def on_init(self) -> None:
        self.gone: list[StreamWriter] = []
        self.sse("/events", self.get_events)
        self.sse("/stream-echo", self.post_echo)
        self.sse("/open", self.stay)
        self.get("/plain", lambda req, resp: resp.text("hello from plain endpoint"))
        self.stream("/bytes", self.get_bytes)

    def get_events(self, req: HttpRequest, writer: StreamWriter) -> None:
        writer.event("first", event="message")
        writer.event("second", event="message")
        writer.event("all done", event="complete")
        writer.close()

    def post_echo(self, req: HttpRequest, writer: StreamWriter) -> None:
        writer.event(req.text(), event="echo")
        writer.close()

    def stay(self, req: HttpRequest, writer: StreamWriter) -> int | None:
        if "name" not in req.query:
            return 403
        writer.data = req.query["name"]
        writer.event({"seen": writer.last_event_id}, event="hello")
        return None

    def get_bytes(self, req: HttpRequest, writer: StreamWriter) -> None:
        writer.set_content_type("image/x-portable-graymap")
        writer.set_header("X-Custom", "tutorial-07")
        writer.write(b"P5 2 1 255 ")
        writer.write(b"\x00\xff")
        writer.close()

    def on_stream_close(self, writer: StreamWriter) -> None:
        self.gone.append(writer)


@pytest.fixture
def thread(serve: Callable[..., ServerThread]) -> ServerThread:
    return serve(StreamServer())


@pytest.fixture
def server(thread: ServerThread) -> StreamServer:
    assert isinstance(thread.server, StreamServer)
    return thread.server


@pytest.fixture
def base(thread: ServerThread) -> str:
    return f"http://{HOST}:{thread.port}"


def writer_of(server: StreamServer, name: str) -> StreamWriter:
    """The open stream of a client that called itself so."""
    return wait_until(lambda: [each for each in server.streams if each.data == name], what=f"{name} is there")[0]


# 1: the route


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_events_over_the_wire(thread: ServerThread, method: str) -> None:
    answer = http(thread.port, method, "/events")
    assert (answer.status, answer.body.decode()) == (200, EVENTS)
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["transfer-encoding"] == "chunked"


# 2 and 3: text and bytes as they come


def test_pieces_of_text(base: str) -> None:
    pieces: list[str] = []
    threads: set[int] = set()

    def on_chunk(piece: str) -> None:
        pieces.append(piece)
        threads.add(threading.get_ident())

    answer = pyhv.get(f"{base}/events", on_chunk=on_chunk, text_chunks=True)
    assert (answer.status, answer.body) == (200, b"")
    assert "".join(pieces) == EVENTS
    assert threads == {threading.get_ident()}


def test_pieces_of_bytes(base: str) -> None:
    pieces: list[bytes] = []
    pyhv.get(f"{base}/events", on_chunk=pieces.append)
    assert b"".join(pieces) == EVENTS.encode()


def test_pieces_come_before_the_end(server: StreamServer, base: str) -> None:
    """The first one is there while the server has not written the second."""
    pieces: list[str] = []

    def on_chunk(piece: str) -> None:
        pieces.append(piece)
        if len(pieces) == 1:
            writer = writer_of(server, "reader")
            writer.event("second")
            writer.close()

    pyhv.get(f"{base}/open?name=reader", on_chunk=on_chunk, text_chunks=True)
    assert pieces[0] == 'event: hello\ndata: {"seen":null}\n\n'
    assert "".join(pieces[1:]) == "data: second\n\n"


def test_what_on_chunk_raises_leaves_the_call_and_ends_the_stream(server: StreamServer, base: str) -> None:
    class EnoughError(Exception):
        pass

    def on_chunk(piece: bytes) -> None:
        raise EnoughError

    with pytest.raises(EnoughError):
        pyhv.get(f"{base}/open?name=reader", on_chunk=on_chunk)
    (writer,) = wait_until(lambda: server.gone)
    assert (writer.data, writer.is_connected, writer.event("anybody?")) == ("reader", False, False)


# 4 and 5: POST, and what is no event stream


def test_a_post_whose_response_streams(base: str) -> None:
    pieces: list[str] = []
    answer = pyhv.post(f"{base}/stream-echo", data="two\nlines", on_chunk=pieces.append, text_chunks=True)
    assert (answer.status, "".join(pieces)) == (200, "event: echo\ndata: two\ndata: lines\n\n")


def test_any_content_comes_in_pieces(base: str) -> None:
    pieces: list[str] = []
    answer = pyhv.get(f"{base}/plain", on_chunk=pieces.append, text_chunks=True)
    assert (answer.status, "".join(pieces)) == (200, "hello from plain endpoint")
    with pytest.raises(ValueError, match="text_chunks= needs on_chunk="):
        pyhv.get(f"{base}/plain", text_chunks=True)


# 6: events


def test_events_of_one_response(base: str) -> None:
    events: list[ServerSentEvent] = []
    with HttpClient() as client:
        call = client.get(f"{base}/events", on_event=events.append)
        tick_until(lambda: call.is_done, client)
    assert events == [
        ServerSentEvent("first"),
        ServerSentEvent("second"),
        ServerSentEvent("all done", "complete"),
    ]


def test_what_is_no_event_stream_comes_whole(base: str) -> None:
    events: list[ServerSentEvent] = []
    with HttpClient() as client:
        call = client.get(f"{base}/plain", on_event=events.append)
        tick_until(lambda: call.is_done, client)
    assert call.response is not None
    assert (events, call.response.text()) == ([], "hello from plain endpoint")


# Beyond the original: streams that go on


def test_a_handler_may_refuse(base: str) -> None:
    answer = pyhv.get(f"{base}/open")
    assert (answer.status, answer.headers["Content-Type"]) == (403, "text/plain; charset=utf-8")


def test_a_writer_outlives_its_handler(server: StreamServer, base: str) -> None:
    """Written to from another thread than the one that ticks."""
    events: list[ServerSentEvent] = []
    with HttpClient() as client:
        call = client.get(f"{base}/open?name=reader", on_event=events.append)
        writer = writer_of(server, "reader")
        assert writer.is_connected
        for lap in (1, 2, 3):
            assert writer.event({"lap": lap}, id=str(lap))
            tick_until(lambda lap=lap: len(events) == lap + 1, client)  # type: ignore[misc]
        writer.close()
        tick_until(lambda: call.is_done, client)
    assert events[1:] == [ServerSentEvent(f'{{"lap":{lap}}}', id=str(lap)) for lap in (1, 2, 3)]
    assert wait_until(lambda: server.gone) == [writer]


class Watcher(EventSource):
    """Section "A client that comes back"."""

    def __init__(self, url: str, **options: Any) -> None:
        self.events: list[ServerSentEvent] = []
        self.told: list[str] = []
        super().__init__(url, reconnect_delay=0.01, max_delay=0.05, **options)

    def on_open(self) -> None:
        self.told.append("open")

    def on_message(self, event: ServerSentEvent) -> None:
        self.events.append(event)

    def on_error(self, exc: Exception) -> None:
        self.told.append("lost" if self.ready_state == EventSource.CONNECTING else "closed")


def test_a_client_comes_back_and_tells_what_it_has_seen(server: StreamServer, base: str) -> None:
    with Watcher(f"{base}/open", params={"name": "Zoë"}) as watcher:
        writer_of(server, "Zoë").event("lap", id="3")
        tick_until(lambda: watcher.last_event_id == "3", watcher)
        writer_of(server, "Zoë").close()
        tick_until(lambda: len(watcher.events) == 3, watcher)
        assert watcher.told == ["open", "lost", "open"]
        again = writer_of(server, "Zoë")
        assert again.last_event_id == "3"
        assert [event.data for event in watcher.events] == ['{"seen":null}', "lap", '{"seen":"3"}']
    wait_until(lambda: len(server.gone) == 2)
    assert server.gone[1] is again


@pytest.mark.parametrize("path", ["/open", "/plain", "/nothing"])
def test_another_answer_ends_it_for_good(base: str, path: str) -> None:
    with Watcher(base + path) as watcher:
        tick_until(lambda: watcher.ready_state == EventSource.CLOSED, watcher)
        assert (watcher.told, watcher.events) == (["closed"], [])


# Something else than events


def test_a_stream_of_any_content(thread: ServerThread) -> None:
    answer = http(thread.port, "GET", "/bytes")
    assert answer.body == b"P5 2 1 255 \x00\xff"
    assert (answer.headers["content-type"], answer.headers["x-custom"]) == ("image/x-portable-graymap", "tutorial-07")


@pytest.fixture
def slow() -> Iterator[StreamServer]:
    """Lets little wait for a client."""
    server = StreamServer()
    with serving(server, max_buffered=100_000):
        yield server


def test_a_reader_that_does_not_read_is_broken_off(slow: StreamServer) -> None:
    with RawClient(slow.port or 0, upgrade=False, receive_buffer=4096) as raw:
        raw.request("GET", "/open?name=sleeper")
        writer = writer_of(slow, "sleeper")
        while writer.event("x" * 10_000):
            assert writer.buffered_amount <= 100_000
        assert not writer.is_connected
        assert wait_until(lambda: slow.gone) == [writer]


def test_stop_ends_what_is_open(thread: ServerThread, server: StreamServer, base: str) -> None:
    pieces: list[str] = []
    reading = threading.Thread(
        target=lambda: pyhv.get(f"{base}/open?name=last", on_chunk=pieces.append, text_chunks=True)
    )
    reading.start()
    writer = writer_of(server, "last")
    writer.event("goodbye")
    thread.stop()
    reading.join()
    assert "".join(pieces).endswith("data: goodbye\n\n")
    assert server.gone == [writer]
