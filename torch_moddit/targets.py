"""Targets of the mean keep ratio, one for all ratios or one for each region: projection onto them, rounding to tenths.

Tables are [layers][regions].
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from moddit.errors import ShapeError, ValueRangeError
from moddit.routing import DENOMINATOR

MIN_RATIO: Final = 1 / DENOMINATOR

Number = TypeVar("Number", int, float)
Table = Sequence[Sequence[float]]


def check_target(target: float) -> None:
    """Raise ValueRangeError unless the target mean keep ratio can be reached."""
    if not MIN_RATIO <= target <= 1.0:
        raise ValueRangeError(f"[ratios] target keep ratio out of range, got {target}, want {MIN_RATIO}..1.0")


def project(ratios: Table, targets: Sequence[float]) -> list[list[float]]:
    """Add one number to all ratios, within 0.1..1, so that their mean is the target; or one number in each region.

    Args:
        ratios: in 0.1..1.
        targets: one, or one for each region.
    """
    return _each_group(ratios, targets, _shift_to_mean)


def round_to_budget(ratios: Table, targets: Sequence[float]) -> list[list[int]]:
    """Round ratios to tenths so that their mean is at most the target, and as near to it as tenths allow.

    The ratios are projected onto the target, then rounded down, and the tenths left over go to those that lost most.
    So a larger ratio never gets fewer tenths than a smaller one of its group.

    Args:
        ratios: in 0.1..1.
        targets: one, or one for each region.

    Raises:
        ValueRangeError: a target is outside 0.1..1.
    """
    for target in targets:
        check_target(target)
    return _each_group(ratios, targets, _round_group)


def _each_group(
    ratios: Table, targets: Sequence[float], change: Callable[[list[float], float], list[Number]]
) -> list[list[Number]]:
    """Change all ratios under the one target, or each region's under its own."""
    width = len(ratios[0])
    if len(targets) == 1:
        flat = change([ratio for row in ratios for ratio in row], targets[0])
        return [flat[start : start + width] for start in range(0, len(flat), width)]
    if len(targets) != width:
        raise ShapeError(f"[ratios] got {len(targets)} targets, want one, or one for each of {width} regions")
    columns = [change(list(column), target) for column, target in zip(zip(*ratios, strict=True), targets, strict=True)]
    return [list(row) for row in zip(*columns, strict=True)]


def _shift_to_mean(values: list[float], mean: float) -> list[float]:
    low, high = MIN_RATIO - max(values), 1.0 - min(values)
    for _ in range(60):
        middle = (low + high) / 2
        moved = [min(1.0, max(MIN_RATIO, value + middle)) for value in values]
        low, high = (middle, high) if sum(moved) / len(moved) < mean else (low, middle)
    return [min(1.0, max(MIN_RATIO, value + low)) for value in values]


def _round_group(values: list[float], target: float) -> list[int]:
    budget = math.floor(target * DENOMINATOR * len(values) + 1e-6)  # tenths in all; a float target may lie just below
    moved = [value * DENOMINATOR for value in _shift_to_mean(values, target)]
    tenths = [min(DENOMINATOR, max(1, math.floor(value + 1e-9))) for value in moved]
    losses = [(floor - value, index) for index, (value, floor) in enumerate(zip(moved, tenths, strict=True))]
    heapq.heapify(losses)
    while sum(tenths) < budget:
        loss, index = heapq.heappop(losses)
        if tenths[index] < DENOMINATOR:
            tenths[index] += 1
            heapq.heappush(losses, (loss + 1, index))
    return tenths
