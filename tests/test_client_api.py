"""The client's public surface: connecting and failing to, sending, closing, connecting again, ticking, collecting."""

from __future__ import annotations

import gc
import select
import socket
import struct
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pyhv
from pyhv import HvWebSocketClient, WsOpcode
from support import (
    HOST,
    LIMIT,
    Background,
    EchoServer,
    RawPeer,
    RawServer,
    RecordingClient,
    RecordingServer,
    accept_key,
    connected,
    only_channel,
    port_of,
    tick_until,
    url_of,
    wait_until,
)


def kinds(client: RecordingClient) -> list[str]:
    return [call.what for call in client.record.calls]


def closed_port() -> int:
    """A port that nobody listens on: its socket stays bound, so that nobody else takes it meanwhile."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def until_closed(client: RecordingClient, *others: Any) -> None:
    tick_until(lambda: client.record.count("close"), client, *others, what="on_close runs")


# Connecting


def test_connect_returns_at_once_and_on_open_follows_on_a_tick(echo: EchoServer) -> None:
    client = RecordingClient()
    assert not client.is_connected
    assert not client.is_connecting
    client.connect(url_of(echo))
    assert client.is_connecting
    assert not client.is_connected
    tick_until(lambda: echo.record.count("open"), echo)  # the handshake is done, and yet:
    assert client.is_connecting
    assert kinds(client) == []
    tick_until(lambda: client.is_connected, client)
    assert not client.is_connecting
    assert kinds(client) == ["open"]
    assert client.remote_address == (HOST, port_of(echo))
    assert client.buffered_amount == 0
    assert client.error is None
    assert client.close_code is None
    assert client.close_reason is None
    client.close()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "chat",
        "127.0.0.1:9090",
        "//127.0.0.1/",
        "http://127.0.0.1/",
        "ws:127.0.0.1",
        "ws://",
        "ws:///path",
        "ws://:9090/",
        "ws://user@/",
        "ws://127.0.0.1:0/",
        "ws://127.0.0.1:65536/",
        "ws://127.0.0.1:-1/",
        "ws://127.0.0.1:http/",
        "ws://127.0.0.1/#fragment",
        "ws://127.0.0.1/#",
        "ws://127.0.0.1/a b",
        " ws://127.0.0.1/",
        "ws://127.0.0.1/\r\nX-Injected: yes",
        "ws://127.0.0.1/\x00",
        "ws://127.0.0.1/\x7f",
        "ws://[::1/",
        "ws://::1/",
        "ws://[localhost]/",
        "ws://" + "ä" * 300 + "/",
        "ws://127.0.0.1/\ud800",
    ],
)
def test_a_bad_url_raises_value_error_naming_it_and_nothing_happens(url: str) -> None:
    client = RecordingClient()
    with pytest.raises(ValueError, match="not a WebSocket URL") as caught:
        client.connect(url)
    assert repr(url.replace("user@", "")) in str(caught.value)
    assert not client.is_connecting
    assert client.tick() == 0
    assert kinds(client) == []


@pytest.mark.parametrize("url", [None, b"ws://127.0.0.1/", 3])
def test_a_url_of_another_type_raises_type_error(url: Any) -> None:
    with pytest.raises(TypeError, match=type(url).__name__):
        HvWebSocketClient().connect(url)


@pytest.mark.parametrize(
    ("suffix", "target"),
    [
        ("", "/"),
        ("/", "/"),
        ("?a=1", "/?a=1"),
        ("/a/b?c=d&e=%20f", "/a/b?c=d&e=%20f"),
        ("/é?ü=ß", "/%C3%A9?%C3%BC=%C3%9F"),
        ("/%C3%A9", "/%C3%A9"),
        ("/a?b=/?:@", "/a?b=/?:@"),
        ('/"<>\\^`{|}', "/%22%3C%3E%5C%5E%60%7B%7C%7D"),
    ],
)
def test_the_path_and_query_of_the_url_arrive_percent_encoded(echo: EchoServer, suffix: str, target: str) -> None:
    client = RecordingClient()
    client.connect(f"ws://{HOST}:{port_of(echo)}{suffix}")
    tick_until(lambda: echo.record.count("open"), client, echo)
    assert echo.record.values("open") == [target]
    client.close()


@pytest.mark.parametrize("scheme", ["ws", "WS"])
def test_the_scheme_and_host_compare_without_case(echo: EchoServer, scheme: str) -> None:
    client = RecordingClient()
    client.connect(f"{scheme}://LOCALHOST:{port_of(echo)}/")
    tick_until(lambda: client.is_connected, client, echo)
    client.close()


def test_headers_arrive_at_the_server(server: RecordingServer) -> None:
    client = connected(server, headers=[("X-Thing", "one"), ("x-thing", "two"), ("X-Origin", "http://here")])
    headers = only_channel(server).headers
    assert headers.get_all("x-thing") == ["one", "two"]
    assert headers["x-origin"] == "http://here"
    assert headers["host"] == f"{HOST}:{port_of(server)}"
    assert headers["sec-websocket-version"] == "13"
    client.close()


def test_headers_may_be_a_mapping(server: RecordingServer) -> None:
    client = connected(server, headers={"Authorization": "Bearer token"})
    assert only_channel(server).headers["authorization"] == "Bearer token"
    client.close()


def test_user_and_password_of_the_url_become_basic_authentication(server: RecordingServer) -> None:
    client = RecordingClient()
    client.connect(f"ws://Aladdin:open%20sesame@{HOST}:{port_of(server)}/")
    headers = only_channel(server).headers
    assert headers["authorization"] == "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="  # the example of RFC 7617 section 2
    assert "@" not in headers["host"]
    del client


def test_no_error_shows_user_and_password(server: RecordingServer, tmp_path: Path) -> None:
    client = RecordingClient()
    cases: list[tuple[str, dict[str, Any]]] = [
        ("ftp://ann:secret@h/", {}),
        ("ws://ann:secret@h:port/", {}),
        ("ws://ann:secret@h/ /", {}),
        ("ws://ann:secret@h/", {"ca_file": tmp_path / "ca.pem"}),
    ]
    for url, options in cases:
        with pytest.raises(ValueError, match=r"://h") as raised:
            client.connect(url, **options)
        assert "secret" not in str(raised.value)
    # Plain on the other side: what the TLS handshake says of it comes later.
    client.connect(f"wss://ann:secret@{HOST}:{port_of(server)}/", dangerous_accept_any_certificate=True)
    assert "secret" not in str(tick_until(lambda: client.error, client, server))


@pytest.mark.parametrize(
    ("name", "value"),
    [("X A", "a"), ("", "a"), ("X:", "a"), ("X", "a\r\nY: b"), ("X", "a\nb"), ("X", "\0"), ("X", "→"), ("é", "a")],
)
def test_a_bad_header_raises_value_error(server: RecordingServer, name: str, value: str) -> None:
    client = RecordingClient()
    with pytest.raises(ValueError, match="header"):
        client.connect(url_of(server), headers={name: value})
    assert not client.is_connecting


@pytest.mark.parametrize(
    "name", ["Host", "upgrade", "CONNECTION", "Sec-WebSocket-Key", "sec-websocket-protocol", "Sec-WebSocket-Version"]
)
def test_a_header_of_the_handshake_itself_is_refused_by_name(server: RecordingServer, name: str) -> None:
    with pytest.raises(ValueError, match=f"headers: {name} is set by the WebSocket handshake"):
        HvWebSocketClient().connect(url_of(server), headers={name: "mine"})


def test_subprotocols_are_offered_in_order_and_the_servers_choice_is_told() -> None:
    client = RecordingClient()
    with RawServer() as listener:
        client.connect(listener.url, subprotocols=["chat.v2", "chat.v1"])
        peer, handshake = listener.accept_handshake()
        assert handshake.headers["sec-websocket-protocol"] == "chat.v2, chat.v1"
        answer(peer, handshake.headers, ["Sec-WebSocket-Protocol: chat.v1", "X-From: server"])
        tick_until(lambda: client.is_connected, client)
        assert client.subprotocol == "chat.v1"
        assert client.headers is not None
        assert client.headers["x-from"] == "server"
        peer.socket.close()


def test_without_a_choice_there_is_no_subprotocol(server: RecordingServer) -> None:
    client = RecordingClient()
    assert client.subprotocol is None
    assert client.headers is None
    assert client.remote_address is None
    client.connect(url_of(server), subprotocols=["chat"])
    tick_until(lambda: client.is_connected, client, server)
    assert client.subprotocol is None
    assert only_channel(server).headers["sec-websocket-protocol"] == "chat"
    client.close()


@pytest.mark.parametrize("names", [["a b"], [""], ["a", "a"], ["a,b"], ["é"], "chat"])
def test_bad_subprotocols_raise_value_error(server: RecordingServer, names: Any) -> None:
    client = RecordingClient()
    with pytest.raises(ValueError, match="subprotocols"):
        client.connect(url_of(server), subprotocols=names)
    assert not client.is_connecting


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("max_message_size", 0, ValueError),
        ("max_buffered", -1, ValueError),
        ("max_pending_bytes", 1 << 64, ValueError),
        ("max_header_size", 8191, ValueError),
        ("open_timeout", -1, ValueError),
        ("close_timeout", float("nan"), ValueError),
        ("open_timeout", "soon", TypeError),
        ("no_such_setting", 1, TypeError),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(
    server: RecordingServer, name: str, value: Any, error: type[Exception]
) -> None:
    client = RecordingClient()
    with pytest.raises(error, match=name):
        client.connect(url_of(server), **{name: value})
    assert not client.is_connecting


def test_connecting_twice_raises(echo: EchoServer) -> None:
    client = RecordingClient()
    client.connect(url_of(echo))
    with pytest.raises(RuntimeError, match="connected or connecting"):
        client.connect(url_of(echo))
    tick_until(lambda: client.is_connected, client, echo)
    with pytest.raises(RuntimeError, match="connected or connecting"):
        client.connect(url_of(echo))
    client.send("still works")
    tick_until(lambda: client.received, client, echo)
    client.close()
    with pytest.raises(RuntimeError, match="after on_close"):
        client.connect(url_of(echo))


# Failing to connect


def answer(peer: RawPeer, asked: dict[str, str], lines: list[str]) -> None:
    """Accepts a handshake with further header lines."""
    accept = accept_key(asked["sec-websocket-key"])
    head = ["HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade"]
    peer.send_bytes("\r\n".join([*head, f"Sec-WebSocket-Accept: {accept}", *lines, "", ""]).encode())


def assert_failed(client: RecordingClient, kind: type[pyhv.ConnectError]) -> pyhv.ConnectError:
    """on_error with the declared exception, then on_close, and nothing else."""
    until_closed(client)
    assert client.tick() == 0
    assert kinds(client) == ["error", "close"]
    error = client.error
    assert type(error) is kind
    assert client.record.values("error") == [error]
    assert not client.is_connected
    assert not client.is_connecting
    assert (client.close_code, client.close_reason) == (1006, "")
    assert client.send("x") is False
    return error


def test_a_refused_connection_is_told_by_on_error_and_then_on_close() -> None:
    client = RecordingClient()
    port = closed_port()
    client.connect(f"ws://{HOST}:{port}/")
    error = assert_failed(client, pyhv.ConnectionRefused)
    assert isinstance(error, ConnectionRefusedError)
    assert f"{HOST}:{port}" in str(error)


def test_a_server_that_does_not_answer_in_time_is_told() -> None:
    client = RecordingClient()
    with RawServer() as listener:  # connects, by the kernel, and says nothing
        client.connect(listener.url, open_timeout=0.1)
        error = assert_failed(client, pyhv.ConnectTimeout)
        assert isinstance(error, TimeoutError)
        assert "open_timeout=0.1" in str(error)
        assert listener.url in str(error)
        peer = listener.accept()
        peer.read_to_end()  # and the connection is gone
        peer.socket.close()


@pytest.mark.parametrize("host", ["no..such.host", "x" * 64 + ".example"])
def test_a_name_without_an_address_is_told(host: str) -> None:
    client = RecordingClient()
    client.connect(f"ws://{host}/")
    error = assert_failed(client, pyhv.NameResolutionError)
    assert host in str(error)


NOT_WEBSOCKET: dict[str, tuple[bytes, int | None]] = {
    "nothing": (b"", None),
    "garbage": (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", None),
    "zeros": (b"\0" * 1000, None),
    "half a head": (b"HTTP/1.1 101 Switching", None),
    "a page": (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", 200),
    "not found": (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", 404),
    "unauthorized": (b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n", 401),
    "redirect": (b"HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n", 302),
    "no accept": (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", 101),
}


@pytest.mark.parametrize("name", NOT_WEBSOCKET)
def test_somebody_who_is_not_a_websocket_server_is_told_with_the_status(name: str) -> None:
    data, status = NOT_WEBSOCKET[name]
    client = RecordingClient()
    with RawServer() as listener:
        client.connect(listener.url)
        peer, _ = listener.accept_handshake()
        peer.send_bytes(data)
        peer.socket.close()
        error = assert_failed(client, pyhv.HandshakeError)
        assert isinstance(error, pyhv.HandshakeError)
        assert error.status == status
        assert listener.url in str(error)


@pytest.mark.parametrize(
    "lines",
    [
        ["Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Accept: bm90IHRoZSBhbnN3ZXI="],
        ["Upgrade: h2c", "Connection: Upgrade", "Sec-WebSocket-Accept: {accept}"],
        ["Upgrade: websocket", "Connection: close", "Sec-WebSocket-Accept: {accept}"],
        ["Connection: Upgrade", "Sec-WebSocket-Accept: {accept}"],
        [
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Accept: {accept}",
            "Sec-WebSocket-Protocol: unasked",
        ],
        [
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Accept: {accept}",
            "Sec-WebSocket-Extensions: permessage-deflate",
        ],
    ],
    ids=[
        "wrong accept",
        "other protocol",
        "no upgrade",
        "no Upgrade header",
        "unasked subprotocol",
        "unasked extension",
    ],
)
def test_a_handshake_that_is_wrong_fails_the_connection(lines: list[str]) -> None:
    client = RecordingClient()
    with RawServer() as listener:
        client.connect(listener.url, subprotocols=["asked"])
        peer, handshake = listener.accept_handshake()
        accept = accept_key(handshake.headers["sec-websocket-key"])
        head = "\r\n".join(["HTTP/1.1 101 Switching Protocols", *lines, "", ""])
        peer.send_bytes(head.format(accept=accept).encode())
        error = assert_failed(client, pyhv.HandshakeError)
        assert isinstance(error, pyhv.HandshakeError)
        peer.read_to_end()
        peer.socket.close()


def test_too_large_a_head_of_the_answer_fails_the_connection() -> None:
    client = RecordingClient()
    with RawServer() as listener:
        client.connect(listener.url, max_header_size=8192)
        peer, handshake = listener.accept_handshake()
        answer(peer, handshake.headers, [f"X-{number}: {'x' * 1000}" for number in range(20)])
        assert_failed(client, pyhv.HandshakeError)
        peer.socket.close()


def test_the_declared_exceptions_form_one_tree() -> None:
    assert issubclass(pyhv.ConnectError, pyhv.PyHVError)
    kinds_of_error = [pyhv.NameResolutionError, pyhv.ConnectionRefused, pyhv.ConnectTimeout, pyhv.HandshakeError]
    for kind in kinds_of_error:
        assert issubclass(kind, pyhv.ConnectError)
    assert pyhv.HandshakeError("text").status is None


def test_the_error_is_forgotten_when_the_next_attempt_begins(echo: EchoServer) -> None:
    client = RecordingClient()
    client.connect(f"ws://{HOST}:{closed_port()}/")
    until_closed(client)
    assert client.error is not None
    client.connect(url_of(echo))
    assert client.error is None
    assert client.close_code is None
    tick_until(lambda: client.is_connected, client, echo)
    client.close()


# Closing


def test_close_closes_both_sides_with_code_and_reason(server: RecordingServer) -> None:
    client = connected(server)
    channel = only_channel(server)
    client.close(4321, "enough é")
    assert not client.is_connected
    assert client.send("late") is False
    until_closed(client, server)
    tick_until(lambda: server.record.count("close"), server)
    assert (channel.close_code, channel.close_reason) == (4321, "enough é")
    assert client.close_code == 4321
    assert kinds(client) == ["open", "close"]
    assert client.error is None


def test_messages_sent_before_the_close_arrive_before_it(server: RecordingServer) -> None:
    client = connected(server)
    for number in range(50):
        assert client.send(f"{number}")
    client.close()
    tick_until(lambda: server.record.count("close"), server)
    assert server.record.values("message") == [f"{number}" for number in range(50)]
    until_closed(client)


@pytest.mark.parametrize("code", [-1, 0, 999, 1004, 1005, 1006, 1015, 2999, 5000, 1 << 16])
def test_a_code_that_must_not_be_sent_is_refused(echo: EchoServer, code: int) -> None:
    client = connected(echo)
    with pytest.raises(ValueError, match=str(code)):
        client.close(code)
    with pytest.raises(ValueError, match="124 bytes"):
        client.close(1000, "x" * 124)
    assert client.is_connected
    client.close()


def test_close_while_connecting_gives_up_without_an_error() -> None:
    client = RecordingClient()
    with RawServer() as listener:
        client.connect(listener.url)
        peer, _ = listener.accept_handshake()
        client.close()
        until_closed(client)
        assert kinds(client) == ["close"]
        assert (client.error, client.close_code) == (None, 1006)
        assert not client.is_connecting
        assert not client.is_connected
        peer.read_to_end()
        peer.socket.close()


def test_close_before_the_tick_that_would_have_opened_runs_no_on_open(echo: EchoServer) -> None:
    client = RecordingClient()
    client.connect(url_of(echo))
    tick_until(lambda: echo.record.count("open"), echo)
    assert select.select([client], [], [], LIMIT)[0]  # on_open would run in the next tick
    client.close(4000)
    until_closed(client, echo)
    tick_until(lambda: echo.record.count("close"), echo)
    assert kinds(client) == ["close"]
    assert not client.is_connected


def test_close_without_a_connection_does_nothing(echo: EchoServer) -> None:
    client = RecordingClient()
    client.close()
    client.connect(url_of(echo))
    tick_until(lambda: client.is_connected, client, echo)
    client.close()
    client.close()
    until_closed(client, echo)
    client.close()
    assert client.tick() == 0
    assert kinds(client) == ["open", "close"]


def test_a_server_that_does_not_answer_the_close_is_dropped_after_close_timeout() -> None:
    client = RecordingClient()
    with RawServer() as listener:
        client.connect(listener.url, close_timeout=0.1)
        with listener.accept_websocket() as peer:
            tick_until(lambda: client.is_connected, client)
            client.close()
            until_closed(client)
            assert client.close_code == 1006
            assert peer.read_close().close_code == 1000
            peer.expect_end()


@pytest.mark.parametrize(("sent", "code"), [(1000, 1000), (1001, 1001), (4999, 4999), (None, 1005)])
def test_a_close_by_the_server_is_told_with_code_and_reason(sent: int | None, code: int) -> None:
    client = RecordingClient()
    reason = "" if sent is None else "because"
    with RawServer() as listener:
        client.connect(listener.url)
        with listener.accept_websocket() as peer:
            peer.send_close(sent, reason)
            until_closed(client)
            assert (client.close_code, client.close_reason) == (code, reason)
            assert peer.read_close().close_code == sent
            assert kinds(client) == ["open", "close"]
            assert not client.is_connected
            # RFC 6455 section 7.1.1: the client waits for the server to end the TCP connection.
            assert not peer.readable(0.05)
            peer.socket.shutdown(socket.SHUT_WR)
            peer.expect_end()


@pytest.mark.parametrize("how", ["end", "reset"])
def test_a_server_that_goes_away_abruptly_closes_with_1006(how: str) -> None:
    client = RecordingClient()
    with RawServer() as listener:
        client.connect(listener.url)
        peer = listener.accept_websocket()
        tick_until(lambda: client.is_connected, client)
        if how == "end":
            peer.socket.close()
        else:
            peer.reset()
        until_closed(client)
        assert (client.close_code, client.close_reason, client.error) == (1006, "", None)
        assert kinds(client) == ["open", "close"]
        assert client.send("x") is False


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\x81\x85\0\0\0\0hello", 1002),  # masked
        (b"\x83\x00", 1002),  # a reserved opcode
        (b"\xc1\x00", 1002),  # RSV1 without an extension
        (b"\x80\x00", 1002),  # nothing to continue
        (b"\x81\x01\xff", 1007),  # not UTF-8
        (b"\x82\x7f" + struct.pack("!Q", 1 << 20), 1009),  # larger than max_message_size
        (b"\x88\x02\x03\xed", 1002),  # a close code that must not be sent
        (b"\x88\x01\x03", 1002),  # half a close code
        (b"\x89\x7e\x00\x7e" + b"x" * 126, 1002),  # a ping of 126 bytes
    ],
)
def test_a_server_that_breaks_the_protocol_is_told_so(data: bytes, code: int, caplog: pytest.LogCaptureFixture) -> None:
    client = RecordingClient()
    with RawServer() as listener:
        client.connect(listener.url, max_message_size=1000)
        with listener.accept_websocket() as peer:
            peer.send_text("before")
            peer.send_bytes(data)
            until_closed(client)
            assert (client.close_code, client.received) == (code, ["before"])
            assert peer.read_close().close_code == code
    assert kinds(client) == ["open", "message", "close"]
    (entry,) = (entry for entry in caplog.records if entry.name == "pyhv.client")
    assert str(code) in entry.getMessage()
    assert ("max_message_size=1000" in entry.getMessage()) == (code == 1009)


# Connecting again


def test_a_client_connects_again_after_a_close(echo: EchoServer) -> None:
    client = RecordingClient()
    for number in range(5):
        client.connect(url_of(echo, f"/{number}"))
        tick_until(lambda: client.is_connected, client, echo)
        client.send(f"{number}")
        tick_until(lambda: client.received[-1:] == [f"{number}"], client, echo)  # noqa: B023 - used at once
        client.close()
        tick_until(lambda: client.close_code, client, echo)
    assert kinds(client) == ["open", "message", "close"] * 5
    tick_until(lambda: echo.record.count("close") == 5, echo)
    assert echo.record.values("open") == [f"/{number}" for number in range(5)]


def test_a_client_connects_again_inside_on_close(echo: EchoServer) -> None:
    class Again(RecordingClient):
        def on_close(self) -> None:
            super().on_close()
            if self.record.count("close") < 3:
                self.connect(url_of(echo))
                assert self.is_connecting

    client = Again()
    client.connect(url_of(echo))
    for count in (1, 2):
        tick_until(lambda: client.is_connected, client, echo)
        echo.channels[-1].close(4000)
        tick_until(lambda: client.record.count("close") == count, client, echo)  # noqa: B023 - used at once
    tick_until(lambda: client.is_connected, client, echo)
    client.send("third")
    tick_until(lambda: client.received, client, echo)
    assert kinds(client) == ["open", "close", "open", "close", "open", "message"]
    client.close()
    until_closed(client, echo)


def test_a_client_that_retries_in_on_close_finds_the_server_when_it_comes() -> None:
    server = EchoServer()
    port = closed_port()

    class Retries(RecordingClient):
        def on_close(self) -> None:
            super().on_close()
            self.connect(f"ws://{HOST}:{port}/")

    client = Retries()
    client.connect(f"ws://{HOST}:{port}/")
    tick_until(lambda: client.record.count("close") >= 3, client)
    assert kinds(client)[:4] == ["error", "close", "error", "close"]
    server.start(port)
    tick_until(lambda: client.is_connected, client, server)
    server.stop(0)


def test_the_descriptor_stays_the_same_over_connections(echo: EchoServer) -> None:
    client = RecordingClient()
    descriptor = client.fileno()
    assert not select.select([client], [], [], 0)[0]
    for number in range(1, 4):
        client.connect(url_of(echo))
        assert client.fileno() == descriptor
        assert select.select([client], [], [], LIMIT)[0]
        tick_until(lambda: client.is_connected, client, echo)
        assert not select.select([client], [], [], 0)[0]
        client.send("x")
        tick_until(lambda: echo.record.count("message") == number, echo)  # noqa: B023 - used at once
        assert select.select([client], [], [], LIMIT)[0]
        client.close()
        tick_until(lambda: client.close_code, client, echo)
        assert not select.select([client], [], [], 0)[0]


# Messages


def test_send_before_open_and_after_the_end_returns_false(echo: EchoServer) -> None:
    client = RecordingClient()
    assert client.send("x") is False
    client.connect(url_of(echo))
    assert client.send("x") is False
    tick_until(lambda: client.is_connected, client, echo)
    assert client.send("x") is True
    client.close()
    assert client.send("x") is False
    until_closed(client, echo)
    assert client.send("x") is False
    tick_until(lambda: echo.record.count("close"), echo)
    assert echo.record.values("message") == ["x"]


def test_sends_in_on_open_are_the_first_to_arrive(server: RecordingServer) -> None:
    class Greets(RecordingClient):
        def on_open(self) -> None:
            super().on_open()
            assert self.is_connected
            for word in ("one", b"two", "three"):
                assert self.send(word) is True

    client = Greets()
    client.connect(url_of(server))
    tick_until(lambda: server.record.count("message") == 3, client, server)
    assert server.record.values("message") == ["one", b"two", "three"]
    client.close()


def test_text_arrives_as_str_and_binary_as_bytes(echo: EchoServer) -> None:
    client = connected(echo)
    messages: list[str | bytes] = ["text é \0", b"\x00\xff", "", b"", "x" * 70_000, b"y" * 200_000]
    for message in messages:
        assert client.send(message)
    assert client.send(bytearray(b"ab"))
    assert client.send(memoryview(b"abcd")[::2])
    tick_until(lambda: len(client.received) == 8, client, echo)
    assert client.received == [*messages, b"ab", b"ac"]
    with pytest.raises(TypeError, match="str or bytes-like, not int"):
        client.send(3)  # type: ignore[arg-type]
    client.close()


def test_on_message_frame_tells_the_opcode_and_calls_on_message() -> None:
    class Frames(RecordingClient):
        def on_message_frame(self, msg: str | bytes, opcode: WsOpcode) -> None:
            self.record.add("frame", None, (msg, opcode))
            assert isinstance(opcode, WsOpcode)
            super().on_message_frame(msg, opcode)

    client = Frames()
    with RawServer() as listener:
        client.connect(listener.url)
        with listener.accept_websocket() as peer:
            peer.send_text("te", fin=False)
            peer.send_ping(b"in between")
            peer.send_frame(WsOpcode.CONTINUATION, b"xt")
            peer.send_binary(b"bi", fin=False)
            peer.send_frame(WsOpcode.CONTINUATION, b"n", fin=False)
            peer.send_frame(WsOpcode.CONTINUATION)
            tick_until(lambda: len(client.received) == 2, client)
    assert client.record.values("frame") == [("text", WsOpcode.TEXT), (b"bin", WsOpcode.BINARY)]
    assert client.received == ["text", b"bin"]


def test_messages_right_behind_the_handshake_are_delivered_behind_on_open() -> None:
    client = RecordingClient()
    with RawServer() as listener:
        client.connect(listener.url)
        with listener.accept_websocket(behind=b"\x81\x05hello\x82\x02\x00\x01\x88\x02\x03\xe8") as peer:
            until_closed(client)
            assert client.record.of(None) == [
                ("open", None),
                ("message", "hello"),
                ("message", b"\x00\x01"),
                ("close", 1000),
            ]
            assert peer.read_close().close_code == 1000


def test_every_frame_is_masked_with_a_key_of_its_own() -> None:
    client = RecordingClient()
    with RawServer() as listener:
        client.connect(listener.url)
        with listener.accept_websocket() as peer:
            tick_until(lambda: client.is_connected, client)
            for _ in range(50):
                client.send(b"\0" * 8)  # masked zeros show the key
            frames = [peer.read_exactly(14) for _ in range(50)]
            peer.send_ping(b"\0" * 8)
            frames.append(peer.read_exactly(14))
    for frame in frames:
        assert frame[1] == 0x80 | 8
        assert frame[2:6] * 2 == frame[6:]
    assert len({frame[2:6] for frame in frames}) == 51


def test_a_client_sends_fragments_pings_and_pongs() -> None:
    client = RecordingClient()
    with RawServer() as listener:
        client.connect(listener.url)
        with listener.accept_websocket() as peer:
            tick_until(lambda: client.is_connected, client)
            assert client.send("a", fin=False)
            assert client.send(b"ping", WsOpcode.PING)
            with pytest.raises(ValueError, match="a fragmented message is open"):
                client.send("x", WsOpcode.TEXT)
            assert client.send("b")
            assert client.send(b"", WsOpcode.PONG)
            with pytest.raises(ValueError, match="125 bytes, not 126"):
                client.send(b"x" * 126, WsOpcode.PING)
            with pytest.raises(ValueError, match=r"close\(code, reason\)"):
                client.send(b"", WsOpcode.CLOSE)
            frames = [peer.read_frame() for _ in range(4)]
    got = [(frame.opcode, frame.fin, frame.payload, frame.masked) for frame in frames]
    assert got == [
        (WsOpcode.TEXT, False, b"a", True),
        (WsOpcode.PING, True, b"ping", True),
        (WsOpcode.CONTINUATION, True, b"b", True),
        (WsOpcode.PONG, True, b"", True),
    ]


def test_after_close_messages_that_still_arrive_are_dropped() -> None:
    client = RecordingClient()
    with RawServer() as listener:
        client.connect(listener.url)
        with listener.accept_websocket() as peer:
            tick_until(lambda: client.is_connected, client)
            peer.send_text("in the queue when close is called")
            assert select.select([client], [], [], LIMIT)[0]
            client.close()
            peer.read_close()
            peer.send_text("too late")
            peer.send_close()
            until_closed(client)
    assert kinds(client) == ["open", "close"]


# Ticking


def test_a_client_that_is_not_connected_does_not_wait_in_tick(echo: EchoServer) -> None:
    client = RecordingClient()
    assert client.tick(None) == 0
    client.connect(url_of(echo))
    tick_until(lambda: client.is_connected, client, echo)
    client.close()
    until_closed(client, echo)
    assert client.tick(None) == 0
    assert client.tick(timeout=1000) == 0


def test_a_waiting_tick_is_woken_by_each_event() -> None:
    client = RecordingClient()
    with RawServer() as listener:
        client.connect(listener.url)
        peer = Background(listener.accept_websocket)
        assert client.tick(None) == 1
        assert kinds(client) == ["open"]
        raw = peer.result()
        sending = Background(lambda: raw.send_text("wake up"))
        assert client.tick(LIMIT) == 1
        sending.result()
        assert client.tick(0.01) == 0
        raw.socket.close()
        assert client.tick(None) == 1
    assert kinds(client) == ["open", "message", "close"]


@pytest.mark.parametrize("timeout", [-1, float("nan"), float("inf")])
def test_a_timeout_out_of_range_is_refused(echo: EchoServer, timeout: float) -> None:
    client = connected(echo)
    with pytest.raises(ValueError, match="timeout="):
        client.tick(timeout)
    client.close()


def test_a_close_by_another_thread_wakes_a_tick_that_waits(echo: EchoServer) -> None:
    client = connected(echo)
    waiting = Background(lambda: tick_until(lambda: client.close_code, client))
    client.close(4000)
    waiting.result(echo)
    assert client.close_code == 4000
    (call,) = (call for call in client.record.calls if call.what == "close")
    assert call.thread != client.record.calls[0].thread


# Contexts


def test_leaving_the_context_closes_and_waits_for_the_end(serve: Callable[..., Any]) -> None:
    running = serve(EchoServer())
    with RecordingClient() as client:
        client.connect(f"ws://{HOST}:{running.port}/")
        tick_until(lambda: client.is_connected, client)
    assert kinds(client) == ["open", "close"]
    assert client.close_code == 1000
    wait_until(lambda: running.server.record.values("close") == [1000])


def test_leaving_the_context_by_an_exception_closes_too(serve: Callable[..., Any]) -> None:
    running = serve(EchoServer())
    client = RecordingClient()

    def use() -> None:
        with client:
            client.connect(f"ws://{HOST}:{running.port}/")
            tick_until(lambda: client.is_connected, client)
            raise LookupError

    with pytest.raises(LookupError):
        use()
    assert client.close_code == 1000


def test_leaving_the_context_while_connecting_gives_up() -> None:
    with RawServer() as listener:
        with RecordingClient() as client:
            client.connect(listener.url, open_timeout=1000)
        assert kinds(client) == ["close"]
        assert not client.is_connecting


def test_leaving_the_context_of_a_client_that_never_connected_or_has_closed_returns(echo: EchoServer) -> None:
    with RecordingClient() as client:
        pass
    assert kinds(client) == []
    with client:
        client.connect(f"ws://{HOST}:{closed_port()}/")
        until_closed(client)
    assert kinds(client) == ["error", "close"]


def test_leaving_the_context_gives_up_when_the_server_does_not_answer_the_close() -> None:
    with RawServer() as listener:
        with RecordingClient() as client:
            client.connect(listener.url, close_timeout=0.1)
            peer = listener.accept_websocket()
            tick_until(lambda: client.is_connected, client)
        assert client.close_code == 1006
        peer.socket.close()


def test_a_subclass_with_an_init_of_its_own_need_not_call_ours(echo: EchoServer) -> None:
    class Own(HvWebSocketClient):
        def __init__(self, name: str, *, size: int = 0) -> None:
            self.name = name

    client = Own("x", size=3)
    client.connect(url_of(echo))
    tick_until(lambda: client.is_connected, client, echo)
    assert client.name == "x"
    client.close()


# Collecting


def test_a_connected_client_that_nobody_refers_to_is_collected_and_its_connection_ends(
    server: RecordingServer,
) -> None:
    client = connected(server)
    client.me = client  # type: ignore[attr-defined]
    only_channel(server)
    reference = weakref.ref(client)
    del client
    gc.collect()
    assert reference() is None
    tick_until(lambda: server.record.count("close"), server)
    assert server.record.values("close") == [1006]


def test_a_connecting_client_that_nobody_refers_to_is_collected_and_gives_up() -> None:
    with RawServer() as listener:
        client = RecordingClient()
        client.me = client  # type: ignore[attr-defined]
        client.connect(listener.url, open_timeout=1000)
        peer, _ = listener.accept_handshake()
        reference = weakref.ref(client)
        del client
        gc.collect()
        assert reference() is None
        peer.read_to_end()
        peer.socket.close()


def test_a_failed_client_whose_error_refers_to_it_is_collected() -> None:
    client = RecordingClient()
    client.connect(f"ws://{HOST}:{closed_port()}/")
    until_closed(client)
    assert client.error is not None
    client.error.client = client  # type: ignore[attr-defined]
    reference = weakref.ref(client)
    del client
    gc.collect()
    assert reference() is None


def test_a_client_that_callbacks_keep_in_a_cycle_is_collected(echo: EchoServer) -> None:
    client = connected(echo)
    client.on_message = client.send  # type: ignore[assignment, method-assign]
    client.close()
    until_closed(client, echo)
    reference = weakref.ref(client)
    del client
    gc.collect()
    assert reference() is None
