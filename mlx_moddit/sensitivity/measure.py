"""Draws the same pictures with one product of a model after the other in fewer bits."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray

from mlx_moddit.layers import JOINED
from mlx_moddit.load import Bundle
from mlx_moddit.stages import Models, Step
from moddit.contract import TEXT_ENCODER
from moddit.errors import UnsupportedError, ValueRangeError
from moddit.quantization import AFFINE, BITS, MXFP4, Packing
from moddit.request import Request
from moddit.sensitivity import FORMAT, LARGEST, REPORT_VERSION, Layer, Loss, QuantReport
from moddit.tensors import TensorInfo

Float32 = NDArray[np.float32]
PROBES: Final = (4, 6)  # bits that are measured
COMPONENTS: Final = ("transformer", TEXT_ENCODER)


@dataclass(frozen=True)
class Product:
    """A linear layer of a model, and the tensors of the bundle that it is made of."""

    component: str
    layer: nn.Linear
    tensors: tuple[str, ...]
    packings: tuple[Packing, ...]  # that it may have


def measure(
    bundle: Bundle, requests: Sequence[Request], group_size: int, advance: Callable[[int, int], object]
) -> QuantReport:
    """Draw pictures with every product alone in fewer bits, and compare the latents that they end with.

    The errors of all packings follow from those of some (PROBES) and from what each does to the weights.

    Args:
        bundle: not quantised.
        requests: pictures to draw; their steps and size decide how long it takes.
        group_size: of the affine packings.
        advance: told how many of how many products are done.

    Raises:
        UnsupportedError: the bundle is quantised, or nothing of it can be.
        ValueRangeError: the model gives values that are not finite.
        InputError: as `Models.stages`.
    """
    packed = [name for name, item in bundle.manifest.components.items() if item.quantization]
    if packed:
        raise UnsupportedError(
            f"[quantize] {bundle.folder}: {packed[0]} is quantised; convert without -q to measure it"
        )
    models = Models(bundle, low_ram=False)
    exact = _draw(models, requests)
    if not np.isfinite(exact).all():
        raise ValueRangeError(f"[quantize] {bundle.folder}: gives values that are not finite; check its pictures first")
    products = list(_products(models, group_size))
    if not products:
        raise UnsupportedError(f"[quantize] {bundle.folder}: no rows are whole groups of {group_size} or 32")
    layers = []
    for done, item in enumerate(products, 1):
        lost = {
            packing: _relative(_rounded(item.layer.weight, packing), item.layer.weight) for packing in item.packings
        }
        gain = _gain(models, requests, exact, item, lost)
        losses = tuple(Loss(**asdict(packing), error=min(gain * share, LARGEST)) for packing, share in lost.items())
        layers.append(Layer(item.component, item.tensors, item.layer.weight.size, losses))
        advance(done, len(products))
    made, pictures = bundle.manifest.provenance, tuple(json.dumps(_told(bundle, item)) for item in requests)
    return QuantReport(
        FORMAT, REPORT_VERSION, made.source, made.source_sha256, pictures, requests[0].steps, tuple(layers)
    )


def _told(bundle: Bundle, request: Request) -> Any:
    """Say what a picture is drawn from."""
    return {"rows": request.rows(bundle.spec), "seed": request.seed}


def _gain(
    models: Models, requests: Sequence[Request], exact: Float32, product: Product, lost: Mapping[Packing, float]
) -> float:
    """Find how the error of the latents follows from that of the weights: their ratio in the median of all pictures.

    Now and then a small error routes a token otherwise, which changes a picture more than any rounding does. That says
    nothing about a layer, and is not in the median.
    """
    weight, ratios = product.layer.weight, []
    for packing in product.packings:
        if packing.bits in PROBES and packing.mode == AFFINE and lost[packing]:
            product.layer.weight = _rounded(weight, packing)
            drawn = _draw(models, requests)
            ratios += [_relative(*pair) / lost[packing] for pair in zip(drawn, exact, strict=True)]
    product.layer.weight = weight
    return float(np.median(np.nan_to_num(ratios, nan=LARGEST, posinf=LARGEST))) if ratios else 0.0


def _rounded(weight: mx.array, packing: Packing) -> mx.array:
    """Compute what becomes of weights. Shapes: alike."""
    settings = asdict(packing)
    words, scales, *biases = mx.quantize(weight, **settings)
    return mx.dequantize(words, scales, biases[0] if biases else None, **settings).astype(weight.dtype)


def _relative(found: mx.array | Float32, exact: mx.array | Float32) -> float:
    """Compute a squared error as a share of the square."""
    wanted = np.array(exact, np.float32)
    total = float(np.sum(np.square(wanted)))
    return float(np.sum(np.square(np.array(found, np.float32) - wanted))) / total if total else 0.0


def _draw(models: Models, requests: Sequence[Request]) -> Float32:
    """Draw pictures, but do not decode them. Shapes: -> (pictures, h, w, C)."""
    found = []
    for stage in models.stages(requests):
        if isinstance(stage, Step):
            mx.eval(stage.arrays)
            if stage.is_last:
                found.append(np.array(stage.latents))
    return np.concatenate(found)


def _products(models: Models, group_size: int) -> Iterator[Product]:
    """List what may be quantised of the models in memory."""
    spec, policy = models.bundle.spec, models.bundle.manifest.tokens
    wanted = spec.tensors(has_routers=policy.has_routers)
    choices = [*(Packing(bits, group_size, AFFINE) for bits in BITS), Packing(4, 32, MXFP4)]
    for component in (name for name in COMPONENTS if name in models.loaded):
        for path, layer in reversed(models.loaded[component].named_modules()):  # which lists the last ones first
            names = tuple(f"{name}.weight" for name in _stored_names(path))
            infos: list[TensorInfo] = [wanted[component][name] for name in names if name in wanted[component]]
            packings = tuple(packing for packing in choices if infos and all(map(packing.fits, infos)))
            if packings and isinstance(layer, nn.Linear):
                yield Product(component, layer, names, packings)


def _stored_names(path: str) -> Iterator[str]:
    """Name the layers of the bundle that a layer in memory was made of."""
    parent, _, last = path.rpartition(".")
    for name in JOINED.get(last, (last,)):
        yield f"{parent}.{name}" if parent else name
