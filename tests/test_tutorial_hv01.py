"""The dasHV tutorial HV-01, "Simple HTTP requests", row by row with pyHV's words.

The blocking client asks a server of pyHV's that lives on a thread of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

import pytest

import pyhv
from pyhv import HttpRequest, HttpResponse, HvWebServer
from support import HOST, ServerThread, serving

pytestmark = pytest.mark.usefixtures("no_proxy")


class TutorialServer(HvWebServer):
    """The server that all of dasHV's tutorials share, and what it was asked."""

    def on_init(self) -> None:
        self.seen: list[tuple[str, dict[str, str], bytes]] = []
        self.get("/ping", self.noted(lambda req, resp: resp.text("pong")))
        self.post("/echo", self.noted(lambda req, resp: resp.data(req.body, req.headers["Content-Type"])))
        self.get("/data", self.noted(lambda req, resp: resp.text("resource state")))
        self.get("/json", self.noted(lambda req, resp: resp.json({"status": "ok", "value": 42})))
        self.get("/many", self.many)

    def noted(self, handler: Any) -> Any:
        def noting(req: HttpRequest, resp: HttpResponse) -> Any:
            self.seen.append((req.method, dict(req.headers), req.body))
            return handler(req, resp)

        return noting

    def many(self, req: HttpRequest, resp: HttpResponse) -> HTTPStatus:
        for letter in "abc":
            resp.add_header("X-Many", letter)
        return resp.text("many")


@pytest.fixture(scope="module")
def thread() -> Iterator[ServerThread]:
    with serving(TutorialServer()) as thread:
        yield thread


@pytest.fixture
def server(thread: ServerThread) -> TutorialServer:
    assert isinstance(thread.server, TutorialServer)
    thread.server.seen.clear()
    return thread.server


@pytest.fixture
def base(server: TutorialServer) -> str:
    return f"http://{HOST}:{server.port}"


# 1: GET


def test_get(server: TutorialServer, base: str) -> None:
    answer = pyhv.get(f"{base}/ping")
    assert (answer.status, answer.text()) == (200, "pong")
    ((method, headers, body),) = server.seen
    assert (method, body) == ("GET", b"")
    assert headers["host"] == base.removeprefix("http://")
    assert "content-type" not in headers


def test_get_with_headers(server: TutorialServer, base: str) -> None:
    assert pyhv.get(f"{base}/ping", headers={"Accept": "text/plain", "X-Request-Id": "42"}).ok
    ((_, headers, _),) = server.seen
    assert (headers["accept"], headers["x-request-id"]) == ("text/plain", "42")


# 2: POST


@pytest.mark.parametrize(
    ("options", "body", "kind"),
    [
        ({"data": "grüß dich"}, "grüß dich".encode(), "text/plain; charset=utf-8"),
        ({"data": b"\x00\xff"}, b"\x00\xff", "application/octet-stream"),
        ({"json": {"message": "hello"}}, b'{"message":"hello"}', "application/json"),
        ({"data": "{}", "headers": {"Content-Type": "application/json"}}, b"{}", "application/json"),
    ],
)
def test_post(server: TutorialServer, base: str, options: dict[str, Any], body: bytes, kind: str) -> None:
    answer = pyhv.post(f"{base}/echo", **options)
    assert (answer.status, answer.body, answer.headers["Content-Type"]) == (200, body, kind)
    ((method, headers, sent),) = server.seen
    assert (method, sent, headers["content-type"]) == ("POST", body, kind)
    assert headers["content-length"] == str(len(body))


# 3 and 4: PUT, PATCH, DELETE, HEAD


@pytest.mark.parametrize("name", ["put", "patch", "delete"])
def test_methods_that_the_server_does_not_have(server: TutorialServer, base: str, name: str) -> None:
    answer = getattr(pyhv, name)(f"{base}/echo")
    assert (answer.status, answer.ok) == (405, False)
    assert answer.headers["Allow"] == "OPTIONS, POST"
    assert server.seen == []


