"""Operations that rank tokens, take some of them out, and put them back.

What Core ML leaves open is an error here, or done in the way least likely to be relied on by mistake.
"""

from __future__ import annotations

import torch
from torch import Tensor

from convert.verify.operations.registry import Tensors, operation
from moddit.errors import FormatError, UnsupportedError, ValueRangeError


@operation("topk", dtypes=("x", "output_indices_dtype"))
def topk(
    x: Tensor,
    k: int = 1,
    axis: int = -1,
    ascending: bool = False,
    sort: bool = True,
    return_indices: bool = True,
    output_indices_dtype: str = "int32",  # noqa: ARG001 - the declaration, which is checked against it
) -> Tensors:
    """Give the k largest (or smallest) values; of equal ones, those with the lower index.

    With `sort=False` MIL promises no order, and they come from the last index to the first: a program that relies on
    an order by value or by index does not pass.
    """
    order = x.sort(dim=axis, descending=not ascending, stable=True).indices
    indices = order.narrow(axis, 0, k)
    if not sort:
        indices = indices.sort(dim=axis, descending=True).values
    values = x.gather(axis, indices)
    return (values, indices) if return_indices else (values,)


@operation("gather")
def gather(x: Tensor, indices: Tensor, axis: int = 0, batch_dims: int = 0, validate_indices: bool = False) -> Tensor:
    """Take slices of `x` along `axis`.

    Shapes: x (*B, *P, N, *Q), indices (*B, *I) -> (*B, *P, *I, *Q), with as many axes B as batch_dims
    """
    axis %= x.dim()
    if batch_dims:
        pairs = zip(x, indices, strict=True)
        return torch.stack([gather(one, rows, axis - 1, batch_dims - 1, validate_indices) for one, rows in pairs])
    rows = _check_indices(indices, x.shape[axis])
    taken = x.index_select(axis, rows.reshape(-1))
    return taken.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


@operation("scatter")
def scatter(
    data: Tensor,
    indices: Tensor,
    updates: Tensor,
    mode: str,
    axis: int = 0,
    validate_indices: bool = False,  # noqa: ARG001 - they are checked in any case
) -> Tensor:
    """Put slices along `axis`, as many as there are indices, into a copy of `data`."""
    if mode != "update":
        raise UnsupportedError(f"mode {mode!r}, want 'update'")
    rows = _check_indices(indices, data.shape[axis]).reshape(-1)
    axis %= data.dim()
    wanted = (*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :])
    if updates.shape != wanted:
        raise FormatError(f"updates have shape {list(updates.shape)}, want {list(wanted)}")
    slices = updates.reshape(*data.shape[:axis], -1, *data.shape[axis + 1 :])
    if (rows.sort().values.diff() == 0).any():
        raise ValueRangeError("indices repeat, so that it is open which of the updates stays")
    return data.index_copy(axis, rows, slices)


def _check_indices(indices: Tensor, size: int) -> Tensor:
    """Give indices as torch wants them; those out of range are an error, as Core ML leaves the result open."""
    if indices.numel() and not (indices.min() >= 0 and indices.max() < size):
        raise ValueRangeError(f"indices are in {int(indices.min())}..{int(indices.max())}, want them in 0..{size - 1}")
    return indices.long()
