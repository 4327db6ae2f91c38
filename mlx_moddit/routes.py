"""How often each token was kept, counted over a generation; `mlx_moddit.sheets` draws it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moddit.routing import RoutingPlan, region_timesteps


@dataclass(frozen=True)
class RegionRoutes:
    """The kept tokens of all steps in one region of timesteps."""

    region: int
    first_timestep: int
    last_timestep: int
    steps: int
    frequency: NDArray[
        np.float64
    ]  # (rows, columns) of patches; 0 never kept .. 1 kept by every layer that ran in every step


class RouteCounter:
    """Count, per region, how often each token of the guided half of the batch was kept."""

    def __init__(self, plan: RoutingPlan, rows: int, columns: int):
        self._plan = plan
        self._grid = (rows, columns)
        self._counts: dict[int, NDArray[np.int64]] = {}
        self._steps: dict[int, int] = {}
        self._blocks: dict[int, int] = {}

    def add(self, region: int, kept: Sequence[NDArray[np.integer]]) -> None:
        """Add a step: the indices kept in every layer that ran, (B, K) each, whose last row follows the prompt."""
        tokens = self._grid[0] * self._grid[1]
        counts = sum((np.bincount(layer[-1], minlength=tokens) for layer in kept), np.zeros(tokens, np.int64))
        self._counts[region] = self._counts.get(region, np.zeros(tokens, np.int64)) + counts
        self._steps[region] = self._steps.get(region, 0) + 1
        self._blocks[region] = self._blocks.get(region, 0) + len(kept)

    def result(self) -> tuple[RegionRoutes, ...]:
        """Give the regions that were visited, in the order of the visit: the noisiest first."""
        plan, found = self._plan, []
        for region, counts in self._counts.items():
            timesteps, steps = region_timesteps(region, plan.regions, plan.num_train_timesteps), self._steps[region]
            frequency = (counts / self._blocks[region]).reshape(self._grid)
            found.append(RegionRoutes(region, timesteps[0], timesteps[-1], steps, frequency))
        return tuple(found)
