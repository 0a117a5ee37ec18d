"""What all adapters share: who is ticked, and when not. A toolkit's part is `_watch` and `_repeat`."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, TypeVar

_A = TypeVar("_A", bound="Attachment")
_T = TypeVar("_T")

#: Undoes what made it. May be called twice.
Undo = Callable[[], None]

#: Every attachment until its `detach`: a toolkit need not keep it alive, nor the program.
_attached: set[Attachment] = set()

#: Seconds until an object is tried again whose `tick()` raised RuntimeError: its descriptor stays readable, and the
#: loop would spin.
RETRY = 1.0


class Ticker(Protocol):
    """What can be attached: a server, a client, an `HttpClient`, an `EventSource`."""

    def tick(self, timeout: float | None = 0.0) -> int: ...
    def fileno(self) -> int: ...


class Attachment:
    """Objects that a toolkit's loop ticks, from `attach` to `detach`. A context manager that ends with `detach()`.

    All of it belongs to the thread of the loop, and so do the callbacks of the objects.
    """

    def __init__(self, objects: tuple[Ticker, ...], interval: float | None) -> None:
        if not objects:
            raise TypeError("attach() takes one server or client at least")
        for each in objects:
            if not (callable(getattr(each, "tick", None)) and callable(getattr(each, "fileno", None))):
                raise TypeError(f"{each!r} is no server or client: it lacks tick() or fileno()")
        if interval is not None and not interval > 0:
            raise ValueError(f"interval={interval} is not a positive number of seconds")
        self._objects = objects
        self._undo: list[Undo] = []
        _attached.add(self)
        try:
            self._watched = [_Watched(self, each) for each in objects]
            if interval is not None:
                self._undo.append(self._repeat(interval, self._tick_all))
        except BaseException:
            self.detach()
            raise

    @property
    def objects(self) -> tuple[Ticker, ...]:
        """What was attached."""
        return self._objects

    @property
    def is_attached(self) -> bool:
        """Whether `detach` has not been called."""
        return self in _attached

    def detach(self) -> None:
        """The loop ticks the objects no more; they go on, and wait for whoever ticks them next.

        The loop's thread, also inside a callback; never blocks. Does nothing the second time.
        """
        _attached.discard(self)
        while self._undo:
            self._undo.pop()()

    def __enter__(self: _A) -> _A:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """As `detach`."""
        self.detach()

    def _tick_all(self) -> None:
        for each in self._watched:
            each.tick()

    # What a toolkit does. An exception of `call` goes to the toolkit, and does not end the calls.

    def _watch(self, fd: int, call: Callable[[], None]) -> Undo:
        """Calls `call()` whenever `fd` is readable. Here: never, for a toolkit that cannot wait for descriptors."""
        return lambda: None

    def _repeat(self, seconds: float, call: Callable[[], object]) -> Undo:
        """Calls `call()` every so many seconds."""
        raise NotImplementedError


class _Watched:
    """One object of an attachment."""

    def __init__(self, attachment: Attachment, ticker: Ticker) -> None:
        self._attachment = attachment
        self._ticker = ticker
        self._ticking = False
        self._unwatch: Undo | None = None
        self._unretry: Undo | None = None
        # Our own: that of a client may be closed, and its number given to somebody else, while the toolkit watches it.
        self._fd, close = _duplicate(ticker.fileno())
        attachment._undo += [close, self._end_retry, self._pause]  # called from the last to the first
        self._resume()

    def tick(self) -> None:
        """Called by the toolkit."""
        if self._ticking:
            # By a loop that runs inside a callback, such as a dialog's. Callbacks never nest: what has arrived waits
            # for the end of that one, and the descriptor, which stays readable, must not keep the inner loop busy.
            self._pause()
            return
        if self._unretry is not None or not getattr(self._ticker, "is_running", True):
            return
        self._ticking = True
        try:
            self._ticker.tick()
        except RuntimeError:
            # Another thread is ticking it, or is it a program's own tick() that is under way?
            self._pause()
            if self._attachment.is_attached:
                self._unretry = self._attachment._repeat(RETRY, self._end_retry)
            raise
        finally:
            self._ticking = False
            self._resume()

    def _pause(self) -> None:
        if self._unwatch is not None:
            self._unwatch()
            self._unwatch = None

    def _resume(self) -> None:
        if self._unwatch is None and self._unretry is None and self._attachment.is_attached:
            self._unwatch = self._attachment._watch(self._fd, self.tick)

    def _end_retry(self) -> None:
        if self._unretry is not None:
            self._unretry()
            self._unretry = None
            self._resume()


def _duplicate(fd: int) -> tuple[int, Undo]:
    """A descriptor for the same thing, and what closes it."""
    if os.name == "nt":  # pyHV's descriptors are sockets there
        copy = socket.fromfd(fd, socket.AF_INET, socket.SOCK_STREAM)
        return copy.fileno(), copy.close
    own = os.dup(fd)
    return own, lambda: os.close(own)


def renewing(
    add: Callable[[Callable[..., object]], _T],
    remove: Callable[[_T], object],
    call: Callable[[], object],
    answer: object = None,
) -> Undo:
    """Adds `call` to a toolkit that forgets a function which has raised: it is added again.

    :param answer: what tells the toolkit to go on.
    """

    def run(*_: object) -> object:
        try:
            call()
        except BaseException:
            if added:
                added[0] = add(run)
            raise
        return answer

    def undo() -> None:
        if added:
            remove(added.pop())

    added = [add(run)]
    return undo
