"""Other libraries' clients against our server, and our client against other libraries' servers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import aiohttp
import aiohttp.web
import pytest
import websocket
import websockets.asyncio.client
import websockets.asyncio.server
import websockets.sync.client
import websockets.sync.server
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

import pyhv
from pyhv import WebSocketChannel, WsOpcode
from support import (
    HOST,
    LIMIT,
    Background,
    EchoServer,
    RecordingClient,
    ServerThread,
    tick_until,
    wait_until,
)

T = TypeVar("T")

MIB = 1 << 20
MESSAGES: list[str | bytes] = [
    "text",
    b"binary \x00\xff",
    "unicode é ß → \U0001f40d",
    "with \0 in it",
    "",
    b"",
    "x" * 125,
    "x" * 126,
    b"x" * 65535,
    b"x" * 65536,
    "é" * (MIB // 2),
    bytes(range(256)) * (MIB // 256),
]


# Their clients


class Peer(ABC):
    """A client of another library with the same few methods for all of them; they block."""

    def __init__(self, port: int, path: str = "/", headers: dict[str, str] | None = None) -> None:
        self.url = f"ws://{HOST}:{port}{path}"
        self.connect(headers or {})

    @abstractmethod
    def connect(self, headers: dict[str, str]) -> None:
        """Opens the connection, offering the subprotocols "chat.v2" and "chat.v1" where it may."""

    @abstractmethod
    def send(self, message: str | bytes) -> None: ...

    @abstractmethod
    def receive(self) -> str | bytes: ...

    def send_fragments(self, fragments: list[str]) -> None:
        pytest.skip("this library does not send fragments")

    @abstractmethod
    def ping(self) -> None:
        """Sends a ping and waits for its pong."""

    @abstractmethod
    def close(self, code: int, reason: str) -> None: ...

    @abstractmethod
    def wait_closed(self) -> tuple[int | None, str]:
        """Waits for the server's close; returns code and reason."""

    @abstractmethod
    def abort(self) -> None:
        """Ends the TCP connection without a closing handshake."""

    @property
    @abstractmethod
    def subprotocol(self) -> str | None: ...

    @abstractmethod
    def dispose(self) -> None:
        """Lets go of everything."""


class WebsocketsSync(Peer):
    def connect(self, headers: dict[str, str]) -> None:
        self.context = websockets.sync.client.connect(
            self.url,
            additional_headers=headers,
            subprotocols=[Subprotocol("chat.v2"), Subprotocol("chat.v1")],
            max_size=None,
            open_timeout=LIMIT,
            close_timeout=LIMIT,
        )
        self.ws = self.context.__enter__()

    def send(self, message: str | bytes) -> None:
        self.ws.send(message)

    def receive(self) -> str | bytes:
        return self.ws.recv(timeout=LIMIT)

    def send_fragments(self, fragments: list[str]) -> None:
        self.ws.send(fragments)

    def ping(self) -> None:
        assert self.ws.ping(b"are you there?").wait(LIMIT)

    def close(self, code: int, reason: str) -> None:
        self.ws.close(code, reason)

    def wait_closed(self) -> tuple[int | None, str]:
        with pytest.raises(ConnectionClosed):
            self.ws.recv(timeout=LIMIT)
        return self.ws.close_code, self.ws.close_reason or ""

    def abort(self) -> None:
        self.ws.close_socket()

    @property
    def subprotocol(self) -> str | None:
        return self.ws.subprotocol

    def dispose(self) -> None:
        self.context.__exit__(None, None, None)


class AsyncPeer(Peer):
    """A client that lives in an event loop, which runs while a method does."""

    def __init__(self, port: int, path: str = "/", headers: dict[str, str] | None = None) -> None:
        self.loop = asyncio.new_event_loop()
        super().__init__(port, path, headers)

    def wait(self, awaitable: Awaitable[T]) -> T:
        return self.loop.run_until_complete(asyncio.wait_for(awaitable, LIMIT))

    def dispose(self) -> None:
        self.abort()
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()


