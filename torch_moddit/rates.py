"""Learning rates over the steps of a run: which share of the full rates a step has.

A share depends on the step alone, so nothing of it is stored.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import torch
from diffusers.optimization import get_scheduler

from moddit.errors import ValueRangeError
from torch_moddit.settings import RATE_SCHEDULES, FinetuneConfig

NOTHING: Final = 1e-6  # at which polynomial ends, instead of 0
RateFactor = Callable[[int], float]


def make_rate_factor(config: FinetuneConfig) -> RateFactor:
    """Make what gives the share of a step, from 0 on: linear warm-up to 1, then as the schedule's name says.

    "warmup_stable_decay" stays at 1 for `flat_share` of the span, and falls as a cosine to `floor`; the other names are
    diffusers', but that a warm-up of n steps begins at 1 / n instead of 0. "constant" has none. After the span the
    share stays that of its last step.

    Raises ValueRangeError if the run goes on after a schedule that ends at 0.
    """
    after_warmup = _decay(config) if config.lr_scheduler == RATE_SCHEDULES[0] else _diffusers(config)
    warmup = 0 if config.lr_scheduler == "constant" else config.warmup

    def factor(step: int) -> float:
        return (step + 1) / warmup if step < warmup else after_warmup(min(step, config.span))

    if config.steps > config.span and factor(config.span) < NOTHING:
        raise ValueRangeError(
            f"[finetune] steps {config.steps}: after step {config.span}, where {config.lr_scheduler} ends, "
            "rates are 0 and nothing is learned; choose another output folder, and a schedule that ends elsewhere"
        )
    return factor


def _decay(config: FinetuneConfig) -> RateFactor:
    start = max(config.warmup, round(config.flat_share * config.span))

    def factor(step: int) -> float:
        done = min(1.0, max(0, step - start) / max(1, config.span - start))
        return config.floor + (1 - config.floor) * (1 + math.cos(math.pi * done)) / 2

    return factor


def _diffusers(config: FinetuneConfig) -> RateFactor:
    """Take the function of a schedule of diffusers, which is made for an optimizer."""
    scheduler = get_scheduler(
        config.lr_scheduler,
        torch.optim.SGD([torch.zeros(1)], lr=1.0),
        num_warmup_steps=config.warmup,
        num_training_steps=max(config.span, config.warmup + 1),
        num_cycles=config.lr_cycles,
        power=config.lr_power,
    )
    factor: RateFactor = scheduler.lr_lambdas[0]
    return factor
