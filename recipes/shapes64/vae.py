"""The autoencoder: half the picture's side, four channels, small enough to decode quickly on a CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from recipes.shapes64.runs import Average, Journal, cosine_rate, set_rate, write_folder
from recipes.shapes64.scenes import SIDE, Scene, draw_scene, render
from recipes.shapes64.score import score

RATE = 2e-3
BATCH = 8
KL_WEIGHT = 1e-3  # per latent element, beside L1 + 2 MSE per pixel channel


def build_vae() -> AutoencoderKL:
    """Make an untrained autoencoder (B, 3, 64, 64) -> (B, 4, 32, 32) whose residual branches start at zero."""
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(32, 32),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        mid_block_add_attention=False,
        sample_size=SIDE,
    )
    for name, module in vae.named_modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            assert module.bias is not None
            nn.init.zeros_(module.bias)
            if name.endswith("conv2"):
                nn.init.zeros_(module.weight)
    return vae


def train_vae(folder: Path, journal: Journal, *, steps: int, seed: int = 1) -> None:
    """Train the autoencoder on scenes drawn as it goes, centre its latents and save it to `folder`."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    vae = build_vae()
    average = Average(vae, 0.995)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=RATE, betas=(0.9, 0.99), weight_decay=0.01)
    for step in range(steps):
        set_rate([optimizer], cosine_rate(step, steps, warmup=50))
        pictures = draw_pictures(rng, BATCH)[0]
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(pictures).latent_dist
            restored = vae.decode(posterior.sample()).sample
        error = restored.float() - pictures
        loss = error.abs().mean() + 2 * error.square().mean() + KL_WEIGHT * _kl(posterior.mean, posterior.logvar)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        average.update(vae)
        if (step + 1) % 50 == 0:
            journal.write(step=step + 1, loss=loss.item(), psnr=_psnr(error))
    average.copy_to(vae)
    vae.eval().requires_grad_(False)
    centre_latents(vae, draw_pictures(rng, 256)[0])
    journal.write(step=steps, final=measure_vae(vae, count=min(400, 8 * steps)))
    write_folder(folder, vae.save_pretrained)


def draw_pictures(rng: np.random.Generator, count: int) -> tuple[Tensor, list[Scene]]:
    """Draw training scenes: pictures (B, 3, 64, 64) in -1..1, and what they show."""
    scenes = [draw_scene(rng, held_out=False) for _ in range(count)]
    pictures = np.stack([render(scene, rng) for scene in scenes])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2) * 2 - 1, scenes


@torch.no_grad()
def centre_latents(vae: AutoencoderKL, pictures: Tensor) -> None:
    """Give each latent channel mean 0 and set the scaling factor, without changing any reconstruction.

    PixArt's pipelines know a scaling factor but no shift, so the means move into the biases of the two 1x1 convolutions
    on either side of the latent.
    """
    latents = torch.cat([vae.encode(part).latent_dist.mean for part in torch.split(pictures, 32)])
    means = latents.mean(dim=(0, 2, 3))
    vae.quant_conv.bias[: means.numel()] -= means
    vae.post_quant_conv.bias += vae.post_quant_conv.weight[:, :, 0, 0] @ means
    scale = (latents - means[:, None, None]).std()
    vae.register_to_config(scaling_factor=round(1 / scale.item(), 5))


@torch.no_grad()
def measure_vae(vae: AutoencoderKL, *, count: int, seed: int = 7) -> dict[str, float]:
    """PSNR in dB, and the share of reconstructions that the scorer finds right: the ceiling of what follows."""
    pictures, scenes = draw_pictures(np.random.default_rng(seed), count)
    restored = torch.cat([vae.decode(vae.encode(part).latent_dist.mean).sample for part in torch.split(pictures, 32)])
    scores = [score(_to_numpy(one), scene) for one, scene in zip(restored, scenes, strict=True)]
    result = {name: float(np.mean([row[name] for row in scores])) for name in ("form", "all")}
    return {"psnr": _psnr(restored - pictures), **result}


@torch.no_grad()
def encode_scenes(vae: AutoencoderKL, scenes: list[Scene], rng: np.random.Generator, *, batch: int = 32) -> Tensor:
    """Render and encode scenes to scaled latents (B, 4, 32, 32), float16: what the diffusion model learns."""
    parts = []
    for start in range(0, len(scenes), batch):
        pictures = np.stack([render(scene, rng) for scene in scenes[start : start + batch]])
        tensor = torch.from_numpy(pictures).permute(0, 3, 1, 2) * 2 - 1
        parts.append((vae.encode(tensor).latent_dist.mean * vae.config.scaling_factor).half())
    return torch.cat(parts)


def _kl(mean: Tensor, logvar: Tensor) -> Tensor:
    mean, logvar = mean.float(), logvar.float()
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()


def _psnr(error: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of an error on the -1..1 scale."""
    return float(10 * torch.log10(4 / error.detach().square().mean().clamp_min(1e-12)))


def _to_numpy(picture: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return ((picture.clamp(-1, 1) + 1) / 2).permute(1, 2, 0).numpy()
