"""Tests of programs built on pyHV: without sockets, threads and real time.

`World` runs servers and clients of a program, its own classes unchanged, over links in memory under a clock that only
moves when the test says so. `LiveServer` is the other way: a real server on a free port of loopback. The fixtures for
both are in `pyhv.testing.pytest_plugin`. `import pyhv` imports none of this. See docs/testing.md.
"""

from __future__ import annotations

from pyhv.testing.clock import ManualClock
from pyhv.testing.link import Link
from pyhv.testing.live import LiveServer
from pyhv.testing.world import World

__all__ = ["Link", "LiveServer", "ManualClock", "World"]
