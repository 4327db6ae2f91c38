"""Measures of a model on held-out prompts that still separate models where all of them draw what is asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moddit.routing import region_timesteps
from recipes.world import Pictures
from torch_moddit.pipeline import ReferencePipeline

QUARTERS = 4  # of the timesteps, for which the loss is told apart, whatever regions a plan has


def psnr(pictures: Pictures, reference: Pictures) -> float:
    """Peak signal-to-noise ratio of the mean squared error of all pictures, dB."""
    error = float(np.mean((pictures.astype(np.float64) - reference) ** 2))
    return 10 * math.log10(1 / max(error, 1e-12))


def frechet_distance(features: NDArray[np.float64], reference: NDArray[np.float64]) -> float:
    """Fréchet distance between the normal distributions of two sets of features, (N, D) and (M, D).

    |m - n|^2 + tr(C + D - 2 (C^1/2 D C^1/2)^1/2) of means m, n and covariances C, D: what FID is of Inception's
    features (arXiv 1706.08500).
    """
    mean, other = features.mean(axis=0), reference.mean(axis=0)
    covariance, wanted = np.cov(features, rowvar=False), np.cov(reference, rowvar=False)
    values, vectors = np.linalg.eigh(covariance)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    overlap = np.sqrt(np.linalg.eigvalsh(root @ wanted @ root).clip(min=0)).sum()
    return float(((mean - other) ** 2).sum() + np.trace(covariance) + np.trace(wanted) - 2 * overlap)


@torch.no_grad()
def held_out_loss(
    pipeline: ReferencePipeline, pictures: Pictures, prompts: Sequence[str], *, seed: int = 0, batch: int = 32
) -> list[float]:
    """Mean squared error of the prediction in each quarter of the timesteps, the cleanest first.

    Noise and timesteps depend on the seed alone, so that all models are asked the same.

    Shapes: pictures (B, H, W, 3) in 0..1
    """
    schedule = pipeline.spec.scheduler
    alphas = torch.from_numpy(schedule.alphas_cumprod).float()
    latents, context = _encode(pipeline, pictures, batch), pipeline.encode(tuple(prompts))
    losses = []
    for quarter in range(QUARTERS):
        generator = torch.Generator().manual_seed(seed * QUARTERS + quarter)
        times = region_timesteps(quarter, QUARTERS, schedule.num_train_timesteps)
        places = torch.linspace(times.start, times.stop - 1, len(latents)).long()
        timesteps = places[torch.randperm(len(latents), generator=generator)]
        noise = torch.randn(latents.shape, generator=generator)
        signal, share = (level[timesteps].sqrt().view(-1, 1, 1, 1) for level in (alphas, 1 - alphas))
        wanted = noise if schedule.prediction_type == "epsilon" else signal * noise - share * latents
        errors = []
        for rows in torch.arange(len(latents)).split(batch):
            told = {name: value[rows] for name, value in context.items()}
            noisy = signal[rows] * latents[rows] + share[rows] * noise[rows]
            output = pipeline.model(noisy, timesteps[rows], told)[:, : latents.shape[1]]
            errors.append((output - wanted[rows]).square().mean(dim=(1, 2, 3)))
        losses.append(float(torch.cat(errors).mean()))
    return losses


def _encode(pipeline: ReferencePipeline, pictures: Pictures, batch: int) -> Tensor:
    """Encode pictures to scaled latents, (B, C, h, w)."""
    inputs = torch.from_numpy(pictures).permute(0, 3, 1, 2) * 2 - 1
    parts = [pipeline.components["vae"].encode(part).latent_dist.mean for part in inputs.split(batch)]
    return torch.cat(parts) * pipeline.spec.vae.scaling_factor
