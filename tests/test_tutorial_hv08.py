"""The dasHV tutorial HV-08, "HTTPS / WSS", row by row with pyHV's words."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import pyhv
from pyhv import EventSource, HttpClient, HttpRequest, HvWebServer, HvWebSocketClient, StreamWriter, WebSocketChannel
from pyhv.__main__ import main
from support import ServerThread, tick_until
from support_tls import Certificates, make_certificates

pytestmark = pytest.mark.usefixtures("no_proxy")


class SecureServer(HvWebServer):
    """The tutorial's server."""

    def on_init(self) -> None:
        self.get("/secure", lambda req, resp: resp.text("secure hello over TLS"))
        self.get("/api/info", lambda req, resp: resp.json({"scheme": req.scheme, "http": req.http_version}))
        self.sse("/events", self.get_events)

    def get_events(self, req: HttpRequest, writer: StreamWriter) -> None:
        writer.event("an event over TLS")

    def on_ws_message(self, channel: WebSocketChannel, msg: str | bytes) -> None:
        channel.send(f"echo: {msg!s}")


class Client(HvWebSocketClient):
    def __init__(self) -> None:
        self.received: list[str | bytes] = []

    def on_open(self) -> None:
        self.send("hello")

    def on_message(self, msg: str | bytes) -> None:
        self.received.append(msg)
        self.close()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Of the command that the tutorial begins with."""
    folder = tmp_path_factory.mktemp("hv08")
    assert main(["dev-cert", "localhost", "127.0.0.1", "--dir", str(folder)]) == 0
    ca, cert, key = (folder / f"pyhv-dev-{name}.pem" for name in ("ca", "cert", "key"))
    return Certificates(ca, cert, key)


@pytest.fixture
def server(serve: Callable[..., ServerThread], certificates: Certificates) -> HvWebServer:
    return serve(SecureServer(), **certificates.settings).server


@pytest.fixture
def https(server: HvWebServer) -> str:
    return f"https://localhost:{server.tls_port}"


# 1 and 2: requests


def test_an_https_get(https: str, certificates: Certificates) -> None:
    answer = pyhv.get(f"{https}/secure", ca_file=certificates.ca)
    assert (answer.status, answer.text()) == (200, "secure hello over TLS")


@pytest.mark.parametrize(("http2", "version"), [(True, "2"), (False, "1.1")])
def test_json_over_https(https: str, certificates: Certificates, http2: bool, version: str) -> None:
    answer = pyhv.get(f"{https}/api/info", ca_file=certificates.ca, http2=http2)
    assert answer.json() == {"scheme": "https", "http": version.removeprefix("HTTP/")}
    assert answer.http_version == version


def test_the_plain_port_has_the_same_routes(server: HvWebServer) -> None:
    assert server.port != server.tls_port
    assert pyhv.get(f"http://localhost:{server.port}/api/info").json() == {"scheme": "http", "http": "1.1"}


# The certificate


def test_files_that_will_not_do_raise_at_start(certificates: Certificates, tmp_path: Path) -> None:
    others = make_certificates(tmp_path / "others")
    server = SecureServer()
    for settings, error, why in (
        ({"tls_port": 0}, ValueError, "needs certfile="),
        ({"certfile": certificates.cert}, ValueError, "need tls_port="),
        ({"tls_port": 0, "certfile": tmp_path / "none.pem", "keyfile": certificates.key}, OSError, "none.pem"),
        ({"tls_port": 0, "certfile": certificates.cert, "keyfile": certificates.ca}, ValueError, "ca.pem"),
        ({"tls_port": 0, "certfile": certificates.cert, "keyfile": others.key}, ValueError, "key"),
    ):
        with pytest.raises(error, match=why):
            server.start(0, **settings)
        assert not server.is_running


def test_certificate_and_key_are_not_written_over(
    certificates: Certificates, capsys: pytest.CaptureFixture[str]
) -> None:
    before = certificates.key.read_bytes()
    assert main(["dev-cert", "--dir", str(certificates.key.parent)]) == 1
    assert "--force" in capsys.readouterr().err
    assert certificates.key.read_bytes() == before
    assert certificates.key.stat().st_mode & 0o077 == 0


# Trust


def test_whom_nobody_has_signed(https: str) -> None:
    with pytest.raises(pyhv.TlsError, match="localhost"):
        pyhv.get(f"{https}/secure")


def test_a_name_that_the_certificate_does_not_have(serve: Callable[..., ServerThread], tmp_path: Path) -> None:
    named = make_certificates(tmp_path, "device.example")
    server = serve(SecureServer(), **named.settings).server
    with pytest.raises(pyhv.TlsError, match="name"):
        pyhv.get(f"https://localhost:{server.tls_port}/secure", ca_file=named.ca)
    assert pyhv.get(f"https://localhost:{server.tls_port}/secure", fingerprint=named.fingerprint).ok


def test_the_fingerprint_of_one_certificate(https: str, certificates: Certificates) -> None:
    assert pyhv.get(f"{https}/secure", fingerprint=certificates.fingerprint).ok
    with pytest.raises(pyhv.TlsError):
        pyhv.get(f"{https}/secure", fingerprint="00" * 32)
    with pytest.raises(ValueError, match="exclude one another"):
        pyhv.get(f"{https}/secure", fingerprint="00" * 32, ca_file=certificates.ca)
    assert pyhv.get(f"{https}/secure", dangerous_accept_any_certificate=True).ok


# wss, and everything else that connects


def test_a_websocket_over_tls(server: HvWebServer, certificates: Certificates) -> None:
    client = Client()
    client.connect(f"wss://localhost:{server.tls_port}/", ca_file=certificates.ca)
    tick_until(lambda: client.close_code, client)
    assert (client.received, client.close_code) == (["echo: hello"], 1000)


def test_a_websocket_to_somebody_who_is_not_trusted(server: HvWebServer) -> None:
    client = Client()
    client.connect(f"wss://localhost:{server.tls_port}/")
    tick_until(lambda: client.close_code, client)
    assert isinstance(client.error, pyhv.TlsError)
    assert client.received == []


def test_http_client_and_event_source(https: str, certificates: Certificates) -> None:
    with HttpClient(ca_file=certificates.ca) as client:
        call = client.get(f"{https}/secure")
        tick_until(lambda: call.is_done, client)
        assert call.response is not None
        assert call.response.text() == "secure hello over TLS"
    with EventSource(f"{https}/events", ca_file=certificates.ca) as source:
        events: list[str] = []
        source.on_message = lambda event: events.append(event.data)  # type: ignore[method-assign]
        tick_until(lambda: events, source)
    assert events == ["an event over TLS"]


# Sending everybody to https


def test_a_plain_port_that_redirects(
    serve: Callable[..., ServerThread], https: str, certificates: Certificates
) -> None:
    plain = HvWebServer()
    for path in ("/", "/*path"):
        plain.any(path, lambda req, resp: resp.redirect(f"{https}{req.url}", 308))
    port = serve(plain).port
    for target in ("/", "/secure?a=b%20c", "/%2e%2e/x"):
        answer = pyhv.post(f"http://localhost:{port}{target}", data="x", redirects=False)
        assert answer.status == 308
        assert answer.headers["Location"].startswith(https + "/")
    with HttpClient(ca_file=certificates.ca) as client:
        call = client.get(f"http://localhost:{port}/secure")
        tick_until(lambda: call.is_done, client)
        assert call.response is not None, call.error
        assert (call.response.url, call.response.status) == (f"{https}/secure", 200)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_trusts_the_authority(https: str, certificates: Certificates) -> None:
    command = ["curl", "--silent", "--show-error", "--noproxy", "*", "--cacert", str(certificates.ca)]
    done = subprocess.run([*command, f"{https}/secure"], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "secure hello over TLS"
