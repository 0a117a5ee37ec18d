"""A page that our server serves over https opens a wss session with it, in headless Chromium.

Without chromium and chromedriver the tests fail, unless PYHV_NO_BROWSER=1 says that this is meant.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from selenium.webdriver.chrome.webdriver import WebDriver
from selenium.webdriver.common.by import By

from browser_helper import wait_until
from pyhv import HttpRequest, HttpResponse, WebSocketChannel
from support import EchoServer, ServerThread
from support import wait_until as wait_for
from support_tls import make_certificates, tls_port_of

PAGE = """<!doctype html>
<title>wss</title>
<p id="state">connecting</p>
<ol id="log"></ol>
<script>
  const say = text => {
    const line = document.createElement("li");
    line.textContent = text;
    document.getElementById("log").append(line);
  };
  const state = text => { document.getElementById("state").textContent = text; };
  const socket = new WebSocket(location.href.replace(/^http/, "ws"), ["echo", "other"]);
  socket.binaryType = "arraybuffer";
  socket.onopen = () => {
    state("open " + socket.protocol);
    socket.send("hello \\u4f60\\u597d");
    socket.send(new Uint8Array([0, 1, 254, 255]));
    socket.send("x".repeat(1 << 20));
  };
  socket.onmessage = event => {
    const data = event.data;
    if (typeof data !== "string") say("binary " + new Uint8Array(data).join(","));
    else if (data.length > 100) say("text of " + data.length);
    else say(data);
  };
  socket.onclose = event => state("closed " + event.code + " " + event.reason + " " + event.wasClean);
</script>
"""


class PageServer(EchoServer):
    def on_init(self) -> None:
        self.origins: list[str] = []
        self.get("/", self.get_page)

    def get_page(self, req: HttpRequest, resp: HttpResponse) -> None:
        resp.html(PAGE)

    def on_ws_open(self, channel: WebSocketChannel, url: str) -> None:
        super().on_ws_open(channel, url)
        self.origins.append(channel.headers["Origin"])


def trust_anything(driver: WebDriver, trust: bool) -> None:
    """Whether the tab takes certificates that nobody it knows has signed."""
    driver.execute_cdp_cmd("Security.setIgnoreCertificateErrors", {"ignore": trust})


def state(driver: WebDriver) -> str:
    return driver.find_element(By.ID, "state").text


def test_a_wss_session(chromium: WebDriver, serve: Callable[..., ServerThread], tmp_path: Path) -> None:
    server = PageServer()
    serve(server, subprotocols=["echo"], **make_certificates(tmp_path).settings)
    address = f"https://localhost:{tls_port_of(server)}"
    trust_anything(chromium, True)
    try:
        chromium.get(address + "/")
        wait_until(chromium, lambda d: len(d.find_elements(By.CSS_SELECTOR, "#log li")) == 3, limit=20)
        lines = [line.text for line in chromium.find_elements(By.CSS_SELECTOR, "#log li")]
        assert lines == ["hello \u4f60\u597d", "binary 0,1,254,255", "text of 1048576"]
        assert state(chromium) == "open echo"
        # The page itself came over HTTP/2.
        protocol = chromium.execute_script("return performance.getEntriesByType('navigation')[0].nextHopProtocol")
        assert protocol == "h2"
        assert server.origins == [address]
        (channel,) = server.channels
        assert channel.subprotocol == "echo"
        channel.close(4000, "that was all")
        wait_until(chromium, lambda d: state(d) == "closed 4000 that was all true", limit=20)
        wait_for(lambda: server.record.count("close"))
        assert server.record.values("close") == [4000]
        assert server.record.count("error") == 0
    finally:
        trust_anything(chromium, False)
        chromium.get("about:blank")


def test_a_page_from_elsewhere_may_not_connect(
    chromium: WebDriver, serve: Callable[..., ServerThread], tmp_path: Path
) -> None:
    """The page's host is 127.0.0.1, the server's localhost: another origin."""
    server = PageServer()
    serve(server, **make_certificates(tmp_path).settings)
    port = tls_port_of(server)
    trust_anything(chromium, True)
    try:
        chromium.get(f"https://127.0.0.1:{port}/missing")  # any page of that origin
        chromium.execute_script(
            "window.ended = null;"
            f"new WebSocket('wss://localhost:{port}/').onclose = event => {{ window.ended = event.code; }};"
        )
        wait_until(chromium, lambda d: d.execute_script("return window.ended") == 1006, limit=20)
        assert server.refusals["allowed_origins"] == 1
        assert not server.origins
    finally:
        trust_anything(chromium, False)
        chromium.get("about:blank")


def test_a_browser_that_trusts_nobody_is_not_let_in(
    chromium: WebDriver, serve: Callable[..., ServerThread], tmp_path: Path
) -> None:
    server = PageServer()
    thread = serve(server, **make_certificates(tmp_path).settings)
    chromium.get(f"http://127.0.0.1:{thread.port}/missing")
    chromium.execute_script(
        "window.ended = null;"
        f"new WebSocket('wss://127.0.0.1:{tls_port_of(server)}/').onclose = e => {{ window.ended = e.code; }};"
    )
    wait_until(chromium, lambda d: d.execute_script("return window.ended") == 1006, limit=20)
    wait_for(lambda: server.refusals.get("tls handshake"))
    assert not server.origins
    chromium.get("about:blank")
