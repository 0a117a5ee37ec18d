"""What peers send, made fit for a terminal.

A terminal obeys what is written to it: escape sequences move the cursor, rename the window, some even type. So
nothing that a peer has sent is written to one before it went through `printable`.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable

__all__ = ["hex_dump", "is_json", "plain", "pretty_json", "printable", "size", "width"]

Paint = Callable[[str, str], str]

# Control characters (C0, C1, DEL), what changes the direction of text or is invisible, line and paragraph separators,
# surrogates. Zero-width joiners (U+200C, U+200D) stay: scripts and emoji need them, and they only join.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb"
    "\U0001d173-\U0001d17a\U000e0000-\U000e007f]"
)

_ESCAPES = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}

#: A text of more is shown as it is.
_MOST_JSON = 1 << 20  # characters
#: What is nested deeper stays in one line: indentation would multiply its size.
_DEEPEST = 40

_JSON = re.compile(r'"(?:[^"\\]|\\.)*"|[-+.\w]+|[\[\]{},:]', re.DOTALL)


def plain(text: str, _style: str) -> str:
    """A `Paint` without colours."""
    return text


def _escaped(character: str) -> str:
    known = _ESCAPES.get(character)
    if known is not None:
        return known
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def printable(text: str, paint: Paint = plain, *, lines: bool = False) -> str:
    """`text` with everything that could steer a terminal escaped, as `\\x1b` say.

    :param paint: marks the escapes, so that they can be told from such a text.
    :param lines: leaves line feeds as they are, and tabs as spaces.
    """

    def replaced(match: re.Match[str]) -> str:
        return paint(_escaped(match[0]), "escape")

    if not lines:
        return _UNSAFE.sub(replaced, text)
    text = text.replace("\r\n", "\n").expandtabs(4)
    return "\n".join(_UNSAFE.sub(replaced, line) for line in text.split("\n"))


def width(character: str) -> int:
    """Columns that a character takes in a terminal."""
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1


def is_json(text: str) -> bool:
    """Whether a text is an object or an array in JSON, of a size that is worth to be laid out."""
    if len(text) > _MOST_JSON or text.lstrip(" \t\r\n")[:1] not in ("{", "["):
        return False
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def pretty_json(text: str, paint: Paint = plain) -> str:
    """JSON, for which `is_json` was true, laid out in lines, ready for a terminal.

    Token by token: numbers keep their digits, and a name that is there twice stays there twice.
    """
    out: list[str] = []
    depth = 0

    def line() -> str:
        return "\n" + "  " * depth if depth <= _DEEPEST else " "

    tokens = _JSON.findall(text)
    for token, before, behind in zip(tokens, ["", *tokens], [*tokens[1:], ""], strict=False):
        if token in ("{", "["):
            depth += 1
            out.append(token if behind in ("}", "]") else token + line())
        elif token in ("}", "]"):
            depth -= 1
            out.append(token if before in ("{", "[") else line() + token)
        elif token == ",":
            out.append(token + line())
        elif token == ":":
            out.append(": ")
        elif token.startswith('"'):
            out.append(paint(printable(token), "key" if behind == ":" else "string"))
        else:
            out.append(paint(token, "number"))
    return "".join(out)


def hex_dump(data: bytes, limit: int | None = None) -> list[str]:
    """Lines of `00000000  48 69 0a  |Hi.|`.

    :param limit: shows so many bytes at most; the caller says what is missing.
    """
    shown = data if limit is None else data[:limit]
    lines = []
    for start in range(0, len(shown), 16):
        row = shown[start : start + 16]
        columns = " ".join(f"{byte:02x}" for byte in row[:8]).ljust(23) + "  "
        columns += " ".join(f"{byte:02x}" for byte in row[8:]).ljust(23)
        letters = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in row)
        lines.append(f"{start:08x}  {columns}  |{letters}|")
    return lines


def size(count: float) -> str:
    """A number of bytes for people: "512 B", "1.5 KiB"."""
    if count < 1024:
        return f"{count:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        count /= 1024
        if count < 1024 or unit == "GiB":
            break
    return f"{count:.1f} {unit}"
