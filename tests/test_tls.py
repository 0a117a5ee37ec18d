"""https and wss beside http and ws: whom the client trusts, what the server shows, and what goes wrong.

Certificates are made for each test module; nothing leaves the machine.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import re
import select
import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest
from websockets.sync.client import connect as websockets_connect

from pyhv import HandshakeError, HvWebSocketClient, TlsError, WsOpcode
from support import (
    HOST,
    LIMIT,
    Background,
    RawClient,
    RecordingServer,
    ServerThread,
    connected,
    http,
    only_channel,
    port_of,
    tick_until,
    wait_until,
)
from support_tls import (
    Certificates,
    SecureRawClient,
    SecureRawServer,
    SecureServer,
    attempt,
    end,
    environment_without_openssl_config,
    fingerprint_at,
    make_certificates,
    replace_file,
    secure_url_of,
    tls_port_of,
)

MIB = 1 << 20

openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="the openssl program is not installed")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Of an authority that nobody trusts."""
    return make_certificates(tmp_path_factory.mktemp("others"))


@pytest.fixture
def secure(certificates: Certificates) -> Iterator[SecureServer]:
    """Serves http, ws, https and wss; the test ticks it."""
    running = SecureServer()
    running.start(0, **certificates.settings)
    try:
        yield running
    finally:
        running.stop(0)


# Both ports at once


def test_both_ports_have_the_same_handlers(secure: SecureServer, certificates: Certificates) -> None:
    assert secure.port != secure.tls_port
    plain = connected(secure, path="/plain")
    client = attempt(secure_url_of(secure, "/secure"), secure, ca_file=certificates.ca)
    assert client.error is None
    for who, text in ((plain, "over ws"), (client, "over wss")):
        assert who.send(text)
        tick_until(lambda who=who: who.received, who, secure)  # type: ignore[misc]
        assert who.received == [text]
    secure.broadcast("to both")
    tick_until(lambda: len(plain.received) == 2 and len(client.received) == 2, plain, client, secure)
    assert secure.record.values("open") == ["/plain", "/secure"]
    assert sorted(str(m) for m in secure.record.values("message")) == ["over ws", "over wss"]
    end(plain, secure)
    end(client, secure)
    tick_until(lambda: secure.record.count("close") == 2, secure)
    assert secure.record.values("close") == [1000, 1000]


def test_http_on_both_ports(serve: Callable[..., ServerThread], certificates: Certificates) -> None:
    server = SecureServer()
    thread = serve(server, **certificates.settings)
    assert http(thread.port, "GET", "/ping").body == b"pong"
    with SecureRawClient(tls_port_of(server), certificates.context(), upgrade=False) as raw:
        raw.request("GET", "/ping", [("Connection", "close")])
        answer = raw.read_answer()
        assert (answer.status, answer.body) == (200, b"pong")
        raw.expect_end()


def test_tls_port_is_none_without_tls_and_after_stop(certificates: Certificates) -> None:
    with RecordingServer() as server:
        server.start(0)
        assert server.tls_port is None
        server.stop()
        server.start(0, **certificates.settings)
        assert isinstance(server.tls_port, int)
        assert server.tls_port > 0
        server.stop()
        assert server.tls_port is None


def test_the_remote_address_and_channel_of_a_secure_client(secure: SecureServer, certificates: Certificates) -> None:
    with SecureRawClient(tls_port_of(secure), certificates.context(), "/a?b=c") as raw:
        channel = only_channel(secure)
        assert channel.remote_address == raw.address
        assert channel.url == "/a?b=c"


def test_one_file_may_hold_certificate_and_key(certificates: Certificates, tmp_path: Path) -> None:
    both = tmp_path / "both.pem"
    both.write_text(certificates.key.read_text() + certificates.cert.read_text())
    with SecureServer() as server:
        server.start(0, tls_port=0, certfile=str(both))
        client = attempt(secure_url_of(server), server, ca_file=str(certificates.ca))
        assert client.error is None
        end(client, server)


# Whom the client trusts


def test_ca_file_by_address_and_by_name(secure: SecureServer, certificates: Certificates) -> None:
    for host in (HOST, "localhost"):
        client = attempt(secure_url_of(secure, host=host), secure, ca_file=certificates.ca)
        assert client.error is None
        end(client, secure)


@pytest.mark.parametrize("shape", ["colons", "without colons", "lower case"])
def test_fingerprint(secure: SecureServer, certificates: Certificates, shape: str) -> None:
    text = certificates.fingerprint
    text = {"colons": text, "without colons": text.replace(":", ""), "lower case": text.lower()}[shape]
    client = attempt(secure_url_of(secure), secure, fingerprint=text)
    assert client.error is None
    end(client, secure)


