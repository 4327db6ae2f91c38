"""A component's folder in a diffusers checkpoint: its configuration and its weights, whole or in shards."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from moddit.checkpoint.safetensors import read_tensors
from moddit.checkpoint.stored import StoredTensor
from moddit.errors import FormatError, MissingError


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        MissingError: there is no such file.
        FormatError: it is not a JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise MissingError(f"[source] {path}: no such file; want a whole diffusers pipeline folder") from None
    except (ValueError, RecursionError) as error:
        raise FormatError(f"[source] {path}: not JSON ({error}); copy or download the file again") from None
    if not isinstance(value, dict):
        raise FormatError(f"[source] {path}: got {type(value).__name__}, want a JSON object")
    return value


def read_weights(folder: Path, stem: str) -> tuple[dict[str, StoredTensor], list[Path]]:
    """Open the weights of a component.

    Args:
        folder: of the component.
        stem: name of the weight file without its suffix.

    Returns:
        the tensors by their name in the files, and the files, an index among them.

    Raises:
        MissingError: no safetensors files, or one that the index names is absent.
        FormatError: a damaged file, or an index that disagrees with its files.
    """
    index = folder / f"{stem}.safetensors.index.json"
    if index.is_file():
        return _read_shards(index)
    single = folder / f"{stem}.safetensors"
    if not single.is_file():
        found = sorted(path.name for path in folder.iterdir() if path.is_file())
        raise MissingError(
            f"[source] {single}: no such file, nor {index.name}; the folder has {', '.join(found) or 'no files'}; "
            "save the model with save_pretrained(..., safe_serialization=True) and without a variant"
        )
    return dict(read_tensors(single)), [single]


def _read_shards(index: Path) -> tuple[dict[str, StoredTensor], list[Path]]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(_is_file_name(name) for name in weight_map.values()):
        raise FormatError(f"[source] {index}: weight_map is not an object of file names; download the file again")
    shards = {name: read_tensors(index.parent / name) for name in sorted(set(weight_map.values()))}
    tensors: dict[str, StoredTensor] = {}
    for shard in shards.values():
        repeated = tensors.keys() & shard.keys()
        if repeated:
            raise FormatError(f"[source] {index}: tensors are in several files: {_listing(repeated)}")
        tensors |= shard
    wrong = [name for name, file in weight_map.items() if name not in shards[file]]
    wrong += tensors.keys() - weight_map.keys()
    if wrong:
        raise FormatError(
            f"[source] {index}: index and files disagree about {_listing(wrong)}; download index and files again"
        )
    return tensors, [index, *(index.parent / name for name in shards)]


def _is_file_name(value: object) -> bool:
    return isinstance(value, str) and value not in ("", ".", "..") and not set(value) & {"/", "\\", "\0"}


def _listing(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
