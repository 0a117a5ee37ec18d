"""HTTP with programs that other people wrote: nginx as a reverse proxy in front, and curl.

nginx listens on a socket in the test's folder.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from websockets.sync.client import unix_connect

from pyhv import HttpRequest, HttpResponse
from support import HOST, LIMIT, Answer, RawClient, RawPeer, ServerThread, serving, wait_until
from support_http import CatchAllServer, Seen, answers_in, get, head
from support_nginx import needs_nginx, nginx
from support_tls import make_certificates, tls_port_of

MIB = 1 << 20
CURL = shutil.which("curl")

needs_curl = pytest.mark.skipif(CURL is None, reason="curl is not installed")


class PeersServer(CatchAllServer):
    """Remembers which connections its requests came by."""

    def on_init(self) -> None:
        self.seen = []
        self.remotes: set[tuple[str, int]] = set()
        self.get("/get", self.take)
        self.post("/post", self.take)
        self.put("/post", self.take)
        self.get("/large/:n", self.send_large)
        self.get("/raise", self.fail)
        self.any("/smuggled", self.take)

    def take(self, req: HttpRequest, resp: HttpResponse) -> None:
        self.remotes.add(req.remote_address)
        super().take(req, resp)

    def send_large(self, req: HttpRequest, resp: HttpResponse) -> bytes:
        return bytes(int(req.params["n"]))

    def fail(self, req: HttpRequest, resp: HttpResponse) -> None:
        raise RuntimeError("as the test wants it")


CONFIGURATION = """
    client_max_body_size 0;
    map $http_upgrade $connection_upgrade {{ default upgrade; "" ""; }}
    upstream application {{ server 127.0.0.1:{port}; keepalive 4; }}
    server {{
        listen unix:{folder}/socket;
        location / {{
            proxy_pass http://application;
            proxy_http_version 1.1;
            proxy_set_header Host $http_host;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $connection_upgrade;
        }}
        location /streamed/ {{
            proxy_pass http://application/;
            proxy_http_version 1.1;
            proxy_request_buffering off;
            proxy_set_header Connection "";
        }}
        location /old/ {{ proxy_pass http://application/; }}
        location /smuggled {{ return 403; }}
    }}
"""


class UnixClient(RawClient):
    """A RawClient of a socket in the file system."""

    def __init__(self, path: Path) -> None:
        RawPeer.__init__(self, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        try:
            self.socket.connect(str(path))
        except BaseException:
            self.socket.close()
            raise


class Proxied:
    """A server, and nginx in front of it."""

    def __init__(self, server: PeersServer, path: Path) -> None:
        self.server = server
        self.path = path

    def connect(self) -> UnixClient:
        return UnixClient(self.path)

    def ask(self, method: str, target: str, body: bytes | None = None) -> Answer:
        with self.connect() as raw:
            raw.request(method, target, [("Connection", "close")], body)
            return raw.read_answer(to_head=method == "HEAD")


@pytest.fixture(scope="module")
def proxied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxied]:
    folder = tmp_path_factory.mktemp("nginx")  # short: the path of a socket has 107 bytes at most
    path = folder / "socket"
    server = PeersServer()
    with (
        serving(server) as thread,
        nginx(folder, CONFIGURATION.format(folder=folder, port=thread.port), lambda: UnixClient(path).socket.close()),
    ):
        yield Proxied(server, path)


@pytest.fixture(autouse=True)
def forget(request: pytest.FixtureRequest) -> None:
    if "proxied" in request.fixturenames:
        proxied: Proxied = request.getfixturevalue("proxied")
        proxied.server.seen.clear()
        proxied.server.remotes.clear()
        proxied.server.record.calls.clear()


@needs_nginx
def test_nginx_keeps_one_connection_for_many_requests(proxied: Proxied) -> None:
    """Across all kinds of answers, those of the native side included."""
    for _ in range(10):
        assert proxied.ask("GET", "/get").body == b"0"
        assert proxied.ask("GET", "/missing").status == 404
        assert proxied.ask("DELETE", "/get").status == 405
        assert proxied.ask("OPTIONS", "/get").status == 204
        head_answer = proxied.ask("HEAD", "/large/1000")
        assert (head_answer.status, head_answer.headers["content-length"]) == (200, "1000")
        assert proxied.ask("POST", "/post", bytes(1000)).body == b"1000"
        assert proxied.ask("POST", "/missing", bytes(1000)).status == 404
        assert proxied.ask("GET", "/raise").status == 500
    assert len(proxied.server.seen) == 20
    assert len(proxied.server.remotes) == 1


@needs_nginx
def test_nginx_speaks_http_1_0_by_default(proxied: Proxied) -> None:
    assert proxied.ask("GET", "/old/get").body == b"0"
    assert proxied.ask("POST", "/old/post", bytes(100_000)).body == b"100000"
    assert len(proxied.ask("GET", "/old/large/3000000").body) == 3_000_000
    assert len(proxied.server.remotes) == 2


@needs_nginx
@pytest.mark.parametrize("prefix", ["", "/streamed"], ids=["buffered", "streamed"])
def test_a_large_body_through_nginx(proxied: Proxied, prefix: str) -> None:
    """Streamed, nginx passes it on in chunks where the client sends chunks."""
    body = os.urandom(12 * MIB)
    assert proxied.ask("POST", f"{prefix}/post", body).body == b"%d" % len(body)
    with proxied.connect() as raw:
        raw.send_bytes(head(b"POST %s/post HTTP/1.1" % prefix.encode(), b"Transfer-Encoding: chunked"))
        for begin in range(0, len(body), MIB):
            raw.send_bytes(b"%x\r\n%s\r\n" % (MIB, body[begin : begin + MIB]))
        raw.send_bytes(b"0\r\n\r\n")  # and no end: nginx takes one for a client that has gone
        assert raw.read_answer().body == b"%d" % len(body)
    assert [seen.body == body for seen in proxied.server.seen] == [True, True]


@needs_nginx
def test_a_large_answer_through_nginx(proxied: Proxied) -> None:
    assert len(proxied.ask("GET", f"/large/{20 * MIB}").body) == 20 * MIB


@needs_nginx
@pytest.mark.parametrize("prefix", ["", "/streamed"], ids=["buffered", "streamed"])
def test_a_body_too_large_through_nginx_is_413(proxied: Proxied, prefix: str) -> None:
    """nginx passes on the answer that comes while it still sends."""
    assert proxied.ask("POST", f"{prefix}/post", bytes(16 * MIB + 1)).status == 413
    assert proxied.ask("GET", "/get").body == b"0"
    assert [seen.url for seen in proxied.server.seen] == ["/get"]


@needs_nginx
def test_a_websocket_through_nginx(proxied: Proxied) -> None:
    with unix_connect(str(proxied.path), uri="ws://example.test/chat?a=b", origin="http://example.test") as ws:
        for message in ("hello", "x" * 100_000, b"\x00" * 1_000_000, "é"):
            ws.send(message)
            assert ws.recv(LIMIT) == message
        assert ws.ping().wait(LIMIT)
        (channel,) = proxied.server.channels
        assert channel.url == "/chat?a=b"
        channel.close(4000, "go")
        with pytest.raises(Exception, match="4000"):
            ws.recv(LIMIT)
    wait_until(lambda: proxied.server.record.values("close") == [4000])


@needs_nginx
def test_a_page_of_another_site_is_refused_through_nginx(proxied: Proxied) -> None:
    """`proxy_set_header Host $http_host` is what the check of the origin needs."""
    with pytest.raises(Exception, match="403"):
        unix_connect(str(proxied.path), uri="ws://example.test/chat", origin="http://evil.test")
    assert not proxied.server.record.calls


CHUNKED = b"Transfer-Encoding: chunked"
SMUGGLED = get(b"GET /smuggled HTTP/1.1", b"Connection: close")

SMUGGLING: dict[str, bytes] = {
    "CL.TE": head(b"POST /post HTTP/1.1", b"Content-Length: %d" % (len(SMUGGLED) + 5), CHUNKED) + b"0\r\n\r\n",
    "TE.CL": head(b"POST /post HTTP/1.1", CHUNKED, b"Content-Length: 4") + b"%x\r\n" % len(SMUGGLED),
    "TE.TE": head(b"POST /post HTTP/1.1", CHUNKED, b"Transfer-Encoding: identity") + b"0\r\n\r\n",
    "TE.TE, unknown": head(b"POST /post HTTP/1.1", b"Transfer-Encoding: cow", CHUNKED) + b"0\r\n\r\n",
    "TE with a vertical tab": head(
        b"POST /post HTTP/1.1", b"Transfer-Encoding:\x0bchunked", b"Content-Length: %d" % len(SMUGGLED)
    ),
    "TE with a space before the colon": head(
        b"POST /post HTTP/1.1", b"Transfer-Encoding : chunked", b"Content-Length: %d" % len(SMUGGLED)
    ),
    "folded TE": head(b"POST /post HTTP/1.1", b"X: a", b" Transfer-Encoding: chunked") + b"0\r\n\r\n",
    "CL.CL": head(b"POST /post HTTP/1.1", b"Content-Length: 0", b"Content-Length: %d" % len(SMUGGLED)),
    "extension with LF": head(b"POST /streamed/post HTTP/1.1", CHUNKED) + b"2;\nxx\r\n%x\r\n" % len(SMUGGLED),
    "LF behind a chunk": head(b"POST /streamed/post HTTP/1.1", CHUNKED) + b"2\r\nxx\n0\n\n",
    "LF behind the last chunk": head(b"POST /streamed/post HTTP/1.1", CHUNKED) + b"0\r\n\n",
    "body of GET": head(b"GET /get HTTP/1.1", b"Content-Length: %d" % len(SMUGGLED)),
    "body of HEAD": head(b"HEAD /get HTTP/1.1", b"Content-Length: %d" % len(SMUGGLED)),
    "body of what is missing": head(b"POST /streamed/missing HTTP/1.1", b"Content-Length: %d" % len(SMUGGLED)),
    "body of a handshake": head(
        b"GET /get HTTP/1.1",
        b"Upgrade: websocket",
        b"Connection: Upgrade",
        b"Sec-WebSocket-Version: 777",
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    ),
}


@needs_nginx
@pytest.mark.parametrize("data", SMUGGLING.values(), ids=SMUGGLING)
def test_nothing_is_smuggled_past_nginx(proxied: Proxied, data: bytes) -> None:
    """nginx lets nobody ask for /smuggled, so a request for it is one that nginx did not take for one."""
    with proxied.connect() as raw:
        raw.send_bytes(data + SMUGGLED * 2)  # the second for those whose content is the first
        assert raw.read_to_end()
    # What would have been left on nginx's connections to the server comes before these.
    for _ in range(8):
        assert proxied.ask("GET", "/get").body == b"0"
    assert "/smuggled" not in [seen.url for seen in proxied.server.seen]
    assert {len(seen.body) for seen in proxied.server.seen if seen.url == "/get"} <= {0, len(SMUGGLED)}


# curl


def curl(*arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
    assert CURL is not None
    command = [CURL, "--silent", "--show-error", "--max-time", str(LIMIT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, timeout=2 * LIMIT, check=False)


@pytest.fixture
def server(serve: Callable[..., ServerThread]) -> PeersServer:
    running = PeersServer()
    serve(running)
    return running


def url(server: PeersServer, path: str) -> str:
    return f"http://{HOST}:{server.port}{path}"


def only(server: PeersServer) -> Seen:
    (seen,) = server.seen
    return seen


@needs_curl
@pytest.mark.parametrize("version", ["0.9", "1.0", "1.1"])
def test_curl_gets_over_each_version_of_http_1(server: PeersServer, version: str) -> None:
    done = curl(f"--http{version}", "--write-out", " %{http_version} %{http_code}", url(server, "/get"))
    # An answer to a request of 0.9 that curl does not really make: it only takes one.
    assert done.stdout == (b"0 1 200" if version == "1.0" else b"0 1.1 200")


@needs_curl
def test_curl_uses_its_connection_again(server: PeersServer) -> None:
    written = ["--output", "/dev/null", "--write-out", "%{http_code} %{num_connects} "]
    arguments: list[str] = []
    for path in ("/get", "/missing", "/raise", "/get"):
        arguments += [*written, url(server, path), "--next", "--silent"]
    assert curl(*arguments[:-2]).stdout == b"200 1 404 0 500 0 200 0 "


@needs_curl
def test_curl_heads(server: PeersServer) -> None:
    done = curl("--head", url(server, "/large/1000"))
    answer = answers_in(done.stdout, heads=frozenset({0}))[0]
    assert (answer.status, answer.headers["content-length"], answer.body) == (200, "1000", b"")
    assert done.returncode == 0


@needs_curl
@pytest.mark.parametrize("how", ["--data-binary", "--upload-file"])
@pytest.mark.parametrize("expect", ["Expect: 100-continue", "Expect:"])
@pytest.mark.parametrize("framing", ["Transfer-Encoding: chunked", "X-Framing: length"])
def test_curl_sends_a_body(server: PeersServer, tmp_path: Path, how: str, expect: str, framing: str) -> None:
    body = os.urandom(3 * MIB)
    file = tmp_path / "body"
    file.write_bytes(body)
    argument = f"@{file}" if how == "--data-binary" else str(file)
    done = curl(how, argument, "--header", expect, "--header", framing, url(server, "/post"))
    assert (done.returncode, done.stdout) == (0, b"%d" % len(body)), done.stderr
    assert only(server).body == body


@needs_curl
@pytest.mark.parametrize("expect", ["Expect: 100-continue", "Expect:"])
@pytest.mark.parametrize("framing", ["Transfer-Encoding: chunked", "X-Framing: length"])
def test_curl_reads_why_its_body_is_refused(server: PeersServer, tmp_path: Path, expect: str, framing: str) -> None:
    """Though it is still sending when the answer comes: a connection that was reset would have lost it."""
    file = tmp_path / "body"
    with file.open("wb") as sparse:
        sparse.truncate(40 * MIB)
    done = curl(
        *("--data-binary", f"@{file}", "--header", expect, "--header", framing),
        *("--write-out", "%{http_code}", "--output", "/dev/null", url(server, "/post")),
    )
    assert done.stdout == b"413", done.stderr
    assert server.seen == []


@needs_curl
def test_curl_is_told_at_once_that_the_plain_port_has_no_http_2(server: PeersServer) -> None:
    """RFC 9113 section 3.3 needs prior knowledge, which is wrong here; the upgrade of RFC 7540 is ignored."""
    done = curl("--http2-prior-knowledge", "--max-time", "10", url(server, "/get"))
    assert done.returncode not in (0, 28)  # 28: it waited in vain
    done = curl("--http2", "--write-out", " %{http_version}", url(server, "/get"))
    assert done.stdout == b"0 1.1"
    assert only(server).url == "/get"


@needs_curl
def test_curl_over_http_2(serve: Callable[..., ServerThread], tmp_path: Path) -> None:
    """Without a body that is refused: curl 7.88 drops an answer in front of RST_STREAM with NO_ERROR."""
    server = PeersServer()
    certificates = make_certificates(tmp_path)
    serve(server, **certificates.settings)
    base = f"https://{HOST}:{tls_port_of(server)}"
    file = tmp_path / "body"
    file.write_bytes(os.urandom(3 * MIB))
    secure = ("--http2", "--cacert", certificates.ca, "--write-out", " %{http_version} %{http_code}")
    assert curl(*secure, "--data-binary", f"@{file}", base + "/post").stdout == b"%d 2 200" % (3 * MIB)
    assert curl(*secure, "--head", base + "/large/10").stdout.endswith(b" 2 200")
    assert curl(*secure, base + "/missing").stdout == b"404 Not Found\n 2 404"
    assert only(server).body == file.read_bytes()
