"""permessage-deflate (RFC 7692) as peers see it: what is agreed on, what is compressed, and what broken data does.

The other end is zlib by hand, with exactly the window that was agreed on, or another library.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import ssl
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import aiohttp
import aiohttp.web
import pytest
import websockets.asyncio.server
import websockets.sync.client
from websockets.exceptions import ConnectionClosed

from pyhv import WebSocketChannel, WsOpcode, _native
from support import (
    HOST,
    LIMIT,
    Background,
    EchoServer,
    Frame,
    RawClient,
    RawPeer,
    RawServer,
    RecordingClient,
    RecordingServer,
    ServerThread,
    build_frame,
    connected,
    only_channel,
    port_of,
    tick_until,
    url_of,
    wait_until,
)
from support_load import CountingServerProgram

Serve = Callable[..., ServerThread]
Mode = Literal["shared", "context"]

MIB = 1 << 20
KIB = 1 << 10
TEXT, BINARY, CONTINUATION, PING, PONG = (
    WsOpcode.TEXT,
    WsOpcode.BINARY,
    WsOpcode.CONTINUATION,
    WsOpcode.PING,
    WsOpcode.PONG,
)
RSV1 = 4  # as `Frame.rsv` and `build_frame` count: the bit that marks a compressed message
TAIL = b"\x00\x00\xff\xff"  # RFC 7692 section 7.2.1
MODES: tuple[Mode, ...] = ("shared", "context")
NO_TAKEOVER = {"server_no_context_takeover", "client_no_context_takeover"}


# zlib by hand


def deflated(data: bytes, context: Any = None, bits: int = 15) -> bytes:
    """The payload of a compressed message; `context`: a compressobj that goes on."""
    context = context or zlib.compressobj(6, zlib.DEFLATED, -bits)
    out: bytes = context.compress(data) + context.flush(zlib.Z_SYNC_FLUSH)
    return out.removesuffix(TAIL)


def inflated(payload: bytes, bits: int = 15) -> bytes:
    """A compressed payload without a past, with a window of exactly 2 to the power of `bits` bytes.

    Byte by byte: what zlib puts out in one call it can refer to however small the window is.
    """
    context = zlib.decompressobj(-bits)
    out = bytearray()
    rest = payload + TAIL
    while piece := context.decompress(rest, 1):
        out += piece
        rest = context.unconsumed_tail
    return bytes(out)


def far_and_near(size: int, seed: int = 1) -> bytes:
    """Data that repeats itself at every distance a window can have."""
    dice = random.Random(seed)
    data = bytearray(dice.randbytes(64))
    while len(data) < size:
        distance = int(2 ** dice.uniform(6, 15.5))
        if distance < len(data):
            begin = len(data) - distance
            data += data[begin : begin + 48]
        data += dice.randbytes(4)
    return bytes(data[:size])


def hexadecimal(count: int, seed: int = 1) -> str:
    """Text that halves when compressed, and whose parts have nothing to do with one another."""
    return random.Random(seed).randbytes(count // 2).hex()


def parameters(answer: str | None) -> set[str] | None:
    """What stands behind permessage-deflate in an answer; None without an answer."""
    if answer is None:
        return None
    name, *rest = [part.strip() for part in answer.split(";")]
    assert name == "permessage-deflate"
    assert len(set(rest)) == len(rest)
    return set(rest)


class DeflateClient(RawClient):
    """A bare socket that offers `offer`, and compresses and inflates as agreed."""

    def __init__(self, port: int, offer: str = "permessage-deflate", path: str = "/", **options: Any) -> None:
        super().__init__(port, path, [("Sec-WebSocket-Extensions", offer)], **options)
        assert self.answer is not None
        self.agreed = parameters(self.answer.headers.get("sec-websocket-extensions"))
        agreed = self.agreed or set()
        bits = {name: value for name, _, value in (p.partition("=") for p in agreed)}
        self.inflate_bits = int(bits.get("server_max_window_bits", 15))
        # zlib has no raw window of 8 bits to compress with; nothing here asks for one.
        deflate_bits = int(bits.get("client_max_window_bits", 15))
        self.inflater = zlib.decompressobj(-self.inflate_bits)
        self.server_takes_over = "server_no_context_takeover" not in agreed
        self.deflater = (
            None if "client_no_context_takeover" in agreed else zlib.compressobj(6, zlib.DEFLATED, -deflate_bits)
        )
        self.deflate_bits = deflate_bits

    def data(self, frame: Frame) -> bytes:
        """The data of a whole message in one frame."""
        assert frame.fin and frame.opcode in (TEXT, BINARY), frame
        if frame.rsv == 0:
            return frame.payload
        assert (frame.rsv, self.agreed is not None) == (RSV1, True)
        if not self.server_takes_over:
            self.inflater = zlib.decompressobj(-self.inflate_bits)
        return self.inflater.decompress(frame.payload + TAIL)

    def read_message(self) -> str | bytes:
        while (frame := self.read_frame()).opcode in (PING, PONG):
            pass
        data = self.data(frame)
        return data.decode() if frame.opcode == TEXT else data

    def deflated(self, data: bytes) -> bytes:
        return deflated(data, self.deflater, self.deflate_bits)

    def send_deflated(self, opcode: int, data: bytes) -> None:
        self.send_frame(opcode, self.deflated(data), rsv=RSV1)


def test_our_inflater_notices_a_window_that_is_too_large() -> None:
    """What the tests of windows below rest on. (With 9 bits zlib reaches no further than 8 would let it.)"""
    data = far_and_near(70_000)
    for bits in range(10, 16):
        payload = deflated(data, bits=bits)
        assert inflated(payload, bits) == data
        with pytest.raises(zlib.error):
            inflated(payload, bits - 1)


# What is agreed on: the server

OFFER = "permessage-deflate"
SERVER_BITS, CLIENT_BITS = "server_max_window_bits", "client_max_window_bits"
SERVER_NO, CLIENT_NO = "server_no_context_takeover", "client_no_context_takeover"

#: Settings, values of the request's headers, parameters of the answer.
AGREEMENTS: list[tuple[dict[str, Any], list[str], set[str]]] = [
    # By default no context is kept in either direction, and the client is told.
    ({}, [OFFER], NO_TAKEOVER),
    ({}, [f"{OFFER}; {CLIENT_BITS}"], NO_TAKEOVER),
    ({"compression": "shared"}, [f"{OFFER}; {SERVER_NO}; {CLIENT_NO}"], NO_TAKEOVER),
    ({}, [f"{OFFER}; {SERVER_BITS}=11"], NO_TAKEOVER | {f"{SERVER_BITS}=11"}),
    ({}, [f"{OFFER}; {CLIENT_BITS}=10"], NO_TAKEOVER | {f"{CLIENT_BITS}=10"}),
    # All four.
    (
        {},
        [f"{OFFER}; {SERVER_NO}; {CLIENT_NO}; {SERVER_BITS}=9; {CLIENT_BITS}=12"],
        NO_TAKEOVER | {f"{SERVER_BITS}=9", f"{CLIENT_BITS}=12"},
    ),
    (
        {"compression": "context"},
        [f"{OFFER}; {SERVER_NO}; {CLIENT_NO}; {SERVER_BITS}=15; {CLIENT_BITS}=14"],
        NO_TAKEOVER | {f"{SERVER_BITS}=15", f"{CLIENT_BITS}=14"},
    ),
    # With contexts: only what the client asks for.
    ({"compression": "context"}, [OFFER], set()),
    ({"compression": "context"}, [f"{OFFER}; {CLIENT_BITS}"], set()),
    ({"compression": "context"}, [f"{OFFER}; {SERVER_NO}"], {SERVER_NO}),
    ({"compression": "context"}, [f"{OFFER}; {CLIENT_NO}"], {CLIENT_NO}),
    # Smaller windows. What the client did not offer to limit must not be limited (section 7.1.2.2).
    ({"compression_window_bits": 12}, [OFFER], NO_TAKEOVER),
    ({"compression_window_bits": 12}, [f"{OFFER}; {CLIENT_BITS}"], NO_TAKEOVER | {f"{CLIENT_BITS}=12"}),
    ({"compression_window_bits": 12}, [f"{OFFER}; {CLIENT_BITS}=14"], NO_TAKEOVER | {f"{CLIENT_BITS}=12"}),
    ({"compression_window_bits": 12}, [f"{OFFER}; {CLIENT_BITS}=9"], NO_TAKEOVER | {f"{CLIENT_BITS}=9"}),
    ({"compression_window_bits": 12}, [f"{OFFER}; {SERVER_BITS}=14"], NO_TAKEOVER | {f"{SERVER_BITS}=12"}),
    ({"compression_window_bits": 12}, [f"{OFFER}; {SERVER_BITS}=8"], NO_TAKEOVER | {f"{SERVER_BITS}=8"}),
    # Several offers: the first that can be met; in one header or several; beside other extensions.
    ({}, [f"{OFFER}; {SERVER_BITS}=10, {OFFER}"], NO_TAKEOVER | {f"{SERVER_BITS}=10"}),
    ({}, [f"{OFFER}, {OFFER}; {SERVER_BITS}=10"], NO_TAKEOVER),
    ({}, [f"{OFFER}; unknown=1, {OFFER}; {SERVER_BITS}=10"], NO_TAKEOVER | {f"{SERVER_BITS}=10"}),
    ({}, [f"{OFFER}; unknown", f"{OFFER}; {SERVER_BITS}=10"], NO_TAKEOVER | {f"{SERVER_BITS}=10"}),
    ({}, [f"x-webkit-deflate-frame; a=b, foo, {OFFER}"], NO_TAKEOVER),
    # Spelling: blanks, quotes, empty elements.
    ({}, [f"{OFFER} ;{SERVER_BITS} = 10;  {CLIENT_NO}"], NO_TAKEOVER | {f"{SERVER_BITS}=10"}),
    ({}, [f'{OFFER}; {SERVER_BITS}="10"'], NO_TAKEOVER | {f"{SERVER_BITS}=10"}),
    ({}, [f", {OFFER},"], NO_TAKEOVER),
]


def upgraded(port: int, values: list[str]) -> tuple[RawClient, str | None]:
    """A connection that offered `values`, and what it was answered."""
    raw = RawClient(port, "/", [("Sec-WebSocket-Extensions", value) for value in values])
    assert raw.answer is not None
    return raw, raw.answer.headers.get("sec-websocket-extensions")


@pytest.mark.parametrize(("settings", "offers", "expected"), AGREEMENTS)
def test_an_offer_is_answered_with_what_holds(settings: dict[str, Any], offers: list[str], expected: set[str]) -> None:
    with RecordingServer() as server:
        server.start(0, **settings)
        raw, answer = upgraded(port_of(server), offers)
        with raw:
            assert parameters(answer) == expected
            assert only_channel(server).is_compressed is True
            raw.send_close()
            tick_until(lambda: server.record.count("close"), server)


@pytest.mark.parametrize(
    "offers",
    [
        [],
        ["permessage-bzip2"],
        ["x-webkit-deflate-frame"],
        [f"{OFFER}2"],
        [f"{OFFER}; unknown"],
        [f"{OFFER}; unknown=1"],
        [f"{OFFER}; {SERVER_NO}; {SERVER_NO}"],
        [f"{OFFER}; {SERVER_BITS}=10; {SERVER_BITS}=10"],
        [f"{OFFER}; {CLIENT_BITS}; {CLIENT_BITS}=10"],
        [f"{OFFER}; {SERVER_NO}=1"],
        [f"{OFFER}; {CLIENT_NO}=true"],
        [f"{OFFER}; {SERVER_BITS}"],
        *[[f"{OFFER}; {SERVER_BITS}={bits}"] for bits in ("7", "16", "08", "0", "x", "1e1", "10.0", "-9", "+9", "255")],
        *[[f"{OFFER}; {CLIENT_BITS}={bits}"] for bits in ("7", "16", "08", "0", "x", "256")],
        [f"{OFFER}; {SERVER_BITS}=16, {OFFER}; {CLIENT_BITS}=7"],
    ],
)
def test_an_offer_that_cannot_be_met_is_declined_and_nothing_is_compressed(echo: EchoServer, offers: list[str]) -> None:
    raw, answer = upgraded(port_of(echo), offers)
    with raw:
        assert answer is None
        assert only_channel(echo).is_compressed is False
        raw.send_text("x" * 1000)
        tick_until(raw.readable, echo)
        assert raw.read_frame() == Frame(True, 0, TEXT, False, b"x" * 1000)
        # And what is compressed all the same breaks the protocol (RFC 6455 section 5.2).
        raw.send_frame(TEXT, deflated(b"x" * 1000), rsv=RSV1)
        tick_until(lambda: echo.record.count("close"), echo)
        assert raw.read_close().close_code == 1002


@pytest.mark.parametrize(
    "offers",
    [
        [f"{OFFER};"],
        [f"{OFFER}; ="],
        [f"{OFFER}; =10"],
        [f"{OFFER}; {SERVER_BITS}="],
        [f'{OFFER}; {SERVER_BITS}="10'],
        [f'{OFFER}; {SERVER_BITS}="1 0"'],
        [f"{OFFER} {SERVER_NO}"],
        [f'"{OFFER}"'],
        ["a b"],
        [f"{OFFER}; a/b"],
        [OFFER, "=;"],
        ["(comment)"],
    ],
)
def test_a_header_that_is_not_well_formed_gets_400(server: RecordingServer, offers: list[str]) -> None:
    with RawClient(port_of(server), upgrade=False) as raw:
        headers = [("Sec-WebSocket-Extensions", value) for value in offers]
        with pytest.raises(AssertionError, match="answered with 400"):
            raw.upgrade("/", headers)
        assert raw.answer is not None
        length = int(raw.answer.headers["content-length"])
        assert b"Sec-WebSocket-Extensions" in raw.read_exactly(length)
        raw.expect_end()
    assert not server.channels


def test_with_compression_none_nothing_is_answered() -> None:
    with EchoServer() as server:
        server.start(0, compression=None)
        raw, answer = upgraded(port_of(server), [OFFER])
        with raw:
            assert answer is None
            raw.send_text("x" * 1000)
            tick_until(raw.readable, server)
            assert raw.read_frame() == Frame(True, 0, TEXT, False, b"x" * 1000)
            assert only_channel(server).is_compressed is False
            raw.send_close()
            tick_until(lambda: server.record.count("close"), server)


# What is agreed on: the client


@pytest.mark.parametrize(
    ("settings", "offered"),
    [
        ({}, NO_TAKEOVER | {CLIENT_BITS}),
        ({"compression": "shared"}, NO_TAKEOVER | {CLIENT_BITS}),
        ({"compression": "context"}, {CLIENT_BITS}),
        ({"compression": None}, None),
        ({"compression_window_bits": 10}, NO_TAKEOVER | {f"{CLIENT_BITS}=10", f"{SERVER_BITS}=10"}),
        (
            {"compression": "context", "compression_window_bits": 8},
            {f"{CLIENT_BITS}=8", f"{SERVER_BITS}=8"},
        ),
    ],
)
def test_what_our_client_offers(settings: dict[str, Any], offered: set[str] | None) -> None:
    with RawServer() as theirs:
        client = RecordingClient()
        client.connect(theirs.url, **settings)
        peer, handshake = theirs.accept_handshake()
        with peer:
            assert parameters(handshake.headers.get("sec-websocket-extensions")) == offered
        tick_until(lambda: client.error, client)


BAD_ANSWERS: list[tuple[dict[str, Any], list[str]]] = [
    ({"compression": None}, [OFFER]),
    ({"compression": None}, ["permessage-bzip2"]),
    ({"compression": "context"}, ["permessage-bzip2"]),
    ({"compression": "context"}, [f"{OFFER}, {OFFER}"]),
    ({"compression": "context"}, [OFFER, OFFER]),
    ({"compression": "context"}, [f"{OFFER}; unknown=1"]),
    ({"compression": "context"}, [f"{OFFER}; {SERVER_BITS}=16"]),
    ({"compression": "context"}, [f"{OFFER}; {SERVER_BITS}"]),
    ({"compression": "context"}, [f"{OFFER}; {CLIENT_BITS}"]),
    ({"compression": "context"}, [f"{OFFER}; {SERVER_NO}; {SERVER_NO}"]),
    ({"compression": "context"}, [f"{OFFER};"]),
    ({"compression": "context", "compression_window_bits": 10}, [f"{OFFER}; {SERVER_BITS}=11"]),
    ({"compression": "context", "compression_window_bits": 10}, [f"{OFFER}; {SERVER_BITS}=10; {CLIENT_BITS}=11"]),
    # Demanded and not granted (sections 7.1.1.1 and 7.1.2.1).
    ({"compression": "context", "compression_window_bits": 10}, [OFFER]),
    ({"compression": "shared"}, [OFFER]),
]


@pytest.mark.parametrize(("settings", "answers"), BAD_ANSWERS)
def test_an_answer_that_was_not_offered_fails_the_connection(settings: dict[str, Any], answers: list[str]) -> None:
    with RawServer() as theirs:
        client = RecordingClient()
        client.connect(theirs.url, **settings)
        with theirs.accept_websocket([("Sec-WebSocket-Extensions", answer) for answer in answers]):
            tick_until(lambda: client.error, client)
        assert client.record.count("open") == 0
        assert any(word in str(client.error) for word in ("permessage-deflate", "extension", "Extensions"))


@pytest.mark.parametrize("bits", range(8, 16))
@pytest.mark.parametrize("mode", MODES)
def test_our_client_honours_the_window_that_the_server_sets(bits: int, mode: Mode) -> None:
    message = far_and_near(70_000)
    with RawServer() as theirs:
        client = RecordingClient()
        client.connect(theirs.url, compression=mode)
        answer = f"{OFFER}; {SERVER_NO}; {CLIENT_NO}; {CLIENT_BITS}={bits}"
        with theirs.accept_websocket([("Sec-WebSocket-Extensions", answer)]) as peer:
            tick_until(lambda: client.is_connected, client)
            assert client.is_compressed is True
            client.send(message)
            frame = peer.read_frame()
            assert (frame.rsv, frame.masked) == (RSV1, True)
            assert len(frame.payload) < len(message)
            assert inflated(frame.payload, bits) == message
            # And reads what is compressed with the whole window, which was not limited.
            peer.send_frame(BINARY, deflated(message), rsv=RSV1)
            tick_until(lambda: client.received, client)
            assert client.received == [message]
            peer.send_close()
            tick_until(lambda: client.record.count("close"), client)


# Windows: the server


@pytest.mark.parametrize("bits", range(8, 16))
@pytest.mark.parametrize("how", ["by the client", "by compression_window_bits"])
@pytest.mark.parametrize("mode", MODES)
def test_the_server_honours_a_window_exactly(bits: int, how: str, mode: Mode) -> None:
    message = far_and_near(70_000)
    settings: dict[str, Any] = {"compression": mode}
    offer = f"{OFFER}; {SERVER_NO}"
    if how == "by the client":
        offer += f"; {SERVER_BITS}={bits}"
    else:
        settings["compression_window_bits"] = bits
    with RecordingServer() as server:
        server.start(0, **settings)
        with DeflateClient(port_of(server), offer) as raw:
            only_channel(server).send(message)
            frame = raw.read_frame()
            assert frame.rsv == RSV1
            assert len(frame.payload) < len(message)
            assert inflated(frame.payload, bits) == message
            raw.send_close()
            tick_until(lambda: server.record.count("close"), server)


@pytest.mark.parametrize("bits", range(9, 16))
@pytest.mark.parametrize("mode", MODES)
def test_the_server_reads_every_window(serve: Serve, bits: int, mode: Mode) -> None:
    message = far_and_near(70_000)
    thread = serve(EchoServer(), compression=mode, compression_window_bits=bits)
    with DeflateClient(thread.port, f"{OFFER}; {CLIENT_BITS}") as raw:
        assert raw.deflate_bits == bits
        for _ in range(3):
            raw.send_deflated(BINARY, message)
            assert raw.read_message() == message


def test_a_client_that_cannot_limit_its_window_may_use_all_of_it(serve: Serve) -> None:
    message = far_and_near(70_000)
    thread = serve(EchoServer(), compression_window_bits=8)
    with DeflateClient(thread.port) as raw:
        raw.send_deflated(BINARY, message)
        assert raw.read_message() == message


# What is compressed


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("how", ["send", "broadcast"])
def test_messages_from_128_bytes_on_are_compressed(mode: Mode, how: str) -> None:
    with RecordingServer() as server:
        server.start(0, compression=mode)
        with DeflateClient(port_of(server)) as raw:
            channel = only_channel(server)
            for size in (0, 1, 64, 125, 126, 127, 128, 129, 1000, 70_000):
                for message in ("x" * size, b"x" * size):
                    if how == "send":
                        assert channel.send(message)
                    else:
                        server.broadcast(message)
                    frame = raw.read_frame()
                    assert frame.rsv == (RSV1 if size >= 128 else 0), size
                    assert frame.opcode == (TEXT if isinstance(message, str) else BINARY)
                    assert size < 128 or len(frame.payload) < size
                    data = raw.data(frame)
                    assert data == (message.encode() if isinstance(message, str) else message)
            raw.send_close()
            tick_until(lambda: server.record.count("close"), server)


@pytest.mark.parametrize("how", ["send", "broadcast"])
def test_what_would_not_shrink_is_sent_as_it_is(server: RecordingServer, how: str) -> None:
    with DeflateClient(port_of(server)) as raw:
        channel = only_channel(server)
        for size in (128, 1000, 5000, 100_000):
            noise = random.Random(size).randbytes(size)
            if how == "send":
                assert channel.send(noise)
            else:
                server.broadcast(noise)
            assert raw.read_frame() == Frame(True, 0, BINARY, False, noise)
        channel.send("x" * 1000)  # the compressor goes on
        assert raw.read_message() == "x" * 1000


@pytest.mark.parametrize("mode", MODES)
def test_noise_arrives_in_either_mode(serve: Serve, mode: Mode) -> None:
    noise = random.Random(1).randbytes(100_000)
    thread = serve(EchoServer(), compression=mode)
    with DeflateClient(thread.port) as raw:
        for _ in range(3):
            raw.send_deflated(BINARY, noise)
            assert raw.read_message() == noise


@pytest.mark.parametrize("mode", MODES)
def test_fragments_are_sent_uncompressed_and_disturb_no_context(mode: Mode) -> None:
    with RecordingServer() as server:
        server.start(0, compression=mode)
        with DeflateClient(port_of(server)) as raw:
            channel = only_channel(server)
            text = hexadecimal(2000)
            for _ in range(2):
                assert channel.send(text)
                assert channel.send("a" * 1000, fin=False)
                assert channel.send("b" * 1000, fin=False)
                assert channel.send("c" * 1000)
            for _ in range(2):
                assert raw.read_message() == text
                frames = [raw.read_frame() for _ in range(3)]
                assert [(f.fin, f.rsv, f.opcode, f.payload[:1], len(f.payload)) for f in frames] == [
                    (False, 0, TEXT, b"a", 1000),
                    (False, 0, CONTINUATION, b"b", 1000),
                    (True, 0, CONTINUATION, b"c", 1000),
                ]
            raw.send_close()
            tick_until(lambda: server.record.count("close"), server)


@pytest.mark.parametrize("mode", MODES)
def test_broadcasts_held_back_by_fragments_inflate_in_their_order(mode: Mode) -> None:
    with RecordingServer() as server:
        server.start(0, compression=mode)
        with DeflateClient(port_of(server)) as raw:
            channel = only_channel(server)
            messages = [hexadecimal(1000, seed) for seed in (1, 2, 1, 2)]
            channel.send(messages[0])
            channel.send("begin ", fin=False)
            server.broadcast(messages[1])
            server.broadcast(messages[2])
            channel.send("end")
            channel.send(messages[3])
            assert raw.read_message() == messages[0]
            assert [raw.read_frame().payload for _ in range(2)] == [b"begin ", b"end"]
            assert [raw.read_message() for _ in range(3)] == messages[1:]
            raw.send_close()
            tick_until(lambda: server.record.count("close"), server)


def test_context_makes_what_was_sent_before_small() -> None:
    text = hexadecimal(4000)
    with RecordingServer() as server:
        server.start(0, compression="context")
        with DeflateClient(port_of(server)) as raw:
            channel = only_channel(server)
            assert channel.send(text) and channel.send(text)
            first, second = raw.read_frame(), raw.read_frame()
            assert (first.rsv, second.rsv) == (RSV1, RSV1)
            assert len(second.payload) < len(first.payload) / 10
            with pytest.raises(zlib.error):
                inflated(second.payload)  # alone it is nothing
            assert [raw.data(frame).decode() for frame in (first, second)] == [text, text]
            # The same through a broadcast: there is one context for both.
            server.broadcast(text)
            third = raw.read_frame()
            assert len(third.payload) < len(first.payload) / 10
            assert raw.data(third).decode() == text
            raw.send_close()
            tick_until(lambda: server.record.count("close"), server)


@pytest.mark.parametrize(
    ("mode", "offer"),
    [("shared", OFFER), ("context", f"{OFFER}; {SERVER_NO}")],
    ids=["shared", "context, where the client forbids it"],
)
def test_without_context_every_message_can_be_inflated_alone(mode: Mode, offer: str) -> None:
    text = hexadecimal(4000)
    with RecordingServer() as server:
        server.start(0, compression=mode)
        with DeflateClient(port_of(server), offer) as raw:
            channel = only_channel(server)
            frames = []
            for _ in range(3):
                channel.send(text)
                server.broadcast(text)
                frames += [raw.read_frame(), raw.read_frame()]
            assert {frame.rsv for frame in frames} == {RSV1}
            assert [inflated(frame.payload).decode() for frame in frames] == [text] * 6
            assert len({frame.payload for frame in frames}) == 1
            raw.send_close()
            tick_until(lambda: server.record.count("close"), server)


def test_the_context_of_our_client_works_the_same_way() -> None:
    text = hexadecimal(4000)
    with RawServer() as theirs:
        sizes: dict[Mode, list[int]] = {}
        answers: dict[Mode, str] = {"context": OFFER, "shared": f"{OFFER}; {SERVER_NO}; {CLIENT_NO}"}
        for mode, answer in answers.items():
            client = RecordingClient()
            client.connect(theirs.url, compression=mode)
            with theirs.accept_websocket([("Sec-WebSocket-Extensions", answer)]) as peer:
                tick_until(lambda client=client: client.is_connected, client)  # type: ignore[misc]
                client.send(text)
                client.send(text)
                payloads = [peer.read_frame().payload for _ in range(2)]
                sizes[mode] = [len(payload) for payload in payloads]
                context = zlib.decompressobj(-15)
                for payload in payloads:
                    data = context.decompress(payload + TAIL) if mode == "context" else inflated(payload)
                    assert data.decode() == text
            tick_until(lambda client=client: client.record.count("close"), client)  # type: ignore[misc]
    assert sizes["context"][1] < sizes["context"][0] / 10
    assert sizes["shared"][1] == sizes["shared"][0]


@pytest.mark.parametrize("mode", MODES)
def test_what_the_peer_compresses_arrives(serve: Serve, mode: Mode) -> None:
    """With its context where that was agreed on; and what it does not compress goes between."""
    server = EchoServer()
    thread = serve(server, compression=mode)
    messages: list[str | bytes] = ["", b"", "x", "é→\U0001f40d" * 50, hexadecimal(5000), hexadecimal(5000)]
    with DeflateClient(thread.port) as raw:
        assert (raw.deflater is None) == (mode == "shared")
        for message in messages * 2:
            data = message.encode() if isinstance(message, str) else message
            opcode = TEXT if isinstance(message, str) else BINARY
            raw.send_deflated(opcode, data)
            assert raw.read_message() == message
            raw.send_frame(opcode, data)
            assert raw.read_message() == message
        # The empty message has a payload without a byte with some senders.
        raw.send_frame(TEXT, rsv=RSV1)
        assert raw.read_message() == ""


# Broadcasts to many

OFFERS = [
    None,
    OFFER,
    f"{OFFER}; {SERVER_NO}",
    f"{OFFER}; {SERVER_NO}; {SERVER_BITS}=9",
    f"{OFFER}; {SERVER_BITS}=10",
]


@pytest.mark.parametrize("mode", MODES)
def test_a_broadcast_to_fifty_with_mixed_parameters_arrives_in_order_among_sends(mode: Mode) -> None:
    count, rounds = 50, 20
    with RecordingServer() as server:
        server.start(0, compression=mode)
        clients: list[RawClient] = []
        try:
            for number in range(count):
                offer = OFFERS[number % len(OFFERS)]
                path = f"/{number}"
                clients.append(
                    RawClient(port_of(server), path) if offer is None else DeflateClient(port_of(server), offer, path)
                )
            tick_until(lambda: len(server.channels) == count, server)
            channels = {channel.path: channel for channel in server.channels}
            assert sum(channel.is_compressed for channel in channels.values()) == count * 4 // 5
            expected: list[list[str | bytes]] = [[] for _ in clients]
            for turn in range(rounds):
                everybody = f"broadcast {turn} {hexadecimal(600, turn % 3)}"
                short = f"short {turn}"
                but_one = f"not for {turn} {hexadecimal(300, turn)}".encode()
                server.broadcast(everybody)
                server.broadcast(short)
                server.broadcast(but_one, exclude=channels[f"/{turn}"])
                for number, seen in enumerate(expected):
                    own = f"to {number} in {turn} {hexadecimal(400, number)}"
                    channels[f"/{number}"].send(own)
                    seen += [everybody, short, *([but_one] if number != turn else []), own]
            for number, (raw, seen) in enumerate(zip(clients, expected, strict=True)):
                assert [raw.read_message() for _ in seen] == seen, number
        finally:
            for raw in clients:
                raw.reset()
        tick_until(lambda: not server.channels, server)


# Other libraries

MESSAGES: list[str | bytes] = [
    "text",
    b"binary \x00\xff",
    "",
    b"",
    "é ß → \U0001f40d " * 100,
    "x" * 127,
    "x" * 128,
    hexadecimal(5000),
    hexadecimal(5000),
    random.Random(2).randbytes(70_000),
    far_and_near(MIB),
    "é" * (MIB // 2),
    bytes(16 * MIB),
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("library", ["websockets", "aiohttp"])
def test_their_clients_get_back_what_they_send(serve: Serve, mode: Mode, library: str) -> None:
    server = EchoServer()
    thread = serve(server, compression=mode)
    url = f"ws://{HOST}:{thread.port}/"
    if library == "websockets":
        with websockets.sync.client.connect(url, compression="deflate", max_size=None) as ws:
            assert ws.response is not None
            assert "permessage-deflate" in ws.response.headers["Sec-WebSocket-Extensions"]
            for message in MESSAGES:
                ws.send(message)
                assert ws.recv(timeout=LIMIT) == message
    else:

        async def talk() -> None:
            async with (
                aiohttp.ClientSession() as session,
                session.ws_connect(url, compress=15, max_msg_size=0) as ws,
            ):
                assert ws.compress > 0
                for message in MESSAGES:
                    await (ws.send_str(message) if isinstance(message, str) else ws.send_bytes(message))
                    assert (await ws.receive(LIMIT)).data == message

        asyncio.run(talk())
    assert server.record.values("message") == MESSAGES
    wait_until(lambda: server.record.count("close"))
    assert server.record.count("error") == 0


async def _echo_websockets(ws: websockets.asyncio.server.ServerConnection) -> None:
    with contextlib.suppress(ConnectionClosed):
        while True:
            await ws.send(await ws.recv())


async def _echo_aiohttp(request: aiohttp.web.Request) -> aiohttp.web.WebSocketResponse:
    ws = aiohttp.web.WebSocketResponse(compress=True, max_msg_size=0)
    await ws.prepare(request)
    async for message in ws:
        await (ws.send_str(message.data) if message.type is aiohttp.WSMsgType.TEXT else ws.send_bytes(message.data))
    return ws


@contextlib.contextmanager
def their_server(library: str) -> Iterator[int]:
    """A server of theirs that echoes and compresses, on a thread of its own; its port."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name=library)
    thread.start()

    async def begin() -> tuple[int, Callable[[], Any]]:
        if library == "websockets":
            theirs = await websockets.asyncio.server.serve(
                _echo_websockets, HOST, 0, compression="deflate", max_size=None
            )

            async def end() -> None:
                theirs.close()
                await theirs.wait_closed()

            (listener,) = theirs.sockets
            return listener.getsockname()[1], end
        app = aiohttp.web.Application()
        app.router.add_get("/", _echo_aiohttp)
        runner = aiohttp.web.AppRunner(app)
        await runner.setup()
        site = aiohttp.web.TCPSite(runner, HOST, 0)
        await site.start()
        return runner.addresses[0][1], runner.cleanup

    try:
        port, end = asyncio.run_coroutine_threadsafe(begin(), loop).result(LIMIT)
        yield port
        asyncio.run_coroutine_threadsafe(end(), loop).result(LIMIT)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(LIMIT)
        loop.close()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bits", [15, 10])
