"""The dasHV tutorial HV-02, "Advanced HTTP requests", row by row with pyHV's words; then `HttpClient` on the tick.

A server of pyHV's, on a thread of its own, tells what it was asked.
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

import pytest

import pyhv
from pyhv import HttpClient, HttpRequest, HttpResponse, HvWebServer, PyHVError, Response
from support import HOST, LIMIT, RawServer, ServerThread, serving, tick_until, wait_until

pytestmark = pytest.mark.usefixtures("no_proxy")


class ShowingServer(HvWebServer):
    """Answers with what it was asked; redirects; and leaves some without an answer."""

    def on_init(self) -> None:
        self.unanswered: list[HttpResponse] = []
        self.any("/show", self.show)
        self.get("/redirect/:status/:left", self.redirect)
        self.get("/never", lambda req, resp: self.unanswered.append(resp.defer()))
        self.get("/cookie", self.cookie)

    def show(self, req: HttpRequest, resp: HttpResponse) -> HTTPStatus:
        shown = {"method": req.method, "url": req.url, "body": req.text(), "peer": req.remote_address[1]}
        return resp.json({**shown, "headers": dict(req.headers)})

    def redirect(self, req: HttpRequest, resp: HttpResponse) -> HTTPStatus:
        status, left = req.params["status"], int(req.params["left"])
        return resp.redirect(f"/redirect/{status}/{left - 1}" if left > 1 else "/show", int(status))

    def cookie(self, req: HttpRequest, resp: HttpResponse) -> HTTPStatus:
        resp.set_header("Set-Cookie", "kept=yes; Path=/")
        return HTTPStatus.NO_CONTENT


@pytest.fixture(scope="module")
def thread() -> Iterator[ServerThread]:
    with serving(ShowingServer()) as thread:
        yield thread


@pytest.fixture
def base(thread: ServerThread) -> str:
    return f"http://{HOST}:{thread.port}"


def shown(answer: Response) -> dict[str, Any]:
    value: dict[str, Any] = answer.raise_for_status().json()
    return value


# 1 and 2: a request, its body and headers


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PURGE"])
def test_one_call_for_all_methods(base: str, method: str) -> None:
    said = shown(pyhv.request(method, f"{base}/show", data="body", headers={"X-Custom": "tutorial-02"}))
    assert (said["method"], said["url"], said["body"]) == (method, "/show", "body")
    assert said["headers"]["x-custom"] == "tutorial-02"


def test_headers_as_pairs_may_repeat(base: str) -> None:
    said = shown(pyhv.get(f"{base}/show", headers=[("X-Two", "a"), ("X-Two", "b")]))
    assert said["headers"]["x-two"] == "a, b"


# 3: timeouts


def test_the_timeout_of_a_whole_request(base: str) -> None:
    with pytest.raises(pyhv.HttpTimeout, match=r"timeout=0\.05") as raised:
        pyhv.get(f"{base}/never", timeout=0.05)
    assert isinstance(raised.value, TimeoutError)
    assert shown(pyhv.get(f"{base}/show", timeout=None, connect_timeout=None))["method"] == "GET"


def test_a_server_that_accepts_and_says_nothing() -> None:
    with RawServer() as silent, pytest.raises(pyhv.HttpTimeout):
        pyhv.get(f"http://{HOST}:{silent.port}/", timeout=0.05)


@pytest.mark.parametrize("name", ["timeout", "connect_timeout"])
def test_a_timeout_that_is_none(base: str, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}=-1"):
        pyhv.request("GET", base, **{name: -1})  # type: ignore[arg-type]


# 4: authentication


def test_basic_and_bearer(base: str) -> None:
    said = shown(pyhv.get(f"{base}/show", auth=("user", "sécret")))
    kind, _, code = said["headers"]["authorization"].partition(" ")
    assert (kind, base64.b64decode(code).decode()) == ("Basic", "user:sécret")
    assert shown(pyhv.get(f"{base}/show", bearer="a.b.c"))["headers"]["authorization"] == "Bearer a.b.c"
    with pytest.raises(ValueError, match="bearer"):
        pyhv.get(f"{base}/show", auth=("user", "secret"), bearer="a.b.c")


# 5: query parameters


@pytest.mark.parametrize(
    ("url", "params", "expected"),
    [
        ("/show", {"page": 1, "limit": 10}, "/show?page=1&limit=10"),
        ("/show?page=1", {"limit": 10}, "/show?page=1&limit=10"),
        ("/show", {"q": "a & b", "ü": "="}, "/show?q=a+%26+b&%C3%BC=%3D"),
        ("/show", {"tag": ["x", "y"]}, "/show?tag=x&tag=y"),
        ("/show", [("tag", "x"), ("tag", "y")], "/show?tag=x&tag=y"),
    ],
)
def test_params(base: str, url: str, params: Any, expected: str) -> None:
    assert shown(pyhv.get(base + url, params=params))["url"] == expected


# 6: redirects


def test_redirects_are_followed(base: str) -> None:
    answer = pyhv.get(f"{base}/redirect/302/2")
    assert shown(answer)["url"] == "/show"
    assert answer.url == f"{base}/show"
    assert answer.history == [f"{base}/redirect/302/2", f"{base}/redirect/302/1"]


def test_redirects_as_told(base: str) -> None:
    answer = pyhv.get(f"{base}/redirect/301/2", redirects=False)
    assert (answer.status, answer.headers["Location"], answer.history) == (301, "/redirect/301/1", [])
    assert shown(pyhv.get(f"{base}/redirect/301/2", redirects=2))["url"] == "/show"
    with pytest.raises(pyhv.TooManyRedirects, match="redirects=1"):
        pyhv.get(f"{base}/redirect/301/2", redirects=1)
    with pytest.raises(pyhv.TooManyRedirects, match="redirects=10"):
        pyhv.get(f"{base}/redirect/301/11")


# 7: content types


@pytest.mark.parametrize(
    ("options", "kind", "body"),
    [
        ({"json": {"key": "välue"}}, "application/json", '{"key":"välue"}'),
        (
            {"form": {"key": "a value", "two": ["1", "2"]}},
            "application/x-www-form-urlencoded",
            "key=a+value&two=1&two=2",
        ),
        ({"data": "<key/>"}, "text/plain; charset=utf-8", "<key/>"),
        ({"data": "<key/>", "headers": {"content-type": "application/xml"}}, "application/xml", "<key/>"),
    ],
)
def test_content_types(base: str, options: dict[str, Any], kind: str, body: str) -> None:
    said = shown(pyhv.post(f"{base}/show", **options))
    assert (said["headers"]["content-type"], said["body"]) == (kind, body)


def test_one_kind_of_body_at_a_time(base: str) -> None:
    with pytest.raises(ValueError, match="json"):
        pyhv.post(f"{base}/show", json={}, data="x")


# 8: looking at it


def test_what_the_response_tells(base: str) -> None:
    answer = pyhv.get(f"{base}/show")
    assert (answer.url, answer.http_version) == (f"{base}/show", "1.1")
    assert 0 < answer.elapsed < LIMIT
    assert repr(answer) == f"<Response 200 OK from {base}/show>"


# Beyond the original: on the tick


def test_callbacks_run_in_the_tick_on_its_thread(base: str) -> None:
    threads: list[int] = []
    answers: list[Response] = []

    def on_response(answer: Response) -> None:
        threads.append(threading.get_ident())
        answers.append(answer)

    with HttpClient(headers={"X-Custom": "of the client"}) as client:
        calls = [client.post(f"{base}/show", on_response, data=str(n)) for n in range(3)]
        assert not any(call.is_done for call in calls)
        tick_until(lambda: len(answers) == 3, client)
        assert all(call.is_done and call.response in answers for call in calls)
    assert sorted(shown(answer)["body"] for answer in answers) == ["0", "1", "2"]
    assert {shown(answer)["headers"]["x-custom"] for answer in answers} == {"of the client"}
    assert set(threads) == {threading.get_ident()}


def test_connections_and_cookies_are_kept(base: str) -> None:
    def ask(client: HttpClient, path: str) -> Response:
        call = client.get(base + path)
        tick_until(lambda: call.is_done, client)
        assert call.response is not None, call.error
        return call.response

    with HttpClient() as client:
        first = shown(ask(client, "/show"))
        ask(client, "/cookie")
        second = shown(ask(client, "/show"))
    assert first["peer"] == second["peer"], "one connection for all"
    assert "cookie" not in first["headers"]
    assert second["headers"]["cookie"] == "kept=yes"
    with HttpClient(keep_cookies=False) as client:
        ask(client, "/cookie")
        assert "cookie" not in shown(ask(client, "/show"))["headers"]


def test_an_error_goes_to_the_request_or_else_to_the_client(base: str) -> None:
    class Client(HttpClient):
        def on_error(self, exc: Exception) -> None:
            unclaimed.append(exc)

    claimed: list[PyHVError] = []
    unclaimed: list[Exception] = []
    with Client(timeout=0.05) as client:
        first = client.get(f"{base}/never", on_error=claimed.append)
        second = client.get(f"{base}/never", lambda answer: pytest.fail("it has no answer"))
        tick_until(lambda: first.is_done and second.is_done, client)
        assert (first.error, second.error) == (claimed[0], unclaimed[0])
    assert [type(error) for error in (*claimed, *unclaimed)] == [pyhv.HttpTimeout] * 2


def test_a_cancelled_request_calls_nobody(base: str, thread: ServerThread) -> None:
    server = thread.server
    assert isinstance(server, ShowingServer)
    asked = len(server.unanswered)
    with HttpClient() as client:
        fail = lambda _: pytest.fail("it was cancelled")  # noqa: E731
        call = client.get(f"{base}/never", fail, on_error=fail)
        wait_until(lambda: len(server.unanswered) > asked)
        assert call.cancel()
        assert (call.is_done, call.cancel()) == (True, False)
        server.unanswered[-1].text("too late")
        later = client.get(f"{base}/show")
        tick_until(lambda: later.is_done, client)


def test_a_handler_asks_somebody_else_and_answers_later(base: str) -> None:
    client = HttpClient()
    gateway = HvWebServer()

    @gateway.get("/through")
    def through(req: HttpRequest, resp: HttpResponse) -> None:
        later = resp.defer()
        client.get(
            f"{base}/{req.query['path']}",
            lambda answer: later.json({"asked": shown(answer)["url"]}),
            on_error=lambda error: later.text(type(error).__name__, 502),
            timeout=0.5,
        )

    gateway.start(0)
    try:
        with HttpClient() as asker:
            calls = [asker.get(f"http://{HOST}:{gateway.port}/through?path={path}") for path in ("show", "never")]
            # All three on one thread, which waits for nobody.
            tick_until(lambda: all(call.is_done for call in calls), gateway, client, asker)
            answers = [call.response for call in calls]
        assert [(answer.status, answer.text()) for answer in answers if answer] == [
            (200, '{"asked":"/show"}'),
            (502, "HttpTimeout"),
        ]
    finally:
        client.close()
        gateway.stop(0)
