"""`pyhv listen`: what it shows of what others send, and what it answers."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import websocket

import pyhv as library
from support import HOST, LIMIT, RawClient, python_environment
from support_cli import Command, Terminal, pyhv


class Listening(Command):
    """`pyhv listen`, listening."""

    def __init__(self, *arguments: str | Path) -> None:
        super().__init__("listen", "-p", "0", *arguments)
        try:
            first = self.wait_for("(Ctrl-C stops)\n")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        self.base = first.split()[2]
        self.port = int(self.base.rpartition(":")[2].strip("/"))
        self.output = ""

    def shown(self, end: str = "\n\n") -> str:
        """What it has shown since, up to an end, without the times."""
        text = self.wait_for(lambda output: output.endswith(end))
        self.output = ""
        return re.sub(r"(?m)^\d\d:\d\d:\d\d\.\d{3} (?:127\.0\.0\.1:\d+ )?", "", text)


@contextmanager
def listening(*arguments: str | Path) -> Iterator[Listening]:
    with Listening(*arguments) as running:
        yield running


def test_a_page_and_metrics_that_show_what_goes_on() -> None:
    with listening("--dashboard", "--metrics", "--status", "404") as running:
        assert httpx.get(f"{running.base}_pyhv/stats.json").json()["websockets"] == 0
        assert b"pyhv_ticks_total" in httpx.get(f"{running.base}metrics").content
        assert httpx.get(f"{running.base}other").status_code == 404
        assert "metrics HTTP" not in running.wait_for("GET /other")


@pytest.fixture(scope="module")
def shared() -> Iterator[Listening]:
    with Listening() as running:
        yield running


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "OPTIONS", "PROPFIND", "HEAD"])
def test_a_request(shared: Listening, method: str) -> None:
    answer = httpx.request(method, f"{shared.base}a/b%20c?x=1", headers={"X-Token": "secret"})
    assert (answer.status_code, answer.content) == (200, b"")
    lines = shared.shown().splitlines()
    assert lines[0] == f"{method} /a/b%20c?x=1 HTTP/1.1"
    assert "  x-token: secret" in lines
    assert f"  host: 127.0.0.1:{shared.port}" in lines


def body_of(shown: str) -> str:
    return shown.split("\n\n", 1)[1].rstrip("\n")


def test_bodies(shared: Listening) -> None:
    def post(**content: object) -> str:
        library.post(shared.base, proxy=False, **content)  # type: ignore[arg-type]
        shared.wait_for(lambda output: output.endswith("\n\n") and output.count("\n\n") > 1)
        return body_of(shared.shown())

    assert post(data="one\ntwo\x1b[2J") == "  one\n  two\\x1b[2J"
    assert post(json={"a": [1]}) == '  {\n    "a": [\n      1\n    ]\n  }'
    assert post(data=b"\xff\x00a") == f"  00000000  ff 00 61{' ' * 42}|..a|"
    assert post(form={"a": "b c"}) == "  a=b+c"
    form = post(form={"a": "b"}, files={"f": ("x\u202e.txt", b"12345", "text/plain")})
    assert form.splitlines()[0] == "  a = b"
    assert form.splitlines()[1].startswith("  f = file ") and form.endswith("text/plain, 5 B")
    assert "\u202e" not in form
    assert post(data="x" * 5000) == f"  {'x' * 4096}\n  ... 904 more characters (--full)"
    assert post(data=b"\xff" * 300).endswith("... 44 more bytes (--full)")


def test_messages(shared: Listening) -> None:
    peer = websocket.create_connection(f"ws://{HOST}:{shared.port}/chat?x", timeout=20, header=["X-Token: t"])
    opened = shared.shown()
    number = re.match(r"WebSocket (\d+) open /chat\?x\n", opened)
    assert number is not None
    assert "\n  X-Token: t\n" in opened or "\n  x-token: t\n" in opened
    name = f"WebSocket {number[1]}"
    peer.send("hel\x1blo")
    assert shared.shown() == f"{name} text, 6 characters\n  hel\\x1blo\n\n"
    peer.send('{"a":1}')
    assert shared.shown() == f'{name} text, 7 characters\n  {{\n    "a": 1\n  }}\n\n'
    peer.send_binary(b"\x00\x01")
    assert shared.shown() == f"{name} binary, 2 bytes\n  00000000  00 01{' ' * 45}|..|\n\n"
    peer.close(4001, b"by\x07e")
    assert shared.shown() == f"{name} closed with 4001 by\\x07e\n\n"


def test_what_no_handler_sees(shared: Listening) -> None:
    with RawClient(shared.port, upgrade=False) as raw:
        raw.request("GET", "/%ff")
        assert raw.read_answer().status == 404
    assert shared.shown("\n") == "127.0.0.1 GET /%ff HTTP/1.1 answered with 404\n"


def test_answers() -> None:
    with listening("--status", "201", "-H", "X-A: b", "--respond", '{"ok": true}') as server:
        answer = httpx.post(server.base, content=b"x")
        assert (answer.status_code, answer.headers["x-a"], answer.json()) == (201, "b", {"ok": True})
        assert answer.headers["content-type"] == "application/json"
    with listening("--respond", "text") as server:
        assert httpx.get(server.base).headers["content-type"].startswith("text/plain")
    with listening("--status", "204") as server:
        assert httpx.get(server.base).status_code == 204


def test_echo() -> None:
    with listening("--echo") as server:
        answer = httpx.post(server.base, content=b"\x00x", headers={"Content-Type": "a/b"})
        assert (answer.content, answer.headers["content-type"]) == (b"\x00x", "a/b")
        peer = websocket.create_connection(f"ws://{HOST}:{server.port}/", timeout=20)
        peer.send("hello")
        assert peer.recv() == "hello"
        peer.close()


def test_full_and_raw() -> None:
    with listening("--full", "--raw") as server:
        httpx.post(server.base, content=b'{"a":"' + b"x" * 5000 + b'"}')
        assert body_of(server.shown('"}\n\n')) == '  {"a":"' + "x" * 5000 + '"}'


def test_a_large_body_is_refused_and_shown() -> None:
    with listening("--max-body", "1000") as server:
        assert httpx.post(server.base, content=b"x" * 2000).status_code == 413
        server.wait_for("answered with 413")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_well(number: int) -> None:
    with listening() as server:
        peer = websocket.create_connection(f"ws://{HOST}:{server.port}/", timeout=20)
        server.process.send_signal(number)
        assert server.finish() == 0
        assert "Traceback" not in server.output
        assert peer.sock is not None
        peer.sock.close()


def test_nobody_reads_the_output() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "pyhv", "listen", "-p", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=python_environment(),
        text=True,
    )
    try:
        assert process.stdout is not None and process.stderr is not None
        base = process.stdout.readline().split()[2]
        process.stdout.close()
        # Its last line fails, and the answer with it.
        with pytest.raises(httpx.HTTPError):
            httpx.get(base)
        assert process.wait(LIMIT) == 141
        assert process.stderr.read() == ""
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


@pytest.mark.parametrize("command", [["listen", "-p", "0"], ["serve", "-p", "0", "-q"]], ids=lambda words: words[0])
def test_nobody_reads_the_output_and_nothing_happens(command: list[str]) -> None:
    """As in `pyhv listen | head -1`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pyhv", *command], stdout=subprocess.PIPE, env=python_environment(), text=True
    )
    try:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(LIMIT) == 141
    finally:
        process.kill()
        process.wait()


def test_colours_on_a_terminal() -> None:
    with Terminal("listen", "-p", "0") as t:
        base = t.wait_for("(Ctrl-C stops)").split()[2]
        httpx.get(base)
        t.wait_for("\x1b[1mGET\x1b[0m / HTTP/1.1")
        t.type("\x03")
        assert t.finish() == 0


def test_a_port_in_use() -> None:
    with socket.create_server((HOST, 0)) as taken:
        done = pyhv("listen", "-p", str(taken.getsockname()[1]))
    assert done.returncode == 1
    assert "--port 0" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--status", "99"], ["-H", "x"], ["--echo", "--respond", "x"], ["-p", "-1"]])
def test_a_wrong_command_line(arguments: list[str]) -> None:
    assert pyhv("listen", *arguments).returncode == 2
