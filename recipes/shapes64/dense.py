"""The dense teacher: velocity prediction on precomputed latents, stopped and resumed exactly at any snapshot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers import PixArtTransformer2DModel
from torch import Tensor, nn
from transformers import T5EncoderModel, T5Tokenizer

from recipes.pipeline import TRAIN_TIMESTEPS, assemble, build_transformer, load_parts, save_pipeline
from recipes.runs import Average, Journal, State, cosine_rate, save_whole, set_rate, shuffled
from recipes.shapes64.scenes import caption, draw_scene, parse
from recipes.shapes64.text import VARIANTS, word_variants
from recipes.shapes64.vae import encode_scenes
from recipes.text import tokenize
from recipes.training import REGIONS, draw_timesteps, make_muon, split_matrices

WORDING_SHARES = (0.375, 0.375, 0.125, 0.125)  # plain order, plain order, reversed, reversed


@dataclass(frozen=True)
class DenseSettings:
    """How the teacher is trained."""

    steps: int
    batch: int = 32
    optimizer: Literal["muon", "adamw"] = "muon"
    rate: float = 1e-3  # of AdamW
    muon_rate: float = 4e-3  # of Muon, matched to AdamW's step size
    text_factor: float = 0.2  # the text encoder's rate as a share of `rate`
    caption_dropout: float = 0.1
    decay: float = 0.999  # of the weight average
    warmup: int = 30  # steps
    flat: float = 0.5  # share of the steps before the rate falls
    log_every: int = 25  # steps
    save_every: int = 500  # steps
    seed: int = 3


@dataclass(frozen=True)
class LatentSet:
    """Training pairs. Shapes: latents (N, 4, 32, 32) float16 scaled, ids and mask (N, 4 wordings, 24) int64."""

    latents: Tensor
    ids: Tensor
    mask: Tensor

    @classmethod
    def load(cls, path: Path, tokenizer: T5Tokenizer) -> LatentSet:
        """Read the latents and captions of `encode_set` and tokenize every wording."""
        state = torch.load(path, weights_only=True)
        texts = [text for line in state["captions"] for text in word_variants(parse(line))]
        ids, mask = tokenize(tokenizer, texts)
        shape = (len(state["captions"]), VARIANTS, -1)
        return cls(state["latents"], ids.view(shape), mask.view(shape))


def encode_set(work: Path, journal: Journal, *, count: int, seed: int = 4) -> None:
    """Draw and encode the training set once: `work`/latents.pt."""
    rng = np.random.default_rng(seed)
    _, _, vae = load_parts(work)
    vae.eval().requires_grad_(False)
    scenes = [draw_scene(rng, held_out=False) for _ in range(count)]
    latents = encode_scenes(vae, scenes, rng)
    save_whole({"latents": latents.contiguous(), "captions": [caption(scene) for scene in scenes]}, work / "latents.pt")
    spread = latents.float().std(dim=(0, 2, 3)).tolist()
    journal.write(latents=count, channel_std=[round(value, 3) for value in spread])


def signal_and_noise(timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """Share of signal and of noise at integer timesteps (B,) under PixArt's linear betas, each (B, 1, 1, 1) float32."""
    betas = torch.linspace(1e-4, 0.02, TRAIN_TIMESTEPS, dtype=torch.float64)
    kept = torch.cumprod(1 - betas, dim=0)[timesteps].view(-1, 1, 1, 1)
    return kept.sqrt().float(), (1 - kept).sqrt().float()


def build() -> PixArtTransformer2DModel:
    """Make the untrained transformer: 64 tokens of 8x8 pixels, width 128, 2.3 M parameters."""
    return build_transformer(heads=4, patch_size=4)


