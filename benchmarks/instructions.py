"""How many instructions a message costs: python benchmarks/instructions.py [--only codec] [--runs 5] [--record]

Two programs do the work: an example of crates/wire for the codec, `instructions_tick.py` for the program's thread. They
run under callgrind and call libc's getppid before and after the work of each row; there callgrind writes down what it
has counted since the last time. So neither start-up nor what prepares a row is in its count. Of the threads only
the first is taken: what the I/O thread does is not the program's.

What is recorded stands in `instructions.json`, and tests/test_instructions.py holds the code against it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parent.parent
RECORD = Path(__file__).with_suffix(".json")
COMMAND = "make instructions"

#: Seconds for one program under callgrind; it takes a tenth of that on a busy machine.
LIMIT = 300

#: By how much a count may differ from the recorded one where all that it depends on is the same. The codec's do not
#: differ from run to run at all; those of a tick by up to 2 %, where large blocks lie differently in memory. The rest
#: is for changes elsewhere in the extension, which move what the compiler inlines.
MARGINS = {"codec": 0.03, "tick": 0.05}

#: Rows that differ by more, with nothing changed. The I/O thread frees a broadcast's frame while others are made:
#: which of malloc's lists they come from depends on who was faster.
UNSTEADY = {"broadcast of 200 B to 10 channels": 0.2}

#: By how much it may be more where the tools are of other versions: enough for them, and not for a lost fast path.
LOOSE_MARGIN = 0.5

#: What a group's counts depend on, of `conditions()`.
DEPENDS_ON = {
    "codec": ("processor", "valgrind", "libc", "rustc"),
    "tick": ("processor", "valgrind", "libc", "rustc", "python"),
}

#: glibc copies and clears long blocks with one instruction that callgrind counts once a byte. Without it the count is
#: nearer to what a copy costs.
TUNABLES = "glibc.cpu.x86_rep_movsb_threshold=0x40000000:glibc.cpu.x86_rep_stosb_threshold=0x40000000"

Counts = dict[str, float]


class CountError(Exception):
    """Something did not run as it should; the message is for people."""


@cache
def conditions() -> Mapping[str, str]:
    """What the counts depend on besides the code."""
    configured = sysconfig.get_config_var("CONFIG_ARGS") or ""
    options = [
        option
        for option in ("--enable-optimizations", "--with-lto", "--enable-shared", "--with-pydebug")
        if option in configured
    ]
    python = [f"{platform.python_implementation()} {platform.python_version()}", platform.python_compiler(), *options]
    return {
        "processor": _processor(),
        "valgrind": _run(["valgrind", "--version"]).strip().removeprefix("valgrind-"),
        "libc": " ".join(platform.libc_ver()).strip() or "unknown",
        "rustc": _run(["rustc", "--version"]).split()[1],
        "python": ", ".join(python),
    }


def _processor() -> str:
    """The kind of processor that valgrind shows to programs: it has one for each of these extensions."""
    flags = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    have = set(flags[1].split()) if flags else set()
    level = next((name for name in ("avx2", "avx", "sse4_2") if name in have), None)
    return f"{platform.machine()}, {level}" if level else platform.machine()


def codec() -> Counts:
    """Counts the rows of the codec; builds the example."""
    command = ["cargo", "build", "--release", "--locked", "--quiet", "--message-format=json"]
    built = _run([*command, "--package", "pyhv-wire", "--example", "instructions"])
    artifacts: list[dict[str, Any]] = [json.loads(line) for line in built.splitlines()]
    made = [artifact["executable"] for artifact in artifacts if artifact.get("executable")]
    if len(made) != 1:
        raise CountError(f"cargo made {made} instead of one example")
    return count(made)


def tick() -> Counts:
    """Counts the rows of the program's thread, with the pyHV that is installed."""
    return count([sys.executable, str(Path(__file__).with_name("instructions_tick.py"))])


#: How each group is counted.
GROUPS: dict[str, Callable[[], Counts]] = {"codec": codec, "tick": tick}


def count(command: list[str]) -> Counts:
    """Instructions per item of every row that `command` prints; of several rounds of one row the median."""
    # What a developer has set for Python changes what it runs. The seed is for the order of sets and dicts.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment |= {"PYTHONHASHSEED": "0", "GLIBC_TUNABLES": TUNABLES}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "callgrind"
        callgrind = ["valgrind", "--tool=callgrind", "--separate-threads=yes", "--dump-before=getppid"]
        printed = _run([*callgrind, f"--callgrind-out-file={out}", *command], environment)
        dumps = dict(_read_dump(path) for path in Path(folder).iterdir())
    return read_rows(printed, {part: total for (part, thread), total in dumps.items() if thread == 1})


