"""The table of what fewer bits do to pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.quantization import CALIBRATION, HEADER, HELD_OUT, OUTPUT, Bundle
from moddit.benchmark.table import markdown
from moddit.manifest import Component, FileInfo

RESULTS = Path(__file__).parents[2] / "docs" / "results.md"


def test_the_results_quote_the_table() -> None:
    assert OUTPUT.read_text(encoding="utf-8") in RESULTS.read_text(encoding="utf-8")


def test_pictures_are_compared_that_nothing_was_measured_with() -> None:
    assert not set(HELD_OUT) & set(CALIBRATION)


def test_a_row() -> None:
    component = Component((FileInfo("a", 1_500_000, "0" * 64), FileInfo("b", 500_000, "0" * 64)), "float16", 4_000_000)
    components = {"transformer": component, "text_encoder": component}
    exact = np.zeros((2, 4, 4, 3), np.float32)
    worse = exact.copy()
    worse[0] = 0.1
    row = Bundle("4 bits", components, worse).row(exact)
    assert row == ("4 bits", "2.00", "2.00", "4.00", "23.0", "20.0")
    assert Bundle("float16", components, exact).row(exact)[-2:] == ("equal", "equal")
    assert len(list(markdown([HEADER, row]))) == 3
