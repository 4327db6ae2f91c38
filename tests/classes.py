"""Classes that diffusers and transformers import when they are first asked for: a forked process has them already."""

from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
)
from transformers import T5EncoderModel, T5Tokenizer

__all__ = [
    "AutoencoderKL",
    "DPMSolverMultistepScheduler",
    "PixArtAlphaPipeline",
    "PixArtSigmaPipeline",
    "PixArtTransformer2DModel",
    "T5EncoderModel",
    "T5Tokenizer",
]
