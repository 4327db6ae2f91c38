"""From the dense teacher to DiffCR and its two controls, with the project's own trainer, all on the same budget.

Batches mix the regions of timesteps. Batches of one region run 15 % faster on a CPU but learn worse: after 200 steps
the distillation loss was .102 instead of .074 (one seed). Timesteps are drawn as for the teacher, and Muon moves the
matrices: after 160 steps of the uniform control its distillation loss was .191, .122 and .118 with rates of 2e-3, 5e-3
and 1e-2 (one seed each).
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from moddit.checkpoint.description import describe
from moddit.checkpoint.sources import Sources
from moddit.routing import RoutingPlan
from moddit.tokens import TokenPolicy
from recipes.pipeline import TRAIN_TIMESTEPS, load_pipeline
from recipes.runs import save_whole, write_folder
from recipes.shapes64.dense import WORDING_SHARES, LatentSet, build
from recipes.shapes64.scenes import SIDE
from recipes.text import WIDTH, tokenize
from recipes.training import REGIONS, FinetuneBudget, settings, train_on
from torch_moddit.export import save_checkpoint
from torch_moddit.finetune import FinetuneConfig, Mode
from torch_moddit.loading import load_checkpoint
from torch_moddit.model import RoutedTransformer
from torch_moddit.pixart import RoutedPixArt
from torch_moddit.shards import (
    LATENTS,
    Bucket,
    DatasetRecord,
    shard_file,
    write_latents,
    write_null,
    write_record,
    write_text,
)

MODES: Final = {"diffcr": Mode.LEARNED, "uniform": Mode.UNIFORM, "random": Mode.RANDOM}
TARGET: Final = 0.5  # mean keep ratio of all three
SHARD: Final = 512  # samples of a file
STATE: Final = "transformer.pt"  # of the random control, which has no routers and is no checkpoint of the product


def write_data(work: Path) -> None:
    """Write latents and text states where the trainer reads them: `work`/finetune-data/."""
    pipeline = load_pipeline(work / "dense")
    data = LatentSet.load(work / "latents.pt", pipeline.tokenizer)
    count = len(data.latents)
    wording = torch.multinomial(torch.tensor(WORDING_SHARES), count, True, generator=torch.Generator().manual_seed(8))
    rows = torch.arange(count)
    ids, mask = data.ids[rows, wording], data.mask[rows, wording]
    null_ids, null_mask = tokenize(pipeline.tokenizer, [""])

    @torch.no_grad()
    def encode(ids: Tensor, mask: Tensor) -> list[Tensor]:
        states = pipeline.text_encoder(ids, attention_mask=mask).last_hidden_state
        return [state[:length] for state, length in zip(states, mask.sum(1).tolist(), strict=True)]

    def write(folder: Path) -> None:
        description, parts = describe(Sources(work / "dense")), torch.split(rows, SHARD)
        bucket = Bucket(SIDE, SIDE, len(parts))
        write_record(folder, DatasetRecord.of(description, hashlib.sha256(ids.numpy().tobytes()).hexdigest(), [bucket]))
        for name, part in zip(bucket.names, parts, strict=True):
            names = list(map(str, part.tolist()))
            write_latents(shard_file(folder, name, LATENTS), data.latents[part], None, names, {})
            write_text(shard_file(folder, name, "text"), encode(ids[part], mask[part]), WIDTH)
        write_null(folder, encode(null_ids, null_mask)[0])

    write_folder(work / "finetune-data", write)


def train_routed(work: Path, name: str, budget: FinetuneBudget) -> None:
    """Fine-tune the teacher in one of MODES and save the result to `work`/`name`."""
    config = FinetuneConfig(output=work / "runs" / name, mode=MODES[name], target=TARGET, **settings(budget))
    transformer = load_pipeline(work / "dense").transformer
    result = train_on(work / "finetune-data", config, transformer, muon_rate=budget.muon_rate)
    if MODES[name] is Mode.RANDOM:
        save_whole(result.model.transformer.state_dict(), work / name / STATE)
    else:
        save_checkpoint(
            work / name, result.model, source=work / "dense", keep_ratio=result.keep_ratio, dtype=torch.float16
        )


def load_model(folder: Path) -> RoutedTransformer:
    """Load the transformer of any of the models, in float32: dense, DiffCR, uniform or random."""
    if not (folder / STATE).exists():
        return load_checkpoint(folder)
    transformer = build()
    plan = RoutingPlan.uniform(len(transformer.transformer_blocks), REGIONS, round(10 * TARGET), TRAIN_TIMESTEPS)
    state = torch.load(folder / STATE, weights_only=True)
    transformer.load_state_dict({name: value.half().float() for name, value in state.items()})
    return RoutedPixArt(transformer, TokenPolicy.random(plan)).eval()
