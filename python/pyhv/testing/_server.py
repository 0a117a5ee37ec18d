"""The in-memory stand-in for `_native.Server`, under a program's own `HvWebServer`."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from io import UnsupportedOperation
from typing import TYPE_CHECKING, Any, cast

from pyhv import HttpRequest, StreamWriter, WebSocketChannel, _native
from pyhv.testing._channel import MemoryChannel
from pyhv.testing._endpoint import Endpoint, Network
from pyhv.testing._handshake import Answer, Attempt, UpgradeRequest, foreign_origin, plain
from pyhv.testing._http import WorldHttp
from pyhv.testing._inbox import Event, Latest, Ticker
from pyhv.testing._topics import Rules, Topics, check_topic
from pyhv.testing._wire import (
    BINARY,
    TEXT,
    check_budget,
    check_key,
    check_message,
    check_server,
    check_stop,
    check_timeout,
)
from pyhv.testing.clock import SECOND, nanoseconds
from pyhv.topics import SUBPROTOCOL, may_ask

if TYPE_CHECKING:
    from typing import TypeAlias

    from pyhv.server import HvWebServer

    _Place: TypeAlias = "int | list[int]"
    _Leave: TypeAlias = "tuple[float, int, str, float]"

#: How long the last events may take after everything was dropped.
_ABORT_GRACE = SECOND


class ServerCore:
    """What stands in for the native side of one server: crates/python/src/server.rs."""

    def __init__(self, network: Network, server: HvWebServer) -> None:
        self.network = network
        self.ticker = Ticker(network.clock)
        self.http = WorldHttp(server, self)
        self._server = server
        self._run: _Run | None = None
        self._started_once = False
        self._stop_with: _Leave | None = None
        self._latest: Latest | None = None
        self._rules = Rules()
        self._runs = 0

    @property
    def running(self) -> _Run | None:
        return self._run

    @property
    def has_started(self) -> bool:
        """Whether it may be ticked."""
        return self._started_once

    def start(
        self,
        host: str,
        port: _Place,
        tls: tuple[_Place, Any, Any] | None,
        options: dict[str, Any],
        joins: dict[str, Any],
    ) -> None:
        self.network.check_thread()
        if joins["url"] is not None:
            raise ValueError("backplane=: a World has no other processes; topics are those of one server there")
        check_server(host, port, options)
        assert isinstance(port, int)
        if self._run is not None:
            raise RuntimeError(f"the server runs already, on {host}:{self._run.port}: stop() it first")
        tls_port = None if tls is None else tls[0]
        if isinstance(tls_port, list):
            raise ValueError("tls_sockets= is for real servers: in a World give a port")
        if tls_port is not None and not 0 <= tls_port <= 65535:
            raise ValueError(f"tls_port={tls_port} is not between 0 and 65535")
        ports = [port] if tls_port is None else [port, tls_port]
        for number in ports:
            if number in self.network.listeners:
                text = f"cannot listen on {host}:{number}: {os.strerror(errno.EADDRINUSE)}"
                raise OSError(errno.EADDRINUSE, text)
        self._runs += 1
        endpoint = Endpoint(self.network, options)
        self._run = run = _Run(endpoint, Topics(endpoint, self._rules, self._runs))
        run.port = port or self.network.free_port()
        self.network.listeners[run.port] = (run, False)
        if tls_port is not None:
            run.tls_port = tls_port or self.network.free_port()
            self.network.listeners[run.tls_port] = (run, True)
        self._started_once = True
        self._stop_with = None

    def tick(self, timeout: float | None, max_ms: float | None, max_events: int | None) -> int:
        check_budget(max_ms, max_events)
        self.network.check_thread()
        clock = self.network.clock
        with self.ticker.turn("tick()"):
            run = self._run
            if run is None:
                if self._started_once:
                    return 0
                raise RuntimeError("tick() before start(): the server does not run")
            endpoint = run.endpoint
            endpoint.ticks += 1
            deadline = None if timeout is None else clock.ns + nanoseconds("timeout", check_timeout(timeout))
            try:
                clock.run_until(clock.ns)
                if timeout != 0:
                    self.ticker.wait(endpoint, deadline, lambda: self._stop_with is not None)
                with self.network.cork.hold():
                    ran = 0
                    if self.ticker.is_ready(endpoint):
                        ran = self.ticker.run(endpoint, self._dispatch, max_ms, max_events, self._latest)
                    self._call("on_tick", self._server.on_tick)
            finally:
                # Also when an exception leaves the tick.
                if self._stop_with is not None:
                    self._stop_now(self._stop_with)
        return ran

    @contextmanager
    def busy(self, what: str) -> Iterator[None]:
        """While it lasts callbacks run, though not of events: as inside a tick."""
        self.network.check_thread()
        with self.ticker.turn(what):
            try:
                with self.network.cork.hold():
                    yield
            finally:
                if self._stop_with is not None:
                    self._stop_now(self._stop_with)

    def stop(self, timeout: float, code: int, reason: str, spread: float) -> None:
        leave = check_stop(timeout, code, reason, spread)
        if self._run is None:
            return
        self.network.check_thread()
        if self.ticker.is_inside:
            self._stop_with = leave
            return
        with self.ticker.turn("stop()"):
            self._stop_now(leave)

    def drain(self, accept: bool) -> None:
        self.network.check_thread()
        if self._run is not None:
            self._run.endpoint.draining = True
            if not accept:
                self._run.close_doors(self.network)

    def discard(self) -> None:
        """Ends without callbacks."""
        if self._run is not None:
            self._run.endpoint.discard()
            self._close_run(self._run)

    def set_latest(self, function: Callable[[Any, Any], Any] | None) -> None:
        def key(event: Event) -> Any:
            # One whose open waits too has no object yet: its messages all come, once.
            channel = None if event.conn is None else event.conn.channel
            return None if channel is None or function is None else self._key(function, channel, event.value)

        def skipped(event: Event) -> None:
            if event.conn is not None:
                event.conn.channel._skipped += 1

        self._latest = None if function is None else Latest(key, skipped)

    def _key(self, function: Callable[[Any, Any], Any], *arguments: Any) -> Any:
        try:
            key = function(*arguments)
            hash(key)
        except Exception as exc:
            # It stands alone.
            self._server._callback_failed("latest", exc)
            return None
        return key

    def broadcast(self, msg: Any, exclude: Any, key: Any) -> None:
        check_key(key)
        payload = check_message(msg)
        if exclude is not None and type(exclude) is not MemoryChannel:
            raise TypeError(f"'{type(exclude).__name__}' object is not an instance of 'WebSocketChannel'")
        if self._run is None:
            return
        self.network.check_thread()
        excluded = None if exclude is None else exclude._conn
        for conn in list(self._run.endpoint.connections):
            if conn is not excluded:
                conn.broadcast(TEXT if isinstance(msg, str) else BINARY, payload, key)

    def publish(self, topic: str, msg: Any, exclude: Any, key: str | bytes | None) -> str | None:
        check_message(msg)
        check_key(key)
        if self._run is None:
            return None
        self.network.check_thread()
        return self._run.topics.publish(topic, msg, exclude, key)

    def keep(self, topic: str, limits: tuple[int, float | None, int] | None) -> None:
        limit = float("inf") if self._run is None else self._run.endpoint.settings["max_topic_length"]
        check_topic(topic, limit, pattern=True)
        self._rules.set(topic, limits)
        if self._run is not None:
            self._run.topics.rules_changed()

    def channels(self) -> list[MemoryChannel]:
        return [] if self._run is None else list(self._run.channels)

    def pending(self) -> int:
        return 0 if self._run is None else self.ticker.pending(self._run.endpoint)

    # Inside

    def _call(
        self, name: str, callback: Callable[..., object], *args: Any, failed: Callable[[], None] | None = None
    ) -> None:
        try:
            callback(*args)
        except Exception as exc:
            if failed is not None:
                failed()
            self._server._callback_failed(name, exc)

    def _dispatch(self, event: Event) -> None:
        server, run, conn = self._server, self._run, event.conn
        assert run is not None, "events are run while the server runs"
        if conn is not None:
            self._dispatch_channel(event, run)
        elif event.kind == "upgrade":
            request: UpgradeRequest = event.value
            try:
                self._call("on_ws_upgrade", server._on_upgrade, cast(HttpRequest, request), failed=request.fail)
            except BaseException:
                # Ctrl-C leaves the tick, and the client gets an answer all the same.
                request.fail()
                raise
        elif event.kind == "presence":
            name = "on_join" if event.value[2] else "on_leave"
            self._call(name, server._on_presence, *event.value)
        else:
            server._warn(event.value)

    def _dispatch_channel(self, event: Event, run: _Run) -> None:
        server, conn = self._server, event.conn
        assert conn is not None, "the caller has looked"

        def failed() -> None:
            conn.close(1011, "internal error")

        if event.kind == "open":
            conn.channel = MemoryChannel(conn, run.topics)
            run.channels.append(conn.channel)
            conn.announced = True
            self._call("on_ws_open", server.on_ws_open, conn.channel, conn.handshake.url, failed=failed)
        elif event.kind == "message":
            if not conn.is_closed_by_program and not self._asked(conn.channel, event.value, failed):
                self._call("on_ws_message", server.on_ws_message, conn.channel, event.value, failed=failed)
        elif event.kind == "drain":
            if conn.channel in run.channels:
                self._call("on_ws_drain", server.on_ws_drain, conn.channel, failed=failed)
        else:
            run.channels.remove(conn.channel)
            conn.delivered_close()
            conn.channel._ended = True
            run.topics.ended(conn.channel)
            self._call("on_ws_close", server.on_ws_close, conn.channel)

    def _asked(self, channel: MemoryChannel, msg: str | bytes, failed: Callable[[], None]) -> bool:
        """Whether a message was of the convention of docs/topics.md."""
        if channel.subprotocol != SUBPROTOCOL or not may_ask(msg):
            return False
        asked = True  # also when a callback of it raises

        def ask() -> None:
            nonlocal asked
            asked = self._server._on_topics(cast(WebSocketChannel, channel), cast(str, msg))

        self._call("a callback for topics", ask, failed=failed)
        return asked

    def _stop_now(self, leave: _Leave) -> None:
        """The graceful stop, with the turn held."""
        timeout, code, reason, spread = leave
        self._stop_with = None
        run = self._run
        if run is None:
            return
        clock, endpoint = self.network.clock, run.endpoint
        run.close_doors(self.network)
        aborted = timeout == 0
        deadline = clock.ns + (_ABORT_GRACE if aborted else round(timeout * SECOND))
        if aborted:
            endpoint.abort()
        else:
            endpoint.stop(code, reason, round(spread * SECOND))
        interrupted: BaseException | None = None
        while True:
            try:
                clock.run_until(clock.ns)
                with self.network.cork.hold():
                    self.ticker.run(endpoint, self._dispatch, None, None, self._latest)
                if endpoint.is_idle and not self.ticker.is_ready(endpoint):
                    break
                self.ticker.wait(endpoint, deadline, lambda: endpoint.is_idle)
            except BaseException as exc:
                # Ctrl-C while stopping: no more waiting, but the close callbacks still run, then it goes on up.
                interrupted = interrupted or exc
                deadline = deadline if aborted else clock.ns
            if clock.ns >= deadline:
                if aborted and not self.ticker.is_ready(endpoint):
                    break
                if not aborted:
                    aborted = True
                    deadline = clock.ns + _ABORT_GRACE
                    endpoint.abort()
        endpoint.discard()
        self._close_run(run)
        if interrupted is not None:
            raise interrupted

    def _close_run(self, run: _Run) -> None:
        run.close_doors(self.network)
        self.ticker.reset()
        self._run = None
        self.http.close()


class _Run:
    """From start to stop; what clients meet."""

    def __init__(self, endpoint: Endpoint, topics: Topics) -> None:
        self.endpoint = endpoint
        self.topics = topics
        self.port = 0
        self.tls_port: int | None = None
        #: Between their `on_ws_open` and their `on_ws_close`.
        self.channels: list[MemoryChannel] = []
        self._upgrades: tuple[float, int] | None = None  # that may still happen, and when that was worked out

    def close_doors(self, network: Network) -> None:
        for port in (self.port, self.tls_port):
            if port is not None and network.listeners.get(port, (None,))[0] is self:
                del network.listeners[port]

    def seat(self, address: str) -> str | None:
        """Names the limit that one more connection from there is over."""
        endpoint = self.endpoint
        here = [conn.handshake.remote[0] for conn in endpoint.connections] + [a.remote[0] for a in endpoint.attempts]
        if len(here) >= endpoint.settings["max_connections"]:
            return "max_connections"
        limit = endpoint.settings["max_connections_per_address"]
        if limit is not None and here.count(address) >= limit:
            return "max_connections_per_address"
        return None

    def _may_upgrade(self) -> bool:
        """A bucket of one second's worth, filled evenly."""
        rate = self.endpoint.settings["max_upgrades_per_second"]
        if rate is None:
            return True
        now, full = self.endpoint.clock.ns, max(rate, 1.0)
        left = full
        if self._upgrades is not None:
            left = min(full, self._upgrades[0] + rate * (now - self._upgrades[1]) / SECOND)
        may = left >= 1.0
        self._upgrades = (left - 1.0 if may else left, now)
        return bool(may)

    def asked(self, attempt: Attempt) -> None:
        """A handshake has come."""
        endpoint, settings = self.endpoint, self.endpoint.settings
        if endpoint.stopping:
            attempt.answer(plain(503, "503 Service Unavailable\n"), None)
            return
        origin = foreign_origin(attempt, settings["allowed_origins"])
        if origin is not None:
            endpoint.complain(
                "allowed_origins",
                f'WebSocket of {attempt.peer} refused with 403: its page\'s origin "{origin}" is not in '
                "allowed_origins",
            )
            attempt.answer(plain(403, "403 Forbidden: this origin may not connect\n"), None)
            return
        if not self._may_upgrade():
            endpoint.complain(
                "max_upgrades_per_second",
                f"WebSocket of {attempt.peer} refused with 503: the limit is "
                f"max_upgrades_per_second={settings['max_upgrades_per_second']:g}",
            )
            busy = plain(503, "503 Service Unavailable\n")
            busy.headers.append(("Retry-After", "1"))
            attempt.answer(busy, None)
            return
        offered = attempt.target.protocols
        subprotocol = next((name for name in settings["subprotocols"] if name in offered), None)
        if settings["ask_upgrade"]:
            attempt.wait_for_answer()
            endpoint.inbox.push(Event("upgrade", value=UpgradeRequest(attempt, subprotocol)))
        else:
            attempt.answer(Answer(HTTPStatus.SWITCHING_PROTOCOLS), subprotocol)


