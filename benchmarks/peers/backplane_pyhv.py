"""A node for backplane.py: python backplane_pyhv.py [URL]

Prints its port and then a line with "connected". A client of /?topic=NAME is subscribed to that topic. Each line of the
standard input, JSON, has it publish, and is answered by a line with the CPU seconds of the main thread in `publish`.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from queue import Empty, SimpleQueue

import pyhv


class Node(pyhv.HvWebServer):
    """Subscribes its clients to what they name."""

    def on_ws_open(self, channel: pyhv.WebSocketChannel, url: str) -> None:
        """The topic is in the URL."""
        channel.subscribe(channel.query["topic"])

    def on_backplane(self, state: str) -> None:
        """The runner waits for "connected"."""
        print(state, flush=True)

    def burst(self, topics: list[str], count: int, each: int, pause: float, size: int) -> float:
        """Publishes `count` messages that begin with the time, `each` in a tick."""
        spent = 0.0
        for first in range(0, count, each):
            begin = time.thread_time()
            for number in range(first, min(first + each, count)):
                self.publish(topics[number % len(topics)], f"{time.monotonic():.9f} ".ljust(size, "x"))
            spent += time.thread_time() - begin
            self.tick()
            if pause:
                end = time.monotonic() + pause
                while (left := end - time.monotonic()) > 0:
                    self.tick(left)
        return spent


def main() -> None:
    """Until the input ends."""
    node = Node()
    node.keep("k/#", messages=1000)
    node.start(0, backplane=sys.argv[1] if len(sys.argv) > 1 else None)
    print(node.port, flush=True)
    if len(sys.argv) == 1:
        print("connected", flush=True)
    lines: SimpleQueue[str] = SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            lines.put(line)
        lines.put("")

    threading.Thread(target=read, daemon=True).start()
    while True:
        node.tick(0.005)
        try:
            line = lines.get_nowait()
        except Empty:
            continue
        if not line:
            break
        print(node.burst(**json.loads(line)), flush=True)
    node.stop(0)


if __name__ == "__main__":
    main()
