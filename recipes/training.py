"""What the recipes tell the project's own trainer: budgets, which timesteps to draw, what moves which weights."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from recipes.muon import GroupedMuon
from recipes.pipeline import TRAIN_TIMESTEPS, build_scheduler
from torch_moddit.architectures import dense
from torch_moddit.finetune import FinetuneConfig, FinetuneResult, finetune
from torch_moddit.pipeline import read_schedule
from torch_moddit.settings import Train
from torch_moddit.shards import Shards
from torch_moddit.trainee import Trainee

REGIONS: Final = 4  # of 250 timesteps each
# Timesteps where layout is known and form is not: half of the samples are drawn around here.
MIDDLE: Final = 450.0
SPREAD: Final = 200.0


@dataclass(frozen=True)
class FinetuneBudget:
    """What the fine-tuning of a teacher may spend."""

    steps: int
    batch: int = 32
    rate: float = 1e-3  # of AdamW
    muon_rate: float = 7e-3  # of the blocks' matrices
    router_rate: float = 1e-3
    ratio_rate: float = 2e-3
    fall_share: float = 0.09  # of the steps, in which the mean keep ratio falls to the target
    freeze_share: float = 0.2  # of the steps, after which the ratios stay
    save_every: int = 250  # steps


def settings(budget: FinetuneBudget) -> dict[str, Any]:
    """Write a budget, and how every model here is trained, as fields of a `FinetuneConfig`."""
    return {
        "steps": budget.steps,
        "batch_size": budget.batch,
        "regions": REGIONS,
        "learning_rate": budget.rate,
        "router_rate": budget.router_rate,
        "ratio_rate": budget.ratio_rate,
        "fall_share": budget.fall_share,
        "freeze_share": budget.freeze_share,
        "warmup": min(50, budget.steps),
        "distill_weight": 1.0,
        "log_every": min(20, budget.steps),
        "save_every": budget.save_every,
        "progress": False,
    }


def train_on(
    data: Path, config: FinetuneConfig, transformer: nn.Module, *, muon_rate: float, stop_after: int | None = None
) -> FinetuneResult:
    """Train a dense transformer of diffusers on a dataset that `torch_moddit.prepare` wrote; the log is printed, too.

    What is not all of the weights is moved by AdamW alone.
    """
    shards = Shards(data, dense(transformer, TRAIN_TIMESTEPS).spec)
    return finetune(
        config,
        transformer,
        shards,
        read_schedule(build_scheduler()),
        null=shards.null,
        draw_timesteps=draw_timesteps,
        make_optimizers=partial(make_optimizers, muon_rate=muon_rate) if config.train is Train.ALL else None,
        stop_after=stop_after,
        on_log=partial(_print, config.output.name),
    )


def draw_timesteps(count: int, generator: torch.Generator) -> Tensor:
    """Draw timesteps (B,): half of them stratified over all, half normal around the middle."""
    even = (torch.arange(count) + torch.rand(count, generator=generator)) / count * TRAIN_TIMESTEPS
    central = MIDDLE + SPREAD * torch.randn(count, generator=generator)
    usable = (torch.rand(count, generator=generator) < 0.5) & (central >= 0) & (central < TRAIN_TIMESTEPS)
    return torch.where(usable, central, even).long().clamp_max(TRAIN_TIMESTEPS - 1)


def split_matrices(transformer: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Split the parameters into the blocks' matrices, which Muon moves, and the others; routers are neither."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in transformer.named_parameters():
        if name.endswith(".router.weight") or not parameter.requires_grad:
            continue
        is_hidden = name.startswith("transformer_blocks.") and name.endswith(".weight") and parameter.ndim == 2
        (matrices if is_hidden else others).append(parameter)
    return matrices, others


def make_muon(matrices: list[nn.Parameter], rate: float) -> GroupedMuon:
    """Make Muon with steps of AdamW's size."""
    return GroupedMuon(matrices, lr=rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")


def make_optimizers(config: FinetuneConfig, trainee: Trainee, *, muon_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for everything else."""
    matrices, others = split_matrices(trainee.model.transformer)
    groups: list[dict[str, Any]] = [{"params": others, "lr": config.learning_rate, "weight_decay": config.weight_decay}]
    if routers := trainee.model.router_parameters():
        groups.append({"params": routers, "lr": config.router_rate, "weight_decay": 0.0})
    adamw = torch.optim.AdamW(groups, betas=(0.9, config.beta2), fused=True)
    return [adamw, make_muon(matrices, muon_rate)]


def _print(name: str, row: dict[str, Any]) -> None:
    shown = {key: row[key] for key in ("step", "samples", "loss", "keep_ratio", "seconds")}
    regions = [round(value, 4) for value in row["diffusion_loss_by_region"]]
    print(f"[{name}]", *(f"{key} {value:.5g}" for key, value in shown.items()), f"regions {regions}", flush=True)
