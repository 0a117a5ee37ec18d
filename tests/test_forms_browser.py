"""Chromium sends forms, a plain one and one of a script, and keeps cookies.

Without chromium and chromedriver the tests fail, unless PYHV_NO_BROWSER=1 says that this is meant.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from selenium.webdriver.chrome.webdriver import WebDriver
from selenium.webdriver.common.by import By

from browser_helper import wait_until
from pyhv import HttpRequest, HttpResponse
from support import HOST, RecordingServer, ServerThread

PAGE = """<!doctype html>
<title>forms</title>
<form action="/form" method="post" enctype="multipart/form-data" id="multipart">
  <input name="text" value="ü &quot;1&quot; %22">
  <textarea name='a "quoted" name'>two\nlines</textarea>
  <input type="file" name="file" multiple>
  <input type="file" name="none">
  <button>send</button>
</form>
<form action="/form" method="post" id="urlencoded">
  <input name="text" value="ü &amp; = + %">
  <button>send</button>
</form>
"""

SCRIPT = """
const [done] = arguments;
const data = new FormData();
data.append("a", "1");
data.append("a", "ü\\n2");
data.append("blob", new Blob([new Uint8Array(500000).fill(7)], {type: "x/y"}), 'q"b\\\\c.bin');
fetch("/form", {method: "POST", body: data}).then(answer => answer.text()).then(done);
"""


class FormServer(RecordingServer):
    def on_init(self) -> None:
        self.got: list[tuple[Any, Any]] = []
        self.cookies: list[dict[str, str]] = []
        self.get("/", self.page)
        self.post("/form", self.form)

    def page(self, req: HttpRequest, resp: HttpResponse) -> None:
        self.cookies.append(req.cookies)
        resp.add_cookie("seen", "yes", max_age=60)
        resp.add_cookie("hidden", "1", http_only=True)
        resp.delete_cookie("old")
        resp.html(PAGE)

    def form(self, req: HttpRequest, resp: HttpResponse) -> None:
        files = [(name, file.filename, file.content_type, file.read()) for name, file in req.files.pairs()]
        self.got.append((req.form().pairs(), files))
        resp.html("<p id=done>done</p>")


def test_chromium(chromium: WebDriver, serve: Callable[..., ServerThread], tmp_path: Path) -> None:
    server = FormServer()
    url = f"http://{HOST}:{serve(server).port}/"
    paths = [tmp_path / "ü 'a' b.txt", tmp_path / "c.png"]
    contents = [b"text", os.urandom(400_000)]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)

    chromium.get(url)
    chromium.find_element(By.NAME, "file").send_keys("\n".join(map(str, paths)))
    chromium.find_element(By.CSS_SELECTOR, "#multipart button").click()
    wait_until(chromium, lambda d: d.find_element(By.ID, "done"))
    fields, files = server.got.pop()
    assert fields == [("text", 'ü "1" %22'), ('a "quoted" name', "two\r\nlines")]
    types = ["text/plain", "image/png"]
    assert files == [
        ("file", path.name, kind, content) for path, kind, content in zip(paths, types, contents, strict=True)
    ]

    chromium.add_cookie({"name": "old", "value": "x"})
    chromium.get(url)
    assert server.cookies == [{}, {"seen": "yes", "hidden": "1", "old": "x"}]
    assert chromium.execute_script("return document.cookie") == "seen=yes"
    chromium.find_element(By.CSS_SELECTOR, "#urlencoded button").click()
    wait_until(chromium, lambda d: d.find_element(By.ID, "done"))
    assert server.got.pop() == ([("text", "ü & = + %")], [])

    assert "done" in chromium.execute_async_script(SCRIPT)
    fields, files = server.got.pop()
    assert fields == [("a", "1"), ("a", "ü\r\n2")]  # FormData's own line ends (WHATWG HTML section 4.10.21.8)
    assert files == [("blob", 'q"b\\c.bin', "x/y", b"\x07" * 500_000)]
