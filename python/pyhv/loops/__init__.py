"""Adapters to the loops of other libraries, one module each: none is imported unless a program asks for it.

Each has `attach(*objects)`, which has a library's loop tick servers and clients of pyHV, and returns an `Attachment`;
`detach()`, or the end of a `with`, ends that::

    import pyhv.loops.asyncio

    with pyhv.loops.asyncio.attach(server, client):
        await something_else()

`asyncio`, `tkinter`, `qt`, `glib` and `ipython` wait for the descriptors of the objects and cost nothing while nothing
happens. `pyglet`, `kivy` and `blender` tick at an interval. `pygame` puts events into pygame's queue. A script without
a loop has `wait`.
"""

from __future__ import annotations

from pyhv.loops._attachment import Attachment, Ticker
from pyhv.loops._wait import wait

__all__ = ["Attachment", "Ticker", "wait"]
