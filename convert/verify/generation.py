"""A whole picture from a bundle's packages: text encoder, steps whose functions the manifest names, decoder."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from convert.verify.bundle import Packages
from convert.verify.interpreter import Arithmetic
from moddit.bounds import GUIDANCE
from moddit.checkpoint.prompt_tokenizer import PromptTokenizer
from moddit.errors import ValueRangeError
from moddit.graphs import size_name
from moddit.noise import SEED_MAX, SEED_MIN, torch_randn
from moddit.samplers import build_table

PICTURE_DECIBELS: Final = {  # PSNR that a picture must reach against the reference's
    Arithmetic.EXACT: 45.0,  # float32's rounding, which the sampling run magnifies, and pictures of eight bits
    Arithmetic.ROUNDED: 35.0,  # float16's rounding, and a few tokens routed otherwise
}


@dataclass(frozen=True)
class Request:
    """What to draw."""

    prompt: str
    height: int  # pixels
    width: int  # pixels
    negative_prompt: str = ""
    seed: int = 0
    steps: int = 20
    guidance_scale: float = 4.5  # 1 or less turns guidance off

    def __post_init__(self) -> None:
        for name, (least, most) in {"guidance_scale": (0, GUIDANCE), "seed": (SEED_MIN, SEED_MAX)}.items():
            if not least <= getattr(self, name) <= most:  # NaN is in no range
                raise ValueRangeError(f"[verify] {name} is {getattr(self, name)}, want {least}..{most}")


def generate(packages: Packages, request: Request) -> NDArray[np.float32]:
    """Generate a picture as an app does it.

    Shapes:
        -> (H, W, 3), 0..1

    Raises:
        MissingError: the bundle has no function for the picture's size.
    """
    spec = packages.spec
    tokenizer = open_tokenizer(packages)
    texts = [_encode(packages, tokenizer.encode(text)) for text in (request.negative_prompt, request.prompt)]
    table = build_table(spec.scheduler, spec.scheduler.sampler, request.steps)
    height, width = request.height // spec.vae.downscale, request.width // spec.vae.downscale
    latents = torch_randn((1, spec.transformer.in_channels, height, width), request.seed) * table.init_scale
    previous: NDArray[np.float32] | None = None
    for step in table.steps:
        negative, output = _predict(packages, request, step.input_scale * latents, step.timestep, texts)
        if request.guidance_scale > 1:
            output = negative + request.guidance_scale * (output - negative)
        latents, previous = step.advance(latents, output, previous)
    image = packages.run(
        "vae_decoder", size_name(request.height, request.width), {"latents": latents.astype(np.float32)}
    )
    return np.clip(image[0].transpose(1, 2, 0) / 2 + 0.5, 0, 1)


def measure_psnr(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    """Compare two pictures of values 0..1, in decibels."""
    error = float(np.mean((found.astype(np.float64) - wanted) ** 2))
    return math.inf if error == 0 else -10 * math.log10(error) if math.isfinite(error) else -math.inf


def open_tokenizer(packages: Packages) -> PromptTokenizer:
    """Read a bundle's tokenizer; raises as `PromptTokenizer.load`."""
    spec = packages.spec
    return PromptTokenizer.load(
        packages.folder / "tokenizer.json",
        vocab_size=spec.text_encoder.vocab_size,
        max_length=spec.max_sequence_length,
    )


def _encode(packages: Packages, ids: list[int]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Encode the tokens of a text: states (1, L, D) and mask (1, L)."""
    length = packages.spec.max_sequence_length
    padded, mask = np.zeros((1, length), np.int32), np.zeros((1, length), np.float32)
    padded[0, : len(ids)], mask[0, : len(ids)] = ids, 1
    (function,) = packages.graphs.packages["text_encoder"][0].functions
    return packages.run("text_encoder", function.name, {"input_ids": padded, "text_mask": mask}), mask


def _predict(
    packages: Packages,
    request: Request,
    latents: NDArray[np.float32],
    timestep: float,
    texts: list[tuple[NDArray[np.float32], NDArray[np.float32]]],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Run both halves of the guidance, in one call of batch 2 or in two of batch 1."""
    region = packages.plan.region(timestep) if packages.plan else 0
    batch = 2 if 2 in packages.graphs.batches else min(packages.graphs.batches)
    denoiser = packages.graphs.denoiser(request.height, request.width, batch, region)
    inputs = {"timestep": np.array([timestep], np.float32)}
    if packages.spec.transformer.use_additional_conditions:
        inputs["resolution"] = np.array([request.height, request.width], np.float32)
        inputs["aspect_ratio"] = np.array([request.height / request.width], np.float32)
    inputs["latents"] = np.repeat(latents.astype(np.float32), batch, axis=0)
    outputs: list[NDArray[np.float32]] = []
    while len(outputs) < len(texts):
        rows = [
            texts[min(len(outputs) + row, len(texts) - 1)] for row in range(batch)
        ]  # the last fills up a large batch
        states, masks = (np.concatenate(part) for part in zip(*rows, strict=True))
        outputs += list(packages.run("transformer", denoiser.function, {**inputs, "text": states, "text_mask": masks}))
    return outputs[0][None], outputs[1][None]
