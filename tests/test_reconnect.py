"""A client that connects again: what leads to it, in which order callbacks come, and everything that ends it."""

from __future__ import annotations

import gc
import os
import select
import socket
import subprocess
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import pyhv
from pyhv import HvWebSocketClient, Reconnect, WsOpcode
from support import (
    HOST,
    LIMIT,
    Background,
    EchoServer,
    RawPeer,
    RawServer,
    accept_key,
    port_of,
    python_process,
    run_python,
    sockets_and_wakes,
    tick_until,
    url_of,
    wait_until,
)
from support_nginx import NGINX, needs_nginx
from support_tls import SecureServer, make_certificates, secure_url_of

SOON = Reconnect(first=0.005, max_delay=0.01)
#: Nothing happens while a test runs.
LATER = Reconnect(first=1000, max_delay=1000, jitter=0)


class Client(HvWebSocketClient):
    """Records its callbacks; `then` has what a callback does besides."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.then: dict[str, Callable[[], object]] = {}

    def add(self, what: str, *values: Any) -> None:
        self.calls.append((what, *values))
        self.then.get(what, lambda: None)()

    def on_open(self) -> None:
        self.add("open")

    def on_message(self, msg: str | bytes) -> None:
        self.add("message", msg)

    def on_close(self) -> None:
        self.add("close", self.close_code, self.is_reconnecting)

    def on_error(self, exc: Exception) -> None:
        self.add("error", type(exc), self.is_reconnecting)

    def on_reconnecting(self, attempt: int, delay: float) -> None:
        assert type(attempt) is int
        assert type(delay) is float
        self.delays = [*getattr(self, "delays", []), delay]
        self.add("again", attempt)

    @property
    def kinds(self) -> list[str]:
        return [call[0] for call in self.calls]

    def until(self, what: str, count: int = 1) -> None:
        """Ticks until a callback has run so often."""
        tick_until(lambda: self.kinds.count(what) >= count, self, what=f"{what} runs {count} times: {self.calls}")


def assert_ended(client: Client) -> None:
    """Nothing more comes, and it can be used again."""
    calls = list(client.calls)
    client.then.clear()
    assert client.tick(None) == 0  # does not wait
    assert client.calls == calls
    assert not client.is_connected
    assert not client.is_connecting
    assert not client.is_reconnecting
    assert client.close_code is not None
    assert client.buffered_amount == 0
    assert client.send("x") is False
    with RawServer() as listener:
        client.connect(listener.url)
        peer = listener.accept_websocket()
        tick_until(lambda: client.is_connected, client)
        peer.reset()
        tick_until(lambda: client.close_code, client)
    assert client.calls[len(calls) :] == [("open",), ("close", 1006, False)]


def in_the_delay(client: Client, listener: RawServer, reconnect: Reconnect = LATER) -> None:
    """The client has been connected, and waits for the next attempt."""
    client.connect(listener.url, reconnect=reconnect)
    peer = listener.accept_websocket()
    client.until("open")
    peer.reset()
    client.until("again")


@contextmanager
def refusing() -> Iterator[socket.socket]:
    """A bound socket: its port refuses until it listens."""
    with socket.socket() as bound:
        bound.bind((HOST, 0))
        bound.settimeout(LIMIT)
        yield bound


def url_to(bound: socket.socket) -> str:
    return f"ws://{HOST}:{bound.getsockname()[1]}/"


# Settings


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("first", 0, ValueError),
        ("first", -1, ValueError),
        ("first", float("nan"), ValueError),
        ("first", "soon", TypeError),
        ("first", True, TypeError),
        ("first", 31, ValueError),
        ("factor", 0.9, ValueError),
        ("factor", float("inf"), ValueError),
        ("factor", None, TypeError),
        ("max_delay", 0.4, ValueError),
        ("max_delay", float("inf"), ValueError),
        ("jitter", -0.1, ValueError),
        ("jitter", 1.1, ValueError),
        ("max_attempts", 0, ValueError),
        ("max_attempts", 1.5, TypeError),
        ("max_attempts", True, TypeError),
        ("max_attempts", 1 << 32, ValueError),
        ("min_uptime", -1, ValueError),
        ("min_uptime", float("inf"), ValueError),
        ("queue_bytes", -1, ValueError),
        ("queue_bytes", None, TypeError),
        ("queue_bytes", 1 << 32, ValueError),
    ],
)
def test_a_bad_value_is_refused_by_name(name: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=name):
        Reconnect(**{name: value})


@pytest.mark.parametrize("value", [None, 1, 0.5, "yes", {"first": 1}])
def test_reconnect_is_a_bool_or_a_reconnect(value: Any) -> None:
    client = Client()
    with pytest.raises(TypeError, match="reconnect="):
        client.connect("ws://127.0.0.1:1/", reconnect=value)
    assert not client.is_connecting


def test_more_in_the_queue_than_may_be_buffered_is_refused() -> None:
    client = Client()
    with pytest.raises(ValueError, match="queue_bytes=1001 is more than max_buffered=1000"):
        client.connect("ws://127.0.0.1:1/", max_buffered=1000, reconnect=Reconnect(queue_bytes=1001))
    with pytest.raises(ValueError, match="first"):
        client.connect("ws://127.0.0.1:1/", reconnect=Reconnect(first=1e10, max_delay=1e10))
    assert not client.is_connecting


def test_a_reconnect_is_a_value() -> None:
    assert Reconnect() == Reconnect(
        first=0.5, factor=2.0, max_delay=30.0, jitter=1.0, max_attempts=None, min_uptime=5.0, queue_bytes=0
    )
    with pytest.raises(AttributeError):
        Reconnect().first = 1  # type: ignore[misc]


# What leads to another attempt


def test_a_lost_connection_is_made_again_with_the_same_arguments() -> None:
    client = Client()
    states: list[tuple[object, ...]] = []

    def look() -> None:
        states.append((client.is_connected, client.is_connecting, client.is_reconnecting, client.close_code))

    client.then = {"open": look, "close": look, "again": look}
    with RawServer() as listener:
        client.connect(listener.url + "a?b=c", headers={"X-Thing": "one"}, subprotocols=["p"], reconnect=SOON)
        assert (client.is_connecting, client.is_reconnecting) == (True, False)
        handshakes = []
        for number in range(3):
            peer, handshake = listener.accept_handshake()
            handshakes.append((handshake.target, handshake.headers["x-thing"]))
            assert handshake.headers["sec-websocket-protocol"] == "p"
            accept = accepting(handshake.headers)
            peer.send_bytes(accept)
            client.until("open", number + 1)
            assert (client.is_connected, client.is_reconnecting, client.error) == (True, False, None)
            peer.send_text(f"hello {number}")
            client.until("message", number + 1)
            peer.reset()
            client.until("again", number + 1)
        client.close()
        client.until("close", 4)
    assert handshakes == [("/a?b=c", "one")] * 3
    attempts = [call[1] for call in client.calls if call[0] == "again"]
    assert attempts == [1, 2, 3]  # none of the connections lasted min_uptime
    assert client.kinds == ["open", "message", "close", "again"] * 3 + ["close"]
    assert client.calls[2] == ("close", 1006, True)
    assert client.calls[-1] == ("close", 1006, False)
    assert states == [
        (True, False, False, None),
        (False, True, True, 1006),
        (False, True, True, None),
    ] * 3 + [(False, False, False, 1006)]
    assert_ended(client)


def accepting(asked: dict[str, str]) -> bytes:
    """The answer to a handshake."""
    lines = [
        "HTTP/1.1 101 Switching Protocols",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Accept: {accept_key(asked['sec-websocket-key'])}",
    ]
    return "\r\n".join([*lines, "", ""]).encode()


def test_a_server_that_is_not_there_yet() -> None:
    client = Client()
    with refusing() as bound:
        client.connect(url_to(bound), reconnect=SOON)
        client.until("again", 3)
        refused = ("error", pyhv.ConnectionRefused, True)
        assert client.calls[:4] == [refused, ("again", 1), refused, ("again", 2)]
        assert isinstance(client.error, pyhv.ConnectionRefused)
        assert client.is_connecting
        assert client.is_reconnecting
        bound.listen()
        with RawPeer(bound.accept()[0]) as peer:
            _, headers = peer.read_head_lines()
            peer.send_bytes(accepting(headers))
            client.until("open")
            assert client.error is None
            assert "close" not in client.kinds
            client.close()
            assert peer.answer_close() == 1000
    client.until("close")
    assert client.calls[-1] == ("close", 1000, False)
    assert_ended(client)


@pytest.mark.parametrize("code", [None, 1001, 1002, 1003, 1007, 1009, 1011, 1012, 1013, 1014, 3008, 4000, 4999])
def test_these_close_codes_lead_to_another_attempt(code: int | None) -> None:
    client = Client()
    with RawServer() as listener:
        client.connect(listener.url, reconnect=LATER)
        with listener.accept_websocket() as peer:
            client.until("open")
            peer.send_close(code)
            client.until("again")
        assert client.calls == [("open",), ("close", code or 1005, True), ("again", 1)]


@pytest.mark.parametrize("code", [1000, 1008, 3000, 3003])
def test_these_close_codes_do_not(code: int) -> None:
    client = Client()
    with RawServer() as listener:
        client.connect(listener.url, reconnect=SOON)
        with listener.accept_websocket() as peer:
            client.until("open")
            peer.send_close(code, "enough")
            client.until("close")
        assert client.calls == [("open",), ("close", code, False)]
        assert client.close_reason == "enough"
        assert_ended(client)


def test_a_server_that_does_not_read_is_connected_to_again() -> None:
    client = Client()
    with RawServer(receive_buffer=4096) as listener:
        client.connect(listener.url, reconnect=LATER, max_buffered=100_000, close_timeout=0.1, compression=None)
        with listener.accept_websocket():
            client.until("open")
            tick_until(lambda: not client.send(b"x" * 50_000), client)
            client.until("again")
    assert client.calls == [("open",), ("close", 1008, True), ("again", 1)]


@pytest.mark.parametrize("status", ["408 Timeout", "429 Too Many", "500 Error", "502 Bad Gateway", "503 Busy"])
def test_these_refusals_of_the_handshake_lead_to_another_attempt(status: str) -> None:
    client = Client()
    with RawServer() as listener:
        client.connect(listener.url, reconnect=LATER)
        with listener.accept_handshake()[0] as peer:
            peer.send_bytes(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode())
            client.until("again")
    assert client.calls == [("error", pyhv.HandshakeError, True), ("again", 1)]
    assert str(client.error.status) == status[:3]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "answer",
    [
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 403 Forbidden\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: no\r\n\r\n",
        "220 mail.example.com ESMTP\r\n",
    ],
    ids=lambda answer: answer.split("\r\n")[0],
)
def test_these_answers_do_not(answer: str) -> None:
    client = Client()
    with RawServer() as listener:
        client.connect(listener.url, reconnect=SOON)
        with listener.accept_handshake()[0] as peer:
            peer.send_bytes(answer.encode())
            client.until("close")
        assert client.calls == [("error", pyhv.HandshakeError, False), ("close", 1006, False)]
        assert_ended(client)


@pytest.mark.parametrize("when", ["at once", "after the request", "within the answer"])
def test_a_connection_that_breaks_within_the_handshake_is_tried_again(when: str) -> None:
    client = Client()
    with RawServer() as listener:
        client.connect(listener.url, reconnect=LATER)
        if when == "at once":
            listener.accept().socket.close()
        else:
            peer, _ = listener.accept_handshake()
            if when == "within the answer":
                peer.send_bytes(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: web")
            peer.socket.close()
        client.until("again")
    assert client.calls == [("error", pyhv.HandshakeError, True), ("again", 1)]


def test_an_attempt_that_takes_too_long_is_followed_by_another() -> None:
    client = Client()
    with RawServer() as listener:
        client.connect(listener.url, reconnect=SOON, open_timeout=0.05)
        client.until("again", 3)
    assert client.calls[:2] == [("error", pyhv.ConnectTimeout, True), ("again", 1)]
    client.close()
    client.until("close")


def test_a_name_that_does_not_resolve_is_tried_again() -> None:
    client = Client()
    client.connect("ws://no-such-host.invalid/", reconnect=LATER)
    client.until("again")
    assert client.calls == [("error", pyhv.NameResolutionError, True), ("again", 1)]


def test_a_certificate_that_is_not_trusted_ends_it(tmp_path: Path) -> None:
    made = make_certificates(tmp_path / "tls")
    server = SecureServer()
    server.start(0, tls_port=0, certfile=made.cert, keyfile=made.key)
    client = Client()
    client.connect(secure_url_of(server), reconnect=SOON)
    tick_until(lambda: "close" in client.kinds, client, server)
    assert client.calls == [("error", pyhv.TlsError, False), ("close", 1006, False)]
    assert_ended(client)
    # And with a trusted one it comes back.
    client.calls.clear()
    client.connect(secure_url_of(server), ca_file=made.ca, reconnect=SOON)
    tick_until(lambda: server.channels, client, server)
    server.channels[0].close(1012)
    tick_until(lambda: client.kinds.count("open") == 2, client, server)
    assert client.calls == [("open",), ("close", 1012, True), ("again", 1), ("open",)]
    client.close()
    tick_until(lambda: client.close_code, client, server)
    server.stop(0)


def test_a_server_without_tls_ends_it_and_a_broken_connection_does_not() -> None:
    client = Client()
    with RawServer() as listener:
        url = listener.url.replace("ws:", "wss:")
        client.connect(url, reconnect=LATER)
        listener.accept().socket.close()
        client.until("again")
        assert client.calls == [("error", pyhv.TlsError, True), ("again", 1)]
        client.connect(url, reconnect=LATER)
        with listener.accept() as peer:
            peer.send_bytes(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            client.until("close")
    assert client.calls[2:] == [("error", pyhv.TlsError, False), ("close", 1006, False)]


# Delays and attempts


def test_a_server_that_accepts_and_closes_at_once_is_asked_less_and_less() -> None:
    client = Client()
    with RawServer() as listener:
        client.connect(listener.url, reconnect=Reconnect(first=0.002, max_delay=0.02, jitter=0))
        for number in range(1, 7):
            listener.accept_websocket().reset()
            client.until("again", number)
    assert client.kinds == ["open", "close", "again"] * 6
    assert client.delays == [0.002, 0.004, 0.008, 0.016, 0.02, 0.02]
    assert [call[1] for call in client.calls if call[0] == "again"] == [1, 2, 3, 4, 5, 6]


def test_after_a_connection_that_lasted_delays_begin_anew() -> None:
    client = Client()
    with RawServer() as listener:
        client.connect(listener.url, reconnect=Reconnect(first=0.002, jitter=0, min_uptime=0))
        for number in range(1, 4):
            listener.accept_websocket().reset()
            client.until("again", number)
    assert client.delays == [0.002] * 3
    assert [call[1] for call in client.calls if call[0] == "again"] == [1, 1, 1]


def test_delays_are_random_within_their_bounds() -> None:
    client = Client()
    with refusing() as bound:
        client.connect(url_to(bound), reconnect=Reconnect(first=0.001, max_delay=0.004, jitter=0.5))
        client.until("again", 30)
    bounds = [0.001, 0.002, *[0.004] * 28]
    assert all(most / 2 <= delay <= most for delay, most in zip(client.delays, bounds, strict=False))
    assert len(set(client.delays)) > 20


def test_the_delay_passes_before_the_attempt() -> None:
    client = Client()
    with RawServer() as listener:
        client.connect(listener.url, reconnect=Reconnect(first=0.1, jitter=0))
        peer = listener.accept_websocket()
        client.until("open")
        peer.reset()
        client.until("again")
        begin = time.monotonic()
        client.tick()
        listener.accept().socket.close()
        assert time.monotonic() - begin > 0.08


def test_a_refusal_may_ask_for_a_longer_delay() -> None:
    client = Client()
    with RawServer() as listener:
        for value, least, most in (("7", 7, 7.5), ("Thu, 01 Jan 2099 00:00:00 GMT", 20, 20), ("soon", 0, 0.5)):
            client.connect(listener.url, reconnect=Reconnect(max_delay=20))
            with listener.accept_handshake()[0] as peer:
                head = f"HTTP/1.1 503 Busy\r\nRetry-After: {value}\r\nContent-Length: 0\r\n\r\n"
                peer.send_bytes(head.encode())
                count = client.kinds.count("again")
                client.until("again", count + 1)
            assert least <= client.delays[-1] <= most


def test_the_last_attempt_is_followed_by_on_close() -> None:
    client = Client()
    with refusing() as bound:
        client.connect(url_to(bound), reconnect=Reconnect(first=0.002, max_attempts=2))
        client.until("close")
        assert client.calls == [
            ("error", pyhv.ConnectionRefused, True),
            ("again", 1),
            ("error", pyhv.ConnectionRefused, True),
            ("again", 2),
            ("error", pyhv.ConnectionRefused, False),
            ("close", 1006, False),
        ]
        assert_ended(client)


def test_connections_that_do_not_last_use_attempts_up() -> None:
    client = Client()
    with RawServer() as listener:
        client.connect(listener.url, reconnect=Reconnect(first=0.002, max_attempts=2))
        for _ in range(3):
            listener.accept_websocket().reset()
            client.until("close", client.kinds.count("close") + 1)
        lost = ("close", 1006, True)
        assert client.calls == [
            *(("open",), lost, ("again", 1)),
            *(("open",), lost, ("again", 2)),
            *(("open",), ("close", 1006, False)),
        ]
        assert_ended(client)


def test_a_descriptor_is_enough_to_know_when_to_tick() -> None:
    client = Client()
    ready = select.poll()
    ready.register(client.fileno(), select.POLLIN)

    def tick_when_ready() -> None:
        assert ready.poll(LIMIT * 1000)
        client.tick()
        assert client.fileno() is not None

    with refusing() as bound:
        client.connect(url_to(bound), reconnect=Reconnect(first=0.02, max_delay=0.02))
        while "again" not in client.kinds:
            tick_when_ready()
        bound.listen()
        with RawPeer(bound.accept()[0]) as peer:
            _, headers = peer.read_head_lines()
            peer.send_bytes(accepting(headers))
            while "open" not in client.kinds:
                tick_when_ready()
            peer.reset()
            while client.kinds[-1] != "again":
                tick_when_ready()
    client.close()
    while client.kinds[-1] != "close":
        tick_when_ready()
    assert client.calls[-1] == ("close", 1006, False)


# What ends it


@pytest.mark.parametrize("when", ["open", "close", "again", "main loop", "another thread"])
def test_close_ends_it(when: str) -> None:
    client = Client()
    if when in ("open", "close", "again"):
        client.then[when] = client.close
    with RawServer() as listener:
        client.connect(listener.url, reconnect=LATER)
        peer = listener.accept_websocket()
        client.until("open")
        if when == "open":
            assert peer.answer_close() == 1000
        peer.reset()
        client.until("close")
        if when == "main loop":
            client.close()
            assert not client.is_reconnecting
        if when == "another thread":
            client.until("again")
            closing = Background(client.close)
            while client.is_connecting:
                assert client.tick(LIMIT)
            closing.result()
        lost = ("close", 1006, True)
        expected: dict[str, list[tuple[Any, ...]]] = {
            "open": [("close", 1000, False)],
            "close": [lost],
            "again": [lost, ("again", 1), ("close", 1006, False)],
        }
        tick_until(lambda: not client.is_connecting, client)
        assert client.calls == [("open",), *expected.get(when, expected["again"])]
        assert_ended(client)


@pytest.mark.parametrize("when", ["error", "again", "main loop", "handshake", "too late"])
def test_close_ends_it_before_the_first_connection(when: str) -> None:
    client = Client()
    if when in ("error", "again"):
        client.then[when] = client.close
    with refusing() as bound:
        client.connect(url_to(bound), reconnect=SOON if when in ("handshake", "too late") else LATER)
        client.until("again" if when != "error" else "error")
        if when == "main loop":
            client.close()
        if when in ("handshake", "too late"):
            bound.listen()
            with RawPeer(bound.accept()[0]) as peer:
                _, headers = peer.read_head_lines()
                calls = len(client.calls)
                if when == "handshake":
                    client.close()
                    peer.read_to_end()
                else:
                    # It is connected when it is closed, and no tick knows of it.
                    peer.send_bytes(accepting(headers))
                    wait_until(lambda: client.pending)
                    client.close()
                    client.tick()
                    assert peer.answer_close() == 1000
                client.until("close")
                assert len(client.calls) == calls + 1
        tick_until(lambda: not client.is_connecting, client)
        assert client.kinds.count("close") == 1
        assert client.kinds[-1] == "close"
        assert client.calls[-1][2] is False
        if when == "error":
            # is_reconnecting was True when on_error began.
            assert client.calls == [("error", pyhv.ConnectionRefused, True), ("close", 1006, False)]
        assert_ended(client)


def test_close_after_an_attempt_has_failed_lets_no_error_follow() -> None:
    client = Client()
    with refusing() as bound:
        client.connect(url_to(bound), reconnect=SOON)
        client.until("again")
        wait_until(lambda: client.pending)
        client.close()
        client.until("close")
        assert client.calls[2:] == [("close", 1006, False)]
        assert_ended(client)


def test_leaving_a_with_block_ends_it() -> None:
    with RawServer() as listener, Client() as client:
        in_the_delay(client, listener)
    assert client.calls[-2:] == [("again", 1), ("close", 1006, False)]
    assert_ended(client)


@pytest.mark.parametrize("when", ["close", "again", "error", "main loop"])
def test_connect_takes_the_place_of_the_next_attempt(when: str) -> None:
    client = Client()
    with RawServer() as listener, RawServer() as other, refusing() as bound:

        def replace() -> None:
            client.then.clear()
            client.connect(other.url, reconnect=SOON)
            assert client.is_connecting
            assert not client.is_reconnecting

        if when == "error":
            client.then[when] = replace
            client.connect(url_to(bound), reconnect=LATER)
            client.until("error")
        else:
            if when != "main loop":
                client.then[when] = replace
            client.connect(listener.url, reconnect=Reconnect(first=1000, max_delay=1000, jitter=0, queue_bytes=100))
            peer = listener.accept_websocket()
            client.until("open")
            peer.reset()
            client.until("close")
            if when == "main loop":
                assert client.send("for the server that was lost")
                replace()
        before = len(client.calls)
        peer = other.accept_websocket()
        client.until("open", client.kinds.count("open") + 1)
        assert client.calls[before:] == [("open",)]
        assert client.buffered_amount == 0
        peer.reset()
        client.until("again", client.kinds.count("again") + 1)  # the new one is in force
        with other.accept_websocket():
            client.until("open", client.kinds.count("open") + 1)


def test_connect_raises_before_the_first_attempt_is_over_and_while_connected() -> None:
    client = Client()
    with RawServer() as listener:
        client.connect(listener.url, reconnect=LATER)
        with pytest.raises(RuntimeError, match="connected or connecting"):
            client.connect(listener.url)
        peer = listener.accept_websocket()
        client.until("open")
        with pytest.raises(RuntimeError, match="connected or connecting"):
            client.connect(listener.url)
        peer.reset()
        client.until("again")
        client.close()
        with pytest.raises(RuntimeError, match="after on_close"):
            client.connect(listener.url)


@pytest.mark.parametrize("when", ["delay", "handshake"])
def test_a_client_that_is_forgotten_leaves_nothing(when: str) -> None:
    with RawServer() as listener:
        gc.collect()
        before = sockets_and_wakes()
        client = Client()
        if when == "delay":
            in_the_delay(client, listener)
        else:
            in_the_delay(client, listener, SOON)
            peer = listener.accept_handshake()[0]
        client.fileno()
        gone = weakref.ref(client)
        del client
        gc.collect()
        assert gone() is None
        if when == "handshake":
            peer.read_to_end()
            peer.socket.close()
        wait_until(lambda: sockets_and_wakes() == before)


FORK = """
import os, signal, sys, warnings
from pyhv import Reconnect
from support import RawServer
from test_reconnect import Client, in_the_delay

