"""`pyhv serve`: files, an echo, TLS, and pages that reload themselves, in a browser too."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import ssl
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import websocket
from selenium.webdriver.chrome.webdriver import WebDriver
from selenium.webdriver.common.by import By

import browser_helper
from pyhv._cli.reload import SOCKET_PATH, Watcher
from support import HOST, Answer, RawClient, http, wait_until
from support_cli import Command, Terminal, pyhv
from support_tls import make_certificates


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A small website."""
    made = tmp_path / "site"
    (made / "sub" / "deep").mkdir(parents=True)
    (made / "empty").mkdir()
    (made / "index.html").write_text("<!DOCTYPE html>\n<title>Home</title>\n<h1>one</h1>\n")
    (made / "sub" / "index.html").write_text("<p>sub</p>")
    (made / "sub" / "deep" / "a b&c.txt").write_text("text")
    (made / "style.css").write_text("h1 { color: rgb(255, 0, 0); }\n")
    (made / "data.bin").write_bytes(bytes(range(256)))
    (made / ".secret").write_text("hidden")
    (tmp_path / "outside.txt").write_text("outside")
    (made / "link.txt").symlink_to(tmp_path / "outside.txt")
    (made / "inside.txt").symlink_to(made / "sub" / "deep" / "a b&c.txt")
    return made


class Serving(Command):
    """`pyhv serve`, listening."""

    def __init__(self, *arguments: str | Path, **environment: str) -> None:
        super().__init__("serve", *arguments, environment=environment)
        try:
            greeting = re.compile(r"http://\S+:(\d+)/\n")
            found = greeting.search(self.wait_for(lambda output: bool(greeting.search(output))))
            assert found is not None
        except BaseException:
            self.__exit__(None, None, None)
            raise
        self.port = int(found[1])

    def get(self, path: str, *headers: tuple[str, str], method: str = "GET") -> Answer:
        return http(self.port, method, path, headers)


@contextmanager
def serving(*arguments: str | Path, **environment: str) -> Iterator[Serving]:
    with Serving(*arguments, "-p", "0", **environment) as running:
        yield running


# Seeing inside


def test_a_page_and_metrics_that_show_what_goes_on(site: Path) -> None:
    with serving(site, "--dashboard", "--metrics") as running:
        base = f"http://{HOST}:{running.port}"
        running.wait_for(f"  {base}/_pyhv shows what goes on\n  {base}/metrics tells Prometheus\n")
        for path in ("/_pyhv", "/_pyhv/stats.json", "/metrics"):
            assert running.get(path).status == 200
        assert running.get("/index.html").status == 200
        # No line for those that the page asks for all the time.
        shown = running.wait_for("GET /index.html")
        assert "GET /_pyhv" not in shown and "GET /metrics" not in shown
    with serving(site) as running:
        assert [running.get(path).status for path in ("/_pyhv", "/metrics")] == [404, 404]


# Files

NOT_FOUND = [
    "/nothing",
    "/.secret",
    "/link.txt",
    "/..%2foutside.txt",
    "/%2e%2e/outside.txt",
    "/../outside.txt",
    "/index.html/",
    "/sub//index.html",
    "/sub/..",
    "/sub%5cindex.html",
    "//sub",
    "/%00",
    "/nul",
    "/" + "x" * 300,
]


@pytest.mark.parametrize("reload", [[], ["--reload"]], ids=["plain", "reload"])
def test_files(site: Path, reload: list[str]) -> None:
    with serving(site, *reload) as server:
        assert b"<h1>one</h1>" in server.get("/").body
        assert server.get("/").headers["content-type"] == "text/html; charset=utf-8"
        assert server.get("/index.html").body == server.get("/").body
        assert b"<p>sub</p>" in server.get("/sub/").body
        moved = server.get("/sub?x=1")
        assert (moved.status, moved.headers["location"]) == (301, "/sub/?x=1")
        assert server.get("/sub/deep/a%20b%26c.txt").body == b"text"
        assert server.get("/inside.txt").body == b"text"
        for path in NOT_FOUND:
            assert server.get(path).status == 404, path
        part = server.get("/data.bin", ("Range", "bytes=10-19"))
        assert (part.status, part.body) == (206, bytes(range(10, 20)))
        tag = server.get("/data.bin").headers["etag"]
        assert server.get("/data.bin", ("If-None-Match", tag)).status == 304
        assert server.get("/data.bin").headers["cache-control"] == "no-cache"
        assert server.get("/", method="POST").status == 405
        (site / "new.txt").write_text("new")
        assert server.get("/new.txt").body == b"new"


