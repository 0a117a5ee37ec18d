"""Runs the benchmarks: python benchmarks/run.py [--cases sweeps] [--peers pyhv,picows] [--quick]

The peers take turns within a case and the cases within a repeat, so that slow drift of the machine falls on
all alike; the limit server runs right before each WebSocket row. Only ratios of such neighbours mean anything.

What was measured takes the place of what results/ has of the same cases, part by part, and docs/ is written anew
from it. A trial (--quick, --peers, --trial) leaves both alone: it goes to .cache/trial.
"""

from __future__ import annotations

import argparse
import importlib
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import FrameType
from typing import Any

import main_loop
import publish
from harness import machine, store
from harness.cases import BENCHMARKS, CASES, GROUPS, LIMIT, PEERS, SWEEPS, TOOLS, Case, Peer, limit_command
from harness.http import NotServedError, make_files
from harness.measure import Cores, choose_cores, measure, wait_for_quiet
from harness.process import HelperError, free_port
from harness.store import MAIN_LOOP, MEMORY_MODES, PARTS, THREAD

#: What `--cases` takes for all sweeps, and for everything.
ALL_SWEEPS, ALL = "sweeps", "all"
#: Descriptors that either side needs besides those of the connections.
SPARE_FILES = 200
#: tick.py and messages.py end in seconds.
THREAD_LIMIT = 120.0

Row = dict[str, Any]


def options_from(arguments: list[str]) -> argparse.Namespace:
    """The command line, with names checked against what there is."""
    parser = argparse.ArgumentParser(description="Benchmarks: pyHV, its peers, and the limit.")
    peers = list(dict.fromkeys(peer.name for peer in (*PEERS, *main_loop.PEERS)))
    groups = [ALL, *PARTS, ALL_SWEEPS, *(sweep.name for sweep in SWEEPS)]

    def add(flag: str, meaning: str, **settings: Any) -> None:
        parser.add_argument(flag, help=meaning, **settings)

    add("--cases", f"comma-separated, of: {', '.join([*groups, *(case.name for case in CASES)])} (all)", default=ALL)
    add("--peers", f"comma-separated, of: {', '.join(peers)}; a trial")
    add("--quick", "a trial of some minutes: one repeat of short rows", action="store_true")
    add("--trial", "leave results/ and docs/ alone", action="store_true")
    add("--seconds", "time measured per row of a load (1.5; 0.4 with --quick)", type=float)
    add("--limit-seconds", "the same for the limit beside it (half of --seconds)", type=float)
    add("--loop-seconds", "the same for a main loop (4; 2 with --quick)", type=float)
    add("--repeat", "passes over all rows; medians are taken over them (3; 1 with --quick)", type=int)
    add("--tries", "measurements of a row until one is undisturbed (2; 1 with --quick)", type=int)
    add("--patience", "seconds to wait before a row for a machine that does nothing else (0)", type=float, default=0.0)
    options = parser.parse_args(arguments)
    given = options.peers.split(",") if options.peers else peers
    options.cases = options.cases.split(",")
    for names, known in ((options.cases, [*groups, *(case.name for case in CASES)]), (given, peers)):
        for name in names:
            if name not in known:
                parser.error(f"{name!r} is none of {', '.join(known)}")
    options.trial = options.trial or options.quick or options.peers is not None
    options.peers = given
    defaults = {"seconds": (1.5, 0.4), "loop_seconds": (4.0, 2.0), "repeat": (3, 1), "tries": (2, 1)}
    for name, (full, quick) in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, quick if options.quick else full)
    if options.limit_seconds is None:
        options.limit_seconds = options.seconds / 2
    if min(options.seconds, options.limit_seconds, options.loop_seconds, options.repeat, options.tries) <= 0:
        parser.error("the options for seconds, --repeat and --tries must be positive")
    return options


def choose_cases(names: list[str]) -> list[Case]:
    """The cases of loads that the command line asks for, in their own order."""
    groups = GROUPS if ALL in names else names
    swept = [name for sweep in SWEEPS if {sweep.name, ALL_SWEEPS, ALL} & set(names) for name in sweep.cases]
    return [case for case in CASES if case.name in [*names, *swept] or (case.in_table and case.group in groups)]


def choose_peers(peers: Iterable[Peer]) -> tuple[list[Peer], dict[str, str]]:
    """The peers that can run here, and why the others cannot."""
    chosen = list(peers)
    skipped = {peer.name: why for peer in chosen if (why := peer.why_not()) is not None}
    for name, why in skipped.items():
        print(f"{name}: skipped, {why}", file=sys.stderr)
    return [peer for peer in chosen if peer.name not in skipped], skipped


