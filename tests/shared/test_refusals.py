"""What every reader of our records has to refuse and to accept, as data that other languages can run too."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moddit.checkpoint.prompt_tokenizer import PromptTokenizer
from moddit.errors import InputError
from moddit.manifest import Manifest
from moddit.metadata import Metadata
from moddit.models.dit import DiTSpec
from moddit.models.pixart import PixArtSpec
from moddit.models.t5 import T5Spec
from moddit.models.vae import VAESpec
from moddit.record import Origin, parse_json
from moddit.routing import RoutingPlan
from moddit.samplers import NoiseSchedule
from scripts.schema import make_schema

WHERE: Final = "folder/file.json"
# Read strictly, since other languages do.
TABLE: Final = parse_json((Path(__file__).parent / "refusals.json").read_bytes(), Origin("test", "refusals.json"))
SCHEMA: Final = jsonschema.Draft202012Validator(json.loads(make_schema()))
SCALARS: Final = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)
ANYTHING: Final = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=5
)


def read_picture(value: Any, where: str) -> Metadata:
    return Metadata.from_text(json.dumps(value), where)


READERS: Final[Mapping[str, Callable[[Any, str], object]]] = {
    "manifest-mlx": Manifest.from_json,
    "manifest-coreml": Manifest.from_json,
    "manifest-labels": Manifest.from_json,
    "transformer": PixArtSpec.from_diffusers,
    "dit": DiTSpec.from_diffusers,
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


def read_tokenizer(content: bytes) -> list[int]:
    """Read a tokenizer, and encode a prompt that uses all its parts."""
    settings = TABLE["read_with"]
    tokenizer = PromptTokenizer.parse(
        content, Path(WHERE), vocab_size=settings["vocab_size"], max_length=settings["max_length"]
    )
    return tokenizer.encode(settings["prompt"])


def read_file(base: str, content: bytes) -> object:
    if base == "tokenizer":
        return read_tokenizer(content)
    strict = base not in ("transformer", "dit", "text_encoder", "vae", "scheduler")
    return READERS[base](parse_json(content, Origin("test", WHERE), strict=strict), WHERE)


def make_file(case: Mapping[str, Any]) -> bytes:
    if "bytes" in case:
        return bytes.fromhex(case["bytes"])
    text: str = spread(case["text"]) if "text" in case else json.dumps(make_document(case))
    return text.encode("utf-8")


def read(case: Mapping[str, Any]) -> object:
    return read_file(case["base"], make_file(case))


def refuse(base: str, text: str) -> str | None:
    try:
        read_file(base, text.encode("utf-8"))
    except InputError as error:
        return str(error)
    return None


def items(value: Any) -> list[tuple[Any, Any]]:
    return list(value.items() if isinstance(value, dict) else enumerate(value))


def is_manifest(case: Mapping[str, Any]) -> bool:
    return case["base"].startswith("manifest") and "edits" in case


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


def test_the_schema_refuses_nothing_that_is_accepted() -> None:
    for case in TABLE["cases"]:
        if is_manifest(case) and case["verdict"] == "accept":
            assert SCHEMA.is_valid(make_document(case)), case["name"]


def test_the_schema_refuses_types_bounds_and_paths() -> None:
    refused = [case for case in TABLE["cases"] if is_manifest(case) and case["verdict"] == "refuse"]
    found = sum(not SCHEMA.is_valid(make_document(case)) for case in refused)
    assert found > 0.79 * len(refused)  # the rest is what does not fit together, and whole numbers such as 2.0


@given(data=st.data())
def test_nothing_else_than_our_errors(data: st.DataObject) -> None:
    """Any value anywhere: accepted, or refused in one printable line that names the file."""
    base = data.draw(st.sampled_from(sorted(TABLE["bases"])))
    document = copy.deepcopy(TABLE["bases"][base])
    place = document
    for _ in range(data.draw(st.integers(0, 8))):
        inner = [key for key, item in items(place) if isinstance(item, (dict, list)) and item]
        if not inner:
            break
        place = place[data.draw(st.sampled_from(inner))]
    place[data.draw(st.sampled_from([key for key, _ in items(place)]))] = data.draw(ANYTHING)
    message = refuse(base, json.dumps(document))
    assert message is None or (WHERE in message and message.isprintable())


def test_the_table() -> None:
    names = [case["name"] for case in TABLE["cases"]]
    assert len(names) == len(set(names)) >= 150
    assert {case["verdict"] for case in TABLE["cases"]} == {"accept", "refuse"}
    assert all(case["field"] for case in TABLE["cases"] if case["verdict"] == "refuse")
    assert {case["base"] for case in TABLE["cases"]} == TABLE["bases"].keys() == READERS.keys() | {"tokenizer"}
