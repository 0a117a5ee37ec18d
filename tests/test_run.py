"""`pyhv run`: one process or several, their end, restarts, crashes, and each way to name the server wrongly."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

import pyhv as library
from backplane_support import PROGRAMS, Engine
from pyhv import HvWebSocketClient, Reconnect
from support import (
    HOST,
    LIMIT,
    Background,
    RawClient,
    RecordingClient,
    http,
    python_environment,
    tick_until,
    wait_until,
)
from support_cli import Terminal, pyhv
from support_run import READY, Run, folder, is_worker, pause, sockets_on_each, unix, wait_until_gone
from support_tls import make_certificates

__all__ = ["folder"]

pytestmark = [unix, pytest.mark.usefixtures("no_proxy")]


def who(port: int) -> tuple[str, int]:
    number, pid, _ = json.loads(http(port, "GET", "/who").body)
    return number, pid


# One process


def test_one_process_until_ctrl_c(folder: Path) -> None:
    with Run(folder, "game:Server") as run:
        assert who(run.port) == ("1", run.process.pid)
        with RawClient(run.port) as client:
            client.read_message()
            run.process.send_signal(signal.SIGINT)
            frame = client.read_close()
            assert (frame.close_code, frame.close_reason) == (1001, "the server stops")
            client.send_frame(8, frame.payload)
        assert run.finish() == 0
        assert "Traceback" not in run.output


@pytest.mark.parametrize("arguments", [(), ("--workers", "2")])
def test_a_handler_that_runs_at_the_end_still_answers(folder: Path, arguments: tuple[str, ...]) -> None:
    with Run(folder, "game:Server", *arguments) as run:
        port = run.port
        if arguments:
            run.wait_for_ready(2)
        asked = Background(lambda: http(port, "GET", "/slow"))
        run.wait_for("slow begins")
        run.process.send_signal(signal.SIGTERM)
        assert asked.result().status == 200
        assert run.finish() == 0


@pytest.mark.parametrize("arguments", [(), ("--workers", "2")])
def test_a_second_ctrl_c_ends_it_at_once(folder: Path, arguments: tuple[str, ...]) -> None:
    with Run(folder, "game:Server", "--stop-timeout", "1000", "--spread", "0", *arguments) as run:
        port = run.port
        if arguments:
            run.wait_for_ready(2)
        with RawClient(port, upgrade=False) as client:
            client.request("GET", "/slow?seconds=1000")
            run.wait_for("slow begins")
            run.process.send_signal(signal.SIGINT)
            if arguments:
                run.wait_for("SIGINT: stopping")
            else:
                # It is draining, natively: that is how the signal's arrival shows.
                wait_until(lambda: json.loads(http(port, "GET", "/healthz").body)["status"] == "draining")
            run.process.send_signal(signal.SIGINT)
            assert run.finish() == 130


def test_settings_arrive(folder: Path, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    arguments = ["--set", "max_body_size=10", "--trusted-proxy", HOST, "--access-log", "--pid-file", pid_file]
    with Run(folder, "game:Server", *map(str, arguments)) as run:
        port = run.port
        assert int(pid_file.read_text()) == run.process.pid
        assert http(port, "POST", "/length", body=b"x" * 11).status == 413
        with RawClient(port, upgrade=False) as client:
            client.request("GET", "/who", [("X-Forwarded-For", "192.0.2.1")])
            assert json.loads(client.read_answer().body)[2] == "192.0.2.1"
        run.wait_for("INFO pyhv.access: 192.0.2.1 - - [")
        run.process.terminate()
        assert run.finish() == 0
    assert not pid_file.exists()


# Several


def test_workers_share_the_clients(folder: Path) -> None:
    with Run(folder, "game:Server", "--workers", "4") as run:
        port = run.port
        run.wait_for_ready(4)
        seen = Counter(who(port)[0] for _ in range(400))
        assert set(seen) == {"1", "2", "3", "4"}
        # A hash: 100 each, give or take 9.
        if sys.platform == "linux":
            assert min(seen.values()) > 50


ROOMS = """
from pyhv import HvWebServer


