"""pyhv.loops.wait: several servers and clients in one wait."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

import pyhv
from pyhv.loops import wait
from support import LIMIT, EchoServer, RecordingClient, url_of


def test_one_wait_serves_all() -> None:
    one, two = EchoServer(), EchoServer()
    one.start(0)
    two.start(0)
    first, second = RecordingClient(), RecordingClient()
    first.connect(url_of(one))
    second.connect(url_of(two))
    everybody = (one, two, first, second)
    while not (first.is_connected and second.is_connected):
        assert wait(*everybody, timeout=LIMIT) > 0
    first.send("one")
    second.send("two")
    while not (first.received and second.received):
        assert wait(*everybody, timeout=LIMIT) > 0
    assert (first.received, second.received) == (["one"], ["two"])
    for server in (one, two):
        server.stop(0)


def test_a_timeout_ends_it(echo: EchoServer) -> None:
    class Server(EchoServer):
        ticks = 0

        def on_tick(self) -> None:
            self.ticks += 1

    server = Server()
    server.start(0)
    assert wait(echo, server, timeout=0.01) == 0
    assert wait(server, timeout=0) == 0
    assert server.ticks == 2  # on_tick runs, as in tick(timeout)
    server.stop(0)


def test_it_ends_at_once_when_something_waits_already(echo: EchoServer) -> None:
    client = RecordingClient()
    client.connect(url_of(echo))
    while not echo.channels:
        echo.tick(LIMIT)
    client.tick(LIMIT)
    assert wait(echo, client, timeout=0) == 0
    client.send("one")
    assert wait(echo, client) >= 1  # the echo may be back at once


def test_a_message_from_another_thread_ends_it(echo: EchoServer, serve: Callable[..., object]) -> None:
    peer = EchoServer()
    serve(peer)
    client = RecordingClient()
    client.connect(url_of(peer))
    while not client.is_connected:
        wait(echo, client, timeout=LIMIT)
    threading.Timer(0.05, client.send, ["late"]).start()
    assert wait(echo, client) == 1
    assert client.received == ["late"]


def test_a_closed_http_client_is_passed_over(echo: EchoServer) -> None:
    client = pyhv.HttpClient()
    client.close()
    assert wait(echo, client, timeout=0) == 0
    assert wait(client) == 0


@pytest.mark.parametrize("timeout", [-1.0, float("nan")])
def test_a_wrong_timeout_is_named(echo: EchoServer, timeout: float) -> None:
    with pytest.raises(ValueError, match=f"timeout={timeout}"):
        wait(echo, timeout=timeout)


def test_nothing_to_wait_for_is_an_error() -> None:
    with pytest.raises(TypeError, match="at least"):
        wait(timeout=0)


CTRL_C = """
import pyhv
from pyhv.loops import wait
one, two = pyhv.HvWebServer(), pyhv.HvWebServer()
one.start(0)
two.start(0)
try:
    print("waits", flush=True)
    wait(one, two)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_ctrl_c_ends_it() -> None:
    process = subprocess.Popen([sys.executable, "-c", CTRL_C], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == "waits\n"
        os.kill(process.pid, signal.SIGINT)
        assert process.stdout.read() == "interrupted\n"
    assert process.wait(LIMIT) == 0
