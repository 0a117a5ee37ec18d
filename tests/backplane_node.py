"""A node for the tests of a backplane: `python backplane_node.py '{"settings": {...}, "keep": [...], "host": "..."}'`.

Prints its port, then does what the lines of its standard input say and answers each in a line. JSON throughout.
"""

from __future__ import annotations

import json
import queue
import sys
import threading
import time
from typing import Any

from pyhv import HvWebServer, WebSocketChannel


class Node(HvWebServer):
    def __init__(self) -> None:
        self.states: list[str] = []
        self.errors: list[str] = []
        self.joined: list[Any] = []
        self.left: list[Any] = []

    def on_backplane(self, state: str) -> None:
        self.states.append(state)

    def on_error(self, exc: Exception) -> None:
        self.errors.append(repr(exc))

    def on_ws_open(self, channel: WebSocketChannel, url: str) -> None:
        # A member, for those that say so: ?member=NAME&in=TOPIC
        if "member" in channel.query:
            channel.subscribe(channel.query["in"], member=channel.query["member"])

    def on_subscribe(self, channel: WebSocketChannel, topic: str) -> bool:
        return True

    def on_publish(self, channel: WebSocketChannel, topic: str, msg: str | bytes) -> bool:
        return True

    def on_join(self, topic: str, member: Any) -> None:
        self.joined.append(member)

    def on_leave(self, topic: str, member: Any) -> None:
        self.left.append(member)


class Burst:
    """Messages of this node in the order of their numbers, a few in each tick."""

    def __init__(self, ask: dict[str, Any]) -> None:
        self.name: str = ask["name"]
        self.topics: list[str] = ask["topics"]
        self.count: int = ask["count"]  # in all
        self.each: int = ask["each"]  # in a tick
        self.seconds: float = ask["seconds"]  # at least between two ticks that publish
        self.number: int = ask["first"]
        self.refused: list[int] = []
        self.last = self.number + self.count
        self.next = 0.0
        self.worst = 0.0  # seconds in publish and tick, never waiting

    def step(self, node: Node) -> bool:
        """Whether it is over."""
        now = time.perf_counter()
        if now < self.next:
            return False
        self.next = now + self.seconds
        for _ in range(min(self.each, self.last - self.number)):
            topic = self.topics[self.number % len(self.topics)]
            if node.publish(topic, f"{self.name}:{self.number}") is None:
                self.refused.append(self.number)
            self.number += 1
        node.tick()
        self.worst = max(self.worst, time.perf_counter() - now)
        over: bool = self.number >= self.last
        return over


def main() -> None:
    asked = json.loads(sys.argv[1])
    node = Node()
    node.enable_topics(patterns=True)
    for rule in asked["keep"]:
        node.keep(**rule)
    node.start(0, asked["host"], **asked["settings"])
    lines: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        for line in sys.stdin:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()

    def say(**what: Any) -> None:
        print(json.dumps(what), flush=True)

    def do(ask: dict[str, Any]) -> Any:
        match ask["do"]:
            case "publish":
                return node.publish(ask["topic"], ask["msg"])
            case "states":
                return node.states
            case "dropped":
                return [node.backplane_state, node.backplane_dropped]
            case "count":
                return node.subscriber_count(ask["topic"])
            case "channels":
                return len(node.channels)
            case "presence":
                return node.presence(ask["topic"])
            case "presences":
                return [node.joined, node.left]
            case "errors":
                return node.errors
            case "close_channels":
                for channel in node.channels:
                    channel.close(1012)
                return len(node.channels)
            case other:
                raise ValueError(other)

    say(port=node.port)
    burst: Burst | None = None
    while True:
        node.tick(timeout=0.002)
        if burst and burst.step(node):
            say(answer={"refused": burst.refused, "worst": burst.worst})
            burst = None
        try:
            line = lines.get_nowait()
        except queue.Empty:
            continue
        if line is None:
            node.stop(0)
            return
        ask = json.loads(line)
        if ask["do"] == "stop":
            # What it was told before is done first.
            while burst and not burst.step(node):
                pass
            node.stop(ask.get("timeout", 5.0))
            say(answer=None)
            return
        if ask["do"] == "burst":
            burst = Burst(ask)
            continue
        try:
            say(answer=do(ask))
        except Exception as error:
            say(error=repr(error))


if __name__ == "__main__":
    main()
