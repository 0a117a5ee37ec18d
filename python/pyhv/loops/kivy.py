"""Kivy."""

from __future__ import annotations

from collections.abc import Callable

from kivy.clock import Clock

from pyhv.loops._attachment import Attachment, Ticker, Undo, renewing

__all__ = ["attach"]


def attach(*objects: Ticker, interval: float = 1 / 60) -> Attachment:
    """Has Kivy's `Clock` tick `objects`, as `Clock.schedule_interval` does.

    :param objects: servers and clients, started or connected now or later.
    :param interval: seconds between two ticks, and at most one in a frame.

    Kivy's main thread. An exception that leaves a tick goes to Kivy's `ExceptionManager`, and by default leaves
    `App.run()`.
    """
    return _Attachment(objects, interval)


class _Attachment(Attachment):
    def _repeat(self, seconds: float, call: Callable[[], object]) -> Undo:
        return renewing(lambda run: Clock.schedule_interval(run, seconds), Clock.unschedule, call)