warnings.simplefilter("ignore", DeprecationWarning)
with RawServer() as listener:
    client = Client()
    in_the_delay(client, listener, Reconnect(first=0.5, jitter=0, queue_bytes=100))
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        for call in (client.tick, client.close, lambda: client.send("x"), lambda: client.connect(listener.url)):
            try:
                call()
                os._exit(1)
            except RuntimeError as error:
                assert "fork" in str(error), error
        del client
        own = Client()
        with RawServer() as other:
            in_the_delay(own, other)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status == 0, status
    listener.accept_websocket()
    client.until("open", 2)
    print("parent fine")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_after_fork() -> None:
    ran = run_python(FORK)
    assert (ran.stdout, ran.returncode) == ("parent fine\n", 0), ran.stderr


# Exceptions


@pytest.mark.parametrize("when", ["close", "error", "again"])
def test_ctrl_c_in_a_callback_does_not_end_it(when: str) -> None:
    client = Client()

    def interrupt() -> None:
        client.then.clear()
        raise KeyboardInterrupt

    client.then[when] = interrupt
    with RawServer() as listener, refusing() as bound:
        if when == "error":
            client.connect(url_to(bound), reconnect=SOON)
        else:
            client.connect(listener.url, reconnect=SOON)
            listener.accept_websocket().reset()
        with pytest.raises(KeyboardInterrupt):
            client.until("never")
        assert client.is_reconnecting
        if when == "error":
            client.until("again")
            assert client.calls[-1] == ("again", 2)
        else:
            with listener.accept_websocket():
                client.until("open", 2)


