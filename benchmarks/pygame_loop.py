"""What the network costs a game: python benchmarks/pygame_loop.py [--players 200] [--repeat 5] [--json FILE]

The loop of examples/squares, 60 frames a second with pygame's dummy video driver, with so many bots as players
(examples/squares/bots.py, a process on the other core), and the same loop with as many squares and no network, run
alternately. Printed are medians of the runs and the ratio to the loop without network: of the time from one frame to
the next, of when frames end after they were due, and of the work in a frame. Once the game has one core for all of its
threads, and once it may use all, which it then shares with the bots.
"""

from __future__ import annotations

import argparse
import json
import select
import subprocess
import sys
from contextlib import ExitStack
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Any

import report
from harness.cases import BENCHMARKS
from harness.machine import describe
from harness.measure import Cores, choose_cores
from harness.process import Helper, HelperError, free_port

ROOT = BENCHMARKS.parent
ALONE, ONE_CORE, ALL_CORES = "no network", "on one core", "on all cores"
#: What a table shows: its heading, and the figure.
COLUMNS = (
    ("frame to frame", "period_ms"),
    ("p99", "period_p99_ms"),
    ("end of frame, median", "end_p50_ms"),
    ("p99", "end_p99_ms"),
    ("work, median", "work_p50_ms"),
    ("CPU, main thread", "cpu_ms"),
    ("CPU, process", "process_ms"),
)
PATIENCE = 30.0

Row = dict[str, Any]


def line_of(helper: Helper, patience: float) -> str:
    """The next line that it prints."""
    assert helper.process.stdout is not None  # Helper was given a pipe
    ready, _, _ = select.select([helper.process.stdout], [], [], patience)
    line: str = helper.process.stdout.readline().decode() if ready else ""
    if not line:
        raise HelperError(f"ended or prints nothing: {helper.complaint()}")
    return line


def measure(case: str, players: int, seconds: float, cores: Cores) -> Row:
    """One run: its figures, in milliseconds."""
    port = free_port()
    script = str(BENCHMARKS / "peers" / "frames_squares.py")
    mode = "alone" if case == ALONE else "network"
    command = [sys.executable, script, str(port), mode, str(players), str(seconds)]
    command += ["--all-cores"] if case == ALL_CORES else []
    with ExitStack() as stack:
        game = stack.enter_context(Helper(command, cores.server, stdout=subprocess.PIPE))
        if case != ALONE:
            game.wait_for_port(port)
            bots = [sys.executable, str(ROOT / "examples/squares/bots.py"), f"ws://127.0.0.1:{port}/"]
            stack.enter_context(Helper([*bots, "--count", str(players)], cores.generator))
        row: Row = json.loads(line_of(game, seconds + PATIENCE))
    return row


def summary(rows: list[Row]) -> str:
    """The medians, and their ratios to the loop without network."""
    lines = []
    for case in (ALONE, ONE_CORE, ALL_CORES):
        cells = []
        for _, figure in COLUMNS:
            value = median(row["result"][figure] for row in rows if row["case"] == case)
            base = median(row["result"][figure] for row in rows if row["case"] == ALONE)
            cells.append(f"{value:.2f} ms" + ("" if case == ALONE else f" ({value / base:.2f})"))
        lines.append([case, *cells])
    return report.table(["network", *(heading for heading, _ in COLUMNS)], lines)


def main() -> int:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="What the network costs a game of 60 frames a second.")
    parser.add_argument("--players", type=int, default=200, help="bots (200)")
    parser.add_argument("--seconds", type=float, default=10.0, help="time measured per run (10)")
    parser.add_argument("--repeat", type=int, default=5, help="runs of each kind, alternating (5)")
    parser.add_argument("--json", type=Path, help="a file for all runs")
    options = parser.parse_args()
    cores = choose_cores()
    rows: list[Row] = []
    for repeat in range(options.repeat):
        for case in (ALONE, ONE_CORE, ALL_CORES):
            try:
                result = measure(case, options.players, options.seconds, cores)
            except (HelperError, OSError) as error:
                print(f"{case}: FAILED: {error}", file=sys.stderr)
                return 1
            rows.append({"repeat": repeat, "case": case, "result": result})
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    if options.json:
        when = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
        told = {"when": when, "machine": describe(), "players": options.players, "seconds": options.seconds}
        lines = ",\n".join(json.dumps(row) for row in rows)
        options.json.write_text(f'{{"run": {json.dumps(told)},\n"rows": [\n{lines}\n]}}\n', encoding="utf-8")
    print(summary(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
