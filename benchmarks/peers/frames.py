"""The main loop that frames_*.py share: 60 frames a second of work of its own, and a WebSocket server beside it.

    python frames_NAME.py PORT idle|echo|broadcast CLIENTS SECONDS

Waits for so many clients, measures, prints one line of JSON, and goes on running frames until it is killed.
"""

from __future__ import annotations

import json
import sys
import time
from abc import ABC, abstractmethod
from typing import NamedTuple

FRAME = 1 / 60
#: What every frame says to everybody in the broadcast case.
MESSAGE = "m" * 200
#: Frames between the last client's arrival and the measurement.
SETTLE_FRAMES = 60


class Network(ABC):
    """What a frame does with the network, on the thread of the main loop."""

    @abstractmethod
    def clients(self) -> int:
        """How many are there."""

    @abstractmethod
    def answer(self) -> int:
        """Answers each message that has arrived since the last frame; returns how many."""

    @abstractmethod
    def broadcast(self, message: str) -> None:
        """Sends to everybody."""


class Frame(NamedTuple):
    """One frame, in seconds."""

    #: CPU time of this thread: of all of the frame, and of the network's part.
    cpu: float
    network_cpu: float
    #: From when the frame was due to begin until its end, so that a late wake-up counts.
    end: float


def work() -> int:
    """What the program would do anyway: some milliseconds of Python."""
    total = 0
    for number in range(40_000):
        total += number * number
    return total


def percentile(values: list[float], share: float) -> float:
    """In milliseconds."""
    ordered = sorted(values)
    return round(ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1e3, 3)


def run(network: Network) -> None:
    """Frames until the process is killed; prints the figures when they are there."""
    case, clients, seconds = sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
    wanted = round(seconds / FRAME)
    frames: list[Frame] = []
    settling = SETTLE_FRAMES
    handled, process_began = 0, 0.0
    due = time.perf_counter()
    while True:
        cpu = time.thread_time()
        answered = network.answer()
        # Not before all are there: a generator that still connects does not read.
        if case == "broadcast" and network.clients() >= clients:
            network.broadcast(MESSAGE)
        network_cpu = time.thread_time() - cpu
        work()
        end = time.perf_counter()
        if network.clients() < clients:
            pass
        elif settling:
            settling -= 1
            process_began = time.process_time()
        elif len(frames) < wanted:
            frames.append(Frame(time.thread_time() - cpu, network_cpu, end - due))
            handled += answered
            if len(frames) == wanted:
                report(frames, time.process_time() - process_began, handled)
        due += FRAME
        wait = due - time.perf_counter()
        if wait > 0:
            time.sleep(wait)
        elif wait < -1:
            due = time.perf_counter()  # hopelessly late: a new schedule


def report(frames: list[Frame], process: float, handled: int) -> None:
    """One line of JSON; times in milliseconds."""
    count = len(frames)
    figures = {
        "frames": count,
        "handled_per_frame": round(handled / count, 1),
        "process_ms": round(process / count * 1e3, 3),
        "main_ms": round(sum(frame.cpu for frame in frames) / count * 1e3, 3),
        "network_ms": round(sum(frame.network_cpu for frame in frames) / count * 1e3, 3),
        "end_p50_ms": percentile([frame.end for frame in frames], 0.5),
        "end_p99_ms": percentile([frame.end for frame in frames], 0.99),
        "late": sum(frame.end > FRAME for frame in frames),
    }
    print(json.dumps(figures), flush=True)
