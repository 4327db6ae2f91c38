"""The T5 encoder as a Core ML function.

The residual stream of T5-XXL leaves float16's range, so it is float32, and with it the norms and the projections that
are added to it (`o`, `wo`); everything between is float16. Weights are stored in float16 either way.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil import Program, types

from convert.coreml.layers import MASKED, cast, linear, merge_heads, number, split_heads
from convert.coreml.package import build_program
from convert.coreml.weights import Var, Weights
from moddit.contract import BY_DISTANCE, INPUT_IDS, TEXT, TEXT_FUNCTION, TEXT_MASK
from moddit.embeddings import relative_buckets
from moddit.models.t5 import T5Spec


def build_t5(spec: T5Spec, weights: Weights, length: int) -> Program:
    """Build the program, for one text of `length` tokens, padding included.

    Its function takes input_ids (1, L) int32 and text_mask (1, L) float32, and gives text (1, L, d_model) float32; rows
    of padding are meaningless.
    """
    inputs = {
        INPUT_IDS: mb.placeholder([1, length], dtype=types.int32),
        TEXT_MASK: mb.placeholder([1, length], dtype=types.fp32),
    }

    def build(fed: Mapping[str, Var]) -> list[Var]:
        table = weights.emit("shared.weight", "fp16")
        rows = mb.gather(x=table, indices=fed[INPUT_IDS], axis=0, name="embedding")  # (1, L, d_model)
        x = cast(rows, "fp32", "embedding_fp32")
        bias = _attention_bias(spec, weights, fed[TEXT_MASK], length)
        for layer in range(spec.num_layers):
            x = _attention_layer(spec, weights, x, bias, layer)
            x = _feed_forward_layer(spec, weights, x, layer)
        return [_rms_norm(spec, weights, x, "encoder.final_layer_norm", TEXT)]

    return build_program([(TEXT_FUNCTION, inputs, build)])


def _attention_bias(spec: T5Spec, weights: Weights, mask: Var, length: int) -> Var:
    """Add the bias of relative positions and of padding. Shapes: mask (1, L) -> (1, H, L, L) float16."""
    name = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    buckets = relative_buckets(length, spec.relative_attention_num_buckets, spec.relative_attention_max_distance)
    # gathered here rather than on the device: (buckets, H) -> (1, H, L, L)
    positions = weights.emit(name, "fp16", lambda table: np.moveaxis(table[buckets], 2, 0)[None], BY_DISTANCE)
    padding = mb.mul(x=mb.sub(x=np.float32(1), y=mask, name="padding"), y=np.float32(MASKED), name="padding_bias")
    padding = mb.expand_dims(x=cast(padding, "fp16", "padding_bias_fp16"), axes=[1, 2], name="padding_rows")
    return mb.add(x=positions, y=padding, name="attention_bias")


def _attention_layer(spec: T5Spec, weights: Weights, x: Var, bias: Var, layer: int) -> Var:
    """Norm, attention without scaling of the scores, residual. Shapes: x (1, L, d_model) float32 -> the same."""
    name, tensor = f"block{layer:02}_attention", f"encoder.block.{layer}.layer.0."
    normed = cast(_rms_norm(spec, weights, x, tensor + "layer_norm", name + "_norm"), "fp16", name + "_norm_fp16")
    queries, keys, values = (
        linear(weights, normed, f"{tensor}SelfAttention.{part}", f"{name}_{part}") for part in "qkv"
    )
    mixed = mb.scaled_dot_product_attention(
        query=split_heads(_unscale(queries, spec.d_kv, name + "_q"), spec.num_heads, name + "_q"),
        key=split_heads(keys, spec.num_heads, name + "_k"),
        value=split_heads(values, spec.num_heads, name + "_v"),
        attn_mask=bias,
        name=name + "_sdpa",
    )
    mixed = cast(merge_heads(mixed, name), "fp32", name + "_mixed_fp32")
    branch = linear(weights, mixed, tensor + "SelfAttention.o", name + "_o")
    return mb.add(x=x, y=branch, name=name + "_residual")


def _unscale(queries: Var, width: int, name: str) -> Var:
    """Multiply by the root of a head's width, by which Core ML's attention divides and T5's does not.

    Of T5 v1.1 it is 8. Where it is no whole number, float16 does not hold it, and the product is float32.

    Shapes: queries (1, L, inner) float16 -> the same
    """
    root = math.sqrt(width)
    wide = queries if root.is_integer() else cast(queries, "fp32", name + "_fp32")
    return cast(mb.mul(x=wide, y=number(wide, root), name=name + "_unscaled"), "fp16", name + "_unscaled_fp16")


def _feed_forward_layer(spec: T5Spec, weights: Weights, x: Var, layer: int) -> Var:
    """Norm, activation, gated or not, residual. Shapes: x (1, L, d_model) float32 -> the same."""
    name, tensor = f"block{layer:02}_ff", f"encoder.block.{layer}.layer.1."
    normed = cast(_rms_norm(spec, weights, x, tensor + "layer_norm", name + "_norm"), "fp16", name + "_norm_fp16")
    dense = tensor + "DenseReluDense."
    if spec.is_gated:
        opened = _activate(spec, linear(weights, normed, dense + "wi_0", name + "_wi_0"), name)
        hidden = linear(weights, normed, dense + "wi_1", name + "_wi_1")
        # the product of two float16 numbers may leave float16's range
        hidden = mb.mul(x=opened, y=cast(hidden, "fp32", name + "_wi_1_fp32"), name=name + "_gated")
    else:
        hidden = _activate(spec, linear(weights, normed, dense + "wi", name + "_wi"), name)
    return mb.add(x=x, y=linear(weights, hidden, dense + "wo", name + "_wo"), name=name + "_residual")


def _activate(spec: T5Spec, x: Var, name: str) -> Var:
    """Apply the feed-forward layer's function. Shapes: x (1, L, d_ff) float16 -> the same in float32."""
    name = f"{name}_{spec.dense_act_fn}"
    if spec.dense_act_fn == "relu":
        activated = mb.relu(x=x, name=name)
    elif spec.dense_act_fn == "silu":
        activated = mb.silu(x=x, name=name)
    else:
        activated = mb.gelu(x=x, mode="TANH_APPROXIMATION" if spec.dense_act_fn == "gelu_new" else "EXACT", name=name)
    return cast(activated, "fp32", name + "_fp32")


def _rms_norm(spec: T5Spec, weights: Weights, x: Var, tensor: str, name: str) -> Var:
    """Shapes: x (1, L, d_model) float32 -> the same; squares of float16 numbers above 256 would overflow."""
    squares = mb.reduce_mean(x=mb.square(x=x, name=name + "_square"), axes=[-1], keep_dims=True, name=name + "_mean")
    factor = mb.rsqrt(x=squares, epsilon=number(x, spec.layer_norm_epsilon), name=name + "_rsqrt")
    scaled = mb.mul(x=x, y=factor, name=name + "_scaled")
    return mb.mul(x=scaled, y=weights.emit(tensor + ".weight", "fp32"), name=name)
