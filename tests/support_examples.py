"""The programs of examples/, as people run them."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

from support_load import ARTIFACTS, ROOT, Program

EXAMPLES = ROOT / "examples"

#: For pygame: no screen, no sound.
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
os.environ.setdefault("SDL_AUDIODRIVER", "dummy")


class ExampleServer(Program):
    """A program of examples/ that serves."""

    def __init__(self, path: str, *arguments: str) -> None:
        super().__init__(EXAMPLES / path, *arguments, "--port", "0")
        try:
            self.wait_for("(Ctrl-C stops)")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        found = re.search(r"http://[\d.]+:(\d+)", self.output)
        assert found, self.output
        self.url = found[0] + "/"
        self.port = int(found[1])

    def stop(self) -> None:
        """Ends it as Ctrl-C does; it has to have nothing to complain about."""
        self.process.send_signal(signal.SIGINT)
        assert self.finish() == 0, self.output
        assert "Traceback" not in self.output, self.output


def artifact(name: str) -> Path:
    """Where a picture goes for people to look at."""
    ARTIFACTS.mkdir(exist_ok=True)
    return ARTIFACTS / name
