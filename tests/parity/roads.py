"""Run a checkpoint both ways, through the PyTorch reference and through `convert` and MLX, and keep every step."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from convert.cli import main
from mlx_moddit.pipeline import Pipeline
from mlx_moddit.stages import Stage, Step
from moddit.sampling import Denoised
from torch_moddit.model import BlockTrace
from torch_moddit.pipeline import ReferencePipeline


@dataclass
class Road:
    """What happened on the way to one picture."""

    picture: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, dtype=np.float32))  # (H, W, 3), 0..1
    latents: list[NDArray[np.float32]] = field(default_factory=list)  # after each step, (1, C, h, w)
    # Of the steps that ask the model:
    kept: list[list[NDArray[np.int64]]] = field(default_factory=list)  # [steps][layers] (B, K); none if dense
    scores: list[list[NDArray[np.float32]]] = field(default_factory=list)  # [steps][layers] (B, N), reference only
    outputs: list[list[NDArray[np.float32]]] = field(default_factory=list)  # [steps][layers] (B, N, C), reference only


def to_bundle(folder: Path, bundle: Path, dtype: str = "float32") -> Path:
    """Convert a checkpoint with the command that a user would give."""
    arguments = ["--from", "hf-checkpoint", "--hf-path", str(folder), "--to", "mlx", "--out", str(bundle)]
    assert main([*arguments, "--dtype", dtype]) == 0
    return bundle


def run_reference(folder: Path, prompt: str, **settings: Any) -> Road:
    """Generate with PyTorch, in the loop that MLX has too (`moddit.sampling`)."""
    road = Road()

    def on_block(_: int, trace: BlockTrace) -> None:
        if trace.layer == 0:
            for table in (road.kept, road.scores, road.outputs):
                table.append([])
        road.outputs[-1].append(trace.output.numpy().copy())
        if trace.scores is not None:
            road.scores[-1].append(trace.scores.numpy().copy())
            road.kept[-1].append(torch.stack(trace.kept).numpy())

    def on_step(done: Denoised[torch.Tensor]) -> None:
        road.latents.append(done.latents.numpy().copy())

    pipeline = ReferencePipeline.load(folder)
    road.picture = pipeline.generate(prompt, on_block=on_block, on_step=on_step, **settings)
    return road


def run_mlx(bundle: Path, prompt: str, **settings: Any) -> Road:
    """Generate with MLX as a user does who names no precision: on a CPU in float32, on a GPU in the stored one."""
    road = Road()

    def keep(stage: Stage) -> None:
        if isinstance(stage, Step):
            road.latents.append(np.array(stage.latents).transpose(0, 3, 1, 2))
            if not stage.is_reused:
                road.kept.append([np.array(layer).astype(np.int64) for layer in stage.kept])

    pipeline = Pipeline.load(bundle)
    result = pipeline.generate(prompt, routes=pipeline.bundle.policy.has_routers, on_stage=keep, **settings)
    road.picture = result.images[0].astype(np.float32) / np.float32(255)
    return road
