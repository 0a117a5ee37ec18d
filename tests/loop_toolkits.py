"""The toolkits that pyhv.loops knows, as the programs of loop_program.py drive them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from pyhv.loops import Attachment, Ticker


class Toolkit:
    """One loop. `run` returns when `quit` was called inside it."""

    #: It waits for descriptors: an idle object is not ticked.
    waits = True
    #: Exceptions of a callback leave `run`; else they go to `sys.excepthook`, and the loop goes on.
    leaves = True
    #: Its `attach` has `interval=`.
    has_interval = True

    def attach(self, *objects: Ticker, **options: Any) -> Attachment:
        raise NotImplementedError

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        raise NotImplementedError

    def run(self) -> None:
        raise NotImplementedError

    def quit(self) -> None:
        raise NotImplementedError

    def nest(self, until: Callable[[], bool]) -> None:
        """Runs a loop inside a callback, as a dialog does, until `until()`."""
        raise NotImplementedError

    #: Whether it can do that.
    nests = True


class Asyncio(Toolkit):
    nests = False

    def __init__(self) -> None:
        self.loop = self.make_loop()

    def make_loop(self) -> Any:
        import asyncio

        return asyncio.new_event_loop()

    def attach(self, *objects: Ticker, **options: Any) -> Attachment:
        import pyhv.loops.asyncio

        return pyhv.loops.asyncio.attach(*objects, loop=self.loop, **options)

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        self.loop.call_later(seconds, call)

    def run(self) -> None:
        self.loop.run_forever()

    def quit(self) -> None:
        self.loop.stop()


class Proactor(Asyncio):
    """Like the default loop of Windows: it has no add_reader."""

    def make_loop(self) -> Any:
        import asyncio

        class Loop(asyncio.SelectorEventLoop):
            def add_reader(self, *_: Any) -> None:  # type: ignore[override]
                raise NotImplementedError

        return Loop()


class Uvloop(Asyncio):
    def make_loop(self) -> Any:
        import uvloop

        return uvloop.new_event_loop()


class Tkinter(Toolkit):
    def __init__(self) -> None:
        import tkinter

        self.tkinter = tkinter
        self.root = tkinter.Tk()
        self.root.withdraw()

    def attach(self, *objects: Ticker, **options: Any) -> Attachment:
        import pyhv.loops.tkinter

        return pyhv.loops.tkinter.attach(*objects, root=self.root, **options)

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        self.root.after(max(1, round(seconds * 1000)), call)

    def run(self) -> None:
        self.root.mainloop()

    def quit(self) -> None:
        self.root.quit()

    def nest(self, until: Callable[[], bool]) -> None:
        over = self.tkinter.BooleanVar()

        def look() -> None:
            over.set(True) if until() else self.later(0.005, look)

        look()
        if not over.get():
            self.root.wait_variable(over)  # what simpledialog does


class TkinterPolling(Tkinter):
    """As on Windows: without createfilehandler."""

    waits = False
    leaves = False

    def __init__(self) -> None:
        super().__init__()
        tk = self.root.tk

        class Tk:
            def __getattr__(self, name: str) -> Any:
                if name in ("createfilehandler", "deletefilehandler"):
                    raise AttributeError(name)
                return getattr(tk, name)

        self.root.tk = Tk()  # type: ignore[assignment]
        self.root.report_callback_exception = lambda *exc: sys.excepthook(*exc)


class Qt(Toolkit):
    leaves = False
    binding = "PySide6"

    def __init__(self) -> None:
        import importlib

        os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
        self.core: Any = importlib.import_module(f"{self.binding}.QtCore")
        self.app = self.core.QCoreApplication([])

    def attach(self, *objects: Ticker, **options: Any) -> Attachment:
        import pyhv.loops.qt

        return pyhv.loops.qt.attach(*objects, **options)

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        timer = self.core.QTimer(self.app)
        timer.setSingleShot(True)
        timer.timeout.connect(timer.deleteLater)
        timer.timeout.connect(call)
        timer.start(round(seconds * 1000))

    def run(self) -> None:
        self.app.exec()

    def quit(self) -> None:
        self.app.quit()

    def nest(self, until: Callable[[], bool]) -> None:
        loop = self.core.QEventLoop()  # what QDialog.exec does

        def look() -> None:
            loop.quit() if until() else self.later(0.005, look)

        self.later(0, look)
        loop.exec()


class PyQt(Qt):
    binding = "PyQt6"


class GLib(Toolkit):
    leaves = False

    def __init__(self) -> None:
        # Debian's python3-gi, which a virtual environment does not see; it is for Debian's version of Python only.
        sys.path.append("/usr/lib/python3/dist-packages")
        from gi.repository import GLib

        self.glib = GLib
        self.loops: list[Any] = []

    def attach(self, *objects: Ticker, **options: Any) -> Attachment:
        import pyhv.loops.glib

        return pyhv.loops.glib.attach(*objects, **options)

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        self.glib.timeout_add(round(seconds * 1000), call)  # once: None means no more

    def run(self) -> None:
        self.loops.append(self.glib.MainLoop())
        try:
            self.loops[-1].run()
        finally:
            self.loops.pop()

    def quit(self) -> None:
        self.loops[-1].quit()

    def nest(self, until: Callable[[], bool]) -> None:
        def look() -> None:
            self.quit() if until() else self.later(0.005, look)

        self.later(0, look)
        self.run()


class Pyglet(Toolkit):
    waits = False
    nests = False  # its clock does not call what it is calling

    def __init__(self) -> None:
        import pyglet

        self.pyglet = pyglet
        self.running = False

    def attach(self, *objects: Ticker, **options: Any) -> Attachment:
        import pyhv.loops.pyglet

        return pyhv.loops.pyglet.attach(*objects, **options)

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        self.pyglet.clock.schedule_once(lambda _dt: call(), seconds)

    def run(self) -> None:
        self.pyglet.app.run()

    def quit(self) -> None:
        self.pyglet.app.exit()


class Kivy(Toolkit):
    waits = False

    def __init__(self) -> None:
        os.environ.update(KIVY_NO_ARGS="1", KIVY_NO_CONSOLELOG="1", KIVY_NO_FILELOG="1", KIVY_NO_CONFIG="1")
        from kivy.base import EventLoop, runTouchApp
        from kivy.clock import Clock

        self.clock, self.events = Clock, EventLoop
        runTouchApp(embedded=True)  # no window

    def attach(self, *objects: Ticker, **options: Any) -> Attachment:
        import pyhv.loops.kivy

        return pyhv.loops.kivy.attach(*objects, **options)

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        self.clock.schedule_once(lambda _dt: call(), seconds)

    def run(self) -> None:
        self.over = False
        while not self.over:
            self.events.idle()

    def quit(self) -> None:
        self.over = True

    def nest(self, until: Callable[[], bool]) -> None:
        while not until():
            self.events.idle()


class Pygame(Toolkit):
    has_interval = False

    def __init__(self) -> None:
        os.environ.update(SDL_VIDEODRIVER="dummy", SDL_AUDIODRIVER="dummy", PYGAME_HIDE_SUPPORT_PROMPT="1")
        import pygame

        self.pygame = pygame
        pygame.init()
        pygame.display.set_mode((64, 64))
        self.type = pygame.event.custom_type()
        self.attachments: list[Any] = []

    def attach(self, *objects: Ticker, **options: Any) -> Attachment:
        import pyhv.loops.pygame

        attachment = pyhv.loops.pygame.attach(*objects, **options)
        self.attachments.append(attachment)
        return attachment

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        import threading

        event = self.pygame.event.Event(self.type, call=call)
        timer = threading.Timer(seconds, self.pygame.event.post, [event])
        timer.daemon = True
        timer.start()

    def run(self) -> None:
        self.over = False
        while not self.over:
            self.step()

    def step(self) -> None:
        event = self.pygame.event.wait()
        if event.type == self.type:
            event.call()
        else:
            any(attachment.process_event(event) for attachment in self.attachments)

    def quit(self) -> None:
        self.over = True

    def nest(self, until: Callable[[], bool]) -> None:
        def look() -> None:
            if not until():
                self.later(0.005, look)

        look()
        while not until():
            self.step()


class Blender(Toolkit):
    """Inside Blender: its loop runs already, and ends with the process."""

    waits = False
    leaves = False
    nests = False

    def __init__(self) -> None:
        import bpy

        self.timers = bpy.app.timers

    def attach(self, *objects: Ticker, **options: Any) -> Attachment:
        import pyhv.loops.blender

        return pyhv.loops.blender.attach(*objects, **options)

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        self.timers.register(call, first_interval=seconds)  # once: None means no more

    def run(self) -> None:
        """Returns at once: the script ends, and Blender's loop begins."""

    def quit(self) -> None:
        import bpy

        bpy.ops.wm.quit_blender()


TOOLKITS: dict[str, type[Toolkit]] = {
    "asyncio": Asyncio,
    "proactor": Proactor,
    "uvloop": Uvloop,
    "tkinter": Tkinter,
    "tkinter-polling": TkinterPolling,
    "pyside6": Qt,
    "pyqt6": PyQt,
    "glib": GLib,
    "pyglet": Pyglet,
    "kivy": Kivy,
    "pygame": Pygame,
    "blender": Blender,
}
