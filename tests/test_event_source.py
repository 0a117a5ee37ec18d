"""EventSource: server-sent events that connect again."""

from __future__ import annotations

import asyncio
import queue
import select
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from aiohttp import web as aio

import pyhv
from pyhv import EventSource, ServerSentEvent
from support import HOST, LIMIT, Background, sockets_and_wakes, tick_until, wait_until
from support_http_client import Peer, Site, answering

HEAD = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
QUICK: dict[str, Any] = {"reconnect_delay": 0.01, "max_delay": 0.05}


class Recording(EventSource):
    """Records its callbacks."""

    def __init__(self, url: str, **options: Any) -> None:
        self.calls: list[tuple[str, Any, int]] = []
        super().__init__(url, **{**QUICK, **options})

    def on_open(self) -> None:
        self.calls.append(("open", None, self.ready_state))

    def on_message(self, event: ServerSentEvent) -> None:
        self.calls.append(("message", event, self.ready_state))

    def on_error(self, exc: Exception) -> None:
        self.calls.append(("error", exc, self.ready_state))

    @property
    def events(self) -> list[ServerSentEvent]:
        return [value for what, value, _ in self.calls if what == "message"]

    @property
    def errors(self) -> list[Exception]:
        return [value for what, value, _ in self.calls if what == "error"]

    def count(self, what: str) -> int:
        return sum(call[0] == what for call in self.calls)


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def streams(*bodies: str) -> Callable[[Peer], None]:
    """Answers one connection after the other with these events, and then the last one again and again."""
    left = iter(bodies)
    last = [bodies[-1]]

    def answer(peer: Peer) -> None:
        peer.send((HEAD + next(left, last[0])).encode())

    return answer


def closed(source: EventSource) -> bool:
    return source.ready_state == EventSource.CLOSED


# The stream


def test_open_then_events() -> None:
    def answer(peer: Peer) -> None:
        peer.send((HEAD + "data: one\n\nevent: add\ndata: zwölf\nid: 5\n\n").encode())
        server.over.wait(LIMIT)

    with answering(answer) as server, Recording(server.url + "x") as source:
        assert source.ready_state == EventSource.CONNECTING
        tick_until(lambda: len(source.events) == 2, source)
        assert [(what, state) for what, _, state in source.calls] == [("open", 1), ("message", 1), ("message", 1)]
        assert source.events == [ServerSentEvent("one"), ServerSentEvent("zwölf", "add", "5")]
        assert source.last_event_id == "5" and source.url == server.url + "x"
        line, headers = server.requests[0]
        assert line == "GET /x HTTP/1.1"
        assert (headers["accept"], headers["cache-control"]) == ("text/event-stream", "no-store")
        assert "last-event-id" not in headers


def test_assigned_callbacks() -> None:
    got: list[Any] = []
    with answering(streams("data: a\n\n")) as server, EventSource(server.url, **QUICK) as source:
        source.on_open = lambda: got.append("open")  # type: ignore[method-assign]
        source.on_message = got.append  # type: ignore[assignment,method-assign]
        source.on_error = lambda exc: got.append(type(exc))  # type: ignore[method-assign]
        tick_until(lambda: len(got) >= 3, source)
    assert got[:3] == ["open", ServerSentEvent("a"), pyhv.RequestFailed]


def test_other_requests() -> None:
    with answering(streams("data: a\n\n")) as server:
        options = {"method": "POST", "json": {"q": 1}, "headers": {"X-A": "b", "Accept": "text/event-stream, x/y"}}
        with Recording(server.url, bearer="t", params={"p": "1"}, last_event_id="é", **options) as source:
            tick_until(lambda: source.events, source)
            tick_until(lambda: len(server.requests) > 1, source)
    for line, headers in server.requests[:2]:
        assert line == "POST /?p=1 HTTP/1.1"
        assert headers["content-length"] == "7" and headers["content-type"] == "application/json"
        assert headers["authorization"] == "Bearer t" and headers["x-a"] == "b"
        assert headers["accept"] == "text/event-stream, x/y"
        assert headers["last-event-id"].encode("latin-1").decode() == "é", "UTF-8, as the standard has it"


