"""The first-block cache in PyTorch: step by step as diffusers' hooks, and with routing as one written out."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import CacheMixin, FirstBlockCacheConfig, apply_first_block_cache
from torch import Tensor

from moddit.cache import FirstBlockCache
from tests import tiny
from tests.torch_moddit.test_model import DENSE, LAST_BIT, diffusers_output, inputs, random_plan, routed_model
from torch_moddit.model import BlockTrace
from torch_moddit.pipeline import ReferencePipeline
from torch_moddit.pixart import RoutedPixArt
from torch_moddit.tokens import relative_change

STEPS = 16
THRESHOLD = 0.25  # of a random model, of which other tokens take part in each step


def steps(kind: str) -> list[dict[str, Any]]:
    """Inputs of a run whose latents move slowly, both halves of guidance."""
    values, generator = inputs(kind, batch=2), torch.Generator().manual_seed(1)
    found = []
    for step in range(STEPS):
        values["latents"] = 0.97 * values["latents"] + 0.1 * torch.randn(
            1, *values["latents"].shape[1:], generator=generator
        )
        found.append({**values, "timestep": torch.full((2,), 999 - 40 * step)})
    return found


@pytest.mark.parametrize("kind", tiny.KINDS)
@torch.no_grad()
def test_the_cache_equals_that_of_diffusers_with_both_halves_in_one_context(kind: str) -> None:
    transformer = tiny.make_transformer(kind)
    model, cache = RoutedPixArt(copy.deepcopy(transformer), DENSE), FirstBlockCache(0.1, relative_change)
    apply_first_block_cache(transformer, FirstBlockCacheConfig(threshold=0.1))
    ran = []
    with CacheMixin.cache_context(transformer, "both"):
        for values in steps(kind):
            layers: list[int] = []
            found = model(**values, cache=cache, on_block=lambda trace, layers=layers: layers.append(trace.layer))
            assert float((found - diffusers_output(transformer, values)).abs().max()) <= LAST_BIT
            ran.append(len(layers))
    assert set(ran) == {1, 3}


@torch.no_grad()
def test_a_routed_model_takes_the_residual_of_the_last_full_step() -> None:
    model, cache = routed_model("sigma", random_plan()), FirstBlockCache(THRESHOLD, relative_change)
    residual: tuple[Tensor, Tensor] | None = None
    skipped = 0
    for values in steps("sigma"):
        traces: list[BlockTrace] = []
        whole = model(**values, on_block=traces.append)
        found = model(**values, cache=cache)
        first, last = traces[0].output, traces[-1].output
        change = first - model.transformer.pos_embed(values["latents"])
        if residual is not None and float((change - residual[0]).abs().mean() / residual[0].abs().mean()) <= THRESHOLD:
            told = model.tell(values["timestep"], values["context"], torch.float32)
            patches = model.project(first + residual[1], told)
            wanted = model._unpatch(patches, *values["latents"].shape[2:])
            skipped += 1
        else:
            wanted, residual = whole, (change, last - first)
        assert float((found - wanted).abs().max()) <= LAST_BIT
    assert 0 < skipped < STEPS - 1


def test_half_precision_is_compared_in_single() -> None:
    large = torch.full((2, 300, 400), 2.0**15, dtype=torch.float16)  # whose sum is none of a float16
    assert relative_change(large * 1.5, large) == pytest.approx(0.5)


@pytest.mark.parametrize("routed", [False, True])
def test_each_picture_begins_anew(tmp_path: Path, routed: bool) -> None:
    reference = ReferencePipeline.load(tiny.save_pipeline(tmp_path / "m", routed=routed))
    ran: list[list[tuple[int, int]]] = []
    for seed in (1, 2, 1):
        ran.append([])
        reference.generate(
            "a red circle",
            seed=seed,
            steps=12,
            cache=0.3,
            on_block=lambda step, trace: ran[-1].append((step, trace.layer)),
        )
    assert ran[0] == ran[2]
    assert len(reference.model.blocks) * 12 > len(ran[0]) > 12
    assert [layer for step, layer in ran[1] if step == 0] == [0, 1, 2]
