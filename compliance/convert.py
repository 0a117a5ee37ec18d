"""Makes a Python 3 package of the suite's Python 2 sources: python convert.py SOURCE DESTINATION

`setup.sh` runs it. Three mechanical steps, and not one case is rewritten:

1. Every source file is reread as Latin-1, so that an octet of a string literal becomes one character (see octets.py).
2. lib2to3 brings the syntax up to date.
3. The few edits of EDITS, each with the number of places that it has to find: another version of the suite is noticed.

Where the suite meets autobahn, in fuzzing.py, nothing is edited: suite.py derives from those classes.
"""

from __future__ import annotations

import importlib
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

#: What is converted. The rest (WAMP, web pages, command line) is left out.
PARTS = ("_version.py", "caseset.py", "fuzzing.py", "case", "testdata")

#: Modules in the place of the suite's own: a package that imports nothing, and the style sheets of HTML reports, which
#: fuzzing.py imports by name and nobody makes here.
REPLACED = {
    "__init__.py": "from ._version import __version__ as version\n",
    "report.py": 'CSS_COMMON = CSS_DETAIL_REPORT = CSS_MASTER_REPORT = JS_MASTER_REPORT = ""\n',
}

HELPERS = "from autobahntestsuite.octets import binascii, octets\n"


class Edit(NamedTuple):
    """One replacement, after lib2to3."""

    files: str
    old: str
    new: str
    places: int


EDITS = (
    # `object` before a class that derives from it has no method resolution order.
    Edit("case/*.py", "(object, Case, )", "(Case, )", 6),
    # Octets, where a case looks at them with another module's eyes.
    Edit("case/*.py", "import binascii\n", HELPERS, 13),
    Edit("case/case6_x_x.py", "v.validate(vss[:i])", "v.validate(octets(vss[:i]))", 1),
    Edit("case/case12_x_x.py", "hashlib, binascii\n", "hashlib\n" + HELPERS, 1),
    Edit(
        "case/case12_x_x.py",
        "def onMessage(self, msg, binary):\n",
        "def onMessage(self, msg, binary):\n   msg = octets(msg)\n",
        1,
    ),
    Edit("case/case.py", "import pickle\n", "from autobahntestsuite.octets import same\n", 1),
    Edit("case/case.py", "pickle.dumps(obj1) == pickle.dumps(obj2)", "same(obj1, obj2)", 1),
    # A number of frames.
    Edit("case/case10_1_1.py", "len(self.payload) / self", "len(self.payload) // self", 1),
    # Not in the suite's list of cases, and written for an interface of zope that is gone.
    Edit("case/__init__.py", "from .case9_9_1 import *\n", "", 1),
)
UNUSED = ("case/case9_9_1.py",)


def refactoring_tool() -> Any:
    """lib2to3 with all its usual fixers, from the standard library or, since 3.13, from fissix."""
    package = "lib2to3" if sys.version_info < (3, 13) else "fissix"
    refactor: Any = importlib.import_module(f"{package}.refactor")
    return refactor.RefactoringTool(refactor.get_fixers_from_package(f"{package}.fixes"))


def copy(source: Path, destination: Path) -> None:
    """What is wanted of the suite, and what stands in for the rest; lib2to3 looks which modules are neighbours."""
    shutil.rmtree(destination, ignore_errors=True)
    destination.mkdir(parents=True)
    for name in PARTS:
        part = source / name
        if part.is_dir():
            shutil.copytree(part, destination / name)
        else:
            shutil.copy(part, destination / name)
    for name, text in REPLACED.items():
        (destination / name).write_text(text, encoding="utf-8")


def translate(destination: Path) -> None:
    """Latin-1 to UTF-8, Python 2 to Python 3."""
    tool = refactoring_tool()
    for file in sorted(destination.rglob("*.py")):
        text = file.read_text(encoding="latin-1")
        # lib2to3 wants a newline at the end.
        file.write_text(str(tool.refactor_string(text.rstrip("\n") + "\n", str(file))), encoding="utf-8")


def edit(destination: Path) -> None:
    """Applies EDITS and removes UNUSED; ends the program where one finds more or less than it should."""
    for name in UNUSED:
        (destination / name).unlink()
    for change in EDITS:
        found = 0
        for file in sorted(destination.glob(change.files)):
            text = file.read_text(encoding="utf-8")
            if change.old in text:
                found += text.count(change.old)
                file.write_text(text.replace(change.old, change.new), encoding="utf-8")
        if found != change.places:
            sys.exit(
                f"convert.py: {change.old!r} is in {found} places of {change.files}, not in {change.places}: "
                "is it another version of the suite?"
            )


def main() -> None:
    """Converts the package SOURCE into the package DESTINATION, which is made anew."""
    source, destination = map(Path, sys.argv[1:3])
    copy(source, destination)
    translate(destination)
    edit(destination)
    shutil.copy(Path(__file__).with_name("octets.py"), destination / "octets.py")


if __name__ == "__main__":
    main()
