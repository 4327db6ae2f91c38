"""Routed diffusion transformers on MLX: `Pipeline.load(path).generate(prompt)`."""

from mlx_moddit.pipeline import Picture, Pipeline, Result
from mlx_moddit.settings import Settings

__all__ = ["Picture", "Pipeline", "Result", "Settings"]
