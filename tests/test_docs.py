"""The programs in docs/ run and print what the pages say.

The blocks of a page that begin with "```python run" are one program; those that begin with "```text output" are what
it prints. With a name, "```python run client", the blocks of that name are a program of their own, and what it prints
follows it. "```python compiled" is a piece of a program, or one for a library that is not installed here: it is
compiled.
"""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pyhv

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"

BLOCK = re.compile(r"^```(?P<kind>[^\n`]*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)
LIMIT = 60.0  # seconds for one page


def blocks(page: str, kind: str) -> list[re.Match[str]]:
    return [block for block in BLOCK.finditer(page) if block["kind"] == kind]


def program(page: str, kind: str) -> str:
    """A program of the page, each line with the number that it has there, so that a traceback leads there."""
    lines = [""] * (page.count("\n") + 1)
    for block in blocks(page, kind):
        first = page.count("\n", 0, block.start("text"))
        for number, line in enumerate(block["text"].splitlines(), first):
            lines[number] = line
    return "\n".join(lines) + "\n"


def output(page: str, kind: str) -> str:
    """What the program prints: the blocks of output behind its own, up to another program's."""
    printed, running = "", ""
    for block in BLOCK.finditer(page):
        if block["kind"].startswith("python run"):
            running = block["kind"]
        elif block["kind"] == "text output" and running == kind:
            printed += block["text"]
    return printed


def programs() -> list[tuple[Path, str]]:
    """The page and the kind of the blocks, for each program."""
    found: dict[tuple[Path, str], None] = {}
    for path in sorted(DOCS.rglob("*.md")):
        for block in BLOCK.finditer(path.read_text(encoding="utf-8")):
            if re.fullmatch(r"python run( [\w-]+)?", block["kind"]):
                found[path, block["kind"]] = None
    return list(found)


PROGRAMS = programs()


def test_every_tutorial_has_a_program() -> None:
    tutorials = sorted((DOCS / "tutorial").glob("hv-*.md"))
    assert [path.name[:5] for path in tutorials] == [f"hv-0{number}" for number in range(1, 9)]
    assert set(tutorials) <= {path for path, _ in PROGRAMS}


@pytest.mark.usefixtures("no_proxy")
@pytest.mark.parametrize(
    ("path", "kind"), PROGRAMS, ids=lambda part: part.relative_to(DOCS).as_posix() if isinstance(part, Path) else part
)
def test_page(path: Path, kind: str, tmp_path: Path) -> None:
    page = path.read_text(encoding="utf-8")
    script = tmp_path / f"page-{path.stem}.py"  # not a name that it imports
    script.write_text(program(page, kind), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", str(script)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        cwd=tmp_path,
        timeout=LIMIT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert done.stdout == output(page, kind)


def test_every_block_of_python_is_run_or_compiled() -> None:
    ran = {(path, kind) for path, kind in PROGRAMS}
    for path in sorted(DOCS.rglob("*.md")):
        page = path.read_text(encoding="utf-8")
        for block in BLOCK.finditer(page):
            kind = block["kind"]
            # tests/test_docs_loops.py runs those of a loop.
            if not re.match(r"(python|py|pycon)\b", kind) or (path, kind) in ran or kind.startswith("python loop "):
                continue
            place = f"{path.relative_to(ROOT)}:{page.count(chr(10), 0, block.start()) + 1}"
            assert kind == "python compiled", f'{place} begins with "{kind}", which no test runs'
            compile(block["text"], place, "exec")


@pytest.mark.parametrize(
    "path",
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))],
    ids=lambda path: path.relative_to(ROOT).as_posix(),
)
def test_links_lead_somewhere(path: Path) -> None:
    page = BLOCK.sub("", path.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


def rendered(value: object) -> list[str]:
    """How a page may write a default."""
    if value is None:
        return ["off", "pages of the same host"]
    if isinstance(value, str):
        return [f'"{value}"', f"{value} with 1008", value]
    assert isinstance(value, int | float)
    sizes = [f"{value / unit:g} {name}" for name, unit in (("MiB", 1 << 20), ("KiB", 1 << 10)) if value % unit == 0]
    return [*sizes, f"{value:g} s", f"{value:,}"]


@pytest.mark.parametrize(
    "path",
    [ROOT / "SECURITY.md", DOCS / "guides/security.md", DOCS / "guides/back-pressure.md"],
    ids=lambda path: path.relative_to(ROOT).as_posix(),
)
def test_defaults_in_tables_are_those_of_start(path: Path) -> None:
    defaults = {
        name: parameter.default for name, parameter in inspect.signature(pyhv.HvWebServer.start).parameters.items()
    }
    checked = 0
    columns: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            columns = []
        elif not columns:
            columns = cells
        elif {"setting", "default"} <= set(columns) and not cells[0].startswith("-"):
            names = re.findall(r"`(\w+)`", cells[columns.index("setting")])
            stated = cells[columns.index("default")]
            for name in names:
                found = [text for text in rendered(defaults[name]) if stated.startswith(text)]
                assert found, f"{name}={defaults[name]!r}, and {path.name} says {stated!r}"
                stated = stated[len(found[0]) :].lstrip(", ")
                checked += 1
    assert checked >= 5
