"""Train the checkpoints of the comparison that are not there yet, each on the same budget."""

from __future__ import annotations

from typing import Any

import torch

from moddit.checkpoint.sources import as_sources
from moddit.routing import DENOMINATOR
from recipes.comparison.evaluation import Evaluation
from recipes.comparison.methods import FAMILIES, Training, list_trainings
from torch_moddit.architectures import dense
from torch_moddit.export import save_checkpoint
from torch_moddit.finetune import FinetuneConfig, Mode


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
    save_checkpoint(
        evaluation.model(training),
        model,
        source=as_sources(world.teacher()),
        keep_ratio=result.keep_ratio,
        dtype=torch.float16,
    )
