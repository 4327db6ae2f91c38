"""A model of a named configuration with random weights: it takes as long as a trained one, and needs no download."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import mlx.core as mx
import mlx.nn as nn

from mlx_moddit.load import DTYPES, Bundle
from moddit.manifest import Component, FileInfo, Manifest, Provenance, Quantization
from moddit.models.t5 import T5Spec
from moddit.spec import ModelSpec
from moddit.tensors import UNCOMPRESSED, Role, TensorInfo, Tensors, is_precise
from moddit.tokens import TokenPolicy

SCALE: Final = 0.02  # standard deviation of the weights
GROUP_SIZE: Final = 64  # numbers that share a scale, as `convert` writes them
_NO_FILES: Final = (FileInfo("none", 0, "0" * 64),)


class Words:
    """In place of a tokenizer: one token for each word, and one for the end."""

    def __init__(self, max_length: int):
        self.max_length = max_length

    def encode(self, text: str) -> list[int]:
        """Number the words of a text."""
        return [2] * min(len(text.split()), self.max_length - 1) + [1]


class RandomText(nn.Module):
    """In place of a text encoder: random states of its size."""

    def __init__(self, spec: T5Spec, dtype: mx.Dtype):
        super().__init__()
        self.spec = spec
        self._dtype = dtype

    def __call__(self, ids: mx.array, mask: mx.array | None = None, *, release: bool = False) -> mx.array:  # noqa: ARG002 # as T5Encoder
        """Shapes: ids (B, L) -> (B, L, d_model)."""
        return mx.random.normal((*ids.shape, self.spec.d_model)).astype(self._dtype)


@dataclass(frozen=True)
class RandomBundle(Bundle):
    """A bundle without files; its components are made when they are asked for."""

    has_encoder: bool = field(kw_only=True)  # or random states in its place

    def text_encoder(self) -> Any:
        return super().text_encoder() if self.has_encoder else RandomText(self.text.encoder, self._stored)

    def tokenizer(self) -> Any:
        return Words(self.text.max_sequence_length)

    @property
    def _stored(self) -> mx.Dtype:
        return DTYPES[self.manifest.components["transformer"].dtype or "float32"]

    def _weights(self, name: str, wanted: Mapping[str, TensorInfo]) -> dict[str, mx.array]:
        quantization = self.manifest.components[name].quantization
        weights: dict[str, mx.array] = {}
        for key, info in wanted.items():
            if quantization is not None and key in quantization.tensors:
                weights |= _packed(key, info, quantization, self._stored)
            else:
                dtype = mx.float32 if is_precise(key, wanted) else self._stored
                weights[key] = (SCALE * mx.random.normal(_layout(info))).astype(dtype)
        return weights


def make_bundle(spec: ModelSpec, tokens: TokenPolicy, dtype: str, bits: int | None, *, encoder: bool) -> Bundle:
    """Make a bundle with random weights.

    Args:
        spec: of the model.
        tokens: policy, which says whether there are routers.
        dtype: of the weights, "float16", "bfloat16" or "float32"; those that are always precise stay float32.
        bits: of the weights of the transformer's and the text encoder's linear layers; None leaves them as they are.
        encoder: whether there is one, or random states in its place.
    """
    tensors = spec.tensors(has_routers=tokens.has_routers)
    components = {
        name: _component(tensors.get(name), dtype, None if name in UNCOMPRESSED else bits) for name in spec.components
    }
    made = Provenance("random weights", "0" * 64, {}, "2026-01-01T00:00:00Z")
    manifest = Manifest("0" * 64, "mlx", spec, tokens, components, None, made)
    return RandomBundle(Path(), manifest, has_encoder=encoder)


def _component(tensors: Tensors | None, dtype: str, bits: int | None) -> Component:
    if tensors is None:
        return Component(_NO_FILES)
    packed = tuple(
        name for name, info in tensors.items() if info.role.is_quantisable and info.shape[1] % GROUP_SIZE == 0
    )
    quantization = Quantization(bits, GROUP_SIZE, "affine", packed) if bits and packed else None
    parameters = sum(math.prod(info.shape) for info in tensors.values())
    return Component(_NO_FILES, dtype, parameters, quantization)


def _layout(info: TensorInfo) -> tuple[int, ...]:
    """Give the shape as a bundle stores it: channels of convolutions are last."""
    if info.role is Role.CONV and len(info.shape) == 4:
        out, channels, height, width = info.shape
        return (out, height, width, channels)
    return info.shape


def _packed(name: str, info: TensorInfo, quantization: Quantization, dtype: mx.Dtype) -> dict[str, mx.array]:
    rows, columns = info.shape
    stem = name.removesuffix("weight")
    scales = mx.full((rows, columns // quantization.group_size), SCALE / 2**quantization.bits, dtype)
    numbers = mx.random.randint(0, 2**31, (rows, columns * quantization.bits // 32)).astype(mx.uint32)
    return {name: numbers, f"{stem}scales": scales, f"{stem}biases": -scales * 2 ** (quantization.bits - 1)}
