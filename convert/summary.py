"""What a conversion tells its user."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

from convert.conversion import Conversion
from moddit.bins import Size
from moddit.contract import PREPARE
from moddit.cost import kept_flops_share
from moddit.graphs import Graphs
from moddit.manifest import Component, Manifest
from moddit.record import escape
from moddit.routing import region_timesteps
from moddit.samplers import build_table
from moddit.text import printable

STEPS: Final = 20  # of the sampling run whose FLOPs are estimated
_PREFIXES: Final = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def summarise(conversion: Conversion) -> dict[str, Any]:
    """Gather a conversion in numbers, as JSON; tokens and FLOPs are for pictures of the size the model was trained at.

    `sizes` has them for each size that was converted, or for that one where a bundle draws every size. The share of
    the dense blocks' FLOPs is that of a run of STEPS steps with the checkpoint's own sampler.
    """
    manifest, spec, policy = conversion.manifest, conversion.manifest.spec, conversion.manifest.tokens
    trained = (spec.default_side, spec.default_side)
    sizes = manifest.graphs.sizes if manifest.graphs else (trained,)
    return {
        "out": str(conversion.out),
        "backend": manifest.backend,
        "source": manifest.provenance.source,
        "source_sha256": manifest.provenance.source_sha256,
        "components": {name: _component(component) for name, component in manifest.components.items()},
        "image_side": spec.default_side,
        "functions": [item.function for item in manifest.graphs.step_functions] if manifest.graphs else None,
        "token_policy": policy.name,
        "mean_keep_ratio": policy.plan.mean_keep_ratio,
        **_at_size(manifest, trained),
        "sizes": [{"height": height, "width": width, **_at_size(manifest, (height, width))} for height, width in sizes],
        "steps": STEPS,
        "unused": dict(conversion.description.unused),
        "notes": list(conversion.notes),
    }


def _at_size(manifest: Manifest, size: Size) -> dict[str, Any]:
    """Count the tokens of a picture, and what of them is kept."""
    spec, policy = manifest.spec, manifest.tokens
    tokens = spec.transformer.tokens(size[0] // spec.vae.downscale, size[1] // spec.vae.downscale)
    timesteps = build_table(spec.scheduler, spec.scheduler.sampler, STEPS).timesteps
    return {
        "tokens": tokens,
        "capacities": [list(policy.plan.capacities(region, tokens)) for region in range(policy.plan.regions)],
        "block_flops_share": kept_flops_share(spec.transformer, policy, timesteps, tokens, spec.text_tokens),
    }


def write(facts: Mapping[str, Any], manifest: Manifest) -> str:
    """Write what `summarise` has gathered in some lines."""
    lines = [
        f"{facts['out']}: bundle for {facts['backend']}",
        f"  source        {escape(facts['source'])}",
        f"  sha256        {facts['source_sha256']}",
    ]
    lines += [f"  {name:13} {_component_text(component)}" for name, component in facts["components"].items()]
    lines += _routing_lines(facts, manifest)
    lines += _graph_lines(manifest.graphs)
    lines += [f"  not stored    {line}" for line in _group(facts["unused"])]
    lines += [f"  note          {note}" for note in facts["notes"]]
    return "\n".join(map(printable, lines))


def _routing_lines(facts: Mapping[str, Any], manifest: Manifest) -> list[str]:
    if manifest.tokens.is_dense:
        counts = "; ".join("{tokens} tokens at {height}x{width} pixels".format(**item) for item in facts["sizes"])
        return [f"  routing       none (dense model), {counts}"]
    lines = [line for item in facts["sizes"] for line in _kept_lines(item, manifest)]
    lines[0] = f"  routing       mean keep ratio {facts['mean_keep_ratio']:.3f}; {lines[0].lstrip()}"
    return lines


def _kept_lines(item: Mapping[str, Any], manifest: Manifest) -> list[str]:
    """Tell what is kept at one picture size."""
    plan, text = manifest.tokens.plan, manifest.spec.text_tokens
    lines = ["                tokens kept of {tokens} by layer, at {height}x{width} pixels:".format(**item)]
    for region, row in enumerate(item["capacities"]):
        timesteps = region_timesteps(region, plan.regions, plan.num_train_timesteps)
        lines.append(f"    t {timesteps[0]:4}..{timesteps[-1]:<4}  {' '.join(map(str, row))}")
    lines.append(
        f"  block FLOPs   {100 * item['block_flops_share']:.1f} % of the dense model's "
        f"({STEPS} steps{f', {text} text tokens' if text else ''})"
    )
    return lines


def _graph_lines(graphs: Graphs | None) -> list[str]:
    if graphs is None:
        return []
    sizes = ", ".join(f"{height}x{width}" for height, width in graphs.sizes)
    batches = ", ".join(map(str, graphs.batches))
    packages = len(graphs.packages["transformer"])
    return [
        f"  functions     {len(graphs.step_functions)} in {packages} transformer package{'s' if packages > 1 else ''}: "
        f"sizes {sizes}, batches {batches}, routing {graphs.routing}",
        *(f"  prepared      once a picture, in {package.path}" for package in graphs.packages.get(PREPARE, ())),
    ]


def _component(component: Component) -> dict[str, Any]:
    return {
        "parameters": component.parameters,
        "bytes": sum(file.bytes for file in component.files),
        "files": len(component.files),
        "dtype": component.dtype,
        "quantization": [{**asdict(item), "tensors": len(item.tensors)} for item in component.quantization],
    }


def _component_text(component: Mapping[str, Any]) -> str:
    size = _bytes_text(component["bytes"])
    if component["dtype"] is None:
        return f"{'':22}{size:>10}"
    text = f"{component['parameters']:>11,} parameters{size:>10}  {component['dtype']}"
    for item in component["quantization"]:
        text += ", {tensors} tensors in {bits} bits ({mode}) by {group_size}".format(**item)
    return text


def _bytes_text(count: int) -> str:
    for size, prefix in _PREFIXES:
        if count >= size:
            return f"{count / size:.1f} {prefix}"
    return f"{count} B"


def _group(unused: Mapping[str, str]) -> list[str]:
    """One line for each reason."""
    reasons: dict[str, list[str]] = {}
    for name, reason in unused.items():
        reasons.setdefault(reason, []).append(name)
    return [
        f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {reason}"
        for reason, names in reasons.items()
    ]
