"""A whole picture from a bundle's packages: text encoder, steps whose functions the manifest names, decoder."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from convert.verify.bundle import Arrays, Packages
from convert.verify.interpreter import Arithmetic
from moddit.checkpoint.prompt_tokenizer import PromptTokenizer
from moddit.conditioning import Label, Text
from moddit.contract import (
    IMAGE,
    INPUT_IDS,
    LABELS,
    LATENTS,
    TEXT,
    TEXT_ENCODER,
    TEXT_MASK,
    TIMESTEP,
    TOKENIZER,
    size_name,
)
from moddit.edits import Edit
from moddit.models.vae import LOGVAR_RANGE
from moddit.noise import NoiseStream
from moddit.pictures import finish_edit
from moddit.request import Request
from moddit.samplers import SamplerStep
from moddit.sampling import denoise, guide

PICTURE_DECIBELS: Final = {  # PSNR that a picture must reach against the reference's
    Arithmetic.EXACT: 45.0,  # float32's rounding, which the sampling run magnifies, and pictures of eight bits
    Arithmetic.ROUNDED: 35.0,  # float16's rounding, and a few tokens routed otherwise
}


def generate(packages: Packages, request: Request, edit: Edit | None = None) -> NDArray[np.float32]:
    """Generate a picture as an app does it; of an edit, which the request was completed with.

    Shapes: -> (H, W, 3), 0..1

    Raises:
        MissingError: the bundle has no function for the picture's size.
    """
    spec = packages.spec
    rows = CONDITIONINGS[spec.conditioning.KIND](packages, request.rows(spec))
    height, width = request.height // spec.vae.downscale, request.width // spec.vae.downscale
    stream, shape = NoiseStream(request.seed), (1, spec.transformer.latent_channels, height, width)
    start = None if edit is None else _encode_image(packages, request, edit, stream.normal(shape))
    mask = None if edit is None else edit.latent_mask(spec.vae.downscale)
    noise = stream.normal(shape)
    batch = 2 if 2 in packages.graphs.batches else min(packages.graphs.batches)
    calls = [packages.prepare(batch, told) for told in _batches(rows, batch)]

    def predict(_: int, step: SamplerStep, latents: NDArray[np.float32]) -> NDArray[np.float32]:
        told = _tell(packages, request, np.repeat(latents.astype(np.float32), batch, axis=0), step.timestep)
        region = packages.policy.plan.region(step.timestep)
        name = packages.graphs.step_function(request.height, request.width, batch, region).function
        outputs = [
            row for call in calls for row in np.split(packages.run("transformer", name, {**call, **told}), batch)
        ]
        return guide(outputs[: len(rows)], request.guidance_scale)

    marks = None if mask is None else mask.transpose(0, 3, 1, 2)
    *_, last = denoise(request.table(spec), noise, predict, start, marks)
    function = size_name(request.height, request.width)
    image = packages.run("vae_decoder", function, {LATENTS: last.latents.astype(np.float32)})
    picture: NDArray[np.float32] = np.clip(image[0].transpose(1, 2, 0) / 2 + 0.5, 0, 1)
    if edit is None or edit.mask is None:
        return picture
    return finish_edit(edit, np.round(picture * 255).astype(np.uint8)).astype(np.float32) / np.float32(255)


def _encode_image(packages: Packages, request: Request, edit: Edit, noise: NDArray[np.float32]) -> NDArray[np.float32]:
    """Draw from the latents of an edit's image. Shapes: noise (1, C, h, w) -> alike."""
    function, vae = size_name(request.height, request.width), packages.spec.vae
    moments = packages.run("vae_encoder", function, {IMAGE: edit.pixels().transpose(0, 3, 1, 2)})
    mean, logvar = np.split(moments.astype(np.float32), 2, axis=1)
    sample: NDArray[np.float32] = mean + np.exp(np.float32(0.5) * np.clip(logvar, *LOGVAR_RANGE)) * noise
    return (sample - np.float32(vae.shift_factor)) * np.float32(vae.scaling_factor)


def measure_psnr(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    """Compare two pictures of values 0..1, in decibels."""
    error = float(np.mean((found.astype(np.float64) - wanted) ** 2))
    return math.inf if error == 0 else -10 * math.log10(error) if math.isfinite(error) else -math.inf


def open_tokenizer(folder: Path, text: Text) -> PromptTokenizer:
    """Read a bundle's tokenizer; raises as `PromptTokenizer.load`."""
    return PromptTokenizer.load(
        folder / TOKENIZER, vocab_size=text.encoder.vocab_size, max_length=text.max_sequence_length
    )


def _encode_texts(packages: Packages, texts: tuple[str, ...]) -> list[Arrays]:
    """Encode texts: states (1, L, D) and mask (1, L) of each."""
    text = packages.spec.conditioning
    assert isinstance(text, Text)
    tokenizer, length = open_tokenizer(packages.folder, text), text.max_sequence_length
    (function,) = packages.graphs.packages[TEXT_ENCODER][0].functions
    rows: list[Arrays] = []
    for ids in map(tokenizer.encode, texts):
        padded, mask = np.zeros((1, length), np.int32), np.zeros((1, length), np.float32)
        padded[0, : len(ids)], mask[0, : len(ids)] = ids, 1
        states = packages.run(TEXT_ENCODER, function.name, {INPUT_IDS: padded, TEXT_MASK: mask})
        rows.append({TEXT: states, TEXT_MASK: mask})
    return rows


def _encode_labels(_: Packages, numbers: tuple[int, ...]) -> list[Arrays]:
    return [{LABELS: np.array([number], np.int32)} for number in numbers]


# What a step is fed for each row of a batch, by what a model is conditioned on.
CONDITIONINGS: Final[Mapping[str, Callable[[Packages, Any], list[Arrays]]]] = {
    Text.KIND: _encode_texts,
    Label.KIND: _encode_labels,
}


def _batches(rows: list[Arrays], batch: int) -> list[Arrays]:
    """Put rows together, as many as a call takes; the last one fills up."""
    taken = [[rows[min(first + row, len(rows) - 1)] for row in range(batch)] for first in range(0, len(rows), batch)]
    return [{name: np.concatenate([row[name] for row in call]) for name in call[0]} for call in taken]


def _tell(packages: Packages, request: Request, latents: NDArray[np.float32], timestep: float) -> Arrays:
    """Give what a step is told that is the same for all rows, and its latents (B, C, h, w)."""
    sizes = packages.spec.transformer.size_features(request.height, request.width)
    shared = {name: np.array(values, np.float32) for name, values in sizes.items()}
    return {**shared, TIMESTEP: np.array([timestep], np.float32), LATENTS: latents}
