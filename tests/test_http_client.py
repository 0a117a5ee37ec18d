"""The blocking functions, against aiohttp's server, servers that misbehave, proxies, and pyHV's own server."""

from __future__ import annotations

import base64
import gzip
import os
import signal
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx
import pytest

import pyhv
from pyhv import Headers, HttpRequest, HttpResponse, HvWebServer, Response, errors
from support import (
    HOST,
    LIMIT,
    Background,
    port_of,
    python_process,
    run_python,
    serving,
    sockets_and_wakes,
    thread_names,
    wait_until,
)
from support_http_client import Peer, Site, answering, proxy, site
from support_tls import Certificates, SecureServer, make_certificates, tls_port_of

OK = "HTTP/1.1 200 OK\r\n"


@pytest.fixture(scope="module")
def web() -> Iterator[Site]:
    with site() as running:
        yield running


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("tls") / "c")


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def echoed(response: Response) -> dict[str, Any]:
    assert response.status == 200, response.text()
    value: dict[str, Any] = response.json()
    return value


def body_of(response: Response) -> bytes:
    return base64.b64decode(echoed(response)["body"])


# Requests, and the same by httpx


@pytest.mark.parametrize("method", ["get", "post", "put", "patch", "delete", "options", "head"])
def test_every_method(web: Site, method: str) -> None:
    response = getattr(pyhv, method)(web.url("/echo"))
    assert response.status is HTTPStatus.OK
    assert web.requests[-1][0] == method.upper()
    if method == "head":
        assert response.body == b""
        assert int(response.headers["Content-Length"]) > 0
    else:
        assert echoed(response)["method"] == method.upper()


def test_any_other_method(web: Site) -> None:
    assert echoed(pyhv.request("PROPFIND", web.url("/echo")))["method"] == "PROPFIND"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"params": {"a": "1 2", "b": ["x", "y"], "ü": "&="}},
        {"params": [("a", "1"), ("a", "2")]},
        {"params": {"n": 3, "f": 1.5, "t": True}},
        {"headers": {"X-One": "1", "Accept": "text/x"}},
        {"headers": [("X-One", "1"), ("X-Two", "grün")]},
        {"cookies": {"a": "1", "b": "2"}},
        {"auth": ("ann", "sécret:with:colons")},
    ],
    ids=str,
)
def test_the_same_request_by_httpx(web: Site, options: dict[str, Any]) -> None:
    ours = echoed(pyhv.get(web.url("/echo"), **options))
    cookies = options.pop("cookies", None)
    if "headers" in options:
        pairs = options["headers"].items() if isinstance(options["headers"], dict) else options["headers"]
        options["headers"] = [(name.encode(), value.encode("latin-1")) for name, value in pairs]
    with httpx.Client(cookies=cookies) as client:
        theirs = client.get(web.url("/echo"), **options).json()
    # Both escape; a query is a form, where + and %20 are the same.
    assert ours["target"].replace("+", "%20") == theirs["target"].replace("+", "%20")
    same = ("accept", "authorization", "cookie", "host", "x-one", "x-two")
    assert {n: ours["headers"].get(n) for n in same} == {n: theirs["headers"].get(n) for n in same}


@pytest.mark.parametrize(
    ("options", "theirs"),
    [
        ({"json": {"a": [1, "ü", None]}}, {"json": {"a": [1, "ü", None]}}),
        ({"form": {"a": "1 2", "b": ["x", "ü&"]}}, {"data": {"a": "1 2", "b": ["x", "ü&"]}}),
        ({"data": b"\x00\xff"}, {"content": b"\x00\xff"}),
        ({"data": "grün"}, {"content": "grün".encode()}),
        ({"data": bytearray(b"abc")}, {"content": b"abc"}),
        ({}, {}),
    ],
    ids=str,
)
def test_the_same_body_by_httpx(web: Site, options: dict[str, Any], theirs: dict[str, Any]) -> None:
    ours = echoed(pyhv.post(web.url("/echo"), **options))
    reference = httpx.post(web.url("/echo"), **theirs).json()
    assert ours["body"] == reference["body"]
    assert ours["headers"]["content-length"] == reference["headers"]["content-length"]
    if "json" in options or "form" in options:
        assert ours["headers"]["content-type"] == reference["headers"]["content-type"]


def test_content_types(web: Site) -> None:
    def sent(**options: Any) -> str | None:
        value: str | None = echoed(pyhv.post(web.url("/echo"), **options))["headers"].get("content-type")
        return value

    assert sent(data="x") == "text/plain; charset=utf-8"
    assert sent(data=b"x") == "application/octet-stream"
    assert sent(data=b"x", headers={"content-type": "image/png"}) == "image/png"


def test_params_join_a_query_and_stay_before_the_fragment(web: Site) -> None:
    target = echoed(pyhv.get(web.url("/echo?a=1#part"), params={"b": "2"}))["target"]
    assert target == "/echo?a=1&b=2"
    assert echoed(pyhv.get(web.url("/echo?"), params={"b": "2"}))["target"] == "/echo?b=2"


