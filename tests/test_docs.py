"""The programs in docs/ run and print what the pages say.

The blocks of a page that begin with "```python run" are one program; those that begin with "```text output" are what
it prints.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"

BLOCK = re.compile(r"^```(?P<kind>[^\n`]*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)
LIMIT = 60.0  # seconds for one page


def blocks(page: str, kind: str) -> list[re.Match[str]]:
    return [block for block in BLOCK.finditer(page) if block["kind"] == kind]


def program(page: str) -> str:
    """The page's program, each line with the number that it has on the page, so that a traceback leads there."""
    lines = [""] * (page.count("\n") + 1)
    for block in blocks(page, "python run"):
        first = page.count("\n", 0, block.start("text"))
        for number, line in enumerate(block["text"].splitlines(), first):
            lines[number] = line
    return "\n".join(lines) + "\n"


PAGES = [path for path in sorted(DOCS.rglob("*.md")) if blocks(path.read_text(encoding="utf-8"), "python run")]


def test_every_tutorial_has_a_program() -> None:
    tutorials = sorted((DOCS / "tutorial").glob("hv-*.md"))
    assert [path.name[:5] for path in tutorials] == [f"hv-0{number}" for number in range(1, 9)]
    assert set(tutorials) <= set(PAGES)


@pytest.mark.usefixtures("no_proxy")
@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(DOCS).as_posix())
def test_page(path: Path, tmp_path: Path) -> None:
    page = path.read_text(encoding="utf-8")
    script = tmp_path / f"{path.stem}.py"
    script.write_text(program(page), encoding="utf-8")
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
    assert done.stdout == "".join(block["text"] for block in blocks(page, "text output"))


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
