"""Writes what is stored into the documents: python benchmarks/publish.py [--check]

Tables go between the marks of the documents (`<!-- begin NAME -->`, `<!-- end NAME -->`; what
stands around them is written by hand), plots into docs/plots. With --check nothing is written: it exits with 1, and
names the files, where the documents are not what the stored results make.
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import main_loop
import plots
import report
from harness import store
from harness.cases import BENCHMARKS, HTTP, SWEEPS, WEBSOCKET
from harness.store import BACKPLANE, MAIN_LOOP, MEMORY_MODES, STORED, THREAD, Document

ROOT = BENCHMARKS.parent
#: The documents that may have marks in them.
DOCUMENTS = (Path("docs/benchmarks.md"), Path("docs/memory.md"), Path("docs/scale.md"), Path("README.md"))
PLOTS = Path("docs/plots")
BASE = "pyhv"
#: What stands between marks for which there are no results, as in most trials.
NOTHING = "Not measured."

MARKED = re.compile(r"(?P<begin><!-- begin (?P<name>[a-z-]+) -->\n).*?(?P<end>^<!-- end (?P=name) -->$)", re.S | re.M)


@dataclass(frozen=True)
class Place:
    """Where results are, and where the documents made of them go."""

    results: Path
    root: Path


COMMITTED = Place(BENCHMARKS / "results", ROOT)
TRIAL = Place(BENCHMARKS / ".cache" / "trial", BENCHMARKS / ".cache" / "trial")


def blocks(documents: dict[str, Document]) -> dict[str, str]:
    """What stands between the marks, by their names; of what was not measured nothing."""
    made: dict[str, str] = {}
    if WEBSOCKET in documents:
        document = documents[WEBSOCKET]
        made["websocket"] = report.markdown(document, BASE)
        made |= {sweep.name: table for sweep in SWEEPS if (table := report.sweep_table(document, sweep))}
    if HTTP in documents:
        made["http"] = report.markdown(documents[HTTP], BASE)
    if WEBSOCKET in documents or HTTP in documents:
        loads = [documents[part] for part in (WEBSOCKET, HTTP) if part in documents]
        made["ahead"] = report.ahead(loads, BASE)
        made["summary"] = report.summary_table(loads, BASE)
    if MAIN_LOOP in documents:
        document = documents[MAIN_LOOP]
        table = main_loop.table(document["rows"], document["runs"][-1]["settings"])
        parts = [report.heading(document), table, *report.legend([table]), *report.notes(document)]
        made["main-loop"] = "\n\n".join(parts)
    if THREAD in documents:
        document = documents[THREAD]
        parts = [report.heading(document), report.thread_table(document), *report.notes(document)]
        made["thread"] = "\n\n".join(parts)
    if MEMORY_MODES in documents:
        made["memory-modes"] = report.memory_modes_table(documents[MEMORY_MODES]["rows"])
    if BACKPLANE in documents:
        document = documents[BACKPLANE]
        parts = [report.heading(document), report.backplane_table(document), *report.notes(document)]
        made["backplane"] = "\n\n".join(parts)
    return made


def stored(place: Place) -> dict[str, Document]:
    """The parts that have results."""
    return {part: document for part in STORED if (document := store.load(place.results, part))}


def files(place: Place) -> dict[Path, str]:
    """Every file that is made of results, relative to the root, with its text."""
    documents = stored(place)
    made = blocks(documents)

    def fresh(found: re.Match[str]) -> str:
        return f"{found['begin']}\n{made.get(found['name'], NOTHING).strip()}\n\n{found['end']}"

    texts = {path: (ROOT / path).read_text(encoding="utf-8") for path in DOCUMENTS}
    marked = {path: MARKED.sub(fresh, text) for path, text in texts.items() if MARKED.search(text)}
    return marked | {PLOTS / name: picture for name, picture in plots.plots(documents).items()}


def write(place: Place) -> list[Path]:
    """Writes what has changed; returns which files that are."""
    written = []
    for path, text in files(place).items():
        target = place.root / path
        if not target.exists() or target.read_text(encoding="utf-8") != text:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
            written.append(target)
    return written


def say(written: list[Path]) -> None:
    """Names them to whoever watches."""
    for path in written:
        print(f"written: {path.relative_to(ROOT)}", file=sys.stderr)


def differences(place: Place) -> list[str]:
    """The files that are not what the results make, and the plots that no results make."""
    expected = files(place)
    wrong = [
        path
        for path, text in expected.items()
        if not (place.root / path).exists() or (place.root / path).read_text(encoding="utf-8") != text
    ]
    wrong += [PLOTS / path.name for path in (place.root / PLOTS).glob("*") if PLOTS / path.name not in expected]
    return [path.as_posix() for path in wrong]


def tables(place: Place, parts: list[str]) -> str:
    """What results have of some parts, for the terminal."""
    made = blocks({part: document for part, document in stored(place).items() if part in parts})
    return "\n\n".join(text.strip() for name, text in made.items() if name != "summary") + "\n"


def main() -> int:
    """Writes, or compares."""
    parser = argparse.ArgumentParser(description="Tables and plots of the stored results, into the documents.")
    parser.add_argument("--check", action="store_true", help="write nothing; 1 where a document is out of date")
    if not parser.parse_args().check:
        say(write(COMMITTED))
        return 0
    wrong = differences(COMMITTED)
    for path in wrong:
        print(f"{path} is not what benchmarks/results make: run benchmarks/publish.py", file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
