"""Writes docs/manifest.schema.json, of the types that a manifest is read with; `make golden` runs it.

python -m scripts.schema
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from moddit.manifest import FORMAT_VERSION, ManifestRecord
from moddit.record import schema

PATH: Final = Path(__file__).parents[1] / "docs" / "manifest.schema.json"


def make_schema() -> str:
    """Write the JSON Schema of a manifest."""
    made = schema(
        ManifestRecord,
        title=f"Manifest of a moddit bundle, version {FORMAT_VERSION}",
        description="Made by scripts/schema.py. docs/format.md says what the fields mean, and what must fit together.",
    )
    return json.dumps(made, indent=2) + "\n"


if __name__ == "__main__":
    PATH.write_text(make_schema(), encoding="utf-8")