class DenseTrainer:
    """Everything that a step changes, so that a snapshot holds all of it.

    Args:
        work: folder of the earlier stages.
        settings: how to train.
        journal: where losses go.
        after_save: called with the step and the averaged modules after each snapshot.
    """

    def __init__(
        self,
        work: Path,
        settings: DenseSettings,
        journal: Journal,
        after_save: Callable[[int, PixArtTransformer2DModel, T5EncoderModel], None] | None = None,
    ) -> None:
        torch.manual_seed(settings.seed)
        self.settings = settings
        self.journal = journal
        self.after_save = after_save
        self.state_path = work / "dense.pt"
        self.tokenizer, self.text_encoder, self.vae = load_parts(work)
        self.data = LatentSet.load(work / "latents.pt", self.tokenizer)
        self.null_ids, self.null_mask = tokenize(self.tokenizer, [""])
        self.transformer = build()
        self.modules = nn.ModuleDict({"transformer": self.transformer, "text_encoder": self.text_encoder}).train()
        self.average = Average(self.modules, settings.decay)
        self.optimizers = make_optimizers(self.transformer, self.text_encoder, settings)
        self.step = 0
        self.predict: Callable[..., Tensor] = self._predict

    def train(self) -> None:
        """Train from the present step to the last, writing a snapshot now and then and at the end."""
        settings = self.settings
        self.journal.trim(self.step)
        batches = shuffled(len(self.data.latents), settings.batch, settings.seed)
        for _ in range(self.step):
            next(batches)
        totals, counts = torch.zeros(REGIONS), torch.zeros(REGIONS)
        while self.step < settings.steps:
            factor = cosine_rate(self.step, settings.steps, warmup=settings.warmup, flat=settings.flat)
            set_rate(self.optimizers, factor)
            losses, timesteps = self.train_step(next(batches))
            regions = timesteps * REGIONS // TRAIN_TIMESTEPS
            totals.index_add_(0, regions, losses)
            counts.index_add_(0, regions, torch.ones_like(losses))
            self.step += 1
            if self.step % settings.log_every == 0:
                means = (totals / counts.clamp_min(1)).tolist()
                self.journal.write(
                    step=self.step,
                    samples=self.step * settings.batch,
                    loss=float(totals.sum() / counts.sum()),
                    regions=[round(mean, 4) for mean in means],
                )
                totals.zero_()
                counts.zero_()
            if self.step % settings.save_every == 0 or self.step == settings.steps:
                self.save()

    def train_step(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Take one optimizer step on the latents `rows`; return each sample's loss and timestep, both (B,)."""
        generator = torch.Generator().manual_seed(self.settings.seed * 10_000_019 + self.step)
        latents = self.data.latents[rows].float()
        ids, mask = self._draw_captions(rows, generator)
        timesteps = draw_timesteps(len(rows), generator)
        noise = torch.randn(latents.shape, generator=generator)
        signal, share = signal_and_noise(timesteps)
        predicted = self.predict(signal * latents + share * noise, timesteps, ids, mask)
        losses = (predicted - (signal * noise - share * latents)).square().mean(dim=(1, 2, 3))
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        torch.autograd.backward(losses.mean())
        nn.utils.clip_grad_norm_(self.modules.parameters(), 1.0, foreach=True)
        for optimizer in self.optimizers:
            optimizer.step()
        self.average.update(self.modules)
        return losses.detach(), timesteps

    def save(self) -> None:
        """Write the snapshot that `resume` continues from."""
        save_whole(
            {
                "step": self.step,
                "modules": self.modules.state_dict(),
                "average": self.average.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            },
            self.state_path,
        )
        if self.after_save is not None:
            self.after_save(self.step, *self.averaged())

    def resume(self) -> bool:
        """Continue from the snapshot if there is one."""
        if not self.state_path.exists():
            return False
        state: State = torch.load(self.state_path, weights_only=True)
        self.step = state["step"]
        self.modules.load_state_dict(state["modules"])
        self.average.load_state_dict(state["average"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        return True

    def averaged(self) -> tuple[PixArtTransformer2DModel, T5EncoderModel]:
        """Return new modules with the averaged weights."""
        transformer, text_encoder = build(), T5EncoderModel(self.text_encoder.config)
        modules = nn.ModuleDict({"transformer": transformer, "text_encoder": text_encoder})
        self.average.copy_to(modules)
        modules.eval().requires_grad_(False)
        return transformer, text_encoder

    def export(self, folder: Path) -> None:
        """Save the averaged weights as a diffusers pipeline."""
        transformer, text_encoder = self.averaged()
        save_pipeline(assemble(transformer, text_encoder, self.tokenizer, self.vae), folder)

    def _draw_captions(self, rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        count = len(rows)
        shares = torch.tensor(WORDING_SHARES)
        wording = torch.multinomial(shares, count, replacement=True, generator=generator)
        dropped = torch.rand(count, 1, generator=generator) < self.settings.caption_dropout
        ids = torch.where(dropped, self.null_ids, self.data.ids[rows, wording])
        return ids, torch.where(dropped, self.null_mask, self.data.mask[rows, wording])

    def _predict(self, noisy: Tensor, timesteps: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        states = self.text_encoder(ids, attention_mask=mask).last_hidden_state
        velocity: Tensor = self.transformer(
            noisy,
            encoder_hidden_states=states,
            encoder_attention_mask=mask,
            timestep=timesteps,
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            return_dict=False,
        )[0]
        return velocity


def make_optimizers(
    transformer: PixArtTransformer2DModel, text_encoder: T5EncoderModel, settings: DenseSettings
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for everything else (or for all of it)."""
    matrices, others = split_matrices(transformer)
    if settings.optimizer == "adamw":
        matrices, others = [], others + matrices
    text_rate = settings.text_factor * settings.rate
    groups: list[dict[str, Any]] = [{"params": others}, {"params": list(text_encoder.parameters()), "lr": text_rate}]
    adamw = torch.optim.AdamW(
        groups,
        lr=settings.rate,
        betas=(0.9, 0.99),
        weight_decay=0.01,
        fused=True,
    )
    return [adamw, make_muon(matrices, settings.muon_rate)] if matrices else [adamw]
