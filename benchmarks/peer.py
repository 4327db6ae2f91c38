"""One trial of diffusers' own transformer in PyTorch, as `mlx_moddit.benchmark.trial` of ours.

It is dense, or merges tokens (ToMe), or reuses the blocks behind the first (first-block cache).

It reads a job from its input and writes what it measured to its output, both as JSON. Weights are random.
"""

from __future__ import annotations

import json
import math
import sys
import time
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import torch
from diffusers import CacheMixin, FirstBlockCacheConfig, PixArtTransformer2DModel, apply_first_block_cache

from benchmarks.merging import merge_tokens
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
        merged = int(job.merged * spec.tokens(job.height // 8, job.width // 8))
        for block in model.transformer_blocks:
            block.attn1.forward = merge_tokens(block.attn1.forward, merged, job.width // 8 // spec.patch_size)
    if job.method == FIRST_BLOCK_CACHE:
        # How many steps of a picture may be reused depends on what it shows; measured is one that is, whatever changed.
        apply_first_block_cache(model, FirstBlockCacheConfig(threshold=math.inf))
    return model


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