def test_who_we_say_we_are(web: Site) -> None:
    headers = echoed(pyhv.get(web.url("/echo")))["headers"]
    assert headers["user-agent"] == f"pyhv/{pyhv.__version__}"
    assert sorted(part.strip() for part in headers["accept-encoding"].split(",")) == ["br", "gzip", "zstd"]
    assert echoed(pyhv.get(web.url("/echo"), headers={"User-Agent": "me"}))["headers"]["user-agent"] == "me"
    assert "accept-encoding" not in echoed(pyhv.get(web.url("/echo"), decompress=False))["headers"]


# Files


def test_files_and_fields(web: Site, tmp_path: Path) -> None:
    path = tmp_path / "pïcture.png"
    path.write_bytes(os.urandom(300_000))
    files: list[tuple[str, Any]] = [
        ("a", path),
        ("b", str(path)),
        ("c", b"bytes"),
        ("d", ("notes.txt", b"text")),
        ("e", ("x.bin", path, "image/x-own")),
    ]
    answer = pyhv.post(web.url("/form"), form={"one": "1", "two": ["2", "ü"]}, files=files).json()
    content = base64.b64encode(path.read_bytes()).decode()
    assert answer["fields"] == [
        ["one", None, None, "1"],
        ["two", None, None, "2"],
        ["two", None, None, "ü"],
        ["a", "pïcture.png", "image/png", content],
        ["b", "pïcture.png", "image/png", content],
        ["c", "c", "application/octet-stream", base64.b64encode(b"bytes").decode()],
        ["d", "notes.txt", "text/plain", base64.b64encode(b"text").decode()],
        ["e", "x.bin", "image/x-own", content],
    ]
    assert answer["length"] is not None, "the length of a file is known"


def test_names_of_files_cannot_bring_headers_along() -> None:
    def answer(peer: Peer) -> None:
        bodies.append(peer.read_body())
        peer.send(OK + "Content-Length: 0\r\n\r\n")

    bodies: list[bytes] = []
    with answering(answer) as server:
        pyhv.post(server.url, files={'f"\r\nX-Evil: 1': ('n"\r\nX-Evil: 2', b"body")})
    assert b"\r\nX-Evil" not in bodies[0]
    assert b'name="f%22%0D%0AX-Evil: 1"; filename="n%22%0D%0AX-Evil: 2"' in bodies[0]


@pytest.mark.parametrize(("name", "filename"), [("f", "a\x1bb"), ("f\0", "a"), ("f", "a\x7f")])
def test_a_filename_with_control_characters_is_refused(name: str, filename: str) -> None:
    with pytest.raises(ValueError, match=r"files: the (file)?name .* has control characters"):
        pyhv.post("http://127.0.0.1:1/", files={name: (filename, b"content")})


