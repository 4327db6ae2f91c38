"""The names of a checkpoint's classes, in the index of its pipeline."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moddit.checkpoint.conditioning import read_label
from moddit.checkpoint.description import describe
from moddit.checkpoint.sources import SourceFiles, Sources
from moddit.conditioning import Label
from moddit.errors import FormatError, InputError, ShapeError, UnsupportedError
from tests import tiny
from tests.moddit.specs import CLASSES, LABEL

ALL = {str(number): name for number, name in enumerate(CLASSES)}


def read(folder: Path, **index: Any) -> Label:
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "DiTPipeline"} | index))
    sources = Sources(folder)
    found = read_label(sources, SourceFiles(sources), LABEL.transformer)
    assert (found.parts, found.documents) == ({}, {})
    assert isinstance(found.conditioning, Label)
    return found.conditioning


def test_the_names_of_all_classes(tmp_path: Path) -> None:
    assert read(tmp_path, id2label=ALL) == Label(CLASSES)
    assert read(tmp_path, id2label=dict(reversed(ALL.items()))) == Label(CLASSES)


def test_some_classes_may_have_no_name(tmp_path: Path) -> None:
    assert read(tmp_path, id2label={"1": "goldfish"}) == Label(("", "goldfish", ""))


@pytest.mark.parametrize("index", [{}, {"id2label": None}, {"id2label": {}}], ids=str)
def test_no_class_may_have_a_name(tmp_path: Path, index: dict[str, Any]) -> None:
    assert read(tmp_path, **index) == Label(())


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        (ALL | {"tench": "0"}, FormatError, "id2label has the key 'tench', want the number of a class"),
        (ALL | {"-1": "x"}, FormatError, "id2label has the key '-1'"),
        (ALL | {"1.0": "x"}, FormatError, "id2label has the key '1.0'"),
        (ALL | {"²": "x"}, FormatError, "id2label has the key '²'"),
        (ALL | {"\u0663": "x"}, FormatError, "id2label has the key"),  # a digit of another script
        (ALL | {"\x1b[2J": "x"}, FormatError, r"id2label has the key '\\x1b\[2J'"),
        (ALL | {"": "x"}, FormatError, "id2label has a key that is no text of 1 to 256 characters"),
        (ALL | {"3": "x"}, ShapeError, "id2label names class 3, the transformer has 3, want numbers below"),
        ({"1000": "x"}, ShapeError, "id2label names class 1000"),
        (ALL | {"0": 5}, FormatError, "id2label.0 is 5, want a text"),
        (ALL | {"0": "x" * 257}, FormatError, "id2label.0 is of length 257, want at most 256"),
        (list(CLASSES), FormatError, r"id2label is \[.*\], want an object or null"),
    ],
)
def test_names_of_no_class_are_refused(tmp_path: Path, names: object, error: type[InputError], message: str) -> None:
    with pytest.raises(error, match=message) as raised:
        read(tmp_path, id2label=names)
    assert "model_index.json" in str(raised.value)
    assert str(raised.value).isprintable()


def test_a_whole_checkpoint_of_labels(tmp_path: Path) -> None:
    found = describe(Sources(tiny.save_dit_pipeline(tmp_path)))
    assert isinstance(found.spec.conditioning, Label)
    names = found.spec.conditioning.names
    assert (len(names), names[:2], names[207]) == (1000, (tiny.LABELS[0], tiny.LABELS[1]), tiny.LABELS[207])
    assert found.parts.keys() == {"transformer", "vae"}
    assert found.documents == {}
    assert "model_index.json" in found.files
    nameless = describe(Sources(tiny.save_dit_pipeline(tmp_path / "other", labels=None)))
    assert nameless.spec == replace(found.spec, conditioning=Label(()))


def test_a_length_of_texts_is_refused_where_there_are_none(tmp_path: Path) -> None:
    folder = tiny.save_dit_pipeline(tmp_path / "m")
    with pytest.raises(UnsupportedError, match=r"--max-sequence-length is 77, but this model draws classes"):
        describe(Sources(folder, max_sequence_length=77))
