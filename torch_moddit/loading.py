"""Checkpoints to PyTorch modules: what `moddit.checkpoint` reads, with its values loaded and checked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from accelerate import init_empty_weights
from torch import Tensor

from moddit.checkpoint.description import describe_transformer
from moddit.checkpoint.precision import check_finite
from moddit.checkpoint.sources import Sources, as_sources
from moddit.checkpoint.stored import StoredTensor
from torch_moddit.architectures import TRANSFORMERS
from torch_moddit.model import RoutedTransformer


def load_checkpoint(source: Path | Sources, *, dtype: torch.dtype = torch.float32) -> RoutedTransformer:
    """Load the transformer of a checkpoint, routed or dense, in evaluation mode: of a pipeline or its `transformer/`.

    Raises InputError if it is damaged, incomplete, of another architecture, or its weights are NaN or infinite.
    """
    found = describe_transformer(as_sources(source))
    tensors = {name: to_torch(tensor) for name, tensor in found.part.tensors.items()}
    kind = TRANSFORMERS[found.spec.ARCHITECTURE]
    with init_empty_weights():  # weights are taken over below: never are there two of them
        transformer = kind.make(found.spec)
    model = kind(transformer, found.policy)
    transformer.load_state_dict(tensors, strict=True, assign=True)
    return model.to(dtype).eval()


def to_torch(tensor: StoredTensor) -> Tensor:
    """Read a tensor as it is stored; raises ValueRangeError if it is NaN or infinite."""
    array = tensor.read()
    check_finite("transformer", array, tensor)
    if tensor.dtype == "BF16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