@pytest.mark.parametrize("library", ["websockets", "aiohttp"])
def test_our_client_gets_back_what_it_sends_to_their_servers(mode: Mode, bits: int, library: str) -> None:
    with their_server(library) as port:
        client = RecordingClient()
        client.connect(f"ws://{HOST}:{port}/", compression=mode, compression_window_bits=bits)
        tick_until(lambda: client.is_connected or client.error, client)
        assert client.error is None
        assert client.is_compressed is True
        for number, message in enumerate(MESSAGES):
            assert client.send(message)
            tick_until(lambda number=number: len(client.received) > number, client)  # type: ignore[misc]
        assert client.received == MESSAGES
        client.close()
        tick_until(lambda: client.record.count("close"), client)
        assert client.close_code == 1000


@pytest.mark.parametrize("ours", [*MODES, None])
@pytest.mark.parametrize("theirs", [*MODES, None])
def test_our_ends_agree_in_every_combination(ours: Mode | None, theirs: Mode | None) -> None:
    with EchoServer() as server:
        server.start(0, compression=theirs)
        client = connected(server, compression=ours)
        channel = only_channel(server)
        assert client.is_compressed is channel.is_compressed is (ours is not None and theirs is not None)
        for number, message in enumerate(MESSAGES):
            assert client.send(message)
            tick_until(lambda number=number: len(client.received) > number, client, server)  # type: ignore[misc]
        assert client.received == MESSAGES
        client.close()
        tick_until(lambda: client.record.count("close"), client, server)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Files with an authority, a certificate for the loopback and its key."""
    folder = tmp_path_factory.mktemp("certificate")
    files = folder / "ca.pem", folder / "cert.pem", folder / "key.pem"
    for file, text in zip(files, _native.make_dev_certificates([HOST, "localhost"]), strict=True):
        file.write_text(text)
    return files


@pytest.mark.parametrize("mode", MODES)
def test_the_same_over_wss(serve: Serve, certificate: tuple[Path, Path, Path], mode: Mode) -> None:
    authority, certfile, keyfile = certificate
    server = EchoServer()
    serve(server, compression=mode, tls_port=0, certfile=certfile, keyfile=keyfile)
    url = f"wss://{HOST}:{server.tls_port}/"
    client = RecordingClient()
    client.connect(url, ca_file=authority, compression=mode)
    tick_until(lambda: client.is_connected or client.error, client)
    assert client.error is None
    assert client.is_compressed is True
    for number, message in enumerate(MESSAGES):
        client.send(message)
        tick_until(lambda number=number: len(client.received) > number, client)  # type: ignore[misc]
    assert client.received == MESSAGES
    client.close()
    tick_until(lambda: client.record.count("close"), client)
    context = ssl.create_default_context(cafile=authority)
    with websockets.sync.client.connect(url, ssl=context, compression="deflate", max_size=None) as ws:
        for message in MESSAGES:
            ws.send(message)
            assert ws.recv(timeout=LIMIT) == message


# Pieces


def test_a_compressed_message_in_fragments_with_pings_between(serve: Serve) -> None:
    for mode in MODES:
        with DeflateClient(serve(EchoServer(), compression=mode).port) as raw:
            text = hexadecimal(5000)
            for _ in range(2):
                payload = raw.deflated(text.encode())
                cuts = [0, 1, len(payload) // 3, len(payload) // 3, len(payload) - 1, len(payload)]
                last = len(cuts) - 2
                for number in range(last + 1):
                    piece = payload[cuts[number] : cuts[number + 1]]
                    opcode, rsv = (CONTINUATION, 0) if number else (TEXT, RSV1)
                    raw.send_frame(opcode, piece, fin=number == last, rsv=rsv)
                    if number < last:
                        raw.send_ping(b"%d" % number)
                        frame = raw.read_frame()
                        assert (frame.opcode, frame.payload) == (PONG, b"%d" % number)
                assert raw.read_message() == text


def test_a_compressed_message_cut_anywhere_arrives_whole(serve: Serve) -> None:
    """Between two fragments, and between two writes with a pong to tell that the first has been read."""
    text = "cut anywhere, anywhere " * 8
    with DeflateClient(serve(EchoServer()).port) as raw:
        payload = raw.deflated(text.encode())
        frame = build_frame(TEXT, payload, rsv=RSV1)
        assert len(payload) < 60
        for cut in range(len(payload) + 1):
            raw.send_frame(TEXT, payload[:cut], fin=False, rsv=RSV1)
            raw.send_frame(CONTINUATION, payload[cut:])
            assert raw.read_message() == text
        for cut in range(1, len(frame)):
            raw.send_bytes(build_frame(PING) + frame[:cut])
            assert raw.read_frame().opcode == PONG
            raw.send_bytes(frame[cut:])
            assert raw.read_message() == text


# What a hostile peer sends


def ended_with(serve: Serve, sent: bytes, code: int, mode: Mode = "shared", **settings: Any) -> RecordingServer:
    """Sends a good compressed message and `sent`: the first is echoed, the channel is closed with `code`."""
    server = EchoServer()
    thread = serve(server, compression=mode, **settings)
    good = hexadecimal(500)
    with RawClient(thread.port) as bystander, DeflateClient(thread.port) as raw:
        raw.send_deflated(TEXT, good.encode())
        assert raw.read_message() == good
        raw.send_bytes(sent)
        frame = raw.read_close()
        assert frame.close_code == code
        assert frame.close_reason
        raw.expect_end()
        bystander.send_text("still there")
        assert bystander.read_message() == "still there"
        wait_until(lambda: server.record.count("close") == 1)
        assert server.record.values("close") == [code]
        assert server.record.values("message") == [good, "still there"]
    return server


def _far_reference() -> bytes:
    """A message that refers to one that was not sent."""
    context = zlib.compressobj(6, zlib.DEFLATED, -15)
    text = hexadecimal(2000, 5).encode()
    deflated(text, context)
    return deflated(text, context)


_WHOLE = deflated(hexadecimal(2000, 6).encode())

CORRUPT: dict[str, bytes] = {
    "a block of the reserved type": b"\xff" * 10,
    "noise": random.Random(3).randbytes(500),
    "a stored block whose length is not confirmed": b"\x00\x05\x00\x00\x00hello\x00",
    "a reference to nothing": _far_reference(),
    "cut off in the middle": _WHOLE[: len(_WHOLE) // 2],
    "cut off in its last code": _WHOLE[:-2],
    "a stored block that breaks off": b"\x00\x05\x00\xfa\xffhel",
    "changed in the middle": _WHOLE[:30] + bytes(40) + _WHOLE[70:],
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("payload", CORRUPT.values(), ids=CORRUPT)
def test_data_that_cannot_be_inflated_closes_with_1007(serve: Serve, payload: bytes, mode: Mode) -> None:
    if mode == "context" and payload is CORRUPT["changed in the middle"]:
        # Still a fault: it was not compressed in this connection's context, where it may refer to anything.
        payload = CORRUPT["noise"]
    ended_with(serve, build_frame(BINARY, payload, rsv=RSV1), 1007, mode)


_HALF = len(_WHOLE) // 2

VIOLATIONS: dict[str, tuple[int, bytes]] = {
    "RSV1 in a ping": (1002, build_frame(PING, b"x", rsv=RSV1)),
    "RSV1 in a pong": (1002, build_frame(PONG, b"x", rsv=RSV1)),
    "RSV1 in a close": (1002, build_frame(WsOpcode.CLOSE, b"\x03\xe8", rsv=RSV1)),
    "RSV1 in a continuation of a compressed message": (
        1002,
        build_frame(BINARY, _WHOLE[:_HALF], fin=False, rsv=RSV1) + build_frame(CONTINUATION, _WHOLE[_HALF:], rsv=RSV1),
    ),
    "RSV1 in a continuation of an uncompressed message": (
        1002,
        build_frame(TEXT, b"x", fin=False) + build_frame(CONTINUATION, _WHOLE, rsv=RSV1),
    ),
    "RSV2": (1002, build_frame(TEXT, b"x", rsv=2)),
    "RSV1 and RSV3": (1002, build_frame(TEXT, _WHOLE, rsv=5)),
    "no UTF-8": (1007, build_frame(TEXT, deflated(b"abc\xff"), rsv=RSV1)),
    "no UTF-8 behind much that is": (1007, build_frame(TEXT, deflated(b"x" * 100_000 + b"\xff"), rsv=RSV1)),
    "UTF-8 that breaks off": (1007, build_frame(TEXT, deflated("é".encode()[:1]), rsv=RSV1)),
    "a surrogate": (1007, build_frame(TEXT, deflated(b"x" * 300 + b"\xed\xa0\x80"), rsv=RSV1)),
    "no UTF-8, early: the message goes on": (1007, build_frame(TEXT, deflated(b"abc\xff"), fin=False, rsv=RSV1)),
}


@pytest.mark.parametrize(("code", "sent"), VIOLATIONS.values(), ids=VIOLATIONS)
def test_a_violation_in_compressed_frames_closes_with_its_code(serve: Serve, code: int, sent: bytes) -> None:
    ended_with(serve, sent, code)


def peak_bytes(pid: int) -> int:
    """The most that a process has had resident."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * KIB
    raise AssertionError(f"/proc/{pid}/status has no VmHWM")


