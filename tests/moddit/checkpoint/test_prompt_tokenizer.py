"""A bundle's tokenizer: whatever its file says ends in one error that names it, and no number leaves the vocabulary."""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Callable, Iterator
from functools import reduce
from pathlib import Path
from typing import Any, Final

import pytest

from moddit.bounds import PROMPT, REPLACEMENT
from moddit.checkpoint.prompt_tokenizer import PromptTokenizer
from moddit.errors import FormatError, InputError, MissingError, ShapeError, UnsupportedError, ValueRangeError
from tests.tiny import make_tokenizer

VOCAB_SIZE: Final = 48
PIECES: Final = 44  # of the tiny tokenizer
TEXTS: Final = ("", "a large red circle", "Ünknown </s> <pad> 東京 🙂", "red " * 100, "x" * 1000)
GOLDEN: Final = Path(__file__).parents[3] / "swift_bridge/Tests/ModditCoreTests/Golden/tokenizer.json"
Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer().save_pretrained(folder)
    value: dict[str, Any] = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    assert len(value["model"]["vocab"]) == PIECES
    return value


def load(path: Path, content: str | bytes, max_length: int = 16) -> PromptTokenizer:
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return PromptTokenizer.load(path, vocab_size=VOCAB_SIZE, max_length=max_length)


def put(place: str, value: object) -> Change:
    """Replace a value; numbers in a place are those of list items."""

    def change(fields: dict[str, Any]) -> None:
        path: list[Any] = [int(part) if part.isdigit() else part for part in place.split("|")]
        reduce(lambda inner, key: inner[key], path[:-1], fields)[path[-1]] = value

    return change


def drop(place: str) -> Change:
    def change(fields: dict[str, Any]) -> None:
        *path, last = place.split("|")
        del reduce(lambda inner, key: inner[key], path, fields)[last]

    return change


def charsmap(*texts: bytes, trie: bytes = bytes(1024)) -> str:
    return base64.b64encode(len(trie).to_bytes(4, "little") + trie + b"".join(text + b"\0" for text in texts)).decode()


def replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


