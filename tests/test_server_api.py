"""The server's public surface: starting, routes, requests, channels, broadcasts, ticking, forking, collecting."""

from __future__ import annotations

import array
import asyncio
import contextlib
import errno
import gc
import json
import os
import select
import socket
import struct
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest

import pyhv
from pyhv import BadRequest, Headers, HttpRequest, HttpResponse, HvWebServer, QueryParams, WebSocketChannel, WsOpcode
from support import (
    HOST,
    LIMIT,
    Background,
    EchoServer,
    RawClient,
    RecordingServer,
    ServerThread,
    ask,
    connected,
    http,
    only_channel,
    port_of,
    run_python,
    tick_until,
    url_of,
    wait_until,
)

# Starting


def test_port_0_lets_the_system_choose() -> None:
    first, second = HvWebServer(), HvWebServer()
    assert first.port is None
    assert not first.is_running
    with first, second:
        first.start(0)
        second.start(0)
        assert first.is_running
        assert isinstance(first.port, int)
        assert isinstance(second.port, int)
        assert 0 < first.port != second.port > 0
        socket.create_connection((HOST, first.port), LIMIT).close()
    assert first.port is None
    assert not first.is_running


def test_an_address_in_use_raises_oserror_naming_host_and_port(server: RecordingServer) -> None:
    port = port_of(server)
    with pytest.raises(OSError, match=rf"{HOST}:{port}") as caught:
        HvWebServer().start(port)
    assert caught.value.errno == errno.EADDRINUSE


def test_an_address_of_another_machine_raises_oserror_naming_it() -> None:
    with pytest.raises(OSError, match=r"192\.0\.2\.1:0") as caught:
        HvWebServer().start(0, "192.0.2.1")  # RFC 5737: for documentation
    assert caught.value.errno == errno.EADDRNOTAVAIL


def test_a_host_that_is_no_name_raises_oserror_naming_it() -> None:
    with pytest.raises(OSError, match="not a host:0"):
        HvWebServer().start(0, "not a host")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may listen everywhere")
def test_a_privileged_port_raises_permission_error_naming_it() -> None:
    with pytest.raises(PermissionError, match=rf"{HOST}:1"):
        HvWebServer().start(1)


def test_a_failed_start_leaves_the_server_to_be_started_again(server: RecordingServer) -> None:
    other = EchoServer()
    with pytest.raises(OSError, match="cannot listen"):
        other.start(port_of(server))
    assert not other.is_running
    other.start(0)
    with RawClient(port_of(other)) as raw:
        raw.send_text("second try")
        tick_until(raw.readable, other)
        assert raw.read_message() == "second try"
    other.stop(0)


def test_starting_a_running_server_raises(server: RecordingServer) -> None:
    with pytest.raises(RuntimeError, match="runs already"):
        server.start(0)
    assert server.is_running


def test_ticking_a_server_that_was_never_started_raises() -> None:
    with pytest.raises(RuntimeError, match=r"before start\(\)"):
        HvWebServer().tick()


@pytest.mark.parametrize("port", [-1, 65536, 1 << 40])
def test_a_port_out_of_range_is_refused_by_name(port: int) -> None:
    with pytest.raises(ValueError, match=f"port={port} "):
        HvWebServer().start(port)


SIZES = [
    "max_message_size",
    "max_buffered",
    "max_pending_bytes",
    "max_channel_pending_bytes",
    "max_header_size",
    "max_body_size",
]
TIMES = ["header_timeout", "body_timeout", "close_timeout"]


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("value", [-1, 1 << 64, "many", 1.5, None])
def test_a_size_out_of_range_is_refused_by_name_and_value(name: str, value: Any) -> None:
    server = HvWebServer()
    with pytest.raises(ValueError, match=f"{name}={value} "):
        server.start(0, **{name: value})
    assert not server.is_running


@pytest.mark.parametrize(
    ("name", "least"), [(name, 1) for name in SIZES[:4]] + [("max_header_size", 8192), ("max_body_size", 0)]
)
def test_the_least_size_is_accepted_and_one_less_refused(name: str, least: int) -> None:
    server = HvWebServer()
    with pytest.raises(ValueError, match=f"{name}={least - 1} .*at least {least}"):
        server.start(0, **{name: least - 1})  # type: ignore[arg-type]
    server.start(0, **{name: least})  # type: ignore[arg-type]
    server.stop()


@pytest.mark.parametrize("name", TIMES)
@pytest.mark.parametrize("value", [-0.001, float("nan"), float("inf"), 1e10])
def test_a_time_out_of_range_is_refused_by_name_and_value(name: str, value: float) -> None:
    shown = {"nan": "NaN"}.get(str(value), str(value).split("e")[0].split(".")[0])
    with pytest.raises(ValueError, match=f"{name}={shown}"):
        HvWebServer().start(0, **{name: value})  # type: ignore[arg-type]


def test_a_time_that_is_no_number_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match="close_timeout=soon"):
        HvWebServer().start(0, close_timeout="soon")  # type: ignore[arg-type]


def test_a_setting_that_does_not_exist_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match="max_mesage_size"):
        HvWebServer().start(0, max_mesage_size=1)  # type: ignore[call-arg]


def test_on_init_runs_once_before_anybody_can_connect() -> None:
    class Counting(HvWebServer):
        ports: list[int | None] = []  # noqa: RUF012 - one server

        def on_init(self) -> None:
            self.ports.append(self.port)

    server = Counting()
    for _ in range(2):
        server.start(0)
        server.stop()
    assert server.ports == [None]


def test_an_exception_in_on_init_leaves_start_and_the_next_start_runs_it_again() -> None:
    class FailsOnce(HvWebServer):
        calls = 0

        def on_init(self) -> None:
            self.calls += 1
            if self.calls == 1:
                raise LookupError("first")
            self.get("/", lambda req, resp: resp.text("second"))

    server = FailsOnce()
    with pytest.raises(LookupError, match="first"):
        server.start(0)
    assert not server.is_running
    server.start(0)
    assert ask(server, "GET", "/").body == b"second"
    server.stop()


def test_a_host_name_is_listened_on(serve: Callable[..., ServerThread]) -> None:
    running = serve(EchoServer(), host="localhost")
    for family, _, _, _, address in socket.getaddrinfo("localhost", running.port, type=socket.SOCK_STREAM):
        with socket.socket(family) as connection:
            connection.settimeout(LIMIT)
            connection.connect(address)


def test_ipv6_is_served() -> None:
    server = EchoServer()
    try:
        server.start(0, "::1")
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")
    client = pyhv.HvWebSocketClient()
    client.connect(f"ws://[::1]:{server.port}/")
    tick_until(lambda: client.is_connected, client, server)
    assert server.channels[0].remote_address is not None
    assert server.channels[0].remote_address[0] == "::1"
    assert server.channels[0].headers["host"] == f"[::1]:{server.port}"
    server.stop(0)


def test_a_subclass_with_an_init_of_its_own_need_not_call_ours() -> None:
    class Own(HvWebServer):
        def __init__(self, name: str, *, size: int) -> None:
            self.name = name
            self.size = size

    with Own("x", size=3) as server:
        server.get("/", lambda req, resp: f"{server.name}{server.size}")
        server.start(0)
        assert ask(server, "GET", "/").body == b"x3"