def test_a_wrong_fingerprint_is_a_tls_error_naming_the_right_one(
    secure: SecureServer, certificates: Certificates, others: Certificates
) -> None:
    client = attempt(secure_url_of(secure), secure, fingerprint=others.fingerprint)
    assert isinstance(client.error, TlsError)
    assert certificates.fingerprint in str(client.error)
    # A copy from the message is what the argument takes.
    again = attempt(secure_url_of(secure), secure, fingerprint=certificates.fingerprint)
    assert again.error is None
    end(again, secure)


def test_a_fingerprint_trusts_no_authority(secure: SecureServer, certificates: Certificates, tmp_path: Path) -> None:
    """The authority's own fingerprint is not that of the certificate shown."""
    authority = Certificates(certificates.ca, certificates.ca, certificates.key).fingerprint
    assert authority != certificates.fingerprint
    client = attempt(secure_url_of(secure), secure, fingerprint=authority)
    assert isinstance(client.error, TlsError)


def test_dangerous_accept_any_certificate(secure: SecureServer) -> None:
    client = attempt(secure_url_of(secure), secure, dangerous_accept_any_certificate=True)
    assert client.error is None
    assert client.send("hello")
    tick_until(lambda: client.received, client, secure)
    assert client.received == ["hello"]
    end(client, secure)


@pytest.mark.parametrize("trust", ["system", "another authority", "dangerous is False"])
def test_an_untrusted_certificate_is_a_tls_error_and_then_a_close(
    secure: SecureServer, others: Certificates, trust: str
) -> None:
    ways: dict[str, dict[str, Any]] = {
        "system": {},
        "another authority": {"ca_file": others.ca},
        "dangerous is False": {"dangerous_accept_any_certificate": False},
    }
    options = ways[trust]
    url = secure_url_of(secure)
    client = attempt(url, secure, **options)
    (error,) = client.record.values("error")
    assert isinstance(error, TlsError)
    assert error is client.error
    assert url in str(error)
    assert "certificate" in str(error)
    assert [call.what for call in client.record.calls] == ["error", "close"]
    assert client.close_code == 1006
    assert not client.is_connected
    secure.tick()
    assert secure.record.count("open") == 0


def test_a_wrong_host_name_is_a_tls_error_naming_it(tmp_path: Path) -> None:
    made = make_certificates(tmp_path, "example.org")
    with SecureServer() as server:
        server.start(0, **made.settings)
        client = attempt(secure_url_of(server, host="localhost"), server, ca_file=made.ca)
        assert isinstance(client.error, TlsError)
        assert "localhost" in str(client.error)
        assert "example.org" in str(client.error)
        pinned = attempt(secure_url_of(server, host="localhost"), server, fingerprint=made.fingerprint)
        assert pinned.error is None  # whatever names it has
        end(pinned, server)


def test_a_client_may_connect_again_after_a_tls_error(secure: SecureServer, certificates: Certificates) -> None:
    client = attempt(secure_url_of(secure), secure)
    assert isinstance(client.error, TlsError)
    client.connect(secure_url_of(secure), ca_file=certificates.ca)
    tick_until(lambda: client.is_connected, client, secure)
    assert client.error is None
    end_calls = [call.what for call in client.record.calls]
    assert end_calls == ["error", "close", "open"]
    client.close()
    tick_until(lambda: client.record.count("close") == 2, client, secure)


# Client certificates


@pytest.mark.parametrize("files", ["two", "one"])
def test_a_client_certificate_is_shown(certificates: Certificates, tmp_path: Path, files: str) -> None:
    mine = make_certificates(tmp_path, "client.example")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(mine.ca))
    context.load_cert_chain(certificates.cert, certificates.key)
    context.verify_mode = ssl.CERT_REQUIRED
    both = tmp_path / "both.pem"
    both.write_text(mine.cert.read_text() + mine.key.read_text())
    options: dict[str, Any] = (
        {"client_certfile": mine.cert, "client_keyfile": mine.key} if files == "two" else {"client_certfile": both}
    )
    client = QuietClient()
    with SecureRawServer(context) as listener:
        client.connect(listener.url, ca_file=certificates.ca, **options)
        with listener.accept_websocket() as peer:
            tick_until(lambda: client.is_connected, client)
            shown = peer.socket
            assert isinstance(shown, ssl.SSLSocket)
            details = shown.getpeercert()
            assert details is not None
            assert ("DNS", "client.example") in details["subjectAltName"]
            client.send("hello")
            assert peer.read_message() == "hello"
            client.close()
            assert peer.answer_close() == 1000
        tick_until(lambda: client.close_code, client)


class QuietClient(HvWebSocketClient):
    """Nothing to record here."""