END: Final = "post_processor|special_tokens|</s>|ids"
GROWING: Final = replace({"String": "a"}, "a" * 10)
DAMAGED: Final[dict[str, tuple[Change, type[InputError]]]] = {
    # numbers that the text encoder does not know
    "end token far beyond": (put(END, [10**6]), ShapeError),
    "end token just beyond": (put(END, [VOCAB_SIZE]), ShapeError),
    "end token of 2^32": (put(END, [2**32]), ShapeError),
    "end token of 2^64": (put(END, [2**64]), ShapeError),
    "end token below 0": (put(END, [-1]), FormatError),
    "end token that is a float": (put(END, [1.0]), FormatError),
    "end token that is true": (put(END, [True]), FormatError),
    "end token that is a text": (put(END, ["1"]), FormatError),
    "a second template token beyond": (
        put("post_processor|special_tokens|x", {"id": "x", "ids": [99], "tokens": ["x"]}),
        ShapeError,
    ),
    "added token beyond": (put("added_tokens|1|id", 48), ShapeError),
    "added token of 2^40": (put("added_tokens|1|id", 2**40), ShapeError),
    "added token below 0": (put("added_tokens|1|id", -1), FormatError),
    "added tokens up to beyond": (
        lambda fields: fields["added_tokens"].extend(
            {**fields["added_tokens"][0], "id": 44 + index, "content": f"<{index}>"} for index in range(5)
        ),
        ShapeError,
    ),
    "added tokens that hide their numbers": (
        lambda fields: fields["added_tokens"].extend(
            {**fields["added_tokens"][0], "id": 3, "content": f"<{index}>"} for index in range(5)
        ),
        FormatError,
    ),
    "more pieces": (lambda fields: fields["model"]["vocab"].extend([[f"p{i}", -1.0] for i in range(5)]), ShapeError),
    "unknown beyond": (put("model|unk_id", 48), ShapeError),
    "unknown among no pieces": (put("model|unk_id", 45), FormatError),
    "unknown below 0": (put("model|unk_id", -1), FormatError),
    "no unknown": (put("model|unk_id", None), FormatError),
    # the model
    "no model": (drop("model"), FormatError),
    "model null": (put("model", None), FormatError),
    "model a list": (put("model", []), FormatError),
    "model of another type": (put("model|type", "BPE"), UnsupportedError),
    "model without a type": (drop("model|type"), UnsupportedError),
    "no vocabulary": (drop("model|vocab"), FormatError),
    "an empty vocabulary": (put("model|vocab", []), FormatError),
    "a vocabulary by name": (put("model|vocab", {"a": 0}), FormatError),
    "a piece of one": (put("model|vocab|5", ["a"]), FormatError),
    "a piece that is a number": (put("model|vocab|5", [5, 0.0]), FormatError),
    "a score that is a text": (put("model|vocab|5", ["a", "0"]), FormatError),
    "a score that is no number": (put("model|vocab|5", ["a", float("nan")]), FormatError),
    "an endless score": (put("model|vocab|5", ["a", float("inf")]), FormatError),
    "a huge whole score": (put("model|vocab|5", ["a", 10**400]), FormatError),
    "half a character": (put("model|vocab|5", ["\ud800", 0.0]), FormatError),
    "byte fallback that is a text": (put("model|byte_fallback", "yes"), FormatError),
    # steps
    "a growing replacement": (put("normalizer", GROWING), UnsupportedError),
    "nine growing replacements": (
        put("normalizer", {"type": "Sequence", "normalizers": [GROWING] * 9}),
        UnsupportedError,
    ),
    "a growing expression": (put("normalizer", replace({"Regex": "a"}, "aa")), UnsupportedError),
    "an expression": (put("normalizer", replace({"Regex": "(a+)+$"}, "")), UnsupportedError),
    "spaces that grow": (put("normalizer", replace({"Regex": " {2,}"}, "aaaa")), UnsupportedError),
    "a replacement of nothing": (put("normalizer", replace({"String": ""}, "a")), UnsupportedError),
    "a replacement by a number": (
        put("normalizer", {"type": "Replace", "pattern": {"String": "a"}, "content": 5}),
        FormatError,
    ),
    "a replacement without a pattern": (put("normalizer", {"type": "Replace", "content": "a"}), FormatError),
    "a prefix": (put("normalizer", {"type": "Prepend", "prepend": "a" * 1000}), UnsupportedError),
    "bytes for characters": (put("normalizer", {"type": "ByteLevel"}), UnsupportedError),
    "a sequence in a sequence": (
        put("normalizer", {"type": "Sequence", "normalizers": [{"type": "Sequence", "normalizers": []}]}),
        UnsupportedError,
    ),
    "many steps": (put("normalizer", {"type": "Sequence", "normalizers": [{"type": "NFKD"}] * 9}), UnsupportedError),
    "a normalizer without a type": (put("normalizer", {}), UnsupportedError),
    "a normalizer that is a text": (put("normalizer", "NFC"), FormatError),
    "steps that are a text": (put("normalizer", {"type": "Sequence", "normalizers": "NFC"}), FormatError),
    "a step that is a text": (put("normalizer", {"type": "Sequence", "normalizers": ["NFC"]}), FormatError),
    "a map that is null": (put("normalizer", {"type": "Precompiled", "precompiled_charsmap": None}), FormatError),
    "a map that is empty": (put("normalizer", {"type": "Precompiled", "precompiled_charsmap": ""}), FormatError),
    "a map that is no base64": (put("normalizer", {"type": "Precompiled", "precompiled_charsmap": "?"}), FormatError),
    "a map cut short": (put("normalizer", {"type": "Precompiled", "precompiled_charsmap": "/////w=="}), FormatError),
    "a map with an odd trie": (
        put("normalizer", {"type": "Precompiled", "precompiled_charsmap": charsmap(b"a", trie=b"abc")}),
        FormatError,
    ),
    "a map with long texts": (
        put("normalizer", {"type": "Precompiled", "precompiled_charsmap": charsmap(b"a" * (REPLACEMENT + 1))}),
        UnsupportedError,
    ),
    "several maps": (
        put(
            "normalizer",
            {"type": "Sequence", "normalizers": [{"type": "Precompiled", "precompiled_charsmap": charsmap(b"a")}] * 2},
        ),
        UnsupportedError,
    ),
    "another cut": (put("pre_tokenizer", {"type": "ByteLevel", "add_prefix_space": True}), UnsupportedError),
    "a cut by an expression": (
        put(
            "pre_tokenizer", {"type": "Split", "pattern": {"Regex": "(a|a)*$"}, "behavior": "Isolated", "invert": False}
        ),
        UnsupportedError,
    ),
    "a cut that is a list": (put("pre_tokenizer", []), FormatError),
    "a long metaspace": (put("pre_tokenizer|pretokenizers|1|replacement", "ab"), FormatError),
    "no metaspace": (put("pre_tokenizer|pretokenizers|1|replacement", ""), FormatError),
    "another scheme": (put("pre_tokenizer|pretokenizers|1|prepend_scheme", "sometimes"), UnsupportedError),
    # the template
    "no template": (put("post_processor", None), FormatError),
    "another post-processor": (put("post_processor|type", "BertProcessing"), UnsupportedError),
    "a template without a text": (put("post_processor|single", []), FormatError),
    "a template of two texts": (
        lambda fields: fields["post_processor"]["single"].insert(0, fields["post_processor"]["single"][0]),
        FormatError,
    ),
    "a template of text B": (put("post_processor|single|0|Sequence|id", "B"), FormatError),
    "an unknown special token": (put("post_processor|single|1|SpecialToken|id", "<x>"), FormatError),
    "a part that is a text": (put("post_processor|single|1", "</s>"), FormatError),
    "a part without a kind": (put("post_processor|single|1", {"x": 1}), FormatError),
    "no special tokens": (put("post_processor|special_tokens", {}), FormatError),
    "no end": (lambda fields: fields["post_processor"]["single"].pop(), FormatError),
    "two ends": (put(END, [1, 1]), FormatError),
    "ends that hide their numbers": (put(END, []), FormatError),
    # the rest
    "another version": (put("version", "2.0"), UnsupportedError),
    "no version": (drop("version"), FormatError),
    "added tokens that are a text": (put("added_tokens", "<pad>"), FormatError),
    "an added token that is a text": (put("added_tokens|0", "<pad>"), FormatError),
    "an added token without a text": (put("added_tokens|0|content", None), FormatError),
    "a flag that is a text": (put("added_tokens|0|lstrip", "no"), FormatError),
    "truncation that is a text": (put("truncation", "no"), FormatError),
    "padding of some fields": (put("padding", {"strategy": "x"}), FormatError),
}
NO_JSON: Final = {
    "nothing": b"",
    "not UTF-8": b'{"model": "\xff"}',
    "cut": b'{"model": {"type": "Unigram", "vo',
    "deep": b'{"model": ' + b"[" * 100_000,
    "zeros": bytes(1000),
}


