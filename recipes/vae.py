"""The autoencoder: half the picture's side, four channels, small enough to decode quickly on a CPU."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor, nn

from recipes.runs import Average, Journal, cosine_rate, set_rate

Pixels = NDArray[np.float32]  # (B, side, side, 3), RGB in 0..1
Draw = Callable[[np.random.Generator, int], Pixels]  # so many pictures

BATCH = 8
KL_WEIGHT = 1e-3  # per latent element, beside L1 + 2 MSE per pixel channel


def build_vae(side: int) -> AutoencoderKL:
    """Make an untrained autoencoder (B, 3, S, S) -> (B, 4, S/2, S/2) whose residual branches start at zero."""
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
        sample_size=side,
    )
    for name, module in vae.named_modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            assert module.bias is not None
            nn.init.zeros_(module.bias)
            if name.endswith("conv2"):
                nn.init.zeros_(module.weight)
    return vae


def train_vae(vae: AutoencoderKL, journal: Journal, draw: Draw, *, steps: int, rate: float, seed: int = 1) -> None:
    """Train an autoencoder on pictures drawn as it goes, and centre its latents."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    average = Average(vae, 0.995)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=0.01)
    for step in range(steps):
        set_rate([optimizer], cosine_rate(step, steps, warmup=50))
        pictures = to_tensor(draw(rng, BATCH))
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
            journal.write(step=step + 1, loss=loss.item(), psnr=psnr(error))
    average.copy_to(vae)
    vae.eval().requires_grad_(False)
    centre_latents(vae, to_tensor(draw(rng, 256)))


def to_tensor(pictures: Pixels) -> Tensor:
    """Turn pictures (B, H, W, 3) in 0..1 into what a VAE takes, (B, 3, H, W) in -1..1."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2) * 2 - 1


def to_pixels(pictures: Tensor) -> Pixels:
    """Turn what a VAE gives, (B, 3, H, W) in -1..1, into pictures (B, H, W, 3) in 0..1."""
    return ((pictures.clamp(-1, 1) + 1) / 2).permute(0, 2, 3, 1).numpy()


@torch.no_grad()
def restore(vae: AutoencoderKL, pictures: Tensor, *, batch: int = 32) -> Tensor:
    """Encode and decode pictures. Shapes: (B, 3, H, W) -> the same, -1..1."""
    return torch.cat([vae.decode(vae.encode(part).latent_dist.mean).sample for part in torch.split(pictures, batch)])


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


def psnr(error: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of an error on the -1..1 scale."""
    return float(10 * torch.log10(4 / error.detach().square().mean().clamp_min(1e-12)))


def _kl(mean: Tensor, logvar: Tensor) -> Tensor:
    mean, logvar = mean.float(), logvar.float()
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
