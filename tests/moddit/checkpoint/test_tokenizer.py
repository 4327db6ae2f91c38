"""A tokenizer's folder becomes the tokenizer that transformers makes of it."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers
from hypothesis import given
from hypothesis import strategies as st
from transformers import T5Tokenizer

from moddit.checkpoint.sentencepiece import read_vocabulary
from moddit.checkpoint.tokenizer import read_tokenizer
from moddit.errors import FormatError, ModditError, UnsupportedError
from tests.convert.checkpoints import convert
from tests.sentencepieces import PIECES, write_model
from tests.tiny import save_pipeline

# T5's own map of characters (nmt_nfkc), as the Swift package is tested with it.
GOLDEN = Path(__file__).parents[3] / "swift_bridge/Tests/ModditCoreTests/Golden/tokenizer.json"
CHARSMAP = base64.b64decode(json.loads(GOLDEN.read_text(encoding="utf-8"))["normalizer"]["precompiled_charsmap"])
FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


TEXTS = ("red", "a red, é", "<extra_id_3> red <extra_id_0>", "<mask>red <new> x<lora>y", "</s> <pad> RED", "", "  a ")
# What folders of published checkpoints, and people's own, say of added tokens.
EXTRA = [f"<extra_id_{index}>" for index in range(100)]
DECLARED = {"content": "<lora>", "lstrip": True, "rstrip": False, "normalized": False, "single_word": False}
FOLDERS: dict[str, dict[str, Any]] = {
    "nothing beside it": {},
    "no extra ids": {"tokenizer_config.json": {"extra_ids": 0, "model_max_length": 512}},
    "three extra ids": {"tokenizer_config.json": {"extra_ids": 3}},
    "added_tokens_decoder": {
        "tokenizer_config.json": {
            "added_tokens_decoder": {
                "0": {"content": "<pad>", "special": True},
                "900": DECLARED | {"special": True},
                "901": {"content": "<new>", "special": False},
            }
        }
    },
    "additional_special_tokens": {"tokenizer_config.json": {"additional_special_tokens": ["<new>", "<mask>"]}},
    "extra_special_tokens": {"tokenizer_config.json": {"extra_special_tokens": ["<mask>", *EXTRA]}},
    "extra_special_tokens by name": {"tokenizer_config.json": {"extra_special_tokens": {"image_token": "<new>"}}},
    "a token of the model's own": {"tokenizer_config.json": {"lora_token": "<lora>", "extra_ids": 2}},
    "the legacy files": {
        "tokenizer_config.json": {"extra_ids": 100, "model_max_length": 77},
        "special_tokens_map.json": {
            "additional_special_tokens": EXTRA,
            "eos_token": {"content": "</s>", "lstrip": False, "normalized": True, "rstrip": False, "special": True},
            "mask_token": "<mask>",
        },
        "added_tokens.json": {"<extra_id_0>": 132, "<new>": 133, "<lora>": 134},
    },
    "legacy special tokens without the extra ids": {
        "special_tokens_map.json": {"additional_special_tokens": ["<mask>", "<new>"]}
    },
    "other names of the special tokens": {"tokenizer_config.json": {"unk_token": "<unk>", "cls_token": "<new>"}},
    "no further special tokens": {"tokenizer_config.json": {"extra_special_tokens": None}},
    "no additional special tokens": {"tokenizer_config.json": {"additional_special_tokens": None}},
    "two ends of a text": {
        "tokenizer_config.json": {"eos_token": "<new>"},
        "special_tokens_map.json": {"eos_token": "<mask>", "pad_token": {"content": "<lora>", "special": False}},
    },
    "further special tokens in two files": {
        "tokenizer_config.json": {"additional_special_tokens": ["<mask>"]},
        "special_tokens_map.json": {"extra_special_tokens": [{"content": "<new>", "rstrip": True}]},
    },
    "further special tokens by name and in a list": {
        "tokenizer_config.json": {"extra_special_tokens": {"image_token": "<new>"}},
        "special_tokens_map.json": {"extra_special_tokens": ["<lora>"]},
    },
    "a special token whose normalisation is left open": {
        "tokenizer_config.json": {"cls_token": {"__type": "AddedToken", "content": "<mask>", "lstrip": True}}
    },
}
# What classes without tokens of their own read.
PLAIN_FOLDERS: dict[str, dict[str, Any]] = {
    "special tokens in the configuration": {"tokenizer_config.json": {"eos_token": "</s>", "mask_token": "<new>"}},
    "legacy special tokens": {"special_tokens_map.json": {"additional_special_tokens": ["<mask>", "<new>"]}},
}


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("form", ["spiece.model", "tokenizer.json", "both"])
def test_equals_transformers(tmp_path: Path, form: str, name: str) -> None:
    folder = write_model(tmp_path / "folder", charsmap=CHARSMAP)
    if form != "spiece.model":
        # a tokenizer.json as transformers writes it, which another program gave a token
        T5Tokenizer.from_pretrained(folder).save_pretrained(tmp_path / "saved")
        value = json.loads((tmp_path / "saved" / "tokenizer.json").read_text(encoding="utf-8"))
        value["added_tokens"].append({"id": 900, "special": False, "content": "x<lora>", **FLAGS})
        value["pre_tokenizer"] = None  # T5Tokenizer has its own
        (folder / "tokenizer.json").write_text(json.dumps(value), encoding="utf-8")
    if form == "tokenizer.json":
        (folder / "spiece.model").unlink()
    for file, content in FOLDERS[name].items():
        (folder / file).write_text(json.dumps(content))
    wanted = T5Tokenizer.from_pretrained(folder)
    found = read_tokenizer(folder)
    value, reference = json.loads(found.text), json.loads(wanted.backend_tokenizer.to_str())
    for each in (value, reference):
        each["model"]["vocab"] = [(piece, round(score, 6)) for piece, score in each["model"]["vocab"]]
    assert value == reference
    assert found.size == len(wanted)
    ours = tokenizers.Tokenizer.from_str(found.text.decode())
    assert [ours.encode(text).ids for text in TEXTS] == [wanted(text).input_ids for text in TEXTS]
    assert {path.name for path in found.files} == {
        "spiece.model" if form == "spiece.model" else "tokenizer.json",
        *FOLDERS[name],
    }


@pytest.mark.parametrize("name", PLAIN_FOLDERS)
@pytest.mark.parametrize("kind", ["PreTrainedTokenizerFast", "TokenizersBackend"])
def test_plain_classes_take_the_file_as_it_is(tmp_path: Path, kind: str, name: str) -> None:
    T5Tokenizer.from_pretrained(write_model(tmp_path / "model")).save_pretrained(tmp_path / "saved")
    path = tmp_path / "saved" / "tokenizer.json"
    value = json.loads(path.read_text(encoding="utf-8"))
    value["normalizer"] = {"type": "Replace", "pattern": {"String": "blue"}, "content": "red"}
    path.write_text(json.dumps(value), encoding="utf-8")
    (tmp_path / "saved" / "tokenizer_config.json").write_text("{}")
    for file, content in PLAIN_FOLDERS[name].items():
        (tmp_path / "saved" / file).write_text(json.dumps(content))
    wanted: Any = getattr(transformers, kind).from_pretrained(tmp_path / "saved")
    ours = tokenizers.Tokenizer.from_str(read_tokenizer(tmp_path / "saved", kind).text.decode())
    texts = (*TEXTS, "blue")
    assert [ours.encode(text).ids for text in texts] == [wanted(text).input_ids for text in texts]
    assert ours.encode("blue").ids == ours.encode("red").ids


def test_a_class_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"class 'CLIPTokenizer', as model_index\.json says, is not implemented"):
        read_tokenizer(write_model(tmp_path), "CLIPTokenizer")


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("tokenizer.json", {"model": {"vocab": {"a": 1}}}, "not a tokenizer of T5, want model.vocab with pieces"),
        ("tokenizer.json", {"model": {"vocab": [["a", "b"]]}}, "not a tokenizer of T5"),
        ("tokenizer.json", {"model": {"vocab": [["a", 1e999]]}}, "not a tokenizer of T5"),
        ("tokenizer.json", {"model": {"vocab": [["a", 1]]}}, "has 1 pieces"),
        ("tokenizer.json", {"model": 3}, "not a tokenizer of T5"),
        ("tokenizer.json", {"added_tokens": 3}, "added_tokens is no list"),
        ("tokenizer.json", {"added_tokens": [3]}, "added_tokens is 3, which is not what transformers writes"),
        ("tokenizer.json", {"added_tokens": [{"id": -1, "content": "a"}]}, "the number of a token is -1"),
        ("tokenizer.json", {"added_tokens": [{"id": 1, "content": 3}]}, "a token is"),
        ("tokenizer.json", {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "?"}}, "charsmap is damaged"),
        ("tokenizer.json", {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAA="}}, "not a vocabulary"),
        ("tokenizer_config.json", {"extra_ids": -1}, r"extra_ids is -1, want an integer in 0\.\."),
        ("tokenizer_config.json", {"added_tokens_decoder": []}, r"added_tokens_decoder is \[\]"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"a": "b"}}, "the number of a token is 'a'"),
        ("tokenizer_config.json", {"eos_token": 3}, "a token is 3"),
        ("tokenizer_config.json", {"eos_token": ""}, "the end token '' is not in the vocabulary"),
        ("tokenizer_config.json", {"extra_special_tokens": "x"}, "extra_special_tokens is 'x'"),
        ("special_tokens_map.json", {"eos_token": ["a"]}, r"a token is \['a'\]"),
        ("special_tokens_map.json", {"additional_special_tokens": ["<extra_id_0>"]}, "lists 1 extra ids, want 100"),
        ("added_tokens.json", {"a": "b"}, "the number of a token is 'b'"),
    ],
)
def test_damage(tmp_path: Path, file: str, change: dict[str, Any], message: str) -> None:
    T5Tokenizer.from_pretrained(write_model(tmp_path / "model")).save_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / "tokenizer_config.json").write_text("{}")
    path = tmp_path / "saved" / file
    value = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.write_text(json.dumps(value | change), encoding="utf-8")
    with pytest.raises(FormatError, match=message):
        read_tokenizer(tmp_path / "saved")


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("tokenizer_config.json", {"truncation_side": "left"}, "truncation_side is 'left'"),
        ("tokenizer.json", {"truncation": {"direction": "Left", "max_length": 9}}, "truncation_side is 'Left'"),
        ("tokenizer_config.json", {"split_special_tokens": True}, "split_special_tokens is not implemented"),
    ],
)
def test_other_ways_to_cut_a_text_are_refused(tmp_path: Path, file: str, change: dict[str, Any], message: str) -> None:
    folder = tmp_path / "saved"
    T5Tokenizer.from_pretrained(write_model(tmp_path / "model")).save_pretrained(folder)
    value = json.loads((folder / file).read_text(encoding="utf-8"))
    (folder / file).write_text(json.dumps(value | change), encoding="utf-8")
    with pytest.raises(UnsupportedError, match=message):
        read_tokenizer(folder)
    if file == "tokenizer.json":
        (folder / "tokenizer_config.json").write_text(json.dumps({"truncation_side": "right"}))  # which counts
        read_tokenizer(folder)


def test_keeps_the_map_of_characters(tmp_path: Path) -> None:
    normalizer = json.loads(read_tokenizer(write_model(tmp_path, charsmap=CHARSMAP)).text)["normalizer"]
    assert normalizer == {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(CHARSMAP).decode()}


def test_converts_a_checkpoint_without_tokenizer_json(tmp_path: Path) -> None:
    source = save_pipeline(tmp_path / "source")
    (source / "tokenizer" / "tokenizer.json").unlink()
    write_model(source / "tokenizer")
    assert convert(source, tmp_path / "bundle") == 0
    vocabulary = json.loads((tmp_path / "bundle" / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    assert vocabulary[4] == ["▁red", -4.0]


def test_other_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"spiece\.model: model type 2 with first tokens"):
        read_tokenizer(write_model(tmp_path, model_type=2))
    with pytest.raises(UnsupportedError, match=r"first tokens \('</s>', '<pad>', '<unk>'\) is not implemented"):
        read_tokenizer(write_model(tmp_path, [PIECES[1], PIECES[0], *PIECES[2:]]))


def test_a_cut_model_is_refused(tmp_path: Path) -> None:
    path = write_model(tmp_path) / "spiece.model"
    data = path.read_bytes()
    path.write_bytes(data[:-5])
    with pytest.raises(FormatError, match=r"spiece\.model: not a SentencePiece model \(truncated\)"):
        read_vocabulary(path)


@pytest.mark.parametrize("make", [lambda path: os.truncate(path, 1 << 40), lambda path: (path.unlink(), path.mkdir())])
def test_a_model_that_is_too_large_or_no_file_is_refused(make: Callable[[Path], object], tmp_path: Path) -> None:
    path = write_model(tmp_path) / "spiece.model"
    make(path)
    with pytest.raises(
        FormatError, match=r"\[tokenizer\] .*spiece\.model: (has \d+ bytes, want at most|cannot be read)"
    ):
        read_vocabulary(path)


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.model"
    path.write_bytes(data)
    with pytest.raises(ModditError, match="tokenizer"):
        read_vocabulary(path)
