"""The units of docs/deploy/systemd.md."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parent.parent / "docs/deploy/systemd.md").read_text(encoding="utf-8")
UNITS = re.findall(r"^```ini\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_takes_the_units(tmp_path: Path) -> None:
    service, http, https = UNITS
    # It looks whether the program is there.
    program = "/srv/game/.venv/bin/pyhv"
    assert service.count(program) == 1
    service = service.replace(program, f"{sys.executable} -m pyhv").replace("WorkingDirectory=/srv/game\n", "")
    service = service.replace("[Service]\n", "Requires=game.socket\nAfter=game.socket\n\n[Service]\n")
    for name, text in (("game.service", service), ("game.socket", http), ("game-https.socket", https)):
        (tmp_path / name).write_text(text, encoding="utf-8")
    command = ["systemd-analyze", "verify", "--man=no", *map(str, sorted(tmp_path.iterdir()))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    # What it says of units of the machine is not ours.
    assert [line for line in (done.stdout + done.stderr).splitlines() if "game" in line] == []
