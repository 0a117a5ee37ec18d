"""Octets as characters: what the converted suite is written in. `convert.py` puts a copy of this module into it.

In the suite a string is a Python 2 `str`, a string of octets. After the conversion it is a Python 3 `str` of the
characters U+0000 to U+00FF, one for each octet. Bytes exist only outside the cases: in autobahn and in hashes.
"""

from __future__ import annotations

import binascii as _binascii
from typing import Any


def octets(text: str | bytes) -> bytes:
    """The octets that `text` stands for; bytes stay what they are."""
    return text.encode("latin-1") if isinstance(text, str) else bytes(text)


def characters(data: str | bytes) -> str:
    """One character for each octet of `data`; the reverse of `octets`."""
    return data if isinstance(data, str) else bytes(data).decode("latin-1")


def same(one: Any, other: Any) -> bool:
    """Whether two lists of events are equal: same values of same types, so that 1 is not True.

    The suite compares pickles, which in Python 3 also differ by the identity of equal objects.
    """
    if type(one) is not type(other):
        return False
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


class binascii:  # noqa: N801
    """The part of the module `binascii` that the suite uses, from characters to characters."""

    @staticmethod
    def b2a_hex(text: str | bytes) -> str:
        """Two hexadecimal digits for each octet."""
        return _binascii.b2a_hex(octets(text)).decode("ascii")

    hexlify = b2a_hex
