"""A language model that streams its answer to a page, token by token, as server-sent events.

    python examples/tokens/server.py [--port 9090] [--host 127.0.0.1] [--pace 0.03]

    GET /answer?prompt=...   text/event-stream: {"token": " word"} for each token, then the event "done"

`answer()` is the place for a real model: any generator of tokens does. Here it talks about what it was asked.
"""

from __future__ import annotations

import argparse
import re
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

import pyhv

if TYPE_CHECKING:
    from pyhv import HttpRequest, HttpResponse, StreamWriter

MAX_PROMPT = 500  # characters

TEXT = """You asked about {prompt}. I am a few lines of Python that pretend to think, so let me tell you how these words
reach you instead. The main loop takes one token from each conversation, writes it as a server-sent event, and ticks. A
native thread sends it, while the loop is busy with the next one. When you close the page, the stream ends, and so does
my effort. Open this page twice: both answers grow at once, on one thread, without async or await."""


def answer(prompt: str) -> Iterator[str]:
    """The model: yields the tokens of its answer."""
    yield from re.findall(r"\s*\S{1,6}", TEXT.format(prompt=prompt).replace("\n", " "))


@dataclass
class Conversation:
    writer: StreamWriter
    tokens: Iterator[str]


class Tokens(pyhv.HvWebServer):
    """Every method here runs on the thread that calls tick()."""

    def on_init(self) -> None:
        self.conversations: list[Conversation] = []
        self.page = Path(__file__).with_name("index.html").read_text(encoding="utf-8")
        self.get("/", self.get_page)
        self.sse("/answer", self.get_answer)

    def get_page(self, req: HttpRequest, resp: HttpResponse) -> HTTPStatus:
        return resp.html(self.page)

    def get_answer(self, req: HttpRequest, writer: StreamWriter) -> int | None:
        prompt = req.query.get("prompt", "").strip()
        if not prompt or len(prompt) > MAX_PROMPT:
            return HTTPStatus.BAD_REQUEST
        self.conversations.append(Conversation(writer, answer(prompt)))
        return None

    def on_stream_close(self, writer: StreamWriter) -> None:
        # The reader has left: nobody needs the rest.
        self.conversations = [each for each in self.conversations if each.writer is not writer]

    def step(self) -> None:
        """One token for every conversation."""
        for conversation in list(self.conversations):
            if conversation.writer.buffered_amount > 0:
                continue  # its reader is slow: the model waits for it
            token = next(conversation.tokens, None)
            if token is not None:
                conversation.writer.event({"token": token})
            else:
                conversation.writer.event("", event="done")
                conversation.writer.close()
                self.conversations.remove(conversation)


def main() -> int:
    parser = argparse.ArgumentParser(description="A model that streams tokens.")
    parser.add_argument("--port", type=int, default=9090, help="0 picks a free one (default: 9090)")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets others in (default: 127.0.0.1)")
    parser.add_argument("--pace", type=float, default=0.03, help="seconds for a token (default: 0.03)")
    args = parser.parse_args()

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    server = Tokens()
    server.start(args.port, args.host)
    print(f"tokens on http://{args.host}:{server.port} (Ctrl-C stops)", flush=True)
    try:
        while True:
            # Without a conversation it sleeps until somebody asks.
            server.tick(timeout=0 if server.conversations else None)
            server.step()
            if server.conversations:
                time.sleep(args.pace)  # the model at work
    except KeyboardInterrupt:
        pass
    finally:
        server.stop()
    print("stopped", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
