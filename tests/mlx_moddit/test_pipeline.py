from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import mlx.core as mx
import numpy as np
import pytest

from mlx_moddit.load import DTYPES
from mlx_moddit.memory import LOW_RAM_CACHE_BYTES
from mlx_moddit.pipeline import Pipeline, Result, spread_seeds
from mlx_moddit.stages import Decoded, Encoded, Loaded, Prepared, Stage, Step
from moddit.errors import FormatError, ModditError, ShapeError, UnsupportedError, ValueRangeError
from moddit.memory import peak_rss_bytes
from moddit.metadata import DTYPE_NAMES
from moddit.noise import torch_randn
from moddit.request import Request
from moddit.samplers import SAMPLERS
from tests.mlx_moddit.bundles import edit_tensors
from tests.mlx_moddit.conftest import PLAN, make_bundle

PROMPT: Final = "a large red circle"
STEPS: Final = 3
CACHE: Final = 0.3  # leaves out some of the steps of this random model


@pytest.fixture(scope="module")
def pipeline(routed_bundle: Path) -> Pipeline:
    return Pipeline.load(routed_bundle)


def equal(found: Result, wanted: Result) -> bool:
    return all(np.array_equal(mine, other) for mine, other in zip(found.images, wanted.images, strict=True))


def test_same_seed_same_picture_and_another_seed_another(pipeline: Pipeline) -> None:
    result = pipeline.generate(PROMPT, seed=[5, 6], steps=STEPS)
    assert equal(result, pipeline.generate(PROMPT, seed=[5, 6], steps=STEPS))
    assert [image.shape for image in result.images] == [(32, 32, 3)] * 2
    assert result.images[0].dtype == np.uint8
    assert not np.array_equal(result.images[0], result.images[1])


def test_pictures_do_not_depend_on_their_company(pipeline: Pipeline, routed_bundle: Path) -> None:
    together = pipeline.generate(PROMPT, seed=4, num_images=3, steps=STEPS)
    alone = [Pipeline.load(routed_bundle).generate(PROMPT, seed=seed, steps=STEPS) for seed in (4, 5, 6)]
    for image, single in zip(together.images, alone, strict=True):
        assert np.array_equal(image, single.images[0])


def test_low_ram_gives_the_same_pictures_and_keeps_nothing(pipeline: Pipeline, routed_bundle: Path) -> None:
    arguments: dict[str, Any] = {"negative_prompt": "small", "seed": [1, 2], "steps": STEPS}
    frugal = Pipeline.load(routed_bundle, low_ram=True)
    result = frugal.generate(PROMPT, **arguments)
    assert equal(result, pipeline.generate(PROMPT, **arguments))
    loaded: list[str] = []
    frugal.generate(PROMPT, **arguments, on_stage=lambda s: loaded.append(s.component) if type(s) is Loaded else None)
    assert loaded == ["text_encoder", "transformer", "vae", "transformer", "vae"]


def test_low_ram_frees_each_component_before_the_next(routed_bundle: Path) -> None:
    frugal = Pipeline.load(routed_bundle, low_ram=True)
    sizes = {name: sum(info.bytes for info in item.files) for name, item in frugal.bundle.manifest.components.items()}
    before, active = mx.get_active_memory(), {}
    requests = [Request.complete(frugal.bundle.spec, PROMPT, steps=1)]
    for stage in frugal.stages(requests):
        if isinstance(stage, Loaded):
            active[stage.component] = mx.get_active_memory() - before
        mx.eval(stage.arrays)
    # what lives on besides: the texts, the latents, and keys and values of the texts
    assert active["transformer"] < sizes["text_encoder"]
    assert active["vae"] < sizes["transformer"] / 4


def test_low_ram_limits_the_cache_only_while_it_runs(routed_bundle: Path) -> None:
    limits: list[int] = []

    def look(_: Stage) -> None:
        limits.append(mx.set_cache_limit(LOW_RAM_CACHE_BYTES))

    before = mx.set_cache_limit(7 * 2**20)
    Pipeline.load(routed_bundle, low_ram=True).generate(PROMPT, steps=1, on_stage=look)
    assert set(limits) == {LOW_RAM_CACHE_BYTES}
    assert mx.set_cache_limit(before) == 7 * 2**20


@pytest.mark.parametrize(("height", "width"), [(16, 48), (48, 16), (4, 4)])
def test_sizes_need_not_be_square(pipeline: Pipeline, height: int, width: int) -> None:
    result = pipeline.generate(PROMPT, height=height, width=width, steps=1)
    assert result.images[0].shape == (height, width, 3)


