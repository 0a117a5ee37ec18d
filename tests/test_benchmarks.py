"""The benchmarks' results: how they are stored, and that the documents show them and nothing else.

Nothing is measured here.
"""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("resource", reason="the benchmarks are for Linux")

import main_loop
import plots
import publish
import report
import run
from harness import chart, store
from harness.cases import CASES, LIMIT, PEERS, SWEEPS, WEBSOCKET
from harness.summary import middle, swept, usable

SVG = "{http://www.w3.org/2000/svg}"
LOOPS = [peer.name for peer in main_loop.PEERS]
RUN: dict[str, Any] = {
    "when": "2026-01-01 00:00 UTC",
    "machine": {"processor": "Z80", "cores": 2, "kernel": "Linux", "python": "CPython"},
    "versions": {"pyhv": "0.1.0"},
    "settings": {"seconds": 1.0, "repeat": 2},
    "skipped": {},
}


def row(case: str, peer: str, value: float = 1000.0, repeat: int = 0, disturbed: bool = False) -> dict[str, Any]:
    """As run.py makes them."""
    result = {"msgs_per_s": value, "p50_us": 1e6 / value, "p99_us": 2e6 / value, "generator_cpu": 0.5}
    result |= {"base_bytes": 2**20, "idle_bytes": value, "used_bytes": value, "server_us": 1.0}
    limit = {"msgs_per_s": 2 * value, "p50_us": 1.0, "idle_bytes": 0, "generator_cpu": 0.5, "disturbed": False}
    common = {"case": case, "peer": peer, "repeat": repeat, "disturbed": disturbed, "to_limit": 0.5}
    return common | {"result": result, LIMIT: limit}


def measured(names: list[str], peers: tuple[str, ...] = ("pyhv", "picows")) -> store.Document:
    rows = [row(name, peer, 1000.0 * (1 + place)) for name in names for place, peer in enumerate(peers)]
    return store.merged(None, RUN, rows)


def test_the_documents_are_what_the_results_make() -> None:
    assert publish.differences(publish.COMMITTED) == [], "run: python benchmarks/publish.py"


def test_every_mark_has_its_results() -> None:
    texts = [(publish.ROOT / path).read_text(encoding="utf-8") for path in publish.DOCUMENTS]
    marked = {name for text in texts for name in re.findall("<!-- begin ([a-z-]+) -->", text)}
    assert {found["name"] for text in texts for found in publish.MARKED.finditer(text)} == marked
    assert marked <= publish.blocks(publish.stored(publish.COMMITTED)).keys()


class TestStore:
    def test_a_run_replaces_the_cases_that_it_measured(self) -> None:
        old = store.merged(None, RUN, [row("a", "pyhv", 1), row("a", "picows", 1), row("b", "pyhv", 1)])
        new = store.merged(old, RUN | {"when": "later"}, [row("a", "pyhv", 2)])
        rows = [(each["case"], each["peer"], each["run"]) for each in new["rows"]]
        assert rows == [("b", "pyhv", 0), ("a", "pyhv", 1)]
        assert [each["when"] for each in new["runs"]] == [RUN["when"], "later"]

    def test_a_run_without_rows_left_is_forgotten(self) -> None:
        old = store.merged(None, RUN, [row("a", "pyhv")])
        new = store.merged(old, RUN | {"when": "later"}, [row("a", "pyhv")])
        assert [each["when"] for each in new["runs"]] == ["later"]
        assert [each["run"] for each in new["rows"]] == [0]

    def test_what_is_stored_is_read_again(self, tmp_path: Path) -> None:
        assert store.load(tmp_path, "x") is None
        document = store.add(tmp_path / "results", "x", RUN, [row("a", "pyhv"), row("ä", "pyhv")])
        assert store.load(tmp_path / "results", "x") == document
        assert json.loads(store.text(document)) == document

    def test_medians_are_of_undisturbed_rows(self) -> None:
        rows = [row("a", "pyhv", value, repeat=value, disturbed=value == 9) for value in (1, 2, 9)]
        assert middle({"rows": rows}, "a", "pyhv", "msgs_per_s") == 1.5
        assert len(usable({"rows": rows[2:]}, "a", "pyhv")) == 1


