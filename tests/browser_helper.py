"""Headless Chromium for the tests, through the chromium and chromedriver that are on PATH.

    with browser() as driver:
        driver.get(url)
        wait_until(driver, lambda d: d.find_element(By.ID, "state").text == "Connected")

Both programs are given by path, so that Selenium Manager has nothing to look for and downloads nothing.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, TypeVar

from selenium import webdriver
from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.chrome.webdriver import WebDriver

T = TypeVar("T")

POLL_INTERVAL = 0.05  # seconds between two looks at a condition

FLAGS = (
    "--headless=new",
    "--no-sandbox",  # as root, in a container, there is no sandbox to be had
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",  # a container's /dev/shm is too small for a tab
    "--no-first-run",
    # Nothing but what the test asks for goes over the network.
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


class BrowserMissingError(RuntimeError):
    """chromium or chromedriver isn't on PATH."""


def _program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise BrowserMissingError(f"{name} is not on PATH (Debian: apt-get install chromium chromium-driver)")
    return path


@contextmanager
def browser(window_size: tuple[int, int] = (1200, 800)) -> Iterator[WebDriver]:
    """A browser with a fresh profile; quits and removes the profile at the end, whatever happened.

    The first tab's page area has `window_size`, in CSS pixels. Raises BrowserMissingError.
    """
    chromium, chromedriver = _program("chromium"), _program("chromedriver")
    # Chromium's last processes may still write while the folder is removed.
    with tempfile.TemporaryDirectory(prefix="pyhv-browser-", ignore_cleanup_errors=True) as profile:
        options = Options()
        options.binary_location = chromium
        for flag in (*FLAGS, f"--user-data-dir={profile}", "--window-size={},{}".format(*window_size)):
            options.add_argument(flag)
        driver = webdriver.Chrome(options=options, service=Service(executable_path=chromedriver))
        try:
            set_viewport(driver, *window_size)
            yield driver
        finally:
            driver.quit()


def set_viewport(driver: WebDriver, width: int, height: int, *, mobile: bool = False) -> None:
    """Give the current tab's page exactly this size.

    --window-size counts the window's own frame in and goes no narrower than about 500 pixels.
    """
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def set_color_scheme(driver: WebDriver, scheme: Literal["light", "dark"]) -> None:
    """Make the current tab's page see this prefers-color-scheme."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def wait_until(driver: WebDriver, condition: Callable[[WebDriver], T], limit: float = 10.0) -> T:
    """Look at `condition(driver)` until it is true and return its value.

    An element that isn't there yet, or no more, counts as not true. Raises AssertionError after `limit`
    seconds.
    """
    deadline = time.monotonic() + limit
    while True:
        last: object
        try:
            value = condition(driver)
            if value:
                return value
            last = value
        except (NoSuchElementException, StaleElementReferenceException) as exc:
            last = exc.msg
        if time.monotonic() >= deadline:
            raise AssertionError(f"not within {limit} s at {driver.current_url}: {condition}, last {last!r}")
        time.sleep(POLL_INTERVAL)
