"""Constants that are stored compressed.

Source: coremltools, converters/mil/mil/ops/defs/iOS18/compression.py and iOS16/constexpr_ops.py (the descriptions).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from convert.verify.blobs import unpack
from convert.verify.operations.registry import Ints, operation
from moddit.errors import FormatError, ValueRangeError


@operation("constexpr_cast", dtypes=("output_dtype",), mixed=("source_val",))
def cast(source_val: Tensor, output_dtype: str) -> Tensor:
    if output_dtype != "fp32":
        raise FormatError(f"output_dtype, got {output_dtype!r}, want 'fp32'")
    return source_val


@operation("constexpr_blockwise_shift_scale", dtypes=("scale",), mixed=("data", "offset"))
def shift_and_scale(data: Tensor, scale: Tensor, offset: Tensor | None = None) -> Tensor:
    """Give scale * (data - offset), where each scale and offset holds for a block of the data.

    Scales have to be positive: Core ML refuses others in `quantize`, and of weights nobody says what becomes of them.
    """
    wrong = scale[~(scale > 0)]  # NaN too
    if wrong.numel():
        raise ValueRangeError(
            f"scale: {wrong.numel()} of {scale.numel()} are not positive, the first is {float(wrong[0]):.3g}, want all "
            "above 0; convert the checkpoint again"
        )
    values = data.float()
    if offset is not None:
        values = values - _spread(offset.float(), data.shape)
    return values * _spread(scale, data.shape)


@operation("constexpr_lut_to_dense", dtypes=("lut",))
def look_up(indices: Tensor, lut: Tensor, vector_axis: int | None = None, shape: Ints | None = None) -> Tensor:
    """Look values up in tables.

    Since iOS 18 `lut` is (*tables, entries, vector), one table for each block of the indices, and each index stands
    for a vector along `vector_axis`. With `shape`, as in iOS 16, there is one table, and the indices are packed.
    """
    if shape is not None:
        return _look_up_packed(indices, lut, shape)
    *tables, entries, vector = lut.shape
    if indices.max() >= entries:
        raise FormatError(f"indices go up to {int(indices.max())}, want at most {entries - 1}")
    number = torch.arange(math.prod(tables)).reshape(tables)
    rows = _spread(number, indices.shape) * entries + indices
    values = lut.reshape(-1, vector)[rows]  # (*indices, vector)
    if vector_axis is None:
        if vector != 1:
            raise FormatError(f"vector_axis is absent, though an index stands for {vector} values")
        return values.squeeze(-1)
    axis = vector_axis % indices.dim()
    return values.movedim(-1, axis + 1).flatten(axis, axis + 1)


def _look_up_packed(indices: Tensor, lut: Tensor, shape: Ints) -> Tensor:
    bits = (lut.numel() - 1).bit_length()
    packed = indices.numpy().astype(np.uint8)
    if lut.numel() != 1 << bits or packed.size != -(-math.prod(shape) * bits // 8):
        raise FormatError(f"got {packed.size} bytes of indices into {lut.numel()} values for {list(shape)}")
    rows = torch.from_numpy(unpack(packed, bits, math.prod(shape)))
    return lut[rows.int()].reshape(shape)


def _spread(values: Tensor, shape: torch.Size) -> Tensor:
    """Repeat each value along every axis, so often that the values fill `shape`."""
    if values.dim() != len(shape) or any(size % count for size, count in zip(shape, values.shape, strict=True)):
        raise FormatError(f"blocks do not divide the data, got {list(values.shape)} of them for {list(shape)}")
    for axis, size in enumerate(shape):
        if values.shape[axis] not in (1, size):
            values = values.repeat_interleave(size // values.shape[axis], axis)
    return values
