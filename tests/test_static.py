"""Files served by the native side: `static`, and `file` of a response."""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate, parsedate_to_datetime
from html import unescape
from http import HTTPStatus
from pathlib import Path
from urllib.parse import quote, unquote

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from selenium.webdriver.common.by import By

import support_tls
from browser_helper import BrowserMissingError, browser
from browser_helper import wait_until as wait_in_browser
from pyhv import HttpRequest, HttpResponse
from support import (
    HOST,
    Answer,
    Background,
    RawClient,
    RecordingServer,
    ServerThread,
    ask,
    http,
    open_descriptors,
    port_of,
    resident_bytes,
    tick_until,
    wait_until,
)

SECRET = b"a secret beside the root"
LONG_AGO = 1_700_000_000  # seconds since 1970: so old that an entity tag is strong
LARGE = bytes(range(256)) * 16 * 1024  # 4 MiB, more than sockets and chunks hold


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A document root with a secret beside it, and links of every kind."""
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (tmp_path / "secret.txt").write_bytes(SECRET)
    (tmp_path / "rooted").mkdir()  # its name begins as the root's does
    (tmp_path / "rooted" / "secret.txt").write_bytes(SECRET)
    (root / "index.html").write_text("<h1>home</h1>")
    (root / "hello.txt").write_text("hello, world")
    (root / "sub" / "deep.txt").write_text("deep")
    (root / "large.bin").write_bytes(LARGE)
    (root / "empty").write_bytes(b"")
    (root / ".hidden").write_bytes(SECRET)
    (root / ".git").mkdir()
    (root / ".git" / "config").write_bytes(SECRET)
    (root / "out.txt").symlink_to("../secret.txt")
    (root / "out-absolute.txt").symlink_to(tmp_path / "secret.txt")
    (root / "out").symlink_to(tmp_path)
    (root / "in.txt").symlink_to("sub/deep.txt")
    (root / "in-absolute.txt").symlink_to(root / "sub" / "deep.txt")
    (root / "in").symlink_to("sub")
    (root / "loop").symlink_to("loop")
    (root / "dangling").symlink_to("nowhere")
    for name in ("hello.txt", "index.html", "large.bin", "sub/deep.txt", "empty"):
        os.utime(root / name, (LONG_AGO, LONG_AGO))
    return root


def get(server: RecordingServer, target: str, *headers: tuple[str, str], method: str = "GET") -> Answer:
    """One request, which this thread waits for without a tick."""
    return http(port_of(server), method, target, headers)


# What is served


def test_files_are_served_while_the_program_does_not_tick(server: RecordingServer, root: Path) -> None:
    server.static("/", root)
    for path, content, kind in [
        ("/", b"<h1>home</h1>", "text/html; charset=utf-8"),
        ("/hello.txt", b"hello, world", "text/plain; charset=utf-8"),
        ("/hello.txt?v=2", b"hello, world", "text/plain; charset=utf-8"),
        ("/%68ello.txt", b"hello, world", "text/plain; charset=utf-8"),
        ("/sub/deep.txt", b"deep", "text/plain; charset=utf-8"),
        ("/in.txt", b"deep", "text/plain; charset=utf-8"),
        ("/in-absolute.txt", b"deep", "text/plain; charset=utf-8"),
        ("/in/deep.txt", b"deep", "text/plain; charset=utf-8"),
        ("/empty", b"", "application/octet-stream"),
        ("/large.bin", LARGE, "application/octet-stream"),
    ]:
        for _ in range(2):  # from a blocking thread, then from the kernel's memory
            answer = get(server, path)
            assert (answer.status, answer.headers["content-type"]) == (200, kind), path
            assert answer.body == content, path
            assert answer.headers["accept-ranges"] == "bytes"
        head = get(server, path, method="HEAD")
        for volatile in ("date", "connection"):
            head.headers.pop(volatile, None), answer.headers.pop(volatile, None)
        assert (head.status, head.headers, head.body) == (200, answer.headers, b""), path


def test_routes_win_over_files_and_the_longest_prefix_over_others(server: RecordingServer, root: Path) -> None:
    server.static("/", root)
    server.static("/static/", root / "sub")
    server.get("/hello.txt", lambda req, resp: resp.text("from the handler"))
    server.post("/", lambda req, resp: resp.text("posted"))
    assert ask(server, "GET", "/hello.txt").body == b"from the handler"
    assert ask(server, "POST", "/").body == b"posted"
    assert get(server, "/").body == b"<h1>home</h1>"
    assert get(server, "/static/deep.txt").body == b"deep"
    assert get(server, "/static/hello.txt").status == 404
    refused = get(server, "/sub/deep.txt", method="POST")
    assert (refused.status, refused.headers["allow"]) == (405, "GET, HEAD, OPTIONS")
    assert get(server, "/sub/deep.txt", method="OPTIONS").status == 204


def test_misuse_raises_at_the_call(server: RecordingServer, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        server.static("/x", root / "nowhere")
    with pytest.raises(NotADirectoryError, match=r"hello\.txt"):
        server.static("/x", root / "hello.txt")
    with pytest.raises(FileNotFoundError, match=r"404\.html"):
        server.static("/x", root, error_page="404.html")
    with pytest.raises(ValueError, match="error_page="):
        server.static("/x", root, error_page="../secret.txt")
    with pytest.raises(ValueError, match="home_page"):
        server.static("/x", root, home_page="../secret.txt")
    with pytest.raises(ValueError, match="control characters"):
        server.static("/x", root, cache_control="a\r\nb")
    for prefix in ("x", "/a//b", "/:a", "/*a", "/a?b"):
        with pytest.raises(ValueError, match="prefix"):
            server.static(prefix, root)
    monkeypatch.chdir(root)
    server.static("/x", "sub")
    monkeypatch.chdir("/")
    assert get(server, "/x/deep.txt").body == b"deep"
    for prefix in ("/x", "/x/", "/%78"):
        with pytest.raises(ValueError, match="already"):
            server.static(prefix, root)


def test_a_directory_is_its_home_page_behind_a_slash(server: RecordingServer, root: Path) -> None:
    (root / "sub" / "start.html").write_text("start")
    server.static("/files", root, home_page="start.html")
    for target, location in [
        ("/files", "/files/"),
        ("/files/sub", "/files/sub/"),
        ("/files/sub?a=1&b=%2f", "/files/sub/?a=1&b=%2f"),
        ("/f%69les/%73ub", "/f%69les/%73ub/"),
    ]:
        answer = get(server, target)
        assert (answer.status, answer.headers["location"]) == (301, location)
    assert get(server, "/files/sub/").body == b"start"
    assert get(server, "/files/").status == 404  # no start.html, no listing
    assert get(server, "/files/hello.txt/").status == 404
    server.static("/bare", root, home_page=None)
    assert get(server, "/bare/").status == 404


def test_a_listing_is_escaped_sorted_and_shows_what_is_served(server: RecordingServer, root: Path) -> None:
    odd = ["a b.txt", "<i>&'\".txt", "%41.txt", "ünï.txt", "a#b?c.txt", "Z.txt"]
    (root / "list").mkdir()
    for name in odd:
        (root / "list" / name).write_text(name)
    (root / "list" / "folder").mkdir()
    (root / "list" / ".hidden").write_text("no")
    (root / "list" / "c:d").write_text("no")
    (root / "list" / "out").symlink_to("../../secret.txt")
    os.mkfifo(root / "list" / "fifo")
    server.static("/", root, listing=True)
    page = get(server, "/list/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    text = page.body.decode()
    links = re.findall(r'<a href="([^"]*)">([^<]*)</a>', text)
    assert [unescape(shown) for _, shown in links] == ["../", "folder/", *sorted(odd)]
    for link, shown in links[2:]:
        assert unquote(link) == unescape(shown)
        assert get(server, "/list/" + link).body.decode() == unescape(shown)
    assert "<i>" not in text
    assert get(server, "/").body == b"<h1>home</h1>"


def test_error_page_and_cache_control(server: RecordingServer, root: Path) -> None:
    (root / "404.html").write_text("<p>lost")
    server.static("/", root, error_page="404.html", cache_control="max-age=60")
    answer = get(server, "/nope", ("If-None-Match", "*"), ("Range", "bytes=0-1"))
    assert (answer.status, answer.body) == (404, b"<p>lost")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "cache-control" not in answer.headers and "etag" not in answer.headers
    assert get(server, "/../secret.txt").body == b"<p>lost"
    assert get(server, "/hello.txt").headers["cache-control"] == "max-age=60"
    (root / "404.html").unlink()
    assert get(server, "/nope").body == b"404 Not Found\n"


def test_a_root_that_is_replaced_is_served_anew(server: RecordingServer, root: Path) -> None:
    server.static("/", root)
    assert get(server, "/hello.txt").status == get(server, "/hello.txt").status == 200
    root.rename(root.with_name("old"))
    assert get(server, "/hello.txt").status == 404
    root.mkdir()
    (root / "hello.txt").write_text("new")
    assert get(server, "/hello.txt").body == b"new"
    (root / "hello.txt").write_text("newer")
    assert get(server, "/hello.txt").body == b"newer"
    (root / "hello.txt").unlink()
    assert get(server, "/hello.txt").status == 404


# Conditions, ranges, encodings


def test_conditions(server: RecordingServer, root: Path) -> None:
    server.static("/", root, cache_control="no-cache")
    first = get(server, "/hello.txt")
    tag, date = first.headers["etag"], first.headers["last-modified"]
    assert re.fullmatch(r'"[^"]+"', tag)
    assert date == formatdate(LONG_AGO, usegmt=True)
    for headers, status in [
        ([("If-None-Match", tag)], 304),
        ([("If-None-Match", f'"x", W/{tag}')], 304),
        ([("If-None-Match", '"x"'), ("If-Modified-Since", date)], 200),
        ([("If-Modified-Since", date)], 304),
        ([("If-Modified-Since", formatdate(LONG_AGO - 1, usegmt=True))], 200),
        ([("If-Match", tag)], 200),
        ([("If-Match", f"W/{tag}")], 412),
        ([("If-Match", '"x"')], 412),
        ([("If-Unmodified-Since", formatdate(LONG_AGO - 1, usegmt=True))], 412),
    ]:
        for method in ("GET", "HEAD"):
            answer = get(server, "/hello.txt", *headers, method=method)
            assert answer.status == status, headers
            if status == 304:
                assert (answer.headers["etag"], answer.headers["cache-control"]) == (tag, "no-cache")
                assert "content-length" not in answer.headers
    (root / "hello.txt").write_text("hello, World")  # of the same size
    changed = get(server, "/hello.txt", ("If-None-Match", tag))
    assert (changed.status, changed.body) == (200, b"hello, World")
    assert changed.headers["etag"].startswith("W/")  # it may change again within the same tick of the clock
    os.utime(root / "hello.txt", (LONG_AGO, LONG_AGO))
    restored = get(server, "/hello.txt", ("If-None-Match", tag))
    assert restored.status == 200, "another content of the same size and date has another tag"
    later = 4_000_000_000
    os.utime(root / "hello.txt", (later, later))
    future = get(server, "/hello.txt").headers
    assert parsedate_to_datetime(future["last-modified"]) <= parsedate_to_datetime(future["date"])
    os.utime(root / "hello.txt", (-5, -5))
    assert "last-modified" not in get(server, "/hello.txt").headers


def test_ranges(server: RecordingServer, root: Path) -> None:
    server.static("/", root)
    size = len(LARGE)
    for value, first, last in [
        ("bytes=0-0", 0, 0),
        ("bytes=1000000-3999999", 1_000_000, 3_999_999),
        (f"bytes={size - 5}-", size - 5, size - 1),
        ("bytes=-7", size - 7, size - 1),
        (f"bytes=-{size * 2}", 0, size - 1),
        (f"bytes=5-{size * 2}", 5, size - 1),
    ]:
        answer = get(server, "/large.bin", ("Range", value))
        assert (answer.status, answer.headers["content-range"]) == (206, f"bytes {first}-{last}/{size}"), value
        assert answer.body == LARGE[first : last + 1], value
    for value in (f"bytes={size}-", "bytes=-0"):
        answer = get(server, "/large.bin", ("Range", value))
        assert (answer.status, answer.headers["content-range"]) == (416, f"bytes */{size}"), value
    many = "bytes=" + ",".join(f"{n}-{n}" for n in range(1000))
    for value in ("bytes=0-1,5-6", many, "bytes=2-1", "lines=0-1", "bytes=x"):
        answer = get(server, "/hello.txt", ("Range", value))
        assert (answer.status, answer.body) == (200, b"hello, world"), value[:20]
    assert get(server, "/empty", ("Range", "bytes=0-")).status == 416
    tag = get(server, "/hello.txt").headers["etag"]
    for condition, status in [(tag, 206), ('"x"', 200), (f"W/{tag}", 200), (formatdate(LONG_AGO, usegmt=True), 206)]:
        answer = get(server, "/hello.txt", ("Range", "bytes=0-4"), ("If-Range", condition))
        assert (answer.status, answer.body) == (status, b"hello" if status == 206 else b"hello, world"), condition


def test_precompressed_copies(server: RecordingServer, root: Path) -> None:
    (root / "app.js").write_text("plain")
    for ending in ("br", "zst", "gz"):
        (root / f"app.js.{ending}").write_text(ending)
    (root / "picture.png").write_text("png")
    (root / "picture.png.gz").write_text("gz")
    server.static("/", root)
    server.static("/plain", root, precompressed=False)
    tags = set()
    for accepted, encoding, content in [
        ("gzip, deflate, br, zstd", "br", b"br"),
        ("gzip, zstd", "zstd", b"zst"),
        ("gzip;q=1, br;q=0.5", "gzip", b"gz"),
        ("br;q=0, *", "zstd", b"zst"),
        ("identity", None, b"plain"),
        ("", None, b"plain"),
    ]:
        answer = get(server, "/app.js", ("Accept-Encoding", accepted))
        assert (answer.headers.get("content-encoding"), answer.body) == (encoding, content), accepted
        assert answer.headers["content-type"] == "text/javascript; charset=utf-8"
        assert answer.headers["vary"] == "Accept-Encoding"
        tags.add(answer.headers["etag"])
        again = get(server, "/app.js", ("Accept-Encoding", accepted), ("If-None-Match", answer.headers["etag"]))
        assert again.status == 304
    assert len(tags) == 4
    for path in ("/picture.png", "/plain/app.js"):
        answer = get(server, path, ("Accept-Encoding", "gzip"))
        assert "content-encoding" not in answer.headers and "vary" not in answer.headers
    os.utime(root / "app.js.br", (LONG_AGO, LONG_AGO))  # made from an earlier app.js
    assert get(server, "/app.js", ("Accept-Encoding", "br, gzip")).body == b"gz"
    (root / "app.js.zst").unlink()
    (root / "app.js.zst").symlink_to("../secret.txt")
    assert get(server, "/app.js", ("Accept-Encoding", "zstd")).body == b"plain"


# Nothing else is served


TRAVERSALS = [
    "/../secret.txt", "/sub/../../secret.txt", "/%2e%2e/secret.txt", "/%2E%2E%2Fsecret.txt", "/..%2fsecret.txt",
    "/.%2e/secret.txt", "/%252e%252e/secret.txt", "/..%5csecret.txt", "/..\\secret.txt", "//secret.txt",
    "//etc/passwd", "/sub//../../secret.txt", "/..;/secret.txt", "/out.txt", "/out-absolute.txt", "/out/secret.txt",
    "/out/root/out/secret.txt", "/../rooted/secret.txt", "/.hidden", "/%2ehidden", "/.git/config", "/sub/../.hidden",
    "/loop", "/dangling", "/hello.txt%00", "/hello.txt%00.html", "/hello.txt::$DATA", "/hello.txt.", "/hello.txt%20",
    "/c:/windows/win.ini", "/C:%5cwindows", "/nul", "/CON.txt", "/hello.txt/", "/%2fetc/passwd", "/sub%2fdeep.txt",
    "/" + "a" * 300, "/" + "a/" * 3000,
]  # fmt: skip


@pytest.mark.parametrize("follow", [False, True])
def test_nothing_outside_the_root_is_served(server: RecordingServer, root: Path, follow: bool) -> None:
    server.static("/", root, listing=True, follow_symlinks=follow)
    server.static("/sub", root / "sub", listing=True, follow_symlinks=follow)
    for target in TRAVERSALS:
        for _ in range(2):
            answer = get(server, target)
            leads_out = target.startswith("/out") and follow
            assert answer.status in ((200,) if leads_out else (404, 400)), target
            assert (SECRET in answer.body) == leads_out, target


def test_hidden_files_on_demand(server: RecordingServer, root: Path) -> None:
    server.static("/", root, hidden=True, listing=True, home_page=None)
    assert get(server, "/.git/config").status == 200
    assert b'href=".hidden"' in get(server, "/").body
    assert get(server, "/../secret.txt").status == 404


SEGMENTS = st.one_of(
    st.sampled_from(
        [
            "..",
            ".",
            "",
            "%2e%2e",
            "%2e",
            "..%2f",
            "%2f",
            "%5c",
            "\\",
            "%252e%252e",
            "%00",
            "out",
            "out.txt",
            "root",
            "rooted",
            "secret.txt",
            "sub",
            "in",
            "deep.txt",
            ".hidden",
            "loop",
            "c:",
            "out-absolute.txt",
            "%c0%ae%c0%ae",
            "..;",
            "hello.txt",
            "hello.txt.gz",
            "large.bin",
        ]
    ),
    st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="?#"), max_size=6),
    st.binary(max_size=4).map(quote),
)


def test_no_path_yields_a_byte_from_outside(tmp_path: Path, server: RecordingServer, root: Path) -> None:
    server.static("/", root, listing=True)
    server.static("/sub/a", root / "sub", listing=True)
    inside = {path.read_bytes() for path in root.rglob("*") if path.is_file() and SECRET not in path.read_bytes()}
    shown = set(os.listdir(tmp_path)) - {"root"}
    assert get(server, "/hello.txt").status == get(server, "/sub/a/deep.txt").status == 200  # later ones from memory

    @given(st.lists(SEGMENTS, max_size=7), st.booleans())
    @example(["out", "secret.txt"], False)
    @example(["out.txt"], False)
    @example(["out-absolute.txt"], False)
    @example(["out"], True)
    @settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
    def check(segments: list[str], slash: bool) -> None:
        target = "/" + "/".join(segments) + ("/" if slash else "")
        raw.request("GET", target)
        try:
            answer = raw.read_answer()
        except EOFError:  # it was no request target for hyper, which has ended the connection
            answer = Answer(400, {"connection": "close"}, b"")
        if answer.headers.get("connection") == "close" or answer.status == 400:
            raw.socket.close()
            raw.__init__(port_of(server), upgrade=False)  # type: ignore[misc]
        assert SECRET not in answer.body, target
        if answer.status == 200:
            listing = answer.body.startswith(b"<!DOCTYPE html>")
            assert listing or answer.body in inside, target
            if listing:
                names = set(re.findall(r'<a href="([^"/]*)/?">', answer.body.decode()))
                assert not names & shown, target
        elif answer.status == 301:
            assert answer.headers["location"].startswith("/") and not answer.headers["location"].startswith("//")

    with RawClient(port_of(server), upgrade=False) as raw:
        check()


def test_special_files_are_never_opened(server: RecordingServer, root: Path) -> None:
    os.mkfifo(root / "fifo")
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(root / "socket"))
    (root / "device").symlink_to("/dev/zero")
    server.static("/", root)
    server.static("/all", root, follow_symlinks=True)
    for path in ("/fifo", "/socket", "/device"):
        for _ in range(2):
            assert get(server, path).status == get(server, "/all" + path).status == 404, path
    # Opening a FIFO would let a writer through.
    with pytest.raises(OSError, match="No such device"):
        os.open(root / "fifo", os.O_WRONLY | os.O_NONBLOCK)
    sock.close()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(server: RecordingServer, root: Path) -> None:
    (root / "hello.txt").chmod(0)
    server.static("/", root)
    assert get(server, "/hello.txt").status == 403
    tick_until(lambda: server.refusals.get("file"), server)


# Large ones


def test_many_downloads_at_once(server: RecordingServer, root: Path) -> None:
    server.static("/", root)
    before = len(open_descriptors())
    digest = hashlib.sha256(LARGE).digest()

    def download(_: int) -> bool:
        return hashlib.sha256(get(server, "/large.bin").body).digest() == digest

    with ThreadPoolExecutor(40) as pool:
        assert all(pool.map(download, range(200)))
    wait_until(lambda: len(open_descriptors()) <= before, what="the descriptors are closed")


def test_a_client_that_does_not_read_costs_little(server: RecordingServer, root: Path) -> None:
    size = 1 << 30
    with (root / "huge.bin").open("wb") as file:
        file.truncate(size)  # without a block on the disk
    server.static("/", root)
    get(server, "/hello.txt")
    files = len(open_descriptors())
    memory = resident_bytes()
    clients = [RawClient(port_of(server), upgrade=False, receive_buffer=4096) for _ in range(20)]
    for client in clients:
        client.request("GET", "/huge.bin")
    for client in clients:
        assert client.read_head()[1]["content-length"] == str(size)
    # All the same: the server goes on for others.
    assert get(server, "/hello.txt").body == b"hello, world"
    assert resident_bytes() - memory < 20 * (1 << 20)
    assert len(open_descriptors()) >= files + 40  # theirs, ours, and the files
    for client in clients:
        client.socket.close()
    wait_until(lambda: len(open_descriptors()) <= files, what="the descriptors are closed")


SIZE = 32 << 20  # more than all buffers between the file and a client that does not read


def drained(raw: RawClient, most: int = SIZE) -> int:
    """Reads zeros until there were `most`, or the connection has ended; returns how many."""
    count = len(raw.buffer)
    assert not raw.buffer.strip(b"\0")
    raw.buffer = b""
    space = bytearray(1 << 18)
    try:
        while count < most and (read := raw.socket.recv_into(space, min(len(space), most - count))):
            assert space.count(0, 0, read) == read
            count += read
    except ConnectionResetError:
        pass
    return count


def test_the_announced_length_is_kept(server: RecordingServer, root: Path) -> None:
    changing = root / "changing.bin"
    server.static("/", root)
    for new_size in (SIZE * 2, 1 << 20):
        with changing.open("wb") as file:
            file.truncate(SIZE)
        with RawClient(port_of(server), upgrade=False) as raw:
            raw.request("GET", "/changing.bin")
            _, headers = raw.read_head()
            assert headers["content-length"] == str(SIZE)
            os.truncate(changing, new_size)
            if new_size > SIZE:
                assert drained(raw) == SIZE
                raw.request("GET", "/hello.txt", [("Connection", "close")])
                assert raw.read_answer().body == b"hello, world"
            else:
                assert drained(raw) < SIZE


def test_stop_lets_a_download_end_or_ends_it(server: RecordingServer, root: Path) -> None:
    server.static("/", root)
    for timeout, complete in ((20.0, True), (0.0, False)):
        if not server.is_running:
            server.start(0)
        with (root / "huge.bin").open("wb") as file:
            file.truncate(SIZE)
        with RawClient(port_of(server), upgrade=False) as raw:
            raw.request("GET", "/huge.bin")
            raw.read_head()
            reading = Background(lambda raw=raw: drained(raw)) if complete else None  # type: ignore[misc]
            server.stop(timeout)
            assert ((reading.result() if reading else drained(raw)) == SIZE) == complete
    # A read that was under way ends by itself.
    wait_until(lambda: not any("huge.bin" in name for name in open_descriptors().values()))


# Files of a handler


def test_a_handler_answers_with_a_file(server: RecordingServer, root: Path, tmp_path: Path) -> None:
    statuses = []

    def send(req: HttpRequest, resp: HttpResponse) -> HTTPStatus:
        resp.set_header("X-Mine", "1")
        statuses.append(resp.file(root / "hello.txt"))
        assert resp.body == b"" and "a file" in repr(resp)
        return statuses[-1]

    def temporary(req: HttpRequest, resp: HttpResponse) -> None:
        made = tmp_path / "made"
        made.write_bytes(LARGE)
        resp.file(made, content_type="text/x-made", filename='r€p"ort.txt')
        made.unlink()

    def replaced(req: HttpRequest, resp: HttpResponse) -> str:
        resp.file(root / "hello.txt")
        return "text after all"

    server.get("/file", send)
    server.post("/file", send)
    server.get("/made", temporary)
    server.get("/replaced", replaced)
    server.get("/gone", lambda req, resp: resp.file(root / "index.html", status=410))
    server.get("/secret", lambda req, resp: resp.file(str(tmp_path / "secret.txt")))
    answer = ask(server, "GET", "/file")
    tag = answer.headers["etag"]
    assert (answer.status, answer.body, answer.headers["x-mine"]) == (200, b"hello, world", "1")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert statuses == [HTTPStatus.OK]
    assert ask(server, "HEAD", "/file").headers["content-length"] == "12"
    assert ask(server, "GET", "/file", [("If-None-Match", tag)]).status == 304
    assert ask(server, "POST", "/file", [("If-None-Match", tag)]).body == b"hello, world"
    part = ask(server, "GET", "/file", [("Range", "bytes=7-")])
    assert (part.status, part.body) == (206, b"world")
    assert ask(server, "GET", "/file", [("Range", "bytes=70-")]).status == 416
    made = ask(server, "GET", "/made")
    assert made.body == LARGE
    assert made.headers["content-type"] == "text/x-made"
    assert made.headers["content-disposition"] == (
        "attachment; filename=\"r_p_ort.txt\"; filename*=UTF-8''r%E2%82%ACp%22ort.txt"
    )
    assert ask(server, "GET", "/replaced").body == b"text after all"
    gone = ask(server, "GET", "/gone", [("If-None-Match", "*"), ("Range", "bytes=0-1")])
    assert (gone.status, gone.body) == (410, b"<h1>home</h1>")
    assert ask(server, "GET", "/secret").body == SECRET
    assert server.record.count("error") == 0
    wait_until(lambda: not any(str(root) in name for name in open_descriptors().values()))


def test_a_handler_hears_at_once_of_a_file_that_cannot_be_sent(server: RecordingServer, root: Path) -> None:
    os.mkfifo(root / "fifo")

    def send(req: HttpRequest, resp: HttpResponse) -> HTTPStatus:
        try:
            return resp.file(root / req.params["name"], filename=req.query.get("as"))
        except OSError as error:
            return resp.text(f"{type(error).__name__} {error}", status=404)
        except ValueError as error:
            return resp.text(str(error), status=400)

    server.get("/:name", send)
    assert ask(server, "GET", "/hello.txt").body == b"hello, world"
    for name, error in (("nope", "FileNotFoundError"), ("sub", "IsADirectoryError")):
        text = ask(server, "GET", f"/{name}").body.decode()
        assert text.startswith(error) and str(root / name) in text
    assert b"not a regular file" in ask(server, "GET", "/fifo").body
    assert b"filename=" in ask(server, "GET", "/hello.txt?as=a%0Ab").body


def test_a_deferred_answer_is_a_file(server: RecordingServer, root: Path) -> None:
    waiting: list[HttpResponse] = []
    server.get("/later", lambda req, resp: waiting.append(resp.defer()))
    with RawClient(port_of(server), upgrade=False) as raw:
        raw.request("GET", "/later", [("Range", "bytes=1000-1999")])
        tick_until(lambda: waiting, server)
        waiting[0].file(root / "large.bin")
        answer = raw.read_answer()
        assert (answer.status, answer.body) == (206, LARGE[1000:2000])
        with pytest.raises(RuntimeError, match="already"):
            waiting[0].file(root / "large.bin")
    waiting.clear()
    wait_until(lambda: not any("large.bin" in name for name in open_descriptors().values()))


# Programs that others wrote


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_resumes_a_download(server: RecordingServer, root: Path, tmp_path: Path) -> None:
    server.static("/", root)
    target = tmp_path / "download"
    target.write_bytes(LARGE[:1_000_000])
    url = f"http://{HOST}:{port_of(server)}/large.bin"
    subprocess.run(["curl", "-sS", "--fail", "-C", "-", "-o", target, url], check=True, timeout=60)
    assert target.read_bytes() == LARGE


def test_httpx_decodes_a_precompressed_copy(server: RecordingServer, root: Path) -> None:
    (root / "index.html.gz").write_bytes(gzip.compress(b"<h1>home</h1>"))
    server.static("/", root)
    with httpx.Client(base_url=f"http://{HOST}:{port_of(server)}", follow_redirects=True) as client:
        answer = client.get("/")
        assert (answer.text, answer.headers["content-encoding"]) == ("<h1>home</h1>", "gzip")
        assert client.get("/", headers={"If-None-Match": answer.headers["etag"]}).status_code == 304


def test_http2_downloads_ranges_and_heads(root: Path, tmp_path: Path) -> None:
    made = support_tls.make_certificates(tmp_path / "tls")
    secure = RecordingServer()
    secure.static("/", root)
    secure.start(0, **made.settings)
    with httpx.Client(http2=True, verify=made.context(), base_url=f"https://{HOST}:{secure.tls_port}") as client:
        answer = client.get("/large.bin")
        assert (answer.http_version, answer.status_code) == ("HTTP/2", 200)
        assert answer.content == LARGE
        part = client.get("/large.bin", headers={"Range": "bytes=-3"})
        assert (part.status_code, part.content) == (206, LARGE[-3:])
        head = client.head("/large.bin")
        assert (head.headers["content-length"], head.content) == (str(len(LARGE)), b"")
    secure.stop(0)


VIDEO_PAGE = """<!DOCTYPE html><title>files</title><p id=state></p><script type=module>
import { loaded } from "./module.mjs";
const part = await fetch("large.bin", { headers: { Range: "bytes=256-259" } });
const bytes = Array.from(new Uint8Array(await part.arrayBuffer()));
const sound = new Audio("sound.wav");
await new Promise((ok) => { sound.onloadedmetadata = ok; sound.load(); });
sound.currentTime = 50;
await new Promise((ok) => { sound.onseeked = ok; });
document.getElementById("state").textContent = JSON.stringify([loaded, part.status, bytes, sound.currentTime]);
</script>"""


def test_chromium_loads_a_module_fetches_a_range_and_seeks_in_a_sound(
    serve: Callable[..., ServerThread], root: Path
) -> None:
    if os.environ.get("PYHV_NO_BROWSER") == "1":
        pytest.skip("PYHV_NO_BROWSER=1")
    data = bytes(8000 * 60)  # a minute
    head = b"RIFF" + (36 + len(data)).to_bytes(4, "little") + b"WAVEfmt " + (16).to_bytes(4, "little")
    head += b"\1\0\1\0" + (8000).to_bytes(4, "little") * 2 + b"\1\0\x08\0data" + len(data).to_bytes(4, "little")
    (root / "sound.wav").write_bytes(head + data)
    (root / "module.mjs").write_text("export const loaded = true;")
    (root / "page.html").write_text(VIDEO_PAGE)
    server = RecordingServer()
    server.static("/", root)
    running = serve(server)
    try:
        with browser() as driver:
            driver.get(f"http://{HOST}:{running.port}/page.html")
            state = wait_in_browser(driver, lambda d: d.find_element(By.ID, "state").text, limit=30)
    except BrowserMissingError as missing:
        pytest.fail(f"{missing}; PYHV_NO_BROWSER=1 skips these tests", pytrace=False)
    assert state == "[true,206,[0,1,2,3],50]"
