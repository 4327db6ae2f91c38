"""The transformers of PyTorch, by the architecture of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from torch import nn

from moddit.errors import UnsupportedError
from moddit.models.dit import DiTSpec
from moddit.models.pixart import PixArtSpec
from moddit.tokens import TokenPolicy
from torch_moddit.dit import RoutedDiT
from torch_moddit.model import RoutedTransformer
from torch_moddit.pixart import RoutedPixArt

TRANSFORMERS: Final[Mapping[str, type[RoutedTransformer]]] = {
    PixArtSpec.ARCHITECTURE: RoutedPixArt,
    DiTSpec.ARCHITECTURE: RoutedDiT,
}


def routed_class(transformer: nn.Module) -> type[RoutedTransformer]:
    """Find the class that routes a dense transformer of diffusers; raises UnsupportedError for another architecture."""
    for kind in TRANSFORMERS.values():
        if type(transformer).__name__ == kind.SPEC.DIFFUSERS_CLASS:
            return kind
    wanted = " or ".join(kind.SPEC.DIFFUSERS_CLASS for kind in TRANSFORMERS.values())
    raise UnsupportedError(f"[model] got a {type(transformer).__name__}, want a dense {wanted}")


def dense(transformer: nn.Module, num_train_timesteps: int) -> RoutedTransformer:
    """Put a dense transformer of diffusers behind the face of a routed one."""
    kind, layers = routed_class(transformer), len(transformer.transformer_blocks)  # type: ignore[arg-type]
    return kind(transformer, TokenPolicy.dense(layers, num_train_timesteps))
