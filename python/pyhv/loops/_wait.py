"""For scripts: waiting for several servers and clients at once."""

from __future__ import annotations

import selectors
import sys
import time

from pyhv.loops._attachment import Ticker

#: No descriptor of its own, unlike epoll: made anew for each wait, it makes no system call.
_Selector: type[selectors.BaseSelector] = getattr(selectors, "PollSelector", selectors.SelectSelector)

#: Windows does not let Ctrl-C end a wait for sockets: there a wait is cut into slices, in seconds.
_SLICE = 0.05 if sys.platform == "win32" else None


def wait(*objects: Ticker, timeout: float | None = None) -> int:
    """Waits until something has happened to one of `objects`, then ticks each of them once.

    :param objects: servers that have been started, and clients.
    :param timeout: the longest wait in seconds; None: without end, also when nothing can come any more.

    Returns the number of events that were run, 0 if it was the time that ended the wait. Blocks without the GIL; runs
    the callbacks on the calling thread. Exceptions are those of `tick()`.
    """
    if not objects:
        raise TypeError("wait() takes one server or client at least")
    if timeout is not None and not timeout >= 0:
        raise ValueError(f"timeout={timeout} is not a time in seconds")
    end = None if timeout is None else time.monotonic() + timeout
    with _Selector() as selector:
        for each in objects:
            if not getattr(each, "is_closed", False):  # a closed HttpClient has no descriptor
                selector.register(each.fileno(), selectors.EVENT_READ)
        while selector.get_map():
            left = None if end is None else max(0.0, end - time.monotonic())
            part = left if _SLICE is None else min(_SLICE, _SLICE if left is None else left)
            if selector.select(part) or (left is not None and left == part):
                break
    return sum(each.tick() for each in objects)