@pytest.fixture(scope="module")
def bomb() -> bytes:
    """200 MiB of zeros in 200 KB."""
    context = zlib.compressobj(9, zlib.DEFLATED, -15)
    payload = b"".join(context.compress(bytes(MIB)) for _ in range(200)) + context.flush(zlib.Z_SYNC_FLUSH)
    assert len(payload) < 256 * KIB
    return payload.removesuffix(TAIL)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("pieces", [1, 100], ids=["one frame", "fragments"])
def test_a_deflate_bomb_closes_with_1009_and_takes_no_memory(bomb: bytes, mode: Mode, pieces: int) -> None:
    with CountingServerProgram(compression=mode, max_message_size=MIB, close_timeout=0.2) as server:
        with DeflateClient(server.port) as bystander:
            bystander.send_deflated(BINARY, far_and_near(MIB))
            assert bystander.read_message() == far_and_near(MIB)
            before = peak_bytes(server.pid)
            size = len(bomb) // pieces + 1
            for _ in range(10):
                with DeflateClient(server.port) as raw:
                    frames = [bomb[begin : begin + size] for begin in range(0, len(bomb), size)]
                    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                        for number, piece in enumerate(frames):
                            opcode, rsv = (CONTINUATION, 0) if number else (BINARY, RSV1)
                            raw.send_frame(opcode, piece, fin=number == len(frames) - 1, rsv=rsv)
                    assert raw.read_close().close_code == 1009
            assert peak_bytes(server.pid) - before < 16 * MIB
            bystander.send_deflated(TEXT, b"still there")
            assert bystander.read_message() == "still there"
        server.wait_until_empty()
        server.stop()


