"""What an empty tick costs: python benchmarks/tick.py [--batches 200] [--calls 10000] [--json]

Calls `server.tick()` on a server that nobody talks to, and beside it, batch by batch, a method of a plain
Python class and, where uvloop is installed, one empty pass of its event loop: what a program would call every
frame instead. All in one process and one thread, so that the figures compare.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import sys
import time
from collections.abc import Callable
from statistics import median

from harness.process import free_port

WARM_UP_BATCHES = 20
#: A pass of an event loop costs so much more than a call that a hundredth of the calls will do.
PUMP_SHARE = 100


class Plain:
    """The least that a call from the main loop can be."""

    def tick(self) -> int:
        """Does nothing."""
        return 0


def batch(call: Callable[[], object], calls: int) -> float:
    """Nanoseconds per call; the loop around it costs all candidates the same."""
    began = time.perf_counter_ns()
    for _ in range(calls):
        call()
    return (time.perf_counter_ns() - began) / calls


def measure(candidates: dict[str, tuple[Callable[[], object], int]], batches: int) -> dict[str, float]:
    """The median batch of each candidate; they take turns, so that drift of the machine falls on all."""
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(WARM_UP_BATCHES + batches):
        for name, (call, calls) in candidates.items():
            nanoseconds = batch(call, calls)
            if turn >= WARM_UP_BATCHES:
                samples[name].append(nanoseconds)
    return {name: median(values) for name, values in samples.items()}


def pump_of(loop: asyncio.AbstractEventLoop) -> Callable[[], None]:
    """One pass of an event loop, as a program that owns its main loop would do it."""

    def pump() -> None:
        loop.call_soon(loop.stop)
        loop.run_forever()

    return pump


def main() -> int:
    """Measures and prints; 1 where pyHV is not installed."""
    parser = argparse.ArgumentParser(description="Cost of an empty tick.")
    parser.add_argument("--batches", type=int, default=200, help="batches whose median is taken (200)")
    parser.add_argument("--calls", type=int, default=10_000, help="calls in a batch (10000)")
    parser.add_argument("--json", action="store_true", help="print one line of JSON instead")
    options = parser.parse_args()
    candidates: dict[str, tuple[Callable[[], object], int]] = {"plain_method": (Plain().tick, options.calls)}
    loops = []
    try:
        uvloop = importlib.import_module("uvloop")
    except ImportError:
        print("uvloop: skipped, not installed", file=sys.stderr)
    else:
        loops.append(uvloop.new_event_loop())
        candidates["uvloop_pass"] = (pump_of(loops[0]), max(1, options.calls // PUMP_SHARE))
    try:
        pyhv = importlib.import_module("pyhv")
    except ImportError as error:
        print(f"pyhv: skipped, {error}", file=sys.stderr)
        measured = measure(candidates, options.batches)
    else:
        server = pyhv.HvWebServer()
        server.start(free_port())
        try:
            # What start() itself queued is no part of an empty tick.
            server.tick()
            measured = measure({"empty_tick": (server.tick, options.calls), **candidates}, options.batches)
        finally:
            server.stop()
    for loop in loops:
        loop.close()
    if options.json:
        print(json.dumps({f"{name}_ns": round(value, 1) for name, value in measured.items()}))
    else:
        for name, value in measured.items():
            times = value / measured["plain_method"]
            print(f"{name:13s} {value:10,.0f} ns   {times:8.1f} times a plain method call")
    return 0 if "empty_tick" in measured else 1


if __name__ == "__main__":
    sys.exit(main())
