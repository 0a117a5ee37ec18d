"""The dasHV tutorial HV-04, "Advanced HTTP server features", row by row with pyHV's words."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest

from pyhv import HttpRequest, HttpResponse, HvWebServer
from support import Answer, ServerThread, http, wait_until

TEXT = "text/plain; charset=utf-8"
ORIGIN = "http://example.com"

Ask = Callable[..., Answer]


class AdvancedServer(HvWebServer):
    """The tutorial's server."""

    def __init__(self, site: Path) -> None:
        self.site = site
        self.errors: list[Exception] = []

    def on_init(self) -> None:
        self.static("/static", self.site)
        self.get("/old-path", lambda req, resp: resp.redirect("/new-path", 301))
        self.get("/new-path", lambda req, resp: resp.text("you arrived at /new-path"))
        self.get("/report", lambda req, resp: resp.file(self.site / "data.json", filename="report.json"))
        self.get("/file/*path", lambda req, resp: resp.file(self.site / req.params["path"]))
        self.get("/cached", self.get_cached)
        self.get("/binary", lambda req, resp: resp.data(b"BINARY\x00DATA1234"))
        self.get("/html", lambda req, resp: resp.html("<h1>Hello from pyHV!</h1>"))
        self.get("/not-found", lambda req, resp: resp.json({"error": "resource not found", "code": 404}, 404))
        self.post("/items", self.post_items)
        self.post("/ack", lambda req, resp: HTTPStatus.NO_CONTENT)
        self.get("/long", lambda req, resp: resp.text("the same again\n" * 1_000))
        self.get("/who", lambda req, resp: resp.json([req.client_address, req.scheme]))

    def on_error(self, exc: Exception) -> None:
        self.errors.append(exc)

    def get_cached(self, req: HttpRequest, resp: HttpResponse) -> HTTPStatus:
        resp.set_header("Cache-Control", "max-age=3600, public")
        resp.set_header("ETag", '"v1.0"')
        return resp.text("cached response")

    def post_items(self, req: HttpRequest, resp: HttpResponse) -> HTTPStatus:
        resp.set_header("Location", "/items/42")
        return resp.json({"id": 42, "body": req.text()}, HTTPStatus.CREATED)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    site = tmp_path / "site"
    site.mkdir()
    (site / "index.html").write_text("<h1>Welcome</h1>")
    (site / "style.css").write_text("body { color: red; }")
    (site / "data.json").write_text('{"hello":"world"}')
    (site / ".secret").write_text("not for you")
    (tmp_path / "outside.txt").write_text("outside")
    return site


@pytest.fixture
def server(site: Path) -> AdvancedServer:
    return AdvancedServer(site)


@pytest.fixture
def ask(server: AdvancedServer, serve: Callable[..., ServerThread]) -> Ask:
    """Asks a server whose proxy is on this machine."""
    port = serve(server, trusted_proxies=["127.0.0.1"]).port

    def ask(method: str, target: str, body: bytes | None = None, **headers: str) -> Answer:
        return http(port, method, target, [(name.replace("_", "-"), value) for name, value in headers.items()], body)

    return ask


# 1: a directory


@pytest.mark.parametrize(
    ("path", "kind", "content"),
    [
        ("/static/index.html", "text/html; charset=utf-8", b"<h1>Welcome</h1>"),
        ("/static/", "text/html; charset=utf-8", b"<h1>Welcome</h1>"),
        ("/static/style.css", "text/css; charset=utf-8", b"body { color: red; }"),
        ("/static/data.json", "application/json", b'{"hello":"world"}'),
    ],
)
def test_files_and_their_types(ask: Ask, path: str, kind: str, content: bytes) -> None:
    answer = ask("GET", path)
    assert (answer.status, answer.headers["content-type"], answer.body) == (200, kind, content)
    bare = ask("HEAD", path)
    assert (bare.status, bare.headers["content-length"], bare.body) == (200, str(len(content)), b"")


@pytest.mark.parametrize(
    "path",
    [
        "/static/nothing.html",
        "/static/.secret",
        "/static/../outside.txt",
        "/static/..%2foutside.txt",
        "/static/%2e%2e/outside.txt",
        "/static/..%5coutside.txt",
        "/static//etc/passwd",
    ],
)
def test_what_is_not_for_you(ask: Ask, path: str) -> None:
    answer = ask("GET", path)
    assert answer.status in (400, 404)
    assert b"outside" not in answer.body and b"not for you" not in answer.body


