"""The tokens example: answers arrive token by token, for several readers at once, and end with them."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from selenium.webdriver.chrome.webdriver import WebDriver
from selenium.webdriver.common.by import By

import browser_helper
import pyhv
from support import LIMIT, RawClient, tick_until
from support_examples import ExampleServer, artifact


@pytest.fixture
def server() -> Iterator[ExampleServer]:
    with ExampleServer("tokens/server.py", "--pace", "0.005") as running:
        yield running


def asked(server: ExampleServer, prompt: str) -> pyhv.EventSource:
    source = pyhv.EventSource(f"{server.url}answer", params={"prompt": prompt})
    source.events = []  # type: ignore[attr-defined]
    source.on_message = lambda event: events_of(source).append((event.event, event.data))  # type: ignore[method-assign]
    return source


def events_of(source: pyhv.EventSource) -> list[tuple[str, str]]:
    return source.events  # type: ignore[attr-defined, no-any-return]


def test_several_readers_get_their_answers_at_once(server: ExampleServer) -> None:
    readers = [asked(server, prompt) for prompt in ("tea", "ü <b>")]
    tick_until(lambda: all(events_of(reader)[-1:] == [("done", "")] for reader in readers), *readers)
    for reader, prompt in zip(readers, ("tea", "ü <b>"), strict=True):
        reader.close()
        *tokens, _ = events_of(reader)
        text = "".join(json.loads(data)["token"] for _, data in tokens)
        assert text.startswith(f"You asked about {prompt}. I am") and text.endswith("async or await.")
        assert len(tokens) > 50
    server.stop()


@pytest.mark.parametrize("prompt", ["", "x" * 501])
def test_no_prompt_is_refused(server: ExampleServer, prompt: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{server.url}answer?prompt={prompt}", timeout=LIMIT)
    assert refused.value.code == 400
    refused.value.close()


def test_a_reader_who_leaves_or_sleeps_is_no_trouble(server: ExampleServer) -> None:
    with RawClient(server.port, upgrade=False) as leaving:
        leaving.request("GET", "/answer?prompt=leaving")
        leaving.read_head()
    with RawClient(server.port, upgrade=False, receive_buffer=1024) as asleep:
        asleep.request("GET", "/answer?prompt=asleep")
        reader = asked(server, "tea")
        tick_until(lambda: events_of(reader)[-1:] == [("done", "")], reader)
        reader.close()
    server.stop()


@pytest.mark.usefixtures("no_proxy")
def test_the_page(chromium: WebDriver) -> None:
    with ExampleServer("tokens/server.py", "--pace", "0.02") as server:
        browser_helper.set_viewport(chromium, 760, 330)
        chromium.get(server.url)
        answer = chromium.find_element(By.ID, "answer")
        state = chromium.find_element(By.ID, "state")
        chromium.find_element(By.ID, "prompt").send_keys("main loops & <b>tokens</b>")
        button = chromium.find_element(By.ID, "button")
        button.click()
        browser_helper.wait_until(chromium, lambda _: len(answer.text) > 250, limit=20)
        assert button.text == "Stop"
        assert chromium.save_screenshot(str(artifact("tokens.png")))
        browser_helper.wait_until(chromium, lambda _: state.text.startswith("Done: "), limit=20)
        assert answer.text.startswith("You asked about main loops & <b>tokens</b>. I am")
        button.click()
        browser_helper.wait_until(chromium, lambda _: len(answer.text) > 20, limit=20)
        button.click()
        assert state.text.startswith("Stopped after")
        assert not [entry for entry in chromium.get_log("browser") if entry["level"] == "SEVERE"]  # type: ignore[no-untyped-call]
        server.stop()
