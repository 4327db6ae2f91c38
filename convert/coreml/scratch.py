"""How weights stay out of memory: packed ones wait in a file, a constant makes its numbers when they are written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Kept:
    """An array in a file."""

    file: IO[bytes]
    offset: int  # bytes
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @classmethod
    def of(cls, array: Array, file: IO[bytes]) -> Self:
        """Write an array to the end of a file; raise OSError if it cannot be written."""
        offset = file.seek(0, 2)
        file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        return cls(file, offset, array.shape, array.dtype)

    def read(self) -> Array:
        array = np.empty(self.shape, self.dtype)
        self.file.seek(self.offset)
        count = self.file.readinto(array.reshape(-1).view(np.uint8).data)  # type: ignore[attr-defined]
        assert count == array.nbytes
        return array


class Deferred(np.ndarray):
    """Has shape and dtype of an array that does not exist yet, and takes no memory.

    coremltools writes a constant by `flatten`, once for all functions that share it; only then is the array made.
    """

    make: Callable[[], Array]

    @classmethod
    def of(cls, shape: tuple[int, ...], dtype: np.dtype[Any], make: Callable[[], Array]) -> Deferred:
        array = np.broadcast_to(np.zeros((), dtype), shape).view(cls)
        array.make = make
        return array

    def flatten(self, order: Any = "C") -> Array:
        array = self.make()
        assert (array.shape, array.dtype, order) == (self.shape, self.dtype, "C")
        return np.ascontiguousarray(array).reshape(-1)
