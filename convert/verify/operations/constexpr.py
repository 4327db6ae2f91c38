"""Constants that are stored compressed.

Source: coremltools, converters/mil/mil/ops/defs/iOS18/compression.py (the descriptions).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from convert.verify.operations.registry import operation
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
    blocks, single = _divide(data.shape, scale.shape)
    values = data.to(torch.float32, copy=True).reshape(blocks)
    if offset is not None:
        if offset.shape != scale.shape:
            raise FormatError(f"offset has shape {list(offset.shape)}, want {list(scale.shape)}, as scale")
        values -= offset.float().reshape(single)
    values *= scale.reshape(single)
    return values.reshape(data.shape)


@operation("constexpr_lut_to_dense", dtypes=("lut",))
def look_up(indices: Tensor, lut: Tensor) -> Tensor:
    """Look values up in tables, of which each block of the indices has one.

    Shapes: indices (*I), lut (*tables, entries, 1), as many tables as blocks along each axis of I -> (*I)
    """
    *tables, entries, vector = lut.shape
    if vector != 1:
        raise FormatError(f"lut: an index stands for {vector} values, want one")
    if indices.max() >= entries:
        raise FormatError(f"indices go up to {int(indices.max())}, want at most {entries - 1}")
    number = torch.arange(math.prod(tables)).reshape(tables)
    rows = _spread(number, indices.shape) * entries + indices
    return lut.reshape(-1)[rows]


def _divide(shape: torch.Size, counts: torch.Size) -> tuple[list[int], list[int]]:
    """Give the shape of data divided into blocks along every axis, and that of one value for each block."""
    _check_blocks(shape, counts)
    blocks = [size for pair in zip(counts, shape, strict=True) for size in (pair[0], pair[1] // pair[0])]
    return blocks, [size for count in counts for size in (count, 1)]


def _check_blocks(shape: torch.Size, counts: torch.Size) -> None:
    if len(counts) != len(shape) or any(size % count for size, count in zip(shape, counts, strict=True)):
        raise FormatError(f"blocks do not divide the data, got {list(counts)} of them for {list(shape)}")


def _spread(values: Tensor, shape: torch.Size) -> Tensor:
    """Repeat each value along every axis, so often that the values fill `shape`."""
    _check_blocks(shape, values.shape)
    for axis, size in enumerate(shape):
        if values.shape[axis] not in (1, size):
            values = values.repeat_interleave(size // values.shape[axis], axis)
    return values
