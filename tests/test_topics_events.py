"""Topics on streams of server-sent events, and how they are resumed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest

from pyhv import EventSource, HttpRequest, HvWebServer, ServerSentEvent, StreamWriter
from support import port_of, tick_until

pytestmark = pytest.mark.usefixtures("no_proxy")


class Feed(HvWebServer):
    """A stream of the topics in its query."""

    def __init__(self) -> None:
        self.left: list[Any] = []

    def on_init(self) -> None:
        self.sse("/feed", self.feed)
        self.stream("/raw", self.feed)
        self.sse("/refused", self.refused)

    def feed(self, request: HttpRequest, writer: StreamWriter) -> None:
        topics = request.query["topics"].split(",")
        writer.subscribe(*topics, named="named" in request.query, member=request.query.get("member"))

    def refused(self, request: HttpRequest, writer: StreamWriter) -> int:
        writer.subscribe("a")
        return 403

    def on_leave(self, topic: str, member: Any) -> None:
        self.left.append((topic, member))


class Source(EventSource):
    def __init__(self, server: HvWebServer, query: str, **options: Any) -> None:
        self.events: list[ServerSentEvent] = []
        self.opened = 0
        url = f"http://127.0.0.1:{port_of(server)}/feed?{query}"
        super().__init__(url, reconnect_delay=0.001, max_delay=0.01, **options)

    def on_open(self) -> None:
        self.opened += 1

    def on_message(self, event: ServerSentEvent) -> None:
        self.events.append(event)

    @property
    def data(self) -> list[str]:
        return [event.data for event in self.events]


@pytest.fixture
def server() -> Iterator[Feed]:
    with Feed() as server:
        server.keep("kept/#", messages=10_000)
        server.start(0)
        yield server


def opened(server: Feed, query: str, **options: Any) -> Source:
    before = set(server.streams)
    source = Source(server, query, **options)
    tick_until(lambda: source.opened and set(server.streams) - before, server, source)
    return source


def test_publishes_of_one_tick_come_as_events(server: Feed) -> None:
    with opened(server, "topics=a") as source, opened(server, "topics=%23&named") as named:

        def publish() -> None:
            for topic, data in ("a", "1"), ("a", "2"), ("b", "3"), ("a", "4"):
                server.publish(topic, data)

        server.on_tick = publish  # type: ignore[method-assign]
        server.tick()
        server.on_tick = lambda: None  # type: ignore[method-assign]
        tick_until(lambda: len(source.events) == 3 and len(named.events) == 4, server, source, named)
        assert source.data == ["1", "2", "4"]
        assert [(event.event, event.data) for event in named.events] == [("a", "1"), ("a", "2"), ("b", "3"), ("a", "4")]


def test_publishes_come_as_events(server: Feed) -> None:
    with opened(server, "topics=a,b/%2B") as source, opened(server, "topics=a,b/%2B&named") as named:
        (writer, other) = server.streams
        assert server.subscribers("a") == [writer, other]
        assert writer.topics == ["a", "b/+"]
        positions = [
            server.publish("a", "one"),
            server.publish("b/c", "two\r\nlines \u00e9"),
            server.publish("a", b"\x00\xff"),
            server.publish("c", "not this"),
            server.publish("a", ""),
        ]
        tick_until(lambda: len(source.events) == len(named.events) == 4, server, source, named)
        del positions[3]
        assert source.data == named.data == ["one", "two\nlines \u00e9", "AP8=", ""]
        assert [event.id for event in source.events] == [event.id for event in named.events] == positions
        assert {event.event for event in source.events} == {"message"}
        assert [event.event for event in named.events] == ["a", "b/c", "a", "a"]
        assert writer.unsubscribe("a") is True
        assert writer.unsubscribe("a") is False
        server.publish("a", "x")
        server.publish("b/c", "y")
        tick_until(lambda: len(source.events) == 5, server, source)
        assert source.data[-1] == "y"


def test_membership_ends_with_the_stream(server: Feed) -> None:
    source = opened(server, "topics=a&member=ann")
    (writer,) = server.streams
    assert server.presence("a") == ["ann"]
    source.close()
    tick_until(lambda: not server.streams and server.left, server)
    assert server.left == [("a", "ann")]
    assert server.subscriber_count("a") == 0
    assert writer.topics == []
    assert writer.subscribe("a") is False


def test_a_stream_that_was_refused_is_no_subscriber(server: Feed) -> None:
    import pyhv

    with pyhv.HttpClient() as client:
        call = client.get(f"http://127.0.0.1:{port_of(server)}/refused")
        tick_until(lambda: call.response or call.error, server, client)
        assert call.response is not None
        assert call.response.status == 403
    assert server.subscriber_count("a") == 0


def test_misuse_raises(server: Feed) -> None:
    with opened(server, "topics=a"):
        (writer,) = server.streams
        with pytest.raises(ValueError, match="the first subscribe"):
            writer.subscribe("b", after="oldest")
        with pytest.raises(ValueError, match="named=True"):
            writer.subscribe("b", named=True)
        with pytest.raises(ValueError, match="without a topic"):
            writer.subscribe()
        assert writer.subscribe("b")
        assert writer.topics == ["a", "b"]


def test_a_stream_resumes_where_its_client_was(server: Feed) -> None:
    with opened(server, "topics=kept/a,kept/b") as source:
        # Nothing had come before it was lost.
        server.streams[0].close()
        server.publish("kept/b", "1")
        server.publish("kept/a", "2")
        server.publish("kept/b", "3")
        tick_until(lambda: len(source.events) == 3, server, source)
        assert source.data == ["1", "2", "3"]
        assert source.opened == 2


def test_a_gap_is_an_event(server: Feed) -> None:
    with opened(server, "topics=a") as source:
        server.publish("a", "1")
        tick_until(lambda: source.events, server, source)
        server.streams[0].close()
        server.publish("a", "2")
        tick_until(lambda: source.opened == 2 and server.streams, server, source)
        server.publish("a", "3")
        tick_until(lambda: len(source.events) == 3, server, source)
        assert [(event.event, event.data) for event in source.events] == [
            ("message", "1"),
            ("gap", ""),
            ("message", "3"),
        ]
    with opened(server, "topics=kept/a", last_event_id="nonsense") as source:
        tick_until(lambda: source.events, server, source)
        assert source.events[0].event == "gap"


@pytest.mark.parametrize("seed", range(2))
def test_events_through_random_disconnects(server: Feed, seed: int) -> None:
    choose = random.Random(seed)
    with opened(server, "topics=kept/a,kept/b") as one, opened(server, "topics=kept/%2B") as two:
        count = cuts = 0
        while count < 3000:
            for _ in range(choose.randrange(1, 40)):
                server.publish(f"kept/{choose.choice('ab')}", str(count))
                count += 1
            for writer in server.streams:
                if choose.random() < 0.05:
                    cuts += 1
                    writer.close()
            for ticker in (server, one, two):
                if choose.random() < 0.7:
                    ticker.tick(choose.choice((0, 0.001)))
        server.publish("kept/a", "end")
        tick_until(lambda: "end" in one.data and "end" in two.data, server, one, two)
        assert cuts > 5
        assert one.data == two.data == [*map(str, range(count)), "end"]
