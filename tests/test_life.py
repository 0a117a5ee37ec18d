"""The life of servers, clients and the process: started and stopped often, ended anyhow, forked, collected.

Elsewhere already: fifty starts and stops with clients (test_churn), what each call says after a fork, an exit while a
single daemon thread ticks, single cycles (test_server_api, test_client_api).
"""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import pytest

from pyhv import HttpRequest, HttpResponse, HvWebServer, HvWebSocketClient, WebSocketChannel
from support import (
    Background,
    EchoServer,
    RawClient,
    RecordingServer,
    connected,
    open_descriptors,
    port_of,
    python_environment,
    python_process,
    resident_bytes,
    run_python,
    thread_names,
    tick_until,
    url_of,
    wait_until,
)

MIB = 1 << 20

# Starting and stopping


def test_a_thousand_starts_and_stops_leave_nothing_behind() -> None:
    """As many as there is time for on a slow machine, but a hundred at least."""
    server = RecordingServer()

    def once(timeout: float) -> None:
        server.start(0)
        port_of(server)
        server.tick()
        server.stop(timeout)

    for _ in range(20):
        once(1.0)
    gc.collect()
    threads, descriptors, memory = thread_names(), len(open_descriptors()), resident_bytes()
    deadline = time.monotonic() + 10.0
    done = 0
    while done < 1000 and (done < 100 or time.monotonic() < deadline):
        once(0.0 if done % 2 else 1.0)
        done += 1
    assert thread_names() == threads
    wait_until(lambda: len(open_descriptors()) <= descriptors, what="all descriptors are closed")
    assert resident_bytes() - memory < 4 * MIB
    server.start(0)
    with RawClient(port_of(server)) as raw:
        raw.send_text("after all that")
        tick_until(lambda: server.record.values("message") == ["after all that"], server)
    server.stop(0)


def test_clients_that_connect_and_close_a_thousand_times_leave_nothing_behind(echo: EchoServer) -> None:
    client = HvWebSocketClient()
    for ticker in (client, echo):
        ticker.fileno()  # from here on it has what it waits on

    def once() -> None:
        client.connect(url_of(echo))
        tick_until(lambda: client.is_connected, client, echo)
        client.close()
        tick_until(lambda: client.close_code, client, echo)

    for _ in range(20):
        once()
    tick_until(lambda: not echo.channels, echo)
    gc.collect()
    threads, descriptors = thread_names(), len(open_descriptors())
    deadline = time.monotonic() + 10.0
    done = 0
    while done < 1000 and (done < 100 or time.monotonic() < deadline):
        once()
        done += 1
    tick_until(lambda: not echo.channels, echo)
    assert thread_names() == threads
    # Fewer, if a socket of the last warm-up round was still to be closed when they were counted.
    wait_until(lambda: len(open_descriptors()) <= descriptors, what="all sockets are closed")
    assert echo.record.count("open") == echo.record.count("close") == 20 + done


@pytest.mark.parametrize("timeout", [0.0, 0.5])
def test_stop_during_a_flood_of_another_threads_clients(timeout: float) -> None:
    """It returns, tells every channel once, and the clients on the other thread hear of it."""
    server = EchoServer()
    server.start(0)
    url = url_of(server)
    enough = threading.Event()

    def flood() -> tuple[int, int]:
        clients = [HvWebSocketClient() for _ in range(20)]
        for client in clients:
            client.connect(url)
        while not enough.is_set():
            for client in clients:
                while client.buffered_amount < 50_000 and client.send("x" * 300):
                    pass
                client.tick()
        tick_until(lambda: all(client.close_code is not None for client in clients), *clients)
        return len(clients), sum(client.close_code in (1001, 1006) for client in clients)

    flooding = Background(flood)
    try:
        tick_until(lambda: server.record.count("message") > 5000, server)
        server.stop(timeout)
    finally:
        enough.set()
    assert not server.is_running
    assert not server.channels
    clients, told = flooding.result()
    assert clients == told
    record = server.record
    assert record.count("open") == record.count("close") == clients
    assert record.count("error") == 0
    for channel in {call.who for call in record.calls}:
        kinds = [what for what, _ in record.of(channel)]
        assert kinds[0] == "open" and kinds[-1] == "close"
        assert set(kinds[1:-1]) <= {"message"}


# The end of the interpreter

