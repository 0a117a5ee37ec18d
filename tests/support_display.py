"""A display without a screen, for windows: Xvfb."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


class Display:
    """A running Xvfb. `name` is the value for DISPLAY."""

    def __init__(self, name: str, picture: Path) -> None:
        self.name = name
        self._picture = picture  # a file in which Xvfb keeps what is on the screen

    def screenshot(self, path: Path, width: int, height: int) -> None:
        """Writes the upper left part of the screen as a PNG file."""
        data = self._picture.read_bytes()
        # X Window Dump, version 7: 25 numbers, of which these are sizes, then a table of colours, then the pixels.
        head = struct.unpack(">25I", data[:100])
        assert (head[1], head[11]) == (7, 32), head  # version, bits per pixel
        line, pixels = head[12], head[0] + 12 * head[19]
        rows = []
        for y in range(min(height, head[5])):
            row = data[pixels + y * line :][: min(width, head[4]) * 4]
            rgb = bytearray(len(row) // 4 * 3)
            rgb[0::3], rgb[1::3], rgb[2::3] = row[2::4], row[1::4], row[0::4]
            rows.append(b"\0" + rgb)
        size = struct.pack(">2I5B", len(rows[0]) // 3, len(rows), 8, 2, 0, 0, 0)
        chunks = [(b"IHDR", size), (b"IDAT", zlib.compress(b"".join(rows), 9)), (b"IEND", b"")]
        path.write_bytes(
            b"\x89PNG\r\n\x1a\n"
            + b"".join(
                struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
                for kind, content in chunks
            )
        )


@contextmanager
def display(width: int = 1280, height: int = 800) -> Iterator[Display]:
    """Starts Xvfb. Skips the test where there is none."""
    program = shutil.which("Xvfb")
    if program is None:
        pytest.skip("Xvfb is not on PATH (Debian: apt-get install xvfb)")
    with tempfile.TemporaryDirectory(prefix="pyhv-display-", ignore_cleanup_errors=True) as directory:
        ours, its = os.pipe()
        command = [program, "-displayfd", str(its), "-screen", "0", f"{width}x{height}x24", "-nolisten", "tcp"]
        try:
            process = subprocess.Popen([*command, "-fbdir", directory], pass_fds=[its], stderr=subprocess.DEVNULL)
        finally:
            os.close(its)
        try:
            with open(ours) as told:
                number = told.readline().strip()
            assert number, "Xvfb did not start"
            yield Display(f":{number}", Path(directory) / "Xvfb_screen0")
        finally:
            process.terminate()
            process.wait()
