"""Checkpoints to PyTorch modules: what `moddit.checkpoint` reads, with its values loaded and checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from moddit.checkpoint.description import describe_transformer
from moddit.checkpoint.sources import Sources, as_sources
from moddit.checkpoint.stored import StoredTensor
from moddit.errors import ValueRangeError
from torch_moddit.architectures import TRANSFORMERS
from torch_moddit.model import RoutedTransformer


def load_checkpoint(source: Path | Sources, *, dtype: torch.dtype = torch.float32) -> RoutedTransformer:
    """Load the transformer of a checkpoint, routed or dense, in evaluation mode: of a pipeline or its `transformer/`.

    Raises InputError if it is damaged, incomplete, of another architecture, or its weights are NaN or infinite.
    """
    found = describe_transformer(as_sources(source))
    tensors = {name: to_torch(tensor) for name, tensor in found.read.part.tensors.items()}
    _check_finite(tensors, found.read.part.tensors)
    kind = TRANSFORMERS[found.spec.ARCHITECTURE]
    transformer = kind.make(found.spec)
    model = kind(transformer, found.policy)
    transformer.load_state_dict(tensors, strict=True)
    return model.to(dtype).eval()


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
