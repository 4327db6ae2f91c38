"""PixArt's own names, as its training code saves them (.pth) and programs such as ComfyUI read them, alpha and Sigma.

The names say most of the configuration; what they leave open comes from the model's family.

Source: diffusers, scripts/convert_pixart_alpha_to_diffusers.py and convert_pixart_sigma_to_diffusers.py (the pairs of
names, the order of the fused matrices, the scales of position); DiffCR's layout by its paper's released pseudo-code.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from moddit.bounds import Heads, Scale, Side, Width
from moddit.checkpoint.precision import check_dtypes, widen
from moddit.checkpoint.stored import Rows, StoredTensor
from moddit.embeddings import position_embedding
from moddit.errors import FormatError, MissingError, ShapeError, UnsupportedError, ValueRangeError
from moddit.models.pixart import PixArtSpec
from moddit.record import Keys, Origin, decode
from moddit.routing import DENOMINATOR, RoutingPlan
from moddit.tokens import TokenPolicy

MARK: Final = "x_embedder.proj.weight"  # a file with this tensor has the original layout
_PREFIXES: Final = ("", "model.diffusion_model.", "diffusion_model.", "module.", "model.", "net.", "transformer.")
HEAD_WIDTH: Final = 72  # of every published PixArt
PIXELS_PER_SCALE: Final = 64  # latent pixels that one unit of interpolation_scale stands for

# Modules outside the blocks, and within a block; each has a weight and may have a bias.
MODULES: Final[Mapping[str, str]] = {
    "x_embedder.proj": "pos_embed.proj",
    "t_embedder.mlp.0": "adaln_single.emb.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "adaln_single.emb.timestep_embedder.linear_2",
    "csize_embedder.mlp.0": "adaln_single.emb.resolution_embedder.linear_1",
    "csize_embedder.mlp.2": "adaln_single.emb.resolution_embedder.linear_2",
    "ar_embedder.mlp.0": "adaln_single.emb.aspect_ratio_embedder.linear_1",
    "ar_embedder.mlp.2": "adaln_single.emb.aspect_ratio_embedder.linear_2",
    "t_block.1": "adaln_single.linear",
    "y_embedder.y_proj.fc1": "caption_projection.linear_1",
    "y_embedder.y_proj.fc2": "caption_projection.linear_2",
    "final_layer.linear": "proj_out",
}
BLOCK_MODULES: Final[Mapping[str, tuple[str, ...]]] = {  # several: the rows of one matrix, divided
    "attn.qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
    "attn.proj": ("attn1.to_out.0",),
    "cross_attn.q_linear": ("attn2.to_q",),
    "cross_attn.kv_linear": ("attn2.to_k", "attn2.to_v"),
    "cross_attn.proj": ("attn2.to_out.0",),
    "mlp.fc1": ("ff.net.0.proj",),
    "mlp.fc2": ("ff.net.2",),
    "router": ("router",),
    "mod_router": ("router",),
}
_UNUSED: Final[Mapping[str, str]] = {
    "pos_embed": "computed from the configuration",
    "y_embedder.y_embedding": "training only: the caption that is left out",
}
_BLOCK: Final = re.compile(r"blocks\.(\d+)\.(.+)")
_RATIO: Final = "diff_mod_ratio"
_BINS: Final = "kept_ratio_candidate"
_KINDS: Final = ("weight", "bias")


@dataclass
class Original:
    """A transformer in the original layout, under canonical names."""

    tensors: dict[str, StoredTensor] = field(default_factory=dict)
    unused: dict[str, str] = field(default_factory=dict)
    ratios: dict[int, StoredTensor] = field(default_factory=dict)  # learned keep ratios by layer
    bins: dict[int, StoredTensor] = field(default_factory=dict)  # the ratios that they may snap to
    position: StoredTensor | None = None  # the position embedding of the size it was trained at


def find_prefix(names: Mapping[str, object]) -> str | None:
    """Find what stands before every name of a file in the original layout; None for a file in another layout."""
    return next((prefix for prefix in _PREFIXES if prefix + MARK in names), None)


def rename(tensors: Mapping[str, StoredTensor], where: str) -> Original:
    """Give a file's tensors their canonical names; matrices of several are divided, without being read.

    Raises UnsupportedError for tensors that no table knows, which would change the result, and ShapeError for a matrix
    that cannot be divided.
    """
    prefix = find_prefix(tensors) or ""
    original, unknown = Original(), []
    for name, tensor in tensors.items():
        if not name.startswith(prefix):
            original.unused[name] = "not of the transformer"
        elif not _take(original, name.removeprefix(prefix), tensor):
            unknown.append(name)
    if unknown:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        raise UnsupportedError(
            f"[transformer] {where}: {', '.join(sorted(unknown)[:3])}{more} not of a PixArt alpha or Sigma that is "
            "implemented (no key-value compression, no normalised queries); want the plain model"
        )
    return original


def _take(original: Original, name: str, tensor: StoredTensor) -> bool:
    """Put one tensor where it belongs; say whether it is known."""
    match = _BLOCK.fullmatch(name)
    if match and match[2] in (_RATIO, _BINS):
        (original.ratios if match[2] == _RATIO else original.bins)[int(match[1])] = tensor
        original.unused[name] = "the plan has its value in tenths"
        return True
    if name in _UNUSED:
        original.unused[name] = _UNUSED[name]
        if name == "pos_embed":
            original.position = tensor
        return True
    targets = _targets(name)
    rows, count = tensor.shape[0] if tensor.shape else 0, max(1, len(targets))
    if rows % count:
        raise ShapeError(f"[transformer] {tensor.path}: {name!r} has {rows} rows, want {count} equal parts")
    for index, target in enumerate(targets):
        own = tensor if count == 1 else Rows.of(tensor, index * rows // count, (index + 1) * rows // count)
        original.tensors[target] = own
    return bool(targets)


def _targets(name: str) -> tuple[str, ...]:
    """List the canonical tensors that one of the file holds, first rows first; none if no table knows it."""
    match = _BLOCK.fullmatch(name)
    block, rest = (f"transformer_blocks.{int(match[1])}.", match[2]) if match else ("", name)
    if rest == ("scale_shift_table" if match else "final_layer.scale_shift_table"):
        return (f"{block}scale_shift_table",)
    module, _, kind = rest.rpartition(".")
    found = BLOCK_MODULES.get(module, ()) if match else filter(None, [MODULES.get(module)])
    return tuple(f"{block}{target}.{kind}" for target in found) if kind in _KINDS else ()


@dataclass(frozen=True)
class _Known:
    """What a configuration in diffusers' layout says that the tensors do not."""

    num_attention_heads: Heads = 0
    attention_head_dim: Width = HEAD_WIDTH
    sample_size: Side | None = None
    interpolation_scale: Scale | None = None


