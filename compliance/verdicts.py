"""What the suite says of each case, what it is expected to say, and the differences."""

from __future__ import annotations

import fnmatch
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

EXPECTED = Path(__file__).with_name("expected-results.json")
SIDES = ("server", "client")

#: All that may be expected: NON-STRICT, WRONG CODE, UNCLEAN, UNIMPLEMENTED, FAILED and the like are always faults.
GOOD = ("OK", "INFORMATIONAL")


class Verdict(NamedTuple):
    """The two judgements on a case: what was said, and how the connection was closed."""

    behavior: str
    close: str


Verdicts = Mapping[str, Verdict]


def in_order(numbers: Iterable[str]) -> list[str]:
    """Case numbers as a reader counts: 1.2.8, 2.1, 2.10."""
    return sorted(numbers, key=lambda number: [int(part) for part in number.split(".")])


def matching(numbers: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """Those that match one of the patterns, such as "1.*" or "6.4.1"."""
    patterns = list(patterns)
    return [number for number in numbers if any(fnmatch.fnmatchcase(number, pattern) for pattern in patterns)]


def load(side: str, file: Path = EXPECTED) -> dict[str, Verdict]:
    """The expected verdicts of one side, "server" or "client"; none, where there is no file."""
    if not file.exists():
        return {}
    recorded = json.loads(file.read_text(encoding="utf-8"))[side]
    return {number: Verdict(case["behavior"], case["behaviorClose"]) for number, case in recorded.items()}


def save(verdicts: Mapping[str, Verdicts], file: Path = EXPECTED) -> None:
    """Writes the expected verdicts of both sides, a line for each case, for readable differences."""
    sides = []
    for side in SIDES:
        lines = [
            f"    {json.dumps(number)}: "
            + json.dumps({"behavior": verdicts[side][number].behavior, "behaviorClose": verdicts[side][number].close})
            for number in in_order(verdicts[side])
        ]
        sides.append(f"  {json.dumps(side)}: {{\n" + ",\n".join(lines) + "\n  }")
    file.write_text("{\n" + ",\n".join(sides) + "\n}\n", encoding="utf-8")


def faults(expected: Verdicts, found: Verdicts, wanted: Iterable[str]) -> list[str]:
    """One line for each case that is missing, not good, or not as expected; `wanted` are those that should have run."""
    lines = []
    for number in in_order({*wanted, *found}):
        if number not in found:
            lines.append(f"{number}: missing, the case did not run or did not end")
            continue
        verdict = found[number]
        if number not in expected:
            lines.append(f"{number}: {_words(verdict)}, and nothing is expected of it")
        elif verdict != expected[number]:
            lines.append(f"{number}: {_words(verdict)}, expected is {_words(expected[number])}")
        elif verdict.behavior not in GOOD or verdict.close not in GOOD:
            lines.append(f"{number}: {_words(verdict)}")
    return lines


def summary(found: Verdicts) -> str:
    """How many cases there are of each behavior: "514 OK, 3 INFORMATIONAL"."""
    counts = Counter(verdict.behavior for verdict in found.values())
    return ", ".join(f"{count} {behavior}" for behavior, count in counts.most_common()) or "no cases"


def _words(verdict: Verdict) -> str:
    return verdict.behavior if verdict.close == verdict.behavior else f"{verdict.behavior} (close: {verdict.close})"