class TestCases:
    @pytest.mark.parametrize("sweep", SWEEPS, ids=lambda sweep: sweep.name)
    def test_points_of_a_sweep_differ_in_one_number(self, sweep: Any) -> None:
        points = sweep.points()
        numbers = [at for at, _ in points]
        assert numbers == sorted(set(numbers))
        kinds = {(case.mode, case.size, case.is_memory, case.group) for _, case in points}
        assert len(kinds) == 1
        for other in {"connections", "depth"} - {sweep.along}:
            assert len({getattr(case, other) for _, case in points}) == 1

    def test_the_command_line_chooses(self) -> None:
        def chosen(*names: str) -> list[str]:
            return [case.name for case in run.choose_cases(list(names))]

        assert chosen("all") == [case.name for case in CASES]
        assert chosen("main-loop") == []
        assert chosen("echo-100x16") == ["echo-100x16"]
        assert sorted(chosen("sweep-depth")) == sorted(SWEEPS[1].cases)
        assert set(chosen("websocket")) == {case.name for case in CASES if case.in_table and case.group == WEBSOCKET}
        assert set(chosen("websocket", "sweeps", "http")) == set(chosen("all"))

    def test_only_full_runs_are_recorded(self) -> None:
        assert not run.options_from([]).trial
        assert not run.options_from(["--cases", "sweeps,http"]).trial
        for words in (["--quick"], ["--peers", "pyhv"], ["--trial"]):
            assert run.options_from(words).trial

    def test_no_points_but_the_table_s_are_no_sweep(self) -> None:
        assert swept(measured(["echo-100x1", "round-trip"]), SWEEPS[0]) == []
        assert len(swept(measured(["echo-100x1", "echo-10x1"]), SWEEPS[0])) == 2


class TestReport:
    def test_where_a_peer_is_ahead(self) -> None:
        document = measured(["echo-100x1", "round-trip"])
        text = report.ahead([document], "pyhv")
        # picows has twice the rate and half the latency in these rows.
        assert text.splitlines()[2:] == [
            "- echo, 100 connections, 1 in flight: picows (0.50)",
            "- one connection, round trip: picows (0.50)",
        ]
        assert report.ahead([document], "picows") == "No peer is ahead of `picows` in any row of the tables.\n"

    def test_the_best_of_the_peers(self) -> None:
        document = measured(["echo-100x1"], ("pyhv", "picows", "aiohttp"))
        assert report.summary_table([document], "pyhv").splitlines()[-1] == (
            "| echo, 100 connections, 1 in flight | 1,000/s | aiohttp 3,000/s | 0.33 |"
        )

    def test_every_run_that_has_rows_is_named(self) -> None:
        document = store.merged(measured(["echo-100x1"]), RUN | {"when": "later"}, [row("round-trip", "pyhv")])
        first, second = report.heading(document).split("\n\n")
        assert first.startswith("echo-100x1: measured 2026") and second.startswith("round-trip: measured later")

    def test_a_peer_that_failed_in_a_sweep(self) -> None:
        document = measured(["echo-10x1", "echo-100x1"])
        document["rows"].append({"case": "echo-10x1", "peer": "aiohttp", "repeat": 0, "run": 0, "error": "gone"})
        lines = report.sweep_table(document, SWEEPS[0]).splitlines()
        assert lines[2] == "| connections | limit | pyhv | picows | aiohttp |"
        assert lines[4].split("|")[-2].strip() == report.FAILED


class TestPublish:
    @pytest.fixture
    def place(self, tmp_path: Path) -> publish.Place:
        place = publish.Place(tmp_path / "results", tmp_path)
        names = sorted({name for sweep in SWEEPS for name in sweep.cases})
        peers = tuple(peer.name for peer in PEERS if peer.group == WEBSOCKET and peer.in_sweeps)
        document = measured(names, peers)
        store.add(place.results, WEBSOCKET, RUN, document["rows"])
        return place

    def test_writes_and_then_finds_nothing_to_write(self, place: publish.Place) -> None:
        wrong = publish.differences(place)
        assert "docs/benchmarks.md" in wrong and len([name for name in wrong if name.endswith(".svg")]) == len(SWEEPS)
        written = publish.write(place)
        assert {path.suffix for path in written} == {".md", ".svg"}
        assert publish.differences(place) == []
        assert publish.write(place) == []

    def test_sees_what_was_changed_by_hand(self, place: publish.Place) -> None:
        publish.write(place)
        for name in ("docs/benchmarks.md", "docs/plots/throughput-by-depth.svg"):
            path = place.root / name
            path.write_text(path.read_text(encoding="utf-8").replace("64 bytes", "46 bytes"), encoding="utf-8")
        (place.root / "docs" / "plots" / "old.svg").touch()
        assert publish.differences(place) == [
            "docs/benchmarks.md",
            "docs/plots/throughput-by-depth.svg",
            "docs/plots/old.svg",
        ]

    def test_leaves_what_stands_around_the_tables(self, place: publish.Place) -> None:
        before = publish.MARKED.sub("", (publish.ROOT / "docs/benchmarks.md").read_text(encoding="utf-8"))
        publish.write(place)
        after = publish.MARKED.sub("", (place.root / "docs/benchmarks.md").read_text(encoding="utf-8"))
        assert after == before