def test_the_limit_counts_what_comes_out_to_the_byte(serve: Serve) -> None:
    server = EchoServer()
    thread = serve(server, max_message_size=100_000)
    with DeflateClient(thread.port) as raw:
        raw.send_deflated(BINARY, bytes(100_000))
        assert raw.read_message() == bytes(100_000)
        raw.send_deflated(BINARY, bytes(100_001))
        assert raw.read_close().close_code == 1009
        raw.expect_end()
    wait_until(lambda: server.record.count("close"))
    assert server.record.values("message") == [bytes(100_000)]


@pytest.mark.parametrize(
    ("payload", "code"),
    [(CORRUPT["a block of the reserved type"], 1007), (deflated(bytes(200_000)), 1009)],
    ids=["corrupt", "bomb"],
)
def test_our_client_defends_itself_the_same_way(payload: bytes, code: int) -> None:
    with RawServer() as theirs:
        client = RecordingClient()
        client.connect(theirs.url, compression="context", max_message_size=100_000)
        with theirs.accept_websocket([("Sec-WebSocket-Extensions", OFFER)]) as peer:
            peer.send_frame(BINARY, payload, rsv=RSV1)
            tick_until(lambda: client.record.count("close"), client)
            assert client.close_code == code
            assert peer.read_close().close_code == code
        assert client.received == []


