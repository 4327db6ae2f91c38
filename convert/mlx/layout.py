"""How a bundle for MLX stores each tensor: dtype, order of axes, quantisation (docs/format.md)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from convert.mlx.quantize import quantize
from convert.mlx.recipe import Recipe
from moddit.checkpoint.parts import Part
from moddit.checkpoint.precision import DTYPES, cast, widen
from moddit.checkpoint.stored import ITEM_BYTES, StoredTensor
from moddit.quantization import MXFP4, Packing
from moddit.tensors import UNCOMPRESSED, Role, TensorInfo, is_precise

_CHUNK_VALUES: Final = 1 << 22  # converted at a time: 16 MiB in float32

Output = tuple[str, str, tuple[int, ...]]  # name, dtype, shape in the file


@dataclass(frozen=True)
class Choices:
    """What a user chooses."""

    dtype: str = "float16"  # of the large tensors, a key of DTYPES
    recipe: Recipe | None = None  # for the matrices of transformer and text encoder, which otherwise stay whole


@dataclass(frozen=True)
class Slot:
    """One canonical tensor on its way into a bundle."""

    name: str
    info: TensorInfo
    source: StoredTensor
    dtype: str  # in the file; of scales and biases in affine mode
    packing: Packing | None = None

    @property
    def outputs(self) -> tuple[Output, ...]:
        """What the file holds of it, in order."""
        shape = self.info.shape
        if self.packing is None:
            return ((self.name, self.dtype, (shape[0], *shape[2:], shape[1]) if self._is_transposed else shape),)
        (words, *others), scale = self.packing.parts(self.name, shape).items(), self._scale_dtype
        return ((words[0], "U32", words[1]), *((name, scale, shape) for name, shape in others))

    @property
    def nbytes(self) -> int:
        return sum(ITEM_BYTES[dtype] * math.prod(shape) for _, dtype, shape in self.outputs)

    def encode(self) -> Iterator[tuple[NDArray[Any], int]]:
        """Read and convert the tensor in pieces: the bytes of `outputs` in order, and how many of the source they took.

        Raises:
            ValueRangeError: a value is NaN or infinite, or becomes so in the new dtype.
        """
        held: list[list[NDArray[Any]]] = []  # scales and biases, which follow all words
        rows = self.info.shape[0]
        step = max(1, _CHUNK_VALUES * rows // max(1, math.prod(self.info.shape)))
        for first in range(0, rows, step):
            raw = self.source.read(first, min(rows, first + step))
            array = cast(raw, self.source, self.dtype)
            if self.packing is None:
                yield np.ascontiguousarray(np.moveaxis(array, 1, -1) if self._is_transposed else array), raw.nbytes
                continue
            words, *rest = quantize(widen(array, self.dtype), self.dtype, self.packing)
            held.append(rest)
            yield words, raw.nbytes
        for parts in zip(*held, strict=True):
            for part in parts:
                yield part, 0

    @property
    def _scale_dtype(self) -> str:
        return "U8" if self.packing is not None and self.packing.mode == MXFP4 else self.dtype

    @property
    def _is_transposed(self) -> bool:
        """Convolutions: (out, in, height, width) -> (out, height, width, in)."""
        return self.info.role is Role.CONV and len(self.info.shape) == 4


def plan_slots(component: str, part: Part, choices: Choices) -> list[Slot]:
    """Decide how each tensor of a component is stored.

    Tensors of four-byte numbers come first, and scales and biases of two bytes come in pairs, scales of one byte in
    fours (`Packing.fits`), so that every tensor is aligned to its own numbers.

    Raises:
        InputError: as `Recipe.choose`.
    """
    dtype, packings = DTYPES[choices.dtype], {}
    if choices.recipe is not None and component not in UNCOMPRESSED:
        packings = choices.recipe.choose(component, part.wanted, ITEM_BYTES[dtype])
    slots = [_plan_slot(name, part, dtype, packings.get(name)) for name in part.wanted]
    return sorted(slots, key=lambda slot: slot.packing is None and ITEM_BYTES[slot.dtype] < 4)


def _plan_slot(name: str, part: Part, dtype: str, packing: Packing | None) -> Slot:
    info, source = part.wanted[name], part.tensors[name]
    if is_precise(name, part.wanted) and ITEM_BYTES[dtype] < 4:
        dtype = source.dtype
    return Slot(name, info, source, dtype, packing)