@pytest.mark.parametrize("reload", [[], ["--reload"]], ids=["plain", "reload"])
def test_listings(site: Path, reload: list[str]) -> None:
    (site / "empty" / "<b>&.txt").write_text("")
    (site / "empty" / "dir").mkdir()
    (site / "empty" / "out").symlink_to(site.parent / "outside.txt")
    with serving(site, *reload) as server:
        page = server.get("/empty/").body.decode()
        assert re.findall(r'<a href="([^"]*)">([^<]*)</a>', page) == [
            ("../", "../"),
            ("dir/", "dir/"),
            ("%3Cb%3E%26.txt", "&lt;b&gt;&amp;.txt"),
        ]
    with serving(site, *reload, "--no-listing") as server:
        assert server.get("/empty/").status == 404
    with serving(site, *reload, "--home-page", "style.css") as server:
        assert server.get("/").headers["content-type"] == "text/css; charset=utf-8"


def test_the_current_folder_by_default(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(site)
    with serving() as server:
        assert f"serving {site}" in server.output
        assert b"<h1>one</h1>" in server.get("/").body


def test_access_lines(site: Path) -> None:
    with serving(site) as server:
        server.get("/data.bin")
        server.get("/%1b[2J")
        server.wait_for("/%1b[2J")
        lines = server.lines[2:]
        assert re.fullmatch(r"\d\d:\d\d:\d\d 200 GET /data.bin 256 B, [\d.]+ ms, 127.0.0.1", lines[0])
        assert " 404 GET /%1b[2J " in lines[1]
        assert "\x1b" not in server.output
    with serving(site, "--quiet") as server:
        server.get("/data.bin")
        server.process.send_signal(signal.SIGINT)
        server.finish()
        assert len(server.lines) == 2


def test_colours_on_a_terminal_alone(site: Path) -> None:
    for environment, colours in (({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)):
        with Terminal("serve", site, "-p", "0", environment=environment) as t:
            found = re.search(r":(\d+)/\r\n", t.wait_for(lambda output: bool(re.search(r":\d+/\r\n", output))))
            assert found is not None
            http(int(found[1]), "GET", "/nothing")
            t.wait_for("127.0.0.1\x1b[0m\r\n" if colours else ", 127.0.0.1\r\n")
            assert ("\x1b[33m404\x1b[0m" in t.output) == colours
            t.type("\x03")
            assert t.finish() == 0
    with serving(site, "--color", "always") as server:
        server.get("/nothing")
        server.wait_for("\x1b[33m404\x1b[0m")


def test_cors(site: Path) -> None:
    with serving(site) as server:
        assert "access-control-allow-origin" not in server.get("/", ("Origin", "http://x.example")).headers
    with serving(site, "--cors") as server:
        assert server.get("/", ("Origin", "http://x.example")).headers["access-control-allow-origin"] == "*"


# Ends


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("reload", [[], ["--reload"]], ids=["plain", "reload"])
def test_it_ends_well_and_soon(site: Path, number: int, reload: list[str]) -> None:
    with serving(site, "--echo", *reload) as server, RawClient(server.port, "/echo") as idle:
        server.process.send_signal(number)
        # Its connection does not answer the close: it is not waited for as long as a server otherwise would, 5 s.
        assert server.finish(limit=4.0) == 0
        assert idle.read_close().close_code == 1001
        assert "Traceback" not in server.output


def test_nobody_reads_the_output(site: Path) -> None:
    with serving(site) as server:
        with open(os.devnull, "rb") as nowhere:
            os.dup2(nowhere.fileno(), server._read)
        server.get("/data.bin")
        wait_until(lambda: server.process.poll() is not None)
        assert server.process.returncode == 141


# What cannot be


def test_a_port_in_use(site: Path) -> None:
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        done = pyhv("serve", site, "-p", str(port))
    assert done.returncode == 1
    assert str(port) in done.stderr and "--port 0" in done.stderr
    assert done.stderr.startswith("pyhv serve: ") and done.stderr.count("\n") == 1


def test_no_folder(site: Path) -> None:
    done = pyhv("serve", site / "data.bin")
    assert (done.returncode, done.stderr) == (1, f"pyhv serve: {site / 'data.bin'} is not a folder\n")
    done = pyhv("serve", site / "nope")
    assert (done.returncode, done.stderr) == (1, f"pyhv serve: {site / 'nope'} is not there\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--cert", "x.pem"],
        ["--tls-port", "1"],
        ["--tls", "--key", "x.pem"],
        ["--echo", "x"],
        ["-p", "70000"],
        ["-p", "x"],
    ],
)
def test_a_wrong_command_line(site: Path, arguments: list[str]) -> None:
    done = pyhv("serve", site, *arguments)
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("pyhv serve: ")


def test_a_certificate_that_is_none(site: Path) -> None:
    done = pyhv("serve", site, "-p", "0", "--tls", "--cert", site / "data.bin")
    assert done.returncode == 1
    assert "data.bin" in done.stderr and done.stderr.count("\n") == 1


# An echo, TLS


