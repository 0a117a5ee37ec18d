"""The clock of a World, and what is to happen when it gets somewhere."""

from __future__ import annotations

import heapq
from collections.abc import Callable

__all__ = ["ManualClock"]

SECOND = 1_000_000_000


def nanoseconds(name: str, seconds: float) -> int:
    """A number of seconds that is an argument called `name`. Raises ValueError for one that time cannot pass by."""
    if not 0 <= seconds <= 1e9:
        raise ValueError(f"{name}={seconds} is not a number of seconds from 0 to 1e9")
    return round(seconds * SECOND)


class Timer:
    """Something that is to happen, until it is cancelled."""

    __slots__ = ("what",)

    def __init__(self, what: Callable[[], None]) -> None:
        self.what: Callable[[], None] | None = what

    def cancel(self) -> None:
        self.what = None


class ManualClock:
    """A clock that stands still until it is told to move.

    `now` and `sleep` go where a program takes `time.monotonic` and `time.sleep`. Nanoseconds inside, so that sixty
    frames are a second and no rounding adds up.
    """

    def __init__(self) -> None:
        self.ns = 0
        self._timers: list[tuple[int, int, Timer]] = []  # when, and the number of the call
        self._made = 0

    def now(self) -> float:
        """Seconds since the clock was made."""
        return self.ns / SECOND

    def advance(self, seconds: float) -> None:
        """Lets time pass, while no program does anything.

        Of a World: nobody is ticked meanwhile, as if every main loop stalled; links and native sides go on. Inside a
        callback it is how long that callback takes. Raises ValueError for less than 0.
        """
        self.run_until(self.ns + nanoseconds("seconds", seconds))

    def sleep(self, seconds: float) -> None:
        """The same as `advance`, by the name that `time` has for it."""
        self.advance(seconds)

    # For the World

    def call_at(self, ns: int, what: Callable[[], None]) -> Timer:
        """Has `what` called when the clock gets there: in the order of the times, then of the calls."""
        timer = Timer(what)
        self._made += 1
        heapq.heappush(self._timers, (max(ns, self.ns), self._made, timer))
        return timer

    def call_later(self, ns: int, what: Callable[[], None]) -> Timer:
        return self.call_at(self.ns + ns, what)

    def next(self) -> int | None:
        """When the next thing is to happen."""
        while self._timers and self._timers[0][2].what is None:
            heapq.heappop(self._timers)
        return self._timers[0][0] if self._timers else None

    def run_until(self, ns: int) -> None:
        """Moves to `ns`, past everything that is to happen until then."""
        while (at := self.next()) is not None and at <= ns:
            timer = heapq.heappop(self._timers)[2]
            # A callback may have taken longer than the next thing was due.
            self.ns = max(self.ns, at)
            what, timer.what = timer.what, None
            if what is not None:
                what()
        self.ns = max(self.ns, ns)
