"""Whether a client of a World connects again, and when, and what it keeps meanwhile: crates/engine/src/reconnect.rs."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any

from pyhv.errors import ConnectError, HandshakeError, TlsError
from pyhv.testing._wire import TEXT, keyed_size
from pyhv.testing.clock import SECOND

if TYPE_CHECKING:
    from pyhv.testing._connection import Connection
    from pyhv.testing._handshake import Target

#: What a message that waits counts beside its payload: the largest head of a frame.
_HEAD = 14


def after_failure(error: ConnectError | None, retry_after: int | None) -> int | None:
    """After a failed attempt: the least delay before the next; None: it would fail in the same way. Nanoseconds."""
    if error is None or isinstance(error, TlsError):
        return None
    if isinstance(error, HandshakeError) and error.status is not None:
        again = error.status in (408, 425, 429) or 500 <= error.status < 600
        return (retry_after or 0) if again else None
    return 0


def is_final(code: int, reason: str) -> bool:
    """Whether the server's close frame says that there is no point in coming back."""
    return code in (1000, 3000, 3003) or (code == 1008 and not reason.startswith("too slow: more than max_buffered"))


def _cost(payload: bytes, key: str | bytes | None) -> int:
    return len(payload) + _HEAD if key is None else keyed_size(key, payload)


class Again:
    """Of a `connect` with `reconnect`, from there to the end. `policy`: the fields of `pyhv.Reconnect`."""

    def __init__(self, target: Target, policy: dict[str, Any], max_buffered: int, random: Random) -> None:
        if policy["queue_bytes"] > max_buffered:
            raise ValueError(
                f"queue_bytes={policy['queue_bytes']} is more than max_buffered={max_buffered}: sending what has "
                "waited would close the connection"
            )
        self.target = target
        self.bytes = 0
        self._policy = policy
        self._random = random
        self._attempts = 0
        self._opened: int | None = None
        #: How many of those that wait newer ones have replaced.
        self.replaced = 0
        self._messages: list[tuple[int, bytes, str | bytes | None]] = []

    def opened(self, conn: Connection) -> None:
        """A connection is open: what has waited goes first."""
        self._opened = conn.endpoint.clock.ns
        conn.replaced += self.replaced
        self.replaced = 0
        while self._messages:
            opcode, payload, key = self._messages[0]
            sent = (
                conn.send(opcode, TEXT, True, payload) if key is None else conn.send_keyed(key, opcode, TEXT, payload)
            )
            if not sent:
                break
            del self._messages[0]
            self.bytes -= _cost(payload, key)

    def keep(self, opcode: int, payload: bytes, key: str | bytes | None) -> bool:
        """Keeps a message for the next connection, if there is room; in the place of one with the same key."""
        places = (n for n, (_, _, other) in enumerate(self._messages) if key is not None and other == key)
        place = next(places, None)
        before = 0 if place is None else _cost(*self._messages[place][1:])
        more = _cost(payload, key) - before
        if self.bytes + more > self._policy["queue_bytes"]:
            return False
        self.bytes += more
        if place is None:
            self._messages.append((opcode, payload, key))
        else:
            self._messages[place] = (opcode, payload, key)
            self.replaced += 1
        return True

    @property
    def keeps(self) -> bool:
        return bool(self._policy["queue_bytes"])

    def next(self, least: int, now: int) -> tuple[int, int] | None:
        """Number and delay of the next attempt, unless there were enough."""
        policy = self._policy
        opened, self._opened = self._opened, None
        if opened is not None and now - opened >= policy["min_uptime"] * SECOND:
            self._attempts = 0
        if policy["max_attempts"] is not None and self._attempts >= policy["max_attempts"]:
            return None
        try:
            longest = min(policy["first"] * policy["factor"] ** self._attempts, policy["max_delay"])
        except OverflowError:
            longest = policy["max_delay"]
        delay = longest * (1.0 - policy["jitter"] * self._random.random())
        self._attempts += 1
        return self._attempts, min(least + round(delay * SECOND), round(policy["max_delay"] * SECOND))
