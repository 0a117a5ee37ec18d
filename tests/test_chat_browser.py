"""The chat page in headless Chromium: two tabs, injection, a restart of the server, screenshots.

The screenshots are kept in tests/artifacts/. Without chromium and chromedriver the tests fail, unless
PYHV_NO_BROWSER=1 says that this is meant.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from selenium.webdriver.chrome.webdriver import WebDriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from browser_helper import set_color_scheme, set_viewport, wait_until
from support_load import ARTIFACTS, ChatServerProgram

DESKTOP = (1200, 800)
PHONE = (390, 844)


@pytest.fixture
def chat() -> Iterator[ChatServerProgram]:
    with ChatServerProgram() as running:
        yield running


class Tab:
    """The chat page in a tab of its own."""

    def __init__(self, driver: WebDriver, url: str) -> None:
        self.driver = driver
        driver.switch_to.new_window("tab")
        self.handle = driver.current_window_handle
        set_viewport(driver, *DESKTOP)
        driver.get(url)
        self.wait_for_state("Connected")

    def show(self) -> WebDriver:
        self.driver.switch_to.window(self.handle)
        return self.driver

    def wait_for_state(self, state: str) -> None:
        wait_until(self.show(), lambda d: d.find_element(By.ID, "state").text == state, limit=20)

    @property
    def nick(self) -> str:
        return self.show().find_element(By.ID, "nick").text

    @property
    def people(self) -> list[str]:
        return [name.text for name in self.show().find_elements(By.CSS_SELECTOR, "#people .name")]

    def say(self, text: str) -> None:
        field = self.show().find_element(By.ID, "input")
        field.send_keys(text, Keys.ENTER)

    def messages(self) -> list[tuple[str, str]]:
        """The chat messages on the page: who and what."""
        found = self.show().find_elements(By.CSS_SELECTOR, ".message")
        return [
            (line.get_attribute("data-nick") or "", line.find_element(By.CLASS_NAME, "text").text) for line in found
        ]

    def notices(self) -> list[str]:
        return [line.text for line in self.show().find_elements(By.CLASS_NAME, "notice")]

    def wait_for_message(self, nick: str, text: str) -> None:
        wait_until(self.show(), lambda _: (nick, text) in self.messages())

    def wait_for_notice(self, text: str) -> None:
        wait_until(self.show(), lambda _: text in self.notices())

    def be(self, nick: str) -> None:
        self.say(f"/nick {nick}")
        wait_until(self.show(), lambda _: self.nick == nick)

    def errors(self) -> list[str]:
        """What the page has written to the browser's log as an error; a lost connection is one."""
        entries = self.show().get_log("browser")  # type: ignore[no-untyped-call]
        return [str(entry["message"]) for entry in entries if entry["level"] == "SEVERE"]

    def resize(self, width: int, height: int, *, mobile: bool) -> None:
        set_viewport(self.show(), width, height, mobile=mobile)
        wait_until(self.driver, lambda d: d.execute_script("return innerWidth") == width)

    def screenshot(self, name: str) -> Path:
        ARTIFACTS.mkdir(exist_ok=True)
        path = ARTIFACTS / f"{name}.png"
        assert self.show().save_screenshot(str(path))
        return path


@pytest.fixture
def open_tab(chromium: WebDriver, chat: ChatServerProgram) -> Iterator[Callable[[], Tab]]:
    first = chromium.current_window_handle
    tabs: list[Tab] = []

    def opened() -> Tab:
        tabs.append(Tab(chromium, chat.url))
        return tabs[-1]

    yield opened
    for tab in tabs:
        tab.show().close()
    chromium.switch_to.window(first)


def test_two_tabs_see_each_other(open_tab: Callable[[], Tab]) -> None:
    one, two = open_tab(), open_tab()
    assert (one.nick, two.nick) == ("user_1", "user_2")
    one.wait_for_notice("user_2 joined")
    assert one.people == two.people == ["user_1", "user_2"]
    one.say("hello from the first tab")
    two.wait_for_message("user_1", "hello from the first tab")
    two.say("and from the second, with ü and \u4f60\u597d")
    one.wait_for_message("user_2", "and from the second, with ü and \u4f60\u597d")
    assert one.messages() == two.messages()  # one order for all, the own ones included
    assert not [*one.errors(), *two.errors()]


