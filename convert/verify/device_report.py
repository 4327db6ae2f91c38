"""What Core ML made of a bundle, as JSON and as a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, cast

from convert.verify.device_task import Trouble
from convert.verify.report import finite
from moddit.text import printable

# Of the largest output. The interpreter, which rounds every result to float16, measures a mean of 2e-4, and of 1e-3 to
# 9e-3 where that routes a token otherwise, as Core ML may, adding in another order. A wrong graph is off by a tenth and
# more; finer mistakes of the exporter are found by the interpreter, in exact arithmetic.
MEAN_TOLERANCE: Final = 2e-2
SELECTING: Final = {"topk", "argsort", "gather", "gather_along_axis", "scatter"}


@dataclass(frozen=True)
class Measured:
    """How a function came out; errors are shares of the largest output."""

    mean: float
    p999: float  # reported, not judged: one token routed otherwise decides it
    load_seconds: float
    predict_seconds: float  # median


@dataclass(frozen=True)
class Prediction:
    """One function, run through its whole chain of packages."""

    case: str
    found: Measured | Trouble

    @property
    def passed(self) -> bool:
        return isinstance(self.found, Measured) and self.found.mean <= MEAN_TOLERANCE

    def to_json(self) -> dict[str, Any]:
        """Write all fields, null where there was trouble, or none."""
        trouble = isinstance(self.found, Trouble)
        measured = dict.fromkeys(Measured.__dataclass_fields__) if trouble else asdict(self.found)
        return {
            "case": self.case, **measured, "trouble": asdict(self.found) if trouble else None, "passed": self.passed,
        }  # fmt: skip

    def to_text(self, width: int) -> str:
        """Write a line of the table, whose first column has `width` letters."""
        if isinstance(self.found, Trouble):
            return f"{printable(self.case):{width}}  {printable(str(self.found))}"
        item = self.found
        return (
            f"{printable(self.case):{width}}  {item.mean:8.1e} {item.p999:8.1e} {item.load_seconds:8.2f} "
            f"{1e3 * item.predict_seconds:8.2f}{'' if self.passed else '  FAILED'}"
        )


@dataclass(frozen=True)
class Placement:
    """Where Core ML would run the operations of one function of one package."""

    package: str
    function: str
    found: Mapping[str, Mapping[str, int]] | Trouble  # operation type to device to count

    @property
    def name(self) -> str:
        return f"{self.package}, {self.function}"

    @property
    def passed(self) -> bool:
        return not isinstance(self.found, Trouble)

    def to_json(self) -> dict[str, Any]:
        """Write all fields, null where there was trouble, or none."""
        operations, trouble = (None, asdict(self.found)) if isinstance(self.found, Trouble) else (self.found, None)
        return {"package": self.package, "function": self.function, "operations": operations, "trouble": trouble}

    def to_text(self) -> str:
        """Write the operations that select tokens, which few compute units have, then the others."""
        if isinstance(self.found, Trouble):
            return f"operations of {printable(self.name)}\n  {printable(str(self.found))}"
        selecting: list[str] = []
        others: list[str] = []
        for kind, devices in self.found.items():
            counts = ", ".join(f"{device} {count}" for device, count in devices.items())
            (selecting if kind in SELECTING else others).append(printable(f"{kind} {counts}"))
        return "\n".join(
            [
                f"operations of {printable(self.name)}",
                f"  top-k, gather, scatter: {'; '.join(selecting) or 'none'}",
                f"  others: {'; '.join(others) or 'none'}",
            ]
        )


@dataclass(frozen=True)
class DeviceReport:
    """All that Core ML showed."""

    machine: Mapping[str, str]
    compute_units: str
    compile_seconds: Mapping[str, float]  # by package
    predictions: tuple[Prediction, ...]
    placements: tuple[Placement, ...]

    @property
    def passed(self) -> bool:
        return not self.failures

    @property
    def failures(self) -> list[str]:
        """Functions that differ or gave no answer, and placements that could not be had."""
        return [item.case for item in self.predictions if not item.passed] + [
            f"placement of {item.name}" for item in self.placements if not item.passed
        ]

    def to_json(self) -> dict[str, Any]:
        """Write everything that `to_text` says."""
        value = {
            "passed": self.passed,
            "tolerance": {"mean": MEAN_TOLERANCE},
            "machine": dict(self.machine),
            "compute_units": self.compute_units,
            "compile_seconds": dict(self.compile_seconds),
            "functions": [item.to_json() for item in self.predictions],
            "placements": [item.to_json() for item in self.placements],
        }
        return cast(dict[str, Any], finite(value))

    def to_text(self) -> str:
        """Write a table of all functions, then where the operations of each run."""
        width = max(len(printable(item.case)) for item in self.predictions)
        lines = [", ".join([*(f"{name} {value}" for name, value in self.machine.items()), self.compute_units])]
        lines += [f"compiled {name} in {seconds:.1f} s" for name, seconds in self.compile_seconds.items()]
        lines.append(f"{'function':{width}}  {'mean':>8} {'p99.9':>8} {'load s':>8} {'run ms':>8}")
        lines = list(map(printable, lines))
        lines += [item.to_text(width) for item in self.predictions]
        lines.append("errors are shares of the largest output; load is the first one, run the median of later ones")
        lines += [item.to_text() for item in self.placements]
        lines.append(printable(f"FAILED: {'; '.join(self.failures)}") if self.failures else "passed")
        return "\n".join(lines)
