"""Layers that the graphs share. A layer computes in the dtype of its input; its name is the name of its operation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil import types

from convert.coreml.weights import Var, Weights

MASKED: Final = -10000.0  # attention bias of a text token that is padding, as in diffusers; fits float16


def dtype_of(x: Var) -> str:
    """Name the dtype of a value as MIL does: "fp16", "fp32" or "int32"."""
    return str(types.builtin_to_string(x.dtype))


def number(x: Var, value: float) -> np.floating:
    """Make a constant of the dtype of `x`."""
    return np.float16(value) if dtype_of(x) == "fp16" else np.float32(value)


def cast(x: Var, dtype: str, name: str) -> Var:
    """Change the dtype if it is another one."""
    return x if dtype_of(x) == dtype else mb.cast(x=x, dtype=dtype, name=name)


def linear(weights: Weights, x: Var, tensor: str, name: str) -> Var:
    """Linear layer with the tensors `tensor`.weight and, where the model has it, `tensor`.bias.

    Shapes: x (..., in) -> (..., out)
    """
    dtype = dtype_of(x)
    weight = weights.emit(tensor + ".weight", dtype)
    if tensor + ".bias" not in weights:
        return mb.linear(x=x, weight=weight, name=name)
    return mb.linear(x=x, weight=weight, bias=weights.emit(tensor + ".bias", dtype), name=name)


def conv(
    weights: Weights, x: Var, tensor: str, name: str, *, stride: int = 1, pad: Sequence[int] = (1, 1, 1, 1)
) -> Var:
    """Convolution; `pad` counts the zeros above, below, left and right. Shapes: x (B, in, H, W) -> (B, out, H', W')."""
    dtype = dtype_of(x)
    return mb.conv(
        x=x,
        weight=weights.emit(tensor + ".weight", dtype),
        bias=weights.emit(tensor + ".bias", dtype),
        strides=[stride, stride],
        pad_type="custom",
        pad=list(pad),
        name=name,
    )


def split_heads(x: Var, heads: int, name: str) -> Var:
    """Shapes: x (B, N, H * D) -> (B, H, N, D)."""
    batch, count, width = x.shape
    rows = mb.reshape(x=x, shape=[batch, count, heads, width // heads], name=name + "_split")
    return mb.transpose(x=rows, perm=[0, 2, 1, 3], name=name + "_heads")


def merge_heads(x: Var, name: str) -> Var:
    """Shapes: x (B, H, N, D) -> (B, N, H * D)."""
    batch, heads, count, width = x.shape
    rows = mb.transpose(x=x, perm=[0, 2, 1, 3], name=name + "_rows")
    return mb.reshape(x=rows, shape=[batch, count, heads * width], name=name + "_merge")


def project_heads(weights: Weights, x: Var, tensor: str, part: str, heads: int, name: str) -> Var:
    """Compute queries ("q"), keys ("k") or values ("v"). Shapes: x (B, N, C) -> (B, H, N, D)."""
    return split_heads(linear(weights, x, f"{tensor}.to_{part}", f"{name}_to_{part}"), heads, f"{name}_{part}")


def self_attention(weights: Weights, x: Var, tensor: str, heads: int, name: str) -> Var:
    """Attention of tokens to each other, under diffusers' tensor names. Shapes: x (B, N, C) -> the same."""
    keys, values = (project_heads(weights, x, tensor, part, heads, name) for part in ("k", "v"))
    return attention(weights, x, keys, values, tensor, name)


def attention(weights: Weights, x: Var, keys: Var, values: Var, tensor: str, name: str, mask: Var | None = None) -> Var:
    """Attention under diffusers' tensor names, with an additive mask.

    Shapes: x (B, N, C), keys and values (B, H, L, D), mask (B, 1, 1, L) -> (B, N, C)
    """
    queries = project_heads(weights, x, tensor, "q", keys.shape[1], name)
    masks = {} if mask is None else {"attn_mask": mask}
    mixed = mb.scaled_dot_product_attention(query=queries, key=keys, value=values, name=name + "_sdpa", **masks)
    return linear(weights, merge_heads(mixed, name), tensor + ".to_out.0", name + "_to_out")
