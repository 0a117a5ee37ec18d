"""Keep-alive in a World: pings, and what has been silent for too long; crates/engine/src/connection/keepalive.rs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyhv.testing.clock import SECOND

if TYPE_CHECKING:
    from pyhv.testing._connection import Connection
    from pyhv.testing._endpoint import Endpoint

#: Pauses between sweeps: a quarter of the shortest setting, within these.
_SHORTEST = SECOND // 100
_LONGEST = 5 * SECOND


@dataclass
class Life:
    """What the sweep knows of one connection."""

    #: Something was read, or written after the link had been full, since the last sweep; a message passed.
    stirred: bool = False
    talked: bool = False
    pinged: int | None = None  # when the unanswered ping was sent
    number: int = 0  # of the newest ping of any kind
    keepalive: int = 0  # of the newest of the sweep's
    since_ping: int = 0
    unanswered: int = 0
    idle: int = 0
    latency: int | None = None

    def ponged(self, payload: bytes, now: int) -> int | None:
        """The number of the ping of ours that it answers, with all before."""
        number = int.from_bytes(payload, "big")
        # Others are heartbeats that nobody asked for (RFC 6455 section 5.5.3).
        if len(payload) != 4 or number > self.number:
            return None
        if number >= self.keepalive and self.pinged is not None:
            self.latency = now - self.pinged
            self.pinged = None
        return number


class Sweep:
    """Looks at the connections of an endpoint every so often, for as long as it runs."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        settings = endpoint.settings
        self._limits: dict[str, int | None] = {
            name: None if settings.get(name) is None else round(settings[name] * SECOND)
            for name in ("ping_interval", "ping_timeout", "idle_timeout", "app_stall_timeout")
        }
        if self._limits["ping_interval"] is None:
            self._limits["ping_timeout"] = None
        self._ticks = 0
        self._stalled = 0
        times = [limit for limit in self._limits.values() if limit is not None]
        self._pause = min(max(min(times) // 4, _SHORTEST), _LONGEST) if times else 0
        if times:
            self._again()

    def _again(self) -> None:
        self._endpoint.clock.call_later(self._pause, self._run)

    def _over(self, spent: int, name: str) -> bool:
        limit = self._limits[name]
        return limit is not None and spent > limit

    def _run(self) -> None:
        endpoint = self._endpoint
        if endpoint.inbox.closed:
            return
        alive = endpoint.ticks != self._ticks or endpoint.waiting
        self._ticks = endpoint.ticks
        self._stalled = 0 if alive else self._stalled + self._pause
        stall = self._over(self._stalled, "app_stall_timeout")
        closed = sum(self._look(conn, stall) for conn in list(endpoint.connections))
        if stall and closed:
            limit = endpoint.settings["app_stall_timeout"]
            endpoint.complain(
                "app_stall_timeout", f"{closed} channels closed with 1013: no tick for app_stall_timeout={limit:g} s"
            )
        self._again()

    def _look(self, conn: Connection, stall: bool) -> bool:
        """Whether it was closed."""
        if not conn.is_established:
            return False
        life = conn.life
        stirred, life.stirred = life.stirred, False
        talked, life.talked = life.talked, False
        waits = life.pinged is not None and not stirred and not conn.is_paused
        life.unanswered = life.unanswered + self._pause if waits else 0
        life.idle = 0 if talked or conn.is_paused else life.idle + self._pause
        life.since_ping += self._pause
        interval = self._limits["ping_interval"]
        if stall:
            conn.give_up(1013, "the program does not answer")
        elif self._over(life.unanswered, "ping_timeout"):
            limit = self._endpoint.settings["ping_timeout"]
            self._endpoint.complain(
                "ping_timeout",
                f"channel {conn.handshake.describe()} closed with 1011: no answer to a ping for "
                f"ping_timeout={limit:g} s",
            )
            conn.give_up(1011, "keep-alive ping was not answered")
        elif self._over(life.idle, "idle_timeout"):
            conn.give_up(1001, "no message for idle_timeout")
        elif life.pinged is None and interval is not None and life.since_ping >= interval:
            life.since_ping = 0
            life.pinged = self._endpoint.clock.ns
            life.number += 1
            life.keepalive = life.number
            conn.ping(life.number.to_bytes(4, "big"))
        return not conn.is_established
