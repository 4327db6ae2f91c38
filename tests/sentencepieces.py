"""SentencePiece models, written field by field: small ones, and wrong ones that no trainer writes."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

PIECES = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), ("▁red", -4.0), ("▁é", -5.5)]
PIECES += [(letter, -9.25) for letter in "abcdefghijklmnopqrstuvwxyz,"] + [("<mine>", 0.0)]
TYPES = {"<mine>": 4, "<pad>": 3, "</s>": 3, "<unk>": 2}  # control, unknown


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
