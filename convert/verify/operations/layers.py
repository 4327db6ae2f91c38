"""Operations of neural networks: products, convolution, normalisation, attention, reductions."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from convert.verify.operations.registry import Ints, operation
from moddit.errors import FormatError, UnsupportedError


@operation("linear", mixed=("weight", "bias"))
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return functional.linear(x, weight, bias)


@operation("matmul", mixed=("y",))
def matmul(x: Tensor, y: Tensor, transpose_x: bool = False, transpose_y: bool = False) -> Tensor:
    return torch.matmul(x.mT if transpose_x else x, y.mT if transpose_y else y)


@operation("conv", mixed=("weight", "bias"))
def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    strides: Ints | None = None,
    pad_type: str = "valid",
    pad: Ints | None = None,
    dilations: Ints | None = None,
    groups: int = 1,
) -> Tensor:
    """Convolve pictures; `pad` counts the zeros above, below, left and right.

    Shapes: x (B, in, H, W), weight (out, in / groups, h, w), bias (out,) -> (B, out, H', W')
    """
    if pad_type not in ("valid", "custom"):
        raise UnsupportedError(f"pad_type {pad_type!r}, want 'valid' or 'custom'")
    above, below, left, right = pad if pad_type == "custom" and pad else (0, 0, 0, 0)
    padded = functional.pad(x, (left, right, above, below))
    return functional.conv2d(padded, weight, bias, strides or 1, dilation=dilations or 1, groups=groups)


@operation("scaled_dot_product_attention", mixed=("attn_mask",))
def attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """Attend. One head after the other, as the scores of all of them would take gigabytes.

    A row whose keys are all masked by -inf or False gives NaN, where torch's own function may hide it.

    Shapes: query (*B, L, E), key (*B, S, E), value (*B, S, F), attn_mask broadcastable to (*B, L, S) -> (*B, L, F)
    """
    batch = query.shape[:-2]
    scale = 1 / math.sqrt(query.shape[-1])
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros(attn_mask.shape).masked_fill(~attn_mask, -math.inf)
    mask = None if attn_mask is None else attn_mask.expand(*batch, query.shape[-2], key.shape[-2])
    result = query.new_empty(*query.shape[:-1], value.shape[-1])
    for head in np.ndindex(*batch):
        scores = query[head] @ key[head].mT * scale
        if mask is not None:
            scores = scores + mask[head]
        result[head] = scores.softmax(-1) @ value[head]
    return result


@operation("layer_norm", mixed=("gamma", "beta", "epsilon"))
def layer_norm(
    x: Tensor,
    axes: Ints | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    """Bring to mean 0 and variance 1 over `axes`, then scale and shift by tensors of their sizes."""
    axes = _normalise(axes, x.dim())
    shape = [size if axis in axes else 1 for axis, size in enumerate(x.shape)]
    centred = x - x.mean(axes, keepdim=True)
    result = centred / (centred.square().mean(axes, keepdim=True) + epsilon).sqrt()
    if gamma is not None:
        result = result * gamma.reshape(shape)
    return result if beta is None else result + beta.reshape(shape)


@operation("reduce_mean")
def reduce_mean(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    if not x.is_floating_point():
        raise UnsupportedError("mean of integers, whose rounding MIL does not describe; cast to fp32 first")
    return x.mean(_normalise(axes, x.dim()), keepdim=keep_dims)


@operation("reduce_sum")
def reduce_sum(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    return x.sum(_normalise(axes, x.dim()), keepdim=keep_dims)


def _normalise(axes: Ints | None, rank: int) -> Ints:
    """Give axes that count from the front; all of them for None."""
    if axes is None:
        return tuple(range(rank))
    if not all(-rank <= axis < rank for axis in axes):
        raise FormatError(f"axes, got {list(axes)}, want numbers in [{-rank}, {rank})")
    return tuple(axis % rank for axis in axes)
