"""What a bundle is: components, sizes, capacities of each region, and an estimate of the memory it needs.

Reads the manifest alone, no weights.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Final

from mlx_moddit.estimate import Compute, choose_strip_bytes, estimate_memory
from mlx_moddit.memory import usable_bytes
from mlx_moddit.report import MB, align
from moddit.conditioning import Label
from moddit.cost import kept_flops_share
from moddit.manifest import Component, Manifest
from moddit.record import escape
from moddit.request import DEFAULT_VAE_TILE_SIZE
from moddit.routing import region_timesteps
from moddit.samplers import build_table
from moddit.text import printable
from moddit.tokens import DENSE

REFERENCE_STEPS: Final = 20


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
        "inpaints": spec.transformer.inpaints,
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
        "memory_bytes": usable_bytes(),
        "decodes_in_strips": choose_strip_bytes(manifest, compute, (height, width), low_ram=False) is not None,
        "memory_estimate_bytes": estimate_memory(manifest, compute, (height, width), tile),
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
            f"Memory for {width}x{height}, guided, on a {facts['device'].upper()} with "
            f"{facts['memory_bytes'] / MB:.0f} MB, {_decoding(facts)}; tiled is with --vae-tiling and tiles of "
            f"{facts['vae_tile_size']} pixels:",
            *align(memory),
        ],
        [f"Made from {escape(facts['provenance']['source'])} at {facts['provenance']['created']}"],
    ]
    return "\n\n".join("\n".join(map(printable, part)) for part in parts)


def _decoding(facts: dict[str, Any]) -> str:
    memory = facts["memory_estimate_bytes"]
    if facts["decodes_in_strips"]:
        return "decoded in strips"
    is_one_strip = memory["decode_strips"] == memory["decode"]
    return "decoded whole" if is_one_strip else "decoded whole, with --low-ram in strips"


def _subject(facts: dict[str, Any]) -> str:
    is_label = facts["conditioning"] == Label.KIND
    drawn = f"one of {facts['classes']} classes" if is_label else f"a text of up to {facts['text_tokens']} tokens"
    return f"inpaints {drawn} under a mask" if facts["inpaints"] else f"draws {drawn}"


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
    stored = item.dtype or ""
    if item.quantization:
        stored = f"{', '.join(packing.words for packing in item.quantization)}, rest {stored}"
    return {"parameters": item.parameters, "bytes": sum(info.bytes for info in item.files), "stored_as": stored}
