"""HAProxy for tests: in the foreground, with its configuration in one folder."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support import LIMIT, wait_until

# Debian has it where only root's PATH looks.
HAPROXY = shutil.which("haproxy", path=os.environ.get("PATH", os.defpath) + os.pathsep + "/usr/sbin")

needs_haproxy = pytest.mark.skipif(HAPROXY is None, reason="haproxy is not installed")


@contextmanager
def haproxy(folder: Path, configuration: str, answers: Callable[[], object]) -> Iterator[None]:
    """HAProxy with this configuration, until the end. Waits until `answers()` raises no OSError."""
    assert HAPROXY is not None
    path = folder / "haproxy.cfg"
    path.write_text(configuration, encoding="utf-8")
    output = folder / "output"
    with output.open("wb") as out:
        process = subprocess.Popen(
            [HAPROXY, "-db", "-f", str(path)], stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=folder
        )

    def listens() -> bool:
        assert process.poll() is None, output.read_text()
        try:
            answers()
        except OSError:
            return False
        return True

    try:
        wait_until(listens, what="haproxy listens")
        yield
    finally:
        process.terminate()
        try:
            process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
