"""Latents and text states computed before: one or more `*.safetensors` in a folder, or the same names as `.npy` files.

Each file has the tensors `latents` (n, C, H, W) and what the model is conditioned on:

    of a text     `text` (n, L, D), `mask` (n, L), and where needed `resolution` (n, 2) and `aspect_ratio` (n, 1)
    of a class    `labels` (n,), in integers

They are float16, bfloat16 or float32, the mask in integers too. A file `null.safetensors` holds the empty caption as
`text` (L, D) and `mask` (L,). As numpy's files they are `latents.npy`, ... with `null_text.npy` and `null_mask.npy`.
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
from moddit.models.transformer import SampleShapes, TransformerSpec
from moddit.record import open_regular
from torch_moddit.data import Item

NULL: Final = "null.safetensors"
_NULL_ARRAYS: Final = {"null_text": "text", "null_mask": "mask"}
_LATENTS: Final = "latents"
_SIZES: Final = ("resolution", "aspect_ratio")  # which no null condition has
_LABELS: Final = "labels"
_INTEGERS: Final = ("mask", _LABELS)
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

    Raises:
        MissingError: no files, or one without a tensor that is needed.
        FormatError: a file is damaged, or cannot be read.
        ShapeError: a tensor does not fit the transformer of `spec`, or others.
        ValueRangeError: a value is not finite.
    """

    def __init__(self, folder: Path, spec: TransformerSpec) -> None:
        names = (_LATENTS, *spec.sample_shapes())
        is_safe = any(folder.glob("*.safetensors"))
        parts, null = _read_safetensors(folder) if is_safe else _read_numpy(folder, names)
        for part in parts:
            _check_part(part, spec)
        self._null = None
        if null is not None:
            _check_null(null, parts[0], spec)
            self._null = {name: stored.tensor for name, stored in null.items()}
        self.tensors = {name: _concatenate([part[name] for part in parts]) for name in names}

    def __len__(self) -> int:
        return len(self.tensors["latents"])

    def __getitem__(self, index: int) -> Item:
        values = {name: tensor[index] for name, tensor in self.tensors.items()}
        return {name: value.long() if name == _LABELS else value.float() for name, value in values.items()}

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


def _read_numpy(folder: Path, names: Iterable[str]) -> tuple[list[_Found], _Found | None]:
    found = {path.stem: _Stored(_read_array(path), path, path.stem) for path in sorted(folder.glob("*.npy"))}
    if not found:
        raise MissingError(f"[data] {folder}: no *.safetensors and no *.npy")
    null = {_NULL_ARRAYS[name]: found.pop(name) for name in list(found) if name in _NULL_ARRAYS}
    absent = [f"{name}.npy" for name in names if name not in found]
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


def _check_part(part: _Found, spec: TransformerSpec) -> None:
    """Raise if the tensors of a file do not fit the transformer, or each other."""
    where = next(iter(part.values())).path
    shapes = spec.sample_shapes()
    missing, more = sorted({_LATENTS, *shapes} - part.keys()), sorted(part.keys() - {_LATENTS, *shapes, *_SIZES})
    if missing or more:
        raise MissingError(f"[data] {where}: missing {missing}, unknown {more}, want {sorted({_LATENTS, *shapes})}")
    count, _, height, width = _shape(part[_LATENTS], (None, spec.latent_channels, None, None), "(n, C, H, W)")
    if height % spec.patch_size or width % spec.patch_size:
        raise ShapeError(f"{part[_LATENTS]} is {height} x {width}, want multiples of {spec.patch_size}")
    _check_shapes(part, {name: ("n", *shape) for name, shape in shapes.items()}, {"n": count})
    _check_numbers(part)
    if _LABELS in shapes:
        labels, most = part[_LABELS], spec.num_classes  # which stands for no class
        least, largest = int(labels.tensor.min()), int(labels.tensor.max())
        if least < 0 or largest > most:
            raise ValueRangeError(f"{labels} has values {least}..{largest}, want numbers of classes, 0..{most}")


def _check_null(null: _Found, part: _Found, spec: TransformerSpec) -> None:
    where = next(iter(null.values())).path
    shapes = {name: shape for name, shape in spec.sample_shapes().items() if name not in _SIZES}
    if null.keys() != shapes.keys():
        raise MissingError(f"[data] {where}: has {sorted(null)}, want the tensors {' and '.join(sorted(shapes))}")
    lengths = {size: part[name].tensor.shape[1 + axis] for name in shapes for axis, size in enumerate(shapes[name])}
    _check_shapes(null, shapes, {size: length for size, length in lengths.items() if isinstance(size, str)})
    _check_numbers(null)


def _check_shapes(found: _Found, shapes: SampleShapes, known: dict[str, int]) -> None:
    """Compare shapes in which letters stand for sizes; one that is not known yet is the first tensor's."""
    for name, shape in shapes.items():
        wanted = tuple(known.get(size) if isinstance(size, str) else size for size in shape)
        sizes = _shape(found[name], wanted, f"({', '.join(map(str, shape))})")
        known |= {size: got for size, got in zip(shape, sizes, strict=True) if isinstance(size, str)}


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
        is_integer = not tensor.is_floating_point() and not tensor.is_complex() and tensor.dtype != torch.bool
        if not (is_integer and name in _INTEGERS) and (tensor.dtype not in _FLOATS or name == _LABELS):
            floats = ", ".join(str(dtype).removeprefix("torch.") for dtype in _FLOATS)
            wanted = "integers" if name == _LABELS else floats
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
