"""pygame-ce and pygame, for programs that wait for events. A game that draws at a steady rate needs none of this: it
calls `tick()` once a frame."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pygame

from pyhv.loops import _thread
from pyhv.loops._attachment import Attachment, Ticker, Undo

__all__ = ["PygameAttachment", "attach"]


def attach(*objects: Ticker) -> PygameAttachment:
    """Puts an event into pygame's queue when something has happened to `objects`::

        with pyhv.loops.pygame.attach(client) as network:
            while playing:
                event = pygame.event.wait()
                network.process_event(event)
                ...

    :param objects: servers and clients, started or connected now or later.

    The thread that handles pygame's events, after `pygame.init()`. An exception that leaves a tick leaves
    `process_event`.
    """
    return PygameAttachment(objects, None)


class PygameAttachment(Attachment):
    """As `Attachment`, with the event's type and what handles it."""

    def __init__(self, objects: tuple[Ticker, ...], interval: float | None) -> None:
        #: The type of the events, from `pygame.event.custom_type()`.
        self.event_type: int = pygame.event.custom_type()
        super().__init__(objects, interval)

    def process_event(self, event: pygame.event.Event) -> bool:
        """Ticks the object that `event` is for. Returns whether it was one of these events."""
        if event.type != self.event_type:
            return False
        event.run()
        return True

    def _watch(self, fd: int, call: Callable[[], None]) -> Undo:
        return _thread.watch(fd, call, self._post)

    def _post(self, run: Callable[[], object]) -> None:
        event = pygame.event.Event(self.event_type, run=run)
        while self.is_attached and pygame.display.get_init():
            try:
                pygame.event.post(event)
                return
            except pygame.error:
                time.sleep(0.01)  # the queue is full: the program is not looking

    def _repeat(self, seconds: float, call: Callable[[], object]) -> Undo:
        # pygame's own timers are one for each type of event.
        ended = threading.Event()

        def post() -> None:
            while not ended.wait(seconds):
                self._post(call)

        threading.Thread(target=post, name="pyhv-loop-repeat", daemon=True).start()
        return ended.set
