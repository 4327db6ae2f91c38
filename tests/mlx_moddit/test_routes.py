from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from mlx_moddit.routes import COLOURS, MARGIN, RegionRoutes, RouteCounter, colour_map, draw_routes
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


def test_colours_at_the_anchors() -> None:
    assert colour_map(np.linspace(0, 1, len(COLOURS))[None]).tolist() == [[list(colour) for colour in COLOURS]]


def test_drawing_shows_the_picture_and_every_region_beside_it() -> None:
    picture = Image.new("RGB", (40, 20), (200, 10, 10))
    frequency = np.array([[0.0, 1.0], [0.5, 0.5]])
    routes = [RegionRoutes(1, 500, 999, 1, frequency), RegionRoutes(0, 0, 499, 3, 1 - frequency)]
    sheet = np.array(draw_routes(picture, routes))
    factor = 13  # the smallest at which the shorter side has 256 pixels
    width, height = 40 * factor, 20 * factor
    top = sheet.shape[0] - MARGIN - height
    panels = [
        sheet[top : top + height, left : left + width] for left in (MARGIN + i * (width + MARGIN) for i in range(3))
    ]
    assert (panels[0] == (200, 10, 10)).all()
    for panel, wanted in zip(panels[1:], (frequency, 1 - frequency), strict=True):
        corners = panel[[[0, 0], [-1, -1]], [[0, -1], [0, -1]]]
        assert np.array_equal(corners, colour_map(wanted))


def test_drawing_of_a_cropped_picture_shows_the_middle_of_the_grid() -> None:
    frequency = np.array([[0.0, 0.0], [0.3, 0.4], [0.6, 0.7], [1.0, 1.0]])
    sheet = np.array(draw_routes(Image.new("RGB", (256, 256)), [RegionRoutes(0, 0, 999, 1, frequency)]))
    left, top = MARGIN + 256 + MARGIN, sheet.shape[0] - MARGIN - 256
    panel = sheet[top : top + 256, left : left + 256]
    assert np.array_equal(panel[::255, ::255], colour_map(frequency[1:3]))
