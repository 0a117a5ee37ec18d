"""A chat client for the terminal that types and receives in one thread.

    python examples/chat/client.py [ws://127.0.0.1:9090/chat] [--nick NAME]

A line typed is a message; /nick NAME, /who and /help are the server's commands, /quit (or Ctrl-D, or Ctrl-C)
leaves. Piped input works too: `echo hello | python examples/chat/client.py`.

Exit codes: 0 after leaving, 1 when there is no server, 2 when the server went away. server.py describes
the messages.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import queue
import select
import sys
import threading
import time
from urllib.parse import quote

import pyhv

LEAVE_TIMEOUT = 3.0  # seconds that the server has to answer our close


def printable(text: str) -> str:
    """`text` without what could steer the terminal: other people wrote it. Further lines are indented."""
    shown = "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)
    return shown.replace("\n", "\n      ")


def show(text: str) -> None:
    print(printable(text), flush=True)


class ChatClient(pyhv.HvWebSocketClient):
    """Every callback runs inside tick(), on the main thread, so each may print."""

    opened = False
    ended = False  # closed, or never opened: nothing more will come
    leaving = False  # the close is ours

    def on_open(self) -> None:
        self.opened = True

    def on_close(self) -> None:
        self.ended = True

    def on_message(self, msg: str | bytes) -> None:
        try:
            message = json.loads(msg)
        except ValueError:
            return
        match message:
            case {"type": "welcome", "nick": str(nick), "nicks": list(nicks)}:
                others = [str(other) for other in nicks if other != nick]
                show(f"* You are {nick}. Also here: {', '.join(others) or 'nobody yet'}.")
            case {"type": "chat", "nick": str(nick), "text": str(text), "time": int() | float() as when}:
                show(f"{time.strftime('%H:%M', time.localtime(when))} {nick}: {text}")
            case {"type": "notice", "text": str(text)}:
                show(f"* {text}")

    def on_line(self, line: str) -> None:
        """A line was typed, or came through the pipe."""
        text = line.strip()
        if text == "/quit":
            self.leave()
        elif text and not self.leaving:
            self.send(json.dumps({"type": "chat", "text": text}))

    def leave(self) -> None:
        """Close; what was sent before goes out first. on_close() comes when the server has answered."""
        if not self.leaving:
            self.leaving = True
            self.close()


def chat_posix(client: ChatClient) -> None:
    """Sleep until somebody types or the network has news, and serve both, until the connection ends."""
    # Started with stdin closed, sys.stdin is None: the same as an empty input.
    keyboard = sys.stdin.fileno() if sys.stdin else os.open(os.devnull, os.O_RDONLY)
    rest = b""  # of a line that isn't complete yet
    while not client.ended and not client.leaving:
        # Nothing is read before the connection is open, so nothing typed or piped early is lost.
        watched = [client.fileno(), keyboard] if client.opened else [client.fileno()]
        ready, _, _ = select.select(watched, [], [])
        client.tick()
        if keyboard not in ready:
            continue
        # os.read(), not readline(): a line waiting in Python's own buffer would be invisible to select().
        try:
            chunk = os.read(keyboard, 65536)
        except OSError:  # the terminal is gone
            chunk = b""
        *lines, rest = (rest + chunk).split(b"\n") if chunk else (rest, b"")
        for line in lines:
            client.on_line(line.decode(errors="replace"))
        if not chunk:
            client.leave()


def chat_windows(client: ChatClient) -> None:
    """The same for Windows, where select() takes sockets only.

    A thread waits for the keyboard and does nothing else: its lines come through a queue, and every callback
    still runs here.
    """
    typed: queue.SimpleQueue[str | None] = queue.SimpleQueue()  # None: the input has ended

    def read() -> None:
        for line in sys.stdin or ():
            typed.put(line)
        typed.put(None)

    threading.Thread(target=read, daemon=True).start()  # daemon: blocked in a read when the program ends
    while not client.ended and not client.leaving:
        client.tick(timeout=0.05)
        while client.opened and not typed.empty():
            line = typed.get()
            if line is None:
                client.leave()
            else:
                client.on_line(line)


def wait_for_close(client: ChatClient) -> None:
    deadline = time.monotonic() + LEAVE_TIMEOUT
    while not client.ended and time.monotonic() < deadline:
        client.tick(timeout=0.1)


def main() -> int:
    parser = argparse.ArgumentParser(description="A chat client for the terminal.")
    parser.add_argument("url", nargs="?", default="ws://127.0.0.1:9090/chat", help="default: %(default)s")
    parser.add_argument("--nick", help="the nickname to ask for")
    args = parser.parse_args()
    url = args.url
    if args.nick:
        url += ("&" if "?" in url else "?") + "nick=" + quote(args.nick, safe="")

    for stream in (sys.stdout, sys.stderr):  # a terminal without UTF-8 shows "?"; the program goes on
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")

    client = ChatClient()
    try:
        client.connect(url)
    except (OSError, ValueError) as exc:  # an address that can't be one
        print(f"{parser.prog}: {exc}", file=sys.stderr)
        return 1
    try:
        if sys.platform == "win32":
            chat_windows(client)
        else:
            chat_posix(client)
    except KeyboardInterrupt:
        client.leave()
    if client.leaving and client.opened:
        wait_for_close(client)
    if client.leaving:
        return 0
    if not client.opened:
        print(f"{parser.prog}: {client.error}", file=sys.stderr)
        return 1
    reason = f", {printable(client.close_reason)}" if client.close_reason else ""
    print(f"The server went away ({client.close_code}{reason}).", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