def test_a_server_that_wants_a_certificate_and_gets_none(certificates: Certificates) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(certificates.ca))
    context.load_cert_chain(certificates.cert, certificates.key)
    context.verify_mode = ssl.CERT_REQUIRED
    client = QuietClient()
    with SecureRawServer(context) as listener:
        client.connect(listener.url, ca_file=certificates.ca)
        with pytest.raises(ssl.SSLError, match=r"(?i)peer did not return a certificate"):
            listener.accept()
        tick_until(lambda: client.close_code, client)
    assert client.error is not None


# Misuse of the client's arguments


@pytest.mark.parametrize(
    "argument", ["ca_file", "fingerprint", "client_certfile", "client_keyfile", "dangerous_accept_any_certificate"]
)
def test_arguments_for_wss_are_refused_with_ws(certificates: Certificates, argument: str) -> None:
    value: dict[str, Any] = {
        "ca_file": certificates.ca,
        "fingerprint": certificates.fingerprint,
        "client_certfile": certificates.cert,
        "client_keyfile": certificates.key,
        "dangerous_accept_any_certificate": True,
    }
    with pytest.raises(ValueError, match=rf"\b{argument}\b.*wss://") as raised:
        HvWebSocketClient().connect("ws://127.0.0.1:9/", **{argument: value[argument]})
    assert "ws://127.0.0.1:9/" in str(raised.value)


@pytest.mark.parametrize(
    "names",
    [
        ("ca_file", "fingerprint"),
        ("ca_file", "dangerous_accept_any_certificate"),
        ("fingerprint", "dangerous_accept_any_certificate"),
    ],
)
def test_ways_to_trust_exclude_one_another(certificates: Certificates, names: tuple[str, str]) -> None:
    value: dict[str, Any] = {
        "ca_file": certificates.ca,
        "fingerprint": certificates.fingerprint,
        "dangerous_accept_any_certificate": True,
    }
    client = HvWebSocketClient()
    with pytest.raises(ValueError, match="exclude one another") as raised:
        client.connect("wss://127.0.0.1:9/", **{name: value[name] for name in names})
    for name in names:
        assert name in str(raised.value)
    assert not client.is_connecting


def test_a_client_key_needs_its_certificate(certificates: Certificates) -> None:
    with pytest.raises(ValueError, match=r"client_keyfile.*client_certfile"):
        HvWebSocketClient().connect("wss://127.0.0.1:9/", client_keyfile=certificates.key)


@pytest.mark.parametrize("text", ["", "AB", "AB" * 31, "AB" * 33, "XY" * 32, "+1" * 32, "AB " * 32])
def test_a_malformed_fingerprint_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="fingerprint=" + re.escape(f'"{text}"')):
        HvWebSocketClient().connect("wss://127.0.0.1:9/", fingerprint=text)


@pytest.mark.parametrize("argument", ["ca_file", "client_certfile", "client_keyfile"])
def test_a_missing_file_of_the_client_is_named(certificates: Certificates, tmp_path: Path, argument: str) -> None:
    missing = tmp_path / "missing.pem"
    options: dict[str, Any] = {"client_certfile": certificates.cert} if argument == "client_keyfile" else {}
    client = HvWebSocketClient()
    with pytest.raises(FileNotFoundError, match=rf"{argument}={re.escape(str(missing))}"):
        client.connect("wss://127.0.0.1:9/", **{**options, argument: missing})
    assert not client.is_connecting


@pytest.mark.parametrize("argument", ["ca_file", "client_certfile", "client_keyfile"])
def test_a_file_without_what_it_should_hold_is_named(certificates: Certificates, tmp_path: Path, argument: str) -> None:
    bad = tmp_path / "bad.pem"
    bad.write_text("nothing\n")
    options: dict[str, Any] = {"client_certfile": certificates.cert} if argument == "client_keyfile" else {}
    what = "private key" if argument == "client_keyfile" else "certificate"
    with pytest.raises(ValueError, match=rf"{argument}={re.escape(str(bad))}: .*{what}"):
        HvWebSocketClient().connect("wss://127.0.0.1:9/", **{**options, argument: bad})


def test_a_client_key_of_another_certificate_is_named(certificates: Certificates, others: Certificates) -> None:
    with pytest.raises(ValueError, match=rf"client_keyfile={re.escape(str(others.key))}"):
        HvWebSocketClient().connect("wss://127.0.0.1:9/", client_certfile=certificates.cert, client_keyfile=others.key)


# Misuse of the server's arguments


def start_fails(kind: type[Exception], pattern: str, **settings: Any) -> str:
    server = RecordingServer()
    with pytest.raises(kind, match=pattern) as raised:
        server.start(0, **settings)
    assert not server.is_running
    assert server.port is None
    server.start(0)  # nothing was left behind
    server.stop()
    return str(raised.value)


def test_tls_port_needs_a_certificate() -> None:
    start_fails(ValueError, "tls_port=0 needs certfile=", tls_port=0)


