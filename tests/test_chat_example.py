"""The chat example as people run it: the server as a program, its protocol, and the client in a terminal."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import time
import unicodedata
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import websocket

from support import LIMIT
from support_load import CHAT, ChatServerProgram, Program

Message = dict[str, Any]


class Peer:
    """Somebody in the chat, through the websocket-client package."""

    def __init__(self, url: str, nick: str | None = None) -> None:
        query = "" if nick is None else f"?nick={nick}"
        self.socket = websocket.create_connection(url + query, timeout=LIMIT)
        self.welcome = self.receive()
        assert self.welcome["type"] == "welcome"
        self.nick: str = self.welcome["nick"]

    def receive(self) -> Message:
        data = self.socket.recv()
        assert isinstance(data, str), f"expected a text message, got {data!r}"
        message = json.loads(data)
        assert isinstance(message, dict)
        return message

    def wait_for(self, **wanted: object) -> Message:
        """The next message that has these fields."""
        return self.wait_until(lambda message: wanted.items() <= message.items())[-1]

    def wait_until(self, condition: Callable[[Message], bool]) -> list[Message]:
        """The messages up to and with the first that fulfils the condition."""
        seen = []
        deadline = time.monotonic() + LIMIT
        while time.monotonic() < deadline:
            seen.append(self.receive())
            if condition(seen[-1]):
                return seen
        raise AssertionError(f"not among {seen}")

    def say(self, text: object) -> None:
        self.socket.send(json.dumps({"type": "chat", "text": text}))

    def leave(self) -> None:
        connection = self.socket.sock
        self.socket.close()
        if connection is not None:
            connection.close()  # websocket-client forgets it when the other side has closed first


def status_of(server: ChatServerProgram) -> dict[str, Any]:
    response, body = request(server, "GET", "/status")
    assert response.status == 200
    decoded = json.loads(body)
    assert isinstance(decoded, dict)
    return decoded


def request(server: ChatServerProgram, method: str, path: str) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=LIMIT)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response, response.read()
    finally:
        connection.close()


def wait_for_clients(server: ChatServerProgram, count: int) -> None:
    deadline = time.monotonic() + LIMIT
    while (clients := status_of(server)["clients"]) != count:
        assert time.monotonic() < deadline, f"{clients} clients, not {count}"


@pytest.fixture(scope="module")
def shared_server() -> Iterator[ChatServerProgram]:
    with ChatServerProgram() as server:
        yield server


@pytest.fixture
def server(shared_server: ChatServerProgram) -> ChatServerProgram:
    """One server for the tests of the protocol; the people of the last test have left."""
    wait_for_clients(shared_server, 0)
    return shared_server


@pytest.fixture
def join(server: ChatServerProgram) -> Iterator[Callable[..., Peer]]:
    """Joins the chat and has seen everything about joining."""
    peers = []

    def joined(nick: str | None = None) -> Peer:
        peer = Peer(server.ws_url, nick)
        peers.append(peer)
        for somebody in peers:
            # The list of people comes at the end of the tick in which somebody joined.
            somebody.wait_until(lambda message: message["type"] == "nicks" and peer.nick in message["nicks"])
        return peer

    yield joined
    for peer in peers:
        peer.leave()


# The server as a program


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_server_and_says_goodbye(number: signal.Signals) -> None:
    with ChatServerProgram() as server:
        assert re.fullmatch(r"pyHV chat on http://127\.0\.0\.1:\d+ \(Ctrl-C stops\)", server.lines[0])
        peer = Peer(server.ws_url)
        server.process.send_signal(number)
        code = None
        while code is None:
            opcode, payload = peer.socket.recv_data(control_frame=True)
            if opcode == websocket.ABNF.OPCODE_CLOSE:
                code = int.from_bytes(payload[:2], "big")
        assert code == 1001
        assert server.finish() == 0
        assert server.lines[1:] == ["stopped"]
        peer.leave()


def test_a_port_in_use_is_one_clear_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with Program(CHAT / "server.py", "--port", str(port)) as server:
            assert server.finish() == 1
            assert server.lines == [f"server.py: cannot listen on 127.0.0.1:{port}: Address already in use"]


def test_a_host_that_is_not_ours_is_one_clear_line() -> None:
    # 192.0.2.0/24 is for documentation (RFC 5737): no machine has such an address.
    with Program(CHAT / "server.py", "--port", "0", "--host", "192.0.2.1") as server:
        assert server.finish() == 1
        assert len(server.lines) == 1
        assert server.output.count("192.0.2.1") == 1


@pytest.mark.parametrize("port", ["70000", "-1", "http"])
def test_a_port_that_is_none_is_refused(port: str) -> None:
    with Program(CHAT / "server.py", f"--port={port}") as server:
        assert server.finish() == 2
        assert "--port" in server.lines[-1]
        assert port in server.lines[-1]


# HTTP


def test_ping(server: ChatServerProgram) -> None:
    response, body = request(server, "GET", "/ping")
    assert (response.status, body) == (200, b"pong")
    assert response.headers.get_content_type() == "text/plain"


def test_the_page(server: ChatServerProgram) -> None:
    response, body = request(server, "GET", "/")
    assert (response.status, body) == (200, (CHAT / "index.html").read_bytes())
    assert response.headers.get_content_type() == "text/html"
    assert response.headers.get_content_charset() == "utf-8"


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nothing", 404), ("POST", "/ping", 405)])
def test_what_is_not_there(server: ChatServerProgram, method: str, path: str, status: int) -> None:
    response, _ = request(server, method, path)
    assert response.status == status
    assert (response.headers["Allow"] is not None) == (status == 405)


def test_status_counts_people_and_messages(server: ChatServerProgram, join: Callable[..., Peer]) -> None:
    before = status_of(server)
    assert set(before) == {"clients", "messages", "uptime"}
    assert before["clients"] == 0
    one, two = join(), join()
    one.say("first")
    two.say("second")
    one.say("/who")  # a command is no message
    one.wait_for(kind="who")
    two.wait_for(text="second")
    after = status_of(server)
    assert (after["clients"], after["messages"]) == (2, before["messages"] + 2)
    assert after["uptime"] > before["uptime"] >= 0


# The protocol


def test_welcome_and_join(server: ChatServerProgram, join: Callable[..., Peer]) -> None:
    one = join()
    assert re.fullmatch(r"user_\d+", one.nick)
    assert one.welcome["nicks"] == [one.nick]
    two = Peer(server.ws_url)
    try:
        assert two.welcome["nicks"] == [one.nick, two.nick]
        assert one.receive() == {"type": "notice", "kind": "join", "text": f"{two.nick} joined"}
        assert one.receive() == {"type": "nicks", "nicks": [one.nick, two.nick]}
        # No notice of its own joining.
        assert two.receive() == {"type": "nicks", "nicks": [one.nick, two.nick]}
    finally:
        two.leave()


def test_everybody_sees_a_message_in_one_order(join: Callable[..., Peer]) -> None:
    one, two = join("one"), join("two")
    before = time.time()
    for number in range(20):
        (one, two)[number % 2].say(f"  message {number}\n")
    seen = [[peer.wait_for(type="chat") for _ in range(20)] for peer in (one, two)]
    assert seen[0] == seen[1]
    for nick, parity in (("one", 0), ("two", 1)):
        texts = [message["text"] for message in seen[0] if message["nick"] == nick]
        assert texts == [f"message {number}" for number in range(parity, 20, 2)]
    assert all(before - 1 < message["time"] < time.time() + 1 for message in seen[0])


@pytest.mark.parametrize("goodbye", [True, False], ids=["close", "reset"])
def test_leave(join: Callable[..., Peer], goodbye: bool) -> None:
    one, two = join("stays"), join("leaves")
    if goodbye:
        two.leave()
    else:
        assert two.socket.sock is not None
        two.socket.sock.close()
    one.wait_for(type="notice", kind="leave", text="leaves left")
    assert one.wait_for(type="nicks")["nicks"] == ["stays"]


def test_rename(join: Callable[..., Peer]) -> None:
    one, two = join("bob"), join("eve")
    one.say("/nick  robert ")
    assert one.receive() == {"type": "nick", "nick": "robert"}
    for peer in (one, two):
        assert peer.receive() == {"type": "notice", "kind": "rename", "text": "bob is now robert"}
        assert peer.receive() == {"type": "nicks", "nicks": ["robert", "eve"]}  # keeps the place
    one.say("hello")
    assert two.receive()["nick"] == "robert"
    two.say("/nick bob")  # free again
    two.wait_for(type="nick", nick="bob")


def test_a_nickname_may_change_its_capitals(join: Callable[..., Peer]) -> None:
    one = join("bob")
    one.say("/nick BOB")
    one.wait_for(type="nick", nick="BOB")


BAD_NICKS = {
    "taken": ("bob", "is taken"),
    "taken but for capitals": ("BoB", "is taken"),
    "taken but for the width": ("\uff42\uff4f\uff42", "is taken"),
    "too long": ("n" * 25, "too long"),
    "a space": ("two words", "no spaces"),
    "a control character": ("be\x07ll", "printable"),
    "an invisible character": ("bo\u200bb", "printable"),
}


@pytest.mark.parametrize(("nick", "why"), BAD_NICKS.values(), ids=BAD_NICKS)
def test_a_nickname_that_cannot_be_had(
    server: ChatServerProgram, join: Callable[..., Peer], nick: str, why: str
) -> None:
    assert unicodedata.normalize("NFKC", "\uff42\uff4f\uff42") == "bob"
    bob, eve = join("bob"), join("eve")
    eve.say(f"/nick {nick}")
    refusal = eve.receive()
    assert refusal["kind"] == "error"
    assert why in refusal["text"]
    eve.say("still eve")
    assert bob.receive()["nick"] == "eve"  # who has heard nothing of it
    # Asked for at the door: in, but under another name, and told why.
    third = Peer(server.ws_url, "".join(f"%{byte:02x}" for byte in nick.encode()))
    try:
        assert re.fullmatch(r"user_\d+", third.nick)
        refusal = third.receive()
        assert refusal["kind"] == "error"
        assert why in refusal["text"]
        assert third.nick in refusal["text"]
    finally:
        third.leave()


def test_a_nickname_of_24_characters_can_be_had(join: Callable[..., Peer]) -> None:
    assert join("n" * 24).nick == "n" * 24


@pytest.mark.parametrize(("text", "why"), [("/nick", "Which nickname"), ("/nick bob", "already")])
def test_a_nickname_that_changes_nothing(join: Callable[..., Peer], text: str, why: str) -> None:
    bob = join("bob")
    bob.say(text)
    answer = bob.receive()
    assert answer["kind"] == "error"
    assert why in answer["text"]


def test_handed_out_names_avoid_chosen_ones(join: Callable[..., Peer]) -> None:
    number = int(join().nick.removeprefix("user_"))
    join(f"user_{number + 1}")
    assert join().nick == f"user_{number + 2}"


def test_who_and_help(join: Callable[..., Peer]) -> None:
    bob, eve = join("bob"), join("eve")
    bob.say("/who")
    assert bob.receive() == {"type": "notice", "kind": "who", "text": "Here now (2): bob, eve"}
    bob.say("/help")
    answer = bob.receive()
    assert answer["kind"] == "help"
    assert "/nick" in answer["text"]
    assert "/who" in answer["text"]
    bob.say("done")
    assert eve.receive()["text"] == "done"


def chat(text: object) -> str:
    return json.dumps({"type": "chat", "text": text})


BAD_MESSAGES: dict[str, tuple[str | bytes, str]] = {
    "no JSON": ("hello", "not JSON"),
    "nothing": ("", "not JSON"),
    "deeply nested": ("[" * 20000, "not JSON"),
    "no object": ("[1, 2]", "Expected"),
    "a number": ("7", "Expected"),
    "another type": ('{"type": "shout", "text": "x"}', "Expected"),
    "no type": ('{"text": "x"}', "Expected"),
    "no text": ('{"type": "chat"}', "Expected"),
    "text is a number": (chat(5), "Expected"),
    "text is null": (chat(None), "Expected"),
    "empty": (chat(""), "nothing in"),
    "only spaces": (chat(" \n\t "), "nothing in"),
    "2001 characters": (chat("x" * 2001), "too long"),
    "more than could be honest": (chat("x" * 30000), "too long"),
    "unknown command": (chat("/dance"), "no such command"),
    "binary": (b"\x00\x01", "Binary"),
    "binary JSON": (chat("x").encode(), "Binary"),
}


@pytest.mark.parametrize(("data", "why"), BAD_MESSAGES.values(), ids=BAD_MESSAGES)
def test_a_message_that_is_none(join: Callable[..., Peer], data: str | bytes, why: str) -> None:
    one, two = join(), join()
    if isinstance(data, bytes):
        one.socket.send_binary(data)
    else:
        one.socket.send(data)
    answer = one.receive()
    assert (answer["type"], answer["kind"]) == ("notice", "error")
    assert why in answer["text"]
    one.say("still here")
    assert one.receive()["text"] == "still here"
    assert two.receive()["text"] == "still here"  # and nothing before it


@pytest.mark.parametrize("text", ["x" * 2000, "\U0001f600" * 2000, "a\nb", "\ud800 alone", "<b>&amp;</b>", "nul\0!"])
def test_texts_arrive_as_they_were(join: Callable[..., Peer], text: str) -> None:
    one, two = join(), join()
    one.say(text)
    assert two.receive()["text"] == text


# The client in a terminal


def client(server: ChatServerProgram, *options: str, terminal: bool = False, stdin: int | None = None) -> Program:
    return Program(CHAT / "client.py", server.ws_url, *options, terminal=terminal, stdin=stdin)


def test_client_through_a_pipe(server: ChatServerProgram, join: Callable[..., Peer]) -> None:
    eve = join("eve")
    with client(server, "--nick", "ci", stdin=subprocess.PIPE) as program:
        assert program.process.stdin is not None
        # The last line has no end.
        program.process.stdin.write("the build is green\n\n/nick bot\nüber, over".encode())
        program.process.stdin.close()
        assert program.finish() == 0
        assert "Traceback" not in program.output
    assert [eve.wait_for(type="chat")["text"] for _ in range(2)] == ["the build is green", "über, over"]
    eve.wait_for(kind="leave", text="bot left")


def test_client_without_stdin(server: ChatServerProgram) -> None:
    with client(server, stdin=subprocess.DEVNULL) as program:
        assert program.finish() == 0


def test_client_quits_on_command(server: ChatServerProgram) -> None:
    read, write = os.pipe()
    try:
        with client(server, stdin=read) as program:
            os.write(write, b"hello\n/quit\nnever said\n")
            assert program.finish() == 0  # with the pipe still open
            assert "never said" not in program.output
    finally:
        os.close(read)
        os.close(write)


def test_client_on_a_terminal(server: ChatServerProgram, join: Callable[..., Peer]) -> None:
    eve = join("eve")
    with client(server, "--nick", "bob", terminal=True) as program:
        program.wait_for("You are bob. Also here: eve.")
        eve.say("hello bob")  # arrives while the program waits for the keyboard
        assert re.search(r"\d\d:\d\d eve: hello bob", program.wait_for("eve: hello bob"))
        program.type("hello eve\n")
        assert eve.wait_for(type="chat", nick="bob")["text"] == "hello eve"
        program.wait_for("bob: hello eve")
        program.type("/who\n")
        program.wait_for("* Here now (2): eve, bob")
        program.type("half a li")
        eve.say("between")
        program.wait_for("eve: between")
        program.type("ne\n")
        assert eve.wait_for(type="chat", nick="bob")["text"] == "half a line"
        program.type("\x03")
        assert program.finish() == 0
        assert "Traceback" not in program.output
    eve.wait_for(kind="leave", text="bob left")


def test_client_leaves_at_ctrl_d(server: ChatServerProgram) -> None:
    with client(server, terminal=True) as program:
        program.wait_for("You are")
        program.type("\x04")
        assert program.finish() == 0


def test_what_others_write_does_not_steer_the_terminal(server: ChatServerProgram, join: Callable[..., Peer]) -> None:
    eve = join("eve")
    with client(server, terminal=True) as program:
        program.wait_for("You are")
        eve.say("red \x1b[31m alert\x07 \x9b2J\nsecond line")
        program.wait_for("second line")
        program.type("/quit\n")
        assert program.finish() == 0
        assert not set("\x1b\x07\x9b") & set(program.output)
        assert "red \ufffd[31m alert\ufffd \ufffd2J" in program.output


def test_client_without_a_server() -> None:
    # Bound and not listening: nobody else gets the port, and whoever connects is refused.
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        with Program(CHAT / "client.py", f"ws://127.0.0.1:{port}/chat", stdin=subprocess.DEVNULL) as program:
            assert program.finish() == 1
            assert program.lines == [f"client.py: cannot connect to 127.0.0.1:{port}: Connection refused"]


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/", "127.0.0.1", "ws://"])
def test_client_with_an_address_that_is_none(url: str) -> None:
    with Program(CHAT / "client.py", url, stdin=subprocess.DEVNULL) as program:
        assert program.finish() == 1
        assert len(program.lines) == 1
        assert url in program.lines[0]


def test_client_whose_server_goes_away() -> None:
    with ChatServerProgram() as server, client(server, terminal=True) as program:
        program.wait_for("You are")
        server.process.send_signal(signal.SIGTERM)
        assert program.finish() == 2
        assert "The server went away (1001)." in program.output
        assert server.finish() == 0


def test_client_whose_server_is_killed() -> None:
    with ChatServerProgram() as server, client(server, terminal=True) as program:
        program.wait_for("You are")
        server.process.kill()
        assert program.finish() == 2
        assert "The server went away (1006)." in program.output