def measure_row(peer: Peer, case: Case, options: argparse.Namespace, cores: Cores) -> Row:
    """The limit, where there is one, and then the peer, in one case; repeated while something else disturbs them."""
    row: Row = {"case": case.name, "peer": peer.name}
    limit: Row | None = None
    try:
        for _ in range(options.tries):
            wait_for_quiet(options.patience)
            if case.has_limit:
                port = free_port()
                limit = measure(limit_command(port, case.mode), port, case, options.limit_seconds, cores)
            port = free_port()
            result = measure(peer.command(port, case), port, case, options.seconds, cores)
            disturbed = result["disturbed"] or bool(limit and limit["disturbed"])
            if not disturbed:
                break
    except NotServedError as missing:
        return row | {"missing": str(missing)}
    except (HelperError, OSError) as error:
        # One server's failure, be it a refused connection, must not cost the rows of the others.
        return row | {"error": str(error)}
    row |= {"to_limit": None, "disturbed": disturbed, "result": result}
    if limit is None:
        return row
    to_limit = case.performance(result[case.figure], limit[case.figure]) if case.against_limit else None
    return row | {"to_limit": to_limit, LIMIT: limit}


def progress(row: Row, case: Case) -> str:
    """One row as one line for whoever watches."""
    head = f"{row['repeat'] + 1}  {row['case']:14s} {row['peer']:18s} "
    if "error" in row:
        return head + f"FAILED: {row['error']}"
    if "missing" in row:
        return head + f"missing: {row['missing']}"
    result, ratio = row["result"], row["to_limit"]
    line = head + f"{result[case.figure]:>12,.0f}{case.unit:4s}"
    line += f" {ratio:6.2f} of the limit" if ratio is not None else " " * 20
    if "p99_us" in result:
        line += f"  p50 {result['p50_us']:,} p99 {result['p99_us']:,} µs"
    if "server_us" in result:
        line += f"  {result['server_us']:.1f} µs of CPU each"
    line += f"  CPU: server {result['server_cpu']:.0%} generator {result['generator_cpu']:.0%}"
    line += f" others {result['other_cpu']:.0%} steal {result['steal']:.0%}"
    return line + ("  DISTURBED" if row["disturbed"] else "")


@dataclass(frozen=True)
class Part:
    """What of one part is to be measured."""

    name: str
    peers: list[Peer]
    skipped: dict[str, str]
    settings: Row
    #: Returns the rows, of `peers`.
    measure: Callable[[list[Peer]], list[Row]]


def part_of(name: str, peers: Iterable[Peer], settings: Row, measure: Callable[[list[Peer]], list[Row]]) -> Part:
    """A part, with those of the peers that can run here."""
    able, skipped = choose_peers(peers)
    return Part(name, able, skipped, settings, measure)


def load_part(group: str, cases: list[Case], options: argparse.Namespace, cores: Cores) -> Part:
    """The cases of WebSocket, or of HTTP."""

    def rows_of(peers: list[Peer]) -> list[Row]:
        make_files()
        rows = []
        for repeat in range(options.repeat):
            for case in [case for case in cases if not (case.once and repeat)]:
                for peer in [peer for peer in peers if peer.takes_part(case)]:
                    row = measure_row(peer, case, options, cores) | {"repeat": repeat}
                    rows.append(row)
                    print(progress(row, case), file=sys.stderr, flush=True)
        return rows

    names = ("seconds", "limit_seconds", "repeat", "tries", "patience")
    settings = {name: getattr(options, name) for name in names}
    settings |= {"server_core": cores.server, "generator_core": cores.generator}
    # In the order given; a name may stand for a server in each group.
    peers = [peer for name in options.peers for peer in PEERS if peer.name == name and peer.group == group]
    return part_of(group, peers, settings, rows_of)


def main_loop_part(options: argparse.Namespace, cores: Cores) -> Part:
    """The main loops."""
    peers = [peer for peer in main_loop.PEERS if peer.name in options.peers]
    words = ["--seconds", str(options.loop_seconds), "--repeat", str(options.repeat)]
    words += ["--patience", str(options.patience), *(["--crowd", "2000"] if options.quick else [])]
    own = main_loop.options_from(words)
    settings = {name: getattr(own, name) for name in ("seconds", "repeat", "patience", "clients", "crowd", "active")}
    return part_of(MAIN_LOOP, peers, settings, lambda chosen: main_loop.collect(own, chosen, cores))


