"""Layers shared by the MLX models, and the fixed embeddings of positions and timesteps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray

MAX_PERIOD: Final = 10_000  # longest wavelength of the sinusoids, in positions or timesteps, over 2 pi

Linear = nn.Linear | nn.QuantizedLinear


def compute_dtype(layer: Linear) -> mx.Dtype:
    """Find the dtype a model computes in from one of its large linear layers, quantised or not."""
    return layer.scales.dtype if isinstance(layer, nn.QuantizedLinear) else layer.weight.dtype


def without_overflow(dtype: mx.Dtype) -> mx.Dtype:
    """Widen float16 to float32, for models whose activations leave float16's range (T5-XXL, the VAE of SDXL)."""
    return mx.float32 if dtype == mx.float16 else dtype


class GroupNorm(nn.GroupNorm):
    """PyTorch's group norm on NHWC; the result keeps the dtype of the input, whatever the dtype of the weights.

    Shapes:
        x (B, H, W, C) -> (B, H, W, C)
    """

    def __init__(self, groups: int, channels: int, eps: float):
        super().__init__(groups, channels, eps=eps, pytorch_compatible=True)

    def __call__(self, x: mx.array) -> mx.array:
        return super().__call__(x).astype(x.dtype)


def split_heads(x: mx.array, heads: int) -> mx.array:
    """Shapes: x (B, N, H * D) -> (B, H, N, D)."""
    B, N, C = x.shape
    return x.reshape(B, N, heads, C // heads).transpose(0, 2, 1, 3)


def merge_heads(x: mx.array) -> mx.array:
    """Shapes: x (B, H, N, D) -> (B, N, H * D)."""
    B, H, N, D = x.shape
    return x.transpose(0, 2, 1, 3).reshape(B, N, H * D)


class Attention(nn.Module):
    """Multi-head attention under diffusers' names. Keys and values may be computed once and used many times.

    Shapes:
        x (B, N, C); keys, values (B, H, L, D); mask (B, 1, 1, L) -> (B, N, C)
    """

    def __init__(self, channels: int, heads: int, *, bias: bool):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(channels, channels, bias=bias)
        self.to_k = nn.Linear(channels, channels, bias=bias)
        self.to_v = nn.Linear(channels, channels, bias=bias)
        self.to_out = [nn.Linear(channels, channels)]

    def keys_values(self, source: mx.array) -> tuple[mx.array, mx.array]:
        """Shapes: source (B, L, C) -> two of (B, H, L, D)."""
        return split_heads(self.to_k(source), self.heads), split_heads(self.to_v(source), self.heads)

    def __call__(self, x: mx.array, keys: mx.array, values: mx.array, mask: mx.array | None = None) -> mx.array:
        queries = split_heads(self.to_q(x), self.heads)
        scale = queries.shape[-1] ** -0.5
        mixed = mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask=mask)
        return self.to_out[0](merge_heads(mixed))


def sinusoid(values: Sequence[float], channels: int) -> NDArray[np.float32]:
    """Embed timesteps (or sizes) as diffusers' `Timesteps(channels, flip_sin_to_cos=True, downscale_freq_shift=0)`.

    Rounds to float32 where diffusers does: at t = 999 the last bit of a frequency moves its angle by 6e-5.

    Shapes:
        values (S,) -> (S, channels), cosines first
    """
    half = channels // 2
    exponents = np.float32(-math.log(MAX_PERIOD)) * np.arange(half, dtype=np.float32) / np.float32(half)
    frequencies = np.exp(exponents.astype(np.float64)).astype(np.float32)
    angles = (np.asarray(values, dtype=np.float32)[:, None] * frequencies).astype(np.float64)
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=-1).astype(np.float32)


def position_embedding(
    channels: int, height: int, width: int, *, base_size: int, interpolation_scale: float
) -> NDArray[np.float32]:
    """Embed the positions of a grid of patches as diffusers' `PatchEmbed`: columns in the first half of the channels.

    Positions are scaled so that any grid spans 0..base_size / interpolation_scale, where `base_size` is the side of the
    grid that the model was built for. All sizes count patches.

    Shapes:
        -> (height * width, channels), row by row
    """
    rows, columns = (_positions(count, base_size, interpolation_scale) for count in (height, width))
    grid_columns, grid_rows = np.meshgrid(columns, rows, indexing="xy")
    halves = [_axis_embedding(grid.reshape(-1), channels // 2) for grid in (grid_columns, grid_rows)]
    return np.concatenate(halves, axis=-1).astype(np.float32)


def _positions(count: int, base_size: int, interpolation_scale: float) -> NDArray[np.float32]:
    indices = np.arange(count, dtype=np.float32)
    return indices / np.float32(count / base_size) / np.float32(interpolation_scale)


def _axis_embedding(positions: NDArray[np.float32], channels: int) -> NDArray[np.float64]:
    frequencies = 1.0 / MAX_PERIOD ** (np.arange(channels // 2, dtype=np.float64) / (channels / 2.0))
    angles = np.outer(positions.astype(np.float64), frequencies)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)
