"""Sampler tables equal diffusers' schedulers, and their configurations are read strictly."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import re
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st

from moddit import samplers
from moddit.errors import FormatError, InputError, UnsupportedError, ValueRangeError
from moddit.noise import torch_randn
from moddit.record import Origin, decode
from moddit.samplers import (
    PREDICTION_TYPES,
    SAMPLERS,
    TIMESTEP_SPACINGS,
    NoiseSchedule,
    SamplerTable,
    build_table,
    count_steps,
)
from moddit.sampling import denoise

TOLERANCE = 1e-5  # of the largest value in that step: diffusers computes schedules and steps in float32
ROUNDINGS = 4 * 2.0**-23  # a jump from noise to picture multiplies float32 rounding by the noise level, up to 157
SCHEDULERS: dict[str, Any] = {
    "dpmpp-2m": DPMSolverMultistepScheduler,
    "ddim": DDIMScheduler,
    "euler": EulerDiscreteScheduler,
}
STABLE_DIFFUSION = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
PIXART: dict[str, Any] = {  # scheduler_config.json as diffusers' conversion script for PixArt writes it
    "_class_name": "DPMSolverMultistepScheduler",
    "_diffusers_version": "0.22.0.dev0",
    "algorithm_type": "dpmsolver++",
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "dynamic_thresholding_ratio": 0.995,
    "euler_at_final": False,
    "lambda_min_clipped": -math.inf,
    "lower_order_final": True,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "sample_max_value": 1.0,
    "solver_order": 2,
    "solver_type": "midpoint",
    "steps_offset": 0,
    "thresholding": False,
    "timestep_spacing": "linspace",
    "trained_betas": None,
    "use_karras_sigmas": False,
    "use_lu_lambdas": False,
    "variance_type": None,
}


def make_scheduler(sampler: str, **config: Any) -> Any:
    if sampler == "ddim":
        config = {"clip_sample": False, **config}
    return SCHEDULERS[sampler](**config)


def read(scheduler: Any) -> NoiseSchedule:
    return NoiseSchedule.from_diffusers(json.loads(scheduler.to_json_string()), "scheduler_config.json")


class ToyDenoiser:
    """A smooth model of x = sqrt(a) * picture + sqrt(1 - a) * noise, in float32 as a network would be.

    It expects another picture in the first of every `reuse` calls, and predicts what leads to the same in the others.
    """

    def __init__(self, schedule: NoiseSchedule, reuse: int = 1) -> None:
        self.alphas = schedule.alphas_cumprod
        self.prediction_type = schedule.prediction_type
        self.reuse = reuse
        self.calls = 0
        self.picture = np.zeros(0)

    def __call__(self, x: np.ndarray, timestep: float) -> np.ndarray:
        a = np.interp(timestep, np.arange(len(self.alphas)), self.alphas)
        if self.calls % self.reuse == 0:
            self.picture = 0.8 * np.tanh(x.astype(np.float64)) + 0.3 * math.sin(timestep / 150)
        self.calls += 1
        noise = (x - math.sqrt(a) * self.picture) / math.sqrt(1 - a)
        output = noise if self.prediction_type == "epsilon" else math.sqrt(a) * noise - math.sqrt(1 - a) * self.picture
        return output.astype(np.float32)


def trajectory_of_diffusers(scheduler: Any, steps: int, noise: np.ndarray, denoiser: ToyDenoiser) -> list[np.ndarray]:
    scheduler.set_timesteps(steps)
    x = torch.from_numpy(noise) * scheduler.init_noise_sigma
    trajectory = [x.numpy()]
    for timestep in scheduler.timesteps:
        output = denoiser(scheduler.scale_model_input(x, timestep).numpy(), float(timestep))
        x = scheduler.step(torch.from_numpy(output), timestep, x, return_dict=False)[0]
        trajectory.append(x.numpy())
    return trajectory


def trajectory_of_table(table: SamplerTable, noise: np.ndarray, denoiser: ToyDenoiser) -> list[np.ndarray]:
    run = denoise(table, noise, lambda _, step, x: denoiser(x, step.timestep))
    return [table.init_scale * noise, *(done.latents for done in run)]


def check_against_diffusers(scheduler: Any, sampler: str, steps: int, reuse: int = 1) -> float:
    """Compare every step, relative to the largest value of its latent (at least 1); return the largest error."""
    schedule = read(scheduler)
    table = build_table(schedule, sampler, steps, reuse)
    noise = torch_randn((1, 4, 8, 8), seed=steps)
    denoiser = ToyDenoiser(schedule)
    wanted = trajectory_of_diffusers(scheduler, steps, noise, ToyDenoiser(schedule, reuse))
    found = trajectory_of_table(table, noise, denoiser)
    assert denoiser.calls == math.ceil(steps / reuse)
    assert [float(t) for t in scheduler.timesteps] == list(table.timesteps)
    assert len(found) == len(wanted) == steps + 1
    assert found[-1].dtype == np.float32
    error = max(float(np.abs(f - w).max() / max(1, np.abs(w).max())) for f, w in zip(found, wanted, strict=True))
    level = math.sqrt(1 / denoiser.alphas[math.floor(table.timesteps[0])] - 1)
    # what diffusers is told to predict where a table reuses a picture is rounded as well
    assert error <= (TOLERANCE if steps > 2 and reuse == 1 else max(TOLERANCE, ROUNDINGS * level))
    return error


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 10, 14, 15, 20, 50])
@pytest.mark.parametrize("betas", [{}, STABLE_DIFFUSION], ids=["linear", "scaled_linear"])
@pytest.mark.parametrize("spacing", TIMESTEP_SPACINGS)
@pytest.mark.parametrize("prediction", PREDICTION_TYPES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_equals_diffusers_step_for_step(
    sampler: str, prediction: str, spacing: str, betas: dict[str, Any], steps: int
) -> None:
    scheduler = make_scheduler(sampler, prediction_type=prediction, timestep_spacing=spacing, **betas)
    check_against_diffusers(scheduler, sampler, steps)


@pytest.mark.parametrize(("steps", "reuse"), [(4, 3), (7, 2), (20, 2), (20, 3), (50, 7)])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])  # with linspace Euler's timesteps lie between two alphas
@pytest.mark.parametrize("prediction", PREDICTION_TYPES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_reuse_equals_diffusers_with_a_model_that_expects_the_same_picture_again(
    sampler: str, prediction: str, spacing: str, steps: int, reuse: int
) -> None:
    scheduler = make_scheduler(sampler, prediction_type=prediction, timestep_spacing=spacing)
    check_against_diffusers(scheduler, sampler, steps, reuse)


@pytest.mark.parametrize("steps", [1, 7, 20, 50])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_equals_diffusers_with_an_offset(sampler: str, steps: int) -> None:
    scheduler = make_scheduler(sampler, timestep_spacing="leading", steps_offset=1, **STABLE_DIFFUSION)
    check_against_diffusers(scheduler, sampler, steps)


@pytest.mark.parametrize("spacing", TIMESTEP_SPACINGS)
@pytest.mark.parametrize("offset", [0, 1])
def test_ddim_can_stop_at_the_noise_of_timestep_0(spacing: str, offset: int) -> None:
    scheduler = make_scheduler("ddim", set_alpha_to_one=False, timestep_spacing=spacing, steps_offset=offset)
    for steps in (1, 4, 20):
        check_against_diffusers(scheduler, "ddim", steps)


@pytest.mark.parametrize("lower_order_final", [True, False])
@pytest.mark.parametrize("euler_at_final", [True, False])
@pytest.mark.parametrize("steps", [2, 14, 15])
def test_order_of_the_last_dpm_step_has_no_switch(lower_order_final: bool, euler_at_final: bool, steps: int) -> None:
    scheduler = make_scheduler("dpmpp-2m", lower_order_final=lower_order_final, euler_at_final=euler_at_final)
    check_against_diffusers(scheduler, "dpmpp-2m", steps)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_equals_diffusers_for_another_number_of_training_timesteps(sampler: str) -> None:
    scheduler = make_scheduler(sampler, num_train_timesteps=400, timestep_spacing="trailing")
    check_against_diffusers(scheduler, sampler, 30)


def test_alphas_equal_diffusers_in_both_beta_schedules() -> None:
    for betas in ({}, STABLE_DIFFUSION):
        scheduler = make_scheduler("ddim", **betas)
        wanted = scheduler.alphas_cumprod.numpy()
        np.testing.assert_allclose(read(scheduler).alphas_cumprod, wanted, rtol=1e-6)
        np.testing.assert_allclose(1 - read(scheduler).alphas_cumprod, 1 - wanted, rtol=1e-6)


def test_reads_the_configuration_of_pixart() -> None:
    assert NoiseSchedule.from_diffusers(PIXART, "x") == NoiseSchedule(
        num_train_timesteps=1000,
        beta_schedule="linear",
        beta_start=0.0001,
        beta_end=0.02,
        prediction_type="epsilon",
        timestep_spacing="linspace",
        steps_offset=0,
        set_alpha_to_one=True,
        sampler="dpmpp-2m",
    )


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_absent_keys_take_the_defaults_of_diffusers(sampler: str) -> None:
    name = SCHEDULERS[sampler].__name__
    bare: dict[str, Any] = {"_class_name": name, "clip_sample": False}
    assert NoiseSchedule.from_diffusers(bare, "x") == read(make_scheduler(sampler))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_ignores_what_another_scheduler_left_behind(sampler: str) -> None:
    left = make_scheduler("dpmpp-2m", solver_order=2, lower_order_final=False).config
    scheduler = SCHEDULERS[sampler].from_config(left, clip_sample=False)
    check_against_diffusers(scheduler, sampler, 20)


UNSUPPORTED: list[tuple[str, str, Any]] = [
    *(("DPMSolverMultistepScheduler", key, True) for key in ("use_karras_sigmas", "use_exponential_sigmas")),
    *(("DPMSolverMultistepScheduler", key, True) for key in ("use_beta_sigmas", "use_lu_lambdas", "use_flow_sigmas")),
    *(("DPMSolverMultistepScheduler", key, True) for key in ("use_dynamic_shifting", "thresholding")),
    *(("DPMSolverMultistepScheduler", "algorithm_type", v) for v in ("dpmsolver", "sde-dpmsolver++", "sde-dpmsolver")),
    *(("DPMSolverMultistepScheduler", "solver_order", v) for v in (1, 3)),
    ("DPMSolverMultistepScheduler", "solver_type", "heun"),
    ("DPMSolverMultistepScheduler", "final_sigmas_type", "sigma_min"),
    ("DPMSolverMultistepScheduler", "lambda_min_clipped", -5.1),
    ("DPMSolverMultistepScheduler", "variance_type", "learned_range"),
    ("DDIMScheduler", "clip_sample", True),
    ("DDIMScheduler", "thresholding", True),
    ("EulerDiscreteScheduler", "interpolation_type", "log_linear"),
    ("EulerDiscreteScheduler", "timestep_type", "continuous"),
    ("EulerDiscreteScheduler", "use_karras_sigmas", True),
    *(
        (scheduler.__name__, key, value)
        for scheduler in SCHEDULERS.values()
        for key, value in (
            ("rescale_betas_zero_snr", True),
            ("trained_betas", [0.1, 0.2]),
            ("beta_schedule", "squaredcos_cap_v2"),
            ("prediction_type", "sample"),
            ("timestep_spacing", "middle"),
        )
    ),
    ("UniPCMultistepScheduler", "_class_name", "UniPCMultistepScheduler"),
]


@pytest.mark.parametrize(("scheduler", "key", "value"), UNSUPPORTED)
def test_refuses_what_is_not_implemented(scheduler: str, key: str, value: Any) -> None:
    config = {"_class_name": scheduler, "clip_sample": False, key: value}
    with pytest.raises(UnsupportedError, match=key) as raised:
        NoiseSchedule.from_diffusers(config, "folder/scheduler_config.json")
    assert "folder/scheduler_config.json" in str(raised.value)
    assert repr(value) in str(raised.value)
    assert "want" in str(raised.value)


def test_ddim_without_clip_sample_is_refused_because_diffusers_would_clip() -> None:
    with pytest.raises(UnsupportedError, match="clip_sample = True"):
        NoiseSchedule.from_diffusers({"_class_name": "DDIMScheduler"}, "x")


# Parameters of switches that must be off, and what is settled by order 2 and a final noise level of zero.
WITHOUT_EFFECT = {
    *("clip_sample_range", "dynamic_thresholding_ratio", "sample_max_value", "sigma_min", "sigma_max", "flow_shift"),
    *("time_shift_type", "lower_order_final", "euler_at_final", "variance_type"),
}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_parameter_of_diffusers_is_known(sampler: str) -> None:
    """A new diffusers with a new switch must be looked at, not ignored."""
    scheduler: Any = SCHEDULERS[sampler]
    fixed = samplers._FIXED_EVERYWHERE | samplers._FIXED[sampler]
    known = {field.name for field in fields(NoiseSchedule)} | fixed.keys() | WITHOUT_EFFECT
    assert inspect.signature(scheduler).parameters.keys() - known == set()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_keys_of_other_classes_are_ignored_as_in_diffusers(sampler: str) -> None:
    config = {"a_field_of_the_future": 1, "variance_type": "fixed_small", "skip_prk_steps": True, "clip_sample": False}
    scheduler: Any = SCHEDULERS[sampler].from_config(config)
    check_against_diffusers(scheduler, sampler, 20)


@pytest.mark.parametrize(
    "change",
    [
        {"num_train_timesteps": 0},
        {"num_train_timesteps": 1000.0},
        {"beta_start": 0.0},
        {"beta_start": 0.03},
        {"beta_end": 1.0},
        {"beta_end": "0.02"},
        {"beta_end": math.nan},
        {"steps_offset": -1},
        {"steps_offset": 10**9},
        {"num_train_timesteps": 10**9},
        {"num_train_timesteps": None},
        {"beta_schedule": []},
        {"prediction_type": "\x1b[2J"},
        {"set_alpha_to_one": 1},
        {"sampler": "heun"},
    ],
)
def test_refuses_values_out_of_range(change: dict[str, Any]) -> None:
    schedule = read(make_scheduler("dpmpp-2m")).to_json()
    with pytest.raises(InputError, match=next(iter(change))) as raised:
        decode(schedule | change, NoiseSchedule, Origin("samplers", "manifest.json"))
    assert "manifest.json" in str(raised.value)
    assert str(raised.value).isprintable()
    config = {"_class_name": "DPMSolverMultistepScheduler", **change}
    if "sampler" not in change:
        with pytest.raises(InputError, match=next(iter(change))):
            NoiseSchedule.from_diffusers(config, "scheduler_config.json")


@pytest.mark.parametrize("name", [None, 5, [], {}])
def test_refuses_a_class_that_is_no_name(name: object) -> None:
    with pytest.raises(UnsupportedError, match="_class_name"):
        NoiseSchedule.from_diffusers({"_class_name": name}, "x")


@pytest.mark.parametrize("value", [None, [], {}, {**PIXART}])
def test_refuses_json_of_something_else(value: object) -> None:
    with pytest.raises(FormatError, match=r"manifest\.json"):
        decode(value, NoiseSchedule, Origin("samplers", "manifest.json"))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_json_round_trip(sampler: str) -> None:
    schedule = read(make_scheduler(sampler, **STABLE_DIFFUSION))
    assert decode(json.loads(json.dumps(schedule.to_json())), NoiseSchedule, Origin("samplers", "x")) == schedule


def test_refuses_an_unknown_sampler() -> None:
    with pytest.raises(UnsupportedError, match="heun"):
        build_table(read(make_scheduler("ddim")), "heun", 20)


@pytest.mark.parametrize(
    ("sampler", "spacing", "offset", "steps"),
    [
        ("dpmpp-2m", "linspace", 0, 0),
        ("dpmpp-2m", "linspace", 0, 1001),
        ("dpmpp-2m", "linspace", 0, 1000),  # two of 1001 timesteps in 0..999 are the same: diffusers divides by zero
        ("dpmpp-2m", "leading", 0, 1000),  # a stride of 0
        ("ddim", "leading", 1, 1000),  # timestep 1000
    ],
)
def test_refuses_steps_that_do_not_fit(sampler: str, spacing: str, offset: int, steps: int) -> None:
    schedule = dataclasses.replace(read(make_scheduler(sampler)), timestep_spacing=spacing, steps_offset=offset)
    with pytest.raises(ValueRangeError, match="steps"):
        build_table(schedule, sampler, steps)


def edit_by_diffusers(
    scheduler: Any,
    steps: int,
    strength: float,
    tensors: tuple[np.ndarray, ...],
    mask: np.ndarray,
    *,
    is_inpainting: bool,
) -> list[np.ndarray]:
    """Do as the loops of StableDiffusionImg2ImgPipeline and StableDiffusionInpaintPipeline."""
    image, noise = map(torch.from_numpy, tensors)
    scheduler.set_timesteps(steps)
    skipped = steps - min(int(steps * strength), steps)
    timesteps = scheduler.timesteps[skipped:]
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(skipped)
    x = scheduler.add_noise(image, noise, timesteps[:1])
    if is_inpainting and strength == 1.0:
        x = noise * scheduler.init_noise_sigma
    trajectory, denoiser = [x.numpy()], ToyDenoiser(read(scheduler))
    for index, timestep in enumerate(timesteps):
        output = denoiser(scheduler.scale_model_input(x, timestep).numpy(), float(timestep))
        x = scheduler.step(torch.from_numpy(output), timestep, x, return_dict=False)[0]
        if is_inpainting:
            is_last = index == len(timesteps) - 1
            known = image if is_last else scheduler.add_noise(image, noise, timesteps[index + 1 : index + 2])
            x = (1 - torch.from_numpy(mask)) * known + torch.from_numpy(mask) * x
        trajectory.append(x.numpy())
    return trajectory


@pytest.mark.parametrize("is_inpainting", [False, True], ids=["img2img", "inpainting"])
@pytest.mark.parametrize(("steps", "strength"), [(1, 1.0), (20, 1.0), (20, 0.8), (20, 0.06), (7, 0.5), (50, 0.99)])
@pytest.mark.parametrize("spacing", TIMESTEP_SPACINGS)
@pytest.mark.parametrize("prediction", PREDICTION_TYPES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_edit_equals_diffusers_step_for_step(
    sampler: str, prediction: str, spacing: str, steps: int, strength: float, *, is_inpainting: bool
) -> None:
    scheduler = make_scheduler(sampler, prediction_type=prediction, timestep_spacing=spacing)
    image, noise = (torch_randn((1, 4, 8, 8), seed) for seed in (steps, steps + 1))
    mask = (torch_randn((1, 1, 8, 8), 9) > 0).astype(np.float32)
    wanted = edit_by_diffusers(scheduler, steps, strength, (image, noise), mask, is_inpainting=is_inpainting)

    schedule = read(scheduler)
    table = build_table(schedule, sampler, steps, strength=strength, starts_from_image=not is_inpainting)
    denoiser, masked = ToyDenoiser(schedule), mask if is_inpainting else None
    run = denoise(table, noise, lambda _, step, x: denoiser(x, step.timestep), image, masked)
    found = [table.init_scale * noise + table.init_clean * image, *(done.latents for done in run)]
    assert len(found) == len(wanted) == max(1, int(steps * strength)) + 1
    assert found[-1].dtype == np.float32
    level = table.init_scale / (table.init_clean or 1.0)
    for ours, theirs in zip(found, wanted, strict=True):
        assert np.abs(ours - theirs).max() <= max(TOLERANCE, ROUNDINGS * level) * max(1, np.abs(theirs).max())
    if is_inpainting:
        known = np.broadcast_to(mask == 0, image.shape)
        assert np.array_equal(found[-1][known], image[known])


def test_reuse_counts_from_the_first_step_that_is_taken() -> None:
    table = build_table(read(make_scheduler("ddim")), "ddim", 10, 3, strength=0.7)
    assert [step.is_reused for step in table.steps] == [False, True, True, False, True, True, False]


@pytest.mark.parametrize(("steps", "strength"), [(20, 0.04), (1, 0.9), (5, 0.0)])
def test_a_strength_that_leaves_no_step_is_refused(steps: int, strength: float) -> None:
    with pytest.raises(ValueRangeError, match=rf"strength {strength} of {steps} steps leaves none"):
        build_table(read(make_scheduler("ddim")), "ddim", steps, strength=strength)


@pytest.mark.parametrize("steps", range(1, 1001, 7))
def test_the_strength_that_is_advised_leaves_a_step(steps: int) -> None:
    with pytest.raises(ValueRangeError) as caught:
        count_steps(steps, 0.0)
    advised = re.search(r"at least ([0-9.]+),", str(caught.value))
    assert advised is not None
    assert count_steps(steps, float(advised[1])) >= 1


@given(
    sampler=st.sampled_from(SAMPLERS),
    spacing=st.sampled_from(TIMESTEP_SPACINGS),
    prediction=st.sampled_from(PREDICTION_TYPES),
    total=st.integers(1, 2000),
    steps=st.integers(1, 2000),
    offset=st.integers(0, 2),
)
def test_a_table_is_finite_and_visits_falling_timesteps_or_is_refused(
    sampler: str, spacing: str, prediction: str, total: int, steps: int, offset: int
) -> None:
    schedule = NoiseSchedule(total, "linear", 0.0001, 0.02, prediction, spacing, offset, True, sampler)
    try:
        table = build_table(schedule, sampler, steps)
    except InputError:
        return
    assert len(table.steps) == steps
    assert all(0 <= timestep < total for timestep in table.timesteps)
    assert all(later < earlier for earlier, later in zip(table.timesteps, table.timesteps[1:], strict=False))
    weights = [value for step in table.steps for value in dataclasses.astuple(step)[:-1]]
    assert all(type(value) is float and math.isfinite(value) for value in weights)
    assert not any(step.is_reused for step in table.steps)
    assert table.steps[0].previous == 0.0
    if sampler != "ddim":
        assert table.steps[-1].keep_x == 0.0  # ends on the denoised latent


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_advances_arrays_of_every_library_in_their_own_precision(sampler: str) -> None:
    mx = pytest.importorskip("mlx.core")
    table = build_table(read(make_scheduler(sampler)), sampler, 4)
    step = table.steps[2]
    x, output, before = (torch_randn((1, 4, 4, 4), seed) for seed in range(3))

    def take(x: Any, output: Any, before: Any) -> tuple[Any, Any]:
        denoised = step.denoise(x, output)
        return denoised, step.advance(x, denoised, before)

    wanted = take(x, output, before)
    in_torch = take(torch.from_numpy(x), torch.from_numpy(output), torch.from_numpy(before))
    in_mlx = take(mx.array(x), mx.array(output), mx.array(before))
    for one, two, three in zip(wanted, in_torch, in_mlx, strict=True):
        assert one.dtype == np.float32
        assert two.dtype == torch.float32
        assert three.dtype == mx.float32
        np.testing.assert_allclose(two.numpy(), one, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(np.array(three), one, rtol=1e-6, atol=1e-6)
