"""Latents and text states computed before: one or more `*.safetensors` in a folder, or the same names as `.npy` files.

Each file has the tensors `latents` (n, C, H, W), `text` (n, L, D) and `mask` (n, L), and where needed `resolution`
(n, 2) and `aspect_ratio` (n, 1); float16, bfloat16 or float32, and the mask in integers too. A file `null.safetensors`
holds the empty caption as `text` (L, D) and `mask` (L,). As numpy's files they are `latents.npy`, ... with
`null_text.npy` and `null_mask.npy`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Final

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import Dataset

from moddit.checkpoint.safetensors import read_tensors
from moddit.errors import FormatError, MissingError, ShapeError, ValueRangeError
from moddit.record import open_regular
from moddit.spec import PixArtSpec
from torch_moddit.data import Item

NULL: Final = "null.safetensors"
_NULL_ARRAYS: Final = {"null_text": "text", "null_mask": "mask"}
_REQUIRED: Final = ("latents", "text", "mask")
_CONDITIONS: Final = ("resolution", "aspect_ratio")
_FLOATS: Final = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class _Stored:
    """A tensor and its file."""

    tensor: Tensor
    path: Path
    name: str

    def __str__(self) -> str:
        return f"[data] {self.path}: tensor {self.name!r}"


_Found = Mapping[str, _Stored]


class Precomputed(Dataset[Item]):
    """Latents and text states from files (see the module's docstring), held in memory in their own precision.

    Args:
        folder: of the files.
        spec: of the transformer, which the tensors have to fit.

    Raises:
        MissingError: no files, or one without a tensor that is needed.
        FormatError: a file is damaged, or cannot be read.
        ShapeError: a tensor does not fit the transformer, or others.
        ValueRangeError: a value is not finite.
    """

    def __init__(self, folder: Path, spec: PixArtSpec) -> None:
        parts, null = _read_safetensors(folder) if any(folder.glob("*.safetensors")) else _read_numpy(folder)
        names = (*_REQUIRED, *(_CONDITIONS if spec.use_additional_conditions else ()))
        for part in parts:
            _check_part(part, names, spec)
        self._null = None
        if null is not None:
            _check_null(null, parts[0], spec)
            self._null = {name: stored.tensor for name, stored in null.items()}
        self.tensors = {name: _concatenate([part[name] for part in parts]) for name in names}

    def __len__(self) -> int:
        return len(self.tensors["latents"])

    def __getitem__(self, index: int) -> Item:
        return {name: value[index].float() for name, value in self.tensors.items()}

    def null(self) -> Item | None:
        """Return the empty caption, or None if the folder has none."""
        return self._null


def _read_safetensors(folder: Path) -> tuple[list[_Found], _Found | None]:
    files = {path.name: _read_file(path) for path in sorted(folder.glob("*.safetensors"))}
    null = files.pop(NULL, None)
    if not files:
        raise MissingError(f"[data] {folder}: no data beside {NULL}; want another *.safetensors")
    return list(files.values()), null


def _read_file(path: Path) -> _Found:
    read_tensors(path)  # the library reads what is no regular file, too, and says less of a damaged one
    try:
        return {name: _Stored(tensor, path, name) for name, tensor in load_file(path).items()}
    except (OSError, KeyError) as error:  # unreadable, or a type that PyTorch has not
        raise FormatError(f"[data] {path}: cannot be read ({error})") from None


def _read_numpy(folder: Path) -> tuple[list[_Found], _Found | None]:
    found = {path.stem: _Stored(_read_array(path), path, path.stem) for path in sorted(folder.glob("*.npy"))}
    if not found:
        raise MissingError(f"[data] {folder}: no *.safetensors and no *.npy")
    null = {_NULL_ARRAYS[name]: found.pop(name) for name in list(found) if name in _NULL_ARRAYS}
    absent = [f"{name}.npy" for name in _REQUIRED if name not in found]
    absent += [f"{name}.npy" for name, own in _NULL_ARRAYS.items() if null and own not in null]
    if absent:
        raise MissingError(f"[data] {folder}: has no {', '.join(absent)}")
    return [found], null or None


def _read_array(path: Path) -> Tensor:
    try:
        open(path, "rb", opener=open_regular).close()
        # mapped first, so that a header cannot ask for more memory than the file has
        return torch.from_numpy(np.array(np.load(path, mmap_mode="r", allow_pickle=False)))
    except (OSError, ValueError, TypeError, EOFError, SyntaxError, TokenError, OverflowError, RecursionError) as error:
        raise FormatError(f"[data] {path}: not an array of numpy ({str(error)[:200]}); write it again") from None


def _check_part(part: _Found, names: Iterable[str], spec: PixArtSpec) -> None:
    """Raise if the tensors of a file do not fit the transformer, or each other."""
    where = next(iter(part.values())).path
    missing, more = sorted(set(names) - part.keys()), sorted(part.keys() - {*_REQUIRED, *_CONDITIONS})
    if missing or more:
        raise MissingError(f"[data] {where}: missing {missing}, unknown {more}, want {sorted(names)}")
    count, _, height, width = _shape(part["latents"], (None, spec.in_channels, None, None), "(n, C, H, W)")
    if height % spec.patch_size or width % spec.patch_size:
        raise ShapeError(f"{part['latents']} is {height} x {width}, want multiples of {spec.patch_size}")
    _, tokens, _ = _shape(part["text"], (count, None, spec.caption_channels), "(n, L, D)")
    _shape(part["mask"], (count, tokens), "(n, L)")
    for name, size in zip(_CONDITIONS, (2, 1), strict=True):
        if name in names:
            _shape(part[name], (count, size), f"(n, {size})")
    _check_numbers(part)


def _check_null(null: _Found, part: _Found, spec: PixArtSpec) -> None:
    where = next(iter(null.values())).path
    if set(null) != {"text", "mask"}:
        raise MissingError(f"[data] {where}: has {sorted(null)}, want the tensors mask and text")
    tokens = part["mask"].tensor.shape[1]
    _shape(null["text"], (tokens, spec.caption_channels), "(L, D)")
    _shape(null["mask"], (tokens,), "(L,)")
    _check_numbers(null)


def _shape(stored: _Stored, wanted: tuple[int | None, ...], words: str) -> tuple[int, ...]:
    """Check a shape, in which None is any size but 0."""
    shape = tuple(stored.tensor.shape)
    fits = len(shape) == len(wanted) and all(
        size >= 1 and size == (want or size) for size, want in zip(shape, wanted, strict=True)
    )
    if not fits:
        sizes = ", ".join("any" if want is None else str(want) for want in wanted)
        raise ShapeError(f"{stored} has shape {shape}, want {words} = ({sizes})")
    return shape


def _check_numbers(found: _Found) -> None:
    for name, stored in found.items():
        tensor = stored.tensor
        if tensor.dtype not in _FLOATS and (name != "mask" or tensor.is_floating_point() or tensor.is_complex()):
            wanted = ", ".join(str(dtype).removeprefix("torch.") for dtype in _FLOATS)
            raise FormatError(f"{stored} is {str(tensor.dtype).removeprefix('torch.')}, want {wanted}")
        if not bool(torch.isfinite(tensor).all()):
            raise ValueRangeError(f"{stored} is not finite (NaN or infinity); compute it again")


def _concatenate(parts: list[_Stored]) -> Tensor:
    first = parts[0]
    for part in parts[1:]:
        if part.tensor.shape[1:] != first.tensor.shape[1:] or part.tensor.dtype != first.tensor.dtype:
            raise ShapeError(
                f"{part} has rows {tuple(part.tensor.shape[1:])} of {part.tensor.dtype}, want "
                f"{tuple(first.tensor.shape[1:])} of {first.tensor.dtype} as in {first.path.name}"
            )
    return torch.cat([part.tensor for part in parts])
