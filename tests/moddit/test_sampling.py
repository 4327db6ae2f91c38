"""The loop of every backend: a step each time it is asked, equal to one written out."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from moddit.noise import torch_randn
from moddit.samplers import SAMPLERS, SamplerStep, build_table
from moddit.sampling import denoise, guide, is_guided
from tests.moddit.specs import SCHEDULE

SHAPE = (1, 4, 2, 3)


def predict(x: NDArray[np.float32], timestep: float) -> NDArray[np.float32]:
    return (np.float32(0.5) * x + np.float32(timestep / 1000)) / (np.float32(1) + x * x)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(("steps", "reuse"), [(1, 1), (2, 1), (7, 1), (7, 2), (7, 3)])
def test_denoise_equals_a_loop_by_hand(sampler: str, steps: int, reuse: int) -> None:
    table, noise = build_table(SCHEDULE, sampler, steps, reuse), torch_randn(SHAPE, 5)
    found = list(denoise(table, noise, lambda _, step, x: predict(x, step.timestep)))
    assert [item.index for item in found] == list(range(steps))
    assert [item.step for item in found] == list(table.steps)

    x, before = noise * table.init_scale, np.zeros_like(noise)
    for item in found:
        step = item.step
        assert step.is_reused is (item.index % reuse != 0)
        output = predict(step.input_scale * x, step.timestep)
        clean = before if step.is_reused else step.denoised_x * x + step.denoised_output * output
        x = step.keep_x * x + step.current * clean + step.previous * before
        before = clean
        assert np.array_equal(item.latents, x)
        assert np.array_equal(item.clean, clean)
        assert item.latents.dtype == np.float32


def test_a_step_is_taken_when_it_is_asked_for() -> None:
    table, noise = build_table(SCHEDULE, "ddim", 3), torch_randn(SHAPE, 1)
    asked: list[tuple[int, float]] = []

    def note(index: int, step: SamplerStep, x: NDArray[np.float32]) -> NDArray[np.float32]:
        asked.append((index, step.timestep))
        return x

    run = denoise(table, noise, note)
    assert asked == []
    next(run)
    assert asked == [(0, table.steps[0].timestep)]
    assert [item.index for item in run] == [1, 2]
    assert asked == [(index, step.timestep) for index, step in enumerate(table.steps)]


def test_the_model_is_not_asked_in_a_step_that_is_reused() -> None:
    asked: list[int] = []

    def note(index: int, _: SamplerStep, x: NDArray[np.float32]) -> NDArray[np.float32]:
        asked.append(index)
        return x

    assert len(list(denoise(build_table(SCHEDULE, "dpmpp-2m", 8, 3), torch_randn(SHAPE, 1), note))) == 8
    assert asked == [0, 3, 6]


def test_guide_with_two_rows_goes_from_the_negative_to_the_positive_and_beyond() -> None:
    negative, positive = torch_randn(SHAPE, 1), torch_randn(SHAPE, 2)
    wanted = negative + 4.5 * (positive - negative)
    assert np.array_equal(guide([negative, positive], 4.5), wanted)
    assert np.array_equal(guide(iter((negative, positive)), 4.5), wanted)
    assert np.array_equal(guide(np.stack([negative, positive]), 4.5), wanted)
    assert np.array_equal(guide([negative, positive], 0.0), negative)


@pytest.mark.parametrize("scale", [0.0, 1.0, 7.5])
def test_guide_with_one_row_is_that_row(scale: float) -> None:
    row = torch_randn(SHAPE, 3)
    assert guide([row], scale) is row


@pytest.mark.parametrize(("scale", "wanted"), [(0.0, False), (0.5, False), (1.0, False), (1.001, True), (4.5, True)])
def test_one_and_below_is_without_guidance(scale: float, wanted: bool) -> None:
    assert is_guided(scale) is wanted
