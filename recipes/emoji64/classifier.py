"""A small classifier of glyphs on any background: its features tell how near a picture is to what was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy, interpolate

from recipes.emoji64.glyphs import Glyph
from recipes.emoji64.scenes import BACKGROUNDS, render, to_floats
from recipes.runs import Journal, cosine_rate, save_whole, set_rate
from recipes.vae import Pixels, to_tensor

FEATURES: Final = 192
RATE: Final = 2e-3
BATCH: Final = 64
NOISE: Final = 0.15  # standard deviation at most, of pixels in -1..1


class Classifier(nn.Module):
    """Four strided convolutions. Shapes: pictures (B, 3, 64, 64) in -1..1 -> logits (B, glyphs)."""

    def __init__(self, glyphs: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in ((3, 32), (32, 64), (64, 128), (128, FEATURES)):
            layers += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.GroupNorm(8, outputs), nn.GELU()]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(FEATURES, glyphs)

    def features(self, pictures: Tensor) -> Tensor:
        """Describe pictures. Shapes: (B, 3, 64, 64) -> (B, FEATURES)."""
        return self.layers(pictures).mean(dim=(2, 3))

    def forward(self, pictures: Tensor) -> Tensor:
        return self.head(self.features(pictures))


def train_classifier(path: Path, glyphs: Sequence[Glyph], journal: Journal, *, steps: int, seed: int = 5) -> None:
    """Train the classifier on pictures drawn as it goes, noisy and blurred ones too, and save its weights to `path`."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    classifier = Classifier(len(glyphs))
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=RATE, betas=(0.9, 0.99), weight_decay=0.05)
    for step in range(steps):
        set_rate([optimizer], cosine_rate(step, steps, warmup=20, flat=0.3))
        pictures, rows = _draw(glyphs, rng, BATCH)
        logits = classifier(_damage(pictures))
        loss = cross_entropy(logits, rows, label_smoothing=0.1)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(classifier.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 50 == 0 or step + 1 == steps:
            journal.write(step=step + 1, loss=loss.item(), right=(logits.argmax(1) == rows).float().mean().item())
    save_whole(classifier.state_dict(), path)


def load_classifier(path: Path, glyphs: int) -> Classifier:
    """Load the classifier of so many glyphs."""
    classifier = Classifier(glyphs)
    classifier.load_state_dict(torch.load(path, weights_only=True))
    return classifier.eval().requires_grad_(False)


def _draw(glyphs: Sequence[Glyph], rng: np.random.Generator, count: int) -> tuple[Tensor, Tensor]:
    rows = rng.integers(len(glyphs), size=count)
    names = list(BACKGROUNDS)
    pictures: Pixels = np.stack(
        [to_floats(render(glyphs[row], names[int(rng.integers(len(names)))], rng)) for row in rows]
    )
    return to_tensor(pictures), torch.from_numpy(rows)


def _damage(pictures: Tensor) -> Tensor:
    """Blur half of the pictures, and add noise to all: what is drawn by a model is neither sharp nor clean."""
    blurred = interpolate(avg_pool2d(pictures, 2), scale_factor=2, mode="bilinear")
    chosen = torch.rand(len(pictures), 1, 1, 1) < 0.5
    strength = NOISE * torch.rand(len(pictures), 1, 1, 1)
    return torch.where(chosen, blurred, pictures) + strength * torch.randn_like(pictures)
