"""Instructions per message against what is recorded: a regression fails here without any clock.

They are counted by callgrind (benchmarks/instructions.py), which takes a quarter of a minute.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import instructions
from instructions import CountError, Counts
from pyhv import _native

RECORDED = instructions.load()
ROWS = [(group, row) for group in instructions.GROUPS for row in RECORDED[group]]

#: The first test of a group builds the example and counts.
LIMIT = 2 * instructions.LIMIT + 20


class Counted:
    """Counts each group once, when its first row is asked for."""

    def __init__(self) -> None:
        self.groups: dict[str, Counts | CountError] = {}

    def of(self, group: str) -> Counts:
        """The counts of a group, or why they are not there."""
        if group not in self.groups:
            try:
                self.groups[group] = instructions.GROUPS[group]()
            except CountError as error:
                self.groups[group] = error
        counts = self.groups[group]
        if isinstance(counts, CountError):
            pytest.fail(str(counts), pytrace=False)
        return counts


@pytest.fixture(scope="module")
def counted() -> Counted:
    return Counted()


def allowed(group: str) -> tuple[float, float]:
    """The margins of a group. Skips where it cannot be counted, or not be compared."""
    reason = instructions.why_not(group)
    if reason is not None:
        pytest.skip(reason)
    found = instructions.margins(group, RECORDED["conditions"], instructions.conditions())
    if found is None:
        pytest.skip(f"recorded on another kind of processor, {RECORDED['conditions']['processor']}")
    return found


@pytest.mark.timeout(LIMIT)
@pytest.mark.parametrize(("group", "row"), ROWS)
def test_as_many_instructions_as_recorded(group: str, row: str, counted: Counted) -> None:
    within = allowed(group)
    counts = counted.of(group)
    assert row in counts, f"recorded, but not counted: {instructions.COMMAND}"
    complaint = instructions.complaint(row, RECORDED[group][row], counts[row], within)
    if complaint:
        pytest.fail(complaint, pytrace=False)


@pytest.mark.timeout(LIMIT)
@pytest.mark.parametrize("group", instructions.GROUPS)
def test_every_row_is_recorded(group: str, counted: Counted) -> None:
    allowed(group)
    assert counted.of(group).keys() == RECORDED[group].keys(), instructions.COMMAND


@pytest.mark.parametrize("group", instructions.GROUPS)
def test_compared_within_the_narrow_margins(group: str) -> None:
    """Skipped where the comparison is a wide one, so that this is seen."""
    allowed(group)
    recorded, now = RECORDED["conditions"], instructions.conditions()
    others = [f"{now[name]} instead of {recorded[name]}" for name in instructions.differing(group, recorded, now)]
    if others:
        pytest.skip(f"{', '.join(others)}: only counts of {instructions.LOOSE_MARGIN:.0%} more than recorded fail")


# How counts are read and judged

HERE = {"processor": "x86_64, avx2", "valgrind": "3.19.0", "libc": "glibc 2.36", "rustc": "1.95.0", "python": "3.11.7"}


class TestWhyNot:
    @pytest.mark.parametrize("group", instructions.GROUPS)
    def test_without_valgrind(self, group: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shutil, "which", lambda name: None)
        assert instructions.why_not(group) == "valgrind is not installed"

    def test_a_development_build(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
        monkeypatch.setattr(_native, "_is_optimized", lambda: False)
        reason = instructions.why_not("tick")
        assert reason is not None and "development build" in reason
        assert instructions.why_not("codec") is None


class TestMargins:
    @pytest.mark.parametrize("group", instructions.GROUPS)
    def test_both_ways_where_all_is_the_same(self, group: str) -> None:
        margin = instructions.MARGINS[group]
        assert instructions.margins(group, HERE, dict(HERE)) == (margin, margin)

    @pytest.mark.parametrize("name", ["valgrind", "libc", "rustc"])
    @pytest.mark.parametrize("group", instructions.GROUPS)
    def test_wide_and_upwards_alone_with_other_tools(self, group: str, name: str) -> None:
        assert instructions.margins(group, HERE, HERE | {name: "other"}) == (1.0, instructions.LOOSE_MARGIN)

    def test_python_is_nothing_to_the_codec(self) -> None:
        other = HERE | {"python": "3.14.0"}
        assert instructions.margins("codec", HERE, other) == instructions.margins("codec", HERE, HERE)
        assert instructions.margins("tick", HERE, other) == (1.0, instructions.LOOSE_MARGIN)

    @pytest.mark.parametrize("group", instructions.GROUPS)
    def test_nothing_to_compare_on_another_processor(self, group: str) -> None:
        assert instructions.margins(group, HERE, HERE | {"processor": "aarch64", "rustc": "1.96.0"}) is None


class TestComplaint:
    @pytest.mark.parametrize("now", [97.1, 100.0, 102.9])
    def test_within(self, now: float) -> None:
        assert instructions.complaint("a row", 100.0, now, (0.03, 0.03)) is None

    def test_a_regression_names_row_numbers_and_command(self) -> None:
        assert instructions.complaint("a row", 100.0, 103.5, (0.03, 0.03)) == (
            "a row: 103.5 instructions, recorded are 100.0 (+3.5%, at most +3%). If it has to cost that, record it: "
            "make instructions"
        )

    def test_an_unsteady_row_has_a_margin_of_its_own(self) -> None:
        for row, margin in instructions.UNSTEADY.items():
            assert row in RECORDED["tick"]
            for sign in (1, -1):
                within, beyond = 100 * (1 + sign * (margin - 0.01)), 100 * (1 + sign * (margin + 0.01))
                assert instructions.complaint(row, 100.0, within, (0.03, 0.03)) is None
                assert instructions.complaint(row, 100.0, beyond, (0.03, 0.03)) is not None

    def test_a_gain_is_to_be_recorded(self) -> None:
        assert instructions.complaint("a row", 100.0, 80.0, (0.03, 0.03)) == (
            "a row: 80.0 instructions, recorded are 100.0 (-20.0%, at most -3%). A gain: record it, so that it stays: "
            "make instructions"
        )

    def test_other_tools_may_make_it_less(self) -> None:
        assert instructions.complaint("a row", 100.0, 1.0, (1.0, 0.5)) is None
        assert instructions.complaint("a row", 100.0, 151.0, (1.0, 0.5)) is not None


class TestReading:
    def test_what_is_between_two_marks_belongs_to_the_line_behind_them(self) -> None:
        # Part 1 is the start-up, part 3 what lies between the rows.
        counts = instructions.read_rows("10 one\n4 another\n", {1: 9999, 2: 50, 3: 7777, 4: 2})
        assert counts == {"one": 5.0, "another": 0.5}

    def test_the_median_of_the_rounds_that_count(self) -> None:
        lines = "0 row\n1 row\n1 row\n1 row\n"
        assert instructions.read_rows(lines, {2: 1000, 4: 3, 6: 90, 8: 2}) == {"row": 3.0}

    @pytest.mark.parametrize("parts", [{}, {2: 5}, {2: 5, 4: 5, 6: 5}])
    def test_marks_that_do_not_fit_the_rows(self, parts: dict[int, int]) -> None:
        with pytest.raises(CountError, match="marks for 2 rows"):
            instructions.read_rows("1 one\n1 another\n", parts)

    @pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed")
    def test_a_program_that_fails_is_named(self) -> None:
        with pytest.raises(CountError, match="no-such-program"):
            instructions.count(["/no-such-program"])


def test_recorded_has_what_the_comparison_needs() -> None:
    recorded: dict[str, Any] = json.loads(Path(instructions.RECORD).read_text())
    assert recorded.keys() == {"conditions", *instructions.GROUPS}
    for group, names in instructions.DEPENDS_ON.items():
        assert recorded["conditions"].keys() >= set(names)
        assert all(value > 0 for value in recorded[group].values())
