"""What a bundle is: components, sizes, capacities of each region, and an estimate of the memory it needs.

Reads the manifest alone, no weights.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Final

from mlx_moddit.report import MB, align
from moddit.cost import activation_bytes, kept_flops_share
from moddit.manifest import Component, Manifest
from moddit.samplers import build_table
from moddit.spec import ModelSpec

REFERENCE_STEPS: Final = 20
ITEM_BYTES: Final = {"float16": 2, "bfloat16": 2, "float32": 4}
# Activations alive at once in the VAE's decoder at full size: a resnet's input, its output, and a copy of one in a
# convolution or a norm. Measured on CPU, not on Metal.
_DECODER_COPIES: Final = 4


def describe(manifest: Manifest, *, height: int, width: int) -> dict[str, Any]:
    """Gather the facts about a bundle as JSON; capacities and memory are for pictures of one size.

    Args:
        manifest: of the bundle.
        height: pixels.
        width: pixels.

    Raises:
        ShapeError: the model cannot make pictures of this size.
    """
    spec, plan = manifest.spec, manifest.plan
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
        "max_sequence_length": spec.max_sequence_length,
        "routing": None if plan is None else plan.to_json(),
        "size": [height, width],
        "tokens": tokens,
        "capacities": [] if plan is None else [list(plan.capacities(r, tokens)) for r in range(plan.regions)],
        "mean_keep_ratio": 1.0 if plan is None else plan.mean_keep_ratio,
        "kept_flops_share": kept_flops_share(spec.transformer, plan, timesteps, tokens, spec.max_sequence_length),
        "memory_estimate_bytes": _memory(manifest, tokens, height, width),
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
            f"{facts['max_sequence_length']} text tokens; {facts['sampler']}, {facts['prediction_type']}.",
        ],
        _routing(facts),
        [f"Memory for {width}x{height}, guided:", *align(memory)],
        [f"Made from {facts['provenance']['source']} at {facts['provenance']['created']}"],
    ]
    return "\n\n".join("\n".join(part) for part in parts)


def _routing(facts: dict[str, Any]) -> list[str]:
    height, width = facts["size"]
    if facts["routing"] is None:
        return [f"Dense: every layer processes all {facts['tokens']} tokens of a {width}x{height} picture."]
    regions, total = facts["routing"]["regions"], facts["routing"]["num_train_timesteps"]
    rows = [("region", "timesteps", "kept", *(f"layer {layer}" for layer in range(facts["layers"])))]
    for region, kept in enumerate(facts["capacities"]):
        # the same integer rule as RoutingPlan.region
        first, after = -(-region * total // regions), -(-(region + 1) * total // regions)
        share = sum(kept) / (len(kept) * facts["tokens"])
        rows.append((str(region), f"{first}-{after - 1}", f"{share:.0%}", *map(str, kept)))
    return [
        f"Tokens kept of {facts['tokens']} ({width}x{height}); mean keep ratio {facts['mean_keep_ratio']:.3f}, "
        f"{facts['kept_flops_share']:.1%} of the dense blocks' FLOPs in {REFERENCE_STEPS} steps:",
        *align(rows),
    ]


def _component(item: Component) -> dict[str, Any]:
    recipe = item.quantization
    stored = item.dtype or ""
    if recipe is not None:
        stored = f"{recipe.bits}-bit in groups of {recipe.group_size}, rest {stored}"
    return {"parameters": item.parameters, "bytes": sum(info.bytes for info in item.files), "stored_as": stored}


def _memory(manifest: Manifest, tokens: int, height: int, width: int) -> dict[str, int]:
    """Estimate the peak of each stage: its component's weights and the activations alive at once.

    The sum of the weights is what stays in memory between pictures; with low_ram only one stage's is.
    """
    spec = manifest.spec
    weights = {name: sum(info.bytes for info in item.files) for name, item in manifest.components.items()}
    itemsize = ITEM_BYTES.get(manifest.components["transformer"].dtype or "float32", 4)
    denoise = activation_bytes(spec.transformer, tokens, tokens, batch=2, itemsize=itemsize) + _text_bytes(
        spec, itemsize
    )
    decode = _DECODER_COPIES * 4 * height * width * max(spec.vae.block_out_channels[0], spec.vae.out_channels)
    return {
        "encode": weights["text_encoder"],
        "denoise": weights["transformer"] + denoise,
        "decode": weights["vae"] + decode,
        "all_in_memory": weights["text_encoder"] + weights["transformer"] + weights["vae"] + max(denoise, decode),
    }


def _text_bytes(spec: ModelSpec, itemsize: int) -> int:
    """Count the keys and values of a guided batch's text, for all layers."""
    return 2 * 2 * spec.max_sequence_length * spec.transformer.hidden_size * spec.transformer.num_layers * itemsize
