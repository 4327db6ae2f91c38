"""What a model needs and takes: bytes, memory of each stage, seconds on each chip, and what makes it fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from mlx_moddit.estimate import ITEM_BYTES, Compute, estimate_memory
from mlx_moddit.imagined import imagine_manifest
from mlx_moddit.planner.chips import Chip, gpu_bytes
from mlx_moddit.planner.latency import Drawing, Range, Rates, chip_rates
from moddit.bins import Size
from moddit.manifest import Manifest
from moddit.quantization import mean_bits
from moddit.request import DEFAULT_VAE_TILE_SIZE
from moddit.routing import RoutingPlan, capacity, snap
from moddit.spec import ModelSpec
from moddit.tokens import TokenPolicy

PROMPT_TOKENS: Final = 60  # of a usual text
BITS: Final = (8, 4)  # that may make it fit


@dataclass(frozen=True)
class Asked:
    """What is to be drawn, and with what."""

    name: str  # of the model, for people
    manifest: Manifest
    size: Size
    steps: int
    batch: int

    @property
    def dtype(self) -> str:
        """Of the transformer's weights."""
        return self.manifest.components["transformer"].dtype or "float32"

    @property
    def bits(self) -> float | None:
        """Of its weights, where they are quantised."""
        weights = self.manifest.spec.transformer.tensors(has_routers=self.manifest.tokens.has_routers)
        return mean_bits(self.manifest.components["transformer"].quantization, weights)

    def memory(self, *, has_bfloat16: bool) -> dict[str, int]:
        """Estimate the peak of each stage on a Mac's GPU, bytes."""
        compute = Compute(is_gpu=True, dtype=None, has_bfloat16=has_bfloat16)
        return estimate_memory(self.manifest, compute, self.size, DEFAULT_VAE_TILE_SIZE)

    def drawing(self) -> Drawing:
        """Say what there is to compute."""
        spec, item = self.manifest.spec, ITEM_BYTES[self.dtype]
        text = min(PROMPT_TOKENS, spec.text_tokens)
        weight_bytes = item if self.bits is None else self.bits / 8
        return Drawing(spec, self.manifest.tokens, *self.size, self.steps, self.batch, text, weight_bytes)

    def seconds(self, rates: Rates) -> dict[str, Range]:
        """Predict each stage and the whole picture."""
        return self.drawing().seconds(rates)


@dataclass(frozen=True)
class Variant:
    """One way to run a model, and the memory it needs at most."""

    words: str
    peak: int  # bytes


def imagine(
    name: str, spec: ModelSpec, size: Size, *, keep: float | None, dtype: str, bits: int | None, steps: int, batch: int
) -> Asked:
    """Ask for pictures of a model that is not there; with `keep`, every layer keeps that share of the tokens."""
    layers, timesteps = spec.transformer.num_layers, spec.scheduler.num_train_timesteps
    tokens = TokenPolicy.dense(layers, timesteps)
    if keep is not None and snap(keep) < snap(1.0):
        tokens = TokenPolicy.topk(RoutingPlan.uniform(layers, 1, snap(keep), timesteps))
    return Asked(name, imagine_manifest(spec, tokens, dtype, bits), size, steps, batch)


def variants(asked: Asked, *, has_bfloat16: bool) -> Iterator[Variant]:
    """List ways to run a model, from what was asked to what needs least."""
    spec, tokens = asked.manifest.spec, asked.manifest.tokens
    fewer = [bits for bits in BITS if asked.bits is None or bits < asked.bits]
    for bits in (asked.bits, *fewer):
        chosen = asked
        if bits in fewer:
            chosen = replace(asked, manifest=imagine_manifest(spec, tokens, asked.dtype, int(bits)))
        words = asked.dtype if bits is None else f"{bits:g}-bit"
        memory = chosen.memory(has_bfloat16=has_bfloat16)
        yield Variant(words, memory["all_in_memory"])
        if memory["all_in_memory_strips"] < memory["all_in_memory"]:
            yield Variant(f"{words}, decoded in strips", memory["all_in_memory_strips"])
        yield Variant(f"{words}, --low-ram", max(memory[name] for name in ("encode", "denoise", "decode_strips")))


def choose(asked: Asked, limit: int, *, has_bfloat16: bool) -> Variant | None:
    """Find the first way to run a model in so many bytes."""
    return next((variant for variant in variants(asked, has_bfloat16=has_bfloat16) if variant.peak <= limit), None)


def aligned(keep: float, tokens: int, multiple: int) -> float:
    """Find the keep ratio whose capacity is the nearest multiple of a number that kernels like."""
    count = capacity(snap(keep), tokens)
    return max(multiple, round(count / multiple) * multiple) / tokens


def describe(asked: Asked, chips: Sequence[Chip], memory_gb: float | None, rates: Rates | None) -> dict[str, Any]:
    """Gather a plan as JSON.

    Args:
        asked: what is to be drawn.
        chips: to predict for.
        memory_gb: of the machine; by default the least that a chip is sold with.
        rates: of this machine, measured; None to go by the chips.
    """
    components, is_new = asked.manifest.components, all(chip.has_bfloat16 for chip in chips)
    facts: dict[str, Any] = {
        "model": asked.name,
        "size": list(asked.size),
        "steps": asked.steps,
        "batch": asked.batch,
        "dtype": asked.dtype,
        "bits": asked.bits,
        "mean_keep_ratio": asked.manifest.tokens.plan.mean_keep_ratio,
        "parameters": sum(item.parameters for item in components.values()),
        "bundle_bytes": {name: sum(info.bytes for info in item.files) for name, item in components.items()},
        "memory_bytes": asked.memory(has_bfloat16=is_new),
        "variants": [{"words": item.words, "peak_bytes": item.peak} for item in variants(asked, has_bfloat16=is_new)],
    }
    if rates is not None:
        return {**facts, "machine": _seconds(asked.seconds(rates))}
    return {**facts, "chips": [_chip(asked, chip, memory_gb or chip.memory[0]) for chip in chips]}


def _chip(asked: Asked, chip: Chip, memory_gb: float) -> dict[str, Any]:
    limit = gpu_bytes(memory_gb)
    chosen = choose(asked, limit, has_bfloat16=chip.has_bfloat16)
    seconds = asked.seconds(chip_rates(chip, ITEM_BYTES[asked.dtype]))
    return {
        "chip": chip.name,
        "memory_gb": memory_gb,
        "limit_bytes": limit,
        "runs_as": None if chosen is None else chosen.words,
        "seconds": _seconds(seconds),
    }


def _seconds(stages: dict[str, Range]) -> dict[str, list[float]]:
    return {name: [taken.low, taken.value, taken.high] for name, taken in stages.items()}
