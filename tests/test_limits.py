"""Limits on connections, header fields and handshakes: what is refused, how it is counted, what the log says."""

from __future__ import annotations

import logging
import math
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from pyhv import HvWebSocketClient
from support import (
    HOST,
    LIMIT,
    EchoServer,
    RawClient,
    RawPeer,
    RecordingServer,
    ServerThread,
    port_of,
    tick_until,
    wait_until,
)
from support_tls import make_certificates, tls_port_of


class PingServer(EchoServer):
    def on_init(self) -> None:
        self.get("/ping", lambda req, resp: resp.text("pong"))


def refused(port: int, source: str = HOST) -> bool:
    """Whether a new connection is ended without a word; one that is not is answered."""
    connection = socket.create_connection((HOST, port), LIMIT, source_address=(source, 0))
    with RawPeer(connection) as raw:
        try:
            raw.request("GET", "/missing", [("Connection", "close")])
        except (BrokenPipeError, ConnectionResetError):
            return True
        said = raw.read_to_end()
        assert said == b"" or said.startswith(b"HTTP/1.1 404")
        return said == b""


def only_line(server: RecordingServer, caplog: pytest.LogCaptureFixture) -> str:
    """The one line that the server has logged."""
    tick_until(lambda: caplog.messages, server, what="a line is logged")
    server.tick()
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("pyhv.server", logging.WARNING)
    return record.getMessage()


# Connections


def test_max_connections(caplog: pytest.LogCaptureFixture) -> None:
    with PingServer() as server, caplog.at_level(logging.WARNING, "pyhv"):
        server.start(0, max_connections=3)
        peers = [RawClient(port_of(server)) for _ in range(2)]
        peers.append(RawClient(port_of(server), upgrade=False))
        peers[2].request("GET", "/missing")  # HTTP counts too
        assert peers[2].read_answer().status == 404
        assert server.refusals == {}
        for count in range(1, 6):
            assert refused(port_of(server))
            assert server.refusals == {"max_connections": count}
        text = only_line(server, caplog)
        assert "max_connections=3" in text and HOST in text
        # Those inside are not disturbed.
        for raw in peers[:2]:
            raw.send_text("hello")
            tick_until(raw.readable, server)
            assert raw.read_message() == "hello"
        for raw in peers:
            raw.socket.close()
        server.stop(0)


@pytest.mark.parametrize("how", ["close", "reset", "http"])
def test_a_connection_that_ends_makes_room(serve: Callable[..., ServerThread], how: str) -> None:
    server = PingServer()
    port = serve(server, max_connections=1).port
    for _ in range(3):
        if how == "http":
            raw = room(port, upgrade=False)
            raw.request("GET", "/ping", [("Connection", "close")])
            assert raw.read_answer().body == b"pong"
            raw.expect_end()
            raw.socket.close()
            continue
        raw = room(port)
        assert refused(port)
        if how == "close":
            raw.send_close()
            assert raw.read_close().close_code == 1000
            raw.expect_end()
            raw.socket.close()
        else:
            raw.reset()
    wait_until(lambda: not refused(port), what="there is room")


def connection(port: int, *, upgrade: bool = True) -> RawClient | None:
    """A connection, if there is room for it."""
    try:
        return RawClient(port, upgrade=upgrade)
    except (EOFError, ConnectionResetError, BrokenPipeError):
        return None


def room(port: int, *, upgrade: bool = True) -> RawClient:
    """A connection, once there is room for it."""
    made = wait_until(lambda: connection(port, upgrade=upgrade), what="there is room")
    assert made is not None
    return made


def test_max_connections_counts_both_ports(tmp_path: Path) -> None:
    made = make_certificates(tmp_path)
    with PingServer() as server:
        server.start(0, max_connections=2, **made.settings)
        with (
            RawClient(port_of(server)),
            socket.create_connection((HOST, tls_port_of(server)), LIMIT) as plain,
            made.context().wrap_socket(plain, server_hostname=HOST),
        ):
            assert refused(port_of(server))
            with (
                socket.create_connection((HOST, tls_port_of(server)), LIMIT) as third,
                pytest.raises((ssl.SSLError, OSError)),
            ):
                made.context().wrap_socket(third, server_hostname=HOST)
            assert server.refusals == {"max_connections": 2}
        server.stop(0)


def test_max_connections_per_address(caplog: pytest.LogCaptureFixture) -> None:
    with PingServer() as server, caplog.at_level(logging.WARNING, "pyhv"):
        server.start(0, max_connections_per_address=2)
        port = port_of(server)
        with RawClient(port), RawClient(port):
            assert refused(port)
            assert refused(port)
            assert server.refusals == {"max_connections_per_address": 2}
            # Another address has seats of its own.
            assert not refused(port, "127.0.0.2")
            text = only_line(server, caplog)
            assert "max_connections_per_address=2" in text and HOST in text
        wait_until(lambda: not refused(port), what="there is room again")
        server.stop(0)


