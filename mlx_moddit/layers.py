"""Layers shared by the MLX models."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, Final, TypeVar, cast

import mlx.core as mx
import mlx.nn as nn

# Metal's fused attention takes heads of these widths, if there are more queries than that (mlx 0.32.4); of others it
# takes some, but MLX prefers not to use it.
FUSED_WIDTHS: Final = frozenset({64, 72, 80, 96, 128})
UNFUSED_QUERIES: Final = 8

M3_GENERATION: Final = 15  # in the names of Apple's GPUs, such as applegpu_g13s of an M1 Max

JOINED: Final = {"to_qkv": ("to_q", "to_k", "to_v")}  # layers that become one, by its name

Linear = nn.Linear | nn.QuantizedLinear
F = TypeVar("F", bound=Callable[..., mx.array])


def compute_dtype(layer: Linear) -> mx.Dtype:
    """Find the dtype a model computes in from one of its large linear layers, quantised or not."""
    if isinstance(layer, nn.QuantizedLinear):
        return layer.scales.dtype if "biases" in layer else layer.dtype  # which `load` has told those without biases
    return layer.weight.dtype


def without_overflow(dtype: mx.Dtype) -> mx.Dtype:
    """Widen float16 to float32, for models whose activations leave float16's range (T5-XXL, the VAE of SDXL)."""
    return mx.float32 if dtype == mx.float16 else dtype


def has_bfloat16() -> bool:
    """Whether the default device is a GPU of Apple that computes in bfloat16: M3 and later; before it is emulated."""
    generation = re.match(r"applegpu_g(\d+)", str(mx.device_info().get("architecture", "")))
    return generation is not None and int(generation[1]) >= M3_GENERATION


def joined_on_gpu(function: F) -> F:
    """Compile operations on single numbers to one kernel where MLX computes on a GPU.

    On a CPU the compiler takes more than a second for each, and the kernels were not faster.
    """
    joined = mx.compile(function)

    @wraps(function)
    def choose(*arrays: mx.array) -> mx.array:
        return (function if mx.default_device() == mx.cpu else joined)(*arrays)

    return cast(F, choose)


@joined_on_gpu
def add_gated(x: mx.array, y: mx.array, *gates: mx.array) -> mx.array:
    """Add what a branch gave, times its gates, which broadcast. Shapes: x, y (B, N, C) -> (B, N, C)."""
    return x + math.prod(gates, start=y)


@joined_on_gpu
def modulate(x: mx.array, scale: mx.array, shift: mx.array) -> mx.array:
    """Shapes: x (B, N, C), scale, shift (B, 1, C) -> (B, N, C)."""
    return x * scale + shift


class GroupNorm(nn.GroupNorm):
    """PyTorch's group norm on NHWC; the result keeps the dtype of the input, whatever the dtype of the weights.

    Its statistics are float32, and no sum has more terms than a picture has rows: of the group norm that MLX has, the
    error on a CPU grows with the picture, to 1e-3 of the result at 512 pixels.

    Shapes: x (B, H, W, C) -> (B, H, W, C)
    """

    def __init__(self, groups: int, channels: int, eps: float):
        super().__init__(groups, channels, eps=eps)

    def __call__(self, x: mx.array) -> mx.array:
        mean, scale = self.merge([x.shape[1]], [channel_moments(x)])
        return ((x - mean) * scale + self.bias).astype(x.dtype)

    def merge(self, rows: Sequence[int], moments: Sequence[tuple[mx.array, mx.array]]) -> tuple[mx.array, mx.array]:
        """Find what to subtract from a picture and what to multiply it with then, from the moments of its strips.

        Args:
            rows: of each strip; all have the picture's width.
            moments: of each strip (`channel_moments`).

        Shapes:
            -> two of (B, 1, 1, C) float32

        Source: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances".
        """
        B, C = moments[0][0].shape
        size = C // self.num_groups
        means, variances = (
            mx.stack(list(part)).reshape(-1, B, self.num_groups, size) for part in zip(*moments, strict=True)
        )
        weight = mx.array([count / (sum(rows) * size) for count in rows]).reshape(-1, 1, 1, 1)
        mean = mx.sum(means * weight, axis=(0, 3), keepdims=True)
        variance = mx.sum((variances + mx.square(means - mean)) * weight, axis=(0, 3), keepdims=True)
        mean, deviation = (
            mx.broadcast_to(part[0], (B, self.num_groups, size)).reshape(B, 1, 1, C)
            for part in (mean, mx.rsqrt(variance + self.eps))
        )
        return mean, deviation * self.weight


