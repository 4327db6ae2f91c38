"""Samplers as tables: the timesteps of a run, and float64 weights that turn each model output into the next latent.

With x the latent, o the model's output and d the denoised latent, every step of every sampler here is

    input = input_scale * x
    d     = denoised_x * x + denoised_output * o, or d_of_the_step_before where the step is reused
    x'    = keep_x * x + current * d + previous * d_of_the_step_before

A run begins at x = init_scale * noise + init_clean * image, where an edit starts from an image's latents. Where a mask
says what is drawn anew, the rest of x' is known_clean * image + known_noise * noise.

So a runtime needs no sampler code, only the table. Notation of the comments: a = alphas_cumprod,
s = sqrt((1 - a) / a), the noise level relative to the signal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Final, TypeVar

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from moddit.bounds import TIMESTEPS, Timesteps, choice
from moddit.errors import UnsupportedError, ValueRangeError
from moddit.models.config import ComponentSpec, check_implemented
from moddit.record import Origin, decode, quote

Array = TypeVar("Array", bound=Any)  # numpy, torch or mlx

BETA_SCHEDULES: Final = ("linear", "scaled_linear")
PREDICTION_TYPES: Final = ("epsilon", "v_prediction")
TIMESTEP_SPACINGS: Final = ("linspace", "leading", "trailing")
SAMPLERS: Final = ("dpmpp-2m", "ddim", "euler")
Beta = Annotated[float, Meta(gt=0, lt=1)]

# Reading a diffusers configuration. A key is read into a field, fixed (one of the listed values: others change the
# result), or ignored, as diffusers does with those of another class. Absent keys take diffusers' defaults, `_DEFAULTS`
# where its classes differ. Without effect are the parameters of switches that are fixed to off, and, with order 2 and a
# final noise level of zero, lower_order_final and euler_at_final: the last step is of first order whatever they say.
SCHEDULER_CLASSES: Final = {
    "DPMSolverMultistepScheduler": "dpmpp-2m",
    "DDIMScheduler": "ddim",
    "EulerDiscreteScheduler": "euler",
}
DEFAULTS: Final[Mapping[str, Any]] = {
    "num_train_timesteps": 1000,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "prediction_type": "epsilon",
    "steps_offset": 0,
    "set_alpha_to_one": True,
}
_DEFAULTS: Final[dict[str, dict[str, Any]]] = {
    "dpmpp-2m": {"timestep_spacing": "linspace"},
    "ddim": {"timestep_spacing": "leading", "clip_sample": True},
    "euler": {"timestep_spacing": "linspace"},
}
_OFF: Final = (False, None)
_SIGMAS: Final = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
_LEARNED_VARIANCES: Final = ("learned", "learned_range")
_FIXED_EVERYWHERE: Final[dict[str, tuple[Any, ...]]] = {"trained_betas": (None,), "rescale_betas_zero_snr": _OFF}
_FIXED: Final[dict[str, dict[str, tuple[Any, ...]]]] = {
    "dpmpp-2m": {
        "algorithm_type": ("dpmsolver++",),
        "solver_order": (2,),
        "solver_type": ("midpoint", "logrho", "bh1", "bh2"),  # of DEIS and UniPC, which diffusers reads as the first
        "final_sigmas_type": ("zero",),
        "lambda_min_clipped": (-math.inf, None),
        **dict.fromkeys((*_SIGMAS, "thresholding", "use_lu_lambdas", "use_flow_sigmas", "use_dynamic_shifting"), _OFF),
    },
    "ddim": {"clip_sample": (False,), "thresholding": _OFF},
    "euler": {
        "interpolation_type": ("linear",),
        "timestep_type": ("discrete",),
        "final_sigmas_type": ("zero",),
        **dict.fromkeys(_SIGMAS, _OFF),
    },
}


@dataclass(frozen=True)
class NoiseSchedule(ComponentSpec):
    """How a model was trained to denoise, and how its checkpoint asks to be sampled."""

    num_train_timesteps: Timesteps
    beta_schedule: Annotated[str, choice(*BETA_SCHEDULES)]
    beta_start: Beta
    beta_end: Beta
    prediction_type: Annotated[str, choice(*PREDICTION_TYPES)]
    timestep_spacing: Annotated[str, choice(*TIMESTEP_SPACINGS)]  # for every sampler
    steps_offset: Annotated[int, Meta(ge=0, le=TIMESTEPS)]  # added to the timesteps of "leading"
    set_alpha_to_one: bool  # DDIM's last step goes to the clean picture, not to the noise of timestep 0
    sampler: Annotated[str, choice(*SAMPLERS)]  # the checkpoint's own

    def __post_init__(self) -> None:
        if not self.beta_start <= self.beta_end:
            raise ValueRangeError(f"[samplers] beta_start is {self.beta_start}, want at most beta_end, {self.beta_end}")

    @property
    def alphas_cumprod(self) -> NDArray[np.float64]:
        """Share of signal variance left at every training timestep, (num_train_timesteps,).

        Betas, alphas and the products are rounded to float32 as in diffusers, because that is how models are trained:
        near timestep 0 the rounding of alpha alone changes the noise level by 1 part in 3000.
        """
        if self.beta_schedule == "linear":
            betas = np.linspace(self.beta_start, self.beta_end, self.num_train_timesteps).astype(np.float32)
        else:
            roots = np.linspace(math.sqrt(self.beta_start), math.sqrt(self.beta_end), self.num_train_timesteps)
            betas = roots.astype(np.float32) ** 2
        return np.cumprod((np.float32(1) - betas).astype(np.float64)).astype(np.float32).astype(np.float64)

    @classmethod
    def from_diffusers(cls, config: Mapping[str, Any], where: str) -> NoiseSchedule:
        """Read `scheduler/scheduler_config.json`.

        Raises:
            UnsupportedError: a scheduler class, key or value that is not implemented, naming `where` and all three.
            ValueRangeError: a number outside its range.
        """
        found = config.get("_class_name")
        if not isinstance(found, str) or found not in SCHEDULER_CLASSES:
            raise UnsupportedError(
                f"[samplers] {where}: _class_name = {quote(found)} is not implemented, want "
                f"one of {sorted(SCHEDULER_CLASSES)}"
            )
        sampler = SCHEDULER_CLASSES[found]
        config = {**_DEFAULTS[sampler], **config}
        check_implemented(config, _FIXED_EVERYWHERE | _FIXED[sampler], where, component="samplers")
        if sampler == "dpmpp-2m" and config.get("variance_type") in _LEARNED_VARIANCES:
            raise UnsupportedError(
                f"[samplers] {where}: variance_type = {config['variance_type']!r} is not implemented, want null: the "
                "pipelines of PixArt drop a learned variance before the scheduler sees it"
            )
        config = {**DEFAULTS, **config, "sampler": sampler}
        return decode({field.name: config[field.name] for field in fields(cls)}, cls, Origin("samplers", where))


@dataclass(frozen=True)
class SamplerStep:
    """One row of a table: the timestep, and the weights of the module's three formulas."""

    timestep: float  # given to the model; whole numbers except for "euler" with "linspace"
    input_scale: float
    denoised_x: float
    denoised_output: float
    keep_x: float
    current: float
    previous: float  # 0 in the first step
    known_clean: float = 0.0  # of clean latents, and of noise, in those of the level that the step leads to
    known_noise: float = 0.0
    is_reused: bool = False  # has the denoised latent of the step before: the model is not asked

    def denoise(self, x: Array, output: Array) -> Array:
        """Give the denoised latent of a step that is not reused.

        The latent before the step, `x`, is not scaled; `output` is the model's for ``input_scale * x`` and `timestep`,
        guidance applied.

        Shapes:
            all arrays alike, of any type that adds and multiplies with Python floats
        """
        denoised: Any = self.denoised_x * x + self.denoised_output * output
        return denoised

    def advance(self, x: Array, denoised: Array, previous_denoised: Array | None) -> Array:
        """Take the step from the latent before it, not scaled; give the latent after it.

        `previous_denoised` is the denoised latent of the step before; None in the first step.

        Shapes:
            as `denoise`
        """
        advanced: Any = self.keep_x * x + self.current * denoised
        if self.previous != 0.0:
            assert previous_denoised is not None
            advanced = advanced + self.previous * previous_denoised
        return advanced

    def put_back(self, x: Array, image: Array, noise: Array, mask: Array) -> Array:
        """Give the latent after the step with an image's where the mask is 0, at the level that the step leads to, as
        diffusers' StableDiffusionInpaintPipeline does with a model of four channels.

        Shapes:
            all arrays alike, but for a mask that may be broadcast
        """
        known: Any = self.known_clean * image + self.known_noise * noise
        return (1 - mask) * known + mask * x


