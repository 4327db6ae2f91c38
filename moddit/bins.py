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


# Height x width, in units of 1/16 of the side of a square picture: 16 pixels at 256, 32 at 512, 64 at 1024.
_TRAINED: Final = """
    8x32 8x29 9x28 9x27 9x26 10x25 10x24 11x23 11x22 11x21 12x21 12x20 13x19 13x18 14x18 14x17 15x17 15x16 16x16
    16x15 17x15 17x14 18x14 18x13 19x13 20x12 21x12 22x11 23x11 24x10 25x10 27x9 32x8
"""
_TRAINED_AT_2048: Final = "8x31 8x30 26x9 28x9 29x8 30x8 31x8"  # which the models of 2048 pixels know as well


def parse_size(text: str) -> Size:
    """Read a picture size such as "512x768", pixels, height first.

    Raises:
        ValueRangeError: it is not written so.
    """
    found = _WRITTEN.fullmatch(text)
    if found is None:
        raise ValueRangeError(f"[size] {quote(text)} is not a size, want HEIGHTxWIDTH in pixels such as 512x768")
    return int(found[1]), int(found[2])


def _bins(unit: int, sizes: str) -> Mapping[float, Size]:
    """Map aspect ratios, rounded to hundredths as their authors did, to sizes in pixels."""
    pairs = (map(int, size.split("x")) for size in sizes.split())
    return dict(sorted((round(height / width, 2), (height * unit, width * unit)) for height, width in pairs))


# By the side of a square picture in latent pixels, which is `sample_size` of a transformer.
BINS: Final[Mapping[int, Mapping[float, Size]]] = {
    32: _bins(16, _TRAINED),
    64: _bins(32, _TRAINED),
    128: _bins(64, _TRAINED),
    256: _bins(128, _TRAINED + _TRAINED_AT_2048),
}


def bin_size(sample_size: int, default_side: int, height: int, width: int) -> Size:
    """Find the size that a model was trained at whose aspect ratio is nearest to the one asked for, pixels.

    Of the model, `sample_size` is in latent pixels; `default_side` is that of the square picture it was trained on,
    pixels.

    Raises UnsupportedError if nobody has published sizes for it, or they are those of larger or smaller pictures.
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
    """Say how to scale a picture until it covers a size, pixels, and to cut what stands out equally on both sides.

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