class WebsocketsAsyncio(AsyncPeer):
    def connect(self, headers: dict[str, str]) -> None:
        async def connect() -> websockets.asyncio.client.ClientConnection:
            return await websockets.asyncio.client.connect(
                self.url,
                additional_headers=headers,
                subprotocols=[Subprotocol("chat.v2"), Subprotocol("chat.v1")],
                max_size=None,
            )

        self.ws = self.wait(connect())

    def send(self, message: str | bytes) -> None:
        self.wait(self.ws.send(message))

    def receive(self) -> str | bytes:
        return self.wait(self.ws.recv())

    def send_fragments(self, fragments: list[str]) -> None:
        self.wait(self.ws.send(fragments))

    def ping(self) -> None:
        async def ping() -> None:
            await (await self.ws.ping(b"are you there?"))

        self.wait(ping())

    def close(self, code: int, reason: str) -> None:
        self.wait(self.ws.close(code, reason))

    def wait_closed(self) -> tuple[int | None, str]:
        self.wait(self.ws.wait_closed())
        return self.ws.close_code, self.ws.close_reason or ""

    def abort(self) -> None:
        self.ws.transport.abort()
        self.wait(self.ws.wait_closed())

    @property
    def subprotocol(self) -> str | None:
        return self.ws.subprotocol


class Aiohttp(AsyncPeer):
    def connect(self, headers: dict[str, str]) -> None:
        async def connect() -> tuple[aiohttp.ClientSession, aiohttp.ClientWebSocketResponse[bool]]:
            session = aiohttp.ClientSession()
            ws = await session.ws_connect(
                self.url, headers=headers, protocols=("chat.v2", "chat.v1"), max_msg_size=0, autoping=False
            )
            return session, ws

        self.session, self.ws = self.wait(connect())

    def send(self, message: str | bytes) -> None:
        if isinstance(message, str):
            self.wait(self.ws.send_str(message))
        else:
            self.wait(self.ws.send_bytes(message))

    def receive(self) -> str | bytes:
        while True:
            message = self.wait(self.ws.receive())
            if message.type == aiohttp.WSMsgType.PING:
                self.wait(self.ws.pong(message.data))
                continue
            assert message.type in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY), message
            data: str | bytes = message.data
            return data

    def ping(self) -> None:
        self.wait(self.ws.ping(b"are you there?"))
        message = self.wait(self.ws.receive())
        assert (message.type, bytes(message.data)) == (aiohttp.WSMsgType.PONG, b"are you there?")

    def close(self, code: int, reason: str) -> None:
        self.wait(self.ws.close(code=code, message=reason.encode()))

    def wait_closed(self) -> tuple[int | None, str]:
        message = self.wait(self.ws.receive())
        assert message.type == aiohttp.WSMsgType.CLOSE
        return message.data, message.extra or ""

    def abort(self) -> None:
        connection = self.ws._response.connection
        if connection is not None and connection.transport is not None:
            connection.transport.abort()
        self.wait(asyncio.sleep(0, None))

    @property
    def subprotocol(self) -> str | None:
        return self.ws.protocol

    def dispose(self) -> None:
        self.wait(self.ws.close())
        self.wait(self.session.close())
        super().dispose()


class WebSocketClient(Peer):
    def connect(self, headers: dict[str, str]) -> None:
        self.ws = websocket.create_connection(
            self.url,
            timeout=LIMIT,
            header=[f"{name}: {value}" for name, value in headers.items()],
            # No subprotocols: this library fails the connection unless the server chooses one.
            http_no_proxy=[HOST],
        )

    def send(self, message: str | bytes) -> None:
        if isinstance(message, str):
            self.ws.send(message)
        else:
            self.ws.send_binary(message)

    def receive(self) -> str | bytes:
        opcode, data = self.ws.recv_data()
        assert opcode in (websocket.ABNF.OPCODE_TEXT, websocket.ABNF.OPCODE_BINARY), (opcode, data)
        assert isinstance(data, bytes)
        return data.decode() if opcode == websocket.ABNF.OPCODE_TEXT else data

    def send_fragments(self, fragments: list[str]) -> None:
        for number, fragment in enumerate(fragments):
            opcode = websocket.ABNF.OPCODE_CONT if number else websocket.ABNF.OPCODE_TEXT
            fin = int(number + 1 == len(fragments))
            self.ws.send_frame(websocket.ABNF.create_frame(fragment.encode(), opcode, fin))

    def ping(self) -> None:
        self.ws.ping(b"are you there?")
        opcode, frame = self.ws.recv_data_frame(control_frame=True)
        assert (opcode, frame.data) == (websocket.ABNF.OPCODE_PONG, b"are you there?")

    def close(self, code: int, reason: str) -> None:
        self.ws.close(status=code, reason=reason.encode(), timeout=LIMIT)

    def wait_closed(self) -> tuple[int | None, str]:
        opcode, frame = self.ws.recv_data_frame(control_frame=True)
        assert opcode == websocket.ABNF.OPCODE_CLOSE
        return int.from_bytes(frame.data[:2], "big"), frame.data[2:].decode()

    def abort(self) -> None:
        self.ws.shutdown()  # type: ignore[no-untyped-call]

    @property
    def subprotocol(self) -> str | None:
        return self.ws.getsubprotocol()

    def dispose(self) -> None:
        self.ws.shutdown()  # type: ignore[no-untyped-call]


