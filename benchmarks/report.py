"""Turns a stored result into markdown: python report.py results/NAME.json [--base pyhv] > table.md"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from harness.cases import GROUPS, HTTP, Case
from harness.summary import Figure, figure, limit_figure, measured_cases, measured_peers, versus

DISTURBED = "†"
GENERATOR_BOUND = "‡"
FAILED = "failed"
MISSING = "-"


def markdown(document: dict[str, Any], base: str) -> str:
    """All tables of one result. `base` is the peer that the others are compared with."""
    measured = measured_cases(document)
    parts = [heading(document)]
    for group in GROUPS:
        cases = [case for case in measured if case.group == group]
        if cases:
            parts += tables(document, cases, base)
    found = [
        each for case in measured for peer in measured_peers(document, [case]) if (each := figure(document, case, peer))
    ]
    return "\n\n".join(parts + notes(document, found)) + "\n"


def tables(document: dict[str, Any], cases: list[Case], base: str) -> list[str]:
    """The tables of one group of cases."""
    peers = measured_peers(document, cases)
    base = base if base in peers else peers[0]
    others = [peer for peer in peers if peer != base]
    timed = [case for case in cases if case.name != "memory"]
    if cases[0].has_limit:
        explained = "In parentheses: how many times as good as the limit server measured right beside it."
        first = ["case", "limit", *peers]
    else:
        explained = "HTTP, 64 keep-alive connections with one request in flight each; requests per second:"
        first = ["case", *peers]
    parts = [explained, table(first, [figures_row(document, case, peers) for case in cases])]
    if others:
        parts += [
            f"How many times as good `{base}` is as each peer (above 1: `{base}` is ahead):",
            table(["case", *others], [versus_row(document, case, base, others) for case in cases]),
        ]
    if cases[0].group == HTTP:
        parts += [
            f"CPU time of the server per request in µs, and in parentheses how many times that of `{base}`:",
            table(["case", *peers], [cost_row(document, case, peers, base) for case in cases]),
        ]
    if timed:
        parts += [
            f"Latency of a {'request' if cases[0].group == HTTP else 'message'}, p50 / p99 in µs:",
            table(["case", *peers], [latency_row(document, case, peers) for case in timed]),
        ]
    return parts + [memory_sentence(document, case, peers) for case in cases if case.name == "memory"]


def heading(document: dict[str, Any]) -> str:
    """Where, when and what: one paragraph."""
    machine, settings = document["machine"], document["settings"]
    libraries = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    where = f"{machine['cores']} cores ({machine['processor']}), {machine['kernel']}, {machine['python']}"
    how = f"Medians of {settings['repeat']} × {settings['seconds']:g} s."
    return f"Measured {document['when']} on {where}; {libraries}. {how}"


def notes(document: dict[str, Any], found: list[Figure]) -> list[str]:
    """What a reader must know about figures that are marked or absent."""
    lines = []
    if any(each.disturbed for each in found):
        lines.append(f"{DISTURBED} Something else took over a tenth of a core in every repeat of this row.")
    limits = [limit_figure(document, case) for case in measured_cases(document)]
    if any(each.generator_bound for each in found) or any(limit and limit[1] for limit in limits):
        lines.append(f"{GENERATOR_BOUND} The load generator was as busy as the server: it may be the limit here.")
    failed = [row for row in document["rows"] if "error" in row]
    if failed:
        failures = dict.fromkeys(f"- {row['peer']}, {row['case']}: {row['error']}" for row in failed)
        lines.append("Failed:\n\n" + "\n".join(failures))
    missing = dict.fromkeys((row["peer"], row["missing"]) for row in document["rows"] if "missing" in row)
    if missing:
        lines.append(f"{MISSING} Missing: " + "; ".join(f"{peer} {what}" for peer, what in missing) + ".")
    if document["skipped"]:
        lines.append("Skipped: " + "; ".join(f"{peer} ({why})" for peer, why in document["skipped"].items()))
    return lines


def figures_row(document: dict[str, Any], case: Case, peers: list[str]) -> list[str]:
    """One case: the limit where there is one, then every peer with its ratio to it."""
    cells = [case.title]
    if case.has_limit:
        limit = limit_figure(document, case)
        cells.append(quantity(case, limit[0]) + f" {GENERATOR_BOUND}" * limit[1] if limit else FAILED)
    for peer in peers:
        found = figure(document, case, peer)
        cells.append(figure_cell(case, found) if found else nothing(document, case, peer))
    return cells


def nothing(document: dict[str, Any], case: Case, peer: str) -> str:
    """What stands in a cell without a figure."""
    rows = [row for row in document["rows"] if row["case"] == case.name and row["peer"] == peer]
    return MISSING if all("missing" in row for row in rows) else FAILED


def cost_row(document: dict[str, Any], case: Case, peers: list[str], base: str) -> list[str]:
    """One case: CPU time of the server per message, and its ratio to that of the base."""
    cells = [case.title]
    reference = figure(document, case, base)
    for peer in peers:
        found = figure(document, case, peer)
        if not found or not found.server_us:
            cells.append(nothing(document, case, peer))
            continue
        compared = peer != base and reference and reference.server_us
        cells.append(f"{found.server_us:,.1f}" + (f" ({found.server_us / compared:.2f})" if compared else ""))
    return cells


def figure_cell(case: Case, found: Figure) -> str:
    """A value, its ratio to the limit, and a mark if it was disturbed."""
    ratio = f" ({found.to_limit:.2f})" if found.to_limit is not None else ""
    marks = DISTURBED * found.disturbed + GENERATOR_BOUND * found.generator_bound
    return quantity(case, found.value) + ratio + (f" {marks}" if marks else "")


def versus_row(document: dict[str, Any], case: Case, base: str, others: list[str]) -> list[str]:
    """One case: the base against every other peer."""
    ratios = (versus(document, case, base, other) for other in others)
    return [case.title, *(f"{ratio:.2f}" if ratio is not None else "-" for ratio in ratios)]


def latency_row(document: dict[str, Any], case: Case, peers: list[str]) -> list[str]:
    """One case: median and 99th percentile of every peer."""
    cells = [case.title]
    for peer in peers:
        found = figure(document, case, peer)
        cells.append(
            f"{found.p50_us:,.0f} / {found.p99_us:,.0f}" if found and found.p50_us else nothing(document, case, peer)
        )
    return cells


def memory_sentence(document: dict[str, Any], case: Case, peers: list[str]) -> str:
    """What an idle connection costs after it has been used."""
    found = {peer: figure(document, case, peer) for peer in peers}
    used = [f"{peer} {each.used_bytes:,.0f} B" for peer, each in found.items() if each and each.used_bytes]
    return f"Memory of a connection that is idle again after one message of 8 KiB: {', '.join(used)}."


def quantity(case: Case, value: float) -> str:
    """A figure with its unit: rates in thousands from ten thousand on, no more digits than they are worth."""
    if case.figure == "msgs_per_s" and value >= 10_000:
        return f"{value / 1000:,.0f} k{case.unit}"
    return f"{value:,.0f}{case.unit}"


def table(header: list[str], rows: list[list[str]]) -> str:
    """A markdown table: the first column left, the others right."""
    rule = ["---", *(["---:"] * (len(header) - 1))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, rule, *rows])


def main() -> None:
    """Reads a result, prints markdown."""
    parser = argparse.ArgumentParser(description="Markdown tables of a stored benchmark result.")
    parser.add_argument("result", type=Path, help="a JSON file that run.py wrote")
    parser.add_argument("--base", default="pyhv", help="the peer that the others are compared with (pyhv)")
    options = parser.parse_args()
    sys.stdout.write(markdown(json.loads(options.result.read_text()), options.base))


if __name__ == "__main__":
    main()
