"""Small datasets of random latents and text states, as `torch_moddit.prepare` writes them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from moddit.checkpoint.description import describe
from moddit.checkpoint.sources import Sources
from tests import tiny
from torch_moddit.shards import (
    LATENTS,
    Bucket,
    DatasetRecord,
    shard_file,
    write_labels,
    write_latents,
    write_null,
    write_record,
    write_text,
)

LATENT: tuple[int, ...] = (4, 8, 8)


def save_shards(folder: Path, model: Path, *, counts: tuple[int, ...] = (8,), views: int = 1) -> Path:
    """Write a dataset for a model, each shard of 16x16 pixels with so many pictures."""
    folder.mkdir(parents=True)
    description = describe(Sources(model))
    is_text = description.spec.conditioning.KIND == "text"
    bucket = Bucket(16, 16, len(counts))
    write_record(folder, DatasetRecord.of(description, "0" * 64, [bucket]))
    generator = torch.Generator().manual_seed(0)
    for name, count in zip(bucket.names, counts, strict=True):
        latents = torch.randn(count * views, *LATENT, generator=generator)
        names = [f"{name}-{index}" for index in range(count)]
        write_latents(shard_file(folder, name, LATENTS), latents, 0.1 * latents.abs(), names, {})
        if is_text:
            texts = [torch.randn(2 + index, tiny.TEXT_WIDTH, generator=generator) for index in range(count)]
            write_text(shard_file(folder, name, "text"), texts, tiny.TEXT_WIDTH)
        else:
            write_labels(shard_file(folder, name, "label"), range(count))
    if is_text:
        write_null(folder, null_state())
    return folder


def null_state() -> Tensor:
    return torch.zeros(1, tiny.TEXT_WIDTH)
