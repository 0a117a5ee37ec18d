"""A World: servers and clients of a program in memory, under one clock."""

from __future__ import annotations

import heapq
import types
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar, cast

from pyhv.client import HvWebSocketClient
from pyhv.server import HvWebServer
from pyhv.testing._client import ClientCore, MemoryClient
from pyhv.testing._endpoint import Network
from pyhv.testing._http import WorldHttp
from pyhv.testing._server import MemoryServer, ServerCore
from pyhv.testing.clock import SECOND, ManualClock, nanoseconds
from pyhv.testing.link import Link
from pyhv.testing.live import described

__all__ = ["World"]

_W = TypeVar("_W", bound="World")
_T = TypeVar("_T")
_S = TypeVar("_S", bound=HvWebServer)
_C = TypeVar("_C", bound=HvWebSocketClient)
_A = TypeVar("_A", HvWebServer, HvWebSocketClient)


class _Front:
    """Goes in front of a program's class when a class is made of it."""

    __slots__ = ()
    _pyhv_core: ServerCore | ClientCore

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Keeps the program's own from running."""

    def _callback_failed(self, callback: str, exc: Exception) -> None:
        self._pyhv_core.network.errors.append(exc)
        cast("Any", super())._callback_failed(callback, exc)


class _Program:
    """The main loop of one object."""

    def __init__(self, what: Callable[[], object], core: ServerCore | ClientCore, fps: float, now: int) -> None:
        self.what = what
        self.core = core
        self._fps = fps
        self._begun = now
        self._frame = 1
        self._stalled = 0

    def next(self) -> int:
        """When its next frame is due."""
        return max(self._begun + round(self._frame * SECOND / self._fps), self._stalled)

    def stall(self, until: int) -> None:
        self._stalled = max(self._stalled, until)

    def came(self, now: int) -> None:
        """A frame begins: on time, or late, and then the next one comes a whole frame later."""
        if now > self._begun + round(self._frame * SECOND / self._fps):
            self._begun, self._frame = now, 0
        self._frame += 1