def test_echo(site: Path) -> None:
    with serving(site, "--echo") as server:
        assert f"ws://127.0.0.1:{server.port}/echo" in server.wait_for("sends back")
        peer = websocket.create_connection(f"ws://{HOST}:{server.port}/echo", timeout=20)
        peer.send("hello")
        assert peer.recv() == "hello"
        peer.send_binary(b"\x00")
        assert peer.recv() == b"\x00"
        peer.close()
        for path in ("/", "/other", SOCKET_PATH):
            with pytest.raises(websocket.WebSocketBadStatusException, match="404"):
                websocket.create_connection(f"ws://{HOST}:{server.port}{path}", timeout=20)
    with serving(site, "--echo", "/", "--cors") as server:
        websocket.create_connection(f"ws://{HOST}:{server.port}/", timeout=20, origin="http://x.example").close()


def secure_body(port: int, authority: Path) -> bytes:
    context = ssl.create_default_context(cafile=str(authority))
    with (
        socket.create_connection((HOST, port), 20) as plain,
        context.wrap_socket(plain, server_hostname=HOST) as secure,
    ):
        secure.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        body = b""
        while data := secure.recv(65536):
            body += data
        return body


def test_tls_with_a_certificate_for_development(site: Path, tmp_path: Path) -> None:
    seen = []
    for _ in range(2):
        with serving(site, "--tls", XDG_STATE_HOME=str(tmp_path / "state")) as server:
            found = re.search(r"https://127.0.0.1:(\d+)/\n.* --ca (\S+);", server.wait_for("browsers ask"))
            assert found is not None
            authority = Path(found[2])
            assert b"<h1>one</h1>" in secure_body(int(found[1]), authority)
            assert b"<h1>one</h1>" in server.get("/").body
            key = authority.with_name("pyhv-dev-key.pem")
            assert stat.S_IMODE(key.stat().st_mode) == 0o600
            seen.append(authority.read_text())
    assert seen[0] == seen[1], "a browser that was told to trust it has to be told again"


def test_tls_with_a_certificate_of_ones_own(site: Path, tmp_path: Path) -> None:
    made = make_certificates(tmp_path / "certificates")
    with serving(site, "--tls", "--cert", made.cert, "--key", made.key, "--reload") as server:
        found = re.search(
            r"https://127.0.0.1:(\d+)/\n", server.wait_for(lambda output: bool(re.search("https.*\n", output)))
        )
        assert found is not None
        assert SCRIPT in secure_body(int(found[1]), made.ca)


# Reloading

SCRIPT = b'<script src="/.pyhv/reload.js" data-version="'


def test_pages_have_the_script_and_stay_right(site: Path) -> None:
    with serving(site, "--reload") as server:
        page = server.get("/")
        content = (site / "index.html").read_bytes()
        assert page.body.startswith(content + SCRIPT)
        assert page.headers["content-length"] == str(len(page.body))
        assert server.get("/", method="HEAD").headers["content-length"] == str(len(page.body))
        tag = page.headers["etag"]
        for field in (tag, f"W/{tag}", f'"x", {tag}', "*"):
            same = server.get("/", ("If-None-Match", field))
            assert (same.status, same.body, same.headers["etag"]) == (304, b"", tag)
        assert server.get("/", ("If-None-Match", '"x"')).status == 200
        # Parts are not offered; whoever asks gets all of it.
        part = server.get("/", ("Range", "bytes=0-3"))
        assert (part.status, part.body) == (200, page.body)
        assert "accept-ranges" not in page.headers
        (site / "index.html").write_text("<h1>two</h1>")
        assert b"<h1>two</h1>" in server.get("/", ("If-None-Match", tag)).body
        for path in ("/sub/", "/empty/", "/nothing"):
            assert SCRIPT in server.get(path).body
        script = server.get("/.pyhv/reload.js")
        assert script.headers["content-type"] == "text/javascript; charset=utf-8"
        # What ASCII would spoil.
        (site / "wide.html").write_bytes("<p>wide</p>".encode("utf-16"))
        assert server.get("/wide.html").body == "<p>wide</p>".encode("utf-16")


def test_changes_are_told(site: Path) -> None:
    with serving(site, "--reload") as server:
        peer = websocket.create_connection(f"ws://{HOST}:{server.port}{SOCKET_PATH}", timeout=20)
        first = peer.recv()
        (site / "style.css").write_text("h1 { color: blue; }")
        assert '"styles": true' in peer.recv()
        (site / "sub" / "new.html").write_text("")
        assert '"styles": false' in peer.recv()
        server.wait_for("changed: sub/new.html")
        (site / "sub" / "new.html").unlink()
        assert json.loads(peer.recv())["version"] not in first
        peer.close()


def rounds(watcher: Watcher) -> list[str]:
    """What the next change is."""
    changed = wait_until(watcher.look)
    assert changed is not None
    return changed


