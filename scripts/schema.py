"""Writes the JSON Schemas in docs/, of the types that the files are read with; `make golden` runs it.

python -m scripts.schema
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from moddit.benchmark.record import RECORD_VERSION, BenchmarkRecord
from moddit.manifest import FORMAT_VERSION, ManifestRecord
from moddit.record import schema

DOCS: Final = Path(__file__).parents[1] / "docs"
_MADE: Final = "Made by scripts/schema.py."


def make_schema() -> str:
    """Write the JSON Schema of a manifest."""
    made = schema(
        ManifestRecord,
        title=f"Manifest of a moddit bundle, version {FORMAT_VERSION}",
        description=f"{_MADE} docs/format.md says what the fields mean, and what must fit together.",
    )
    return json.dumps(made, indent=2) + "\n"


def make_benchmark_schema() -> str:
    """Write the JSON Schema of the record of a benchmark."""
    made = schema(
        BenchmarkRecord,
        title=f"Record of a moddit benchmark, version {RECORD_VERSION}",
        description=f"{_MADE} moddit/benchmark/record.py says what the fields mean.",
    )
    return json.dumps(made, indent=2) + "\n"


if __name__ == "__main__":
    (DOCS / "manifest.schema.json").write_text(make_schema(), encoding="utf-8")
    (DOCS / "benchmark.schema.json").write_text(make_benchmark_schema(), encoding="utf-8")
