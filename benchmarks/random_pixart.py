"""A PixArt-Sigma checkpoint with random weights, as a diffusers folder: for what only needs the true size.

    python -m benchmarks.random_pixart FOLDER       # PixArt-Sigma-XL-2 with T5-XXL, 11 GB

Weights are drawn so that layers keep the size of what passes through them: 1 / sqrt(inputs), as T5 initialises its own.
T5 does not divide the scores of attention by the root of a head's width, and draws its queries smaller by that instead.
With larger ones attention picks a single token, and float32 itself loses the digits that a verification compares.

Source: transformers `models/t5/modeling_t5.py`, `T5PreTrainedModel._init_weights`.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

import moddit
from moddit.checkpoint.hub import EMBEDDED
from moddit.checkpoint.safetensors import NUMPY_DTYPES, format_header
from moddit.conditioning import Text
from moddit.configurations import find_configuration
from moddit.contract import TEXT_ENCODER
from moddit.models.t5 import T5Spec
from moddit.routing import RoutingPlan
from moddit.spec import ModelSpec
from moddit.tensors import Role, TensorInfo, Tensors

KEEP_TENTHS: Final = (10, 5)  # of the regions, in every layer
_PIECE: Final = 1 << 24  # numbers that are drawn at a time


def save_random(folder: Path, spec: ModelSpec, keep_tenths: Sequence[int] = KEEP_TENTHS, dtype: str = "F16") -> Path:
    """Save a routed model; tokenizer and scheduler are those of the embedded checkpoint.

    Args:
        folder: must not exist.
        spec: of a PixArt-Sigma, with T5's gated layers.
        keep_tenths: of each region, in every layer.
        dtype: of all weights, "F16" or "F32".

    Returns:
        `folder`
    """
    assert isinstance(spec.conditioning, Text)
    encoder = spec.conditioning.encoder
    deviations = {
        "shared.weight": 1.0,
        "relative_attention_bias.weight": encoder.d_model**-0.5,
        "SelfAttention.q.weight": (encoder.d_model * encoder.d_kv) ** -0.5,
    }
    embedded = Path(moddit.__file__).parent / EMBEDDED
    shutil.copytree(embedded, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    configurations = _configurations(spec, encoder, keep_tenths)
    for name, tensors in spec.tensors(has_routers=True).items():
        path = folder / name / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | configurations[name], indent=2))
        stem = "model" if name == TEXT_ENCODER else "diffusion_pytorch_model"
        write_random(folder / name / f"{stem}.safetensors", tensors, dtype, deviations)
    return folder


def _configurations(spec: ModelSpec, encoder: T5Spec, keep_tenths: Sequence[int]) -> Mapping[str, dict[str, Any]]:
    """Give what the configurations say otherwise than the embedded checkpoint's."""
    plan = RoutingPlan((tuple(keep_tenths),) * spec.transformer.num_layers)
    levels = len(spec.vae.block_out_channels)
    types = {"down_block_types": ["DownEncoderBlock2D"] * levels, "up_block_types": ["UpDecoderBlock2D"] * levels}
    return {
        "transformer": {**spec.transformer.to_json(), "diffcr": plan.to_json()},
        TEXT_ENCODER: {**encoder.to_json(), "is_gated_act": encoder.is_gated},
        "vae": {**spec.vae.to_json(), **types},
    }


def write_random(
    path: Path, tensors: Tensors, dtype: str, deviations: Mapping[str, float] = MappingProxyType({})
) -> None:
    """Write a file of random weights, of which no tensor is ever in memory whole.

    Args:
        path: of the safetensors file.
        tensors: of which norms multiply by one and biases add nothing.
        dtype: of all weights, "F16" or "F32".
        deviations: by the end of a tensor's name, where it is not 1 / sqrt(inputs).
    """
    rng = np.random.default_rng(0)
    with path.open("wb") as file:
        file.write(format_header([(name, dtype, info.shape) for name, info in tensors.items()], {}))
        for name, info in tensors.items():
            for piece in _draw(rng, name, info, deviations):
                file.write(piece.astype(NUMPY_DTYPES[dtype]).data)


def _draw(
    rng: np.random.Generator, name: str, info: TensorInfo, deviations: Mapping[str, float]
) -> Iterator[NDArray[np.float32]]:
    """Draw the numbers of a tensor in pieces."""
    is_constant = info.role in (Role.NORM, Role.BIAS)
    found = [deviation for end, deviation in deviations.items() if name.endswith(end)]
    deviation = np.float32(found[0] if found else math.prod(info.shape[1:]) ** -0.5)
    for left in range(math.prod(info.shape), 0, -_PIECE):
        count = min(left, _PIECE)
        if is_constant:
            yield np.full(count, not name.endswith("bias"), np.float32)
        else:
            yield rng.standard_normal(count, np.float32) * deviation


if __name__ == "__main__":
    save_random(Path(sys.argv[1]), find_configuration("pixart-sigma-xl"))