def infer_spec(
    original: Original, where: str, *, whole_scales: bool, latent_side: int | None, known: Mapping[str, Any]
) -> PixArtSpec:
    """Work out the dimensions of a transformer in the original layout.

    Args:
        original: its tensors.
        where: the file, for messages.
        whole_scales: positions are scaled in whole numbers, as in PixArt-alpha and not in Sigma.
        latent_side: latent pixels of the square pictures it was trained on, if somebody said so.
        known: configuration of the same architecture in diffusers' layout, or empty.

    Raises:
        MissingError: a tensor is absent that says a dimension, or nothing says the size.
        UnsupportedError: heads of another width than PixArt's, and no configuration that says so; or positions of
            another scale.
        ValueRangeError: latent_side is not made of whole patches.
    """
    shapes = {name: tensor.shape for name, tensor in original.tensors.items()}
    hidden, channels, patch = _shape(shapes, "pos_embed.proj.weight", 4, where)[:3]
    outputs, captions = (
        _shape(shapes, f"{name}.weight", 2, where) for name in ("proj_out", "caption_projection.linear_1")
    )
    told = decode(known, _Known, Origin("transformer", f"{where}, config.json of its pipeline"), Keys.ANY)
    if told.num_attention_heads * told.attention_head_dim != hidden:
        told = _Known()  # of another architecture
    heads = told.num_attention_heads or hidden // HEAD_WIDTH
    if not heads or hidden % heads:
        raise UnsupportedError(
            f"[transformer] {where}: width {hidden} does not say how many heads there are, want a multiple of "
            f"{HEAD_WIDTH}; give --base a pipeline with this transformer's config.json"
        )
    side = _latent_side(original, patch, latent_side, told, where)
    layers = {int(match[1]) for match in map(re.compile(r"transformer_blocks\.(\d+)\.").match, shapes) if match}
    return PixArtSpec(
        num_layers=len(layers),
        num_attention_heads=heads,
        attention_head_dim=hidden // heads,
        in_channels=channels,
        out_channels=outputs[0] // patch**2,
        patch_size=patch,
        sample_size=side,
        cross_attention_dim=hidden,
        caption_channels=captions[1],
        interpolation_scale=_interpolation_scale(original, where, (hidden, patch, side), whole_scales, told),
        attention_bias="transformer_blocks.0.attn1.to_q.bias" in shapes,
        norm_eps=1e-6,
        use_additional_conditions="adaln_single.emb.resolution_embedder.linear_1.weight" in shapes,
    )


