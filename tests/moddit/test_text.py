"""Text of files is shown, never obeyed."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moddit.text import printable, printable_lines


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("shapes – tiny, 東京 é 🙂 👩‍🚀 עברית", "shapes – tiny, 東京 é 🙂 👩‍🚀 עברית"),
        ("a b\\n", "a b\\n"),
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        ("a\nerror: b\r\tc", r"a\nerror: b\r\tc"),
        ("\x9b31m\x7f\x00", r"\x9b31m\x7f\x00"),
        ("a\u2028b\u2029c", r"a\u2028b\u2029c"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("caf\udce9", r"caf\udce9"),
    ],
)
def test_escapes_what_a_terminal_obeys(text: str, wanted: str) -> None:
    assert printable(text) == wanted


def test_lines_of_a_message_stay() -> None:
    assert printable_lines("a\x1b\n  b\rc\n") == "a\\x1b\n  b\\rc\n"


@given(st.text())
def test_leaves_no_control(text: str) -> None:
    shown = printable(text)
    assert all(unicodedata.category(character) not in ("Cc", "Zl", "Zp", "Cs") for character in shown)
    assert len(shown.splitlines()) <= 1
    assert printable(shown) == shown
