"""The conformance suite on both sides of pyHV, in its fast form, and how its verdicts are judged.

PYHV_NO_COMPLIANCE=1 leaves out what runs the suite, which pip downloads the first time.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from compliance import run, verdicts
from compliance.verdicts import SIDES, Verdict

ROOT = Path(__file__).parent.parent

LIMIT = 360  # seconds; a run takes about ten, and the first one prepares the suite

GOOD = Verdict("OK", "OK")
INFORMATIONAL = Verdict("INFORMATIONAL", "INFORMATIONAL")

#: The cases that never say more; compliance/README.md explains them.
SAY_NO_MORE = ["7.1.6", "7.13.1", "7.13.2"]


def compliance(*arguments: str) -> None:
    """Runs both sides at once, and compares with the expected results."""
    done = subprocess.run(
        [sys.executable, "-m", "compliance.run", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=LIMIT,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.skipif(os.environ.get("PYHV_NO_COMPLIANCE") == "1", reason="PYHV_NO_COMPLIANCE=1")
@pytest.mark.timeout(LIMIT + 20)
class TestSuite:
    def test_every_case_but_those_of_size_and_speed(self) -> None:
        compliance("--fast")

    def test_compression_with_a_context(self) -> None:
        compliance("--fast", "--compression", "context", "--cases", "12.*", "13.*")


@pytest.mark.parametrize("side", SIDES)
class TestExpectedResults:
    def test_all_there(self, side: str) -> None:
        groups = {number.partition(".")[0] for number in verdicts.load(side)}
        assert groups == {"1", "2", "3", "4", "5", "6", "7", "9", "10", "12", "13"}
        assert len(verdicts.load(side)) == 517

    def test_ok_or_explained(self, side: str) -> None:
        others = {number: verdict for number, verdict in verdicts.load(side).items() if verdict != GOOD}
        assert others == dict.fromkeys(SAY_NO_MORE, INFORMATIONAL)
        readme = (ROOT / "compliance" / "README.md").read_text(encoding="utf-8")
        assert all(number in readme for number in SAY_NO_MORE)


class TestReport:
    PLAN = run.Plan(cases=("1.1.*",), loops=None, compression="shared", case_limit=1, limit=1)
    CASES = tuple(f"1.1.{number}" for number in range(1, 9))

    def complaints(self, found: dict[str, Verdict], notes: list[str]) -> list[str]:
        outcome = run.Outcome(
            wanted=list(self.CASES), found=found, notes=notes, results=dict.fromkeys(found, "Seen."), seconds=1
        )
        return run.complaints("server", self.PLAN, outcome)

    def test_nothing_to_complain_of(self) -> None:
        assert self.complaints(dict.fromkeys(self.CASES, GOOD), []) == []

    def test_notes(self) -> None:
        assert self.complaints(dict.fromkeys(self.CASES, GOOD), ["not done"]) == ["not done"]

    def test_a_difference_comes_with_the_words_of_the_suite(self) -> None:
        found = {**dict.fromkeys(self.CASES, GOOD), "1.1.3": Verdict("NON-STRICT", "OK")}
        assert self.complaints(found, []) == ["1.1.3: NON-STRICT (close: OK), expected is OK. Seen."]

    def test_a_suite_that_did_not_start(self) -> None:
        assert [line.partition(":")[0] for line in self.complaints({}, [])] == list(self.CASES)


class TestJudging:
    def test_as_expected(self) -> None:
        found = {"1.1.1": GOOD, "7.1.6": INFORMATIONAL}
        assert verdicts.faults(found, found, found) == []

    def test_missing(self) -> None:
        assert verdicts.faults({"1.1.1": GOOD}, {}, ["1.1.1"]) == [
            "1.1.1: missing, the case did not run or did not end"
        ]

    def test_unexpected(self) -> None:
        assert verdicts.faults({}, {"1.1.1": GOOD}, []) == ["1.1.1: OK, and nothing is expected of it"]

    @pytest.mark.parametrize("behavior", ["FAILED", "NON-STRICT", "UNIMPLEMENTED", "WRONG CODE"])
    def test_bad_although_expected(self, behavior: str) -> None:
        bad = {"3.2": Verdict(behavior, "OK")}
        assert verdicts.faults(bad, bad, bad) == [f"3.2: {behavior} (close: OK)"]

    @pytest.mark.parametrize("close", ["FAILED", "UNCLEAN", "WRONG CODE", "FAILED BY CLIENT"])
    def test_badly_closed_although_expected(self, close: str) -> None:
        bad = {"3.2": Verdict("OK", close)}
        assert verdicts.faults(bad, bad, bad) == [f"3.2: OK (close: {close})"]

    def test_different(self) -> None:
        assert verdicts.faults({"7.1.6": INFORMATIONAL}, {"7.1.6": GOOD}, ["7.1.6"]) == [
            "7.1.6: OK, expected is INFORMATIONAL"
        ]

    def test_only_the_wanted(self) -> None:
        assert verdicts.faults({"1.1.1": GOOD, "9.1.1": GOOD}, {"1.1.1": GOOD}, ["1.1.1"]) == []

    def test_patterns(self) -> None:
        numbers = ["1.1.1", "1.1.2", "12.1.1"]
        assert verdicts.matching(numbers, ["1.*"]) == ["1.1.1", "1.1.2"]
        assert verdicts.matching(numbers, ["1.1.2", "12.*"]) == ["1.1.2", "12.1.1"]

    def test_saved_and_loaded(self, tmp_path: Path) -> None:
        both = {"server": {"2.10": GOOD, "2.9": GOOD}, "client": {"7.1.6": INFORMATIONAL}}
        file = tmp_path / "expected.json"
        verdicts.save(both, file)
        assert {side: verdicts.load(side, file) for side in SIDES} == both
        assert list(verdicts.load("server", file)) == ["2.9", "2.10"]
