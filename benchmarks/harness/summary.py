"""From the rows of a run to medians: the only place where figures are computed from results."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import Any

from harness.cases import CASES, LIMIT, Case, Sweep

Row = dict[str, Any]

#: Share of its core above which the generator may be what limits a row. Connecting is part of the time that
#: the share is taken of, so that a generator busy throughout the measurement shows somewhat less than 1.
GENERATOR_BOUND_FROM = 0.9


@dataclass(frozen=True)
class Figure:
    """What one peer reached in one case."""

    value: float
    #: How many times as good as the limit measured beside it; None where the limit's figure is zero.
    to_limit: float | None
    p50_us: float | None
    p99_us: float | None
    #: Bytes per connection after a message went through it; only the memory case has it.
    used_bytes: float | None
    #: CPU time of the server per message, in µs.
    server_us: float | None
    #: Repeats that the medians are made of, and whether something else took CPU in each of them.
    repeats: int
    disturbed: bool
    #: Whether the generator had hardly any time left, so that the server might have done more.
    generator_bound: bool


def measured_cases(document: Row) -> list[Case]:
    """The cases that a document has rows of, in the order of cases.py."""
    names = {row["case"] for row in document["rows"]}
    return [case for case in CASES if case.name in names]


def measured_peers(document: Row, cases: list[Case]) -> list[str]:
    """The peers that a document has rows of in some of `cases`, in the order in which they ran."""
    names = {case.name for case in cases}
    return list(dict.fromkeys(row["peer"] for row in document["rows"] if row["case"] in names))


def swept(document: Row, sweep: Sweep) -> list[tuple[int, Case]]:
    """The points of a sweep that were measured; none where these are the ones that the table has anyway."""
    measured = {case.name for case in measured_cases(document)}
    points = [(at, case) for at, case in sweep.points() if case.name in measured]
    return points if any(not case.in_table for _, case in points) else []


def usable(document: Row, case: str, peer: str) -> list[Row]:
    """The rows to take a median of: the undisturbed ones, or all if each was disturbed; without a result never."""
    rows = [row for row in document["rows"] if row["case"] == case and row["peer"] == peer and "result" in row]
    return [row for row in rows if not row["disturbed"]] or rows


def figure(document: Row, case: Case, peer: str) -> Figure | None:
    """The medians of one peer in one case; None when no repeat succeeded."""
    rows = usable(document, case.name, peer)
    if not rows:
        return None
    to_limit = [row["to_limit"] for row in rows if row["to_limit"] is not None]
    return Figure(
        value=median(row["result"][case.figure] for row in rows),
        to_limit=median(to_limit) if to_limit else None,
        p50_us=_median_of(rows, "p50_us"),
        p99_us=_median_of(rows, "p99_us"),
        used_bytes=_median_of(rows, "used_bytes"),
        server_us=_median_of(rows, "server_us"),
        repeats=len(rows),
        disturbed=any(row["disturbed"] for row in rows),
        generator_bound=median(row["result"]["generator_cpu"] for row in rows) > GENERATOR_BOUND_FROM,
    )


def middle(document: Row, case: str, peer: str, key: str) -> float | None:
    """The median of any figure of one peer in one case; None when no repeat succeeded, or none has the figure."""
    return _median_of(usable(document, case, peer), key)


def limit_middle(document: Row, case: str, key: str) -> float | None:
    """The same for the limit's measurements in one case."""
    return _median_of([{"result": result} for result in _limits(document, case)], key)


def limit_figure(document: Row, case: Case) -> tuple[float, bool] | None:
    """The median of the limit's measurements in one case, and whether the generator was as busy as it."""
    rows = _limits(document, case.name)
    if not rows:
        return None
    bound = median(row["generator_cpu"] for row in rows) > GENERATOR_BOUND_FROM
    return median(row[case.figure] for row in rows), bound


def versus(document: Row, case: Case, peer: str, other: str) -> float | None:
    """How many times as good one peer is as another: the median of the ratios within each repeat.

    Both ran within a minute of each other there, so that slow drift of the machine cancels out. Repeats where
    neither was disturbed are preferred to those where one was.
    """
    pairs = [
        (mine, theirs)
        for mine in usable(document, case.name, peer)
        for theirs in usable(document, case.name, other)
        if mine["repeat"] == theirs["repeat"]
    ]
    if not pairs:
        # The two have no repeat in common: what is left is the ratio of their medians.
        one, two = figure(document, case, peer), figure(document, case, other)
        return case.performance(one.value, two.value) if one and two else None
    ratios = [case.performance(mine["result"][case.figure], theirs["result"][case.figure]) for mine, theirs in pairs]
    known = [ratio for ratio in ratios if ratio is not None]
    return median(known) if known else None


def _limits(document: Row, case: str) -> list[Row]:
    rows = [row for row in document["rows"] if row["case"] == case and LIMIT in row]
    return [row[LIMIT] for row in rows if not row["disturbed"]] or [row[LIMIT] for row in rows]


def _median_of(rows: list[Row], key: str) -> float | None:
    values = [row["result"][key] for row in rows if key in row["result"]]
    return median(values) if values else None
