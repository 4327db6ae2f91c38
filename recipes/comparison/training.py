"""Train the checkpoints of the comparison that are not there yet, each on the same budget."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moddit.checkpoint.sources import as_sources
from moddit.routing import DENOMINATOR
from recipes.comparison.evaluation import Evaluation
from recipes.comparison.methods import FAMILIES, Training, list_trainings
from torch_moddit.architectures import dense
from torch_moddit.export import save_checkpoint
from torch_moddit.finetune import FinetuneConfig, Mode
from torch_moddit.loading import load_checkpoint
from torch_moddit.model import RoutedTransformer


def train_missing(evaluation: Evaluation) -> None:
    """Train every checkpoint that is not there: runs/NAME/ (resumed if it is there), models/NAME/ at the end."""
    for training in list_trainings(evaluation.scale, evaluation.only):
        if not evaluation.model(training).exists():
            train(evaluation, training)


def train(evaluation: Evaluation, training: Training) -> None:
    """Train one checkpoint and save it as a diffusers folder.

    Random tokens are no policy of a checkpoint: what was trained with them is saved as a dense model, to which the
    comparison does the same again.
    """
    world, family = evaluation.world, FAMILIES[training.family]
    settings: dict[str, Any] = {**world.SETTINGS, **evaluation.scale.training, **family.settings}
    config = FinetuneConfig(
        output=evaluation.work / "runs" / training.name,
        target=training.tenths / DENOMINATOR,
        seed=training.seed,
        **settings,
    )
    result = world.finetune(config)
    model = result.model
    if config.mode is Mode.RANDOM:
        model = dense(model.transformer, model.policy.plan.num_train_timesteps)
    save_by_products(evaluation, training, config.output)
    _save(evaluation, training, model, result.keep_ratio)


def save_by_products(evaluation: Evaluation, training: Training, output: Path) -> None:
    """Save what a run left each time that the mean keep ratio had passed a tenth (OUT/by-products/0.8)."""
    for folder in sorted((output / "by-products").glob("0.[1-9]")):
        passed = replace(training, passed=round(float(folder.name) * DENOMINATOR))
        if not evaluation.model(passed).exists():
            _save(evaluation, passed, load_checkpoint(folder), None)


def _save(evaluation: Evaluation, training: Training, model: RoutedTransformer, keep_ratio: Tensor | None) -> None:
    source = as_sources(evaluation.world.teacher())
    save_checkpoint(evaluation.model(training), model, source=source, keep_ratio=keep_ratio, dtype=torch.float16)
