"""GLib's main loop, which is GTK's and GStreamer's, through PyGObject."""

from __future__ import annotations

import os
from collections.abc import Callable

from gi.repository import GLib

from pyhv.loops._attachment import Attachment, Ticker, Undo, renewing

__all__ = ["attach"]


def attach(*objects: Ticker, interval: float | None = None) -> Attachment:
    """Has the default main context of GLib tick `objects` when something has happened to them.

    :param objects: servers and clients, started or connected now or later.
    :param interval: seconds after which they are ticked in any case, for a server with an `on_tick`; None: never.

    The thread of the main loop. KeyboardInterrupt of a callback is printed by PyGObject, SystemExit ends the program.
    """
    return _Attachment(objects, interval)


class _Attachment(Attachment):
    def _watch(self, fd: int, call: Callable[[], None]) -> Undo:
        def add(run: Callable[..., object]) -> int:
            if os.name == "nt":
                channel = GLib.IOChannel.win32_new_socket(fd)
                return int(GLib.io_add_watch(channel, GLib.PRIORITY_DEFAULT, GLib.IOCondition.IN, run))
            return int(GLib.unix_fd_add_full(GLib.PRIORITY_DEFAULT, fd, GLib.IOCondition.IN, run))

        return renewing(add, GLib.source_remove, call, GLib.SOURCE_CONTINUE)

    def _repeat(self, seconds: float, call: Callable[[], object]) -> Undo:
        def add(run: Callable[..., object]) -> int:
            return int(GLib.timeout_add(max(1, round(seconds * 1000)), run))

        return renewing(add, GLib.source_remove, call, GLib.SOURCE_CONTINUE)