#: Everything there is, running: a server on a thread of its own, one of the main thread, clients of both on threads
#: that tick and on one that waits without end, a sender that never stops, and TLS.
EVERYTHING = """
import os, sys, threading, tempfile, pathlib
from pyhv import HvWebSocketClient, _native
from support import EchoServer, connected, tick_until, port_of, url_of

class Echo(EchoServer):
    def on_init(self):
        self.get("/", lambda req, resp: "x")
    def on_ws_message(self, channel, msg):
        channel.send(msg)
        channel.data = (self, channel)

folder = pathlib.Path(tempfile.mkdtemp())
ca, cert, key = _native.make_dev_certificates(["127.0.0.1"])
(folder / "ca.pem").write_text(ca)
(folder / "cert.pem").write_text(cert)
(folder / "key.pem").write_text(key)

ticked = Echo()
ticked.start(0, tls_port=0, certfile=folder / "cert.pem", keyfile=folder / "key.pem")
main = Echo()
main.start(0, compression="context")

def forever(*tickers, timeout=0.001):
    while True:
        for ticker in tickers:
            ticker.tick(timeout)

def daemon(function, *arguments, **options):
    threading.Thread(target=function, args=arguments, kwargs=options, daemon=True).start()

class Pong(HvWebSocketClient):
    seen = 0
    def on_open(self):
        self.send("x" * 500)
    def on_message(self, msg):
        self.seen += 1
        self.send(msg)

daemon(forever, ticked)
clients = [Pong() for _ in range(20)]
for number, client in enumerate(clients):
    if number % 2:
        client.connect(f"wss://127.0.0.1:{ticked.tls_port}/", ca_file=folder / "ca.pem")
    else:
        client.connect(url_of(ticked))
for begin in range(0, 20, 5):
    daemon(forever, *clients[begin:begin + 5])
waiting = Pong()
waiting.connect(url_of(main))
daemon(forever, waiting, timeout=None)
quiet = connected(main)
tick_until(lambda: len(main.channels) == 2 and all(client.seen > 10 for client in clients), main)

def broadcasting():
    while True:
        ticked.broadcast("to all")
        main.broadcast("to all")
daemon(broadcasting)
connecting = HvWebSocketClient()
connecting.connect("ws://127.0.0.1:" + str(port_of(main)) + "/never ticked".replace(" ", "-"))
import shutil
shutil.rmtree(folder)
print("running", flush=True)
"""


def test_the_interpreter_ends_while_everything_runs() -> None:
    for _ in range(3):
        ran = run_python(EVERYTHING)
        assert (ran.stdout, ran.stderr, ran.returncode) == ("running\n", "", 0)


@pytest.mark.parametrize(
    ("ending", "code", "on_stderr"),
    [
        ("sys.exit(7)", 7, ""),
        ("raise RuntimeError('the end')", 1, "RuntimeError: the end"),
        ("raise KeyboardInterrupt", -signal.SIGINT, "KeyboardInterrupt"),
        ("os._exit(5)", 5, ""),
        ("import signal; os.kill(os.getpid(), signal.SIGTERM); import time; time.sleep(60)", -signal.SIGTERM, ""),
        ("main.on_tick = lambda: sys.exit(3)\nwhile True: main.tick(0.01)", 3, ""),
        ("main.on_tick = lambda: 1 / 0\nmain.on_error = lambda exc: sys.exit(4)\nwhile True: main.tick(0.01)", 4, None),
        ("threading.Thread(target=lambda: [main.tick() for _ in range(100)]).start()", 0, ""),
    ],
    ids=["sys.exit", "exception", "Ctrl-C", "os._exit", "SIGTERM", "exit in a callback", "exit in on_error", "thread"],
)
def test_the_interpreter_ends_in_any_way_while_everything_runs(ending: str, code: int, on_stderr: str | None) -> None:
    ran = run_python(f"{EVERYTHING}\n{ending}")
    assert (ran.stdout, ran.returncode) == ("running\n", code), ran.stderr
    assert "panicked" not in ran.stderr
    if on_stderr is not None:
        lines = ran.stderr.splitlines()
        assert lines[-1:] == ([on_stderr] if on_stderr else [])
        # One traceback, that of the ending.
        assert ran.stderr.count("Traceback") == bool(on_stderr)


def test_a_killed_process_is_told_to_its_peers() -> None:
    code = (
        "from support import EchoServer\ns = EchoServer()\ns.start(0)\nprint(s.port, flush=True)\nwhile True: s.tick(1)"
    )
    with python_process(code) as process:
        assert process.stdout is not None
        with RawClient(int(process.stdout.readline())) as raw:
            raw.send_text("x")
            assert raw.read_message() == "x"
            process.kill()
            assert raw.read_to_end() == b""
        assert process.wait(20) == -signal.SIGKILL


