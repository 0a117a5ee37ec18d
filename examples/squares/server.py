"""A world of moving squares at 60 frames a second: a pygame window, browsers, pygame clients and bots share it.

    python examples/squares/server.py [--port 9090] [--host 127.0.0.1] [--no-window]

The protocol on the WebSocket:

    server, once      text    {"id": 3, "width": 960, "height": 540, "size": 18}
    server, each frame  binary  for each square 7 bytes, little-endian: its id, its x and y (uint16), its hue (uint8)
    client            binary  2 bytes: where its square is to go, dx and dy, each -1, 0 or 1 (int8)

A square leaves with its connection. Whoever sends anything else is closed with 1003 or 1007.
"""

from __future__ import annotations

import argparse
import colorsys
import itertools
import os
import random
import signal
import struct
import sys
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

import pyhv

if TYPE_CHECKING:
    from pyhv import HttpRequest, HttpResponse, WebSocketChannel

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
import pygame

WIDTH, HEIGHT, SIZE = 960, 540, 18  # pixels
SPEED = 220.0  # pixels a second
FRAMES = 60  # a second

SQUARE = struct.Struct("<HHHB")
DIRECTION = struct.Struct("<bb")


@dataclass
class Square:
    id: int
    x: float
    y: float
    hue: int  # 0 to 255
    dx: int = 0
    dy: int = 0

    def move(self, seconds: float) -> None:
        self.x = min(max(self.x + self.dx * SPEED * seconds, 0.0), WIDTH - SIZE)
        self.y = min(max(self.y + self.dy * SPEED * seconds, 0.0), HEIGHT - SIZE)


class World(pyhv.HvWebServer):
    """Every method here runs on the thread of the game: plain attributes, no locks."""

    def on_init(self) -> None:
        self.squares: dict[int, Square] = {}
        self.ids = itertools.count(1)
        self.page = Path(__file__).with_name("index.html").read_text(encoding="utf-8")
        self.get("/", self.get_page)

    def get_page(self, req: HttpRequest, resp: HttpResponse) -> HTTPStatus:
        return resp.html(self.page)

    def on_ws_open(self, channel: WebSocketChannel, url: str) -> None:
        number = next(self.ids) % 65536
        square = Square(number, random.uniform(0, WIDTH - SIZE), random.uniform(0, HEIGHT - SIZE), number * 67 % 256)
        channel.data = self.squares[number] = square
        channel.send(f'{{"id": {number}, "width": {WIDTH}, "height": {HEIGHT}, "size": {SIZE}}}')

    def on_ws_message(self, channel: WebSocketChannel, msg: str | bytes) -> None:
        if not isinstance(msg, bytes):
            channel.close(1003, "directions are binary")
        elif len(msg) != DIRECTION.size or not {*DIRECTION.unpack(msg)} <= {-1, 0, 1}:
            channel.close(1007, "a direction is two bytes, each -1, 0 or 1")
        else:
            channel.data.dx, channel.data.dy = DIRECTION.unpack(msg)

    def on_ws_close(self, channel: WebSocketChannel) -> None:
        del self.squares[channel.data.id]

    def step(self, seconds: float) -> None:
        """One frame: everybody moves, everybody is told."""
        for square in self.squares.values():
            square.move(seconds)
        self.broadcast(b"".join(SQUARE.pack(s.id, round(s.x), round(s.y), s.hue) for s in self.squares.values()))

    def draw(self, screen: pygame.Surface) -> None:
        screen.fill((24, 28, 32))
        for square in self.squares.values():
            red, green, blue = colorsys.hls_to_rgb(square.hue / 256, 0.6, 0.7)
            color = (round(red * 255), round(green * 255), round(blue * 255))
            pygame.draw.rect(screen, color, (square.x, square.y, SIZE, SIZE), border_radius=3)


def main() -> int:
    parser = argparse.ArgumentParser(description="A world of moving squares.")
    parser.add_argument("--port", type=int, default=9090, help="0 picks a free one (default: 9090)")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets others in (default: 127.0.0.1)")
    parser.add_argument("--no-window", action="store_true", help="only serve")
    args = parser.parse_args()

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    world = World()
    # Who cannot take 60 pictures a second misses some; each is whole.
    world.start(args.port, args.host, slow_policy="drop_oldest", max_buffered=64 << 10)
    print(f"squares on http://{args.host}:{world.port} (Ctrl-C stops)", flush=True)

    pygame.display.init()
    screen = None if args.no_window else pygame.display.set_mode((WIDTH, HEIGHT))
    pygame.display.set_caption("pyHV squares")
    clock = pygame.time.Clock()
    try:
        while not any(event.type == pygame.QUIT for event in (pygame.event.get() if screen else ())):
            seconds = clock.tick(FRAMES) / 1000
            world.tick()  # the network's part of the frame: callbacks run here
            world.step(seconds)
            if screen:
                world.draw(screen)
                pygame.display.flip()
    except KeyboardInterrupt:
        pass
    finally:
        world.stop()
        pygame.quit()
    print("stopped", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
