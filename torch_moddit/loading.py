"""Checkpoints to PyTorch modules: what `moddit.checkpoint` reads, with its values loaded and checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import PixArtTransformer2DModel
from torch import Tensor

from moddit.checkpoint.description import describe_transformer
from moddit.checkpoint.sources import Sources, as_sources
from moddit.checkpoint.stored import StoredTensor
from moddit.errors import ValueRangeError
from moddit.spec import PixArtSpec
from torch_moddit.model import RoutedPixArt


def load_checkpoint(source: Path | Sources, *, dtype: torch.dtype = torch.float32) -> RoutedPixArt:
    """Load the transformer of a checkpoint, routed or dense, in evaluation mode.

    Args:
        source: a pipeline folder or its `transformer/`, or all places of a checkpoint.
        dtype: of the loaded weights.

    Raises:
        InputError: it is damaged, incomplete, not a PixArt, or its weights are NaN or infinite.
    """
    found = describe_transformer(as_sources(source))
    tensors = {name: to_torch(tensor) for name, tensor in found.read.part.tensors.items()}
    _check_finite(tensors, found.read.part.tensors)
    transformer = make_transformer(found.spec)
    model = RoutedPixArt(transformer, found.plan)
    transformer.load_state_dict(tensors, strict=True)
    return model.to(dtype).eval()


def read_keep_ratios(source: Path | Sources) -> Tensor | None:
    """Read the learned keep ratios of a checkpoint, (layers, regions) float32; None if it has none.

    Raises:
        as `load_checkpoint`
    """
    ratios = describe_transformer(as_sources(source)).keep_ratio
    return None if ratios is None else torch.from_numpy(ratios)


def make_transformer(spec: PixArtSpec) -> Any:
    """Make a PixArtTransformer2DModel of these dimensions, with random weights."""
    return PixArtTransformer2DModel(
        num_attention_heads=spec.num_attention_heads,
        attention_head_dim=spec.attention_head_dim,
        in_channels=spec.in_channels,
        out_channels=spec.out_channels,
        num_layers=spec.num_layers,
        cross_attention_dim=spec.cross_attention_dim,
        attention_bias=spec.attention_bias,
        sample_size=spec.sample_size,
        patch_size=spec.patch_size,
        norm_eps=spec.norm_eps,
        interpolation_scale=spec.interpolation_scale,
        use_additional_conditions=spec.use_additional_conditions,
        caption_channels=spec.caption_channels,
    )


def to_torch(tensor: StoredTensor) -> Tensor:
    """Read a tensor as it is stored."""
    array = tensor.read()
    if tensor.dtype == "BF16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _check_finite(tensors: Mapping[str, Tensor], stored: Mapping[str, StoredTensor]) -> None:
    for name, value in tensors.items():
        if not bool(torch.isfinite(value).all()):
            raise ValueRangeError(
                f"[transformer] {stored[name].path}: tensor {stored[name].name!r} is not finite (NaN or infinity); the "
                "checkpoint is damaged or its training diverged"
            )
