"""How well `mlx_moddit plan --record` predicts: stages of one size, or model, by rates fitted on the others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from statistics import median
from typing import Final

from mlx_moddit.planner.calibration import PREDICTED, Sample, by_model, by_size, cross_validate, samples_of
from moddit.benchmark.record import BenchmarkRecord
from moddit.benchmark.table import markdown

BOUND: Final = 0.25  # share of what was measured
_GROUPS: Final = {"size": by_size, "model": by_model}


def samples_by_machine(records: Iterable[BenchmarkRecord]) -> dict[str, list[Sample]]:
    """Sort the stages that can be predicted by the machine and device that they were measured on."""
    found: dict[str, list[Sample]] = {}
    for record in records:
        for sample in samples_of(record):
            if sample.name in PREDICTED:
                found.setdefault(f"{record.machine.chip}, {sample.device.upper()}", []).append(sample)
    return found


def write_accuracy(records: Iterable[BenchmarkRecord]) -> Iterator[str]:
    """Write a table of the errors of predictions; a machine of one size or model has no row for it."""
    rows = [("measured on", "left out", "stage", "within 25 %", "median error", "largest")]
    for machine, samples in samples_by_machine(records).items():
        for name, group in _GROUPS.items():
            errors = cross_validate(samples, group) if len({*map(group, samples)}) > 1 else []
            for stage in PREDICTED:
                shares = [error.share for error in errors if error.sample.name == stage]
                if shares:
                    good = f"{sum(abs(share) <= BOUND for share in shares)} of {len(shares)}"
                    middle, largest = median(map(abs, shares)), max(shares, key=abs)
                    rows.append((machine, f"this {name}", stage, good, f"{middle:.1%}", f"{largest:+.1%}"))
    return markdown(rows)
