from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_moddit.names import (
    FALLBACK,
    MAX_NAME_BYTES,
    MAX_PROMPT_BYTES,
    MAX_PROMPT_CHARACTERS,
    default_names,
    file_key,
    name_files,
    shorten,
)
from moddit.errors import ValueRangeError
from moddit.request import Request


def make_requests(prompts: Sequence[str], seed: int = 7) -> list[Request]:
    return [Request(prompt, "", seed, 20, 4.5, 32, 48, "dpmpp-2m") for prompt in prompts]


TWO = [*make_requests(["Ein großer Kreis, rot!"]), *make_requests(["Ein großer Kreis, rot!"], seed=8)]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("{seed}.png", ["7.png", "8.png"]),
        ("{index:03}-{prompt}.PNG", ["000-ein-großer-kreis-rot.PNG", "001-ein-großer-kreis-rot.PNG"]),
        ("a/{prompt}/{seed}{{}}.png", ["a/ein-großer-kreis-rot/7{}.png", "a/ein-großer-kreis-rot/8{}.png"]),
    ],
)
def test_names_are_filled_in(pattern: str, names: list[str]) -> None:
    assert name_files(pattern, TWO) == tuple(map(Path, names))


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("one.png", "2 pictures would be called one.png;"),
        ("{seed.__class__}.png", "want only"),
        ("{seed!r}.png", "want only"),
        ("{}.png", "want only"),
        ("{seed", "want only"),
        ("{seed:zz}.png", "want only"),
        ("{seed}.jpg", "ends in .png"),
        ("{seed}" + "猫" * 80 + ".png", "too long, got 245 bytes, want at most 235"),
    ],
)
def test_patterns_that_cannot_be_are_refused(pattern: str, message: str) -> None:
    with pytest.raises(ValueRangeError, match=message):
        name_files(pattern, TWO)


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("A Cat, 2 dogs", "a-cat-2-dogs"),
        ("ÄPFEL & Öl", "äpfel-öl"),
        ("A\u0308pfel", "äpfel"),  # the same letter in two characters
        ("一只猫坐在窗边。", "一只猫坐在窗边"),
        ("Красный круг", "красный-круг"),
        ("دائرة حمراء", "دائرة-حمراء"),
        ("می\u200cخواهم", "میخواهم"),  # an invisible character divides no word
        ("हिन्दी क्षेत्र", "हिन्दी-क्षेत्र"),  # vowel signs belong to their letters
        ("วงกลมสีแดง ที่", "วงกลมสีแดง-ที่"),
        ("빨간 원", "빨간-원"),
        ("🐱 cat 🐱", "cat"),
        ("../../etc/passwd", "etc-passwd"),
        ("", FALLBACK),
        ("🐱👩\u200d👩\u200d👧 !", FALLBACK),
        ("\u0301\u0301", FALLBACK),  # accents of nothing
        ("x" * 999, "x" * 60),
    ],
)
def test_letters_and_digits_of_every_script_are_kept(prompt: str, name: str) -> None:
    assert shorten(prompt) == unicodedata.normalize("NFC", name)


@pytest.mark.parametrize("letter", ["猫", "𠀀", "é", "e\u0323\u0302", "क्षि", "ที่", "가"])
def test_names_are_bounded_and_end_with_a_whole_letter(letter: str) -> None:
    letter = unicodedata.normalize("NFC", letter)
    name = shorten(letter * 500)
    assert name == letter * (len(name) // len(letter))
    nearly = len(name) + len(letter) > MAX_PROMPT_CHARACTERS or len((name + letter).encode()) > MAX_PROMPT_BYTES
    assert nearly


@given(st.text())
def test_any_prompt_makes_a_name(prompt: str) -> None:
    name = shorten(prompt)
    assert name == name.strip("-") != ""
    assert len(name) <= MAX_PROMPT_CHARACTERS
    assert len(name.encode()) <= MAX_PROMPT_BYTES
    assert all(character == "-" or not set("/\\\0.~{}") & {character} for character in name)
    (path,) = default_names(make_requests([prompt], seed=-(2**63)))
    assert path.parent == Path()
    assert len(path.name.encode()) <= MAX_NAME_BYTES


def test_default_names_of_different_prompts_are_numbered_where_they_meet() -> None:
    prompts = ["🐱", "a cat", "🐶", "A cat!", "🐭", "a cat 7 2"]
    assert [str(path) for path in default_names(make_requests(prompts))] == [
        "picture-7.png",
        "a-cat-7.png",
        "picture-7-2.png",
        "a-cat-7-2.png",
        "picture-7-3.png",
        "a-cat-7-2-7.png",
    ]


@given(st.lists(st.sampled_from(["a", "A", "a 7", "a-7-2", "ä", "A\u0308", "🐱", "ß", "SS"]), max_size=12))
def test_default_names_are_different_files_everywhere(prompts: list[str]) -> None:
    requests = make_requests(prompts)
    paths = default_names(requests)
    assert len(set(map(file_key, paths))) == len(prompts)
    assert default_names(requests[:-1]) == paths[:-1]  # more prompts at the end rename nothing


def test_ten_thousand_prompts_of_the_same_name_take_no_longer_than_others() -> None:
    paths = default_names(make_requests(["🐱"] * 10_000))
    assert paths[-1] == Path("picture-7-10000.png")


@pytest.mark.parametrize(
    ("first", "second"), [("A/{seed}.png", "a/{seed}.png"), ("\u00e4.png", "a\u0308.png"), ("ſ.png", "S.PNG")]
)
def test_names_that_are_one_file_on_a_mac_are_one_name(first: str, second: str) -> None:
    assert file_key(Path(first)) == file_key(Path(second))


def test_a_pattern_of_the_user_gets_no_numbers() -> None:
    with pytest.raises(ValueRangeError, match=r"2 pictures would be called picture\.png; use"):
        name_files("{prompt}.png", make_requests(["🐱", "🐶"]))
    with pytest.raises(ValueRangeError, match=r"2 pictures would be called ss\.png or ß\.png; .* only in case"):
        name_files("{prompt}.png", make_requests(["ß", "SS"]))
