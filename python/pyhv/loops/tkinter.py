"""tkinter: descriptors where Tcl can wait for them (Unix), a look every 20 ms elsewhere."""

from __future__ import annotations

import contextlib
import tkinter
from collections.abc import Callable

from pyhv.loops._attachment import Attachment, Ticker, Undo

__all__ = ["attach"]

#: Seconds between two ticks where Tcl cannot wait for a descriptor.
POLL = 0.02


def attach(*objects: Ticker, root: tkinter.Misc, interval: float | None = None) -> Attachment:
    """Has `mainloop()` tick `objects` when something has happened to them.

    :param objects: servers and clients, started or connected now or later.
    :param root: the window, or any widget of it.
    :param interval: seconds after which they are ticked in any case, for a server with an `on_tick`; None: never. On
        Windows None means 0.02: Tcl cannot wait for descriptors there.

    The thread of `mainloop()`. KeyboardInterrupt and SystemExit of a callback leave `mainloop()`; what comes from a
    tick at an interval goes to `report_callback_exception`, except for SystemExit.
    """
    if interval is None and not hasattr(root.tk, "createfilehandler"):
        interval = POLL
    return _Attachment(objects, interval, root)


class _Attachment(Attachment):
    def __init__(self, objects: tuple[Ticker, ...], interval: float | None, root: tkinter.Misc) -> None:
        self._root = root
        super().__init__(objects, interval)

    def _watch(self, fd: int, call: Callable[[], None]) -> Undo:
        tk = self._root.tk
        if not hasattr(tk, "createfilehandler"):
            return super()._watch(fd, call)
        tk.createfilehandler(fd, tkinter.READABLE, lambda _fd, _mask: call())
        return lambda: tk.deletefilehandler(fd)

    def _repeat(self, seconds: float, call: Callable[[], object]) -> Undo:
        milliseconds = max(1, round(seconds * 1000))

        def run() -> None:
            timer[0] = self._root.after(milliseconds, run)  # first: an exception of call() must not end it
            call()

        def undo() -> None:
            with contextlib.suppress(tkinter.TclError):  # the window is gone, and its timers with it
                self._root.after_cancel(timer[0])

        timer = [self._root.after(milliseconds, run)]
        return undo
