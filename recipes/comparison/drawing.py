"""Many pictures at once with any of the methods, in the loop that all backends have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from moddit.cache import FirstBlockCache
from moddit.request import Request
from moddit.routing import capacity
from moddit.sampling import denoise, guide
from recipes.comparison.methods import Entry
from recipes.comparison.rivals import block_flops
from recipes.world import Pictures
from torch_moddit.model import BlockTrace
from torch_moddit.pipeline import ReferencePipeline
from torch_moddit.tokens import follow_plan, relative_change

BATCH: Final = 32  # prompts
PROMPT_SEEDS: Final = 100_000  # apart, so that no two prompts of a comparison share their noise


class Meter:
    """Count the FLOPs of the blocks that a model runs, for a batch of one: its `watch` is an `on_block`."""

    def __init__(self, pipeline: ReferencePipeline, entry: Entry) -> None:
        self.spec, self.text_tokens = pipeline.spec.transformer, pipeline.spec.text_tokens
        self.policy = pipeline.model.policy
        self.rival, self.tenths = entry.how.rival, entry.tenths
        self.flops = 0
        self.dense_flops = 0  # of a step of the same picture in which every block processes every token

    def watch(self, trace: BlockTrace) -> None:
        tokens, kept = trace.output.shape[1], len(trace.kept[0])
        if self.rival is not None:
            kept = capacity(self.tenths, tokens)
        self.flops += block_flops(self.rival, self.spec, self.policy, tokens, kept, self.text_tokens)
        self.dense_flops = self.spec.num_layers * self.spec.block_flops(tokens, self.text_tokens)

    @property
    def steps(self) -> float:
        """What was counted, as a multiple of a dense step."""
        return self.flops / self.dense_flops


@dataclass(frozen=True)
class Drawn:
    """Some pictures, and what one of them took in the mean."""

    pictures: Pictures
    cost: float  # FLOPs of the blocks, as a multiple of those of a dense step


@torch.no_grad()
def draw(pipeline: ReferencePipeline, entry: Entry, prompts: Sequence[str], *, seed: int, steps: int) -> Drawn:
    """Draw a picture for each prompt; that of prompt i has the noise of seed `seed` * PROMPT_SEEDS + i."""
    pipeline.model.generator = torch.Generator().manual_seed(seed)  # of tokens that are kept at random
    pictures: list[Any] = []
    costs: list[float] = []
    batch = BATCH if entry.options.get("cache") is None else 1  # which is decided for each picture
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        request = pipeline.request(part[0], steps=steps, **entry.options)
        seeds = [seed * PROMPT_SEEDS + start + number for number in range(len(part))]
        meter = Meter(pipeline, entry)
        latents = _denoise(pipeline, request, part, seeds, meter)
        pictures += [pipeline.decode(request, one[None]) for one in latents]
        costs += len(part) * [meter.steps]
    return Drawn(np.stack(pictures), float(np.mean(costs)))


def _denoise(
    pipeline: ReferencePipeline, request: Request, prompts: Sequence[str], seeds: Sequence[int], meter: Meter
) -> Tensor:
    """Take all steps. Shapes: -> (B, C, h, w)."""
    spec, count = pipeline.spec, len(prompts)
    channels = spec.transformer.latent_channels
    shape = (1, channels, request.height // spec.vae.downscale, request.width // spec.vae.downscale)
    noise = torch.cat([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    negative, _ = request.rows(spec)  # comparisons are guided
    rows = torch.cat([torch.zeros(count, dtype=torch.int64), torch.arange(1, count + 1)])
    context = {name: value[rows] for name, value in pipeline.encode((negative, *prompts)).items()}

    routing = follow_plan(pipeline.model.policy.keeping(request.keep).plan)
    cache = None if request.cache is None else FirstBlockCache(request.cache, relative_change)

    def predict(_: int, step: Any, latents: Tensor) -> Tensor:
        timestep = torch.full((2 * count,), step.timestep)
        inputs = torch.cat([latents, latents])
        output = pipeline.model(inputs, timestep, context, routing=routing, on_block=meter.watch, cache=cache)
        return guide(output.chunk(2), request.guidance_scale)[:, :channels]

    *_, last = denoise(request.table(spec), noise, predict)
    return last.latents
