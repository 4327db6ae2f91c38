"""The bounds of the Swift package are those of the Python core."""

from __future__ import annotations

from scripts.swift_bounds import PATH, make_bounds


def test_the_bounds_of_swift_are_not_stale() -> None:
    assert PATH.read_text(encoding="utf-8") == make_bounds(), "run `make golden`"
