"""IPython: the terminal, while it waits for input, and notebooks, whose kernel has an asyncio loop."""

from __future__ import annotations

import selectors
import sys
import time
from collections.abc import Callable
from typing import Any

import IPython
from IPython.terminal import pt_inputhooks

from pyhv.loops._attachment import Attachment, Ticker, Undo

__all__ = ["attach"]

_watched: dict[int, Callable[[], None]] = {}
_timers: list[_Timer] = []


def attach(*objects: Ticker, interval: float | None = None) -> Attachment:
    """Ticks `objects` when something has happened to them: in a notebook between cells and in `await`, in the terminal
    while IPython waits for input, as `%gui pyhv`.

    :param objects: servers and clients, started or connected now or later.
    :param interval: seconds after which they are ticked in any case, for a server with an `on_tick`; None: never.

    The thread of the cells. Raises RuntimeError outside IPython, and in the terminal while another `%gui` is enabled:
    attach to that toolkit's loop instead.
    """
    shell: Any = IPython.get_ipython()
    if shell is None:
        raise RuntimeError("pyhv.loops.ipython.attach() was called outside IPython")
    if hasattr(shell, "kernel"):
        import pyhv.loops.asyncio

        return pyhv.loops.asyncio.attach(*objects, interval=interval)
    if shell.active_eventloop not in (None, "pyhv"):
        raise RuntimeError(f"%gui {shell.active_eventloop} is enabled: attach to its loop, or end it with %gui")
    attachment = _Attachment(objects, interval)
    pt_inputhooks.register("pyhv", _wait_for_input)
    shell.enable_gui("pyhv")
    return attachment


class _Timer:
    def __init__(self, seconds: float, call: Callable[[], object]) -> None:
        self.seconds = seconds
        self.due = time.monotonic() + seconds
        self.call = call


class _Attachment(Attachment):
    def _watch(self, fd: int, call: Callable[[], None]) -> Undo:
        _watched[fd] = call
        return lambda: _watched.pop(fd, None) and None

    def _repeat(self, seconds: float, call: Callable[[], object]) -> Undo:
        timer = _Timer(seconds, call)
        _timers.append(timer)
        return lambda: _timers.remove(timer) if timer in _timers else None


def _wait_for_input(context: Any) -> None:
    """prompt_toolkit's input hook: returns when there is input."""
    slices = [] if sys.platform != "win32" else [0.05]  # its descriptor is a pipe, which Windows cannot wait for
    while not context.input_is_ready():
        with selectors.DefaultSelector() as selector:
            if not slices:
                selector.register(context.fileno(), selectors.EVENT_READ)
            for fd, call in _watched.items():
                selector.register(fd, selectors.EVENT_READ, call)
            now = time.monotonic()
            ready = selector.select(min(slices + [max(0.0, timer.due - now) for timer in _timers], default=None))
        for key, _ in ready:
            if key.data is not None:
                key.data()
        for timer in list(_timers):
            if timer.due <= time.monotonic():
                timer.due = time.monotonic() + timer.seconds
                timer.call()
