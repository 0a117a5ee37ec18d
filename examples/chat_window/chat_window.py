"""The chat of examples/chat in a window: tkinter's mainloop, and a client that ticks in it.

python examples/chat_window/chat_window.py [--url ws://127.0.0.1:9090/chat] [--nick bob]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import tkinter as tk
from tkinter import ttk
from typing import Any
from urllib.parse import urlencode

import pyhv
import pyhv.loops.tkinter

RECONNECT = 2000  # milliseconds between the end of a connection and the next attempt


class Window(ttk.Frame):
    """What people see. It knows nothing of the network but `say`."""

    def __init__(self, root: tk.Tk) -> None:
        super().__init__(root, padding=10)
        root.title("pyHV chat")
        root.minsize(420, 300)
        self.pack(fill="both", expand=True)
        self.rowconfigure(0, weight=1)
        self.columnconfigure(0, weight=1)
        self.log = tk.Text(self, wrap="word", state="disabled", width=60, height=18, padx=8, pady=6, relief="flat")
        self.log.configure(font="TkDefaultFont")
        self.log.tag_configure("nick", foreground="#0f766e", font="TkHeadingFont")
        self.log.tag_configure("notice", foreground="#5f6963")
        self.log.grid(row=0, column=0, sticky="nsew")
        self.people = tk.Listbox(self, width=16, relief="flat", activestyle="none")
        self.people.grid(row=0, column=1, sticky="ns", padx=(10, 0))
        self.entry = ttk.Entry(self)
        self.entry.grid(row=1, column=0, sticky="ew", pady=(10, 0))
        self.entry.bind("<Return>", self.submit)
        self.status = ttk.Label(self, text="Connecting")
        self.status.grid(row=1, column=1, sticky="w", padx=(10, 0), pady=(10, 0))
        self.entry.focus_set()

    def submit(self, event: object = None) -> None:
        text = self.entry.get().strip()
        if text and self.say(text):
            self.entry.delete(0, "end")  # what could not be sent stays

    def say(self, text: str) -> bool:
        raise NotImplementedError

    def add(self, *parts: str) -> None:
        """Adds a line of texts and their tags, in turn."""
        at_end = self.log.yview()[1] == 1.0
        self.log.configure(state="normal")
        self.log.insert("end", *parts)
        self.log.insert("end", "\n")
        self.log.configure(state="disabled")
        if at_end:
            self.log.see("end")


class ChatWindow(Window):
    """The window with its client; callbacks run in `mainloop()` and may touch widgets."""

    def __init__(self, root: tk.Tk, url: str, nick: str) -> None:
        super().__init__(root)
        self.url, self.nick = url, nick
        self.client = pyhv.HvWebSocketClient()
        self.client.on_open = self.on_open  # type: ignore[method-assign]
        self.client.on_message = self.on_message  # type: ignore[method-assign]
        self.client.on_close = self.on_close  # type: ignore[method-assign]
        self.attached = pyhv.loops.tkinter.attach(self.client, root=root)
        self.connect()

    def connect(self) -> None:
        self.client.connect(f"{self.url}?{urlencode({'nick': self.nick})}" if self.nick else self.url)

    def say(self, text: str) -> bool:
        return self.client.send(json.dumps({"type": "chat", "text": text}))

    def on_open(self) -> None:
        self.status.configure(text="Connected")

    def on_close(self) -> None:
        self.status.configure(text="Offline")
        self.people.delete(0, "end")
        self.after(RECONNECT, self.connect)

    def on_message(self, msg: str | bytes) -> None:
        match json.loads(msg):
            case {"type": "welcome", "nick": nick, "nicks": nicks}:
                self.nick = nick
                self.show_people(nicks)
            case {"type": "chat", "nick": nick, "text": text, "time": sent}:
                clock = time.strftime("%H:%M", time.localtime(sent))
                self.add(f"{clock}  ", "notice", f"{nick}  ", "nick", text, "")
            case {"type": "notice", "text": text}:
                self.add(text, "notice")
            case {"type": "nick", "nick": nick}:
                self.nick = nick
            case {"type": "nicks", "nicks": nicks}:
                self.show_people(nicks)

    def show_people(self, nicks: list[Any]) -> None:
        self.people.delete(0, "end")
        self.people.insert("end", *nicks)

    def close(self) -> None:
        """Says goodbye: `__exit__` waits for it, so the loop must not tick meanwhile."""
        self.attached.detach()
        self.client.on_close = lambda: None  # type: ignore[method-assign]
        self.client.__exit__(None, None, None)


def main() -> int:
    parser = argparse.ArgumentParser(description="The chat in a window.")
    parser.add_argument("--url", default="ws://127.0.0.1:9090/chat")
    parser.add_argument("--nick", default="")
    args = parser.parse_args()
    root = tk.Tk()
    window = ChatWindow(root, args.url, args.nick)
    root.mainloop()
    window.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
