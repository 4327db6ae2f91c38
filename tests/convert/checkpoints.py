"""Changes to checkpoints, large ones, and conversions in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from safetensors.numpy import load_file, save_file

from benchmarks.random_pixart import save_random
from convert.cli import main
from moddit.conditioning import Text
from moddit.configurations import find_configuration

TRANSFORMER: Final = "transformer/diffusion_pytorch_model.safetensors"
TEXT_ENCODER: Final = "text_encoder/model.safetensors"
VAE: Final = "vae/diffusion_pytorch_model.safetensors"

Tensors = dict[str, np.ndarray]


def convert(source: Path, out: Path, *options: str) -> int:
    """Run the command; return its exit status."""
    return main(["--from", "hf-checkpoint", "--hf-path", str(source), "--out", str(out), *options])


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a JSON file in place."""
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def edit_weights(path: Path, change: Callable[[Tensors], object]) -> None:
    """Change the tensors of a file in place."""
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def save_large(folder: Path, *, true: str, layers: int) -> Path:
    """Save a routed PixArt-Sigma in float32, of which one component has the true size, but for its layers.

    Args:
        folder: must not exist.
        true: "transformer", or "text_encoder", T5-XXL.
        layers: of that component, whose weights are random, as all are.
    """
    spec: Any = find_configuration("pixart-sigma-xl")
    transformer, encoder = spec.transformer, spec.conditioning.encoder
    if true == "transformer":
        transformer = replace(transformer, num_layers=layers)
        encoder = replace(encoder, vocab_size=64, num_layers=1, num_heads=1, d_ff=64)
    else:
        transformer = replace(transformer, num_layers=1, num_attention_heads=2, cross_attention_dim=144)
        encoder = replace(encoder, vocab_size=64, num_layers=layers)
    vae = replace(spec.vae, block_out_channels=(8,) * 4, layers_per_block=1, norm_num_groups=4)
    text = Text(encoder, spec.text_tokens)
    return save_random(folder, replace(spec, transformer=transformer, conditioning=text, vae=vae), (10, 7, 5, 3), "F32")
