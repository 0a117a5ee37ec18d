"""docs/cli.md and the examples in the help are right: each command line is one, and sessions run as they stand."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from pyhv import _cli
from pyhv._cli import bench, connect, listen, run, serve
from support import python_environment
from support_cli import Command

PAGE = Path(__file__).parent.parent / "docs" / "cli.md"
BLOCK = re.compile(r"^```(?P<kind>[^\n`]*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)
PORT = "9090"  # what the sessions use


def blocks(kind: str) -> list[re.Match[str]]:
    return [block for block in BLOCK.finditer(PAGE.read_text(encoding="utf-8")) if block["kind"].split()[:1] == [kind]]


def examples(epilog: str) -> list[str]:
    """The command lines of a help's examples, without what stands beside them."""
    text = epilog.partition("examples:\n")[2].partition("\n\n")[0]
    lines = [re.split(r" {3,}|  (?=\w+ \w+ \w+)", line.strip())[0] for line in text.splitlines()]
    return [line for line in lines if line.startswith("pyhv ")]


HELP = [line for module in (_cli, run, serve, connect, listen, bench) for line in examples(module._EPILOG)]
PAGES = [line for block in blocks("sh") for line in block["text"].splitlines() if line.strip()]


def test_there_are_examples() -> None:
    assert len(HELP) > 20
    assert len(PAGES) > 20
    assert all(line.startswith("pyhv ") for line in PAGES)


@pytest.mark.parametrize("line", [*HELP, *PAGES])
def test_a_command_line_is_one(line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    # Up to where the shell goes on by itself.
    stops = [number for number, word in enumerate(words) if word == "|" or word[0] in "<>"]
    _cli.parser().parse_args(words[: stops[0]] if stops else words)


@pytest.mark.skipif(sys.platform == "win32", reason="runs in sh")
@pytest.mark.parametrize(
    "block", blocks("console"), ids=lambda block: str(block.string.count("\n", 0, block.start()) + 1)
)
def test_a_session(block: re.Match[str], tmp_path: Path) -> None:
    """The class of the block says which command is its peer."""
    server = block["kind"].split()[1:]
    with Command(server[0], "-p", "0", *server[1:]) as peer:
        found = re.compile(r"http://\S+:(\d+)/\n")
        port = found.search(peer.wait_for(lambda output: bool(found.search(output))))
        assert port is not None
        shown = ""
        for line in block["text"].splitlines():
            if not line.startswith("$ "):
                continue
            done = subprocess.run(
                ["sh", "-c", f"exec 2>&1; {line[2:]}".replace(PORT, port[1])],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                cwd=tmp_path,
                timeout=60,
                check=False,
                env={**python_environment(), "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"},
            )
            shown += f"{line}\n{done.stdout.replace(port[1], PORT)}"
        assert shown == block["text"]
