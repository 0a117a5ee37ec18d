"""Runs the benchmarks: python benchmarks/run.py [--peers pyhv,picows] [--cases fan-100] [--seconds 3]

The peers take turns within a case and the cases within a repeat, so that slow drift of the machine falls on
all alike; the limit server runs right before each WebSocket row. Only ratios of such neighbours mean anything.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from datetime import datetime, timezone
from pathlib import Path
from types import FrameType
from typing import Any

import report
from harness import machine
from harness.cases import BENCHMARKS, CASES, GROUPS, LIMIT, PEERS, TOOLS, Case, Peer, limit_command
from harness.http import NotServedError, make_files
from harness.measure import Cores, choose_cores, measure, wait_for_quiet
from harness.process import HelperError, free_port


def options_from(arguments: list[str]) -> argparse.Namespace:
    """The command line, with names checked against what there is."""
    parser = argparse.ArgumentParser(description="Benchmarks: pyHV, its peers, and the limit.")
    cases, peers = [case.name for case in CASES], list(dict.fromkeys(peer.name for peer in PEERS))

    def add(flag: str, meaning: str, **settings: Any) -> None:
        parser.add_argument(flag, help=meaning, **settings)

    add("--cases", f"comma-separated, of: {', '.join([*GROUPS, *cases])}", default=",".join(GROUPS))
    add("--peers", f"comma-separated, of: {', '.join(peers)}", default=",".join(peers))
    add("--seconds", "time measured per row (3)", type=float, default=3.0)
    add("--limit-seconds", "the same for the limit beside it (half of --seconds)", type=float)
    add("--repeat", "passes over all rows; medians are taken over them (3)", type=int, default=3)
    add("--tries", "measurements of a row until one is undisturbed (2)", type=int, default=2)
    add("--patience", "seconds to wait before a row for a machine that does nothing else (0)", type=float, default=0.0)
    add("--out", "where the result goes (results/DATE-TIME.json)", type=Path)
    add("--markdown", "print the tables at the end", action="store_true")
    options = parser.parse_args(arguments)
    for given, known in ((options.cases, [*GROUPS, *cases]), (options.peers, peers)):
        for name in given.split(","):
            if name not in known:
                parser.error(f"{name!r} is none of {', '.join(known)}")
    if options.seconds <= 0 or options.repeat < 1 or options.tries < 1:
        parser.error("--seconds, --repeat and --tries must be positive")
    options.limit_seconds = options.limit_seconds or options.seconds / 2
    return options


def choose_peers(names: list[str], groups: set[str]) -> tuple[list[Peer], dict[str, str]]:
    """The peers that can run here, of those that have something for a case, and why the others cannot."""
    # In the order given; a name may stand for a server in each group.
    chosen = [peer for name in names for peer in PEERS if peer.name == name and peer.group in groups]
    skipped = {peer.name: why for peer in chosen if (why := peer.why_not()) is not None}
    for name, why in skipped.items():
        print(f"{name}: skipped, {why}", file=sys.stderr)
    return [peer for peer in chosen if peer.name not in skipped], skipped


def measure_row(peer: Peer, case: Case, options: argparse.Namespace, cores: Cores) -> dict[str, Any]:
    """The limit, where there is one, and then the peer, in one case; repeated while something else disturbs them."""
    row: dict[str, Any] = {"case": case.name, "peer": peer.name}
    limit: dict[str, Any] | None = None
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


def progress(row: dict[str, Any], case: Case) -> str:
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


def measure_all(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that was asked for, as the document that is stored."""
    cores = choose_cores()
    chosen = options.cases.split(",")
    cases = [case for case in CASES if case.name in chosen or case.group in chosen]
    peers, skipped = choose_peers(options.peers.split(","), {case.group for case in cases})
    make_files()
    when = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    # Asked before anything is measured: a missing version must not cost the measurements.
    about = {"when": when, "machine": machine.describe(), "versions": machine.versions(peers)}
    rows = []
    for repeat in range(options.repeat):
        for case in cases:
            for peer in [peer for peer in peers if peer.group == case.group]:
                row = measure_row(peer, case, options, cores) | {"repeat": repeat}
                rows.append(row)
                print(progress(row, case), file=sys.stderr, flush=True)
    settings = {name: getattr(options, name) for name in ("seconds", "limit_seconds", "repeat", "tries", "patience")}
    settings |= {"server_core": cores.server, "generator_core": cores.generator}
    return about | {"settings": settings, "skipped": skipped, "rows": rows}


def end_on_signal(number: int, frame: FrameType | None) -> None:
    """Makes SIGTERM unwind like Ctrl-C does, through the blocks that end the helpers."""
    raise SystemExit(128 + number)


def main() -> int:
    """Measures, stores, prints; 1 when a row failed or nothing could be measured."""
    options = options_from(sys.argv[1:])
    signal.signal(signal.SIGTERM, end_on_signal)
    for tool in ("wsload", "httpload", "wslimit"):
        if not (TOOLS / tool).exists():
            print(f"{tool} is not built: run benchmarks/setup.sh first", file=sys.stderr)
            return 1
    try:
        document = measure_all(options)
    except KeyboardInterrupt:
        print("interrupted: helpers ended, nothing stored", file=sys.stderr)
        return 130
    if not document["rows"]:
        print("no peer can run here", file=sys.stderr)
        return 1
    name = document["when"].removesuffix(" UTC").replace(" ", "-").replace(":", "")
    out: Path = options.out or BENCHMARKS / "results" / f"{name}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    print(f"result: {out}", file=sys.stderr)
    if options.markdown:
        sys.stdout.write(report.markdown(document, "pyhv"))
    return 1 if any("error" in row for row in document["rows"]) else 0


if __name__ == "__main__":
    sys.exit(main())
