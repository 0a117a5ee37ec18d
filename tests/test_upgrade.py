"""Who gets a WebSocket: `on_ws_upgrade`, `allowed_origins`, `subprotocols`, and handshakes that are none."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

from pyhv import HandshakeError, HttpRequest, HttpResponse, HvWebServer, WebSocketChannel, WsUpgrade
from support import (
    HOST,
    Answer,
    EchoServer,
    RawClient,
    RecordingClient,
    RecordingServer,
    connected,
    only_channel,
    port_of,
    tick_until,
    url_of,
)

KEY = "dGhlIHNhbXBsZSBub25jZQ=="  # RFC 6455 section 1.3
BASE = (
    ("Upgrade", "websocket"),
    ("Connection", "Upgrade"),
    ("Sec-WebSocket-Key", KEY),
    ("Sec-WebSocket-Version", "13"),
)


class Deciding(EchoServer):
    """Decides as it is told."""

    def __init__(self, decide: Callable[[WsUpgrade], Any]) -> None:
        super().__init__()
        self.decide = decide

    def on_ws_upgrade(self, request: WsUpgrade) -> bool | int | None:
        self.record.add("upgrade", None, request.url)
        answer: bool | int | None = self.decide(request)
        return answer


def asked(server: HvWebServer, *headers: tuple[str, str], path: str = "/", host: str | None = None) -> Answer:
    """The answer to a handshake, while this thread ticks; the connection is closed behind it."""
    with RawClient(port_of(server), upgrade=False) as raw:
        begin(raw, *headers, path=path, host=host)
        tick_until(raw.readable, server, what="the handshake is answered")
        return raw.read_answer()


def begin(raw: RawClient, *headers: tuple[str, str], path: str = "/", host: str | None = None) -> None:
    """Sends a handshake."""
    lines = [f"GET {path} HTTP/1.1", f"Host: {host or f'{HOST}:{raw.socket.getpeername()[1]}'}"]
    lines += [f"{name}: {value}" for name, value in (*BASE, *headers)]
    raw.send_bytes("\r\n".join([*lines, "", ""]).encode("latin-1"))


def decided(decide: Callable[[WsUpgrade], Any], *headers: tuple[str, str], **settings: Any) -> Answer:
    """The answer of a server that decides so; an accepted channel echoes."""
    with Deciding(decide) as server:
        server.start(0, **settings)
        with RawClient(port_of(server), upgrade=False) as raw:
            begin(raw, *headers)
            tick_until(raw.readable, server, what="the handshake is answered")
            answer = raw.read_answer()
            if answer.status == 101:
                raw.send_text("hello")
                tick_until(raw.readable, server)
                assert raw.read_message() == "hello"
            else:
                assert answer.headers["connection"] == "close"
                raw.expect_end()
        assert server.record.count("upgrade") == 1
        assert server.record.count("open") == (answer.status == 101)
        server.stop(0)
        return answer


# Decisions


@pytest.mark.parametrize("decision", [None, True])
def test_none_and_true_accept(decision: bool | None) -> None:
    assert decided(lambda request: decision).status == 101


@pytest.mark.parametrize(("decision", "status"), [(False, 403), (401, 401), (429, 429), (503, 503), (302, 302)])
def test_false_and_a_status_refuse(decision: bool | int, status: int) -> None:
    answer = decided(lambda request: decision)
    assert answer.status == status
    assert answer.body.startswith(b"%d " % status)
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert "upgrade" not in answer.headers


def test_accept_as_a_method() -> None:
    assert decided(lambda request: request.accept()).status == 101


def test_refuse_as_a_method() -> None:
    assert decided(lambda request: request.refuse()).status == 403
    answer = decided(lambda request: request.refuse(401, "log in first, ü"))
    assert (answer.status, answer.body.decode()) == (401, "log in first, ü")
    assert decided(lambda request: request.refuse(404, "")).body == b""


def test_a_method_wins_over_what_is_returned_and_the_last_one_wins() -> None:
    def accept_and_false(request: WsUpgrade) -> bool:
        request.accept()
        return False

    def refuse_and_true(request: WsUpgrade) -> bool:
        request.refuse(402)
        return True

    def refuse_accept(request: WsUpgrade) -> None:
        request.refuse()
        request.accept()

    assert decided(accept_and_false).status == 101
    assert decided(refuse_and_true).status == 402
    assert decided(refuse_accept).status == 101


def test_our_client_hears_of_the_refusal() -> None:
    with Deciding(lambda request: request.refuse(401, "no")) as server:
        server.start(0)
        client = RecordingClient()
        client.connect(url_of(server, "/private"))
        tick_until(lambda: client.record.count("close"), client, server)
        assert isinstance(client.error, HandshakeError)
        assert client.error.status == 401
        assert [call.what for call in client.record.calls] == ["error", "close"]


def test_one_decision_per_connection_and_by_what_was_asked() -> None:
    with Deciding(lambda request: request.path == "/in") as server:
        server.start(0)
        assert [asked(server, path=path).status for path in ("/in", "/out", "/in?x=1", "/")] == [101, 403, 101, 403]
        assert server.record.values("upgrade") == ["/in", "/out", "/in?x=1", "/"]
        tick_until(lambda: server.record.count("open") == 2, server)
        assert server.record.values("open") == ["/in", "/in?x=1"]
        server.stop(0)


def test_messages_glued_to_the_handshake_wait_for_the_decision() -> None:
    with Deciding(lambda request: True) as server:
        server.start(0)
        with RawClient(port_of(server), upgrade=False) as raw:
            begin(raw)
            raw.send_text("early")
            tick_until(lambda: server.record.count("message"), server)
            assert raw.read_answer().status == 101
            assert raw.read_message() == "early"
        assert [call.what for call in server.record.calls][:3] == ["upgrade", "open", "message"]
        server.stop(0)


# What the request tells


def test_what_the_request_tells() -> None:
    seen: dict[str, Any] = {}

    def look(request: WsUpgrade) -> None:
        seen.update(
            url=request.url,
            path=request.path,
            query=request.query.pairs(),
            token=request.headers["X-Token"],
            remote=request.remote_address,
            subprotocols=request.subprotocols,
        )

    with Deciding(look) as server:
        server.start(0)
        with RawClient(port_of(server), upgrade=False) as raw:
            offers = (("Sec-WebSocket-Protocol", "one, two"), ("sec-websocket-protocol", "three"))
            begin(raw, ("X-Token", "secret"), *offers, path="/a%20b?x=1&y=%C3%BC&x=2")
            tick_until(raw.readable, server)
            assert raw.read_answer().status == 101
            assert seen == {
                "url": "/a%20b?x=1&y=%C3%BC&x=2",
                "path": "/a b",
                "query": [("x", "1"), ("y", "ü"), ("x", "2")],
                "token": "secret",
                "remote": raw.address,
                "subprotocols": ["one", "two", "three"],
            }
        server.stop(0)


def test_without_offers_there_are_no_subprotocols() -> None:
    seen: list[list[str]] = []
    decided(lambda request: seen.append(request.subprotocols))
    assert seen == [[]]


# Subprotocols and headers


def test_the_chosen_subprotocol_is_answered_and_known() -> None:
    with Deciding(lambda request: request.accept(subprotocol="two")) as server:
        server.start(0, subprotocols=["one"])
        client = connected(server, subprotocols=["one", "two", "three"])
        assert client.subprotocol == "two"
        assert only_channel(server).subprotocol == "two"
        server.stop(0)


def test_a_subprotocol_that_was_not_offered_is_an_error() -> None:
    failures: list[str] = []

    def choose(request: WsUpgrade) -> None:
        try:
            request.accept(subprotocol="three")
        except ValueError as error:
            failures.append(str(error))
        request.accept(subprotocol="two")

    answer = decided(choose, ("Sec-WebSocket-Protocol", "one, two"))
    assert answer.headers["sec-websocket-protocol"] == "two"
    (text,) = failures
    assert "'three'" in text and "['one', 'two']" in text


def test_accept_without_a_subprotocol_leaves_it_to_the_setting() -> None:
    offer = ("Sec-WebSocket-Protocol", "one, two")
    answer = decided(lambda request: request.accept(), offer, subprotocols=["two", "one"])
    assert answer.headers["sec-websocket-protocol"] == "two"
    assert "sec-websocket-protocol" not in decided(lambda request: request.accept(), offer).headers


@pytest.mark.parametrize(
    ("ours", "offered", "agreed"),
    [
        (["a", "b"], "b, a", "a"),  # the server's preference
        (["b"], "a, b", "b"),
        (["a"], "A", None),  # names compare with case
        (["a"], "b", None),
        (["a"], None, None),
        ([], "a", None),
    ],
)
def test_the_setting_subprotocols(ours: list[str], offered: str | None, agreed: str | None) -> None:
    with EchoServer() as server:
        server.start(0, subprotocols=ours)
        headers = [] if offered is None else [("Sec-WebSocket-Protocol", offered)]
        with RawClient(port_of(server), headers=headers) as raw:
            assert raw.answer is not None
            assert raw.answer.headers.get("sec-websocket-protocol") == agreed
            assert only_channel(server).subprotocol == agreed
        server.stop(0)


@pytest.mark.parametrize("value", ["chat", ["a", "a"], ["a b"], [""], ["a,b"]])
def test_a_malformed_setting_subprotocols_is_named(value: Any) -> None:
    with pytest.raises(ValueError, match="subprotocols"):
        RecordingServer().start(0, subprotocols=value)


@pytest.mark.parametrize("shape", [dict, list])
def test_further_headers_of_the_101(shape: type) -> None:
    headers = shape([("X-Session", "42"), ("Set-Cookie", "a=b")])
    answer = decided(lambda request: request.accept(headers=headers))
    assert (answer.headers["x-session"], answer.headers["set-cookie"]) == ("42", "a=b")


def test_a_header_may_come_twice() -> None:
    cookies = [("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")]
    assert decided(lambda request: request.accept(headers=cookies)).headers["set-cookie"] == "a=1, b=2"


@pytest.mark.parametrize(
    "name",
    [
        "Connection",
        "Content-Length",
        "Sec-WebSocket-Accept",
        "sec-websocket-extensions",
        "Sec-WebSocket-Protocol",
        "Sec-WebSocket-Version",
        "Transfer-Encoding",
        "UPGRADE",
    ],
)
def test_headers_of_the_handshake_itself_are_refused(name: str) -> None:
    failures: list[str] = []

    def add(request: WsUpgrade) -> None:
        try:
            request.accept(headers={name: "x"})
        except ValueError as error:
            failures.append(str(error))

    answer = decided(add)
    assert answer.status == 101
    (text,) = failures
    assert name in text


@pytest.mark.parametrize(("name", "value"), [("X Y", "a"), ("", "a"), ("X", "a\r\nEvil: 1"), ("X", "\0"), ("X", "€")])
def test_a_header_that_cannot_be_sent_is_refused(name: str, value: str) -> None:
    answer = decided(lambda request: request.accept(headers={name: value}))
    assert answer.status == 500
    assert "evil" not in answer.headers


@pytest.mark.parametrize("status", [0, 100, 101, 200, 299, 999])
def test_refuse_with_a_status_that_is_no_refusal_is_an_error(status: int) -> None:
    failures: list[str] = []

    def refuse(request: WsUpgrade) -> None:
        try:
            request.refuse(status)
        except ValueError as error:
            failures.append(str(error))
        request.refuse(404)

    assert decided(refuse).status == 404
    assert str(status) in failures[0]


# Faults


class OnPurposeError(Exception):
    pass


def test_an_exception_is_500_and_the_server_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    def decide(request: WsUpgrade) -> None:
        if request.path == "/bad":
            raise OnPurposeError("on purpose")

    with Deciding(decide) as server, caplog.at_level(logging.ERROR, "pyhv"):
        server.start(0)
        answer = asked(server, path="/bad")
        assert answer.status == 500
        assert b"on purpose" not in answer.body
        (error,) = server.record.values("error")
        assert isinstance(error, OnPurposeError)
        (logged,) = (record for record in caplog.records if record.levelno == logging.ERROR)
        assert "on_ws_upgrade" in logged.getMessage()
        assert logged.exc_info is not None
        assert logged.exc_info[1] is error
        assert asked(server, path="/good").status == 101
        server.stop(0)


@pytest.mark.parametrize("returned", ["yes", b"", 1.5, object(), 101, 200, 0])
def test_a_senseless_return_value_is_500(returned: Any) -> None:
    assert decided(lambda request: returned).status == 500


def test_an_exception_after_accept_does_not_accept() -> None:
    def decide(request: WsUpgrade) -> None:
        request.accept()
        raise OnPurposeError

    assert decided(decide).status == 500


def test_keyboard_interrupt_leaves_the_tick_and_the_client_gets_an_answer() -> None:
    def decide(request: WsUpgrade) -> None:
        raise KeyboardInterrupt

    with Deciding(decide) as server:
        server.start(0)
        with RawClient(port_of(server), upgrade=False) as raw:
            begin(raw)
            with pytest.raises(KeyboardInterrupt):
                tick_until(lambda: False, server)
            tick_until(raw.readable, server)
            assert raw.read_answer().status == 500


def test_answered_late_is_503() -> None:
    with Deciding(lambda request: True) as server:
        server.start(0, upgrade_timeout=0.2)
        with RawClient(port_of(server), upgrade=False) as raw:
            begin(raw)
            answer = raw.read_answer()  # without a tick
            assert answer.status == 503
            raw.expect_end()
        assert server.refusals == {"upgrade_timeout": 1}
        # The late decision is nobody's.
        assert asked(server).status == 101
        tick_until(lambda: server.record.count("open"), server)
        assert server.record.values("open") == ["/"]
        server.stop(0)


def test_a_late_answer_is_logged_with_its_setting(caplog: pytest.LogCaptureFixture) -> None:
    with Deciding(lambda request: True) as server, caplog.at_level(logging.WARNING, "pyhv"):
        server.start(0, upgrade_timeout=0.2)
        with RawClient(port_of(server), upgrade=False) as raw:
            begin(raw)
            assert raw.read_answer().status == 503
        tick_until(lambda: caplog.messages, server)
        assert "upgrade_timeout=0.2" in caplog.messages[0]


def test_a_client_that_leaves_before_the_decision() -> None:
    with Deciding(lambda request: True) as server:
        server.start(0)
        with RawClient(port_of(server), upgrade=False) as raw:
            begin(raw, path="/gone")
            raw.reset()
        assert asked(server, path="/there").status == 101
        tick_until(lambda: "/there" in server.record.values("open"), server)
        opened, closed = server.record.count("open"), server.record.count("close")
        assert opened - closed <= 2
        server.stop(0)
        assert server.record.count("open") == server.record.count("close")


def test_stop_while_a_decision_is_due() -> None:
    server = Deciding(lambda request: True)
    server.start(0)
    with RawClient(port_of(server), upgrade=False) as raw:
        begin(raw)
        fd = server.fileno()
        assert fd >= 0
        server.stop(timeout=1.0)
        head = raw.read_to_end()
    assert head == b"" or head.split(b" ")[1] in (b"101", b"503")
    assert server.record.count("open") == server.record.count("close")


# Whether it is asked at all


def test_without_an_override_no_tick_is_needed(server: RecordingServer) -> None:
    with RawClient(port_of(server)) as raw:  # does the whole handshake; nobody ticks
        raw.send_ping(b"there?")
        assert raw.read_frame().payload == b"there?"
    assert not server.record.calls


def test_with_an_override_a_tick_is_needed() -> None:
    with Deciding(lambda request: True) as server:
        server.start(0)
        with RawClient(port_of(server), upgrade=False) as raw, RawClient(port_of(server), upgrade=False) as other:
            begin(raw)
            # Answered natively, although it came later.
            other.request("GET", "/missing")
            assert other.read_answer().status == 404
            assert not raw.readable()
            tick_until(raw.readable, server)
            assert raw.read_answer().status == 101
        server.stop(0)


def test_an_override_may_be_set_on_the_object() -> None:
    server = RecordingServer()
    server.on_ws_upgrade = lambda request: 402  # type: ignore[method-assign]
    with server:
        server.start(0)
        assert asked(server).status == 402


def test_the_override_is_not_asked_about_http() -> None:
    with Deciding(lambda request: False) as server:
        server.get("/ping", lambda req, resp: resp.text("pong"))
        server.start(0)
        with RawClient(port_of(server), upgrade=False) as raw:
            raw.request("GET", "/ping")
            tick_until(raw.readable, server)
            assert raw.read_answer().body == b"pong"
        assert server.record.count("upgrade") == 0


@pytest.mark.parametrize(
    ("headers", "status"),
    [([("Origin", "https://evil.example")], 403), ([("Sec-WebSocket-Protocol", "a,a")], 400)],
)
def test_the_override_is_not_asked_about_what_is_refused_anyway(headers: list[tuple[str, str]], status: int) -> None:
    with Deciding(lambda request: True) as server:
        server.start(0)
        assert asked(server, *headers).status == status
        assert server.record.count("upgrade") == 0


# Origins


def origin(server: HvWebServer, value: str | None, host: str | None = None) -> int:
    headers = [] if value is None else [("Origin", value)]
    return asked(server, *headers, host=host).status


def test_by_default_pages_of_the_same_host_may_connect(server: RecordingServer) -> None:
    port = port_of(server)
    assert origin(server, f"http://{HOST}:{port}") == 101
    assert origin(server, f"https://{HOST}:{port}") == 101  # behind a proxy that ends TLS
    assert origin(server, "http://game.example", host="game.example") == 101
    assert origin(server, "https://Game.Example", host="gAME.example") == 101
    assert origin(server, None) == 101
    assert server.refusals == {}


@pytest.mark.parametrize(
    "value",
    [
        "https://evil.example",
        f"http://{HOST}",  # another port
        f"http://{HOST}:1",
        "null",  # a page in a sandbox, or a file
        "",
        "://",
        "http://",
        f"http://{HOST}.evil.example",
        "\xff",
    ],
)
def test_by_default_other_pages_may_not(server: RecordingServer, caplog: pytest.LogCaptureFixture, value: str) -> None:
    with caplog.at_level(logging.WARNING, "pyhv"):
        answer = asked(server, ("Origin", value))
        assert answer.status == 403
        assert b"origin" in answer.body
        tick_until(lambda: caplog.messages, server)
        (text,) = caplog.messages
        assert "allowed_origins" in text and HOST in text
    assert server.refusals == {"allowed_origins": 1}
    assert server.record.count("open") == 0


def test_a_list_of_origins() -> None:
    with RecordingServer() as server:
        server.start(0, allowed_origins=["https://game.example", "http://localhost:8000", "null"])
        own = f"http://{HOST}:{port_of(server)}"
        for value, status in [
            ("https://game.example", 101),
            ("HTTPS://GAME.example", 101),
            ("http://localhost:8000", 101),
            ("null", 101),
            (None, 101),
            ("http://game.example", 403),
            ("https://game.example:444", 403),
            ("https://www.game.example", 403),
            ("http://localhost", 403),
            (own, 403),  # not in the list
        ]:
            assert origin(server, value) == status, value
        server.stop(0)


def test_an_upper_case_setting_is_the_same() -> None:
    with RecordingServer() as server:
        server.start(0, allowed_origins=("HTTPS://Game.Example",))
        assert origin(server, "https://game.example") == 101
        server.stop(0)


def test_an_empty_list_lets_no_page_in() -> None:
    with RecordingServer() as server:
        server.start(0, allowed_origins=[])
        assert origin(server, f"http://{HOST}:{port_of(server)}") == 403
        assert origin(server, None) == 101
        server.stop(0)


def test_a_star_lets_every_page_in() -> None:
    with RecordingServer() as server:
        server.start(0, allowed_origins="*")
        for value in ("https://evil.example", "null", "nonsense", None):
            assert origin(server, value) == 101
        server.stop(0)


@pytest.mark.parametrize(
    "value",
    [
        "https://game.example",  # one str
        ["game.example"],
        ["https://game.example/"],
        ["https://game.example/path"],
        ["https://*.game.example"],
        ["*"],
        [""],
        ["https://"],
        ["://game.example"],
        ["https://game.example?x"],
        ["https://user@game.example"],
        ["https://game.example", "nonsense"],
    ],
)
def test_malformed_origins_are_named(value: Any) -> None:
    server = RecordingServer()
    with pytest.raises(ValueError, match="allowed_origins") as raised:
        server.start(0, allowed_origins=value)
    assert (value if isinstance(value, str) else value[-1]) in str(raised.value)
    assert not server.is_running


# Handshakes that are none


@pytest.mark.parametrize("version", ["8", "7", "0", "14", "13, 8", "", None])
def test_a_wrong_version_is_426_and_told_the_right_one(server: RecordingServer, version: str | None) -> None:
    with RawClient(port_of(server), upgrade=False) as raw:
        headers = [pair for pair in BASE if pair[0] != "Sec-WebSocket-Version"]
        raw.request("GET", "/", headers + ([] if version is None else [("Sec-WebSocket-Version", version)]))
        answer = raw.read_answer()
        assert answer.status == 426
        assert answer.headers["sec-websocket-version"] == "13"
        assert answer.headers["upgrade"] == "websocket"
        assert answer.headers["connection"].lower() == "upgrade, close"
        assert b"13" in answer.body
        raw.expect_end()


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({"Sec-WebSocket-Key": None}, 400),
        ({"Sec-WebSocket-Key": "short"}, 400),
        ({"Sec-WebSocket-Key": "AAAA" * 6}, 400),
        ({"Connection": "keep-alive"}, 400),
        ({"Connection": "keep-alive, UPGRADE"}, 101),
        ({"Upgrade": "h2c, WebSocket"}, 101),
    ],
)
def test_the_handshakes_headers(server: RecordingServer, changed: dict[str, str | None], status: int) -> None:
    with RawClient(port_of(server), upgrade=False) as raw:
        values: dict[str, str | None] = {**dict(BASE), **changed}
        raw.request("GET", "/", [(name, value) for name, value in values.items() if value is not None])
        assert raw.read_answer().status == status


def test_a_post_is_405(server: RecordingServer) -> None:
    with RawClient(port_of(server), upgrade=False) as raw:
        raw.request("POST", "/", BASE, b"")
        answer = raw.read_answer()
        assert (answer.status, answer.headers["allow"]) == (405, "GET")


def test_an_upgrade_to_something_else_is_plain_http() -> None:
    class Http(RecordingServer):
        def on_init(self) -> None:
            self.get("/ping", self.get_ping)

        def get_ping(self, req: HttpRequest, resp: HttpResponse) -> str:
            return "pong"

        def on_ws_open(self, channel: WebSocketChannel, url: str) -> None:
            raise AssertionError("that was no WebSocket")

    with Http() as server:
        server.start(0)
        with RawClient(port_of(server), upgrade=False) as raw:
            raw.request("GET", "/ping", [("Upgrade", "h2c"), ("Connection", "Upgrade")])
            tick_until(raw.readable, server)
            assert raw.read_answer().body == b"pong"
