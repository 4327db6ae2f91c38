"""Sheets of panels beside each other: what a model kept, and what an edit did."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps

from mlx_moddit.routes import RegionRoutes
from moddit.edits import Edit

# Anchors of the colour scale from never (0) to always kept (1), dark to bright; between them colours are mixed.
COLOURS: Final = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
MARK: Final = (255, 0, 255)  # mixed with what a mask marks
PANEL_SIDES: Final = (256, 1024)  # pixels; smaller pictures are enlarged by a whole factor, larger ones reduced
MARGIN: Final = 12  # pixels
FONT_SIZE: Final = 14
SCALE_WIDTH: Final = 16  # pixels
INK: Final = (32, 32, 32)
PAPER: Final = (255, 255, 255)

Panel = tuple[Image.Image, Sequence[str]]  # with the lines above it


def colour_map(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Colour numbers of 0..1. Shapes: values (H, W) -> (H, W, 3)."""
    anchors = np.linspace(0.0, 1.0, len(COLOURS))
    channels = [np.interp(values, anchors, [colour[channel] for colour in COLOURS]) for channel in range(3)]
    return np.round(np.stack(channels, axis=-1)).astype(np.uint8)


def draw_routes(picture: Image.Image, routes: Sequence[RegionRoutes]) -> Image.Image:
    """Draw the picture, one heat map per region from noisy to clean, and the colour scale."""
    panels: list[Panel] = [(picture, ["picture"])]
    panels += [(Image.fromarray(colour_map(item.frequency)), _label(item)) for item in routes]
    sheet = _draw_panels(panels, right=SCALE_WIDTH + 4 * FONT_SIZE)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT_SIZE)
    top, left = MARGIN + 3 * (FONT_SIZE + 4), sheet.width - SCALE_WIDTH - 4 * FONT_SIZE
    height = sheet.height - MARGIN - top
    scale = Image.fromarray(colour_map(np.linspace(1.0, 0.0, height)[:, None]))
    sheet.paste(scale.resize((SCALE_WIDTH, height), Image.Resampling.NEAREST), (left, top))
    for share, text in ((0.0, "100 %"), (0.5, "50 %"), (1.0, "0 %")):
        pen.text((left + SCALE_WIDTH + 4, top + share * (height - FONT_SIZE)), text, INK, font)
    pen.text((left, MARGIN), "kept", INK, font)
    return sheet


def draw_edit(picture: Image.Image, edit: Edit) -> Image.Image:
    """Draw the image of an edit, what the mask marks in it, and the result."""
    image = edit.start if edit.mask is None else edit.image
    panels: list[Panel] = [(Image.fromarray(image), ["image"])]
    if edit.mask is not None:
        marked = image.copy()
        marked[edit.mask] = (marked[edit.mask].astype(np.uint16) + MARK) // 2
        panels.append((Image.fromarray(marked), ["mask", f"{edit.mask.mean():.0%} drawn anew"]))
    sheet = _draw_panels([*panels, (picture, ["result"])])
    sheet.info["icc_profile"] = edit.profile  # its panels look like the files
    return sheet


def _draw_panels(panels: Sequence[Panel], right: int = 0) -> Image.Image:
    """Draw panels of the first one's shape in a row, with room at their right."""
    size, font = _panel_size(panels[0][0]), ImageFont.load_default(FONT_SIZE)
    top = MARGIN + 3 * (FONT_SIZE + 4)
    sheet = Image.new("RGB", (MARGIN + len(panels) * (size[0] + MARGIN) + right, top + size[1] + MARGIN), PAPER)
    pen = ImageDraw.Draw(sheet)
    for index, (panel, lines) in enumerate(panels):
        left = MARGIN + index * (size[0] + MARGIN)
        resampling = Image.Resampling.LANCZOS if panel.width > size[0] else Image.Resampling.NEAREST
        # fit: a picture that was cropped after it was generated shows the middle of the grid
        sheet.paste(ImageOps.fit(panel, size, resampling), (left, top))
        pen.multiline_text((left, MARGIN), "\n".join(lines), INK, font)
    return sheet


def _panel_size(picture: Image.Image) -> tuple[int, int]:
    """Find width and height of the panels for a picture."""
    least, most = PANEL_SIDES
    share = min(max(1, -(-least // min(picture.size))), most / max(picture.size))
    scale = share if share < 1 else int(share)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    return width, height


def _label(item: RegionRoutes) -> list[str]:
    steps = f"{item.steps} step" + "s" * (item.steps != 1)
    return [
        f"region {item.region}: t {item.first_timestep}-{item.last_timestep}",
        f"{steps}, {item.frequency.mean():.0%} kept",
    ]