def test_a_redirect_is_followed_each_time() -> None:
    def answer(peer: Peer) -> None:
        if "/to" in peer.line:
            peer.send("HTTP/1.1 307 Moved\r\nLocation: /events\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        else:
            peer.send(HEAD + "data: a\n\n")

    with answering(answer) as server, Recording(server.url + "to") as source:
        tick_until(lambda: len(source.events) == 2, source)
        assert [line.split()[1] for line, _ in server.requests[:4]] == ["/to", "/events", "/to", "/events"]


# Again


def test_it_goes_on_where_it_was() -> None:
    bodies = (
        "id: 1\ndata: a\n\nid: 2\ndata: b\n\nid: 3\ndata: not complete",
        "data: c\n\n",
        "id\ndata: d\n\n",
        "data: e\n\n",
    )
    with answering(streams(*bodies)) as server, Recording(server.url) as source:
        tick_until(lambda: len(source.events) >= 4, source)
        tick_until(lambda: len(server.requests) >= 4, source)
        assert [(event.data, event.id) for event in source.events[:4]] == [
            ("a", "1"),
            ("b", "2"),
            ("c", "2"),
            ("d", ""),
        ]
        assert [headers.get("last-event-id") for _, headers in server.requests[:4]] == [None, "2", "2", None]
        kinds = [(what, state) for what, _, state in source.calls[:4]]
        assert kinds == [("open", 1), ("message", 1), ("message", 1), ("error", 0)]
        assert isinstance(source.errors[0], pyhv.RequestFailed)
        assert "ended its stream" in str(source.errors[0]) and server.url in str(source.errors[0])


def test_after_the_network_failed() -> None:
    def answer(peer: Peer) -> None:
        if server.connections == 1:
            peer.send(HEAD + "id: 9\ndata: a\n\n")
            assert taken.wait(LIMIT)
            peer.reset()
        elif server.connections == 2:
            peer.reset()
        elif server.connections == 3:
            peer.send("no HTTP at all\r\n\r\n")
        else:
            peer.send(HEAD + "data: b\n\n")
            server.over.wait(LIMIT)

    taken = threading.Event()
    with answering(answer) as server, Recording(server.url) as source:
        tick_until(lambda: source.events, source)
        taken.set()
        tick_until(lambda: len(source.events) == 2, source)
        assert source.events[1] == ServerSentEvent("b", "message", "9")
        assert [state for what, _, state in source.calls if what == "error"] == [0, 0, 0]
        assert source.error is None, "it is open"


def test_until_somebody_listens() -> None:
    with answering("") as gone:
        pass
    with Recording(gone.url) as source:
        tick_until(lambda: len(source.errors) >= 3, source)
        assert {type(error) for error in source.errors} == {pyhv.ConnectionRefused}
        assert source.ready_state == EventSource.CONNECTING
        assert isinstance(source.error, pyhv.ConnectionRefused)


def test_a_server_that_does_not_answer() -> None:
    with (
        answering(lambda peer: server.over.wait(LIMIT) and None) as server,
        Recording(server.url, timeout=0.1) as source,
    ):
        tick_until(lambda: len(source.errors) >= 2, source)
        assert {type(error) for error in source.errors} == {pyhv.HttpTimeout}


def test_the_server_names_the_delay() -> None:
    # With the delay given it would not come back within the test.
    patient = {"reconnect_delay": 500.0, "max_delay": 1000.0}
    with answering(streams("retry: 1\ndata: a\n\n")) as server, Recording(server.url, **patient) as source:
        tick_until(lambda: source.count("open") == 3, source)
    # And one that the server names has its limit.
    with answering(streams("retry: 99999999999999999999\ndata: a\n\n")) as server, Recording(server.url) as source:
        tick_until(lambda: source.count("open") == 3, source)


def test_close_while_it_waits() -> None:
    before = sockets_and_wakes()
    with (
        answering(streams("data: a\n\n")) as server,
        Recording(server.url, reconnect_delay=500.0, max_delay=500) as source,
    ):
        source.fileno()
        tick_until(lambda: source.errors, source)
        calls = len(source.calls)
        source.close()
        assert closed(source) and source.tick(None) == 0 and len(source.calls) == calls
    wait_until(lambda: sockets_and_wakes() <= before, what="every descriptor is closed")


# For good


@pytest.mark.parametrize(
    ("answer", "status", "why"),
    [
        ("HTTP/1.1 204 No Content\r\n\r\n", 204, "no more events"),
        ("HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\nnone", 404, "404 Not Found"),
        ("HTTP/1.1 500 Oh\r\nContent-Type: text/event-stream\r\nContent-Length: 4\r\n\r\nnone", 500, "500 Oh"),
        ("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 4\r\n\r\nnone", 200, "text/html"),
        ("HTTP/1.1 200 OK\r\nContent-Type: text/event-streams\r\nContent-Length: 4\r\n\r\nnone", 200, "event-streams"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnone", 200, "no content type"),
    ],
)
def test_what_ends_it(answer: str, status: int, why: str) -> None:
    with answering(answer) as server, Recording(server.url) as source:
        tick_until(lambda: closed(source), source)
        assert [what for what, _, _ in source.calls] == ["error"]
        error = source.errors[0]
        assert isinstance(error, pyhv.HttpStatusError)
        assert why in str(error) and server.url in str(error)
        assert error.response.status == status
        assert error.response.text() == ("" if status == 204 else "none")
        assert source.calls[0][2] == EventSource.CLOSED
        assert source.tick(None) == 0, "there is nothing to wait for"
        assert server.connections == 1


def test_a_body_that_says_why_has_its_limits() -> None:
    def answer(peer: Peer) -> None:
        peer.send("HTTP/1.1 503 No\r\n\r\n")
        while True:
            peer.send("x" * 1000)

    with answering(answer) as server, Recording(server.url) as source:
        tick_until(lambda: closed(source), source)
        error = source.errors[0]
        assert isinstance(error, pyhv.HttpStatusError)
        assert len(error.response.body) == 64 << 10


def test_content_types_that_are_right() -> None:
    head = "HTTP/1.1 200 OK\r\nContent-Type: Text/Event-Stream ; charset=latin-1\r\nConnection: close\r\n\r\n"
    with answering((head + "data: ü\n\n").encode()) as server, Recording(server.url) as source:
        tick_until(lambda: source.events, source)
        assert source.events[0].data == "ü", "always UTF-8, as the standard has it"


def test_an_event_beyond_the_limit_ends_it() -> None:
    with answering(streams("data: " + "x" * 100_000 + "\n\n")) as server:
        with Recording(server.url, max_event_size=1000) as source:
            tick_until(lambda: closed(source), source)
            assert isinstance(source.errors[0], pyhv.BodyTooLarge)
            assert "max_event_size=1000" in str(source.errors[0])
        assert server.connections == 1


def test_too_many_redirects_end_it() -> None:
    answer = "HTTP/1.1 302 Found\r\nLocation: /\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    with answering(answer) as server, Recording(server.url, redirects=3) as source:
        tick_until(lambda: closed(source), source)
        assert [type(error) for error in source.errors] == [pyhv.TooManyRedirects]


# With the program


def test_callbacks_that_raise(caplog: pytest.LogCaptureFixture) -> None:
    class Bad(Recording):
        def on_message(self, event: ServerSentEvent) -> None:
            super().on_message(event)
            raise ValueError(f"at {event.data}")

    with answering(streams("data: a\n\ndata: b\n\n")) as server, Bad(server.url) as source:
        tick_until(lambda: len(source.events) >= 2, source)
        assert [str(error) for error in source.errors[:2]] == ["at a", "at b"]
        assert "on_message of Bad raised" in caplog.text


def test_close_within_a_callback() -> None:
    class Once(Recording):
        def on_message(self, event: ServerSentEvent) -> None:
            super().on_message(event)
            self.close()

    with answering(streams("data: a\n\ndata: b\n\n")) as server, Once(server.url) as source:
        tick_until(lambda: closed(source), source)
        source.tick()
        assert len(source.events) == 1


def test_the_descriptor_and_the_wait() -> None:
    ready: queue.Queue[None] = queue.Queue()

    def answer(peer: Peer) -> None:
        peer.send(HEAD)
        ready.get(timeout=LIMIT)
        peer.send("data: a\n\n")
        server.over.wait(LIMIT)

    with answering(answer) as server, Recording(server.url) as source:
        tick_until(lambda: source.count("open"), source)
        assert not select.select([source], [], [], 0)[0]
        waiting = Background(lambda: source.tick(None))
        ready.put(None)
        assert waiting.result() == 1
        assert source.events == [ServerSentEvent("a")]


def test_a_source_that_does_not_tick_reads_no_more() -> None:
    sent = 0

    def answer(peer: Peer) -> None:
        nonlocal sent
        peer.send(HEAD)
        while not server.over.is_set():
            peer.send("data: " + "x" * 10_000 + "\n\n")
            sent += 1

    with answering(answer) as server, Recording(server.url, max_pending_bytes=1 << 20) as source:
        level = -1

        def stands_still() -> bool:
            nonlocal level
            last, level = level, sent
            server.over.wait(0.1)
            return sent > 0 and last == level

        wait_until(stands_still, what="the server cannot write any more")
        assert level < 3200, "32 MB: kernel buffers and a mebibyte of ours"
        tick_until(lambda: sent > level, source, what="it goes on")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"reconnect_delay": -1}, ValueError),
        ({"max_delay": "x"}, TypeError),
        ({"max_event_size": 0}, ValueError),
        ({"max_pending_bytes": 0}, ValueError),
        ({"last_event_id": 5}, TypeError),
        ({"last_event_id": "a\r\nX: y"}, ValueError),
        ({"headers": {"Last-Event-ID": "1"}}, ValueError),
        ({"timeout": 0}, ValueError),
        ({"fingerprint": "00" * 32}, ValueError),
        ({"no_such": 1}, TypeError),
    ],
    ids=str,
)
def test_bad_arguments(options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(options)).replace("headers", "Last-Event-ID")):
        EventSource(f"http://{HOST}:9/", **options)
    with pytest.raises(ValueError, match="not an HTTP URL"):
        EventSource("nowhere")


