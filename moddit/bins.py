"""The picture sizes that PixArt was trained at, by aspect ratio, and the way from them to the size that is wanted.

Source: diffusers `pipelines/pixart_alpha/pipeline_pixart_{alpha,sigma}.py` (tables) and `image_processor.py`
(`classify_height_width_bin`, `resize_and_crop_tensor`). Deviations: a model trained at another size than its
table's is refused (diffusers goes by `sample_size` alone, which means the table's pixels with a VAE that divides by 8);
pixels that are cropped away are never computed; a side that falls short by a rounding of the scale is whole, where
diffusers returns a picture of one row or column.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from moddit.errors import UnsupportedError, ValueRangeError
from moddit.record import quote

Size = tuple[int, int]  # height, width
_WRITTEN: Final = re.compile(r"([0-9]{1,6})x([0-9]{1,6})")


# Aspect ratio (height / width, rounded as its authors did) to height and width, both in units of 1/16 of the side of a
# square picture: 16 pixels at 256, 32 at 512, 64 at 1024.
_TRAINED: Final[Mapping[float, Size]] = {
    0.25: (8, 32),
    0.28: (8, 29),
    0.32: (9, 28),
    0.33: (9, 27),
    0.35: (9, 26),
    0.4: (10, 25),
    0.42: (10, 24),
    0.48: (11, 23),
    0.5: (11, 22),
    0.52: (11, 21),
    0.57: (12, 21),
    0.6: (12, 20),
    0.68: (13, 19),
    0.72: (13, 18),
    0.78: (14, 18),
    0.82: (14, 17),
    0.88: (15, 17),
    0.94: (15, 16),
    1.0: (16, 16),
    1.07: (16, 15),
    1.13: (17, 15),
    1.21: (17, 14),
    1.29: (18, 14),
    1.38: (18, 13),
    1.46: (19, 13),
    1.67: (20, 12),
    1.75: (21, 12),
    2.0: (22, 11),
    2.09: (23, 11),
    2.4: (24, 10),
    2.5: (25, 10),
    3.0: (27, 9),
    4.0: (32, 8),
}
# The models of 2048 pixels know these as well, in units of 128 pixels.
_TRAINED_AT_2048: Final[Mapping[float, Size]] = {
    0.26: (8, 31),
    0.27: (8, 30),
    2.89: (26, 9),
    3.11: (28, 9),
    3.62: (29, 8),
    3.75: (30, 8),
    3.88: (31, 8),
}


def parse_size(text: str) -> Size:
    """Read a picture size such as "512x768", pixels, height first.

    Raises:
        ValueRangeError: it is not written so.
    """
    found = _WRITTEN.fullmatch(text)
    if found is None:
        raise ValueRangeError(f"[size] {quote(text)} is not a size, want HEIGHTxWIDTH in pixels such as 512x768")
    return int(found[1]), int(found[2])


def _scale(table: Mapping[float, Size], unit: int) -> Mapping[float, Size]:
    return {ratio: (height * unit, width * unit) for ratio, (height, width) in sorted(table.items())}


# By the side of a square picture in latent pixels, which is `sample_size` of a transformer.
BINS: Final[Mapping[int, Mapping[float, Size]]] = {
    32: _scale(_TRAINED, 16),
    64: _scale(_TRAINED, 32),
    128: _scale(_TRAINED, 64),
    256: _scale({**_TRAINED, **_TRAINED_AT_2048}, 128),
}


def bin_size(sample_size: int, default_side: int, height: int, width: int) -> Size:
    """Find the size that a model was trained at whose aspect ratio is nearest to the one asked for.

    Args:
        sample_size: of the transformer, latent pixels.
        default_side: of the square picture the model was trained on, pixels.
        height: pixels.
        width: pixels.

    Returns:
        height and width, pixels

    Raises:
        UnsupportedError: nobody has published sizes for such a model, or they are those of larger or smaller pictures.
    """
    if sample_size not in BINS:
        raise UnsupportedError(
            f"[bins] resolution_binning is not defined for a model of sample_size {sample_size}, want one of "
            f"{', '.join(map(str, BINS))}; generate without it"
        )
    table = BINS[sample_size]
    if table[1.0] != (default_side, default_side):
        raise UnsupportedError(
            f"[bins] resolution_binning is not defined for a model of sample_size {sample_size} that was trained on "
            f"pictures of {default_side} pixels, want {table[1.0][0]}; generate without it"
        )
    return table[min(table, key=lambda ratio: abs(ratio - height / width))]


@dataclass(frozen=True)
class Taps:
    """Linear interpolation along one axis: result = source[lower] * (1 - weight) + source[upper] * weight."""

    lower: NDArray[np.int64]  # (N,) index of the source
    upper: NDArray[np.int64]  # (N,)
    weight: NDArray[np.float32]  # (N,) 0..1


def resize_and_crop(source: Size, wanted: Size) -> tuple[Taps, Taps]:
    """Say how to scale a picture until it covers a size, and to cut what stands out equally on both sides.

    Args:
        source: height and width, pixels.
        wanted: likewise.

    Returns:
        for rows and for columns, of as many taps as are wanted
    """
    ratio = max(new / old for old, new in zip(source, wanted, strict=True))
    rows, columns = (_taps(old, max(int(old * ratio), new), new) for old, new in zip(source, wanted, strict=True))
    return rows, columns


def _taps(source: int, resized: int, kept: int) -> Taps:
    """Take the middle `kept` of `resized` pixels that an axis of `source` pixels becomes.

    In float32 and without filtering, as torch's `interpolate(mode="bilinear", align_corners=False)` on images.
    """
    start = (resized - kept) // 2
    scale = np.float32(source) / np.float32(resized)
    centres = np.arange(start, start + kept, dtype=np.float32) + np.float32(0.5)
    position = np.maximum(centres * scale - np.float32(0.5), np.float32(0))
    lower = np.minimum(position.astype(np.int64), source - 1)
    weight = position - lower.astype(np.float32)
    return Taps(lower, np.minimum(lower + 1, source - 1), weight.astype(np.float32))
