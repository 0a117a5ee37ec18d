"""A chat room: one HTTP and WebSocket server, one page, one thread of Python.

    python examples/chat/server.py [--port 9090] [--host 127.0.0.1]

Open the printed address in two tabs, or join from a terminal with client.py. HTTP serves three paths: `/` the
page, `/ping` answers "pong", `/status` answers {"clients": 2, "messages": 7, "uptime": 31.4} (seconds).

The protocol on the WebSocket: text messages, each one JSON object. A client sends one kind of message; a text
that begins with "/" is a command: /nick NAME, /who, /help.

    {"type": "chat", "text": "hello"}

The server sends these:

    {"type": "welcome", "nick": "user_1", "nicks": ["user_1", "bob"]}
        First and once: who you are, who is here.
    {"type": "chat", "nick": "bob", "text": "hello", "time": 1767225600.25}
        To everybody, the sender too, so that all see one order. Unix time in seconds.
    {"type": "notice", "kind": "join", "text": "bob joined"}
        For people to read. The kind is join, leave, rename, who, help, or error: what you asked is refused.
    {"type": "nick", "nick": "bob"}
        Your own nickname is this from now on.
    {"type": "nicks", "nicks": ["user_1", "bob"]}
        Who is here, whenever that changed.

A client may ask for a nickname when it connects, as the page does after a lost connection: /chat?nick=bob.
Whoever sends anything else (no JSON, a missing field, a binary message, a text over 2,000 characters) gets a
notice of kind "error"; nobody else sees any of it.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
import unicodedata
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

import pyhv

if TYPE_CHECKING:
    from pyhv import HttpRequest, HttpResponse, WebSocketChannel

MAX_NICK = 24
MAX_TEXT = 2000
# The longest honest message: every character an emoji, each written as two \uXXXX escapes, plus the braces.
# Anything longer is refused before it is parsed.
MAX_MESSAGE = MAX_TEXT * 12 + 100

HELP = "Commands: /nick NAME changes your nickname, /who lists who is here."


def encode(**message: object) -> str:
    """One message of the protocol as text.

    ASCII only, json's default: a lone surrogate that a client sent as an escape stays an escape, where UTF-8
    could not hold it.
    """
    return json.dumps(message)


def error(text: str) -> str:
    return encode(type="notice", kind="error", text=text)


def same_nick_key(nick: str) -> str:
    """Nicknames that read the same ("Bob" and "bob", or "bob" in full-width letters) have the same key."""
    return unicodedata.normalize("NFKC", nick).casefold()


class ChatServer(pyhv.HvWebServer):
    """Every method here runs on the thread that calls tick(): plain attributes, no locks."""

    def on_init(self) -> None:
        self.page = Path(__file__).with_name("index.html").read_text(encoding="utf-8")
        self.nicks: dict[str, str] = {}  # who is here, in the order of joining: same_nick_key(nick) -> nick
        self.nicks_changed = False  # since the last tick
        self.users = 0  # numbers handed out for user_1, user_2, ...
        self.messages = 0  # chat messages since the start
        self.started = time.monotonic()

        self.get("/", self.get_page)
        self.get("/ping", self.get_ping)
        self.get("/status", self.get_status)

    # HTTP

    def get_page(self, req: HttpRequest, resp: HttpResponse) -> HTTPStatus:
        return resp.html(self.page)

    def get_ping(self, req: HttpRequest, resp: HttpResponse) -> HTTPStatus:
        return resp.text("pong")

    def get_status(self, req: HttpRequest, resp: HttpResponse) -> HTTPStatus:
        uptime = round(time.monotonic() - self.started, 3)
        return resp.json({"clients": len(self.nicks), "messages": self.messages, "uptime": uptime})

    # WebSocket

    def on_ws_open(self, channel: WebSocketChannel, url: str) -> None:
        wanted = parse_qs(url.partition("?")[2]).get("nick", [""])[0]
        refusal = self.nick_refusal(wanted) if wanted else None
        nick = wanted if wanted and refusal is None else self.next_user()

        channel.data = nick
        self.nicks[same_nick_key(nick)] = nick
        self.nicks_changed = True
        channel.send(encode(type="welcome", nick=nick, nicks=list(self.nicks.values())))
        if refusal is not None:
            channel.send(error(f"{refusal} You are {nick} for now."))
        self.broadcast(encode(type="notice", kind="join", text=f"{nick} joined"), exclude=channel)

    def on_ws_message(self, channel: WebSocketChannel, msg: str | bytes) -> None:
        if isinstance(msg, bytes):
            channel.send(error("Binary messages mean nothing here."))
            return
        if len(msg) > MAX_MESSAGE:
            channel.send(error(f"That is too long: {MAX_TEXT} characters at most."))
            return
        try:
            message = json.loads(msg)
        except (ValueError, RecursionError):  # RecursionError: a few thousand "[" in a row
            channel.send(error("That was not JSON."))
            return

        match message:
            case {"type": "chat", "text": str(text)}:
                self.on_text(channel, text.strip())
            case _:
                channel.send(error('Expected {"type": "chat", "text": "..."}.'))

    def on_ws_close(self, channel: WebSocketChannel) -> None:
        nick = channel.data
        self.nicks.pop(same_nick_key(nick), None)
        self.nicks_changed = True
        self.broadcast(encode(type="notice", kind="leave", text=f"{nick} left"))

    def on_tick(self) -> None:
        # Once per tick, however many came and went in it: a thousand people joining at once would otherwise
        # be sent a thousand lists each.
        if self.nicks_changed:
            self.nicks_changed = False
            self.broadcast(encode(type="nicks", nicks=list(self.nicks.values())))

    # The chat

    def on_text(self, channel: WebSocketChannel, text: str) -> None:
        if not text:
            channel.send(error("There was nothing in that message."))
        elif len(text) > MAX_TEXT:
            channel.send(error(f"That is too long: {MAX_TEXT} characters at most."))
        elif text.startswith("/"):
            command, _, argument = text.partition(" ")
            self.on_command(channel, command, argument.strip())
        else:
            self.messages += 1
            self.broadcast(encode(type="chat", nick=channel.data, text=text, time=round(time.time(), 3)))

    def on_command(self, channel: WebSocketChannel, command: str, argument: str) -> None:
        match command:
            case "/nick":
                self.rename(channel, argument)
            case "/who":
                people = f"Here now ({len(self.nicks)}): {', '.join(self.nicks.values())}"
                channel.send(encode(type="notice", kind="who", text=people))
            case "/help":
                channel.send(encode(type="notice", kind="help", text=HELP))
            case _:
                channel.send(error(f"There is no such command. {HELP}"))

    def rename(self, channel: WebSocketChannel, nick: str) -> None:
        old = channel.data
        refusal = self.nick_refusal(nick, old)
        if refusal is not None:
            channel.send(error(refusal))
            return

        # Rebuilt rather than changed, so that people keep their places in the list.
        kept = (nick if known == old else known for known in self.nicks.values())
        self.nicks = {same_nick_key(known): known for known in kept}
        self.nicks_changed = True
        channel.data = nick
        channel.send(encode(type="nick", nick=nick))
        self.broadcast(encode(type="notice", kind="rename", text=f"{old} is now {nick}"))

    def nick_refusal(self, nick: str, own: str = "") -> str | None:
        """Why `nick` can't be had, as a sentence for its asker, or None. `own` is the one they have now."""
        if not nick:
            return "Which nickname? /nick NAME."
        if len(nick) > MAX_NICK:
            return f"That nickname is too long: {MAX_NICK} characters at most."
        # isprintable() refuses control and formatting characters and every space but the plain one.
        if not nick.isprintable() or " " in nick:
            return "A nickname has printable characters and no spaces."
        if nick == own:
            return f"You are {nick} already."
        key = same_nick_key(nick)
        if key in self.nicks and key != same_nick_key(own):
            return f"The nickname {nick} is taken."
        return None

    def next_user(self) -> str:
        """The next free one of user_1, user_2, ...: somebody may have chosen one of these as a nickname."""
        while True:
            self.users += 1
            nick = f"user_{self.users}"
            if nick not in self.nicks:
                return nick


def port_number(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"{port} is not between 0 and 65535")
    return port


def main() -> int:
    parser = argparse.ArgumentParser(description="A chat room in the browser.")
    parser.add_argument("--port", type=port_number, default=9090, help="0 picks a free one (default: 9090)")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets others in (default: 127.0.0.1)")
    args = parser.parse_args()
    host = f"[{args.host}]" if ":" in args.host else args.host

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # SIGTERM ends the loop as Ctrl-C does
    server = ChatServer()
    try:
        server.start(args.port, host=args.host)
    except OSError as exc:
        print(f"{parser.prog}: {exc.strerror or exc}", file=sys.stderr)  # it names host and port
        return 1

    # server.run() would do all of this. Spelled out, this is the place where a game draws its frame.
    try:
        print(f"pyHV chat on http://{host}:{server.port} (Ctrl-C stops)", flush=True)
        while True:
            server.tick(timeout=0.1)
    except KeyboardInterrupt:
        pass
    finally:
        server.stop()
    print("stopped", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
