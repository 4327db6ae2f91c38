"""Weights that torch.save wrote (.pth, .pt, .ckpt, .bin): read by torch, which executes nothing that is in them."""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from moddit.checkpoint.stored import StoredTensor
from moddit.errors import FormatError, MissingError

# Keys under which training programs put a model's weights beside the state of the training.
NESTED: Final = ("state_dict", "model", "module", "params")
_ADVICE: Final = "copy or download the file again"
_DAMAGED: Final = (
    *(RuntimeError, EOFError, OSError, struct.error, zipfile.BadZipFile),
    *(ValueError, KeyError, IndexError, AttributeError, TypeError, AssertionError, OverflowError),
)


@dataclass(frozen=True, eq=False)
class PickledTensor(StoredTensor):
    """One tensor of a file; its numbers are mapped into memory, not read, where the format allows it."""

    values: Any  # torch.Tensor

    def read(self, first: int = 0, last: int | None = None) -> NDArray[Any]:
        import torch

        rows = self.values[first:last] if self.shape else self.values
        rows = rows.resolve_neg().contiguous()
        array: NDArray[Any] = (rows.view(torch.uint16) if self.dtype == "BF16" else rows).numpy()
        return np.array(array)  # a copy: the mapped pages can then be dropped


def read_pickle(path: Path) -> dict[str, PickledTensor]:
    """Read the weights in a file of torch.save, under their own names.

    Raises:
        MissingError: torch is not installed.
        FormatError: the file is damaged, holds more than tensors and plain values, or no tensors.
    """
    try:
        import torch
    except ModuleNotFoundError:
        raise MissingError(
            f"[source] {path}: reading this format needs torch; pip install torch, or save the weights as safetensors"
        ) from None
    try:
        is_archive = zipfile.is_zipfile(path)
        sizes = _record_sizes(path) if is_archive else None
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive)
    except pickle.UnpicklingError:
        raise FormatError(
            f"[source] {path}: not readable without executing what is in it, or damaged; save the weights alone, as "
            "safetensors or torch.save(model.state_dict(), ...)"
        ) from None
    except _DAMAGED as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise FormatError(f"[source] {path}: not a file of torch.save ({reason}); {_ADVICE}") from None
    tensors = _tensors(found)
    if not tensors:
        raise FormatError(f"[source] {path}: has no tensors by name, got {_describe(found)}; want a state_dict")
    if sizes is not None:
        _check_whole(path, tensors, sizes)
    return {
        name: PickledTensor(path, name, _dtype(value), tuple(value.shape), value.detach())
        for name, value in tensors.items()
    }


def _record_sizes(path: Path) -> Counter[int]:
    """Count the sizes of an archive's members; raises ValueError if one is packed: unpacked it could be any size."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    packed = [member.filename for member in members if member.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise ValueError(f"member {packed[0]!a} is compressed, which torch.save does not do")
    return Counter(member.file_size for member in members)


def _check_whole(path: Path, tensors: Mapping[str, Any], sizes: Counter[int]) -> None:
    """Raise FormatError if an archive has no member of the size of a tensor's storage: torch would read beyond it."""
    found = {name: value.untyped_storage() for name, value in tensors.items() if _is_plain(value)}
    storages = {storage.data_ptr(): (storage.nbytes(), name) for name, storage in found.items()}
    left = sizes.copy()
    for size, name in storages.values():
        if not left[size]:
            raise FormatError(f"[source] {path}: has no member with the {size} bytes of tensor {name!a}; {_ADVICE}")
        left[size] -= 1


def _tensors(found: object) -> dict[str, Any]:
    """Pick the named tensors of a state dict, wherever training programs put one."""
    if not isinstance(found, Mapping):
        return {}
    for key in NESTED:
        if isinstance(found.get(key), Mapping) and (inner := _tensors(found[key])):
            return inner
    return {name: value for name, value in found.items() if isinstance(name, str) and hasattr(value, "untyped_storage")}


def _dtype(value: Any) -> str:
    """Name a tensor's dtype as safetensors does; as torch does, if it has none there or no plain numbers."""
    import torch

    names = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
    if not _is_plain(value):
        return f"{value.dtype} ({'meta' if value.is_meta else value.layout})"
    return names.get(value.dtype, str(value.dtype))


def _is_plain(value: Any) -> bool:
    import torch

    return value.layout == torch.strided and not value.is_meta


def _describe(found: object) -> str:
    return f"a dict with {sorted(map(str, found))[:5]}" if isinstance(found, Mapping) else type(found).__name__
