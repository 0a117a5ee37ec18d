"""What a server's run, or a client's attempt and its connection, share; and what gathers a tick's output."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from pyhv.testing._inbox import Event, Inbox
from pyhv.testing._keepalive import Sweep
from pyhv.testing.clock import SECOND, ManualClock

if TYPE_CHECKING:
    from pyhv.testing._connection import Connection
    from pyhv.testing._handshake import Attempt

#: How often one kind of complaint is logged.
_COMPLAIN_EVERY = 10 * SECOND


class Cork:
    """While a tick runs what it sends gathers, and leaves when it ends: crates/engine/src/down.rs."""

    def __init__(self) -> None:
        self._depth = 0
        self._touched: list[Connection] = []

    def touch(self, conn: Connection) -> None:
        if self._depth:
            self._touched.append(conn)
        else:
            conn.flush()

    @contextmanager
    def hold(self) -> Iterator[None]:
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            # Also when a tick inside another one ends: its callbacks may wait for the answer to what they sent.
            touched, self._touched = self._touched, []
            for conn in touched:
                conn.flush()


class Network:
    """What the objects of one World have in common."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.cork = Cork()
        self.thread = threading.get_ident()
        #: Running servers by port, and whether it is a port for TLS.
        self.listeners: dict[int, tuple[Listener, bool]] = {}
        self._port = 40_000
        self._client_port = 50_000
        self.closed = False
        #: What callbacks have raised.
        self.errors: list[Exception] = []

    def free_port(self) -> int:
        self._port += 1
        while self._port in self.listeners:
            self._port += 1
        return self._port

    def client_port(self) -> int:
        self._client_port += 1
        return self._client_port

    def check_thread(self) -> None:
        """A World is deterministic because one thread does everything."""
        if threading.get_ident() != self.thread:
            raise RuntimeError("a World, with all that runs in it, is for the thread that made it")
        if self.closed:
            raise RuntimeError("the World is closed")


class Listener(Protocol):
    """A running server, as clients meet it."""

    endpoint: Endpoint

    def seat(self, address: str) -> str | None: ...
    def asked(self, attempt: Attempt) -> None: ...


class Endpoint:
    """One run of a server, or one connect of a client."""

    def __init__(self, network: Network, settings: dict[str, Any]) -> None:
        self.network = network
        self.clock = network.clock
        self.cork = network.cork
        self.settings = settings
        self.inbox = Inbox(settings["max_pending_bytes"])
        #: Those that are not closed.
        self.connections: list[Connection] = []
        #: Handshakes that a server has begun.
        self.attempts: list[Attempt] = []
        self.draining = False
        self.stopping = False
        #: Code and reason of a stop's close frames.
        self.parting = (1001, "")
        #: A tick waits for something to happen.
        self.waiting = False
        self.ticks = 0
        self.refusals: dict[str, int] = {}
        self._complained: dict[str, tuple[int, int]] = {}  # when logged, and how many were not since
        Sweep(self)

    def complain(self, kind: str, text: str) -> None:
        """Logs what a peer did wrong, each kind once in a while; all are counted."""
        count = self.refusals[kind] = self.refusals.get(kind, 0) + 1
        logged, silenced = self._complained.get(kind, (0, 0))
        if count > 1 and self.clock.ns - logged < _COMPLAIN_EVERY:
            self._complained[kind] = (logged, silenced + 1)
            return
        self._complained[kind] = (self.clock.ns, 0)
        if silenced:
            text += f" ({silenced} more of this kind were not logged)"
        self.inbox.push(Event("log", value=text, size=len(text)))

    def resume(self, paused: list[Connection]) -> None:
        for conn in paused:
            conn.resume()

    def connection_ended(self, conn: Connection) -> None:
        self.connections.remove(conn)

    @property
    def is_idle(self) -> bool:
        """Whether nothing goes on any more; what is in the inbox then is all there will be."""
        return not self.connections and not self.attempts

    def stop(self, code: int, reason: str, spread: int) -> None:
        """Begins a graceful stop. `spread`: nanoseconds over which the channels are closed."""
        self.stopping, self.parting = True, (code, reason)
        there = list(self.connections)
        for number, conn in enumerate(there):
            if spread:
                self.clock.call_later(spread * (number + 1) // len(there), partial(conn.close_now, code, reason))
            else:
                conn.close_now(code, reason)

    def abort(self) -> None:
        """Ends everything at once, each connection with its close event."""
        self.stopping = True
        for conn in list(self.connections):
            conn.abort()
        for attempt in list(self.attempts):
            attempt.hang_up()

    def discard(self) -> None:
        """Ends everything without delivering anything more."""
        self.inbox.closed = True
        self.abort()
