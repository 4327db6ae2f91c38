"""The pipelines of diffusers that are read: one row says what a pipeline is for, and what it leaves to its class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from moddit.conditioning import KINDS, Conditioning
from moddit.models.dit import DiTSpec
from moddit.models.pixart import PixArtSpec
from moddit.models.transformer import TransformerSpec


@dataclass(frozen=True)
class Pipeline:
    """A class of diffusers' pipelines."""

    transformer: type[TransformerSpec]
    sequence_length: int = 0  # text tokens that it reads unless told otherwise, whatever the tokenizer's own limit
    whole_scales: bool = False  # positions are divided by whole numbers, as far as nothing says by what

    @property
    def conditioning(self) -> type[Conditioning]:
        return KINDS[self.transformer.CONDITIONING]

    @property
    def components(self) -> tuple[str, ...]:
        """Folders that it has, of the parts of a bundle and of the scheduler."""
        return ("transformer", "vae", *self.conditioning.COMPONENTS, "scheduler")


PIPELINES: Final[Mapping[str, Pipeline]] = {
    "PixArtAlphaPipeline": Pipeline(PixArtSpec, 120, whole_scales=True),
    "PixArtSigmaPipeline": Pipeline(PixArtSpec, 300),
    "DiTPipeline": Pipeline(DiTSpec),
}
