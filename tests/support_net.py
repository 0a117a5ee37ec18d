"""The same test code over real sockets and in a World: what `net` can do, twice."""

from __future__ import annotations

import select
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from pyhv import HvWebServer, HvWebSocketClient, WebSocketChannel
from pyhv.testing import Link, World
from support import HOST, RecordingClient, port_of, tick_until, wait_until

T = TypeVar("T")
S = TypeVar("S", bound=HvWebServer)
C = TypeVar("C", bound=HvWebSocketClient)


class Net(Protocol):
    """What the tests need of either."""

    def own(self, what: Any) -> None:
        """Takes an object that the test itself starts or connects."""

    def serve(self, server: S, **settings: Any) -> S: ...

    def connect(self, client: C, server: HvWebServer, path: str = "/", **options: Any) -> C: ...

    def until(self, condition: Callable[[], T]) -> T:
        """Ticks everybody until it is true."""

    def wait(self, condition: Callable[[], T]) -> T:
        """Lets time pass without a tick until it is true."""

    def lose(self, client: HvWebSocketClient) -> None:
        """The connection is lost."""

    def block(self, client: HvWebSocketClient) -> None:
        """What the server sends does not get through, until `unblock`."""

    def unblock(self, client: HvWebSocketClient) -> None: ...

    def close(self) -> None: ...


def opened(net: Net, server: HvWebServer, path: str = "/", **options: Any) -> tuple[RecordingClient, WebSocketChannel]:
    """A client that is open, and its channel, whose `on_ws_open` has run."""
    before = set(server.channels)
    client = net.connect(RecordingClient(), server, path, **options)
    net.until(lambda: (client.is_connected or client.error) and (client.error or set(server.channels) - before))
    assert client.error is None, client.error
    (channel,) = set(server.channels) - before
    return client, channel


class MemoryNet:
    """A World."""

    def __init__(self) -> None:
        self.world = World(seed=7)

    def own(self, what: Any) -> None:
        self.world.adopt(what)

    def serve(self, server: S, **settings: Any) -> S:
        return self.world.serve(server, **settings)

    def connect(self, client: C, server: HvWebServer, path: str = "/", **options: Any) -> C:
        return self.world.connect(client, server, path=path, **options)

    def until(self, condition: Callable[[], T]) -> T:
        return self.world.until(condition)

    def wait(self, condition: Callable[[], T]) -> T:
        for _ in range(10_000):
            if value := condition():
                return value
            self.world.clock.advance(0.01)
        raise AssertionError("not within 100 s of the World's time")

    def lose(self, client: HvWebSocketClient) -> None:
        self.world.link(client).cut()

    def block(self, client: HvWebSocketClient) -> None:
        self.world.link(client).stall(3.0, "down")

    def unblock(self, client: HvWebSocketClient) -> None:
        # It ends by itself, while the test waits for what comes then.
        assert isinstance(self.world.link(client), Link)

    def close(self) -> None:
        self.world.close()


class RealNet:
    """Sockets of loopback, with a relay between each client and its server."""

    def __init__(self) -> None:
        self._tickers: list[Any] = []
        self._servers: list[HvWebServer] = []
        self._relays: dict[int, Relay] = {}

    def own(self, what: Any) -> None:
        self._tickers.append(what)
        if isinstance(what, HvWebServer):
            self._servers.append(what)

    def serve(self, server: S, **settings: Any) -> S:
        server.start(0, **settings)
        self.own(server)
        return server

    def connect(self, client: C, server: HvWebServer, path: str = "/", **options: Any) -> C:
        relay = Relay(port_of(server))
        previous = self._relays.pop(id(client), None)
        if previous is not None:
            previous.close()
        self._relays[id(client)] = relay
        client.connect(f"ws://{HOST}:{relay.port}{path}", **options)
        if client not in self._tickers:
            self._tickers.append(client)
        return client

    def until(self, condition: Callable[[], T]) -> T:
        # Those that nobody has started may not be ticked.
        def run() -> list[Any]:
            return [t for t in self._tickers if not isinstance(t, HvWebServer) or t.is_running]

        class All:
            def tick(self, timeout: float | None = 0.0) -> int:
                return sum(ticker.tick(timeout) for ticker in run())

        return tick_until(condition, All())

    def wait(self, condition: Callable[[], T]) -> T:
        return wait_until(condition)

    def lose(self, client: HvWebSocketClient) -> None:
        self._relays[id(client)].cut()

    def block(self, client: HvWebSocketClient) -> None:
        self._relays[id(client)].blocked = True

    def unblock(self, client: HvWebSocketClient) -> None:
        self._relays[id(client)].blocked = False

    def close(self) -> None:
        for server in self._servers:
            server.stop(0)
        for relay in self._relays.values():
            relay.close()


class Relay:
    """Passes the bytes of one connection on, on a thread of its own, until it is cut."""

    def __init__(self, to: int) -> None:
        self._listener = socket.create_server((HOST, 0))
        # Small ones, so that a slow client is noticed soon.
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 14)
        self._to = to
        self.port: int = self._listener.getsockname()[1]
        self.blocked = False
        self._cut = threading.Event()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def cut(self) -> None:
        self._cut.set()
        self._thread.join(10)

    def close(self) -> None:
        self._closed.set()
        self._thread.join(10)
        self._listener.close()

    def _run(self) -> None:
        while not select.select([self._listener], [], [], 0.01)[0]:
            if self._closed.is_set():
                return
        near, _ = self._listener.accept()
        far = socket.socket()
        far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
        far.connect((HOST, self._to))
        with near, far:
            for one in (near, far):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                self._pass_on(near, far)
            except OSError:
                return  # one end has reset it: the other hears of it by the end of the with
            finally:
                if self._cut.is_set():
                    for one in (near, far):
                        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _pass_on(self, near: socket.socket, far: socket.socket) -> None:
        reading = {near: far, far: near}
        while reading and not self._closed.is_set() and not self._cut.is_set():
            wanted = [one for one in reading if one is near or not self.blocked]
            for one in select.select(wanted, [], [], 0.005)[0]:
                data = one.recv(1 << 16)
                if data:
                    reading[one].sendall(data)
                else:
                    reading.pop(one).shutdown(socket.SHUT_WR)
