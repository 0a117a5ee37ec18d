"""The in-memory stand-in for `_native.WebSocketClient`, under a program's own `HvWebSocketClient`."""

from __future__ import annotations

from enum import Enum
from io import UnsupportedOperation
from typing import TYPE_CHECKING, Any

from pyhv import _native
from pyhv.errors import ConnectError
from pyhv.http import Headers
from pyhv.opcode import WsOpcode
from pyhv.testing._channel import latency, send
from pyhv.testing._connection import Connection
from pyhv.testing._endpoint import Endpoint, Network
from pyhv.testing._handshake import Attempt, Target
from pyhv.testing._inbox import Event, Ticker
from pyhv.testing._wire import check_budget, check_client, check_close, check_opcode, check_timeout
from pyhv.testing.clock import nanoseconds

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyhv.client import HvWebSocketClient
    from pyhv.testing.link import Link


class State(Enum):
    """What the program knows of the connection."""

    NEW = 0
    CONNECTING = 1
    OPEN = 2
    CLOSED = 3


class ClientCore:
    """What stands in for the native side of one client: crates/python/src/client.rs."""

    def __init__(self, network: Network, client: HvWebSocketClient, link: Link) -> None:
        self.network = network
        self.ticker = Ticker(network.clock)
        self.link = link
        self.state = State.NEW
        #: The connection, if `on_open` has run or is running.
        self.conn: Connection | None = None
        self.close_info: tuple[int, str] | None = None
        self.error: ConnectError | None = None
        self._client = client
        self._endpoint: Endpoint | None = None
        self._attempt: Attempt | None = None

    def connect(self, target: Target, host: str, options: dict[str, Any]) -> None:
        self.network.check_thread()
        check_client(
            target.url, host, target.port, target.authority, target.path, target.headers, target.protocols, options
        )
        if self.state in (State.CONNECTING, State.OPEN):
            raise RuntimeError("the client is connected or connecting: close() it, and connect again after on_close")
        self.discard()
        endpoint = self._endpoint = Endpoint(self.network, options)
        self.state, self.conn, self.close_info, self.error = State.CONNECTING, None, None, None

        def failed(error: ConnectError | None) -> None:
            endpoint.inbox.push(Event("failed", value=error))

        self._attempt = Attempt(endpoint, self.link, target, failed)

    def discard(self) -> None:
        """Ends without callbacks."""
        if self._attempt is not None:
            self._attempt.cancel()
        if self._endpoint is not None:
            self._endpoint.discard()

    def tick(self, timeout: float | None, max_ms: float | None, max_events: int | None) -> int:
        check_budget(max_ms, max_events)
        self.network.check_thread()
        clock = self.network.clock
        with self.ticker.turn("tick()"):
            endpoint = self._endpoint
            if endpoint is None:
                return 0
            endpoint.ticks += 1
            deadline = None if timeout is None else clock.ns + nanoseconds("timeout", check_timeout(timeout))
            clock.run_until(clock.ns)
            if timeout != 0:
                self.ticker.wait(endpoint, deadline, lambda: self.state in (State.CLOSED, State.NEW))
            if not self.ticker.is_ready(endpoint):
                return 0
            with self.network.cork.hold():
                return self.ticker.run(endpoint, self._dispatch, max_ms, max_events)

    def send(self, msg: Any, opcode: Any, fin: Any) -> bool:
        if self.state is State.OPEN and self.conn is not None:
            return send(self.conn, msg, opcode, fin)
        check_opcode(opcode, fin)
        return False

    def close(self, code: int, reason: str) -> None:
        number = check_close(code, reason)
        self.network.check_thread()
        if self.state is State.CONNECTING and self._attempt is not None:
            self._attempt.cancel()
        elif self.state is State.OPEN and self.conn is not None:
            self.conn.close(number, reason)

    def pending(self) -> int:
        return 0 if self._endpoint is None else self.ticker.pending(self._endpoint)

    # Inside

    def _call(self, name: str, callback: Callable[..., object], *args: Any, close: Connection | None = None) -> None:
        try:
            callback(*args)
        except Exception as exc:
            if close is not None:
                close.close(1011, "internal error")
            self._client._callback_failed(name, exc)

    def _dispatch(self, event: Event) -> None:
        client, conn = self._client, event.conn
        if event.kind == "log":
            client._warn(event.value)
        elif event.kind == "failed":
            self.state, self.close_info = State.CLOSED, (1006, "")
            if event.value is not None:
                self.error = event.value
                self._call("on_error", client.on_error, event.value)
            self._call("on_close", client.on_close)
        elif conn is None:
            raise AssertionError(f"an event of no connection: {event}")
        elif event.kind == "open":
            # close() came after the attempt had succeeded and before this tick.
            closing = self._attempt is None or self._attempt.is_cancelled
            self.state, self.conn = State.OPEN, conn
            if closing:
                conn.close(1000)
            else:
                conn.announced = True
                self._call("on_open", client.on_open, close=conn)
        elif event.kind == "message":
            if not conn.is_closed_by_program:
                opcode = WsOpcode.TEXT if isinstance(event.value, str) else WsOpcode.BINARY
                self._call("on_message", client.on_message_frame, event.value, opcode, close=conn)
        elif event.kind == "drain":
            self._call("on_drain", client.on_drain)
        else:
            conn.delivered_close()
            self.state, self.close_info = State.CLOSED, conn.close_info
            self._call("on_close", client.on_close)