def test_a_large_file_is_streamed(web: Site, tmp_path: Path) -> None:
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(64 << 20)  # a hole: takes no space
    code = """
import resource, sys, pyhv
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
response = pyhv.post(sys.argv[1], files={"f": sys.argv[2]}, timeout=60)
assert response.ok
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""

    def answer(peer: Peer) -> None:
        assert len(peer.read_body()) > 64 << 20
        peer.send(OK + "Content-Length: 0\r\n\r\n")

    with answering(answer) as server:
        done = run_python(code, server.url, str(path))
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 16 << 10, "KiB more than before: the file is not held in memory"


def test_a_file_that_is_not_there_or_none(web: Site, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing"):
        pyhv.post(web.url("/form"), files={"f": tmp_path / "missing"})
    with pytest.raises(ValueError, match="not a regular file"):
        pyhv.post(web.url("/form"), files={"f": tmp_path})
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(ValueError, match="not a regular file"):
        pyhv.post(web.url("/form"), files={"f": pipe})


# Responses


@pytest.mark.parametrize("status", [200, 201, 204, 304, 404, 418, 500, 599])
def test_status(web: Site, status: int) -> None:
    response = pyhv.get(web.url(f"/status/{status}"))
    assert response.status == status
    assert isinstance(response.status, HTTPStatus) is (status != 599)
    assert response.ok is (status < 400)
    if status < 400:
        assert response.raise_for_status() is response
    else:
        with pytest.raises(pyhv.HttpStatusError, match=f"{web.base}/status/{status} answered with {status}") as caught:
            response.raise_for_status()
        assert caught.value.response is response
        assert response.text() == f"this is {status}"


def test_what_a_response_has() -> None:
    answer = OK.replace("OK", "Quite Fine") + "X-A: 1\r\nx-a: 2\r\nX-L: gr\xfcn\r\nSet-Cookie: c=d; Path=/\r\n"
    with answering(answer + 'Content-Length: 8\r\n\r\n{"a": 1}') as server:
        response = pyhv.get(server.url + "x?y#z")
    assert (response.status, response.reason, response.http_version) == (200, "Quite Fine", "1.1")
    assert isinstance(response.headers, Headers)
    assert response.headers["X-A"] == "1, 2"
    assert response.headers["X-L"] == "grün"
    assert response.cookies == {"c": "d"}
    assert response.url.startswith(server.url + "x?y")
    assert response.history == []
    assert response.json() == {"a": 1}
    assert 0 < response.elapsed < LIMIT
    assert repr(response).startswith("<Response 200 Quite Fine from http://")


def test_http_1_0_and_a_body_without_length() -> None:
    with answering("HTTP/1.0 200 OK\r\n\r\nuntil the end") as server:
        response = pyhv.get(server.url)
    assert response.http_version == "1.0"
    assert response.body == b"until the end"


@pytest.mark.parametrize(
    ("charset", "text"),
    [
        ("iso-8859-1", "grün"),
        ("windows-1252", "„grün“"),
        ("shift_jis", "日本"),
        ("UTF-16", "grün"),
        ("utf-8", "日本"),
        ("no-such-charset", "grün"),
        ("idna", "grün"),
        ("hex", "grün"),
    ],
)
def test_text_is_decoded_by_its_charset(web: Site, charset: str, text: str) -> None:
    encoded = text.encode("utf-8" if charset in ("no-such-charset", "idna", "hex") else charset)
    body = (
        f"{OK}Content-Type: text/plain; charset={charset}\r\nContent-Length: {len(encoded)}\r\n\r\n".encode() + encoded
    )
    with answering(lambda peer: peer.send(body)) as server:
        assert pyhv.get(server.url).text() == text
        pieces: list[str] = []
        pyhv.get(server.url, on_chunk=pieces.append, text_chunks=True)
        assert "".join(pieces) == text


def test_text_with_what_is_no_text_and_another_encoding() -> None:
    with answering(OK + "Content-Length: 2\r\n\r\n\xffx") as server:
        response = pyhv.get(server.url)
    assert response.text() == "\ufffdx"
    assert response.text("latin-1") == "ÿx"
    with pytest.raises(ValueError, match="utf-8"):
        response.json()


@pytest.mark.parametrize("encoding", ["gzip", "br", "zstd"])
def test_decompression(web: Site, encoding: str) -> None:
    response = pyhv.get(web.url(f"/encoded/{encoding}"))
    assert response.body == b"hello"
    assert "Content-Encoding" not in response.headers
    raw = pyhv.get(web.url(f"/encoded/{encoding}"), decompress=False)
    assert raw.body != b"hello"
    assert raw.headers["Content-Encoding"] == encoding


# Redirects, credentials, cookies


def test_redirects_are_followed_with_their_cookies(web: Site) -> None:
    response = pyhv.get(web.url("/redirect/3"))
    assert response.url == web.url("/echo")
    assert response.history == [web.url(f"/redirect/{n}") for n in (3, 2, 1)]
    assert set(echoed(response)["headers"]["cookie"].split("; ")) == {"step1=yes", "step2=yes", "step3=yes"}
    assert "referer" not in echoed(response)["headers"]


def test_how_many_redirects(web: Site) -> None:
    assert pyhv.get(web.url("/redirect/10")).status == 200
    with pytest.raises(pyhv.TooManyRedirects, match=r"/redirect/1 redirects once more, after redirects=10"):
        pyhv.get(web.url("/redirect/11"))
    assert pyhv.get(web.url("/redirect/3"), redirects=3).status == 200
    with pytest.raises(pyhv.TooManyRedirects, match="redirects=2"):
        pyhv.get(web.url("/redirect/3"), redirects=2)
    for none in (False, 0):
        response = pyhv.get(web.url("/redirect/3"), redirects=none)
        assert (response.status, response.headers["Location"]) == (302, "/redirect/2")


def test_a_redirect_loop_ends() -> None:
    answer = "HTTP/1.1 302 Found\r\nLocation: /\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    with answering(answer) as server:
        with pytest.raises(pyhv.TooManyRedirects):
            pyhv.get(server.url)
        assert len(server.requests) == 11


@pytest.mark.parametrize(
    ("status", "method", "body"),
    [(301, "GET", b""), (302, "GET", b""), (303, "GET", b""), (307, "POST", b"x"), (308, "POST", b"x")],
)
def test_what_a_redirect_does_to_a_post(web: Site, status: int, method: str, body: bytes) -> None:
    response = pyhv.post(web.url("/to"), params={"status": status, "url": "/echo"}, data=b"x")
    assert echoed(response)["method"] == method
    assert body_of(response) == body
    empty = echoed(pyhv.post(web.url("/to"), params={"status": status, "url": "/echo"}))
    assert empty["headers"].get("content-length") == ("0" if method == "POST" else None)


@pytest.mark.parametrize("target", ["ftp://127.0.0.1/", "gopher://127.0.0.1:70/"])
def test_a_redirect_leads_to_http_alone(web: Site, target: str) -> None:
    with pytest.raises(pyhv.RequestFailed, match="scheme is not allowed"):
        pyhv.get(web.url("/to"), params={"url": target})
    assert pyhv.get(web.url("/to"), params={"url": "file:///etc/passwd"}).status == 302


@pytest.mark.parametrize(
    "credentials",
    [
        {"auth": ("ann", "secret")},
        {"bearer": "secret"},
        {"headers": {"Authorization": "Basic secret"}},
        {"headers": {"Cookie": "session=secret"}},
        {"cookies": {"session": "secret"}},
        "user",
    ],
    ids=str,
)
def test_credentials_stay_with_their_host(web: Site, credentials: Any) -> None:
    with site() as other:
        base = web.base
        options: dict[str, Any] = {}
        if credentials == "user":
            base = base.replace("://", "://ann:secret@")
        else:
            options = credentials
        same = echoed(pyhv.get(base + "/to", params={"url": "/echo"}, **options))["headers"]
        assert "authorization" in same or "cookie" in same, "the same host still gets them"
        # Another port is another origin; cookies do not know ports (RFC 6265 section 8.5).
        target = other.url("/echo").replace(HOST, "localhost")
        away = echoed(pyhv.get(base + "/to", params={"url": target}, **options))["headers"]
        assert "authorization" not in away
        assert "cookie" not in away
        assert "secret" not in str(away)


def test_credentials_in_the_url_are_sent_and_not_shown(web: Site) -> None:
    url = web.url("/echo").replace("://", "://ann:s%3Acret@")
    response = pyhv.get(url)
    expected = "Basic " + base64.b64encode(b"ann:s:cret").decode()
    assert echoed(response)["headers"]["authorization"] == expected
    assert response.url == web.url("/echo")
    assert echoed(pyhv.get(url, bearer="b"))["headers"]["authorization"] == "Bearer b"
    with pytest.raises(pyhv.HttpStatusError) as caught:
        pyhv.get(url.replace("/echo", "/status/401")).raise_for_status()
    assert "cret" not in str(caught.value)
    for bad, options in (
        ("ann:secret@", {}),
        ("http://ann:secret@a b/", {}),
        ("http://ann:secret@a/", {"ca_file": "x"}),
    ):
        with pytest.raises(ValueError, match="URL") as misused:
            pyhv.get(bad, **options)  # type: ignore[arg-type]
        assert "secret" not in str(misused.value)
    with pytest.raises(pyhv.ConnectionRefused) as refused:
        pyhv.get(f"http://ann:secret@{HOST}:{free_port()}/x")
    assert "secret" not in str(refused.value)


def test_no_cookie_outlives_a_call(web: Site) -> None:
    assert pyhv.get(web.url("/cookies?a=1")).cookies == {"a": "1"}
    assert pyhv.get(web.url("/cookies")).json() == {}


# What goes wrong


def free_port() -> int:
    with socket.create_server((HOST, 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def test_nobody_there() -> None:
    port = free_port()
    with pytest.raises(pyhv.ConnectionRefused, match=f"http://{HOST}:{port}/x: Connection refused") as caught:
        pyhv.get(f"http://{HOST}:{port}/x")
    assert isinstance(caught.value, (pyhv.ConnectError, ConnectionRefusedError))


def test_no_such_name() -> None:
    with pytest.raises(pyhv.NameResolutionError, match=r"nosuch\.invalid"):
        pyhv.get("http://nosuch.invalid/x")


def test_nobody_accepts() -> None:
    # A full backlog: the kernel drops the SYN.
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        waiting = [socket.socket() for _ in range(8)]
        try:
            for client in waiting:
                client.setblocking(False)
                client.connect_ex((HOST, port))
            with pytest.raises(pyhv.ConnectTimeout, match=r"connect_timeout=0\.2 s") as caught:
                pyhv.get(f"http://{HOST}:{port}/", connect_timeout=0.2)
            assert isinstance(caught.value, TimeoutError)
        finally:
            for client in waiting:
                client.close()


def test_no_answer_in_time(web: Site) -> None:
    web.go.clear()
    with pytest.raises(pyhv.HttpTimeout, match=r"/wait did not answer wholly within timeout=0\.2 s") as caught:
        pyhv.get(web.url("/wait"), timeout=0.2)
    assert isinstance(caught.value, (pyhv.HttpError, TimeoutError))
    web.go.set()
    assert pyhv.get(web.url("/wait"), timeout=None, connect_timeout=None).text() == "at last"


def test_a_body_that_dribbles_does_not_outlive_the_timeout() -> None:
    def dribble(peer: Peer) -> None:
        peer.send(OK + "Content-Length: 1000000\r\n\r\n")
        while not server.over.wait(0.01):
            peer.send("x")

    with answering(dribble) as server:
        with pytest.raises(pyhv.HttpTimeout):
            pyhv.get(server.url, timeout=0.3)
        with pytest.raises(pyhv.HttpTimeout):
            pyhv.get(server.url, timeout=0.3, on_chunk=lambda data: None)


def chunked(*sizes: str) -> str:
    return OK + "Transfer-Encoding: chunked\r\n\r\n" + "".join(sizes)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ("SSH-2.0-OpenSSH_9.2\r\n\r\n", "ProtocolError"),
        ("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "ProtocolError"),
        ("HTTP/1.1 20 OK\r\n\r\n", "ProtocolError"),
        ("HTTP/1.1 200 OK\r\nNo colon\r\n\r\n", "ProtocolError"),
        (OK + "Content-Length: x\r\n\r\n", "ProtocolError"),
        (OK + "Content-Length: 1\r\nContent-Length: 2\r\n\r\nab", "ProtocolError"),
        (OK + "X: " + "x" * (2 << 20) + "\r\n\r\n", "ProtocolError"),
        (OK + "X: x\r\n" * 100_000 + "\r\n", "ProtocolError"),
        (chunked("zz\r\nab\r\n"), "ProtocolError"),
        (chunked("ffffffffffffffffff\r\nab\r\n"), "ProtocolError"),
        (chunked("-1\r\nab\r\n"), "ProtocolError"),
        (chunked("2\r\nabXX0\r\n\r\n"), "ProtocolError"),
        (chunked("2\r\nab\r\n"), "RequestFailed"),
        (chunked("5\r\nab"), "RequestFailed"),
        (OK + "Content-Length: 10\r\n\r\nab", "RequestFailed"),
        (OK + "Content-Le", "RequestFailed"),
        ("", "RequestFailed"),
        (OK + "Content-Encoding: gzip\r\nContent-Length: 5\r\n\r\nhello", "ProtocolError"),
        (OK + "Content-Encoding: br\r\nContent-Length: 5\r\n\r\nhello", "ProtocolError"),
        (OK + "Content-Encoding: zstd\r\nContent-Length: 5\r\n\r\nhello", "ProtocolError"),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_what_is_not_proper_http(answer: str, error: str) -> None:
    with answering(answer) as server:
        with pytest.raises(pyhv.HttpError, match=server.url) as caught:
            pyhv.get(server.url)
        assert type(caught.value) is getattr(errors, error), caught.value
        assert str(caught.value).count(server.url) == 1


def test_a_reset_in_the_middle() -> None:
    def answer(peer: Peer) -> None:
        peer.send(OK + "Content-Length: 10\r\n\r\nab")
        peer.reset()

    with answering(answer) as server, pytest.raises(pyhv.RequestFailed, match=server.url):
        pyhv.get(server.url)


def test_a_truncated_gzip_body() -> None:
    body = gzip.compress(os.urandom(10_000))[:5_000]
    head = f"{OK}Content-Encoding: gzip\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with answering(lambda peer: peer.send(head + body)) as server, pytest.raises(pyhv.HttpError, match=server.url):
        pyhv.get(server.url)


# Limits


def test_the_largest_response(web: Site) -> None:
    assert len(pyhv.get(web.url("/bytes/1000"), max_response_size=1000).body) == 1000
    with pytest.raises(pyhv.BodyTooLarge, match=r"/bytes/1001 is larger than max_response_size=1000 bytes"):
        pyhv.get(web.url("/bytes/1001"), max_response_size=1000)
    assert pyhv.get(web.url("/bytes/0"), max_response_size=0).body == b""
    assert len(pyhv.get(web.url("/bytes/1001"), max_response_size=None).body) == 1001


def test_an_endless_body_is_cut_off(web: Site) -> None:
    before = web.cancelled
    with pytest.raises(pyhv.BodyTooLarge):
        pyhv.get(web.url("/endless"), max_response_size=1 << 20)
    wait_until(lambda: web.cancelled > before, what="the server sees the end of the connection")


def test_a_gzip_bomb_does_not_grow_memory(web: Site) -> None:
    code = """
