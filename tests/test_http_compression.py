"""Compressed responses: negotiation, which contents, and what becomes of the rest of the head."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from pyhv import HttpRequest, HttpResponse, StreamWriter
from support import (
    HOST,
    Background,
    RawClient,
    RecordingClient,
    RecordingServer,
    ServerThread,
    ask,
    port_of,
    tick_until,
)
from support_tls import make_certificates, tls_port_of

TEXT = "A line of text, and another one.\n" * 100
#: More than one piece, and not the same everywhere.
LARGE = json.dumps([{"id": n, "name": f"item {n * 7919 % 10007}"} for n in range(40_000)])


class Site(RecordingServer):
    def on_init(self) -> None:
        self.get("/text", lambda req, resp: resp.text(TEXT))
        self.get("/large", lambda req, resp: resp.data(LARGE.encode(), "application/json"))
        self.get("/small", lambda req, resp: resp.text("x" * 1023))
        self.get("/enough", lambda req, resp: resp.text("x" * 1024))
        self.get("/picture", lambda req, resp: resp.data(b"x" * 5000, "image/png"))
        self.get("/bytes", lambda req, resp: resp.data(b"x" * 5000))
        self.get("/own", self.get_own)
        self.get("/echo/:name/*value", self.get_with_header)

    def get_own(self, req: HttpRequest, resp: HttpResponse) -> Any:
        resp.set_header("Content-Encoding", "gzip")
        return resp.data(gzip.compress(TEXT.encode()), "text/plain")

    def get_with_header(self, req: HttpRequest, resp: HttpResponse) -> Any:
        resp.set_header(req.params["name"], req.params["value"])
        return resp.text(TEXT, int(req.query.get("status", "200")))


@pytest.fixture
def site(serve: Callable[..., ServerThread]) -> Site:
    site = Site()
    site.compress_responses()
    serve(site)
    return site


def get(site: Site, path: str, accept: str | None = "gzip", method: str = "GET", **headers: str) -> httpx.Response:
    """By httpx, which decodes, on a connection of its own."""
    asked = {name.replace("_", "-"): value for name, value in headers.items()}
    with httpx.Client() as client:
        del client.headers["Accept-Encoding"]
        if accept is not None:
            asked["Accept-Encoding"] = accept
        return client.request(method, f"http://{HOST}:{port_of(site)}{path}", headers=asked)


def test_off_by_default(serve: Callable[..., ServerThread]) -> None:
    site = Site()
    serve(site)
    answer = get(site, "/text", "gzip, br, zstd")
    assert answer.text == TEXT
    assert not {"content-encoding", "vary"} & set(answer.headers)


@pytest.mark.parametrize("path", ["/text", "/large"])
@pytest.mark.parametrize("level", [None, 1, 9])
@pytest.mark.parametrize("coding", ["zstd", "br", "gzip"])
def test_every_coding_comes_out_as_it_went_in(site: Site, coding: str, level: int | None, path: str) -> None:
    site.compress_responses(level=level)
    with httpx.stream("GET", f"http://{HOST}:{port_of(site)}{path}", headers={"Accept-Encoding": coding}) as answer:
        answer.read()
        size = answer.num_bytes_downloaded
    expected = TEXT if path == "/text" else LARGE
    assert answer.text == expected
    assert answer.headers["content-encoding"] == coding
    assert answer.headers["vary"] == "Accept-Encoding"
    assert size < len(expected) / 3
    # A small one is compressed at once, and its length is known.
    assert answer.headers.get("content-length") == (str(size) if path == "/text" else None)


@pytest.mark.parametrize(
    ("accept", "coding"),
    [
        (None, None),
        ("", None),
        ("identity", None),
        ("gzip, deflate, br, zstd", "zstd"),
        ("gzip, deflate, br", "br"),
        ("gzip;q=1.0, br;q=0.5", "gzip"),
        ("*", "zstd"),
        ("zstd;q=0, *;q=0.5", "br"),
        ("gzip;q=0", None),
        ("identity;q=0, deflate", None),
        ("gzip;q=0.5, identity", None),
    ],
)
def test_negotiation(site: Site, accept: str | None, coding: str | None) -> None:
    answer = get(site, "/text", accept)
    assert answer.headers.get("content-encoding") == coding
    assert answer.headers["vary"] == "Accept-Encoding"
    assert answer.text == TEXT


def test_the_servers_order_and_choice(site: Site) -> None:
    site.compress_responses(codings=["gzip", "br"])
    assert get(site, "/text", "zstd, br, gzip").headers["content-encoding"] == "gzip"
    assert "content-encoding" not in get(site, "/text", "zstd").headers


def test_what_is_left_alone(site: Site) -> None:
    for path in ["/small", "/picture", "/bytes", "/nope", "/echo/cache-control/no-transform", "/echo/x-a/b?status=206"]:
        answer = get(site, path)
        assert "content-encoding" not in answer.headers, path
        assert "vary" not in answer.headers, path
        assert int(answer.headers["content-length"]) == len(answer.content)
    assert get(site, "/enough").headers["content-encoding"] == "gzip"
    own = get(site, "/own", "br")
    assert own.headers["content-encoding"] == "gzip"
    assert own.text == TEXT
    assert "vary" not in own.headers
    part = get(site, "/echo/content-range/bytes 0-9*")
    assert "content-encoding" not in part.headers


def test_head_is_as_get(site: Site) -> None:
    for path in ["/text", "/large", "/small"]:
        with RawClient(port_of(site), upgrade=False) as raw:
            heads = []
            for method in ("GET", "HEAD"):
                raw.request(method, path, [("Accept-Encoding", "gzip")])
                answer = raw.read_answer(to_head=method == "HEAD")
                assert bool(answer.body) == (method == "GET")
                heads.append(
                    {name: value for name, value in answer.headers.items() if name not in ("date", "transfer-encoding")}
                )
            assert heads[0] == heads[1]


def test_head_of_http2_is_as_get(tmp_path: Path, serve: Callable[..., ServerThread]) -> None:
    site = Site()
    site.compress_responses()
    certificates = make_certificates(tmp_path)
    serve(site, **certificates.settings)
    with httpx.Client(http2=True, verify=certificates.context()) as client:
        for path in ["/text", "/large"]:
            url = f"https://localhost:{tls_port_of(site)}{path}"
            whole, head = client.get(url), client.head(url)
            assert whole.http_version == "HTTP/2"
            assert whole.text == (TEXT if path == "/text" else LARGE)
            assert whole.headers["content-encoding"] == head.headers["content-encoding"] == "zstd"
            assert whole.headers.get("content-length") == head.headers.get("content-length")
            assert head.content == b""


def test_tags_become_weak(site: Site) -> None:
    answer = get(site, '/echo/etag/"abc"')
    assert answer.headers["etag"] == 'W/"abc"'
    assert get(site, '/echo/etag/W%2F"abc"').headers["etag"] == 'W/"abc"'
    assert get(site, '/echo/etag/"abc"', None).headers["etag"] == '"abc"'
    # The tag of a 304 is that of the content that the client has.
    unchanged = get(site, '/echo/etag/"abc"?status=304', If_None_Match='"x", W/"abc"')
    assert unchanged.status_code == 304
    assert unchanged.headers["etag"] == 'W/"abc"'
    assert get(site, '/echo/etag/"abc"?status=304', If_None_Match='"abc"').headers["etag"] == '"abc"'
    assert "accept-ranges" not in get(site, "/echo/accept-ranges/bytes").headers
    assert get(site, "/echo/vary/Cookie").headers.get_list("vary") == ["Cookie", "Accept-Encoding"]


def test_streams_leave_as_they_are_written(server: RecordingServer) -> None:
    server.compress_responses(min_size=0)
    writers: list[StreamWriter] = []

    def begin(req: HttpRequest, writer: StreamWriter) -> None:
        if req.path == "/stream":
            writer.set_content_type("text/plain")
        writers.append(writer)

    server.stream("/stream", begin)
    server.sse("/events", begin)
    for path in ["/stream", "/events"]:
        with RawClient(port_of(server), upgrade=False) as raw:
            raw.request("GET", path, [("Accept-Encoding", "gzip, br, zstd")])
            tick_until(lambda: bool(writers), server)
            writer = writers.pop()
            (writer.event if path == "/events" else writer.write)("first")
            # One tick's piece is there before there is another.
            tick_until(lambda raw=raw: raw.readable(), server)  # type: ignore[misc]
            status, headers = raw.read_head()
            assert status == 200
            assert "content-encoding" not in headers
            tick_until(lambda raw=raw: raw.readable(), server)  # type: ignore[misc]
            writer.close()
            tick_until(lambda: not server.streams, server)
            assert b"first" in raw.read_chunks()


def test_a_client_that_leaves_in_the_middle_stops_the_work(site: Site) -> None:
    site.get("/huge", lambda req, resp: resp.data(LARGE.encode() * 10, "application/json"))
    with RawClient(port_of(site), "/", upgrade=False, receive_buffer=4096) as raw:
        raw.request("GET", "/huge", [("Accept-Encoding", "gzip")])
        assert raw.read_head()[0] == 200
        raw.reset()
    assert get(site, "/text").text == TEXT


def test_others_have_their_turn_while_a_large_content_is_compressed(server: RecordingServer) -> None:
    """Counts, without a clock: between the head and the end of one content an echo makes many round trips."""
    server.compress_responses(codings=["br"], level=9)
    body = LARGE.encode() * 12
    server.get("/huge", lambda req, resp: resp.data(body, "application/json"))
    server.on_ws_message = lambda channel, msg: channel.send(msg)  # type: ignore[method-assign,assignment]
    bystander = RecordingClient()
    bystander.connect(f"ws://{HOST}:{port_of(server)}/")
    tick_until(lambda: bystander.is_connected, server, bystander)
    with RawClient(port_of(server), upgrade=False) as raw:
        raw.request("GET", "/huge", [("Accept-Encoding", "br")])
        tick_until(raw.readable, server)
        raw.read_head()
        answer = Background(raw.read_chunks)
        trips = 0
        while not answer.done():
            bystander.send("x")
            trips += 1
            tick_until(lambda trips=trips: len(bystander.received) >= trips, server, bystander)  # type: ignore[misc]
        answer.result(server)
    assert trips > 10


def test_it_can_be_given_while_the_server_runs(server: RecordingServer) -> None:
    server.get("/text", lambda req, resp: resp.text(TEXT))
    assert "content-encoding" not in ask(server, "GET", "/text", [("Accept-Encoding", "gzip")]).headers
    server.compress_responses()
    answer = ask(server, "GET", "/text", [("Accept-Encoding", "gzip")])
    assert gzip.decompress(answer.body).decode() == TEXT


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"min_size": -1}, "min_size=-1"),
        ({"codings": ["gzip", "deflate"]}, 'codings: "deflate"'),
        ({"codings": ["gzip", "gzip"]}, 'codings: "gzip" is there twice'),
        ({"codings": []}, "codings is empty"),
        ({"codings": "gzip"}, "codings='gzip' is not a list"),
        ({"level": 0}, "level=0"),
        ({"level": 10}, "level=10"),
    ],
)
def test_misuse_raises(server: RecordingServer, settings: dict[str, Any], part: str) -> None:
    with pytest.raises(ValueError, match=part):
        server.compress_responses(**settings)
