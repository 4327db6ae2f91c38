"""Writes a description as a bundle for MLX, tensor by tensor."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import numpy as np

from convert.mlx.layout import Choices, Slot, plan_slots
from convert.output import Written
from moddit.checkpoint.description import Description
from moddit.checkpoint.safetensors import format_header
from moddit.files import check_space
from moddit.manifest import Component, FileInfo
from moddit.quantization import group

BACKEND: Final = "mlx"
SHARD_BYTES: Final = 1 << 30  # a file holds at least one tensor, and more while they fit in this
OVERHEAD_BYTES: Final = 4 << 20  # headers and manifest, estimated from above

Advance = Callable[[int], object]  # told how many more bytes of the source are done


def write_components(description: Description, folder: Path, advance: Advance, *, choices: Choices) -> Written:
    """Write everything but the manifest into an empty folder. Memory stays below 1 GB whatever the checkpoint's size.

    Raises:
        ValueRangeError: a weight is not finite.
        FormatError: a file of the source has changed since it was described.
        StorageError: the disk has not enough room.
        OSError: it cannot be written.
    """
    slots = {name: plan_slots(name, part, choices) for name, part in description.parts.items()}
    size = sum(slot.nbytes for group in slots.values() for slot in group)
    check_space(folder, size + sum(map(len, description.documents.values())) + OVERHEAD_BYTES)
    components = {
        name: _write_component(folder, name, group, choices, description.parts[name].parameters, advance)
        for name, group in slots.items()
    }
    for name, content in description.documents.items():
        components[name] = Component((_write_file(folder, f"{name}.json", [content]),))
    return Written(BACKEND, components, description.policy)


def _write_component(
    folder: Path, name: str, slots: list[Slot], choices: Choices, parameters: int, advance: Advance
) -> Component:
    shards = split_shards(slots, SHARD_BYTES)
    files = []
    for number, shard in enumerate(shards, 1):
        suffix = f"-{number:05}-of-{len(shards):05}" if len(shards) > 1 else ""
        files.append(_write_file(folder, f"{name}/model{suffix}.safetensors", _encode(shard, advance)))
    quantization = group({slot.name: slot.packing for slot in slots if slot.packing is not None})
    return Component(tuple(files), choices.dtype, parameters, quantization)


def split_shards(slots: Iterable[Slot], limit: int) -> list[list[Slot]]:
    """Split tensors into files of at most `limit` bytes, in order."""
    shards: list[list[Slot]] = []
    room = 0
    for slot in slots:
        if slot.nbytes > room or not shards:
            shards.append([])
            room = limit
        shards[-1].append(slot)
        room -= slot.nbytes
    return shards


def _encode(slots: list[Slot], advance: Advance) -> Iterable[bytes | memoryview]:
    yield format_header([output for slot in slots for output in slot.outputs], {"format": "mlx"})
    for slot in slots:
        for array, read in slot.encode():
            yield array.reshape(-1).view(np.uint8).data
            advance(read)


def _write_file(folder: Path, path: str, pieces: Iterable[bytes | memoryview]) -> FileInfo:
    """Write pieces as they come, and hash them on the way."""
    digest, size, target = hashlib.sha256(), 0, folder / path
    target.parent.mkdir(exist_ok=True)
    with target.open("wb", buffering=0) as file:
        for piece in pieces:
            _write_all(file, piece)
            digest.update(piece)
            size += len(piece)
    return FileInfo(path, size, digest.hexdigest())


def _write_all(file: io.FileIO, piece: bytes | memoryview) -> None:
    view = memoryview(piece)
    while len(view):
        view = view[file.write(view) or 0 :]
