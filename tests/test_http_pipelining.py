"""Requests one behind the other on a connection, whose bodies are wanted or not, and what is refused between them.

A bystander's connection is kept throughout, and served after each test.
"""

from __future__ import annotations

import itertools
import socket
from collections.abc import Callable, Iterator

import pytest

from pyhv import HttpRequest, HttpResponse
from support import Answer, EchoServer, RawClient, ServerThread, port_of, tick_until
from support_http import CatchAllServer, Target, answers_in, exchange, get, head

CHUNKED = b"Transfer-Encoding: chunked"


class PickyServer(CatchAllServer):
    """Has few routes, so that the native side answers with 404 and 405."""

    def on_init(self) -> None:
        self.seen = []
        self.get("/get/:n", self.take_get)
        self.post("/post", self.take)
        self.get("/bystander", self.take)
        self.get("/smuggled", self.take)

    def take_get(self, req: HttpRequest, resp: HttpResponse) -> str:
        self.take(req, resp)
        return req.params["n"]


@pytest.fixture
def target(serve: Callable[..., ServerThread]) -> Iterator[Callable[..., Target]]:
    targets: list[Target] = []

    def start(**settings: object) -> Target:
        server = PickyServer()
        targets.append(Target(server, serve(server, **settings).port))
        return targets[-1]

    yield start
    for running in targets:
        running.seen()
        running.bystander.socket.close()


def posted(body: bytes, *fields: bytes) -> bytes:
    return head(b"POST /post HTTP/1.1", b"Content-Length: %d" % len(body), *fields) + body


def chunked(body: bytes) -> bytes:
    pieces = b"".join(b"1\r\n%c\r\n" % byte for byte in body)
    return head(b"POST /post HTTP/1.1", CHUNKED) + pieces + b"0\r\n\r\n"


# One of each kind, with the status and body of its answer; `get/N` has its number.
KINDS: list[tuple[bytes, int, bytes]] = [
    (get(b"GET /get/%d HTTP/1.1"), 200, b"%d"),
    (get(b"HEAD /get/%d HTTP/1.1"), 200, b""),
    (get(b"GET /missing HTTP/1.1"), 404, b"404 Not Found\n"),
    (posted(b"hello"), 200, b"5"),
    (get(b"DELETE /post HTTP/1.1"), 405, b"405 Method Not Allowed\n"),
    (chunked(b"hello world"), 200, b"11"),
    (get(b"HEAD /missing HTTP/1.1"), 404, b""),
    (get(b"OPTIONS /post HTTP/1.1"), 204, b""),
    (posted(b""), 200, b"0"),
]


def mixed(rounds: int) -> tuple[bytes, list[tuple[int, bytes]], frozenset[int]]:
    """Requests of all kinds, their answers, and which of them are to HEAD."""
    data = b""
    answers: list[tuple[int, bytes]] = []
    heads: set[int] = set()
    for number in range(rounds):
        for request, status, body in KINDS:
            if request.startswith(b"HEAD"):
                heads.add(len(answers))
            data += request % number if b"%d" in request else request
            answers.append((status, body % number if b"%d" in body else body))
    return data, answers, frozenset(heads)


def brief(answers: list[Answer]) -> list[tuple[int, bytes]]:
    return [(answer.status, answer.body) for answer in answers]


@pytest.mark.parametrize("bytewise", [False, True], ids=["whole", "bytewise"])
def test_all_kinds_are_answered_in_order(target: Callable[..., Target], bytewise: bool) -> None:
    running = target()
    data, expected, heads = mixed(3 if bytewise else 100)
    received = exchange(running.port, data, bytewise=bytewise)
    assert brief(answers_in(received, heads=heads)) == expected


def test_a_program_that_ticks_late_answers_in_order() -> None:
    """What the native side could answer at once waits for the handler's answer before it."""
    with PickyServer() as server:
        server.start(0)
        data, expected, heads = mixed(5)
        with RawClient(port_of(server), upgrade=False) as raw, RawClient(port_of(server), upgrade=False) as other:
            raw.send_bytes(data)
            raw.socket.shutdown(socket.SHUT_WR)
            other.request("GET", "/missing")
            assert other.read_answer().status == 404  # without a tick
            assert not raw.readable()
            raw.socket.setblocking(False)

            def ended() -> bool:
                try:
                    piece = raw.socket.recv(1 << 16)
                except BlockingIOError:
                    return False
                raw.buffer += piece
                return not piece

            tick_until(ended, server, what="the connection has ended")
        assert brief(answers_in(raw.buffer, heads=heads)) == expected


def test_one_request_of_a_connection_is_with_the_program_at_a_time() -> None:
    """However many are sent: the others wait where TCP pushes back."""
    with PickyServer() as server:
        server.start(0)
        with RawClient(port_of(server), upgrade=False) as raw:
            raw.send_bytes(b"".join(get(b"GET /get/%d HTTP/1.1" % number) for number in range(50)))
            for number in range(50):
                tick_until(lambda: len(server.seen) > number, server)  # noqa: B023
                assert len(server.seen) == number + 1
                assert raw.read_answer().body == b"%d" % number