class MemoryServer(_native.Server):
    """Goes between `HvWebServer` and the native base of an object that a World has adopted.

    What is not here stays the native side's: routes, and all that answers HTTP, which `World.http` asks.
    """

    __slots__ = ()
    _pyhv_core: ServerCore

    def tick(self, timeout: float | None = 0.0, *, max_ms: float | None = None, max_events: int | None = None) -> int:
        """As `HvWebServer.tick`; a timeout passes on the World's clock."""
        return self._pyhv_core.tick(timeout, max_ms, max_events)

    @property
    def pending(self) -> int:
        """How many events wait for a tick."""
        return self._pyhv_core.pending()

    def stop(self, timeout: float = 5.0, *, code: int = 1001, reason: str = "", spread: float = 0.0) -> None:
        """As `HvWebServer.stop`, in the World's time."""
        self._pyhv_core.stop(timeout, code, reason, spread)

    def drain(self, *, accept: bool = True) -> None:
        """As `HvWebServer.drain`."""
        self._pyhv_core.drain(accept)

    @property
    def is_draining(self) -> bool:
        """Whether `drain()` was called since `start()`."""
        run = self._pyhv_core.running
        return run is not None and run.endpoint.draining

    def fileno(self) -> int:
        """Raises UnsupportedOperation: in memory there is no descriptor."""
        raise UnsupportedOperation("fileno: a server in a World has no descriptor")

    def _stats(self) -> dict[str, Any]:
        """Raises UnsupportedOperation: the native side does not see what passes in memory."""
        raise UnsupportedOperation("stats: a server in a World counts nothing")

    @property
    def backplane_state(self) -> None:
        """As `HvWebServer.backplane_state`: there is none in the World."""
        return None

    @property
    def backplane_dropped(self) -> int:
        """As `HvWebServer.backplane_dropped`."""
        return 0

    def broadcast(self, msg: Any, exclude: WebSocketChannel | None = None, *, key: str | bytes | None = None) -> None:
        """As `HvWebServer.broadcast`."""
        self._pyhv_core.broadcast(msg, exclude, key)

    def publish(
        self,
        topic: str,
        msg: Any,
        exclude: WebSocketChannel | None = None,
        *,
        key: str | bytes | None = None,
    ) -> str | None:
        """As `HvWebServer.publish`."""
        return self._pyhv_core.publish(topic, msg, exclude, key)

    def subscribers(self, topic: str) -> list[WebSocketChannel | StreamWriter]:
        """The channels that get what is published to a topic; streams are not in the World."""
        run = self._pyhv_core.running
        return [] if run is None else cast("list[WebSocketChannel | StreamWriter]", run.topics.subscribers(topic))

    def subscriber_count(self, topic: str) -> int:
        """How many there are."""
        return len(self.subscribers(topic))

    def _members(self, topic: str) -> list[str]:
        run = self._pyhv_core.running
        return [] if run is None else run.topics.members(topic)

    def _keep(self, topic: str, limits: tuple[int, float | None, int] | None = None) -> None:
        self._pyhv_core.keep(topic, limits)

    @property
    def channels(self) -> list[WebSocketChannel]:
        """The channels between their `on_ws_open` and their `on_ws_close`."""
        return cast("list[WebSocketChannel]", self._pyhv_core.channels())

    @property
    def is_running(self) -> bool:
        """Whether clients of the World can connect."""
        return self._pyhv_core.running is not None

    @property
    def port(self) -> int | None:
        """The port in the World; None when it does not run."""
        run = self._pyhv_core.running
        return None if run is None else run.port

    @property
    def tls_port(self) -> int | None:
        """The port for wss in the World."""
        run = self._pyhv_core.running
        return None if run is None else run.tls_port

    @property
    def refusals(self) -> dict[str, int]:
        """How often each limit was reached since `start`."""
        run = self._pyhv_core.running
        return {} if run is None else {**self._pyhv_core.http.refusals(), **run.endpoint.refusals}

    def _set_latest(self, function: Callable[[Any, Any], Any] | None) -> None:
        self._pyhv_core.set_latest(function)

    def _start(
        self,
        host: str,
        port: _Place,
        tls: tuple[_Place, Any, Any] | None,
        reuse_port: bool,
        options: dict[str, Any],
        joins: dict[str, Any] | None = None,
    ) -> None:
        self._pyhv_core.start(host, port, tls, options, joins or {"url": None})
