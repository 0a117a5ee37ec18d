"""The tables of stored results, as markdown: publish.py writes them into the documents."""

from __future__ import annotations

from harness.cases import GROUPS, HTTP, LIMIT, Case, Sweep
from harness.store import Document, Row
from harness.summary import (
    Figure,
    figure,
    limit_figure,
    limit_middle,
    measured_cases,
    measured_peers,
    middle,
    swept,
    usable,
    versus,
)

DISTURBED = "†"
GENERATOR_BOUND = "‡"
FAILED = "failed"
MISSING = "-"
#: The figure of a sweep over loads.
RATE = "msgs_per_s"


def markdown(document: Document, base: str) -> str:
    """All tables of loads, WebSocket or HTTP. `base` is the peer that the others are compared with."""
    cases = [case for case in measured_cases(document) if case.in_table]
    parts = []
    for group in GROUPS:
        mine = [case for case in cases if case.group == group]
        if mine:
            parts += tables(document, mine, base)
    return "\n\n".join([heading(document), *parts, *legend(parts), *notes(document)]) + "\n"


def tables(document: Document, cases: list[Case], base: str) -> list[str]:
    """The tables of one group of cases."""
    peers = measured_peers(document, cases)
    base = base if base in peers else peers[0]
    others = [peer for peer in peers if peer != base]
    timed = [case for case in cases if not case.is_memory]
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
    return parts + [memory_sentence(document, case, peers) for case in cases if case.is_memory]


def heading(document: Document) -> str:
    """Where, when and what: one paragraph for each run that rows are left of."""
    paragraphs = []
    for number, run in enumerate(document["runs"]):
        machine, settings = run["machine"], run["settings"]
        libraries = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
        where = f"{machine['cores']} cores ({machine['processor']}), {machine['kernel']}, {machine['python']}"
        what = "Measured"
        if len(document["runs"]) > 1:
            cases = dict.fromkeys(row["case"] for row in document["rows"] if row["run"] == number)
            what = f"{', '.join(cases)}: measured"
        seconds = f" × {settings['seconds']:g} s" if "seconds" in settings else ""
        how = f"Medians of {settings['repeat']}{seconds}."
        paragraphs.append(f"{what} {run['when']} on {where}; {libraries}. {how}")
    return "\n\n".join(paragraphs)


def legend(parts: list[str]) -> list[str]:
    """What the marks say that some tables have."""
    meanings = {
        DISTURBED: "Something else took over a tenth of a core in every repeat of this row.",
        GENERATOR_BOUND: "The load generator was as busy as the server: it may be the limit here.",
    }
    return [f"{mark} {meaning}" for mark, meaning in meanings.items() if any(mark in part for part in parts)]


def notes(document: Document) -> list[str]:
    """What a reader must know about figures that are absent."""
    lines = []
    failed = [row for row in document["rows"] if "error" in row]
    if failed:
        failures = dict.fromkeys(f"- {row['peer']}, {row['case']}: {row['error']}" for row in failed)
        lines.append("Failed:\n\n" + "\n".join(failures))
    missing = dict.fromkeys((row["peer"], row["missing"]) for row in document["rows"] if "missing" in row)
    if missing:
        lines.append(f"{MISSING} Missing: " + "; ".join(f"{peer} {what}" for peer, what in missing) + ".")
    skipped = {peer: why for run in document["runs"] for peer, why in run["skipped"].items()}
    if skipped:
        lines.append("Skipped: " + "; ".join(f"{peer} ({why})" for peer, why in skipped.items()))
    return lines


def figures_row(document: Document, case: Case, peers: list[str]) -> list[str]:
    """One case: the limit where there is one, then every peer with its ratio to it."""
    cells = [case.title]
    if case.has_limit:
        limit = limit_figure(document, case)
        cells.append(quantity(case, limit[0]) + f" {GENERATOR_BOUND}" * limit[1] if limit else FAILED)
    for peer in peers:
        found = figure(document, case, peer)
        cells.append(figure_cell(case, found) if found else nothing(document, case, peer))
    return cells


