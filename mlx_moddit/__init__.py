"""Routed diffusion transformers on MLX: `Pipeline.load(path).generate(prompt)`."""

from mlx_moddit.pipeline import Picture, Pipeline, Result
from moddit.request import Request

__all__ = ["Picture", "Pipeline", "Request", "Result"]
