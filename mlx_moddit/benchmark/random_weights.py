"""A model of a named configuration with random weights: it takes as long as a trained one, and needs no download."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import mlx.core as mx
import mlx.nn as nn

from mlx_moddit.imagined import imagine_manifest
from mlx_moddit.load import DTYPES, Bundle
from moddit.models.t5 import T5Spec
from moddit.quantization import Packing, packings, part_name
from moddit.spec import ModelSpec
from moddit.tensors import Role, TensorInfo, is_precise
from moddit.tokens import TokenPolicy

SCALE: Final = 0.02  # standard deviation of the weights


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
        packed = packings(self.manifest.components[name].quantization)
        weights: dict[str, mx.array] = {}
        for key, info in wanted.items():
            if key in packed:
                weights |= _packed(key, info, packed[key], self._stored)
            else:
                dtype = mx.float32 if is_precise(key, wanted) else self._stored
                weights[key] = (SCALE * mx.random.normal(_layout(info))).astype(dtype)
        return weights


def make_bundle(spec: ModelSpec, tokens: TokenPolicy, dtype: str, bits: int | None, *, encoder: bool) -> Bundle:
    """Make a bundle with random weights.

    Args:
        spec: of the model.
        tokens: policy, as `imagine_manifest` takes it.
        dtype: likewise.
        bits: likewise.
        encoder: whether there is one, or random states in its place.
    """
    return RandomBundle(Path(), imagine_manifest(spec, tokens, dtype, bits), has_encoder=encoder)


def _layout(info: TensorInfo) -> tuple[int, ...]:
    """Give the shape as a bundle stores it: channels of convolutions are last."""
    if info.role is Role.CONV and len(info.shape) == 4:
        out, channels, height, width = info.shape
        return (out, height, width, channels)
    return info.shape


def _packed(name: str, info: TensorInfo, packing: Packing, dtype: mx.Dtype) -> dict[str, mx.array]:
    words, *groups = packing.parts(name, info.shape).values()
    scales = mx.full(groups[0], SCALE / 2**packing.bits, dtype)
    numbers = mx.random.randint(0, 2**31, words).astype(mx.uint32)
    return {
        name: numbers,
        part_name(name, "scales"): scales,
        part_name(name, "biases"): -scales * 2 ** (packing.bits - 1),
    }
