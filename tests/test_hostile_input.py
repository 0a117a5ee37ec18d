"""What a hostile or broken peer sends: it is refused in the right words, and nobody else notices.

Every test that uses `target` has a bystander connected before the attack. Afterwards it still gets its
echoes, no callback has raised, and the sockets of the attack are closed.
"""

from __future__ import annotations

import base64
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pyhv import HttpRequest, HttpResponse, WsOpcode
from support import (
    HOST,
    Answer,
    EchoServer,
    RawClient,
    RecordingServer,
    ServerThread,
    build_frame,
    close_payload,
    port_of,
    resident_bytes,
    tick_until,
    wait_until,
)
from support_load import CountingServerProgram, sockets_of

MIB = 1 << 20


class TargetServer(EchoServer):
    def on_init(self) -> None:
        self.get("/ping", lambda req, resp: resp.text("pong"))
        self.get("/number/:n", self.get_number)
        self.post("/size", self.post_size)

    def get_number(self, req: HttpRequest, resp: HttpResponse) -> str:
        return req.params["n"]

    def post_size(self, req: HttpRequest, resp: HttpResponse) -> str:
        return str(len(req.body))


class Target:
    """A server on a thread of its own, and a bystander."""

    def __init__(self, thread: ServerThread, server: TargetServer) -> None:
        self.server = server
        self.port = thread.port
        self.bystander = RawClient(self.port, "/bystander")
        self.echoes = 0
        self.check_bystander()
        self.sockets = sockets_of()

    def check_bystander(self) -> None:
        self.echoes += 1
        self.bystander.send_text(f"echo {self.echoes}")
        assert self.bystander.read_message() == f"echo {self.echoes}"

    def check(self) -> None:
        """After the attack, whose sockets the test has closed."""
        self.check_bystander()
        wait_until(lambda: len(self.server.channels) == 1, what="every other channel is closed")
        wait_until(lambda: sockets_of() <= self.sockets, what="the sockets of the attack are closed")
        self.check_bystander()
        assert self.server.record.count("error") == 0
        self.bystander.socket.close()

    def attacker(self) -> Any:
        """The channel that is not the bystander's; its open has been recorded."""
        return wait_until(
            lambda: next(
                (c.who for c in self.server.record.calls if c.what == "open" and c.value != "/bystander"),
                None,
            )
        )

    def events(self) -> list[tuple[str, Any]]:
        """What the program has seen of the attacker, once that is over."""
        channel = self.attacker()
        record = self.server.record
        wait_until(lambda: any(what == "close" for what, _ in record.of(channel)), what="the close is seen")
        return record.of(channel)


@pytest.fixture
def target(serve: Callable[..., ServerThread]) -> Iterator[Callable[..., Target]]:
    targets = []

    def start(**settings: Any) -> Target:
        server = TargetServer()
        targets.append(Target(serve(server, **settings), server))
        return targets[-1]

    yield start
    for running in targets:
        running.check()


# Violations of the WebSocket protocol

TEXT, BINARY, CONTINUATION = WsOpcode.TEXT, WsOpcode.BINARY, WsOpcode.CONTINUATION
CLOSE, PING, PONG = WsOpcode.CLOSE, WsOpcode.PING, WsOpcode.PONG