def test_micro_conditioned_model_is_told_its_size(micro_bundle: Path) -> None:
    result = Pipeline.load(micro_bundle).generate(PROMPT, height=16, width=24, steps=1)
    assert result.images[0].shape == (16, 24, 3)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_runs(pipeline: Pipeline, sampler: str) -> None:
    assert len(pipeline.generate(PROMPT, steps=4, sampler=sampler).pictures[0].step_seconds) == 4


@pytest.mark.parametrize("reuse", [2, 3])
def test_steps_that_are_reused_keep_nothing_and_take_no_time(pipeline: Pipeline, reuse: int) -> None:
    stages: list[Stage] = []
    result = pipeline.generate(PROMPT, steps=7, reuse=reuse, routes=True, on_stage=stages.append)
    steps = [stage for stage in stages if isinstance(stage, Step)]
    assert [step.is_reused for step in steps] == [index % reuse != 0 for index in range(7)]
    assert all(bool(step.kept) is not step.is_reused for step in steps)
    clean = [np.array(step.denoised) for step in steps]
    assert all(np.array_equal(clean[index], clean[index - index % reuse]) for index in range(7))
    asked = len([step for step in steps if not step.is_reused])
    assert len(result.pictures[0].step_seconds) == asked
    assert sum(item.steps for item in result.pictures[0].routes) == asked
    assert not equal(result, pipeline.generate(PROMPT, steps=7))


def test_a_cache_begins_anew_with_each_picture_and_has_its_blocks_counted(pipeline: Pipeline) -> None:
    stages: list[Stage] = []
    both = pipeline.generate(PROMPT, steps=12, seed=[1, 2], cache=CACHE, routes=True, on_stage=stages.append)
    blocks = [len(stage.kept) for stage in stages if isinstance(stage, Step)]
    assert set(blocks) == {1, len(PLAN)}
    assert blocks[0] == blocks[12] == len(PLAN)
    assert [stage.is_full for stage in stages if isinstance(stage, Step)] == [count == len(PLAN) for count in blocks]
    assert [len(picture.step_seconds) for picture in both.pictures] == [
        sum(count == len(PLAN) for count in blocks[first : first + 12]) for first in (0, 12)
    ]
    second = pipeline.generate(PROMPT, steps=12, seed=2, cache=CACHE, routes=True)
    assert np.array_equal(second.images[0], both.images[1])
    assert all(0 < item.frequency.mean() <= 1 for item in both.pictures[0].routes)
    assert equal(pipeline.generate(PROMPT, steps=12, seed=2, cache=CACHE), second)
    assert not equal(pipeline.generate(PROMPT, steps=12, seed=2), second)