def test_a_file_that_the_client_has_and_a_part_of_one(ask: Ask) -> None:
    first = ask("GET", "/static/style.css")
    again = ask("GET", "/static/style.css", If_None_Match=first.headers["etag"])
    assert (again.status, again.body) == (304, b"")
    part = ask("GET", "/static/style.css", Range="bytes=7-16")
    assert (part.status, part.headers["content-range"], part.body) == (206, "bytes 7-16/20", b"color: red")
    assert ask("GET", "/static/style.css", Range="bytes=20-").status == 416
    assert ask("DELETE", "/static/style.css").status == 405


def test_no_tick_is_needed(site: Path) -> None:
    server = AdvancedServer(site)
    server.start(0)
    try:
        assert http(server.port or 0, "GET", "/static/data.json").body == b'{"hello":"world"}'
    finally:
        server.stop(0)


def test_directories_as_told(server: AdvancedServer, ask: Ask, site: Path) -> None:
    (site / "style.css.gz").write_bytes(b"in fact not compressed")
    (site / "404.html").write_text("<h1>nothing here</h1>")
    server.static("/listed", site, home_page=None, listing=True, hidden=True, precompressed=False)
    server.static("/told", site, home_page="data.json", error_page="404.html", cache_control="max-age=3600")
    listing = ask("GET", "/listed/").body
    assert b"style.css" in listing and b".secret" in listing
    assert ask("GET", "/listed/.secret").body == b"not for you"
    told = ask("GET", "/told/")
    assert (told.body, told.headers["cache-control"]) == (b'{"hello":"world"}', "max-age=3600")
    missing = ask("GET", "/told/nothing")
    assert (missing.status, missing.body) == (404, b"<h1>nothing here</h1>")
    assert ask("GET", "/told/style.css", Accept_Encoding="gzip").headers["content-encoding"] == "gzip"
    assert "content-encoding" not in ask("GET", "/listed/style.css", Accept_Encoding="gzip").headers


def test_a_route_wins_over_a_file(server: AdvancedServer, ask: Ask) -> None:
    server.static("/", server.site)
    server.get("/style.css", lambda req, resp: "of the route")
    assert ask("GET", "/style.css").body == b"of the route"
    assert ask("GET", "/data.json").body == b'{"hello":"world"}'


