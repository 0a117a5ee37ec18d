"""Goes through what every adapter of pyhv.loops has to do, in a loop of one toolkit.

    python tests/loop_program.py TOOLKIT SCENARIO...

Prints a line of JSON for each scenario: its name and "ok", "skipped: ..." or a traceback. tests/test_loops.py runs it:
some toolkits cannot be had twice in a process, and one of the scenarios ends it.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

if __name__ == "__main__":  # Blender knows nothing of where it is
    sys.path[:0] = [os.path.dirname(os.path.abspath(__file__))]

import pytest

import pyhv
from loop_toolkits import TOOLKITS, Asyncio, Toolkit
from pyhv.loops import _attachment
from support import EchoServer, RecordingClient, url_of

LIMIT = 10.0  # seconds for one condition
LOOK = 0.005  # seconds between two looks at one
EXIT = 7  # what the last scenario ends the process with

#: A scenario yields conditions, and goes on, inside the toolkit's loop, when each has come true.
Scenario = Iterator[Callable[[], object]]


class Counted:
    """Counts the ticks of a server or client."""

    def __init__(self, ticker: Any) -> None:
        self.ticker = ticker
        self.ticks = 0

    def tick(self, timeout: float | None = 0.0) -> int:
        self.ticks += 1
        return int(self.ticker.tick(timeout))

    def fileno(self) -> int:
        return int(self.ticker.fileno())


class Calls:
    """How often toolkits called the adapter."""

    def __init__(self) -> None:
        self.count = 0
        tick = _attachment._Watched.tick

        def counted(watched: _attachment._Watched) -> None:
            self.count += 1
            tick(watched)

        _attachment._Watched.tick = counted  # type: ignore[assignment, method-assign]


CALLS = Calls()


def many_looks() -> Callable[[], bool]:
    """True after some looks: time enough for a loop to do what it has to do, or must not do."""
    looks = iter(range(40))
    return lambda: next(looks, None) is None


def echoes(toolkit: Toolkit) -> Scenario:
    server, client = EchoServer(), RecordingClient()
    with toolkit.attach(server, client) as attachment:
        assert attachment.objects == (server, client) and attachment.is_attached
        server.start(0)
        client.connect(url_of(server))
        yield lambda: client.is_connected
        for text in ("one", "two", "three"):
            client.send(text)
        yield lambda: len(client.received) == 3
        assert client.received == ["one", "two", "three"]
        client.close()
        yield lambda: client.close_code is not None and not server.channels
        assert server.record.threads == client.record.threads == {threading.get_ident()}
        server.stop()


def connection(server: pyhv.HvWebServer, client: pyhv.HvWebSocketClient) -> Callable[[], bool]:
    server.start(0)
    client.connect(url_of(server))
    return lambda: client.is_connected and bool(server.channels)


def costs_nothing_while_nothing_happens(toolkit: Toolkit) -> Scenario:
    if not toolkit.waits:
        raise SkippedError("it ticks at an interval")
    server, client = EchoServer(), RecordingClient()
    with toolkit.attach(server, client):
        yield connection(server, client)
        client.send("one")
        yield lambda: client.received
        yield many_looks()
        before = CALLS.count
        yield many_looks()
        assert CALLS.count == before
        server.stop(0)


def ticks_at_an_interval(toolkit: Toolkit) -> Scenario:
    class Server(EchoServer):
        ticks = 0

        def on_tick(self) -> None:
            self.ticks += 1

    if not toolkit.has_interval:
        raise SkippedError("it has none")
    server = Server()
    with toolkit.attach(server, interval=0.01):
        yield many_looks()  # nothing happens before it is started
        server.start(0)
        yield lambda: server.ticks >= 3
        server.stop()
        yield many_looks()
    ticks = server.ticks
    yield many_looks()
    assert server.ticks == ticks


def refuses_what_is_no_interval(toolkit: Toolkit) -> Scenario:
    if not toolkit.has_interval:
        raise SkippedError("it has none")
    server = EchoServer()
    for interval in (0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=f"interval={interval}"):
            toolkit.attach(server, interval=interval)
    yield lambda: True


def goes_on_after_a_restart(toolkit: Toolkit) -> Scenario:
    server, client = EchoServer(), RecordingClient()
    with toolkit.attach(server, client):
        for number in range(3):
            yield connection(server, client)
            client.send(str(number))
            yield lambda: len(client.received) == len(server.record.values("message")) == number + 1  # noqa: B023
            server.stop()
            yield lambda: client.close_code == 1001
            assert server.record.count("close") == number + 1


def detaches_inside_a_callback(toolkit: Toolkit) -> Scenario:
    class Client(RecordingClient):
        def on_message(self, msg: str | bytes) -> None:
            super().on_message(msg)
            attachment.detach()

    server, client = EchoServer(), Client()
    with toolkit.attach(server):
        opened = connection(server, client)
        yield lambda: client.tick() or opened()
        client.fileno()
        yield many_looks()  # the loop makes what it needs of its own
        threads = threading.active_count()
        assert descriptors_of(client) == 1
        attachment = toolkit.attach(client)
        assert descriptors_of(client) == 2
        client.send("one")
        yield lambda: client.received
        assert not attachment.is_attached
        assert descriptors_of(client) == 1
        client.send("two")
        yield lambda: len(server.record.values("message")) == 2
        yield many_looks()
        assert client.received == ["one"]
        attachment.detach()  # once more does nothing
        client.tick(LIMIT)
        assert client.received == ["one", "two"]
        yield lambda: threading.active_count() <= threads
        server.stop(0)


def descriptors_of(client: pyhv.HvWebSocketClient) -> int:
    """How many descriptors there are for what `client.fileno()` is one for; Linux."""
    return list(eventfds()).count(eventfd(client.fileno()))


def eventfd(number: int) -> str | None:
    """What Linux calls the eventfd behind a descriptor: None for one that is none, or is gone."""
    with contextlib.suppress(FileNotFoundError), open(f"/proc/self/fdinfo/{number}") as info:
        return next((line for line in info if line.startswith("eventfd-id:")), None)
    return None


def eventfds() -> Iterator[str | None]:
    return (eventfd(int(name)) for name in os.listdir("/proc/self/fd"))


def leaves_errors_to_on_error(toolkit: Toolkit) -> Scenario:
    class Server(EchoServer):
        def on_ws_message(self, channel: pyhv.WebSocketChannel, msg: str | bytes) -> None:
            if msg == "bad":
                raise ValueError("meant")
            super().on_ws_message(channel, msg)

    server, one, two = Server(), RecordingClient(), RecordingClient()
    with toolkit.attach(server, one, two):
        yield connection(server, one)
        two.connect(url_of(server))
        yield lambda: two.is_connected
        one.send("bad")
        yield lambda: one.close_code == 1011
        assert [str(error) for error in server.record.values("error")] == ["meant"]
        two.send("good")
        yield lambda: two.received == ["good"]
        server.stop(0)


def lets_a_loop_run_inside_a_callback(toolkit: Toolkit) -> Scenario:
    if not toolkit.nests:
        raise SkippedError("its loop cannot run inside its loop")

    class Server(EchoServer):
        depth = 0
        deepest = 0
        calls = 0

        def on_ws_message(self, channel: pyhv.WebSocketChannel, msg: str | bytes) -> None:
            self.depth += 1
            self.deepest = max(self.depth, self.deepest)
            if msg == "dialog":
                client.send("meanwhile")
                looks = many_looks()
                before = CALLS.count
                # The other object goes on inside the inner loop.
                toolkit.nest(lambda: "seen" in other.received and looks())
                self.calls = CALLS.count - before
            super().on_ws_message(channel, msg)
            self.depth -= 1

    server, client, second, other = Server(), RecordingClient(), EchoServer(), RecordingClient()
    with toolkit.attach(server, client, second, other):
        yield connection(server, client)
        yield connection(second, other)
        client.send("dialog")
        yield lambda: server.depth
        # From another thread: what this one sends leaves when its tick ends, which is when the inner loop does.
        threading.Thread(target=other.send, args=("seen",)).start()
        yield lambda: len(client.received) == 2
        assert client.received == ["dialog", "meanwhile"]
        assert server.deepest == 1
        assert not server.record.values("error")
        # Not as often as the inner loop can.
        assert not toolkit.waits or server.calls < 20, server.calls
        client.send("after")
        yield lambda: client.received[-1] == "after"
        server.stop(0)
        second.stop(0)


def survives_a_tick_elsewhere(toolkit: Toolkit) -> Scenario:
    _attachment.RETRY = 0.1
    errors: list[BaseException] = []
    STATE.caught = errors
    held, let_go = threading.Event(), threading.Event()

    class Holding(EchoServer):
        def on_ws_message(self, channel: pyhv.WebSocketChannel, msg: str | bytes) -> None:
            if msg == "hold":
                held.set()
                let_go.wait(LIMIT)
            super().on_ws_message(channel, msg)

    server, client = Holding(), RecordingClient()
    attachment = toolkit.attach(server)
    with toolkit.attach(client):
        yield connection(server, client)
        attachment.detach()
        thread = threading.Thread(target=lambda: [server.tick(0.01) for _ in iter(held.is_set, True)])
        thread.start()
        client.send("hold")
        yield held.is_set
        with toolkit.attach(server):
            client.send("more")
            yield lambda: errors
            before = CALLS.count
            yield many_looks()
            assert not toolkit.waits or CALLS.count - before < 20, CALLS.count - before
            let_go.set()
            yield lambda: client.received == ["hold", "more"]
            thread.join()
            server.stop(0)
    assert all("while thread" in str(error) for error in errors), errors
    STATE.caught = None


def forgets_a_closed_http_client(toolkit: Toolkit) -> Scenario:
    class Server(EchoServer):
        def on_init(self) -> None:
            self.get("/ping", lambda req, resp: resp.text("pong"))

    server, client, answers = Server(), pyhv.HttpClient(), []
    server.start(0)
    with toolkit.attach(server, client):
        client.get(f"http://127.0.0.1:{server.port}/ping", on_response=lambda answer: answers.append(answer.text()))
        yield lambda: answers == ["pong"]
        client.close()
        yield many_looks()
        before = CALLS.count
        yield many_looks()
        assert not toolkit.waits or CALLS.count == before, CALLS.count - before
        server.stop(0)


def passes_ctrl_c_on(toolkit: Toolkit) -> Scenario:
    class Server(EchoServer):
        def on_ws_message(self, channel: pyhv.WebSocketChannel, msg: str | bytes) -> None:
            if msg == "interrupt":
                raise KeyboardInterrupt
            super().on_ws_message(channel, msg)

    errors: list[BaseException] = []
    STATE.caught = errors
    server, client = Server(), RecordingClient()
    with toolkit.attach(server, client):
        yield connection(server, client)
        client.send("interrupt")
        client.send("after")
        yield lambda: client.received == ["after"]
        assert [type(error) for error in errors] == [KeyboardInterrupt]
        assert STATE.left == toolkit.leaves
        server.stop(0)
    STATE.caught = None


def ends_with_system_exit(toolkit: Toolkit) -> Scenario:
    class Server(EchoServer):
        def on_ws_message(self, channel: pyhv.WebSocketChannel, msg: str | bytes) -> None:
            sys.exit(EXIT)

    server, client = Server(), RecordingClient()
    with toolkit.attach(server, client):
        yield connection(server, client)
        client.send("exit")
        yield lambda: False


SCENARIOS = [
    echoes,
    costs_nothing_while_nothing_happens,
    ticks_at_an_interval,
    refuses_what_is_no_interval,
    goes_on_after_a_restart,
    detaches_inside_a_callback,
    leaves_errors_to_on_error,
    lets_a_loop_run_inside_a_callback,
    survives_a_tick_elsewhere,
    forgets_a_closed_http_client,
    passes_ctrl_c_on,
]


class SkippedError(Exception):
    """There is nothing to try."""


class State:
    caught: list[BaseException] | None = None  # where exceptions that reach the toolkit go
    left = False  # whether they left run()
    unexpected = ""  # tracebacks of others


STATE = State()


def report(name: str, result: str) -> None:
    print(json.dumps([name, result]), flush=True)


class Runner:
    """Steps through the scenarios, inside the loop."""

    def __init__(self, toolkit: Toolkit, scenarios: Sequence[Callable[[Toolkit], Scenario]]) -> None:
        self.toolkit = toolkit
        self.left = scenarios
        self.scenario: Scenario | None = None
        self.condition: Callable[[], object] = lambda: True
        self.deadline = 0.0
        self.done = False

    def step(self) -> None:
        name = self.left[0].__name__
        try:
            if self.scenario is None:
                self.scenario = self.left[0](self.toolkit)
                self.condition = lambda: True
                self.deadline = time.monotonic() + LIMIT
                STATE.caught, STATE.left = None, False
            while self.condition():
                self.condition = next(self.scenario)
                self.deadline = time.monotonic() + LIMIT
                break  # one step each time: conditions count the looks
            if time.monotonic() > self.deadline:
                line = self.scenario.gi_frame.f_lineno  # type: ignore[attr-defined]
                raise AssertionError(f"not within {LIMIT} s: line {line}; {STATE.caught}")
        except StopIteration:
            self.next(name, "ok")
        except SkippedError as why:
            self.next(name, f"skipped: {why}")
        except Exception:
            self.next(name, traceback.format_exc())
        if self.left:
            self.toolkit.later(LOOK, self.step)
        else:
            self.done = True
            self.toolkit.quit()

    def next(self, name: str, result: str) -> None:
        report(name, result if result != "ok" else STATE.unexpected or "ok")
        STATE.unexpected = ""
        self.left = self.left[1:]
        self.scenario = None


def hook(kind: type[BaseException], exc: BaseException, trace: Any) -> None:
    """What reaches the toolkit and does not leave its loop."""
    if STATE.caught is None:
        STATE.unexpected += "".join(traceback.format_exception(kind, exc, trace))
    else:
        STATE.caught.append(exc)


def main(name: str, wanted: list[str]) -> None:
    sys.excepthook = hook
    try:
        toolkit = TOOLKITS[name]()
    except Exception as missing:  # tkinter: no display; the others: ImportError
        report("", f"skipped: {type(missing).__name__}: {missing}")
        sys.exit(0)  # Blender would stay open
    scenarios = [each for each in (*SCENARIOS, ends_with_system_exit) if each.__name__ in wanted]
    runner = Runner(toolkit, scenarios)
    toolkit.later(0.0, runner.step)
    if name == "blender":
        return
    if isinstance(toolkit, Asyncio):
        toolkit.loop.set_exception_handler(lambda _, told: hook(type(told["exception"]), told["exception"], None))
    while not runner.done:
        try:
            toolkit.run()
        except (Exception, KeyboardInterrupt) as exc:
            if STATE.caught is None:
                raise
            STATE.left = True
            STATE.caught.append(exc)


if __name__ == "__main__":
    arguments = sys.argv[sys.argv.index("--") + 1 :] if "--" in sys.argv else sys.argv[1:]  # Blender's own come first
    main(arguments[0], arguments[1:])
