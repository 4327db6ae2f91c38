"""Whether a record that somebody contributes can be true."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from moddit.benchmark.record import BenchmarkRecord
from moddit.benchmark.summary import stage_medians, stage_spreads, trials_of

LEAST_TRIALS: Final = 3  # of an arm
MOST_FLOPS: Final = 200e12  # a second, several times what the largest chip does
MOST_SPREAD: Final = 1.0  # between the quartiles of a step, as a share of its median
_UNIT: Final = 1e12


def find_faults(record: BenchmarkRecord) -> Iterator[str]:
    """List what is wrong with a record, a sentence each: nothing if it can be true and says enough."""
    if record.commit is None or record.commit.endswith("-dirty"):
        yield f"commit is {record.commit!r}, want one of the repository, without changes"
    for number, arm in enumerate(record.arms):
        count = len(trials_of(record, number))
        if count < LEAST_TRIALS:
            yield f"arm {arm.name!r} has {count} trials, want at least {LEAST_TRIALS}"
        for field in ("runtime_peak_bytes", "process_peak_bytes"):
            peaks = [getattr(stage, field) or 0 for trial in trials_of(record, number) for stage in trial.stages]
            if max(peaks, default=0) > record.machine.memory_bytes:
                yield f"arm {arm.name!r} has {field} of {max(peaks)}, more than the machine's memory"
        steps = stage_medians(record, number, "step")
        if steps and arm.step_flops is not None and arm.step_flops / min(steps) > MOST_FLOPS:
            rate = arm.step_flops / min(steps) / _UNIT
            yield f"arm {arm.name!r} does {rate:.0f} TFLOP/s, want at most {MOST_FLOPS / _UNIT:.0f}"
        spread = stage_spreads(record, number).get("step")
        if spread is not None and spread.high - spread.low > MOST_SPREAD * spread.median:
            yield f"steps of arm {arm.name!r} took {spread.low:.3g} to {spread.high:.3g} s, want a quiet machine"
