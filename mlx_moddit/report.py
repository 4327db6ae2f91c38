"""What a run says when it ends: a table for people, one JSON object for programs."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

import moddit
from mlx_moddit.memory import StageCost
from moddit.metadata import ModelReference
from moddit.request import Request

REPORT_VERSION: Final = 1
MB: Final = 1e6


@dataclass(frozen=True)
class SavedPicture:
    """A picture that was written."""

    path: Path
    routes: Path | None
    edit: Path | None
    request: Request
    step_seconds: tuple[float, ...]  # of full ones, in which all blocks run

    def to_json(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "routes": str(self.routes) if self.routes else None,
            "edit": str(self.edit) if self.edit else None,
            "settings": self.request.to_json(),
            "step_seconds": list(self.step_seconds),
        }


@dataclass(frozen=True)
class Report:
    """A whole run of `mlx_moddit generate`; of several ranks it has the longest times and the largest peaks."""

    pictures: tuple[SavedPicture, ...]
    costs: tuple[StageCost, ...]
    peak_rss_bytes: int
    model: ModelReference
    dtype: str  # computed in, or "stored"
    device: str
    versions: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """Give the object that `--json` prints."""
        return {
            "version": REPORT_VERSION,
            "pictures": [picture.to_json() for picture in self.pictures],
            "stages": [asdict(cost) for cost in self.costs],
            "peak_rss_bytes": self.peak_rss_bytes,
            "model": asdict(self.model),
            "dtype": self.dtype,
            "device": self.device,
            "versions": dict(self.versions),
        }

    def table(self) -> str:
        """Write seconds and peak memory per stage, and the pace of the steps."""
        rows = [("stage", "seconds", "peak MB")]
        rows += [(cost.name, f"{cost.seconds:.2f}", f"{cost.peak_bytes / MB:.0f}") for cost in self.costs]
        total = sum(cost.seconds for cost in self.costs)
        rows.append(("total", f"{total:.2f}", f"{max((cost.peak_bytes for cost in self.costs), default=0) / MB:.0f}"))
        steps = [seconds for picture in self.pictures for seconds in picture.step_seconds]
        facts = f"process peak {self.peak_rss_bytes / MB:.0f} MB, {self.device}, dtype {self.dtype}"
        if steps:
            taken = sum(picture.request.taken_steps for picture in self.pictures)
            full = f"{taken} steps" if len(steps) == taken else f"{len(steps)} of {taken} steps in full"
            facts = f"{full}, median {median(steps) * 1e3:.1f} ms a step, {facts}"
        return "\n".join([*align(rows), facts])


def slowest(costs: Iterable[StageCost]) -> tuple[StageCost, ...]:
    """Give the longest time and the largest peak of each stage, of processes that ran at once."""
    found: dict[str, StageCost] = {}
    for cost in costs:
        other = found.get(cost.name, cost)
        seconds, peak = max(cost.seconds, other.seconds), max(cost.peak_bytes, other.peak_bytes)
        found[cost.name] = StageCost(cost.name, seconds, peak)
    return tuple(found.values())


def versions() -> dict[str, str]:
    """Name the programs whose version can change a picture."""
    return {"moddit": moddit.__version__, "mlx": importlib.metadata.version("mlx")}


def align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Write rows as lines of columns, the first to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if index else cell.ljust(width) for index, (cell, width) in enumerate(line)
        ).rstrip()
        for line in (list(zip(row, widths, strict=True)) for row in rows)
    ]
