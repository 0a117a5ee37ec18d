"""The soak of `make soak`, for a few seconds: that it runs, judges and draws; the long ones are in docs/soak.md."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

from support_load import ROOT, Program

SOAK = ROOT / "scripts" / "soak.py"


def test_a_few_seconds_of_everything_lose_nothing_and_leave_nothing(tmp_path: Path) -> None:
    drawing = tmp_path / "soak.svg"
    with Program(SOAK, "--minutes", "0.05", "--svg", drawing) as program:
        code = program.finish(60)
        assert code == 0, program.output
    assert "lost / doubled / corrupt     0 / 0 / 0" in program.output
    assert program.output.rstrip().endswith("verdict: nothing lost, nothing left behind")
    lines = ElementTree.parse(drawing).getroot().findall("{http://www.w3.org/2000/svg}polyline")
    assert len(lines) == 4
    assert all(len(line.attrib["points"].split()) > 5 for line in lines)
