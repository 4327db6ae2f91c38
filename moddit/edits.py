"""Edits of a picture: the size to work at, the mask at each scale, and what puts the drawn part back into the image.

Words: the *image* is the picture that an edit starts from; the *mask* is true where the image is drawn anew. Whatever
decides pixels is computed in integers, so that every backend gives the equal picture.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from moddit.bins import Size
from moddit.bounds import SIDE
from moddit.errors import ValueRangeError

Pixels = NDArray[np.uint8]  # (H, W, 3)
Mask = NDArray[np.bool_]  # (H, W)
Window = tuple[slice, slice]  # rows and columns

RING: Final = 4  # pixels around the mask, whose tone the drawn picture gets
TONE: Final = 38  # levels, .15 of all: what differs by more is another thing, not another tone
FEATHER: Final = 2  # pixels inside the mask, over which the image becomes the drawn picture
GREY: Final = 128  # level of an image of which nothing is visible
_PARTS: Final = FEATHER + 1  # that a pixel is mixed of


def image_digest(image: Pixels) -> str:
    """Give the SHA-256 of an image's size and pixels, whatever file they came in: 64 hexadecimal digits."""
    return _digest(image)


def mask_digest(mask: Mask) -> str:
    """Give the SHA-256 of a mask's size and pixels, of 0 and 1."""
    return _digest(mask.astype(np.uint8))


def _digest(pixels: NDArray[np.uint8]) -> str:
    height, width = pixels.shape[:2]
    return hashlib.sha256(f"{height}x{width}\n".encode() + pixels.tobytes()).hexdigest()


