"""A small classifier of what is at each place: its features are those in which sets of pictures are compared."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from recipes.runs import cosine_rate, save_whole, set_rate
from recipes.shapes64.scenes import BACKGROUNDS, COLOURS, FORMS, PLACES, RADII, Picture, Scene, draw_scene, render

WIDTHS: Final = (16, 32, 64, 64)  # of the convolutions, each of which halves the sides
FEATURES: Final = 64
RATE: Final = 3e-3
BATCH: Final = 32
HEADS: Final = {"colour": COLOURS, "form": FORMS, "size": RADII}


class Classifier(nn.Module):
    """Say colour, form and size at each place, the last class of which is "nothing there", and the background.

    Shapes: pictures (B, 3, 64, 64) in -1..1 -> by head (B, 5, classes), "background" (B, 5)
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise((3, *WIDTHS)):
            layers += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.GroupNorm(4, outputs), nn.SiLU()]
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * WIDTHS[-1], FEATURES))
        self.heads = nn.ModuleDict({name: nn.Linear(FEATURES, 5 * (len(names) + 1)) for name, names in HEADS.items()})
        self.background = nn.Linear(FEATURES, len(BACKGROUNDS))

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        found = nn.functional.silu(self.body(pictures))
        logits = {name: head(found).view(len(pictures), len(PLACES), -1) for name, head in self.heads.items()}
        return {**logits, "background": self.background(found)}

    @torch.no_grad()
    def features(self, pictures: Picture) -> NDArray[np.float64]:
        """Give what the heads see. Shapes: pictures (B, 64, 64, 3) in 0..1 -> (B, FEATURES)."""
        return torch.cat([self.body(part) for part in torch.split(_to_inputs(pictures), 64)]).double().numpy()


def train_classifier(path: Path, *, steps: int, seed: int = 5) -> None:
    """Train the classifier on scenes drawn as it goes and save it to `path`."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = Classifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    for step in range(steps):
        set_rate([optimizer], cosine_rate(step, steps, warmup=20))
        scenes = [draw_scene(rng, held_out=False) for _ in range(BATCH)]
        logits = model(_to_inputs(np.stack([render(scene, rng) for scene in scenes])))
        losses = [cross_entropy(logits[name].flatten(0, -2), wanted) for name, wanted in label(scenes).items()]
        optimizer.zero_grad()
        torch.autograd.backward(torch.stack(losses).sum())
        optimizer.step()
    save_whole(model.state_dict(), path)


def load_classifier(path: Path) -> Classifier:
    """Load what `train_classifier` saved."""
    model = Classifier()
    model.load_state_dict(torch.load(path, weights_only=True))
    return model.eval()


def label(scenes: list[Scene]) -> dict[str, Tensor]:
    """Number what each scene shows: for each head (B * 5,), and the background (B,)."""
    rows: dict[str, Any] = {name: [] for name in HEADS}
    for scene in scenes:
        things = {thing.place: thing for thing in scene.things}
        for name, known in HEADS.items():
            numbers = {value: number for number, value in enumerate(known)}
            rows[name] += [numbers[getattr(things[place], name)] if place in things else len(known) for place in PLACES]
    rows["background"] = [list(BACKGROUNDS).index(scene.background) for scene in scenes]
    return {name: torch.tensor(numbers) for name, numbers in rows.items()}


def _to_inputs(pictures: Picture) -> Tensor:
    return torch.from_numpy(pictures).permute(0, 3, 1, 2) * 2 - 1
