"""The stub of `pyhv._native` says what the module has, and every member says what it does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pyhv import _native


# What mypy's stubtest gets wrong. One that it does not need any more is an error.
def test_stub_matches_the_module(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mypy.stubtest", "pyhv._native"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr


def public_members(owner: ModuleType | type, prefix: str) -> dict[str, Any]:
    """What a program can see of a module or class, and of its classes, by dotted name."""
    members = {}
    for name, member in vars(owner).items():
        if name.startswith("_"):
            continue
        members[f"{prefix}.{name}"] = member
        if isinstance(member, type):
            members.update(public_members(member, f"{prefix}.{name}"))
    return members


MEMBERS = public_members(_native, "_native")


def test_the_members_are_found() -> None:
    assert {"_native.io_threads", "_native.Server.tick", "_native.WebSocketChannel.data"} <= MEMBERS.keys()


@pytest.mark.parametrize("name", MEMBERS)
def test_docstring(name: str) -> None:
    assert (MEMBERS[name].__doc__ or "").strip(), f"{name} has no docstring"
