"""`latest=`: of the messages that wait for one tick, only the newest of each key."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest

from pyhv import HvWebServer, WebSocketChannel
from support import RawClient, RecordingClient, RecordingServer, connected, port_of, tick_until, url_of, wait_until


def name_of(_channel: WebSocketChannel, msg: str | bytes) -> str | None:
    """The part before the colon; a message without one stands alone."""
    return msg.split(":")[0] if isinstance(msg, str) and ":" in msg else None


def waiting(server: RecordingServer, client: RawClient, *messages: str | bytes) -> None:
    """Sends `messages`, which then wait for a tick."""
    before = server.pending
    for message in messages:
        client.send_text(message) if isinstance(message, str) else client.send_binary(message)
    wait_until(lambda: server.pending >= before + len(messages))


def test_only_the_newest_of_each_key_comes_at_its_own_place() -> None:
    with RecordingServer() as server:
        server.start(0, latest=name_of)
        with RawClient(port_of(server)) as client:
            tick_until(lambda: server.channels, server)
            waiting(server, client, "a:1", "plain", "b:1", "a:2", b"a:bytes", "b:2", "plain", "a:3", "c:1")
            assert server.tick() == 6
            assert server.record.values("message") == ["plain", b"a:bytes", "b:2", "plain", "a:3", "c:1"]
            assert server.channels[0].skipped == 3
            # The next tick begins anew.
            waiting(server, client, "a:4")
            assert server.tick() == 1
            assert server.record.values("message")[-1] == "a:4"
            assert server.channels[0].skipped == 3


def test_each_channel_has_its_own_keys() -> None:
    with RecordingServer() as server:
        server.start(0, latest=name_of)
        with RawClient(port_of(server)) as one, RawClient(port_of(server)) as two:
            tick_until(lambda: len(server.channels) == 2, server)
            waiting(server, one, "a:one", "a:last of one")
            waiting(server, two, "a:two")
            server.tick()
            assert sorted(server.record.values("message")) == ["a:last of one", "a:two"]


def test_what_a_budget_left_over_gives_way_too() -> None:
    with RecordingServer() as server:
        server.start(0, latest=name_of)
        with RawClient(port_of(server)) as client:
            tick_until(lambda: server.channels, server)
            waiting(server, client, "x", "a:1", "b:1", "y")
            assert server.tick(max_events=1) == 1
            waiting(server, client, "a:2", "b:2", "a:3")
            assert server.tick(max_events=2) == 2
            waiting(server, client, "b:3")
            while server.tick(max_events=1):
                pass
            assert server.record.values("message") == ["x", "y", "b:2", "a:3", "b:3"]
            assert server.channels[0].skipped == 3
            assert server.pending == 0


def test_what_has_run_is_not_counted() -> None:
    with RecordingServer() as server:
        server.start(0, latest=name_of)
        with RawClient(port_of(server)) as client:
            tick_until(lambda: server.channels, server)
            waiting(server, client, "a:1", "b:1")
            assert server.tick(max_events=1) == 1
            waiting(server, client, "a:2")
            server.tick()
            assert server.record.values("message") == ["a:1", "b:1", "a:2"]
            assert server.channels[0].skipped == 0


@pytest.mark.parametrize("answer", ["raise", "unhashable"])
def test_a_function_that_fails_is_reported_and_its_message_comes(answer: str, caplog: pytest.LogCaptureFixture) -> None:
    def fails(_channel: WebSocketChannel, msg: str | bytes) -> Any:
        if msg == "bad":
            if answer == "raise":
                raise LookupError("no such sensor")
            return []
        return "key"

    with RecordingServer() as server:
        server.start(0, latest=fails)
        with RawClient(port_of(server)) as client:
            tick_until(lambda: server.channels, server)
            waiting(server, client, "1", "bad", "2")
            server.tick()
            assert server.record.values("message") == ["bad", "2"]
            [error] = server.record.values("error")
            assert isinstance(error, LookupError if answer == "raise" else TypeError)
            assert "latest of RecordingServer raised" in caplog.text
            assert server.channels[0].is_open


def test_a_key_does_not_pass_from_one_channel_to_the_next_with_its_number() -> None:
    with RecordingServer() as server:
        server.start(0, latest=name_of)
        with RawClient(port_of(server)) as first:
            tick_until(lambda: server.channels, server)
            waiting(server, first, "a:1")
        tick_until(lambda: server.record.count("close") == 1, server)
        with RawClient(port_of(server)) as second:
            tick_until(lambda: server.channels, server)
            waiting(server, second, "a:2")
            server.tick()
        assert server.record.values("message") == ["a:1", "a:2"]


def test_the_client_has_it_too() -> None:
    class Talking(RecordingServer):
        def on_ws_message(self, channel: WebSocketChannel, msg: str | bytes) -> None:
            for n in range(10):
                channel.send(f"a:{n}")
                channel.send(f"b:{n}")
            channel.send("over")

    with Talking() as server:
        server.start(0)
        client = connected(server, latest=lambda msg: msg[0] if ":" in msg else None)
        client.send("go")
        tick_until(lambda: client.pending >= 21, server)
        client.tick()
        assert client.received == ["a:9", "b:9", "over"]
        assert client.skipped == 18
        client.close()


def test_a_start_without_it_forgets_the_last_one() -> None:
    with RecordingServer() as server:
        server.start(0, latest=name_of)
        server.stop()
        server.start(0)
        with RawClient(port_of(server)) as client:
            tick_until(lambda: server.channels, server)
            waiting(server, client, "a:1", "a:2")
            server.tick()
        assert server.record.values("message") == ["a:1", "a:2"]


def test_what_is_no_function_is_refused() -> None:
    with pytest.raises(TypeError, match="latest='key': a function"):
        RecordingServer().start(0, latest="key")  # type: ignore[arg-type]
    with RecordingServer() as server:
        server.start(0)
        with pytest.raises(TypeError, match="latest=7: a function"):
            RecordingClient().connect(url_of(server), latest=7)  # type: ignore[arg-type]


def test_a_function_of_the_server_itself_is_collected_with_it() -> None:
    class Own(HvWebServer):
        def newest(self, _channel: WebSocketChannel, _msg: str | bytes) -> None:
            return None

    server = Own()
    server.start(0, latest=server.newest)
    server.stop()
    gone = weakref.ref(server)
    del server
    gc.collect()
    assert gone() is None
