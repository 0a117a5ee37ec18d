"""The plots of docs/plots, drawn from what is stored: publish.py writes them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import main_loop
from harness.cases import SWEEPS, WEBSOCKET, Case, Sweep
from harness.chart import Axis, Bar, Group, Line, Panel, line_chart, row_chart
from harness.store import MAIN_LOOP, Document, Row
from harness.summary import limit_middle, middle, swept, usable

#: How each peer is drawn; and where only one of a library's servers is, that one goes by the library's name.
STYLES = {
    "pyhv": "pyhv",
    "picows": "blue",
    "websockets-uvloop": "green",
    "aiohttp": "purple",
    "socketify": "plain",
    "picows-thread": "blue",
    "picows-pumped": "purple",
    "websockets-thread": "green",
}
NAMES = {"pyhv": "pyHV", "websockets-uvloop": "websockets"}
CONNECTIONS, DEPTH, MEMORY = SWEEPS
MEBIBYTE = 2**20
#: Milliseconds that a frame has.
FRAME = 16.7


def plots(documents: dict[str, Document]) -> dict[str, str]:
    """Each plot whose data are there, by the name of its file."""
    drawn: dict[str, str | None] = {}
    if WEBSOCKET in documents:
        document = documents[WEBSOCKET]
        drawn["throughput-by-connections.svg"] = throughput(
            document, CONNECTIONS, "64 bytes, 1 in flight on each", log=False
        )
        drawn["throughput-by-depth.svg"] = throughput(
            document, DEPTH, "100 connections, 64 bytes, logarithmic axes", log=True
        )
        drawn["memory-by-connections.svg"] = memory(document)
    if MAIN_LOOP in documents:
        drawn["main-loop.svg"] = frames(documents[MAIN_LOOP])
    return {name: picture for name, picture in drawn.items() if picture}


def throughput(document: Document, sweep: Sweep, note: str, *, log: bool) -> str | None:
    """Echoed messages per second along a sweep, for every peer and the limit."""
    lines = curves(document, sweep, lambda case, peer: middle(document, case.name, peer, "msgs_per_s"))
    if not lines:
        return None
    rates = {case.name: limit_middle(document, case.name, "msgs_per_s") for _, case in swept(document, sweep)}
    points = [(at, rate) for at, case in swept(document, sweep) if (rate := rates[case.name])]
    if points:
        lines.append(Line("limit (no Python)", "faint", [(float(at), rate) for at, rate in points], dashed=True))
    ticks = tuple(float(at) for at, _ in swept(document, sweep))
    named = {"connections": "connections", "in flight": "messages in flight on each connection"}[sweep.axis]
    across = Axis(named, lambda value: f"{value:,.0f}", log=True, ticks=ticks)
    return line_chart(
        f"Echoed messages per second, by {sweep.axis if sweep.axis == 'connections' else 'messages in flight'}",
        f"{note}; picows, websockets and aiohttp with uvloop"
        + busy(document, [case.name for _, case in sweep.points()]),
        across,
        Axis("messages per second", thousands, log=log),
        lines,
    )


def busy(document: Document, cases: list[str]) -> str:
    """What is to be said of curves that something else on the machine disturbed."""
    shown = [usable(document, case, peer) for case in cases for peer in STYLES]
    return "; partly on a busy machine" if any(rows and rows[0]["disturbed"] for rows in shown) else ""


def memory(document: Document) -> str | None:
    """Resident memory of the server by connections, after a message on each."""

    def total(case: Case, peer: str) -> float | None:
        base = middle(document, case.name, peer, "base_bytes")
        used = middle(document, case.name, peer, "used_bytes")
        return None if base is None or used is None else (base + used * case.connections) / MEBIBYTE

    lines = curves(document, MEMORY, total)
    if not lines:
        return None
    ticks = tuple(float(at) for at, _ in swept(document, MEMORY))
    return line_chart(
        "Memory of the server, by connections",
        "resident memory; every connection is idle again after one message of 8 KiB each way",
        Axis("connections", lambda value: f"{value:,.0f}", ticks=ticks),
        Axis("MiB", lambda value: f"{value:,.0f}"),
        [Line(f"{line.name}, {per_connection(document, line)}", line.style, line.points) for line in lines],
    )


def per_connection(document: Document, line: Line) -> str:
    """What a connection takes where a line of the memory plot ends."""
    peer = next(peer for peer in STYLES if NAMES.get(peer, peer) == line.name)
    cases = {float(at): case for at, case in swept(document, MEMORY)}
    used = middle(document, cases[line.points[-1][0]].name, peer, "used_bytes") or 0.0
    return f"{used / 1024:.1f} KiB each"


def curves(document: Document, sweep: Sweep, value: Callable[[Case, str], float | None]) -> list[Line]:
    """A line for every peer that has values in some points of a sweep."""
    lines = []
    for peer, style in STYLES.items():
        found = [(float(at), value(case, peer)) for at, case in swept(document, sweep)]
        points = [(at, one) for at, one in found if one is not None]
        if points:
            lines.append(Line(NAMES.get(peer, peer), style, points))
    return lines


def thousands(value: float) -> str:
    """A rate at an axis."""
    if value >= 1e6:
        return f"{value / 1e6:g} M"
    return f"{value / 1000:g} k" if value else "0"


def frames(document: Document) -> str | None:
    """What a WebSocket server does to a main loop: the end of its frames, CPU time, the latency of an echo."""
    settings = document["runs"][-1]["settings"]
    titles = {
        main_loop.ECHO: f"{settings['clients']:,} clients, a message of each per frame, echoed",
        main_loop.BROADCAST: f"200 bytes per frame to {settings['clients']:,} clients",
    }
    groups = []
    for case, title in titles.items():
        group = Group(title)
        for peer, style in STYLES.items():
            rows, alone = usable(document, case, peer), usable(document, main_loop.IDLE, peer)
            if rows and alone:
                group.rows.append((NAMES.get(peer, peer), style, bars(case, style, rows, alone)))
        if group.rows:
            groups.append(group)
    if not groups:
        return None
    every = [bars for group in groups for _, _, bars in group.rows]
    panels = [
        Panel("end of a frame, ms: 1 · 50 · 99 %", FRAME, 222.0, ticks=(0, 5, 10, FRAME), bound=FRAME),
        Panel("CPU per frame, ms (main thread)", greatest(bars[1] for bars in every), 190.0, 76.0),
        Panel("echo, 99 %, ms", greatest(bars[2] for bars in every), 120.0),
        Panel("messages/frame", width=88.0),
    ]
    return row_chart(
        "A main loop of 60 frames a second with a WebSocket server in it",
        "grey marks: without clients; dashed: next frame is due; CPU: what clients add, main thread in full colour"
        + busy(document, [main_loop.IDLE, *titles]),
        panels,
        groups,
    )


def bars(case: str, style: str, rows: list[Row], alone: list[Row]) -> list[Bar]:
    """One row of the plot."""
    end, process = main_loop.middle(rows, "end_p99_ms"), main_loop.over(rows, alone, "process_ms")
    main = min(process, main_loop.over(rows, alone, "network_ms"))
    first = sorted(row["result"]["end_ms"]["0.01"] for row in rows)[len(rows) // 2]
    span = (first, main_loop.middle(rows, "end_p50_ms"), end)
    echo = main_loop.middle(rows, "p99_us") / 1000 if case == main_loop.ECHO else None
    return [
        Bar(style, span=span, text=f"{end:,.1f}", mark=main_loop.middle(alone, "end_p99_ms")),
        Bar(style, parts=(main, process - main), text=f"{process:.1f} ({main:.2f})"),
        Bar(style, parts=(echo,), text=f"{echo:,.0f}") if echo else Bar(style),
        Bar(style, text=f"{main_loop.middle(rows, 'msgs_per_s') / 60:,.0f}"),
    ]


def greatest(found: Iterable[Bar]) -> float:
    """Where a panel ends: at its longest bar."""
    return max((sum(bar.parts) for bar in found), default=0.0) or 1.0