class World:
    """Servers and clients in memory, under one clock: nothing happens but what the test lets happen.

    ::

        with World(seed=1) as world:
            server = world.serve(Game())
            player = world.connect(Player(), server, path="/play", link=Link(delay=0.05))
            world.advance(1.0)

    They are a program's own objects, of its own classes, and stay so: only what lies under `HvWebServer` and
    `HvWebSocketClient`, the native side, is exchanged for one without sockets, threads and real time that keeps the
    same rules. Clients reach servers by port: whatever host a URL names, it is in the World.

    One thread uses a World and all that is in it; another one gets RuntimeError.

    :param seed: everything that is by chance follows from it. The same seed and the same program give the same events.
    :param fps: frames a second that `advance` ticks everybody, unless told otherwise.
    """

    def __init__(self, seed: int = 0, *, fps: float = 60.0) -> None:
        self._check_fps(fps)
        #: The clock: `world.clock.now` for what a program takes `time.monotonic` for.
        self.clock = ManualClock()
        self._seed = seed
        self._fps = fps
        self._network = Network(self.clock)
        self._programs: dict[int, _Program] = {}  # by the id of the object, which the core holds
        self._frames: list[tuple[int, int, _Program]] = []
        self._links = 0
        self._advancing = False

    @property
    def now(self) -> float:
        """Seconds since the World was made."""
        return self.clock.now()

    @property
    def errors(self) -> list[Exception]:
        """What callbacks and HTTP handlers have raised, in order: it was logged and went to `on_error`, no further.

        `assert not world.errors` ends a test well; `world.errors.clear()` where an error was meant.
        """
        return self._network.errors

    # Who is in it

    def adopt(
        self,
        what: _A,
        *,
        link: Link | None = None,
        fps: float | None = None,
        step: Callable[[], object] | None = None,
    ) -> _A:
        """Takes a server or client into the World, before it is started or connects; returns it.

        From here on `start`, `connect`, `tick` and all else that it has happen in the World. Use it where the program
        itself starts and connects; else `serve` and `connect` do it.

        :param link: of a client, for all its connections; None: one without delay.
        :param fps: frames a second of its main loop; None: the World's.
        :param step: what `advance` calls each frame instead of `what.tick`: the body of the program's main loop.

        Raises RuntimeError when it runs or is in a World already; ValueError for a link that another client has.
        """
        self._network.check_thread()
        frames = self._check_fps(self._fps if fps is None else fps)
        if hasattr(type(what), "_pyhv_core"):
            raise RuntimeError(f"this {type(what).__name__} is in a World already")
        core: ServerCore | ClientCore
        native: type
        if isinstance(what, HvWebServer):
            if link is not None:
                raise ValueError("link= is for clients: each has one of its own")
            if what.is_running:
                raise RuntimeError(f"this {type(what).__name__} runs already: give it to the World before start()")
            core, native = ServerCore(self._network, what), MemoryServer
        else:
            if what.is_connecting or what.remote_address is not None:
                text = f"this {type(what).__name__} has connected already: give it to the World before connect()"
                raise RuntimeError(text)
            link = Link() if link is None else link
            link._bind(self.clock, f"{self._seed}/{self._links}")
            self._links += 1
            core, native = ClientCore(self._network, what, link), MemoryClient
        _exchange(what, native, core)
        program = _Program(what.tick if step is None else step, core, frames, self.clock.ns)
        self._programs[id(what)] = program
        heapq.heappush(self._frames, (program.next(), len(self._programs), program))
        return what

    def serve(
        self,
        server: _S,
        port: int = 0,
        *,
        fps: float | None = None,
        step: Callable[[], object] | None = None,
        **settings: Any,
    ) -> _S:
        """Adopts a server, unless that was done, and starts it; returns it.

        :param port: in the World; 0: one that is free.
        :param fps: as for `adopt`, and so is `step`.
        :param settings: as `HvWebServer.start` takes them.
        """
        if id(server) not in self._programs:
            self.adopt(server, fps=fps, step=step)
        server.start(port, **settings)
        return server

    def connect(
        self,
        client: _C,
        to: HvWebServer | str,
        *,
        path: str = "/",
        link: Link | None = None,
        fps: float | None = None,
        step: Callable[[], object] | None = None,
        **options: Any,
    ) -> _C:
        """Adopts a client, unless that was done, and has it begin to connect; returns it.

        :param to: a server of the World, or a URL.
        :param path: path and query, where `to` is a server.
        :param link: how its connections travel; None: without delay.
        :param fps: as for `adopt`, and so is `step`.
        :param options: as `HvWebSocketClient.connect` takes them.
        """
        url = to if isinstance(to, str) else f"ws://127.0.0.1:{self._port(to)}{path}"
        if id(client) not in self._programs:
            self.adopt(client, link=link, fps=fps, step=step)
        elif link is not None:
            raise ValueError("link=: this client has its link already")
        client.connect(url, **options)
        return client

    def link(self, client: HvWebSocketClient) -> Link:
        """The link of a client."""
        core = self._program(client).core
        if not isinstance(core, ClientCore):
            raise ValueError("a server has no link: each of its clients has one")
        return core.link

    def http(self, server: HvWebServer) -> WorldHttp:
        """HTTP for the handlers of a server: `world.http(game).get("/scores")`.

        Routes, parsing, files and all that are native, and so is what answers here: over one socket of loopback, while
        the World's clock stands still. Handlers run on this thread and see the World as it is.
        """
        core = self._program(server).core
        if not isinstance(core, ServerCore):
            raise ValueError("a client has no handlers")
        return core.http

    # Time

    def advance(self, seconds: float) -> None:
        """Lets time pass: messages travel, and everybody is ticked at their frame rate, in the order of adoption.

        What leaves a tick, KeyboardInterrupt say, leaves this call, and the next one goes on. Raises RuntimeError
        inside a callback.
        """
        self._run_until(self.clock.ns + nanoseconds("seconds", seconds))

    def until(self, condition: Callable[[], _T], limit: float = 60.0) -> _T:
        """Lets time pass, frame by frame, until `condition()` is true; returns its value.

        Raises AssertionError after `limit` seconds of the World's time.
        """
        end = self.clock.ns + nanoseconds("limit", limit)
        while not (value := condition()):
            if self.clock.ns >= end:
                raise AssertionError(f"not within {limit:g} s of the World's time: {described(condition)}")
            self._run_until(min(end, self._next_frame()))
        return value

    def stall(self, what: HvWebServer | HvWebSocketClient, seconds: float) -> None:
        """The main loop of one object hangs: `advance` does not tick it for so long.

        Its native side goes on, as a real one would: it takes connections and messages, and answers pings.
        """
        self._program(what).stall(self.clock.ns + nanoseconds("seconds", seconds))

    def close(self) -> None:
        """Ends the World: what still runs is dropped, without further callbacks. Done by leaving the context."""
        for program in self._programs.values():
            program.core.discard()
        self._network.closed = True

    def __enter__(self: _W) -> _W:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # Inside

    @staticmethod
    def _check_fps(fps: float) -> float:
        if not 0 < fps <= 1e6:
            raise ValueError(f"fps={fps} is not a number above 0")
        return fps

    def _program(self, what: HvWebServer | HvWebSocketClient) -> _Program:
        program = self._programs.get(id(what))
        if program is None:
            raise ValueError(f"this {type(what).__name__} is not in this World: adopt() it")
        return program

    def _port(self, server: HvWebServer) -> int:
        self._program(server)
        if server.port is None:
            raise RuntimeError(f"this {type(server).__name__} does not run: start() it")
        return server.port

    def _next_frame(self) -> int:
        if not self._frames:
            return self.clock.ns + round(SECOND / self._fps)
        return max(self.clock.ns, self._frames[0][0])

    def _run_until(self, end: int) -> None:
        self._network.check_thread()
        if self._advancing or any(program.core.ticker.is_inside for program in self._programs.values()):
            raise RuntimeError("a World does not advance inside a callback: clock.advance() is how long it takes")
        self._advancing = True
        try:
            while self._frames and self._frames[0][0] <= end:
                queued, number, program = heapq.heappop(self._frames)
                due = program.next()
                if due > queued:
                    # Stalled since it got its place.
                    heapq.heappush(self._frames, (due, number, program))
                    continue
                # A callback may have taken longer than this frame was due.
                self.clock.run_until(max(due, self.clock.ns))
                program.came(self.clock.ns)
                # Before the tick: what leaves it leaves the queue whole.
                heapq.heappush(self._frames, (program.next(), number, program))
                if not isinstance(program.core, ServerCore) or program.core.has_started:
                    program.what()
            self.clock.run_until(max(end, self.clock.ns))
        finally:
            self._advancing = False


def _exchange(what: HvWebServer | HvWebSocketClient, native: type, core: ServerCore | ClientCore) -> None:
    """Puts `native` under the class of one object, in front of the native base: everything else keeps its place.

    The core is the class's, which is this object's alone: what a program finds in its `__dict__` stays its own.
    """
    cls = type(what)

    def body(namespace: dict[str, Any]) -> None:
        # Slots of its own, none: the object's memory is laid out as before, so its class can be exchanged.
        namespace.update(__slots__=(), __module__=cls.__module__, __qualname__=cls.__qualname__, __doc__=cls.__doc__)
        namespace["_pyhv_core"] = core

    what.__class__ = types.new_class(cls.__name__, (_Front, cls, native), {}, body)
