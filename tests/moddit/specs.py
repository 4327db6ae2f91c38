"""Tiny specifications: one model that draws texts, and one that draws classes."""

from __future__ import annotations

from typing import Final

from moddit.conditioning import Label, Text
from moddit.models.dit import DiTSpec
from moddit.models.pixart import PixArtSpec
from moddit.models.t5 import T5Spec
from moddit.models.vae import VAESpec
from moddit.samplers import NoiseSchedule
from moddit.spec import ModelSpec

VAE: Final = VAESpec(3, 3, 4, (8, 8), 1, 4, 0.5, 0.0, True, True, False)
SCHEDULE: Final = NoiseSchedule.from_diffusers(
    {
        "_class_name": "DPMSolverMultistepScheduler",
        "num_train_timesteps": 1000,
        "beta_schedule": "linear",
        "beta_start": 0.0001,
        "beta_end": 0.02,
        "prediction_type": "epsilon",
    },
    "scheduler_config.json",
)
PIXART: Final = PixArtSpec(2, 2, 4, 4, 4, 2, 8, 8, 6, 1.0, True, 1e-6, False)
ENCODER: Final = T5Spec(10, 6, 3, 8, 1, 2, 32, 128, True, "gelu_new", 1e-6)
TEXT: Final = ModelSpec(PIXART, Text(ENCODER, 12), VAE, SCHEDULE)
CLASSES: Final = ("tench, Tinca tinca", "goldfish", "great white shark")
DIT: Final = DiTSpec(2, 2, 4, 4, 8, 2, 8, 3, True, 1e-5)
LABEL: Final = ModelSpec(DIT, Label(CLASSES), VAE, SCHEDULE)
