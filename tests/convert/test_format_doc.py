"""The example in docs/format.md is a manifest that this version writes and reads."""

from __future__ import annotations

import json
import re
from pathlib import Path

from moddit.manifest import Manifest

PAGE = Path(__file__).parents[2] / "docs" / "format.md"


def test_the_example_is_a_manifest() -> None:
    found = re.search(r"```json\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    value = json.loads(found[1])
    assert json.loads(json.dumps(Manifest.from_json(value, "docs/format.md").to_json())) == value