import resource, sys, pyhv
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    pyhv.get(sys.argv[1], max_response_size=1 << 20)
except pyhv.BodyTooLarge:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = run_python(code, web.url("/bomb/200"))
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 32 << 10, "KiB more than before, of 200 MiB"


# In pieces


def test_on_chunk_runs_on_the_calling_thread(web: Site) -> None:
    pieces: list[bytes] = []
    threads: set[int] = set()

    def on_chunk(data: bytes) -> None:
        pieces.append(data)
        threads.add(threading.get_ident())

    response = pyhv.get(web.url("/bytes/1000000"), on_chunk=on_chunk, max_response_size=10)
    assert b"".join(pieces) == b"x" * 1_000_000
    assert response.body == b""
    assert response.status == 200
    assert threads == {threading.get_ident()}


def test_on_chunk_gets_the_pieces_as_they_come() -> None:
    def answer(peer: Peer) -> None:
        peer.send(OK + "Content-Length: 6\r\n\r\n")
        for piece in ("ab", "cd", "ef"):
            peer.send(piece)
            assert taken.wait(LIMIT)
            taken.clear()

    def on_chunk(data: bytes) -> None:
        pieces.append(data)
        taken.set()

    taken = threading.Event()
    pieces: list[bytes] = []
    with answering(answer) as server:
        pyhv.get(server.url, on_chunk=on_chunk)
    assert pieces == [b"ab", b"cd", b"ef"]


