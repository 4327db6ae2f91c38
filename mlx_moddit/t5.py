"""T5 encoder on MLX (v1.0 with ReLU, v1.1 with gated GELU). Attribute names are transformers' tensor names.

Source: transformers `models/t5/modeling_t5.py`.
"""

from __future__ import annotations

from typing import Any, Final

import mlx.core as mx
import mlx.nn as nn

from mlx_moddit.layers import attend, compute_dtype, merge_heads, split_heads, without_overflow
from moddit.embeddings import relative_buckets
from moddit.models.t5 import T5Spec

ACTIVATIONS: Final = {"relu": nn.relu, "gelu": nn.gelu, "gelu_new": nn.gelu_approx, "silu": nn.silu}  # by spec's names


class RMSNorm(nn.Module):
    """Root mean square norm, computed in float32; the result keeps the dtype of the input."""

    def __init__(self, channels: int, eps: float):
        super().__init__()
        self.weight = mx.ones((channels,))
        self.eps = eps

    def __call__(self, x: mx.array) -> mx.array:
        return mx.fast.rms_norm(x, self.weight.astype(x.dtype), self.eps)


class SelfAttention(nn.Module):
    """Attention with an additive bias and without scaling of the scores.

    Shapes: x (B, L, d_model), bias (1 or B, H, L, L) -> (B, L, d_model)
    """

    def __init__(self, spec: T5Spec, *, has_bias_table: bool):
        super().__init__()
        inner = spec.num_heads * spec.d_kv
        self.heads = spec.num_heads
        self.q = nn.Linear(spec.d_model, inner, bias=False)
        self.k = nn.Linear(spec.d_model, inner, bias=False)
        self.v = nn.Linear(spec.d_model, inner, bias=False)
        self.o = nn.Linear(inner, spec.d_model, bias=False)
        if has_bias_table:
            self.relative_attention_bias = nn.Embedding(spec.relative_attention_num_buckets, spec.num_heads)

    def __call__(self, x: mx.array, bias: mx.array) -> mx.array:
        queries, keys, values = (split_heads(layer(x), self.heads) for layer in (self.q, self.k, self.v))
        return self.o(merge_heads(attend(queries, keys, values, 1.0, bias)))


class DenseReluDense(nn.Module):
    """The feed-forward layer, in both of its forms. Shapes: x (B, L, d_model) -> (B, L, d_model)."""

    def __init__(self, spec: T5Spec):
        super().__init__()
        self.is_gated = spec.is_gated
        self.activation = ACTIVATIONS[spec.dense_act_fn]
        for name in ("wi_0", "wi_1") if spec.is_gated else ("wi",):
            setattr(self, name, nn.Linear(spec.d_model, spec.d_ff, bias=False))
        self.wo = nn.Linear(spec.d_ff, spec.d_model, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        if self.is_gated:
            return self.wo(self.activation(self.wi_0(x)) * self.wi_1(x))
        return self.wo(self.activation(self.wi(x)))


class Block(nn.Module):
    """Self-attention and feed-forward layer, each with its norm and residual.

    Shapes: x (B, L, d_model), bias (1 or B, H, L, L) -> (B, L, d_model)
    """

    def __init__(self, spec: T5Spec, *, has_bias_table: bool):
        super().__init__()
        norms = [RMSNorm(spec.d_model, spec.layer_norm_epsilon) for _ in range(2)]
        self.layer = [
            {"SelfAttention": SelfAttention(spec, has_bias_table=has_bias_table), "layer_norm": norms[0]},
            {"DenseReluDense": DenseReluDense(spec), "layer_norm": norms[1]},
        ]

    def __call__(self, x: mx.array, bias: mx.array) -> mx.array:
        attention, feed_forward = self.layer
        x = x + attention["SelfAttention"](attention["layer_norm"](x), bias)
        return x + feed_forward["DenseReluDense"](feed_forward["layer_norm"](x))


class T5Encoder(nn.Module):
    """T5EncoderModel. Activations are float32 where the weights are float16, whose range T5-XXL's residuals leave."""

    def __init__(self, spec: T5Spec):
        super().__init__()
        self.spec = spec
        self.shared = nn.Embedding(spec.vocab_size, spec.d_model)
        self.encoder: dict[str, Any] = {
            "block": [Block(spec, has_bias_table=index == 0) for index in range(spec.num_layers)],
            "final_layer_norm": RMSNorm(spec.d_model, spec.layer_norm_epsilon),
        }

    def __call__(self, ids: mx.array, mask: mx.array | None = None, *, release: bool = False) -> mx.array:
        """Encode texts; the mask is true for real tokens, of which every row needs one, and None if all are real.

        `release` evaluates block by block and drops each block's weights after it ran, so that about one block is in
        memory at a time if the weights were loaded lazily. The encoder cannot be used again.

        Shapes: ids (B, L), mask (B, L) -> (B, L, d_model); rows of padding are meaningless
        """
        blocks, final_norm = self.encoder["block"], self.encoder["final_layer_norm"]
        dtype = without_overflow(compute_dtype(blocks[0].layer[0]["SelfAttention"].q))
        x = self.shared(ids).astype(dtype)
        bias = self._bias(ids.shape[1], mask).astype(dtype)
        for index, block in enumerate(blocks):
            x = block(x, bias)
            if release:
                mx.eval(x, bias)
                blocks[index] = nn.Identity()
        return final_norm(x)

    def _bias(self, length: int, mask: mx.array | None) -> mx.array:
        """Shapes: mask (B, L) -> (1 or B, H, L, L) float32."""
        table = self.encoder["block"][0].layer[0]["SelfAttention"].relative_attention_bias
        count, max_distance = self.spec.relative_attention_num_buckets, self.spec.relative_attention_max_distance
        buckets = relative_buckets(length, count, max_distance)
        bias = table(mx.array(buckets)).astype(mx.float32).transpose(2, 0, 1)[None]
        return bias if mask is None else mx.where(mask.astype(mx.bool_)[:, None, None, :], bias, -mx.inf)