def test_there_are_enough() -> None:
    assert len(DAMAGED) + len(NO_JSON) >= 80


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_one_error_that_names_the_file(tmp_path: Path, whole: dict[str, Any], name: str) -> None:
    change, kind = DAMAGED[name]
    fields = copy.deepcopy(whole)
    change(fields)
    with pytest.raises(InputError, match=r"^\[tokenizer\] .*tokenizer\.json: ") as caught:
        load(tmp_path / "tokenizer.json", json.dumps(fields))
    assert type(caught.value) is kind, caught.value
    assert len(str(caught.value)) < len(str(tmp_path)) + 400


@pytest.mark.parametrize("name", NO_JSON)
def test_what_is_not_json(tmp_path: Path, name: str) -> None:
    with pytest.raises(FormatError, match=r"tokenizer\.json: not JSON"):
        load(tmp_path / "tokenizer.json", NO_JSON[name])


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"tokenizer\.json: no such file"):
        PromptTokenizer.load(tmp_path / "tokenizer.json", vocab_size=48, max_length=16)
    with pytest.raises(FormatError, match="cannot be read"):
        PromptTokenizer.load(tmp_path, vocab_size=48, max_length=16)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """List the places of all values but most pieces, which are alike."""
    if path:
        yield path
    items: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        if path[-1:] != ("vocab",) or key in (0, 2, 5):
            yield from places(item, (*path, key))