def test_the_narrower_limit_is_the_one_named() -> None:
    with PingServer() as server:
        server.start(0, max_connections=2, max_connections_per_address=1)
        port = port_of(server)
        with RawClient(port):
            assert refused(port)
            assert server.refusals == {"max_connections_per_address": 1}
            with socket.create_connection((HOST, port), LIMIT, source_address=("127.0.0.2", 0)) as other:
                raw = RawPeer(other)
                raw.request("GET", "/missing")
                assert raw.read_answer().status == 404
                assert refused(port, "127.0.0.3")
                assert server.refusals == {"max_connections_per_address": 1, "max_connections": 1}
        server.stop(0)


# Header fields


def fields(count: int) -> list[tuple[str, str]]:
    """As many header fields, Host included, when a request adds that."""
    return [(f"X-{n}", "v") for n in range(count - 1)]


@pytest.mark.parametrize("most", [10, 100, 200])
def test_max_headers(serve: Callable[..., ServerThread], most: int) -> None:
    server = PingServer()
    port = serve(server, max_headers=most).port
    with RawClient(port, upgrade=False) as raw:
        raw.request("GET", "/ping", fields(most))
        assert raw.read_answer().body == b"pong"
        raw.request("GET", "/ping", fields(most + 1))
        assert raw.read_answer().status == 431
        raw.expect_end()


def test_too_many_headers_are_counted_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    with PingServer() as server, caplog.at_level(logging.WARNING, "pyhv"):
        server.start(0, max_headers=10)
        for _ in range(3):
            with RawClient(port_of(server), upgrade=False) as raw:
                raw.request("GET", "/ping", fields(11))
                assert raw.read_answer().status == 431
        assert "max_headers=10" in only_line(server, caplog)
        assert sum(server.refusals.values()) == 3


def test_too_many_headers_are_counted_under_their_own_setting() -> None:
    with PingServer() as server:
        server.start(0, max_headers=10)
        with RawClient(port_of(server), upgrade=False) as raw:
            raw.request("GET", "/ping", fields(11))
            assert raw.read_answer().status == 431
            raw.expect_end()
        wait_until(lambda: server.refusals)
        assert server.refusals == {"max_headers": 1}


def test_a_head_too_large_is_counted_under_max_header_size(caplog: pytest.LogCaptureFixture) -> None:
    with PingServer() as server, caplog.at_level(logging.WARNING, "pyhv"):
        server.start(0, max_header_size=8192)
        with RawClient(port_of(server), upgrade=False) as raw:
            raw.request("GET", "/ping", [("X", "v" * 9000)])
            assert raw.read_answer().status == 431
        assert "max_header_size=8192" in only_line(server, caplog)
        assert server.refusals == {"max_header_size": 1}


def test_max_headers_holds_for_a_websocket_handshake(server: RecordingServer) -> None:
    with (
        pytest.raises(AssertionError, match="answered with 431"),
        RawClient(port_of(server), headers=fields(101)),
    ):
        pass


def test_max_headers_holds_for_http2(serve: Callable[..., ServerThread], tmp_path: Path) -> None:
    made = make_certificates(tmp_path)
    server = PingServer()
    serve(server, max_headers=20, **made.settings)
    url = f"https://{HOST}:{tls_port_of(server)}/ping"
    with httpx.Client(http2=True, verify=made.context(), timeout=LIMIT) as client:
        answer = client.get(url)
        assert (answer.http_version, answer.status_code) == ("HTTP/2", 200)
        assert client.get(url, headers=fields(60)).status_code == 431


def test_max_body_size_is_counted(serve: Callable[..., ServerThread]) -> None:
    server = PingServer()
    server.post("/take", lambda req, resp: resp.text("taken"))
    port = serve(server, max_body_size=10).port
    with RawClient(port, upgrade=False) as raw:
        raw.request("POST", "/take", [], bytes(10))
        assert raw.read_answer().status == 200
        raw.request("POST", "/take", [], bytes(11))
        assert raw.read_answer().status == 413
    assert server.refusals == {"max_body_size": 1}


# Handshakes per second


def upgrade_status(port: int) -> tuple[int, dict[str, str]]:
    with RawClient(port, upgrade=False) as raw:
        handshake = [
            ("Upgrade", "websocket"),
            ("Connection", "Upgrade"),
            ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("Sec-WebSocket-Version", "13"),
        ]
        raw.request("GET", "/", handshake)
        return raw.read_head()