@dataclass(frozen=True)
class SamplerTable:
    """A sampling run: start from ``init_scale * noise + init_clean * image`` and take the steps in order."""

    name: str  # one of SAMPLERS
    init_scale: float
    steps: tuple[SamplerStep, ...]
    init_clean: float = 0.0  # nothing but noise, unless it starts from an image

    @property
    def timesteps(self) -> tuple[float, ...]:
        return tuple(step.timestep for step in self.steps)


def build_table(
    schedule: NoiseSchedule,
    sampler: str,
    steps: int,
    reuse: int = 1,
    *,
    strength: float = 1.0,
    starts_from_image: bool = False,
) -> SamplerTable:
    """Compute the table of a sampling run of so many steps, 1..num_train_timesteps, by one of SAMPLERS.

    It visits the timesteps that diffusers' scheduler of that sampler visits with the schedule's spacing. The model is
    asked in the first of every `reuse` steps; the others have its denoised latent, which enters the solver's history
    as if it were new (static reuse, of order 0).

    The last step asks the model where `steps` is one more than a multiple. Asking it there always, or counting from the
    last step, was tried and gave no clear gain for the evaluation that it takes.

    Of the steps, `int(steps * strength)` are taken, the last ones (`get_timesteps` of diffusers' img2img). A run that
    leaves some out starts from an image with the noise of its first timestep, as does one of all steps if asked to.

    Raises:
        UnsupportedError: an unknown sampler.
        ValueRangeError: so many steps that a timestep repeats or leaves the training range, or none left to take.
    """
    if sampler not in SAMPLERS:
        wanted = " or ".join(map(repr, SAMPLERS))
        raise UnsupportedError(f"[samplers] sampler = {sampler!r} is not implemented, want {wanted}")
    if not 1 <= steps <= schedule.num_train_timesteps:
        raise ValueRangeError(f"[samplers] steps out of range, got {steps}, want 1..{schedule.num_train_timesteps}")
    timesteps = _timesteps(schedule, sampler, steps)
    inside = timesteps[0] < schedule.num_train_timesteps and timesteps[-1] >= 0
    if len(timesteps) != steps or not inside or not np.all(np.diff(timesteps) < 0):
        raise ValueRangeError(
            f"[samplers] {steps} steps of {sampler!r} do not fit into {schedule.num_train_timesteps} timesteps with "
            f"spacing {schedule.timestep_spacing!r} and offset {schedule.steps_offset}, want another number of steps"
        )
    table = _TABLES[sampler](schedule, timesteps, steps)
    first = steps - count_steps(steps, strength)
    mixes = [_mix(sampler, level) for level in _noise_levels(schedule, timesteps)]
    rows = [
        replace(step, known_clean=clean, known_noise=noise, is_reused=(index - first) % reuse != 0)
        for index, (step, (clean, noise)) in enumerate(zip(table.steps, mixes[1:], strict=True))
    ][first:]
    if first == 0 and not starts_from_image:
        return replace(table, steps=tuple(rows))
    # without a step before it, as in diffusers with `set_begin_index`
    rows[0] = replace(rows[0], current=rows[0].current + rows[0].previous, previous=0.0)
    clean, noise = mixes[first]
    return replace(table, init_scale=noise, init_clean=clean, steps=tuple(rows))


