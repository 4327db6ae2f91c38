"""Tensors that are still on disk, whatever format holds them, and those that others are made of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray


class StoredTensor(Protocol):
    """A tensor that is read when asked for."""

    @property
    def path(self) -> Path:
        """File that holds it."""

    @property
    def name(self) -> str:
        """Its name in that file."""

    @property
    def dtype(self) -> str:
        """Of its numbers, as safetensors writes it: "F32", "F16", "BF16", ..."""

    @property
    def shape(self) -> tuple[int, ...]:
        """As PyTorch has it."""

    @property
    def nbytes(self) -> int:
        """Bytes of its numbers."""

    def read(self, first: int = 0, last: int | None = None) -> NDArray[Any]:
        """Read the rows first..last of the first axis, bfloat16 as its bits (uint16).

        Raises:
            FormatError: the file does not hold them any more.
        """


@dataclass(frozen=True)
class Rows:
    """Some rows of a tensor, as a tensor: one of several matrices that are stored as one."""

    whole: StoredTensor
    start: int
    stop: int

    @property
    def path(self) -> Path:
        return self.whole.path

    @property
    def name(self) -> str:
        return self.whole.name

    @property
    def dtype(self) -> str:
        return self.whole.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.stop - self.start, *self.whole.shape[1:])

    @property
    def nbytes(self) -> int:
        return self.whole.nbytes // max(1, self.whole.shape[0]) * (self.stop - self.start)

    def read(self, first: int = 0, last: int | None = None) -> NDArray[Any]:
        last = self.stop - self.start if last is None else last
        return self.whole.read(self.start + first, self.start + last)