# Slow readers

FLOOD_LIMIT = 200_000


def flooded(server: RecordingServer, raw: RawPeer, channel: WebSocketChannel, how: str) -> tuple[int, list[Any]]:
    """Sends 1,500 messages to a peer that does not read; then it reads. How many were sent, and what it got."""
    total = 1500
    for number in range(total):
        message = f"{number:06} {hexadecimal(20_000, number % 4)}"
        if how == "send":
            # drop_oldest drops on the I/O thread; when that is far behind, `send` refuses the newest.
            wait_until(lambda: channel.buffered_amount < 2 * FLOOD_LIMIT)
            channel.send(message)
        else:
            server.broadcast(message)
    # Some may still wait in the queue going down; a broadcast's fate is decided there.
    if how == "send":
        wait_until(lambda: channel.dropped, what="something is dropped")
    reader = Background(lambda: _read_to_the_end(raw))
    wait_until(lambda: channel.buffered_amount == 0 and channel.dropped, what="all has left or is dropped")
    # The commands are taken in order: when this one arrives the others are through, unless it is dropped itself.
    while not reader.done():
        channel.send("the end")
        server.tick(0.01)
    return total, reader.result()


def _read_to_the_end(raw: RawPeer) -> list[Any]:
    received: list[Any] = []
    while (message := raw.read_message()) != "the end":
        received.append(message)
    return received


