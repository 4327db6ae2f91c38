"""Estimates of the memory that a generation needs, from the manifest alone; and how a picture is decoded for it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from mlx_moddit.memory import usable_bytes
from mlx_moddit.strips import STRIP_BYTES, WINDOW
from moddit.bins import Size
from moddit.conditioning import Text
from moddit.contract import TEXT_ENCODER
from moddit.cost import activation_bytes
from moddit.manifest import WITHOUT_TENSORS, Component, Manifest
from moddit.models.vae import VAESpec
from moddit.quantization import Packing, packings
from moddit.tensors import Tensors, is_precise

ITEM_BYTES: Final = {"float16": 2, "bfloat16": 2, "float32": 4}
GUIDED_BATCH: Final = 2
# Buffers alive at once, because MLX allocates ahead of the device, as multiples of what one block, and the widest
# activation of the VAE's decoder, need. Measured on CPU with pictures of 64 to 512 pixels, where a convolution unfolds
# its input (26 to 28 in the decoder); the decoder's on GPUs is from a report of 9.6 GB at 1024 pixels in another
# program with the VAE of SDXL's size, and not measured here.
BLOCK_COPIES: Final = 3
DECODER_COPIES_CPU: Final = 28
DECODER_COPIES_GPU: Final = 9
# The same of one strip, beside the activations that are held: its neighbours, norms, padding and windows. Measured on
# CPU with the VAE of SDXL at 512 and 1024 pixels (15.0 and 15.1); taken for GPUs too, which need not unfold.
STRIP_COPIES: Final = 15
# Of the size of all tokens, alive with a first-block cache (`moddit.cache`): two that it keeps from step to step, and a
# new residual beside them. Measured on CPU with shapes64 at 256 pixels: 2.75.
CACHE_ARRAYS: Final = 3
ATTENTION_COPIES: Final = 8  # of the latent-sized activation: states, queries, keys, values, what they give
SCORE_COPIES: Final = 1
_BLOCK: Final = re.compile(r"encoder\.block\.\d+\.")  # of a T5
_FIRST_BLOCK: Final = "encoder.block.0."  # the largest, by a small table
MEMORY_SHARE: Final = 0.5  # of what models may fill; a decoder that needs more works in strips


@dataclass(frozen=True)
class Compute:
    """What a model would run on."""

    is_gpu: bool
    dtype: str | None  # to compute in; None for the stored one
    has_bfloat16: bool = False  # in which T5 and VAE are computed in place of float16 (`layers.has_bfloat16`)


def estimate_memory(
    manifest: Manifest, compute: Compute, size: Size, tile: int, *, has_cache: bool = False
) -> dict[str, int]:
    """Estimate the peak of each stage: the weights of its component, and the activations alive at once.

    "all_in_memory" is the peak where components stay for the next picture; the others are peaks with low_ram.

    Args:
        manifest: of the bundle.
        compute: what it would run on.
        size: height and width, pixels.
        tile: side of the VAE's tiles, pixels.
        has_cache: whether steps remember what a first-block cache does.

    Raises:
        ShapeError: the model cannot make pictures of this size.
    """
    weights = _weights(manifest, compute)
    everything = sum(weights.values())
    denoise, decode = _denoise_bytes(manifest, compute, size, has_cache), _decoder_bytes(manifest, compute, size)
    strips, tiled = _strips_bytes(manifest, compute, size), decode
    if max(size) > tile:
        # beside the tile: the bands that are done, and the picture that they become
        picture = size[0] * size[1] * manifest.spec.vae.out_channels * ITEM_BYTES["float32"]
        tiled = min(decode, _decoder_bytes(manifest, compute, (min(size[0], tile), min(size[1], tile))) + 2 * picture)
    return {
        "encode": _encode_bytes(manifest, compute),
        "denoise": weights["transformer"] + denoise,
        "decode": weights["vae"] + decode,
        "decode_strips": weights["vae"] + strips,
        "decode_tiled": weights["vae"] + tiled,
        "all_in_memory": everything + max(denoise, decode),
        "all_in_memory_strips": everything + max(denoise, strips),
        "all_in_memory_tiled": everything + max(denoise, tiled),
    }


def choose_strip_bytes(manifest: Manifest, compute: Compute, size: Size, *, low_ram: bool) -> int | None:
    """Decide whether a picture is decoded in strips, which it is where memory is short, unless one strip would hold it.

    Args:
        manifest: of the bundle.
        compute: what it runs on.
        size: height and width that the picture is generated at, pixels.
        low_ram: memory is short in any case.

    Returns:
        What `AutoencoderKL.decode` takes as `strip_bytes`.
    """
    if _is_one_strip(manifest, compute, size):
        return None
    needed = sum(_weights(manifest, compute).values()) + _decoder_bytes(manifest, compute, size)
    return STRIP_BYTES if low_ram or needed > MEMORY_SHARE * usable_bytes() else None


def _encode_bytes(manifest: Manifest, compute: Compute) -> int:
    """Estimate what a text encoder needs that reads its blocks one by one: one of them, and what is in none."""
    text = manifest.spec.conditioning
    if not isinstance(text, Text):
        return 0
    item, tensors = manifest.components[TEXT_ENCODER], text.encoder.tensors()
    alive = {name: info for name, info in tensors.items() if not _BLOCK.match(name) or name.startswith(_FIRST_BLOCK)}
    dtype = (None if item.quantization else compute.dtype) or item.dtype or "float32"
    return tensor_bytes(alive, dtype, packings(item.quantization))


def tensor_bytes(tensors: Tensors, dtype: str, packed: Mapping[str, Packing]) -> int:
    """Count the bytes of tensors as a bundle has them whose large ones are of `dtype`, of a checkpoint in float32."""
    total = 0
    for name, info in tensors.items():
        count, itemsize = math.prod(info.shape), ITEM_BYTES[dtype]
        if name in packed:
            total += int(count * packed[name].bits_per_weight(itemsize)) // 8
        else:
            total += count * (ITEM_BYTES["float32"] if is_precise(name, tensors) else itemsize)
    return total


def _denoise_bytes(manifest: Manifest, compute: Compute, size: Size, has_cache: bool) -> int:
    spec, scale = manifest.spec.transformer, manifest.spec.vae.downscale
    tokens = spec.tokens(size[0] // scale, size[1] // scale)
    itemsize = ITEM_BYTES[compute.dtype or manifest.components["transformer"].dtype or "float32"]
    plan = manifest.tokens.plan
    kept = max(max(plan.capacities(region, tokens)) for region in range(plan.regions))
    rows = activation_bytes(spec, kept, tokens, batch=GUIDED_BATCH, itemsize=itemsize)
    text = 2 * GUIDED_BATCH * manifest.spec.text_tokens * spec.hidden_size * spec.num_layers * itemsize
    # MLX's attention on a CPU holds the scores of all heads; on Metal it is fused.
    scores = 0 if compute.is_gpu else GUIDED_BATCH * spec.num_attention_heads * kept * kept * ITEM_BYTES["float32"]
    residuals = CACHE_ARRAYS * GUIDED_BATCH * tokens * spec.hidden_size * itemsize if has_cache else 0
    return BLOCK_COPIES * rows + text + scores + residuals


def _decoder_bytes(manifest: Manifest, compute: Compute, size: Size) -> int:
    """Estimate the activations of the VAE's decoder that are alive at once, for a picture or tile of a size."""
    vae, (height, width) = manifest.spec.vae, size
    itemsize = _vae_itemsize(manifest, compute)
    copies = DECODER_COPIES_GPU if compute.is_gpu else DECODER_COPIES_CPU
    widest = copies * height * width * _widest(vae) * itemsize
    if not vae.mid_block_add_attention:
        return widest
    # one wide head, which is fused nowhere; its scores are gone before the pictures are large
    return max(widest, (height * width // vae.downscale**2) ** 2 * itemsize)


def decoder_bytes_in_strips(vae: VAESpec, size: Size, itemsize: int, strip_bytes: int) -> int:
    """Estimate the same where the decoder works in strips: what is held before and after a layer, and one strip.

    Args:
        vae: dimensions.
        size: height and width of the picture, pixels.
        itemsize: bytes of a value.
        strip_bytes: as `AutoencoderKL.decode` takes it.
    """
    pixels, rising = size[0] * size[1], vae.block_out_channels[::-1]
    held = []
    for level, (before, after) in enumerate(pairwise((rising[0], *rising))):
        below = len(rising) - 1 - level
        # a resnet holds its input, then its two halves; an upsampling what it gives
        held.append(pixels // 4**below * max(before, 2 * after, 4 * after if below else 0))
    total = max(held) * itemsize + STRIP_COPIES * strip_bytes // WINDOW
    if not vae.mid_block_add_attention:
        return total
    states = pixels // vae.downscale**2 * rising[0] * itemsize
    return max(total, ATTENTION_COPIES * states + SCORE_COPIES * strip_bytes)


def _strips_bytes(manifest: Manifest, compute: Compute, size: Size) -> int:
    if _is_one_strip(manifest, compute, size):
        return _decoder_bytes(manifest, compute, size)
    return decoder_bytes_in_strips(manifest.spec.vae, size, _vae_itemsize(manifest, compute), STRIP_BYTES)


def _is_one_strip(manifest: Manifest, compute: Compute, size: Size) -> bool:
    row = size[1] * _widest(manifest.spec.vae) * _vae_itemsize(manifest, compute)
    return WINDOW * size[0] * row <= STRIP_BYTES


def _widest(vae: VAESpec) -> int:
    """Give the most channels at full size: the second level reaches it before it is narrowed to the first."""
    return max(vae.block_out_channels[:2])


def _vae_itemsize(manifest: Manifest, compute: Compute) -> int:
    """Give the bytes of a value of the VAE; float16 is widened to float32 unless the chip has bfloat16."""
    dtype = compute.dtype or manifest.components["vae"].dtype
    is_narrow = dtype == "bfloat16" or (dtype == "float16" and compute.has_bfloat16)
    return ITEM_BYTES["bfloat16" if is_narrow else "float32"]


def _weights(manifest: Manifest, compute: Compute) -> dict[str, int]:
    """Count the bytes of every component's weights in memory."""
    items = manifest.components.items()
    return {name: _weight_bytes(item, compute.dtype) for name, item in items if name not in WITHOUT_TENSORS}


def _weight_bytes(item: Component, dtype: str | None) -> int:
    """Count the bytes of a component's weights in memory; quantised ones stay as they are stored."""
    if dtype is None or item.quantization:
        return sum(info.bytes for info in item.files)
    return item.parameters * ITEM_BYTES[dtype]
