"""The dasHV tutorial HV-06, "WebSockets", step by step with pyHV's words.

The server lives on a thread of its own, which ticks it until a flag is set; the clients are ticked here.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http import HTTPStatus

import pytest

from pyhv import HttpRequest, HttpResponse, HvWebServer, HvWebSocketClient, WebSocketChannel
from support import LIMIT, http, tick_until, wait_until


class ChatServer(HvWebServer):
    """Section 1: the server."""

    def on_init(self) -> None:
        self.clients: dict[WebSocketChannel, str] = {}
        self.next_id = 0
        self.events: list[tuple[str, str]] = []
        self.threads: set[int] = set()

        @self.get("/ping")
        def ping(req: HttpRequest, resp: HttpResponse) -> HTTPStatus:
            self.threads.add(threading.get_ident())
            return resp.text("pong")

        self.get("/clients", self.count_clients)

    def count_clients(self, req: HttpRequest, resp: HttpResponse) -> HTTPStatus:
        self.threads.add(threading.get_ident())
        return resp.text(str(len(self.clients)))

    def on_tick(self) -> None:
        self.threads.add(threading.get_ident())

    def on_ws_open(self, channel: WebSocketChannel, url: str) -> None:
        self.threads.add(threading.get_ident())
        self.next_id += 1
        nickname = f"user_{self.next_id}"
        self.clients[channel] = nickname
        self.events.append((f"{nickname} connected", url))
        channel.send(f"welcome {nickname}")
        self.broadcast(f"{nickname} joined", channel)

    def on_ws_close(self, channel: WebSocketChannel) -> None:
        self.threads.add(threading.get_ident())
        nickname = self.clients.pop(channel)
        self.events.append((f"{nickname} disconnected", str(channel.close_code)))
        self.broadcast(f"{nickname} left")

    def on_ws_message(self, channel: WebSocketChannel, msg: str | bytes) -> None:
        self.threads.add(threading.get_ident())
        nickname = self.clients[channel]
        channel.send(f"echo: {msg!s}")
        self.broadcast(f"{nickname}: {msg!s}", exclude=channel)


class ChatClient(HvWebSocketClient):
    """Section 2: the client."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.received: list[str | bytes] = []
        self.events: list[str] = []

    def on_open(self) -> None:
        self.events.append(f"[{self.name}] connected")

    def on_close(self) -> None:
        self.events.append(f"[{self.name}] disconnected")

    def on_message(self, msg: str | bytes) -> None:
        self.received.append(msg)


class Served:
    """Section 3: a chat server on its own thread from start to stop."""

    def __init__(self) -> None:
        self.server = ChatServer()
        self.port = 0
        self.started = threading.Event()
        self.stop_flag = threading.Event()
        self.thread = threading.Thread(target=self.run, name="chat-server")

    def run(self) -> None:
        self.server.start(0)
        self.port = self.server.port or 0
        self.started.set()
        while not self.stop_flag.is_set():
            self.server.tick(0.01)
        self.server.stop()

    @property
    def base_url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"


@pytest.fixture
def chat() -> Iterator[Served]:
    served = Served()
    served.thread.start()
    try:
        assert served.started.wait(LIMIT)
        yield served
    finally:
        served.stop_flag.set()
        served.thread.join(LIMIT)
        assert not served.thread.is_alive()
    assert not served.server.is_running
    assert served.server.threads == {served.thread.ident}


def joined(chat: Served, name: str) -> ChatClient:
    """A client that has its welcome."""
    client = ChatClient(name)
    client.connect(f"{chat.base_url}/chat")
    tick_until(lambda: client.received, client, what=f"{name} is welcomed")
    return client


def leave(*clients: ChatClient) -> None:
    for client in clients:
        client.close()
    tick_until(lambda: all(client.close_code for client in clients), *clients, what="everybody has left")


def test_a_client_connects_and_is_welcomed(chat: Served) -> None:
    alice = ChatClient("alice")
    alice.connect(f"{chat.base_url}/chat")
    assert not alice.is_connected
    tick_until(lambda: alice.received, alice)
    assert alice.received == ["welcome user_1"]
    assert alice.events == ["[alice] connected"]
    assert alice.is_connected
    assert chat.server.events == [("user_1 connected", "/chat")]
    leave(alice)