PEERS: list[Callable[..., Peer]] = [WebsocketsSync, WebsocketsAsyncio, Aiohttp, WebSocketClient]


@pytest.fixture(params=PEERS, ids=lambda kind: kind.__name__)
def kind(request: pytest.FixtureRequest) -> Callable[..., Peer]:
    """Each library's client."""
    result: Callable[..., Peer] = request.param
    return result


@pytest.fixture
def running(serve: Callable[..., ServerThread]) -> ServerThread:
    """An echo server on a thread of its own."""
    return serve(EchoServer())


@pytest.fixture
def peer(kind: Callable[..., Peer], running: ServerThread) -> Iterator[Peer]:
    """Each library's client, connected to an echo server."""
    with disposed(kind(running.port, "/chat?room=1", {"X-Thing": "thing"})) as connected:
        yield connected


@contextlib.contextmanager
def disposed(peer: Peer) -> Iterator[Peer]:
    try:
        yield peer
    finally:
        peer.dispose()


def echo_of(running: ServerThread) -> EchoServer:
    assert isinstance(running.server, EchoServer)
    return running.server


def channel_of(running: ServerThread) -> WebSocketChannel:
    (channel,) = wait_until(lambda: running.server.channels)
    return channel


def closed(running: ServerThread) -> tuple[int | None, str | None]:
    """Code and reason with which the only channel closed, once."""
    record = echo_of(running).record
    (channel,) = (call.who for call in record.calls if call.what == "open")
    wait_until(lambda: record.count("close"))
    assert record.count("close") == 1
    return channel.close_code, channel.close_reason


def test_messages_of_every_kind_and_size_come_back_unchanged(peer: Peer) -> None:
    for message in MESSAGES:
        peer.send(message)
        got = peer.receive()
        assert type(got) is type(message)
        assert got == message


def test_a_burst_of_messages_comes_back_in_order(peer: Peer) -> None:
    want = [f"message {number}" for number in range(500)]
    for message in want:
        peer.send(message)
    assert [peer.receive() for _ in want] == want


def test_a_message_in_fragments_arrives_as_one(peer: Peer, running: ServerThread) -> None:
    peer.send_fragments(["one, ", "", "two, ", "é" * 1000])
    peer.send("whole")
    want = "one, two, " + "é" * 1000
    assert peer.receive() == want
    assert peer.receive() == "whole"
    assert echo_of(running).record.values("message") == [want, "whole"]


def test_a_message_that_the_server_sends_in_fragments_arrives_as_one(peer: Peer, running: ServerThread) -> None:
    channel = channel_of(running)
    assert channel.send("one, ", fin=False)
    assert channel.send(b"in between", WsOpcode.PING)
    assert channel.send("two, ", fin=False)
    assert channel.send("three")
    assert channel.send(b"bin", fin=False)
    assert channel.send(b"ary")
    assert peer.receive() == "one, two, three"
    assert peer.receive() == b"binary"


def test_a_ping_is_answered(peer: Peer) -> None:
    for _ in range(3):
        peer.ping()
    peer.send("still here")
    assert peer.receive() == "still here"


def test_a_ping_of_the_server_disturbs_nobody(peer: Peer, running: ServerThread) -> None:
    channel = channel_of(running)
    assert channel.send(b"are you there?", WsOpcode.PING)
    peer.send("still here")
    assert peer.receive() == "still here"
    assert echo_of(running).record.values("message") == ["still here"]


def test_the_request_of_the_handshake_is_seen(peer: Peer, running: ServerThread) -> None:
    channel = channel_of(running)
    assert channel.url == "/chat?room=1"
    assert channel.query["room"] == "1"
    assert channel.headers["x-thing"] == "thing"
    if not isinstance(peer, WebSocketClient):
        offered = channel.headers["sec-websocket-protocol"].split(",")
        assert [name.strip() for name in offered] == ["chat.v2", "chat.v1"]
    # No subprotocol has been agreed on, so none is used (RFC 6455 section 4.2.2).
    assert peer.subprotocol is None


