from __future__ import annotations

import numpy as np
import pytest

from mlx_moddit.routes import RouteCounter
from moddit.routing import RoutingPlan

PLAN = RoutingPlan(((10, 5), (5, 5)), num_train_timesteps=1000)


def test_counter_follows_the_guided_row_of_the_batch() -> None:
    counter = RouteCounter(PLAN, rows=1, columns=4)
    counter.add(1, [np.array([[2, 3], [0, 1]]), np.array([[2, 3], [1, 2]])])
    counter.add(1, [np.array([[2, 3], [0, 1]]), np.array([[2, 3], [1, 3]])])
    counter.add(0, [np.array([[0, 1, 2, 3]]), np.array([[0, 3]])])
    noisy, clean = counter.result()
    assert (noisy.region, noisy.first_timestep, noisy.last_timestep, noisy.steps) == (1, 500, 999, 2)
    assert (clean.region, clean.first_timestep, clean.last_timestep, clean.steps) == (0, 0, 499, 1)
    assert noisy.frequency.tolist() == [[0.5, 1.0, 0.25, 0.25]]
    assert clean.frequency.tolist() == [[1.0, 0.5, 0.5, 1.0]]


@pytest.mark.parametrize(("total", "regions"), [(1000, 3), (1000, 7), (10, 10), (999, 4), (100, 11)])
def test_ranges_are_those_of_the_plan(total: int, regions: int) -> None:
    plan = RoutingPlan.uniform(1, regions, 5, total)
    counter = RouteCounter(plan, 1, 2)
    for region in range(regions):
        counter.add(region, [np.array([[0]])])
    for item in counter.result():
        inside = [timestep for timestep in range(total) if plan.region(timestep) == item.region]
        assert (item.first_timestep, item.last_timestep) == (inside[0], inside[-1])
