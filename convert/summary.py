"""What a conversion tells its user."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from convert.conversion import Conversion
from moddit.cost import kept_flops_share
from moddit.graphs import Graphs
from moddit.manifest import Component
from moddit.record import escape
from moddit.routing import region_timesteps
from moddit.samplers import build_table
from moddit.spec import ModelSpec
from moddit.text import printable
from moddit.tokens import TokenPolicy

STEPS: Final = 20  # of the sampling run whose FLOPs are estimated
_PREFIXES: Final = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


@dataclass(frozen=True)
class Summary:
    """A conversion in numbers."""

    conversion: Conversion

    @property
    def spec(self) -> ModelSpec:
        return self.conversion.manifest.spec

    @property
    def tokens(self) -> int:
        """Image tokens at the size the model was trained on."""
        return self.spec.transformer.tokens(self.spec.transformer.sample_size, self.spec.transformer.sample_size)

    @property
    def capacities(self) -> list[list[int]]:
        """Tokens kept, [regions][layers]."""
        plan = self.conversion.manifest.tokens.plan
        return [list(plan.capacities(region, self.tokens)) for region in range(plan.regions)]

    @property
    def flops_share(self) -> float:
        """Share of the dense blocks' FLOPs spent over a run of STEPS steps with the checkpoint's own sampler."""
        schedule = self.spec.scheduler
        timesteps = build_table(schedule, schedule.sampler, STEPS).timesteps
        policy = self.conversion.manifest.tokens
        return kept_flops_share(self.spec.transformer, policy, timesteps, self.tokens, self.spec.text_tokens)

    def to_json(self) -> dict[str, Any]:
        """Write everything that `to_text` says."""
        manifest, description = self.conversion.manifest, self.conversion.description
        return {
            "out": str(self.conversion.out),
            "backend": manifest.backend,
            "source": manifest.provenance.source,
            "source_sha256": manifest.provenance.source_sha256,
            "components": {name: _component_json(component) for name, component in manifest.components.items()},
            "image_side": self.spec.default_side,
            "functions": [item.function for item in manifest.graphs.step_functions] if manifest.graphs else None,
            "tokens": self.tokens,
            "token_policy": manifest.tokens.name,
            "mean_keep_ratio": manifest.tokens.plan.mean_keep_ratio,
            "capacities": self.capacities,
            "block_flops_share": self.flops_share,
            "steps": STEPS,
            "unused": dict(description.unused),
            "notes": list(self.conversion.notes),
        }

    def to_text(self) -> str:
        """Write a summary of some lines."""
        manifest, description = self.conversion.manifest, self.conversion.description
        lines = [
            f"{self.conversion.out}: bundle for {manifest.backend}",
            f"  source        {escape(manifest.provenance.source)}",
            f"  sha256        {manifest.provenance.source_sha256}",
        ]
        lines += [f"  {name:13} {_component_text(component)}" for name, component in manifest.components.items()]
        lines += self._routing_lines(manifest.tokens)
        lines += _graph_lines(manifest.graphs)
        lines += [f"  not stored    {line}" for line in _group(description.unused)]
        lines += [f"  note          {note}" for note in self.conversion.notes]
        return "\n".join(map(printable, lines))

    def _routing_lines(self, policy: TokenPolicy) -> list[str]:
        side, plan = self.spec.default_side, policy.plan
        if policy.is_dense:
            return [f"  routing       none (dense model), {self.tokens} tokens at {side}x{side} pixels"]
        lines = [
            f"  routing       mean keep ratio {plan.mean_keep_ratio:.3f}; tokens kept of {self.tokens} by layer, "
            f"at {side}x{side} pixels:"
        ]
        for region, row in enumerate(self.capacities):
            timesteps = region_timesteps(region, plan.regions, plan.num_train_timesteps)
            lines.append(f"    t {timesteps[0]:4}..{timesteps[-1]:<4}  {' '.join(map(str, row))}")
        lines.append(
            f"  block FLOPs   {100 * self.flops_share:.1f} % of the dense model's "
            f"({STEPS} steps{f', {self.spec.text_tokens} text tokens' if self.spec.text_tokens else ''})"
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
        f"sizes {sizes}, batches {batches}, routing {graphs.routing}"
    ]


def _component_json(component: Component) -> dict[str, Any]:
    quantization = component.quantization
    return {
        "parameters": component.parameters,
        "bytes": sum(file.bytes for file in component.files),
        "files": len(component.files),
        "dtype": component.dtype,
        "quantization": None
        if quantization is None
        else {
            "bits": quantization.bits,
            "group_size": quantization.group_size,
            "mode": quantization.mode,
            "tensors": len(quantization.tensors),
        },
    }


def _component_text(component: Component) -> str:
    size = _bytes_text(sum(file.bytes for file in component.files))
    if component.dtype is None:
        return f"{'':22}{size:>10}"
    text = f"{component.parameters:>11,} parameters{size:>10}  {component.dtype}"
    quantization = component.quantization
    if quantization is not None:
        text += f", {len(quantization.tensors)} tensors in {quantization.bits} bits by {quantization.group_size}"
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
