"""A record as tables in Markdown, which read well as they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from moddit.benchmark.record import STAGES, BenchmarkRecord
from moddit.benchmark.summary import (
    Ratio,
    Spread,
    peak_bytes,
    picture_seconds,
    routing_gains,
    stage_count,
    stage_spreads,
    trials_of,
)

NONE = "-"


def write_table(record: BenchmarkRecord) -> str:
    """Write what a record says about its machine, its arms, and routing."""
    return "\n\n".join(filter(None, (_head(record), _arms(record), _routing(record))))


def _head(record: BenchmarkRecord) -> str:
    machine, subject = record.machine, record.subject
    cores = f"{machine.gpu_cores} GPU cores, " if machine.gpu_cores else f"{machine.cpu_cores} CPU cores, "
    weights = "random weights" if subject.fingerprint is None else f"bundle {subject.fingerprint[:10]}"
    libraries = ", ".join(f"{name} {version}" for name, version in record.libraries.items())
    trials = len(record.trials) // len(record.arms)
    warnings = _warnings(record)
    return (
        f"{machine.chip}, {cores}{machine.memory_bytes / 2**30:.0f} GB, {machine.system}; {libraries}.\n"
        f"{subject.name} ({subject.architecture}, {subject.layers} layers, {weights}), "
        f"{trials} cold processes for each arm.{' ' + warnings if warnings else ''}"
    )


def _warnings(record: BenchmarkRecord) -> str:
    moments = [moment for trial in record.trials for moment in (trial.before, trial.after)]
    found = []
    if any(moment.power_source == "battery" for moment in moments):
        found.append("on battery")
    if any(moment.low_power_mode for moment in moments):
        found.append("in low-power mode")
    hot = {moment.thermal_state for moment in moments} - {"nominal", "unknown"}
    if hot:
        found.append(f"thermal state {', '.join(sorted(hot))}")
    return f"**Measured {', '.join(found)}.**" if found else ""


def _arms(record: BenchmarkRecord) -> str:
    """Write a row for each arm, with the columns that any arm has something in."""
    stages = (f"{name.replace('_', ' ')} s" for name in STAGES)
    header = ("size", "arm", "on", *stages, "in full", "steps/s", "s/picture", "peak GB", "process GB", "operations")
    rows: list[tuple[str, ...]] = [header]
    for number, arm in enumerate(record.arms):
        found = stage_spreads(record, number)
        stored = arm.dtype if arm.bits is None else f"{arm.bits:g}-bit"
        picture = picture_seconds(record, number)
        process = peak_bytes(record, number, "footprint_peak_bytes") or peak_bytes(record, number, "process_peak_bytes")
        operations = next((trial.operations for trial in trials_of(record, number) if trial.operations), {})
        rows.append(
            (
                NONE if arm.height is None else f"{arm.height}x{arm.width}",
                arm.name,
                f"{arm.runtime} {arm.device} {stored}",
                *(_spread(found.get(name)) for name in STAGES),
                _full_steps(record, number),
                f"{1 / found['step'].median:.3g}" if "step" in found else NONE,
                NONE if picture is None else f"{picture:.3g}",
                _gigabytes(peak_bytes(record, number, "runtime_peak_bytes")),
                _gigabytes(process),
                ", ".join(f"{count} {device}" for device, count in operations.items()) or NONE,
            )
        )
    columns = [column for column in zip(*rows, strict=True) if set(column[1:]) != {NONE}]
    return "\n".join(markdown(list(zip(*columns, strict=True))))


def _full_steps(record: BenchmarkRecord, arm: int) -> str:
    """Say in how many steps all blocks ran, where they did not in others."""
    total = record.arms[arm].steps
    full = stage_count(record, arm, "first_step") + stage_count(record, arm, "step")
    return NONE if full in (0, total) else f"{full:.0f} of {total} steps"


def _routing(record: BenchmarkRecord) -> str:
    rows = [("size", "arm", "dense / routed, time", "dense / routed, FLOPs", "efficiency", "cost of routing")]
    for gain in routing_gains(record):
        cost = NONE if gain.cost is None else _ratio(gain.cost, percent=True)
        size = f"{gain.arm.height}x{gain.arm.width}"
        rows.append((size, gain.arm.name, _ratio(gain.seconds), f"{gain.flops:.3f}", _ratio(gain.efficiency), cost))
    return "\n".join(markdown(rows)) if len(rows) > 1 else ""


def _spread(spread: Spread | None) -> str:
    if spread is None:
        return NONE
    return f"{spread.median:.3g} ({spread.low:.3g}-{spread.high:.3g})"


def _ratio(ratio: Ratio, *, percent: bool = False) -> str:
    if percent:
        return f"{ratio.value:+.1%} ({ratio.low:+.1%} to {ratio.high:+.1%})"
    return f"{ratio.value:.3f} ({ratio.low:.3f} to {ratio.high:.3f})"


def _gigabytes(count: int | None) -> str:
    return NONE if count is None else f"{count / 1e9:.2f}"


def markdown(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Write rows as a table of Markdown, the first as its head, with columns that line up."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for number, row in enumerate(rows):
        yield "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        if number == 0:
            yield "|" + "|".join("-" * (width + 2) for width in widths) + "|"