def _read_dump(path: Path) -> tuple[tuple[int, int], int]:
    """Part and thread of a file that callgrind wrote, and the instructions in it."""
    text = path.read_text(errors="replace")
    part, thread, total = (
        int(found[1]) if (found := re.search(rf"^{name}: (\d+)$", text, re.MULTILINE)) else 0
        for name in ("part", "thread", "totals")
    )
    # At its end callgrind writes once more, into files that have no number.
    return (part if "--dump-before=getppid" in text else 0, thread), total


def read_rows(printed: str, parts: Mapping[int, int]) -> Counts:
    """What was counted between two marks belongs to the line that was printed behind them: "items row"."""
    lines = [line.partition(" ") for line in printed.splitlines()]
    marks = max(parts, default=0)
    if not lines or marks != 2 * len(lines):
        raise CountError(f"{marks} marks for {len(lines)} rows:\n{printed}")
    rounds: dict[str, list[float]] = {}
    for number, (items, _, row) in enumerate(lines, 1):
        # Without items it is a round that does not count.
        if int(items) > 0:
            rounds.setdefault(row, []).append(parts[2 * number] / int(items))
    return {row: median(values) for row, values in rounds.items()}


def _run(command: list[str], environment: dict[str, str] | None = None) -> str:
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CountError(str(error)) from None
    if done.returncode != 0:
        raise CountError(f"{' '.join(command)}: exit status {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def why_not(group: str) -> str | None:
    """Why a group cannot be counted here, if it cannot."""
    if shutil.which("valgrind") is None:
        return "valgrind is not installed"
    if group == "tick":
        from pyhv import _native

        if not _native._is_optimized():
            return "pyHV is installed as a development build; make build installs the other"
    return None


def differing(group: str, recorded: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The conditions of a group that are not those of the record."""
    return [name for name in DEPENDS_ON[group] if recorded[name] != now[name]]


def margins(group: str, recorded: Mapping[str, str], now: Mapping[str, str]) -> tuple[float, float] | None:
    """By how much a count may be less and more than recorded; None where the two cannot be compared.

    With the same tools it may be neither, or a gain could be lost again unnoticed. With others only more is a fault.
    """
    others = differing(group, recorded, now)
    if not others:
        return MARGINS[group], MARGINS[group]
    if "processor" in others:
        return None
    return 1.0, LOOSE_MARGIN


def complaint(row: str, recorded: float, counted: float, allowed: tuple[float, float]) -> str | None:
    """What is wrong with a count, if anything is."""
    less, more = (max(margin, UNSTEADY.get(row, 0.0)) for margin in allowed)
    change = counted / recorded - 1
    numbers = f"{row}: {counted:.1f} instructions, recorded are {recorded:.1f} ({change:+.1%}"
    if change > more:
        return f"{numbers}, at most {more:+.0%}). If it has to cost that, record it: {COMMAND}"
    if change < -less:
        return f"{numbers}, at most {-less:+.0%}). A gain: record it, so that it stays: {COMMAND}"
    return None


def load() -> dict[str, Any]:
    """What is recorded: "conditions", and the counts of each group by row."""
    loaded: dict[str, Any] = json.loads(RECORD.read_text())
    return loaded


def main() -> int:
    """Counts and prints; with `--record` writes it down."""
    parser = argparse.ArgumentParser(description="Instructions per message, counted by callgrind.")
    parser.add_argument("--only", choices=GROUPS, help="one half (both)")
    parser.add_argument("--runs", type=int, default=1, help="how often; the median is taken (1)")
    parser.add_argument("--record", action="store_true", help=f"write {RECORD.name}")
    options = parser.parse_args()
    if options.record and options.only:
        parser.error("--record is for all rows: what they depend on is written once")
    groups = [options.only] if options.only else list(GROUPS)
    recorded = load() if RECORD.exists() else {}
    new: dict[str, Any] = {}
    try:
        for group in groups:
            if reason := why_not(group):
                raise CountError(reason)
        new["conditions"] = dict(conditions())
        for group in groups:
            runs = [GROUPS[group]() for _ in range(options.runs)]
            new[group] = {row: round(median(run[row] for run in runs), 1) for row in runs[0]}
            print(f"{group + ', instructions per item':60s} {'counted':>10s} {'recorded':>10s}   spread")
            for row, value in new[group].items():
                values = [run[row] for run in runs]
                before = recorded.get(group, {}).get(row)
                known = f"{before:10,.1f} {value / before - 1:+.2%}" if before else f"{'-':>10s}"
                print(f"{row:60s} {value:10,.1f} {known}   {(max(values) - min(values)) / value:.2%}")
    except CountError as error:
        print(error, file=sys.stderr)
        return 1
    for name, value in new["conditions"].items():
        before = recorded.get("conditions", {}).get(name)
        print(f"{name}: {value}" + (f" (recorded: {before})" if before not in (None, value) else ""))
    if options.record:
        RECORD.write_text(json.dumps(new, indent=2) + "\n")
        print(f"recorded in {RECORD.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