VIOLATIONS: dict[str, tuple[int, bytes]] = {
    "unmasked text": (1002, build_frame(TEXT, b"x", mask=None)),
    "unmasked ping": (1002, build_frame(PING, mask=None)),
    "unmasked close": (1002, build_frame(CLOSE, close_payload(1000), mask=None)),
    **{f"RSV{3 - bit}": (1002, build_frame(TEXT, b"x", rsv=1 << bit)) for bit in range(3)},
    "RSV1 in a ping": (1002, build_frame(PING, rsv=4)),
    **{f"opcode {n}": (1002, build_frame(n, b"x")) for n in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)},
    "fragmented ping": (1002, build_frame(PING, b"x", fin=False)),
    "fragmented pong": (1002, build_frame(PONG, b"x", fin=False)),
    "fragmented close": (1002, build_frame(CLOSE, close_payload(1000), fin=False)),
    "ping of 126 bytes": (1002, build_frame(PING, bytes(126))),
    "pong of 70000 bytes": (1002, build_frame(PONG, bytes(70000))),
    "close of 126 bytes": (1002, build_frame(CLOSE, close_payload(1000, "x" * 124))),
    "continuation without start": (1002, build_frame(CONTINUATION, b"x")),
    "unfinished continuation without start": (1002, build_frame(CONTINUATION, b"x", fin=False)),
    "continuation after the end": (
        1002,
        build_frame(PING) + build_frame(CONTINUATION),
    ),
    "text inside fragments": (1002, build_frame(TEXT, b"x", fin=False) + build_frame(TEXT, b"y")),
    "binary inside fragments": (1002, build_frame(BINARY, b"x", fin=False) + build_frame(BINARY, b"y")),
    "length not minimal, 16 bits": (1002, b"\x82\xfe\x00\x05" + bytes(4 + 5)),
    "length not minimal, 64 bits": (1002, b"\x82\xff" + (65535).to_bytes(8, "big") + bytes(4)),
    "length with its top bit": (1002, b"\x82\xff" + (1 << 63 | 5).to_bytes(8, "big") + bytes(4)),
    "length of 2 to the 62": (1009, b"\x82\xff" + (1 << 62).to_bytes(8, "big") + bytes(4)),
    "length of 2 to the 63 less 1": (1009, b"\x82\xff" + ((1 << 63) - 1).to_bytes(8, "big") + bytes(4)),
    "one byte over 16 MiB": (1009, b"\x82\xff" + (16 * MIB + 1).to_bytes(8, "big") + bytes(4)),
    "no UTF-8": (1007, build_frame(TEXT, b"\xff")),
    "UTF-8 that breaks off": (1007, build_frame(TEXT, b"abc\xc3")),
    "overlong UTF-8": (1007, build_frame(TEXT, b"\xc0\x80")),
    "a surrogate": (1007, build_frame(TEXT, b"\xed\xa0\x80")),
    "beyond Unicode": (1007, build_frame(TEXT, b"\xf4\x90\x80\x80")),
    "no UTF-8 over two fragments": (
        1007,
        build_frame(TEXT, b"\xc3", fin=False) + build_frame(CONTINUATION, b"("),
    ),
    "UTF-8 that breaks off in fragments": (
        1007,
        build_frame(TEXT, b"\xf0\x9f", fin=False) + build_frame(CONTINUATION, b"\x98"),
    ),
    "no UTF-8, early: the frame goes on": (1007, build_frame(TEXT, b"ab\xff", length=100_000)),
    "no UTF-8, early: the message goes on": (1007, build_frame(TEXT, b"ab\xff", fin=False)),
    **{
        f"close code {code}": (1002, build_frame(CLOSE, close_payload(code)))
        for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535)
    },
    "close of one byte": (1002, build_frame(CLOSE, b"\x03")),
    "close reason not UTF-8": (1007, build_frame(CLOSE, close_payload(1000) + b"\xff")),
    "an HTTP request": (1002, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
    "zeros": (1002, bytes(1000)),
}


@pytest.mark.parametrize(("code", "data"), VIOLATIONS.values(), ids=VIOLATIONS)
def test_a_violation_ends_the_channel_with_its_code(target: Callable[..., Target], code: int, data: bytes) -> None:
    under_attack = target()
    with RawClient(under_attack.port, "/attack") as raw:
        before = build_frame(TEXT, b"before") + build_frame(BINARY, b"\x00")
        raw.send_bytes(before + data)
        # What came before the violation has been delivered, and its answers leave before the close frame.
        assert raw.read_message() == "before"
        assert raw.read_message() == b"\x00"
        answer = raw.read_close()
        assert answer.close_code == code
        assert answer.close_reason  # says which rule it was
        raw.expect_end()
    expected = [("open", "/attack"), ("message", "before"), ("message", b"\x00"), ("close", code)]
    assert under_attack.events() == expected
    assert under_attack.attacker().close_reason == answer.close_reason