def test_characters_cut_between_two_pieces() -> None:
    def answer(peer: Peer) -> None:
        peer.send(OK + "Content-Type: text/plain; charset=utf-8\r\n\r\n")
        for byte in "aü日🦀".encode():
            peer.send(bytes([byte]))
            if byte < 0x80:
                assert taken.wait(LIMIT)
        peer.send(b"\xe6")

    taken = threading.Event()
    pieces: list[str] = []

    def on_chunk(text: str) -> None:
        pieces.append(text)
        taken.set()

    with answering(answer) as server:
        pyhv.get(server.url, on_chunk=on_chunk, text_chunks=True)
    assert "".join(pieces) == "aü日🦀\ufffd"
    assert "" not in pieces


class Stop(Exception):  # noqa: N818
    pass


@pytest.mark.parametrize("raised", [Stop, KeyboardInterrupt, SystemExit])
def test_what_on_chunk_raises_ends_the_request(web: Site, raised: type[BaseException]) -> None:
    calls: list[bytes] = []

    def on_chunk(data: bytes) -> None:
        calls.append(data)
        raise raised

    before = web.cancelled
    with pytest.raises(raised):
        pyhv.get(web.url("/endless"), on_chunk=on_chunk)
    assert len(calls) == 1
    wait_until(lambda: web.cancelled > before, what="the server sees the end of the connection")