def test_leaving_the_context_stops_the_server_also_after_an_exception() -> None:
    server = HvWebServer()

    def use() -> None:
        with server:
            server.start(0)
            raise LookupError

    with pytest.raises(LookupError):
        use()
    assert not server.is_running


# Routes


METHODS = ["get", "post", "put", "patch", "delete", "options"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("as_decorator", [True, False])
def test_each_method_has_its_route(server: RecordingServer, method: str, as_decorator: bool) -> None:
    def handler(req: HttpRequest, resp: HttpResponse) -> HTTPStatus:
        return resp.text(f"{req.method} {req.path}")

    add = getattr(server, method)
    assert (add("/x")(handler) if as_decorator else add("/x", handler)) is handler
    answer = ask(server, method.upper(), "/x", body=b"" if method in ("post", "put", "patch") else None)
    assert (answer.status, answer.body) == (200, f"{method.upper()} /x".encode())
    other = "DELETE" if method != "delete" else "PUT"
    assert ask(server, other, "/x").status == 405


def test_head_has_the_headers_of_get_and_no_body(server: RecordingServer) -> None:
    server.get("/x", lambda req, resp: resp.text("twelve bytes"))
    answer = ask(server, "HEAD", "/x")
    assert (answer.status, answer.headers["content-length"]) == (200, "12")
    with RawClient(port_of(server), upgrade=False) as raw:
        raw.request("HEAD", "/x")
        tick_until(raw.readable, server)
        raw.read_answer(to_head=True)
        raw.request("GET", "/x")  # on the same connection: a body after the first head would be in the way
        tick_until(raw.readable, server)
        assert raw.read_answer().body == b"twelve bytes"


def test_a_route_of_its_own_for_head_wins_over_get(server: RecordingServer) -> None:
    server.get("/x", lambda req, resp: resp.text("get"))

    @server.head("/x")
    def head(req: HttpRequest, resp: HttpResponse) -> None:
        resp.set_header("X-Own", "yes")

    assert ask(server, "HEAD", "/x").headers["x-own"] == "yes"
    assert "x-own" not in ask(server, "GET", "/x").headers


def test_any_takes_every_method_that_has_no_route_of_its_own(server: RecordingServer) -> None:
    server.any("/x", lambda req, resp: resp.text(f"any {req.method}"))
    server.get("/x", lambda req, resp: resp.text("get"))
    assert ask(server, "GET", "/x").body == b"get"
    for method in ("POST", "DELETE", "OPTIONS", "PURGE"):
        assert ask(server, method, "/x").body == f"any {method}".encode()


def test_route_takes_any_method_name(server: RecordingServer) -> None:
    server.route("PURGE", "/x", lambda req, resp: resp.text("purged"))
    assert ask(server, "PURGE", "/x").body == b"purged"
    assert ask(server, "GET", "/x").headers["allow"] == "OPTIONS, PURGE"
    with pytest.raises(ValueError, match="not an HTTP method"):
        server.route("NO METHOD", "/x", lambda req, resp: None)


def test_a_handler_that_cannot_be_called_is_refused(server: RecordingServer) -> None:
    with pytest.raises(TypeError, match="GET /x is not callable: 'text'"):
        server.get("/x", "text")  # type: ignore[call-overload]
    assert ask(server, "GET", "/x").status == 404


def test_an_unknown_path_is_answered_with_404_without_a_tick(server: RecordingServer) -> None:
    server.get("/known", lambda req, resp: None)
    for path in ("/", "/unknown", "/known/", "/known/more", "/%FF"):
        assert http(port_of(server), "GET", path).status == 404


def test_a_known_path_with_another_method_is_answered_with_405_and_allow(server: RecordingServer) -> None:
    server.get("/x", lambda req, resp: None)
    server.put("/x", lambda req, resp: None)
    answer = http(port_of(server), "POST", "/x", body=b"ignored")
    assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD, OPTIONS, PUT")
    answer = http(port_of(server), "OPTIONS", "/x")
    assert (answer.status, answer.headers["allow"], answer.body) == (204, "GET, HEAD, OPTIONS, PUT", b"")


def test_path_parameters_are_decoded_and_literal_segments_win(server: RecordingServer) -> None:
    def tell(req: HttpRequest, resp: HttpResponse) -> dict[str, str]:
        return dict(req.params)

    server.get("/users/:id", tell)
    server.get("/users/me", lambda req, resp: "literal")
    server.get("/users/:id/posts/:post", tell)
    server.get("/files/*rest", tell)
    server.delete("/users/:name", tell)  # another name for the same place

    def params(method: str, path: str) -> Any:
        answer = ask(server, method, path)
        assert answer.status == 200, path
        return json.loads(answer.body)

    assert ask(server, "GET", "/users/me").body == b"literal"
    assert params("GET", "/users/7") == {"id": "7"}
    assert params("GET", "/users/J%C3%BCrgen%20%2F%25") == {"id": "Jürgen /%"}
    assert params("GET", "/users/7/posts/a%3Ab") == {"id": "7", "post": "a:b"}
    assert params("GET", "/files/a/b%20c/d?x=y") == {"rest": "a/b c/d"}
    assert params("DELETE", "/users/7") == {"name": "7"}
    assert ask(server, "GET", "/users/").status == 404


@pytest.mark.parametrize(
    "pattern",
    ["", "x", "x/y", "/x?y", "/x#y", "/:", "/:a b", "/:a/:a", "/*", "/*rest/more", "/:a-b", "/%FF"],
)
def test_a_malformed_pattern_is_refused_and_named(server: RecordingServer, pattern: str) -> None:
    with pytest.raises(ValueError, match="pattern") as caught:
        server.get(pattern, lambda req, resp: None)
    assert json.dumps(pattern)[1:-1] in str(caught.value)


def test_a_route_that_is_there_already_is_refused_and_named(server: RecordingServer) -> None:
    server.get("/x/:id", lambda req, resp: "first")
    with pytest.raises(ValueError, match="GET /x/:other has a handler already"):
        server.get("/x/:other", lambda req, resp: "second")
    server.any("/x/:id", lambda req, resp: "any")
    with pytest.raises(ValueError, match="any method /x/:id has a handler already"):
        server.any("/x/:id", lambda req, resp: "any again")
    assert ask(server, "GET", "/x/1").body == b"first"
    assert ask(server, "POST", "/x/1").body == b"any"


def test_a_route_added_while_the_server_runs_is_served(server: RecordingServer) -> None:
    assert ask(server, "GET", "/new").status == 404
    server.get("/new", lambda req, resp: "now")
    assert ask(server, "GET", "/new").body == b"now"


# Handlers: what they get and what they may return


@pytest.mark.parametrize(
    ("result", "status", "body", "content_type"),
    [
        (None, 200, b"", None),
        ("text é", 200, "text é".encode(), "text/plain; charset=utf-8"),
        (b"\x00\xff", 200, b"\x00\xff", "application/octet-stream"),
        (bytearray(b"ab"), 200, b"ab", "application/octet-stream"),
        (memoryview(b"ab"), 200, b"ab", "application/octet-stream"),
        ({"a": [1, "é"]}, 200, '{"a":[1,"é"]}'.encode(), "application/json"),
        ([1, 2], 200, b"[1,2]", "application/json"),
        (HTTPStatus.ACCEPTED, 202, b"", None),
        (418, 418, b"", None),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_what_a_handler_may_return(
    server: RecordingServer, result: object, status: int, body: bytes, content_type: str | None
) -> None:
    server.get("/x", lambda req, resp: result)
    answer = ask(server, "GET", "/x")
    assert (answer.status, answer.body) == (status, body)
    assert answer.headers.get("content-type") == content_type
    assert server.record.calls == []


@pytest.mark.parametrize("result", [3.5, object(), True, (1, 2), {"not": object()}, 1000, -1], ids=repr)
def test_what_a_handler_may_not_return_is_told_and_answered_with_500(server: RecordingServer, result: object) -> None:
    server.get("/x", lambda req, resp: result)
    assert ask(server, "GET", "/x").status == 500
    (error,) = server.record.values("error")
    assert isinstance(error, (TypeError, ValueError))


def test_a_status_set_before_returning_a_body_is_kept(server: RecordingServer) -> None:
    @server.get("/x")
    def handler(req: HttpRequest, resp: HttpResponse) -> str:
        resp.status = HTTPStatus.CREATED
        resp.set_header("X-One", "1")
        resp.add_header("X-Two", "a")
        resp.add_header("X-Two", "b")
        return "made"

    answer = ask(server, "GET", "/x")
    assert (answer.status, answer.body) == (201, b"made")
    assert (answer.headers["x-one"], answer.headers["x-two"]) == ("1", "a, b")


def test_the_response_helpers_set_status_type_and_body(server: RecordingServer) -> None:
    server.get("/text", lambda req, resp: resp.text("é", 201))
    server.get("/html", lambda req, resp: resp.html("<p>é"))
    server.get("/json", lambda req, resp: resp.json({"a": None}, HTTPStatus.CONFLICT))
    server.get("/data", lambda req, resp: resp.data(b"\x00", "image/png"))
    server.get("/redirect", lambda req, resp: resp.redirect("/there"))
    server.get("/moved", lambda req, resp: resp.redirect("/there", 308))

    def get(path: str) -> tuple[int, str | None, bytes]:
        answer = ask(server, "GET", path)
        return answer.status, answer.headers.get("content-type"), answer.body

    assert get("/text") == (201, "text/plain; charset=utf-8", "é".encode())
    assert get("/html") == (200, "text/html; charset=utf-8", "<p>é".encode())
    assert get("/json") == (409, "application/json", b'{"a":null}')
    assert get("/data") == (200, "image/png", b"\x00")
    answer = ask(server, "GET", "/redirect")
    assert (answer.status, answer.headers["location"], answer.body) == (302, "/there", b"")
    assert ask(server, "GET", "/moved").status == 308


@pytest.mark.parametrize(
    ("name", "value"),
    [("X-A", "a\r\nX-B: b"), ("X-A", "a\nb"), ("X-A", "\0"), ("X A", "a"), ("", "a"), ("X-A:", "a"), ("X-A", "→")],
)
def test_a_response_header_that_would_break_the_head_is_refused(name: str, value: str) -> None:
    response = HttpResponse()
    with pytest.raises(ValueError, match="header"):
        response.set_header(name, value)
    with pytest.raises(ValueError, match="header"):
        response.add_header(name, value)


def test_a_redirect_needs_a_redirecting_status_and_a_status_has_to_exist() -> None:
    response = HttpResponse()
    with pytest.raises(ValueError, match="status=200"):
        response.redirect("/", 200)
    with pytest.raises(ValueError, match="999"):
        response.status = 999
    assert (response.status, response.body) == (200, b"")


def test_a_request_tells_all_about_itself(server: RecordingServer) -> None:
    seen: list[HttpRequest] = []

    @server.post("/a b/:id")
    def handler(req: HttpRequest, resp: HttpResponse) -> None:
        seen.append(req)

    with RawClient(port_of(server), upgrade=False) as raw:
        headers = [("X-Thing", "one"), ("x-thing", "two"), ("Cookie", "a=b"), ("X-Latin", "caf\xe9")]
        raw.request("POST", "/a%20b/7?q=1&q=%C3%A9&empty=", headers, '{"key": "é"}'.encode())
        tick_until(raw.readable, server)
        assert raw.read_answer().status == 200
        address = raw.address
    (request,) = seen
    assert request.method == "POST"
    assert request.url == "/a%20b/7?q=1&q=%C3%A9&empty="
    assert request.path == "/a b/7"
    assert request.params == {"id": "7"}
    assert request.query.pairs() == [("q", "1"), ("q", "é"), ("empty", "")]
    assert request.headers.get_all("X-THING") == ["one", "two"]
    assert request.headers["x-latin"] == "caf\xe9"
    assert request.headers["Host"] == HOST
    assert request.body == '{"key": "é"}'.encode()
    assert request.text() == '{"key": "é"}'
    assert request.text("latin-1") == '{"key": "Ã©"}'
    assert request.json() == {"key": "é"}
    assert request.remote_address == address
    assert "POST" in repr(request)


def test_a_body_that_is_not_what_it_is_taken_for_raises_in_the_handler(server: RecordingServer) -> None:
    raised: list[type[Exception]] = []

    @server.post("/x")
    def handler(req: HttpRequest, resp: HttpResponse) -> None:
        for read in (req.text, req.json):
            try:
                read()
            except ValueError as error:
                raised.append(type(error))

    assert ask(server, "POST", "/x", body=b"\xff{").status == 200
    assert raised == [BadRequest, BadRequest]


def test_a_bad_body_that_the_handler_does_not_catch_is_answered_with_400_and_is_nobody_s_error(
    server: RecordingServer,
) -> None:
    server.post("/json", lambda req, resp: resp.json(req.json()))
    server.post("/text", lambda req, resp: resp.text(req.text()))

    def refuse(req: HttpRequest, resp: HttpResponse) -> None:
        raise BadRequest("no such colour: mauve")

    server.post("/own", refuse)
    for path, body, said in [("/json", b"{", b"not JSON"), ("/text", b"\xff", b"not utf-8"), ("/own", b"", b"mauve")]:
        answer = ask(server, "POST", path, body=body)
        assert answer.status == 400
        assert said in answer.body
    assert ask(server, "POST", "/json", body=b"[1]").body == b"[1]"
    assert server.record.values("error") == []


def test_a_chunked_body_arrives_whole(server: RecordingServer) -> None:
    server.post("/x", lambda req, resp: resp.data(req.body))
    with RawClient(port_of(server), upgrade=False) as raw:
        raw.request("POST", "/x", [("Transfer-Encoding", "chunked")])
        raw.send_bytes(b"5\r\nhello\r\n")
        raw.send_bytes(b"7\r\n, world\r\n0\r\n\r\n")
        tick_until(raw.readable, server)
        assert raw.read_answer().body == b"hello, world"


def test_a_connection_serves_one_request_after_the_other(server: RecordingServer) -> None:
    server.get("/:n", lambda req, resp: resp.text(req.params["n"]))
    with RawClient(port_of(server), upgrade=False) as raw:
        for number in range(5):
            raw.request("GET", f"/{number}")
            tick_until(raw.readable, server)
            assert raw.read_answer().body == str(number).encode()
        for number in range(5):  # pipelined: all at once
            raw.request("GET", f"/{number}")
        reading = Background(lambda: [raw.read_answer().body for _ in range(5)])
        assert reading.result(server) == [str(number).encode() for number in range(5)]


def test_a_websocket_may_follow_requests_on_the_same_connection(echo: EchoServer) -> None:
    echo.get("/x", lambda req, resp: "http")
    with RawClient(port_of(echo), upgrade=False) as raw:
        raw.request("GET", "/x")
        tick_until(raw.readable, echo)
        assert raw.read_answer().body == b"http"
        raw.upgrade("/chat")
        raw.send_text("websocket")
        tick_until(raw.readable, echo)
        assert raw.read_message() == "websocket"


def test_headers_compare_without_case_and_keep_repetitions() -> None:
    headers = Headers([("Accept", "a"), ("X", "1"), ("accept", "b"), ("Cookie", "c=1"), ("cookie", "d=2")])
    assert headers["ACCEPT"] == "a, b"
    assert headers["cookie"] == "c=1; d=2"
    assert headers.get_all("Accept") == ["a", "b"]
    assert headers.get_all("none") == []
    assert headers.get("none") is None
    assert "x" in headers
    assert "y" not in headers
    assert 3 not in headers  # type: ignore[comparison-overlap]
    assert list(headers) == ["accept", "x", "cookie"]
    assert len(headers) == 3
    assert headers.pairs()[2] == ("accept", "b")
    assert "Accept" in repr(headers)
    with pytest.raises(KeyError, match="none"):
        headers["none"]


def test_query_parameters_are_decoded_and_keep_repetitions() -> None:
    query = QueryParams.parse("a=1&b=%C3%A9+x&a=2&c=&d")
    assert query["a"] == "1"
    assert query["b"] == "é x"
    assert query.get_all("a") == ["1", "2"]
    assert query.pairs() == [("a", "1"), ("b", "é x"), ("a", "2"), ("c", ""), ("d", "")]
    assert list(query) == ["a", "b", "c", "d"]
    assert len(query) == 4
    assert "b" in repr(query)
    with pytest.raises(KeyError, match="none"):
        query["none"]


# Channels


def test_a_channel_tells_what_its_handshake_told(server: RecordingServer) -> None:
    target = "/caf%C3%A9%20bar?room=1&room=%C3%A9&x="
    with RawClient(port_of(server), target, [("X-Thing", "one"), ("x-thing", "two")]) as raw:
        channel = only_channel(server)
        assert server.record.calls[0].value == target
        assert channel.url == target
        assert channel.path == "/café bar"
        assert channel.query.pairs() == [("room", "1"), ("room", "é"), ("x", "")]
        assert channel.headers.get_all("X-Thing") == ["one", "two"]
        assert channel.headers["upgrade"] == "websocket"
        assert channel.headers is channel.headers
        assert channel.remote_address == raw.address
        assert "/caf" in repr(channel)
        assert "open" in repr(channel)


def test_a_channel_keeps_what_the_program_puts_on_it(server: RecordingServer) -> None:
    with RawClient(port_of(server)) as raw:
        channel = only_channel(server)
        assert channel.data is None
        mine = {"name": "alice"}
        channel.data = mine
        assert server.channels[0].data is mine
        channel.data = None
        assert channel.data is None
        with pytest.raises(AttributeError):
            channel.nickname = "alice"  # type: ignore[attr-defined]
        with pytest.raises(AttributeError):
            channel.url = "/"  # type: ignore[misc]
        raw.send_close()
        channel.data = mine
        tick_until(lambda: server.record.count("close"), server)
        assert server.record.calls[-1].who.data is mine


def test_a_channel_is_equal_to_itself_alone_and_can_be_a_key_and_weakly_referred_to(
    server: RecordingServer,
) -> None:
    with RawClient(port_of(server)) as first, RawClient(port_of(server)):
        tick_until(lambda: len(server.channels) == 2, server)
        one, two = server.channels
        assert one == server.channels[0]
        assert one != two
        assert len({one, two, server.channels[0]}) == 2
        assert {one: "one", two: "two"}[server.channels[1]] == "two"
        reference = weakref.ref(one)
        assert reference() is one
        address = one.remote_address
        assert address is not None
        closing = first if first.address == address else None
        del one, two
        server.record.calls.clear()
        gc.collect()
        assert reference() is not None, "the server keeps an open channel"
        if closing is not None:
            closing.send_close()
        else:
            server.channels[0].close()
            first.reset()
        tick_until(lambda: server.record.count("close") == 1, server)
        server.record.calls.clear()
        gc.collect()
        assert reference() is None


def test_a_channel_cannot_be_made_by_a_program() -> None:
    with pytest.raises(TypeError):
        WebSocketChannel()


def test_a_channel_object_is_small() -> None:
    # One for each connection, as docs/memory.md counts it; its native side is measured by a test of its own.
    assert WebSocketChannel.__basicsize__ <= 9 * struct.calcsize("P")


def test_is_open_and_close_code_follow_the_life_of_a_channel(server: RecordingServer) -> None:
    with RawClient(port_of(server)) as raw:
        channel = only_channel(server)
        assert channel.is_open
        assert channel.close_code is None
        assert channel.close_reason is None
        raw.send_close(4321, "é reason")
        tick_until(lambda: server.record.count("close"), server)
        assert not channel.is_open
        assert channel.close_code == 4321
        assert channel.close_reason == "é reason"
        assert "closed" in repr(channel)
        assert raw.read_close().close_code == 4321
        raw.expect_end()


def test_close_sends_code_and_reason_behind_what_was_sent(server: RecordingServer) -> None:
    with RawClient(port_of(server)) as raw:
        channel = only_channel(server)
        channel.send("last words")
        channel.close(4999, "x" * 123)
        assert not channel.is_open
        assert channel.close_code is None
        channel.close(1000, "closing again does nothing")
        assert raw.read_message() == "last words"
        close = raw.read_close()
        assert (close.close_code, close.close_reason) == (4999, "x" * 123)
        raw.send_close(4999)
        tick_until(lambda: server.record.count("close"), server)
        assert channel.close_code == 4999
        raw.expect_end()


@pytest.mark.parametrize("code", [-1, 0, 999, 1004, 1005, 1006, 1015, 2999, 5000, 65536 + 1000, 1 << 70])
def test_a_code_that_must_not_be_sent_is_refused_and_the_channel_stays_open(server: RecordingServer, code: int) -> None:
    with RawClient(port_of(server)):
        channel = only_channel(server)
        with pytest.raises(ValueError, match=str(code)):
            channel.close(code)
        assert channel.is_open


def test_a_reason_that_does_not_fit_is_refused(server: RecordingServer) -> None:
    with RawClient(port_of(server)):
        channel = only_channel(server)
        with pytest.raises(ValueError, match="124 bytes"):
            channel.close(1000, "é" * 62)
        assert channel.is_open


def test_a_channel_whose_peer_does_not_answer_the_close_ends_with_1006() -> None:
    server = RecordingServer()
    server.start(0, close_timeout=0.1)
    with RawClient(port_of(server)) as raw:
        channel = only_channel(server)
        channel.close()
        tick_until(lambda: server.record.count("close"), server)
        assert channel.close_code == 1006
        assert raw.read_close().close_code == 1000
        raw.expect_end()
    server.stop(0)


def test_buffered_amount_counts_what_waits_and_falls_to_0_when_it_has_left() -> None:
    server = RecordingServer()
    server.start(0, max_buffered=64 << 20)
    with RawClient(port_of(server), receive_buffer=4096) as raw:
        channel = only_channel(server)
        assert channel.buffered_amount == 0
        total = 20 << 20
        for _ in range(20):
            assert channel.send(b"x" * (total // 20))
        assert 0 < channel.buffered_amount <= total + 20 * 10
        for _ in range(20):
            assert raw.read_message() == b"x" * (total // 20)
        wait_until(lambda: channel.buffered_amount == 0)
    server.stop(0)


# What can be sent


@pytest.mark.parametrize(
    ("message", "opcode", "payload"),
    [
        ("text é \0", WsOpcode.TEXT, "text é \0".encode()),
        ("", WsOpcode.TEXT, b""),
        ("\U0001f40d" * 1000, WsOpcode.TEXT, "\U0001f40d".encode() * 1000),
        (b"\x00\xff", WsOpcode.BINARY, b"\x00\xff"),
        (b"", WsOpcode.BINARY, b""),
        (bytearray(b"ab"), WsOpcode.BINARY, b"ab"),
        (memoryview(b"abcdef")[1:3], WsOpcode.BINARY, b"bc"),
        (memoryview(b"abcdef")[::2], WsOpcode.BINARY, b"ace"),
        (array.array("B", [1, 2]), WsOpcode.BINARY, b"\x01\x02"),
        (array.array("b", [-1, 2]), WsOpcode.BINARY, b"\xff\x02"),
        (array.array("d", [1.5, -2.0]), WsOpcode.BINARY, array.array("d", [1.5, -2.0]).tobytes()),
        (memoryview(bytearray(range(12))).cast("B", (3, 4)), WsOpcode.BINARY, bytes(range(12))),
        (memoryview(b""), WsOpcode.BINARY, b""),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_str_is_sent_as_text_and_bytes_like_as_binary(
    server: RecordingServer, message: Any, opcode: WsOpcode, payload: bytes
) -> None:
    with RawClient(port_of(server)) as raw:
        channel = only_channel(server)
        assert channel.send(message) is True
        server.broadcast(message)
        for _ in range(2):
            frame = raw.read_frame()
            assert (frame.fin, frame.rsv, frame.opcode, frame.masked) == (True, 0, opcode, False)
            assert frame.payload == payload


@pytest.mark.parametrize("message", [None, 3, 1.5, ["a"], {"a": 1}, object()], ids=lambda value: type(value).__name__)
def test_anything_else_cannot_be_sent_and_the_channel_stays_open(server: RecordingServer, message: Any) -> None:
    with RawClient(port_of(server)) as raw:
        channel = only_channel(server)
        with pytest.raises(TypeError, match=f"str or bytes-like, not .*{type(message).__name__}"):
            channel.send(message)
        with pytest.raises(TypeError, match="str or bytes-like"):
            server.broadcast(message)
        assert channel.send("still open")
        assert raw.read_message() == "still open"


def test_text_that_utf_8_cannot_hold_is_refused(server: RecordingServer) -> None:
    with RawClient(port_of(server)) as raw:
        channel = only_channel(server)
        with pytest.raises(ValueError, match="surrogate"):
            channel.send("\ud800")
        with pytest.raises(ValueError, match="surrogate"):
            server.broadcast("\ud800")
        with pytest.raises(ValueError, match="UTF-8"):
            channel.send(b"\xff", WsOpcode.TEXT)
        assert channel.send("still open")
        assert raw.read_message() == "still open"


def test_an_opcode_overrides_what_the_type_suggests(server: RecordingServer) -> None:
    with RawClient(port_of(server)) as raw:
        channel = only_channel(server)
        assert channel.send("é", WsOpcode.BINARY)
        assert channel.send("é".encode(), WsOpcode.TEXT)
        assert channel.send("plain", 1)
        frames = [raw.read_frame() for _ in range(3)]
        assert [(frame.opcode, frame.payload.decode()) for frame in frames] == [(2, "é"), (1, "é"), (1, "plain")]


@pytest.mark.parametrize("opcode", [3, 7, 11, 15, 16, 255, 256, 300, -1, 1 << 70])
def test_an_unknown_opcode_is_refused_by_value(server: RecordingServer, opcode: int) -> None:
    with RawClient(port_of(server)):
        channel = only_channel(server)
        with pytest.raises(ValueError, match=str(opcode)):
            channel.send("x", opcode)


def test_a_message_can_be_sent_in_fragments(server: RecordingServer) -> None:
    with RawClient(port_of(server)) as raw:
        channel = only_channel(server)
        assert channel.send("a", fin=False)
        assert channel.send("b", fin=False)
        assert channel.send(b"p", WsOpcode.PING)  # a control frame may stand between (RFC 6455 section 5.4)
        assert channel.send("c", WsOpcode.CONTINUATION, fin=False)
        assert channel.send("d")
        assert channel.send(b"e", fin=False)
        assert channel.send(b"")
        assert channel.send("whole")
        frames = [raw.read_frame() for _ in range(8)]
    got = [(frame.opcode, frame.fin, frame.payload) for frame in frames]
    assert got == [
        (WsOpcode.TEXT, False, b"a"),
        (WsOpcode.CONTINUATION, False, b"b"),
        (WsOpcode.PING, True, b"p"),
        (WsOpcode.CONTINUATION, False, b"c"),
        (WsOpcode.CONTINUATION, True, b"d"),
        (WsOpcode.BINARY, False, b"e"),
        (WsOpcode.CONTINUATION, True, b""),
        (WsOpcode.TEXT, True, b"whole"),
    ]


def test_fragments_out_of_sequence_are_refused_and_change_nothing(server: RecordingServer) -> None:
    with RawClient(port_of(server)) as raw:
        channel = only_channel(server)
        with pytest.raises(ValueError, match="no fragmented message is open"):
            channel.send("x", WsOpcode.CONTINUATION)
        with pytest.raises(ValueError, match="fragmented"):
            channel.send(b"x", WsOpcode.PING, fin=False)
        with pytest.raises(ValueError, match="close"):
            channel.send(b"", WsOpcode.CLOSE)
        assert channel.send("one ", fin=False)
        for opcode in (WsOpcode.TEXT, WsOpcode.BINARY):
            with pytest.raises(ValueError, match="a fragmented message is open"):
                channel.send("x", opcode)
        assert channel.send("two")
        assert raw.read_message() == "one two"


def test_bytes_that_continue_a_text_message_have_to_be_utf_8(server: RecordingServer) -> None:
    with RawClient(port_of(server)) as raw:
        channel = only_channel(server)
        assert channel.send("a", fin=False)
        with pytest.raises(ValueError, match="UTF-8"):
            channel.send(b"\xff")
        assert channel.send("é".encode())
        assert raw.read_message() == "aé"


def test_a_broadcast_waits_until_a_fragmented_message_is_finished(server: RecordingServer) -> None:
    with RawClient(port_of(server)) as raw, RawClient(port_of(server)) as other:
        tick_until(lambda: len(server.channels) == 2, server)
        (channel,) = (channel for channel in server.channels if channel.remote_address == raw.address)
        channel.send("one ", fin=False)
        server.broadcast("broadcast")
        assert other.read_message() == "broadcast"
        channel.send("two")
        assert [raw.read_message(), raw.read_message()] == ["one two", "broadcast"]


def test_pings_and_pongs_can_be_sent_with_125_bytes_at_most(server: RecordingServer) -> None:
    with RawClient(port_of(server)) as raw:
        channel = only_channel(server)
        assert channel.send(b"x" * 125, WsOpcode.PING)
        assert channel.send("é", WsOpcode.PONG)
        for opcode in (WsOpcode.PING, WsOpcode.PONG):
            with pytest.raises(ValueError, match="125 bytes, not 126"):
                channel.send(b"x" * 126, opcode)
        assert raw.read_frame().payload == b"x" * 125
        frame = raw.read_frame()
        assert (frame.opcode, frame.payload) == (WsOpcode.PONG, "é".encode())


def test_pings_of_the_peer_are_answered_with_their_payload_and_pongs_ignored(server: RecordingServer) -> None:
    with RawClient(port_of(server)) as raw:
        for payload in (b"", b"x", b"\x00" * 125):
            raw.send_frame(WsOpcode.PONG, b"unasked")
            raw.send_ping(payload)
            frame = raw.read_frame()
            assert (frame.opcode, frame.payload) == (WsOpcode.PONG, payload)
        only_channel(server)
        assert [call.what for call in server.record.calls] == ["open"]


# Broadcasts


def test_a_broadcast_reaches_every_open_channel_but_the_excluded(server: RecordingServer) -> None:
    peers = [RawClient(port_of(server)) for _ in range(5)]
    tick_until(lambda: len(server.channels) == 5, server)
    by_address = {channel.remote_address: channel for channel in server.channels}
    server.broadcast("to all")
    server.broadcast(b"but one", exclude=by_address[peers[2].address])
    server.broadcast("end", None)
    for number, raw in enumerate(peers):
        want: list[str | bytes] = ["to all", "end"] if number == 2 else ["to all", b"but one", "end"]
        assert [raw.read_message() for _ in want] == want
        raw.socket.close()


def test_a_broadcast_skips_a_channel_whose_open_callback_has_not_run(server: RecordingServer) -> None:
    with RawClient(port_of(server)) as early:
        only_channel(server)
        with RawClient(port_of(server)) as late:  # its handshake is done, its callback has not run
            server.broadcast("before")
            assert early.read_message() == "before"
            tick_until(lambda: len(server.channels) == 2, server)
            server.broadcast("after")
            assert early.read_message() == "after"
            assert late.read_message() == "after"


def test_a_broadcast_in_an_open_callback_reaches_the_new_channel_too() -> None:
    class Announces(RecordingServer):
        def on_ws_open(self, channel: WebSocketChannel, url: str) -> None:
            channel.send("welcome")
            self.broadcast("somebody joined")

    server = Announces()
    server.start(0)
    with RawClient(port_of(server)) as raw:
        tick_until(raw.readable, server)
        assert [raw.read_message(), raw.read_message()] == ["welcome", "somebody joined"]
    server.stop(0)


def test_a_broadcast_skips_a_channel_that_the_program_has_closed(server: RecordingServer) -> None:
    with RawClient(port_of(server)) as raw, RawClient(port_of(server)) as other:
        tick_until(lambda: len(server.channels) == 2, server)
        (channel,) = (channel for channel in server.channels if channel.remote_address == raw.address)
        channel.close()
        server.broadcast("after")
        assert raw.read_frame().opcode == WsOpcode.CLOSE
        assert other.read_message() == "after"
        raw.send_close()
        raw.expect_end()


def test_excluding_a_channel_of_another_server_excludes_nobody(server: RecordingServer, echo: EchoServer) -> None:
    with RawClient(port_of(server)) as raw, RawClient(port_of(echo)):
        only_channel(server)
        server.broadcast("to all", exclude=only_channel(echo))
        assert raw.read_message() == "to all"
        with pytest.raises(TypeError):
            server.broadcast("x", exclude="not a channel")  # type: ignore[arg-type]


def test_a_broadcast_to_nobody_does_nothing() -> None:
    server = HvWebServer()
    server.broadcast("not started")
    with server:
        server.start(0)
        server.broadcast("nobody here")
        server.tick()
    server.broadcast("stopped")


def test_channels_are_those_between_their_open_and_close_callbacks() -> None:
    class Looks(RecordingServer):
        def on_ws_open(self, channel: WebSocketChannel, url: str) -> None:
            self.record.add("open", channel, channel in self.channels)

        def on_ws_close(self, channel: WebSocketChannel) -> None:
            self.record.add("close", channel, channel in self.channels)

    server = Looks()
    server.start(0)
    assert server.channels == []
    with RawClient(port_of(server)) as raw:
        raw.send_ping()
        raw.read_frame()
        assert server.channels == []
        channel = only_channel(server)
        server.channels.clear()
        assert server.channels == [channel]
        raw.send_close()
        tick_until(lambda: server.record.count("close"), server)
        assert server.channels == []
    server.stop()
    assert [call.value for call in server.record.calls] == [True, False]


# Ticking and the descriptor


def is_readable(what: Any) -> bool:
    return bool(select.select([what], [], [], 0)[0])


def test_the_descriptor_is_readable_while_events_wait_and_not_otherwise(server: RecordingServer) -> None:
    assert not is_readable(server)
    with RawClient(port_of(server)) as raw:
        wait_until(lambda: is_readable(server))
        assert is_readable(server)
        tick_until(lambda: server.record.count("open"), server)
        assert not is_readable(server)
        raw.send_text("x")
        wait_until(lambda: is_readable(server))
        assert server.tick() == 1
        assert not is_readable(server)
        assert server.tick() == 0


@contextlib.contextmanager
def on_different_processors() -> Iterator[None]:
    """Keeps this thread and the native one on processors of their own, if there are two, so that they truly race."""
    allowed = sorted(os.sched_getaffinity(0))
    tasks = [task for task in Path("/proc/self/task").iterdir() if (task / "comm").read_text() == "pyhv-io-0\n"]
    try:
        for task in tasks:
            os.sched_setaffinity(int(task.name), {allowed[-1]})
        os.sched_setaffinity(0, {allowed[0]})
        yield
    finally:
        for number in (0, *(int(task.name) for task in tasks)):
            os.sched_setaffinity(number, allowed)


@pytest.mark.skipif(sys.platform != "linux", reason="binds threads to processors, found in /proc")
def test_the_descriptor_is_not_readable_for_an_event_that_a_polling_tick_took_at_once(
    server: RecordingServer,
) -> None:
    server.fileno()
    with RawClient(port_of(server)) as raw, on_different_processors():
        only_channel(server)
        for _ in range(500):
            raw.send_text("x")
            deadline = time.monotonic() + LIMIT
            while not server.tick():
                assert time.monotonic() < deadline
            for _ in range(2):  # whatever the native thread had to do about the message is done by then
                raw.send_ping()
                assert raw.read_frame().opcode == WsOpcode.PONG
            assert not is_readable(server), "readable with nothing pending: a loop that waits for it would spin"


def test_the_descriptor_asked_for_late_is_readable_for_what_waits_already(server: RecordingServer) -> None:
    with RawClient(port_of(server)) as raw:
        raw.send_ping()
        raw.read_frame()
        assert is_readable(server)


def test_the_descriptor_is_the_same_for_the_life_of_the_object() -> None:
    server = RecordingServer()
    descriptor = server.fileno()
    for _ in range(3):
        server.start(0)
        assert server.fileno() == descriptor
        assert not is_readable(server)
        with RawClient(port_of(server)):
            wait_until(lambda: is_readable(descriptor))
            server.stop(0)
        assert not is_readable(server)
    assert server.fileno() == descriptor
    assert HvWebServer().fileno() != descriptor


def test_a_select_loop_can_drive_a_server(echo: EchoServer) -> None:
    echo.fileno()
    with RawClient(port_of(echo)) as raw:
        for number in range(50):
            raw.send_text(str(number))
            while not is_readable(raw.socket):
                assert select.select([echo.fileno(), raw.socket.fileno()], [], [], LIMIT)[0]
                echo.tick()
            assert raw.read_message() == str(number)


def test_an_asyncio_loop_can_drive_a_server(echo: EchoServer) -> None:
    async def main() -> str | bytes:
        loop = asyncio.get_running_loop()
        loop.add_reader(echo.fileno(), echo.tick)
        try:
            with RawClient(port_of(echo)) as raw:
                raw.send_text("from asyncio")
                return await asyncio.wait_for(loop.run_in_executor(None, raw.read_message), LIMIT)
        finally:
            loop.remove_reader(echo.fileno())

    assert asyncio.run(main()) == "from asyncio"


def test_tick_returns_the_number_of_events(server: RecordingServer) -> None:
    assert server.tick() == 0
    with RawClient(port_of(server)) as raw:
        for _ in range(3):
            raw.send_text("x")
        raw.send_ping()
        raw.read_frame()
        assert server.tick() == 4


def test_tick_with_a_timeout_gives_up_after_it(server: RecordingServer) -> None:
    assert server.tick(0.01) == 0
    assert server.tick(timeout=1e-9) == 0


@pytest.mark.parametrize("timeout", [None, LIMIT])
def test_a_waiting_tick_is_woken_by_an_event(server: RecordingServer, timeout: float | None) -> None:
    connecting = Background(lambda: RawClient(port_of(server)))
    assert server.tick(timeout) == 1
    assert server.record.count("open") == 1
    raw = connecting.result()
    raw.socket.close()
    assert server.tick(timeout) == 1
    assert server.record.values("close") == [1006]


def test_a_waiting_tick_of_another_thread_lets_python_run(server: RecordingServer) -> None:
    waiting = Background(lambda: server.tick(None))
    assert sum(range(100_000)) == 4999950000
    assert not waiting.done()
    RawClient(port_of(server)).socket.close()
    assert waiting.result() >= 1


@pytest.mark.parametrize("timeout", [-1, -0.001, float("nan"), float("inf")])
def test_a_timeout_out_of_range_is_refused(server: RecordingServer, timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout="):
        server.tick(timeout)
    with RawClient(port_of(server)) as raw:  # also when it would not have to wait
        raw.send_ping()
        raw.read_frame()
        with pytest.raises(ValueError, match="timeout="):
            server.tick(timeout)


def test_a_timeout_that_is_no_number_is_refused(server: RecordingServer) -> None:
    with pytest.raises(TypeError):
        server.tick("soon")  # type: ignore[arg-type]


def test_on_tick_runs_in_every_tick_behind_the_callbacks_of_its_events() -> None:
    class Ticks(RecordingServer):
        def on_tick(self) -> None:
            self.record.add("tick")

    server = Ticks()
    server.start(0)
    for _ in range(3):
        server.tick()
    assert server.record.count("tick") == 3
    with RawClient(port_of(server)):
        tick_until(lambda: server.channels, server)
        assert [call.what for call in server.record.calls[-2:]] == ["open", "tick"]
    server.stop(0)


def test_threads_may_take_turns_ticking(echo: EchoServer) -> None:
    with RawClient(port_of(echo)) as raw:
        for number in range(5):
            raw.send_text(str(number))
            Background(lambda: tick_until(raw.readable, echo)).result()
            assert raw.read_message() == str(number)


def test_one_tick_runs_at_most_what_was_queued_when_it_began() -> None:
    class Relays(RecordingServer):
        def on_ws_message(self, channel: WebSocketChannel, msg: str | bytes) -> None:
            super().on_ws_message(channel, msg)
            raw.send_text("next")
            raw.send_ping()
            assert raw.read_frame().opcode == WsOpcode.PONG  # so it has arrived

    server = Relays()
    server.start(0)
    with RawClient(port_of(server)) as raw:
        only_channel(server)
        raw.send_text("first")
        raw.send_ping()
        raw.read_frame()
        assert server.tick() == 1
        assert server.record.values("message") == ["first"]
        assert server.tick() == 1
        assert server.record.values("message") == ["first", "next"]
    server.stop(0)


# The native threads


IO_THREADS = """
import pyhv
from support import EchoServer, connected, thread_names, tick_until, wait_until

for count in (0, 65, -1, 1 << 70):
    try:
        pyhv.set_io_threads(count)
    except ValueError as error:
        assert str(count) in str(error), error
    else:
        raise AssertionError(count)
assert pyhv.io_threads() == 1
pyhv.set_io_threads(3)
server = EchoServer()
server.start(0)
assert pyhv.io_threads() == 3
pyhv.set_io_threads(3)
try:
    pyhv.set_io_threads(2)
except RuntimeError as error:
    assert "set_io_threads(2)" in str(error), error
else:
    raise AssertionError
wait_until(lambda: [name for name in thread_names() if "pyhv" in name] == [f"pyhv-io-{i}" for i in range(3)])
clients = [connected(server) for _ in range(12)]
for number, client in enumerate(clients):
    client.send(str(number))
tick_until(lambda: all(client.received for client in clients), server, *clients)
assert [client.received for client in clients] == [[str(number)] for number in range(12)]
server.broadcast("all", exclude=server.channels[0])
tick_until(lambda: sum("all" in client.received for client in clients) == 11, server, *clients)
for client in clients:
    client.close(4000)
tick_until(lambda: server.record.count("close") == 12, server, *clients)
assert server.record.values("close") == [4000] * 12
server.stop()
print("fine")
"""


def test_several_io_threads_serve_together() -> None:
    ran = run_python(IO_THREADS)
    assert (ran.stdout, ran.returncode) == ("fine\n", 0), ran.stderr


# After fork()


FORKS = """
import os, signal, sys, warnings
from support import EchoServer, RawClient, connected, port_of, tick_until

warnings.simplefilter("ignore", DeprecationWarning)
server = EchoServer()
server.start(0)
client = connected(server)
tick_until(lambda: server.channels, server, client)
channel = server.channels[0]
fresh = EchoServer()

child = os.fork()
if child == 0:
    signal.alarm(30)  # a hang ends as a failure
    try:
        calls = {
            "server.tick()": server.tick,
            "server.tick(None)": lambda: server.tick(None),
            "server.stop()": server.stop,
            "server.start()": lambda: server.start(0),
            "server.broadcast()": lambda: server.broadcast("x"),
            "client.tick()": client.tick,
            "client.tick(None)": lambda: client.tick(None),
            "client.close()": client.close,
            "client.send()": lambda: client.send("x"),
            "client.connect()": lambda: client.connect("ws://127.0.0.1:1/"),
            "channel.send()": lambda: channel.send("x"),
            "channel.close()": channel.close,
        }
        for name, call in calls.items():
            try:
                print(name, "returned", call())
            except RuntimeError as error:
                assert "fork" in str(error), error
        assert not server.is_running
        # Its own objects work, new ones and those that had not been started.
        for own in (EchoServer(), fresh):
            own.start(0)
            other = connected(own)
            other.send("child")
            tick_until(lambda: other.received == ["child"], own, other)
            other.close()
            tick_until(lambda: own.record.count("close"), own, other)
            own.stop()
        del server, client, channel
        print("child fine", flush=True)
    except BaseException:
        import traceback
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)

_, status = os.waitpid(child, 0)
assert status == 0, status
client.send("parent")
tick_until(lambda: client.received == ["parent"], server, client)
client.close()
tick_until(lambda: client.close_code, server, client)
server.stop()
print("parent fine", flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_after_fork_the_child_gets_clear_errors_and_can_start_its_own() -> None:
    ran = run_python(FORKS)
    assert (ran.stdout, ran.returncode) == ("child fine\nparent fine\n", 0), ran.stderr


MULTIPROCESSING = """
import multiprocessing
from support import EchoServer, RecordingClient, connected, tick_until, url_of

def talk(url, queue):
    client = RecordingClient()
    client.connect(url)
    tick_until(lambda: client.is_connected, client)
    client.send("from a process")
    tick_until(lambda: client.received, client)
    client.close()
    tick_until(lambda: client.close_code, client)
    queue.put(client.received)

if __name__ == "__main__":
    import warnings
    warnings.simplefilter("ignore", DeprecationWarning)
    context = multiprocessing.get_context("fork")
    server = EchoServer()
    server.start(0)
    queue = context.Queue()
    process = context.Process(target=talk, args=(url_of(server), queue))
    process.start()
    tick_until(lambda: server.record.count("close"), server)
    assert queue.get() == ["from a process"]
    process.join()
    assert process.exitcode == 0
    server.stop()
    print("fine")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_multiprocessing_child_can_use_a_client_of_its_own() -> None:
    ran = run_python(MULTIPROCESSING)
    assert (ran.stdout, ran.returncode) == ("fine\n", 0), ran.stderr


# The end of the process and of objects


def test_a_process_may_end_without_stopping_anything() -> None:
    code = """
from support import EchoServer, connected, tick_until
server = EchoServer()
server.start(0)
client = connected(server)
client.send("x")
server.broadcast("y")
print("fine")
"""
    ran = run_python(code)
    assert (ran.stdout, ran.stderr, ran.returncode) == ("fine\n", "", 0)


@pytest.mark.parametrize("timeout", ["None", "0.001", "0"])
def test_a_process_may_end_while_a_daemon_thread_ticks(timeout: str) -> None:
    code = f"""
import threading
from support import EchoServer, connected
server = EchoServer()
server.start(0)
client = connected(server)
def run():
    while True:
        server.tick({timeout})
threading.Thread(target=run, daemon=True).start()
print("fine")
"""
    for _ in range(5):
        ran = run_python(code)
        assert (ran.stdout, ran.stderr, ran.returncode) == ("fine\n", "", 0)


class Cyclic(EchoServer):
    def __init__(self) -> None:
        super().__init__()
        self.me = self
        self.get("/", self.handle)

    def handle(self, req: HttpRequest, resp: HttpResponse) -> str:
        return "x"


def test_a_stopped_server_that_refers_to_itself_is_collected() -> None:
    server = Cyclic()
    server.start(0)
    assert ask(server, "GET", "/").body == b"x"
    server.stop()
    reference = weakref.ref(server)
    del server
    gc.collect()
    assert reference() is None


def test_a_running_server_that_nobody_refers_to_is_collected_and_its_port_is_free() -> None:
    server = Cyclic()
    server.start(0)
    port = port_of(server)
    with RawClient(port) as raw:
        channel = only_channel(server)
        channel.data = {"server": server, "channel": channel}
        server_reference, channel_reference = weakref.ref(server), weakref.ref(channel)
        del server, channel
        gc.collect()
        assert (server_reference(), channel_reference()) == (None, None)
        raw.read_to_end()

        def refused() -> bool:
            try:
                socket.create_connection((HOST, port), LIMIT).close()
            except ConnectionRefusedError:
                return True
            return False

        wait_until(refused)


def test_a_closed_channel_that_refers_to_itself_is_collected(server: RecordingServer) -> None:
    with RawClient(port_of(server)) as raw:
        channel = only_channel(server)
        channel.data = [channel]
        raw.send_close()
        tick_until(lambda: server.record.count("close"), server)
        server.record.calls.clear()
        reference = weakref.ref(channel)
        del channel
        gc.collect()
        assert reference() is None


def test_closing_a_channel_runs_the_destructor_of_its_data_without_a_deadlock(server: RecordingServer) -> None:
    dropped: list[bool] = []

    class Data:
        def __init__(self, channel: WebSocketChannel) -> None:
            self.channel = channel

        def __del__(self) -> None:
            dropped.append(self.channel.data is None or self.channel.send("from the destructor"))

    with RawClient(port_of(server)):
        channel = only_channel(server)
        channel.data = Data(channel)
        channel.data = Data(channel)
        assert len(dropped) == 1
        channel.data = None
        assert dropped == [True, True]


def test_requests_kept_by_the_program_stay_readable(server: RecordingServer) -> None:
    kept: list[HttpRequest] = []
    server.post("/x", lambda req, resp: kept.append(req))
    ask(server, "POST", "/x", body=b"kept")
    server.stop(0)
    assert (kept[0].body, kept[0].headers["host"]) == (b"kept", HOST)
    reference = weakref.ref(kept.pop())
    gc.collect()
    assert reference() is None


def test_a_pyhv_client_talks_to_the_server(echo: EchoServer) -> None:
    client = connected(echo, path="/both?ends")
    for message in ("text", b"binary", "", b""):
        client.send(message)
    tick_until(lambda: len(client.received) == 4, client, echo)
    assert client.received == ["text", b"binary", "", b""]
    assert echo.channels[0].url == "/both?ends"
    client.close(4000, "done")
    tick_until(lambda: client.close_code, client, echo)
    tick_until(lambda: echo.record.count("close"), echo)
    assert echo.record.values("close") == [4000]
    assert url_of(echo).startswith("ws://127.0.0.1:")


def test_importing_starts_no_thread() -> None:
    code = "import pyhv, threading; from support import thread_names; print(len(thread_names()))"
    ran = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {os.path.dirname(__file__)!r}); {code}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.stdout == "1\n", ran.stderr