# With a server that knows events: aiohttp


class EventSite(Site):
    """Numbers its events, goes on behind Last-Event-ID, and ends each stream after three."""

    async def _endless(self, request: aio.Request) -> aio.StreamResponse:
        answer = aio.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(request)
        last = int(request.headers.get("Last-Event-ID", "0"))
        for number in range(last + 1, last + 4):
            await answer.write(f": comment\r\nid: {number}\r\ndata: n{number}\r\n\r\n".encode())
            await asyncio.sleep(0)
        return answer


@pytest.fixture
def events() -> Iterator[EventSite]:
    running = EventSite()
    try:
        yield running
    finally:
        running.stop()


def test_no_event_is_lost_or_comes_twice(events: EventSite) -> None:
    with Recording(events.url("/endless")) as source:
        tick_until(lambda: len(source.events) >= 30, source)
    assert [event.data for event in source.events[:30]] == [f"n{n}" for n in range(1, 31)]
    assert source.count("open") >= 10


def test_many_sources(events: EventSite) -> None:
    sources = [Recording(events.url("/endless")) for _ in range(20)]
    tick_until(lambda: all(len(source.events) >= 9 for source in sources), *sources)
    for source in sources:
        source.close()
        assert [event.id for event in source.events[:9]] == [str(n) for n in range(1, 10)]
