"""Tensors that are still on disk, whatever format holds them, and those that others are made of."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from numpy.typing import NDArray

ITEM_BYTES: Final[Mapping[str, int]] = {  # by dtype, as safetensors writes it
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("BOOL", "I8", "U8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
}


@dataclass(frozen=True)
class StoredTensor(ABC):
    """A tensor that is read when asked for."""

    path: Path  # that holds it
    name: str  # in that file
    dtype: str  # a key of ITEM_BYTES, or as torch calls one that safetensors has not
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    @abstractmethod
    def read(self, first: int = 0, last: int | None = None) -> NDArray[Any]:
        """Read the rows first..last of the first axis, bfloat16 as its bits (uint16).

        Raises:
            FormatError: the file does not hold them any more.
        """


@dataclass(frozen=True)
class Rows(StoredTensor):
    """Some rows of a tensor, as a tensor: one of several matrices that are stored as one."""

    whole: StoredTensor
    start: int

    @classmethod
    def of(cls, whole: StoredTensor, start: int, stop: int) -> Self:
        return cls(whole.path, whole.name, whole.dtype, (stop - start, *whole.shape[1:]), whole, start)

    def read(self, first: int = 0, last: int | None = None) -> NDArray[Any]:
        last = self.shape[0] if last is None else last
        return self.whole.read(self.start + first, self.start + last)
