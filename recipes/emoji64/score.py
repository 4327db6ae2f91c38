"""Score pictures by retrieval: of all glyphs on the background that was asked for, is the named one the nearest?

In pixels the pictures are compared as thumbnails, in features as directions (cosine) of the classifier's last layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, normalize

from recipes.emoji64.classifier import Classifier
from recipes.emoji64.glyphs import Glyph
from recipes.emoji64.scenes import BACKGROUNDS, Scene, render, to_floats
from recipes.vae import Pixels, to_tensor

THUMBNAIL: Final = 16  # pixels
NEAREST: Final = (1, 5)
VIEWS: Final = 4  # pictures of each glyph and background, whose features are averaged
BORDER: Final = 3  # pixels that show the background


class Scorer:
    """What pictures are compared with.

    Args:
        glyphs: all of them.
        classifier: of the glyphs, in the same order.
    """

    def __init__(self, glyphs: Sequence[Glyph], classifier: Classifier) -> None:
        rng = np.random.default_rng(0)
        self.rows = {glyph.name: row for row, glyph in enumerate(glyphs)}
        self.classifier = classifier
        self.thumbnails: dict[str, Tensor] = {}  # of each background (G, D)
        self.directions: dict[str, Tensor] = {}
        for name in BACKGROUNDS:
            middle = to_tensor(np.stack([to_floats(render(glyph, name)) for glyph in glyphs]))
            views = [
                to_tensor(np.stack([to_floats(render(glyph, name, rng)) for glyph in glyphs])) for _ in range(VIEWS)
            ]
            self.thumbnails[name] = _thumbnails(middle)
            self.directions[name] = normalize(
                torch.stack([self.features(view) for view in [middle, *views]]).sum(0), dim=1
            )

    def judge(self, pictures: Pixels, scenes: Sequence[Scene]) -> dict[str, NDArray[np.bool_]]:
        """Say of each picture whether its glyph is among the nearest ("pixels/1", "pixels/5", "features/1",
        "features/5"), and whether its "background" is the one that was asked for, each (B,).
        """
        drawn = to_tensor(pictures)
        thumbnails, features = _thumbnails(drawn), normalize(self.features(drawn), dim=1)
        ranks: dict[str, list[int]] = {"pixels": [], "features": []}  # how many glyphs are nearer than the named one
        for row, scene in enumerate(scenes):
            distances = (self.thumbnails[scene.background] - thumbnails[row]).square().sum(dim=1)
            angles = -(self.directions[scene.background] @ features[row])
            for name, values in (("pixels", distances), ("features", angles)):
                ranks[name].append(int((values < values[self.rows[scene.glyph]]).sum()))
        result = {f"{name}/{nearest}": np.array(ranks[name]) < nearest for name in ranks for nearest in NEAREST}
        right = [read_background(picture) == scene.background for picture, scene in zip(pictures, scenes, strict=True)]
        return {**result, "background": np.array(right)}

    def score(self, pictures: Pixels, scenes: Sequence[Scene]) -> dict[str, float]:
        """Share of pictures of which `judge` says so."""
        return {name: float(values.mean()) for name, values in self.judge(pictures, scenes).items()}

    @torch.no_grad()
    def features(self, pictures: Tensor) -> Tensor:
        """Describe pictures as the classifier sees them. Shapes: (B, 3, 64, 64) in -1..1 -> (B, FEATURES)."""
        return torch.cat([self.classifier.features(part) for part in torch.split(pictures, 64)])


def read_background(picture: Pixels) -> str:
    """Name the background whose colour is nearest to the border's median. Shapes: picture (H, W, 3)."""
    rows, columns = (picture[:BORDER], picture[-BORDER:]), (picture[:, :BORDER], picture[:, -BORDER:])
    middle = np.median(np.concatenate([part.reshape(-1, 3) for part in (*rows, *columns)]), axis=0)
    return min(BACKGROUNDS, key=lambda name: float(np.abs(middle * 255 - BACKGROUNDS[name]).sum()))


def _thumbnails(pictures: Tensor) -> Tensor:
    return adaptive_avg_pool2d(pictures, THUMBNAIL).flatten(1)