def test_with_a_cache_no_step_is_built_before_the_one_before_is_done(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Building it computes its first block, whose time would be told of the step before."""
    submitted: list[object] = []
    monkeypatch.setattr(mx, "async_eval", lambda *arrays: submitted.extend(arrays))
    pipeline.generate(PROMPT, steps=STEPS, cache=CACHE)
    assert not submitted
    pipeline.generate(PROMPT, steps=STEPS)
    assert submitted


def test_what_a_cache_remembers_is_evaluated_with_its_step(pipeline: Pipeline) -> None:
    """An array that waits holds on to all that it is computed from."""
    spec = pipeline.bundle.spec
    for stage in pipeline.stages([Request.complete(spec, PROMPT, steps=3, cache=CACHE)]):
        mx.eval(stage.arrays)
        if isinstance(stage, Step):
            _, *remembered = stage.arrays
            assert [array.shape for array in remembered] == [(2, 64, spec.transformer.hidden_size)] * 2


def test_without_guidance_the_negative_prompt_counts_for_nothing(pipeline: Pipeline) -> None:
    one = pipeline.generate(PROMPT, guidance_scale=1, negative_prompt="small", steps=STEPS)
    assert equal(one, pipeline.generate(PROMPT, guidance_scale=0.5, steps=STEPS))
    guided = pipeline.generate(PROMPT, guidance_scale=1.5, negative_prompt="small", steps=STEPS)
    assert not equal(guided, pipeline.generate(PROMPT, guidance_scale=1.5, steps=STEPS))
    assert not equal(guided, one)


def test_text_is_encoded_once_for_all_seeds_and_again_for_another_prompt(pipeline: Pipeline) -> None:
    spec = pipeline.bundle.spec
    stages: list[Stage] = []
    requests = [Request.complete(spec, prompt, seed=seed, steps=1) for prompt in ("red", "blue") for seed in (1, 2)]
    list(pipeline.run(requests, on_stage=stages.append))
    kinds = [type(stage) for stage in stages if not isinstance(stage, Loaded)]
    assert kinds == [Encoded, Prepared, Step, Decoded, Step, Decoded] * 2


def test_stages_are_evaluated_by_the_caller_and_the_first_step_starts_from_the_noise(dense_bundle: Path) -> None:
    pipeline = Pipeline.load(dense_bundle)
    requests = [Request.complete(pipeline.bundle.spec, PROMPT, seed=9, steps=STEPS)]
    stages = list(pipeline.stages(requests))  # nothing is evaluated on the way
    steps = [stage for stage in stages if isinstance(stage, Step)]
    assert [(step.index, step.total, step.is_last) for step in steps] == [(0, 3, False), (1, 3, False), (2, 3, True)]
    assert [step.timestep for step in steps] == sorted((step.timestep for step in steps), reverse=True)
    assert all(step.region == 0 and step.kept == () for step in steps)
    noise = torch_randn((1, 4, 16, 16), 9).transpose(0, 2, 3, 1)
    correlation = np.corrcoef(np.array(steps[0].latents).ravel(), noise.ravel())[0, 1]
    assert correlation > 0.5
    picture = stages[-1]
    assert isinstance(picture, Decoded)
    assert np.array_equal(np.array(picture.pixels), pipeline.generate(PROMPT, seed=9, steps=STEPS).images[0])


def test_on_stage_sees_finished_stages_in_order(pipeline: Pipeline) -> None:
    stages: list[Stage] = []
    pipeline.generate(PROMPT, steps=STEPS, on_stage=stages.append)
    steps = [stage for stage in stages if isinstance(stage, Step)]
    assert [step.index for step in steps] == [0, 1, 2]
    assert isinstance(stages[-1], Decoded)
    assert stages[-1].pixels.shape == (32, 32, 3)


def test_a_step_is_submitted_when_the_one_before_is_done(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Submitting takes until a step is nearly computed: what is finished only then is told another step's time."""
    seen: list[str] = []
    submit = mx.async_eval

    def log(arrays: Any) -> None:
        seen.append("submitted")
        submit(arrays)

    def look(stage: Stage) -> None:
        if isinstance(stage, Step):
            seen.append(f"step {stage.index}")

    monkeypatch.setattr(mx, "async_eval", log)
    pipeline.generate(PROMPT, steps=STEPS, on_stage=look)
    assert seen == ["submitted", "step 0", "submitted", "step 1", "step 2"]  # nothing is built beside the last one


def test_result_measures_every_stage(routed_bundle: Path) -> None:
    result = Pipeline.load(routed_bundle).generate(PROMPT, steps=STEPS, seed=[1, 2])
    assert [cost.name for cost in result.costs] == ["load", "encode", "prepare", "denoise", "decode"]
    assert all(cost.seconds > 0 and cost.peak_bytes > 0 for cost in result.costs)
    assert result.peak_rss_bytes > max(cost.peak_bytes for cost in result.costs)
    denoise = next(cost for cost in result.costs if cost.name == "denoise")
    steps = sum(sum(picture.step_seconds) for picture in result.pictures)
    assert steps == pytest.approx(denoise.seconds)
    assert [picture.request.seed for picture in result.pictures] == [1, 2]


def test_the_vae_encoder_is_never_read(dense_bundle: Path) -> None:
    loaded: list[Stage] = []
    pipeline = Pipeline.load(dense_bundle)
    pipeline.generate(PROMPT, steps=1, on_stage=loaded.append)
    decoder = next(stage for stage in loaded if isinstance(stage, Loaded) and stage.component == "vae")
    size = next(info.bytes for info in pipeline.bundle.manifest.components["vae"].files)
    assert sum(array.nbytes for array in decoder.arrays) < size * 0.8


def test_routes_count_what_the_plan_keeps(pipeline: Pipeline) -> None:
    result = pipeline.generate(PROMPT, steps=8, routes=True)
    routes = result.pictures[0].routes
    assert [item.region for item in routes] == [3, 2, 1, 0]
    assert sum(item.steps for item in routes) == 8
    plan = pipeline.bundle.policy.plan
    for item in routes:
        assert item.frequency.shape == (8, 8)
        kept = sum(plan.capacities(item.region, 64)) / (64 * len(PLAN))
        assert item.frequency.mean() == pytest.approx(kept)
        assert (item.first_timestep, item.last_timestep) == (item.region * 250, item.region * 250 + 249)


def test_routes_of_a_plan_that_keeps_everything_are_one(tmp_path: Path, stored_dtype: str) -> None:
    bundle = make_bundle(tmp_path, stored_dtype, keep_tenths=[[10, 10]] * 3)
    routes = Pipeline.load(bundle).generate(PROMPT, steps=3, routes=True).pictures[0].routes
    assert [item.region for item in routes] == [1, 0]
    assert all((item.frequency == 1).all() for item in routes)


def test_pictures_without_routes_have_none_and_are_the_same(pipeline: Pipeline) -> None:
    plain = pipeline.generate(PROMPT, steps=STEPS)
    assert plain.pictures[0].routes == ()
    assert equal(plain, pipeline.generate(PROMPT, steps=STEPS, routes=True))


def test_routes_of_a_dense_model_are_refused(dense_bundle: Path) -> None:
    with pytest.raises(UnsupportedError, match="dense"):
        Pipeline.load(dense_bundle).generate(PROMPT, routes=True)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"height": 30}, ShapeError),
        ({"steps": 1001}, ValueRangeError),
        ({"sampler": "plms"}, UnsupportedError),
        ({"num_images": 0}, ValueRangeError),
        ({"reuse": 3, "steps": 3}, ValueRangeError),
        ({"seed": []}, ValueRangeError),
    ],
    ids=str,
)
def test_bad_settings_are_refused_before_anything_is_loaded(
    routed_bundle: Path, arguments: dict[str, Any], error: type[ModditError]
) -> None:
    stages: list[Stage] = []
    with pytest.raises(error):
        Pipeline.load(routed_bundle).generate(PROMPT, **arguments, on_stage=stages.append)
    assert stages == []


