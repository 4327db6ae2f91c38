"""How often each token was kept, counted over a generation and drawn beside the picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps

from moddit.routing import RoutingPlan, region_timesteps

# Anchors of the colour scale from never (0) to always kept (1), dark to bright; between them colours are mixed.
COLOURS: Final = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
MIN_PANEL: Final = 256  # pixels; smaller pictures are enlarged by a whole factor
MARGIN: Final = 12  # pixels
FONT_SIZE: Final = 14
SCALE_WIDTH: Final = 16  # pixels
INK: Final = (32, 32, 32)
PAPER: Final = (255, 255, 255)


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


def colour_map(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Colour numbers of 0..1. Shapes: values (H, W) -> (H, W, 3)."""
    anchors = np.linspace(0.0, 1.0, len(COLOURS))
    channels = [np.interp(values, anchors, [colour[channel] for colour in COLOURS]) for channel in range(3)]
    return np.round(np.stack(channels, axis=-1)).astype(np.uint8)


def draw_routes(picture: Image.Image, routes: Sequence[RegionRoutes]) -> Image.Image:
    """Draw the picture, one heat map per region from noisy to clean, and the colour scale."""
    factor = max(1, -(-MIN_PANEL // min(picture.size)))
    width, height = picture.width * factor, picture.height * factor
    font = ImageFont.load_default(FONT_SIZE)
    panels = [(picture, ["picture"])]
    panels += [(Image.fromarray(colour_map(item.frequency)), _label(item)) for item in routes]
    scale = Image.fromarray(colour_map(np.linspace(1.0, 0.0, height)[:, None]))
    top = MARGIN + 3 * (FONT_SIZE + 4)
    right = MARGIN + len(panels) * (width + MARGIN)
    sheet = Image.new("RGB", (right + SCALE_WIDTH + 4 * FONT_SIZE, top + height + MARGIN), PAPER)
    pen = ImageDraw.Draw(sheet)
    for index, (panel, lines) in enumerate(panels):
        left = MARGIN + index * (width + MARGIN)
        # fit: a picture that was cropped after it was generated shows the middle of the grid
        sheet.paste(ImageOps.fit(panel, (width, height), Image.Resampling.NEAREST), (left, top))
        pen.multiline_text((left, MARGIN), "\n".join(lines), INK, font)
    sheet.paste(scale.resize((SCALE_WIDTH, height), Image.Resampling.NEAREST), (right, top))
    for share, text in ((0.0, "100 %"), (0.5, "50 %"), (1.0, "0 %")):
        pen.text((right + SCALE_WIDTH + 4, top + share * (height - FONT_SIZE)), text, INK, font)
    pen.text((right, MARGIN), "kept", INK, font)
    return sheet


def _label(item: RegionRoutes) -> list[str]:
    steps = f"{item.steps} step" + "s" * (item.steps != 1)
    return [
        f"region {item.region}: t {item.first_timestep}-{item.last_timestep}",
        f"{steps}, {item.frequency.mean():.0%} kept",
    ]
