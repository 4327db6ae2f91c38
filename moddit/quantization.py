"""Matrices in fewer bits: which modes there are, and what a bundle holds of one matrix (docs/format.md)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Final

from msgspec import Meta

from moddit.bounds import TENSORS, WIDTH, Name, choice
from moddit.errors import FormatError, UnsupportedError
from moddit.tensors import TensorInfo

AFFINE: Final = "affine"
MXFP4: Final = "mxfp4"


@dataclass(frozen=True)
class Mode:
    """A way to store numbers in fewer bits."""

    backend: str
    bits: tuple[int, ...]
    group_sizes: tuple[int, ...] = ()  # any, if none are listed


MODES: Final[Mapping[str, Mode]] = {
    AFFINE: Mode("mlx", (3, 4, 5, 6, 8), (32, 64, 128)),
    MXFP4: Mode("mlx", (4,), (32,)),
    "symmetric": Mode("coreml", (4, 8)),
    "palette": Mode("coreml", (4, 6)),
}
BITS: Final = MODES[AFFINE].bits


@dataclass(frozen=True)
class Packing:
    """How the numbers of a matrix are stored."""

    bits: Annotated[int, Meta(ge=1, le=16)]
    group_size: Annotated[int, Meta(ge=0, le=WIDTH)]  # that share a scale (0: a whole row), or rows with one palette
    mode: Annotated[str, choice(*MODES)]

    def __post_init__(self) -> None:
        mode = MODES[self.mode]
        if self.bits not in mode.bits:
            raise UnsupportedError(
                f"[manifest] quantization of mode {self.mode} has {self.bits} bits, want one of {mode.bits}"
            )
        if mode.group_sizes and self.group_size not in mode.group_sizes:
            raise UnsupportedError(
                f"[manifest] group_size of mode {self.mode} is {self.group_size}, want one of {mode.group_sizes}"
            )

    @property
    def packing(self) -> Packing:
        """The same, of whatever has one, without the rest."""
        return Packing(self.bits, self.group_size, self.mode)

    @property
    def words(self) -> str:
        """Say it to people."""
        return f"{f'{self.bits}-bit' if self.mode == AFFINE else self.mode} in groups of {self.group_size}"

    def fits(self, info: TensorInfo) -> bool:
        """Whether a bundle for MLX may have a tensor so: a matrix product on tokens, whose rows are whole groups.

        A byte for each scale would leave what follows the scales of a few odd matrices at odd places.
        """
        if not info.role.is_quantisable or info.shape[1] % self.group_size:
            return False
        return self.mode != MXFP4 or math.prod(info.shape) // self.group_size % 4 == 0

    def parts(self, name: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """List what a bundle for MLX holds of a matrix, in order: words of 32 bits, then a scale for each group, and
        in affine mode a bias.

        Shapes: (rows, columns) -> words (rows, columns * bits / 32), others (rows, columns / group_size)
        """
        rows, columns = shape
        kinds = ("scales", "biases") if self.mode == AFFINE else ("scales",)
        groups = dict.fromkeys((part_name(name, kind) for kind in kinds), (rows, columns // self.group_size))
        return {name: (rows, columns * self.bits // 32), **groups}

    def bits_per_weight(self, itemsize: int) -> float:
        """Count the bits of a weight with its share of scale and bias, of `itemsize` bytes each in affine mode."""
        return self.bits + 8 * (2 * itemsize if self.mode == AFFINE else 1) / self.group_size


def part_name(name: str, kind: str) -> str:
    """Name the scales or biases of the matrix NAME.weight."""
    return name.removesuffix("weight") + kind


@dataclass(frozen=True)
class Quantization(Packing):
    """One packing for the tensors listed by name; those that no quantization of a component lists stay as they are."""

    tensors: Annotated[tuple[Name, ...], Meta(min_length=1, max_length=TENSORS)]


def group(packings: Mapping[str, Packing]) -> tuple[Quantization, ...]:
    """List tensors by their packing, the most bits first."""
    by_packing: dict[Packing, list[str]] = {}
    for name, packing in packings.items():
        by_packing.setdefault(packing, []).append(name)
    ordered = sorted(by_packing.items(), key=lambda item: -item[0].bits)
    return tuple(Quantization(item.bits, item.group_size, item.mode, tuple(names)) for item, names in ordered)


def packings(quantization: Iterable[Quantization]) -> dict[str, Packing]:
    """Find how each quantised tensor of a component is stored.

    Raises:
        FormatError: a tensor is listed twice.
    """
    found: dict[str, Packing] = {}
    for item in quantization:
        for name in item.tensors:
            if name in found:
                raise FormatError("[manifest] quantization lists tensors twice")
            found[name] = item.packing
    return found


def mean_bits(quantization: Iterable[Quantization], tensors: Mapping[str, TensorInfo]) -> float | None:
    """Average the bits of a component's quantised weights, scales and biases left out; None if none are."""
    counts = [
        (item.bits, math.prod(tensors[name].shape)) for item in quantization for name in item.tensors if name in tensors
    ]
    total = sum(count for _, count in counts)
    return sum(bits * count for bits, count in counts) / total if total else None
