"""What all commands of `pyhv` share: help, colours, escapes; and that `import pyhv` imports none of them."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyhv._cli.output import Output, state_folder
from pyhv._cli.text import hex_dump, is_json, pretty_json, printable, size, width
from support_cli import pyhv

COMMANDS = ["serve", "connect", "listen", "bench", "dev-cert"]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples_and_exit_statuses(command: str) -> None:
    done = pyhv(command, "--help", environment={"COLUMNS": "120"})
    assert done.returncode == 0
    assert f"usage: pyhv {command}" in done.stdout
    assert re.search(r"^examples?:", done.stdout, re.MULTILINE)
    assert f"pyhv {command} " in done.stdout.partition("example")[2]
    if command != "dev-cert":
        assert "exit status: " in done.stdout


def test_help_of_all() -> None:
    done = pyhv("--help")
    assert done.returncode == 0
    for command in COMMANDS:
        assert f"\n    {command} " in done.stdout
    assert "examples:" in done.stdout and "exit status:" in done.stdout
    assert re.fullmatch(r"pyhv \d+\.\d+\.\d+\n", pyhv("--version").stdout)


def test_the_script_is_the_same() -> None:
    script = Path(sys.executable).with_name("pyhv")
    done = subprocess.run([str(script), "serve", "--help"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0
    assert "usage: pyhv serve" in done.stdout


def test_importing_pyhv_imports_no_command_line() -> None:
    loaded = "[name for name in sys.modules if 'pyhv._cli' in name or name in ('argparse', 'termios')]"
    code = f"import sys, pyhv; print({loaded})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "[]\n"


def test_the_state_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    for value, folder in (
        ("/state", "/state/pyhv"),
        ("", "/home/me/.local/state/pyhv"),
        ("relative", "/home/me/.local/state/pyhv"),
    ):
        monkeypatch.setenv("XDG_STATE_HOME", value)
        assert state_folder() == Path(folder)
    monkeypatch.delenv("XDG_STATE_HOME")
    assert state_folder() == Path("/home/me/.local/state/pyhv")


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("environment", "choice", "colours"),
    [
        ({"TERM": "xterm"}, "auto", True),
        ({"TERM": "xterm", "NO_COLOR": ""}, "auto", True),
        ({"TERM": "xterm", "NO_COLOR": "0"}, "auto", False),
        ({"TERM": "dumb"}, "auto", False),
        ({}, "auto", False),
        ({"TERM": "xterm"}, "never", False),
        ({"TERM": "dumb", "NO_COLOR": "1"}, "always", True),
    ],
)
def test_when_there_are_colours(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], choice: str, colours: bool
) -> None:
    for name in ("TERM", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert Output(Screen(), choice).color == colours
    assert Output(io.StringIO(), choice).color == (choice == "always")


def test_output_without_a_stream() -> None:
    out = Output(None)
    out.line("to nobody")
    assert not out.color and not out.is_terminal


# Escapes


@given(st.text() | st.text(st.characters(codec=None, max_codepoint=0x2100)))
def test_nothing_printable_steers(text: str) -> None:
    shown = printable(text)
    assert "\n" not in shown
    for character in shown:
        assert character.isprintable() or width(character) >= 0
        assert not (ord(character) < 0x20 or 0x7F <= ord(character) < 0xA0)
        assert (
            character
            not in "\u061c\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff"
        )
        assert not 0xD800 <= ord(character) < 0xE000
    shown.encode()


def test_what_is_escaped_and_what_is_not() -> None:
    assert printable("a\x1b\x9b\n\t\u202e\U000e0041\ud800") == r"a\x1b\x9b\n\t\u202e\U000e0041\ud800"
    for fine in ("äöü", "日本語", "👩‍👩‍👧", "שלום", "नमस्ते", "e\u0301", "\u00a0", "a\\x1b"):
        assert printable(fine) == fine
    assert printable("a\r\nb\tc\rd", lines=True) == "a\nb   c\\rd"
    assert printable("\x1b", lambda text, style: f"<{style} {text}>") == r"<escape \x1b>"


# JSON

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(st.lists(VALUES) | st.dictionaries(st.text(), VALUES), st.booleans(), st.sampled_from([None, 1]))
def test_json_laid_out_is_the_same_json(value: object, ascii: bool, indent: int | None) -> None:
    text = json.dumps(value, ensure_ascii=ascii, indent=indent)
    assert is_json(text)
    shown = pretty_json(text)
    if printable(text, lines=True) == text:
        assert json.loads(shown) == value
        assert shown == json.dumps(value, ensure_ascii=ascii, indent=2)


def test_json_keeps_what_python_would_not() -> None:
    text = '{"a":1.50,"a":12345678901234567890123,"b":[],"c":{}}'
    assert pretty_json(text) == ('{\n  "a": 1.50,\n  "a": 12345678901234567890123,\n  "b": [],\n  "c": {}\n}')
    assert pretty_json('["\u202e\x7f"]') == '[\n  "\\u202e\\x7f"\n]'


@pytest.mark.parametrize("text", ["", "1", '"a"', "{", "{'a': 1}", "[1,]", "[" * 100_000, "[" + " " * (1 << 20) + "]"])
def test_what_is_not_laid_out(text: str) -> None:
    assert not is_json(text)


def test_deep_json_does_not_grow_out_of_bounds() -> None:
    deep = "[" * 500 + ",".join(["1"] * 20_000) + "]" * 500
    assert is_json(deep)
    assert len(pretty_json(deep)) < 20 * len(deep)


def test_hex_dumps() -> None:
    assert hex_dump(bytes(range(0x3A, 0x4B))) == [
        "00000000  3a 3b 3c 3d 3e 3f 40 41  42 43 44 45 46 47 48 49  |:;<=>?@ABCDEFGHI|",
        "00000010  4a                                                |J|",
    ]
    assert hex_dump(b"") == []
    assert len(hex_dump(bytes(1000), 32)) == 2


def test_sizes() -> None:
    assert [size(count) for count in (0, 1023, 1024, 1536, 5 << 20, 3 << 40)] == [
        "0 B", "1023 B", "1.0 KiB", "1.5 KiB", "5.0 MiB", "3072.0 GiB",
    ]  # fmt: skip


def test_the_names_of_the_modules_are_right() -> None:
    folder = Path(__file__).parent.parent / "python" / "pyhv" / "_cli"
    header = (folder / "__init__.py").read_text().partition('"""')[2].partition('"""')[0]
    modules = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    assert modules <= set(re.findall(r"`(\w+)`", header))
    assert os.sep not in header
