"""The client of docs/topics.md, and EventSource, in headless Chromium."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver.chrome.webdriver import WebDriver

from pyhv import HttpRequest, HttpResponse, HvWebServer, StreamWriter, WebSocketChannel
from support import Background, port_of, tick_until

PAGE = (Path(__file__).parent.parent / "docs" / "topics.md").read_text(encoding="utf-8")
(SCRIPT,) = re.findall(r"^```javascript\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)

HTML = f"""<!doctype html><title>topics</title><script>{SCRIPT}
const got = [], gaps = [], refused = [], others = [], events = [];
const topics = new Topics(`ws://${{location.host}}/`, {{
  onmessage: (topic, data) => got.push([topic, typeof data === "string" ? data : Array.from(data)]),
  ongap: (topic) => gaps.push(topic),
  onrefused: (topic, reason) => refused.push([topic, reason]),
  onother: (data) => others.push(data),
}});
topics.subscribe("kept/a");
topics.subscribe("lost");
topics.subscribe("secret");
const source = new EventSource("/feed");
source.onmessage = (event) => events.push(event.data);
source.addEventListener("gap", () => events.push("GAP"));
</script>"""


class Site(HvWebServer):
    def on_init(self) -> None:
        self.enable_topics()
        self.keep("kept/+", messages=100)
        self.get("/", self.page)
        self.sse("/feed", self.feed)

    def page(self, request: HttpRequest, response: HttpResponse) -> Any:
        return response.html(HTML)

    def feed(self, request: HttpRequest, writer: StreamWriter) -> None:
        writer.event("hello", retry=20)
        writer.subscribe("kept/a", "kept/b")

    def on_subscribe(self, channel: WebSocketChannel, topic: str) -> bool:
        return topic != "secret"

    def on_publish(self, channel: WebSocketChannel, topic: str, msg: str | bytes) -> bool:
        return topic == "kept/a"


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as site:
        site.start(0)
        yield site


def test_the_client_of_the_docs(site: Site, chromium: WebDriver) -> None:
    # The page is served by this thread's ticks.
    loaded = Background(lambda: chromium.get(f"http://127.0.0.1:{port_of(site)}/"))
    loaded.result(site)

    def value(expression: str) -> Any:
        return Background(lambda: chromium.execute_script(f"return {expression}")).result(site)

    def until(condition: Callable[[], object]) -> None:
        tick_until(condition, site)

    until(lambda: site.subscriber_count("kept/a") == 2 and site.subscriber_count("lost") == 1)
    site.publish("kept/a", "1 \u00e9\n2")
    site.publish("kept/a", b"\x00\xff")
    site.channels[0].send("plain")
    until(lambda: value("others") == ["plain"] and len(value("got")) == 2)
    assert value("got") == [["kept/a", "1 \u00e9\n2"], ["kept/a", [0, 255]]]
    assert value("refused") == [["secret", "not allowed"]]
    until(lambda: value("events") == ["hello", "1 \u00e9\n2", "AP8="])

    site.channels[0].close(1012)
    site.streams[0].close()
    until(lambda: not site.channels)
    site.publish("kept/a", "3")
    site.publish("kept/b", "4")
    site.publish("lost", "5")
    until(lambda: value("gaps") == ["lost"] and len(value("got")) == 3)
    value('topics.publish("kept/a", "6")')
    until(lambda: len(value("got")) == 4)
    assert value("got.slice(2)") == [["kept/a", "3"], ["kept/a", "6"]]
    until(lambda: value("events.slice(3)") == ["hello", "3", "4", "6"])
    value('topics.unsubscribe("lost")')
    until(lambda: site.subscriber_count("lost") == 0)
    value("topics.close(), source.close()")
    until(lambda: not site.channels)