@pytest.mark.parametrize("how", ["send", "broadcast"])
@pytest.mark.parametrize(
    ("mode", "policy"), [("shared", "drop_newest"), ("shared", "drop_oldest"), ("context", "drop_newest")]
)
def test_what_is_not_dropped_arrives_intact_and_in_order(
    mode: Mode, policy: Literal["drop_newest", "drop_oldest"], how: str
) -> None:
    with RecordingServer() as server:
        server.start(0, compression=mode, slow_policy=policy, max_buffered=FLOOD_LIMIT)
        with DeflateClient(port_of(server), receive_buffer=4096) as raw:
            channel = only_channel(server)
            total, received = flooded(server, raw, channel, how)
            numbers = [int(message[:6]) for message in received]
            assert numbers == sorted(set(numbers))
            for number, message in zip(numbers, received, strict=True):
                assert message[7:] == hexadecimal(20_000, number % 4)
            assert channel.dropped > 0
            assert total == len(received) + channel.dropped
            assert (numbers[-1] == total - 1) == (policy == "drop_oldest")
            raw.send_close()
            tick_until(lambda: server.record.count("close"), server)
            assert server.record.values("close") == [1000]


# Settings


def test_drop_oldest_does_not_go_with_context() -> None:
    pattern = r'slow_policy="drop_oldest".*compression="context"'
    with pytest.raises(ValueError, match=pattern):
        RecordingServer().start(0, compression="context", slow_policy="drop_oldest")
    with pytest.raises(ValueError, match=pattern):
        RecordingClient().connect("ws://127.0.0.1:9/", compression="context", slow_policy="drop_oldest")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("compression", value) for value in ("", "gzip", "Shared", True, 1, b"shared")],
        *[("compression_window_bits", value) for value in (7, 16, 0, -1, 264, True, "15", None, 9.5)],
    ],
)
def test_a_setting_out_of_range_is_refused_by_name_and_value(name: str, value: Any) -> None:
    server, client = RecordingServer(), RecordingClient()
    settings: dict[str, Any] = {name: value}
    pattern = f"^{name}=.*{re.escape(str(value))}"
    with pytest.raises(ValueError, match=pattern):
        server.start(0, **settings)
    assert not server.is_running
    with pytest.raises(ValueError, match=pattern):
        client.connect("ws://127.0.0.1:9/", **settings)
    assert not client.is_connecting


def test_the_smallest_and_the_largest_window_are_accepted() -> None:
    for bits in (8, 15):
        with EchoServer() as server:
            server.start(0, compression_window_bits=bits)
            client = connected(server, compression_window_bits=bits)
            client.send("x" * 1000)
            tick_until(lambda client=client: client.received, client, server)  # type: ignore[misc]
            assert client.received == ["x" * 1000]
            assert url_of(server)
            client.close()
            tick_until(lambda client=client: client.record.count("close"), client, server)  # type: ignore[misc]
