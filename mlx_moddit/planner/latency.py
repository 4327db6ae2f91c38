"""How long a stage takes: what it computes and moves, times what each unit of that takes.

The rates of a chip come from its peaks (a roofline), those of a machine from the records of benchmarks on it. Both are
linear, so that a record says how wrong they are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import mean
from typing import Final

from mlx_moddit.planner.chips import Chip
from moddit.cost import step_operations
from moddit.operations import ACTIVATION, ATTENTION, CONVOLUTION, ELEMENTWISE, MATMUL, NORM, Operation
from moddit.samplers import build_table
from moddit.spec import ModelSpec
from moddit.tokens import TokenPolicy

Work = Mapping[str, float]  # what a stage does, by unit
# Units of work, each with a rate of its own.
SCORES: Final = "scores"  # numbers of attention that are not fused
WEIGHT_BYTES: Final = "weight_bytes"
OPERATIONS: Final = "operations"
ONCE: Final = (
    "once"  # a stage that a picture has once: Python's work, which nothing hides, and what is used first there
)
UNITS: Final = (MATMUL, CONVOLUTION, ATTENTION, SCORES, NORM, ACTIVATION, ELEMENTWISE, WEIGHT_BYTES, OPERATIONS, ONCE)
_COUNTED_BY_FLOPS: Final = frozenset({MATMUL, CONVOLUTION, ATTENTION})


@dataclass(frozen=True)
class Range:
    """A prediction, and where it should lie."""

    value: float
    low: float
    high: float

    def __add__(self, other: Range) -> Range:
        return Range(self.value + other.value, self.low + other.low, self.high + other.high)

    def __mul__(self, factor: float) -> Range:
        return Range(self.value * factor, self.low * factor, self.high * factor)


@dataclass(frozen=True)
class Efficiency:
    """What share of its peaks a chip reaches."""

    matmul: float
    convolution: float
    attention: float
    bandwidth: float


# Published: 61 % in FLUX.2 klein-4B on an M1 Max (6.8 s a step of 1024 pixels), 63 % of the peak measured on an M4; the
# bandwidth is 0.83 (M4) and 0.79 (M5) of its peak. Convolutions and attention are not published: the ranges are wide.
LIKELY: Final = Efficiency(matmul=0.61, convolution=0.5, attention=0.5, bandwidth=0.8)
BEST: Final = Efficiency(matmul=0.85, convolution=0.75, attention=0.75, bandwidth=0.9)
WORST: Final = Efficiency(matmul=0.4, convolution=0.25, attention=0.25, bandwidth=0.6)
_DISPATCH_SECONDS: Final = 2.75e-6  # of a small kernel that depends on the one before (M3 Ultra, mlx issue 4521)
_ONCE_SECONDS: Final = 5e-3  # on the machine below
# Seconds for a unit on two cores of an AMD EPYC (Zen 4) with OpenBLAS and mlx 0.32.4, in float32, each operation timed
# alone: products of matrices 80 GFLOP/s a core, weights of few rows 7 GB/s, softmax 12 ns a score, GELU and SiLU 28 and
# 16 ns a number, layer norm 3 ns, sums 0.2 to 0.9 ns. Attention is never fused there: the scores of all heads are
# written and read.
CPU_RATES: Final[Work] = {
    MATMUL: 6.5e-12,
    CONVOLUTION: 8e-12,
    ATTENTION: 8e-12,
    SCORES: 12e-9,
    NORM: 1e-9,
    ACTIVATION: 12e-9,
    ELEMENTWISE: 0.3e-9,
    WEIGHT_BYTES: 1.5e-10,
    OPERATIONS: 4e-5,
    ONCE: _ONCE_SECONDS,
}


@dataclass(frozen=True)
class Rates:
    """Seconds for one unit of work of each kind, likely, at best and at worst."""

    likely: Work
    best: Work
    worst: Work

    def seconds(self, work: Work) -> Range:
        """Predict how long work takes."""
        value, low, high = (
            sum(rates.get(unit, 0.0) * amount for unit, amount in work.items())
            for rates in (self.likely, self.best, self.worst)
        )
        return Range(value, low, high)


def chip_rates(chip: Chip, itemsize: int) -> Rates:
    """Derive the rates of a chip's GPU from its peaks; attention is fused there.

    Args:
        chip: of the Mac.
        itemsize: bytes of an activation.
    """

    def rates(share: Efficiency) -> Work:
        move = 1 / (chip.bandwidth * 1e9 * share.bandwidth)
        matmul = chip.matmul_tflops if itemsize == 2 else chip.tflops
        return {
            MATMUL: 1 / (matmul * 1e12 * share.matmul),
            CONVOLUTION: 1 / (chip.tflops * 1e12 * share.convolution),
            ATTENTION: 1 / (chip.tflops * 1e12 * share.attention),
            NORM: itemsize * move,
            ACTIVATION: itemsize * move,
            ELEMENTWISE: itemsize * move,
            WEIGHT_BYTES: move,
            OPERATIONS: _DISPATCH_SECONDS,
            ONCE: _ONCE_SECONDS,
        }

    return Rates(rates(LIKELY), rates(BEST), rates(WORST))


def count_work(operations: Iterable[Operation], batch: int, weight_bytes: float) -> Work:
    """Add up the work of operations.

    Args:
        operations: for one row of a batch.
        batch: rows.
        weight_bytes: bytes of one number of the weights.
    """
    found: defaultdict[str, float] = defaultdict(float)
    for operation in operations:
        by_flops = operation.kind in _COUNTED_BY_FLOPS
        found[operation.kind] += batch * (operation.flops if by_flops else operation.values)
        found[SCORES] += batch * operation.scores
        found[WEIGHT_BYTES] += operation.weights * weight_bytes
        found[OPERATIONS] += 1
    return dict(found)


@dataclass(frozen=True)
class Drawing:
    """A picture to predict the time of."""

    spec: ModelSpec
    policy: TokenPolicy
    height: int  # pixels
    width: int
    steps: int
    batch: int
    text_tokens: int
    weight_bytes: float  # of one number of the transformer's and the text encoder's weights
    reuse: int = 1  # the model is asked in the first of so many steps

    @property
    def timesteps(self) -> tuple[float, ...]:
        """Those at which the model is asked."""
        table = build_table(self.spec.scheduler, self.spec.scheduler.sampler, self.steps, self.reuse)
        return tuple(step.timestep for step in table.steps if not step.is_reused)

    def work(self) -> dict[str, Work]:
        """Count the work of each stage; that of a step is the mean over those that ask the model."""
        model, policy, batch = self.spec.transformer, self.policy, self.batch
        downscale = self.spec.vae.downscale
        tokens = model.tokens(self.height // downscale, self.width // downscale)
        steps = [
            count_work(step_operations(model, policy, region, tokens, self.text_tokens), batch, self.weight_bytes)
            for region in policy.plan.schedule(self.timesteps)
        ]
        text = self.spec.conditioning.operations(self.text_tokens)
        prepared = model.prepare_operations(tokens, self.steps, self.text_tokens)
        decoded = self.spec.vae.decoder_operations(self.height, self.width)
        once = {
            "encode": count_work(text, batch, self.weight_bytes),
            "prepare": count_work(prepared, batch, self.weight_bytes),
            "decode": count_work(decoded, 1, self.weight_bytes),
        }
        step = {unit: mean(work.get(unit, 0.0) for work in steps) for unit in UNITS}
        return {"step": step, **{name: {**work, ONCE: 1.0} for name, work in once.items() if work}}

    def seconds(self, rates: Rates) -> dict[str, Range]:
        """Predict each stage, and the whole picture with a model that is in memory."""
        stages = {name: rates.seconds(work) for name, work in self.work().items()}
        picture = Range(0.0, 0.0, 0.0)
        for name, taken in stages.items():
            picture += taken * (len(self.timesteps) if name == "step" else 1)
        return {**stages, "picture": picture}