def nothing(document: Document, case: Case, peer: str) -> str:
    """What stands in a cell without a figure."""
    rows = [row for row in document["rows"] if row["case"] == case.name and row["peer"] == peer]
    return MISSING if all("missing" in row for row in rows) else FAILED


def cost_row(document: Document, case: Case, peers: list[str], base: str) -> list[str]:
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


def versus_row(document: Document, case: Case, base: str, others: list[str]) -> list[str]:
    """One case: the base against every other peer."""
    ratios = (versus(document, case, base, other) for other in others)
    return [case.title, *(f"{ratio:.2f}" if ratio is not None else "-" for ratio in ratios)]


def latency_row(document: Document, case: Case, peers: list[str]) -> list[str]:
    """One case: median and 99th percentile of every peer."""
    cells = [case.title]
    for peer in peers:
        found = figure(document, case, peer)
        cells.append(
            f"{found.p50_us:,.0f} / {found.p99_us:,.0f}" if found and found.p50_us else nothing(document, case, peer)
        )
    return cells


def memory_sentence(document: Document, case: Case, peers: list[str]) -> str:
    """What an idle connection costs after it has been used."""
    found = {peer: figure(document, case, peer) for peer in peers}
    used = [f"{peer} {each.used_bytes:,.0f} B" for peer, each in found.items() if each and each.used_bytes]
    return f"Memory of a connection that is idle again after one message of 8 KiB: {', '.join(used)}."


def quantity(case: Case, value: float) -> str:
    """A figure with its unit: rates in thousands from ten thousand on, no more digits than they are worth."""
    return rate(value, case.unit) if case.figure == RATE else f"{value:,.0f}{case.unit}"


def rate(value: float, unit: str = "") -> str:
    """A figure per second, with its unit where the table does not say it."""
    return f"{value / 1000:,.0f} k{unit}" if value >= 10_000 else f"{value:,.0f}{unit}"


def table(header: list[str], rows: list[list[str]]) -> str:
    """A markdown table: the first column left, the others right."""
    rule = ["---", *(["---:"] * (len(header) - 1))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, rule, *rows])


def sweep_table(document: Document, sweep: Sweep) -> str:
    """The figures of a sweep, a line for each of its points; empty where nothing was measured."""
    points = swept(document, sweep)
    if not points:
        return ""
    # Who runs in every point of a sweep, and not only in those that the table shares with it.
    own = [case for _, case in points if not case.in_table]
    peers = measured_peers(document, own)
    if own[0].is_memory:
        header, unit = [sweep.axis, *peers], "KiB per connection, in parentheses MiB of the process"
        lines = [[f"{at:,}", *(memory_cell(document, case, peer) for peer in peers)] for at, case in points]
    else:
        header, unit = [sweep.axis, LIMIT, *peers], "messages per second"
        lines = [
            [f"{at:,}", limit_cell(document, case), *(rate_cell(document, case, peer) for peer in peers)]
            for at, case in points
        ]
    made = table(header, lines)
    return "\n\n".join([f"{sweep.title}; {unit}:", made, *legend([made])])


def limit_cell(document: Document, case: Case) -> str:
    """The limit's rate."""
    value = limit_middle(document, case.name, RATE)
    return rate(value) if value else FAILED


def rate_cell(document: Document, case: Case, peer: str) -> str:
    """A peer's rate, whatever the figure is that the case is compared by."""
    value, rows = middle(document, case.name, peer, RATE), usable(document, case.name, peer)
    return rate(value) + f" {DISTURBED}" * rows[0]["disturbed"] if value else nothing(document, case, peer)


