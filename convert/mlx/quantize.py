"""Quantisation of a matrix, bit for bit as `mlx.core.quantize` does it on the CPU.

Source: ml-explore/mlx, mlx/backend/cpu/quantized.cpp, `quantize`, and mlx/ops.cpp, `fp_quantize`.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from moddit.checkpoint.precision import narrow, widen
from moddit.quantization import AFFINE, Packing

_SMALLEST_SCALE: Final = np.float32(1e-7)
_E2M1: Final = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)  # by the number of three bits
_BETWEEN: Final = (_E2M1[1:] + _E2M1[:-1]) / 2
_EXPONENT_BIAS: Final = 127  # of a scale in e8m0, a power of two


def quantize(matrix: NDArray[np.float32], dtype: str, packing: Packing) -> tuple[NDArray[Any], ...]:
    """Quantise the rows of a matrix to words and scales, in affine mode with biases.

    The values are such as `dtype`, a name of safetensors, can represent; scales and biases in affine mode have it.
    Words have the lowest bits first.

    Shapes: (rows, columns) -> as `Packing.parts`, of uint32, and `dtype` or uint8 (mxfp4)
    """
    rows, columns = matrix.shape
    assert columns % packing.group_size == 0
    groups = matrix.reshape(rows, columns // packing.group_size, packing.group_size)
    numbers, *others = _affine(groups, dtype, packing.bits) if packing.mode == AFFINE else _mxfp4(groups, dtype)
    return _pack(numbers.reshape(rows, columns), packing.bits), *others


def _affine(groups: NDArray[np.float32], dtype: str, bits: int) -> tuple[NDArray[Any], ...]:
    """Quantise to value = scale * number + bias.

    The end of a group's range that is larger in magnitude is exactly representable, and so is zero.

    Shapes: (rows, groups, group_size) -> numbers alike, scales and biases (rows, groups)
    """
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
    return np.clip(numbers, 0, bins).astype(np.uint8), narrow(scales, dtype), narrow(biases, dtype)


def _mxfp4(groups: NDArray[np.float32], dtype: str) -> tuple[NDArray[Any], ...]:
    """Quantise to value = 2 ** (scale - 127) * E2M1; the power of two is the least at which nothing is clipped.

    Halfway goes to the number nearer to zero, and what becomes zero loses its sign.

    Shapes: (rows, groups, 32) -> numbers alike, scales (rows, groups)
    Source: Open Compute Project, "OCP Microscaling Formats (MX) Specification", version 1.0.
    """
    largest = widen(narrow(np.abs(groups).max(axis=-1) / _E2M1[-1], dtype), dtype)
    fraction, exponents = np.frexp(largest)
    exponents = np.maximum(exponents - (fraction == 0.5), -_EXPONENT_BIAS)
    magnitudes = np.searchsorted(_BETWEEN, np.abs(np.ldexp(groups, -exponents[..., None]))).astype(np.uint8)
    signs = ((groups < 0) & (magnitudes > 0)).astype(np.uint8) << np.uint8(3)
    return magnitudes | signs, (exponents + _EXPONENT_BIAS).astype(np.uint8)


def _pack(numbers: NDArray[np.uint8], bits: int) -> NDArray[np.uint32]:
    """Write numbers one after the other, the lowest bits first.

    Shapes: (rows, columns) -> (rows, columns * bits / 32)
    """
    rows, columns = numbers.shape
    shifts = np.arange(0, 8 * bits, bits, dtype=np.uint64)
    eights = np.bitwise_or.reduce(numbers.reshape(rows, columns // 8, 8).astype("<u8") << shifts, axis=-1)
    octets = eights.view(np.uint8).reshape(rows, columns // 8, 8)[..., :bits]
    return np.ascontiguousarray(octets).reshape(rows, -1).view("<u4")