def test_a_certificate_needs_tls_port(certificates: Certificates) -> None:
    start_fails(ValueError, "certfile=.*need tls_port=", certfile=certificates.cert)
    start_fails(ValueError, "keyfile=.*need tls_port=", keyfile=certificates.key)


@pytest.mark.parametrize("argument", ["certfile", "keyfile"])
def test_a_missing_file_of_the_server_is_named(certificates: Certificates, tmp_path: Path, argument: str) -> None:
    missing = tmp_path / "missing.pem"
    text = start_fails(FileNotFoundError, f"{argument}=", **{**certificates.settings, argument: missing})
    assert str(missing) in text


def test_a_file_without_a_certificate_is_named(certificates: Certificates) -> None:
    settings = {**certificates.settings, "certfile": certificates.key}
    text = start_fails(ValueError, "certfile=.*no certificate", **settings)
    assert str(certificates.key) in text


def test_a_file_without_a_key_is_named(certificates: Certificates) -> None:
    settings = {**certificates.settings, "keyfile": certificates.cert}
    text = start_fails(ValueError, "keyfile=.*no private key", **settings)
    assert str(certificates.cert) in text


def test_without_keyfile_the_key_is_looked_for_in_certfile(certificates: Certificates) -> None:
    text = start_fails(ValueError, "no private key", tls_port=0, certfile=certificates.cert)
    assert str(certificates.cert) in text


def test_a_key_of_another_certificate_names_both_files(certificates: Certificates, others: Certificates) -> None:
    text = start_fails(ValueError, "does not belong", **{**certificates.settings, "keyfile": others.key})
    assert str(others.key) in text
    assert str(certificates.cert) in text


@pytest.mark.parametrize("content", ["", "-----BEGIN CERTIFICATE-----\nnot base64!\n-----END CERTIFICATE-----\n"])
def test_a_damaged_certificate_is_named(certificates: Certificates, tmp_path: Path, content: str) -> None:
    bad = tmp_path / "bad.pem"
    bad.write_text(content)
    text = start_fails(ValueError, "certfile=", **{**certificates.settings, "certfile": bad})
    assert str(bad) in text


def test_a_certificate_that_is_pem_but_no_certificate_is_named(certificates: Certificates, tmp_path: Path) -> None:
    bad = tmp_path / "bad.pem"
    bad.write_text(ssl.DER_cert_to_PEM_cert(b"no certificate at all"))
    text = start_fails(ValueError, "file=", **{**certificates.settings, "certfile": bad})
    assert str(bad) in text


@pytest.mark.parametrize("port", [-1, 65536])
def test_tls_port_out_of_range(certificates: Certificates, port: int) -> None:
    start_fails(ValueError, f"tls_port={port}", **{**certificates.settings, "tls_port": port})


def test_a_tls_port_in_use_is_named(certificates: Certificates) -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        start_fails(OSError, f"{HOST}:{port}", **{**certificates.settings, "tls_port": port})


def test_no_tickets(serve: Callable[..., ServerThread], certificates: Certificates) -> None:
    """Clients with threads may hang on them; see crates/engine/src/tls.rs."""
    server = SecureServer()
    serve(server, **certificates.settings)
    with (
        socket.create_connection((HOST, tls_port_of(server)), LIMIT) as raw,
        certificates.context().wrap_socket(raw, server_hostname="localhost") as tls,
    ):
        assert tls.version() == "TLSv1.3"
        tls.sendall(b"GET /ping HTTP/1.1\r\nHost: localhost\r\n\r\n")
        # Whatever came before the answer has been read now.
        assert tls.recv(1)
        assert tls.session is None or not tls.session.has_ticket


# Other clients


def test_websockets_over_wss(serve: Callable[..., ServerThread], certificates: Certificates) -> None:
    server = SecureServer()
    serve(server, **certificates.settings)
    with websockets_connect(secure_url_of(server), ssl=certificates.context(), max_size=None) as client:
        for message in ("text", b"\x00binary", "é" * 100_000):
            client.send(message)
            assert client.recv(timeout=LIMIT) == message
    assert client.close_code == 1000
    wait_until(lambda: server.record.values("close") == [1000])


@pytest.fixture
def aiohttp_leftovers() -> Iterator[None]:
    """aiohttp leaves TLS transports to the garbage collector, which warns: here, not in whichever test comes later."""
    yield
    gc.collect()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
