"""What docs/results.md says of Core ML is what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import pytest

from benchmarks.coreml_conversion import HEADER, Cost, Row
from convert.coreml.compress import Scheme

ROOT: Final = Path(__file__).parents[2]


def cost(found: dict[str, Any]) -> Cost:
    return Cost(found["seconds"], found["peak_bytes"])


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks/coreml").glob("*.json")), ids=lambda path: path.stem)
def test_the_results_are_those_of_the_files(path: Path) -> None:
    found = json.loads(path.read_text())
    rows = [
        Row(Scheme(row["scheme"]), row["megabytes"], cost(row["conversion"]), cost(row["verification"]), row["report"])
        for row in found["rows"]
    ]
    table = "\n".join([HEADER, "|---" * HEADER.count(" |") + "|", *(row.to_markdown() for row in rows)])
    assert table in (ROOT / "docs/results.md").read_text()
    assert all(row.report["passed"] for row in rows)
