"""Records of benchmarks, with times that a test chooses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from moddit.benchmark.record import RECORD_VERSION, Arm, BenchmarkRecord, Conditions, Machine, Stage, Subject, Trial

IDLE: Final = Conditions("mains", False, "nominal", 0.5)
ARM: Final = Arm(
    name="dense",
    runtime="mlx",
    device="gpu",
    dtype="float16",
    bits=None,
    height=512,
    width=512,
    batch=2,
    steps=4,
    tokens=1024,
    text_tokens=32,
    keep=None,
    kept_tokens=1024.0,
    step_flops=2e12,
)
STAGES: Final[Mapping[str, tuple[float, ...]]] = {
    "load": (1.0,),
    "encode": (0.5,),
    "prepare": (0.25,),
    "first_step": (2.0,),
    "decode": (1.0,),
}


def stages(step: Sequence[float], **others: Sequence[float]) -> tuple[Stage, ...]:
    seconds = {**STAGES, "step": tuple(step), **{name: tuple(samples) for name, samples in others.items()}}
    return tuple(Stage(name, samples, 10**9, 2 * 10**9, 3 * 10**9) for name, samples in seconds.items())


def record(
    steps: Mapping[str, Sequence[Sequence[float]]], *, flops: Mapping[str, float] | None = None
) -> BenchmarkRecord:
    """Make a record with the seconds of the steps of every trial of every arm."""
    names = list(steps)
    arms = tuple(replace(ARM, name=name, step_flops=(flops or {}).get(name, ARM.step_flops)) for name in names)
    rounds = range(max(map(len, steps.values())))
    trials = tuple(
        Trial(arm, IDLE, IDLE, stages(steps[name][index]), {})
        for index in rounds
        for arm, name in enumerate(names)
        if index < len(steps[name])
    )
    return BenchmarkRecord(
        version=RECORD_VERSION,
        created="2026-11-26T00:00:00Z",
        program="mlx_moddit benchmark",
        commit=None,
        options={"trials": 3, "model": None},
        libraries={"mlx": "0.32.4"},
        machine=Machine("Apple M3 Pro", "Mac15,6", 18, 12, 18 * 2**30, "macOS 26.1"),
        subject=Subject("pixart-sigma-xl", None, "pixart", 28),
        arms=arms,
        trials=trials,
    )
