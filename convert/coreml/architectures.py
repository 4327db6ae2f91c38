"""The transformers of Core ML, by the architecture of a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from convert.coreml.dit import DiTGraph
from convert.coreml.pixart import PixArtGraph
from convert.coreml.transformer import TransformerGraph
from moddit.models.dit import DiTSpec
from moddit.models.pixart import PixArtSpec

TRANSFORMERS: Final[Mapping[str, type[TransformerGraph]]] = {
    PixArtSpec.ARCHITECTURE: PixArtGraph,
    DiTSpec.ARCHITECTURE: DiTGraph,
}
