"""Runs of a few steps on random latents, for tests of the fine-tuning."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from moddit.samplers import NoiseSchedule
from tests import tiny
from torch_moddit.data import Item
from torch_moddit.finetune import (
    FinetuneConfig,
    FinetuneResult,
    finetune,
)
from torch_moddit.pipeline import read_schedule

# Repeated training on CPU threads may add in another order; a run that lost its place differs by 1e-3 and more.
REPEATED = 1e-6


NULL: Item = {"text": torch.zeros(16, 32), "mask": torch.ones(16, dtype=torch.int64)}


class Latents(Dataset[Item]):
    """Random latents; `breaks_at` makes one read fail, as a killed process would."""

    def __init__(self, breaks_at: int | None = None) -> None:
        generator = torch.Generator().manual_seed(0)
        self.latents = torch.randn(24, 4, 8, 8, generator=generator)
        self.text = torch.randn(24, 16, 32, generator=generator)
        self.reads = 0
        self.breaks_at = breaks_at

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> Item:
        if self.reads == self.breaks_at:
            raise KeyboardInterrupt
        self.reads += 1
        return {"latents": self.latents[index], "text": self.text[index], "mask": torch.ones(16, dtype=torch.int64)}


def configure(output: Path, **changes: Any) -> FinetuneConfig:
    config = FinetuneConfig(
        output=output,
        steps=8,
        batch_size=4,
        learning_rate=1e-3,
        warmup=2,
        ratio_rate=0.02,
        distill_weight=1.0,
        log_every=2,
        save_every=3,
        progress=False,
    )
    return replace(config, **changes)


def schedule(**changes: Any) -> NoiseSchedule:
    return read_schedule(tiny.make_scheduler(**changes))


def train(config: FinetuneConfig, dataset: Dataset[Item] | None = None, **arguments: Any) -> FinetuneResult:
    return finetune(config, tiny.make_transformer(), dataset or Latents(), schedule(), null=NULL, **arguments)


def difference(first: FinetuneResult, second: FinetuneResult) -> float:
    left, right = first.model.state_dict(), second.model.state_dict()
    assert left.keys() == right.keys()
    return max(float((left[name] - right[name]).abs().max()) for name in left)


def read_log(result: FinetuneResult) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.log.read_text().splitlines()]
