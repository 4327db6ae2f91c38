"""Schedulers."""

from __future__ import annotations

from pathlib import Path

from tests.parity.published.base import (
    Published,
    case,
    edit,
    plain,
    save,
)


@case
def scheduler_with_a_fixed_variance(folder: Path) -> Published:
    model = save(folder)
    edit(model / "scheduler/scheduler_config.json", variance_type="fixed_small")
    return plain(model)


@case
def scheduler_with_keys_of_other_classes(folder: Path) -> Published:
    model = save(folder)
    edit(
        model / "scheduler/scheduler_config.json",
        skip_prk_steps=True,
        clip_sample=True,
        interpolation_type="log_linear",
        of_the_future=[1],
    )
    return plain(model)


@case
def scheduler_saved_as_another_class(folder: Path) -> Published:
    model = save(folder, scheduler={"sampler": "euler"})
    edit(model / "model_index.json", scheduler=["diffusers", "DPMSolverMultistepScheduler"])
    return plain(model)


@case
def scheduler_that_was_a_unipc(folder: Path) -> Published:
    model = save(folder)
    edit(
        model / "scheduler/scheduler_config.json",
        _class_name="UniPCMultistepScheduler",
        solver_type="bh2",
        predict_x0=True,
        disable_corrector=[],
    )
    edit(model / "model_index.json", scheduler=["diffusers", "DPMSolverMultistepScheduler"])
    return plain(model)
