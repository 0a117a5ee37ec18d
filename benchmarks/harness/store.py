"""Results as data: a file for each part in results/, all in one format, and how a new run takes its place in them.

    {"runs": [{"when", "machine", "versions", "settings", "skipped", "took_s"}, …],
     "rows": [{"run", "repeat", "case", "peer", "disturbed", "result"}, …]}

`run` is the place in `runs` of the run that a row comes from. A row without a figure has "error" or "missing", one
line, instead of "result". A run replaces the cases that it measured, whole, and leaves the others as they are: what
is compared with each other was measured in one run.
"""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from harness.cases import HTTP, WEBSOCKET

Row = dict[str, Any]
Document = dict[str, Any]

#: What is measured by one program, and stored in a file of its own.
MAIN_LOOP, THREAD, MEMORY_MODES, BACKPLANE = "main-loop", "thread", "memory-modes", "backplane"
#: What run.py measures.
PARTS = (WEBSOCKET, HTTP, MAIN_LOOP, THREAD, MEMORY_MODES)
#: All; backplane.py needs servers that not every machine has, and runs by hand.
STORED = (*PARTS, BACKPLANE)


def now() -> str:
    """The time of a run, as results have it."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def load(folder: Path, part: str) -> Document | None:
    """What is stored of a part; None where nothing is."""
    path = folder / f"{part}.json"
    if not path.exists():
        return None
    document: Document = json.loads(path.read_text(encoding="utf-8"))
    return document


def merged(old: Document | None, run: Row, rows: list[Row]) -> Document:
    """A stored document with the cases that a new run has measured in place of what it had of them."""
    measured = {row["case"] for row in rows}
    runs = [*(old["runs"] if old else []), run]
    kept = [row for row in (old["rows"] if old else []) if row["case"] not in measured]
    kept += [{"run": len(runs) - 1, **row} for row in rows]
    # Runs of which no row is left are forgotten.
    left = sorted({row["run"] for row in kept})
    return {
        "runs": [runs[number] for number in left],
        "rows": [row | {"run": left.index(row["run"])} for row in kept],
    }


def text(document: Document) -> str:
    """As stored: a row on each line, so that a difference is readable."""
    runs = ",\n".join(json.dumps(run, indent=1, ensure_ascii=False) for run in document["runs"])
    rows = ",\n".join(json.dumps(row, ensure_ascii=False) for row in document["rows"])
    return f'{{"runs": [\n{runs}\n],\n"rows": [\n{rows}\n]}}\n'


def add(folder: Path, part: str, run: Row, rows: list[Row]) -> Document:
    """Stores what a run has measured of a part; returns all that there is of it now."""
    document = merged(load(folder, part), run, rows)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{part}.json"
    # Written beside it first: whatever ends the program meanwhile must not cost the old results.
    fresh = path.with_suffix(".new")
    fresh.write_text(text(document), encoding="utf-8")
    fresh.replace(path)
    return document