def channel_moments(x: mx.array) -> tuple[mx.array, mx.array]:
    """Compute mean and variance of each channel.

    Shapes:
        x (B, H, W, C) -> two of (B, C) float32
    """
    x = x.astype(mx.float32)
    mean = mx.mean(mx.mean(x, axis=2), axis=1)
    return mean, mx.mean(mx.mean(mx.square(x - mean[:, None, None]), axis=2), axis=1)


def split_heads(x: mx.array, heads: int) -> mx.array:
    """Shapes: x (B, N, H * D) -> (B, H, N, D)."""
    B, N, C = x.shape
    return x.reshape(B, N, heads, C // heads).transpose(0, 2, 1, 3)


def merge_heads(x: mx.array) -> mx.array:
    """Shapes: x (B, H, N, D) -> (B, N, H * D)."""
    B, H, N, D = x.shape
    return x.transpose(0, 2, 1, 3).reshape(B, N, H * D)


def attend(queries: mx.array, keys: mx.array, values: mx.array, scale: float, mask: mx.array | None) -> mx.array:
    """Mix values by the softmax of scaled scores; on Metal without ever holding the scores of all heads.

    Where Metal has a fused kernel MLX may not do without it: at 4096 tokens the scores of PixArt XL take 1 GB in
    float16, and nothing would tell.

    Shapes: queries (B, H, N, D), keys, values (B, H, L, D), mask boolean or additive (B, H or 1, N or 1, L)
        -> (B, H, N, D)
    """
    is_metal = mx.metal.is_available() and mx.default_device() == mx.gpu
    is_fused = is_metal and queries.shape[-1] in FUSED_WIDTHS and queries.shape[-2] > UNFUSED_QUERIES
    return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask=mask, force_fused=is_fused)


def join(layers: Sequence[Linear]) -> Linear:
    """Make one layer of several that take the same input: it has their outputs one after the other.

    The first is changed. All are quantised alike, or none is.
    """
    first = layers[0]
    first.update({name: mx.concatenate([layer[name] for layer in layers]) for name in first.parameters()})
    return first


def _layout(layer: Linear) -> tuple[Any, ...]:
    """Give what has to be alike in layers that are joined."""
    packing = (layer.group_size, layer.bits, layer.mode) if isinstance(layer, nn.QuantizedLinear) else ()
    return (frozenset(layer.parameters()), *packing)


class Attention(nn.Module):
    """Multi-head attention under diffusers' names. Keys and values may be computed once and used many times.

    Shapes: x (B, N, C); keys, values (B, H, L, D); mask (B, 1, 1, L) -> (B, N, C)
    """

    def __init__(self, channels: int, heads: int, *, bias: bool):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(channels, channels, bias=bias)
        self.to_k = nn.Linear(channels, channels, bias=bias)
        self.to_v = nn.Linear(channels, channels, bias=bias)
        self.to_out = [nn.Linear(channels, channels)]

    def join_projections(self) -> None:
        """Compute queries, keys and values in one product from now on: `self_attend` is all that still works."""
        parts = [self[name] for name in JOINED["to_qkv"]]
        if len({_layout(part) for part in parts}) == 1:
            self.to_qkv = join(parts)
            del self.to_q, self.to_k, self.to_v

    def keys_values(self, source: mx.array) -> tuple[mx.array, mx.array]:
        """Shapes: source (B, L, C) -> two of (B, H, L, D)."""
        return split_heads(self.to_k(source), self.heads), split_heads(self.to_v(source), self.heads)

    def __call__(self, x: mx.array, keys: mx.array, values: mx.array, mask: mx.array | None = None) -> mx.array:
        return self._mix(split_heads(self.to_q(x), self.heads), keys, values, mask)

    def self_attend(self, x: mx.array) -> mx.array:
        """Attend to the queries' own source. Shapes: x (B, N, C) -> (B, N, C)."""
        if "to_qkv" not in self:
            return self(x, *self.keys_values(x))
        queries, keys, values = (split_heads(part, self.heads) for part in mx.split(self.to_qkv(x), 3, axis=-1))
        return self._mix(queries, keys, values, None)

    def _mix(self, queries: mx.array, keys: mx.array, values: mx.array, mask: mx.array | None) -> mx.array:
        mixed = attend(queries, keys, values, queries.shape[-1] ** -0.5, mask)
        return self.to_out[0](merge_heads(mixed))
