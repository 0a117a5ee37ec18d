"""A display without a screen, for windows: Xvfb."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def display(width: int = 1280, height: int = 800) -> Iterator[str]:
    """Starts Xvfb, and yields the value for DISPLAY. Skips the test where there is no Xvfb."""
    program = shutil.which("Xvfb")
    if program is None:
        pytest.skip("Xvfb is not on PATH (Debian: apt-get install xvfb)")
    ours, its = os.pipe()
    try:
        process = subprocess.Popen(
            [program, "-displayfd", str(its), "-screen", "0", f"{width}x{height}x24", "-nolisten", "tcp"],
            pass_fds=[its],
            stderr=subprocess.DEVNULL,
        )
    finally:
        os.close(its)
    try:
        with open(ours) as told:
            number = told.readline().strip()
        assert number, "Xvfb did not start"
        yield f":{number}"
    finally:
        process.terminate()
        process.wait()
