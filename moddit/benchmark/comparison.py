"""Two records of the same work: what became slower, beyond chance."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from moddit.benchmark.record import Arm, BenchmarkRecord
from moddit.benchmark.summary import Ratio, stage_medians, stage_spreads, unpaired_ratio
from moddit.errors import ValueRangeError

LEAST_TRIALS: Final = 3  # of an arm
TOLERANCE: Final = 0.02  # a slowdown below it is of no interest


@dataclass(frozen=True)
class Change:
    """What one stage of an arm takes after, in times of what it took before."""

    arm: Arm
    stage: str
    ratio: Ratio

    @property
    def is_regression(self) -> bool:
        """Whether it is slower, and not by chance."""
        return self.ratio.low > 1 + TOLERANCE

    @property
    def is_gain(self) -> bool:
        """Whether it is faster, and not by chance."""
        return self.ratio.high < 1 / (1 + TOLERANCE)


def compare(before: BenchmarkRecord, after: BenchmarkRecord) -> Iterator[Change]:
    """Compare the stages that two records share.

    Raises:
        ValueRangeError: they are of other machines or models, have no arm in common, or too few trials.
    """
    for part in ("machine", "subject"):
        mine, theirs = _identity(before, part), _identity(after, part)
        if mine != theirs:
            raise ValueRangeError(f"[benchmark] the records are of another {part}, got {mine} and {theirs}")
    pairs = [(one, other) for one in range(len(before.arms)) for other in _same(before.arms[one], after)]
    if not pairs:
        raise ValueRangeError("[benchmark] the records have no arm in common: same name, dtype, size, batch and steps")
    for one, other in pairs:
        for stage in stage_spreads(before, one).keys() & stage_spreads(after, other).keys():
            samples = stage_medians(after, other, stage), stage_medians(before, one, stage)
            if min(map(len, samples)) < LEAST_TRIALS:
                raise ValueRangeError(
                    f"[benchmark] {before.arms[one].name} has {min(map(len, samples))} trials, want at least "
                    f"{LEAST_TRIALS} in both records to tell a change from chance"
                )
            yield Change(before.arms[one], stage, unpaired_ratio(*samples))


def _identity(record: BenchmarkRecord, name: str) -> str:
    if name == "machine":
        return f"{record.machine.chip} with {record.machine.memory_bytes / 2**30:.0f} GB"
    return f"{record.subject.name} of {record.subject.layers} layers"


def _same(arm: Arm, record: BenchmarkRecord) -> list[int]:
    return [number for number, other in enumerate(record.arms) if _key(other) == _key(arm)]


def _key(arm: Arm) -> tuple[object, ...]:
    return (arm.name, arm.runtime, arm.device, arm.dtype, arm.bits, arm.height, arm.width, arm.batch, arm.steps)
