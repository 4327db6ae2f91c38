"""The weight files of a component, found as diffusers and transformers find them, and the JSON beside them.

Which of several files counts differs between the two: diffusers reads an index before a single file, transformers a
single file before an index. Within an index both read every tensor of every file that it names, whatever it says about
where a tensor is, and of a tensor that is there twice the one in the later file.

Source: diffusers 0.42, models/modeling_utils.py, `from_pretrained`, and utils/hub_utils.py; transformers 5.24,
modeling_utils.py, `_get_resolved_checkpoint_files`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from moddit import record
from moddit.bounds import JSON_BYTES
from moddit.checkpoint.foreign import check_tensors, explain_folder
from moddit.checkpoint.pickled import read_pickle
from moddit.checkpoint.safetensors import read_tensors
from moddit.checkpoint.stored import StoredTensor
from moddit.errors import FormatError, MissingError
from moddit.record import Origin, quote

PICKLE_SUFFIXES: Final = (".bin", ".pth", ".pt", ".ckpt")


@dataclass(frozen=True)
class Naming:
    """How a library names and ranks the weight files of a component."""

    safe: str  # the single file, of safetensors
    pickled: str  # the single file, of torch.save
    index_first: bool  # read an index before a single file


DIFFUSERS: Final = Naming("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin", index_first=True)
TRANSFORMERS: Final = Naming("model.safetensors", "pytorch_model.bin", index_first=False)


@dataclass(frozen=True)
class Weights:
    """The opened weights of a component."""

    tensors: Mapping[str, StoredTensor]  # by their names in the files
    files: tuple[Path, ...]  # an index among them
    notes: tuple[str, ...] = ()  # what a user should know, one sentence each


def read_json(path: Path, most: int = JSON_BYTES) -> dict[str, Any]:
    """Read a JSON object of another program, of at most as many bytes.

    Raises:
        MissingError: there is no such file.
        FormatError: it is not a JSON object, is too large, or cannot be read.
    """
    origin = Origin("source", str(path), "copy or download the file again")
    value = record.read_json(path, origin, absent="want a whole diffusers pipeline folder", most=most, strict=False)
    if not isinstance(value, dict):
        raise FormatError(f"{origin}: got {quote(value)}, want a JSON object")
    return value


def read_optional_json(path: Path, most: int = JSON_BYTES) -> dict[str, Any] | None:
    """As `read_json`, but None if nothing has this name; a folder or a link to nothing there is still an error."""
    return read_json(path, most) if os.path.lexists(path) else None


def read_config(path: Path) -> dict[str, Any]:
    """Read a configuration of diffusers, without keys that it lists as standing for defaults; raises as `read_json`."""
    config = read_json(path)
    defaults = config.pop("_use_default_values", None) or []
    if not isinstance(defaults, list):
        raise FormatError(f"[source] {path}: _use_default_values is {quote(defaults)}, want a list of keys")
    return {key: value for key, value in config.items() if key not in defaults}


def read_file(path: Path) -> dict[str, StoredTensor]:
    """Open one weight file, of safetensors or of torch.save, by its suffix.

    Raises:
        MissingError: there is no such file.
        FormatError: it is damaged.
    """
    if not path.is_file():
        raise _missing(path, "copy or download the file again")
    if path.suffix in PICKLE_SUFFIXES:
        return dict(read_pickle(path))
    return dict(read_tensors(path))


def read_weights(folder: Path, naming: Naming, variant: str | None = None) -> Weights:
    """Open the weights of a component; without files of a variant, such as "fp16" in their names, the plain ones.

    Raises:
        MissingError: no weight files, or one that the index names is absent.
        FormatError: a damaged file or index.
        UnsupportedError: as `check_tensors`.
    """
    for tried in dict.fromkeys((variant, None)):
        found = [path for path in _candidates(folder, naming, tried) if path.is_file() or path.is_symlink()]
        if found:
            if not found[0].exists():  # but a link, as an interrupted download leaves it
                raise _missing(found[0], "")
            notes = (
                () if tried == variant else (f"{folder.name} has no variant {variant!r}: its plain weights are used",)
            )
            weights = _open(found[0], [path for path in found[1:] if path.is_file()], notes)
            check_tensors(weights.tensors, str(folder))
            return weights
    raise explain_folder(folder, naming.safe)


def _missing(path: Path, wanted: str) -> MissingError:
    return record.absent_file(path, Origin("source", str(path)), wanted)


def _candidates(folder: Path, naming: Naming, variant: str | None) -> Iterator[Path]:
    """List the files that could be the weights, the one that counts first."""
    for single in (naming.safe, naming.pickled):
        index = f"{single}.index.json"
        names = [_with_variant(single, variant), _with_variant(index, variant)]
        if naming.index_first:
            names.reverse()
        if variant is not None:  # diffusers before 0.31
            names.append(f"{single}.{variant}.index.json")
        yield from (folder / name for name in names)


def _with_variant(name: str, variant: str | None) -> str:
    stem, _, suffix = name.rpartition(".")
    return name if variant is None else f"{stem}.{variant}.{suffix}"


def _open(path: Path, others: list[Path], notes: tuple[str, ...]) -> Weights:
    if path.suffix != ".json":
        return Weights(read_file(path), (path,), notes)
    names = _shards(path)
    absent = [name for name in names if not (path.parent / name).is_file()]
    single = next((other for other in others if other.suffix != ".json"), None)
    if absent and single is not None:
        left = f"{path.name} is left over from another save: {single.name} is used"
        return Weights(read_file(single), (single,), (*notes, left))
    if absent:
        raise _missing(path.parent / absent[0], f"{path.name} lists it; download the checkpoint again")
    if single is not None:
        notes = (*notes, f"{path.parent.name} has {path.name} and {single.name}: the index is used, as in diffusers")
    tensors: dict[str, StoredTensor] = {}
    for name in names:
        shard = read_file(path.parent / name)
        repeated = sorted(tensors.keys() & shard.keys())
        if repeated:
            notes = (*notes, f"{repeated[0]} is in several files of {path.parent.name}: the one in {name} is used")
        tensors |= shard
    return Weights(tensors, (path, *(path.parent / name for name in names)), notes)


def _shards(index: Path) -> list[str]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(map(_is_file_name, weight_map.values())):
        raise FormatError(f"[source] {index}: weight_map is not an object of file names; download the file again")
    return sorted(set(weight_map.values()))


def _is_file_name(value: object) -> bool:
    return isinstance(value, str) and value not in ("", ".", "..") and not set(value) & {"/", "\\", "\0"}