@pytest.mark.parametrize("name", ["put", "patch", "delete", "options"])
def test_methods_that_it_has(server: TutorialServer, base: str, name: str) -> None:
    server.any(f"/own-{name}", lambda req, resp: resp.text(f"{req.method} {req.text()}"))
    assert getattr(pyhv, name)(f"{base}/own-{name}", data="body").text() == f"{name.upper()} body"


def test_head_has_headers_alone(base: str) -> None:
    answer = pyhv.head(f"{base}/ping")
    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers["Content-Length"] == "4"


def test_a_token_is_sent(server: TutorialServer, base: str) -> None:
    pyhv.get(f"{base}/data", bearer="token123")
    assert server.seen[0][1]["authorization"] == "Bearer token123"


# 5 and 6: headers and status


def test_headers_of_the_response(base: str) -> None:
    answer = pyhv.get(f"{base}/many")
    assert answer.headers["CONTENT-TYPE"] == "text/plain; charset=utf-8"
    assert answer.headers["x-many"] == "a, b, c"
    assert answer.headers.get_all("X-Many") == ["a", "b", "c"]
    assert [value for name, value in answer.headers.pairs() if name.lower() == "x-many"] == ["a", "b", "c"]
    assert answer.headers.get("X-Nothing") is None
    with pytest.raises(KeyError, match="X-Nothing"):
        answer.headers["X-Nothing"]


def test_status_and_its_words(base: str) -> None:
    answer = pyhv.get(f"{base}/ping")
    assert (answer.status, answer.reason, answer.ok) == (HTTPStatus.OK, "OK", True)
    assert answer.raise_for_status() is answer
    answer = pyhv.get(f"{base}/nonexistent")
    assert (answer.status, answer.reason, answer.ok) == (HTTPStatus.NOT_FOUND, "Not Found", False)
    with pytest.raises(pyhv.HttpStatusError, match=r"/nonexistent answered with 404 Not Found") as raised:
        answer.raise_for_status()
    assert raised.value.response is answer


# 7: bytes, and JSON


def test_the_body_as_bytes_and_as_json(base: str) -> None:
    sent = bytes(range(256)) * 100
    assert pyhv.post(f"{base}/echo", data=sent).body == sent
    assert pyhv.get(f"{base}/json").json() == {"status": "ok", "value": 42}
    with pytest.raises(ValueError, match="Expecting value"):
        pyhv.get(f"{base}/ping").json()


def test_the_body_is_bounded(base: str) -> None:
    assert pyhv.post(f"{base}/echo", data=bytes(1000), max_response_size=1000).ok
    with pytest.raises(pyhv.BodyTooLarge, match="max_response_size=999"):
        pyhv.post(f"{base}/echo", data=bytes(1000), max_response_size=999)


# Beyond the original: what is raised


def test_nobody_listens() -> None:
    with serving(TutorialServer()) as thread:
        port = thread.port
    with pytest.raises(pyhv.ConnectionRefused) as raised:
        pyhv.get(f"http://{HOST}:{port}/ping")
    assert isinstance(raised.value, pyhv.ConnectError)
    assert isinstance(raised.value, ConnectionRefusedError)
    assert str(port) in str(raised.value)


@pytest.mark.parametrize("url", ["htp://example.com/", "example.com", "", "http://"])
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(ValueError, match="URL"):
        pyhv.get(url)


def test_other_threads_go_on_while_one_waits(server: TutorialServer, base: str) -> None:
    kept: list[HttpResponse] = []
    server.get("/later", lambda req, resp: kept.append(resp.defer()))
    answers: list[pyhv.Response] = []
    waiting = threading.Thread(target=lambda: answers.append(pyhv.get(f"{base}/later")))
    waiting.start()
    while not kept:
        assert pyhv.get(f"{base}/ping").ok
    assert answers == []
    kept[0].text("at last")
    waiting.join()
    assert answers[0].text() == "at last"
