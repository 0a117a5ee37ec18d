"""Messages with a key, of which only the newest leaves: crates/engine/src/connection/keyed.rs, without threads."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pyhv.testing._gate import Gate, Then
from pyhv.testing._wire import PING, Frame, frame_size, keyed_size

if TYPE_CHECKING:
    from pyhv.testing._connection import Connection


class Keyed:
    """Those of one connection that have not left: frames among its others, without bytes on the wire yet."""

    def __init__(self, conn: Connection) -> None:
        self._conn = conn
        self._frames: dict[str | bytes, Frame] = {}
        self._gate = Gate()

    def charged(self, key: str | bytes) -> int:
        """What a message with this key that waits counts."""
        frame = self._frames.get(key)
        return 0 if frame is None else frame.size

    def is_over(self, key: str | bytes, payload: bytes) -> bool:
        """Whether more would wait with this message than may: it takes the room of its predecessor."""
        was, size = self.charged(key), keyed_size(key, payload)
        others = self._conn.buffered - was
        return size > was and others > 0 and others + size > int(self._conn.endpoint.settings["max_buffered"])

    def put(self, key: str | bytes, opcode: int, payload: bytes, droppable: bool) -> Frame | None:
        """The frame that is to be queued, unless the message takes the place of another."""
        conn, size = self._conn, keyed_size(key, payload)
        conn.buffered += size - self.charged(key)
        conn.life.talked = True
        frame = self._frames.get(key)
        if frame is not None:
            frame.opcode, frame.payload, frame.size = opcode, payload, size
            conn.replaced += 1
            return None
        frame = self._frames[key] = Frame(opcode, True, payload, size, droppable, key=key)
        return frame

    def forget(self, frame: Frame) -> None:
        """It is thrown away."""
        if frame.key is not None:
            del self._frames[frame.key]

    def clear(self) -> None:
        """All of them are."""
        self._frames.clear()

    def admit(self, frames: Iterable[Frame]) -> bool:
        """Lets the next of them leave, if the gate does: the first with a key becomes as the others."""
        conn, gate = self._conn, self._gate
        now = conn.endpoint.clock.ns
        gated = conn.is_established
        if gated:
            if gate.is_new:
                self._ping()
                gate.batch = len(self._frames)
            gate.batch = min(gate.batch, len(self._frames))
            if gate.batch == 0 and gate.is_open(now):
                gate.batch = len(self._frames)
            if gate.batch == 0:
                self._watch()
                return False
        frame = next(frame for frame in frames if frame.key is not None)
        assert frame.key is not None, "just looked at"
        del self._frames[frame.key]
        size = frame_size(len(frame.payload), masked=not conn.server)
        conn.buffered += size - frame.size
        frame.size, frame.key, frame.droppable = size, None, False
        if gated:
            gate.batch = gate.batch - 1 if self._frames else 0
            gate.left()
            if gate.batch == 0 and gate.wants_ping(now):
                self._ping()
        return True

    def answered(self, number: int) -> None:
        """A pong has come, with a number that was sent."""
        self._go_on(self._gate.answered(number, self._conn.endpoint.clock.ns))

    def _ping(self) -> None:
        life = self._conn.life
        life.number += 1
        self._gate.asks(life.number, self._conn.endpoint.clock.ns)
        self._conn.control(PING, life.number.to_bytes(4, "big"))

    def _go_on(self, then: Then) -> None:
        if not self._conn.is_established or then is Then.NOTHING:
            return
        if then is Then.PING:
            self._ping()
        self._conn.go_on()

    def _watch(self) -> None:
        """Messages wait for the answer to a ping: somebody looks whether it comes."""
        clock = self._conn.endpoint.clock
        after = self._gate.patience(clock.ns)
        if after is not None and not self._gate.watched:
            self._gate.watched = True
            clock.call_later(after, self._look)

    def _look(self) -> None:
        clock = self._conn.endpoint.clock
        waits = self._conn.is_established and bool(self._frames)
        after, then = self._gate.look(clock.ns) if waits else (None, Then.NOTHING)
        self._gate.watched = after is not None
        if after is not None:
            clock.call_later(after, self._look)
        self._go_on(then)