def test_a_slow_on_chunk_holds_the_server_back(web: Site) -> None:
    before = web.written
    levels: list[int] = []

    def on_chunk(data: bytes) -> None:
        # Until the server has not written anything for a while: everything between is full.
        seen = -1
        while seen != web.written:
            seen = web.written
            time.sleep(0.05)
        levels.append(web.written - before)
        raise Stop

    with pytest.raises(Stop):
        pyhv.get(web.url("/endless"), on_chunk=on_chunk)
    assert levels[0] < 32 << 20, "kernel buffers and a mebibyte of ours, not everything"


# Bad arguments


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("", "not an HTTP URL"),
        ("example.com", "not an HTTP URL"),
        ("/path", "not an HTTP URL"),
        ("ftp://example.com/", "does not begin with http"),
        ("ws://example.com/", "does not begin with http"),
        ("http://", "not an HTTP URL"),
        ("http://a b/", "spaces or control"),
        ("http://example.com/\r\nX: y", "spaces or control"),
        ("http://example.com:0/", "port 0"),
        ("http://example.com:70000/", "port"),
        ("http://[::1/", "IPv6"),
    ],
)
def test_bad_urls(url: str, why: str) -> None:
    with pytest.raises(ValueError, match=why) as caught:
        pyhv.get(url)
    assert repr(url)[1:4] in str(caught.value) or not url


@pytest.mark.parametrize(
    ("options", "error", "why"),
    [
        ({"headers": {"X": "a\r\nb"}}, ValueError, "control characters"),
        ({"headers": {"X Y": "a"}}, ValueError, "X Y"),
        ({"headers": {"X": 1}}, TypeError, "not both str"),
        ({"headers": {"Content-Length": "3"}}, ValueError, "set by the client"),
        ({"headers": {"Transfer-Encoding": "chunked"}}, ValueError, "set by the client"),
        ({"params": {"a": object()}}, TypeError, "params: a="),
        ({"params": "a=1"}, TypeError, "params="),
        ({"json": {"a": object()}}, TypeError, "JSON"),
        ({"json": float("nan")}, ValueError, "JSON"),
        ({"data": 5}, TypeError, "data= is"),
        ({"data": "x", "json": 1}, ValueError, "json= and data="),
        ({"data": "x", "files": {"f": b"x"}}, ValueError, "data= and files="),
        ({"files": {"f": b""}, "headers": {"Content-Type": "x/y"}}, ValueError, "boundary"),
        ({"files": {"f": 5}}, TypeError, "files: f is int"),
        ({"files": {"f": ("a", b"", "no type")}}, ValueError, "not a content type"),
        ({"files": {"f": ("a", b"", "a/b\r\nX: y")}}, ValueError, "not a content type"),
        ({"cookies": {"a": "b;c"}}, ValueError, "cookies: a="),
        ({"cookies": {"a\n": "b"}}, ValueError, "cookies"),
        ({"auth": ("a", "b"), "bearer": "c"}, ValueError, "exclude"),
        ({"auth": ("a:b", "c")}, ValueError, "colon"),
        ({"auth": "a:b"}, TypeError, "auth="),
        ({"bearer": "a", "headers": {"authorization": "x"}}, ValueError, "exclude"),
        ({"bearer": "a\r\nX: y"}, ValueError, "control characters"),
        ({"timeout": -1}, ValueError, "timeout=-1"),
        ({"timeout": 0}, ValueError, "timeout=0"),
        ({"timeout": float("nan")}, ValueError, "timeout="),
        ({"timeout": "x"}, TypeError, "timeout='x'"),
        ({"connect_timeout": -1}, ValueError, "connect_timeout=-1"),
        ({"redirects": -1}, ValueError, "redirects=-1"),
        ({"redirects": "x"}, TypeError, "redirects="),
        ({"max_response_size": -1}, ValueError, "max_response_size=-1"),
        ({"max_response_size": "1"}, TypeError, "max_response_size="),
        ({"text_chunks": True}, ValueError, "needs on_chunk"),
        ({"proxy": True}, ValueError, "proxy=True"),
        ({"proxy": "no url at all"}, ValueError, "proxy="),
        ({"proxy": 5}, TypeError, "proxy=5"),
        ({"fingerprint": "00"}, ValueError, "https:// URLs"),
        ({"dangerous_accept_any_certificate": True}, ValueError, "dangerous_accept_any_certificate= is for https"),
        ({"no_such": 1}, TypeError, "no_such"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_bad_arguments(options: dict[str, Any], error: type[Exception], why: str) -> None:
    with pytest.raises(error, match=why):
        pyhv.post("http://127.0.0.1:9/", **options)


@pytest.mark.parametrize("method", ["", "GE T", "G\r\nX", "CONNECT"])
def test_bad_methods(method: str) -> None:
    with pytest.raises(ValueError, match="method="):
        pyhv.request(method, "http://127.0.0.1:9/")


# TLS


@pytest.fixture
def secure(certificates: Certificates) -> Iterator[SecureServer]:
    server = SecureServer()
    with serving(server, **certificates.settings):
        yield server


def secure_url(server: HvWebServer, path: str, host: str = HOST) -> str:
    return f"https://{host}:{tls_port_of(server)}{path}"


@pytest.mark.parametrize("http2", [True, False])
def test_https_with_our_own_server(secure: SecureServer, certificates: Certificates, http2: bool) -> None:
    response = pyhv.get(secure_url(secure, "/ping"), ca_file=certificates.ca, http2=http2)
    assert response.text() == "pong"
    assert response.http_version == ("2" if http2 else "1.1")
    assert response.reason == "OK"
    posted = pyhv.post(secure_url(secure, "/echo"), data=b"x" * 500_000, ca_file=certificates.ca, http2=http2)
    assert posted.body == b"x" * 500_000


def test_https_with_another_server(certificates: Certificates) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificates.cert, certificates.key)
    with site(context) as running:
        response = pyhv.get(running.url("/redirect/2"), ca_file=certificates.ca)
    assert response.url == running.url("/echo")
    assert response.http_version == "1.1"


def test_whom_to_trust(secure: SecureServer, certificates: Certificates, tmp_path: Path) -> None:
    url = secure_url(secure, "/ping")
    with pytest.raises(pyhv.TlsError, match=url):
        pyhv.get(url)
    other = make_certificates(tmp_path / "other")
    with pytest.raises(pyhv.TlsError, match=url):
        pyhv.get(url, ca_file=other.ca)
    assert pyhv.get(url, fingerprint=certificates.fingerprint).text() == "pong"
    with pytest.raises(pyhv.TlsError, match="fingerprint"):
        pyhv.get(url, fingerprint=other.fingerprint)
    assert pyhv.get(url, dangerous_accept_any_certificate=True).text() == "pong"
    assert pyhv.get(secure_url(secure, "/ping", "localhost"), ca_file=certificates.ca).text() == "pong"
    with pytest.raises(ValueError, match="exclude"):
        pyhv.get(url, ca_file=certificates.ca, fingerprint=certificates.fingerprint)
    with pytest.raises(FileNotFoundError, match="ca_file"):
        pyhv.get(url, ca_file=tmp_path / "missing")
    with pytest.raises(ValueError, match="client_keyfile= needs"):
        pyhv.get(url, client_keyfile=certificates.key)


def test_a_client_certificate_is_shown(certificates: Certificates) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(certificates.ca))
    context.load_cert_chain(certificates.cert, certificates.key)
    context.verify_mode = ssl.CERT_REQUIRED
    with site(context) as running:
        options = {"client_certfile": certificates.cert, "client_keyfile": certificates.key}
        assert pyhv.get(running.url("/echo"), ca_file=certificates.ca, **options).ok  # type: ignore[arg-type]
        with pytest.raises(pyhv.PyHVError, match=running.base):
            pyhv.get(running.url("/echo"), ca_file=certificates.ca)


def test_tls_that_ends_without_a_word(certificates: Certificates) -> None:
    def answer(peer: Peer) -> None:
        peer.send(OK + "Content-Length: 10\r\n\r\nab")
        # The socket, without the close_notify that would say that this is all (RFC 8446 section 6.1).
        peer.socket.shutdown(socket.SHUT_RDWR)

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificates.cert, certificates.key)
    with answering(answer, context) as server:
        for url, options in ((server.url, {}), (server.url, {"on_chunk": lambda data: None})):
            with pytest.raises(pyhv.RequestFailed, match=r"close_notify$"):
                pyhv.get(url, ca_file=certificates.ca, **options)  # type: ignore[arg-type]


