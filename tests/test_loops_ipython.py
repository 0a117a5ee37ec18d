"""pyhv.loops.ipython in a terminal: messages arrive while IPython waits for input. The notebook's is the example's."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import LIMIT, EchoServer, ServerThread, port_of, serving

pexpect = pytest.importorskip("pexpect", reason="IPython, which brings it along, is not installed")
pytest.importorskip("IPython")

HERE = Path(__file__).parent


class Terminal:
    """IPython on a pseudo-terminal."""

    def __init__(self, tmp_path: Path) -> None:
        environment = {**os.environ, "IPYTHONDIR": str(tmp_path), "TERM": "xterm", "PYTHONPATH": str(HERE)}
        arguments = ["-m", "IPython", "--no-banner", "--no-confirm-exit", "--colors=NoColor"]
        self.child = pexpect.spawn(
            sys.executable, arguments, env=environment, timeout=LIMIT, encoding="utf-8", dimensions=(50, 200)
        )
        self.cell = 0
        self.prompt()

    def prompt(self) -> None:
        self.cell += 1
        self.child.expect(rf"In \[.*{self.cell}.*\]")

    def run(self, line: str) -> None:
        self.child.send(line + "\r")
        self.prompt()

    def wait_for(self, text: str) -> None:
        """Something is printed, though nobody types."""
        self.child.expect_exact(text)

    def close(self) -> None:
        self.child.close(force=True)


@pytest.fixture
def peer() -> Iterator[ServerThread]:
    with serving(EchoServer()) as running:
        yield running


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    opened = Terminal(tmp_path)
    yield opened
    opened.close()


def test_messages_arrive_at_the_prompt(peer: ServerThread, terminal: Terminal) -> None:
    terminal.run("import pyhv, pyhv.loops.ipython")
    terminal.run("client = pyhv.HvWebSocketClient()")
    terminal.run("client.on_open = lambda: print('is', 'open')")
    terminal.run("client.on_message = lambda msg: print('got', msg.upper())")
    terminal.run("attached = pyhv.loops.ipython.attach(client)")
    terminal.child.send(f"client.connect('ws://127.0.0.1:{port_of(peer.server)}/')\r")
    terminal.wait_for("is open")
    terminal.prompt()
    for text in ("one", "two"):
        terminal.child.send(f"client.send('{text}') and None\r")
        terminal.wait_for(f"got {text.upper()}")
        terminal.prompt()
    terminal.run("%gui")