@pytest.mark.usefixtures("aiohttp_leftovers")
def test_aiohttp_over_wss_and_https(serve: Callable[..., ServerThread], certificates: Certificates) -> None:
    server = SecureServer()
    serve(server, **certificates.settings)
    port = tls_port_of(server)

    async def talk() -> None:
        context = certificates.context()
        async with aiohttp.ClientSession() as session:
            async with session.get(f"https://{HOST}:{port}/ping", ssl=context) as answer:
                assert await answer.text() == "pong"
            async with session.ws_connect(f"wss://{HOST}:{port}/x", ssl=context) as channel:
                await channel.send_str("hello")
                assert await channel.receive_str(timeout=LIMIT) == "hello"
                await channel.send_bytes(bytes(100_000))
                assert await channel.receive_bytes(timeout=LIMIT) == bytes(100_000)

    asyncio.run(asyncio.wait_for(talk(), LIMIT))
    wait_until(lambda: server.record.count("close"))


# openssl's view


def s_client(port: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["openssl", "s_client", "-connect", f"{HOST}:{port}", *arguments],
        input="",
        capture_output=True,
        text=True,
        errors="replace",  # HTTP/2 begins with the server's settings
        timeout=LIMIT,
        check=False,
        env=environment_without_openssl_config(),
    )


@openssl
@pytest.mark.parametrize(("flag", "version"), [("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")])
def test_tls_1_2_and_1_3_are_spoken(secure: SecureServer, certificates: Certificates, flag: str, version: str) -> None:
    trust = ("-CAfile", str(certificates.ca), "-verify_return_error", "-verify_ip", HOST)
    done = s_client(tls_port_of(secure), flag, *trust)
    assert done.returncode == 0, done.stderr
    assert f"New, {version}, Cipher is " in done.stdout
    assert "Verify return code: 0 (ok)" in done.stdout


@openssl
@pytest.mark.parametrize("flag", ["-tls1_1", "-tls1"])
def test_older_versions_are_refused(secure: SecureServer, flag: str) -> None:
    done = s_client(tls_port_of(secure), flag, "-cipher", "DEFAULT@SECLEVEL=0")
    assert done.returncode != 0
    # The server's word: the client did ask.
    assert re.search("alert (protocol version|handshake failure)", done.stderr), done.stderr


@openssl
@pytest.mark.parametrize(
    ("offered", "chosen"),
    [("h2", "h2"), ("http/1.1", "http/1.1"), ("http/1.1,h2", "h2"), ("nonsense,http/1.1", "http/1.1")],
)
def test_alpn(secure: SecureServer, offered: str, chosen: str) -> None:
    done = s_client(tls_port_of(secure), "-alpn", offered)
    assert f"ALPN protocol: {chosen}\n" in done.stdout, done.stdout


@openssl
def test_the_chain_is_sent(secure: SecureServer) -> None:
    done = s_client(tls_port_of(secure), "-showcerts")
    assert done.stdout.count("-----BEGIN CERTIFICATE-----") >= 2


@openssl
def test_renegotiation_is_not_offered(secure: SecureServer) -> None:
    done = s_client(tls_port_of(secure), "-tls1_2")
    assert "Secure Renegotiation IS supported" in done.stdout  # RFC 5746: it cannot be injected
    assert "Compression: NONE" in done.stdout


# HTTP/2


@pytest.fixture
def https(serve: Callable[..., ServerThread], certificates: Certificates) -> tuple[SecureServer, str]:
    server = SecureServer()
    serve(server, **certificates.settings)
    return server, f"https://{HOST}:{tls_port_of(server)}"


def test_http2_get_and_post(https: tuple[SecureServer, str], certificates: Certificates) -> None:
    server, base = https
    with httpx.Client(http2=True, verify=certificates.context(), timeout=LIMIT) as client:
        answer = client.get(base + "/host")
        assert answer.http_version == "HTTP/2"
        assert answer.text == base.removeprefix("https://")
        for body in (b"", b"x", os.urandom(3 * MIB)):
            answer = client.post(base + "/echo", content=body)
            assert (answer.http_version, answer.status_code) == ("HTTP/2", 200)
            assert answer.content == body
        assert client.get(base + "/missing").status_code == 404
        assert client.get(base + "/echo").status_code == 405
    assert server.record.count("error") == 0


def test_http2_head_has_no_body(https: tuple[SecureServer, str], certificates: Certificates) -> None:
    _, base = https
    with httpx.Client(http2=True, verify=certificates.context(), timeout=LIMIT) as client:
        head = client.head(base + "/ping")
        assert (head.http_version, head.status_code, head.content) == ("HTTP/2", 200, b"")
        assert head.headers["content-length"] == "4"
        assert client.get(base + "/ping").text == "pong"


def test_http2_answers_many_streams_of_one_connection(
    https: tuple[SecureServer, str], certificates: Certificates
) -> None:
    server, base = https

    async def ask() -> list[str]:
        async with httpx.AsyncClient(http2=True, verify=certificates.context(), timeout=LIMIT) as client:
            assert (await client.get(base + "/host")).http_version == "HTTP/2"
            answers = await asyncio.gather(*(client.get(f"{base}/number/{n}") for n in range(300)))
            assert {answer.http_version for answer in answers} == {"HTTP/2"}
            await client.get(base + "/host")
            return [answer.text for answer in answers]

    assert asyncio.run(ask()) == [str(n) for n in range(300)]
    assert len(server.remotes) == 1  # one connection


