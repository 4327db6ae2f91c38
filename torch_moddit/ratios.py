"""Differentiable keep ratios: one per layer and region of timesteps, learned under a target for their mean.

A ratio r lies between two neighbouring bins, lo < hi, a tenth apart. A block runs at both and mixes the outcomes with
w_hi = (r - lo) / (hi - lo) and w_lo = 1 - w_hi, which gives r its gradient.

Choices where the paper is silent:
- The two bins always differ. At r = 1 they are 9/10 and 10/10 (with equal bins r would have no gradient), at r = 1/10
  they are 1/10 and 2/10.
- What moves the ratios is told by `torch_moddit.movers`. `freeze` ends it: from then on they are bins.

Source: DiffCR (arXiv 2412.16822), section 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn

from moddit.routing import DENOMINATOR, RoutingPlan, snap
from torch_moddit.targets import MIN_RATIO
from torch_moddit.tokens import BinUse, group_rows

HALF_BIN: Final = 0.499 / DENOMINATOR  # a frozen ratio stays this near to its bin, so that it snaps to it again


class KeepRatios(nn.Module):
    """The learnable keep ratios of a model, `values` [layers][regions] in 0.1..1 (float32), which start at 1.

    `bins` is a `Routing` for a `RoutedTransformer`: a mix of two bins until `freeze`, the bins of the plan after it.
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
    def move_to(self, values: Tensor) -> None:
        """Take new ratios [layers][regions], clamped to 0.1..1."""
        self.values.copy_(values.clamp(MIN_RATIO, 1.0))
        self._table = None

    @torch.no_grad()
    def freeze(self, tenths: Sequence[Sequence[int]]) -> None:
        """Let each layer keep so many tenths in each region from now on; ratios move to where they snap to them."""
        self.frozen.copy_(torch.tensor(tenths))
        centre = self.frozen.to(self.values.dtype) / DENOMINATOR
        self.move_to(torch.minimum(torch.maximum(self.values, centre - HALF_BIN), centre + HALF_BIN))


def upper_bin(ratio: float) -> int:
    """Find the upper one of the two bins around a ratio, in tenths: 2..10; the lower one is a tenth less."""
    return min(DENOMINATOR, max(2, math.ceil(ratio * DENOMINATOR)))