@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (1001, "going"), (3000, "é reason"), (4999, "x" * 123)])
def test_a_close_by_the_client_is_told_with_code_and_reason(
    peer: Peer, running: ServerThread, code: int, reason: str
) -> None:
    peer.send("before")
    assert peer.receive() == "before"
    peer.close(code, reason)
    assert closed(running) == (code, reason)


@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (1012, "restart"), (3000, "é reason"), (4999, "x" * 123)])
def test_a_close_by_the_server_is_told_with_code_and_reason(
    peer: Peer, running: ServerThread, code: int, reason: str
) -> None:
    channel = channel_of(running)
    channel.send("before")
    channel.close(code, reason)
    assert peer.receive() == "before"
    assert peer.wait_closed() == (code, reason)
    # What the client's own close frame says: aiohttp and websocket-client answer with a code of theirs.
    answer_of_its_own = isinstance(peer, (Aiohttp, WebSocketClient))
    assert closed(running) == ((1000, "") if answer_of_its_own else (code, reason))


def test_a_client_that_goes_away_abruptly_closes_with_1006(peer: Peer, running: ServerThread) -> None:
    channel_of(running)
    peer.abort()
    assert closed(running) == (1006, "")


def test_a_stopping_server_tells_its_clients_1001(kind: Callable[..., Peer]) -> None:
    server = EchoServer()
    server.start(0)
    running = ServerThread(server)
    try:
        with disposed(kind(running.port)) as peer:
            peer.send("before")
            assert peer.receive() == "before"
            stopping = Background(server.stop)
            assert peer.wait_closed()[0] == 1001
            stopping.result()
    finally:
        running.stop()
    assert not server.is_running


def test_clients_of_all_libraries_share_a_broadcast(running: ServerThread) -> None:
    peers = [kind(running.port) for kind in PEERS for _ in range(3)]
    try:
        wait_until(lambda: len(running.server.channels) == len(peers))
        running.server.broadcast("to all")
        running.server.broadcast(b"\x00\xff")
        for peer in peers:
            assert [peer.receive(), peer.receive()] == ["to all", b"\x00\xff"]
    finally:
        for peer in peers:
            peer.dispose()


# Their servers


class TheirServer(ABC):
    """Another library's server on a thread. It chooses the subprotocol "chat.v1", echoes, and takes commands.

    "headers": sends the request's headers as JSON; "close CODE REASON": closes; "abort": ends the TCP connection;
    "ping": pings, waits for the pong, and sends "ponged"; "fragments": sends "one, two" in two. What clients closed
    with is put into `closes`.
    """

    def __init__(self) -> None:
        self.closes: list[tuple[int | None, str | None]] = []
        self.port = 0

    @abstractmethod
    def start(self) -> None: ...

    @abstractmethod
    def stop(self) -> None: ...


class InLoop(TheirServer):
    """A server in an event loop of its own thread."""

    def start(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, name=type(self).__name__)
        self.thread.start()
        asyncio.run_coroutine_threadsafe(self.begin(), self.loop).result(LIMIT)

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self.end(), self.loop).result(LIMIT)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(LIMIT)
        assert not self.thread.is_alive()
        self.loop.close()

    @abstractmethod
    async def begin(self) -> None: ...

    @abstractmethod
    async def end(self) -> None: ...