@pytest.mark.parametrize(("device", "dtype"), [(mx.cpu, "float32"), (mx.gpu, "stored")], ids=["cpu", "gpu"])
def test_dtype_is_the_stored_one_on_a_gpu_and_float32_on_a_cpu(
    routed_bundle: Path, monkeypatch: pytest.MonkeyPatch, device: mx.DeviceType, dtype: str
) -> None:
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(device, 0))
    assert Pipeline.load(routed_bundle).dtype == dtype


@pytest.mark.parametrize("dtype", DTYPE_NAMES)
def test_dtype_is_what_was_asked_for(routed_bundle: Path, stored_dtype: str, dtype: str) -> None:
    pipeline = Pipeline.load(routed_bundle, dtype=dtype)
    assert pipeline.dtype == dtype
    assert pipeline.bundle.transformer().dtype == DTYPES[stored_dtype if dtype == "stored" else dtype]


def test_unknown_dtype_is_refused(routed_bundle: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"'int8'.*float16"):
        Pipeline.load(routed_bundle, dtype="int8")


def test_half_precision_is_near_float32(routed_bundle: Path) -> None:
    half, full = (
        Pipeline.load(routed_bundle, dtype=dtype).generate(PROMPT, steps=2, guidance_scale=1)
        for dtype in ("float16", "float32")
    )
    # Some tokens near the boundary are routed otherwise, so only most of the picture is near.
    assert np.median(np.abs(half.images[0].astype(int) - full.images[0].astype(int))) <= 4


def test_values_that_are_not_finite_are_an_error_not_a_black_picture(tmp_path: Path, stored_dtype: str) -> None:
    bundle = make_bundle(tmp_path, stored_dtype, routed=False)
    edit_tensors(bundle, "transformer", {"proj_out.bias": mx.full((32,), float("inf"))})
    pipeline = Pipeline.load(bundle)
    advice = "" if pipeline.dtype == "float32" else r"; try dtype float32 \(now stored\)"
    with pytest.raises(ModditError, match=rf"seed 3 has values that are not finite{advice}$"):
        pipeline.generate(PROMPT, seed=3, steps=1)


def test_a_damaged_file_is_named_where_it_makes_values_that_are_not_finite(tmp_path: Path, stored_dtype: str) -> None:
    bundle = make_bundle(tmp_path, stored_dtype, routed=False)
    path = bundle / "text_encoder/model.safetensors"
    path.write_bytes(path.read_bytes()[:-4096] + b"\xff\x7f" * 2048)  # NaN in every precision
    with pytest.raises(FormatError, match=r"text_encoder/model\.safetensors: its sha256 is not the manifest's"):
        Pipeline.load(bundle).generate(PROMPT, steps=1)


@pytest.mark.parametrize(("system", "unit"), [("Linux", 1024), ("Darwin", 1)])
def test_resident_size_is_in_bytes_on_every_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: str, unit: int
) -> None:
    monkeypatch.setattr("platform.system", lambda: system)
    monkeypatch.setattr("moddit.memory._STATUS", tmp_path / "absent")
    monkeypatch.setattr("resource.getrusage", lambda _: SimpleNamespace(ru_maxrss=7))
    assert peak_rss_bytes() == 7 * unit


def test_spread_seeds() -> None:
    assert spread_seeds(3, 2) == (3, 4)
    assert spread_seeds([1, 9], 2) == (1, 2, 9, 10)
