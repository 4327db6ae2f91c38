"""The parts of the pipeline put together: the diffusion transformer, its noise schedule and the diffusers folder."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
)
from torch import Tensor, nn
from transformers import T5EncoderModel, T5Tokenizer

from recipes.shapes64.runs import write_folder
from recipes.shapes64.text import WIDTH
from recipes.shapes64.vae import build_vae
from torch_moddit.model import RoutedTransformer

TRAIN_TIMESTEPS = 1000


def build_transformer() -> PixArtTransformer2DModel:
    """Make the untrained transformer: 64 tokens of 8x8 pixels, width 128, 8 layers, 2.3 M parameters."""
    return PixArtTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=32,
        in_channels=4,
        out_channels=4,
        num_layers=8,
        cross_attention_dim=WIDTH,
        sample_size=32,
        patch_size=4,
        caption_channels=WIDTH,
        use_additional_conditions=False,
    )


def build_scheduler() -> DPMSolverMultistepScheduler:
    """Make the sampler that ships with the checkpoint: DPM-Solver++ 2M, PixArt's linear betas, velocity prediction."""
    return DPMSolverMultistepScheduler(
        num_train_timesteps=TRAIN_TIMESTEPS,
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        prediction_type="v_prediction",
        algorithm_type="dpmsolver++",
        solver_order=2,
    )


def assemble(
    transformer: PixArtTransformer2DModel, text_encoder: T5EncoderModel, tokenizer: T5Tokenizer, vae: AutoencoderKL
) -> PixArtSigmaPipeline:
    """Put the parts into a pipeline."""
    return PixArtSigmaPipeline(
        tokenizer=tokenizer, text_encoder=text_encoder, vae=vae, transformer=transformer, scheduler=build_scheduler()
    )


def save_pipeline(pipeline: PixArtSigmaPipeline, folder: Path) -> None:
    """Write the pipeline as a diffusers folder with fp16 safetensors, whole or not at all; `pipeline` is untouched."""
    parts = {
        name: copy.deepcopy(part).half() if isinstance(part, torch.nn.Module) else part
        for name, part in pipeline.components.items()
    }
    write_folder(folder, PixArtSigmaPipeline(**parts).save_pretrained)


def load_pipeline(folder: Path) -> PixArtSigmaPipeline:
    """Load a folder in fp32, ready to generate without a progress bar."""
    pipeline = PixArtSigmaPipeline.from_pretrained(folder)
    for part in (pipeline.transformer, pipeline.text_encoder, pipeline.vae):
        part.float()  # each library has its own idea of the default
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load_parts(work: Path) -> tuple[T5Tokenizer, T5EncoderModel, AutoencoderKL]:
    """Load what the earlier stages made under the work folder."""
    return (
        T5Tokenizer.from_pretrained(work / "tokenizer"),
        T5EncoderModel.from_pretrained(work / "text_encoder"),
        AutoencoderKL.from_pretrained(work / "vae"),
    )


def save_random(work: Path, folder: Path, *, seed: int = 0) -> None:
    """Save an untrained pipeline of the final architecture, for code that is written while the real one trains."""
    torch.manual_seed(seed)
    tokenizer = T5Tokenizer.from_pretrained(work / "tokenizer")
    text_encoder = T5EncoderModel.from_pretrained(work / "text_encoder")
    save_pipeline(assemble(build_transformer(), text_encoder, tokenizer, build_vae()), folder)


def route(pipeline: PixArtSigmaPipeline, model: RoutedTransformer) -> PixArtSigmaPipeline:
    """Put a routed transformer into diffusers' own pipeline, which draws many pictures at once."""
    pipeline.register_modules(transformer=_Adapter(model))
    return pipeline


class _Adapter(nn.Module):
    """Give a routed PixArt the face of a PixArtTransformer2DModel, as far as the pipelines look at it."""

    def __init__(self, model: RoutedTransformer) -> None:
        super().__init__()
        self.model = model

    @property
    def config(self) -> Any:
        return self.model.transformer.config

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        timestep: Tensor,
        added_cond_kwargs: Mapping[str, Tensor | None],
        encoder_attention_mask: Tensor,
        return_dict: bool,
    ) -> tuple[Tensor]:
        assert not return_dict, "the pipelines ask for a tuple"
        context = {"text": encoder_hidden_states, "text_mask": encoder_attention_mask}
        sizes = {name: value for name, value in added_cond_kwargs.items() if value is not None}
        return (self.model(hidden_states, timestep, {**context, **sizes}),)
