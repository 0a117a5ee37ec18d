"""A program that does nothing but wait for messages and answer them: its thread drives the sockets while it waits.

Whether it does can only be seen from inside (crates/engine/src/driver.rs); what must hold is the same either way.
"""

from __future__ import annotations

import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support import LIMIT, RawClient, python_process, run_python

ROUNDS = 500  # far more than the eight waits after which a thread begins to drive

SERVER = """
import sys, time
import pyhv

class Server(pyhv.HvWebServer):
    def on_init(self):
        self.enable_healthz()

    def on_ws_message(self, channel, msg):
        if msg == "stall":
            until = time.monotonic() + 60
            while time.monotonic() < until and not stalled_enough():
                sum(range(1000))
        channel.send(msg)

def stalled_enough():
    # The other end says so by a file, since this thread listens to nobody.
    import os
    return os.path.exists(sys.argv[1])

server = Server()
server.start(0, ping_interval=0.2)
print(server.port, flush=True)
try:
    while True:
        server.tick(timeout=None)
except KeyboardInterrupt:
    server.stop()
    print("stopped", flush=True)
"""


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def ping_pong(client: RawClient, rounds: int, name: str = "") -> None:
    """Sends a message at a time and reads its echo."""
    for number in range(rounds):
        client.send_text(f"{name}{number}")
        assert client.read_message() == f"{name}{number}"


def test_a_stall_after_single_messages_keeps_nobody_waiting(tmp_path: Path) -> None:
    enough = tmp_path / "enough"
    with python_process(SERVER, str(enough)) as process:
        port = int(first_line(process))
        with (
            RawClient(port) as client,
            RawClient(port, upgrade=False) as other,
            RawClient(port, upgrade=False) as asking,
        ):
            ping_pong(client, ROUNDS)
            client.send_text("stall")
            # The callback runs on, and yet: a handshake, a ping, and an answer of the I/O thread.
            other.upgrade()
            other.send_ping(b"there?")
            while (frame := other.read_frame()).opcode != 0xA:
                assert frame.opcode == 0x9
            assert frame.payload == b"there?"
            asking.request("GET", "/healthz")
            assert asking.read_answer().status == 200
            enough.touch()
            assert client.read_message() == "stall"
            ping_pong(client, ROUNDS)


@pytest.mark.parametrize("idle", [False, True], ids=["busy", "idle"])
def test_ctrl_c(tmp_path: Path, idle: bool) -> None:
    with python_process(SERVER, str(tmp_path / "never")) as process, ThreadPoolExecutor(1) as pool:
        port = int(first_line(process))
        with RawClient(port) as client:
            ping_pong(client, ROUNDS)
            if idle:
                process.send_signal(signal.SIGINT)
            else:
                pool.submit(process.send_signal, signal.SIGINT)
                # Until there is the close frame, or the end, instead of an echo.
                with pytest.raises((AssertionError, OSError, EOFError)):
                    ping_pong(client, 1_000_000)
            assert first_line(process) == "stopped"
            assert process.wait(LIMIT) == 0


def test_many_take_turns(tmp_path: Path) -> None:
    with python_process(SERVER, str(tmp_path / "never")) as process:
        port = int(first_line(process))

        def visit(number: int) -> None:
            for _ in range(3):
                with RawClient(port) as client:
                    ping_pong(client, ROUNDS // 10, f"{number}: ")

        with ThreadPoolExecutor(12) as pool:
            list(pool.map(visit, range(24)))


CLIENT = """
import sys, time
import pyhv

class Client(pyhv.HvWebSocketClient):
    got = ()

    def on_message(self, msg):
        self.got = (*self.got[-3:], msg)

client = Client()
client.connect(f"ws://127.0.0.1:{sys.argv[1]}/")
while not client.is_connected:
    client.tick(timeout=1)
for number in range(500):
    client.send(str(number))  # outside of a tick
    while client.got[-1:] != (str(number),):
        client.tick(timeout=None)
client.send("the last word")
print("sent", flush=True)
sys.stdin.readline()  # and no tick any more
"""


def test_what_is_sent_before_a_program_ceases_to_tick_leaves() -> None:
    heard = """
import pyhv, sys
class Server(pyhv.HvWebServer):
    def on_ws_message(self, channel, msg):
        channel.send(msg)
        if msg == "the last word":
            print(msg, flush=True)
server = Server()
server.start(0)
print(server.port, flush=True)
while True:
    server.tick(timeout=None)
"""
    with python_process(heard) as server, python_process(CLIENT, first_line(server)) as client:
        assert first_line(client) == "sent"
        assert first_line(server) == "the last word"


def test_a_child_of_fork_does_not_drive() -> None:
    done = run_python("""
import os, pyhv, socket, threading
import support

class Echo(pyhv.HvWebServer):
    def on_ws_message(self, channel, msg):
        channel.send(msg)
        if msg == "499":
            self.over = True

def serve():
    server = Echo()
    server.over = False
    server.start(0)
    def play():
        with support.RawClient(server.port) as client:
            for number in range(500):
                client.send_text(str(number))
                assert client.read_message() == str(number)
    thread = threading.Thread(target=play)
    thread.start()
    while not server.over:
        server.tick(timeout=None)
    return server, thread

server, thread = serve()
pid = os.fork()
if pid == 0:
    try:
        server.tick()
    except RuntimeError:
        again, thread = serve()
        again.tick(timeout=0.01)
        thread.join()
        os._exit(0)
    os._exit(1)
_, status = os.waitpid(pid, 0)
server.tick(timeout=0.01)
thread.join()
server.stop()
print(status)
""")
    assert done.stdout == "0\n", done.stderr
