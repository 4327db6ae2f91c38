"""What fine-tuning takes is measured in arms that train, and estimated from what they hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.finetuning import ARMS, Estimate, Measurement, estimate, format_estimates, format_measurements, measure
from torch_moddit.settings import Train

FILES = ("finetuning.json", "finetuning-estimate.json")


@pytest.mark.parametrize("arm", ["diffusers", "lora"])
def test_an_arm_trains(arm: str) -> None:
    found = measure(arm, layers=1, size=32, steps=1)
    assert len(found.step_seconds) == 1
    assert found.peak_bytes > 4 * found.parameters
    assert (found.trained == found.parameters) is (arm == "diffusers")


def test_what_is_not_trained_needs_less() -> None:
    whole, lora = (estimate(train, 32) for train in (Train.ALL, Train.LORA))
    assert whole.states == 4 * 4 * (610_856_096 + 28 * 1152)  # with routers
    assert lora.teacher == 0
    assert lora.fixed < 0.6 * whole.fixed
    assert 0 < whole.batch < lora.batch
    assert len(format_estimates([whole, lora]).splitlines()) == 4


def test_the_page_has_what_was_measured() -> None:
    root = Path(__file__).parents[2]
    page = (root / "docs/finetuning.md").read_text(encoding="utf-8")
    found, computed = (json.loads((root / "benchmarks" / name).read_text()) for name in FILES)
    measured = [Measurement(**row) for row in found["measurements"]]
    assert format_measurements(measured) in page
    assert format_estimates([Estimate(**row) for row in computed["estimates"]]) in page
    peaks = {row.arm: row.peak_bytes for row in measured}
    assert peaks["lora"] < 0.6 * peaks["all"]


def test_the_table_compares_with_the_first_and_with_all() -> None:
    rows = [Measurement(arm, [9.0, 2.0 * (place + 1)], 10**9 * (place + 1), 1, 1) for place, arm in enumerate(ARMS)]
    lines = format_measurements(rows).splitlines()[2:]
    assert lines[0] == "| diffusers | 0.0 | 2.0 | 1.00 | 1.00 | 0.50 |"
    assert lines[2].endswith("| 6.0 | 3.00 | 3.00 | 1.50 |")


def test_no_batch_fits_where_the_weights_do_not() -> None:
    assert Estimate("all", 30 * 10**9, 0, 0, 1, 10**6).batch == 0
