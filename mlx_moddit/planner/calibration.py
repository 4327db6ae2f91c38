"""The rates of a machine, from the records of benchmarks on it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

import numpy as np

from mlx_moddit.estimate import ITEM_BYTES
from mlx_moddit.planner.latency import UNITS, Drawing, Rates, Work
from moddit.benchmark.record import Arm, BenchmarkRecord
from moddit.benchmark.summary import ORACLE, stage_medians
from moddit.bins import Size
from moddit.configurations import CONFIGURATIONS, find_configuration
from moddit.errors import MissingError
from moddit.routing import RoutingPlan, snap
from moddit.spec import ModelSpec
from moddit.tokens import TokenPolicy

PREDICTED: Final = ("encode", "prepare", "step", "decode")
LEAST_ERROR: Final = 0.1  # that a prediction is given at least: a machine is never twice the same
_SWEEPS: Final = 5000  # of coordinate descent, enough for nine rates


@dataclass(frozen=True)
class Sample:
    """A stage that was measured."""

    name: str
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
                size = f"{name} {record.subject.layers} layers {arm.height}x{arm.width}"
                yield Sample(stage, size, arm.name, work, median(seconds))


def _drawing(arm: Arm, spec: ModelSpec, size: Size, text_tokens: int) -> Drawing:
    layers, timesteps = spec.transformer.num_layers, spec.scheduler.num_train_timesteps
    policy = TokenPolicy.dense(layers, timesteps)
    if arm.keep is not None:
        plan = RoutingPlan.uniform(layers, 1, snap(arm.keep), timesteps)
        policy = TokenPolicy.first(plan) if arm.name == ORACLE else TokenPolicy.topk(plan)
    weight_bytes = ITEM_BYTES[arm.dtype] if arm.bits is None else arm.bits / 8
    return Drawing(spec, policy, *size, arm.steps, arm.batch, text_tokens, weight_bytes)


def fit(samples: Sequence[Sample]) -> Work:
    """Find rates, none negative, with the least sum of squares of relative errors (by coordinate descent)."""
    work = np.array([[sample.work.get(unit, 0.0) / sample.seconds for unit in UNITS] for sample in samples])
    scale = work.max(axis=0)
    used = scale > 0
    columns = work[:, used] / scale[used]
    rates = np.zeros(columns.shape[1])
    gram, wanted = columns.T @ columns, columns.sum(axis=0)
    for _ in range(_SWEEPS):
        for index in range(len(rates)):
            rates[index] = max(0.0, rates[index] + (wanted[index] - gram[index] @ rates) / gram[index, index])
    found = dict.fromkeys(UNITS, 0.0)
    found.update(zip(np.array(UNITS)[used].tolist(), (rates / scale[used]).tolist(), strict=True))
    return found


def cross_validate(samples: Sequence[Sample]) -> list[Error]:
    """Predict every sample by rates that are fitted on those of other sizes."""
    errors = []
    for size in dict.fromkeys(sample.size for sample in samples):
        rates = _rates(fit([sample for sample in samples if sample.size != size]), 0.0)
        errors += [Error(sample, rates.seconds(sample.work).value) for sample in samples if sample.size == size]
    return errors


def calibrate(records: Iterable[BenchmarkRecord]) -> Rates:
    """Fit the rates of a machine; the range of a prediction is what nine in ten sizes are within, fitted without them.

    Raises:
        MissingError: too few sizes of named configurations to fit on some and try on others.
    """
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
