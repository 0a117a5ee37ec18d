"""Fixtures of all tests."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from selenium.webdriver.chrome.webdriver import WebDriver

from browser_helper import BrowserMissingError, browser
from pyhv import HvWebServer
from support import EchoServer, RecordingServer, ServerThread, serving


@pytest.fixture
def server() -> Iterator[RecordingServer]:
    """A running server that records; the test ticks it."""
    running = RecordingServer()
    running.start(0)
    try:
        yield running
    finally:
        running.stop(0)


@pytest.fixture
def echo() -> Iterator[EchoServer]:
    """A running server that echoes and records; the test ticks it."""
    running = EchoServer()
    running.start(0)
    try:
        yield running
    finally:
        running.stop(0)


@pytest.fixture
def serve() -> Iterator[Callable[..., ServerThread]]:
    """`serve(server, **settings)` has a thread of its own tick the server until the test ends.

    Then it checks that every recorded callback ran on that thread.
    """
    with ExitStack() as stack:

        def start(server: HvWebServer, **settings: Any) -> ServerThread:
            return stack.enter_context(serving(server, **settings))

        yield start


@pytest.fixture(scope="module")
def chromium() -> Iterator[WebDriver]:
    """A headless Chromium. Without one the test fails, unless PYHV_NO_BROWSER=1 says that this is meant."""
    if os.environ.get("PYHV_NO_BROWSER") == "1":
        pytest.skip("PYHV_NO_BROWSER=1")
    try:
        with browser() as driver:
            yield driver
    except BrowserMissingError as missing:
        pytest.fail(f"{missing}; PYHV_NO_BROWSER=1 skips these tests", pytrace=False)


@pytest.fixture
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """HTTP clients connect by themselves, whatever the environment says."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
