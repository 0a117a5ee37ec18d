"""Fixtures for pytest. Installing pyHV does not load them; a `conftest.py` does, with

    pytest_plugins = ["pyhv.testing.pytest_plugin"]

or `pytest -p pyhv.testing.pytest_plugin`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, Protocol, TypeVar

import pytest

from pyhv.server import HvWebServer
from pyhv.testing.live import LiveServer
from pyhv.testing.world import World

__all__ = ["ServeLive", "pyhv_live", "pyhv_world"]

_S = TypeVar("_S", bound=HvWebServer)


class ServeLive(Protocol):
    """What the fixture `pyhv_live` is."""

    def __call__(self, server: _S, **settings: Any) -> LiveServer[_S]: ...


@pytest.fixture
def pyhv_world() -> Iterator[World]:
    """A World with seed 0 and 60 frames a second: servers and clients without sockets, threads and real time.

    An exception that a callback raised fails the test at its end, unless it says `pyhv_world.errors.clear()`.
    """
    with World() as world:
        yield world
        if world.errors:
            raise AssertionError(
                "a callback has raised: pyhv_world.errors.clear() says that this was meant"
            ) from world.errors[0]


@pytest.fixture
def pyhv_live() -> Iterator[ServeLive]:
    """`pyhv_live(server, **settings)` starts a real server on a free port, and stops it after the test."""
    with ExitStack() as stack:

        def serve(server: _S, **settings: Any) -> LiveServer[_S]:
            return stack.enter_context(LiveServer(server, **settings))

        yield serve
