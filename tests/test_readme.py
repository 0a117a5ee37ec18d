"""The README's two programs, run as they stand but for the port: the client talks to the server."""

from __future__ import annotations

import http.client
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"
PORT = "9090"  # what the README's programs use
LIMIT = 20.0  # seconds


def python_block(base: str) -> str:
    """The block whose class has this base."""
    found: list[str] = re.findall(
        r"^```python\n(.*?)^```$", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    programs = [text for text in found if f"({base})" in text]
    assert len(programs) == 1
    return programs[0]


def start(program: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-u", "-X", "dev", "-W", "error", "-c", program]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.skipif(sys.platform == "win32", reason="stops the server with SIGINT")
def test_the_programs_work() -> None:
    listen = f"server.start({PORT})\n"
    program = python_block("HvWebServer")
    assert program.count(listen) == 1
    server = start(program.replace(listen, "server.start(0)\nprint(server.port)\n"))
    try:
        assert server.stdout is not None
        port = int(server.stdout.readline())

        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT)
        connection.request("GET", "/ping")
        assert connection.getresponse().read() == b"pong"
        connection.close()

        program = python_block("HvWebSocketClient")
        assert program.count(PORT) == 1
        client = start(program.replace(PORT, str(port)))
        try:
            assert client.communicate(timeout=LIMIT) == ("hello\n", "")
            assert client.returncode == 0
        finally:
            client.kill()

        server.send_signal(signal.SIGINT)
        assert server.communicate(timeout=LIMIT) == ("", "")
        assert server.returncode == 0
    finally:
        server.kill()
        server.communicate()
