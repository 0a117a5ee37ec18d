"""What a hostile client sends over HTTP/2: malformed requests reach no handler, floods are bounded.

Frames are made by hand (RFC 9113 section 4.1), with the header compression of the `hpack` package. A bystander on the
plain port is served after each test.
"""

from __future__ import annotations

import json
import ssl
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import hpack
import pytest

from support import LIMIT, http, resident_bytes, serving, wait_until
from support_http import CatchAllServer, Target
from support_load import Program, sockets_of
from support_tls import Certificates, SecureRawClient, make_certificates, tls_port_of

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, END_HEADERS, PADDED, ACK = 0x1, 0x4, 0x8, 0x1
PROTOCOL_ERROR, CANCEL, ENHANCE_YOUR_CALM = 1, 8, 11

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
Fields = list[tuple[bytes, bytes]]

MIB = 1 << 20


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack("!I", len(payload))[1:] + bytes([kind, flags]) + struct.pack("!I", stream) + payload


def reset(stream: int) -> bytes:
    return frame(RST_STREAM, 0, stream, struct.pack("!I", CANCEL))


def block(fields: Fields) -> bytes:
    """A header block that leaves the peer's table as it is, so that it can be sent again and again."""
    return bytes(hpack.Encoder().encode([(name, value, True) for name, value in fields], huffman=False))


class Http2Client:
    """A connection of HTTP/2 by hand. `preface=False` leaves it at the TLS handshake."""

    def __init__(self, port: int, certificates: Certificates, *, preface: bool = True, timeout: float = LIMIT) -> None:
        context = certificates.context()
        context.set_alpn_protocols(["h2"])
        self.raw = SecureRawClient(port, context, upgrade=False, timeout=timeout)
        self.decoder = hpack.Decoder()
        self.ended = False
        if preface:
            self.send(PREFACE + frame(SETTINGS, 0, 0))

    def __enter__(self) -> Http2Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.raw.socket.close()

    def send(self, data: bytes) -> None:
        """Raises OSError once the server has ended the connection."""
        self.raw.send_bytes(data)

    def read_frame(self) -> tuple[int, int, int, bytes] | None:
        """Type, flags, stream and payload of the next frame; None at the end of the connection."""
        try:
            prefix = self.raw.read_exactly(9)
            payload = self.raw.read_exactly(int.from_bytes(prefix[:3], "big"))
        except (EOFError, ConnectionError, ssl.SSLError):
            self.ended = True
            return None
        return prefix[3], prefix[4], int.from_bytes(prefix[5:], "big"), payload

    def outcome(self, stream: int) -> str:
        """What becomes of a stream: its status, or the error code of its reset or of the connection's end."""
        while got := self.read_frame():
            kind, _, number, payload = got
            if kind == HEADERS and number == stream:
                return dict(self.decoder.decode(payload, raw=True))[b":status"].decode()
            if kind == RST_STREAM and number == stream:
                return f"reset {int.from_bytes(payload, 'big')}"
            if kind == GOAWAY:
                return f"goaway {int.from_bytes(payload[4:8], 'big')}"
        return "end"

    def flood(self, piece: Callable[[int], bytes], count: int) -> int | None:
        """Sends `piece(0)` … `piece(count - 1)` and a ping, reading what comes, to the ping's answer or the end.

        Returns the error code that the server ended the connection with, None if it did not.
        """
        answered = False
        error = None
        number = 0
        while not answered and not self.ended:
            try:
                if number <= count:
                    self.send(piece(number) if number < count else frame(PING, 0, 0, b"the last"))
            except (ConnectionError, ssl.SSLError):
                number = count  # there may be a GOAWAY to be read
            number += 1
            while (number > count or self.raw.readable()) and (got := self.read_frame()):
                if got[0] == GOAWAY:
                    error = int.from_bytes(got[3][4:8], "big")
                elif got[0] == PING and got[1] & ACK and got[3] == b"the last":
                    answered = True
                    break
        return error


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def target(certificates: Certificates) -> Iterator[Target]:
    server = CatchAllServer()
    with serving(server, **certificates.settings) as thread:
        running = Target(server, thread.port)
        yield running
        running.bystander.socket.close()


@pytest.fixture
def connect(target: Target, certificates: Certificates) -> Iterator[Callable[[], Http2Client]]:
    """Makes connections; behind the test they are closed, the bystander is served and no socket is left."""
    target.seen()
    before = sockets_of()
    clients: list[Http2Client] = []

    def start() -> Http2Client:
        clients.append(Http2Client(tls_port_of(target.server), certificates))
        return clients[-1]

    yield start
    for client in clients:
        client.raw.socket.close()
    target.seen()
    wait_until(lambda: sockets_of() <= before, what="the sockets of the test are closed")


