"""The dasHV tutorial HV-03, "HTTP server", row by row with pyHV's words.

The server lives on a thread of its own; what it sends is read byte by byte.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator
from http import HTTPStatus

import pytest

from pyhv import BadRequest, HttpRequest, HttpResponse, HvWebServer
from support import Answer, ServerThread, http, serving, wait_until

TEXT = "text/plain; charset=utf-8"


class TutorialServer(HvWebServer):
    """Sections 1 to 8: one route for each row."""

    def on_init(self) -> None:
        self.threads: set[int] = set()
        self.errors: list[Exception] = []
        self.get("/hello", self.get_hello)
        self.post("/echo", lambda req, resp: resp.text(req.text()))
        self.put("/resource", lambda req, resp: resp.text(f"PUT: {req.text()}"))
        self.patch("/resource", lambda req, resp: resp.text(f"PATCH: {req.text()}"))
        self.delete("/resource", lambda req, resp: resp.text("DELETE: ok"))
        self.head("/resource", self.head_resource)
        self.get("/users/:id", lambda req, resp: resp.text(f"user: {req.params['id']}"))
        self.get("/users/:id/posts/:post_id", lambda req, resp: resp.json(req.params))
        self.get("/users/me", lambda req, resp: resp.text("it is you"))
        self.get("/pages/*path", lambda req, resp: resp.text(f"page: {req.params['path']}"))
        self.get("/search", lambda req, resp: resp.json(req.query.pairs()))
        self.get("/headers", self.get_headers)
        self.get("/api/status", lambda req, resp: {"status": "ok", "version": 3})
        self.post("/api/echo", lambda req, resp: resp.json(req.json()))
        self.any("/any-method", lambda req, resp: resp.text(f"method: {req.method}"))
        self.post("/any-method", lambda req, resp: resp.text("POST has its own"))

    def on_error(self, exc: Exception) -> None:
        self.errors.append(exc)

    def get_hello(self, req: HttpRequest, resp: HttpResponse) -> HTTPStatus:
        self.threads.add(threading.get_ident())
        return resp.text("Hello, world!")

    def head_resource(self, req: HttpRequest, resp: HttpResponse) -> HTTPStatus:
        resp.set_header("X-Resource-Exists", "true")
        return HTTPStatus.OK

    def get_headers(self, req: HttpRequest, resp: HttpResponse) -> HTTPStatus:
        resp.set_header("X-Custom", "overwritten")
        resp.set_header("x-custom", "tutorial-03")
        resp.add_header("X-Two", "a")
        resp.add_header("X-Two", "b")
        return resp.text(req.headers["x-request-id"])


@pytest.fixture(scope="module")
def thread() -> Iterator[ServerThread]:
    with serving(TutorialServer(), max_body_size=10_000) as thread:
        yield thread


@pytest.fixture
def ask(thread: ServerThread) -> Callable[..., Answer]:
    def ask(method: str, target: str, body: bytes | None = None, **headers: str) -> Answer:
        return http(thread.port, method, target, [(n.replace("_", "-"), v) for n, v in headers.items()], body)

    return ask


def test_a_minimal_route(thread: ServerThread, ask: Callable[..., Answer]) -> None:
    answer = ask("GET", "/hello")
    assert (answer.status, answer.body) == (200, b"Hello, world!")
    assert answer.headers["content-type"] == TEXT
    assert answer.headers["content-length"] == "13"
    server = thread.server
    assert isinstance(server, TutorialServer)
    assert server.threads == {thread.ident}


def test_a_body_is_echoed_and_bounded(ask: Callable[..., Answer]) -> None:
    assert ask("POST", "/echo", "grüß dich".encode()).body == "grüß dich".encode()
    assert ask("POST", "/echo", b"").body == b""
    assert ask("POST", "/echo", b"x" * 10_000).status == 200
    assert ask("POST", "/echo", b"x" * 10_001).status == 413
    assert ask("POST", "/echo", b"\xff").status == 400, "text() of bytes that are none"


@pytest.mark.parametrize(("method", "text"), [("PUT", "PUT: new"), ("PATCH", "PATCH: new"), ("DELETE", "DELETE: ok")])
def test_every_method_has_its_route(ask: Callable[..., Answer], method: str, text: str) -> None:
    answer = ask(method, "/resource", b"new")
    assert (answer.status, answer.body.decode()) == (200, text)


def test_head_has_its_own_handler_or_that_of_get(ask: Callable[..., Answer]) -> None:
    own = ask("HEAD", "/resource")
    assert (own.status, own.headers["x-resource-exists"], own.body) == (200, "true", b"")
    of_get = ask("HEAD", "/hello")
    assert (of_get.status, of_get.headers["content-length"], of_get.body) == (200, "13", b"")


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/users/42", "user: 42"),
        ("/users/a%20b%2Fc", "user: a b/c"),
        ("/users/7/posts/99", '{"id":"7","post_id":"99"}'),
        ("/users/me", "it is you"),
        ("/pages/a/b.html", "page: a/b.html"),
    ],
)
def test_path_parameters(ask: Callable[..., Answer], path: str, text: str) -> None:
    answer = ask("GET", path)
    assert (answer.status, answer.body.decode()) == (200, text)


@pytest.mark.parametrize("path", ["/users", "/users/", "/users/1/", "/pages/", "/Hello"])
def test_a_path_that_nobody_has_is_404(ask: Callable[..., Answer], path: str) -> None:
    assert ask("GET", path).status == 404


def test_query_parameters_are_decoded_in_order(ask: Callable[..., Answer]) -> None:
    answer = ask("GET", "/search?q=two+words&page=1&q=%C3%BC&empty=&flag")
    expected = [["q", "two words"], ["page", "1"], ["q", "ü"], ["empty", ""], ["flag", ""]]
    assert json.loads(answer.body) == expected


def test_headers_of_both_directions(ask: Callable[..., Answer]) -> None:
    answer = ask("GET", "/headers", X_Request_Id="12345")
    assert (answer.headers["x-custom"], answer.body) == ("tutorial-03", b"12345")
    assert answer.headers["x-two"] == "a, b"


@pytest.mark.parametrize(("name", "value"), [("X-A", "a\r\nX-B: b"), ("X A", "b"), ("", "b"), ("X-A", "nul\0")])
def test_a_header_that_would_break_out_raises(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=r"header"):
        HttpResponse().set_header(name, value)


def test_json_both_ways(ask: Callable[..., Answer]) -> None:
    answer = ask("GET", "/api/status")
    assert (answer.status, answer.body) == (200, b'{"status":"ok","version":3}')
    assert answer.headers["content-type"] == "application/json"
    assert json.loads(ask("POST", "/api/echo", b'{"msg": ["hello", 1, null]}').body) == {"msg": ["hello", 1, None]}


def test_what_is_no_json_is_400_and_no_error_of_the_program(thread: ServerThread, ask: Callable[..., Answer]) -> None:
    server = thread.server
    assert isinstance(server, TutorialServer)
    before = len(server.errors)
    answer = ask("POST", "/api/echo", b"{oh no")
    assert answer.status == 400
    assert answer.headers["content-type"] == TEXT
    assert b"JSON" in answer.body
    assert len(server.errors) == before


def test_any_takes_what_has_no_handler_of_its_own(ask: Callable[..., Answer]) -> None:
    assert ask("GET", "/any-method").body == b"method: GET"
    assert ask("BREW", "/any-method").body == b"method: BREW"
    assert ask("POST", "/any-method", b"").body == b"POST has its own"


def test_methods_without_a_route_are_told_which_there_are(ask: Callable[..., Answer]) -> None:
    answer = ask("DELETE", "/echo")
    assert (answer.status, answer.headers["allow"]) == (405, "OPTIONS, POST")
    answer = ask("OPTIONS", "/resource")
    assert (answer.status, answer.body) == (204, b"")
    assert sorted(answer.headers["allow"].split(", ")) == ["DELETE", "HEAD", "OPTIONS", "PATCH", "PUT"]


def test_a_route_can_be_added_while_the_server_runs_and_not_twice(
    thread: ServerThread, ask: Callable[..., Answer]
) -> None:
    @thread.server.get("/late")
    def late(req: HttpRequest, resp: HttpResponse) -> str:
        return "here now"

    assert ask("GET", "/late").body == b"here now"
    for path in ("/late", "/users/:name"):
        with pytest.raises(ValueError, match=path):
            thread.server.get(path, late)
    with pytest.raises(ValueError, match="no-slash"):
        thread.server.get("no-slash", late)
    with pytest.raises(TypeError, match="not callable"):
        thread.server.get("/x", "text")  # type: ignore[call-overload]


def test_a_bad_request_of_ones_own(thread: ServerThread, ask: Callable[..., Answer]) -> None:
    def square(req: HttpRequest, resp: HttpResponse) -> dict[str, int]:
        try:
            return {"square": int(req.query["n"]) ** 2}
        except ValueError:
            raise BadRequest("n= has to be a whole number") from None

    thread.server.get("/square", square)
    assert json.loads(ask("GET", "/square?n=7").body) == {"square": 49}
    answer = ask("GET", "/square?n=seven")
    assert (answer.status, answer.body.strip()) == (400, b"400 Bad Request: n= has to be a whole number")


def test_a_handler_that_fails_is_500_and_tells_nothing(
    thread: ServerThread, ask: Callable[..., Answer], caplog: pytest.LogCaptureFixture
) -> None:
    server = thread.server
    assert isinstance(server, TutorialServer)
    server.get("/broken", lambda req, resp: resp.text(req.params["the password"]))
    with caplog.at_level(logging.ERROR, "pyhv.server"):
        answer = ask("GET", "/broken")
        wait_until(lambda: server.errors)
    assert answer.status == 500
    assert b"password" not in answer.body
    assert isinstance(server.errors[-1], KeyError)
    assert "GET /broken" in caplog.text
    assert ask("GET", "/hello").status == 200


@pytest.mark.parametrize(
    ("returned", "status", "body", "kind"),
    [
        ("text", 200, b"text", TEXT),
        (b"data", 200, b"data", "application/octet-stream"),
        ([1, 2], 200, b"[1,2]", "application/json"),
        (HTTPStatus.NO_CONTENT, 204, b"", None),
        (418, 418, b"", None),
        (None, 200, b"", None),
    ],
)
def test_what_a_handler_may_return(
    returned: object, status: int, body: bytes, kind: str | None, serve: Callable[..., ServerThread]
) -> None:
    server = HvWebServer()
    server.get("/", lambda req, resp: returned)
    answer = http(serve(server).port, "GET", "/")
    assert (answer.status, answer.body, answer.headers.get("content-type")) == (status, body, kind)


def test_an_answer_that_comes_later_from_another_thread(serve: Callable[..., ServerThread]) -> None:
    server = HvWebServer()
    kept: list[HttpResponse] = []
    server.get("/later", lambda req, resp: kept.append(resp.defer()))
    port = serve(server).port

    def answer_it() -> None:
        wait_until(lambda: kept)
        assert kept[0].is_awaited
        kept[0].json({"primes": 1229})

    worker = threading.Thread(target=answer_it)
    worker.start()
    answer = http(port, "GET", "/later")
    worker.join()
    assert (answer.status, answer.body) == (200, b'{"primes":1229}')
    assert kept[0].is_sent