class TestCharts:
    def test_a_line_for_every_peer_and_its_name(self) -> None:
        names = list(SWEEPS[1].cases)
        document = measured(names, ("pyhv", "picows", "aiohttp"))
        picture = plots.plots({WEBSOCKET: document})["throughput-by-depth.svg"]
        root = ElementTree.fromstring(picture)
        lines = root.findall(f"{SVG}polyline")
        assert [len(line.attrib["points"].split()) for line in lines] == [len(names)] * 4
        assert lines[-1].attrib["class"].endswith("s-pyhv")  # on top of the others
        words = [text.text for text in root.findall(f"{SVG}text")]
        assert {"pyHV", "picows", "aiohttp", "limit (no Python)", "messages per second", "64"} <= set(words)

    def test_a_curve_tells_of_a_busy_machine(self) -> None:
        document = measured(list(SWEEPS[1].cases))
        assert "busy" not in plots.plots({WEBSOCKET: document})["throughput-by-depth.svg"]
        for each in document["rows"]:
            each["disturbed"] = each["peer"] == "picows" and each["case"] == "echo-100x8"
        assert "busy" in plots.plots({WEBSOCKET: document})["throughput-by-depth.svg"]

    def test_a_main_loop_whose_frames_end_late(self) -> None:
        ends = {"idle": 3.0, "echo": 40.0, "broadcast": 5.0}
        rows = []
        for case, end in ends.items():
            result: dict[str, Any] = {
                "process_ms": 2.0 if case == "idle" else 9.0,
                "network_ms": 0.5,
                "msgs_per_s": 60_000,
            }
            result |= {"end_p50_ms": 2.0, "end_p99_ms": end, "end_ms": {"0.01": 1.0}, "p99_us": 21_000}
            rows += [{"case": case, "peer": peer, "repeat": 0, "disturbed": False, "result": result} for peer in LOOPS]
        settings = {"clients": 1000, "crowd": 0, "active": 0, "seconds": 1.0, "repeat": 1}
        document = store.merged(None, RUN | {"settings": settings}, rows)
        root = ElementTree.fromstring(plots.plots({store.MAIN_LOOP: document})["main-loop.svg"])
        words = [text.text for text in root.findall(f"{SVG}text")]
        assert [words.count(name) for name in ("pyHV", "picows-pumped")] == [2, 2]
        # Later than the next frame is due: cut, and told so.
        drawn = len([peer for peer in LOOPS if peer in plots.STYLES])  # the limit is in the table alone
        assert drawn == len(LOOPS) - 1
        assert words.count("→ 40.0") == drawn and words.count("5.0") == drawn
        assert words.count("7.0 (0.00)") == 2 * drawn and words.count("21") == drawn
        table = main_loop.table(document["rows"], settings).splitlines()
        assert len(table) == 2 + 2 * len(LOOPS)
        assert table[3].startswith(
            "| 1,000 messages each way per frame | pyhv | 7.00 ms | 0.00 ms | 21.0 ms | 40.0 ms (3.0)"
        )

    def test_the_same_data_make_the_same_bytes(self) -> None:
        documents = publish.stored(publish.COMMITTED)
        assert plots.plots(documents) == plots.plots(documents)

    def test_names_at_the_ends_of_lines_keep_apart(self) -> None:
        ends = [(100.0 + number, chart.Line(str(number), "plain", []), (0.0, 0.0)) for number in range(6)]
        places = [at for at, _, _ in chart._apart(ends, 90, 300)]
        assert places == sorted(places) and places[0] >= 90
        assert all(later - earlier >= chart.NAME_HEIGHT - 1 for earlier, later in pairwise(places))

    @pytest.mark.parametrize(("low", "high"), [(0.0, 7.0), (0.0, 240_000.0), (1.0, 0.03)])
    def test_round_numbers(self, low: float, high: float) -> None:
        ticks = chart._round_numbers(chart.Axis("", str), low, high)
        assert 3 <= len(ticks) <= 7 and ticks[0] == 0 and ticks[-1] <= high * 1.001

    def test_round_numbers_of_a_logarithmic_axis(self) -> None:
        axis = chart.Axis("", str, log=True)
        assert chart._round_numbers(axis, 9.0, 60.0) == [10, 20, 50]
        assert chart._round_numbers(axis, 50_000.0, 6e6) == [1e5, 3e5, 1e6, 3e6]