METHOD, SCHEME, AUTHORITY, PATH = (
    (b":method", b"GET"),
    (b":scheme", b"https"),
    (b":authority", b"x"),
    (b":path", b"/first"),
)
GET: Fields = [METHOD, SCHEME, AUTHORITY, PATH]
POST: Fields = [(b":method", b"POST"), SCHEME, AUTHORITY, PATH]


def with_field(name: bytes, value: bytes) -> Fields:
    return [*GET, (name, value)]


def replaced(name: bytes, value: bytes | None) -> Fields:
    """GET with another pseudo-header, or without it."""
    return [(key, value if key == name else old) for key, old in GET if key != name or value is not None]  # type: ignore[misc]


# Keys begin with the section of RFC 9113.
MALFORMED: dict[str, Fields] = {
    "8.2.2 connection": with_field(b"connection", b"close"),
    "8.2.2 keep-alive": with_field(b"keep-alive", b"5"),
    "8.2.2 proxy-connection": with_field(b"proxy-connection", b"close"),
    "8.2.2 transfer-encoding": with_field(b"transfer-encoding", b"chunked"),
    "8.2.2 upgrade": with_field(b"upgrade", b"websocket"),
    "8.2.2 te of anything but trailers": with_field(b"te", b"gzip"),
    "8.2.1 upper case": with_field(b"X-Upper", b"a"),
    "8.2.1 CRLF in a value": with_field(b"x", b"a\r\nb: c"),
    "8.2.1 LF in a value": with_field(b"x", b"a\nb"),
    "8.2.1 NUL in a value": with_field(b"x", b"a\0b"),
    "8.2.1 space in a name": with_field(b"a b", b"c"),
    "8.2.1 colon in a name": with_field(b"a:b", b"c"),
    "8.2.1 CRLF in a name": with_field(b"a\r\nb", b"c"),
    "8.2.1 no name": with_field(b"", b"a"),
    "8.2.1 white space around a value": with_field(b"x", b" a "),
    "8.3 pseudo-header behind a field": [METHOD, SCHEME, AUTHORITY, (b"x", b"a"), PATH],
    "8.3 pseudo-header twice": [*GET, (b":path", b"/smuggled")],
    "8.3 unknown pseudo-header": [(b":unknown", b"a"), *GET],
    "8.3 pseudo-header of a response": [(b":status", b"200"), *GET],
    "8.3.1 no method": replaced(b":method", None),
    "8.3.1 no scheme": replaced(b":scheme", None),
    "8.3.1 no path": replaced(b":path", None),
    "8.3.1 empty path": replaced(b":path", b""),
    "8.3.1 path without a slash": replaced(b":path", b"first"),
    "8.3.1 path that is absolute": replaced(b":path", b"https://x/first"),
    "8.3.1 path with a space": replaced(b":path", b"/first HTTP/1.1"),
    "8.3.1 path with CRLF": replaced(b":path", b"/first HTTP/1.1\r\nx: a"),
    "8.3.1 method with CRLF": replaced(b":method", b"GET /smuggled HTTP/1.1\r\nx: a"),
    "8.3.1 scheme that is none": replaced(b":scheme", b"https://x/smuggled?"),
    "8.3.1 authority with a space": replaced(b":authority", b"x y"),
    "8.3.1 empty authority": replaced(b":authority", b""),
    "8.3.1 authority with userinfo": replaced(b":authority", b"user@x"),
    "8.3.1 another Host than the authority": with_field(b"host", b"other"),
    "9110-7.2 two Hosts": [METHOD, SCHEME, PATH, (b"host", b"x"), (b"host", b"other")],
    "8.5 CONNECT with a path": [(b":method", b"CONNECT"), *GET[1:]],
    "8441-4 extended CONNECT, not offered": [(b":method", b"CONNECT"), (b":protocol", b"websocket"), *GET[1:]],
    "8.1.1 length without content": with_field(b"content-length", b"5"),
    "8.1.1 length that is none": with_field(b"content-length", b"x"),
    "8.1.1 lengths differ": [*GET, (b"content-length", b"0"), (b"content-length", b"1")],
}


