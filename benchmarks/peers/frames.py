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
#: The shares of frames whose end is told: a frame may end later in one of a hundred.
SHARES = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 1.0)
#: Seconds of frames between the last client's arrival and the measurement.
SETTLE = 1.0


class Network(ABC):
    """What a frame does with the network, on the thread of the main loop."""

    #: Whether connections are accepted in `answer()`, a step of the handshake each time, and not beside it.
    pumped = False

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
    frames: list[Frame] = []
    handled, process_began = 0, 0.0
    due = time.perf_counter()
    began = due + SETTLE  # of the measurement, which lasts as long with a loop that misses its frames
    measuring = True
    while True:
        cpu = time.thread_time()
        answered = network.answer()
        if network.pumped and network.clients() < clients:
            due = time.perf_counter()
            began = due + SETTLE
            continue  # no frames yet: a thousand handshakes would take minutes of them
        # Not before all are there: a generator that still connects does not read.
        if case == "broadcast" and network.clients() >= clients:
            network.broadcast(MESSAGE)
        network_cpu = time.thread_time() - cpu
        work()
        end = time.perf_counter()
        if not measuring:
            pass
        elif network.clients() < clients:
            began, process_began = end + SETTLE, time.process_time()
        elif end < began:
            process_began = time.process_time()
        else:
            frames.append(Frame(time.thread_time() - cpu, network_cpu, end - due))
            handled += answered
            if end - began >= seconds:
                report(frames, time.process_time() - process_began, handled, end - began)
                measuring = False
        due += FRAME
        wait = due - time.perf_counter()
        if wait > 0:
            time.sleep(wait)
        elif wait < -1:
            due = time.perf_counter()  # hopelessly late: a new schedule


def report(frames: list[Frame], process: float, handled: int, seconds: float) -> None:
    """One line of JSON; times in milliseconds."""
    count = len(frames)
    figures = {
        "frames": count,
        "frames_per_s": round(count / seconds, 1),
        "handled_per_frame": round(handled / count, 1),
        "process_ms": round(process / count * 1e3, 3),
        "main_ms": round(sum(frame.cpu for frame in frames) / count * 1e3, 3),
        "network_ms": round(sum(frame.network_cpu for frame in frames) / count * 1e3, 3),
        "end_p50_ms": percentile([frame.end for frame in frames], 0.5),
        "end_p99_ms": percentile([frame.end for frame in frames], 0.99),
        "end_ms": {f"{share:g}": percentile([frame.end for frame in frames], share) for share in SHARES},
        "late": sum(frame.end > FRAME for frame in frames),
    }
    print(json.dumps(figures), flush=True)