def test_http2_body_too_large_is_413(serve: Callable[..., ServerThread], certificates: Certificates) -> None:
    server = SecureServer()
    serve(server, **certificates.settings, max_body_size=1000)
    base = f"https://{HOST}:{tls_port_of(server)}"
    with httpx.Client(http2=True, verify=certificates.context(), timeout=LIMIT) as client:
        assert client.post(base + "/echo", content=bytes(1000)).status_code == 200
        answer = client.post(base + "/echo", content=bytes(1001))
        assert (answer.http_version, answer.status_code) == ("HTTP/2", 413)
        assert client.get(base + "/ping").text == "pong"
    assert server.refusals["max_body_size"] == 1


def test_http1_over_tls_when_the_client_knows_nothing_else(
    https: tuple[SecureServer, str], certificates: Certificates
) -> None:
    _, base = https
    with httpx.Client(verify=certificates.context(), timeout=LIMIT) as client:
        answer = client.get(base + "/ping")
        assert (answer.http_version, answer.text) == ("HTTP/1.1", "pong")


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_stop_answers_an_http2_request_under_way(certificates: Certificates) -> None:
    """With curl: the h2 of httpx takes the PING behind a GOAWAY for an error."""
    server = SecureServer()
    server.start(0, **certificates.settings)
    url = f"https://{HOST}:{tls_port_of(server)}/ping"
    command = ["curl", "--silent", "--http2", "--cacert", str(certificates.ca), "--write-out", " %{http_version}", url]
    asked = Background(
        lambda: subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False).stdout
    )
    wait_until(lambda: select.select([server], [], [], 0)[0], what="the request has arrived")
    server.stop(timeout=LIMIT)
    assert asked.result() == "pong 2"
    assert not server.is_running


# Large messages


@pytest.mark.parametrize("size", [MIB, 16 * MIB])
def test_large_messages_over_wss(secure: SecureServer, certificates: Certificates, size: int) -> None:
    client = attempt(secure_url_of(secure), secure, ca_file=certificates.ca, max_buffered=64 * MIB)
    message = os.urandom(size)
    assert client.send(message)
    tick_until(lambda: client.received, client, secure)
    assert client.received == [message]
    end(client, secure)


def test_many_small_messages_over_wss(secure: SecureServer, certificates: Certificates) -> None:
    client = attempt(secure_url_of(secure), secure, ca_file=certificates.ca)
    messages = [f"{n}" * (n % 50) for n in range(5000)]
    for message in messages:
        assert client.send(message)
    tick_until(lambda: len(client.received) == len(messages), client, secure)
    assert client.received == messages
    end(client, secure)


def test_a_slow_reader_over_wss_gets_everything(secure: SecureServer, certificates: Certificates) -> None:
    context = certificates.context()
    with SecureRawClient(tls_port_of(secure), context, receive_buffer=32 << 10) as slow:
        channel = only_channel(secure)
        messages = [bytes([n]) * 500_000 for n in range(16)]
        for message in messages:
            assert channel.send(message)
            secure.tick()
        assert channel.buffered_amount > 0
        for message in messages:
            assert slow.read_message() == message
        wait_until(lambda: channel.buffered_amount == 0)


def test_a_reader_too_slow_over_wss_is_closed_with_1008(certificates: Certificates) -> None:
    with SecureServer() as server:
        server.start(0, max_buffered=MIB, close_timeout=1000, **certificates.settings)
        port = tls_port_of(server)
        with SecureRawClient(port, certificates.context(), receive_buffer=4096) as slow:
            channel = only_channel(server)
            message = bytes(50_000)
            sent = 0
            while channel.send(message):
                sent += 1
                assert sent < 2000
                assert channel.buffered_amount <= MIB + 60_000
            tick_until(lambda: server.record.count("close"), server)
            assert server.record.values("close") == [1008]
            with SecureRawClient(port, certificates.context()) as good:
                good.send_text("still here")
                tick_until(good.readable, server)
                assert good.read_message() == "still here"
            received = 0
            while (frame := slow.read_frame()).opcode == WsOpcode.BINARY:
                assert frame.payload == message
                received += 1
            assert frame.close_code == 1008
            assert received < sent
        server.stop(0)


# Certificates that are replaced


