"""Layers shared by the MLX models."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

Linear = nn.Linear | nn.QuantizedLinear


def compute_dtype(layer: Linear) -> mx.Dtype:
    """Find the dtype a model computes in from one of its large linear layers, quantised or not."""
    return layer.scales.dtype if isinstance(layer, nn.QuantizedLinear) else layer.weight.dtype


def without_overflow(dtype: mx.Dtype) -> mx.Dtype:
    """Widen float16 to float32, for models whose activations leave float16's range (T5-XXL, the VAE of SDXL)."""
    return mx.float32 if dtype == mx.float16 else dtype


class GroupNorm(nn.GroupNorm):
    """PyTorch's group norm on NHWC; the result keeps the dtype of the input, whatever the dtype of the weights.

    Shapes: x (B, H, W, C) -> (B, H, W, C)
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

    Shapes: x (B, N, C); keys, values (B, H, L, D); mask (B, 1, 1, L) -> (B, N, C)
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
