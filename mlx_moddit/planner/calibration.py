"""The rates of a machine, from the records of benchmarks on it.

There are more units of work than sizes that anybody measures, and some go together in all models. So a fit starts from
what each unit took elsewhere, measured alone or derived from peaks: that, scaled to the machine, counts as one more
measurement of each rate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

import numpy as np

from mlx_moddit.estimate import ITEM_BYTES
from mlx_moddit.planner.chips import CHIPS
from mlx_moddit.planner.latency import CPU_RATES, Drawing, Rates, Work, chip_rates
from moddit.benchmark.record import Arm, BenchmarkRecord
from moddit.benchmark.summary import ORACLE, stage_medians
from moddit.bins import Size
from moddit.configurations import CONFIGURATIONS, find_configuration
from moddit.errors import MissingError, UnsupportedError
from moddit.routing import RoutingPlan, snap
from moddit.spec import ModelSpec
from moddit.tokens import TokenPolicy

PREDICTED: Final = ("encode", "prepare", "step", "decode")
LEAST_ERROR: Final = 0.1  # that a prediction is given at least: a machine is never twice the same
PRIOR_WEIGHT: Final = 0.1  # of a rate's measurement elsewhere, where a stage that was measured here counts 1


@dataclass(frozen=True)
class Sample:
    """A stage that was measured."""

    name: str
    device: str  # "cpu" or "gpu"
    model: str  # whose width is its own; the VAE of a picture's size stands for itself
    size: str  # of the model and the picture
    arm: str
    work: Work
    seconds: float


@dataclass(frozen=True)
class Error:
    """How wrong the prediction of a stage is, whose model and size the rates were not fitted on."""

    sample: Sample
    predicted: float  # seconds

    @property
    def share(self) -> float:
        return self.predicted / self.sample.seconds - 1


def samples_of(record: BenchmarkRecord) -> Iterator[Sample]:
    """List the stages of a record that can be predicted: of MLX, and of a named configuration."""
    name = record.subject.name
    if record.subject.fingerprint is not None or name not in CONFIGURATIONS:
        return
    spec = find_configuration(name, record.subject.layers)
    for number, arm in enumerate(record.arms):
        if arm.runtime != "mlx" or arm.height is None or arm.width is None or arm.text_tokens is None:
            continue
        for stage, work in _drawing(arm, spec, (arm.height, arm.width), arm.text_tokens).work().items():
            seconds = stage_medians(record, number, stage)
            if seconds:
                pixels = f"{arm.height}x{arm.width}"
                model = f"VAE {pixels}" if stage == "decode" else name
                size = f"{name} {record.subject.layers} layers {pixels}"
                yield Sample(stage, arm.device, model, size, arm.name, work, median(seconds))


def _drawing(arm: Arm, spec: ModelSpec, size: Size, text_tokens: int) -> Drawing:
    layers, timesteps = spec.transformer.num_layers, spec.scheduler.num_train_timesteps
    policy = TokenPolicy.dense(layers, timesteps)
    if arm.keep is not None:
        plan = RoutingPlan.uniform(layers, 1, snap(arm.keep), timesteps)
        policy = TokenPolicy.first(plan) if arm.name.startswith(ORACLE) else TokenPolicy.topk(plan)
    weight_bytes = ITEM_BYTES[arm.dtype] if arm.bits is None else arm.bits / 8
    return Drawing(spec, policy, *size, arm.steps, arm.batch, text_tokens, weight_bytes)


def prior(device: str) -> Work:
    """Say what a unit takes elsewhere; only what units take relative to each other counts, which is alike on chips."""
    return CPU_RATES if device == "cpu" else chip_rates(CHIPS[0], 2).likely


def fit(samples: Sequence[Sample]) -> Work:
    """Find rates, none negative, with the least sum of squares of relative errors: of samples, and of the prior.

    All samples are of one device.
    """
    start = prior(samples[0].device)
    work = np.array(
        [[sample.work.get(unit, 0.0) * start[unit] / sample.seconds for unit in start] for sample in samples]
    )
    total = work.sum(axis=1)
    scale = total.sum() / (total @ total)  # with which the prior explains the samples best
    weight = PRIOR_WEIGHT * np.eye(len(start))
    gram, wanted = scale**2 * work.T @ work + weight, scale * work.sum(axis=0) + weight.sum(axis=0)
    free, factors = np.full(len(start), fill_value=True), np.full(len(start), -1.0)
    while factors.min() < 0:  # what would be negative is nothing
        factors[:] = 0
        factors[free] = np.linalg.solve(gram[np.ix_(free, free)], wanted[free])
        free &= factors > 0
    return {unit: float(start[unit] * scale * factor) for unit, factor in zip(start, factors, strict=True)}


def by_size(sample: Sample) -> str:
    return sample.size


def by_model(sample: Sample) -> str:
    return sample.model


def cross_validate(samples: Sequence[Sample], group: Callable[[Sample], str] = by_size) -> list[Error]:
    """Predict every sample by rates that are fitted on those of other groups."""
    errors = []
    for name in dict.fromkeys(map(group, samples)):
        rates = _rates(fit([sample for sample in samples if group(sample) != name]), 0.0)
        errors += [Error(sample, rates.seconds(sample.work).value) for sample in samples if group(sample) == name]
    return errors


def calibrate(records: Iterable[BenchmarkRecord]) -> Rates:
    """Fit the rates of a machine; the range of a prediction is what nine in ten sizes are within, fitted without them.

    Raises:
        MissingError: too few sizes of named configurations to fit on some and try on others.
        UnsupportedError: they are of several machines or devices.
    """
    records = list(records)
    machines = {
        f"{record.machine.chip} {arm.device}" for record in records for arm in record.arms if arm.runtime == "mlx"
    }
    if len(machines) > 1:
        raise UnsupportedError(
            f"[plan] the records are of {', '.join(sorted(machines))}; want those of one machine and device"
        )
    samples = [sample for record in records for sample in samples_of(record) if sample.name in PREDICTED]
    sizes = {sample.size for sample in samples}
    if len(sizes) < 2:
        raise MissingError(
            f"[plan] the records have {len(sizes)} sizes of named configurations, want two or more; "
            "run `mlx_moddit benchmark --config ... --size ...`"
        )
    error = float(np.percentile([abs(item.share) for item in cross_validate(samples)], 90))
    return _rates(fit(samples), max(LEAST_ERROR, error))


def _rates(likely: Work, error: float) -> Rates:
    def scaled(factor: float) -> Mapping[str, float]:
        return {unit: rate * factor for unit, rate in likely.items()}

    return Rates(likely, scaled(max(0.0, 1 - error)), scaled(1 + error))