class Server(HvWebServer):
    def on_init(self):
        self.post("/say", self.say)

    def say(self, req, resp):
        self.publish("room", req.body.decode())
        return resp.text(str(self.backplane_state))

    def on_ws_open(self, channel, url):
        channel.subscribe("room")
"""


@pytest.mark.parametrize("kind", ["redis", "nats"])
def test_topics_reach_the_channels_of_all_workers(folder: Path, tmp_path: Path, kind: str) -> None:
    if PROGRAMS[kind] is None:
        pytest.skip(f"needs {kind}-server")
    (folder / "rooms.py").write_text(ROOMS)
    engine = Engine(kind, tmp_path / kind).start()
    try:
        with Run(folder, "rooms:Server", "--workers", "3", environment={"PYHV_BACKPLANE": engine.url}) as run:
            run.wait_for_ready(3)
            clients = [RecordingClient() for _ in range(12)]
            for client in clients:
                client.connect(f"ws://{HOST}:{run.port}/")
            tick_until(lambda: all(client.is_connected for client in clients), *clients)
            # Until each worker has heard of the others' interest.
            said = 0
            while not all(client.received for client in clients):
                assert http(run.port, "POST", "/say", body=b"hello").status == 200
                said += 1
                assert said < 1000
                for client in clients:
                    client.tick(0.01)
            for number in range(20):
                http(run.port, "POST", "/say", body=str(number).encode())
            tick_until(lambda: all(len({*c.received} - {"hello"}) == 20 for c in clients), *clients)
            for client in clients:
                # Who has published each of them may be another worker, so only the publisher's order is sure.
                assert sorted(msg for msg in client.received if msg != "hello") == sorted(map(str, range(20)))
                client.close()
    finally:
        engine.close()


def test_one_socket_for_all(folder: Path) -> None:
    with Run(folder, "game:Server", "--workers", "2", "--one-socket") as run:
        port, pids = run.port, run.wait_for_ready(2)
        pause(pids["1"])
        try:
            # Who is there takes what comes.
            assert {who(port) for _ in range(20)} == {("2", pids["2"])}
        finally:
            os.kill(pids["1"], signal.SIGCONT)


def test_https_too(folder: Path, tmp_path: Path) -> None:
    certificates = make_certificates(tmp_path)
    settings = certificates.settings
    files = ["--certfile", str(settings["certfile"]), "--keyfile", str(settings["keyfile"])]
    with Run(folder, "game:Server", "--workers", "2", "--tls-port", "0", *files) as run:
        run.wait_for_ready(2)
        found = re.search(r"https://\S+:(\d+)/", run.output)
        assert found is not None
        url = f"https://localhost:{found[1]}/who"
        assert {library.get(url, ca_file=str(certificates.ca)).json()[0] for _ in range(50)} == {"1", "2"}


def test_a_port_in_use(folder: Path) -> None:
    with Run(folder, "game:Server", "--workers", "2") as run:
        port = run.port
        for more in [(), ("--workers", "2"), ("--workers", "2", "--one-socket")]:
            done = pyhv("run", "game:Server", "-p", str(port), *more, environment={"PYTHONPATH": str(folder)})
            assert done.returncode == 1
            assert "Address already in use (--port 0 takes a free port)" in done.stderr


def test_a_killed_worker_is_replaced_and_the_others_go_on(folder: Path) -> None:
    with Run(folder, "game:Server", "--workers", "2") as run:
        port, pids = run.port, run.wait_for_ready(2)
        with sockets_on_each(port, set(pids.values())) as clients:
            os.kill(pids["1"], signal.SIGKILL)
            new = run.wait_for_ready(3)
            assert f"worker 1 (pid {pids['1']}) has ended, killed by SIGKILL; the next one in 0.1 s" in run.output
            assert new["2"] == pids["2"]
            assert new["1"] != pids["1"]
            other = clients[pids["2"]]
            other.send_text("still there")
            assert other.read_message() == f"{HOST} still there"
        wait_until(lambda: who(port)[1] == new["1"])


def test_what_waits_at_a_dead_workers_socket_is_served_by_its_successor(folder: Path) -> None:
    with Run(folder, "game:Server", "--workers", "2") as run:
        port, pids = run.port, run.wait_for_ready(2)
        pause(pids["1"])
        waiting = [RawClient(port, upgrade=False) for _ in range(50)]
        for client in waiting:
            client.request("GET", "/who")
        os.kill(pids["1"], signal.SIGKILL)
        answers = [json.loads(client.read_answer().body)[1] for client in waiting]
        run.wait_for_ready(3)
        assert pids["1"] not in answers
        assert set(answers) <= {pids["2"], run.pids["1"]}
        for client in waiting:
            client.socket.close()


def test_workers_end_with_their_supervisor(folder: Path) -> None:
    with Run(folder, "game:Server", "--workers", "2") as run:
        port, pids = run.port, run.wait_for_ready(2)
        with sockets_on_each(port, set(pids.values())) as clients:
            run.process.kill()
            assert [client.answer_close() for client in clients.values()] == [1001, 1001]
        wait_until_gone(list(pids.values()))


def test_ctrl_c_stops_all(folder: Path) -> None:
    with Run(folder, "game:Server", "--workers", "2") as run:
        port, pids = run.port, run.wait_for_ready(2)
        with sockets_on_each(port, set(pids.values())) as clients:
            run.process.send_signal(signal.SIGINT)
            assert [client.answer_close() for client in clients.values()] == [1001, 1001]
        assert run.finish() == 0
        assert not any(map(is_worker, pids.values()))
        assert run.output.count("has ended") == 2


def test_ctrl_c_typed_on_a_terminal_is_for_the_supervisor(folder: Path) -> None:
    """Or the workers would end on their own, in the middle of what they do."""
    with Terminal("run", "game:Server", "-p", "0", "--workers", "2", environment={"PYTHONPATH": str(folder)}) as run:
        run.wait_for(lambda output: len(READY.findall(output)) == 2)
        run.type("\x03")
        assert run.finish() == 0
        assert run.output.count("has ended") == 2
        assert "Traceback" not in run.output


def test_a_worker_that_does_not_end_is_killed(folder: Path) -> None:
    with Run(folder, "game:Server", "--workers", "1", "--stop-timeout", "0.1") as run:
        port = run.port
        run.wait_for_ready(1)
        with RawClient(port, upgrade=False) as client:
            client.request("GET", "/slow?seconds=1000")
            run.wait_for("slow begins")
            run.process.terminate()
            run.wait_for("has not ended in its time: killing it")
            assert run.finish() == 0


# Rolling restarts


class Returning(HvWebSocketClient):
    """Notes the processes that it has talked to, and how often it had to come back."""

    def __init__(self) -> None:
        self.pids: list[int] = []
        self.delays: list[float] = []

    def on_message(self, msg: str | bytes) -> None:
        self.pids.append(int(msg))

    def on_reconnecting(self, attempt: int, delay: float) -> None:
        self.delays.append(delay)


def test_a_rolling_restart_loses_nothing(folder: Path) -> None:
    """HTTP on kept and on new connections, while WebSockets are closed with 1012 and come back."""
    with Run(folder, "game:Server", "--workers", "2", "--drain", "0.5", "--spread", "0.5") as run:
        port, pids = run.port, run.wait_for_ready(2)
        over = threading.Event()

        def ask(kept: bool) -> int:
            count = 0
            client = RawClient(port, upgrade=False)
            while not over.is_set():
                client.request("GET", "/who", [] if kept else [("Connection", "close")])
                answer = client.read_answer()
                assert answer.status == 200
                count += 1
                if answer.headers.get("connection") == "close":
                    client.socket.close()
                    client = RawClient(port, upgrade=False)
            client.socket.close()
            return count

        load = [Background(partial(ask, kept)) for kept in (True, True, False)]
        clients = [Returning() for _ in range(8)]
        for client in clients:
            client.connect(f"ws://{HOST}:{port}/", reconnect=Reconnect(first=0.05))
        tick_until(lambda: all(client.pids for client in clients), *clients)
        with sockets_on_each(port, set(pids.values())) as raw:
            run.process.send_signal(signal.SIGHUP)
            for number in ("1", "2"):
                peer = raw[pids[number]]
                tick_until(peer.readable, *clients)
                frame = peer.read_close()
                assert (frame.close_code, frame.close_reason) == (1012, "the server restarts")
                peer.send_frame(8, frame.payload)
        # Whoever waits for its close answers it meanwhile.
        tick_until(lambda: run.has("all workers are new"), *clients)
        new = set(run.pids.values())
        assert not new & set(pids.values())
        tick_until(lambda: all(client.pids[-1] in new for client in clients), *clients)
        over.set()
        assert all(worker.result() > 10 for worker in load)
        wait_until_gone(list(pids.values()))
        for client in clients:
            client.close()
            # With jitter: not all at once.
            assert client.delays
        assert len({delay for client in clients for delay in client.delays}) >= len(clients)


def test_if_the_new_program_fails_the_old_one_stays(folder: Path) -> None:
    with Run(folder, "game:Server", "--workers", "2") as run:
        port, pids = run.port, run.wait_for_ready(2)
        good = (folder / "game.py").read_text(encoding="utf-8")
        (folder / "game.py").write_text("raise RuntimeError('broken')", encoding="utf-8")
        run.process.send_signal(signal.SIGHUP)
        run.wait_for("has failed, so the others stay as they are: RuntimeError: broken")
        assert {who(port)[1] for _ in range(50)} == set(pids.values())
        (folder / "game.py").write_text(good, encoding="utf-8")
        run.process.send_signal(signal.SIGHUP)
        run.wait_for("all workers are new")
        assert not set(run.pids.values()) & set(pids.values())


# Crashes


def test_one_that_never_becomes_ready_is_given_up(folder: Path) -> None:
    (folder / "bad.py").write_text("def Server():\n    raise OSError('no database')\n", encoding="utf-8")
    with Run(folder, "bad:Server", "--workers", "4") as run:
        assert run.finish() == 3
        assert run.output.count("OSError: no database; the next one in ") == 4
        assert run.output.splitlines()[-1].endswith("no worker became ready in 5 attempts: giving up")


def test_one_that_does_not_become_ready_in_time(folder: Path) -> None:
    (folder / "bad.py").write_text("import time\ntime.sleep(1000)\n", encoding="utf-8")
    with Run(folder, "bad:Server", "--workers", "1", "--start-timeout", "0.2") as run:
        run.wait_for("has ended, it was not ready within 0.2 s; the next one in")
        run.process.terminate()
        assert run.finish() == 0


def test_one_that_dies_again_and_again_is_started_after_longer_pauses(folder: Path) -> None:
    program = "import os\nfrom pyhv import HvWebServer\nclass Server(HvWebServer):\n    def on_tick(self):\n"
    program += "        self.n = getattr(self, 'n', 0) + 1\n        if self.n > 1: os._exit(7)\n"
    (folder / "bad.py").write_text(program, encoding="utf-8")
    with Run(folder, "bad:Server", "--workers", "1", "--interval", "0.01") as run:
        found = re.compile(r"exit status 7; the next one in ([\d.]+) s")
        run.wait_for(lambda output: len(found.findall(output)) >= 5)
        pauses = [float(pause) for pause in found.findall(run.output)]
        for number, pause in enumerate(pauses):
            longest = min(0.1 * 2**number, 5.0)
            assert longest / 2 - 0.06 <= pause <= longest + 0.06
        run.process.terminate()
        assert run.finish() == 0


@pytest.mark.parametrize(
    ("app", "part"),
    [
        ("nowhere:Server", "there is no module 'nowhere'"),
        ("game:Sever", "game has no 'Sever'; did you mean 'Server'?"),
        ("game:app", "game has no 'app'; did you mean 'Server'?"),
        ("game:os", "game:os is of type module, not a pyhv.HvWebServer"),
        ("wrong:Plain", "wrong:Plain is a class, but none of pyhv.HvWebServer"),
        ("wrong:number", "wrong:number is of type int"),
        ("wrong:nothing", "wrong:nothing() returned NoneType, not a pyhv.HvWebServer"),
        ("wrong:needs", "wrong:needs cannot be called without arguments: missing a required argument: 'name'"),
        ("wrong:running", "wrong:running runs already"),
    ],
)
@pytest.mark.parametrize("workers", [False, True])
def test_no_server_of_that_name(folder: Path, app: str, part: str, workers: bool) -> None:
    (folder / "wrong.py").write_text(
        "from pyhv import HvWebServer\nclass Plain: pass\nnumber = 7\ndef nothing(): pass\ndef needs(name): pass\n"
        "running = HvWebServer()\nrunning.start(0)\n",
        encoding="utf-8",
    )
    more = ["--workers", "2"] if workers else []
    done = pyhv("run", app, "-p", "0", *more, environment={"PYTHONPATH": str(folder)})
    assert part in (done.stdout if workers else done.stderr)
    if workers:
        assert "no worker became ready: giving up" in done.stdout
    assert done.returncode == (3 if workers else 1)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["game"], "'game' is not MODULE:NAME"),
        (["app/game.py:Server"], "app/game.py is a file: name its module, app.game:Server"),
        (["game:Server", "--set", "x"], "'x' is not NAME=VALUE"),
        (["game:Server", "--set", "max_conections=1"], "no such setting; did you mean max_connections?"),
        (["game:Server", "--set", "port=1"], "--set port: there is an option of its own"),
        (["game:Server", "--tls-port", "1"], "--tls-port and --certfile need each other"),
        (["game:Server", "--certfile", __file__], "--tls-port and --certfile need each other"),
        (["game:Server", "--keyfile", "x"], "--keyfile needs --certfile"),
        (["game:Server", "--workers", "0"], "invalid _workers value"),
        (["game:Server", "--one-socket"], "--one-socket needs --workers"),
        (["game:Server", "--spread", "20"], "--spread 20 is more than --stop-timeout 10"),
    ],
)
def test_a_wrong_command_line(folder: Path, arguments: list[str], part: str) -> None:
    done = pyhv("run", *arguments, environment={"PYTHONPATH": str(folder)})
    assert part in done.stderr
    assert done.returncode == 2


# Sockets of a service manager

_ACTIVATE = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv(sys.executable, [sys.executable, "-X", "dev", "-W", "error", "-m", "pyhv", *sys.argv[2:]])
"""


