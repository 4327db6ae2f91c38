"""The autoencoder of the scenes: what it is trained on, its ceiling, the latents that the diffusion model learns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from recipes.runs import Journal, write_folder
from recipes.shapes64.scenes import SIDE, Scene, draw_scene, render
from recipes.shapes64.score import score
from recipes.vae import Pixels, build_vae, psnr, restore, to_pixels, to_tensor, train_vae

RATE = 2e-3


def train(folder: Path, journal: Journal, *, steps: int) -> None:
    """Train the autoencoder on scenes and save it to `folder`."""
    torch.manual_seed(1)
    vae = build_vae(SIDE)
    train_vae(vae, journal, lambda rng, count: draw_pictures(rng, count)[0], steps=steps, rate=RATE)
    journal.write(step=steps, final=measure(vae, count=min(400, 8 * steps)))
    write_folder(folder, vae.save_pretrained)


def draw_pictures(rng: np.random.Generator, count: int) -> tuple[Pixels, list[Scene]]:
    """Draw training scenes: their pictures, and what they show."""
    scenes = [draw_scene(rng, held_out=False) for _ in range(count)]
    return np.stack([render(scene, rng) for scene in scenes]), scenes


def measure(vae: AutoencoderKL, *, count: int, seed: int = 7) -> dict[str, float]:
    """PSNR in dB, and the share of reconstructions that the scorer finds right: the ceiling of what follows."""
    drawn, scenes = draw_pictures(np.random.default_rng(seed), count)
    pictures = to_tensor(drawn)
    restored = restore(vae, pictures)
    scores = [score(one, scene) for one, scene in zip(to_pixels(restored), scenes, strict=True)]
    result = {name: float(np.mean([row[name] for row in scores])) for name in ("form", "all")}
    return {"psnr": psnr(restored - pictures), **result}


@torch.no_grad()
def encode_scenes(vae: AutoencoderKL, scenes: list[Scene], rng: np.random.Generator, *, batch: int = 32) -> Tensor:
    """Render and encode scenes to scaled latents (B, 4, 32, 32), float16: what the diffusion model learns."""
    parts = []
    for start in range(0, len(scenes), batch):
        tensor = to_tensor(np.stack([render(scene, rng) for scene in scenes[start : start + batch]]))
        parts.append((vae.encode(tensor).latent_dist.mean * vae.config.scaling_factor).half())
    return torch.cat(parts)