def test_an_exception_in_a_callback_of_a_connection_ends_this_one_alone(caplog: pytest.LogCaptureFixture) -> None:
    client = Client()
    fail = RuntimeError("as the test wants it")

    def raise_it() -> None:
        client.then.clear()
        raise fail

    client.then["open"] = raise_it
    with RawServer() as listener:
        client.connect(listener.url, reconnect=SOON)
        with listener.accept_websocket() as peer:
            client.until("error")
            assert peer.read_close().close_code == 1011
            peer.send_close(1000)  # an answer: the server did not want to end it
            client.until("again")
        with listener.accept_websocket():
            client.until("open", 2)
        assert client.calls == [
            ("open",),
            ("error", RuntimeError, False),
            ("close", 1000, True),
            ("again", 1),
            ("open",),
        ]
    assert "on_open of Client raised" in caplog.text


def test_an_exception_in_on_reconnecting_is_told_and_it_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    client = Client()

    def raise_it() -> None:
        client.then.clear()
        raise ValueError("as the test wants it")

    client.then["again"] = raise_it
    with RawServer() as listener:
        client.connect(listener.url, reconnect=SOON)
        listener.accept_websocket().reset()
        client.until("again")
        with listener.accept_websocket():
            client.until("open", 2)
    assert client.calls[2:4] == [("again", 1), ("error", ValueError, True)]
    assert "on_reconnecting of Client raised" in caplog.text