def test_replaced_files_are_reread(
    certificates: Certificates, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    current = make_certificates(tmp_path / "current")
    renewed = make_certificates(tmp_path / "renewed")
    latest = make_certificates(tmp_path / "latest")
    first = current.fingerprint
    with SecureServer() as server, caplog.at_level(logging.WARNING, "pyhv"):
        server.start(0, **current.settings)
        port = tls_port_of(server)
        assert fingerprint_at(port) == first
        with SecureRawClient(port, current.context(), "/old") as old:
            current.replace(renewed)
            wait_until(lambda: fingerprint_at(port) == renewed.fingerprint, what="the renewed certificate is shown")
            assert not caplog.records
            # The connection made with the old one goes on.
            old.send_text("still here")
            tick_until(old.readable, server)
            assert old.read_message() == "still here"

            replace_file(current.cert, "half a certif")

            def warned() -> bool:
                assert fingerprint_at(port) == renewed.fingerprint
                server.tick()
                return any("was not reread" in text for text in caplog.messages)

            wait_until(warned, what="the broken file is reported")
            (record,) = (record for record in caplog.records if "was not reread" in record.getMessage())
            assert record.levelno == logging.WARNING
            assert str(current.cert) in record.getMessage()

            current.replace(latest)
            wait_until(lambda: fingerprint_at(port) == latest.fingerprint, what="the latest certificate is shown")
            client = attempt(secure_url_of(server), server, fingerprint=latest.fingerprint)
            assert client.error is None
            end(client, server)


def test_a_replaced_key_alone_does_not_spoil_the_old_certificate(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A renewal that has come half way."""
    current, renewed = make_certificates(tmp_path / "current"), make_certificates(tmp_path / "renewed")
    first = current.fingerprint
    with SecureServer() as server, caplog.at_level(logging.WARNING, "pyhv"):
        server.start(0, **current.settings)
        port = tls_port_of(server)
        replace_file(current.key, renewed.key.read_text())

        def warned() -> bool:
            assert fingerprint_at(port) == first
            server.tick()
            return any("was not reread" in text and "does not belong" in text for text in caplog.messages)

        wait_until(warned, what="the mismatch is reported")
        replace_file(current.cert, renewed.cert.read_text())
        wait_until(lambda: fingerprint_at(port) == renewed.fingerprint, what="the renewed certificate is shown")


def test_files_that_vanish_leave_the_old_certificate(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    current = make_certificates(tmp_path)
    first = current.fingerprint
    with SecureServer() as server, caplog.at_level(logging.WARNING, "pyhv"):
        server.start(0, **current.settings)
        port = tls_port_of(server)
        current.key.unlink()

        def warned() -> bool:
            assert fingerprint_at(port) == first
            server.tick()
            return any("was not reread" in text and str(current.key) in text for text in caplog.messages)

        wait_until(warned, what="the missing file is reported")


# The wrong protocol on a port


CLIENT_HELLO = bytes.fromhex("160301 0005 010000 01 00".replace(" ", ""))


def logged(caplog: pytest.LogCaptureFixture, server: SecureServer, part: str) -> str:
    """The one line of the log that has `part`, once it is there."""
    tick_until(lambda: any(part in text for text in caplog.messages), server, what=f"{part!r} is logged")
    (text,) = (text for text in caplog.messages if part in text)
    return text


def test_wss_to_the_plain_port(secure: SecureServer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "pyhv"):
        url = f"wss://{HOST}:{port_of(secure)}/"
        client = attempt(url, secure, dangerous_accept_any_certificate=True)
        assert isinstance(client.error, TlsError)
        assert url in str(client.error)
        assert "does not speak TLS" in str(client.error)
        assert [call.what for call in client.record.calls] == ["error", "close"]
        assert "tls_port" in logged(caplog, secure, "spoke TLS to a port for http and ws")
    assert sum(secure.refusals.values()) == 1


def test_tls_spoken_to_the_plain_port_is_answered_in_plain_http(secure: SecureServer) -> None:
    with RawClient(port_of(secure), upgrade=False) as raw:
        raw.send_bytes(CLIENT_HELLO)
        answer = raw.read_answer()
        assert answer.status == 400
        assert b"not TLS" in answer.body
        raw.expect_end()


def test_ws_to_the_tls_port(secure: SecureServer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "pyhv"):
        client = attempt(f"ws://{HOST}:{tls_port_of(secure)}/", secure)
        assert isinstance(client.error, HandshakeError)
        assert client.error.status == 400
        logged(caplog, secure, "spoke plain HTTP to tls_port: use https or wss")


def test_the_error_of_ws_to_the_tls_port_says_what_to_do(secure: SecureServer) -> None:
    client = attempt(f"ws://{HOST}:{tls_port_of(secure)}/", secure)
    assert "wss" in str(client.error)


def test_plain_http_to_the_tls_port(secure: SecureServer) -> None:
    with RawClient(tls_port_of(secure), upgrade=False) as raw:
        raw.request("GET", "/ping")
        answer = raw.read_answer()
        assert answer.status == 400
        assert b"https or wss" in answer.body
        raw.expect_end()


def test_a_long_plain_request_to_the_tls_port_still_gets_its_answer(secure: SecureServer) -> None:
    with RawClient(tls_port_of(secure), upgrade=False) as raw:
        raw.request("POST", "/echo", [], bytes(40_000))
        answer = raw.read_answer()
        assert answer.status == 400


def test_garbage_instead_of_a_client_hello(secure: SecureServer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "pyhv"):
        with RawClient(tls_port_of(secure), upgrade=False) as raw:
            raw.send_bytes(b"\x00\xff\x13\x37" * 100)
            assert raw.read_answer().status == 400
            raw.expect_end()
        for garbage in (CLIENT_HELLO, b"\x16" + bytes(500), b"\x16\x03\x01\xff\xff" + os.urandom(70_000)):
            with RawClient(tls_port_of(secure), upgrade=False) as raw:
                try:
                    raw.send_bytes(garbage)
                except (BrokenPipeError, ConnectionResetError):
                    continue  # refused before it had all of it
                rest = raw.read_to_end()
                assert rest[:1] in (b"", b"\x15")  # an alert, RFC 8446 section 6
        assert HOST in logged(caplog, secure, "TLS handshake of")
    good = connected(secure)
    end(good, secure)


def test_a_client_that_leaves_in_the_handshake(secure: SecureServer, certificates: Certificates) -> None:
    for sent in (b"", b"\x16", CLIENT_HELLO[:5]):
        with RawClient(tls_port_of(secure), upgrade=False) as raw:
            raw.send_bytes(sent)
        with RawClient(tls_port_of(secure), upgrade=False) as raw:
            raw.send_bytes(sent)
            raw.reset()
    client = attempt(secure_url_of(secure), secure, ca_file=certificates.ca)
    assert client.error is None
    end(client, secure)


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01"], ids=["nothing", "a beginning"])
def test_a_silent_client_is_dropped_after_handshake_timeout(certificates: Certificates, sent: bytes) -> None:
    with SecureServer() as server:
        server.start(0, handshake_timeout=0.2, **certificates.settings)
        with RawClient(tls_port_of(server), upgrade=False) as raw:
            raw.send_bytes(sent)
            raw.expect_end()


def test_a_silent_client_delays_nobody(secure: SecureServer, certificates: Certificates) -> None:
    silent = [RawClient(tls_port_of(secure), upgrade=False) for _ in range(20)]
    try:
        client = attempt(secure_url_of(secure), secure, ca_file=certificates.ca)
        assert client.error is None
        end(client, secure)
    finally:
        for raw in silent:
            raw.socket.close()


def test_stop_during_tls_handshakes(certificates: Certificates) -> None:
    server = SecureServer()
    server.start(0, handshake_timeout=1000, **certificates.settings)
    with RawClient(tls_port_of(server), upgrade=False) as raw:
        raw.send_bytes(b"\x16\x03\x01")
        stopping = Background(lambda: server.stop(timeout=1000))
        stopping.result()
        raw.expect_end()


# The end


def test_stop_closes_wss_gracefully(certificates: Certificates) -> None:
    server = SecureServer()
    server.start(0, **certificates.settings)
    with SecureRawClient(tls_port_of(server), certificates.context()) as raw:
        channel = only_channel(server)
        channel.send("the last message")
        stopping = Background(lambda: server.stop(timeout=1000))
        assert raw.read_message() == "the last message"
        assert raw.answer_close() == 1001
        raw.expect_end()  # with close_notify, or reading would raise
        stopping.result()
    assert server.record.values("close") == [1001]


def test_stop_closes_our_own_wss_clients(secure: SecureServer, certificates: Certificates) -> None:
    clients = [attempt(secure_url_of(secure), secure, ca_file=certificates.ca) for _ in range(5)]
    stopping = Background(lambda: secure.stop(timeout=1000))
    stopping.result(*clients)
    tick_until(lambda: all(client.close_code for client in clients), *clients)
    assert [client.close_code for client in clients] == [1001] * 5
    assert secure.record.values("close") == [1001] * 5


def test_a_peer_that_vanishes_from_wss(secure: SecureServer, certificates: Certificates) -> None:
    with SecureRawClient(tls_port_of(secure), certificates.context()) as raw:
        only_channel(secure)
        raw.reset()
    tick_until(lambda: secure.record.count("close"), secure)
    assert secure.record.values("close") == [1006]


def test_close_notify_without_a_close_frame_is_1006(secure: SecureServer, certificates: Certificates) -> None:
    with SecureRawClient(tls_port_of(secure), certificates.context()) as raw:
        only_channel(secure)
        raw.socket.shutdown(socket.SHUT_WR)  # TCP's end, below TLS
        tick_until(lambda: secure.record.count("close"), secure)
    assert secure.record.values("close") == [1006]
