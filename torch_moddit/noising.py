"""What a model is asked in training: a batch of samples, encoded, and noised to timesteps of the schedule.

All that is random about a sample is drawn from a generator of its own, which depends on the seed, the step and the
sample's place in the step: it is the same however the samples of a step are divided among processes and micro-steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

from moddit.edits import latent_mask
from moddit.errors import MissingError, ShapeError
from moddit.samplers import NoiseSchedule
from torch_moddit.conditioning import Components, make_context
from torch_moddit.data import Item
from torch_moddit.masks import draw_mask, hide
from torch_moddit.model import Context

DrawTimesteps = Callable[[int, torch.Generator], Tensor]  # count -> (count,) int64


def make_generator(*key: int) -> torch.Generator:
    """Make a source of randomness for a key, of which zeros at the end do not count."""
    seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])
    return torch.Generator().manual_seed(seed >> 1)


def make_generators(seed: int, step: int, first: int, count: int) -> list[torch.Generator]:
    """Make those of the samples from the place `first` in a step on."""
    return [make_generator(seed, step, 1 + place) for place in range(first, first + count)]


@dataclass(frozen=True)
class Noised:
    """A batch as a model is given it, and what it should predict."""

    latents: Tensor  # (B, C, H, W)
    timesteps: Tensor  # (B,)
    context: Context
    wanted: Tensor  # noise or velocity, (B, C, H, W)
    regions: Tensor  # of the timesteps, (B,)
    shown: Tensor | None = None  # to a model that inpaints: masks and latents of the masked pictures, (B, 1 + C, H, W)

    def predict(self, model: Callable[..., Tensor]) -> Tensor:
        """Predict noise or velocity, without the variance that some models predict beside it, in float32."""
        inputs = self.latents if self.shown is None else torch.cat([self.latents, self.shown], dim=1)
        return model(inputs, self.timesteps, self.context)[:, : self.latents.shape[1]].float()

    def losses(self, output: Tensor) -> Tensor:
        """Give the mean squared error of each sample. Shapes: output (B, C, H, W) -> (B,)."""
        return (output - self.wanted).square().mean(dim=(1, 2, 3))


class Noising:
    """How batches are encoded and noised.

    Args:
        schedule: noise levels and prediction type.
        regions: of timesteps.
        components: what encodes pixels and token numbers, frozen and on the device.
        device: of what is made.
        mask_patch: side of a token, latent pixels, for a model that inpaints; None for others.
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        regions: int,
        components: Components,
        device: torch.device,
        *,
        mask_patch: int | None = None,
    ) -> None:
        self.schedule, self.regions, self.mask_patch = schedule, regions, mask_patch
        self.components, self.device = components, device
        alphas = torch.from_numpy(schedule.alphas_cumprod)
        self.signal, self.noise = alphas.sqrt().float().to(device), (1 - alphas).sqrt().float().to(device)

    @torch.no_grad()
    def __call__(
        self,
        batch: Item,
        timesteps: Tensor,
        generators: Sequence[torch.Generator],
        null: Item | None = None,
        dropout: float = 0.0,
    ) -> Noised:
        """Encode a batch and add noise.

        Args:
            batch: samples (`torch_moddit.data`).
            timesteps: of each sample, (B,).
            generators: of each sample.
            null: condition that takes the place of some samples' own.
            dropout: share of them.

        Raises:
            MissingError: a component is needed and absent, or pixels, which are masked for a model that inpaints.
            ShapeError: pictures that are masked are not made of whole tokens.
        """
        dropped = torch.stack([torch.rand((), generator=generator) for generator in generators]) < dropout
        nulls = {key: value for key, value in (null or {}).items() if key in batch}
        items = {**batch, **{key: _replace(batch[key], value, dropped) for key, value in nulls.items()}}
        context = make_context({key: value.to(self.device) for key, value in items.items()}, self.components)
        if "text" in context:
            context = {**context, "text": context["text"].float()}
        latents = self._latents(batch, generators)
        noise = self._draw(latents, generators)
        regions = timesteps * self.regions // self.schedule.num_train_timesteps
        timesteps = timesteps.to(self.device)
        signal, share = (table[timesteps].view(-1, 1, 1, 1) for table in (self.signal, self.noise))
        wanted = noise if self.schedule.prediction_type == "epsilon" else signal * noise - share * latents
        shown = None if self.mask_patch is None else self._show(batch, latents, self.mask_patch, generators)
        return Noised(signal * latents + share * noise, timesteps, context, wanted, regions.to(self.device), shown)

    def _show(self, batch: Item, latents: Tensor, patch_size: int, generators: Sequence[torch.Generator]) -> Tensor:
        """Draw a mask for each picture, and give it with the latents of what it leaves. Shapes: -> (B, 1 + C, h, w)."""
        if "pixels" not in batch:
            found = ", ".join(sorted(batch))
            raise MissingError(
                f"[finetune] task inpaint masks pictures, but the dataset gives {found}; want pixels, too"
            )
        pixels, height, width = batch["pixels"].cpu(), *batch["pixels"].shape[2:]
        downscale = width // latents.shape[3]
        unit = patch_size * downscale
        if height % unit or width % unit:
            raise ShapeError(
                f"[finetune] pictures of height {height} and width {width}, want multiples of {unit} pixels"
            )
        masks = [draw_mask((height, width), unit, generator) for generator in generators]
        masked = torch.stack([hide(picture, mask) for picture, mask in zip(pixels, masks, strict=True)])
        marks = torch.from_numpy(np.stack([latent_mask(mask, downscale) for mask in masks]))[:, None]
        return torch.cat([marks.to(self.device), self._sample(self._encode_pixels(masked), generators)], dim=1)

    def _latents(self, batch: Item, generators: Sequence[torch.Generator]) -> Tensor:
        return self._sample(batch if "latents" in batch else self._encode_pixels(batch["pixels"]), generators)

    def _sample(self, posterior: Item, generators: Sequence[torch.Generator]) -> Tensor:
        latents = posterior["latents"].to(self.device).float()
        if "std" in posterior:
            latents = latents + posterior["std"].to(self.device).float() * self._draw(latents, generators)
        return latents

    def _encode_pixels(self, pixels: Tensor) -> Item:
        vae: Any = self.components.get("vae")
        if vae is None:
            raise MissingError("[finetune] the dataset gives pixels: pass `components` with a 'vae'")
        encoded = vae.encode(pixels.to(self.device, vae.dtype)).latent_dist
        # without the VAE's shift_factor: diffusers' pipelines decode without it
        scale = vae.config.scaling_factor
        return {"latents": encoded.mean * scale, "std": encoded.std * scale}

    def _draw(self, latents: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """Draw standard noise. Shapes: latents (B, C, H, W) -> the same."""
        noise: Tensor = randn_tensor(latents.shape, generator=list(generators), device=self.device)
        return noise


def draw_stratified(count: int, generator: torch.Generator, *, num_train_timesteps: int) -> Tensor:
    """Draw one timestep from each of `count` equal parts of the range, in random order of samples."""
    places = (torch.arange(count) + torch.rand(count, generator=generator)) / count * num_train_timesteps
    return places[torch.randperm(count, generator=generator)].long().clamp_max(num_train_timesteps - 1)


def _replace(values: Tensor, null: Tensor, dropped: Tensor) -> Tensor:
    """Put the null condition in the place of some samples, with zeros after the shorter of two texts.

    Shapes: values (B, ...), null (...), dropped (B,)
    """
    if null.ndim:
        inner, length = (0, 0) * (null.ndim - 1), max(null.shape[0], values.shape[1])
        values, null = (nn.functional.pad(x, (*inner, 0, length - x.shape[-null.ndim])) for x in (values, null))
    return torch.where(dropped.view(-1, *[1] * (values.ndim - 1)), null.to(values.dtype), values)