class WebsocketsAsyncioServer(InLoop):
    async def begin(self) -> None:
        self.server = await websockets.asyncio.server.serve(
            self.handle, HOST, 0, subprotocols=[Subprotocol("chat.v1")], max_size=None
        )
        (listener,) = self.server.sockets
        self.port = listener.getsockname()[1]

    async def end(self) -> None:
        self.server.close()
        await self.server.wait_closed()

    async def handle(self, ws: websockets.asyncio.server.ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            while True:
                message = await ws.recv()
                match message:
                    case "headers":
                        assert ws.request is not None
                        await ws.send(json.dumps({k.lower(): v for k, v in ws.request.headers.raw_items()}))
                    case "abort":
                        ws.transport.abort()
                    case "ping":
                        await (await ws.ping())
                        await ws.send("ponged")
                    case "fragments":
                        await ws.send(["one, ", "two"])
                    case str(text) if text.startswith("close "):
                        _, code, reason = text.split(" ", 2)
                        await ws.close(int(code), reason)
                    case _:
                        await ws.send(message)
        self.closes.append((ws.close_code, ws.close_reason))


class WebsocketsSyncServer(TheirServer):
    def start(self) -> None:
        self.connections: set[websockets.sync.server.ServerConnection] = set()
        self.server = websockets.sync.server.serve(
            self.handle, HOST, 0, subprotocols=[Subprotocol("chat.v1")], max_size=None
        )
        self.port = self.server.socket.getsockname()[1]
        self.thread = threading.Thread(target=self.server.serve_forever, name=type(self).__name__)
        self.thread.start()

    def stop(self) -> None:
        self.server.shutdown()
        self.thread.join(LIMIT)
        assert not self.thread.is_alive()
        for ws in list(self.connections):
            ws.close(1001)
        wait_until(lambda: not self.connections)

    def handle(self, ws: websockets.sync.server.ServerConnection) -> None:
        self.connections.add(ws)
        with contextlib.suppress(ConnectionClosed):
            while True:
                message = ws.recv()
                match message:
                    case "headers":
                        assert ws.request is not None
                        ws.send(json.dumps({k.lower(): v for k, v in ws.request.headers.raw_items()}))
                    case "abort":
                        ws.close_socket()
                    case "ping":
                        assert ws.ping().wait(LIMIT)
                        ws.send("ponged")
                    case "fragments":
                        ws.send(["one, ", "two"])
                    case str(text) if text.startswith("close "):
                        _, code, reason = text.split(" ", 2)
                        ws.close(int(code), reason)
                    case _:
                        ws.send(message)
        self.closes.append((ws.close_code, ws.close_reason))
        self.connections.discard(ws)


class AiohttpServer(InLoop):
    async def begin(self) -> None:
        self.open: set[aiohttp.web.WebSocketResponse] = set()
        application = aiohttp.web.Application()
        application.router.add_get("/", self.handle)
        application.on_shutdown.append(self.shutdown)
        self.runner = aiohttp.web.AppRunner(application, access_log=None)
        await self.runner.setup()
        await aiohttp.web.TCPSite(self.runner, HOST, 0).start()
        ((_, self.port, *_),) = self.runner.addresses

    async def shutdown(self, application: aiohttp.web.Application) -> None:
        for ws in list(self.open):
            await ws.close(code=1001)

    async def end(self) -> None:
        await self.runner.cleanup()

    async def handle(self, request: aiohttp.web.Request) -> aiohttp.web.WebSocketResponse:
        ws = aiohttp.web.WebSocketResponse(protocols=("chat.v1",), max_msg_size=0, autoping=False)
        await ws.prepare(request)
        self.open.add(ws)
        try:
            while True:
                message = await ws.receive()
                if message.type == aiohttp.WSMsgType.PING:
                    await ws.pong(message.data)
                    continue
                if message.type == aiohttp.WSMsgType.CLOSE:
                    self.closes.append((message.data, message.extra))
                if message.type not in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY):
                    return ws
                match message.data:
                    case "headers":
                        await ws.send_json({k.lower(): v for k, v in request.headers.items()})
                    case "abort":
                        assert request.transport is not None
                        request.transport.abort()
                    case "ping":
                        await ws.ping(b"are you there?")
                        answer = await ws.receive()
                        assert (answer.type, bytes(answer.data)) == (aiohttp.WSMsgType.PONG, b"are you there?")
                        await ws.send_str("ponged")
                    case str(text) if text.startswith("close "):
                        _, code, reason = text.split(" ", 2)
                        await ws.close(code=int(code), message=reason.encode())
                    case str(text):
                        await ws.send_str(text)
                    case data:
                        await ws.send_bytes(data)
        finally:
            self.open.discard(ws)


@pytest.fixture(params=[WebsocketsAsyncioServer, WebsocketsSyncServer, AiohttpServer], ids=lambda kind: kind.__name__)
def theirs(request: pytest.FixtureRequest) -> Iterator[TheirServer]:
    """Each library's server."""
    server: TheirServer = request.param()
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def client(theirs: TheirServer) -> Iterator[RecordingClient]:
    """Our client, connected to it."""
    connected = RecordingClient()
    connected.connect(f"ws://{HOST}:{theirs.port}/", headers={"X-Thing": "thing"}, subprotocols=["chat.v2", "chat.v1"])
    tick_until(lambda: connected.is_connected or connected.error, connected)
    assert connected.error is None, connected.error
    yield connected
    connected.close()
    tick_until(lambda: connected.close_code, connected)


def answered(client: RecordingClient, message: str | bytes) -> Any:
    """Sends a message and returns what comes back."""
    before = len(client.received)
    assert client.send(message)
    tick_until(lambda: len(client.received) > before, client)
    return client.received[before]