def test_max_upgrades_per_second(caplog: pytest.LogCaptureFixture) -> None:
    with PingServer() as server, caplog.at_level(logging.WARNING, "pyhv"):
        server.start(0, max_upgrades_per_second=0.0001)  # the next one in hours
        port = port_of(server)
        assert upgrade_status(port)[0] == 101
        assert server.refusals == {}
        for count in range(1, 4):
            status, headers = upgrade_status(port)
            assert status == 503
            assert int(headers["retry-after"]) >= 1
            assert headers["connection"] == "close"
            assert server.refusals == {"max_upgrades_per_second": count}
        assert "max_upgrades_per_second=0.0001" in only_line(server, caplog)
        # Requests are no upgrades.
        with RawClient(port, upgrade=False) as raw:
            raw.request("GET", "/ping")
            tick_until(raw.readable, server)
            assert raw.read_answer().status == 200
        server.stop(0)


def test_upgrades_come_back_with_time() -> None:
    with PingServer() as server:
        server.start(0, max_upgrades_per_second=10)
        port = port_of(server)

        def status() -> int:
            server.tick()
            return upgrade_status(port)[0]

        assert [status() for _ in range(10)] == [101] * 10  # a second's worth at once
        wait_until(lambda: status() == 503)
        wait_until(lambda: status() == 101)
        server.stop(0)


def test_refusals_are_counted_per_start() -> None:
    server = PingServer()
    assert server.refusals == {}
    server.start(0, max_connections=1)
    with RawClient(port_of(server)):
        assert refused(port_of(server))
        assert server.refusals == {"max_connections": 1}
        server.stop(0)
    server.start(0)
    assert server.refusals == {}
    server.stop()


# Settings out of range


OUT_OF_RANGE: list[tuple[str, Any]] = [
    *((name, value) for name in ("max_connections", "max_connections_per_address", "max_headers") for value in (0, -1)),
    ("max_connections", 1.5),
    ("max_connections", None),
    ("max_headers", None),
    *(("max_upgrades_per_second", value) for value in (0, -1, math.inf, math.nan)),
    *(
        (name, value)
        for name in ("ping_interval", "ping_timeout", "idle_timeout", "app_stall_timeout")
        for value in (0, -1, math.nan, math.inf, 1e10)
    ),
    *(
        (name, value)
        for name in ("handshake_timeout", "upgrade_timeout", "close_timeout", "header_timeout")
        for value in (-1, math.nan, math.inf)
    ),
    *(("slow_policy", value) for value in ("", "drop", "CLOSE")),
    ("max_header_size", 8191),
    *((name, 0) for name in ("max_message_size", "max_buffered", "max_pending_bytes", "max_channel_pending_bytes")),
    ("max_buffered", -1),
]


@pytest.mark.parametrize(("name", "value"), OUT_OF_RANGE)
def test_a_server_setting_out_of_range_is_named_with_its_value(name: str, value: Any) -> None:
    server = RecordingServer()
    with pytest.raises(ValueError, match=name) as raised:
        server.start(0, **{name: value})
    assert str(value).lower() in str(raised.value).lower().replace("10000000000", "1e10").replace("1e10", str(value))
    assert not server.is_running
    server.start(0)
    server.stop()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ping_interval", 0),
        ("ping_interval", -1),
        ("ping_timeout", 0),
        ("ping_timeout", math.nan),
        ("slow_policy", "drop"),
        ("max_buffered", 0),
        ("close_timeout", -1),
    ],
)
def test_a_client_setting_out_of_range_is_named_with_its_value(name: str, value: Any) -> None:
    client = HvWebSocketClient()
    with pytest.raises(ValueError, match=name) as raised:
        client.connect("ws://127.0.0.1:9/", **{name: value})
    assert str(value).lower() in str(raised.value).lower()
    assert not client.is_connecting


@pytest.mark.parametrize(("name", "value"), [("ping_interval", "20"), ("idle_timeout", b""), ("slow_policy", None)])
def test_a_setting_of_the_wrong_type_is_a_type_error(name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=name):
        RecordingServer().start(0, **{name: value})


def test_the_least_values_work(serve: Callable[..., ServerThread]) -> None:
    settings: dict[str, Any] = {
        "max_connections": 1,
        "max_connections_per_address": 1,
        "max_headers": 8,
        "max_upgrades_per_second": 1e-3,
        "ping_interval": None,
        "ping_timeout": None,
        "idle_timeout": None,
        "app_stall_timeout": None,
    }
    port = serve(EchoServer(), **settings).port
    with RawClient(port) as raw:
        raw.send_text("hello")
        assert raw.read_message() == "hello"