def test_a_new_nickname_is_seen_by_all(open_tab: Callable[[], Tab]) -> None:
    one, two = open_tab(), open_tab()
    one.be("alice")
    two.wait_for_notice("user_1 is now alice")
    wait_until(two.show(), lambda _: two.people == ["alice", "user_2"])
    one.say("who am I?")
    two.wait_for_message("alice", "who am I?")
    two.say("/nick alice")
    two.wait_for_notice("The nickname alice is taken.")
    assert two.nick == "user_2"


def test_html_in_a_message_or_a_nickname_is_text(open_tab: Callable[[], Tab]) -> None:
    one, two = open_tab(), open_tab()
    one.be("<b>bold</b>")
    injections = [
        "<script>window.injected=1</script>",
        "<img src=x onerror=window.injected=1>",
        "</p></div><iframe srcdoc='<script>parent.injected=1</script>'></iframe>",
        "&lt;not an entity&gt; &amp;",
        "javascript:window.injected=1",
    ]
    for text in injections:
        one.say(text)
    for tab in (one, two):
        tab.wait_for_message("<b>bold</b>", injections[-1])
        assert [text for _, text in tab.messages()] == injections
        assert "<b>bold</b>" in tab.people
        driver = tab.show()
        assert not driver.find_elements(By.CSS_SELECTOR, "#lines script, #lines img, #lines iframe, #people b")
        assert driver.execute_script("return window.injected === undefined") is True
        assert not tab.errors()


def test_a_restarted_server_gets_its_people_back(chat: ChatServerProgram, open_tab: Callable[[], Tab]) -> None:
    one, two = open_tab(), open_tab()
    one.be("alice")
    chat.process.send_signal(signal.SIGTERM)
    assert chat.finish() == 0
    for tab in (one, two):
        tab.wait_for_state("Offline")
        assert tab.show().find_element(By.ID, "banner").is_displayed()
        assert "The connection was lost." in tab.notices()
        assert not tab.people
    with ChatServerProgram(chat.port):
        for tab, nick in ((one, "alice"), (two, "user_2")):
            retry = tab.show().find_element(By.ID, "retry")
            if retry.is_displayed() and retry.is_enabled():
                retry.click()  # "Try now"; otherwise an attempt is under way
            tab.wait_for_state("Connected")
            tab.wait_for_notice(f"Connected again. You are {nick}.")
            assert tab.nick == nick
            assert not tab.show().find_element(By.ID, "banner").is_displayed()
        one.say("still me")
        two.wait_for_message("alice", "still me")


def test_a_page_reconnects_by_itself(chat: ChatServerProgram, open_tab: Callable[[], Tab]) -> None:
    tab = open_tab()
    tab.be("alice")
    chat.process.kill()  # no goodbye
    chat.finish()
    tab.wait_for_state("Offline")
    with ChatServerProgram(chat.port):
        tab.wait_for_notice("Connected again. You are alice.")
        wait_until(tab.show(), lambda _: tab.people == ["alice"])


def test_screenshots(open_tab: Callable[[], Tab]) -> None:
    alice, bob = open_tab(), open_tab()
    alice.be("alice")
    bob.be("bob")
    talk = [
        (alice, "Did the server survive the restart?"),
        (bob, "It did. The page came back by itself and kept my name."),
        (bob, "Nobody had to reload anything."),
        (alice, "One port, one thread, one tick() per frame. A longer line shows how the text wraps."),
        (bob, "Good."),
    ]
    for tab, text in talk:
        tab.say(text)
        for reader in (alice, bob):
            reader.wait_for_message(tab.nick, text)
    driver = alice.show()
    for name, size, scheme in (
        ("chat-desktop", DESKTOP, "light"),
        ("chat-desktop-dark", DESKTOP, "dark"),
        ("chat-phone", PHONE, "light"),
    ):
        alice.resize(*size, mobile=size is PHONE)
        set_color_scheme(driver, "dark" if scheme == "dark" else "light")
        assert driver.execute_script("return document.documentElement.scrollWidth") <= size[0]
        for visible in ("state", "input", "send", "nick"):
            box = driver.find_element(By.ID, visible).rect
            assert min(box["x"], box["y"]) >= 0, visible
            assert box["x"] + box["width"] <= size[0], visible
            assert box["y"] + box["height"] <= size[1], visible
        picture = alice.screenshot(name).read_bytes()
        assert picture.startswith(b"\x89PNG")
        assert (int.from_bytes(picture[16:20], "big"), int.from_bytes(picture[20:24], "big")) == size
