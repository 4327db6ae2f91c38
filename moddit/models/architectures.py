"""The table of architectures: an architecture is one row here, one in the table of each backend, and its modules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from moddit.models.dit import DiTSpec
from moddit.models.pixart import PixArtSpec
from moddit.models.transformer import TransformerSpec
from moddit.record import OneOf


@dataclass(frozen=True)
class TransformerRecord(OneOf):
    """The transformer of a model, by its architecture."""

    pixart: PixArtSpec | None = None
    dit: DiTSpec | None = None


ARCHITECTURES: Final[Mapping[str, type[TransformerSpec]]] = {
    kind.ARCHITECTURE: kind for kind in TransformerRecord.alternatives()
}
