"""A link between a client and a server, and one connection's two directions over it."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, Protocol

from pyhv.testing._wire import Frame
from pyhv.testing.clock import SECOND, ManualClock, nanoseconds

if TYPE_CHECKING:
    from pyhv.testing._connection import Connection

__all__ = ["Link"]

#: What leaves at a time of a large frame.
_CHUNK = 16 << 10

_Direction = Literal["both", "up", "down"]


class Link:
    """How a client's connections travel: with a delay, slowly, not at all for a while, until they are lost.

    A link carries bytes in order, as TCP does. Give it to `World.connect` or `World.adopt`; the client keeps it for all
    its connections. Its chances come from the World's seed.

    :param delay: seconds that bytes take, each way. Connecting takes four of them, as TCP and the handshake do.
    :param jitter: up to so many seconds more, evenly; nothing overtakes.
    :param bandwidth: bytes a second, each way; None: no limit. Messages travel uncompressed, with their frames' heads.
    :param buffer: bytes that are under way or wait to be read, each way, until the sender's own buffer begins to fill
        (`buffered_amount`, `max_buffered`): what the system's socket buffers take.
    :param mean_life: mean seconds until a connection is lost, as `cut` does, each at a moment of its own (exponentially
        distributed); None: never.

    Raises ValueError for a number that cannot be.
    """

    def __init__(
        self,
        delay: float = 0.0,
        jitter: float = 0.0,
        bandwidth: float | None = None,
        *,
        buffer: int = 64 << 10,
        mean_life: float | None = None,
    ) -> None:
        if not buffer > 0:
            raise ValueError(f"buffer={buffer} is not a number of bytes above 0")
        if mean_life is not None and not 0 < mean_life < math.inf:
            raise ValueError(f"mean_life={mean_life} is not a number of seconds above 0: None is for ever")
        self._buffer = buffer
        self._mean_life = mean_life
        self._stalled = {"up": 0, "down": 0}
        self._clock: ManualClock | None = None
        self._random = random.Random(0)
        self._wires: list[Wire] = []
        self.change(delay=delay, jitter=jitter, bandwidth=bandwidth)

    def change(self, *, delay: float, jitter: float = 0.0, bandwidth: float | None = None) -> None:
        """What it is like from now on; what is under way arrives as it would have."""
        if bandwidth is not None and not 0 < bandwidth < math.inf:
            raise ValueError(f"bandwidth={bandwidth} is not a number of bytes a second above 0: None is no limit")
        self._delay = nanoseconds("delay", delay)
        self._jitter = nanoseconds("jitter", jitter)
        self._bandwidth = bandwidth

    def stall(self, seconds: float, direction: _Direction = "both") -> None:
        """For so long nothing arrives; then everything does, in order. No connection is lost by that alone.

        :param direction: "up" is what the client sends, "down" what the server sends.
        """
        if direction not in ("both", "up", "down"):
            raise ValueError(f'direction={direction!r} is none of "both", "up", "down"')
        if self._clock is None:
            raise RuntimeError("stall() of a link that no client has: give it to World.connect() first")
        until = self._clock.ns + nanoseconds("seconds", seconds)
        for name in ("up", "down") if direction == "both" else (direction,):
            self._stalled[name] = max(self._stalled[name], until)

    def cut(self) -> None:
        """The connection is lost, with all that was under way: both sides close with 1006.

        The client may connect again. Does nothing when there is no connection.
        """
        for wire in list(self._wires):
            wire.cut()

    def _bind(self, clock: ManualClock, seed: str) -> None:
        if self._clock is not None:
            raise ValueError("a link has one client: this one has it already")
        self._clock = clock
        self._random = random.Random(seed)

    def _wire(self) -> Wire:
        assert self._clock is not None, "bound when its client was adopted"
        wire = Wire(self, self._clock)
        self._wires.append(wire)
        return wire

    def _life(self) -> int | None:
        return None if self._mean_life is None else round(self._random.expovariate(1 / self._mean_life) * SECOND)

    def _transmission(self, size: int) -> int:
        return 0 if self._bandwidth is None else math.ceil(size * SECOND / self._bandwidth)

    def _travel(self) -> int:
        return self._delay + (self._random.randint(0, self._jitter) if self._jitter else 0)


class Chunk:
    """What travels: a part of a frame, a step of the handshake, or the end of a direction."""

    __slots__ = ("first", "frame", "last", "size", "step")

    def __init__(
        self,
        size: int,
        *,
        frame: Frame | None = None,
        first: bool = False,
        last: bool = False,
        step: Callable[[], None] | None = None,
    ) -> None:
        self.size = size
        self.frame = frame
        self.first = first
        self.last = last
        self.step = step


class Reader(Protocol):
    """An end of a connection."""

    def may_read(self) -> bool: ...
    def received(self, chunk: Chunk) -> None: ...
    def ended(self) -> None: ...


class Pipe:
    """One direction of one connection. What is put in comes out in order, or, after `kill`, not at all."""

    def __init__(self, link: Link, clock: ManualClock, direction: str) -> None:
        self._link = link
        self._clock = clock
        self._direction = direction
        self._waiting: deque[Chunk] = deque()
        self._flying: deque[Chunk] = deque()
        self._arrived: deque[Chunk] = deque()
        self._held = 0  # bytes put in and not read yet
        self._busy = False
        self._last = 0
        self._ended = False
        self._dead = False
        #: Who reads; nobody: what comes is thrown away, but for steps of the handshake.
        self.reader: Reader | None = None
        #: Told when there is room again.
        self.on_room: Callable[[], None] | None = None

    def room(self) -> int:
        return 0 if self._dead or self._ended else max(0, self._link._buffer - self._held)

    def step(self, size: int, step: Callable[[], None]) -> None:
        """Has `step` called at the other end."""
        self._put(Chunk(size, step=step))

    def write(self, frame: Frame) -> int:
        """Takes some bytes of a frame; how many."""
        size = min(self.room(), _CHUNK, frame.size - frame.written)
        if size > 0:
            first = frame.written == 0
            frame.written += size
            self._put(Chunk(size, frame=frame, first=first, last=frame.written == frame.size))
        return size

    def end(self) -> None:
        """Nothing more comes."""
        if not self._ended:
            self._put(Chunk(0))
            self._ended = True

    def kill(self) -> None:
        """The connection is lost: what is under way too."""
        self._dead = True

    def _put(self, chunk: Chunk) -> None:
        if self._dead or self._ended:
            return
        self._held += chunk.size
        self._waiting.append(chunk)
        self._transmit()

    def _transmit(self) -> None:
        if self._busy or not self._waiting:
            return
        chunk = self._waiting.popleft()
        self._busy = True
        self._clock.call_later(self._link._transmission(chunk.size), lambda: self._transmitted(chunk))

    def _transmitted(self, chunk: Chunk) -> None:
        if self._dead:
            return
        self._busy = False
        self._last = max(self._last, self._clock.ns + self._link._travel())
        self._flying.append(chunk)
        self._clock.call_at(self._last, self._arrive)
        self._transmit()

    def _arrive(self) -> None:
        if self._dead:
            return
        stalled = self._link._stalled[self._direction]
        if stalled > self._clock.ns:
            self._clock.call_at(stalled, self._arrive)
            return
        # The oldest, whichever this call was for: a stall may have let a later one catch up.
        self._arrived.append(self._flying.popleft())
        self.read()

    def read(self) -> None:
        """Hands over what has arrived, as long as the reader reads."""
        while self._arrived and not self._dead and (self.reader is None or self.reader.may_read()):
            chunk = self._arrived.popleft()
            self._held -= chunk.size
            if chunk.step is not None:
                chunk.step()
            elif self.reader is not None:
                if chunk.frame is None:
                    self.reader.ended()
                else:
                    self.reader.received(chunk)
        if self.on_room is not None and not self._dead:
            self.on_room()


class Wire:
    """One connection over a link: both directions, and who is at the ends."""

    def __init__(self, link: Link, clock: ManualClock) -> None:
        self.up = Pipe(link, clock, "up")
        self.down = Pipe(link, clock, "down")
        self._link = link
        self._clock = clock
        #: Before there are connections: what a cut does.
        self.on_cut: Callable[[], None] | None = None
        self.ends: list[Connection] = []

    def live(self) -> None:
        """The connection is open: its life begins."""
        life = self._link._life()
        if life is not None:
            self._clock.call_later(life, self.cut)

    def over(self) -> None:
        """Nobody is interested any more."""
        if self in self._link._wires:
            self._link._wires.remove(self)

    def cut(self) -> None:
        if self not in self._link._wires:
            return
        self.over()
        self.up.kill()
        self.down.kill()
        if self.on_cut is not None:
            self.on_cut()
        for end in self.ends:
            end.lost()
