"""A player with a pygame window: the arrow keys move your square.

python examples/squares/client.py [URL]
"""

from __future__ import annotations

import argparse
import colorsys
import json
import os
import signal
import struct
import sys
from typing import Any

import pyhv

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
import pygame

SQUARE = struct.Struct("<HHHB")
DIRECTION = struct.Struct("<bb")


class Player(pyhv.HvWebSocketClient):
    def __init__(self) -> None:
        self.world: dict[str, Any] | None = None  # what the server said first
        self.picture = b""  # the newest

    def on_message(self, msg: str | bytes) -> None:
        if isinstance(msg, bytes):
            self.picture = msg
        else:
            self.world = json.loads(msg)
            print(f"playing as {self.world['id']}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="A player of the squares.")
    parser.add_argument("url", nargs="?", default="ws://127.0.0.1:9090/")
    args = parser.parse_args()

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    player = Player()
    player.connect(args.url)
    pygame.display.init()
    screen = pygame.display.set_mode((960, 540))
    pygame.display.set_caption("pyHV squares")
    clock = pygame.time.Clock()
    direction = (0, 0)
    try:
        while player.close_code is None and not any(event.type == pygame.QUIT for event in pygame.event.get()):
            clock.tick(60)
            player.tick()
            keys = pygame.key.get_pressed()
            wanted = (keys[pygame.K_RIGHT] - keys[pygame.K_LEFT], keys[pygame.K_DOWN] - keys[pygame.K_UP])
            if wanted != direction and player.send(DIRECTION.pack(*wanted)):
                direction = wanted
            screen.fill((24, 28, 32))
            if player.world is not None:
                size = player.world["size"]
                for number, x, y, hue in SQUARE.iter_unpack(player.picture):
                    red, green, blue = colorsys.hls_to_rgb(hue / 256, 0.6, 0.7)
                    color = (round(red * 255), round(green * 255), round(blue * 255))
                    pygame.draw.rect(screen, color, (x, y, size, size), border_radius=3)
                    if number == player.world["id"]:
                        pygame.draw.rect(screen, "white", (x - 3, y - 3, size + 6, size + 6), 2, border_radius=5)
            pygame.display.flip()
    except KeyboardInterrupt:
        pass
    finally:
        player.__exit__(None, None, None)  # close, and wait for the end
        pygame.quit()
    if player.error is not None:
        print(f"{parser.prog}: {player.error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
