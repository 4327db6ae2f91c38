"""Affine quantisation of a matrix, bit for bit as `mlx.core.quantize` does it on the CPU.

Source: ml-explore/mlx, mlx/backend/cpu/quantized.cpp, `quantize`.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from moddit.checkpoint.precision import narrow

BITS: Final = (4, 8)
GROUP_SIZES: Final = (32, 64, 128)
_SMALLEST_SCALE: Final = np.float32(1e-7)


def quantize(
    matrix: NDArray[np.float32], dtype: str, *, bits: int, group_size: int
) -> tuple[NDArray[np.uint32], NDArray[Any], NDArray[Any]]:
    """Quantise the rows of a matrix to words, scales and biases: value = scale * integer + bias.

    The end of a group's range that is larger in magnitude is exactly representable, and so is zero. The values are such
    as `dtype`, of scales and biases and a name of safetensors, can represent. Words have the lowest bits first.

    Shapes: (rows, columns) -> words (rows, columns * bits / 32), scales and biases (rows, columns / group_size)
    """
    rows, columns = matrix.shape
    assert columns % group_size == 0
    groups = matrix.reshape(rows, columns // group_size, group_size)
    low, high = groups.min(axis=-1), groups.max(axis=-1)
    bins = np.float32((1 << bits) - 1)
    is_low_larger = np.abs(low) > np.abs(high)
    scales = np.maximum((high - low) / bins, _SMALLEST_SCALE)
    scales = np.where(is_low_larger, scales, -scales)
    edges = np.where(is_low_larger, low, high)
    zeros = np.rint(edges / scales)
    has_edge = zeros != 0
    np.divide(edges, zeros, out=scales, where=has_edge)
    biases = np.where(has_edge, edges, np.float32(0))
    numbers = np.rint((groups - biases[..., None]) / scales[..., None])
    numbers = np.clip(numbers, 0, bins).astype(np.uint8).reshape(rows, columns)
    if bits == 4:
        numbers = numbers[:, 0::2] | (numbers[:, 1::2] << np.uint8(4))
    return np.ascontiguousarray(numbers).view("<u4"), narrow(scales, dtype), narrow(biases, dtype)
