"""Cookies: what `request.cookies` reads, and what `add_cookie` and `delete_cookie` write."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from http.cookiejar import Cookie
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyhv import HttpRequest, HttpResponse
from support import HOST, RawClient, RecordingServer, ServerThread


class CookieServer(RecordingServer):
    def on_init(self) -> None:
        self.get("/echo", lambda req, resp: resp.json(req.cookies))
        self.get("/set", self.set)
        self.get("/forget", lambda req, resp: resp.delete_cookie("session"))

    def set(self, req: HttpRequest, resp: HttpResponse) -> None:
        resp.add_cookie("session", "abc", max_age=3600, http_only=True)
        resp.add_cookie("theme", "dark", same_site=None)


def read(serve: Callable[..., ServerThread], *headers: bytes) -> Any:
    """What `request.cookies` makes of these Cookie headers."""
    with RawClient(serve(CookieServer()).port, upgrade=False) as raw:
        lines = b"".join(b"Cookie: " + header + b"\r\n" for header in headers)
        raw.send_bytes(b"GET /echo HTTP/1.1\r\nHost: x\r\n" + lines + b"\r\n")
        return httpx.Response(200, content=raw.read_answer().body).json()


def test_no_cookies(serve: Callable[..., ServerThread]) -> None:
    assert read(serve) == {}


def test_cookies_as_browsers_send_them(serve: Callable[..., ServerThread]) -> None:
    assert read(serve, b'a=1; b=x=y; c="q r"; d=""; e=; a=2; f="') == {
        "a": "1",  # the first: of the longest path
        "b": "x=y",
        "c": "q r",
        "d": "",
        "e": "",
        "f": '"',
    }


def test_what_is_no_pair_is_passed_over(serve: Callable[..., ServerThread]) -> None:
    assert read(serve, b"; ;;alone; =nameless;  a = 1 ;\tb=2", b"c=\xc3\xa9; d=\xff; a=3") == {
        "a": "1",
        "b": "2",
        "c": "é",
        "d": "\ufffd",
    }


def test_a_client_gets_several_cookies_and_returns_them(serve: Callable[..., ServerThread]) -> None:
    url = f"http://{HOST}:{serve(CookieServer()).port}"
    with httpx.Client() as client:
        answer = client.get(f"{url}/set")
        assert answer.headers.get_list("set-cookie") == [
            "session=abc; Max-Age=3600; Path=/; HttpOnly; SameSite=Lax",
            "theme=dark; Path=/",
        ]
        assert client.get(f"{url}/echo").json() == {"session": "abc", "theme": "dark"}
        client.get(f"{url}/forget")
        assert client.get(f"{url}/echo").json() == {"theme": "dark"}
        jar: list[Cookie] = list(client.cookies.jar)
        assert [cookie.name for cookie in jar] == ["theme"]


def made(*args: Any, **attributes: Any) -> str:
    resp = HttpResponse()
    resp.add_cookie(*args, **attributes)
    return resp.headers["Set-Cookie"]


def test_attributes() -> None:
    moment = datetime(2030, 5, 6, 7, 8, 9, tzinfo=timezone(timedelta(hours=2)))
    assert made("a", "") == "a=; Path=/; SameSite=Lax"
    assert made("a", '"b"', path=None, same_site=None) == 'a="b"'
    assert made("a", "b", expires=moment) == "a=b; Expires=Mon, 06 May 2030 05:08:09 GMT; Path=/; SameSite=Lax"
    assert "Expires=Thu, 01 Jan 1970 00:00:10 GMT" in made("a", "b", expires=10.5)
    assert made("a", "b", domain=".example.com", path="/x y", secure=True, same_site="none", partitioned=True) == (
        "a=b; Domain=.example.com; Path=/x y; Secure; SameSite=None; Partitioned"
    )
    assert made("__Host-a", "b", secure=True, same_site="strict") == "__Host-a=b; Path=/; Secure; SameSite=Strict"


def test_a_deletion_is_one_that_browsers_take() -> None:
    resp = HttpResponse()
    resp.delete_cookie("a", path="/x", domain="example.com")
    resp.delete_cookie("__Secure-b")
    assert resp.headers.get_all("Set-Cookie") == [
        "a=; Expires=Thu, 01 Jan 1970 00:00:00 GMT; Max-Age=0; Domain=example.com; Path=/x",
        "__Secure-b=; Expires=Thu, 01 Jan 1970 00:00:00 GMT; Max-Age=0; Path=/; Secure",
    ]


@pytest.mark.parametrize(
    ("name", "value", "attributes", "said"),
    [
        ("", "b", {}, "name ''"),
        ("a b", "b", {}, "name 'a b'"),
        ("a=", "b", {}, "name 'a='"),
        ("é", "b", {}, "name"),
        ("a\r\nX", "b", {}, "name"),
        *[
            ("a", value, {}, "cookie a: the value")
            for value in ("b c", "b;c", "b,c", "b\\c", 'b"', '"', "é", "b\r\n", "\0")
        ],
        ("a", "b" * 4096, {}, "4097 bytes"),
        ("a", "b", {"same_site": "none"}, "same_site='none' needs secure"),
        ("a", "b", {"same_site": "Lax"}, "same_site='Lax'"),
        ("a", "b", {"partitioned": True}, "partitioned=True needs secure"),
        ("a", "b", {"path": "x"}, "path='x'"),
        ("a", "b", {"path": "/x;y"}, "path='/x;y'"),
        ("a", "b", {"path": "/x\n"}, "path="),
        ("a", "b", {"domain": "x;y"}, "domain='x;y'"),
        ("a", "b", {"domain": ""}, "domain=''"),
        ("a", "b", {"domain": "bücher.de"}, "domain="),
        ("a", "b", {"expires": datetime(2030, 1, 1)}, "time zone"),
        ("a", "b", {"expires": float("nan")}, "expires=nan"),
        ("a", "b", {"expires": 1e18}, "expires="),
        ("__Secure-a", "b", {}, "__Secure-"),
        ("__host-a", "b", {"secure": True, "path": "/x"}, "__Host-"),
        ("__Host-a", "b", {"secure": True, "domain": "x.de"}, "__Host-"),
    ],
)
def test_what_a_browser_would_not_take_raises(name: str, value: str, attributes: dict[str, Any], said: str) -> None:
    resp = HttpResponse()
    with pytest.raises(ValueError, match="cookie") as caught:
        resp.add_cookie(name, value, **attributes)
    assert said in str(caught.value)
    assert not resp.headers


def test_what_is_no_argument_raises() -> None:
    for attributes in ({"max_age": 1.5}, {"max_age": True}, {"expires": "tomorrow"}, {"httponly": True}):
        with pytest.raises(TypeError):
            made("a", "b", **attributes)


@given(st.text(max_size=20), st.text(max_size=20), st.none() | st.text(max_size=20), st.none() | st.text(max_size=20))
def test_nothing_gets_out_of_its_place(name: str, value: str, path: str | None, domain: str | None) -> None:
    resp = HttpResponse()
    try:
        resp.add_cookie(name, value, path=path, domain=domain)
    except ValueError:
        return
    parts = resp.headers["Set-Cookie"].split("; ")
    assert parts[0] == f"{name}={value}"
    expected = [f"Domain={domain}"] * (domain is not None) + [f"Path={path}"] * (path is not None) + ["SameSite=Lax"]
    assert parts[1:] == expected