@pytest.mark.parametrize("fields", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_request_reaches_no_handler(
    target: Target, connect: Callable[[], Http2Client], fields: Fields
) -> None:
    client = connect()
    client.send(frame(HEADERS, END_STREAM | END_HEADERS, 1, block(fields)))
    outcome = client.outcome(1)
    assert target.seen() == []
    assert outcome in ("400", f"reset {PROTOCOL_ERROR}", f"goaway {PROTOCOL_ERROR}")


@pytest.mark.parametrize(("length", "content"), [(b"10", b"hello"), (b"3", b"hello"), (b"0", b"hello"), (b"5", b"")])
def test_content_of_another_length_reaches_no_handler(
    target: Target, connect: Callable[[], Http2Client], length: bytes, content: bytes
) -> None:
    """RFC 9113 section 8.1.1."""
    client = connect()
    client.send(frame(HEADERS, END_HEADERS, 1, block([*POST, (b"content-length", length)])))
    client.send(frame(DATA, END_STREAM, 1, content))
    outcome = client.outcome(1)
    assert target.seen() == []
    assert outcome in ("400", f"reset {PROTOCOL_ERROR}", f"goaway {PROTOCOL_ERROR}")


def test_what_is_well_formed_is_served(target: Target, connect: Callable[[], Http2Client]) -> None:
    client = connect()
    trailers = block([(b"host", b"evil"), (b"x", b"evil")])
    client.send(frame(HEADERS, END_HEADERS, 1, block([*POST, (b"te", b"trailers"), (b"content-length", b"5")])))
    client.send(frame(DATA, PADDED, 1, b"\x03hel\0\0\0") + frame(DATA, 0, 1) + frame(DATA, 0, 1, b"lo"))
    client.send(frame(HEADERS, END_STREAM | END_HEADERS, 1, trailers))
    assert client.outcome(1) == "200"
    client.send(frame(HEADERS, END_STREAM | END_HEADERS, 3, block([*GET, (b"cookie", b"a=1"), (b"cookie", b"b=2")])))
    assert client.outcome(3) == "200"
    first, second = target.seen()
    assert first.brief == ("POST", "/first", b"hello")
    assert "evil" not in str(first.headers)  # RFC 9110 section 6.5.1
    assert first.headers["host"] == "x"
    assert second.headers["cookie"] == "a=1; b=2"  # RFC 9113 section 8.2.3


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        (with_field(b"x", b"a" * 17_000), "431"),
        ([*GET, *[(b"x", b"a")] * 101], "431"),
        (replaced(b":path", b"*"), "404"),
        ([(b":method", b"CONNECT"), (b":authority", b"x:80")], "404 405 501"),
    ],
    ids=["a head too large", "too many fields", "a path for OPTIONS", "CONNECT"],
)
def test_a_request_that_is_refused_leaves_the_connection(
    target: Target, connect: Callable[[], Http2Client], fields: Fields, status: str
) -> None:
    client = connect()
    encoded = block(fields)
    first, rest = encoded[:16_384], encoded[16_384:]
    client.send(frame(HEADERS, END_STREAM | (0 if rest else END_HEADERS), 1, first))
    if rest:
        client.send(frame(CONTINUATION, END_HEADERS, 1, rest))
    assert client.outcome(1) in status.split()
    client.send(frame(HEADERS, END_STREAM | END_HEADERS, 3, block(GET)))
    assert client.outcome(3) == "200"
    assert [seen.url for seen in target.seen()] == ["/first"]


FRAMES: dict[str, bytes] = {
    "5.1 data on an idle stream": frame(DATA, 0, 1, b"x"),
    "5.1 reset of an idle stream": reset(1),
    "5.1.1 stream of an even number": frame(HEADERS, END_STREAM | END_HEADERS, 2, block(GET)),
    "6.2 headers on stream 0": frame(HEADERS, END_STREAM | END_HEADERS, 0, block(GET)),
    "6.10 continuation alone": frame(CONTINUATION, END_HEADERS, 1, block(GET)),
    "6.2 another frame within a header block": frame(HEADERS, END_STREAM, 1, block(GET)) + frame(PING, 0, 0, bytes(8)),
    "6.2 padding longer than the frame": frame(HEADERS, END_STREAM | END_HEADERS | PADDED, 1, b"\xff" + block(GET)),
    "6.6 push from a client": frame(PUSH_PROMISE, END_HEADERS, 1, b"\0\0\0\x02" + block(GET)),
    "6.9 window of 2^31": frame(WINDOW_UPDATE, 0, 0, struct.pack("!I", (1 << 31) - 1)) * 2,
    "6.9 window of 0 more": frame(WINDOW_UPDATE, 0, 0, bytes(4)),
    "6.5 settings of 5 bytes": frame(SETTINGS, 0, 0, bytes(5)),
    "6.5.2 a frame size out of range": frame(SETTINGS, 0, 0, struct.pack("!HI", 5, 1)),
    "6.7 ping of 7 bytes": frame(PING, 0, 0, bytes(7)),
    "4.2 a frame too large": frame(DATA, 0, 1, bytes(16_385)),
    "4.3 header block that is none": frame(HEADERS, END_STREAM | END_HEADERS, 1, b"\xff" * 8),
    "3.4 HTTP/1.1": b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n",
}


