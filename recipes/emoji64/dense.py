"""The dense teacher, trained by the project's own trainer on what `torch_moddit.prepare` wrote.

First it sees the pictures at half their side, 64 tokens at a quarter of the cost, which teaches it what is asked for by
which words and where what is; then at their full side, 256 tokens; at the end the rates fall. Positions mean the same
at both sides: PixArt's embedding is by the place in the picture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from torch import nn

from recipes.pipeline import SIDE
from recipes.training import REGIONS, train_on
from torch_moddit.finetune import FinetuneConfig, FinetuneResult, Mode

PARTS: Final = {"small": SIDE // 2, "large": SIDE, "final": SIDE}  # parts of the training, and pixels of a side


@dataclass(frozen=True)
class DenseSettings:
    """How one part of the training is done."""

    steps: int
    batch: int
    rate: float = 1e-3  # of AdamW
    muon_rate: float = 4e-3  # of the blocks' matrices
    decay: float = 0.999  # of the weight average
    flat: float = 1.0  # share of the steps before the rates fall
    chunk: int = 200  # steps between checkpoints, after each of which the caller may look at the model


def train_dense(
    work: Path,
    name: str,
    transformer: nn.Module,
    settings: DenseSettings,
    after_chunk: Callable[[FinetuneResult], None],
) -> FinetuneResult:
    """Train a transformer of diffusers on `work`/data-SIDE, from the last checkpoint in `work`/runs/`name` if there is
    one; `after_chunk` is given the averaged weights now and then, and at the end.
    """
    config = FinetuneConfig(
        output=work / "runs" / name,
        steps=settings.steps,
        batch_size=settings.batch,
        mode=Mode.DENSE,
        regions=REGIONS,
        learning_rate=settings.rate,
        warmup=min(50, settings.steps),
        flat_share=settings.flat,
        ema_decay=settings.decay,
        mixed_precision="bf16",
        log_every=min(20, settings.steps),
        save_every=settings.chunk,
        progress=False,
    )
    while True:
        result = train_on(
            work / f"data-{PARTS[name]}",
            config,
            transformer,
            muon_rate=settings.muon_rate,
            stop_after=settings.chunk,
        )
        after_chunk(result)
        if result.is_finished:
            return result
