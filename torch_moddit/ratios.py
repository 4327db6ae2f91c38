"""Differentiable keep ratios: one per layer and region of timesteps, learned under a target for their mean.

A ratio r lies between two neighbouring bins, lo < hi, a tenth apart. A block runs at both and mixes the outcomes with
w_hi = (r - lo) / (hi - lo) and w_lo = 1 - w_hi, which gives r its gradient.

Choices where the paper is silent:
- The two bins always differ. At r = 1 they are 9/10 and 10/10 (with equal bins r would have no gradient), at r = 1/10
  they are 1/10 and 2/10.
- The target is met exactly and always, by projection, instead of through a weighted loss (mean - target)^2. Under any
  constant weight the mean settles above the target, where the loss's push equals what more tokens are worth; and a
  weight that is raised until the mean obeys drowns the differences between ratios in Adam's normalised steps. Here each
  step moves the ratios along the diffusion loss's gradient, then adds one number to all of them, within [0.1, 1], so
  that their mean is the step's goal (`follow`). That number is the multiplier of the constrained problem: at rest,
  every ratio that is not at an end has the same marginal worth. The goal falls from 1 to the target over part of the
  training.
- The gradient is divided by its mean size over all ratios, never per ratio as Adam does, because the differences in
  size are what tells layers and regions apart; outliers, which the kinks at the bins cause, are cut.
- `freeze` ends the learning of ratios: it rounds them to bins, as many tenths in all as the target allows and none
  above, so the plan's mean is at most the target and within one tenth of one ratio of it.

Source: DiffCR (arXiv 2412.16822), section 3.2.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn

from moddit.errors import ValueRangeError
from moddit.routing import DENOMINATOR, RoutingPlan, snap
from torch_moddit.tokens import BinUse, group_rows

MIN_RATIO: Final = 1 / DENOMINATOR
MEMORY: Final = 0.9  # of the average gradient
OUTLIER: Final = 5.0  # mean gradient sizes
HALF_BIN: Final = 0.499 / DENOMINATOR  # a frozen ratio stays this near to its bin, so that it snaps to it again


class KeepRatios(nn.Module):
    """The learnable keep ratios of a model, `values` [layers][regions] in 0.1..1 (float32), which start at 1.

    `bins` is a `Routing` for a `RoutedTransformer`: a mix of two bins until `freeze`, the bins of the plan after it.
    """

    frozen: Tensor  # [layers][regions] int64 tenths; zeros until `freeze`
    momentum: Tensor  # [layers][regions]
    size: Tensor  # ()

    def __init__(self, layers: int, regions: int, num_train_timesteps: int = 1000) -> None:
        super().__init__()
        self.num_train_timesteps = num_train_timesteps
        self.values = nn.Parameter(torch.ones(layers, regions))
        self.register_buffer("frozen", torch.zeros(layers, regions, dtype=torch.int64))
        # average gradient and its average size; one memory for both, so that neither needs a correction at the start
        self.register_buffer("momentum", torch.zeros(layers, regions))
        self.register_buffer("size", torch.zeros(()))
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
        """Say at which keep ratios a layer runs; each runs once, on all samples that need it."""
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
    def follow(self, goal: float, rate: float, *, loss_scale: float = 1.0) -> None:
        """Take one step along the gradient in `values.grad`, and project the mean onto `goal`.

        Args:
            goal: mean keep ratio after the step.
            rate: change of a ratio whose gradient has the mean size, before the projection.
            loss_scale: that the gradient was multiplied with (fp16).
        """
        if self.values.grad is not None and bool(torch.isfinite(self.values.grad).all()):
            gradient = self.values.grad / loss_scale
            self.momentum.lerp_(gradient, 1 - MEMORY)
            self.size.lerp_(gradient.abs().mean(), 1 - MEMORY)
        if float(self.size) > 0:
            self.values.sub_(rate * (self.momentum / self.size).clamp(-OUTLIER, OUTLIER))
        flat = [value * DENOMINATOR for value in self.values.flatten().tolist()]
        moved = torch.tensor(_shift_to_mean(flat, goal * DENOMINATOR)) / DENOMINATOR
        self.values.copy_(moved.view_as(self.values).clamp(MIN_RATIO, 1.0))
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
        self.values.clamp_(MIN_RATIO, 1.0)
        self._table = None
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
    low, high = 1.0 - max(values), DENOMINATOR - min(values)
    for _ in range(60):
        middle = (low + high) / 2
        moved = [min(DENOMINATOR, max(1.0, value + middle)) for value in values]
        low, high = (middle, high) if sum(moved) / len(moved) < mean else (low, middle)
    return [min(float(DENOMINATOR), max(1.0, value + low)) for value in values]


def check_target(target: float) -> None:
    """Raise ValueRangeError unless the target mean keep ratio can be reached."""
    if not MIN_RATIO <= target <= 1.0:
        raise ValueRangeError(f"[ratios] target keep ratio out of range, got {target}, want {MIN_RATIO}..1.0")
