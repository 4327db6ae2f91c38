"""How much a picture loses with one product of a model in fewer bits, and which bits to give to each of them.

`mlx_moddit sensitivity` writes a report, and `convert` reads it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Self

from msgspec import Meta

from moddit.bounds import PARAMETERS, TENSORS, Name, Sha256, Text, choice
from moddit.errors import ValueRangeError
from moddit.quantization import Packing
from moddit.record import Origin, decode, read_json

FORMAT: Final = "moddit quant report"
REPORT_VERSION: Final = 1
LARGEST: Final = 1e30  # error of a layer
_ADVICE: Final = "write it with `mlx_moddit sensitivity`"
_SLACK: Final = 1e-9  # of a budget, for rounding


@dataclass(frozen=True)
class Loss(Packing):
    """What a packing of one layer costs in the result."""

    error: Annotated[float, Meta(ge=0, le=LARGEST)]  # squared, of the last latents, as a share of their square


@dataclass(frozen=True)
class Layer:
    """Matrices that are one product at run time, and are stored alike."""

    component: Name
    tensors: Annotated[tuple[Name, ...], Meta(min_length=1, max_length=TENSORS)]
    weights: Annotated[int, Meta(ge=1, le=PARAMETERS)]
    losses: Annotated[tuple[Loss, ...], Meta(min_length=1, max_length=64)]


@dataclass(frozen=True)
class QuantReport:
    """What every packing of every layer costs."""

    format: Annotated[str, choice(FORMAT)]
    version: Annotated[int, Meta(ge=REPORT_VERSION, le=REPORT_VERSION)]
    source: Text  # the checkpoint
    source_sha256: Sha256
    pictures: Annotated[tuple[Text, ...], Meta(min_length=1, max_length=1000)]  # that were drawn
    steps: Annotated[int, Meta(ge=1, le=1000)]
    layers: Annotated[tuple[Layer, ...], Meta(min_length=1, max_length=TENSORS)]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a report; raises MissingError or InputError if there is none or it is damaged."""
        origin = Origin("quantize", str(path), _ADVICE)
        return decode(read_json(path, origin, absent=_ADVICE), cls, origin)

    def write(self) -> str:
        """Write it as JSON."""
        return json.dumps(asdict(self), indent=2) + "\n"

    def of(self, component: str) -> list[Layer]:
        """List the layers of a component."""
        return [layer for layer in self.layers if layer.component == component]


def allocate(layers: Sequence[Layer], target: float, itemsize: int) -> dict[str, Packing]:
    """Choose a packing for each layer, so that the sum of errors is small and a weight takes at most `target` bits.

    All begin with the fewest bits. Then whoever gains most for each bit is given more, until nothing fits more. That
    is the best there is, but for what is left over at the end, if errors add up and fall ever more slowly.

    Args:
        layers: of one component.
        target: mean bits of a weight, scales and biases included.
        itemsize: bytes of a scale or bias in affine mode.

    Returns:
        The packing of each tensor.

    Raises:
        ValueRangeError: every choice takes more bits than that, or less.
    """

    def cost(layer: Layer, loss: Loss) -> float:
        return layer.weights * loss.bits_per_weight(itemsize)

    chosen = [min(layer.losses, key=lambda loss: loss.bits_per_weight(itemsize)) for layer in layers]
    total = sum(layer.weights for layer in layers)
    least = sum(map(cost, layers, chosen)) / total
    most = sum(max(cost(layer, loss) for loss in layer.losses) for layer in layers) / total
    if not least <= target <= most:
        raise ValueRangeError(
            f"[quantize] a target of {target:g} bits a weight cannot be met with what was measured, "
            f"want {least:g} to {most:g}, scales included"
        )
    left = (target - least) * total + _SLACK

    def steps() -> Any:
        for number, layer in enumerate(layers):
            now = chosen[number]
            for loss in layer.losses:
                more = cost(layer, loss) - cost(layer, now)
                if 0 < more <= left and loss.error < now.error:
                    yield (now.error - loss.error) / more, number, more, loss

    while best := max(steps(), key=lambda step: step[0], default=None):
        _, number, more, chosen[number] = best
        left -= more
    return {name: loss.packing for layer, loss in zip(layers, chosen, strict=True) for name in layer.tensors}