def infer_policy(original: Original, layers: int, num_train_timesteps: int, where: str) -> TokenPolicy:
    """Snap the learned keep ratios to a plan; without any the model is dense.

    Each ratio takes the nearest of its block's bins (the larger of two), as in DiffCR's pseudo-code.

    Raises:
        FormatError: routers without ratios, or ratios without routers.
        ShapeError, ValueRangeError: ratios of different numbers of regions, or that are no numbers.
        UnsupportedError: bins that are not tenths.
    """
    routers = sum(name.endswith(".router.weight") for name in original.tensors)
    if not routers and not original.ratios:
        return TokenPolicy.dense(layers, num_train_timesteps)
    if not routers or set(original.ratios) != set(range(layers)):
        raise FormatError(
            f"[transformer] {where}: {routers} routers and {len(original.ratios)} {_RATIO}, want one of each in "
            f"{layers} blocks; save the whole routed model"
        )
    rows = [_snap(original.ratios[layer], original.bins.get(layer)) for layer in range(layers)]
    if len({len(row) for row in rows}) != 1:
        raise ShapeError(
            f"[transformer] {where}: {_RATIO} has {sorted({len(row) for row in rows})} regions, want one number"
        )
    return TokenPolicy.topk(RoutingPlan(tuple(rows), num_train_timesteps))


def _snap(ratio: StoredTensor, bins: StoredTensor | None) -> tuple[int, ...]:
    check_dtypes("transformer", {tensor.name: tensor for tensor in (ratio, bins) if tensor is not None})
    values = widen(ratio.read(), ratio.dtype).astype(np.float64).reshape(-1)
    if not np.isfinite(values).all():
        raise ValueRangeError(
            f"[transformer] {ratio.path}: {ratio.name!r} is {values.tolist()}, want numbers in 0.1..1.0"
        )
    tenths = np.arange(DENOMINATOR, 0, -1)
    if bins is not None:
        exact = DENOMINATOR * widen(bins.read(), bins.dtype).astype(np.float64).reshape(-1)
        tenths = np.sort(np.rint(exact).astype(np.int64))[::-1]
        if np.abs(np.sort(exact)[::-1] - tenths).max() > 0.05 or tenths.min() < 1 or tenths.max() > DENOMINATOR:
            raise UnsupportedError(f"[transformer] {bins.path}: {bins.name!r} is {(exact / 10).tolist()}, want tenths")
    distances = np.abs(np.clip(values, 0.1, 1.0)[:, None] - tenths[None] / DENOMINATOR)
    # Of two bins that are as near but for rounding, the larger, which comes first.
    nearest = np.argmax(distances <= distances.min(axis=1, keepdims=True) + 1e-6, axis=1)
    return tuple(int(tenths[index]) for index in nearest)


def _shape(shapes: Mapping[str, tuple[int, ...]], name: str, axes: int, where: str) -> tuple[int, ...]:
    if len(shapes.get(name, ())) != axes:
        raise MissingError(
            f"[transformer] {where}: tensor {name} (by its canonical name) is not there; want a whole model"
        )
    return shapes[name]


def _latent_side(original: Original, patch: int, given: int | None, told: _Known, where: str) -> int:
    if given is not None and (given < patch or given % patch):
        raise ValueRangeError(
            f"[transformer] {where}: --image-size gives {given} latent pixels, want a multiple of {patch} (patch_size)"
        )
    if given is not None:
        return given
    if original.position is not None and len(original.position.shape) == 3:
        return math.isqrt(original.position.shape[1]) * patch
    if told.sample_size is not None:
        return told.sample_size
    raise MissingError(f"[transformer] {where}: does not say at what size it was trained; give it with --image-size")


def _interpolation_scale(
    original: Original, where: str, sizes: tuple[int, int, int], whole_scales: bool, told: _Known
) -> float:
    """Find the scale of positions: the one whose embedding is in the file, or else the family's own."""
    hidden, patch, side = sizes
    usual = float(max(side // PIXELS_PER_SCALE, 1)) if whole_scales else side / PIXELS_PER_SCALE
    if told.sample_size == side and told.interpolation_scale is not None:
        usual = told.interpolation_scale
    base = side // patch
    if original.position is None or original.position.shape != (1, base * base, hidden):
        return usual
    check_dtypes("transformer", {original.position.name: original.position})
    stored = widen(original.position.read(), original.position.dtype)[0]
    for scale in dict.fromkeys((usual, 0.5, 1.0, 2.0, 4.0)):
        computed = position_embedding(hidden, base, base, base_size=base, interpolation_scale=scale)
        if np.abs(computed - stored).max() < 1e-2:  # bfloat16's rounding of numbers in -1..1
            return scale
    if not stored.any():  # a buffer that was never filled
        return usual
    raise UnsupportedError(
        f"[transformer] {where}: its pos_embed is for another scale of positions than PixArt's {usual:g}, 0.5, 1, 2 or "
        "4; remove it, and give --base a pipeline with this transformer's config.json"
    )