def test_our_messages_of_every_kind_and_size_come_back_unchanged(client: RecordingClient) -> None:
    for message in MESSAGES:
        got = answered(client, message)
        assert type(got) is type(message)
        assert got == message


def test_our_burst_of_messages_comes_back_in_order(client: RecordingClient) -> None:
    want = [f"message {number}" for number in range(500)]
    for message in want:
        assert client.send(message)
    tick_until(lambda: len(client.received) == len(want), client)
    assert client.received == want


def test_our_fragments_arrive_as_one_message(client: RecordingClient) -> None:
    assert client.send("one, ", fin=False)
    assert client.send(b"in between", WsOpcode.PING)
    assert client.send("two, ", fin=False)
    assert answered(client, "three") == "one, two, three"


def test_their_fragments_arrive_as_one_message(client: RecordingClient, theirs: TheirServer) -> None:
    if isinstance(theirs, AiohttpServer):
        pytest.skip("aiohttp does not send fragments")
    assert answered(client, "fragments") == "one, two"


def test_their_pings_are_answered(client: RecordingClient) -> None:
    assert answered(client, "ping") == "ponged"
    assert client.received == ["ponged"]


def test_the_subprotocol_they_choose_is_told_and_our_headers_are_seen(client: RecordingClient) -> None:
    assert client.subprotocol == "chat.v1"
    assert client.headers is not None
    assert client.headers["upgrade"].lower() == "websocket"
    seen = json.loads(answered(client, "headers"))
    assert seen["x-thing"] == "thing"
    assert seen["sec-websocket-protocol"] == "chat.v2, chat.v1"


@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (1001, "going"), (3000, "é reason"), (4999, "x" * 123)])
def test_our_close_is_told_to_them_with_code_and_reason(
    client: RecordingClient, theirs: TheirServer, code: int, reason: str
) -> None:
    assert answered(client, "before") == "before"
    client.close(code, reason)
    tick_until(lambda: client.close_code, client)
    # aiohttp answers with a code of its own.
    assert client.close_code == (1000 if isinstance(theirs, AiohttpServer) else code)
    assert wait_until(lambda: theirs.closes) == [(code, reason)]


@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (1012, "restart"), (3000, "é reason"), (4999, "x" * 123)])
def test_their_close_is_told_to_us_with_code_and_reason(client: RecordingClient, code: int, reason: str) -> None:
    client.send("before")
    client.send(f"close {code} {reason}")
    tick_until(lambda: client.close_code, client)
    assert (client.close_code, client.close_reason) == (code, reason)
    assert client.received == ["before"]
    assert [call.what for call in client.record.calls] == ["open", "message", "close"]


def test_a_server_of_theirs_that_goes_away_abruptly_closes_with_1006(client: RecordingClient) -> None:
    client.send("abort")
    tick_until(lambda: client.close_code, client)
    assert (client.close_code, client.error) == (1006, None)
    assert [call.what for call in client.record.calls] == ["open", "close"]


def test_a_server_of_theirs_that_shuts_down_closes_with_1001(client: RecordingClient, theirs: TheirServer) -> None:
    assert answered(client, "before") == "before"
    stopping = Background(theirs.stop)
    tick_until(lambda: client.close_code, client)
    assert client.close_code == 1001
    stopping.result()
    theirs.start()  # for the fixture to stop


def test_fifty_clients_talk_to_them_from_one_thread(theirs: TheirServer) -> None:
    clients = [RecordingClient() for _ in range(50)]
    for client in clients:
        client.connect(f"ws://{HOST}:{theirs.port}/", subprotocols=["chat.v1"])
    tick_until(lambda: all(client.is_connected for client in clients), *clients)
    for number, client in enumerate(clients):
        client.send(f"{number}")
    tick_until(lambda: all(client.received for client in clients), *clients)
    assert [client.received for client in clients] == [[f"{number}"] for number in range(50)]
    for client in clients:
        client.close()
    tick_until(lambda: all(client.close_code for client in clients), *clients)


def test_a_path_that_an_http_server_does_not_know_is_told_with_404() -> None:
    server = AiohttpServer()
    server.start()
    try:
        client = RecordingClient()
        client.connect(f"ws://{HOST}:{server.port}/unknown")
        tick_until(lambda: client.close_code, client)
        assert isinstance(client.error, pyhv.HandshakeError)
        assert client.error.status == 404
    finally:
        server.stop()
