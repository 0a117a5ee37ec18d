"""Messages arrive whole, once and in order, whatever their size and however the network cuts them."""

from __future__ import annotations

import base64
import os
import threading
from collections.abc import Callable

import pytest

from pyhv import WebSocketChannel, WsOpcode
from support import (
    HOST,
    Background,
    EchoServer,
    RawClient,
    RecordingClient,
    RecordingServer,
    ServerThread,
    Ticker,
    build_frame,
    connected,
    only_channel,
    port_of,
    tick_until,
    url_of,
)

MIB = 1 << 20
#: Around each change of the length's encoding (RFC 6455 section 5.2), and up to the default max_message_size.
SIZES = [0, 1, 125, 126, 127, 65535, 65536, MIB, 16 * MIB]

Serve = Callable[..., ServerThread]


def pattern(size: int) -> bytes:
    """Bytes in which a lost, doubled or moved piece shows: no period divides a power of two."""
    block = bytes(range(251))
    return (block * (size // 251 + 1))[:size]


def receive(client: RecordingClient, count: int, *tickers: Ticker) -> None:
    tick_until(lambda: len(client.received) >= count, *tickers, what=f"{count} messages")


def text_of(size: int) -> str:
    """A text of `size` bytes of UTF-8, with characters of one to four bytes."""
    block = "a\u00e9\u4f60\U0001f600"  # 1 + 2 + 3 + 4 bytes
    return block * (size // 10) + "x" * (size % 10)


# Sizes


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["text", "binary"])
def test_echo_of_every_size_between_our_ends(echo: EchoServer, kind: str, size: int) -> None:
    message = text_of(size) if kind == "text" else pattern(size)
    client = connected(echo)
    assert client.send(message)
    tick_until(lambda: client.received, client, echo)
    client.send("behind it")
    tick_until(lambda: len(client.received) == 2, client, echo)
    # Compared here, so that a failure does not print megabytes.
    came_back = client.received[0]
    assert type(came_back) is type(message)
    assert len(came_back) == len(message)
    assert came_back == message, "the echo differs"
    assert echo.record.values("message")[0] == message, "what the server got differs"
    assert client.received[1] == "behind it"


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("opcode", [WsOpcode.TEXT, WsOpcode.BINARY])
def test_echo_of_every_size_over_a_bare_socket(serve: Serve, opcode: WsOpcode, size: int) -> None:
    """Our own ends could err the same way twice: here the frames are made and read by the test."""
    payload = text_of(size).encode() if opcode == WsOpcode.TEXT else pattern(size)
    with RawClient(serve(EchoServer()).port) as raw:
        # The peer reads while we write: 16 MiB do not fit into the socket's buffers.
        sending = Background(lambda: raw.send_frame(opcode, payload))
        frame = raw.read_frame()
        sending.result()
        assert (frame.fin, frame.rsv, frame.opcode, frame.masked) == (True, 0, opcode, False)
        assert len(frame.payload) == size
        assert frame.payload == payload, "the echo differs"


def test_one_byte_over_the_limit_is_refused_and_the_limit_itself_is_not(serve: Serve) -> None:
    with RawClient(serve(EchoServer(), max_message_size=1000).port) as raw:
        raw.send_binary(bytes(1000))
        assert raw.read_message() == bytes(1000)
        raw.send_binary(bytes(1001))
        assert raw.read_close().close_code == 1009


def test_the_limit_counts_all_fragments_of_a_message(serve: Serve) -> None:
    with RawClient(serve(EchoServer(), max_message_size=1000).port) as raw:
        raw.send_binary(bytes(400), fin=False)
        raw.send_frame(WsOpcode.CONTINUATION, bytes(600))
        assert raw.read_message() == bytes(1000)
        raw.send_binary(bytes(400), fin=False)
        raw.send_frame(WsOpcode.CONTINUATION, bytes(601), fin=False)
        assert raw.read_close().close_code == 1009


@pytest.mark.parametrize(
    "message",
    ["\0", "a\0b", "\0" * 1000, "end\0", b"\0", b"a\0b", b"\0" * 70000, b"end\0"],
    ids=lambda message: f"{type(message).__name__}{len(message)}",
)
def test_embedded_nuls_stay(echo: EchoServer, message: str | bytes) -> None:
    client = connected(echo)
    client.send(message)
    tick_until(lambda: client.received, client, echo)
    assert client.received == [message]
    assert echo.record.values("message") == [message]


def test_many_sizes_in_one_tick_keep_their_order(echo: EchoServer) -> None:
    """Small frames are copied, large ones have buffers of their own: they must not overtake each other."""
    sizes = [0, 1, 4095, 4096, 4097, 10, 32767, 32768, 32769, 2, 65536, 0, 300_000, 5] * 3
    messages = [pattern(size) if number % 2 else text_of(size) for number, size in enumerate(sizes)]
    client = connected(echo)
    for message in messages:
        assert client.send(message)
    tick_until(lambda: len(client.received) == len(messages), client, echo)
    assert [len(message) for message in client.received] == [len(message) for message in messages]
    assert client.received == messages, "a message differs"


# Splits


def handshake_bytes(port: int) -> bytes:
    key = base64.b64encode(os.urandom(16)).decode()
    return (
        f"GET /split HTTP/1.1\r\nHost: {HOST}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    ).encode()


FRAMES: dict[str, tuple[bytes, list[str | bytes]]] = {
    "text": (build_frame(WsOpcode.TEXT, "h\u00e9llo \U0001f600".encode()), ["h\u00e9llo \U0001f600"]),
    "binary with a 16-bit length": (build_frame(WsOpcode.BINARY, pattern(126)), [pattern(126)]),
    "fragments around a ping": (
        build_frame(WsOpcode.TEXT, "fr\u00e4g".encode()[:3], fin=False)
        + build_frame(WsOpcode.PING, b"between")
        + build_frame(WsOpcode.CONTINUATION, "fr\u00e4g".encode()[3:]),
        ["fr\u00e4g"],
    ),
    "two and an empty one": (
        build_frame(WsOpcode.TEXT, b"one") + build_frame(WsOpcode.BINARY) + build_frame(WsOpcode.TEXT, b"two"),
        ["one", b"", "two"],
    ),
}


@pytest.mark.parametrize(("frames", "messages"), FRAMES.values(), ids=FRAMES)
def test_every_split_of_handshake_and_frames(serve: Serve, frames: bytes, messages: list[str | bytes]) -> None:
    """Handshake and frames in one stream, cut in two at every position."""
    port = serve(EchoServer()).port
    stream = handshake_bytes(port) + frames
    for cut in range(1, len(stream) + 1):
        with RawClient(port, upgrade=False) as raw:
            raw.send_bytes(stream[:cut])
            # Nothing tells when the server has read the first part: sometimes it reads both as one.
            raw.send_bytes(stream[cut:])
            status, _ = raw.read_head()
            assert status == 101, cut
            assert [raw.read_message() for _ in messages] == messages, cut


def test_every_split_of_a_frame_seen_apart(serve: Serve) -> None:
    """The server has certainly read the first part before the second is sent: it answered a ping in it."""
    frame = build_frame(WsOpcode.TEXT, "h\u00e9llo \U0001f600".encode())
    with RawClient(serve(EchoServer()).port) as raw:
        for cut in range(1, len(frame)):
            raw.send_bytes(build_frame(WsOpcode.PING, b"%d" % cut) + frame[:cut])
            pong = raw.read_frame()
            assert (pong.opcode, pong.payload) == (WsOpcode.PONG, b"%d" % cut)
            raw.send_bytes(frame[cut:])
            assert raw.read_message() == "h\u00e9llo \U0001f600", cut


def test_byte_by_byte(serve: Serve) -> None:
    for frames, messages in FRAMES.values():
        port = serve(EchoServer()).port
        with RawClient(port, upgrade=False) as raw:
            for byte in handshake_bytes(port) + frames:
                raw.send_bytes(bytes([byte]))
            assert raw.read_head()[0] == 101
            assert [raw.read_message() for _ in messages] == messages


def test_frames_glued_to_the_handshake(serve: Serve) -> None:
    """More of them than one read takes."""
    port = serve(EchoServer()).port
    messages: list[str | bytes] = [f"message {number}" for number in range(5000)] + [pattern(100_000)]
    glued = b"".join(
        build_frame(WsOpcode.TEXT, message.encode())
        if isinstance(message, str)
        else build_frame(WsOpcode.BINARY, message)
        for message in messages
    )
    with RawClient(port, upgrade=False) as raw:
        sending = Background(lambda: raw.send_bytes(handshake_bytes(port) + glued))
        assert raw.read_head()[0] == 101
        for message in messages:
            assert raw.read_message() == message
        sending.result()


# Many


CONNECTIONS = 50
PER_CONNECTION = 200  # 10,000 messages each way


class Numbering(EchoServer):
    """Echoes, and has messages of its own for everybody."""

    def __init__(self) -> None:
        super().__init__()
        self.round = 0

    def on_tick(self) -> None:
        if self.round < PER_CONNECTION and len(self.channels) == CONNECTIONS:
            for channel in self.channels:
                channel.send(f"server {self.round} to {channel.path}")
            self.round += 1


def test_ten_thousand_messages_over_fifty_connections() -> None:
    """Sent by both sides at once: none is lost, doubled or out of order."""
    with Numbering() as server:
        server.start(0)
        clients = [RecordingClient() for _ in range(CONNECTIONS)]
        for number, client in enumerate(clients):
            client.connect(url_of(server, f"/{number}"))
        tick_until(lambda: all(client.is_connected for client in clients), server, *clients)
        for number in range(PER_CONNECTION):
            for which, client in enumerate(clients):
                # Every third is binary, a few are large.
                body = "x" * (5000 if number % 40 == 7 else number % 90)
                text = f"client {which} number {number} {body}"
                assert client.send(text if number % 3 else text.encode())
            server.tick()
            for client in clients:
                client.tick()
        tick_until(lambda: all(len(client.received) == 2 * PER_CONNECTION for client in clients), server, *clients)
        for which, client in enumerate(clients):
            expected = []
            for number in range(PER_CONNECTION):
                body = "x" * (5000 if number % 40 == 7 else number % 90)
                text = f"client {which} number {number} {body}"
                expected.append(text if number % 3 else text.encode())
            own = [f"server {number} to /{which}" for number in range(PER_CONNECTION)]
            received = client.received
            assert [m for m in received if not (isinstance(m, str) and m.startswith("server"))] == expected
            assert [m for m in received if isinstance(m, str) and m.startswith("server")] == own
        for channel in server.channels:
            which = int(channel.path.removeprefix("/"))
            seen = [m if isinstance(m, str) else m.decode() for m in server.record.values("message", channel)]
            assert [m.rstrip("x").rstrip() for m in seen] == [
                f"client {which} number {number}" for number in range(PER_CONNECTION)
            ]
        for client in clients:
            client.close()
        tick_until(lambda: not server.channels, server, *clients)
        assert server.record.count("error") == 0


def test_sends_from_other_threads_all_arrive_in_each_threads_order() -> None:
    with RecordingServer() as server:
        server.start(0)
        client = connected(server)
        channel = only_channel(server)
        go = threading.Event()

        def send(name: int) -> Callable[[], None]:
            def run() -> None:
                assert go.wait(20)
                for number in range(1000):
                    assert channel.send(f"{name} {number}")

            return run

        threads = [Background(send(name)) for name in range(4)]
        go.set()
        tick_until(lambda: len(client.received) == 4000, client, server)
        for thread in threads:
            thread.result()
        for name in range(4):
            own = [message for message in client.received if message.startswith(f"{name} ")]
            assert own == [f"{name} {number}" for number in range(1000)]


# Broadcasts


def test_broadcasts_and_sends_arrive_in_the_order_of_the_calls(server: RecordingServer) -> None:
    clients = [connected(server, path=f"/{number}") for number in range(3)]
    channels = sorted(server.channels, key=lambda channel: channel.url)
    assert [channel.url for channel in channels] == ["/0", "/1", "/2"]
    expected: list[list[str | bytes]] = [[], [], []]
    for number in range(300):
        size = (3, 200, 4096, 70_000)[number % 4] if number % 10 == 0 else number % 50
        for channel, messages in zip(channels, expected, strict=True):
            text = f"send {number} " + "s" * size
            assert channel.send(text)
            messages.append(text)
        if number % 3 == 0:
            data = b"broadcast %d " % number + b"b" * size
            server.broadcast(data)
            for messages in expected:
                messages.append(data)
        if number % 5 == 0:
            text = f"broadcast to the others {number}"
            server.broadcast(text, exclude=channels[1])
            expected[0].append(text)
            expected[2].append(text)
        if number % 20 == 0:
            server.tick()
    for client, messages in zip(clients, expected, strict=True):
        receive(client, len(messages), server, *clients)
        assert client.received == messages, "order or content differs"


@pytest.mark.parametrize("inside_a_tick", [False, True], ids=["outside", "inside"])
def test_broadcasts_wait_for_the_end_of_a_fragmented_message(inside_a_tick: bool) -> None:
    """RFC 6455 section 5.4: between the fragments of a message no other message may begin."""

    class Fragmenting(RecordingServer):
        def on_ws_message(self, channel: WebSocketChannel, msg: str | bytes) -> None:
            super().on_ws_message(channel, msg)
            if inside_a_tick:
                self.talk(channel)

        def talk(self, channel: WebSocketChannel) -> None:
            channel.send("before")
            self.broadcast("first")
            channel.send("one ", fin=False)
            self.broadcast("second")
            channel.send("two ", WsOpcode.CONTINUATION, fin=False)
            self.broadcast(b"third")
            channel.send(b"ping", WsOpcode.PING)
            channel.send("three", WsOpcode.CONTINUATION)
            channel.send("after")
            self.broadcast("fourth")

    with Fragmenting() as server:
        server.start(0)
        with RawClient(port_of(server)) as raw, RawClient(port_of(server)) as other:
            tick_until(lambda: len(server.channels) == 2, server)
            address = raw.address
            channel = next(c for c in server.channels if c.remote_address == address)
            if inside_a_tick:
                raw.send_text("go")
                tick_until(lambda: server.record.count("message"), server)
            else:
                server.talk(channel)
            frames = [raw.read_frame() for _ in range(10)]
            assert [(frame.opcode, frame.fin, frame.payload) for frame in frames] == [
                (WsOpcode.TEXT, True, b"before"),
                (WsOpcode.TEXT, True, b"first"),
                (WsOpcode.TEXT, False, b"one "),
                (WsOpcode.CONTINUATION, False, b"two "),
                (WsOpcode.PING, True, b"ping"),  # a control frame may stand between fragments
                (WsOpcode.CONTINUATION, True, b"three"),
                (WsOpcode.TEXT, True, b"second"),
                (WsOpcode.BINARY, True, b"third"),
                (WsOpcode.TEXT, True, b"after"),
                (WsOpcode.TEXT, True, b"fourth"),
            ]
            # Nobody else waits for it.
            assert [other.read_message() for _ in range(4)] == ["first", "second", b"third", "fourth"]


def test_a_broadcast_held_back_is_dropped_by_a_close(server: RecordingServer) -> None:
    with RawClient(port_of(server)) as raw:
        channel = only_channel(server)
        channel.send("begun", fin=False)
        server.broadcast("held back")
        channel.close(1000)
        assert raw.read_frame().payload == b"begun"
        assert raw.read_frame().close_code == 1000
        raw.send_close(1000)
        tick_until(lambda: server.record.count("close"), server)
        assert channel.buffered_amount == 0


def test_a_fragmented_message_of_many_frames(serve: Serve) -> None:
    with RawClient(serve(EchoServer()).port) as raw:
        # Cut inside characters too: UTF-8 is a matter of the message, not of the frame.
        data = text_of(1000).encode()
        raw.send_frame(WsOpcode.TEXT, data[:1], fin=False)
        for byte in data[1:-1]:
            raw.send_frame(WsOpcode.CONTINUATION, bytes([byte]), fin=False)
        raw.send_frame(WsOpcode.CONTINUATION, data[-1:])
        assert raw.read_message() == data.decode()
        raw.send_frame(WsOpcode.BINARY, fin=False)
        for _ in range(1000):
            raw.send_frame(WsOpcode.CONTINUATION, fin=False)
        raw.send_frame(WsOpcode.CONTINUATION)
        assert raw.read_message() == b""
