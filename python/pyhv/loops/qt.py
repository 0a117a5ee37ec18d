"""Qt, through PySide6 or PyQt6, whichever the program has imported."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

from pyhv.loops._attachment import Attachment, Ticker, Undo

__all__ = ["attach"]

_BINDINGS = ("PySide6", "PyQt6")


def attach(*objects: Ticker, interval: float | None = None) -> Attachment:
    """Has Qt's event loop tick `objects` when something has happened to them (a `QSocketNotifier` for each).

    :param objects: servers and clients, started or connected now or later.
    :param interval: seconds after which they are ticked in any case, for a server with an `on_tick`; None: never.

    The thread of the event loop, after the application object was made. Raises ImportError without PySide6 and PyQt6.
    KeyboardInterrupt and SystemExit of a callback are a slot's: PySide6 prints the first and ends the program for the
    second, PyQt6 passes both to `sys.excepthook`.
    """
    return _Attachment(objects, interval)


class _Attachment(Attachment):
    def __init__(self, objects: tuple[Ticker, ...], interval: float | None) -> None:
        self._core = _qt_core()
        super().__init__(objects, interval)

    def _watch(self, fd: int, call: Callable[[], None]) -> Undo:
        # With a parent it belongs to Qt: its wrapper may go inside its own signal, and it stays for deleteLater().
        app = self._core.QCoreApplication.instance()
        notifier = self._core.QSocketNotifier(fd, self._core.QSocketNotifier.Type.Read, app)
        notifier.activated.connect(lambda *_: call())

        def undo() -> None:
            notifier.setEnabled(False)
            notifier.deleteLater()

        return undo

    def _repeat(self, seconds: float, call: Callable[[], object]) -> Undo:
        timer = self._core.QTimer(self._core.QCoreApplication.instance())
        timer.timeout.connect(lambda: call())
        timer.start(max(1, round(seconds * 1000)))

        def undo() -> None:
            timer.stop()
            timer.deleteLater()

        return undo


def _qt_core() -> Any:
    loaded = [name for name in _BINDINGS if f"{name}.QtCore" in sys.modules]
    for name in loaded or _BINDINGS:
        try:
            return importlib.import_module(f"{name}.QtCore")
        except ModuleNotFoundError:
            continue
    raise ImportError(f"pyhv.loops.qt needs one of {', '.join(_BINDINGS)}")