OTHERS: Final[tuple[Any, ...]] = (None, True, -1, 2**33, 0.5, "", "x", [], {}, [["", 0.0]], {"type": "NFC"}, "\ud800")


def test_replaced_values_are_refused_or_harmless(tmp_path: Path, whole: dict[str, Any]) -> None:
    """Every value in turn becomes one of another kind: no panic, no bare exception, no number beyond."""
    refused, accepted = [], 0
    for *path, last in places(whole):
        for other in OTHERS:
            fields = copy.deepcopy(whole)
            reduce(lambda inner, key: inner[key], path, fields)[last] = other
            try:
                tokenizer = load(tmp_path / "tokenizer.json", json.dumps(fields))
                ids = [number for text in TEXTS for number in tokenizer.encode(text)]
            except InputError as error:
                refused.append(str(error))
            else:
                accepted += 1
                assert max(ids) < VOCAB_SIZE
    assert len(refused) > 2 * accepted
    assert all("tokenizer.json: " in message for message in refused)


class PanicException(BaseException):
    """As pyo3's, which is no Exception."""


class Interruption(BaseException):
    """As one by the user."""


@pytest.mark.parametrize("kind", [PanicException, Interruption])
def test_panics_of_the_library_are_errors(tmp_path: Path, whole: dict[str, Any], kind: type[BaseException]) -> None:
    class Library:
        def encode(self, text: str) -> Any:
            raise kind("index out of bounds")

    tokenizer = load(tmp_path / "tokenizer.json", json.dumps(whole))
    object.__setattr__(tokenizer, "library", Library())
    with pytest.raises(FormatError if kind is PanicException else Interruption, match="index out of bounds"):
        tokenizer.encode("red")


def test_numbers_are_checked_again_when_a_prompt_is_encoded(tmp_path: Path, whole: dict[str, Any]) -> None:
    tokenizer = load(tmp_path / "tokenizer.json", json.dumps(whole))
    object.__setattr__(tokenizer, "vocab_size", 4)
    assert tokenizer.encode("a") == [3, 1]
    with pytest.raises(ShapeError, match="has 2 tokens up to number 6, want at most 16 below 4"):
        tokenizer.encode("red")


def test_prompts_are_bounded(tmp_path: Path, whole: dict[str, Any]) -> None:
    tokenizer = load(tmp_path / "tokenizer.json", json.dumps(whole))
    assert len(tokenizer.encode("a " * (PROMPT // 2))) == 16
    with pytest.raises(ValueRangeError, match=f"has {PROMPT + 1} characters, want at most {PROMPT}"):
        tokenizer.encode("a" * (PROMPT + 1))
    with pytest.raises(ValueRangeError, match="not Unicode text"):
        tokenizer.encode("caf\udce9")


STEPS: Final[dict[str, Any]] = {
    "nothing": None,
    "T5's": json.loads(GOLDEN.read_text(encoding="utf-8"))["normalizer"],
    "T5's of before": {
        "type": "Sequence",
        "normalizers": [
            json.loads(GOLDEN.read_text(encoding="utf-8"))["normalizer"],
            {"type": "Strip", "strip_left": False, "strip_right": True},
            replace({"Regex": " {2,}"}, "▁"),
        ],
    },
    "another": {"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Lowercase"}]},
    "a replacement": replace({"String": "blue"}, "red"),
}


@pytest.mark.parametrize("name", STEPS)
def test_normalizers_that_are_known(tmp_path: Path, whole: dict[str, Any], name: str) -> None:
    tokenizer = load(tmp_path / "tokenizer.json", json.dumps(whole | {"normalizer": STEPS[name]}))
    assert tokenizer.encode("a  red circle") == [3, 6, 9, 1]