def memory_cell(document: Document, case: Case, peer: str) -> str:
    """What a used connection takes, and the process with all of them."""
    base, used = (middle(document, case.name, peer, key) for key in ("base_bytes", "used_bytes"))
    if base is None or used is None:
        return nothing(document, case, peer)
    return f"{used / 1024:.1f} ({(base + used * case.connections) / 2**20:,.0f})"


def compared(document: Document, case: Case, base: str) -> dict[str, float]:
    """How many times as good the base is as each peer that has a figure in a case."""
    others = [peer for peer in measured_peers(document, [case]) if peer != base]
    return {peer: ratio for peer in others if (ratio := versus(document, case, base, peer)) is not None}


def ahead(documents: list[Document], base: str) -> str:
    """Where a peer is ahead of the base, one line for each case; the ratio is that of the base to it."""
    lines = []
    for document in documents:
        # Points of sweeps too; but how much memory a connection takes does not depend on the point.
        for case in [case for case in measured_cases(document) if case.in_table or not case.is_memory]:
            ratios = compared(document, case, base)
            better = [(ratio, peer) for peer, ratio in ratios.items() if round(ratio, 2) < 1]
            if better:
                lines.append(f"- {case.title}: " + ", ".join(f"{peer} ({ratio:.2f})" for ratio, peer in sorted(better)))
    if not lines:
        return f"No peer is ahead of `{base}` in any row of the tables.\n"
    return f"Where a peer is ahead of `{base}` (how many times as good `{base}` is):\n\n" + "\n".join(lines) + "\n"


def summary_table(documents: list[Document], base: str) -> str:
    """Every case of the tables in one line: the base, and the best of its peers."""
    lines = []
    for document in documents:
        for case in [case for case in measured_cases(document) if case.in_table]:
            ratios, mine = compared(document, case, base), figure(document, case, base)
            best = min(ratios, key=lambda peer: ratios[peer], default="")
            theirs = figure(document, case, best)
            if mine and theirs:
                cells = [case.title, quantity(case, mine.value), f"{best} {quantity(case, theirs.value)}"]
                lines.append([*cells, f"{ratios[best]:.2f}"])
    return table(["case", base, "best of the peers", "times as good"], lines)


def thread_table(document: Document) -> str:
    """What ticks and messages cost the program's thread."""
    titles = {
        ("tick", "empty_tick_ns"): "an empty `tick()`",
        ("tick", "plain_method_ns"): "a call of an empty method",
        ("tick", "uvloop_pass_ns"): "an empty pass of uvloop's event loop",
        ("messages", "receive_ns"): "a message received",
        ("messages", "echo_ns"): "a message received and echoed",
    }
    found = {title: middle(document, case, "pyhv", key) for (case, key), title in titles.items()}
    return table(["on the program's thread", "ns"], [[title, f"{ns:,.0f}"] for title, ns in found.items() if ns])


def backplane_table(document: Document) -> str:
    """What joining processes costs, as backplane.py measures it."""
    titles = {
        "publishes": ("publishes/s", "{:,.0f}"),
        "deliveries": ("deliveries/s", "{:,.0f}"),
        "microseconds": ("main thread per publish", "{:,.1f} µs"),
        "p50": ("latency p50", "{:,.0f} µs"),
        "p99": ("p99", "{:,.0f} µs"),
    }

    def cell(case: str, peer: str, key: str) -> str:
        found = middle(document, case, peer, key)
        return titles[key][1].format(found) if found is not None else FAILED

    names = dict.fromkeys((row["peer"], row["case"]) for row in document["rows"])
    lines = [[f"{peer}, {case}", *(cell(case, peer, key) for key in titles)] for peer, case in names]
    return table(["", *(title for title, _ in titles.values())], lines)


def memory_modes_table(rows: list[Row]) -> str:
    """Memory of a connection in each mode, as memory_modes.py measures it."""
    return table(
        ["a connection", "KiB"],
        [[row["case"], f"{row['result']['kib']:.1f}" if "result" in row else FAILED] for row in rows],
    )
