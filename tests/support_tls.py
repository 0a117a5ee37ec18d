"""What the tests of TLS share: certificates, and a WebSocket by hand over TLS."""

from __future__ import annotations

import hashlib
import os
import select
import socket
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyhv import HttpRequest, HttpResponse, HvWebServer, _native
from support import HOST, LIMIT, EchoServer, RawClient, RawPeer, RawServer, RecordingClient, Ticker, tick_until

NAMES = ("localhost", HOST, "::1")


@dataclass(frozen=True)
class Certificates:
    """A local authority, a certificate that it signed, and the certificate's key."""

    ca: Path
    cert: Path
    key: Path

    @property
    def settings(self) -> dict[str, Any]:
        """For `start`."""
        return {"tls_port": 0, "certfile": self.cert, "keyfile": self.key}

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the certificate as `openssl x509 -fingerprint -sha256` prints it."""
        return fingerprint_of(ssl.PEM_cert_to_DER_cert(first_certificate(self.cert.read_text())))

    def context(self) -> ssl.SSLContext:
        """A client's context that trusts the authority."""
        return ssl.create_default_context(cafile=str(self.ca))

    def context_without_tickets(self) -> ssl.SSLContext:
        """The same for `websockets`' threading client, of a server that sends tickets of TLS 1.3.

        It reads and writes in two threads. Where a ticket comes in between, OpenSSL may let the writer wait for ever.
        """
        context = self.context()
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        return context

    def replace(self, other: Certificates) -> None:
        """Overwrites certificate and key, each at once, as a renewal does."""
        for mine, theirs in ((self.cert, other.cert), (self.key, other.key)):
            replace_file(mine, theirs.read_text())


def make_certificates(folder: Path, *names: str) -> Certificates:
    """Writes certificates for `names`, by default those of this machine, to a folder that is made."""
    folder.mkdir(parents=True, exist_ok=True)
    made = Certificates(folder / "ca.pem", folder / "cert.pem", folder / "key.pem")
    texts = _native.make_dev_certificates(list(names or NAMES))
    for file, text in zip((made.ca, made.cert, made.key), texts, strict=True):
        file.write_text(text)
    return made


def replace_file(file: Path, text: str) -> None:
    """Nobody sees it half written."""
    new = file.with_suffix(".new")
    new.write_text(text)
    new.replace(file)


def first_certificate(pem: str) -> str:
    end = "-----END CERTIFICATE-----"
    return pem.split(end)[0] + end + "\n"


def fingerprint_of(der: bytes) -> str:
    return ":".join(f"{byte:02X}" for byte in hashlib.sha256(der).digest())


def tls_port_of(server: HvWebServer) -> int:
    port = server.tls_port
    assert port is not None, "the server does not serve TLS"
    return port


def secure_url_of(server: HvWebServer, path: str = "/", host: str = HOST) -> str:
    return f"wss://{host}:{tls_port_of(server)}{path}"


class SecureServer(EchoServer):
    """Echoes, and has routes; remembers where HTTP requests came from."""

    def on_init(self) -> None:
        self.remotes: set[tuple[str, int]] = set()
        self.get("/ping", lambda req, resp: resp.text("pong"))
        self.get("/host", self.get_host)
        self.get("/number/:n", lambda req, resp: req.params["n"])
        self.post("/echo", lambda req, resp: resp.data(req.body))

    def get_host(self, req: HttpRequest, resp: HttpResponse) -> None:
        self.remotes.add(req.remote_address)
        resp.text(req.headers["Host"])


class SecureRawClient(RawClient):
    """A RawClient over TLS. An end without close_notify is an error."""

    def __init__(
        self,
        port: int,
        context: ssl.SSLContext,
        path: str = "/",
        headers: Iterable[tuple[str, str]] = (),
        *,
        upgrade: bool = True,
        timeout: float = LIMIT,
        receive_buffer: int | None = None,
    ) -> None:
        super().__init__(port, upgrade=False, timeout=timeout, receive_buffer=receive_buffer)
        try:
            self.secure = context.wrap_socket(self.socket, server_hostname=HOST, suppress_ragged_eofs=False)
        except BaseException:
            self.socket.close()
            raise
        self.socket = self.secure
        try:
            if upgrade:
                self.upgrade(path, headers)
        except BaseException:
            self.socket.close()
            raise

    def readable(self, timeout: float = 0.0) -> bool:
        if self.buffer or self.secure.pending():
            return True
        return bool(select.select([self.socket], [], [], timeout)[0])

    @property
    def fingerprint(self) -> str:
        """Of the certificate that the server showed."""
        der = self.secure.getpeercert(binary_form=True)
        assert der is not None
        return fingerprint_of(der)


class SecureRawServer(RawServer):
    """A RawServer over TLS."""

    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__()
        self.context = context

    @property
    def url(self) -> str:
        return f"wss://{HOST}:{self.port}/"

    def accept(self) -> RawPeer:
        plain = self.listener.accept()[0]
        plain.settimeout(LIMIT)
        return RawPeer(self.context.wrap_socket(plain, server_side=True))


def attempt(url: str, *tickers: Ticker, **options: Any) -> RecordingClient:
    """A client that has connected, or failed and told so; `tickers` are ticked meanwhile."""
    client = RecordingClient()
    client.connect(url, **options)
    what = f"{url} opens or fails"
    tick_until(lambda: client.is_connected or client.record.count("close"), client, *tickers, what=what)
    return client


def end(client: RecordingClient, *tickers: Ticker) -> None:
    """Closes a connected client, with the closing handshake."""
    client.close()
    tick_until(lambda: client.record.count("close"), client, *tickers, what="the client is closed")
    assert client.close_code == 1000


def fingerprint_at(port: int) -> str:
    """Of the certificate that a new connection to a port is shown."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with (
        socket.create_connection((HOST, port), LIMIT) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secure,
    ):
        der = secure.getpeercert(binary_form=True)
    assert der is not None
    return fingerprint_of(der)


def environment_without_openssl_config() -> dict[str, str]:
    """For openssl: a system's configuration may forbid old protocols before they are tried."""
    return {**os.environ, "OPENSSL_CONF": "/dev/null"}