def working_size(image_size: Size, default_side: int, unit: int) -> Size:
    """Find the size to draw at, pixels: about as many as in the model's own square picture, in the image's shape.

    Sides are multiples of `unit`, so that an image is stretched by at most half of it; a shape that would make a side
    shorter than that, or too long, is drawn as the nearest one that does not.
    """
    height, width = image_size
    most = min(default_side / unit, SIDE // unit * unit / default_side)
    ratio = min(max(math.sqrt(height / width), 1 / most), most)
    rows, columns = (math.floor(side / unit + 0.5) for side in (default_side * ratio, default_side / ratio))
    return rows * unit, columns * unit


def cover(source: Size, wanted: Size) -> Size:
    """Find the size to which a picture is scaled so that it covers another one."""
    scale = max(new / old for old, new in zip(source, wanted, strict=True))
    height, width = (max(new, round(old * scale)) for old, new in zip(source, wanted, strict=True))
    return height, width


def normalize(image: Pixels) -> NDArray[np.float32]:
    """Turn pixels into what a VAE takes. Shapes: (H, W, 3) -> alike, -1..1."""
    return image.astype(np.float32) / 127.5 - 1.0


def scale_mask(mask: Mask, size: Size, *, covers: bool) -> Mask:
    """Scale a mask as its image is: a pixel is true if it covers any that is, so that no thin stroke is lost.

    Shapes:
        (H, W) -> (height, width) of `size`

    Args:
        mask: of the image's size.
        size: of the scaled one, pixels.
        covers: whether the image is scaled to cover the size and cropped, equally on both sides, or stretched to it.

    Raises ValueRangeError if all that is true is cropped away.
    """
    scaled = cover(mask.shape, size) if covers else size
    for new, whole in zip(size, scaled, strict=True):  # rows, then columns as rows
        edges = ((whole - new) // 2 + np.arange(new + 1)) * len(mask)
        mask = _any_between(mask, edges[:-1] // whole, -(-edges[1:] // whole)).T
    if not mask.any():
        raise ValueRangeError(
            f"[mask] all that it marks is cropped away at height {size[0]} and width {size[1]}; want a size of the "
            "image's shape, or none"
        )
    return mask


def _any_between(mask: Mask, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> Mask:
    """Tell for ranges of rows whether any is true. Shapes: (H, W), (N,), (N,) -> (N, W)."""
    counts = np.zeros((len(mask) + 1, mask.shape[1]), np.int32)
    np.cumsum(mask, axis=0, out=counts[1:])
    return counts[ends] > counts[starts]


def fill(image: Pixels, mask: Mask) -> Pixels:
    """Fill what is masked with the mean of what is not, of each channel, rounded to the nearest, halves up.

    A VAE spreads what it sees: on shapes64 grey of 0 in its place gave a tone that was further off. Where all is masked
    it is grey. Shapes: (H, W, 3), (H, W) -> (H, W, 3)
    """
    visible = image[~mask]
    count = len(visible)
    mean = (2 * visible.sum(axis=0, dtype=np.int64) + count) // (2 * count) if count else GREY
    filled = image.copy()
    filled[mask] = mean
    return filled


def crop_window(mask: Mask, padding: int) -> Window:
    """Find the square around what a mask marks, with so many pixels around it, as far as the image reaches.

    As `padding_mask_crop` of diffusers' inpainting pipelines, whose `get_crop_region` has the shape of what is drawn.
    """
    spans = [(int(marked[0]), int(marked[-1]) + 1) for marked in (np.flatnonzero(mask.any(axis=a)) for a in (1, 0))]
    side = max(end - start for start, end in spans) + 2 * padding
    rows, columns = (_span(middle, side, whole) for middle, whole in zip(map(sum, spans), mask.shape, strict=True))
    return rows, columns


def _span(ends: int, side: int, whole: int) -> slice:
    """Take `side` of an axis of `whole` pixels around a middle, of which `ends` is the double; all if it is shorter."""
    start = min(max((ends - side) // 2, 0), max(whole - side, 0))
    return slice(start, min(start + side, whole))


def latent_mask(mask: Mask, downscale: int) -> NDArray[np.float32]:
    """Find the latent pixels that a mask touches, all of which are drawn anew. Shapes: (H, W) -> (h, w), 0 or 1."""
    height, width = mask.shape
    cells = mask.reshape(height // downscale, downscale, width // downscale, downscale)
    return np.logical_or.reduce(cells, axis=(1, 3)).astype(np.float32)


def finish(image: Pixels, drawn: Pixels, mask: Mask) -> Pixels:
    """Paste what was drawn into the image where the mask is true: in the tone of what is around, and feathered.

    Every pixel outside the mask is the image's.

    Shapes:
        image, drawn (H, W, 3), mask (H, W) -> (H, W, 3)
    """
    result = image.copy()
    window = _window(mask)
    old, new, marked = image[window], drawn[window], mask[window]
    tone = _tone(old, new, dilate(marked, RING) & ~marked)
    change = 2 * (new[marked].astype(np.int16) - old[marked]) + tone  # (N, 3), halves of levels
    parts = _feather(marked)[marked, None]
    mixed = old[marked] + (parts * change + _PARTS) // (2 * _PARTS)  # rounded to the nearest, halves up
    result[window][marked] = mixed.clip(0, 255).astype(np.uint8)
    return result


def _window(mask: Mask) -> tuple[slice, slice]:
    """Bound what is true, and a ring around it."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return slice(0), slice(0)
    return slice(max(rows[0] - RING, 0), rows[-1] + RING + 1), slice(max(columns[0] - RING, 0), columns[-1] + RING + 1)


def _tone(old: Pixels, new: Pixels, ring: Mask) -> NDArray[np.int16]:
    """Find what to add to each channel, halves of levels: twice the median of what the image has more in a ring."""
    differences = old[ring].astype(np.int16) - new[ring]
    medians = []
    for channel in differences.T:
        values = np.sort(channel[abs(channel) <= TONE])
        medians.append(values[(len(values) - 1) // 2] + values[len(values) // 2] if len(values) else 0)
    return np.array(medians, np.int16)


def _feather(mask: Mask) -> NDArray[np.int16]:
    """Count the parts of each pixel, of `_PARTS`, that are the drawn picture's: fewer at the edge of a mask.

    Where a mask is too thin to have an inside all parts are, or a scratch could not be removed. Shapes: (H, W) alike.
    """
    parts = np.ones(mask.shape, np.int16)
    edge = ~mask
    for _ in range(FEATHER):
        edge = dilate(edge, 1)
        parts += ~edge
    return np.where(dilate(~edge, 2 * FEATHER), parts, np.int16(_PARTS))


def dilate(mask: Mask, reach: int) -> Mask:
    """Mark what is at most `reach` pixels from something marked, in rows and in columns. Shapes: (H, W) alike."""
    done = 0
    while done < reach:
        step = min(reach - done, done + 1)  # no further, or it would leave holes
        rows = mask.copy()
        rows[step:] |= mask[:-step]
        rows[:-step] |= mask[step:]
        mask = rows.copy()
        mask[:, step:] |= rows[:, :-step]
        mask[:, :-step] |= rows[:, step:]
        done += step
    return mask


@dataclass(frozen=True)
class Edit:
    """An image to start from, and what of it is drawn anew (`moddit.pictures.open_edit`)."""

    image: Pixels  # (H, W, 3), into which what is drawn is pasted where there is a mask
    mask: Mask | None  # (H, W); None to draw all of it anew
    image_digest: str  # of what was given, before anything was cropped
    mask_digest: str | None
    window: Window  # of the image, which is drawn
    padding_mask_crop: int | None  # pixels that the window has around what the mask marks; None for all of the image
    start: Pixels  # (height, width, 3), the window in the size that is drawn
    start_mask: Mask | None  # (height, width)
    profile: bytes | None = None  # ICC's, of the image's colours, which are edited as they are stored

    @property
    def size(self) -> Size:
        """Height and width that are drawn, pixels."""
        height, width, _ = self.start.shape
        return height, width

    def pixels(self) -> NDArray[np.float32]:
        """Give what a VAE takes. Shapes: -> (1, height, width, 3), -1..1."""
        return normalize(self.start)[None]

    def masked_pixels(self) -> NDArray[np.float32]:
        """Give what a VAE takes of the image that a model which inpaints is shown. Shapes: as `pixels`."""
        assert self.start_mask is not None
        return normalize(fill(self.start, self.start_mask))[None]

    def latent_mask(self, downscale: int) -> NDArray[np.float32] | None:
        """Give the mask of the latents. Shapes: -> (1, h, w, 1), 0 or 1."""
        return None if self.start_mask is None else latent_mask(self.start_mask, downscale)[None, ..., None]
