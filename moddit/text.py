"""Text that comes from files, for people to read on a terminal."""

from __future__ import annotations

import unicodedata
from typing import Final

# Controls, separators of lines, halves of characters; of those that format, what turns the direction.
_ESCAPED: Final = ("Cc", "Zl", "Zp", "Cs")
_TURNING: Final = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def printable(text: str) -> str:
    r"""Escape what a terminal obeys instead of showing it: a name with `\x1b[2J` or a newline shows just that.

    Returns:
        the same text if it has nothing of the kind, in any script; else with Python's escapes.
    """
    return "".join(
        character.encode("unicode_escape").decode("ascii")
        if unicodedata.category(character) in _ESCAPED or character in _TURNING
        else character
        for character in text
    )


def printable_lines(text: str) -> str:
    """As `printable`, of a message that may have several lines."""
    return "\n".join(map(printable, text.split("\n")))