def thread_part(options: argparse.Namespace) -> Part:
    """What an empty tick and a message cost the program's thread: two programs that print one line of JSON."""

    def rows_of(peers: list[Peer]) -> list[Row]:
        rows = []
        for repeat in range(options.repeat if peers else 0):
            for case, words in (("tick", []), ("messages", ["--rounds", "50"] if options.quick else [])):
                command = [sys.executable, str(BENCHMARKS / f"{case}.py"), "--json", *words]
                row: Row = {"repeat": repeat, "case": case, "peer": "pyhv", "disturbed": False}
                try:
                    done = subprocess.run(command, capture_output=True, text=True, timeout=THREAD_LIMIT)
                except subprocess.TimeoutExpired:
                    row["error"] = f"does not end within {THREAD_LIMIT:g} s"
                else:
                    if done.returncode:
                        row["error"] = (done.stderr.strip().splitlines() or ["no message"])[-1]
                    else:
                        row["result"] = json.loads(done.stdout)
                rows.append(row)
                print(f"{repeat + 1}  {case}: {row.get('result') or row['error']}", file=sys.stderr, flush=True)
        return rows

    peers = [Peer("pyhv", "", ("pyhv",))] if "pyhv" in options.peers else []
    return part_of(THREAD, peers, {"repeat": options.repeat}, rows_of)


def memory_modes_part(options: argparse.Namespace) -> Part:
    """Memory by the settings that decide it."""

    def rows_of(peers: list[Peer]) -> list[Row]:
        # It needs pyHV, which may not be here.
        rows: list[Row] = importlib.import_module("memory_modes").collect(connections) if peers else []
        return rows

    connections = 200 if options.quick else 1000
    peers = [Peer("pyhv", "", ("pyhv",))] if "pyhv" in options.peers else []
    return part_of(MEMORY_MODES, peers, {"repeat": 1, "connections": connections}, rows_of)


def choose_parts(options: argparse.Namespace, cores: Cores, files: int) -> list[Part]:
    """What the command line asks for."""
    chosen = choose_cases(options.cases)
    cases = [case for case in chosen if case.connections + SPARE_FILES <= files]
    for case in [case for case in chosen if case not in cases]:
        print(f"{case.name}: skipped, no more than {files:,} open files are allowed", file=sys.stderr)
    parts = []
    for group in GROUPS:
        mine = [case for case in cases if case.group == group]
        if mine:
            parts.append(load_part(group, mine, options, cores))
    others: dict[str, Callable[[], Part]] = {
        MAIN_LOOP: lambda: main_loop_part(options, cores),
        THREAD: lambda: thread_part(options),
        MEMORY_MODES: lambda: memory_modes_part(options),
    }
    return parts + [make() for name, make in others.items() if {name, ALL} & set(options.cases)]


def end_on_signal(number: int, frame: FrameType | None) -> None:
    """Makes SIGTERM unwind like Ctrl-C does, through the blocks that end the helpers."""
    raise SystemExit(128 + number)


def main() -> int:
    """Measures, stores, writes, prints; 1 when a row failed or nothing could be measured."""
    options = options_from(sys.argv[1:])
    signal.signal(signal.SIGTERM, end_on_signal)
    for tool in ("wsload", "httpload", "wslimit"):
        if not (TOOLS / tool).exists():
            print(f"{tool} is not built: run benchmarks/setup.sh first", file=sys.stderr)
            return 1
    place = publish.TRIAL if options.trial else publish.COMMITTED
    if options.trial:
        shutil.rmtree(place.results, ignore_errors=True)
    failed, measured = False, []
    files, cores = machine.allowed_files(), choose_cores()
    try:
        for part in choose_parts(options, cores, files):
            # Asked before anything is measured: a missing version must not cost the measurements.
            run: Row = {"when": store.now(), "machine": machine.describe(), "versions": machine.versions(part.peers)}
            began = time.monotonic()
            rows = part.measure(part.peers)
            if not rows:
                print(f"{part.name}: no peer can run here", file=sys.stderr)
                continue
            run |= {"settings": part.settings, "skipped": part.skipped, "took_s": round(time.monotonic() - began)}
            store.add(place.results, part.name, run, rows)
            print(f"{part.name}: {run['took_s'] / 60:.1f} minutes", file=sys.stderr)
            measured.append(part.name)
            failed = failed or any("error" in row for row in rows)
    except KeyboardInterrupt:
        print("interrupted: helpers ended, nothing stored of this part", file=sys.stderr)
        return 130
    finally:
        # The documents show what is stored, whatever became of the rest.
        if measured:
            publish.say(publish.write(place))
    if not measured:
        return 1
    sys.stdout.write(publish.tables(place, measured))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
