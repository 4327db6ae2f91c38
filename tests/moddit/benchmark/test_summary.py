"""What follows from samples, with samples whose answer is known."""

from __future__ import annotations

from dataclasses import replace

import pytest

from moddit.benchmark.summary import Spread, peak_bytes, picture_seconds, ratio, routing_gains, stage_medians
from moddit.benchmark.table import write_table
from tests.moddit.benchmark.records import record, stages


def test_a_spread_is_the_median_and_the_quartiles() -> None:
    assert Spread.of([1.0, 2.0, 3.0, 4.0, 100.0]) == Spread(3.0, 2.0, 4.0, 5)


def test_trials_count_alike_however_many_samples_they_have() -> None:
    made = record({"dense": [[1.0] * 9, [3.0]]})
    assert stage_medians(made, 0, "step") == [1.0, 3.0]


def test_a_picture_is_everything_but_loading() -> None:
    made = record({"dense": [[1.0, 1.0, 1.0]]})
    assert picture_seconds(made, 0) == pytest.approx(0.5 + 0.25 + 2.0 + 3 * 1.0 + 1.0)


def test_a_picture_has_the_steps_that_ran_and_the_table_says_how_many_in_full() -> None:
    made = record({"dense": [[1.0]] * 2})
    trials = tuple(replace(trial, stages=stages([1.0], cached_step=[0.25, 0.25])) for trial in made.trials)
    made = replace(made, trials=trials)
    assert picture_seconds(made, 0) == pytest.approx(0.5 + 0.25 + 2.0 + 1.0 + 2 * 0.25 + 1.0)
    text = write_table(made)
    assert "cached step s" in text
    assert "| 2 of 4 steps |" in text
    assert "in full" not in write_table(record({"dense": [[1.0] * 3]}))


def test_a_peak_is_the_largest_of_all_stages() -> None:
    assert peak_bytes(record({"dense": [[1.0]]}), 0, "footprint_peak_bytes") == 3 * 10**9


def test_drift_that_hits_a_pair_alike_cancels() -> None:
    """The machine becomes three times as slow; in every pair, dense takes twice as long as routed."""
    drift = (1.0, 1.5, 2.0, 3.0)
    found = ratio([2 * factor for factor in drift], list(drift))
    assert (found.value, found.low, found.high) == pytest.approx((2.0, 2.0, 2.0))


def test_what_routing_gains_and_costs() -> None:
    steps = {"dense": [[2.0], [2.2]], "oracle": [[1.0], [1.1]], "routed": [[1.25], [1.375]]}
    (gain,) = routing_gains(record(steps, flops={"dense": 4e12, "oracle": 2e12, "routed": 2e12}))
    assert gain.seconds.value == pytest.approx(1.6)
    assert gain.flops == 2.0
    assert gain.efficiency.value == pytest.approx(0.8)
    assert gain.cost is not None
    assert (gain.cost.value, gain.cost.low, gain.cost.high) == pytest.approx((0.2, 0.2, 0.2))


def test_every_routed_arm_is_compared_and_one_without_an_oracle_has_no_cost() -> None:
    steps = {"dense": [[2.0]], "oracle": [[1.0]], "routed": [[1.25]], "routed 0.8": [[1.6]]}
    one, other = routing_gains(record(steps))
    assert (one.arm.name, other.arm.name) == ("routed", "routed 0.8")
    assert (one.seconds.value, other.seconds.value) == pytest.approx((1.6, 1.25))
    assert one.cost is not None
    assert other.cost is None


def test_a_dense_model_has_nothing_to_compare() -> None:
    assert not list(routing_gains(record({"dense": [[1.0]]})))
    assert "efficiency" not in write_table(record({"dense": [[1.0]]}))


def test_steps_without_counted_flops_are_not_compared() -> None:
    made = record({"dense": [[1.0]], "routed": [[0.5]]})
    for number in range(2):
        arms = list(made.arms)
        arms[number] = replace(arms[number], step_flops=None)
        assert not list(routing_gains(replace(made, arms=tuple(arms))))


def test_the_table_tells_what_was_measured() -> None:
    table = write_table(record({"dense": [[2.0]], "oracle": [[1.0]], "routed": [[1.25]]}))
    assert "Apple M3 Pro, 18 GPU cores, 18 GB, macOS 26.1; mlx 0.32.4." in table
    assert "| 512x512 | routed | mlx gpu float16 | 1 (1-1)" in table
    assert "+20.0%" in table


def test_a_table_has_the_columns_of_what_was_measured() -> None:
    head = write_table(record({"dense": [[2.0] * 3]})).split("\n\n")[1].splitlines()[0]
    names = ["size", "arm", "on", "load s", "encode s", "prepare s", "first step s", "step s", "decode s"]
    assert [cell.strip() for cell in head.strip("|").split("|")] == [
        *names,
        "steps/s",
        "s/picture",
        "peak GB",
        "process GB",
    ]
