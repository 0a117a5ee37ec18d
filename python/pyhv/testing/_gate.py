"""When messages with a key may leave: crates/engine/src/connection/gate.rs, with its table."""

from __future__ import annotations

from enum import Enum

from pyhv.testing.clock import SECOND

_PING_EVERY = SECOND // 20
_LEEWAY = SECOND // 200
_MEASURE_EVERY = 10 * SECOND
PATIENCE = 5 * SECOND
_MOST_TRIALS = 64


class Then(Enum):
    """What is to be done when a pong has come, or the time is over."""

    NOTHING = 0
    PING = 1
    LEAVE = 2


class Gate:
    """Of one connection. Times are nanoseconds of the World."""

    def __init__(self) -> None:
        #: Messages that may leave still: the rest of a batch.
        self.batch = 0
        #: Somebody looks after a ping that is not answered.
        self.watched = False
        self._forget()

    def _forget(self) -> None:
        self._asked: tuple[int, int] | None = None  # number of the ping that is waited for, and when it left
        self._shortest: int | None = None
        self._measured = 0
        self._last = 0
        self._free = False
        self._deaf = False
        self._loose = False  # something left behind the newest ping
        self._measuring = False
        self._bare = False  # it has nothing in front of it
        self._prompt = 0  # prompt pongs in a row
        self._needed = 0
        self._since = 0

    @property
    def is_new(self) -> bool:
        return self._shortest is None and self._asked is None and not self._deaf

    def _late_after(self) -> int:
        return 0 if self._shortest is None else 2 * self._shortest + _LEEWAY

    def is_open(self, now: int) -> bool:
        """Whether a batch may begin."""
        if self._asked is None or self._deaf:
            return True
        if self._free and now - self._asked[1] <= self._late_after():
            return True
        if self._free:
            self._free = False
            again = now - self._since < _MEASURE_EVERY
            self._needed = min(self._needed * 2, _MOST_TRIALS) if again else 1
            self._prompt = 0
        return False

    def left(self) -> None:
        """Keyed messages leave."""
        self._loose = True

    def wants_ping(self, now: int) -> bool:
        """Whether a ping is to follow what has left."""
        due = not self._free or now - self._last >= _PING_EVERY
        return self._loose and self._asked is None and not self._deaf and due

    def asks(self, number: int, now: int) -> None:
        """A ping leaves."""
        self._asked = self._asked or (number, now)
        self._last = now
        self._loose = False

    def answered(self, number: int, now: int) -> Then:
        """A pong has come, with a number that was sent."""
        if self._asked is None or number < self._asked[0]:
            return Then.NOTHING
        if self._deaf:
            self._forget()
            return Then.LEAVE
        took, self._asked = now - self._asked[1], None
        measuring, self._measuring = self._measuring, False
        bare, self._bare = self._bare, False
        if self._shortest is None:
            self._shortest, self._measured, self._needed = took, now, 1
            self._bare = self._loose
            return Then.PING if self._loose else Then.LEAVE
        if measuring or took < self._shortest:
            self._shortest, self._measured = took, now
        if self._free and took <= self._late_after():
            return Then.LEAVE
        self._free = False
        if not bare:
            prompt = took <= self._shortest + self._shortest // 4 + _LEEWAY
            self._prompt = self._prompt + 1 if prompt else 0
            if self._prompt >= self._needed:
                self._free, self._since, self._prompt = True, now, 0
                return Then.LEAVE
        self._measuring = not self._loose and now - self._measured > _MEASURE_EVERY
        self._bare = self._loose or self._measuring
        return Then.PING if self._bare else Then.LEAVE

    def patience(self, now: int) -> int | None:
        """Messages wait for an answer: how long until somebody is to look."""
        if self._asked is None or self._deaf:
            return None
        return max(0, PATIENCE - (now - max(self._asked[1], self._last)))

    def look(self, now: int) -> tuple[int | None, Then]:
        """Somebody looks: how long until it is time to do so again, and what is to be done."""
        left = self.patience(now)
        if left is None or left > 0:
            return left, Then.NOTHING
        if self._shortest is None:
            self._deaf = True
            return None, Then.LEAVE
        return PATIENCE, Then.PING
