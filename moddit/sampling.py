"""The denoising loop, for every backend: whoever has arrays that add and multiply, and a function that predicts.

Swift has the same loop, and is held to it by golden files (`moddit.golden`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Generic

from moddit.samplers import Array, SamplerStep, SamplerTable

UNGUIDED: Final = 1.0  # the largest scale that asks for no guidance


@dataclass(frozen=True)
class Denoised(Generic[Array]):
    """What one step made."""

    index: int
    step: SamplerStep
    latents: Array  # after the step
    clean: Array  # the latents without noise that the model expects


def denoise(
    table: SamplerTable,
    noise: Array,
    predict: Callable[[int, SamplerStep, Array], Array],
    image: Array | None = None,
    mask: Array | None = None,
) -> Iterator[Denoised[Array]]:
    """Take the steps of a sampling run from standard normal noise, one each time the next result is asked for.

    `predict` gives the model's prediction, guidance applied, for a step's index, the step and the scaled latents; for
    a step that is reused it is not called. `image` is clean latents, which a table that starts from an image needs, and
    a mask: where it is 0 they are put back after each step, with their noise.

    Shapes:
        all arrays alike, but for a mask that may be broadcast
    """
    latents: Any = noise * table.init_scale
    if table.init_clean:
        assert image is not None
        latents = latents + image * table.init_clean
    clean: Any = None
    for index, step in enumerate(table.steps):
        previous = clean
        if not step.is_reused:
            clean = step.denoise(latents, predict(index, step, step.input_scale * latents))
        latents = step.advance(latents, clean, previous)
        if mask is not None:
            assert image is not None
            latents = step.put_back(latents, image, noise, mask)
        yield Denoised(index, step, latents, clean)


def is_guided(guidance_scale: float) -> bool:
    """Whether a picture takes two predictions a step: 1 and below generate without guidance, in half the time."""
    return guidance_scale > UNGUIDED


def guide(rows: Iterable[Any], guidance_scale: float) -> Any:
    """Combine the predictions of a step (classifier-free guidance): the negative one, if the scale asks for it, comes
    first.

    Shapes:
        each row, and the result, alike
    """
    *negative, positive = rows
    return negative[0] + guidance_scale * (positive - negative[0]) if negative else positive
