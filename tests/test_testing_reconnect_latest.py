"""What a World keeps of `reconnect=` and `latest=`, side by side with real sockets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from pyhv import ConnectionRefused, Reconnect, WebSocketChannel
from pyhv.testing import Link, World
from support import RecordingClient, RecordingServer
from support_net import MemoryNet, Net, RealNet


@pytest.fixture(params=[RealNet, MemoryNet], ids=["real", "memory"])
def net(request: pytest.FixtureRequest) -> Iterator[Net]:
    made: Net = request.param()
    try:
        yield made
    finally:
        made.close()


class Returning(RecordingClient):
    def on_close(self) -> None:
        self.record.add("close", None, (self.close_code, getattr(self, "is_reconnecting", None)))

    def on_reconnecting(self, attempt: int, delay: float) -> None:
        self.record.add("reconnecting", None, attempt)


def happened(client: RecordingClient) -> list[tuple[str, Any]]:
    return [(call.what, call.value if call.what != "error" else type(call.value)) for call in client.record.calls]


def direct(net: Net, client: Returning, server: RecordingServer, **options: Any) -> Returning:
    """Without a relay, whose port would be another one after a restart."""
    net.own(client)
    client.connect(f"ws://127.0.0.1:{server.port}/", **options)
    net.until(lambda: client.is_connected and server.channels)
    return client


def test_a_client_comes_back_with_what_it_has_kept(net: Net) -> None:
    server = net.serve(RecordingServer())
    policy = Reconnect(first=0.02, jitter=0.0, queue_bytes=100)
    client = direct(net, Returning(), server, reconnect=policy)
    server.channels[0].close(4000)
    net.until(lambda: client.record.count("reconnecting"))
    assert client.is_reconnecting
    assert client.is_connecting
    assert client.close_code is None
    assert client.remote_address is None
    assert client.send("kept") is True
    assert client.send("part", fin=False) is False
    assert client.send("x" * 100) is False
    assert client.buffered_amount == len("kept") + 14
    net.until(lambda: server.record.values("message"))
    assert client.buffered_amount == 0
    assert happened(client) == [("open", None), ("close", (4000, True)), ("reconnecting", 1), ("open", None)]
    assert server.record.values("message") == ["kept"]
    client.close()
    net.until(lambda: client.close_code == 1000)
    assert not client.is_reconnecting


@pytest.mark.parametrize("code", [1000, 1008, 3000, 3003])
def test_a_client_does_not_come_back_where_it_is_not_wanted(net: Net, code: int) -> None:
    server = net.serve(RecordingServer())
    client = direct(net, Returning(), server, reconnect=True)
    server.channels[0].close(code)
    net.until(lambda: client.close_code)
    assert happened(client)[-1] == ("close", (code, False))


def test_attempts_have_an_end(net: Net) -> None:
    server = net.serve(RecordingServer())
    policy = Reconnect(first=0.01, jitter=0.0, max_attempts=2, min_uptime=0.0)
    client = direct(net, Returning(), server, reconnect=policy)
    server.stop(1.0)
    net.until(lambda: client.close_code)
    assert happened(client) == [
        ("open", None),
        ("close", (1001, True)),
        ("reconnecting", 1),
        ("error", ConnectionRefused),
        ("reconnecting", 2),
        ("error", ConnectionRefused),
        ("close", (1006, False)),
    ]


@pytest.mark.parametrize(("status", "again"), [(403, False), (503, True), (429, True)])
def test_which_refusals_are_final(net: Net, status: int, again: bool) -> None:
    class Refusing(RecordingServer):
        def on_ws_upgrade(self, request: Any) -> int:
            self.record.add("upgrade")
            return status if self.record.count("upgrade") < 3 else 101

    class Late(Refusing):
        def on_ws_upgrade(self, request: Any) -> Any:
            answer = super().on_ws_upgrade(request)
            return None if answer == 101 else answer

    server = net.serve(Late())
    client = Returning()
    net.own(client)
    client.connect(f"ws://127.0.0.1:{server.port}/", reconnect=Reconnect(first=0.01))
    net.until(lambda: client.is_connected or client.close_code)
    assert client.is_connected is again
    if again:
        assert client.error is None
        assert [what for what, _ in happened(client)] == ["error", "reconnecting"] * 2 + ["open"]
    else:
        assert [what for what, _ in happened(client)] == ["error", "close"]


def test_close_and_connect_in_callbacks_take_the_place_of_the_next_attempt(net: Net) -> None:
    class Changing(Returning):
        def on_close(self) -> None:
            super().on_close()
            if self.record.count("close") == 1:
                self.connect(f"ws://127.0.0.1:{server.port}/second", reconnect=True)
            else:
                self.close()

    server = net.serve(RecordingServer())
    client = direct(net, Changing(), server, reconnect=Reconnect(first=60.0, max_delay=60.0))
    server.channels[0].close(4000)
    net.until(lambda: server.record.count("open") == 2 and client.is_connected)
    server.channels[0].close(4001)
    net.until(lambda: client.close_code == 4001 and not client.is_reconnecting)
    assert [what for what, _ in happened(client)] == ["open", "close", "open", "close"]


def test_what_reconnect_cannot_be_raises_the_same() -> None:
    raised = []
    for net in (RealNet(), MemoryNet()):
        client = Returning()
        net.own(client)
        with pytest.raises(ValueError, match="queue_bytes=10 is more than max_buffered=5") as failed:
            client.connect("ws://127.0.0.1:9/", max_buffered=5, reconnect=Reconnect(queue_bytes=10))
        raised.append(str(failed.value))
        net.close()
    assert raised[0] == raised[1]


def test_only_the_newest_of_each_key_comes(net: Net, caplog: pytest.LogCaptureFixture) -> None:
    def key(channel: WebSocketChannel, msg: str | bytes) -> Any:
        if msg == "bad":
            raise LookupError(msg)
        return None if isinstance(msg, bytes) else msg[0]

    settings: dict[str, Any] = {"latest": key}
    server = net.serve(RecordingServer(), **settings)
    client = net.connect(RecordingClient(), server)
    net.until(lambda: server.channels and client.is_connected)
    (channel,) = server.channels
    for message in ("a1", "b1", b"a", "a2", b"a", "bad", "a3"):
        client.send(message)
    net.wait(lambda: server.pending == 7)
    assert server.tick() == 5
    assert server.record.values("message") == ["b1", b"a", b"a", "bad", "a3"]
    assert channel.skipped == 2
    assert "latest of RecordingServer raised" in caplog.text
    # With a budget what waits longer gives way too.
    server.record.calls.clear()
    for message in ("x0", "x1", b"1", b"2", b"3", "c1"):
        client.send(message)
    net.wait(lambda: server.pending == 6)
    assert server.tick(max_events=1) == 1
    client.send("c2")
    net.wait(lambda: server.pending >= 5)
    while server.pending:
        server.tick(max_events=1)
    assert server.record.values("message") == ["x1", b"1", b"2", b"3", "c2"]
    assert channel.skipped == 4


def test_latest_of_a_client(net: Net) -> None:
    server = net.serve(RecordingServer())
    options: dict[str, Any] = {"latest": lambda msg: msg[:1]}
    client = net.connect(RecordingClient(), server, **options)
    net.until(lambda: server.channels and client.is_connected)
    for message in ("a1", "b1", "a2"):
        server.broadcast(message)
    net.wait(lambda: client.pending == 3)
    assert client.tick() == 2
    assert client.received == ["b1", "a2"]
    assert client.skipped == 1


def test_delays_are_the_worlds() -> None:
    def delays(seed: int) -> list[float]:
        with World(seed=seed, fps=1000) as world:
            server = world.serve(RecordingServer(), 9000)
            client = Returning()
            world.adopt(client, link=Link())
            client.connect("ws://127.0.0.1:9000/", reconnect=True)
            world.until(lambda: client.is_connected)
            server.stop(0)
            found: list[float] = []
            while len(found) < 7:
                world.until(lambda: client.record.count("reconnecting") > len(found))
                found.append(world.now)
            server.start(9000)
            world.until(lambda: client.is_connected)
            return [*found, world.now]

    first = delays(1)
    assert delays(1) == first
    assert delays(2) != first
    assert first[-1] > 1.0