@pytest.mark.parametrize("workers", [0, 2])
def test_socket_activation(folder: Path, workers: int) -> None:
    """As systemd does it, with a client that was there first; and sd_notify."""
    more = ["--workers", str(workers)] if workers else []
    told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    told.bind(str(folder / "notify"))
    told.settimeout(LIMIT)
    environment = {**python_environment(), "PYTHONPATH": str(folder), "NOTIFY_SOCKET": str(folder / "notify")}
    with socket.create_server((HOST, 0)) as listener, told:
        port = listener.getsockname()[1]
        first = RawClient(port, upgrade=False)
        first.request("GET", "/who")
        process = subprocess.Popen(
            [sys.executable, "-c", _ACTIVATE, str(listener.fileno()), "run", "game:Server", *more],
            pass_fds=[listener.fileno()],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            number, pid, _ = json.loads(first.read_answer().body)
            assert number in ("1", "2")
            assert (pid == process.pid) == (not workers)
            assert b"READY=1" in told.recv(1000)
            process.terminate()
            assert b"STOPPING=1" in told.recv(1000)
            output, _ = process.communicate(timeout=LIMIT)
            assert process.returncode == 0
            assert f"http://{HOST}:{port}/" in output or not workers
            # The socket is the manager's: who comes now waits for the next start.
            with RawClient(port, upgrade=False):
                pass
            wait_until_gone([int(found) for _, found in READY.findall(output)])
        finally:
            first.socket.close()
            if process.poll() is None:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()
