"""The example in docs/format.md is a manifest that this version writes and reads, and the JSON Schema accepts it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema

from moddit.manifest import FORMAT_VERSION, Manifest
from scripts.schema import make_schema

DOCS = Path(__file__).parents[2] / "docs"


def read_example() -> dict[str, Any]:
    found = re.search(r"```json\n(.*?)```", (DOCS / "format.md").read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    value: dict[str, Any] = json.loads(found[1])
    return value


def test_the_example_is_a_manifest() -> None:
    value = read_example()
    assert json.loads(json.dumps(Manifest.from_json(value, "docs/format.md").to_json())) == value


def test_the_page_is_about_this_version() -> None:
    text = (DOCS / "format.md").read_text(encoding="utf-8")
    assert f"This page describes version {FORMAT_VERSION} " in text
    assert f"`format_version` the integer `{FORMAT_VERSION}`" in text


def test_the_schema_is_that_of_the_types() -> None:
    assert (DOCS / "manifest.schema.json").read_text(encoding="utf-8") == make_schema(), "make golden"


def test_the_schema_accepts_the_example_and_nothing_else() -> None:
    schema = json.loads((DOCS / "manifest.schema.json").read_text(encoding="utf-8"))
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    value = read_example()
    assert list(validator.iter_errors(value)) == []
    for changed in ({**value, "more": 1}, {**value, "format_version": 1}, {**value, "graphs": {}}):
        assert not validator.is_valid(changed)
    value["components"]["vae"]["files"][0]["path"] = "../outside"
    assert not validator.is_valid(value)