# The queue


def test_without_a_queue_nothing_is_kept() -> None:
    client = Client()
    with RawServer() as listener:
        in_the_delay(client, listener)
        assert client.send("x") is False
        assert client.buffered_amount == 0


def test_what_was_sent_meanwhile_comes_first_and_in_order() -> None:
    client = Client()
    results: list[bool] = []
    client.then = {
        "close": lambda: results.append(client.send("in on_close")),
        "again": lambda: results.append(client.send("in on_reconnecting")),
    }
    reconnect = Reconnect(first=0.02, queue_bytes=10_000)
    with RawServer() as listener:
        assert client.send("before connect") is False
        client.connect(listener.url, reconnect=reconnect)
        assert client.send("before on_open")
        assert client.buffered_amount == len("before on_open") + 14
        client.then["open"] = lambda: client.send("in on_open")
        with listener.accept_websocket() as peer:
            client.until("open")
            assert [peer.read_message(), peer.read_message()] == ["before on_open", "in on_open"]
            tick_until(lambda: client.buffered_amount == 0, client)
            peer.reset()
        # Lost, and no tick has told.
        wait_until(lambda: not client.is_connected)
        assert client.send(b"bytes")
        assert client.send(b"text", WsOpcode.TEXT)
        assert client.send("binary", WsOpcode.BINARY)
        assert client.send(bytearray(3000))
        client.until("again")
        assert results == [True, True]
        with listener.accept_websocket() as peer:
            client.until("open", 2)
            read = [peer.read_message() for _ in range(7)]
            assert read == [
                *(b"bytes", "text", b"binary", bytes(3000)),
                *("in on_close", "in on_reconnecting", "in on_open"),
            ]
            tick_until(lambda: client.buffered_amount == 0, client)


