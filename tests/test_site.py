"""The documentation is built without a warning, and its reference has everything that is public, once."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

import pyhv

bs4 = pytest.importorskip("bs4")
pytest.importorskip("sphinx")

ROOT = Path(__file__).parent.parent
LIMIT = 100.0  # seconds


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the pages."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "docs", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8", timeout=LIMIT)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def entries(site: Path) -> dict[str, list[Any]]:
    """The entries of the reference by name, `pyhv.HvWebServer.tick` say: each the element with signature and text."""
    found: dict[str, list[Any]] = {}
    for path in sorted((site / "reference").glob("*.html")):
        page = bs4.BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
        for signature in page.select("dt.sig[id]"):
            found.setdefault(signature["id"], []).append(signature.parent)
    return found


def public() -> list[str]:
    """Every public name, and every public member of a class that is not Python's own."""
    names = []
    for name in pyhv.__all__:
        names.append(f"pyhv.{name}")
        value = getattr(pyhv, name)
        if not inspect.isclass(value):
            continue
        members: dict[str, None] = {}
        for base in value.__mro__:
            if base.__module__.partition(".")[0] == "pyhv":
                members.update(dict.fromkeys([*vars(base), *getattr(base, "__annotations__", {})]))
        names += [f"pyhv.{name}.{member}" for member in members if not member.startswith("_")]
    return names


def test_the_public_names_are_found() -> None:
    assert {
        "pyhv.get",
        "pyhv.HvWebServer.tick",
        "pyhv.HvWebServer.on_ws_open",
        "pyhv.HvWebServer.static",
        "pyhv.WebSocketChannel.send",
        "pyhv.Response.status",
    } <= set(public())


def test_the_reference_has_every_public_name_once(entries: dict[str, list[Any]]) -> None:
    wanted = public()
    missing = [name for name in wanted if name not in entries]
    assert not missing, "docs/reference has no place for them"
    assert not [name for name, count in Counter(wanted).items() if len(entries[name]) != count]


def test_every_entry_says_something(entries: dict[str, list[Any]]) -> None:
    told_by_class = tuple(
        f"pyhv.{name}." for name in ("WsOpcode", "Reconnect", "ServerStats", "ClientStats", "TickTimes")
    )
    # The fields of a dataclass are the parameters that its own text describes.
    told_above = {name for name in entries if name.startswith(told_by_class)}
    silent = [name for name, (entry,) in entries.items() if not entry.find("dd").get_text(strip=True)]
    assert set(silent) <= told_above


@pytest.mark.parametrize(
    ("name", "signature"),
    [
        (
            "pyhv.HvWebServer.broadcast",
            "(msg: str | Buffer, exclude: WebSocketChannel | None = None, *, key: str | bytes | None = None) -> None",
        ),
        (
            "pyhv.WebSocketChannel.send",
            "(msg: str | Buffer, opcode: int | None = None, fin: bool = True, *, "
            "key: str | bytes | None = None) -> bool",
        ),
        ("pyhv.HvWebServer.pending", ": int"),
        ("pyhv.safe_filename", "(name: str) -> str"),
    ],
)
def test_signatures_are_typed(entries: dict[str, list[Any]], name: str, signature: str) -> None:
    (entry,) = entries[name]
    text = " ".join(entry.find("dt").get_text().replace("→", "->").split())
    assert signature in text.replace("( ", "(").replace(", )", ")")  # a long one has a line for each argument


def test_links_of_the_site_lead_somewhere(site: Path) -> None:
    """Of all pages, to pages and to places in them."""
    pages = {path: bs4.BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser") for path in site.rglob("*.html")}
    places = {path: {tag["id"] for tag in page.find_all(id=True)} for path, page in pages.items()}
    checked = 0
    for path, page in pages.items():
        for link in page.select("a[href], link[href]"):
            target = urlsplit(link["href"])
            if target.scheme or target.netloc:
                continue
            file = (path.parent / unquote(target.path)).resolve() if target.path else path
            assert file.is_file(), f"{path.relative_to(site)} links to {link['href']}"
            if target.fragment and file in places:
                assert unquote(target.fragment) in places[file], f"{path.relative_to(site)} links to {link['href']}"
            checked += 1
    assert checked > 500


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    """The pages work without a network, and tell nobody who reads them."""
    for path in site.rglob("*.html"):
        page = bs4.BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
        for tag in page.select("script[src], link[rel=stylesheet], img[src]"):
            assert not urlsplit(tag.get("src") or tag["href"]).netloc, f"{path.relative_to(site)}: {tag}"