def test_the_watcher_sees_what_changes(site: Path) -> None:
    watcher = Watcher(site, pause=0.01)
    before = watcher.version
    path = site / "data.bin"
    seen = path.stat()
    path.write_bytes(b"x" * seen.st_size)
    assert rounds(watcher) == ["data.bin"]
    assert watcher.version != before
    # An editor that writes a new file and puts it in the old one's place, with the old one's time and size.
    fresh = site / "sub" / "new"
    fresh.write_bytes(b"y" * seen.st_size)
    assert rounds(watcher) == ["sub/new"]
    times = (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    os.utime(fresh, ns=times)
    rounds(watcher)
    fresh.replace(path)
    assert rounds(watcher) == ["data.bin", "sub/new"]
    (site / "sub" / "deep").rename(site / "moved")
    assert rounds(watcher) == ["inside.txt", "moved/a b&c.txt", "sub/deep/a b&c.txt"]
    (site / ".git").mkdir()
    (site / ".git" / "index").write_text("")
    (site / "last").write_text("")
    assert rounds(watcher) == ["last"]


def test_the_watcher_does_not_keep_the_processor_busy(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("pyhv._cli.reload.time.monotonic", lambda: clock[0])
    watcher = Watcher(site, pause=0.3)
    walk = watcher._walk

    def slow() -> Iterator[tuple[str, tuple[int, int, int]]]:
        for entry in walk():
            clock[0] += 0.004
            yield entry

    monkeypatch.setattr(watcher, "_walk", slow)
    looking = 0.0
    while clock[0] < 200:
        clock[0] += watcher.wait + 1e-6
        start = clock[0]
        watcher.look()
        assert clock[0] - start < 0.02, "pages wait meanwhile"
        looking += clock[0] - start
    assert 0 < looking < 0.05 * 100


def test_in_a_browser(site: Path, chromium: WebDriver) -> None:
    (site / "index.html").write_text('<link rel="stylesheet" href="style.css"><h1>one</h1>')

    # In one step each: an element found in one page may be asked for in the next.
    def colour() -> object:
        return chromium.execute_script(
            "const h1 = document.querySelector('h1'); return h1 && getComputedStyle(h1).color"
        )

    def text() -> object:
        return chromium.execute_script("return document.querySelector('h1')?.textContent")

    with serving(site, "--reload") as server:
        chromium.get(f"http://{HOST}:{server.port}/")
        browser_helper.wait_until(chromium, lambda _: colour() == "rgb(255, 0, 0)")
        wait_for_page(chromium)
        # Style sheets alone: the page stays, and what a script has put into it.
        chromium.execute_script("window.stays = true")
        (site / "style.css").write_text("h1 { color: rgb(0, 0, 255); }")
        browser_helper.wait_until(chromium, lambda _: colour() == "rgb(0, 0, 255)")
        assert chromium.execute_script("return window.stays") is True
        assert len(chromium.find_elements(By.TAG_NAME, "link")) == 1
        # Anything else.
        (site / "index.html").write_text('<link rel="stylesheet" href="style.css"><h1>two</h1>')
        browser_helper.wait_until(chromium, lambda _: text() == "two")
        # A server that was away; the page has changed meanwhile.
        port = server.port
        server.process.send_signal(signal.SIGINT)
        assert server.finish() == 0
        (site / "index.html").write_text("<h1>three</h1>")
    with Serving(site, "--reload", "-p", str(port)):
        browser_helper.wait_until(chromium, lambda _: text() == "three", limit=20)
    chromium.get("about:blank")


def wait_for_page(chromium: WebDriver) -> None:
    """Until the page listens: what changes before reloads all of it."""
    path = "script[src='/.pyhv/reload.js'][data-connected]"
    browser_helper.wait_until(chromium, lambda driver: driver.find_element(By.CSS_SELECTOR, path))


def test_it_reloads_once_and_not_for_ever(site: Path, chromium: WebDriver) -> None:
    """A page whose version is never the server's, as from a cache that keeps it."""
    (site / "old.html").write_text(
        "<h1>old</h1><script>sessionStorage.n = Number(sessionStorage.n || 0) + 1</script>"
        '<script id="cached" src="/.pyhv/reload.js" data-version="old"></script>'
    )

    def loads() -> int:
        return int(chromium.execute_script("return Number(sessionStorage.n)"))

    with serving(site, "--reload") as server:
        chromium.get(f"http://{HOST}:{server.port}/old.html")
        browser_helper.wait_until(chromium, lambda _: loads() == 2)
        # Told again, and it stays.
        browser_helper.wait_until(chromium, lambda d: d.find_element(By.CSS_SELECTOR, "#cached[data-connected]"))
        assert server.get("/data.bin").status == 200
        assert loads() == 2
    chromium.get("about:blank")
