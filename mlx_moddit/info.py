"""What a bundle is: components, sizes, capacities of each region, and an estimate of the memory it needs.

Reads the manifest alone, no weights.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

from mlx_moddit.report import MB, align
from moddit.bins import Size
from moddit.conditioning import Label
from moddit.cost import activation_bytes, kept_flops_share
from moddit.manifest import WITHOUT_TENSORS, Component, Manifest
from moddit.record import escape
from moddit.request import DEFAULT_VAE_TILE_SIZE
from moddit.routing import region_timesteps
from moddit.samplers import build_table
from moddit.text import printable
from moddit.tokens import DENSE

REFERENCE_STEPS: Final = 20
ITEM_BYTES: Final = {"float16": 2, "bfloat16": 2, "float32": 4}
GUIDED_BATCH: Final = 2
# Buffers alive at once, because MLX allocates ahead of the device, as multiples of what one block, and the widest
# activation of the VAE's decoder, need. Measured on CPU with pictures of 64 to 512 pixels, where a convolution unfolds
# its input (39 to 47 in the decoder); the decoder's on GPUs is from a report of 9.6 GB at 1024 pixels in another
# program with the VAE of SDXL's size, and not measured here.
BLOCK_COPIES: Final = 3
DECODER_COPIES_CPU: Final = 43
DECODER_COPIES_GPU: Final = 9


@dataclass(frozen=True)
class Compute:
    """What a model would run on."""

    is_gpu: bool
    dtype: str | None  # to compute in; None for the stored one


def describe(
    manifest: Manifest, compute: Compute, *, height: int, width: int, tile: int = DEFAULT_VAE_TILE_SIZE
) -> dict[str, Any]:
    """Gather the facts about a bundle as JSON; capacities and memory are for pictures of one size.

    Sizes are pixels; `tile` is the side of the VAE's tiles, for what decoding with --vae-tiling needs.

    Raises:
        ShapeError: the model cannot make pictures of this size.
    """
    spec, policy = manifest.spec, manifest.tokens
    scale = spec.vae.downscale
    tokens = spec.transformer.tokens(height // scale, width // scale)
    timesteps = build_table(spec.scheduler, spec.scheduler.sampler, REFERENCE_STEPS).timesteps
    return {
        "backend": manifest.backend,
        "components": {name: _component(item) for name, item in manifest.components.items()},
        "layers": spec.transformer.num_layers,
        "hidden_size": spec.transformer.hidden_size,
        "default_size": [spec.default_side, spec.default_side],
        "size_multiple": spec.pixels_per_patch,
        "sampler": spec.scheduler.sampler,
        "prediction_type": spec.scheduler.prediction_type,
        "architecture": spec.transformer.ARCHITECTURE,
        "conditioning": spec.conditioning.KIND,
        "text_tokens": spec.text_tokens,
        "classes": spec.transformer.num_classes if spec.conditioning.KIND == Label.KIND else 0,
        "token_policy": policy.to_json(),
        "size": [height, width],
        "tokens": tokens,
        "capacities": [list(policy.plan.capacities(region, tokens)) for region in range(policy.plan.regions)],
        "mean_keep_ratio": policy.plan.mean_keep_ratio,
        "kept_flops_share": kept_flops_share(spec.transformer, policy, timesteps, tokens, spec.text_tokens),
        "device": "gpu" if compute.is_gpu else "cpu",
        "vae_tile_size": tile,
        "memory_estimate_bytes": _memory(manifest, compute, tokens, (height, width), tile),
        "provenance": asdict(manifest.provenance),
    }


def write(facts: dict[str, Any]) -> str:
    """Write the facts for people."""
    height, width = facts["size"]
    rows = [("component", "parameters", "MB", "stored as")]
    rows += [
        (name, f"{item['parameters']:,}" if item["parameters"] else "", f"{item['bytes'] / MB:.1f}", item["stored_as"])
        for name, item in facts["components"].items()
    ]
    memory = [("stage", "estimated MB")]
    memory += [(name, f"{size / MB:.0f}") for name, size in facts["memory_estimate_bytes"].items()]
    parts = [
        align(rows),
        [
            f"Pictures of {facts['default_size'][1]}x{facts['default_size'][0]} by default, sides in multiples of "
            f"{facts['size_multiple']}; {facts['layers']} layers of width {facts['hidden_size']}; "
            f"{_subject(facts)}; {facts['sampler']}, {facts['prediction_type']}.",
        ],
        _routing(facts),
        [
            f"Memory for {width}x{height}, guided, on a {facts['device'].upper()}; tiled is with --vae-tiling, which "
            f"--low-ram turns on, and tiles of {facts['vae_tile_size']} pixels:",
            *align(memory),
        ],
        [f"Made from {escape(facts['provenance']['source'])} at {facts['provenance']['created']}"],
    ]
    return "\n\n".join("\n".join(map(printable, part)) for part in parts)


def _subject(facts: dict[str, Any]) -> str:
    if facts["conditioning"] == Label.KIND:
        return f"draws one of {facts['classes']} classes"
    return f"draws a text of up to {facts['text_tokens']} tokens"


def _routing(facts: dict[str, Any]) -> list[str]:
    height, width = facts["size"]
    if facts["token_policy"]["policy"] == DENSE:
        return [f"Dense: every layer processes all {facts['tokens']} tokens of a {width}x{height} picture."]
    regions, total = facts["token_policy"]["plan"]["regions"], facts["token_policy"]["plan"]["num_train_timesteps"]
    rows = [("region", "timesteps", "kept", *(f"layer {layer}" for layer in range(facts["layers"])))]
    for region, kept in enumerate(facts["capacities"]):
        timesteps = region_timesteps(region, regions, total)
        share = sum(kept) / (len(kept) * facts["tokens"])
        rows.append((str(region), f"{timesteps[0]}-{timesteps[-1]}", f"{share:.0%}", *map(str, kept)))
    return [
        f"Tokens kept of {facts['tokens']} ({width}x{height}); mean keep ratio {facts['mean_keep_ratio']:.3f}, "
        f"{facts['kept_flops_share']:.1%} of the dense blocks' FLOPs in {REFERENCE_STEPS} steps:",
        *align(rows),
    ]


def _component(item: Component) -> dict[str, Any]:
    quantization = item.quantization
    stored = item.dtype or ""
    if quantization is not None:
        stored = f"{quantization.bits}-bit in groups of {quantization.group_size}, rest {stored}"
    return {"parameters": item.parameters, "bytes": sum(info.bytes for info in item.files), "stored_as": stored}


def _memory(manifest: Manifest, compute: Compute, tokens: int, size: Size, tile: int) -> dict[str, int]:
    """Estimate the peak of each stage: the weights of its component, and the activations alive at once.

    "all_in_memory" is the peak where components stay for the next picture; the others are peaks with low_ram.
    """
    spec = manifest.spec.transformer
    weights = {
        name: _weight_bytes(item, compute.dtype)
        for name, item in manifest.components.items()
        if name not in WITHOUT_TENSORS
    }
    itemsize = ITEM_BYTES[compute.dtype or manifest.components["transformer"].dtype or "float32"]
    rows = activation_bytes(spec, tokens, tokens, batch=GUIDED_BATCH, itemsize=itemsize)
    text = 2 * GUIDED_BATCH * manifest.spec.text_tokens * spec.hidden_size * spec.num_layers * itemsize
    # MLX's attention on a CPU holds the scores of all heads; on Metal it is fused.
    scores = 0 if compute.is_gpu else GUIDED_BATCH * spec.num_attention_heads * tokens * tokens * ITEM_BYTES["float32"]
    denoise = BLOCK_COPIES * rows + text + scores
    decode = _decoder_bytes(manifest, compute, size)
    tiled = decode
    if max(size) > tile:
        # beside the tile: the bands that are done, and the picture that they become
        picture = size[0] * size[1] * manifest.spec.vae.out_channels * ITEM_BYTES["float32"]
        tiled = min(decode, _decoder_bytes(manifest, compute, (min(size[0], tile), min(size[1], tile))) + 2 * picture)
    everything = sum(weights.values())
    return {
        "encode": everything - weights["transformer"] - weights["vae"],
        "denoise": weights["transformer"] + denoise,
        "decode": weights["vae"] + decode,
        "decode_tiled": weights["vae"] + tiled,
        "all_in_memory": everything + max(denoise, decode),
        "all_in_memory_tiled": everything + max(denoise, tiled),
    }


def _decoder_bytes(manifest: Manifest, compute: Compute, size: Size) -> int:
    """Estimate the activations of the VAE's decoder that are alive at once, for a picture or tile of a size."""
    vae, (height, width) = manifest.spec.vae, size
    # float16 is widened to float32 (`layers.without_overflow`)
    dtype = compute.dtype or manifest.components["vae"].dtype
    itemsize = ITEM_BYTES["bfloat16" if dtype == "bfloat16" else "float32"]
    copies = DECODER_COPIES_GPU if compute.is_gpu else DECODER_COPIES_CPU
    widest = max(vae.block_out_channels[:2])  # the second reaches full size before it is narrowed to the first
    total = copies * height * width * widest * itemsize
    if vae.mid_block_add_attention:  # one wide head, which is fused nowhere
        total += (height * width // vae.downscale**2) ** 2 * itemsize
    return total


def _weight_bytes(item: Component, dtype: str | None) -> int:
    """Count the bytes of a component's weights in memory; quantised ones stay as they are stored."""
    if dtype is None or item.quantization is not None:
        return sum(info.bytes for info in item.files)
    return item.parameters * ITEM_BYTES[dtype]
