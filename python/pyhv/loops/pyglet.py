"""pyglet, and arcade, whose clock is pyglet's."""

from __future__ import annotations

from collections.abc import Callable

import pyglet

from pyhv.loops._attachment import Attachment, Ticker, Undo, renewing

__all__ = ["attach"]


def attach(*objects: Ticker, interval: float = 1 / 60, clock: pyglet.clock.Clock | None = None) -> Attachment:
    """Has pyglet's clock tick `objects`, as `clock.schedule_interval` does.

    :param objects: servers and clients, started or connected now or later.
    :param interval: seconds between two ticks.
    :param clock: None: the default one, which `pyglet.app.run()` and `arcade.run()` drive.

    The thread of the clock. An exception that leaves a tick leaves `pyglet.app.run()`.
    """
    return _Attachment(objects, interval, clock or pyglet.clock.get_default())


class _Attachment(Attachment):
    def __init__(self, objects: tuple[Ticker, ...], interval: float, clock: pyglet.clock.Clock) -> None:
        self._clock = clock
        super().__init__(objects, interval)

    def _repeat(self, seconds: float, call: Callable[[], object]) -> Undo:
        def add(run: Callable[..., object]) -> Callable[..., object]:
            self._clock.schedule_interval(run, seconds)
            return run

        return renewing(add, self._clock.unschedule, call)
