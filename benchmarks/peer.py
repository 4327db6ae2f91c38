"""One trial of diffusers' own transformer in PyTorch, as `mlx_moddit.benchmark.trial` of ours.

It is dense, or merges tokens (ToMe), or reuses the blocks behind the first (first-block cache).

It reads a job from its input and writes what it measured to its output, both as JSON. Weights are random.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import torch
from diffusers import CacheMixin, FirstBlockCacheConfig, PixArtTransformer2DModel, apply_first_block_cache
from torch import Tensor

from moddit.benchmark.record import Arm, Stage
from moddit.configurations import find_configuration
from moddit.cost import dense_flops
from moddit.memory import take_peak

TOME: Final = "tome"
FIRST_BLOCK_CACHE: Final = "first-block cache"
_EXTRA: Final = {"resolution": None, "aspect_ratio": None}


@dataclass(frozen=True)
class Job:
    """What to measure."""

    name: str  # of the arm
    method: str  # "dense", "tome" or "first-block cache"
    config: str
    layers: int
    merged: float  # share of the tokens that ToMe merges before self-attention
    height: int  # pixels
    width: int
    steps: int
    text_tokens: int
    batch: int


def build(job: Job) -> PixArtTransformer2DModel:
    """Build diffusers' transformer with random weights."""
    spec: Any = find_configuration(job.config, job.layers).transformer
    fields = {name: value for name, value in asdict(spec).items() if name != "use_additional_conditions"}
    model = PixArtTransformer2DModel(**fields, use_additional_conditions=spec.use_additional_conditions).eval()
    if job.method == TOME:
        for block in model.transformer_blocks:
            block.attn1.forward = merge_tokens(block.attn1.forward, job.merged)
    if job.method == FIRST_BLOCK_CACHE:
        # How many steps of a picture may be reused depends on what it shows; measured is one that is, whatever changed.
        apply_first_block_cache(model, FirstBlockCacheConfig(threshold=math.inf))
    return model


def merge_tokens(attend: Callable[..., Tensor], share: float) -> Callable[..., Tensor]:
    """Merge the most similar tokens before an attention and copy its results back (ToMe, arXiv 2303.17604).

    Every fourth token, one of a 2 x 2 square in their scheme, is a destination; the others merge into the most similar
    one, those first that are most similar.
    """

    def forward(hidden_states: Tensor, **arguments: Any) -> Tensor:
        count, width = hidden_states.shape[1:]
        merged = min(int(share * count), count - count // 4)
        is_target = torch.arange(count) % 4 == 0
        target, source = is_target.nonzero()[:, 0], (~is_target).nonzero()[:, 0]
        unit = hidden_states / hidden_states.norm(dim=-1, keepdim=True)
        similarity, nearest = (unit[:, source] @ unit[:, target].transpose(1, 2)).max(dim=-1)
        order = similarity.argsort(dim=-1, descending=True)
        gone, kept = order[:, :merged], order[:, merged:]
        into = nearest.gather(1, gone)

        def rows(index: Tensor) -> Tensor:
            return index[..., None].expand(-1, -1, width)

        sources, targets = hidden_states[:, source], hidden_states[:, target]
        targets = targets.scatter_reduce(1, rows(into), sources.gather(1, rows(gone)), reduce="mean")
        mixed = attend(torch.cat([targets, sources.gather(1, rows(kept))], dim=1), **arguments)
        targets, left = mixed.split([len(target), mixed.shape[1] - len(target)], dim=1)
        restored = torch.empty_like(sources).scatter(1, rows(kept), left)
        restored = restored.scatter(1, rows(gone), targets.gather(1, rows(into)))
        result = torch.empty_like(hidden_states)
        result[:, source], result[:, target] = restored, targets
        return result

    return forward


@torch.no_grad()
def run(job: Job) -> dict[str, Any]:
    """Take the steps and measure them; returns what `mlx_moddit.benchmark.trial.run` does."""
    torch.manual_seed(0)
    spec = find_configuration(job.config, job.layers).transformer
    model = build(job)
    sides = (job.height // 8, job.width // 8)
    latents = torch.randn(job.batch, spec.latent_channels, *sides)
    text = torch.randn(job.batch, job.text_tokens, spec.caption_channels)
    take_peak()
    laps = []
    with CacheMixin.cache_context(model, "both"):  # PixArt's pipelines open none; without a cache it does nothing
        for step in range(job.steps):
            timestep = torch.full((job.batch,), 999 - step)
            start = time.perf_counter()
            model(latents, encoder_hidden_states=text, timestep=timestep, added_cond_kwargs=_EXTRA)
            laps.append(time.perf_counter() - start)
    peak = take_peak()
    tokens = spec.tokens(*sides)
    blocks = 1 if job.method == FIRST_BLOCK_CACHE else spec.num_layers  # that a step computes, but for the first step
    arm = Arm(
        name=job.name,
        runtime="torch",
        device="cpu",
        dtype="float32",
        bits=None,
        height=job.height,
        width=job.width,
        batch=job.batch,
        steps=job.steps,
        tokens=tokens,
        text_tokens=job.text_tokens,
        keep=None,
        kept_tokens=tokens * blocks / spec.num_layers,
        step_flops=float(job.batch * dense_flops(replace(spec, num_layers=blocks), tokens, job.text_tokens)),
    )
    stages = [
        Stage(name, tuple(seconds), None, peak.resident, peak.footprint)
        for name, seconds in (("first_step", laps[:1]), ("step", laps[1:]))
    ]
    subject = {"name": job.config, "fingerprint": None, "architecture": spec.ARCHITECTURE, "layers": job.layers}
    return {"arm": asdict(arm), "subject": subject, "stages": [asdict(stage) for stage in stages]}


if __name__ == "__main__":
    print(json.dumps(run(Job(**json.loads(sys.stdin.read())))))
