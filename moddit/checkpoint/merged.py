"""Tensors with something added: merged row by row while they are read, so that nothing merged is ever held.

Source: peft/tuners/lora/layer.py `get_delta_weight` and `merge`, for what a LoRA adds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from moddit.checkpoint.precision import check_finite, widen
from moddit.checkpoint.stored import StoredTensor
from moddit.errors import ValueRangeError

_FLOAT_BYTES: Final = 4
_CHUNK_BYTES: Final = 1 << 20  # merged at once, so that no read needs much more than what it returns


@dataclass(frozen=True)
class Addition:
    """What is added to a tensor: strength * up @ down, or strength * up where there is no `down` (a bias)."""

    up: StoredTensor  # B: (out, rank), of a convolution (out, rank, 1, 1); of a bias (out,)
    down: StoredTensor | None  # A: (rank, in), of a convolution (rank, in, height, width)
    strength: float

    def rows(self, first: int, last: int, down: NDArray[np.float32] | None) -> NDArray[np.float32]:
        """Compute the rows first..last of what is added, with all of A; of B only these are read.

        Shapes:
            down (rank, in * height * width) -> (last - first, in * height * width); without it -> (last - first,)

        Raises:
            ValueRangeError: B or the product is not finite.
            FormatError: the file does not hold B any more.
        """
        up = _read_finite(self.up, first, last)
        with np.errstate(over="ignore", invalid="ignore"):
            change = up * np.float32(self.strength)
            if down is not None:
                change = change.reshape(last - first, -1) @ down
        if not np.isfinite(change).all():
            raise ValueRangeError(
                f"[lora] {self.up.path}: {self.up.name!r} at strength {self.strength:g} is too large for float32; "
                "use a smaller scale"
            )
        return change


@dataclass(frozen=True)
class MergedTensor(StoredTensor):
    """A tensor with an addition, as a tensor of float32; the base may be one itself."""

    base: StoredTensor
    addition: Addition

    @classmethod
    def of(cls, base: StoredTensor, addition: Addition) -> Self:
        return cls(base.path, base.name, "F32", base.shape, base, addition)

    def read(self, first: int = 0, last: int | None = None) -> NDArray[Any]:
        """Read and merge the rows first..last of the first axis; raises as `Addition.rows`."""
        rows, *rest = self.shape
        last = rows if last is None else last
        merged = np.empty((last - first, *rest), np.float32)
        matrix = self.addition.down
        down = None if matrix is None else _read_finite(matrix).reshape(matrix.shape[0], -1)
        step = max(1, _CHUNK_BYTES // max(1, _FLOAT_BYTES * math.prod(rest)))
        for start in range(first, last, step):
            stop = min(last, start + step)
            part = widen(self.base.read(start, stop), self.base.dtype)
            change = self.addition.rows(start, stop, down).reshape(part.shape)
            np.add(part, change, out=merged[start - first : stop - first])
        return merged


@dataclass(frozen=True)
class DoubledTensor(StoredTensor):
    """Twice a tensor, as a tensor of float32."""

    base: StoredTensor

    @classmethod
    def of(cls, base: StoredTensor) -> Self:
        return cls(base.path, base.name, "F32", base.shape, base)

    def read(self, first: int = 0, last: int | None = None) -> NDArray[Any]:
        return 2 * widen(self.base.read(first, last), self.base.dtype)


def _read_finite(tensor: StoredTensor, first: int = 0, last: int | None = None) -> NDArray[np.float32]:
    raw = tensor.read(first, last)
    check_finite("lora", raw, tensor)
    return widen(raw, tensor.dtype)
