from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from mlx_moddit.routes import RegionRoutes
from mlx_moddit.sheets import COLOURS, MARGIN, MARK, PANEL_SIDES, colour_map, draw_edit, draw_routes
from moddit.edits import Edit, image_digest


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


@pytest.mark.parametrize("has_mask", [True, False])
def test_an_edit_is_drawn_from_its_image_to_its_result(has_mask: bool) -> None:
    image = np.full((256, 300, 3), 100, np.uint8)
    mask = np.zeros((256, 300), dtype=bool)
    mask[:128] = True
    marked = mask if has_mask else None
    edit = Edit(image, marked, image_digest(image), None, np.s_[:, :], None, image, marked)
    sheet = np.array(draw_edit(Image.new("RGB", (300, 256), (1, 2, 3)), edit))
    panels = [sheet[-MARGIN - 256 : -MARGIN, MARGIN + index * 312 :][:, :300] for index in range(2 + has_mask)]
    assert (panels[0] == 100).all()
    assert (panels[-1] == (1, 2, 3)).all()
    if has_mask:
        assert (panels[1][:128] == [(100 + value) // 2 for value in MARK]).all()
        assert (panels[1][128:] == 100).all()


def test_panels_of_a_photo_are_not_as_large_as_it_is() -> None:
    sheet = draw_routes(Image.new("RGB", (6000, 4000)), [RegionRoutes(0, 0, 999, 1, np.ones((2, 3)))])
    assert sheet.width < 3 * PANEL_SIDES[1]
    assert draw_routes(Image.new("RGB", (6000, 1)), []).height < 2 * PANEL_SIDES[0]
