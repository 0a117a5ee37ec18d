"""`drain`, how `stop` says farewell, `enable_readyz`, and sockets that others have made."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import httpx
import pytest

import pyhv
from pyhv import HvWebServer, HvWebSocketClient, Reconnect
from support import (
    HOST,
    LIMIT,
    Background,
    RawClient,
    RecordingServer,
    ServerThread,
    connected,
    http,
    port_of,
    tick_until,
    wait_until,
)
from support_tls import make_certificates, tls_port_of

unix = pytest.mark.skipif(os.name != "posix", reason="descriptors of sockets are Unix's")


def ready(server: HvWebServer, client: RawClient | None = None) -> tuple[int, str]:
    """Status and word of /readyz, on a connection that is there already if there is one."""
    if client is None:
        answer = http(port_of(server), "GET", "/readyz")
    else:
        client.request("GET", "/readyz")
        answer = client.read_answer()
    return answer.status, json.loads(answer.body)["status"]


# Readiness


def test_readiness_from_start_to_drain(server: RecordingServer) -> None:
    server.enable_readyz()
    server.enable_healthz()
    assert ready(server) == (503, "starting")
    server.tick()
    assert ready(server) == (200, "ok")
    server.drain()
    assert server.is_draining
    assert ready(server) == (503, "draining")
    answer = http(port_of(server), "GET", "/healthz")
    assert (answer.status, json.loads(answer.body)["status"]) == (200, "draining")
    server.stop()
    server.start(0)
    server.tick()
    assert not server.is_draining
    assert ready(server) == (200, "ok")


def test_a_program_that_stalls_is_not_ready(server: RecordingServer) -> None:
    server.enable_readyz(max_tick_age=0.1)
    server.tick()
    wait_until(lambda: ready(server) == (503, "stalled"))
    ticking = Background(lambda: server.tick(None))
    wait_until(lambda: ready(server) == (200, "ok"))
    RawClient(port_of(server)).socket.close()
    ticking.result()


def test_a_full_server_is_not_ready(server: RecordingServer) -> None:
    server.stop()
    server.enable_readyz(max_load=0.5)
    server.start(0, max_connections=6)
    server.tick()
    with RawClient(port_of(server), upgrade=False) as asks:
        assert ready(server, asks) == (200, "ok")
        first, second = connected(server), connected(server)
        assert ready(server, asks) == (200, "ok")
        third = connected(server)
        assert ready(server, asks) == (503, "full")
        for client in (first, second, third):
            client.close()
        tick_until(lambda: ready(server, asks) == (200, "ok"), server, first, second, third)


@pytest.mark.parametrize("load", [0, -1, 1.1, float("nan")])
def test_misuse_of_readyz_raises(server: RecordingServer, load: float) -> None:
    with pytest.raises(ValueError, match=f"(?i)max_load={load}"):
        server.enable_readyz(max_load=load)


# Draining


def test_a_drain_ends_http_connections_behind_their_next_answer(server: RecordingServer) -> None:
    server.enable_healthz()
    with RawClient(port_of(server), upgrade=False) as client:
        client.request("GET", "/healthz")
        assert "connection" not in client.read_answer().headers
        server.drain()
        # It was idle, and is not closed under a request that may be on its way.
        assert not client.readable(0.05)
        client.request("GET", "/healthz")
        assert client.read_answer().headers["connection"] == "close"
        client.expect_end()


def test_a_drain_leaves_websockets_and_streams_alone(serve: Callable[..., ServerThread]) -> None:
    class Server(RecordingServer):
        def on_init(self) -> None:
            self.sse("/events", lambda req, writer: None)

        def on_ws_message(self, channel: Any, msg: str | bytes) -> None:
            channel.send(msg)

    server = Server()
    port = serve(server).port
    with RawClient(port) as before, httpx.stream("GET", f"http://{HOST}:{port}/events") as response:
        (writer,) = wait_until(lambda: server.streams)
        server.drain()
        before.send_text("one")
        assert before.read_message() == "one"
        # A load balancer may not have noticed yet.
        with RawClient(port) as late:
            late.send_text("two")
            assert late.read_message() == "two"
        assert writer.event("three")
        assert next(response.iter_text()) == "data: three\n\n"


def test_a_drain_that_accepts_no_more(server: RecordingServer) -> None:
    client = connected(server)
    port = port_of(server)
    server.drain(accept=False)

    def refused() -> bool:
        try:
            socket.create_connection((HOST, port)).close()
        except ConnectionRefusedError:
            return True
        return False

    wait_until(refused)
    server.drain()  # it does not open again
    assert refused()
    client.send("still there")
    tick_until(lambda: "still there" in server.record.values("message"), server, client)


def test_http2_gets_goaway_at_once(serve: Callable[..., ServerThread], tmp_path: Any) -> None:
    certificates = make_certificates(tmp_path)
    server = RecordingServer()
    server.enable_healthz()
    serve(server, **certificates.settings)
    context = certificates.context()
    context.set_alpn_protocols(["h2"])
    raw = socket.create_connection((HOST, tls_port_of(server)), LIMIT)
    with context.wrap_socket(raw, server_hostname="localhost") as peer:
        # RFC 9113 sections 3.4 and 4.1: the preface with empty SETTINGS; frames of 9 bytes and what they announce.
        peer.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
        with peer.makefile("rb") as frames:

            def read_frame() -> int:
                head = frames.read(9)
                frames.read(int.from_bytes(head[:3], "big"))
                return int(head[3])

            assert read_frame() == 4  # SETTINGS
            server.drain()
            while read_frame() != 7:  # GOAWAY
                pass


def test_a_drain_wakes_a_tick(server: RecordingServer) -> None:
    waiting = Background(lambda: server.tick(None))
    server.drain()
    waiting.result()
    server.stop()
    server.drain()  # nothing runs: nothing to do
    assert not server.is_draining


# Farewell


def test_stop_says_what_the_program_wants(server: RecordingServer) -> None:
    client = connected(server)
    client.close()
    tick_until(lambda: not server.channels, server, client)
    with RawClient(port_of(server)) as raw:
        tick_until(lambda: server.channels, server)
        answered = Background(raw.read_close)
        server.stop(0.5, code=1012, reason="neue Version")
        frame = answered.result()
        assert (frame.close_code, frame.close_reason) == (1012, "neue Version")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ({"code": 1005}, "1005"),
        ({"code": 5000}, "5000"),
        ({"reason": "x" * 124}, "123"),
        ({"timeout": 1.0, "spread": 2.0}, "spread=2 is more than timeout=1"),
        ({"spread": -1.0}, "spread=-1"),
    ],
)
def test_misuse_of_stop_raises(server: RecordingServer, arguments: dict[str, Any], part: str) -> None:
    with pytest.raises(ValueError, match=part):
        server.stop(**arguments)
    assert server.is_running


def test_closes_are_spread_over_time(server: RecordingServer) -> None:
    """The middle of them by time is at least a quarter of the spread behind the first: all at once it would be at 0."""
    clients = [RawClient(port_of(server)) for _ in range(20)]
    tick_until(lambda: len(server.channels) == 20, server)

    def close(client: RawClient) -> float:
        client.answer_close()
        return time.monotonic()

    closings = [Background(partial(close, client)) for client in clients]
    began = time.monotonic()
    server.stop(20.0, spread=1.0)
    times = sorted(closing.result() - began for closing in closings)
    for client in clients:
        client.socket.close()
    assert times[10] - times[0] > 0.25
    assert server.record.count("close") == 20


def test_streams_end_over_time_too() -> None:
    server = HvWebServer()
    server.sse("/events", lambda req, writer: None)
    server.start(0)
    clients = [RawClient(port_of(server), upgrade=False) for _ in range(4)]
    for client in clients:
        client.request("GET", "/events")
    tick_until(lambda: len(server.streams) == 4, server)
    server.stop(20.0, spread=0.2)
    for client in clients:
        assert client.read_answer().status == 200
        client.socket.close()


def test_a_stop_at_once_ends_what_was_to_take_its_time(server: RecordingServer) -> None:
    """At the deadline what is left is dropped."""
    with RawClient(port_of(server)) as silent:
        tick_until(lambda: server.channels, server)
        server.stop(0.2, spread=0.2)
        assert silent.read_close().close_code == 1001
    assert server.record.count("close") == 1


@pytest.mark.parametrize("code", [1001, 1012])
def test_clients_come_again(server: RecordingServer, code: int) -> None:
    class Client(HvWebSocketClient):
        attempts = 0

        def on_reconnecting(self, attempt: int, delay: float) -> None:
            self.attempts += 1

    client = Client()
    port = port_of(server)
    client.connect(f"ws://{HOST}:{port}/", reconnect=Reconnect(first=0.01))
    tick_until(lambda: server.channels, server, client)
    stopping = Background(lambda: server.stop(code=code))
    tick_until(lambda: not server.is_running, client)
    stopping.result()
    tick_until(lambda: client.attempts, client)
    server.start(port)
    tick_until(lambda: server.channels and client.is_connected, server, client)
    client.close()


# Sockets


@unix
def test_sockets_that_others_have_made(server: RecordingServer) -> None:
    server.stop()
    server.enable_healthz()
    with socket.create_server((HOST, 0)) as one, socket.socket() as two:
        two.bind((HOST, 0))  # it need not listen yet
        server.start(sockets=[one, two.fileno()])
        assert server.port == one.getsockname()[1]
        for each in (one, two):
            assert http(each.getsockname()[1], "GET", "/healthz").status == 200
        server.stop()
        # It is still the caller's, and open: who comes waits for the next to accept.
        with RawClient(one.getsockname()[1], upgrade=False) as client:
            client.request("GET", "/healthz")
            server.start(sockets=[one])
            assert client.read_answer().status == 200


@unix
def test_two_servers_share_a_socket(server: RecordingServer) -> None:
    server.stop()
    other = RecordingServer()
    with socket.create_server((HOST, 0)) as listener:
        for each in (server, other):
            each.enable_healthz()
            each.start(sockets=[listener])
        port = listener.getsockname()[1]
        server.drain(accept=False)
        for _ in range(20):
            assert http(port, "GET", "/healthz").status == 200
        assert server._connections() == 0
        other.stop()


@unix
def test_tls_on_a_socket(serve: Callable[..., ServerThread], tmp_path: Any) -> None:
    certificates = make_certificates(tmp_path)
    server = RecordingServer()
    server.enable_healthz()
    settings = {name: value for name, value in certificates.settings.items() if name != "tls_port"}
    with socket.create_server((HOST, 0)) as listener:
        serve(server, tls_sockets=[listener], **settings)
        port = listener.getsockname()[1]
        assert server.tls_port == port
        assert pyhv.get(f"https://localhost:{port}/healthz", ca_file=str(certificates.ca)).ok


@unix
@pytest.mark.parametrize("reuse", [False, True])
def test_reuse_port(server: RecordingServer, reuse: bool) -> None:
    server.stop()
    server.start(0, reuse_port=reuse)
    other = RecordingServer()
    if reuse:
        other.start(port_of(server), reuse_port=True)
        assert other.port == server.port
        other.stop()
    else:
        with pytest.raises(OSError, match="Address already in use"):
            other.start(port_of(server), reuse_port=True)


@unix
def test_misuse_of_sockets_raises() -> None:
    server = HvWebServer()
    listener, pair = socket.create_server((HOST, 0)), socket.socketpair()
    udp, unbound = socket.socket(type=socket.SOCK_DGRAM), socket.socket()
    connection = socket.create_connection(listener.getsockname())
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({}, TypeError, "needs a port, or sockets="),
        ({"port": 0, "sockets": [listener]}, TypeError, "sockets= stands instead of port=0"),
        ({"sockets": []}, ValueError, "sockets is empty"),
        ({"sockets": listener}, TypeError, "is not a list"),
        ({"sockets": [listener], "reuse_port": True}, ValueError, "whoever binds them decides"),
        ({"sockets": [-1]}, ValueError, "-1 is not a descriptor"),
        ({"sockets": [1 << 40]}, ValueError, "is not a descriptor"),
        ({"sockets": [999]}, OSError, "999 is not an open descriptor"),
        ({"sockets": [udp]}, OSError, "not a TCP socket"),
        ({"sockets": [pair[0]]}, OSError, "not a TCP socket"),
        ({"sockets": [connection]}, OSError, "a connection, not a listening socket"),
        ({"sockets": [unbound]}, OSError, "not bound"),
        ({"port": 0, "tls_sockets": [listener]}, ValueError, "tls_sockets needs certfile="),
    ]
    try:
        for arguments, kind, part in cases:
            with pytest.raises(kind, match=part):
                server.start(**arguments)
            assert not server.is_running
    finally:
        for each in (listener, *pair, udp, unbound, connection):
            each.close()


_LISTEN = """
import os, sys, pyhv
numbers = [int(number) for number in sys.argv[1].split(",")]
for place, number in enumerate(numbers):
    os.dup2(number, 3 + place)
