"""The chat window: messages come and go in tkinter's mainloop, and it survives a restart of the server."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from support import LIMIT, RecordingClient
from support_display import Display, display
from support_examples import EXAMPLES, artifact
from support_load import ChatServerProgram, Program

tkinter = pytest.importorskip("tkinter", reason="there is no tkinter (Debian: apt-get install python3-tk)")

sys.path.append(str(EXAMPLES / "chat_window"))
import chat_window  # noqa: E402

import pyhv.loops.tkinter  # noqa: E402


@pytest.fixture(scope="module")
def screen() -> Iterator[Display]:
    with display(900, 600) as running:
        yield running


class Desk:
    """A window of the example, in this process, and its mainloop."""

    def __init__(self, screen: Display, server: ChatServerProgram, nick: str) -> None:
        self.root = tkinter.Tk(screenName=screen.name)
        self.window = chat_window.ChatWindow(self.root, server.ws_url, nick)

    def until(self, condition: Callable[[], object]) -> None:
        """Runs the mainloop until `condition()`; it is looked at every 5 ms."""
        looks = iter(range(round(LIMIT / 0.005)))

        def look() -> None:
            if condition() or next(looks, None) is None:
                self.root.quit()
            else:
                self.root.after(5, look)

        look_first = self.root.after(0, look)
        self.root.mainloop()
        self.root.after_cancel(look_first)
        assert condition(), self.text

    @property
    def text(self) -> str:
        return str(self.window.log.get("1.0", "end"))

    @property
    def people(self) -> list[str]:
        return list(self.window.people.get(0, "end"))

    def say(self, text: str) -> None:
        self.window.entry.insert(0, text)
        self.root.update()
        self.window.entry.focus_force()
        self.window.entry.event_generate("<Return>")

    def close(self) -> None:
        self.root.destroy()
        self.window.close()


@pytest.fixture
def server() -> Iterator[ChatServerProgram]:
    with ChatServerProgram() as running:
        yield running


@pytest.fixture
def desk(screen: Display, server: ChatServerProgram) -> Iterator[Desk]:
    opened = Desk(screen, server, "alice")
    yield opened
    opened.close()


class Bob(RecordingClient):
    """Somebody else in the chat, ticked by the mainloop too."""

    def __init__(self, server: ChatServerProgram, desk: Desk) -> None:
        super().__init__()
        self.attached = pyhv.loops.tkinter.attach(self, root=desk.root)
        self.connect(f"{server.ws_url}?nick=bob")

    def said(self) -> list[str]:
        messages: list[dict[str, Any]] = [json.loads(msg) for msg in self.received]
        return [message["text"] for message in messages if message["type"] == "chat"]

    def say(self, text: str) -> None:
        self.send(json.dumps({"type": "chat", "text": text}))


def test_people_talk(server: ChatServerProgram, screen: Display, desk: Desk) -> None:
    desk.until(lambda: desk.people == ["alice"])
    bob = Bob(server, desk)
    desk.until(lambda: desk.people == ["alice", "bob"])
    desk.say("Does the window stay alive while we talk?")
    desk.until(bob.said)
    bob.say("It does. tkinter waits for the network and for you at once.")
    bob.say("<b>No</b> thread, ü.")
    desk.until(lambda: "ü" in desk.text)
    assert [line[7:] for line in desk.text.splitlines() if "  " in line] == [
        "alice  Does the window stay alive while we talk?",
        "bob  It does. tkinter waits for the network and for you at once.",
        "bob  <b>No</b> thread, ü.",
    ]
    desk.root.geometry("+0+0")
    desk.until(lambda: desk.root.winfo_rootx() == 0)
    desk.root.update()
    path = artifact("chat-window.png")
    screen.screenshot(path, desk.root.winfo_width(), desk.root.winfo_height())
    assert path.stat().st_size > 2000
    bob.close()
    desk.until(lambda: desk.people == ["alice"])
    bob.attached.detach()


def test_it_connects_again(
    monkeypatch: pytest.MonkeyPatch, server: ChatServerProgram, screen: Display, desk: Desk
) -> None:
    monkeypatch.setattr(chat_window, "RECONNECT", 50)
    desk.until(lambda: desk.people == ["alice"])
    server.process.kill()
    server.finish()
    desk.until(lambda: desk.window.status.cget("text") == "Offline")
    desk.say("kept")
    assert desk.window.entry.get() == "kept"
    with ChatServerProgram(server.port):
        desk.until(lambda: desk.people == ["alice"])
        desk.window.submit()
        desk.until(lambda: "alice  kept" in desk.text)


def test_the_program_ends_with_its_window(
    monkeypatch: pytest.MonkeyPatch, server: ChatServerProgram, screen: Display
) -> None:
    monkeypatch.setenv("DISPLAY", screen.name)
    code = f"""
import sys, runpy, tkinter
made = tkinter.Tk
def Tk():
    root = made()
    root.after(500, root.destroy)
    return root
tkinter.Tk = Tk
sys.argv = ["chat_window.py", "--url", {server.ws_url!r}]
runpy.run_path({str(EXAMPLES / "chat_window" / "chat_window.py")!r}, run_name="__main__")
"""
    with Program("-X", "dev", "-c", code) as program:
        assert program.finish() == 0, program.output
        assert program.output == ""
