"""Differentiable keep ratios: one per layer and region of timesteps, learned under a target for their mean.

A ratio r lies between two neighbouring bins, lo < hi, a tenth apart. A block runs at both and mixes the outcomes with
w_hi = (r - lo) / (hi - lo) and w_lo = 1 - w_hi, which gives r its gradient.

Choices where the paper is silent:
- The two bins always differ. At r = 1 they are 9/10 and 10/10 (with equal bins r would have no gradient), at r = 1/10
  they are 1/10 and 2/10.
- Ratios are projected onto [0.1, 1] after each step; a clamp inside the graph would stop the gradient at the ends.
- The pressure towards the target is controlled, not constant. Under a constant weight of the ratio loss the mean
  settles above the target, where the pressure equals what more tokens are worth. Here the gradient of the ratio loss,
  the same for every ratio, is `Pressure.level` times the mean size of the diffusion loss's gradient, and a
  proportional-integral controller moves the level until the mean follows a goal that falls from 1 to the target. At
  rest, every ratio that is not at an end has the same marginal worth: the optimum under the constraint.
- `freeze` ends the learning of ratios: it rounds them to bins, as many tenths in all as the target allows and none
  above, so the plan's mean is at most the target and within one tenth of one ratio of it.

Source: DiffCR (arXiv 2412.16822), section 3.2.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from moddit.errors import ValueRangeError
from moddit.routing import DENOMINATOR, RoutingPlan, snap
from torch_moddit.model import BinUse, group_rows

MIN_RATIO: Final = 1 / DENOMINATOR
HALF_BIN: Final = 0.499 / DENOMINATOR  # a frozen ratio stays this near to its bin, so that it snaps to it again


class KeepRatios(nn.Module):
    """The learnable keep ratios of a model, `values` [layers][regions] in 0.1..1 (float32), which start at 1.

    A `Routing` for `RoutedPixArt`: a mix of two bins until `freeze`, the bins of the plan after it.
    """

    frozen: Tensor  # [layers][regions] int64 tenths; zeros until `freeze`

    def __init__(self, layers: int, regions: int, num_train_timesteps: int = 1000) -> None:
        super().__init__()
        self.num_train_timesteps = num_train_timesteps
        self.values = nn.Parameter(torch.ones(layers, regions))
        self.register_buffer("frozen", torch.zeros(layers, regions, dtype=torch.int64))
        self._table: list[list[float]] | None = None

    @property
    def is_frozen(self) -> bool:
        return bool(self.frozen.any())

    @property
    def mean(self) -> float:
        """Mean keep ratio over layers and regions: of the plan once frozen."""
        return self.plan().mean_keep_ratio if self.is_frozen else float(self.values.detach().mean())

    def region_means(self) -> list[float]:
        """Mean keep ratio of each region over the layers."""
        table = self.frozen / DENOMINATOR if self.is_frozen else self.values.detach()
        return [float(value) for value in table.float().mean(dim=0)]

    def plan(self) -> RoutingPlan:
        """Make the plan for inference: the frozen bins, or before that the bins nearest to the ratios."""
        if self.is_frozen:
            table = self.frozen.tolist()
        else:
            table = [[snap(value) for value in row] for row in self.values.detach().tolist()]
        return RoutingPlan(tuple(tuple(row) for row in table), self.num_train_timesteps)

    def read(self) -> KeepRatios:
        """Take the present values over to the CPU, once a step: how many tokens are kept must be known there."""
        self._table = (self.frozen if self.is_frozen else self.values.detach()).tolist()
        return self

    def bins(self, layer: int, regions: Sequence[int]) -> list[BinUse]:
        """Implement `Routing`; each keep ratio runs once, on all samples that need it."""
        if self._table is None:
            self.read()
        assert self._table is not None
        row = self._table[layer]
        if self.is_frozen:
            return group_rows([int(row[region]) for region in regions])
        upper = [upper_bin(row[region]) for region in regions]
        device = self.values.device
        tenths = torch.tensor(upper, device=device)
        ratios = self.values[layer, torch.tensor(regions, device=device)]  # (B,)
        weights = ratios * DENOMINATOR - (tenths - 1)  # of the upper bin
        uses = []
        for value in sorted({bin_ for hi in upper for bin_ in (hi - 1, hi)}):
            share = torch.where(tenths == value, weights, 1 - weights)
            rows = [sample for sample, hi in enumerate(upper) if value in (hi - 1, hi)]
            if len(rows) == len(upper):
                uses.append(BinUse(value, None, share))
            else:
                index = torch.tensor(rows, device=device)
                uses.append(BinUse(value, index, share[index]))
        return uses

    @torch.no_grad()
    def project(self) -> None:
        """Bring the ratios back into [0.1, 1] after an optimizer step."""
        self.values.clamp_(MIN_RATIO, 1.0)
        self._table = None

    @torch.no_grad()
    def freeze(self, target: float) -> RoutingPlan:
        """Round the ratios to bins whose mean is at most `target` and as near to it as bins allow.

        Returns:
            the plan that holds from now on.
        """
        tenths = round_to_budget(self.values.detach().tolist(), target)
        self.frozen.copy_(torch.tensor(tenths))
        centre = self.frozen.to(self.values.dtype) / DENOMINATOR
        self.values.copy_(torch.minimum(torch.maximum(self.values, centre - HALF_BIN), centre + HALF_BIN))
        self.project()
        return self.plan()


def upper_bin(ratio: float) -> int:
    """Find the upper one of the two bins around a ratio, in tenths: 2..10; the lower one is a tenth less."""
    return min(DENOMINATOR, max(2, math.ceil(ratio * DENOMINATOR)))


def round_to_budget(ratios: Sequence[Sequence[float]], target: float) -> list[list[int]]:
    """Round ratios to tenths so that their mean is at most `target`, and as near to it as tenths allow.

    The ratios are moved together until their mean is the target, then rounded down, and the tenths left over go to
    those that lost most.

    Raises:
        ValueRangeError: if the target is outside 0.1..1.
    """
    check_target(target)
    flat = [ratio * DENOMINATOR for row in ratios for ratio in row]
    budget = math.floor(target * DENOMINATOR * len(flat) + 1e-6)  # tenths in all; a float target may lie just below
    moved = _shift_to_mean(flat, target * DENOMINATOR)
    tenths = [min(DENOMINATOR, max(1, math.floor(value + 1e-9))) for value in moved]
    losses = [(floor - value, index) for index, (value, floor) in enumerate(zip(moved, tenths, strict=True))]
    heapq.heapify(losses)
    while sum(tenths) < budget:
        loss, index = heapq.heappop(losses)
        if tenths[index] < DENOMINATOR:
            tenths[index] += 1
            heapq.heappush(losses, (loss + 1, index))
    width = len(ratios[0])
    return [tenths[start : start + width] for start in range(0, len(tenths), width)]


def _shift_to_mean(values: list[float], mean: float) -> list[float]:
    """Add one number to all values, within 1..10, so that their mean becomes `mean`."""
    low, high = -float(DENOMINATOR), float(DENOMINATOR)
    for _ in range(60):
        middle = (low + high) / 2
        moved = [min(DENOMINATOR, max(1.0, value + middle)) for value in values]
        low, high = (middle, high) if sum(moved) / len(moved) < mean else (low, middle)
    return [min(float(DENOMINATOR), max(1.0, value + low)) for value in values]


def check_target(target: float) -> None:
    """Raise ValueRangeError unless the target mean keep ratio can be reached."""
    if not MIN_RATIO <= target <= 1.0:
        raise ValueRangeError(f"[ratios] target keep ratio out of range, got {target}, want {MIN_RATIO}..1.0")


@dataclass
class Pressure:
    """The controller of the ratio loss's weight: it makes the mean keep ratio follow a falling goal.

    Gains are per unit of keep ratio and relative to the size of the diffusion loss's own gradient, so they need no
    tuning to a loss, a model size or a target.
    """

    target: float
    fall_steps: int  # steps in which the goal falls linearly from 1 to the target
    proportional: float = 30.0
    integral: float = 1.0
    memory: float = 0.95  # of the average gradient size
    level: float = 0.0  # the ratio loss's gradient, in average gradient sizes
    total: float = 0.0  # integrated error
    size: float = 0.0  # average size of the diffusion loss's gradient per ratio

    def goal(self, step: int) -> float:
        """Where the mean should be after `step` steps."""
        return 1.0 - (1.0 - self.target) * min(1.0, (step + 1) / max(1, self.fall_steps))

    @torch.no_grad()
    def push(self, ratios: KeepRatios, step: int) -> None:
        """Add the ratio loss's gradient to that of the diffusion loss; call it between backward and the optimizer."""
        gradient = ratios.values.grad
        assert gradient is not None, "push comes after backward"
        present = float(gradient.abs().mean())
        self.size = present if self.size == 0.0 else self.memory * self.size + (1 - self.memory) * present
        error = float(ratios.values.detach().mean()) - self.goal(step)
        self.total = min(10.0, max(0.0, self.total + self.integral * error))
        self.level = max(0.0, self.total + self.proportional * error)
        gradient.add_(self.level * self.size)

    def state_dict(self) -> dict[str, Any]:
        """Return what changes from step to step."""
        return {"level": self.level, "total": self.total, "size": self.size}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.level, self.total, self.size = state["level"], state["total"], state["size"]