# Garbage collection


class Knot(HvWebServer):
    """A server tied to everything it knows, in every way that keeps a cycle."""

    def __init__(self) -> None:
        self.clients: list[Any] = []
        self.seen: list[Any] = []
        self.on_ws_open = self.opened  # type: ignore[method-assign]
        self.on_tick = lambda: self.seen.append(None)  # type: ignore[method-assign]
        self.get("/x", lambda req, resp: self.handle(req, resp))
        self.any("/y", self.handle)

    def handle(self, req: HttpRequest, resp: HttpResponse) -> str:
        self.seen.append((req, resp, self))
        return "x"

    def opened(self, channel: WebSocketChannel, url: str) -> None:
        channel.data = {"server": self, "channel": channel, "all": self.seen}
        self.seen.append(channel)


class KnotClient(HvWebSocketClient):
    def __init__(self, server: Knot) -> None:
        self.server = server
        self.me = [self]
        self.on_message = lambda msg: self.server.seen.append((self, msg))  # type: ignore[method-assign]


@pytest.mark.parametrize("state", ["running", "stopped", "started twice"])
def test_a_knot_of_server_channels_clients_and_callbacks_is_collected(state: str) -> None:
    def tie() -> list[weakref.ref[Any]]:
        server = Knot()
        server.start(0)
        if state == "started twice":
            server.stop(0)
            server.start(0)
        client = KnotClient(server)
        server.clients.append(client)
        client.connect(url_of(server))
        tick_until(lambda: client.is_connected, client, server)
        with RawClient(port_of(server), upgrade=False) as raw:
            raw.request("GET", "/x")
            tick_until(raw.readable, server)
            assert raw.read_answer().body == b"x"
        server.broadcast("hello")
        tick_until(lambda: (client, "hello") in server.seen, client, server)
        if state == "stopped":
            server.stop(0)
        return [weakref.ref(server), weakref.ref(client), weakref.ref(next(c for c in server.seen if _is_channel(c)))]

    gc.collect()
    descriptors = len(open_descriptors())
    references = [reference for _ in range(5) for reference in tie()]
    gc.collect()
    assert [reference() for reference in references] == [None] * len(references)
    wait_until(lambda: len(open_descriptors()) <= descriptors, what="every socket is closed")


def _is_channel(what: object) -> bool:
    return isinstance(what, WebSocketChannel)


def test_collecting_in_the_middle_of_callbacks_breaks_nothing() -> None:
    """The collector looks at the objects while the native side is at work on them."""
    before = gc.get_threshold()
    gc.set_threshold(1, 1, 1)
    try:
        with EchoServer() as server:
            server.start(0)
            clients = [connected(server) for _ in range(5)]
            for number in range(50):
                for client in clients:
                    client.send(f"{number}")
            tick_until(lambda: all(len(client.received) == 50 for client in clients), server, *clients)
            for client in clients:
                assert client.received == [f"{number}" for number in range(50)]
                client.close()
            tick_until(lambda: server.record.count("close") == 5, server, *clients)
    finally:
        gc.set_threshold(*before)


# fork()

FORK_IN_A_FLOOD = """
import os, signal, sys, threading, warnings
from support import EchoServer, connected, tick_until

warnings.simplefilter("ignore", DeprecationWarning)
server = EchoServer()
server.start(0)
clients = [connected(server) for _ in range(10)]
enough = threading.Event()

def flood():
    while not enough.wait(0.001):  # not all of the machine's time: the children need some
        for client in clients:
            if client.buffered_amount < 50_000:
                client.send("x" * 100)

flooding = threading.Thread(target=flood)
flooding.start()
for number in range(10):
    child = os.fork()
    if child == 0:
        signal.alarm(30)  # a hang ends as a failure
        try:
            server.tick()
            print("the child's tick did not raise", flush=True)
        except RuntimeError as error:
            assert "fork" in str(error)
        if ENDING == "os._exit":
            os._exit(0)
        if ENDING == "collected":
            import gc
            del server, clients
            gc.collect()
        # As if the parent's thread had been the only one: what atexit runs, runs here.
        sys.exit(0)
    for _ in range(5):
        server.tick()
        for client in clients:
            client.tick()
    _, status = os.waitpid(child, 0)
    assert status == 0, (number, status)
enough.set()
flooding.join()
for client in clients:
    client.send("last")
tick_until(lambda: all(client.received[-1:] == ["last"] for client in clients), server, *clients)
assert server.record.count("close") == server.record.count("error") == 0
assert len(server.channels) == 10
server.stop(0)
print("parent fine", flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("ending", ["os._exit", "sys.exit", "collected"])
def test_forks_in_the_middle_of_a_flood_do_the_parent_no_harm(ending: str) -> None:
    ran = run_python(f"ENDING = {ending!r}\n{FORK_IN_A_FLOOD}")
    assert (ran.stdout, ran.stderr, ran.returncode) == ("parent fine\n", "", 0)


SPAWNED = """
import multiprocessing, sys
from support import EchoServer, RecordingClient, connected, tick_until, url_of

