"""The reference pipeline against diffusers' own pipelines and schedulers."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, DPMSolverMultistepScheduler, EulerDiscreteScheduler
from numpy.typing import NDArray

from moddit.errors import FormatError, MissingError, UnsupportedError
from moddit.routing import capacity
from moddit.samplers import build_table
from tests import tiny
from torch_moddit.model import BlockTrace
from torch_moddit.pipeline import ReferencePipeline, read_schedule

PROMPT = "a large red circle on the left"
# The operations are the same; matrix products of weights at differently aligned addresses may differ in the last bit.
LAST_BIT = 2e-6


def same(first: NDArray[np.float32], second: NDArray[np.float32]) -> bool:
    return bool(np.abs(first - second).max() < LAST_BIT)


@pytest.mark.parametrize("kind", tiny.KINDS)
@pytest.mark.parametrize("guidance_scale", [1.0, 4.5])
def test_dense_pictures_are_those_of_diffusers(tmp_path: Path, kind: str, guidance_scale: float) -> None:
    folder = tiny.save_pipeline(tmp_path / "m", kind=kind, routed=False)
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    wanted = pipeline(
        PROMPT,
        negative_prompt="blue",
        num_inference_steps=4,
        guidance_scale=guidance_scale,
        height=40,
        width=24,
        generator=torch.Generator("cpu").manual_seed(7),
        output_type="np",
        clean_caption=False,
        use_resolution_binning=False,
    ).images[0]
    picture = ReferencePipeline.load(folder).generate(
        PROMPT, "blue", seed=7, steps=4, guidance_scale=guidance_scale, height=40, width=24
    )
    assert picture.dtype == np.float32
    assert same(picture, wanted)


def test_routed_pictures_follow_the_plan(tmp_path: Path) -> None:
    reference = ReferencePipeline.load(tiny.save_pipeline(tmp_path / "m"))
    traces: list[tuple[int, BlockTrace]] = []
    steps: list[tuple[int, float]] = []
    picture = reference.generate(
        PROMPT,
        steps=4,
        on_block=lambda step, trace: traces.append((step, trace)),
        on_step=lambda done: steps.append((done.index, done.step.timestep)),
    )
    assert picture.shape == (32, 32, 3)
    plan = reference.model.policy.plan
    assert [step for step, _ in steps] == [0, 1, 2, 3]
    assert len(traces) == 4 * plan.layers
    for step, trace in traces:
        wanted = capacity(plan.keep_tenths[trace.layer][plan.region(steps[step][1])], 64)
        assert [len(kept) for kept in trace.kept] == [wanted, wanted]  # both halves of guidance, each its own
    assert same(reference.generate(PROMPT, steps=4), picture)
    assert not same(reference.generate(PROMPT, steps=4, seed=1), picture)


@pytest.mark.parametrize("routed", [False, True])
def test_steps_that_are_reused_run_no_block(tmp_path: Path, routed: bool) -> None:
    reference = ReferencePipeline.load(tiny.save_pipeline(tmp_path / "m", routed=routed))
    run: list[int] = []
    clean: list[torch.Tensor] = []
    picture = reference.generate(
        PROMPT,
        steps=5,
        reuse=2,
        on_block=lambda step, _: run.append(step),
        on_step=lambda done: clean.append(done.clean),
    )
    assert run == [step for step in (0, 2, 4) for _ in reference.model.blocks]
    assert [bool(torch.equal(one, two)) for one, two in pairwise(clean)] == [True, False] * 2
    assert not same(reference.generate(PROMPT, steps=5), picture)


@pytest.mark.parametrize("own", [DPMSolverMultistepScheduler, DDIMScheduler, EulerDiscreteScheduler])
def test_schedules_are_read_from_schedulers(own: Any) -> None:
    arguments = {"clip_sample": False} if own is DDIMScheduler else {}
    scheduler = own(beta_start=1e-4, beta_end=0.02, prediction_type="v_prediction", **arguments)
    scheduler.set_timesteps(7)
    schedule = read_schedule(scheduler)
    assert schedule.prediction_type == "v_prediction"
    assert scheduler.timesteps.tolist() == pytest.approx(build_table(schedule, schedule.sampler, 7).timesteps)


def test_a_sampler_holds_for_one_picture(tmp_path: Path) -> None:
    reference = ReferencePipeline.load(tiny.save_pipeline(tmp_path / "m"))
    own = reference.generate(PROMPT, steps=3)
    assert not same(reference.generate(PROMPT, steps=3, sampler="euler"), own)
    assert same(reference.generate(PROMPT, steps=3, sampler="dpmpp-2m"), own)
    with pytest.raises(UnsupportedError, match="'lcm'"):
        reference.generate(PROMPT, steps=3, sampler="lcm")
    assert same(reference.generate(PROMPT, steps=3), own)


def test_refuses_folders_that_are_no_pipeline(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"model_index\.json"):
        ReferencePipeline.load(tmp_path)
    folder = tiny.save_pipeline(tmp_path / "m")
    index = folder / "model_index.json"
    whole = json.loads(index.read_text())
    index.write_text(json.dumps(whole | {"_class_name": "StableDiffusionPipeline"}))
    with pytest.raises(UnsupportedError, match="StableDiffusionPipeline"):
        ReferencePipeline.load(folder)
    index.write_text(json.dumps({name: value for name, value in whole.items() if name != "vae"}))
    with pytest.raises(MissingError, match="'vae'"):
        ReferencePipeline.load(folder)
    index.write_text("[")
    with pytest.raises(FormatError, match="not JSON"):
        ReferencePipeline.load(folder)