def count_steps(steps: int, strength: float) -> int:
    """Count the steps that a run of some strength takes; raises ValueRangeError if that is none."""
    count = min(int(steps * strength), steps)
    if count < 1:
        raise ValueRangeError(
            f"[samplers] strength {strength} of {steps} steps leaves none to take, want at least "
            f"{math.ceil(1000 / steps) / 1000:g}, or more steps"
        )
    return count


def _timesteps(schedule: NoiseSchedule, sampler: str, steps: int) -> NDArray[np.float64]:
    """List the timesteps of a run, noisy first.

    Port of set_timesteps in diffusers/schedulers/scheduling_{ddim,dpmsolver_multistep,euler_discrete}.py: where they do
    not begin at the end, DPM-Solver++ takes one more and drops the last; Euler does not round those of "linspace".
    """
    total = schedule.num_train_timesteps
    if schedule.timestep_spacing == "trailing":
        return np.arange(total, 0, -total / steps).round() - 1
    count = steps + 1 if sampler == "dpmpp-2m" else steps
    if schedule.timestep_spacing == "leading":
        rising = np.arange(float(count)) * (total // count) + schedule.steps_offset
    elif sampler == "euler":
        rising = np.linspace(0, total - 1, count, dtype=np.float32).astype(np.float64)
    else:
        rising = np.linspace(0, total - 1, count).round()
    return rising[::-1][:steps]


def _noise_levels(schedule: NoiseSchedule, timesteps: NDArray[np.float64]) -> list[float]:
    """List s at the timesteps, and the 0 that they lead to."""
    levels = np.sqrt(1.0 / schedule.alphas_cumprod - 1.0)
    return [*map(float, np.interp(timesteps, np.arange(schedule.num_train_timesteps), levels)), 0.0]


def _mix(sampler: str, level: float) -> tuple[float, float]:
    """Weights of an image and of noise in x at a noise level, as the `add_noise` of the sampler's scheduler."""
    return (1.0, level) if sampler == "euler" else (1.0 / math.hypot(1.0, level), level / math.hypot(1.0, level))


def _denoise(schedule: NoiseSchedule, level: float) -> tuple[float, float]:
    """Weights of x and output in the denoised latent, for x = sqrt(a) * picture + sqrt(1 - a) * noise.

    epsilon: d = x / sqrt(a) - s * o;  v: d = sqrt(a) * x - sqrt(1 - a) * o
    """
    alpha = 1.0 / math.hypot(1.0, level)
    return (1.0 / alpha, -level) if schedule.prediction_type == "epsilon" else (alpha, -level * alpha)


def _dpm_table(schedule: NoiseSchedule, timesteps: NDArray[np.float64], _: int) -> SamplerTable:
    """DPM-Solver++ 2M, midpoint; the first step and the last, which goes to noise level 0, are of first order.

    Port of diffusers/schedulers/scheduling_dpmsolver_multistep.py, dpm_solver_first_order_update and
    multistep_dpm_solver_second_order_update, with exp(-h) written as the ratio of noise levels.
    """
    levels = _noise_levels(schedule, timesteps)
    rows = []
    for index, timestep in enumerate(timesteps):
        here, there = levels[index], levels[index + 1]
        alpha_here, alpha_there = 1.0 / math.hypot(1.0, here), 1.0 / math.hypot(1.0, there)
        ratio = there / here
        weight = alpha_there * (1.0 - ratio)
        keep, correction = ratio * alpha_there / alpha_here, 0.0
        if 0 < index < len(timesteps) - 1:
            correction = 0.5 * weight * math.log(here / there) / math.log(levels[index - 1] / here)  # 1 / r0 = h / h0
        denoised = _denoise(schedule, here)
        rows.append(SamplerStep(float(timestep), 1.0, *denoised, keep, weight + correction, -correction))
    return SamplerTable("dpmpp-2m", 1.0, tuple(rows))


def _ddim_table(schedule: NoiseSchedule, timesteps: NDArray[np.float64], steps: int) -> SamplerTable:
    """DDIM with eta 0: x' = sqrt(a') * d + sqrt(1 - a') * eps, where eps = (x - sqrt(a) * d) / sqrt(1 - a).

    Port of diffusers/schedulers/scheduling_ddim.py, step: a' belongs to the timestep num_train_timesteps // steps
    lower, which with "linspace" and "trailing" need not be the one visited next.
    """
    alphas = schedule.alphas_cumprod
    final = 1.0 if schedule.set_alpha_to_one else float(alphas[0])
    stride = schedule.num_train_timesteps // steps
    rows = []
    for timestep in map(int, timesteps):
        here = float(alphas[timestep])
        there = float(alphas[timestep - stride]) if timestep >= stride else final
        keep = math.sqrt((1.0 - there) / (1.0 - here))
        current = math.sqrt(there) - keep * math.sqrt(here)
        denoised = _denoise(schedule, math.sqrt(1.0 / here - 1.0))
        rows.append(SamplerStep(float(timestep), 1.0, *denoised, keep, current, 0.0))
    return SamplerTable("ddim", 1.0, tuple(rows))


def _euler_table(schedule: NoiseSchedule, timesteps: NDArray[np.float64], _: int) -> SamplerTable:
    """Euler's method for x = picture + s * noise: x' = x + (s' - s) * (x - d) / s.

    Port of diffusers/schedulers/scheduling_euler_discrete.py, step without churn, and init_noise_sigma.
    """
    levels = _noise_levels(schedule, timesteps)
    rows = []
    for timestep, here, there in zip(timesteps, levels, levels[1:], strict=False):
        input_scale = 1.0 / math.hypot(1.0, here)
        denoised_x, output = _denoise(schedule, here)
        weights = (denoised_x * input_scale, output, there / here, 1.0 - there / here, 0.0)
        rows.append(SamplerStep(float(timestep), input_scale, *weights))
    init_scale = math.hypot(1.0, levels[0]) if schedule.timestep_spacing == "leading" else levels[0]
    return SamplerTable("euler", init_scale, tuple(rows))


_TABLES: Final[dict[str, Callable[[NoiseSchedule, NDArray[np.float64], int], SamplerTable]]] = {
    "dpmpp-2m": _dpm_table,
    "ddim": _ddim_table,
    "euler": _euler_table,
}
