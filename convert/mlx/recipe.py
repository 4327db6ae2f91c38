"""Which matrices a bundle for MLX stores in how many bits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from moddit.errors import ShapeError
from moddit.quantization import Packing
from moddit.record import escape, quote
from moddit.sensitivity import Layer, QuantReport, allocate
from moddit.tensors import Tensors


class Recipe(Protocol):
    """A way to choose."""

    def choose(self, component: str, tensors: Tensors, itemsize: int) -> dict[str, Packing]:
        """Choose for a component's tensors, whose scales have `itemsize` bytes; those left out stay whole."""


@dataclass(frozen=True)
class Uniform:
    """All that can be, alike."""

    packing: Packing

    def choose(self, component: str, tensors: Tensors, itemsize: int) -> dict[str, Packing]:  # noqa: ARG002 # as Recipe
        return {name: self.packing for name, info in tensors.items() if self.packing.fits(info)}


@dataclass(frozen=True)
class Mixed:
    """The more bits, the more a picture loses without them; so many in the mean over each component."""

    report: QuantReport
    where: str  # its file
    target: float

    def choose(self, component: str, tensors: Tensors, itemsize: int) -> dict[str, Packing]:
        """Choose.

        Raises:
            ShapeError: the report is one of another model.
            ValueRangeError: the target cannot be met.
        """
        layers = self.report.of(component)
        measured = {name for layer in layers for name in layer.tensors}
        packings = {loss.packing for layer in self.report.layers for loss in layer.losses}
        wanted = {name for name, info in tensors.items() if any(packing.fits(info) for packing in packings)}
        wrong = sorted(measured ^ wanted) or [name for layer in layers for name in _misfits(layer, tensors)]
        if wrong:
            raise ShapeError(
                f"[quantize] {escape(self.where)}: is of another model, which differs in {quote(wrong[0])} of the "
                f"{component}; measure this one with `mlx_moddit sensitivity`"
            )
        return allocate(layers, self.target, itemsize) if layers else {}


def _misfits(layer: Layer, tensors: Tensors) -> list[str]:
    """List the tensors of a layer if they have other shapes than it had."""
    infos = [tensors[name] for name in layer.tensors]
    fits = all(loss.fits(info) for loss in layer.losses for info in infos)
    return [] if fits and layer.weights == sum(math.prod(info.shape) for info in infos) else list(layer.tensors)
