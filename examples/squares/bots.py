"""Players that wander: hundreds of clients on one thread.

python examples/squares/bots.py [URL] [--count 300]
"""

from __future__ import annotations

import argparse
import random
import signal
import sys

import pyhv
from pyhv.loops import wait

DIRECTIONS = (b"\x00\x00", b"\x01\x00", b"\xff\x00", b"\x00\x01", b"\x00\xff", b"\x01\x01", b"\xff\xff")


class Bot(pyhv.HvWebSocketClient):
    """Every second or so it goes somewhere else. It counts pictures instead of looking at them."""

    def on_message(self, msg: str | bytes) -> None:
        if random.random() < 1 / 60:
            self.send(random.choice(DIRECTIONS))

    def on_open(self) -> None:
        self.send(random.choice(DIRECTIONS))


def main() -> int:
    parser = argparse.ArgumentParser(description="Bots among the squares.")
    parser.add_argument("url", nargs="?", default="ws://127.0.0.1:9090/")
    parser.add_argument("--count", type=int, default=300)
    args = parser.parse_args()

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    bots = [Bot() for _ in range(args.count)]
    try:
        for bot in bots:
            bot.connect(args.url)
        told = False
        while any(bot.close_code is None for bot in bots):
            wait(*bots, timeout=1)
            if not told and all(bot.is_connected for bot in bots):
                told = True
                print(f"{len(bots)} bots are playing (Ctrl-C stops)", flush=True)
    except KeyboardInterrupt:
        pass
    errors = {str(bot.error) for bot in bots if bot.error is not None}
    for error in errors:
        print(f"{parser.prog}: {error}", file=sys.stderr)
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