def test_https_to_a_port_without_tls(web: Site) -> None:
    with pytest.raises(pyhv.TlsError, match="does not speak TLS"):
        pyhv.get(web.url("/echo").replace("http:", "https:"))


# Proxies


def test_the_environment_names_the_proxy(web: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    with proxy() as running:
        monkeypatch.setenv("http_proxy", running.url)
        assert echoed(pyhv.get(web.url("/echo")))["headers"]["via"] == "1.1 test"
        assert "via" not in echoed(pyhv.get(web.url("/echo"), proxy=False))["headers"]
        monkeypatch.setenv("no_proxy", HOST)
        assert "via" not in echoed(pyhv.get(web.url("/echo")))["headers"]
        assert running.connections == 1


def test_a_proxy_by_argument_and_for_https(
    web: Site, secure: SecureServer, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    with proxy() as running:
        assert echoed(pyhv.get(web.url("/echo"), proxy=running.url))["headers"]["via"] == "1.1 test"
        response = pyhv.get(secure_url(secure, "/ping"), proxy=running.url, ca_file=certificates.ca)
        assert response.text() == "pong"
        assert running.requests[-1][0] == f"CONNECT {HOST}:{tls_port_of(secure)} HTTP/1.1"
        monkeypatch.setenv("HTTPS_PROXY", running.url)
        assert pyhv.get(secure_url(secure, "/ping"), ca_file=certificates.ca).text() == "pong"
        assert running.connections == 3


def test_credentials_for_the_proxy_go_to_the_proxy_alone(web: Site) -> None:
    with proxy() as running:
        url = running.url.replace("://", "://pete:pass@")
        headers = echoed(pyhv.get(web.url("/echo"), proxy=url))["headers"]
        expected = "Basic " + base64.b64encode(b"pete:pass").decode()
        assert running.requests[0][1]["proxy-authorization"] == expected
        assert "authorization" not in headers


def test_a_proxy_that_refuses(web: Site, secure: SecureServer) -> None:
    with proxy(refuse=True) as running:
        assert pyhv.get(web.url("/echo"), proxy=running.url).status == 407
        with pytest.raises(pyhv.ConnectError, match="proxy"):
            pyhv.get(secure_url(secure, "/ping"), proxy=running.url)
    with pytest.raises(pyhv.ConnectionRefused):
        pyhv.get(web.url("/echo"), proxy=running.url)


# With the program


class Asking(HvWebServer):
    """A server whose handler asks another one."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.failures: list[Exception] = []

    def on_init(self) -> None:
        self.get("/relay", self.relay)

    def relay(self, req: HttpRequest, resp: HttpResponse) -> None:
        resp.text(pyhv.get(self.url, timeout=LIMIT).text())

    def on_error(self, exc: Exception) -> None:
        self.failures.append(exc)


def test_inside_a_callback_of_a_server(web: Site) -> None:
    server = Asking(web.url("/status/200"))
    with serving(server):
        assert pyhv.get(f"http://{HOST}:{port_of(server)}/relay").text() == "this is 200"
    assert server.failures == []


def test_inside_on_chunk(web: Site) -> None:
    inner: list[int] = []
    pyhv.get(web.url("/bytes/10"), on_chunk=lambda data: inner.append(pyhv.get(web.url("/bytes/3")).status))
    assert inner == [200]


def test_other_threads_run_meanwhile(web: Site) -> None:
    web.go.clear()
    waiting = Background(lambda: pyhv.get(web.url("/wait"), timeout=LIMIT))
    wait_until(lambda: web.requests[-1][1] == "/wait")
    assert not waiting.done()
    web.go.set()
    assert waiting.result().text() == "at last"


def test_many_threads_at_once(web: Site) -> None:
    many = [Background(partial(pyhv.get, web.url(f"/bytes/{n}"))) for n in range(50)]
    assert [len(each.result().body) for each in many] == list(range(50))


def test_nothing_is_left(web: Site) -> None:
    pyhv.get(web.url("/bytes/1"))
    wait_until(lambda: not [n for n in thread_names() if n.startswith("tokio")], what="tokio's helpers have gone")
    before = wait_until(sockets_and_wakes)
    threads = thread_names()
    for _ in range(20):
        pyhv.get(web.url("/redirect/2"))
        with pytest.raises(pyhv.ConnectError):
            pyhv.get(f"http://{HOST}:{free_port()}/")
        with pytest.raises(pyhv.BodyTooLarge):
            pyhv.get(web.url("/endless"), max_response_size=10)
    wait_until(lambda: sockets_and_wakes() <= before, what="every descriptor is closed")
    assert thread_names() == threads


CTRL_C = """
import sys, pyhv
print("asking", flush=True)
try:
    pyhv.get(sys.argv[1], timeout=None, **({"on_chunk": lambda data: None} if sys.argv[2] == "chunks" else {}))
except KeyboardInterrupt:
    print("interrupted", flush=True)
    sys.stdin.readline()
    print("after", pyhv.get(sys.argv[3]).status, flush=True)
"""


@pytest.mark.parametrize(("path", "how"), [("/wait", "whole"), ("/endless", "chunks")])
def test_ctrl_c(web: Site, path: str, how: str) -> None:
    web.go.clear()
    before = web.cancelled
    seen = len(web.requests)
    with python_process(CTRL_C, web.url(path), how, web.url("/bytes/1")) as process:
        assert process.stdout is not None and process.stdin is not None
        assert process.stdout.readline() == "asking\n"
        wait_until(lambda: len(web.requests) > seen)
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "interrupted\n"
        wait_until(lambda: web.cancelled > before, what="the request was cancelled")
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "after 200\n"
        assert process.wait(LIMIT) == 0
    web.go.set()


EXIT = """
import sys, threading, pyhv
started = threading.Event()
def ask():
    started.set()
    pyhv.get(sys.argv[1], timeout=None)
for _ in range(5):
    threading.Thread(target=ask, daemon=True).start()
    started.wait()
    started.clear()
client = pyhv.HttpClient()
for _ in range(5):
    client.get(sys.argv[1], timeout=None)
sys.stdin.readline()
print("bye")
"""


def test_the_process_ends_while_requests_run(web: Site) -> None:
    web.go.clear()
    seen = len(web.requests)
    with python_process(EXIT, web.url("/wait")) as process:
        wait_until(lambda: len(web.requests) >= seen + 10)
        out, err = process.communicate("\n", timeout=LIMIT)
        assert (process.returncode, out, err) == (0, "bye\n", "")
    web.go.set()


FORK = """
import os, sys, pyhv
url = sys.argv[1]
assert pyhv.get(url).status == 200
client = pyhv.HttpClient()
call = client.get(url)
pid = os.fork()
if pid == 0:
    try:
        for use in (client.tick, client.fileno, client.close, call.cancel, lambda: client.get(url)):
            try:
                use()
            except RuntimeError as error:
                assert "fork()" in str(error), error
            else:
                raise AssertionError(use)
        assert pyhv.get(url).status == 200
        mine = pyhv.HttpClient()
        got = []
        mine.get(url, got.append)
        while not got:
            mine.tick(1)
        del client, call
        os._exit(0)
    except BaseException as error:
        print(repr(error), flush=True)
        os._exit(1)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
while not call.is_done:
    client.tick(1)
assert call.response.status == 200
"""


def test_after_fork(web: Site) -> None:
    done = run_python(FORK, web.url("/bytes/1"), prefix=())
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr
