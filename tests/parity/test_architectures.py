"""Every architecture of the core has a complete transformer in each backend."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Final

import pytest

from convert.coreml.architectures import TRANSFORMERS as COREML
from convert.coreml.transformer import TransformerGraph
from mlx_moddit.architectures import TRANSFORMERS as MLX
from mlx_moddit.transformer import Transformer
from moddit.models.architectures import ARCHITECTURES
from moddit.models.transformer import TransformerSpec
from torch_moddit.architectures import TRANSFORMERS as TORCH
from torch_moddit.model import RoutedTransformer

BACKENDS: Final[Mapping[str, tuple[Mapping[str, Any], type]]] = {
    "torch": (TORCH, RoutedTransformer),
    "mlx": (MLX, Transformer),
    "coreml": (COREML, TransformerGraph),
}


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_architecture_is_complete(backend: str) -> None:
    table, base = BACKENDS[backend]
    assert inspect.isabstract(base)
    assert table.keys() == ARCHITECTURES.keys()
    for kind in table.values():
        assert issubclass(kind, base)
        assert not inspect.isabstract(kind)


@pytest.mark.parametrize("base", [RoutedTransformer, TransformerGraph])
def test_an_incomplete_one_cannot_be_made(base: type) -> None:
    """It fails when it is built, not in the middle of a picture. MLX's modules are dicts, which Python does not ask."""
    with pytest.raises(TypeError, match="abstract"):
        type("Incomplete", (base,), {})()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_a_specification_says_is_prepared_its_graph_computes(name: str) -> None:
    says = ARCHITECTURES[name].prepare_features is not TransformerSpec.prepare_features
    assert (COREML[name].prepare is not TransformerGraph.prepare) == says
