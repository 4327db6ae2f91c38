"""How a package holds a matrix in fewer bits: integers with scales, or indices into palettes; packed in numpy.

Each form knows the values that the device computes with, which is what a reference has to use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

BLOCK: Final = 32  # columns that share a scale, with four bits
GROUP: Final = 16  # rows that share a palette
ITERATIONS: Final = 25  # of Lloyd's algorithm
_BINS: Final = 2048  # of the histogram that palettes are fitted to
_SMALLEST_SCALE: Final = np.float16(6e-8)  # float16's smallest positive number


class Scheme(Enum):
    """How the large matrices are compressed."""

    NONE = "none"
    INT8 = "int8"  # one scale for each row
    INT4 = "int4"  # one scale for each BLOCK columns of a row
    PALETTE4 = "palette4"  # 16 values for each GROUP rows
    PALETTE6 = "palette6"  # 64 values

    @property
    def bits(self) -> int:
        """Bits of a weight."""
        return {Scheme.NONE: 16, Scheme.INT8: 8, Scheme.INT4: 4, Scheme.PALETTE4: 4, Scheme.PALETTE6: 6}[self]

    @property
    def is_palette(self) -> bool:
        return self in (Scheme.PALETTE4, Scheme.PALETTE6)

    def fits(self, rows: int, columns: int) -> bool:
        """Whether a matrix can be divided into this scheme's blocks."""
        if self is Scheme.NONE:
            return False
        return rows % GROUP == 0 if self.is_palette else self is Scheme.INT8 or columns % BLOCK == 0


@dataclass(frozen=True)
class Plain:
    """Numbers as they are."""

    array: NDArray[Any]  # float16 or float32

    def values(self) -> NDArray[np.float32]:
        return self.array.astype(np.float32)


@dataclass(frozen=True)
class Blockwise:
    """value = scale * (number - offset), where zero is one of the values."""

    numbers: NDArray[np.uint8]  # (rows, columns)
    scales: NDArray[np.float16]  # (rows, blocks), all positive
    offsets: NDArray[np.uint8]  # (rows, blocks)
    bits: int  # 4 or 8

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {"numbers": self.numbers, "scales": self.scales, "offsets": self.offsets}

    def values(self) -> NDArray[np.float32]:
        rows, blocks = self.scales.shape
        scaled = self.numbers.reshape(rows, blocks, -1).astype(np.float32)
        scaled -= self.offsets[:, :, None]
        scaled *= self.scales[:, :, None].astype(np.float32)
        return scaled.reshape(self.numbers.shape)


@dataclass(frozen=True)
class Palette:
    """value = table[index], one table for each group of rows."""

    indices: NDArray[np.uint8]  # (rows, columns)
    tables: NDArray[np.float16]  # (groups, entries)
    bits: int  # 4 or 6

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {"indices": self.indices, "tables": self.tables}

    def values(self) -> NDArray[np.float32]:
        groups = self.indices.reshape(len(self.tables), -1)
        found = np.take_along_axis(self.tables.astype(np.float32), groups.astype(np.int64), axis=1)
        return found.reshape(self.indices.shape)


Compressed = Blockwise | Palette
Stored = Plain | Compressed


def compress(matrix: NDArray[np.float32], scheme: Scheme) -> Compressed:
    """Compress the weight of a linear layer, (rows, columns), which `scheme.fits`."""
    assert scheme.fits(*matrix.shape)
    if scheme.is_palette:
        return _fit_palettes(matrix, scheme.bits)
    return _scale_blocks(matrix, scheme.bits, matrix.shape[1] if scheme is Scheme.INT8 else BLOCK)


def join(pieces: Sequence[Compressed]) -> Compressed:
    """Join compressed groups of rows of one matrix."""
    arrays = [piece.arrays() for piece in pieces]
    whole: dict[str, Any] = {name: np.concatenate([item[name] for item in arrays]) for name in arrays[0]}
    return type(pieces[0])(**whole, bits=pieces[0].bits)


def _scale_blocks(matrix: NDArray[np.float32], bits: int, block: int) -> Blockwise:
    """Scale each block so that its largest number, with its sign, becomes one end of the integers.

    The offset leaves one more integer on that side than on the other. Scales are positive: Core ML refuses others in
    its operation `quantize`, and of weights nobody says what becomes of them.
    """
    rows, columns = matrix.shape
    blocks = matrix.reshape(rows, columns // block, block)
    low, high = blocks.min(axis=2), blocks.max(axis=2)
    half = 1 << (bits - 1)
    offsets = np.where(-low > high, half, half - 1).astype(np.uint8)
    scales = np.maximum(np.maximum(-low, high).astype(np.float32) / half, _SMALLEST_SCALE).astype(np.float16)
    numbers = blocks / scales[:, :, None].astype(np.float32)
    np.rint(numbers, out=numbers)
    numbers += offsets[:, :, None]
    np.clip(numbers, 0, 2 * half - 1, out=numbers)
    return Blockwise(numbers.astype(np.uint8).reshape(rows, columns), scales, offsets, bits)


def _fit_palettes(matrix: NDArray[np.float32], bits: int) -> Palette:
    """Fit a palette to each group of rows with Lloyd's algorithm, on a histogram of its values.

    A value takes the entry nearest to the mean of its bin: the bins are much finer than any palette.
    """
    rows, columns = matrix.shape
    entries = 1 << bits
    indices = np.empty((rows, columns), np.uint8)
    tables = np.empty((rows // GROUP, entries), np.float16)
    for number, first in enumerate(range(0, rows, GROUP)):
        group = matrix[first : first + GROUP].reshape(-1)
        low, high = float(group.min()), float(group.max())
        bins = np.minimum((group - low) * np.float32(_BINS / max(high - low, 1e-12)), _BINS - 1).astype(np.int16)
        counts = np.bincount(bins, minlength=_BINS).astype(np.float64)
        sums = np.bincount(bins, weights=group, minlength=_BINS).astype(np.float64)
        means = np.where(counts > 0, sums / np.maximum(counts, 1), np.linspace(low, high, _BINS))
        tables[number] = _lloyd(counts, sums, means, entries).astype(np.float16)
        nearest = _nearest(tables[number].astype(np.float64), means).astype(np.uint8)
        indices[first : first + GROUP] = nearest[bins].reshape(GROUP, columns)
    return Palette(indices, tables, bits)


def _lloyd(
    counts: NDArray[np.float64], sums: NDArray[np.float64], means: NDArray[np.float64], entries: int
) -> NDArray[np.float64]:
    """Place `entries` centres, ascending, so that the squared distance of the values to the nearest is small."""
    # the best density of centres goes with the cube root of the values' density
    shares = np.cumsum(np.cbrt(counts))
    centres = means[np.searchsorted(shares / shares[-1], (np.arange(entries) + 0.5) / entries)]
    for _ in range(ITERATIONS):
        nearest = _nearest(centres, means)
        weights = np.bincount(nearest, counts, minlength=entries)
        totals = np.bincount(nearest, sums, minlength=entries)
        centres = np.where(weights > 0, totals / np.maximum(weights, 1), centres)
    return np.sort(centres)


def _nearest(centres: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.intp]:
    return np.searchsorted((centres[1:] + centres[:-1]) / 2, values)
