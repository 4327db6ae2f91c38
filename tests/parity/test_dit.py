"""Class-conditional DiT on MLX, stage by stage and as a whole, against PyTorch and against diffusers' own pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import mlx.core as mx
import numpy as np
import pytest
import torch
from diffusers import DiTPipeline

from mlx_moddit.dit import DiT
from mlx_moddit.pipeline import Pipeline
from mlx_moddit.transformer import Conditions
from moddit.errors import MissingError, ShapeError, UnsupportedError, ValueRangeError
from moddit.routing import RoutingPlan
from moddit.tokens import TokenPolicy
from tests import tiny
from tests.parity.bridge import (
    copy_weights,
    psnr,
    relative_error,
    round_weights,
    share_alike,
    to_nchw,
)
from tests.parity.roads import run_mlx, run_reference, to_bundle
from torch_moddit.dit import RoutedDiT
from torch_moddit.model import BlockTrace

TIMESTEPS: Final = (999.0, 600.0, 312.5, 0.0)  # one of every region
LABELS: Final = (1000, 207)  # no class, as guidance has it, and a class
# Of each block. In half precision rounded modulations, three times as large as at first, multiply every token.
TOLERANCES: Final = {"float32": 1e-4, "float16": 1.5e-2, "bfloat16": 0.12}
KEPT_ALIKE: Final = {"float32": 1.0, "float16": 0.97, "bfloat16": 0.93}
# Of pictures of 8 bits. Between a dense picture and DiTPipeline's in float32 little but these bits is left: 59 dB.
DECIBELS: Final = {"float32": 55.0, "float16": 45.0, "bfloat16": 30.0}
SETTINGS: Final[dict[str, Any]] = {"seed": 3, "steps": 8}


class Case:
    """One random model in both frameworks, and inputs for it."""

    def __init__(self, *, routed: bool, height: int = 16, width: int = 16) -> None:
        transformer = tiny.make_dit()
        plan = RoutingPlan(tuple(tuple(row) for row in tiny.random_tenths(3, 4)))
        policy = TokenPolicy.topk(plan) if routed else TokenPolicy.dense(3, 1000)
        self.reference = RoutedDiT(transformer, policy)
        if routed:
            transformer.load_state_dict(tiny.router_weights(3, 48), strict=False)
        self.model = copy_weights(DiT(self.reference.spec, policy), transformer.state_dict())
        self.latents = torch.randn(2, 4, height, width, generator=torch.Generator().manual_seed(3))
        self.nhwc = mx.array(self.latents.permute(0, 2, 3, 1).numpy())

    def prepare(self) -> Conditions:
        return self.model.prepare([mx.array(label) for label in LABELS], TIMESTEPS, *self.latents.shape[2:])

    @torch.no_grad()
    def run_reference(self, timestep: float) -> tuple[list[BlockTrace], torch.Tensor]:
        traces: list[BlockTrace] = []
        context = {"labels": torch.tensor(LABELS)}
        return traces, self.reference(self.latents, torch.tensor([timestep] * 2), context, on_block=traces.append)


@pytest.mark.parametrize("routed", [True, False], ids=["routed", "dense"])
@pytest.mark.parametrize(("height", "width"), [(16, 16), (8, 24)])
@pytest.mark.parametrize("step", range(len(TIMESTEPS)))
def test_every_block_equals_the_reference(stored_dtype: str, routed: bool, height: int, width: int, step: int) -> None:
    case, tolerance = Case(routed=routed, height=height, width=width), TOLERANCES[stored_dtype]
    round_weights(case.model, case.model.spec.tensors(has_routers=routed), stored_dtype)
    traces, output = case.run_reference(TIMESTEPS[step])
    kept: list[Any] = []
    conditions = case.prepare()
    x = case.model.embed(case.nhwc, conditions)
    forced = [mx.array(torch.stack(trace.kept).numpy().astype(np.uint32)) for trace in traces]
    watch = conditions.start(on_block=lambda _, __, chosen: kept.append(np.array(chosen)))
    for layer, trace in enumerate(traces):
        case.model.run_block(x, layer, step, conditions, watch)
        x = case.model.run_block(x, layer, step, conditions, conditions.start(forced=forced))
        assert relative_error(x, trace.output.numpy()) < tolerance, layer
    if routed:
        wanted = [torch.stack(trace.kept).numpy() for trace in traces]
        assert share_alike([kept], [wanted]) >= KEPT_ALIKE[stored_dtype]
    assert relative_error(to_nchw(case.model.project(x, step, conditions)), output) < tolerance


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp-2m"])
@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_dense_pictures_are_those_of_diffusers(
    tmp_path: Path, stored_dtype: str, sampler: str, guidance_scale: float
) -> None:
    folder = tiny.save_dit_pipeline(tmp_path / "m", routed=False, sampler=sampler)
    pipeline: Any = DiTPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    wanted = pipeline(
        class_labels=[207],
        guidance_scale=guidance_scale,
        num_inference_steps=8,
        generator=torch.Generator().manual_seed(3),
        output_type="np",
    ).images[0]
    bundle = Pipeline.load(to_bundle(folder, tmp_path / "bundle", stored_dtype))
    result = bundle.generate(label="golden retriever", guidance_scale=guidance_scale, **SETTINGS)
    assert psnr(result.images[0] / np.float32(255), wanted) > DECIBELS[stored_dtype]


@pytest.mark.parametrize("saving", [{}, {"reuse": 3}, {"cache": 0.9}, {"keep": 0.8}], ids=str)
def test_routed_pipeline_equals_the_reference(tmp_path: Path, stored_dtype: str, saving: dict[str, Any]) -> None:
    folder = tiny.save_dit_pipeline(tmp_path / "m")
    wanted = run_reference(folder, "", label=207, **SETTINGS, **saving)
    found = run_mlx(to_bundle(folder, tmp_path / "bundle", stored_dtype), "", label=207, **SETTINGS, **saving)
    assert {len(layers) for layers in wanted.kept} == ({1, 3} if "cache" in saving else {3})
    assert [len(layers) for layers in found.kept] == [len(layers) for layers in wanted.kept]
    assert share_alike(found.kept, wanted.kept) >= KEPT_ALIKE[stored_dtype]
    assert psnr(found.picture, wanted.picture) > DECIBELS[stored_dtype]


def test_pictures_of_several_labels_share_nothing_but_the_model(tmp_path: Path) -> None:
    bundle = to_bundle(tiny.save_dit_pipeline(tmp_path / "m"), tmp_path / "bundle")
    pipeline = Pipeline.load(bundle)
    first, second = (pipeline.generate(label=label, **SETTINGS).images[0] for label in (3, 207))
    assert not np.array_equal(first, second)
    assert np.array_equal(Pipeline.load(bundle, low_ram=True).generate(label=3, **SETTINGS).images[0], first)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    case = Case(routed=False)
    with pytest.raises(ShapeError, match=r"labels have shapes \[\(2,\)\], want \(\)"):
        case.model.prepare([mx.array([1, 2])], TIMESTEPS, 16, 16)
    with pytest.raises(ValueRangeError, match="does not take the size of the picture"):
        case.model.prepare([mx.array(1)], TIMESTEPS, 16, 16, sizes={"resolution": (32, 32)})
    pipeline = Pipeline.load(to_bundle(tiny.save_dit_pipeline(tmp_path / "m"), tmp_path / "bundle"))
    with pytest.raises(UnsupportedError, match="prompt is 'a circle', but this model draws a class"):
        pipeline.generate("a circle", label=3)
    with pytest.raises(MissingError, match="no label, though this model draws a class"):
        pipeline.generate()
    with pytest.raises(UnsupportedError, match="resolution_binning is not defined for a DiT"):
        pipeline.generate(label=3, resolution_binning=True)
    with pytest.raises(UnsupportedError, match="the model draws a label, it has no text encoder"):
        pipeline.bundle.tokenizer()
    text = Pipeline.load(to_bundle(tiny.save_pipeline(tmp_path / "t"), tmp_path / "text"))
    with pytest.raises(UnsupportedError, match="label is 3, but this model draws a text"):
        text.generate("a circle", label=3)