@pytest.mark.parametrize("data", FRAMES.values(), ids=FRAMES)
def test_an_error_of_the_connection_ends_it(target: Target, connect: Callable[[], Http2Client], data: bytes) -> None:
    client = connect()
    client.send(data)
    assert client.outcome(-1).startswith("goaway ")
    client.raw.read_to_end()
    assert target.seen() == []


# Floods, each of a bounded count

FLOODS: dict[str, tuple[Callable[[int], bytes], int | None]] = {
    # CVE-2023-44487, rapid reset
    "requests reset at once": (
        lambda n: frame(HEADERS, END_STREAM | END_HEADERS, 2 * n + 1, block(GET)) + reset(2 * n + 1),
        ENHANCE_YOUR_CALM,
    ),
    # CVE-2024-27983 and others, CONTINUATION flood
    "continuations": (
        lambda n: frame(CONTINUATION, 0, 1, block([(b"x", b"a" * 1000)])) if n else frame(HEADERS, 1, 1, block(GET)),
        ENHANCE_YOUR_CALM,
    ),
    "empty continuations": (
        lambda n: frame(CONTINUATION, 0, 1) if n else frame(HEADERS, 1, 1, block(GET)),
        ENHANCE_YOUR_CALM,
    ),
    # CVE-2025-8671, "made you reset": the client makes the server reset its streams
    "requests that are to be reset": (
        lambda n: (
            frame(HEADERS, END_HEADERS, 2 * n + 1, block(POST))
            + frame(WINDOW_UPDATE, 0, 2 * n + 1, b"\x7f\xff\xff\xff")
        ),
        ENHANCE_YOUR_CALM,
    ),
    # CVE-2019-9512, -9515, -9516, -9518 and their kin: what costs little is served
    "pings": (lambda n: frame(PING, 0, 0, b"a ping: ") * 10, None),
    "settings": (lambda n: frame(SETTINGS, 0, 0, struct.pack("!HI", 4, n)) * 10, None),
    "priorities": (lambda n: frame(PRIORITY, 0, 2 * n + 1, b"\0\0\0\0\x01") * 10, None),
    "unknown frames": (lambda n: frame(0xFA, 0, 0, bytes(100)) * 10, None),
}


@pytest.mark.parametrize(("piece", "error"), FLOODS.values(), ids=FLOODS)
def test_a_flood_ends_its_connection_or_is_nothing(
    target: Target, connect: Callable[[], Http2Client], piece: Callable[[int], bytes], error: int | None
) -> None:
    client = connect()
    memory = resident_bytes()
    assert client.flood(piece, 5000) == error
    assert client.ended == (error is not None)
    assert resident_bytes() - memory < 16 * MIB
    target.seen()  # the bystander is served; requests that had arrived before their reset may have run


# The program of the next test ticks from the first line of its stdin on, until its end.
PROGRAM = """
import json, select, sys
from support_http import CatchAllServer

server = CatchAllServer()
server.start(0, **json.loads(sys.argv[1]))
print(server.port, server.tls_port, flush=True)
sys.stdin.readline()
while sys.stdin not in select.select([sys.stdin, server], [], [])[0]:
    server.tick()
    server.seen.clear()
server.stop()
"""