def test_nothing_after_a_violation_is_delivered(target: Callable[..., Target]) -> None:
    under_attack = target()
    with RawClient(under_attack.port, "/attack") as raw:
        raw.send_bytes(
            build_frame(TEXT, b"before")
            + build_frame(3, b"violation")
            + build_frame(TEXT, b"after")
            + build_frame(PING)
            + build_frame(CLOSE, close_payload(1000))
        )
        assert raw.read_message() == "before"
        frame = raw.read_frame()  # no pong
        assert (frame.opcode, frame.close_code) == (CLOSE, 1002)
        raw.send_text("later")
        raw.expect_end()
    assert under_attack.events() == [("open", "/attack"), ("message", "before"), ("close", 1002)]


@pytest.mark.parametrize("pieces", [1, 3], ids=["one frame", "fragments"])
def test_a_message_too_large_is_named_in_the_log_with_its_setting(
    target: Callable[..., Target], caplog: pytest.LogCaptureFixture, pieces: int
) -> None:
    under_attack = target(max_message_size=2000)
    with caplog.at_level(logging.WARNING, "pyhv"), RawClient(under_attack.port, "/attack") as raw:
        for piece in range(pieces):
            opcode = CONTINUATION if piece else BINARY
            raw.send_frame(opcode, bytes(2001 // pieces + 1), fin=piece == pieces - 1)
        answer = raw.read_close()
        assert answer.close_code == 1009
        raw.expect_end()
    assert under_attack.events() == [("open", "/attack"), ("close", 1009)]
    lines = [record for record in caplog.records if record.name.startswith("pyhv")]
    assert len(lines) == 1
    assert lines[0].levelno == logging.WARNING
    for part in ("1009", "max_message_size=2000", "/attack"):
        assert part in lines[0].getMessage()


@pytest.mark.parametrize(
    ("setting", "frames"),
    [
        ("max_frame_size=10", [(BINARY, bytes(11), True)]),
        ("max_fragments=2", [(BINARY, b"", False), (CONTINUATION, b"", False), (CONTINUATION, b"", True)]),
    ],
)
def test_frames_and_fragments_have_limits_named_in_the_log(
    target: Callable[..., Target],
    caplog: pytest.LogCaptureFixture,
    setting: str,
    frames: list[tuple[int, bytes, bool]],
) -> None:
    name, value = setting.split("=")
    under_attack = target(**{name: int(value)})
    with caplog.at_level(logging.WARNING, "pyhv"), RawClient(under_attack.port, "/attack") as raw:
        raw.send_frame(BINARY, bytes(10), fin=True)
        for opcode, payload, fin in frames:
            raw.send_frame(opcode, payload, fin=fin)
        assert raw.read_close().close_code == 1009
        raw.expect_end()
    assert under_attack.events()[-1] == ("close", 1009)
    assert any(setting in record.getMessage() for record in caplog.records)


def test_a_violation_glued_to_the_handshake(target: Callable[..., Target]) -> None:
    under_attack = target()
    with RawClient(under_attack.port, upgrade=False) as raw:
        raw.send_bytes(handshake(path="/attack") + build_frame(TEXT, b"before") + build_frame(5))
        assert raw.read_head()[0] == 101
        assert raw.read_message() == "before"
        assert raw.read_close().close_code == 1002
        raw.expect_end()
    assert under_attack.events() == [("open", "/attack"), ("message", "before"), ("close", 1002)]


def test_many_attackers_at_once(target: Callable[..., Target]) -> None:
    under_attack = target()
    attackers = [(code, data, RawClient(under_attack.port)) for code, data in VIOLATIONS.values()]
    for _, data, raw in attackers:
        raw.send_bytes(data)
        under_attack.check_bystander()
    for code, _, raw in attackers:
        assert raw.read_close().close_code == code
        raw.expect_end()
        raw.socket.close()


# While the program does not tick


@pytest.mark.parametrize(
    ("sent", "code"), [(build_frame(3), 1002), (build_frame(CLOSE, close_payload(4000, "bye")), 4000)]
)
def test_an_end_is_answered_within_close_timeout_without_a_tick(sent: bytes, code: int) -> None:
    with RecordingServer() as server:
        server.start(0, close_timeout=0.3)
        with RawClient(port_of(server)) as raw:
            raw.send_text("before")
            raw.send_bytes(sent)
            assert raw.read_close().close_code == code
            raw.expect_end()
            assert not server.record.calls
        tick_until(lambda: server.record.count("close"), server)
        assert [(call.what, call.value) for call in server.record.calls] == [
            ("open", "/"),
            ("message", "before"),
            ("close", code),
        ]


@pytest.mark.parametrize(
    ("sent", "code"), [(build_frame(3), 1002), (build_frame(CLOSE, close_payload(4000, "bye")), 4000)]
)
def test_an_end_is_answered_at_once_when_the_program_has_seen_everything(sent: bytes, code: int) -> None:
    with RecordingServer() as server:
        server.start(0, close_timeout=1000)  # not what answers here
        with RawClient(port_of(server)) as raw:
            raw.send_text("before")
            tick_until(lambda: server.record.count("message"), server)
            raw.send_bytes(sent)
            assert raw.read_close().close_code == code
            raw.expect_end()
            assert server.record.count("close") == 0
        tick_until(lambda: server.record.count("close"), server)
        assert server.record.values("close") == [code]


@pytest.mark.parametrize(
    ("sent", "code"), [(build_frame(3), 1002), (build_frame(CLOSE, close_payload(4000, "bye")), 4000)]
)
def test_what_the_next_tick_sends_leaves_before_the_close_frame(sent: bytes, code: int) -> None:
    with EchoServer() as server:
        server.start(0, close_timeout=1000)
        with RawClient(port_of(server)) as raw:
            raw.send_bytes(b"".join(build_frame(TEXT, b"%d" % n) for n in range(100)) + sent)
            # Nothing tells that all of it has been read but the closing itself: tick once it is there.
            tick_until(lambda: server.record.count("close"), server)
            assert [raw.read_message() for _ in range(100)] == [str(n) for n in range(100)]
            assert raw.read_close().close_code == code
            raw.expect_end()


def test_a_peer_that_never_answers_a_close_is_dropped(server: RecordingServer) -> None:
    server.stop()
    server.start(0, close_timeout=0.3)
    with RawClient(port_of(server)) as raw:
        tick_until(lambda: server.channels, server)
        server.channels[0].close(4000, "go")
        assert raw.read_close().close_code == 4000
        tick_until(lambda: server.record.count("close"), server)
        assert server.record.values("close") == [1006]
        raw.expect_end()


def test_a_peer_that_talks_on_after_its_violation_is_dropped() -> None:
    """The server half-closes and reads on, lest a reset takes its close frame with it; not for ever."""
    with RecordingServer() as server:
        server.start(0, close_timeout=0.3)
        with RawClient(port_of(server)) as raw:
            tick_until(lambda: server.channels, server)
            sockets = sockets_of()
            raw.send_bytes(build_frame(3))
            assert raw.read_close().close_code == 1002

            def dropped() -> bool:
                try:
                    raw.send_bytes(bytes(1000))
                except (BrokenPipeError, ConnectionResetError):
                    return True
                return False

            wait_until(dropped, what="the server closes the socket")
            assert sockets_of() < sockets
        tick_until(lambda: server.record.count("close"), server)
        assert server.record.values("close") == [1002]


# Floods

#: The stop at the end of a test does not wait long for the clients, which then are still connected.
SHORT = {"close_timeout": 0.2}


def test_a_ping_flood_without_reading() -> None:
    """Only the newest ping is owed a pong (RFC 6455 section 5.5.3): what cannot leave does not pile up."""
    with CountingServerProgram(**SHORT) as server, RawClient(server.port) as bystander:
        with RawClient(server.port, receive_buffer=4096) as raw:
            bystander.send_text("before")
            assert bystander.read_message() == "before"
            memory = resident_bytes(server.pid)
            flood = b"".join(build_frame(PING, b"%0125d" % n) for n in range(8000))
            for _ in range(48):  # 50 MB
                raw.send_bytes(flood)
            raw.send_ping(b"the last")
            bystander.send_text("during")
            assert bystander.read_message() == "during"
            assert resident_bytes(server.pid) - memory < 8 * MIB
            pongs = 0
            while (frame := raw.read_frame()).payload != b"the last":
                assert frame.opcode == PONG
                pongs += 1
            assert 0 < pongs < 48 * 8000
        server.stop()


def test_a_peer_that_sends_and_does_not_read_its_echoes() -> None:
    with CountingServerProgram(max_buffered=MIB, **SHORT) as server, RawClient(server.port) as bystander:
        with RawClient(server.port, receive_buffer=4096) as raw:
            bystander.send_text("before")
            assert bystander.read_message() == "before"
            memory = resident_bytes(server.pid)
            frame = build_frame(BINARY, bytes(60_000))
            for _ in range(1000):  # 60 MB, or until the server has gone
                try:
                    raw.send_bytes(frame)
                except (BrokenPipeError, ConnectionResetError):
                    break
            bystander.send_text("during")
            assert bystander.read_message() == "during"
            assert resident_bytes(server.pid) - memory < 8 * MIB
            answer = raw.read_close()
            assert answer.close_code == 1008
            assert "max_buffered" in answer.close_reason
        server.stop()


@pytest.mark.parametrize("how", ["send", "broadcast"])
def test_a_slow_reader_is_closed_with_1008(caplog: pytest.LogCaptureFixture, how: str) -> None:
    limit = 300_000
    message = bytes(50_000)
    with RecordingServer() as server, caplog.at_level(logging.WARNING, "pyhv"):
        server.start(0, max_buffered=limit, close_timeout=1000)
        with (
            RawClient(port_of(server), "/slow", receive_buffer=4096) as slow,
            RawClient(port_of(server), "/bystander") as bystander,
        ):
            tick_until(lambda: len(server.channels) == 2, server)
            channels = {channel.path: channel for channel in server.channels}
            sent = 0
            accepted = True
            while not server.record.count("close"):
                assert sent < 2000, "100 MB fit into the socket's buffers?"
                if how == "broadcast":
                    server.broadcast(message)
                else:
                    accepted = channels["/slow"].send(message)
                    assert channels["/bystander"].send(message)
                sent += 1
                server.tick()
                assert bystander.read_message() == message
                assert channels["/slow"].buffered_amount <= limit
                if not accepted:
                    tick_until(lambda: server.record.count("close"), server)
            assert [(c.who.path, c.value) for c in server.record.calls if c.what == "close"] == [("/slow", 1008)]
            assert "max_buffered" in (channels["/slow"].close_reason or "")
            assert channels["/slow"].send("more") is False
            received = 0
            while (frame := slow.read_frame()).opcode == BINARY:
                assert frame.payload == message
                received += 1
            assert frame.close_code == 1008
            assert "max_buffered" in frame.close_reason
            assert 0 < received < sent
            slow.expect_end()
            warnings = [r.getMessage() for r in caplog.records if r.name == "pyhv.server"]
            assert len(warnings) == 1
            assert f"max_buffered={limit}" in warnings[0]
            server.broadcast("still here")
            assert bystander.read_message() == "still here"


def test_claimed_lengths_allocate_nothing() -> None:
    with CountingServerProgram(**SHORT) as server:
        server.counts()
        with RawClient(server.port) as bystander:
            bystander.send_text("before")
            assert bystander.read_message() == "before"
            memory = resident_bytes(server.pid)
            clients = [RawClient(server.port) for _ in range(50)]
            for number, raw in enumerate(clients):
                # Half of them claim the most that is allowed and then say nothing.
                raw.send_frame(BINARY, b"x" * 100, length=16 * MIB if number % 2 else 1 << 62)
                raw.send_ping()  # part of the payload
            for raw in clients[::2]:
                assert raw.read_close().close_code == 1009
            bystander.send_text("during")
            assert bystander.read_message() == "during"
            assert resident_bytes(server.pid) - memory < 8 * MIB
            for raw in clients:
                raw.reset()
        server.wait_until_empty()
        server.stop()


def test_a_flood_of_empty_fragments() -> None:
    """Each costs the sender six bytes; none may cost the server memory."""
    with CountingServerProgram(**SHORT, max_fragments=1 << 22) as server, RawClient(server.port) as raw:
        raw.send_frame(TEXT, b"begin ", fin=False)
        raw.send_ping()
        assert raw.read_frame().opcode == PONG
        memory = resident_bytes(server.pid)
        flood = build_frame(CONTINUATION, fin=False) * 100_000
        for _ in range(20):
            raw.send_bytes(flood)
        raw.send_frame(CONTINUATION, b"end")
        assert raw.read_message() == "begin end"
        assert resident_bytes(server.pid) - memory < 8 * MIB
        server.stop()


# HTTP


def handshake(method: str = "GET", version: str = "HTTP/1.1", path: str = "/", **changed: str | None) -> bytes:
    """An opening handshake; `changed`: headers by name with `_` for `-`, None to leave one out."""
    headers: dict[str, str | None] = {
        "Host": HOST,
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
        "Sec-WebSocket-Version": "13",
    }
    headers.update({name.replace("_", "-"): value for name, value in changed.items()})
    lines = [f"{name}: {value}" for name, value in headers.items() if value is not None]
    return "\r\n".join([f"{method} {path} {version}", *lines, "", ""]).encode()


def answer_to(port: int, data: bytes, status: int) -> Answer:
    """The server's answer, which has this status; then it ends the connection."""
    with RawClient(port, upgrade=False) as raw:
        raw.send_bytes(data)
        answer = raw.read_answer()
        assert answer.status == status, answer
        raw.expect_end()
        return answer


BAD_REQUESTS: dict[str, bytes] = {
    "no HTTP": b"hello\r\n\r\n",
    "a TLS handshake": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
    "a bad version": b"GET / HTTP/1.9\r\nHost: x\r\n\r\n",
    "no version": b"GET /\r\nHost: x\r\n\r\n",
    "a space in the target": b"GET /a b HTTP/1.1\r\nHost: x\r\n\r\n",
    "a bad method": b"GE(T / HTTP/1.1\r\nHost: x\r\n\r\n",
    "a header without a colon": b"GET / HTTP/1.1\r\nHost: x\r\nnonsense\r\n\r\n",
    "a header without a name": b"GET / HTTP/1.1\r\nHost: x\r\n: value\r\n\r\n",
    "a space before the colon": b"GET / HTTP/1.1\r\nHost: x\r\nName : value\r\n\r\n",
    "a NUL in a header": b"GET / HTTP/1.1\r\nHost: x\r\nName: a\0b\r\n\r\n",
    "a length that is none": b"POST /size HTTP/1.1\r\nHost: x\r\nContent-Length: abc\r\n\r\n",
    "a negative length": b"POST /size HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    "two lengths": b"POST /size HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "an unknown transfer encoding": b"POST /size HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: smoke\r\n\r\n",
    "a bad chunk": b"POST /size HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
    # RFC 9112 section 3.2: "A server MUST respond with a 400 (Bad Request) status code to any HTTP/1.1
    # request message that lacks a Host header field and to any request message that contains more than one
    # Host header field line".
    "no Host": b"GET /ping HTTP/1.1\r\n\r\n",
    "two Hosts": b"GET /ping HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
}


@pytest.mark.parametrize("data", BAD_REQUESTS.values(), ids=BAD_REQUESTS)
def test_a_request_that_does_not_parse_gets_400(target: Callable[..., Target], data: bytes) -> None:
    answer_to(target().port, data, 400)


@pytest.mark.parametrize("size", [0, 8 * 1024])
def test_a_head_within_the_limit_is_served(target: Callable[..., Target], size: int) -> None:
    with RawClient(target().port, upgrade=False) as raw:
        raw.request("GET", "/ping", [("X-Large", "x" * size)])
        assert raw.read_answer().body == b"pong"


@pytest.mark.parametrize(
    "data",
    [
        b"GET /ping HTTP/1.1\r\nHost: x\r\nX-Large: " + b"x" * 20_000 + b"\r\n\r\n",
        b"GET /ping HTTP/1.1\r\nHost: x\r\n" + b"X-Many: 1\r\n" * 2000 + b"\r\n",
        b"GET /ping HTTP/1.1\r\nHost: x\r\nX-Endless: " + b"x" * 200_000,
        handshake()[:-2] + b"X-Large: " + b"x" * 20_000 + b"\r\n\r\n",
    ],
    ids=["one header", "many headers", "endless", "handshake"],
)
def test_a_head_too_large_gets_431(target: Callable[..., Target], data: bytes) -> None:
    with RawClient(target().port, upgrade=False) as raw:
        raw.send_bytes(data)
        assert raw.read_answer().status == 431


def test_max_header_size_is_a_setting(target: Callable[..., Target]) -> None:
    data = b"GET /ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Large: " + b"x" * 20_000 + b"\r\n\r\n"
    assert answer_to(target(max_header_size=32 << 10).port, data, 200).body == b"pong"


def chunked(body: bytes, size: int) -> bytes:
    pieces = [body[begin : begin + size] for begin in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


POST = b"POST /size HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize(
    "data",
    [
        POST + b"Content-Length: 1000\r\n\r\n" + bytes(1000),
        POST + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(bytes(1000), 300),
    ],
    ids=["length", "chunked"],
)
def test_a_body_of_the_limit_is_served(target: Callable[..., Target], data: bytes) -> None:
    with RawClient(target(max_body_size=1000).port, upgrade=False) as raw:
        raw.send_bytes(data)
        assert raw.read_answer().body == b"1000"


TOO_LARGE: dict[str, bytes] = {
    "length": POST + b"Content-Length: 1001\r\n\r\n" + bytes(1001),
    "much": POST + b"Content-Length: 200000\r\n\r\n" + bytes(200_000),
    "chunked": POST + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(bytes(1001), 300),
    "chunked, endless": POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"100\r\n%s\r\n" % bytes(256) * 8,
    # The length says it all: there is nothing to wait for.
    "nothing sent yet": POST + b"Content-Length: 100000000000\r\n\r\n",
    "asking first": POST + b"Content-Length: 1001\r\nExpect: 100-continue\r\n\r\n",
}


@pytest.mark.parametrize("data", TOO_LARGE.values(), ids=TOO_LARGE)
def test_a_body_too_large_gets_413_and_a_line_in_the_log(
    target: Callable[..., Target], caplog: pytest.LogCaptureFixture, data: bytes
) -> None:
    under_attack = target(max_body_size=1000)
    with (
        caplog.at_level(logging.WARNING, "pyhv"),
        RawClient(under_attack.port, upgrade=False, timeout=5) as raw,
    ):
        raw.send_bytes(data)
        assert raw.read_answer().status == 413
        raw.read_to_end()  # what is left of the body could not be told from a request
        wait_until(lambda: caplog.records, what="the line in the log")
        assert "max_body_size=1000" in caplog.records[0].getMessage()


@pytest.mark.parametrize("sent", [b"", b"GET /pi", b"GET /ping HTTP/1.1\r\nHost: x\r\nX-"])
def test_a_head_that_does_not_come_ends_the_connection(target: Callable[..., Target], sent: bytes) -> None:
    with RawClient(target(header_timeout=0.3).port, upgrade=False) as raw:
        raw.send_bytes(sent)
        raw.read_to_end()


def test_a_head_that_drips_ends_the_connection(target: Callable[..., Target]) -> None:
    """Each byte is no new grace."""
    with RawClient(target(header_timeout=0.3).port, upgrade=False) as raw:
        raw.send_bytes(b"GET /ping HTTP/1.1\r\nHost: x\r\nX-Drip: ")
        for _ in range(500):
            if raw.readable(0.02):
                break
            raw.send_bytes(b"x")
        else:
            raise AssertionError("still connected after 10 s")


def test_an_idle_kept_connection_ends(target: Callable[..., Target]) -> None:
    with RawClient(target(header_timeout=0.3).port, upgrade=False) as raw:
        raw.request("GET", "/ping")
        assert raw.read_answer().body == b"pong"
        raw.expect_end()


@pytest.mark.parametrize(
    "sent",
    [
        POST + b"Content-Length: 10\r\n\r\n12345",
        POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n",
    ],
    ids=["length", "chunked"],
)
def test_a_body_that_does_not_come_gets_408(target: Callable[..., Target], sent: bytes) -> None:
    answer_to(target(body_timeout=0.3).port, sent, 408)


BAD_HANDSHAKES: dict[str, tuple[int, bytes]] = {
    "version 8": (426, handshake(Sec_WebSocket_Version="8")),
    "version 14": (426, handshake(Sec_WebSocket_Version="14")),
    "no version": (426, handshake(Sec_WebSocket_Version=None)),
    "no key": (400, handshake(Sec_WebSocket_Key=None)),
    "a short key": (400, handshake(Sec_WebSocket_Key="c2hvcnQ=")),
    "a key that is none": (400, handshake(Sec_WebSocket_Key="!" * 24)),
    "two keys": (400, handshake()[:-2] + b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"),
    "POST": (405, handshake("POST")),
    "HTTP/1.0": (400, handshake(version="HTTP/1.0")),
    "no Connection": (400, handshake(Connection=None)),
    "Connection: close": (400, handshake(Connection="close")),
    "no Host": (400, handshake(Host=None)),
    "a subprotocol that is no token": (400, handshake(Sec_WebSocket_Protocol="a b")),
}


@pytest.mark.parametrize(("status", "data"), BAD_HANDSHAKES.values(), ids=BAD_HANDSHAKES)
def test_a_handshake_that_is_refused(target: Callable[..., Target], status: int, data: bytes) -> None:
    answer = answer_to(target().port, data, status)
    assert answer.body  # says why
    if status == 426:
        assert answer.headers["sec-websocket-version"] == "13"
        assert answer.headers["upgrade"] == "websocket"
    if status == 405:
        assert answer.headers["allow"] == "GET"


# Pipelining


def test_pipelined_requests_are_answered_in_order(target: Callable[..., Target]) -> None:
    """Some answers come from handlers in a tick, some from the native side at once."""
    with RawClient(target().port, upgrade=False) as raw:
        requests = []
        for number in range(100):
            requests.append(f"GET /number/{number} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            requests.append(b"GET /missing HTTP/1.1\r\nHost: x\r\n\r\n")
            requests.append(POST + b"Content-Length: %d\r\n\r\n" % number + bytes(number))
        raw.send_bytes(b"".join(requests))
        for number in range(100):
            assert raw.read_answer().body == b"%d" % number
            assert raw.read_answer().status == 404
            assert raw.read_answer().body == b"%d" % number


def test_a_handshake_behind_pipelined_requests(target: Callable[..., Target]) -> None:
    with RawClient(target().port, upgrade=False) as raw:
        get = b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n"
        raw.send_bytes(get + get + handshake() + build_frame(TEXT, b"hello"))
        assert [raw.read_answer().body for _ in range(2)] == [b"pong", b"pong"]
        assert raw.read_head()[0] == 101
        assert raw.read_message() == "hello"


def test_a_bad_request_behind_good_ones_spoils_only_itself(target: Callable[..., Target]) -> None:
    with RawClient(target().port, upgrade=False) as raw:
        raw.send_bytes(b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\nnonsense\r\n\r\n")
        assert raw.read_answer().body == b"pong"
        assert raw.read_answer().status == 400
        raw.expect_end()