def test_a_message_is_echoed_to_its_sender(chat: Served) -> None:
    alice = joined(chat, "alice")
    assert alice.send("hello server!")
    tick_until(lambda: len(alice.received) == 2, alice)
    assert alice.received == ["welcome user_1", "echo: hello server!"]
    leave(alice)


def test_a_second_client_is_announced_to_the_first_and_not_to_itself(chat: Served) -> None:
    alice = joined(chat, "alice")
    bob = joined(chat, "bob")
    tick_until(lambda: len(alice.received) == 2, alice, bob)
    assert alice.received == ["welcome user_1", "user_2 joined"]
    # Its echo comes behind all that was sent to it before, so bob has had no announcement of his own.
    bob.send("marker")
    tick_until(lambda: "echo: marker" in bob.received, alice, bob)
    assert bob.received == ["welcome user_2", "echo: marker"]
    leave(alice, bob)


def test_a_broadcast_reaches_the_others_and_skips_the_sender(chat: Served) -> None:
    alice, bob, carol = (joined(chat, name) for name in ("alice", "bob", "carol"))
    bob.send("hi everyone!")
    everybody = (alice, bob, carol)
    tick_until(lambda: "user_2: hi everyone!" in alice.received, *everybody)
    tick_until(lambda: "user_2: hi everyone!" in carol.received, *everybody)
    bob.send("marker")
    tick_until(lambda: "echo: marker" in bob.received, *everybody)
    assert alice.received[:4] == ["welcome user_1", "user_2 joined", "user_3 joined", "user_2: hi everyone!"]
    assert bob.received == ["welcome user_2", "user_3 joined", "echo: hi everyone!", "echo: marker"]
    assert carol.received[:2] == ["welcome user_3", "user_2: hi everyone!"]
    leave(*everybody)


def test_http_is_answered_beside_the_websockets_on_the_same_port(chat: Served) -> None:
    ping = http(chat.port, "GET", "/ping")
    assert (ping.status, ping.body) == (200, b"pong")
    assert http(chat.port, "GET", "/clients").body == b"0"
    alice = joined(chat, "alice")
    bob = joined(chat, "bob")
    assert http(chat.port, "GET", "/clients").body == b"2"
    leave(alice)
    wait_until(lambda: http(chat.port, "GET", "/clients").body == b"1")
    leave(bob)
    wait_until(lambda: http(chat.port, "GET", "/clients").body == b"0")


def test_a_graceful_close_is_seen_on_both_sides(chat: Served) -> None:
    alice = joined(chat, "alice")
    bob = joined(chat, "bob")
    alice.close()
    assert not alice.is_connected
    tick_until(lambda: alice.events[-1] == "[alice] disconnected", alice, bob)
    assert (alice.close_code, bob.is_connected) == (1000, True)
    tick_until(lambda: "user_1 left" in bob.received, bob)
    bob.close()
    tick_until(lambda: bob.events[-1] == "[bob] disconnected", bob)
    assert not alice.is_connected
    assert not bob.is_connected
    wait_until(lambda: len(chat.server.events) == 4)
    assert chat.server.events == [
        ("user_1 connected", "/chat"),
        ("user_2 connected", "/chat"),
        ("user_1 disconnected", "1000"),
        ("user_2 disconnected", "1000"),
    ]
    assert alice.events == ["[alice] connected", "[alice] disconnected"]
    assert bob.events == ["[bob] connected", "[bob] disconnected"]


def test_the_stop_flag_ends_the_server_thread_and_tells_those_who_are_left(chat: Served) -> None:
    alice = joined(chat, "alice")
    chat.stop_flag.set()
    tick_until(lambda: alice.close_code, alice)
    chat.thread.join(LIMIT)
    assert not chat.thread.is_alive()
    assert alice.close_code == 1001
    assert alice.events == ["[alice] connected", "[alice] disconnected"]
    assert chat.server.events[-1] == ("user_1 disconnected", "1001")
    assert chat.server.clients == {}
