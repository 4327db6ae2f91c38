"""T5's vocabulary in SentencePiece's format, as most PixArt checkpoints have it.

Source: google/sentencepiece, src/sentencepiece_model.proto (fields and their numbers).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from moddit.bounds import TOKENIZER_BYTES
from moddit.errors import FormatError, UnsupportedError
from moddit.record import Origin, read_bytes

SPECIAL: Final = ("<pad>", "</s>", "<unk>")  # with the numbers 0, 1, 2
_UNIGRAM: Final = 1  # TrainerSpec.ModelType
# SentencePiece.Type
_NORMAL: Final = 1
_CONTROL: Final = 3
_USER_DEFINED: Final = 4
# Wire types of protocol buffers, to the size of the field where it is fixed.
_VARINT: Final = 0
_BYTES: Final = 2
_FIXED: Final = {1: 8, 5: 4}


@dataclass(frozen=True)
class Vocabulary:
    """What a SentencePiece model holds of a unigram tokenizer."""

    pieces: tuple[tuple[str, float], ...]  # with their log probabilities
    charsmap: bytes  # compiled normalisation of characters; may be empty
    added: tuple[tuple[str, bool], ...] = ()  # control pieces and those of the user; whether it is a control piece


def read_vocabulary(path: Path) -> Vocabulary:
    """Read `spiece.model`.

    Raises:
        FormatError: it is damaged, or not a SentencePiece model.
        UnsupportedError: it is not a unigram model with T5's special tokens.
    """
    origin = Origin("tokenizer", str(path), "copy or download the file again")
    content = read_bytes(path, origin, absent=origin.advice, most=TOKENIZER_BYTES)
    try:
        vocabulary, model_type = _parse_model(content)
    except (ValueError, IndexError, struct.error) as error:
        raise FormatError(f"{origin}: not a SentencePiece model ({error}){origin.end}") from None
    first = tuple(piece for piece, _ in vocabulary.pieces[: len(SPECIAL)])
    if model_type != _UNIGRAM or first != SPECIAL:
        raise UnsupportedError(
            f"[tokenizer] {path}: model type {model_type} with first tokens {first} is not implemented, "
            f"want a unigram model ({_UNIGRAM}) with {SPECIAL}, as T5 has it"
        )
    return vocabulary


def _parse_model(data: bytes) -> tuple[Vocabulary, int]:
    """ModelProto: 1 = pieces, 2 = trainer_spec (3 = model_type), 3 = normalizer_spec (2 = precompiled_charsmap)."""
    pieces: list[tuple[str, float]] = []
    added: list[tuple[str, bool]] = []
    model_type: int | bytes = _UNIGRAM
    charsmap = b""
    for number, value in _fields(data):
        if number == 1:
            name, score, kind = _parse_piece(_message(value))
            pieces.append((name, score))
            if kind in (_CONTROL, _USER_DEFINED):
                added.append((name, kind == _CONTROL))
        elif number == 2:
            model_type = next((found for key, found in _fields(_message(value)) if key == 3), _UNIGRAM)
        elif number == 3:
            charsmap = next((_message(found) for key, found in _fields(_message(value)) if key == 2), b"")
    if not isinstance(model_type, int):
        raise ValueError("model_type is not a number")
    return Vocabulary(tuple(pieces), charsmap, tuple(added)), model_type


def _parse_piece(data: bytes) -> tuple[str, float, int]:
    """SentencePiece: 1 = piece, 2 = score, 3 = type."""
    name, score, kind = "", 0.0, _NORMAL
    for number, value in _fields(data):
        if number == 1:
            name = _message(value).decode()
        elif number == 2:
            (score,) = struct.unpack("<f", _message(value))
        elif number == 3 and isinstance(value, int):
            kind = value
    return name, score, kind


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
