"""asyncio, and loops with its methods, such as uvloop's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from pyhv.loops import _thread
from pyhv.loops._attachment import Attachment, Ticker, Undo

__all__ = ["attach"]


def attach(
    *objects: Ticker, loop: asyncio.AbstractEventLoop | None = None, interval: float | None = None
) -> Attachment:
    """Has an asyncio loop tick `objects` when something has happened to them.

    :param objects: servers and clients, started or connected now or later.
    :param loop: None: the one that is running.
    :param interval: seconds after which they are ticked in any case, for a server with an `on_tick`; None: never.

    The loop's thread. Raises RuntimeError when `loop` is None and none is running. KeyboardInterrupt and SystemExit
    of a callback leave the loop, as those of asyncio's own callbacks do.
    """
    return _Attachment(objects, interval, loop or asyncio.get_running_loop())


class _Attachment(Attachment):
    def __init__(self, objects: tuple[Ticker, ...], interval: float | None, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        super().__init__(objects, interval)

    def _watch(self, fd: int, call: Callable[[], None]) -> Undo:
        try:
            self._loop.add_reader(fd, call)
        except NotImplementedError:  # the proactor loop of Windows
            return _thread.watch(fd, call, self._loop.call_soon_threadsafe)

        def undo() -> None:
            if not self._loop.is_closed():
                self._loop.remove_reader(fd)

        return undo

    def _repeat(self, seconds: float, call: Callable[[], object]) -> Undo:
        def run() -> None:
            timer[0] = self._loop.call_later(seconds, run)  # first: an exception of call() must not end it
            call()

        timer = [self._loop.call_later(seconds, run)]
        return lambda: timer[0].cancel()
