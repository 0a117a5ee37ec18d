"""The in-memory stand-in for `_native.WebSocketClient`, under a program's own `HvWebSocketClient`."""

from __future__ import annotations

from enum import Enum
from io import UnsupportedOperation
from typing import TYPE_CHECKING, Any, cast

from pyhv import _native
from pyhv.errors import ConnectError
from pyhv.http import Headers
from pyhv.opcode import WsOpcode
from pyhv.testing._channel import latency, send
from pyhv.testing._connection import Connection
from pyhv.testing._endpoint import Endpoint, Network
from pyhv.testing._handshake import Attempt, Target
from pyhv.testing._inbox import Event, Latest, Ticker
from pyhv.testing._reconnect import Again, after_failure, is_final
from pyhv.testing._wire import (
    BINARY,
    TEXT,
    Sequence,
    check_budget,
    check_client,
    check_close,
    check_message,
    check_opcode,
    check_timeout,
)
from pyhv.testing.clock import SECOND, nanoseconds
from pyhv.topics import SUBPROTOCOL, may_ask

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
        #: There was an attempt before this one.
        self._repeated = False
        #: Until `close()`, or the end for good.
        self._again: Again | None = None
        self._latest: Latest | None = None
        self.skipped = 0

    def connect(self, target: Target, host: str, options: dict[str, Any], policy: dict[str, Any] | None) -> None:
        self.network.check_thread()
        check_client(
            target.url, host, target.port, target.authority, target.path, target.headers, target.protocols, options
        )
        again = None if policy is None else Again(target, policy, options["max_buffered"], self.link._random)
        if self.state in (State.CONNECTING, State.OPEN) and not self.is_reconnecting:
            raise RuntimeError("the client is connected or connecting: close() it, and connect again after on_close")
        self.discard()
        endpoint = self._endpoint = Endpoint(self.network, options)
        self.conn, self.error, self._again = None, None, again
        self._attempt_now(endpoint, target, repeated=False)

    def _attempt_now(self, endpoint: Endpoint, target: Target, *, repeated: bool, delay: int = 0) -> None:
        def failed(error: ConnectError | None, retry_after: int | None) -> None:
            endpoint.inbox.push(Event("failed", value=(error, after_failure(error, retry_after))))

        self.state, self.close_info, self._repeated = State.CONNECTING, None, repeated
        self._attempt = Attempt(endpoint, self.link, target, failed, delay)

    @property
    def is_reconnecting(self) -> bool:
        """Whether it will be connected again, as far as is known."""
        if self.state is State.CONNECTING:
            return self._repeated and self._attempt is not None and not self._attempt.is_cancelled
        return self.state is State.CLOSED and self._again is not None

    @property
    def kept(self) -> int:
        """Bytes that wait for the next connection."""
        return 0 if self._again is None else self._again.bytes

    @property
    def kept_replaced(self) -> int:
        """How many of those that wait for it newer ones have replaced."""
        return 0 if self._again is None else self._again.replaced

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
                return self.ticker.run(
                    endpoint, lambda event: self._dispatch(event, endpoint), max_ms, max_events, self._latest
                )

    def send(self, msg: Any, opcode: Any, fin: Any, key: Any) -> bool:
        if self.state is State.OPEN and self.conn is not None and send(self.conn, msg, opcode, fin, key):
            return True
        return self._keep(msg, check_opcode(opcode, fin, key), fin, key)

    def _keep(self, msg: Any, opcode: int | None, fin: bool, key: str | bytes | None) -> bool:
        """Keeps a message for the next connection, if that was asked for and there is room."""
        # The parts of a message belong on one connection, as do pings.
        if not fin or opcode not in (None, TEXT, BINARY) or self._again is None or not self._again.keeps:
            return False
        self.network.check_thread()
        payload = check_message(msg)
        kind = TEXT if isinstance(msg, str) else BINARY
        Sequence().check(opcode, kind, payload)
        if self.conn is not None and self.state in (State.OPEN, State.CLOSED):
            # It has dropped the message; or this may be the last part of one that was lost.
            dropped = self.state is State.OPEN and self.conn.is_open
            if dropped or self.conn.sequence.open is not None:
                return False
        return self._again.keep(kind if opcode is None else opcode, payload, key)

    def close(self, code: int, reason: str) -> None:
        number = check_close(code, reason)
        self.network.check_thread()
        self._again = None
        if self.state is State.CONNECTING and self._attempt is not None:
            self._attempt.cancel()
        elif self.state is State.OPEN and self.conn is not None:
            self.conn.close(number, reason)

    def set_latest(self, function: Callable[[Any], Any] | None) -> None:
        def key(event: Event) -> Any:
            try:
                name = None if function is None else function(event.value)
                hash(name)
            except Exception as exc:
                # It stands alone.
                self._client._callback_failed("latest", exc)
                return None
            return name

        def skipped(event: Event) -> None:
            self.skipped += 1

        self._latest = None if function is None else Latest(key, skipped)

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

    def _dispatch(self, event: Event, endpoint: Endpoint) -> None:
        client, conn = self._client, event.conn
        if event.kind == "log":
            client._warn(event.value)
        elif endpoint is not self._endpoint:
            # Of one that `connect` has replaced: nobody's.
            return
        elif event.kind == "failed":
            self._failed(endpoint, *event.value)
        elif conn is None:
            raise AssertionError(f"an event of no connection: {event}")
        elif event.kind == "open":
            # close() came after the attempt had succeeded and before this tick.
            closing = self._attempt is None or self._attempt.is_cancelled
            self.state, self.conn = State.OPEN, conn
            if self._again is not None:
                self._again.opened(conn)
            if closing:
                conn.close(1000)
            else:
                self.error = None
                conn.announced = True
                self._call("on_topic_refused", client._on_topics_open, close=conn)
                self._call("on_open", client.on_open, close=conn)
        elif event.kind == "message":
            if not conn.is_closed_by_program:
                if conn.handshake.subprotocol == SUBPROTOCOL and may_ask(event.value):
                    asked = True  # also when a callback of it raises

                    def ask() -> None:
                        nonlocal asked
                        asked = client._on_topics(event.value)

                    self._call("a callback for topics", ask, close=conn)
                    if asked:
                        return
                opcode = WsOpcode.TEXT if isinstance(event.value, str) else WsOpcode.BINARY
                self._call("on_message", client.on_message_frame, event.value, opcode, close=conn)
        elif event.kind == "drain":
            self._call("on_drain", client.on_drain)
        else:
            # After an exception of a callback the server's code is an answer to ours, and says nothing by itself.
            ours = conn.is_closed_by_program
            conn.delivered_close()
            info = conn.close_info or (1006, "")
            following = self._ended(info, 0 if ours or not is_final(*info) else None)
            begun = False
            try:
                self._call("on_close", client.on_close)
            finally:
                # Also when an exception leaves the tick: nothing else would begin the next attempt.
                begun = self._begin(endpoint, following)
            self._reconnecting(following if begun else None)

    def _failed(self, endpoint: Endpoint, error: ConnectError | None, least: int | None) -> None:
        """An attempt has failed; close() may have come after that."""
        closed = self._attempt is not None and self._attempt.is_cancelled
        following = self._ended((1006, ""), least)
        begun = False
        try:
            if error is not None and not closed:
                self.error = error
                self._call("on_error", self._client.on_error, error)
        finally:
            begun = self._begin(endpoint, following)
        if begun:
            self._reconnecting(following)
        elif following is None or self.state is State.CLOSED:
            # Else connect() within on_error has taken the place of the next attempt.
            self._call("on_close", self._client.on_close)

    def _ended(self, info: tuple[int, str], least: int | None) -> tuple[int, int] | None:
        """What follows: number and delay of the next attempt. `least`: its least delay; None: there is to be none."""
        self.state, self.close_info = State.CLOSED, info
        following = None
        if least is not None and self._again is not None:
            following = self._again.next(least, self.network.clock.ns)
        if following is None:
            self._again = None
        return following

    def _begin(self, endpoint: Endpoint, following: tuple[int, int] | None) -> bool:
        """Begins the next attempt, unless the callback before it has called `close` or `connect`."""
        if following is None or self.state is not State.CLOSED or self._again is None:
            return False
        self.conn = None
        self._attempt_now(endpoint, self._again.target, repeated=True, delay=following[1])
        return True

    def _reconnecting(self, following: tuple[int, int] | None) -> None:
        if following is not None:
            callback = cast("Any", self._client).on_reconnecting
            self._call("on_reconnecting", callback, following[0], following[1] / SECOND)


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

    def _stats(self) -> dict[str, Any]:
        """Raises UnsupportedOperation: the native side does not see what passes in memory."""
        raise UnsupportedOperation("stats: a client in a World counts nothing")

    def send(self, msg: Any, opcode: int | None = None, fin: bool = True, *, key: str | bytes | None = None) -> bool:
        """As `HvWebSocketClient.send`."""
        return self._pyhv_core.send(msg, opcode, fin, key)

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
        """Whether `connect` was called and neither `on_open` nor `on_close` has run, or another attempt follows."""
        return self._pyhv_core.state is State.CONNECTING or self._pyhv_core.is_reconnecting

    @property
    def is_reconnecting(self) -> bool:
        """Whether the connection was lost, or an attempt failed, and another attempt follows."""
        return self._pyhv_core.is_reconnecting

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
        """Bytes that wait because the link takes no more, or for the next connection."""
        conn = self._pyhv_core.conn
        return self._pyhv_core.kept + (0 if conn is None else conn.buffered)

    @property
    def replaced(self) -> int:
        """Messages that did not leave because a newer one with the same key took their place."""
        conn = self._pyhv_core.conn
        return self._pyhv_core.kept_replaced + (0 if conn is None else conn.replaced)

    @property
    def skipped(self) -> int:
        """Messages that gave way to a newer one of the same key; see `latest` of `connect`."""
        return self._pyhv_core.skipped

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
        again: dict[str, Any] | None = None,
    ) -> None:
        target = Target(url, port, authority, path, headers, protocols, tls is not None)
        self._pyhv_core.connect(target, host, options, again)

    def _set_latest(self, function: Callable[[Any], Any] | None) -> None:
        self._pyhv_core.set_latest(function)
