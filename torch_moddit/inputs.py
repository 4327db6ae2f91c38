"""What `torch_moddit.finetune` trains on, as its options say it: a prepared dataset, or pictures with captions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
from torch.utils.data import Dataset

from moddit.checkpoint.description import Description
from moddit.checkpoint.sources import Sources
from moddit.conditioning import Label
from torch_moddit.conditioning import Components, teller
from torch_moddit.data import Item, PictureFolder
from torch_moddit.pipeline import load_components
from torch_moddit.shards import Encoders, Shards


@dataclass(frozen=True)
class Inputs:
    """Where samples are; one of `data` and `images`, which the other fields are for."""

    data: Path | None
    images: Path | None
    column: str | None  # of the captions
    height: int | None  # pixels; None for the model's
    width: int | None

    def check(self) -> None:
        """Raise UsageError if they do not go together."""
        if (self.data is None) == (self.images is None):
            raise click.UsageError("give one of --data and --images")
        if self.images is None and (self.height or self.width or self.column):
            raise click.UsageError(
                "--height, --width and --caption-column are for --images; those of --data are what it was made with"
            )

    def open(self, description: Description, sources: Sources) -> tuple[Dataset[Item], Item | None, Components]:
        """Open them for a model.

        Returns:
            the samples, the null condition, and the model's components that encode samples; none for a dataset.

        Raises:
            InputError: they are damaged, or not of this model.
        """
        spec = description.spec
        if self.data is not None:
            shards = Shards(self.data, spec.transformer, Encoders.of(description))
            return shards, shards.null, {}
        assert self.images is not None
        components = load_components(sources, spec)
        tell = teller(spec, components)
        height, width = self.height or spec.default_side, self.width or spec.default_side
        folder = PictureFolder(
            self.images,
            partial(_tell_caption, spec, tell),
            height=height,
            width=width,
            sizes=spec.transformer.size_features(height, width),
            are_classes=spec.conditioning.KIND == Label.KIND,
            column=self.column,
        )
        return folder, tell(spec.conditioning.null(spec.transformer)), components


def _tell_caption(spec: Any, tell: Any, caption: str) -> Item:
    item: Item = tell(spec.conditioning.of_caption(caption, spec.transformer))
    return item
