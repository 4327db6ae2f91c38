"""The parts of the pipeline put together: the diffusion transformer, its noise schedule and the diffusers folder."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
)
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import T5EncoderModel, T5Tokenizer

from recipes.runs import write_folder
from recipes.text import WIDTH
from torch_moddit.model import RoutedTransformer

SIDE: Final = 64  # of the pictures, pixels
TRAIN_TIMESTEPS: Final = 1000
STEPS: Final = 20
GUIDANCE: Final = 4.5


def build_transformer(*, heads: int, patch_size: int) -> PixArtTransformer2DModel:
    """Make an untrained transformer for latents (4, 32, 32): 8 layers, 32 channels a head."""
    return PixArtTransformer2DModel(
        num_attention_heads=heads,
        attention_head_dim=32,
        in_channels=4,
        out_channels=4,
        num_layers=8,
        cross_attention_dim=32 * heads,
        sample_size=32,
        patch_size=patch_size,
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


def route(pipeline: PixArtSigmaPipeline, model: RoutedTransformer) -> PixArtSigmaPipeline:
    """Put a routed transformer into diffusers' own pipeline, which draws many pictures at once."""
    pipeline.register_modules(transformer=_Adapter(model))
    return pipeline


def generate(
    pipeline: PixArtSigmaPipeline,
    prompts: Sequence[str],
    *,
    seed: int,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
    side: int = SIDE,
    batch: int = 32,
) -> NDArray[np.float32]:
    """Generate pictures, (B, side, side, 3) in 0..1; that of prompt i from the noise of seed `seed` * 100000 + i."""
    pictures = []
    for start in range(0, len(prompts), batch):
        part = list(prompts[start : start + batch])
        generators = [torch.Generator().manual_seed(seed * 100_000 + start + i) for i in range(len(part))]
        result = pipeline(
            part,
            num_inference_steps=steps,
            guidance_scale=guidance,
            height=side,
            width=side,
            generator=generators,
            use_resolution_binning=False,
            clean_caption=False,
            max_sequence_length=pipeline.tokenizer.model_max_length,
            output_type="np",
        )
        pictures.append(np.asarray(result.images, dtype=np.float32))
    return np.concatenate(pictures)


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
