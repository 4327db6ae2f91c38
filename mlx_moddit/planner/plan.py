"""What a model needs and takes: bytes, memory of each stage, seconds on each chip, and what makes it fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

from mlx_moddit.estimate import ITEM_BYTES, Compute, estimate_memory
from mlx_moddit.imagined import imagine_manifest, imagine_tokens
from mlx_moddit.planner.chips import Chip, gpu_bytes
from mlx_moddit.planner.latency import Drawing, Range, Rates, chip_rates
from mlx_moddit.planner.model import Download
from moddit.bins import Size
from moddit.manifest import Manifest
from moddit.quantization import AFFINE, MODES, mean_bits
from moddit.request import DEFAULT_VAE_TILE_SIZE
from moddit.routing import RoutingPlan
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
    download: Download = field(default_factory=Download)
    reuse: int = 1  # the model is asked in the first of so many steps
    has_cache: bool = False  # a first-block cache, in whose steps the blocks behind the first may be left out

    @property
    def dtype(self) -> str:
        """Of the transformer's weights."""
        return self.manifest.components["transformer"].dtype or "float32"

    @property
    def bits(self) -> float | None:
        """Of its weights, where they are quantised."""
        weights = self.manifest.spec.transformer.tensors(has_routers=self.manifest.tokens.has_routers)
        return mean_bits(self.manifest.components["transformer"].quantization, weights)

    @property
    def tokens(self) -> int:
        """Tokens of a picture."""
        spec = self.manifest.spec
        return spec.transformer.tokens(*(side // spec.vae.downscale for side in self.size))

    def memory(self, *, has_bfloat16: bool) -> dict[str, int]:
        """Estimate the peak of each stage on a Mac's GPU, bytes."""
        compute = Compute(is_gpu=True, dtype=None, has_bfloat16=has_bfloat16)
        return estimate_memory(self.manifest, compute, self.size, DEFAULT_VAE_TILE_SIZE, has_cache=self.has_cache)

    def drawing(self) -> Drawing:
        """Say what there is to compute."""
        spec, item = self.manifest.spec, ITEM_BYTES[self.dtype]
        text = min(PROMPT_TOKENS, spec.text_tokens)
        weight_bytes = item if self.bits is None else self.bits / 8
        return Drawing(spec, self.manifest.tokens, *self.size, self.steps, self.batch, text, weight_bytes, self.reuse)

    def seconds(self, rates: Rates) -> dict[str, Range]:
        """Predict each stage and the whole picture."""
        return self.drawing().seconds(rates)


@dataclass(frozen=True)
class Variant:
    """One way to run a model, and the memory it needs at most."""

    words: str
    peak: int  # bytes


@dataclass(frozen=True)
class AlignedPlan(RoutingPlan):
    """A plan whose capacities are the nearest multiples of a number that kernels like; no runtime rounds them so."""

    multiple: int = 1

    def capacities(self, region: int, tokens: int) -> tuple[int, ...]:
        found = super().capacities(region, tokens)
        return tuple(count if count == tokens else min(tokens, self._nearest(count)) for count in found)

    def _nearest(self, count: int) -> int:
        return max(1, round(count / self.multiple)) * self.multiple

    def changes(self, tokens: int) -> list[tuple[int, int]]:
        """List the capacities of so many tokens that are others than without, each with what it becomes."""
        pairs: set[tuple[int, int]] = set()
        for region in range(self.regions):
            pairs.update(zip(super().capacities(region, tokens), self.capacities(region, tokens), strict=True))
        return sorted(pair for pair in pairs if pair[0] != pair[1])


def imagine(
    name: str, spec: ModelSpec, size: Size, *, keep: float | None, dtype: str, bits: int | None, steps: int, batch: int
) -> Asked:
    """Ask for pictures of a model that is not there; with `keep`, every layer keeps that share of the tokens."""
    dense = TokenPolicy.dense(spec.transformer.num_layers, spec.scheduler.num_train_timesteps)
    tokens = dense if keep is None else imagine_tokens(dense, keep)
    return Asked(name, imagine_manifest(spec, tokens, dtype, bits), size, steps, batch)


def change(asked: Asked, *, keep: float | None = None, dtype: str | None = None, bits: int | None = None) -> Asked:
    """Ask for the same of a model that is stored, or keeps tokens (`imagine_tokens`), otherwise; what is None stays."""
    manifest = asked.manifest
    tokens = manifest.tokens if keep is None else imagine_tokens(manifest.tokens, keep)
    if dtype is None and bits is None:
        return replace(asked, manifest=replace(manifest, tokens=tokens))
    if bits is None and (mean := asked.bits) is not None:
        bits = min(MODES[AFFINE].bits, key=lambda count: abs(count - mean))
    return replace(asked, manifest=imagine_manifest(manifest.spec, tokens, dtype or asked.dtype, bits))


def align(asked: Asked, multiple: int) -> Asked:
    """Round what every layer keeps to multiples of a number."""
    tokens = asked.manifest.tokens
    plan = AlignedPlan(tokens.plan.keep_tenths, tokens.plan.num_train_timesteps, multiple)
    return replace(asked, manifest=replace(asked.manifest, tokens=replace(tokens, plan=plan)))


def variants(asked: Asked, *, has_bfloat16: bool) -> Iterator[Variant]:
    """List ways to run a model, from what was asked to what needs least."""
    fewer = [bits for bits in BITS if asked.bits is None or bits < asked.bits]
    for bits in (asked.bits, *fewer):
        chosen = change(asked, bits=int(bits)) if bits in fewer else asked
        words = asked.dtype if bits is None else f"{bits:g}-bit"
        memory = chosen.memory(has_bfloat16=has_bfloat16)
        yield Variant(words, memory["all_in_memory"])
        if memory["all_in_memory_strips"] < memory["all_in_memory"]:
            yield Variant(f"{words}, decoded in strips", memory["all_in_memory_strips"])
        yield Variant(f"{words}, --low-ram", max(memory[name] for name in ("encode", "denoise", "decode_strips")))


def choose(asked: Asked, limit: int, *, has_bfloat16: bool) -> Variant | None:
    """Find the first way to run a model in so many bytes."""
    return next((variant for variant in variants(asked, has_bfloat16=has_bfloat16) if variant.peak <= limit), None)


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
        "reuse": asked.reuse,
        "has_cache": asked.has_cache,
        "batch": asked.batch,
        "dtype": asked.dtype,
        "bits": asked.bits,
        "mean_keep_ratio": asked.manifest.tokens.plan.mean_keep_ratio,
        "aligned": _aligned(asked),
        "parameters": sum(item.parameters for item in components.values()),
        "download": asdict(asked.download),
        "bundle_bytes": {name: sum(info.bytes for info in item.files) for name, item in components.items()},
        "memory_bytes": asked.memory(has_bfloat16=is_new),
        "variants": [{"words": item.words, "peak_bytes": item.peak} for item in variants(asked, has_bfloat16=is_new)],
    }
    if rates is not None:
        return {**facts, "machine": _seconds(asked.seconds(rates))}
    return {**facts, "chips": [_chip(asked, chip, memory_gb or chip.memory[0]) for chip in chips]}


def _aligned(asked: Asked) -> dict[str, Any] | None:
    plan = asked.manifest.tokens.plan
    if not isinstance(plan, AlignedPlan):
        return None
    return {"multiple": plan.multiple, "tokens": asked.tokens, "capacities": plan.changes(asked.tokens)}


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
