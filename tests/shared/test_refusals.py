"""What every reader of our records has to refuse and to accept, as data that other languages can run too."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import pytest

from mlx_moddit.metadata import Metadata
from moddit.errors import InputError
from moddit.manifest import Manifest
from moddit.record import Origin, parse_json
from moddit.routing import RoutingPlan
from moddit.samplers import NoiseSchedule
from moddit.spec import PixArtSpec, T5Spec, VAESpec

WHERE: Final = "folder/file.json"
TABLE: Final = json.loads((Path(__file__).parent / "refusals.json").read_text(encoding="utf-8"))


def read_picture(value: Any, where: str) -> Metadata:
    return Metadata.from_text(json.dumps(value), where)


READERS: Final[Mapping[str, Callable[[Any, str], object]]] = {
    "manifest-mlx": Manifest.from_json,
    "manifest-coreml": Manifest.from_json,
    "transformer": PixArtSpec.from_diffusers,
    "text_encoder": T5Spec.from_transformers,
    "vae": VAESpec.from_diffusers,
    "scheduler": NoiseSchedule.from_diffusers,
    "plan": RoutingPlan.from_json,
    "picture": read_picture,
}


def spread(value: Any) -> Any:
    """Write out a long text or list."""
    if isinstance(value, dict) and value.keys() == {"repeat", "times"}:
        item = value["repeat"]
        return (item if isinstance(item, str) else [item]) * value["times"]
    return value


def make_document(case: Mapping[str, Any]) -> Any:
    """Edit a copy of the case's base."""
    document = copy.deepcopy(TABLE["bases"][case["base"]])
    for edit in case["edits"]:
        *steps, last = edit["path"]
        place = document
        for step in steps:
            place = place[step]
        if edit.get("remove"):
            del place[last]
        else:
            place[last] = spread(edit["value"])
    return document


def read(case: Mapping[str, Any]) -> object:
    text = spread(case["text"]) if "text" in case else json.dumps(make_document(case))
    strict = case["base"] not in ("transformer", "text_encoder", "vae", "scheduler")
    value = parse_json(text.encode("utf-8"), Origin("test", WHERE), strict=strict)
    return READERS[case["base"]](value, WHERE)


@pytest.mark.parametrize("case", TABLE["cases"], ids=lambda case: ascii(case["name"]))
def test_refusals(case: Mapping[str, Any]) -> None:
    if case["verdict"] == "accept":
        read(case)
        return
    with pytest.raises(InputError) as raised:
        read(case)
    message = str(raised.value)
    assert WHERE in message
    assert case["field"] in message
    assert message.isprintable()


def test_the_table() -> None:
    names = [case["name"] for case in TABLE["cases"]]
    assert len(names) == len(set(names)) >= 150
    assert {case["verdict"] for case in TABLE["cases"]} == {"accept", "refuse"}
    assert {case["base"] for case in TABLE["cases"]} == TABLE["bases"].keys() == READERS.keys()
