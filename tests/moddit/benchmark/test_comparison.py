"""Two records: what is slower beyond chance, and what cannot be compared."""

from __future__ import annotations

from dataclasses import replace

import pytest

from moddit.benchmark.comparison import compare
from moddit.benchmark.plausible import find_faults
from moddit.benchmark.record import BenchmarkRecord, Stage, Trial
from moddit.errors import ValueRangeError
from tests.moddit.benchmark.records import record

BEFORE = record({"dense": [[1.0], [1.05], [0.95], [1.02], [0.98]]})


def steps(factor: float) -> BenchmarkRecord:
    return record({"dense": [[factor * seconds] for seconds in (1.01, 1.04, 0.96, 1.0, 0.99)]})


def test_a_slowdown_beyond_chance() -> None:
    changes = {change.stage: change for change in compare(BEFORE, steps(1.3))}
    assert changes["step"].is_regression
    assert changes["step"].ratio.value == pytest.approx(1.3)
    assert not any(change.is_regression for name, change in changes.items() if name != "step")


def test_a_gain_and_noise() -> None:
    assert next(change for change in compare(BEFORE, steps(0.7)) if change.stage == "step").is_gain
    assert not any(change.is_regression or change.is_gain for change in compare(BEFORE, steps(1.01)))


def test_what_cannot_be_compared() -> None:
    other = replace(BEFORE, machine=replace(BEFORE.machine, chip="Apple M1"))
    with pytest.raises(ValueRangeError, match="of another machine, got Apple M3 Pro with 18 GB and Apple M1"):
        list(compare(BEFORE, other))
    larger = replace(BEFORE, arms=(replace(BEFORE.arms[0], height=1024),))
    with pytest.raises(ValueRangeError, match="no arm in common"):
        list(compare(BEFORE, larger))
    with pytest.raises(ValueRangeError, match="dense has 2 trials, want at least 3"):
        list(compare(BEFORE, record({"dense": [[1.0], [1.0]]})))


GOOD = replace(BEFORE, commit="0" * 40)


def with_stage(stage: Stage) -> BenchmarkRecord:
    trials = tuple(replace(trial, stages=(stage,)) for trial in GOOD.trials)
    return replace(GOOD, trials=trials)


@pytest.mark.parametrize(
    ("made", "fault"),
    [
        (replace(GOOD, commit=None), "commit is None"),
        (replace(GOOD, commit=f"{'0' * 40}-dirty"), "without changes"),
        (replace(GOOD, trials=GOOD.trials[:2]), "has 2 trials, want at least 3"),
        (with_stage(Stage("step", (1.0,), 10**12, None, None)), "more than the machine's memory"),
        (with_stage(Stage("step", (1e-6,), 10, None, None)), "TFLOP/s, want at most 200"),
        (replace(record({"dense": [[1.0], [9.0], [1.0], [9.0]]}), commit="0" * 40), "want a quiet machine"),
    ],
)
def test_a_record_that_cannot_be_true(made: BenchmarkRecord, fault: str) -> None:
    assert any(fault in found for found in find_faults(made))


def test_a_record_that_can_be_true() -> None:
    assert list(find_faults(GOOD)) == []
    assert isinstance(GOOD.trials[0], Trial)
