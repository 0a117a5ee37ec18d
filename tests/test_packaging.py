"""What `pip install` gives: versions, type information, and an import that does nothing behind one's back."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import metadata, resources
from pathlib import Path

import pytest

import pyhv

ROOT = Path(__file__).parent.parent


def run(program: str) -> str:
    """Runs a Python program in a process of its own; its standard output."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_one_version() -> None:
    workspace = (ROOT / "Cargo.toml").read_text(encoding="utf-8").partition("[workspace.package]")[2]
    version = re.search(r'^version = "(.+)"$', workspace, re.MULTILINE)
    assert version is not None
    assert pyhv.__version__ == metadata.version("pyhv") == version[1]


def test_changelog_has_the_version_or_something_unreleased() -> None:
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings
    assert headings[0] == "Unreleased" or headings[0] == pyhv.__version__


def test_requires_python() -> None:
    assert metadata.metadata("pyhv")["Requires-Python"] == ">=3.10"
    assert sys.version_info >= (3, 10)


def test_needs_no_other_package() -> None:
    assert metadata.requires("pyhv") is None


def test_typed() -> None:
    files = {file.name for file in resources.files("pyhv").iterdir()}
    assert {"py.typed", "_native.pyi"} <= files


def test_all_is_what_there_is() -> None:
    assert list(pyhv.__all__) == sorted(pyhv.__all__)
    for name in pyhv.__all__:
        assert hasattr(pyhv, name), name


def test_import_starts_no_thread() -> None:
    assert run("import threading, pyhv; print(threading.active_count())") == "1\n"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_import_starts_no_native_thread_and_opens_nothing() -> None:
    program = """
import os
before = len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))
import pyhv
after = len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))
print(before == after, after[0])
"""
    assert run(program) == "True 1\n"


def test_import_leaves_signals_and_logging_alone() -> None:
    program = """
import logging, signal
before = [signal.getsignal(s) for s in signal.valid_signals()]
import pyhv
assert [signal.getsignal(s) for s in signal.valid_signals()] == before
assert not logging.getLogger().handlers
assert not logging.getLogger("pyhv").handlers
"""
    assert run(program) == ""
