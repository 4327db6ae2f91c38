"""What a model is asked for, and what the scores are worth: those of real pictures and of the autoencoder's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from diffusers import AutoencoderKL, PixArtSigmaPipeline
from PIL import Image
from torch.nn.functional import interpolate

from recipes.emoji64.glyphs import Glyph
from recipes.emoji64.scenes import Scene, caption, list_scenes, render, to_floats
from recipes.emoji64.score import Scorer
from recipes.pipeline import SIDE, STEPS, generate
from recipes.vae import Pixels, psnr, restore, to_pixels, to_tensor


def choose_scenes(names: Sequence[str], count: int, *, held_out: bool, seed: int = 11) -> list[Scene]:
    """Choose scenes by chance, the same ones for every model; all of them if there are fewer."""
    scenes = list_scenes(names, held_out=held_out)
    return [scenes[row] for row in np.random.default_rng(seed).permutation(len(scenes))[:count]]


def measure_ceiling(
    glyphs: Sequence[Glyph], scenes: Sequence[Scene], vae: AutoencoderKL, scorer: Scorer, *, seed: int = 7
) -> dict[str, dict[str, float]]:
    """Score pictures as they are in the training set, and their reconstructions, with their PSNR in dB."""
    rng = np.random.default_rng(seed)
    by_name = {glyph.name: glyph for glyph in glyphs}
    drawn = np.stack([to_floats(render(by_name[scene.glyph], scene.background, rng)) for scene in scenes])
    pictures = to_tensor(drawn)
    restored = restore(vae, pictures)
    return {
        "pictures": scorer.score(drawn, scenes),
        "reconstructions": {**scorer.score(to_pixels(restored), scenes), "psnr": psnr(restored - pictures)},
    }


def draw(
    pipeline: PixArtSigmaPipeline, scenes: Sequence[Scene], *, seed: int, side: int = SIDE, steps: int = STEPS
) -> Pixels:
    """Generate a picture of each scene, scaled to 64 x 64."""
    pictures = generate(pipeline, list(map(caption, scenes)), seed=seed, side=side, steps=steps)
    if side == SIDE:
        return pictures
    return to_pixels(interpolate(to_tensor(pictures), size=(SIDE, SIDE), mode="bilinear"))


def save_grid(rows: Sequence[Pixels], path: Path, *, scale: int = 2) -> None:
    """Save rows of pictures as one PNG."""
    grid = np.concatenate([np.concatenate(list(row), axis=1) for row in rows])
    picture = Image.fromarray((grid * 255).round().clip(0, 255).astype(np.uint8))
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST).save(path)
