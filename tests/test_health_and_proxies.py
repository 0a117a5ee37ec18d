"""`enable_healthz`, and who asks when a reverse proxy stands in between."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest

from pyhv import HttpRequest, HttpResponse, WebSocketChannel, WsUpgrade
from support import (
    HOST,
    Background,
    RawClient,
    RecordingServer,
    ServerThread,
    ask,
    connected,
    http,
    port_of,
    tick_until,
    wait_until,
)
from support_tls import make_certificates, tls_port_of

# healthz


def health(server: RecordingServer, path: str = "/healthz") -> tuple[int, dict[str, Any]]:
    """What it says, without a tick."""
    answer = http(port_of(server), "GET", path)
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    return answer.status, json.loads(answer.body)


def test_it_tells_how_long_ago_the_last_tick_was(server: RecordingServer) -> None:
    server.enable_healthz(max_tick_age=0.2)
    server.tick()
    status, told = health(server)
    assert set(told) == {"status", "tick_age", "connections", "websockets"}
    wait_until(lambda: health(server)[0] == 503)
    status, told = health(server)
    assert (status, told["status"]) == (503, "stalled")
    assert told["tick_age"] > 0.2
    # A tick that finds nothing to do is one.
    older = told["tick_age"]

    def recovered() -> bool:
        server.tick()
        status, told = health(server)
        return status == 200 and told["status"] == "ok" and told["tick_age"] < older

    wait_until(recovered)


def test_without_a_limit_it_is_always_well(server: RecordingServer) -> None:
    server.enable_healthz("/up")
    wait_until(lambda: health(server, "/up")[1]["tick_age"] > 0.1)
    assert health(server, "/up")[0] == 200


def test_a_program_that_waits_in_tick_is_there(server: RecordingServer) -> None:
    server.enable_healthz(max_tick_age=0.05)
    ticking = Background(lambda: server.tick(None))
    wait_until(lambda: health(server)[0] == 200)
    for _ in range(100):
        assert health(server) == (200, {"status": "ok", "tick_age": 0.0, "connections": 1, "websockets": 0})
    client = RawClient(port_of(server))
    ticking.result()
    client.socket.close()


def test_it_counts_connections(server: RecordingServer) -> None:
    server.enable_healthz()
    client = connected(server)
    with RawClient(port_of(server), upgrade=False):
        told = tick_until(lambda: health(server)[1]["connections"] == 3 and health(server)[1], server)
        assert told["websockets"] == 1
    client.close()


def test_curl_and_head(server: RecordingServer) -> None:
    server.enable_healthz()
    url = f"http://{HOST}:{server.port}/healthz"
    asked = subprocess.run(["curl", "-sS", "--fail", "--max-time", "10", url], capture_output=True, check=True)
    assert json.loads(asked.stdout)["status"] == "ok"
    assert http(port_of(server), "HEAD", "/healthz").status == 200
    assert http(port_of(server), "POST", "/healthz", body=b"").status == 405


def test_misuse_of_healthz_raises(server: RecordingServer) -> None:
    server.get("/taken", lambda req, resp: "taken")
    server.enable_healthz()
    for path, age, part in [
        ("/taken", None, "has a handler already"),
        ("/healthz", None, "has a handler already"),
        ("up", None, "begins with '/'"),
        ("/up", 0, "max_tick_age=0"),
        ("/up", -1, "max_tick_age=-1"),
    ]:
        with pytest.raises(ValueError, match=part):
            server.enable_healthz(path, age)
    with pytest.raises(ValueError, match="has a handler already"):
        server.get("/healthz", lambda req, resp: "mine")


# Proxies


class Who(RecordingServer):
    def on_init(self) -> None:
        self.upgrades: list[tuple[str, str, str]] = []
        self.get("/who", self.get_who)

    def get_who(self, req: HttpRequest, resp: HttpResponse) -> Any:
        return resp.json([req.client_address, req.scheme, req.http_version, req.remote_address[0]])

    def on_ws_upgrade(self, request: WsUpgrade) -> bool:
        self.upgrades.append((request.client_address, request.scheme, request.http_version))
        return True

    def on_ws_message(self, channel: WebSocketChannel, msg: str | bytes) -> None:
        channel.send(f"{channel.client_address} {channel.scheme}")


PROXIES = ["127.0.0.1", "10.0.0.0/8", "::1"]


@pytest.mark.parametrize(
    ("trusted", "headers", "expected"),
    [
        ([], {"X-Forwarded-For": "192.0.2.1", "X-Forwarded-Proto": "https"}, (HOST, "http")),
        (["192.0.2.0/24"], {"X-Forwarded-For": "192.0.2.1"}, (HOST, "http")),
        (PROXIES, {}, (HOST, "http")),
        (PROXIES, {"X-Forwarded-For": "192.0.2.1", "X-Forwarded-Proto": "https"}, ("192.0.2.1", "https")),
        (PROXIES, {"X-Forwarded-For": "6.6.6.6, 2001:db8::1, 10.9.9.9"}, ("2001:db8::1", "http")),
        (PROXIES, {"X-Forwarded-For": "6.6.6.6, nonsense, 10.9.9.9"}, ("10.9.9.9", "http")),
        (PROXIES, {"X-Forwarded-For": "10.1.1.1"}, ("10.1.1.1", "http")),
        (PROXIES, {"Forwarded": 'for="[2001:db8::2]:80";proto=https'}, ("2001:db8::2", "https")),
        (PROXIES, {"Forwarded": "for=6.6.6.6", "X-Forwarded-For": "192.0.2.1"}, ("192.0.2.1", "http")),
        (["::ffff:127.0.0.0/104"], {"X-Forwarded-For": "::ffff:192.0.2.1"}, ("192.0.2.1", "http")),
        (["0.0.0.0/0"], {"X-Forwarded-For": "192.0.2.1"}, ("192.0.2.1", "http")),
    ],
)
def test_who_asks(
    serve: Callable[..., ServerThread], trusted: list[str], headers: dict[str, str], expected: tuple[str, str]
) -> None:
    who = Who()
    port = serve(who, trusted_proxies=trusted).port
    answer = httpx.get(f"http://{HOST}:{port}/who", headers=headers)
    assert answer.json() == [*expected, "1.1", HOST]


def test_the_connections_own_scheme_and_version(serve: Callable[..., ServerThread], tmp_path: Path) -> None:
    who = Who()
    certificates = make_certificates(tmp_path)
    port = serve(who, trusted_proxies=[HOST, "::1"], **certificates.settings).port
    with httpx.Client(http2=True, verify=certificates.context()) as client:
        url = f"https://localhost:{tls_port_of(who)}/who"
        assert client.get(url).json() == [HOST, "https", "2", HOST]
        assert client.get(url, headers={"X-Forwarded-Proto": "http"}).json() == [HOST, "http", "2", HOST]
    asked = subprocess.run(
        ["curl", "-sS", "--http1.0", "--max-time", "10", f"http://{HOST}:{port}/who"], capture_output=True, check=True
    )
    assert json.loads(asked.stdout) == [HOST, "http", "1.0", HOST]


def test_websockets_by_aiohttp(serve: Callable[..., ServerThread]) -> None:
    who = Who()
    port = serve(who, trusted_proxies=PROXIES).port

    async def talk() -> str:
        headers = {"X-Forwarded-For": "192.0.2.9", "X-Forwarded-Proto": "wss"}
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"ws://{HOST}:{port}/", headers=headers) as socket,
        ):
            await socket.send_str("who")
            return (await socket.receive(20)).data  # type: ignore[no-any-return]

    assert asyncio.run(talk()) == "192.0.2.9 https"
    assert who.upgrades == [("192.0.2.9", "https", "1.1")]


def test_a_proxy_is_one_peer_of_the_limits(server: RecordingServer) -> None:
    server.stop()
    server.start(0, trusted_proxies=[HOST], max_connections_per_address=1)
    with RawClient(port_of(server), upgrade=False) as raw:
        raw.request("GET", "/nope", [("X-Forwarded-For", "192.0.2.1")])
        raw.read_answer()
        with RawClient(port_of(server), upgrade=False) as second:
            assert second.read_to_end() == b""


@pytest.mark.parametrize(
    ("value", "part"),
    [
        (["10.0.0.0/33"], 'trusted_proxies: "10.0.0.0/33"'),
        (["::1", "localhost"], 'trusted_proxies: "localhost"'),
        (["*"], 'trusted_proxies: "\\*"'),
        ("127.0.0.1", "trusted_proxies=127.0.0.1 is not a list"),
        ([7], "trusted_proxies="),
    ],
)
def test_misuse_of_proxies_raises(value: Any, part: str) -> None:
    server = RecordingServer()
    with pytest.raises(ValueError, match=part):
        server.start(0, trusted_proxies=value)
    assert not server.is_running


def test_a_request_by_hand(server: RecordingServer) -> None:
    seen: list[Any] = []
    server.get("/", lambda req, resp: seen.append((req.client_address, req.scheme, req.http_version)))
    ask(server, "GET", "/", [("X-Forwarded-For", "192.0.2.1"), ("Forwarded", "for=192.0.2.1")])
    assert seen == [(HOST, "http", "1.1")]