def test_a_queue_is_bounded_and_keeps_the_oldest() -> None:
    client = Client()
    with refusing() as bound:
        client.connect(url_to(bound), reconnect=Reconnect(first=0.02, max_delay=0.02, queue_bytes=1000))
        assert client.send(b"x" * 987) is False
        assert client.buffered_amount == 0
        kept = [number for number in range(1000) if client.send(str(number))]
        assert kept == list(range(len(kept)))
        assert 50 < len(kept) < 1000 // 14
        assert client.buffered_amount <= 1000
        client.until("again", 3)  # failed attempts cost nothing of it
        bound.listen()
        with RawPeer(bound.accept()[0]) as peer:
            _, headers = peer.read_head_lines()
            peer.send_bytes(accepting(headers))
            client.until("open")
            assert [peer.read_message() for _ in kept] == [str(number) for number in kept]


def test_a_full_queue_does_not_close_the_next_connection() -> None:
    client = Client()
    size = 1 << 20
    with RawServer(receive_buffer=4096) as listener:
        client.connect(listener.url, max_buffered=size, reconnect=Reconnect(queue_bytes=size), compression=None)
        while client.send(b"x" * 100):
            pass
        with listener.accept_websocket() as peer:
            client.until("open")
            for _ in range(size // 114):
                assert peer.read_message() == b"x" * 100
            client.tick()
            assert client.is_connected


def test_parts_of_messages_and_pings_are_not_kept() -> None:
    client = Client()
    with RawServer() as listener:
        client.connect(listener.url, reconnect=Reconnect(first=0.01, queue_bytes=1000))
        assert client.send("x", fin=False) is False
        assert client.send("x", WsOpcode.CONTINUATION) is False
        assert client.send(b"", WsOpcode.PING) is False
        with pytest.raises(ValueError, match="UTF-8"):
            client.send(b"\xff", WsOpcode.TEXT)
        with pytest.raises(TypeError):
            client.send(3)  # type: ignore[arg-type]
        peer = listener.accept_websocket()
        client.until("open")
        assert client.send("first part", fin=False)
        tick_until(lambda: client.buffered_amount == 0, client)
        peer.reset()
        wait_until(lambda: not client.is_connected)
        assert client.send("last part") is False
        client.until("again")
        assert client.send("whole")
        with listener.accept_websocket() as peer:
            client.until("open", 2)
            assert peer.read_message() == "whole"


@pytest.mark.parametrize("when", ["close", "main loop", "attempts"])
def test_what_has_waited_is_dropped_at_the_end(when: str) -> None:
    client = Client()
    with RawServer() as listener:
        attempts = 1 if when == "attempts" else None
        reconnect = Reconnect(first=0.001, max_attempts=attempts, queue_bytes=1000)
        client.connect(listener.url, reconnect=reconnect)
        peer = listener.accept_websocket()
        client.until("open")

        def send() -> None:
            assert client.send("x") is client.is_reconnecting
            if when == "close":
                client.close()

        client.then["close"] = send
        if when == "attempts":
            listener.listener.close()
        peer.reset()
        client.until("close")
        if when == "main loop":
            client.close()
        tick_until(lambda: not client.is_connecting, client)
        assert client.buffered_amount == 0
        assert client.send("y") is False


def test_a_message_that_a_slow_server_made_drop_is_not_kept() -> None:
    client = Client()
    with RawServer(receive_buffer=4096) as listener:
        reconnect = Reconnect(queue_bytes=100_000)
        client.connect(
            listener.url, reconnect=reconnect, max_buffered=100_000, slow_policy="drop_newest", compression=None
        )
        with listener.accept_websocket():
            client.until("open")
            tick_until(lambda: not client.send(b"x" * 50_000), client)
            assert client.is_connected
            assert client.dropped == 1
            assert client.buffered_amount <= 100_100


# With others


WEBSOCKETS_SERVER = """
import sys
from websockets.sync.server import serve

def echo(connection):
    for message in connection:
        connection.send(message)

with serve(echo, "127.0.0.1", int(sys.argv[1])) as server:
    print(server.socket.getsockname()[1], flush=True)
    server.serve_forever()
"""


@contextmanager
def websockets_server(port: int = 0) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    with python_process(WEBSOCKETS_SERVER, str(port)) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.communicate()
        yield int(line), process


def test_a_websockets_server_that_is_killed_and_started_again() -> None:
    client = Client()
    with websockets_server() as (port, process):
        client.connect(f"ws://{HOST}:{port}/", reconnect=Reconnect(first=0.02, max_delay=0.1, queue_bytes=1000))
        client.then["open"] = lambda: client.send("hello")
        client.until("message")
        process.kill()
        client.until("again")
        process.wait(LIMIT)
    assert client.send("meanwhile")
    client.until("error")
    for number in (1, 2):
        with websockets_server(port) as (_, process):
            client.until("open", number + 1)
            client.until("message", 1 + 2 * number)
            process.terminate()  # without a close frame: the sync server has no handler for it
            client.until("close", number + 1)
        client.send("meanwhile")
    messages = [call[1] for call in client.calls if call[0] == "message"]
    assert messages == ["hello", "meanwhile", "hello", "meanwhile", "hello"]
    client.close()
    tick_until(lambda: not client.is_connecting, client)
    assert_ended(client)


NGINX_CONFIGURATION = """
daemon off;
master_process off;
pid {folder}/pid;
error_log {folder}/error.log info;
events {{ }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://127.0.0.1:{backend};
            proxy_http_version 1.1;
            proxy_set_header Host $http_host;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection upgrade;
        }}
        location /private {{ return 403; }}
    }}
}}
"""


@needs_nginx
def test_nginx_whose_backend_comes_and_goes(tmp_path: Path) -> None:
    assert NGINX is not None
    with refusing() as free, refusing() as backend:
        port, behind = free.getsockname()[1], backend.getsockname()[1]
    configuration = tmp_path / "nginx.conf"
    configuration.write_text(NGINX_CONFIGURATION.format(folder=tmp_path, port=port, backend=behind))
    client = Client()
    client.connect(f"ws://{HOST}:{port}/", reconnect=Reconnect(first=0.02, max_delay=0.1))
    client.until("error")  # not even nginx is there
    with (tmp_path / "output").open("wb") as output:
        nginx = subprocess.Popen(
            [NGINX, "-p", str(tmp_path), "-e", str(tmp_path / "error.log"), "-c", str(configuration)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        client.until("error", 3)
        tick_until(lambda: isinstance(client.error, pyhv.HandshakeError), client)
        assert client.error.status == 502  # type: ignore[union-attr]
        for number in (1, 2):
            server = EchoServer()
            server.start(behind)
            tick_until(lambda: client.is_connected, client, server)
            client.send(f"message {number}")
            tick_until(lambda: client.kinds[-1] == "message", client, server)
            server.stop()
            client.until("close", number)
            assert client.is_reconnecting
            tick_until(lambda: client.error, client)
        client.close()
        tick_until(lambda: not client.is_connecting, client)
        assert_ended(client)
        # What nginx refuses by itself is refused for good.
        client.calls.clear()
        client.connect(f"ws://{HOST}:{port}/private", reconnect=True)
        client.until("close")
        assert client.calls == [("error", pyhv.HandshakeError, False), ("close", 1006, False)]
    finally:
        nginx.terminate()
        nginx.wait(LIMIT)


def test_a_pyhv_server_that_is_stopped_and_started_again() -> None:
    server = EchoServer()
    server.start(0)
    port = port_of(server)
    clients = [Client() for _ in range(20)]
    for client in clients:
        client.connect(url_of(server), reconnect=Reconnect(first=0.01, max_delay=0.05))
    tick_until(lambda: all(client.is_connected for client in clients), server, *clients)
    server.stop()
    tick_until(lambda: all("error" in client.kinds for client in clients), *clients)
    assert all(("close", 1001, True) in client.calls for client in clients)
    server.start(port)
    tick_until(lambda: all(client.is_connected for client in clients), server, *clients)
    for client in clients:
        client.close()
    tick_until(lambda: not any(client.is_connecting or client.is_connected for client in clients), server, *clients)
    server.stop(0)
