"""The canonical tensors of a model: their names, shapes and roles.

Canonical names are those of diffusers and transformers, per component; shapes are PyTorch's (a convolution is
(out, in, height, width), a linear layer (out, in)). A backend that stores another layout converts by role.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from moddit.errors import ShapeError
from moddit.spec import PixArtSpec, T5Spec, VAESpec

_LISTED: Final = 12  # differences that a message spells out
TIMESTEP_CHANNELS: Final = 256  # width of the sinusoid of a timestep, resolution or aspect ratio (diffusers)
ROUTER: Final = "transformer_blocks.{layer}.router.weight"
KEEP_RATIO: Final = (
    "transformer_blocks.{layer}.keep_ratio"  # training only; the snapped plan is the truth for inference
)


class Role(Enum):
    """What a tensor does, which decides its layout, precision and whether it may be quantised."""

    LINEAR = "linear"  # weight of a matrix product on tokens
    CONV = "conv"
    NORM = "norm"
    EMBEDDING = "embedding"
    MODULATION = "modulation"  # adaLN tables and what computes them
    ROUTER = "router"
    OUTPUT = "output"  # final projection
    BIAS = "bias"

    @property
    def is_quantisable(self) -> bool:
        """Whether error in this tensor stays small in the output: only the large matrix products."""
        return self is Role.LINEAR


# Small, and errors in them reach every token: never stored or computed narrower than in the checkpoint.
PRECISE_ROLES: Final = frozenset({Role.NORM, Role.EMBEDDING, Role.MODULATION, Role.ROUTER, Role.OUTPUT})


@dataclass(frozen=True)
class TensorInfo:
    """One canonical tensor."""

    shape: tuple[int, ...]
    role: Role


Tensors = dict[str, TensorInfo]


def transformer_tensors(spec: PixArtSpec, *, routed: bool) -> Tensors:
    """List the tensors of a PixArtTransformer2DModel, with a router in every block if `routed`."""
    hidden, patch = spec.hidden_size, spec.patch_size
    tensors: Tensors = {
        "scale_shift_table": TensorInfo((2, hidden), Role.MODULATION),
        "pos_embed.proj.weight": TensorInfo((hidden, spec.in_channels, patch, patch), Role.CONV),
        "pos_embed.proj.bias": TensorInfo((hidden,), Role.BIAS),
    }
    for layer in range(spec.num_layers):
        block = f"transformer_blocks.{layer}."
        tensors[block + "scale_shift_table"] = TensorInfo((6, hidden), Role.MODULATION)
        for attention in ("attn1", "attn2"):
            for name in ("to_q", "to_k", "to_v"):
                tensors |= _linear(f"{block}{attention}.{name}", hidden, hidden, bias=spec.attention_bias)
            tensors |= _linear(f"{block}{attention}.to_out.0", hidden, hidden)
        tensors |= _linear(block + "ff.net.0.proj", 4 * hidden, hidden)
        tensors |= _linear(block + "ff.net.2", hidden, 4 * hidden)
        if routed:
            tensors[ROUTER.format(layer=layer)] = TensorInfo((1, hidden), Role.ROUTER)
    tensors |= _linear("proj_out", patch * patch * spec.out_channels, hidden, role=Role.OUTPUT)
    tensors |= _timestep_embedding("adaln_single.emb.timestep_embedder", hidden)
    if spec.use_additional_conditions:
        for name in ("resolution_embedder", "aspect_ratio_embedder"):
            tensors |= _timestep_embedding(f"adaln_single.emb.{name}", hidden // 3)
    tensors |= _linear("adaln_single.linear", 6 * hidden, hidden, role=Role.MODULATION)
    tensors |= _linear("caption_projection.linear_1", hidden, spec.caption_channels)
    tensors |= _linear("caption_projection.linear_2", hidden, hidden)
    return tensors


def text_encoder_tensors(spec: T5Spec) -> Tensors:
    """List the tensors of a T5EncoderModel; its second name of the embedding is not canonical."""
    inner = spec.num_heads * spec.d_kv
    tensors: Tensors = {"shared.weight": TensorInfo((spec.vocab_size, spec.d_model), Role.EMBEDDING)}
    for layer in range(spec.num_layers):
        attention, feed_forward = f"encoder.block.{layer}.layer.0.", f"encoder.block.{layer}.layer.1."
        for name in ("q", "k", "v"):
            tensors |= _linear(f"{attention}SelfAttention.{name}", inner, spec.d_model, bias=False)
        tensors |= _linear(f"{attention}SelfAttention.o", spec.d_model, inner, bias=False)
        if layer == 0:
            shape = (spec.relative_attention_num_buckets, spec.num_heads)
            tensors[attention + "SelfAttention.relative_attention_bias.weight"] = TensorInfo(shape, Role.EMBEDDING)
        tensors[attention + "layer_norm.weight"] = TensorInfo((spec.d_model,), Role.NORM)
        for name in ("wi_0", "wi_1") if spec.is_gated else ("wi",):
            tensors |= _linear(f"{feed_forward}DenseReluDense.{name}", spec.d_ff, spec.d_model, bias=False)
        tensors |= _linear(f"{feed_forward}DenseReluDense.wo", spec.d_model, spec.d_ff, bias=False)
        tensors[feed_forward + "layer_norm.weight"] = TensorInfo((spec.d_model,), Role.NORM)
    tensors["encoder.final_layer_norm.weight"] = TensorInfo((spec.d_model,), Role.NORM)
    return tensors


def vae_tensors(spec: VAESpec) -> Tensors:
    """List the tensors of an AutoencoderKL."""
    channels, latent = spec.block_out_channels, spec.latent_channels
    tensors: Tensors = {}
    tensors |= _conv("encoder.conv_in", channels[0], spec.in_channels, 3)
    for index, (width_in, width_out) in enumerate(zip((channels[0], *channels), channels, strict=False)):
        block = f"encoder.down_blocks.{index}."
        tensors |= _resnets(block, width_in, width_out, spec.layers_per_block)
        if index < len(channels) - 1:
            tensors |= _conv(block + "downsamplers.0.conv", width_out, width_out, 3)
    tensors |= _mid_block("encoder.mid_block.", channels[-1], spec.mid_block_add_attention)
    tensors |= _norm("encoder.conv_norm_out", channels[-1])
    tensors |= _conv("encoder.conv_out", 2 * latent, channels[-1], 3)

    rising = channels[::-1]
    tensors |= _conv("decoder.conv_in", rising[0], latent, 3)
    for index, (width_in, width_out) in enumerate(zip((rising[0], *rising), rising, strict=False)):
        block = f"decoder.up_blocks.{index}."
        tensors |= _resnets(block, width_in, width_out, spec.layers_per_block + 1)
        if index < len(channels) - 1:
            tensors |= _conv(block + "upsamplers.0.conv", width_out, width_out, 3)
    tensors |= _mid_block("decoder.mid_block.", rising[0], spec.mid_block_add_attention)
    tensors |= _norm("decoder.conv_norm_out", channels[0])
    tensors |= _conv("decoder.conv_out", spec.out_channels, channels[0], 3)

    if spec.use_quant_conv:
        tensors |= _conv("quant_conv", 2 * latent, 2 * latent, 1)
    if spec.use_post_quant_conv:
        tensors |= _conv("post_quant_conv", latent, latent, 1)
    return tensors


def is_precise(name: str, tensors: Mapping[str, TensorInfo]) -> bool:
    """Say whether a tensor keeps its precision; a bias is as precise as the weight it goes with."""
    weight = tensors.get(name.removesuffix("bias") + "weight") if tensors[name].role is Role.BIAS else None
    return (weight or tensors[name]).role in PRECISE_ROLES


def check_names(
    found: Mapping[str, Sequence[int]],
    wanted: Mapping[str, TensorInfo],
    where: str,
    configuration: str,
    files: Mapping[str, Path] | None = None,
) -> None:
    """Compare a file's tensors with the canonical ones, both ways.

    Args:
        found: shape of each tensor in the file, in canonical layout.
        wanted: the canonical tensors.
        where: the file or folder, for the message.
        configuration: the file that says what is wanted, for the message.
        files: of each tensor, if there are several.

    Raises:
        ShapeError: one sorted report of every missing, unexpected and mis-shaped tensor.
    """
    lines = sorted(_differences(found, wanted, files or {}))
    if lines:
        more = [f"... and {len(lines) - _LISTED} more"] if len(lines) > _LISTED else []
        report = "\n  ".join([*lines[:_LISTED], *more])
        raise ShapeError(
            f"[tensors] {where}: {len(lines)} tensors differ from what {configuration} says; "
            f"check that it belongs to these weights:\n  {report}"
        )


def _differences(
    found: Mapping[str, Sequence[int]], wanted: Mapping[str, TensorInfo], files: Mapping[str, Path]
) -> Iterator[str]:
    places = {name: f" in {path.name}" for name, path in files.items()}
    for name in wanted.keys() - found.keys():
        yield f"missing     {name}, want {wanted[name].shape}"
    for name in found.keys() - wanted.keys():
        yield f"unexpected  {name}, got {tuple(found[name])}{places.get(name, '')}"
    for name in found.keys() & wanted.keys():
        if tuple(found[name]) != wanted[name].shape:
            yield f"mis-shaped  {name}, got {tuple(found[name])}, want {wanted[name].shape}{places.get(name, '')}"


def _linear(name: str, width_out: int, width_in: int, *, bias: bool = True, role: Role = Role.LINEAR) -> Tensors:
    tensors = {name + ".weight": TensorInfo((width_out, width_in), role)}
    if bias:
        tensors[name + ".bias"] = TensorInfo((width_out,), Role.BIAS)
    return tensors


def _timestep_embedding(name: str, width: int) -> Tensors:
    first = _linear(name + ".linear_1", width, TIMESTEP_CHANNELS, role=Role.MODULATION)
    return first | _linear(name + ".linear_2", width, width, role=Role.MODULATION)


def _conv(name: str, width_out: int, width_in: int, side: int) -> Tensors:
    return {
        name + ".weight": TensorInfo((width_out, width_in, side, side), Role.CONV),
        name + ".bias": TensorInfo((width_out,), Role.BIAS),
    }


def _norm(name: str, width: int) -> Tensors:
    return {name + ".weight": TensorInfo((width,), Role.NORM), name + ".bias": TensorInfo((width,), Role.NORM)}


def _resnets(block: str, width_in: int, width_out: int, count: int) -> Tensors:
    tensors: Tensors = {}
    for index in range(count):
        tensors |= _resnet(f"{block}resnets.{index}.", width_in if index == 0 else width_out, width_out)
    return tensors


def _resnet(name: str, width_in: int, width_out: int) -> Tensors:
    tensors = _norm(name + "norm1", width_in) | _conv(name + "conv1", width_out, width_in, 3)
    tensors |= _norm(name + "norm2", width_out) | _conv(name + "conv2", width_out, width_out, 3)
    if width_in != width_out:
        tensors |= _conv(name + "conv_shortcut", width_out, width_in, 1)
    return tensors


def _mid_block(name: str, width: int, attention: bool) -> Tensors:
    tensors = _resnets(name, width, width, 2)
    if attention:
        tensors |= _norm(name + "attentions.0.group_norm", width)
        for part in ("to_q", "to_k", "to_v", "to_out.0"):
            tensors |= _linear(f"{name}attentions.0.{part}", width, width)
    return tensors
