"""Keep ratios: bins, projection, rounding to the target."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moddit.errors import ShapeError, ValueRangeError
from moddit.routing import RoutingPlan, snap
from torch_moddit.movers import Projection
from torch_moddit.ratios import KeepRatios, upper_bin
from torch_moddit.settings import RATIO_PATH, FinetuneConfig
from torch_moddit.targets import project, round_to_budget

RATIOS = st.floats(0.1, 1.0)
TABLES = st.integers(1, 4).flatmap(
    lambda regions: st.lists(st.lists(RATIOS, min_size=regions, max_size=regions), min_size=1, max_size=8)
)


def ratios_of(table: list[list[float]]) -> KeepRatios:
    ratios = KeepRatios(len(table), len(table[0]))
    with torch.no_grad():
        ratios.values.copy_(torch.tensor(table))
    return ratios


def test_start_whole() -> None:
    ratios = KeepRatios(3, 4)
    assert ratios.plan() == RoutingPlan.uniform(3, 4, 10)
    assert ratios.mean == 1.0


@given(RATIOS)
def test_bins_around_a_ratio_differ_and_enclose_it(ratio: float) -> None:
    ratios = ratios_of([[ratio]])
    lower, upper = ratios.bins(0, [0, 0])
    assert upper.tenths == lower.tenths + 1
    assert lower.weight is not None
    assert upper.weight is not None
    low, high = lower.weight.detach(), upper.weight.detach()
    torch.testing.assert_close((lower.tenths * low + upper.tenths * high) / 10, torch.tensor([ratio, ratio]))
    torch.testing.assert_close(low + high, torch.ones(2))
    assert float(torch.minimum(low, high).min()) > -1e-5


def test_every_sample_is_mixed_from_its_own_region() -> None:
    ratios = ratios_of([[0.95, 0.85, 0.3]])
    uses = ratios.bins(0, [0, 1, 2, 0])
    shares = torch.zeros(11, 4)
    for use in uses:
        assert use.rows is not None
        assert use.weight is not None
        shares[use.tenths].index_add_(0, use.rows, use.weight.detach())
    tenths = (torch.arange(11.0)[:, None] * shares).sum(dim=0) / 10
    torch.testing.assert_close(tenths, torch.tensor([0.95, 0.85, 0.3, 0.95]))
    assert len({use.tenths for use in uses}) == len(uses)  # 9/10 is run once, for both regions that need it


def groups_of(table: Sequence[Sequence[Any]], targets: list[float]) -> list[list[Any]]:
    """What is held to each target: all, or the columns."""
    if len(targets) == 1:
        return [list(itertools.chain.from_iterable(table))]
    return [list(column) for column in zip(*table, strict=True)]


# A table of ratios, and one target or one for each region.
TARGETED = TABLES.flatmap(
    lambda table: st.tuples(
        st.just(table), st.sampled_from([1, len(table[0])]).flatmap(lambda n: st.lists(RATIOS, min_size=n, max_size=n))
    )
)


@given(TARGETED)
def test_rounding_meets_each_target_from_below_and_keeps_the_order(
    case: tuple[list[list[float]], list[float]],
) -> None:
    table, targets = case
    tenths = round_to_budget(table, targets)
    assert [len(row) for row in tenths] == [len(row) for row in table]
    for ratios, found, target in zip(groups_of(table, targets), groups_of(tenths, targets), targets, strict=True):
        assert all(1 <= value <= 10 for value in found)
        mean = sum(found) / (10 * len(found))
        assert target - 0.1 / len(found) - 1e-6 < mean <= target + 1e-6
        pairs = itertools.product(zip(ratios, found, strict=True), repeat=2)
        assert all(mine <= theirs for (ratio, mine), (other, theirs) in pairs if ratio < other - 1e-9)


@given(TARGETED)
def test_projection_meets_each_target(case: tuple[list[list[float]], list[float]]) -> None:
    table, targets = case
    for values, target in zip(groups_of(project(table, targets), targets), targets, strict=True):
        assert sum(values) / len(values) == pytest.approx(target)
        assert all(0.1 <= value <= 1.0 for value in values)


def test_a_region_without_a_target_is_refused() -> None:
    with pytest.raises(ShapeError, match="got 2 targets, want one, or one for each of 3 regions"):
        project([[0.5, 0.5, 0.5]], [0.5, 0.6])


def test_rounding_keeps_bins_that_meet_the_target() -> None:
    assert round_to_budget([[1.0, 0.3], [0.2, 0.5]], [0.5]) == [[10, 3], [2, 5]]


@given(TARGETED)
def test_frozen_ratios_snap_to_the_plan(case: tuple[list[list[float]], list[float]]) -> None:
    table, targets = case
    ratios = ratios_of(table)
    Projection(ratios, targets).freeze()
    plan = ratios.plan()
    snapped = tuple(tuple(snap(value) for value in row) for row in ratios.values.detach().tolist())
    assert snapped == plan.keep_tenths
    assert ratios.mean == plan.mean_keep_ratio <= sum(targets) / len(targets) + 1e-6


def test_frozen_ratios_run_at_one_bin() -> None:
    ratios = ratios_of([[0.5, 0.9]])
    ratios.freeze([[5, 9]])
    assert [(use.tenths, use.weight) for use in ratios.bins(0, [0, 0])] == [(5, None)]
    assert [use.tenths for use in ratios.bins(0, [1, 0, 1])] == [5, 9]


def test_goal_falls_to_the_target() -> None:
    config = FinetuneConfig(Path("out"), steps=8, fall_share=0.5, target=0.5)
    goals = [config.goals(step) for step in range(7)]
    assert goals == [(goal,) for goal in (1.0, 0.875, 0.75, 0.625, 0.5, 0.5, 0.5)]
    config = replace(config, target=(1.0, 0.5), regions=2)
    assert [config.goals(step) for step in (0, 2, 4)] == [(1.0, 1.0), (1.0, 0.75), (1.0, 0.5)]


@pytest.mark.parametrize("steps", [300, 2000, 10**6])
@pytest.mark.parametrize("shares", [(0.35, 0.6), (0.0, 1.0), (0.2, 0.2)])
def test_ratios_of_runs_of_any_length_go_equally_far(steps: int, shares: tuple[float, float]) -> None:
    config = FinetuneConfig(Path("out"), steps=steps, fall_share=shares[0], freeze_share=shares[1])
    some = range(0, config.freeze_step, max(1, config.freeze_step // 1000))
    path = sum(config.ratio_rate_at(step) for step in some) / len(some) * config.freeze_step
    assert path == pytest.approx(RATIO_PATH, rel=0.02)
    assert config.ratio_rate_at(0) == config.full_ratio_rate
    assert config.ratio_rate_at(config.freeze_step) == 0


def test_the_ratio_rate_is_what_was_asked_for_and_moderate_otherwise() -> None:
    assert FinetuneConfig(Path("out"), steps=2000, ratio_rate=0.3).ratio_rate_at(1) == 0.3
    assert FinetuneConfig(Path("out"), steps=2).full_ratio_rate == 0.05


@pytest.mark.parametrize("ratio", [0.1, 0.15, 0.2, 0.95, 1.0])
def test_upper_bin_is_at_least_two(ratio: float) -> None:
    assert 2 <= upper_bin(ratio) <= 10


@pytest.mark.parametrize("target", [0.0, 0.09, 1.1, float("nan")])
def test_refuses_targets_out_of_range(target: float) -> None:
    with pytest.raises(ValueRangeError, match="target"):
        round_to_budget([[0.5]], [target])