class MemoryClient(_native.WebSocketClient):
    """Goes between `HvWebSocketClient` and the native base of an object that a World has adopted."""

    __slots__ = ()
    _pyhv_core: ClientCore

    def tick(self, timeout: float | None = 0.0, *, max_ms: float | None = None, max_events: int | None = None) -> int:
        """As `HvWebSocketClient.tick`; a timeout passes on the World's clock."""
        return self._pyhv_core.tick(timeout, max_ms, max_events)

    @property
    def pending(self) -> int:
        """How many events wait for a tick."""
        return self._pyhv_core.pending()

    def fileno(self) -> int:
        """Raises UnsupportedOperation: in memory there is no descriptor."""
        raise UnsupportedOperation("fileno: a client in a World has no descriptor")

    def send(self, msg: Any, opcode: int | None = None, fin: bool = True) -> bool:
        """As `HvWebSocketClient.send`."""
        return self._pyhv_core.send(msg, opcode, fin)

    def close(self, code: int = 1000, reason: str = "") -> None:
        """As `HvWebSocketClient.close`."""
        self._pyhv_core.close(code, reason)

    @property
    def is_connected(self) -> bool:
        """Whether `send` would queue a message."""
        core = self._pyhv_core
        return core.state is State.OPEN and core.conn is not None and core.conn.is_open

    @property
    def is_connecting(self) -> bool:
        """Whether `connect` was called and neither `on_open` nor `on_close` has run."""
        return self._pyhv_core.state is State.CONNECTING

    @property
    def close_code(self) -> int | None:
        """How the connection ended; None before `on_close`."""
        info = self._pyhv_core.close_info
        return None if info is None else info[0]

    @property
    def close_reason(self) -> str | None:
        """The reason that goes with `close_code`."""
        info = self._pyhv_core.close_info
        return None if info is None else info[1]

    @property
    def error(self) -> ConnectError | None:
        """Why the last `connect` failed."""
        return self._pyhv_core.error

    @property
    def headers(self) -> Headers | None:
        """The headers of the server's handshake response; None before `on_open`."""
        conn = self._pyhv_core.conn
        return None if conn is None else Headers(conn.handshake.headers)

    @property
    def is_compressed(self) -> bool:
        """False: nothing is compressed."""
        return False

    @property
    def subprotocol(self) -> str | None:
        """The subprotocol that the server chose, or None."""
        conn = self._pyhv_core.conn
        return None if conn is None else conn.handshake.subprotocol

    @property
    def remote_address(self) -> tuple[str, int] | None:
        """The server's address in the World; None before `on_open`."""
        conn = self._pyhv_core.conn
        return None if conn is None else conn.handshake.remote

    @property
    def buffered_amount(self) -> int:
        """Bytes that wait because the link takes no more."""
        conn = self._pyhv_core.conn
        return 0 if conn is None else conn.buffered

    @property
    def dropped(self) -> int:
        """Messages dropped by `slow_policy`, since the connection opened."""
        conn = self._pyhv_core.conn
        return 0 if conn is None else conn.dropped

    @property
    def latency(self) -> float | None:
        """Round-trip time of the newest keep-alive ping, in the World's seconds."""
        conn = self._pyhv_core.conn
        return None if conn is None else latency(conn)

    def _connect(
        self,
        url: str,
        host: str,
        port: int,
        authority: str,
        path: str,
        headers: list[tuple[str, str]],
        protocols: list[str],
        tls: dict[str, Any] | None,
        options: dict[str, Any],
    ) -> None:
        target = Target(url, port, authority, path, headers, protocols, tls is not None)
        self._pyhv_core.connect(target, host, options)
