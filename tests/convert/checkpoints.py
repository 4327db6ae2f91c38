"""Changes to checkpoints, and conversions in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from safetensors.numpy import load_file, save_file

from convert.cli import main

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