def talk(url, queue):
    client = RecordingClient()
    client.connect(url)
    tick_until(lambda: client.is_connected, client)
    own = EchoServer()
    own.start(0)
    inner = connected(own)
    inner.send("inside")
    tick_until(lambda: inner.received, inner, own)
    own.stop(0)
    client.send("from a process")
    tick_until(lambda: client.received, client)
    client.close()
    tick_until(lambda: client.close_code, client)
    queue.put((client.received, inner.received))

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    server = EchoServer()
    server.start(0)
    queue = context.Queue()
    processes = [context.Process(target=talk, args=(url_of(server), queue)) for _ in range(2)]
    for process in processes:
        process.start()
    tick_until(lambda: server.record.count("close") == 2, server, limit=60)
    for process in processes:
        assert queue.get() == (["from a process"], ["inside"])
        process.join()
        assert process.exitcode == 0
    server.stop()
    print("fine")
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_multiprocessing_that_starts_anew_works(tmp_path: Path, method: str) -> None:
    script = tmp_path / "spawned.py"
    script.write_text(SPAWNED)
    ran = subprocess.run(
        [sys.executable, str(script), method],
        env=python_environment(),
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert (ran.stdout, ran.stderr, ran.returncode) == ("fine\n", "", 0)


# Subinterpreters

SUBINTERPRETER = """
import sys
if FIRST:
    import pyhv
    from support import EchoServer, connected, tick_until
try:
    import _interpreters as interpreters  # Python 3.13
except ImportError:
    import _xxsubinterpreters as interpreters
number = interpreters.create()
code = '''
import sys
sys.path[:] = {path!r}
try:
    import pyhv
except ImportError as error:
    text = f"refused: {{error}}"
else:
    server = pyhv.HvWebServer()
    server.start(0)
    server.tick()
    server.stop(0)
    text = "works"
import os
os.write({descriptor}, text.encode())
'''
import os
read, write = os.pipe()
code = code.format(path=sys.path, descriptor=write)
failed = getattr(interpreters, "run_string", None)(number, code)
os.close(write)
print(os.read(read, 10_000).decode(), flush=True)
interpreters.destroy(number)
import pyhv
from support import EchoServer, connected, tick_until
server = EchoServer()
server.start(0)
client = connected(server)
client.send("x")
tick_until(lambda: client.received, client, server)
server.stop(0)
print("the main one works" if client.received == ["x"] else "")
"""

#: The same without pyHV: some Pythons (3.12.1) cannot import their own modules in a subinterpreter and outside.
CONTROL = """
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
number = interpreters.create()
interpreters.run_string(number, "import datetime, ssl, logging")
interpreters.destroy(number)
import datetime, ssl, logging
"""


@pytest.mark.parametrize("first", [True, False], ids=["behind the main one", "before the main one"])
def test_a_subinterpreter_is_refused_clearly_or_works(first: bool) -> None:
    """CPython refuses from 3.12 on, where subinterpreters have a GIL of their own; before, it works."""
    ran = run_python(f"FIRST = {first}\n{SUBINTERPRETER}")
    if "No module named" in ran.stderr and "interpreters" in ran.stderr:
        pytest.skip("this Python cannot make subinterpreters from Python")
    said, *main = ran.stdout.splitlines()
    if sys.version_info >= (3, 12):
        assert said == "refused: module pyhv._native does not support loading in subinterpreters"
    else:
        assert said == "works"
    if ran.returncode < 0 and run_python(CONTROL).returncode < 0:
        pytest.skip(f"refused, and then this Python ended by itself, as it does without pyHV: {ran.stderr}")
    assert ran.returncode == 0, ran.stderr
    assert main == ["the main one works"]
