"""A SentencePiece vocabulary becomes the tokenizer that transformers makes of it."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import T5Tokenizer

from moddit.checkpoint.sentencepiece import read_vocabulary
from moddit.checkpoint.tokenizer import read_tokenizer
from moddit.errors import FormatError, ModditError, UnsupportedError
from tests.convert.checkpoints import convert
from tests.tiny import save_pipeline

PIECES = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), ("▁red", -4.0), ("▁é", -5.5)]
PIECES += [(letter, -9.25) for letter in "abcdefghijklmnopqrstuvwxyz,"]
TYPES = {"<pad>": 3, "</s>": 3, "<unk>": 2}  # control, unknown


def field(number: int, value: int | float | bytes) -> bytes:
    """Write one field of a protocol buffer."""
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    return varint(number << 3) + varint(value)


def varint(value: int) -> bytes:
    groups = [value & 0x7F]
    while value := value >> 7:
        groups.append(value & 0x7F)
    return bytes([*(group | 0x80 for group in groups[:-1]), groups[-1]])


def write_model(
    folder: Path, pieces: Sequence[tuple[str, float]] = PIECES, *, model_type: int = 1, charsmap: bytes = b""
) -> Path:
    """Write `spiece.model`, with fields that a reader does not need among those that it does."""
    data = b""
    for name, score in pieces:
        data += field(1, field(1, name.encode()) + field(2, score) + field(3, TYPES.get(name, 1)))
    data += field(2, field(1, b"corpus.txt") + field(3, model_type) + field(4, 32000))
    data += field(3, field(1, b"nmt_nfkc") + (field(2, charsmap) if charsmap else b"") + field(4, 1))
    folder.mkdir(exist_ok=True)
    (folder / "spiece.model").write_bytes(data)
    return folder


@pytest.mark.parametrize("extra_ids", [0, 3, 100])
def test_equals_transformers(tmp_path: Path, extra_ids: int) -> None:
    write_model(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"extra_ids": extra_ids, "model_max_length": 512}))
    found = read_tokenizer(tmp_path)
    # transformers appends the extra tokens where it reads spiece.model, before it makes the tokenizer
    extra = [(f"<extra_id_{index}>", 0.0) for index in range(extra_ids - 1, -1, -1)]
    wanted = T5Tokenizer(vocab=[*PIECES, *extra], extra_ids=extra_ids)
    value, reference = json.loads(found.text), json.loads(wanted.backend_tokenizer.to_str())
    for each in (value, reference):
        each["added_tokens"].sort(key=lambda token: token["id"])
        each["model"]["vocab"] = [(piece, round(score, 6)) for piece, score in each["model"]["vocab"]]
    assert value == reference
    assert (found.size, found.max_length) == (len(PIECES) + extra_ids, 512)


def test_has_t5_s_hundred_extra_tokens_by_default(tmp_path: Path) -> None:
    assert read_tokenizer(write_model(tmp_path)).size == len(PIECES) + 100


def test_keeps_the_map_of_characters(tmp_path: Path) -> None:
    normalizer = json.loads(read_tokenizer(write_model(tmp_path, charsmap=b"\0\1\2\xff")).text)["normalizer"]
    assert normalizer == {"type": "Precompiled", "precompiled_charsmap": "AAEC/w=="}


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


def test_a_bad_count_of_extra_tokens(tmp_path: Path) -> None:
    (write_model(tmp_path) / "tokenizer_config.json").write_text('{"extra_ids": -1}')
    with pytest.raises(FormatError, match=r"tokenizer_config\.json: extra_ids is -1, want an integer in 0\.\."):
        read_tokenizer(tmp_path)


def test_a_cut_model_is_refused(tmp_path: Path) -> None:
    path = write_model(tmp_path) / "spiece.model"
    data = path.read_bytes()
    path.write_bytes(data[:-5])
    with pytest.raises(FormatError, match=r"spiece\.model: not a SentencePiece model \(truncated\)"):
        read_vocabulary(path)


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.model"
    path.write_bytes(data)
    with pytest.raises(ModditError, match="tokenizer"):
        read_vocabulary(path)
