"""Operations that move values, and make tensors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from convert.verify.operations.registry import Bools, Ints, Tensors, operation
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


@operation("concat")
def concat(values: Tensors, axis: int, interleave: bool = False) -> Tensor:
    if not interleave:
        return torch.cat(values, axis)
    axis %= values[0].dim()
    return torch.stack(values, axis + 1).flatten(axis, axis + 1)


@operation("stack")
def stack(values: Tensors, axis: int) -> Tensor:
    return torch.stack(values, axis)


@operation("tile")
def tile(x: Tensor, reps: Ints) -> Tensor:
    if len(reps) != x.dim():
        raise FormatError(f"reps, got {len(reps)} numbers, want {x.dim()}")
    return x.tile(reps)


@operation("slice_by_index")
def slice_by_index(
    x: Tensor,
    begin: Ints,
    end: Ints,
    stride: Ints | None = None,
    begin_mask: Bools | None = None,
    end_mask: Bools | None = None,
    squeeze_mask: Bools | None = None,
) -> Tensor:
    """Slice as numpy does. A mask sets aside the number of its axis; a squeezed axis is indexed with its begin."""
    none = (False,) * x.dim()
    rows = zip(
        x.shape,
        begin,
        end,
        stride or (1,) * x.dim(),
        begin_mask or none,
        end_mask or none,
        squeeze_mask or none,
        strict=True,
    )
    dropped = []
    for axis, (size, first, last, step, is_open, is_endless, is_single) in enumerate(rows):
        chosen = range(size)[slice(None if is_open else first, None if is_endless else last, step)]
        if is_single:
            chosen = range(size)[0 if is_open else first :][:1]
            dropped.append(axis)
        x = x.index_select(axis, torch.tensor(chosen, dtype=torch.int64))
    return x.squeeze(dropped)


@operation("slice_by_size")
def slice_by_size(x: Tensor, begin: Ints, size: Ints) -> Tensor:
    """Take `size` values from `begin` on along each axis; -1 takes all that follow."""
    for axis, (first, count) in enumerate(zip(begin, size, strict=True)):
        first %= x.shape[axis]
        x = x.narrow(axis, first, x.shape[axis] - first if count == -1 else count)
    return x


@operation("pad", mixed=("constant_val",))  # coremltools writes the default as fp32 beside x in fp16
def pad(x: Tensor, pad: Ints, mode: str = "constant", constant_val: float = 0.0) -> Tensor:
    """Pad the last axes; `pad` has the counts before and after each, the last axis last."""
    if mode != "constant":
        raise UnsupportedError(f"mode {mode!r}, want 'constant'")
    pairs = list(zip(pad[::2], pad[1::2], strict=True))
    return functional.pad(x, [count for pair in reversed(pairs) for count in pair], value=constant_val)


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


@operation("range_1d")
def range_1d(end: Tensor, start: Tensor, step: Tensor) -> Tensor:
    return torch.arange(start.item(), end.item(), step.item(), dtype=start.dtype)


@operation("fill", dtypes=("value",))
def fill(shape: Ints, value: Tensor) -> Tensor:
    return value.reshape(()).expand(shape).clone()


@operation("band_part")
def band_part(x: Tensor, lower: int = -1, upper: int = -1) -> Tensor:
    """Keep so many diagonals below and above the main one, all of them for a negative number; others become 0."""
    below = torch.arange(x.shape[-2])[:, None] - torch.arange(x.shape[-1])
    kept = ((lower < 0) | (below <= lower)) & ((upper < 0) | (-below <= upper))
    return x.where(kept, torch.zeros((), dtype=x.dtype))
