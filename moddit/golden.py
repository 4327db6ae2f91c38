"""Golden values of this package, which ports to other languages are held to; `make golden` writes them.

Each value is what the code here computes for fixed inputs. Floating-point numbers keep all their digits: float64 for
weights of samplers, float32 for noise and latents.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import fields
from itertools import product
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from moddit.noise import SEED_MAX, SEED_MIN, NoiseStream, torch_randn
from moddit.routing import RoutingPlan, capacity
from moddit.samplers import (
    BETA_SCHEDULES,
    DEFAULTS,
    PREDICTION_TYPES,
    SAMPLERS,
    TIMESTEP_SPACINGS,
    NoiseSchedule,
    SamplerStep,
    SamplerTable,
    build_table,
)
from moddit.sampling import denoise, guide, is_guided

Float32 = NDArray[np.float32]

TOKENS: Final = (1, 7, 9, 10, 64, 100, 256, 720, 1024, 1025, 4096, 2**31)
STEPS: Final = (1, 2, 3, 14)
REUSES: Final = (2, 3, 7)
SEEDS: Final = (0, 1, 42, 2**31, 2**32 - 1, 2**32, 2**63 - 1, SEED_MAX, -1, SEED_MIN)
SHAPES: Final = ((0,), (1,), (3, 5), (16,), (1, 4, 2, 2), (17,), (1, 4, 3, 3), (1, 4, 16, 16), (1, 4, 32, 33))
ENDS: Final = 16  # values kept of each end of an array
LATENTS: Final = (1, 4, 2, 3)
WEIGHTS: Final = tuple(field.name for field in fields(SamplerStep) if field.name != "is_reused")
MASK: Final = (1, 0, 1, 0, 0, 1)  # what is drawn anew of them
COUNTS: Final = ((32, 32), (1, 1, 1), (3, 20, 2, 5), (15, 17, 0, 4), (20, 3, 16, 1))  # of one generator's tensors


def write_goldens(folder: Path) -> None:
    """Write every golden file of this module into a folder that is there."""
    for name, make in FILES.items():
        (folder / name).write_text(format_golden(make()), encoding="utf-8")


def format_golden(value: object) -> str:
    """Write one item a line, so that a changed value is a changed line."""
    if isinstance(value, dict):
        parts = [f"{json.dumps(key)}:{format_golden(item)}" for key, item in value.items()]
        return "{\n" + ",\n".join(parts) + "\n}\n"
    if isinstance(value, list):
        return "[\n" + ",\n".join(_compact(item) for item in value) + "\n]"
    return _compact(value)


def make_plans() -> dict[str, Any]:
    """Make plans with their regions and capacities, and capacities of every keep ratio."""
    tenths = range(1, 11)
    rng = np.random.RandomState(0)
    plans = [
        RoutingPlan.uniform(2, 1, 10),
        RoutingPlan(((1, 5, 10), (2, 5, 9)), 7),
        RoutingPlan(tuple(tuple(map(int, row)) for row in rng.randint(1, 11, (28, 4)))),
        RoutingPlan(((3, 3, 4, 3), (6, 6, 6, 6)), 1000),
    ]
    return {
        "capacities": [[part, count, capacity(part, count)] for part, count in product(tenths, TOKENS)],
        "plans": [_describe_plan(plan) for plan in plans],
    }


def make_tables() -> dict[str, Any]:
    """Make sampler tables for every sampler and spacing, and a run of each with a denoiser that is only arithmetic."""
    cases = [
        (_schedule(sampler, spacing), steps) for sampler, spacing, steps in product(SAMPLERS, TIMESTEP_SPACINGS, STEPS)
    ]
    for sampler, prediction, betas in product(SAMPLERS, PREDICTION_TYPES, BETA_SCHEDULES):
        changes = {"prediction_type": prediction, "beta_schedule": betas, "beta_start": 0.00085, "beta_end": 0.012}
        cases.append((_schedule(sampler, "leading", steps_offset=1, set_alpha_to_one=False, **changes), 4))
    cases += [(_schedule(sampler, "trailing", num_train_timesteps=100), 100) for sampler in SAMPLERS]
    runs = [_describe_run(schedule, steps) for schedule, steps in cases]
    reused = product(SAMPLERS, PREDICTION_TYPES, REUSES)
    runs += [_describe_run(_schedule(name, "trailing", prediction_type=kind), 8, n) for name, kind, n in reused]
    for sampler, spacing in product(SAMPLERS, TIMESTEP_SPACINGS):
        schedule = _schedule(sampler, spacing)
        runs.append(_describe_run(schedule, 7, strength=0.6, starts_from_image=True))
        runs.append(_describe_run(schedule, 7, 2, 0.6, mask=MASK))
    for sampler in SAMPLERS:
        schedule = _schedule(sampler, "trailing")
        runs.append(_describe_run(schedule, 3, starts_from_image=True))
        runs.append(_describe_run(schedule, 3, mask=MASK))
    return {"tables": runs}


def make_noise() -> dict[str, Any]:
    """Make noise of every seed and shape: both ends, and the sum in float64 of all values and of their squares.

    Beside it, tensors that one generator gives one after the other.
    """
    return {
        "noise": [_describe_noise(shape, seed) for shape, seed in product(SHAPES, SEEDS)],
        "streams": [_describe_stream(counts, seed) for seed, counts in enumerate(COUNTS)],
    }


def make_guidance() -> dict[str, Any]:
    """Make the guided output of batches with and without a learned variance."""
    cases = []
    for scale, channels, seed in product((0.5, 1.0, 1.5, 4.5, 7.25), (4, 8), (0, 1)):
        rows = 2 if is_guided(scale) else 1
        output = torch_randn((rows, channels, 2, 2), seed)
        wanted = guide(np.split(output, rows), scale)
        cases.append([scale, channels, _floats(output), _floats(wanted[:, :4])])
    return {"guidance": cases}


def predict(x: Float32, timestep: float) -> Float32:
    """Stand in for a model: depends on the latent and the timestep, without functions that round apart."""
    return (np.float32(0.5) * x + np.float32(timestep / 1000)) / (np.float32(1) + x * x)


FILES: Final[dict[str, Callable[[], dict[str, Any]]]] = {
    "plans.json": make_plans,
    "samplers.json": make_tables,
    "noise.json": make_noise,
    "guidance.json": make_guidance,
}


def _compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _floats(values: NDArray[Any]) -> list[float]:
    """Write float32 values with the fewest digits that read back the same."""
    return [float(str(value)) for value in values.reshape(-1)]


def _describe_plan(plan: RoutingPlan) -> dict[str, Any]:
    total = plan.num_train_timesteps
    timesteps = sorted({0, 0.5, 1, total // 4, total / 3, total // 2, total - 1.5, total - 1, total - 0.25})
    return {
        "plan": plan.to_json(),
        "mean_keep_ratio": plan.mean_keep_ratio,
        "rows": [list(row) for row in plan.rows()],
        "regions": [[timestep, plan.region(timestep)] for timestep in timesteps],
        "capacities": [
            [list(plan.capacities(region, tokens)) for region in range(plan.regions)] for tokens in (64, 720)
        ],
    }


def _schedule(sampler: str, spacing: str, **changes: Any) -> NoiseSchedule:
    return NoiseSchedule(**{**DEFAULTS, **changes}, sampler=sampler, timestep_spacing=spacing)


def _describe_run(
    schedule: NoiseSchedule,
    steps: int,
    reuse: int = 1,
    strength: float = 1.0,
    *,
    starts_from_image: bool = False,
    mask: Sequence[int] = (),
) -> dict[str, Any]:
    table = build_table(
        schedule, schedule.sampler, steps, reuse, strength=strength, starts_from_image=starts_from_image
    )
    count = len(table.steps)
    kept = [0, 1, count // 2, count - 1] if count > max(STEPS) else range(count)  # long tables would be large
    return {
        "schedule": schedule.to_json(),
        "steps": steps,
        "reuse": reuse,
        "strength": strength,
        "starts_from_image": starts_from_image,
        "mask": list(mask),
        "init_scale": table.init_scale,
        "init_clean": table.init_clean,
        "rows": [[row, *(getattr(table.steps[row], name) for name in WEIGHTS)] for row in kept],
        "final": _floats(_run(table, mask)),
    }


def _run(table: SamplerTable, mask: Sequence[int]) -> Float32:
    image = torch_randn(LATENTS, 4) if table.init_clean or mask else None
    drawn_anew = np.array(mask, np.float32).reshape(LATENTS[2:]) if mask else None
    noise = torch_randn(LATENTS, 3)
    *_, last = denoise(table, noise, lambda _, step, x: predict(x, step.timestep), image, drawn_anew)
    latents: Float32 = last.latents
    assert latents.dtype == np.float32
    return latents


def _describe_noise(shape: Sequence[int], seed: int) -> list[Any]:
    values = torch_randn(shape, seed).reshape(-1)
    sums = [math.fsum(map(float, values)), math.fsum(float(value) ** 2 for value in values)]
    return [list(shape), str(seed), _floats(values[:ENDS]), _floats(values[-ENDS:]), *sums]


def _describe_stream(counts: Sequence[int], seed: int) -> dict[str, Any]:
    stream = NoiseStream(seed)
    return {"seed": seed, "draws": [_floats(stream.normal((count,))) for count in counts]}
