"""What a verification found, as JSON (parity.json) and as a table."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, cast

from convert.verify.functions import EXACT_TOLERANCE, TIE_MARGIN, Outcome
from convert.verify.generation import PICTURE_DECIBELS
from moddit.files import new_file
from moddit.text import printable

REPORT_NAME: Final = "parity.json"


@dataclass(frozen=True)
class Picture:
    """A whole generation against the reference's picture."""

    prompt: str
    seed: int
    steps: int
    reuse: int  # the model is asked in the first of so many steps
    strength: float | None  # of an edit
    psnr: Mapping[str, float]  # by arithmetic, decibels; of an edit's mask alone, if there is one

    @property
    def passed(self) -> bool:
        return all(self.psnr[item.value] >= bound for item, bound in PICTURE_DECIBELS.items())


@dataclass(frozen=True)
class Report:
    """All that was compared."""

    outcomes: tuple[Outcome, ...]
    picture: Picture | None
    tool_versions: Mapping[str, str]
    knows_weights: bool  # whether there were references to tell that weights are those that were converted

    @property
    def passed(self) -> bool:
        return all(item.passed for item in self.outcomes) and (self.picture is None or self.picture.passed)

    def to_json(self) -> dict[str, Any]:
        """Write everything that `to_text` says."""
        value = {
            "passed": self.passed,
            "knows_weights": self.knows_weights,
            "exact_tolerance": EXACT_TOLERANCE,
            "tie_margin": TIE_MARGIN,
            "functions": [{**asdict(item), "passed": item.passed} for item in self.outcomes],
            "picture": None if self.picture is None else {**asdict(self.picture), "passed": self.picture.passed},
            "picture_decibels": {item.value: bound for item, bound in PICTURE_DECIBELS.items()},
            "tool_versions": dict(self.tool_versions),
        }
        return cast(dict[str, Any], finite(value))

    def to_text(self) -> str:
        """Write a table of all functions, and a line about the picture."""
        width = max(len(printable(item.case)) for item in self.outcomes)
        lines = [f"{'function':{width}}  {'exact':>8} {'fp16 mean':>9} {'p99.9':>8} {'rerouted':>8}"]
        lines += [_line(item, width) for item in self.outcomes]
        if self.picture is not None:
            values = ", ".join(f"{name} {value:.1f} dB" for name, value in self.picture.psnr.items())
            reuse = f" with reuse {self.picture.reuse}" if self.picture.reuse > 1 else ""
            lines.append(f"picture of {self.picture.prompt!r}, {self.picture.steps} steps{reuse}: {values}")
        lines.append(
            "errors are shares of the largest output; rerouted counts tokens that float16 routes otherwise, by layer"
        )
        if not self.knows_weights:
            lines.append("no reference.npz: whether the weights are those of the checkpoint was not checked")
        lines.append("passed" if self.passed else f"FAILED: {', '.join(self._failures())}")
        return "\n".join(map(printable, lines))

    def write(self, folder: Path) -> None:
        """Put the report into a bundle; raise StorageError if it cannot be written."""
        text = json.dumps(self.to_json(), indent=2, allow_nan=False) + "\n"
        with new_file(folder / REPORT_NAME, overwrite=True) as file:  # in the place of a link, not through it
            file.write(text.encode())

    def _failures(self) -> list[str]:
        return [item.case for item in self.outcomes if not item.passed] + (
            [] if self.picture is None or self.picture.passed else ["picture"]
        )


def finite(value: object) -> object:
    """Replace numbers that JSON cannot hold: equal pictures have infinite PSNR, and float16 may overflow."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _line(item: Outcome, width: int) -> str:
    if item.rounded_mean is None or item.rounded_p999 is None:
        rest = f"{'-':>9} {'-':>8} {'-':>8}"
    else:
        flips = "+".join(map(str, item.flipped_rounded)) if any(item.flipped_rounded) else "0"
        rest = f"{item.rounded_mean:9.1e} {item.rounded_p999:8.1e} {flips:>8}"
    return f"{printable(item.case):{width}}  {item.exact_error:8.1e} {rest}{'' if item.passed else '  FAILED'}"