os.environ.update(LISTEN_FDS=str(len(numbers)), LISTEN_FDNAMES="web:https")
os.environ["LISTEN_PID"] = str(os.getpid() + int(sys.argv[2]))
print([[each.getsockname()[1] for each in pyhv.listen_fds(*name)] for name in ([], ["web"], ["https"], ["none"])])
print(os.get_inheritable(3))
"""


@unix
def test_sockets_of_systemd() -> None:
    with socket.create_server((HOST, 0)) as one, socket.create_server((HOST, 0)) as two:
        ports = [one.getsockname()[1], two.getsockname()[1]]

        def run(offset: int) -> str:
            # High numbers, so that they are not in each other's way.
            high = [os.dup2(each.fileno(), number, False) for each, number in ((one, 60), (two, 61))]
            try:
                command = [sys.executable, "-c", _LISTEN, ",".join(map(str, high)), str(offset)]
                for number in high:
                    os.set_inheritable(number, True)
                done = subprocess.run(command, pass_fds=high, capture_output=True, text=True, check=True)
            finally:
                for number in high:
                    os.close(number)
            return done.stdout

        assert run(0) == f"{[ports, ports[:1], ports[1:], []]}\nFalse\n"
        # They are for another process.
        assert run(1).startswith("[[], [], [], []]")
    assert pyhv.listen_fds() == []
