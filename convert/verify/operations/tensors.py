"""Operations that move values, and make tensors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from convert.verify.operations.registry import Ints, Tensors, operation
from moddit.errors import FormatError, UnsupportedError


@operation("reshape")
def reshape(x: Tensor, shape: Ints) -> Tensor:
    """Reshape; 0 keeps the size of the same axis, -1 takes what is left."""
    if 0 in shape and len(shape) != x.dim():
        raise FormatError(f"shape, got {list(shape)}, want as many as the {x.dim()} axes of x, for it has zeros")
    return x.reshape([size or x.shape[axis] for axis, size in enumerate(shape)])


@operation("transpose")
def transpose(x: Tensor, perm: Ints) -> Tensor:
    return x.permute(perm)


@operation("expand_dims")
def expand_dims(x: Tensor, axes: Ints) -> Tensor:
    """Insert axes of size 1, numbered as in the result."""
    rank = x.dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


@operation("squeeze")
def squeeze(x: Tensor, axes: Ints | None = None) -> Tensor:
    """Drop axes of size 1; others are left, as PyTorch does and MIL says."""
    return x.squeeze() if axes is None else x.squeeze(axes)


@operation("split")
def split(x: Tensor, axis: int, num_splits: int | None = None, split_sizes: Ints | None = None) -> Tensors:
    size = x.shape[axis]
    if split_sizes is None:
        if num_splits is None or num_splits < 1 or size % num_splits:
            raise FormatError(f"num_splits, got {num_splits}, want a divisor of {size}, for split_sizes is absent")
        split_sizes = (size // num_splits,) * num_splits
    if sum(split_sizes) != size or num_splits not in (None, len(split_sizes)):
        raise FormatError(f"split_sizes, got {list(split_sizes)}, want {num_splits or 'some'} that add up to {size}")
    return tuple(x.split(split_sizes, axis))


@operation("slice_by_index")
def slice_by_index(x: Tensor, begin: Ints, end: Ints) -> Tensor:
    """Take what is from `begin` up to `end` on every axis."""
    if len(begin) != x.dim() or len(end) != x.dim():
        raise FormatError(f"begin and end, got {len(begin)} and {len(end)} numbers, want {x.dim()}")
    if not all(0 <= first < last <= size for first, last, size in zip(begin, end, x.shape, strict=True)):
        raise FormatError(f"begin and end, got {list(begin)} and {list(end)}, want a part of {list(x.shape)}")
    return x[tuple(map(slice, begin, end))]


@operation("concat")
def concat(values: Tensors, axis: int, interleave: bool = False) -> Tensor:
    if not interleave:
        return torch.cat(values, axis)
    axis %= values[0].dim()
    return torch.stack(values, axis + 1).flatten(axis, axis + 1)


@operation("tile")
def tile(x: Tensor, reps: Ints) -> Tensor:
    if len(reps) != x.dim():
        raise FormatError(f"reps, got {len(reps)} numbers, want {x.dim()}")
    return x.tile(reps)


@operation("pixel_shuffle")
def pixel_shuffle(x: Tensor, upscale_factor: int) -> Tensor:
    return functional.pixel_shuffle(x, upscale_factor)


@operation("upsample_nearest_neighbor", mixed=("scale_factor_height", "scale_factor_width"))
def upsample_nearest_neighbor(x: Tensor, scale_factor_height: float = 1.0, scale_factor_width: float = 1.0) -> Tensor:
    for axis, factor in ((-2, scale_factor_height), (-1, scale_factor_width)):
        if factor < 1 or factor != int(factor):
            raise UnsupportedError(f"scale factor {factor}, want a whole number")
        x = x.repeat_interleave(int(factor), axis)
    return x
