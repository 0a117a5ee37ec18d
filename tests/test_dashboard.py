"""`enable_dashboard`: what its page gets, and the page in headless Chromium.

Screenshots are kept in tests/artifacts/. Without chromium the tests of the page fail, unless PYHV_NO_BROWSER=1 says
that this is meant.
"""

from __future__ import annotations

import dataclasses
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver.chrome.webdriver import WebDriver
from selenium.webdriver.common.by import By

from browser_helper import set_color_scheme, set_viewport, wait_until
from pyhv import HttpRequest, HttpResponse, ServerStats, WebSocketChannel
from support import (
    HOST,
    EchoServer,
    RawClient,
    RecordingServer,
    ServerThread,
    connected,
    http,
    port_of,
    tick_until,
)
from support_load import ARTIFACTS

# What the page gets


def test_the_page_is_whole_and_under_a_strict_policy(server: RecordingServer) -> None:
    server.enable_dashboard()
    first, second = (http(port_of(server), "GET", "/_pyhv") for _ in range(2))
    assert (first.status, first.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert first.headers["cache-control"] == "no-store"
    assert first.headers["x-content-type-options"] == "nosniff"
    policy = dict(part.strip().split(" ", 1) for part in first.headers["content-security-policy"].split(";"))
    assert (policy["default-src"], policy["connect-src"], policy["frame-ancestors"]) == ("'none'", "'self'", "'none'")
    assert "unsafe" not in first.headers["content-security-policy"]
    page = first.body.decode()
    nonces = re.findall(r'nonce="(\w+)"', page)
    assert len(nonces) == 2
    assert {f"'nonce-{nonce}'" for nonce in nonces} == {policy["script-src"]} == {policy["style-src"]}
    assert first.headers["content-security-policy"] != second.headers["content-security-policy"]
    # Nothing from elsewhere.
    assert not re.search(r"https?://|//\w+\.|@import|\bsrc=", page)


def test_the_json_has_the_fields_of_stats(server: RecordingServer) -> None:
    server.enable_dashboard("/inside/")
    client = connected(server)
    client.send("hello")
    tick_until(lambda: server.record.count("message"), server, client)
    answer = http(port_of(server), "GET", "/inside/stats.json")
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    told = json.loads(answer.body)
    assert told.keys() == {field.name for field in dataclasses.fields(ServerStats)} | {"version"}
    stats = server.stats().as_dict()
    changing = {"uptime", "stall_age", "http_bytes_written", "http_bytes_read", "http_responses"}
    changing |= {"http_requests_active", "http_connections"}
    for name, value in json.loads(json.dumps(stats)).items():
        if name not in changing:
            assert told[name] == value, name
    client.close()


def test_it_is_off_by_default_and_for_this_machine(serve: Callable[..., ServerThread]) -> None:
    server = RecordingServer()
    port = serve(server, trusted_proxies=[HOST]).port
    assert http(port, "GET", "/_pyhv").status == 404
    server.enable_dashboard()
    for path in ("/_pyhv", "/_pyhv/stats.json"):
        assert http(port, "GET", path).status == 200
        refused = http(port, "GET", path, [("X-Forwarded-For", "192.0.2.1")])
        assert refused.status == 403
        assert refused.body == b"403 Forbidden: 192.0.2.1 is not in allow= (enable_dashboard)\n"
    assert server.refusals["enable_dashboard"] == 2


# The page in a browser


class Busy(EchoServer):
    """Has things to show: some callbacks take their time, and one fails."""

    hang = threading.Event()

    def on_init(self) -> None:
        self.enable_dashboard()
        self.get("/ok", lambda req, resp: "fine")
        self.get("/hang", self.get_hang)

    def get_hang(self, req: HttpRequest, resp: HttpResponse) -> str:
        self.hang.wait(20)
        return "went on"

    def on_ws_message(self, channel: WebSocketChannel, msg: str | bytes) -> None:
        super().on_ws_message(channel, msg)
        if msg == "slow":
            time.sleep(0.004)


class Load:
    """Clients that say something until it is stopped; a thread of its own."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        with RawClient(self._port) as one, RawClient(self._port) as other:
            with RawClient(self._port) as bad:
                bad.send_text("x" * 2000)
                bad.read_close()
            for path in ("/ok", "/nowhere"):
                http(self._port, "GET", path)
            number = 0
            while not self._stop.wait(0.01):
                number += 1
                one.send_text("slow" if number % 20 == 0 else "hello")
                other.send_text("grüße " * (number % 30))
                one.read_message()
                other.read_message()


@pytest.fixture
def page(chromium: WebDriver, serve: Callable[..., ServerThread]) -> Iterator[tuple[WebDriver, Busy]]:
    """The page of a busy server, in a tab of its own."""
    server = Busy()
    Busy.hang.clear()
    port = serve(server, max_message_size=1000).port
    with Load(port):
        chromium.switch_to.new_window("tab")
        set_viewport(chromium, 1400, 1010)
        set_color_scheme(chromium, "light")
        chromium.get(f"http://{HOST}:{port}/_pyhv")
        try:
            yield chromium, server
        finally:
            Busy.hang.set()
    log = chromium.get_log("browser")  # type: ignore[no-untyped-call]
    errors = [entry for entry in log if entry["level"] == "SEVERE"]
    assert not [entry for entry in errors if "ERR_CONNECTION" not in entry["message"]]


def text(driver: WebDriver, place: str) -> str:
    return driver.find_element(By.CSS_SELECTOR, place).text


def tile(driver: WebDriver, name: str) -> str:
    for found in driver.find_elements(By.CSS_SELECTOR, ".tile"):
        number, label = found.text.split("\n")
        if label == name:
            return number
    raise AssertionError(name)


def painted(driver: WebDriver) -> list[int]:
    """How many kinds of pixels each chart has: one for an empty one."""
    script = """return [...document.querySelectorAll("canvas")].map(canvas => {
        const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        return new Set(new Uint32Array(data.buffer)).size;
    });"""
    found: list[int] = driver.execute_script(script)
    return found


def keep(driver: WebDriver, name: str) -> None:
    ARTIFACTS.mkdir(exist_ok=True)
    assert driver.save_screenshot(str(Path(ARTIFACTS) / name))


def test_it_draws_what_the_server_counts(page: tuple[WebDriver, Busy]) -> None:
    driver, server = page
    wait_until(driver, lambda d: text(d, "#state") == "running")
    wait_until(driver, lambda d: tile(d, "WebSockets") == "2")
    for name in ("messages received", "messages sent"):
        wait_until(driver, lambda d, name=name: re.fullmatch(r"[1-9][\d.]*/s", tile(d, name)))  # type: ignore[misc]
    assert f"{HOST}:{server.port}, up " in text(driver, "header")
    assert "1 I/O thread" in text(driver, "header")
    wait_until(driver, lambda d: "max_message_size\n1" in text(d, "main").replace(" 1", "\n1"))
    assert "1009, message too big" in text(driver, "main")
    assert all(kinds > 5 for kinds in painted(driver))
    assert len(painted(driver)) == 9
    assert "2 WebSockets" in driver.title
    # Some seconds of history, for the picture: as many looks as four seconds have.
    script = "return history.length"
    wait_until(driver, lambda d: d.execute_script(script) > 30, limit=30)
    keep(driver, "dashboard.png")
    set_color_scheme(driver, "dark")
    background = "return getComputedStyle(document.body).backgroundColor"
    wait_until(driver, lambda d: d.execute_script(background) == "rgb(20, 23, 26)")
    keep(driver, "dashboard-dark.png")
    set_viewport(driver, 390, 844, mobile=True)
    wide = "return document.documentElement.scrollWidth"
    wait_until(driver, lambda d: d.execute_script(wide) <= 390)
    keep(driver, "dashboard-phone.png")


def test_it_says_that_the_program_stalls_and_why(page: tuple[WebDriver, Busy]) -> None:
    driver, server = page
    wait_until(driver, lambda d: text(d, "#state") == "running")
    assert not driver.find_element(By.ID, "alarm").is_displayed()
    with RawClient(port_of(server), upgrade=False) as raw:
        raw.request("GET", "/hang")
        wait_until(driver, lambda d: text(d, "#state") == "stalled")
        alarm = wait_until(driver, lambda d: text(d, "#alarm"))
        assert re.match(r"Stalled: the tick that runs now, with its callbacks, has taken [\d.]+ s\.", alarm)
        assert driver.title.startswith("STALLED")
        with RawClient(port_of(server)):
            wait_until(driver, lambda d: re.search(r"\d events? waits?\.", text(d, "#alarm")))
            keep(driver, "dashboard-stalled.png")
            server.hang.set()
            assert raw.read_answer().body == b"went on"
    wait_until(driver, lambda d: text(d, "#state") == "running")
    assert not driver.find_element(By.ID, "alarm").is_displayed()


def test_it_says_when_nobody_answers(chromium: WebDriver) -> None:
    server: Any = Busy()
    server.start(0)
    chromium.switch_to.new_window("tab")
    chromium.get(f"http://{HOST}:{server.port}/_pyhv")
    wait_until(chromium, lambda d: text(d, "#about"))
    server.stop(0)
    wait_until(chromium, lambda d: text(d, "#state") == "no answer")
    assert "The server has not answered for" in text(chromium, "#alarm")