BAD: dict[str, tuple[bytes, int]] = {
    "nonsense": (b"nonsense\r\n\r\n", 400),
    "two lengths": (head(b"POST /post HTTP/1.1", b"Content-Length: 1", b"Content-Length: 2") + b"ab", 400),
    "a bad chunk": (head(b"POST /post HTTP/1.1", CHUNKED) + b"xyz\r\n", 400),
    "no Host": (head(b"GET /get/0 HTTP/1.1", host=b""), 400),
    "a head too large": (get(b"GET /get/0 HTTP/1.1", b"X: " + b"a" * 20_000), 431),
    "too many fields": (get(b"GET /get/0 HTTP/1.1", *[b"X: a"] * 101), 431),
    "far too many fields": (get(b"GET /get/0 HTTP/1.1", *[b"X: a"] * 1000), 431),
    "a body too large, announced": (posted(bytes(1001)), 413),
    "a body too large, in chunks": (chunked(bytes(1001)), 413),
    "a body too large, not sent": (head(b"POST /post HTTP/1.1", b"Content-Length: 1001"), 413),
    "a handshake of another version": (
        get(b"GET / HTTP/1.1", b"Upgrade: websocket", b"Connection: Upgrade", b"Sec-WebSocket-Version: 8"),
        426,
    ),
    "the last one": (get(b"GET /get/0 HTTP/1.1", b"Connection: close"), 200),
}


@pytest.mark.parametrize(("bad", "status"), BAD.values(), ids=BAD)
def test_a_refusal_in_the_middle_ends_the_connection_behind_the_answers_before_it(
    target: Callable[..., Target], bad: bytes, status: int
) -> None:
    running = target(max_body_size=1000)
    before, expected, heads = mixed(3)
    received = answers_in(exchange(running.port, before + bad + get(b"GET /smuggled HTTP/1.1")), heads=heads)
    assert brief(received[:-1]) == expected
    assert received[-1].status == status
    assert received[-1].headers["connection"].split(", ")[-1] == "close"
    assert "/smuggled" not in [seen.url for seen in running.seen()]


UNREAD: dict[str, tuple[bytes, int]] = {
    "404": (b"POST /missing HTTP/1.1", 404),
    "405": (b"DELETE /post HTTP/1.1", 405),
    "OPTIONS": (b"OPTIONS /post HTTP/1.1", 204),
    "GET with content": (b"GET /get/1 HTTP/1.1", 200),
}


@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("repeats", [1, 200, 20_000])
@pytest.mark.parametrize(("line", "status"), UNREAD.values(), ids=UNREAD)
def test_a_body_that_nobody_wants_is_no_request(
    target: Callable[..., Target], line: bytes, status: int, repeats: int, framing: str
) -> None:
    """It is read or the connection ends; it is not taken for what comes next."""
    running = target()
    body = get(b"GET /smuggled HTTP/1.1") * repeats
    if framing == "length":
        data = get(line, b"Content-Length: %d" % len(body)) + body
    else:
        data = get(line, CHUNKED) + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    received = answers_in(exchange(running.port, data + get(b"GET /get/2 HTTP/1.1")))
    assert [answer.status for answer in received] in ([status], [status, 200])
    assert "/smuggled" not in [seen.url for seen in running.seen()]


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_client_that_sends_all_before_it_reads_gets_the_refusal(target: Callable[..., Target], framing: str) -> None:
    """RFC 9112 section 9.6: closing with data unread may cost the client the answer."""
    running = target(max_body_size=1000)
    body = bytes(32 << 20)
    with RawClient(running.port, upgrade=False) as raw:
        if framing == "length":
            raw.send_bytes(head(b"POST /post HTTP/1.1", b"Content-Length: %d" % len(body)) + body)
        else:
            raw.send_bytes(head(b"POST /post HTTP/1.1", CHUNKED) + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))
        assert raw.read_answer().status == 413
        raw.expect_end()


# Expect (RFC 9110 section 10.1.1)

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def expecting(*fields: bytes, line: bytes = b"POST /post HTTP/1.1") -> bytes:
    return get(line, b"Expect: 100-continue", *fields)


@pytest.mark.parametrize("spelling", [b"100-continue", b"100-Continue"])
def test_the_body_is_asked_for_and_then_served(target: Callable[..., Target], spelling: bytes) -> None:
    with RawClient(target().port, upgrade=False) as raw:
        for _ in range(2):  # the connection is kept
            raw.send_bytes(get(b"POST /post HTTP/1.1", b"Expect: " + spelling, b"Content-Length: 5"))
            assert raw.read_exactly(len(CONTINUE)) == CONTINUE
            raw.send_bytes(b"hello")
            assert raw.read_answer().body == b"5"


