"""The T5 encoder: its dimensions and its tensors.

Source: transformers `models/t5/{configuration_t5,modeling_t5}.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Final

from moddit.bounds import Buckets, Distance, Epsilon, Heads, HeadWidth, Layers, Name, Vocabulary, Width
from moddit.errors import UnsupportedError, ValueRangeError
from moddit.models.config import EXPORT_AGAIN, ComponentSpec, Config, check_implemented
from moddit.operations import Operation, activate, attend, combine, matmul, normalise
from moddit.record import Keys, Origin, decode, quote
from moddit.tensors import Role, TensorInfo, Tensors, linear

T5_IMPLEMENTED: Final[dict[str, tuple[Any, ...]]] = {
    "model_type": ("t5",),
    "is_decoder": (False,),
    "transformers_weights": (None,),  # a file instead of the one with the usual name
}
# Activations of T5's feed-forward layers, by all names that transformers has for them.
T5_ACTIVATIONS: Final[dict[str, str]] = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    **dict.fromkeys(("gelu_new", "gelu_fast", "gelu_accurate", "gelu_pytorch_tanh", "gelu_python_tanh"), "gelu_new"),
    "silu": "silu",
    "swish": "silu",
}
# Other names of T5's dimensions, which transformers accepts.
_ALIASES: Final[dict[str, str]] = {
    "d_model": "hidden_size",
    "num_heads": "num_attention_heads",
    "num_layers": "num_hidden_layers",
    "d_kv": "head_dim",
}


@dataclass(frozen=True)
class T5Spec(ComponentSpec):
    """Dimensions of a T5 encoder."""

    vocab_size: Vocabulary
    d_model: Width
    d_kv: HeadWidth  # width of a head
    d_ff: Width
    num_layers: Layers
    num_heads: Heads
    relative_attention_num_buckets: Buckets
    relative_attention_max_distance: Distance
    is_gated: bool  # T5 v1.1: act(wi_0 x) * wi_1 x; else act(wi x)
    dense_act_fn: Name  # act: "relu", "gelu", "gelu_new" (by tanh) or "silu"
    layer_norm_epsilon: Epsilon

    def __post_init__(self) -> None:
        if self.dense_act_fn not in T5_ACTIVATIONS.values():
            wanted = ", ".join(sorted(set(T5_ACTIVATIONS.values())))
            raise UnsupportedError(
                f"[spec] dense_act_fn = {quote(self.dense_act_fn)} is not implemented, want {wanted}"
            )
        nearest = self.relative_attention_num_buckets // 4  # distances up to here have buckets of their own
        if self.relative_attention_max_distance <= nearest:
            raise ValueRangeError(
                f"[spec] relative_attention_max_distance is {self.relative_attention_max_distance}, want more than "
                f"{nearest}, a quarter of relative_attention_num_buckets"
            )

    @classmethod
    def from_transformers(cls, config: Config, where: str) -> T5Spec:
        """Read transformers' T5Config, of a T5EncoderModel; raises InputError, naming `where` and the key."""
        check_implemented(config, T5_IMPLEMENTED, where)
        config = {**{key: config[alias] for key, alias in _ALIASES.items() if alias in config}, **config}
        found = decode(config, _Config, Origin("spec", where, EXPORT_AGAIN), Keys.ANY)
        # As T5Config: the layer's name says both, and the fields that it is written out to decide.
        *gate, name = found.feed_forward_proj.split("-")
        name = "gelu_new" if found.feed_forward_proj == "gated-gelu" else name
        activation = found.dense_act_fn or name
        if gate not in ([], ["gated"]) or activation not in T5_ACTIVATIONS:
            raise UnsupportedError(
                f"[spec] {where}: dense_act_fn = {quote(activation)} of feed_forward_proj = "
                f"{quote(found.feed_forward_proj)} is not implemented, want one of {', '.join(T5_ACTIVATIONS)}"
            )
        read = {
            "is_gated": bool(gate) if found.is_gated_act is None else found.is_gated_act,
            "dense_act_fn": T5_ACTIVATIONS[activation],
        }
        names = {field.name for field in fields(cls)} - read.keys()
        return decode({name: getattr(found, name) for name in names} | read, cls, Origin("spec", where))

    def operations(self, tokens: int) -> list[Operation]:
        """List the operations that encode a text of so many tokens."""
        width, inner = self.d_model, self.num_heads * self.d_kv
        gated = [combine(tokens * self.d_ff)] if self.is_gated else []
        layer = [
            normalise(tokens * width),
            *3 * [matmul(tokens, width, inner)],
            attend(tokens, tokens, inner, self.num_heads),
            matmul(tokens, inner, width),
            combine(tokens * width),
            normalise(tokens * width),
            *(1 + self.is_gated) * [matmul(tokens, width, self.d_ff)],
            activate(tokens * self.d_ff),
            *gated,
            matmul(tokens, self.d_ff, width),
            combine(tokens * width),
        ]
        return [*self.num_layers * layer, normalise(tokens * width)]

    def tensors(self) -> Tensors:
        """List the tensors of a T5EncoderModel; its second name of the embedding is not canonical."""
        inner = self.num_heads * self.d_kv
        tensors: Tensors = {"shared.weight": TensorInfo((self.vocab_size, self.d_model), Role.EMBEDDING)}
        for layer in range(self.num_layers):
            attention, feed_forward = f"encoder.block.{layer}.layer.0.", f"encoder.block.{layer}.layer.1."
            for name in ("q", "k", "v"):
                tensors |= linear(f"{attention}SelfAttention.{name}", inner, self.d_model, bias=False)
            tensors |= linear(f"{attention}SelfAttention.o", self.d_model, inner, bias=False)
            if layer == 0:
                shape = (self.relative_attention_num_buckets, self.num_heads)
                tensors[attention + "SelfAttention.relative_attention_bias.weight"] = TensorInfo(shape, Role.EMBEDDING)
            tensors[attention + "layer_norm.weight"] = TensorInfo((self.d_model,), Role.NORM)
            for name in ("wi_0", "wi_1") if self.is_gated else ("wi",):
                tensors |= linear(f"{feed_forward}DenseReluDense.{name}", self.d_ff, self.d_model, bias=False)
            tensors |= linear(f"{feed_forward}DenseReluDense.wo", self.d_model, self.d_ff, bias=False)
            tensors[feed_forward + "layer_norm.weight"] = TensorInfo((self.d_model,), Role.NORM)
        tensors["encoder.final_layer_norm.weight"] = TensorInfo((self.d_model,), Role.NORM)
        return tensors


@dataclass(frozen=True)
class _Config:
    """`config.json` of a T5EncoderModel."""

    vocab_size: Vocabulary = 32128
    d_model: Width = 512
    d_kv: HeadWidth = 64
    d_ff: Width = 2048
    num_layers: Layers = 6
    num_heads: Heads = 8
    relative_attention_num_buckets: Buckets = 32
    relative_attention_max_distance: Distance = 128
    layer_norm_epsilon: Epsilon = 1e-6
    feed_forward_proj: Name = "relu"
    dense_act_fn: Name | None = None
    is_gated_act: bool | None = None
