"""The main loop of examples/squares, measured.

    python frames_squares.py PORT alone|network PLAYERS SECONDS [--all-cores]

Sixty times a second all squares move and are drawn with pygame, on its dummy video driver. "network": the players are
clients, who are told every frame, as the example has it. "alone": as many squares wander by themselves, and nothing
listens. Waits for so many players, measures, prints one line of JSON, and goes on until it is killed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

os.environ["SDL_VIDEODRIVER"] = "dummy"
os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
import pygame

FRAME = 1 / 60
#: Seconds of frames between the last player's arrival and the measurement.
SETTLE = 1.0
SHARES = (0.5, 0.9, 0.99)


def squares() -> Any:
    """The module of the example."""
    path = Path(__file__).parents[2] / "examples/squares/server.py"
    spec = importlib.util.spec_from_file_location("squares", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["squares"] = module  # where its dataclass looks itself up
    spec.loader.exec_module(module)
    return module


class Frame(NamedTuple):
    """One frame, in seconds."""

    #: From the begin of its work to the end: by the clock, and CPU time of this thread.
    work: float
    cpu: float
    #: From when it was due to begin until its end, so that a late wake-up counts.
    end: float
    #: From the begin of the one before it.
    period: float


def figures(frames: list[Frame], process: float) -> dict[str, Any]:
    """Means and percentiles, in milliseconds."""
    told: dict[str, Any] = {"frames": len(frames), "process_ms": round(process / len(frames) * 1e3, 3)}
    for name in Frame._fields:
        values = sorted(getattr(frame, name) for frame in frames)
        told[f"{name}_ms"] = round(sum(values) / len(values) * 1e3, 4)
        for share in SHARES:
            told[f"{name}_p{share * 100:g}_ms"] = round(values[int((len(values) - 1) * share)] * 1e3, 4)
    told["late"] = sum(frame.end > FRAME for frame in frames)
    return told


def main() -> None:
    """Frames until the process is killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("mode", choices=["alone", "network"])
    parser.add_argument("players", type=int)
    parser.add_argument("seconds", type=float)
    parser.add_argument("--all-cores", action="store_true")
    options = parser.parse_args()
    if options.all_cores:
        # Before the native threads are there, which inherit it.
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
    game = squares()
    world = game.World()
    network = options.mode == "network"
    if network:
        world.start(options.port, slow_policy="drop_oldest", max_buffered=64 << 10)
    else:
        width, height = game.WIDTH - game.SIZE, game.HEIGHT - game.SIZE
        world.squares = {
            n: game.Square(n, random.uniform(0, width), random.uniform(0, height), n * 67 % 256)
            for n in range(options.players)
        }
    pygame.display.init()
    screen = pygame.display.set_mode((game.WIDTH, game.HEIGHT))
    frames: list[Frame] = []
    due = last = time.perf_counter()
    began, process_began, measuring = due + SETTLE, 0.0, True
    while True:
        begin, cpu = time.perf_counter(), time.thread_time()
        pygame.event.get()
        if network:
            world.tick()
            world.step(FRAME)
        else:
            for square in world.squares.values():
                if random.random() < 1 / 60:
                    square.dx, square.dy = random.randint(-1, 1), random.randint(-1, 1)
                square.move(FRAME)
        world.draw(screen)
        pygame.display.flip()
        cpu, end = time.thread_time() - cpu, time.perf_counter()
        if measuring and len(world.squares) < options.players:
            began = end + SETTLE
        elif measuring and end < began:
            process_began = time.process_time()
        elif measuring:
            frames.append(Frame(end - begin, cpu, end - due, begin - last))
            if end - began >= options.seconds:
                print(json.dumps(figures(frames, time.process_time() - process_began)), flush=True)
                measuring = False
        last = begin
        # As pygame's Clock: a frame that took too long is not made up for.
        due = max(due + FRAME, time.perf_counter())
        time.sleep(max(due - time.perf_counter(), 0))


if __name__ == "__main__":
    main()
