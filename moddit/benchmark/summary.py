"""What follows from the samples of a benchmark: medians, spreads, and what routing gains and costs.

Arms are compared trial by trial, in pairs that ran one after the other, since a machine changes between them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

import numpy as np

from moddit.benchmark.record import Arm, BenchmarkRecord, Stage, Trial

DENSE: Final = "dense"
ORACLE: Final = "oracle"  # as many tokens as routed, but the first ones: nothing is ranked, gathered or put back
ROUTED: Final = "routed"
_CONFIDENCE: Final = (2.5, 97.5)  # percentiles of a ratio's interval
_RESAMPLES: Final = 2000


@dataclass(frozen=True)
class Spread:
    """The middle of some samples, and how far apart they are."""

    median: float
    low: float  # first quartile
    high: float  # third quartile
    count: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> Spread:
        low, high = np.percentile(samples, [25, 75])
        return cls(median(samples), float(low), float(high), len(samples))


@dataclass(frozen=True)
class Ratio:
    """A ratio of two medians, with the interval that it lies in by chance alone."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class RoutingGain:
    """What routing gains and costs in one arm."""

    arm: Arm  # that is routed
    seconds: Ratio  # a dense step / a routed one
    flops: float  # the same of FLOPs
    cost: Ratio | None  # (routed - oracle) / routed; None without an oracle

    @property
    def efficiency(self) -> Ratio:
        """How much of the FLOPs that routing saves is saved in time."""
        return Ratio(*(value / self.flops for value in (self.seconds.value, self.seconds.low, self.seconds.high)))


def trials_of(record: BenchmarkRecord, arm: int) -> list[Trial]:
    """List the trials of an arm, in order."""
    return [trial for trial in record.trials if trial.arm == arm]


def find_stage(trial: Trial, name: str) -> Stage | None:
    """Find a stage of a trial; None if it did not run."""
    return next((stage for stage in trial.stages if stage.name == name), None)


def stage_medians(record: BenchmarkRecord, arm: int, name: str) -> list[float]:
    """List the median seconds of a stage in each trial of an arm, of those in which it ran."""
    stages = (find_stage(trial, name) for trial in trials_of(record, arm))
    return [median(stage.seconds) for stage in stages if stage is not None]


def stage_spreads(record: BenchmarkRecord, arm: int) -> dict[str, Spread]:
    """Summarise every stage of an arm over its trials."""
    names = dict.fromkeys(stage.name for trial in trials_of(record, arm) for stage in trial.stages)
    return {name: Spread.of(stage_medians(record, arm, name)) for name in names}


def picture_seconds(record: BenchmarkRecord, arm: int) -> float | None:
    """Add up what a picture takes with a model that is in memory; None if a stage was not measured."""
    found = stage_spreads(record, arm)
    if "first_step" not in found or "decode" not in found:
        return None
    once = sum(found[name].median for name in ("encode", "prepare", "first_step", "decode") if name in found)
    return once + sum(
        stage_count(record, arm, name) * found[name].median for name in ("step", "cached_step") if name in found
    )


def stage_count(record: BenchmarkRecord, arm: int, name: str) -> float:
    """Say how often a stage ran in a trial of an arm: the median over those in which it did, 0 without one."""
    stages = (find_stage(trial, name) for trial in trials_of(record, arm))
    return median([len(stage.seconds) for stage in stages if stage is not None] or [0])


def peak_bytes(record: BenchmarkRecord, arm: int, field: str) -> int | None:
    """Find the largest peak of a kind (a field of `Stage`) in all trials of an arm; None if none was measured."""
    stages = (stage for trial in trials_of(record, arm) for stage in trial.stages)
    return max((getattr(stage, field) for stage in stages if getattr(stage, field) is not None), default=None)


def routing_gains(record: BenchmarkRecord) -> Iterator[RoutingGain]:
    """Compare routed steps with dense ones, and with as many tokens that are not routed, at every size.

    The oracle is that of the arm named "routed"; others ("routed 0.8") have none.
    """
    for numbers in _sizes(record.arms):
        steps = {name: stage_medians(record, number, "step") for name, number in numbers.items()}
        flops = {name: record.arms[number].step_flops for name, number in numbers.items() if steps[name]}
        for name, number in numbers.items():
            dense, routed = flops.get(DENSE), flops.get(name)
            if not name.startswith(ROUTED) or not dense or not routed:
                continue
            cost = None
            if name == ROUTED and steps.get(ORACLE):
                share = ratio(steps[ORACLE], steps[ROUTED])
                cost = Ratio(1 - share.value, 1 - share.high, 1 - share.low)
            yield RoutingGain(record.arms[number], ratio(steps[DENSE], steps[name]), dense / routed, cost)


def ratio(above: Sequence[float], below: Sequence[float]) -> Ratio:
    """Divide samples that belong together in pairs; the interval is that of resampling pairs (the bootstrap)."""
    count = min(len(above), len(below))
    pairs = np.log(np.asarray(above[:count])) - np.log(np.asarray(below[:count]))
    drawn = np.random.default_rng(0).integers(0, count, (_RESAMPLES, count))
    low, high = np.percentile(np.median(pairs[drawn], axis=1), _CONFIDENCE)
    return Ratio(*(float(np.exp(value)) for value in (np.median(pairs), low, high)))


def unpaired_ratio(above: Sequence[float], below: Sequence[float]) -> Ratio:
    """Divide the medians of samples that were taken apart from each other; the interval resamples each of them."""
    rng = np.random.default_rng(0)
    drawn = [
        np.median(np.log(samples)[rng.integers(0, len(samples), (_RESAMPLES, len(samples)))], axis=1)
        for samples in (above, below)
    ]
    low, high = np.percentile(drawn[0] - drawn[1], _CONFIDENCE)
    return Ratio(median(above) / median(below), float(np.exp(low)), float(np.exp(high)))


def _sizes(arms: Iterable[Arm]) -> list[Mapping[str, int]]:
    """Number the arms of each size, height and width, by their names."""
    found: dict[tuple[int, int], dict[str, int]] = {}
    for number, arm in enumerate(arms):
        if arm.height is not None and arm.width is not None:
            found.setdefault((arm.height, arm.width), {})[arm.name] = number
    return list(found.values())
