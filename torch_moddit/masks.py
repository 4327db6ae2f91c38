"""Masks under which a model learns to inpaint, of pictures in which nobody has said where things are.

Kinds and shares are those of a trial on shapes64, without its boxes round objects: boxes of whole tokens, boxes
anywhere, strokes, and all of the picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from moddit.bins import Size
from moddit.edits import Mask, fill, normalize

# Shares of a picture's sides.
_BOX: Final = (0.19, 0.62)
_RADIUS: Final = (0.05, 0.125)  # of a stroke, of the shorter side
_CORNERS: Final = (2, 4)  # of a stroke


def draw_mask(size: Size, unit: int, generator: torch.Generator) -> Mask:
    """Draw what of a picture is drawn anew: never nothing.

    Shapes:
        -> (H, W) of `size`

    Args:
        size: height and width of the picture, pixels, multiples of `unit`.
        unit: side of a token, pixels.
        generator: of the sample.
    """
    chance = np.random.default_rng(int(torch.randint(2**63 - 1, (), generator=generator)))
    (kind,) = chance.choice(len(_KINDS), 1, p=[share for _, share in _KINDS])
    mask = np.zeros(size, np.bool_)
    _KINDS[kind][0](mask, unit, chance)
    return mask


def hide(pixels: Tensor, mask: Mask) -> Tensor:
    """Fill what is masked of a picture, as `moddit.edits.fill`. Shapes: (3, H, W), (H, W) -> (3, H, W), -1..1."""
    levels = ((pixels.permute(1, 2, 0) + 1) * 127.5).round().to(torch.uint8)
    return torch.from_numpy(normalize(fill(levels.cpu().numpy(), mask))).permute(2, 0, 1)


def _cover_tokens(mask: Mask, unit: int, chance: np.random.Generator) -> None:
    """Mark whole tokens: half of the picture at one of its edges, or a quarter of it anywhere."""
    counts = [side // unit for side in mask.shape]
    sides = [-(-count // 2) for count in counts]
    tops = [int(chance.integers(count - side + 1)) for count, side in zip(counts, sides, strict=True)]
    axis = chance.integers(3)
    if axis < 2:  # a half: it reaches from edge to edge along one axis, and to an edge along the other
        sides[axis], tops[axis] = counts[axis], 0
        tops[1 - axis] = chance.choice([0, counts[1 - axis] - sides[1 - axis]])
    _mark(mask, [top * unit for top in tops], [side * unit for side in sides])


def _cover_box(mask: Mask, _: int, chance: np.random.Generator) -> None:
    sides = [max(1, round(whole * chance.uniform(*_BOX))) for whole in mask.shape]
    tops = [int(chance.integers(whole - side + 1)) for whole, side in zip(mask.shape, sides, strict=True)]
    _mark(mask, tops, sides)


def _mark(mask: Mask, tops: Sequence[int], sides: Sequence[int]) -> None:
    """Mark a box by its first row and column, and its height and width."""
    rows, columns = (slice(top, top + side) for top, side in zip(tops, sides, strict=True))
    mask[rows, columns] = True


def _cover_stroke(mask: Mask, _: int, chance: np.random.Generator) -> None:
    """Mark a line with round ends through some places of the picture."""
    height, width = mask.shape
    radius = min(mask.shape) * chance.uniform(*_RADIUS)
    corners = chance.uniform(0, (width - 1, height - 1), (chance.integers(*_CORNERS, endpoint=True), 2))
    canvas = Image.new("L", (width, height))
    draw = ImageDraw.Draw(canvas)
    draw.line([(x, y) for x, y in corners], fill=1, width=max(1, round(2 * radius)), joint="curve")
    for x, y in corners[[0, -1]]:
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=1)
    mask |= np.asarray(canvas) > 0


def _cover_all(mask: Mask, _: int, __: np.random.Generator) -> None:
    mask[:] = True


_KINDS: Final[tuple[tuple[Callable[[Mask, int, np.random.Generator], None], float], ...]] = (
    (_cover_tokens, 0.37),
    (_cover_box, 0.33),
    (_cover_stroke, 0.25),
    (_cover_all, 0.05),
)
