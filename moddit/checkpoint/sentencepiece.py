"""T5's vocabulary in SentencePiece's format, as most PixArt checkpoints have it, to the format of `tokenizers`.

Source: google/sentencepiece, src/sentencepiece_model.proto (fields and their numbers);
huggingface/transformers, T5Tokenizer (what it makes of them).
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from moddit.errors import FormatError, UnsupportedError

EXTRA_IDS: Final = 100  # sentinel tokens that T5 adds behind the vocabulary, unless the checkpoint says otherwise
SPECIAL: Final = ("<pad>", "</s>", "<unk>")  # with the numbers 0, 1, 2
_SPACE: Final = "▁"
_UNIGRAM: Final = 1  # TrainerSpec.ModelType
# Wire types of protocol buffers, to the size of the field where it is fixed.
_VARINT: Final = 0
_BYTES: Final = 2
_FIXED: Final = {1: 8, 5: 4}


@dataclass(frozen=True)
class Vocabulary:
    """What a SentencePiece model holds of a unigram tokenizer."""

    pieces: tuple[tuple[str, float], ...]  # with their log probabilities
    charsmap: bytes  # compiled normalisation of characters; may be empty


def read_vocabulary(path: Path) -> Vocabulary:
    """Read `spiece.model`.

    Raises:
        FormatError: it is damaged, or not a SentencePiece model.
        UnsupportedError: it is not a unigram model with T5's special tokens.
    """
    try:
        vocabulary, model_type = _parse_model(path.read_bytes())
    except (ValueError, IndexError, struct.error) as error:
        raise FormatError(
            f"[tokenizer] {path}: not a SentencePiece model ({error}); copy or download the file again"
        ) from None
    first = tuple(piece for piece, _ in vocabulary.pieces[: len(SPECIAL)])
    if model_type != _UNIGRAM or first != SPECIAL:
        raise UnsupportedError(
            f"[tokenizer] {path}: model type {model_type} with first tokens {first} is not implemented, "
            f"want a unigram model ({_UNIGRAM}) with {SPECIAL}, as T5 has it"
        )
    return vocabulary


def make_tokenizer(vocabulary: Vocabulary, extra_ids: int) -> dict[str, Any]:
    """Make the object of `tokenizer.json` as transformers' T5Tokenizer does."""
    extra = [f"<extra_id_{index}>" for index in range(extra_ids - 1, -1, -1)]
    pieces = [*vocabulary.pieces, *((name, 0.0) for name in extra)]
    special = [*enumerate(SPECIAL), *enumerate(extra, len(vocabulary.pieces))]
    metaspace = {"type": "Metaspace", "replacement": _SPACE, "prepend_scheme": "always", "split": True}
    charsmap = base64.b64encode(vocabulary.charsmap).decode()
    text, other, end = ({"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}, SPECIAL[1])
    stop = {"SpecialToken": {"id": end, "type_id": 0}}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added_token(number, name) for number, name in special],
        "normalizer": {"type": "Precompiled", "precompiled_charsmap": charsmap} if charsmap else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace]},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [text, stop],
            "pair": [text, stop, other, stop],
            "special_tokens": {end: {"id": end, "ids": [1], "tokens": [end]}},
        },
        "decoder": metaspace,
        "model": {"type": "Unigram", "unk_id": 2, "vocab": [list(piece) for piece in pieces], "byte_fallback": False},
    }


def format_tokenizer(tokenizer: dict[str, Any]) -> bytes:
    """Write `tokenizer.json`."""
    return json.dumps(tokenizer, ensure_ascii=False, indent=2).encode()


def _added_token(number: int, name: str) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": name, **flags, "special": True}


def _parse_model(data: bytes) -> tuple[Vocabulary, int]:
    """ModelProto: 1 = pieces, 2 = trainer_spec (3 = model_type), 3 = normalizer_spec (2 = precompiled_charsmap)."""
    pieces: list[tuple[str, float]] = []
    model_type: int | bytes = _UNIGRAM
    charsmap = b""
    for number, value in _fields(data):
        if number == 1:
            pieces.append(_parse_piece(_message(value)))
        elif number == 2:
            model_type = next((found for key, found in _fields(_message(value)) if key == 3), _UNIGRAM)
        elif number == 3:
            charsmap = next((_message(found) for key, found in _fields(_message(value)) if key == 2), b"")
    if not isinstance(model_type, int):
        raise ValueError("model_type is not a number")
    return Vocabulary(tuple(pieces), charsmap), model_type


def _parse_piece(data: bytes) -> tuple[str, float]:
    """SentencePiece: 1 = piece, 2 = score."""
    name, score = "", 0.0
    for number, value in _fields(data):
        if number == 1:
            name = _message(value).decode()
        elif number == 2:
            (score,) = struct.unpack("<f", _message(value))
    return name, score


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Read the fields of a protocol buffer: their numbers, and integers or bytes."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        kind = key & 7
        if kind == _VARINT:
            number, position = _varint(data, position)
            yield key >> 3, number
            continue
        if kind == _BYTES:
            size, position = _varint(data, position)
        elif kind in _FIXED:
            size = _FIXED[kind]
        else:
            raise ValueError(f"unknown wire type {kind}")
        if position + size > len(data):
            raise ValueError("truncated")
        yield key >> 3, data[position : position + size]
        position += size


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if position >= len(data) or shift > 63:
            raise ValueError("truncated")
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position


def _message(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number where bytes are wanted")
    return value
