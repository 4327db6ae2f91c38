"""What is poor about a run, though it can be run: one sentence each, for whoever started it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Final

from moddit.routing import DENOMINATOR, RoutingPlan
from torch_moddit.settings import FinetuneConfig, Mode

SHORT_PATH: Final = 1.0  # that the ratios can go; half of it left a fifth to a third of the gain behind (simulated)
ALIKE: Final = 1  # tenths by which the ratios of a uniform plan may differ: rounding to the target alone does that
MISSED: Final = 0.02  # of a mean keep ratio, beside its target


def doubts_of_run(config: FinetuneConfig) -> list[str]:
    """Say what about a configuration promises a poor model."""
    doubts = []
    if config.steps < config.warmup:
        doubts.append(f"the warm-up of {config.warmup} steps outlasts the run of {config.steps}: rates are never full")
    path = config.full_ratio_rate * config.moving_steps
    if config.mode is Mode.LEARNED and min(config.targets) < 1.0 and path < SHORT_PATH:
        learning = f"{config.freeze_step} steps, in which keep ratios are learned"
        cause = "are too few" if config.ratio_rate is None else f"are too few for ratio_rate {config.ratio_rate}"
        doubts.append(f"{learning}, {cause}: ratios will hardly differ, which is no better than mode uniform")
    return doubts


def doubts_of_plan(config: FinetuneConfig, plan: RoutingPlan) -> list[str]:
    """Say what about a plan that was learned promises a poor model."""
    columns = [plan.row(region) for region in range(plan.regions)]
    groups = columns if len(config.targets) > 1 else [tuple(itertools.chain.from_iterable(columns))]
    means = [sum(group) / (DENOMINATOR * len(group)) for group in groups]
    doubts = []
    if min(config.targets) < 1.0 and all(max(group) - min(group) <= ALIKE for group in groups):
        doubts.append(
            f"the keep ratios came out alike, {min(map(min, groups))} to {max(map(max, groups))} tenths: nothing was "
            "learned of layers and regions; train longer, or raise ratio_rate"
        )
    missed = max(abs(mean - wanted) for mean, wanted in zip(means, config.targets, strict=True))
    if config.ratio_loss > 0 and missed > MISSED:
        doubts.append(
            f"the ratio loss led to a mean keep ratio of {_list(means)}, where the target is {_list(config.targets)}; "
            "train longer, or raise ratio_loss"
        )
    return doubts


def _list(numbers: Sequence[float]) -> str:
    return ", ".join(f"{number:.3g}" for number in numbers)
