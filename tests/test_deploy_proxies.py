"""Two workers behind nginx and behind HAProxy, with the configurations of docs/deploy but for ports and files."""

from __future__ import annotations

import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.frames import Opcode
from websockets.sync.client import connect

from support import HOST, LIMIT, Background, wait_until
from support_haproxy import haproxy, needs_haproxy
from support_nginx import needs_nginx, nginx
from support_run import PROGRAM, Run, unix
from support_tls import Certificates, make_certificates

pytestmark = [unix, pytest.mark.usefixtures("no_proxy")]

DOCS = Path(__file__).parent.parent / "docs" / "deploy"
NAME = "example.com"
CLIENT = "127.0.0.5"  # not the address of the proxy


def block(kind: str) -> str:
    (found,) = re.findall(
        rf"^```(?:text )?{kind}\n(.*?)^```$", (DOCS / f"{kind}.md").read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    return str(found)


def replace(text: str, *pairs: tuple[str, str]) -> str:
    for old, new in pairs:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


class Behind:
    """A program with two workers behind a proxy."""

    def __init__(self, run: Run, port: int, certificates: Certificates) -> None:
        self.run = run
        self.port = port
        self._certificates = certificates

    def http(self) -> httpx.Client:
        transport = httpx.HTTPTransport(verify=self._certificates.context(), local_address=CLIENT)
        headers = {"Host": NAME, "X-Forwarded-For": "6.6.6.6"}
        return httpx.Client(transport=transport, base_url=f"https://{HOST}:{self.port}", headers=headers, timeout=LIMIT)

    def websocket(self) -> Any:
        raw = socket.create_connection((HOST, self.port), LIMIT, source_address=(CLIENT, 0))
        context = self._certificates.context_without_tickets()
        return connect(
            f"wss://{NAME}/", sock=raw, ssl=context, server_hostname=NAME, ping_interval=None, compression=None
        )


NO_TLS_NAME = {"sni_hostname": NAME}


@pytest.fixture(
    scope="module", params=[pytest.param("nginx", marks=needs_nginx), pytest.param("haproxy", marks=needs_haproxy)]
)
def behind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Behind]:
    folder = tmp_path_factory.mktemp("deploy")
    (folder / "game.py").write_text(PROGRAM, encoding="utf-8")
    certificates = make_certificates(folder, NAME, HOST)
    site = folder / "site.pem"
    site.write_bytes(Path(certificates.cert).read_bytes() + Path(certificates.key).read_bytes())
    with socket.create_server((HOST, 0)) as free:
        port: int = free.getsockname()[1]
    settings = ["--trusted-proxy", HOST, "--set", "ping_interval=0.2", "--drain", "1", "--spread", "0.2"]
    with ExitStack() as stack:
        run = stack.enter_context(Run(folder, "game:Server", "--workers", "2", *settings))
        own = run.port
        run.wait_for_ready(2)

        def answers() -> None:
            socket.create_connection((HOST, port), LIMIT).close()

        # Timeouts become short, so that what is quiet for long need not be waited for.
        if request.param == "nginx":
            configuration = replace(
                block("nginx"),
                ("server 127.0.0.1:9090;", f"server 127.0.0.1:{own};"),
                ("listen 443 ssl;", f"listen {HOST}:{port} ssl;"),
                ("/etc/ssl/example.com/fullchain.pem", str(certificates.cert)),
                ("/etc/ssl/example.com/privkey.pem", str(certificates.key)),
                ("proxy_read_timeout 60s;", "proxy_read_timeout 2s;"),
            )
            stack.enter_context(nginx(folder, configuration, answers))
        else:
            configuration = replace(
                block("haproxy"),
                ("server first 127.0.0.1:9090 ", f"server first 127.0.0.1:{own} "),
                ("bind :443 ", f"bind {HOST}:{port} "),
                ("/etc/ssl/example.com/site.pem", str(site)),
                ("timeout tunnel 60s", "timeout tunnel 2s"),
            )
            stack.enter_context(haproxy(folder, configuration, answers))
        made = Behind(run, port, certificates)
        with made.http() as client:
            # HAProxy may not have asked yet whether the server is ready.
            wait_until(lambda: client.get("/who", extensions=NO_TLS_NAME).status_code == 200)
        yield made


def ask(behind: Behind, path: str) -> httpx.Response:
    with behind.http() as client:
        return client.get(path, extensions=NO_TLS_NAME)


def test_http_of_both_workers(behind: Behind) -> None:
    seen = [ask(behind, "/who").json() for _ in range(40)]
    # nginx keeps connections: which worker answers is not even.
    assert {number for number, _, _ in seen} <= {"1", "2"}
    assert {address for _, _, address in seen} == {CLIENT}


def test_a_websocket(behind: Behind) -> None:
    with behind.websocket() as ws:
        assert int(ws.recv(LIMIT)) in behind.run.pids.values()
        ws.send("hello")
        assert ws.recv(LIMIT) == f"{CLIENT} hello"


def test_a_quiet_websocket_is_kept_by_pings(behind: Behind) -> None:
    with behind.websocket() as ws:
        ws.recv(LIMIT)
        pings: list[object] = []
        received = ws.protocol.recv_frame

        def count(frame: Any) -> None:
            if frame.opcode is Opcode.PING:
                pings.append(frame)
            received(frame)

        ws.protocol.recv_frame = count
        # 0.2 s apart: twice as long as the proxy's timeout.
        wait_until(lambda: len(pings) > 20)
        ws.send("still there")
        assert ws.recv(LIMIT) == f"{CLIENT} still there"


@pytest.mark.parametrize(
    ("page", "timeouts"), [("nginx", ("proxy_read_timeout",)), ("haproxy", ("timeout tunnel", "timeout server"))]
)
def test_timeouts_are_longer_than_the_ping_interval(page: str, timeouts: tuple[str, ...]) -> None:
    for name in timeouts:
        found = re.search(rf"{name} (\d+)s", block(page))
        assert found is not None
        assert int(found[1]) >= 2 * 20


def test_events_come_at_once(behind: Behind) -> None:
    with behind.http() as client, client.stream("GET", "/events", extensions=NO_TLS_NAME) as response:
        assert next(response.iter_text()) == "data: ready\n\n"


def test_a_large_upload(behind: Behind) -> None:
    with behind.http() as client:
        body = b"x" * (8 << 20)
        assert client.post("/length", content=body, extensions=NO_TLS_NAME).text == str(len(body))


def test_health_is_not_for_everybody(behind: Behind) -> None:
    assert ask(behind, "/healthz").status_code == 403


def test_a_rolling_restart_loses_no_request(behind: Behind) -> None:
    run, over = behind.run, threading.Event()
    old = set(run.pids.values())

    def load(call: Callable[[httpx.Client], httpx.Response]) -> int:
        count = 0
        with behind.http() as client:
            while not over.is_set():
                response = call(client)
                assert response.status_code == 200, response.text
                count += 1
        return count

    get = partial(httpx.Client.get, url="/who", extensions=NO_TLS_NAME)
    post = partial(httpx.Client.post, url="/length", content=b"x" * 1000, extensions=NO_TLS_NAME)
    with behind.websocket() as ws:
        ws.recv(LIMIT)
        loads = [Background(partial(load, call)) for call in (get, get, post)]
        try:
            run.process.send_signal(signal.SIGHUP)
            run.wait_for("all workers are new")
        finally:
            over.set()
        assert all(each.result() > 10 for each in loads)
        wait_until(lambda: ws.close_code is not None)
        assert ws.close_code == 1012
    assert not set(run.pids.values()) & old
