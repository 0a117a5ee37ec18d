"""The page "Behind nginx": its configuration and its program, as they stand there but for ports and files."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Origin

import pyhv
from pyhv import HvWebServer
from support import HOST, LIMIT, serving, wait_until
from support_nginx import needs_nginx, nginx
from support_tls import Certificates, make_certificates

pytestmark = [needs_nginx, pytest.mark.usefixtures("no_proxy")]

GUIDE = (Path(__file__).parent.parent / "docs/deploy/nginx.md").read_text(encoding="utf-8")
NAME = "example.com"
CLIENT = "127.0.0.5"  # not the address of the proxy


def block(kind: str) -> str:
    (found,) = re.findall(rf"^```{kind}\n(.*?)^```$", GUIDE, re.DOTALL | re.MULTILINE)
    return str(found)


def replace(text: str, *pairs: tuple[str, str]) -> str:
    for old, new in pairs:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


class Behind:
    """The guide's application behind nginx."""

    def __init__(self, server: HvWebServer, port: int, certificates: Certificates) -> None:
        self.server = server
        self.port = port
        self.certificates = certificates

    def http(self) -> httpx.Client:
        transport = httpx.HTTPTransport(verify=self.certificates.context(), local_address=CLIENT)
        headers = {"Host": NAME, "X-Forwarded-For": "6.6.6.6"}
        return httpx.Client(transport=transport, base_url=f"https://{HOST}:{self.port}", headers=headers, timeout=LIMIT)

    def websocket(self, origin: str) -> Any:
        raw = socket.create_connection((HOST, self.port), LIMIT, source_address=(CLIENT, 0))
        context = self.certificates.context_without_tickets()
        return connect(f"wss://{NAME}/", sock=raw, ssl=context, server_hostname=NAME, origin=Origin(origin))


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Behind]:
    folder = tmp_path_factory.mktemp("guide")
    certificates = make_certificates(folder, NAME, HOST)
    program = block("python compiled")
    settings = re.search(r"\.run\(9090, (trusted_proxies=.*)\)$", program, re.MULTILINE)
    assert settings is not None
    names: dict[str, Any] = {"__name__": "guide"}
    exec(compile(program, "nginx.md", "exec"), names)
    server = names["Application"]()
    with socket.create_server((HOST, 0)) as free:
        port: int = free.getsockname()[1]
    with serving(server, max_buffered=8 << 20, **eval(f"dict({settings[1]})")) as thread:
        http = replace(
            block("nginx"),
            ("server 127.0.0.1:9090;", f"server 127.0.0.1:{thread.port};"),
            ("listen 443 ssl;", f"listen {HOST}:{port} ssl;"),
            ("/etc/ssl/example.com/fullchain.pem", str(certificates.cert)),
            ("/etc/ssl/example.com/privkey.pem", str(certificates.key)),
        )
        with nginx(folder, http, lambda: socket.create_connection((HOST, port), LIMIT).close()):
            yield Behind(server, port, certificates)


def test_who_asks(behind: Behind) -> None:
    with behind.http() as client:
        assert client.get("/who", extensions={"sni_hostname": NAME}).json() == [CLIENT, "https"]


def test_a_websocket_of_the_same_site(behind: Behind) -> None:
    with behind.websocket(f"https://{NAME}") as ws:
        assert ws.recv(LIMIT) == f"{CLIENT} https"


def test_a_page_of_another_site_is_refused(behind: Behind) -> None:
    with pytest.raises(InvalidStatus, match="403"):
        behind.websocket("https://evil.example")


@pytest.mark.parametrize("path", ["/events", "/picture"])
def test_events_come_at_once(behind: Behind, path: str) -> None:
    with behind.http() as client, client.stream("GET", path, extensions={"sni_hostname": NAME}) as response:
        # The stream stays open: what nginx keeps would never come.
        assert next(response.iter_text()) == "data: ready\n\n"


@pytest.mark.parametrize("path", ["/events", "/picture"])
def test_a_client_that_does_not_read_is_noticed(behind: Behind, path: str) -> None:
    """Or nginx takes up to 1 GB for it."""
    before = set(behind.server.streams)
    with behind.http() as client, client.stream("GET", path, extensions={"sni_hostname": NAME}):
        (writer,) = wait_until(lambda: set(behind.server.streams) - before)
        # Until nginx takes no more, or has taken more than sockets hold.
        event = f"data: {'x' * 100_000}\n\n"
        for _ in range(640):
            writer.write(event)
            end = time.monotonic() + 1
            while writer.buffered_amount > 0 and time.monotonic() < end:
                time.sleep(0.001)
            if writer.buffered_amount > 0:
                break
        while writer.buffered_amount > 0 and writer.write(event):
            pass
        assert not writer.is_connected


def test_health_is_not_for_everybody(behind: Behind) -> None:
    with behind.http() as client:
        assert client.get("/healthz", extensions={"sni_hostname": NAME}).status_code == 403


def test_connections_are_kept(behind: Behind) -> None:
    with behind.http() as client:
        client.get("/who", extensions={"sni_hostname": NAME}).raise_for_status()
    # nginx's, and the one that asks.
    assert pyhv.get(f"http://{HOST}:{behind.server.port}/healthz").json()["connections"] >= 2
