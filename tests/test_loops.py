"""pyhv.loops: every adapter in a real loop of its toolkit, through what loop_program.py has it do.

What is not installed is skipped, with the reason.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from loop_program import EXIT, SCENARIOS
from loop_toolkits import TOOLKITS
from support_display import Display, display

HERE = Path(__file__).parent
PACKAGE = HERE.parent / "python"
LIMIT = 60.0  # seconds for all scenarios of a toolkit

#: Those that open a window.
DISPLAYED = {"tkinter", "tkinter-polling", "pyglet", "blender"}


class Ran:
    """What became of the scenarios of one toolkit."""

    def __init__(self, name: str, environment: dict[str, str]) -> None:
        wanted = [scenario.__name__ for scenario in SCENARIOS]
        command = [sys.executable, "-X", "dev", str(HERE / "loop_program.py"), name]
        if name == "blender":
            blender = shutil.which("blender")
            if blender is None:
                pytest.skip("blender is not on PATH")
            command = [blender, "--factory-startup", "--python-use-system-env", "--python-exit-code", "1"]
            command += ["--python", str(HERE / "loop_program.py"), "--", name]
        process = subprocess.Popen(
            [*command, *wanted, "ends_with_system_exit"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            env={**os.environ, **environment},
        )
        try:
            self.output = process.communicate(timeout=LIMIT)[0]
        except subprocess.TimeoutExpired:
            process.kill()
            self.output = process.communicate()[0] + f"not within {LIMIT} s"
        self.status = process.returncode
        lines = [line for line in self.output.splitlines() if line.startswith('["')]
        self.results: dict[str, str] = dict(json.loads(line) for line in lines)


@pytest.fixture(scope="module")
def run() -> Iterator[Callable[[str], Ran]]:
    ran: dict[str, Ran] = {}
    screen: list[Display] = []
    with ExitStack() as stack:

        def run(name: str) -> Ran:
            if name not in ran:
                environment = {}
                if name in DISPLAYED:
                    screen[:] = screen or [stack.enter_context(display())]
                    environment["DISPLAY"] = screen[0].name
                if name == "blender":  # has a Python of its own
                    environment["PYTHONPATH"] = os.pathsep.join([str(HERE), str(PACKAGE), *sys.path])
                ran[name] = Ran(name, environment)
            if "" in ran[name].results:
                pytest.skip(ran[name].results[""])
            return ran[name]

        yield run


@pytest.mark.parametrize("scenario", [scenario.__name__ for scenario in SCENARIOS])
@pytest.mark.parametrize("name", TOOLKITS)
def test_adapter(run: Callable[[str], Ran], name: str, scenario: str) -> None:
    ran = run(name)
    assert scenario in ran.results, ran.output
    result = ran.results[scenario]
    if result.startswith("skipped: "):
        pytest.skip(result)
    assert result == "ok", result


@pytest.mark.parametrize("name", TOOLKITS)
def test_system_exit_in_a_callback_ends_the_program(run: Callable[[str], Ran], name: str) -> None:
    ran = run(name)
    assert ran.status == EXIT, ran.output


def test_no_adapter_is_imported_unless_asked_for() -> None:
    code = "import sys, pyhv, pyhv.loops; print([name for name in sys.modules if name.startswith('pyhv.loops.')])"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert eval(told) == ["pyhv.loops._attachment", "pyhv.loops._wait"]
