"""The programs of docs/loops.md, each in its toolkit, against an echo server."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import EchoServer, ServerThread, port_of, serving
from support_display import display

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "loops.md").read_text(encoding="utf-8")
PROGRAMS = dict(re.findall(r"^```python loop (\w+)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE))
LIMIT = 60.0  # seconds for one program

MODULES = {"qt": "PySide6", "script": "pyhv", "glib": "gi"}
PRINTED = {"script": "hello\nhello\n", "blender": "Scene 1.0\n"}
ENVIRONMENT = {
    "QT_QPA_PLATFORM": "offscreen",
    "SDL_AUDIODRIVER": "dummy",
    "PYGAME_HIDE_SUPPORT_PROMPT": "1",
    "KIVY_NO_ARGS": "1",
    "KIVY_NO_FILELOG": "1",
    "KIVY_NO_CONFIG": "1",
}

# See GLib in loop_toolkits.py.
DEBIAN = "import sys; sys.path.append('/usr/lib/python3/dist-packages'); "
GLIB = DEBIAN + "import runpy; runpy.run_path(sys.argv[1], run_name='__main__')"


@pytest.fixture(scope="module")
def screen() -> Iterator[str]:
    with display() as running:
        yield running.name


@pytest.fixture
def peer() -> Iterator[ServerThread]:
    with serving(EchoServer()) as running:
        yield running


def test_every_adapter_has_a_program() -> None:
    adapters = {path.stem for path in (ROOT / "python" / "pyhv" / "loops").glob("[a-z]*.py")} - {"ipython"}
    assert set(PROGRAMS) == adapters | {"script"}


@pytest.mark.parametrize("name", PROGRAMS)
def test_program(name: str, peer: ServerThread, screen: str, tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(PROGRAMS[name].replace(":9090/", f":{port_of(peer.server)}/"), encoding="utf-8")
    environment = {**os.environ, **ENVIRONMENT, "DISPLAY": screen}
    if name != "pygame":
        environment.pop("SDL_VIDEODRIVER", None)  # other tests of this process may have set it
    command = [sys.executable, str(script)]
    if name == "blender":
        blender = shutil.which("blender")
        if blender is None:
            pytest.skip("blender is not on PATH")
        command = [blender, "--factory-startup", "--python-use-system-env", "--python-exit-code", "1", "--python"]
        command.append(str(script))
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "python"), *sys.path])
    else:
        if name == "glib":
            command[1:1] = ["-c", GLIB]
        module = MODULES.get(name, name)
        look = f"{DEBIAN if name == 'glib' else ''}import {module}"
        found = subprocess.run([sys.executable, "-c", look], env=environment, capture_output=True)
        if found.returncode:
            pytest.skip(f"{module} is not installed")
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=environment, timeout=LIMIT)
    if name == "kivy" and "Unable to find any valuable Window provider" in done.stderr:
        pytest.skip("Kivy cannot open a window here: no OpenGL")
    assert done.returncode == 0, done.stdout + done.stderr
    printed = PRINTED.get(name, "hello\n")
    if name == "blender":  # which has something to say itself
        assert printed in done.stdout, done.stdout + done.stderr
    else:
        assert (done.stdout, done.stderr if name != "kivy" else "") == (printed, "")