def test_a_directory_that_is_not_there_raises(server: AdvancedServer, site: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        server.static("/x", site / "nowhere")
    with pytest.raises(NotADirectoryError, match=r"data\.json"):
        server.static("/x", site / "data.json")


# 2: CORS


def test_a_preflight_is_answered_natively(server: AdvancedServer, ask: Ask) -> None:
    server.allow_cors()
    answer = ask("OPTIONS", "/cached", Origin=ORIGIN, Access_Control_Request_Method="GET")
    assert answer.status == 204
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "GET" in answer.headers["access-control-allow-methods"]
    assert ask("GET", "/cached", Origin=ORIGIN).headers["access-control-allow-origin"] == "*"
    assert ask("GET", "/static/data.json", Origin=ORIGIN).headers["access-control-allow-origin"] == "*"
    assert ask("GET", "/nowhere", Origin=ORIGIN).headers["access-control-allow-origin"] == "*"


def test_origins_by_name(server: AdvancedServer, ask: Ask) -> None:
    server.allow_cors([ORIGIN], methods=["PUT"], credentials=True)
    answer = ask("OPTIONS", "/cached", Origin=ORIGIN, Access_Control_Request_Method="PUT")
    assert answer.status == 204
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert answer.headers["access-control-allow-credentials"] == "true"
    refused = ask("OPTIONS", "/cached", Origin="http://elsewhere.example", Access_Control_Request_Method="PUT")
    assert refused.status == 403
    assert "access-control-allow-origin" not in ask("GET", "/cached", Origin="http://elsewhere.example").headers
    assert "origin" in ask("GET", "/cached", Origin=ORIGIN).headers["vary"].lower()
    with pytest.raises(ValueError, match="credentials"):
        server.allow_cors("*", credentials=True)


# 3 and 4: redirects and single files


def test_redirects(ask: Ask) -> None:
    answer = ask("GET", "/old-path")
    assert (answer.status, answer.headers["location"]) == (301, "/new-path")
    assert ask("GET", "/new-path").body == b"you arrived at /new-path"
    with pytest.raises(ValueError, match="200"):
        HttpResponse().redirect("/new-path", 200)


def test_a_single_file(ask: Ask) -> None:
    answer = ask("GET", "/report")
    assert (answer.status, answer.body) == (200, b'{"hello":"world"}')
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["content-disposition"] == 'attachment; filename="report.json"'
    assert ask("GET", "/report", Range="bytes=1-7").body == b'"hello"'
    assert ask("GET", "/report", If_None_Match=answer.headers["etag"]).status == 304


def test_a_single_file_that_is_not_there(server: AdvancedServer, ask: Ask) -> None:
    assert ask("GET", "/file/style.css").status == 200
    assert ask("GET", "/file/nothing.css").status == 500
    wait_until(lambda: server.errors)
    assert isinstance(server.errors[0], FileNotFoundError)
    assert str(server.errors[0].filename).endswith("nothing.css")


# 5 to 7: headers, bytes, types, statuses


def test_caching_is_the_programs_to_say(ask: Ask) -> None:
    answer = ask("GET", "/cached")
    assert (answer.headers["cache-control"], answer.headers["etag"]) == ("max-age=3600, public", '"v1.0"')


def test_bytes_with_a_zero_among_them(ask: Ask) -> None:
    answer = ask("GET", "/binary")
    assert (answer.status, answer.body) == (200, b"BINARY\x00DATA1234")
    assert answer.headers["content-type"] == "application/octet-stream"


@pytest.mark.parametrize(
    ("method", "path", "status", "kind", "body"),
    [
        ("GET", "/html", 200, "text/html; charset=utf-8", b"<h1>Hello from pyHV!</h1>"),
        ("GET", "/not-found", 404, "application/json", b'{"error":"resource not found","code":404}'),
        ("POST", "/items", 201, "application/json", b'{"id":42,"body":"new item"}'),
        ("POST", "/ack", 204, None, b""),
    ],
)
def test_types_and_statuses(ask: Ask, method: str, path: str, status: int, kind: str | None, body: bytes) -> None:
    answer = ask(method, path, b"new item" if method == "POST" else None)
    assert (answer.status, answer.headers.get("content-type"), answer.body) == (status, kind, body)
    assert answer.headers.get("location") == ("/items/42" if status == 201 else None)


# Beyond the original


def test_compression(server: AdvancedServer, ask: Ask) -> None:
    assert "content-encoding" not in ask("GET", "/long", Accept_Encoding="gzip").headers
    server.compress_responses()
    answer = ask("GET", "/long", Accept_Encoding="gzip")
    assert answer.headers["content-encoding"] == "gzip"
    assert len(answer.body) < 1_000
    assert "accept-encoding" in answer.headers["vary"].lower()
    assert "content-encoding" not in ask("GET", "/new-path", Accept_Encoding="gzip").headers, "too small"
    assert "content-encoding" not in ask("GET", "/long").headers


def test_the_access_log(server: AdvancedServer, ask: Ask, caplog: pytest.LogCaptureFixture) -> None:
    server.enable_access_log()
    with caplog.at_level(logging.INFO, "pyhv.access"):
        ask("GET", "/new-path?a=b")
        ask("GET", "/static/style.css")
        ask("GET", "/nowhere")
        wait_until(lambda: len(caplog.records) == 3)
    records: list[Any] = caplog.records
    assert [(record.method, record.url, record.status) for record in records] == [
        ("GET", "/new-path?a=b", 200),
        ("GET", "/static/style.css", 200),
        ("GET", "/nowhere", 404),
    ]
    assert [record.size for record in records[:2]] == [24, 20]
    assert '"GET /new-path?a=b HTTP/1.1" 200 24' in records[0].getMessage()


def test_health(server: AdvancedServer, ask: Ask) -> None:
    server.enable_healthz("/health")
    answer = ask("GET", "/health")
    assert (answer.status, json.loads(answer.body)["status"]) == (200, "ok")


def test_a_program_that_does_not_tick_is_not_well(site: Path) -> None:
    server = AdvancedServer(site)
    server.enable_healthz(max_tick_age=0.01)
    server.start(0)
    try:
        wait_until(lambda: http(server.port or 0, "GET", "/healthz").status == 503)
        assert json.loads(http(server.port or 0, "GET", "/healthz").body)["status"] == "stalled"
    finally:
        server.stop(0)


def test_behind_a_proxy(ask: Ask, serve: Callable[..., ServerThread], site: Path) -> None:
    told = {"X_Forwarded_For": "203.0.113.7", "X_Forwarded_Proto": "https"}
    assert json.loads(ask("GET", "/who", **told).body) == ["203.0.113.7", "https"]
    assert json.loads(ask("GET", "/who").body) == ["127.0.0.1", "http"]
    trusting_nobody = serve(AdvancedServer(site)).port
    headers = [(name.replace("_", "-"), value) for name, value in told.items()]
    assert json.loads(http(trusting_nobody, "GET", "/who", headers).body) == ["127.0.0.1", "http"]
