"""What waits for a tick, and what a tick runs of it: inbox.rs and backlog.rs of the engine, ticker.rs of the bridge."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pyhv.testing.clock import SECOND

if TYPE_CHECKING:
    from pyhv.testing._connection import Connection
    from pyhv.testing._endpoint import Endpoint
    from pyhv.testing.clock import ManualClock

#: What an event counts beside its content, and an open or an upgrade beside its head.
_EVENT = 64
_CONNECTION = 1 << 10

#: How long a tick without a timeout waits, in the World's time, until it is clear that nothing will ever happen: in a
#: World nobody else does anything while one object waits.
_PATIENCE = 3600 * SECOND


@dataclass
class Event:
    """One thing that happened."""

    kind: str  # "open", "message", "close", "drain", "upgrade", "failed" or "log"
    conn: Connection | None = None
    value: Any = None
    size: int = 0
    #: It has run, or gave way to a newer one.
    done: bool = False

    def cost(self) -> int:
        return self.size + _EVENT + (_CONNECTION if self.kind in ("open", "upgrade") else 0)


@dataclass
class Batch:
    """Events in order of arrival."""

    number: int
    events: deque[Event] = field(default_factory=deque)
    size: int = 0
    #: Connections that stopped reading because of it.
    paused: list[Connection] = field(default_factory=list)


class Inbox:
    """The queue of one endpoint."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.batch = Batch(1)
        #: Newest batch whose callbacks have all run.
        self.done = 0
        self.closed = False

    def push(self, event: Event) -> None:
        if not self.closed:
            self.batch.events.append(event)
            self.batch.size += event.cost()

    def take(self) -> Batch:
        taken, self.batch = self.batch, Batch(self.batch.number + 1)
        return taken

    def is_full(self) -> bool:
        return self.batch.size >= self.max_bytes


class Backlog:
    """What ticks with a budget leave over. Channels take turns, one event each; what belongs to none has its own."""

    def __init__(self) -> None:
        self._held: deque[tuple[Batch, list[int]]] = deque()  # each with the number of events left
        self._lanes: dict[Connection, deque[tuple[Event, list[int]]]] = {}
        self._turns: deque[tuple[Connection | None, tuple[Event, list[int]] | None]] = deque()
        self.left = 0

    def size(self) -> int:
        return sum(batch.size for batch, _ in self._held)

    def add(self, batch: Batch) -> None:
        left = [len(batch.events)]
        for event in batch.events:
            if event.conn is None:
                self._turns.append((None, (event, left)))
                continue
            lane = self._lanes.setdefault(event.conn, deque())
            if not lane:
                self._turns.append((event.conn, None))
            lane.append((event, left))
        self.left += left[0]
        self._held.append((batch, left))

    def pop(self) -> Event | None:
        if not self._turns:
            return None
        conn, entry = self._turns.popleft()
        if conn is not None:
            lane = self._lanes[conn]
            entry = lane.popleft()
            if lane:
                self._turns.append((conn, None))
            else:
                del self._lanes[conn]
        assert entry is not None, "a turn of no channel has its event"
        event, left = entry
        left[0] -= 1
        self.left -= 1
        return event

    def settle(self) -> tuple[list[Connection], int | None]:
        """The connections that may read on, and the newest batch up to which all have run, if that is news."""
        paused: list[Connection] = []
        for batch, left in self._held:
            if not left[0]:
                paused += batch.paused
                batch.paused = []
        done = None
        while self._held and not self._held[0][1][0]:
            done = self._held.popleft()[0].number
        return paused, done


class Newest:
    """`latest=`: of the messages with one key that wait for one tick only the newest comes; latest.rs of the bridge."""

    def __init__(self) -> None:
        self._seen: dict[Connection, dict[Any, Event]] = {}

    def clear(self) -> None:
        self._seen.clear()

    def sift(self, batch: Batch, key: Callable[[Event], Any], skipped: Callable[[Event], None]) -> None:
        """Looks at a new batch. `key`: None for a message that stands alone."""
        for event in batch.events:
            if event.conn is None or event.kind not in ("message", "close"):
                continue
            if event.kind == "close":
                self._seen.pop(event.conn, None)
                continue
            name = key(event)
            if name is None:
                continue
            places = self._seen.setdefault(event.conn, {})
            before = places.get(name)
            places[name] = event
            if before is not None and not before.done:
                before.done = True
                skipped(before)


