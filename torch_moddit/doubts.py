"""What is poor about a run, though it can be run: one sentence each, for whoever started it."""

from __future__ import annotations

import itertools
from typing import Final

from moddit.routing import RoutingPlan
from torch_moddit.settings import FinetuneConfig, Mode

SHORT_PATH: Final = 1.0  # that the ratios can go; half of it left a fifth to a third of the gain behind (simulated)
ALIKE: Final = 1  # tenths by which the ratios of a uniform plan may differ: rounding to the target alone does that


def doubts_of_run(config: FinetuneConfig) -> list[str]:
    """Say what about a configuration promises a poor model."""
    doubts = []
    if config.steps <= config.warmup:
        doubts.append(f"the warm-up of {config.warmup} steps outlasts the run of {config.steps}: rates are never full")
    path = config.full_ratio_rate * config.moving_steps
    if config.mode is Mode.LEARNED and min(config.targets) < 1.0 and path < SHORT_PATH:
        cause = "steps are too few" if config.ratio_rate is None else f"ratio_rate {config.ratio_rate} is too low"
        doubts.append(
            f"{cause} for {config.freeze_step} steps of learning keep ratios: they will hardly differ, which is no "
            "better than mode uniform"
        )
    return doubts


def doubts_of_plan(config: FinetuneConfig, plan: RoutingPlan) -> list[str]:
    """Say what about a plan that was learned promises a poor model."""
    columns = [plan.row(region) for region in range(plan.regions)]
    groups = columns if len(config.targets) > 1 else [tuple(itertools.chain.from_iterable(columns))]
    if min(config.targets) < 1.0 and all(max(group) - min(group) <= ALIKE for group in groups):
        return [
            f"the keep ratios came out alike, {min(map(min, groups))} to {max(map(max, groups))} tenths: nothing was "
            "learned of layers and regions; train longer, or raise ratio_rate"
        ]
    return []