class StalledProgram(Program):
    """A server in a process of its own, which does not tick until it is told to."""

    def __init__(self, certificates: Certificates, **settings: Any) -> None:
        paths = {key: str(value) if isinstance(value, Path) else value for key, value in certificates.settings.items()}
        super().__init__("-c", PROGRAM, json.dumps({**paths, **settings}), stdin=subprocess.PIPE)
        try:
            self.port, self.tls_port = map(int, self.wait_for("\n").split())
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def tick(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()


def test_requests_that_are_reset_one_by_one_wait_for_a_tick_in_bounded_memory(certificates: Certificates) -> None:
    """Slow enough not to be a rapid reset: each request has reached the inbox before it is reset."""
    with StalledProgram(certificates, max_pending_bytes=MIB) as program:
        encoded = block([*GET, *[(b"x", b"a" * 1000)] * 10])
        with Http2Client(program.tls_port, certificates) as client:
            before = resident_bytes(program.process.pid)
            stream = 1
            for _ in range(200):
                streams = range(stream, stream + 40, 2)
                stream += 40
                client.send(b"".join(frame(HEADERS, END_STREAM | END_HEADERS, n, encoded) for n in streams))
                client.send(frame(PING, 0, 0, b"are they"))
                while (got := client.read_frame()) is not None and not (got[0] == PING and got[1] & ACK):
                    pass
                if got is None:  # the server has had enough, which is as good
                    break
                client.send(b"".join(reset(n) for n in streams))
            grown = resident_bytes(program.process.pid) - before
        program.tick()
        assert http(program.port, "GET", "/bystander").status == 200
        assert grown < 16 * MIB


def test_a_body_that_is_refused_has_its_whole_answer_before_the_reset(certificates: Certificates) -> None:
    """RFC 9113 section 8.1: a complete response, then RST_STREAM with NO_ERROR; what is still under way is ignored."""
    server = CatchAllServer()
    with (
        serving(server, max_body_size=1000, **certificates.settings),
        Http2Client(tls_port_of(server), certificates) as client,
    ):
        for stream, announced in ((1, [(b"content-length", b"30000")]), (3, [])):
            client.send(frame(HEADERS, END_HEADERS, stream, block([*POST, *announced])))
            client.send(frame(DATA, 0, stream, bytes(10_000)))
            assert client.outcome(stream) == "413"
            got = client.read_frame()
            assert got is not None and got[:2] == (DATA, END_STREAM) and got[3].startswith(b"413 ")
            client.send(frame(DATA, 0, stream, bytes(10_000)))
            assert client.outcome(stream) == "reset 0"
            client.send(frame(DATA, END_STREAM, stream, bytes(10_000)))
        client.send(frame(HEADERS, END_STREAM | END_HEADERS, 5, block(GET)))
        assert client.outcome(5) == "200"
        assert [seen.url for seen in server.seen] == ["/first"]


# Slowness

SLOW: dict[str, bytes | None] = {
    "no preface": None,
    "nothing but the preface": b"",
    "half a frame": frame(HEADERS, END_STREAM | END_HEADERS, 1, block(GET))[:12],
    "half a header block": frame(HEADERS, END_STREAM, 1, block(GET)),
}


@pytest.mark.parametrize("data", SLOW.values(), ids=SLOW)
def test_a_request_that_does_not_come_ends_the_connection(certificates: Certificates, data: bytes | None) -> None:
    server = CatchAllServer()
    with serving(server, header_timeout=0.3, handshake_timeout=0.3, **certificates.settings):
        port = tls_port_of(server)
        with Http2Client(port, certificates, preface=data is not None, timeout=3) as client:
            client.send(data or b"")
            assert client.outcome(-1) in ("end", "goaway 0")


def test_an_idle_connection_ends(certificates: Certificates) -> None:
    server = CatchAllServer()
    with (
        serving(server, header_timeout=0.3, **certificates.settings),
        Http2Client(tls_port_of(server), certificates, timeout=3) as client,
    ):
        client.send(frame(HEADERS, END_STREAM | END_HEADERS, 1, block(GET)))
        assert client.outcome(1) == "200"
        assert client.outcome(-1) in ("end", "goaway 0")


def test_a_body_that_does_not_come_gets_408_and_leaves_the_connection(certificates: Certificates) -> None:
    server = CatchAllServer()
    with (
        serving(server, body_timeout=0.3, **certificates.settings),
        Http2Client(tls_port_of(server), certificates) as client,
    ):
        client.send(frame(HEADERS, END_HEADERS, 1, block(POST)) + frame(DATA, 0, 1, b"hel"))
        client.send(frame(HEADERS, END_STREAM | END_HEADERS, 3, block(GET)))
        assert client.outcome(3) == "200"
        assert client.outcome(1) == "408"
        client.send(frame(HEADERS, END_STREAM | END_HEADERS, 5, block(GET)))
        assert client.outcome(5) == "200"
        assert [seen.url for seen in server.seen] == ["/first"] * 2
