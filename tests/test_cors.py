"""CORS: what `allow_cors` lets pages of other origins do, by hand and in headless Chromium.

Without chromium and chromedriver the last test fails, unless PYHV_NO_BROWSER=1 says that this is meant.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from browser_helper import BrowserMissingError, browser
from pyhv import HttpRequest, HttpResponse, HvWebServer, StreamWriter
from support import HOST, Answer, RawClient, RecordingServer, ServerThread, ask, port_of, tick_until

PAGE = "https://page.example"
ALLOW = "access-control-allow-"


def preflight(server: HvWebServer, path: str, method: str, headers: str | None = None, origin: str = PAGE) -> Answer:
    """What a browser asks before a request that is not simple; nobody ticks."""
    asked = [("Origin", origin), ("Access-Control-Request-Method", method)]
    if headers is not None:
        asked.append(("Access-Control-Request-Headers", headers))
    with RawClient(port_of(server), upgrade=False) as raw:
        raw.request("OPTIONS", path, asked)
        return raw.read_answer()


def allowed(answer: Answer) -> dict[str, str]:
    """The headers that allow something."""
    return {name.removeprefix(ALLOW): value for name, value in answer.headers.items() if name.startswith(ALLOW)}


@pytest.fixture
def site(server: RecordingServer) -> RecordingServer:
    server.get("/data", lambda req, resp: resp.json([1]))
    server.put("/data", lambda req, resp: resp.text("put"))
    return server


def test_without_it_nothing_is_allowed(site: RecordingServer) -> None:
    assert allowed(ask(site, "GET", "/data", [("Origin", PAGE)])) == {}
    answer = preflight(site, "/data", "PUT")
    assert answer.status == 204
    assert allowed(answer) == {}


def test_everybody_may_read_everything(site: RecordingServer) -> None:
    def events(req: HttpRequest, writer: StreamWriter) -> None:
        writer.event("x")
        writer.close()

    def broken(req: HttpRequest, resp: HttpResponse) -> None:
        raise RuntimeError("on purpose")

    site.sse("/events", events)
    site.post("/broken", broken)
    site.allow_cors()
    statuses = {}
    for method, path in [
        ("GET", "/data"),
        ("GET", "/nope"),
        ("POST", "/data"),
        ("GET", "/events"),
        ("POST", "/broken"),
    ]:
        answer = ask(site, method, path, [("Origin", PAGE)], b"" if method == "POST" else None)
        statuses[method, path] = answer.status
        assert allowed(answer) == {"origin": "*"}, path
        assert "vary" not in answer.headers
    assert list(statuses.values()) == [200, 404, 405, 200, 500]
    # The answer does not depend on the origin, so a cache may give it to others.
    assert allowed(ask(site, "GET", "/data")) == {"origin": "*"}
    assert allowed(ask(site, "GET", "/data", [("Origin", "null")])) == {"origin": "*"}


def test_preflights_need_no_tick_and_allow_what_there_is(site: RecordingServer) -> None:
    site.allow_cors(max_age=60)
    answer = preflight(site, "/data", "PUT", "x-token,content-type")
    assert answer.status == 204
    assert allowed(answer) == {"origin": "*", "methods": "PUT", "headers": "x-token,content-type"}
    assert answer.headers["access-control-max-age"] == "60"
    for path, method in [("/data", "DELETE"), ("/nope", "GET"), ("/data", "put"), ("/data", "P T")]:
        refused = preflight(site, path, method)
        assert refused.status == 403
        assert "methods" not in allowed(refused)
    assert site.refusals == {"allow_cors": 4}


def test_a_preflight_is_a_request_as_others_are(site: RecordingServer) -> None:
    site.allow_cors()
    with RawClient(port_of(site), upgrade=False) as raw:
        raw.send_bytes(b"OPTIONS /data HTTP/1.1\r\nOrigin: http://o\r\nAccess-Control-Request-Method: PUT\r\n\r\n")
        assert raw.read_answer().status == 400


def test_listed_methods_and_headers(site: RecordingServer) -> None:
    site.allow_cors(
        [PAGE], methods=["PUT", "PURGE"], headers=["X-Token", "content-type"], expose_headers=["X-Left", "ETag"]
    )
    answer = preflight(site, "/nope", "PURGE", "X-TOKEN, content-type")
    assert allowed(answer) == {"origin": PAGE, "methods": "PURGE", "headers": "X-TOKEN, content-type"}
    assert preflight(site, "/data", "GET").status == 403
    refused = preflight(site, "/data", "PUT", "x-token,x-other")
    assert refused.status == 403
    assert b"x-other" in refused.body
    answer = ask(site, "GET", "/data", [("Origin", PAGE)])
    assert answer.headers["access-control-expose-headers"] == "x-left, etag"


@pytest.mark.parametrize(
    ("origin", "may"),
    [
        ("https://page.example", True),
        ("HTTPS://PAGE.example", True),
        ("http://page.example", False),
        ("https://page.example:8443", False),
        ("https://page.example.evil.example", False),
        ("https://evil-page.example", False),
        ("http://intranet:8000", True),
        ("http://intranet", False),
        ("http://plain.example", True),
        ("null", False),
        ("", False),
        ("https://page.example, https://evil.example", False),
    ],
)
def test_listed_origins_with_credentials(site: RecordingServer, origin: str, may: bool) -> None:
    site.allow_cors([PAGE, "http://Intranet:8000", "http://plain.example:80"], credentials=True)
    answer = ask(site, "GET", "/data", [("Origin", origin)])
    assert allowed(answer) == ({"origin": origin, "credentials": "true"} if may else {})
    assert answer.headers["vary"] == "Origin"
    asked = preflight(site, "/data", "PUT", "x-a", origin)
    assert asked.status == (204 if may else 403)
    assert allowed(asked) == (
        {"origin": origin, "credentials": "true", "methods": "PUT", "headers": "x-a"} if may else {}
    )
    assert asked.headers["vary"] == "Origin"
    assert ask(site, "GET", "/data").headers["vary"] == "Origin"


def test_null_is_allowed_where_it_is_listed(site: RecordingServer) -> None:
    site.allow_cors(["null"])
    assert allowed(ask(site, "GET", "/data", [("Origin", "null")])) == {"origin": "null"}


def test_a_handler_has_the_last_word_and_its_vary_stays(site: RecordingServer) -> None:
    def own(req: HttpRequest, resp: HttpResponse) -> Any:
        resp.set_header("Access-Control-Allow-Origin", "https://other.example")
        resp.set_header("Vary", "Cookie, origin")
        return resp.text("own")

    site.get("/own", own)
    site.options("/own", lambda req, resp: resp.text("options"))
    site.allow_cors([PAGE], credentials=True)
    answer = ask(site, "GET", "/own", [("Origin", PAGE)])
    assert allowed(answer) == {"origin": "https://other.example"}
    assert answer.headers["vary"] == "Cookie, origin"
    # No preflight without the header that makes it one.
    assert ask(site, "OPTIONS", "/own", [("Origin", PAGE)]).body == b"options"
    assert preflight(site, "/own", "GET").body == b""


def test_it_changes_while_the_server_runs(site: RecordingServer) -> None:
    with RawClient(port_of(site), upgrade=False) as raw:
        for origins, expected in [(None, None), ("*", "*"), ([PAGE], PAGE)]:
            if origins is not None:
                site.allow_cors(origins)
            raw.request("GET", "/nope", [("Origin", PAGE)])
            assert raw.read_answer().headers.get("access-control-allow-origin") == expected


def test_handshakes_keep_to_allowed_origins(site: RecordingServer) -> None:
    site.allow_cors()
    with RawClient(port_of(site), upgrade=False) as raw:
        key = [("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="), ("Sec-WebSocket-Version", "13")]
        raw.request("GET", "/", [("Origin", PAGE), ("Upgrade", "websocket"), ("Connection", "Upgrade"), *key])
        answer = raw.read_answer()
    assert answer.status == 403
    assert allowed(answer) == {}
    with RawClient(port_of(site), headers=[("Origin", f"http://{HOST}")]) as raw:
        assert raw.answer is not None
        assert allowed(raw.answer) == {}
        tick_until(lambda: site.channels, site)


@pytest.mark.parametrize(
    ("arguments", "settings", "part"),
    [
        (["*"], {"credentials": True}, "credentials"),
        (["https://a.example"], {}, "origins='https://a.example' is not a list"),
        ([["https://a.example/path"]], {}, 'origins: "https://a.example/path"'),
        ([["*"]], {}, 'origins: "\\*"'),
        ([["a.example"]], {}, 'origins: "a.example"'),
        ([[PAGE]], {"methods": ["GE T"]}, 'methods: "GE T"'),
        ([[PAGE]], {"methods": "GET"}, "methods='GET' is not a list"),
        ([[PAGE]], {"headers": ["a b"]}, 'headers: "a b"'),
        ([[PAGE]], {"expose_headers": ["a\r\n"]}, "expose_headers: "),
        ([[PAGE]], {"max_age": -1}, "max_age=-1"),
    ],
)
def test_misuse_raises(site: RecordingServer, arguments: list[Any], settings: dict[str, Any], part: str) -> None:
    with pytest.raises(ValueError, match=part):
        site.allow_cors(*arguments, **settings)
    assert allowed(ask(site, "GET", "/data", [("Origin", PAGE)])) == {}


FETCH = """
const [url, options, done] = arguments;
fetch(url, options).then(async r => done([r.status, await r.text(), r.headers.get("X-Left")]), e => done(String(e)));
"""


class Api(RecordingServer):
    def on_init(self) -> None:
        self.get("/who", self.get_who)
        self.put("/who", self.get_who)

    def get_who(self, req: HttpRequest, resp: HttpResponse) -> Any:
        resp.set_header("X-Left", "7")
        resp.set_header("Set-Cookie", "seen=1; SameSite=Lax")
        return resp.text(f"{req.method} {req.headers.get('Cookie')} {req.headers.get('X-Token')}")


@pytest.mark.skipif(os.environ.get("PYHV_NO_BROWSER") == "1", reason="PYHV_NO_BROWSER=1")
def test_pages_of_another_port_in_a_browser(serve: Callable[..., ServerThread]) -> None:
    pages, api = RecordingServer(), Api()
    pages.get("/", lambda req, resp: resp.html("<title>page</title>"))
    page_port, port = serve(pages).port, serve(api).port
    url = f"http://{HOST}:{port}/who"
    origin = f"http://{HOST}:{page_port}"
    try:
        with browser() as driver:
            driver.get(origin)

            def fetch(**options: Any) -> Any:
                return driver.execute_async_script(FETCH, url, options)

            put = {"method": "PUT", "headers": {"X-Token": "t"}}
            assert fetch() == "TypeError: Failed to fetch"
            api.allow_cors()
            assert fetch() == [200, "GET None None", None]
            assert fetch(**put) == [200, "PUT None t", None]
            # With credentials a "*" is not enough.
            assert fetch(credentials="include") == "TypeError: Failed to fetch"
            api.allow_cors([origin], credentials=True, expose_headers=["X-Left"], max_age=0)
            assert fetch(credentials="include")[0] == 200
            assert fetch(credentials="include") == [200, "GET seen=1 None", "7"]
            assert fetch(credentials="include", **put) == [200, "PUT seen=1 t", "7"]
            assert fetch(method="DELETE") == "TypeError: Failed to fetch"
            api.allow_cors(["http://elsewhere.example"], credentials=True)
            assert fetch() == "TypeError: Failed to fetch"
    except BrowserMissingError as missing:
        pytest.fail(str(missing))
