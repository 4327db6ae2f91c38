"""What a model is conditioned on: a class is found by its number or by any of its names."""

from __future__ import annotations

from dataclasses import replace

import pytest

from moddit.conditioning import Label, Text
from moddit.errors import InputError, MissingError, ValueRangeError
from moddit.record import Origin, decode
from tests.moddit.specs import DIT, ENCODER

NAMES = ("tench, Tinca tinca", "goldfish", "crane, Grus", "", "Crane, crane", "jay ,  ,lark")
CLASSES = len(NAMES)
LABEL = Label(NAMES)
MODEL = replace(DIT, num_classes=CLASSES)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", 0),
        (" 3 ", 3),
        ("5", 5),
        ("005", 5),
        ("goldfish", 1),
        ("tench", 0),
        ("Tinca tinca", 0),
        ("  goldfish ", 1),
        ("GOLDFISH", 1),
        ("tINCA TINCA", 0),
        ("Grus", 2),
        ("Crane", 4),
        ("crane", 4),  # of two classes, the last, as in diffusers
        ("CRANE", 4),
        ("jay", 5),
        ("lark", 5),
    ],
)
def test_a_class_is_found(text: str, number: int) -> None:
    assert LABEL.number(text, MODEL) == number


def test_a_name_as_it_is_written_comes_before_others_that_differ_in_capitals() -> None:
    label = Label(("maine coon", "Maine Coon", "MAINE COON"))
    assert [label.number(name, DIT) for name in label.names] == [0, 1, 2]


def test_every_name_has_a_number() -> None:
    assert LABEL.numbers() == {
        "tench": 0, "Tinca tinca": 0, "goldfish": 1, "crane": 4, "Grus": 2, "Crane": 4, "jay": 5, "lark": 5,
    }  # fmt: skip


@pytest.mark.parametrize("text", ["6", "1000", "9" * 5000, "-1", "0" * 20 + "5000", "1000000000000"])
def test_numbers_out_of_range(text: str) -> None:
    with pytest.raises(ValueRangeError, match=r"^\[label\] class '.*' out of range, want 0\.\.5$") as raised:
        LABEL.number(text, MODEL)
    assert len(str(raised.value)) < 200


def test_a_number_with_many_zeros_is_itself_or_none() -> None:
    """It was cut after twelve digits: class 0 instead of 5."""
    with pytest.raises(ValueRangeError, match="out of range"):
        LABEL.number("0000000000005", MODEL)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gold fish", r"no class is called 'gold fish'; want a number in 0\.\.5 or a name such as 'goldfish'$"),
        ("tinca", r"a name such as .*'Tinca tinca'"),
        ("x", r"a name such as 'tench', 'Tinca tinca', 'goldfish', "),  # none is near
        ("", r"no class is called ''"),
        ("1.0", r"no class is called '1\.0'"),
        ("\x1b[2J", r"no class is called '\\x1b\[2J'"),
    ],
)
def test_unknown_names_with_what_is_near(text: str, message: str) -> None:
    with pytest.raises(MissingError, match=message) as raised:
        LABEL.number(text, MODEL)
    assert str(raised.value).isprintable()


def test_classes_without_names_have_numbers() -> None:
    assert Label(()).number("7", replace(MODEL, num_classes=8)) == 7
    with pytest.raises(
        MissingError, match=r"called 'tench'; this model's classes have no names, want a number in 0\.\.7"
    ):
        Label(()).number("tench", replace(MODEL, num_classes=8))


def test_what_a_bundle_has_beside_transformer_and_vae() -> None:
    text = Text(ENCODER, 12)
    assert (text.COMPONENTS, text.text_tokens, text.tensors()) == (
        ("text_encoder", "tokenizer"),
        12,
        {"text_encoder": ENCODER.tensors()},
    )
    assert (LABEL.COMPONENTS, LABEL.text_tokens, LABEL.tensors()) == ((), 0, {})


@pytest.mark.parametrize("length", [0, -1, 4097])
def test_the_length_of_a_text_is_bounded(length: int) -> None:
    with pytest.raises(ValueRangeError, match=rf"max_sequence_length is {length}, want 1\.\.4096 text tokens"):
        Text(ENCODER, length)


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ({}, "names"),
        ({"names": None}, "names"),
        ({"names": [5]}, r"names\[0\]"),
        ({"names": ["x" * 257]}, r"names\[0\]"),
        ({"names": [], "more": 1}, "more"),
    ],
)
def test_names_are_read_strictly(value: object, field: str) -> None:
    with pytest.raises(InputError, match=field):
        decode(value, Label, Origin("spec", "manifest.json"))
    assert decode(LABEL.to_json(), Label, Origin("spec", "manifest.json")) == LABEL
