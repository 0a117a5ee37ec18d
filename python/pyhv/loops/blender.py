"""Blender: its timers, for add-ons and scripts in the editor. There are none in background mode (`blender -b`)."""

from __future__ import annotations

from collections.abc import Callable

import bpy

from pyhv.loops._attachment import Attachment, Ticker, Undo, renewing

__all__ = ["attach"]


def attach(*objects: Ticker, interval: float = 1 / 60) -> Attachment:
    """Has Blender's main loop tick `objects`, as `bpy.app.timers` does: callbacks may use `bpy`.

    :param objects: servers and clients, started or connected now or later.
    :param interval: seconds between two ticks.

    Blender's main thread. It goes on when another file is loaded: an add-on detaches in its `unregister()`. An
    exception that leaves a tick is printed to the console.
    """
    return _Attachment(objects, interval)


class _Attachment(Attachment):
    def _repeat(self, seconds: float, call: Callable[[], object]) -> Undo:
        timers = bpy.app.timers

        def add(run: Callable[..., object]) -> Callable[..., object]:
            timers.register(run, first_interval=seconds, persistent=True)
            return run

        def remove(run: Callable[..., object]) -> None:
            if timers.is_registered(run):
                timers.unregister(run)

        return renewing(add, remove, call, answer=seconds)