NOT_WANTED: dict[str, tuple[bytes, tuple[int, ...]]] = {
    "too large": (expecting(b"Content-Length: 1001"), (413,)),
    "no such path": (expecting(b"Content-Length: 5", line=b"POST /missing HTTP/1.1"), (404,)),
    "no such method": (expecting(b"Content-Length: 5", line=b"PUT /post HTTP/1.1"), (405,)),
    "no Host": (head(b"POST /post HTTP/1.1", b"Expect: 100-continue", b"Content-Length: 5", host=b""), (400,)),
    "no length that parses": (expecting(b"Content-Length: x"), (400,)),
    "a handshake": (
        expecting(b"Upgrade: websocket", b"Connection: Upgrade", b"Content-Length: 5", line=b"GET / HTTP/1.1"),
        (426, 400),  # 400: it has content
    ),
}


@pytest.mark.parametrize(("data", "statuses"), NOT_WANTED.values(), ids=NOT_WANTED)
def test_a_body_that_is_refused_is_not_asked_for(
    target: Callable[..., Target], data: bytes, statuses: tuple[int, ...]
) -> None:
    """The final status comes instead of 100; a client may send the body all the same, and it is no request."""
    running = target(max_body_size=1000)
    received = answers_in(exchange(running.port, data))
    assert [answer.status in statuses for answer in received] == [True]
    received = answers_in(exchange(running.port, data + get(b"GET /smuggled HTTP/1.1")))
    assert received[0].status in statuses
    assert "/smuggled" not in [seen.url for seen in running.seen()]


@pytest.mark.parametrize(
    "data",
    [
        get(b"GET /get/1 HTTP/1.1", b"Expect: 100-continue"),  # there is no content to ask for
        head(b"POST /post HTTP/1.0", b"Expect: 100-continue", b"Content-Length: 1") + b"1",
    ],
    ids=["no content", "HTTP/1.0"],
)
def test_an_expectation_to_be_ignored(target: Callable[..., Target], data: bytes) -> None:
    received = answers_in(exchange(target().port, data))
    assert brief(received) == [(200, b"1")]


def test_an_unknown_expectation_is_refused_or_ignored(target: Callable[..., Target]) -> None:
    received = answers_in(exchange(target().port, posted(b"hello", b"Expect: 200-maybe")))
    assert [answer.status for answer in received] in ([200], [417])


# Slowness

SLOW: dict[str, tuple[bytes, tuple[int, ...]]] = {
    "nothing": (b"", ()),
    "half a request line": (b"GET /ge", (408,)),
    "half a head": (get()[:-2], (408,)),
    "a head behind an answer": (get(b"GET /get/1 HTTP/1.1") + b"GET /g", (200, 408)),
    "a body": (posted(b"hello")[:-1], (408,)),
    "chunks": (head(b"POST /post HTTP/1.1", CHUNKED) + b"5\r\nhel", (408,)),
    "a chunk size": (head(b"POST /post HTTP/1.1", CHUNKED) + b"5", (408,)),
    "trailers": (head(b"POST /post HTTP/1.1", CHUNKED) + b"0\r\nX: ", (408,)),
    "a body that was asked for": (expecting(b"Content-Length: 5"), (100, 408)),
}


@pytest.mark.parametrize(("data", "statuses"), SLOW.values(), ids=SLOW)
def test_what_does_not_go_on_ends(target: Callable[..., Target], data: bytes, statuses: tuple[int, ...]) -> None:
    """With 408 or without; the client keeps its sending side open."""
    running = target(handshake_timeout=0.3, header_timeout=0.3, body_timeout=0.3)
    with RawClient(running.port, upgrade=False) as raw:
        raw.send_bytes(data)
        received = answers_in(raw.read_to_end())
    assert tuple(answer.status for answer in received) in (statuses, statuses[:-1])
    running.bystander.socket.close()
    running.bystander = RawClient(running.port, upgrade=False)  # the idle one has ended too


def test_a_body_that_drips_ends(target: Callable[..., Target]) -> None:
    """Each byte is no new grace."""
    running = target(body_timeout=0.3)
    with RawClient(running.port, upgrade=False) as raw:
        raw.send_bytes(head(b"POST /post HTTP/1.1", b"Content-Length: 100000"))
        for count in itertools.count():
            if raw.readable(0.02):
                break
            assert count < 1000, "still connected after 20 s"
            raw.send_bytes(b"x")
        assert raw.read_answer().status == 408
        raw.expect_end()


def test_a_handler_of_a_client_that_has_gone_harms_nobody() -> None:
    server = EchoServer()
    server.get("/x", lambda req, resp: resp.text("x"))
    with server:
        server.start(0)
        with RawClient(port_of(server), upgrade=False) as kept:
            for number in range(20):
                raw = RawClient(port_of(server), upgrade=False)
                raw.send_bytes(get(b"GET /x HTTP/1.1") * 10)
                raw.reset() if number % 2 else raw.socket.close()
            kept.request("GET", "/x")
            tick_until(kept.readable, server)
            assert kept.read_answer().body == b"x"
        assert server.record.count("error") == 0