class Latest:
    """What a tick needs for `latest=`: the program's function, and whom to tell of a message that gave way."""

    def __init__(self, key: Callable[[Event], Any], skipped: Callable[[Event], None]) -> None:
        self.key = key
        self.skipped = skipped


class Ticker:
    """The ticking side of one object."""

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock
        self._owner: int | None = None
        self._batch = Batch(0)
        self._backlog = Backlog()
        self._newest = Newest()
        #: Whose the batch is: what is left of an endpoint that was replaced is not run.
        self._of: Endpoint | None = None
        #: An exception left a tick: the next one has to mark the batch as done.
        self._again = False

    @property
    def is_inside(self) -> bool:
        return self._owner is not None

    @contextmanager
    def turn(self, what: str) -> Iterator[None]:
        """The right to run callbacks."""
        if self._owner is not None:
            raise RuntimeError(f"{what} was called inside a callback of the same object: callbacks never nest")
        self._owner = threading.get_ident()
        try:
            yield
        finally:
            self._owner = None

    def left(self) -> int:
        return len(self._batch.events) + self._backlog.left

    def is_ready(self, endpoint: Endpoint) -> bool:
        return bool(endpoint.inbox.batch.events) or self._again or self.left() > 0

    def pending(self, endpoint: Endpoint) -> int:
        return self.left() + len(endpoint.inbox.batch.events)

    def reset(self) -> None:
        self._batch = Batch(0)
        self._backlog = Backlog()
        self._again = False

    def wait(self, endpoint: Endpoint, deadline: int | None, until: Callable[[], bool]) -> None:
        """Lets time pass until there is something to run, the deadline (nanoseconds), or `until` says so."""
        clock = self._clock
        last = clock.ns + _PATIENCE if deadline is None else deadline
        endpoint.waiting = True
        try:
            while not self.is_ready(endpoint) and not until():
                at = clock.next()
                if at is None or at > last:
                    if deadline is None:
                        raise RuntimeError(
                            "tick(timeout=None) waits for something that never happens: in a World nobody else is "
                            "ticked while one object waits"
                        )
                    clock.run_until(last)
                    return
                clock.run_until(at)
        finally:
            endpoint.waiting = False

    def run(
        self,
        endpoint: Endpoint,
        run: Callable[[Event], None],
        max_ms: float | None,
        max_events: int | None,
        latest: Latest | None = None,
    ) -> int:
        """Runs what is pending, or what the last tick left, within the budget; how many events that were."""
        if self._of is not endpoint:
            self.reset()
            self._of = endpoint
        end = None if max_ms is None else self._clock.ns + round(min(max_ms / 1e3, 1e6) * SECOND)
        ran = 0

        def is_over() -> bool:
            return (max_events is not None and ran >= max_events) or (
                ran > 0 and end is not None and self._clock.ns >= end
            )

        def run_one(event: Event) -> int:
            if event.done:
                return 0
            event.done = True
            run(event)
            return 1

        self._again = True
        if self._backlog.left:
            if endpoint.inbox.batch.events and self._backlog.size() < endpoint.inbox.max_bytes:
                batch = endpoint.inbox.take()
                if latest is not None:
                    self._newest.sift(batch, latest.key, latest.skipped)
                self._backlog.add(batch)
            try:
                while not is_over() and (event := self._backlog.pop()) is not None:
                    ran += run_one(event)
            finally:
                paused, done = self._backlog.settle()
                endpoint.resume(paused)
                endpoint.inbox.done = endpoint.inbox.done if done is None else done
            self._again = False
            return ran
        if not self._batch.events:
            self._batch = endpoint.inbox.take()
            if max_ms is None and max_events is None:
                self._resume(endpoint)
            self._newest.clear()
            if latest is not None:
                self._newest.sift(self._batch, latest.key, latest.skipped)
        events = self._batch.events
        while events:
            ran += run_one(events.popleft())
            if events and is_over():
                self._backlog.add(self._batch)
                self._batch = Batch(0)
                self._again = False
                return ran
        endpoint.inbox.done = max(endpoint.inbox.done, self._batch.number)
        self._resume(endpoint)
        self._again = False
        return ran

    def _resume(self, endpoint: Endpoint) -> None:
        paused, self._batch.paused = self._batch.paused, []
        endpoint.resume(paused)
