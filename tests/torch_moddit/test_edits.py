"""Edits of the reference pipeline against diffusers: PixArt's own pipelines, started as StableDiffusionImg2ImgPipeline
and StableDiffusionInpaintPipeline start theirs, since diffusers has neither for PixArt.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, DPMSolverMultistepScheduler
from numpy.typing import NDArray

from moddit.errors import InputError, MissingError, UnsupportedError, ValueRangeError
from moddit.pictures import open_edit
from tests import tiny
from torch_moddit.pipeline import ReferencePipeline

PROMPT: Final = "a large red circle on the left"
SIZE: Final = (40, 24)
STEPS: Final = 6
DOWNSCALE: Final = 2  # of the tiny pipelines' VAE
SEED: Final = 7
# The operations are the same; matrix products of weights at differently aligned addresses may differ in the last bit.
LAST_BIT: Final = 2e-6
EditByDiffusers = Callable[..., NDArray[np.float32]]
SCHEDULERS: Final[dict[str, Any]] = {"dpmpp-2m": DPMSolverMultistepScheduler, "ddim": DDIMScheduler}


def make_image(seed: int = 0) -> NDArray[np.uint8]:
    """Make a smooth picture of SIZE."""
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    waves = [np.sin(rows / (3 + seed + channel)) * np.cos(columns / (4 + channel)) for channel in range(3)]
    return (127.5 + 120 * np.stack(waves, axis=-1)).astype(np.uint8)


def make_mask() -> NDArray[np.bool_]:
    """Make a mask of whole latent pixels, for which diffusers' nearest neighbours do as ours."""
    mask = np.zeros(SIZE, dtype=bool)
    mask[8:24, 4:16] = True
    return mask


@pytest.fixture
def edit_by_diffusers(monkeypatch: pytest.MonkeyPatch) -> EditByDiffusers:
    return partial(_edit_by_diffusers, monkeypatch)


def _edit_by_diffusers(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    sampler: str,
    strength: float,
    mask: NDArray[np.bool_] | None,
    **settings: Any,
) -> NDArray[np.float32]:
    """Draw with PixArt's pipeline, whose timesteps begin later and whose callback puts back what is known."""
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = scheduler = SCHEDULERS[sampler].from_config(pipeline.scheduler.config, clip_sample=False)
    skipped = STEPS - min(int(STEPS * strength), STEPS)

    def get_timesteps(*_: Any, **__: Any) -> tuple[torch.Tensor, int]:
        scheduler.set_timesteps(STEPS)
        if hasattr(scheduler, "set_begin_index"):
            type(scheduler).set_begin_index(scheduler, skipped)
            monkeypatch.setattr(scheduler, "set_begin_index", lambda _: None)  # by the pipeline of alpha
        return scheduler.timesteps[skipped:], STEPS  # for 1 the pipeline of alpha takes another way

    monkeypatch.setattr(sys.modules[type(pipeline).__module__], "retrieve_timesteps", get_timesteps)
    late, _ = get_timesteps()
    generator = torch.Generator("cpu").manual_seed(SEED)
    pixels = torch.from_numpy(make_image() / np.float32(127.5) - 1).permute(2, 0, 1)[None]
    with torch.no_grad():
        image = pipeline.vae.encode(pixels).latent_dist.sample(generator) * pipeline.vae.config.scaling_factor
    noise = torch.randn(image.shape, generator=generator)
    if mask is not None and pipeline.transformer.config.in_channels > 4:
        _show(monkeypatch, pipeline, mask, generator)
    start = scheduler.add_noise(image, noise, late[:1])
    anew = None if mask is None else torch.from_numpy(mask[::DOWNSCALE, ::DOWNSCALE].astype(np.float32))[None, None]

    def put_back(step: int, _: Any, latents: torch.Tensor) -> None:
        if anew is None:
            return
        timesteps = late[step + 1 : step + 2]
        known = scheduler.add_noise(image, noise, timesteps) if len(timesteps) else image
        latents.copy_((1 - anew) * known + anew * latents)

    picture: NDArray[np.float32] = pipeline(
        PROMPT,
        negative_prompt="blue",
        num_inference_steps=STEPS,
        latents=noise if mask is not None and strength == 1.0 else start,
        height=SIZE[0],
        width=SIZE[1],
        output_type="np",
        clean_caption=False,
        use_resolution_binning=False,
        callback=put_back,
        callback_steps=1,
        **settings,
    ).images[0]
    return picture


def _show(monkeypatch: pytest.MonkeyPatch, pipeline: Any, mask: NDArray[np.bool_], generator: torch.Generator) -> None:
    """Feed a transformer as StableDiffusionInpaintPipeline does one of nine channels, the mask filled with the mean."""
    filled = make_image()
    filled[mask] = np.floor(filled[~mask].mean(axis=0) + 0.5)
    pixels = torch.from_numpy(filled / np.float32(127.5) - 1).permute(2, 0, 1)[None]
    with torch.no_grad():
        masked = pipeline.vae.encode(pixels).latent_dist.sample(generator) * pipeline.vae.config.scaling_factor
    anew = torch.from_numpy(mask[::DOWNSCALE, ::DOWNSCALE].astype(np.float32))[None, None]
    forward = pipeline.transformer.forward

    def inpaint(latents: torch.Tensor, **arguments: Any) -> tuple[torch.Tensor]:
        shown = torch.cat([anew, masked], dim=1).expand(len(latents), -1, -1, -1)
        return (forward(torch.cat([latents, shown], dim=1), **arguments)[0][:, :4],)

    monkeypatch.setattr(pipeline.transformer, "forward", inpaint)


@pytest.mark.parametrize("kind", tiny.KINDS)
@pytest.mark.parametrize("sampler", SCHEDULERS)
@pytest.mark.parametrize("strength", [0.2, 0.8, 1.0])
def test_img2img_equals_diffusers(
    tmp_path: Path, edit_by_diffusers: EditByDiffusers, kind: str, sampler: str, strength: float
) -> None:
    folder = tiny.save_pipeline(tmp_path / "m", kind=kind, routed=False)
    wanted = edit_by_diffusers(folder, sampler, strength, None, guidance_scale=4.5)
    found = ReferencePipeline.load(folder).generate(
        PROMPT,
        "blue",
        seed=SEED,
        steps=STEPS,
        sampler=sampler,
        image=make_image(),
        strength=strength,
        height=SIZE[0],
        width=SIZE[1],
    )
    assert np.abs(found - wanted).max() < LAST_BIT


@pytest.mark.parametrize("changes", [{}, tiny.INPAINTING], ids=["blending", "inpainting"])
@pytest.mark.parametrize("guidance_scale", [1.0, 4.5])
@pytest.mark.parametrize("sampler", SCHEDULERS)
@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_an_edit_with_a_mask_equals_diffusers(
    tmp_path: Path,
    edit_by_diffusers: EditByDiffusers,
    sampler: str,
    strength: float,
    guidance_scale: float,
    changes: Mapping[str, Any],
) -> None:
    folder = tiny.save_pipeline(tmp_path / "m", kind="sigma", routed=False, transformer=changes)
    settings: dict[str, Any] = {"guidance_scale": guidance_scale}
    drawn = edit_by_diffusers(folder, sampler, strength, make_mask(), **settings)
    reference = ReferencePipeline.load(folder)
    edit = open_edit(reference.spec, make_image(), make_mask(), height=SIZE[0], width=SIZE[1])
    request = reference.request(
        PROMPT, "blue", edit=edit, strength=strength, seed=SEED, steps=STEPS, sampler=sampler, **settings
    )
    *_, last = reference.denoise(request, edit)
    assert np.abs(reference.decode(request, last.latents) - drawn).max() < LAST_BIT
    picture = reference.draw(request, edit)
    pixels = np.round(picture * 255).astype(np.uint8)
    assert np.array_equal(pixels[~make_mask()], make_image()[~make_mask()])
    assert not np.array_equal(pixels[make_mask()], make_image()[make_mask()])


@pytest.mark.parametrize("routed", [False, True])
def test_a_smaller_strength_stays_nearer_to_the_image(tmp_path: Path, routed: bool) -> None:
    reference = ReferencePipeline.load(tiny.save_pipeline(tmp_path / "m", routed=routed))
    image = make_image()
    settings: dict[str, Any] = {"steps": 10, "image": image, "height": SIZE[0], "width": SIZE[1]}
    pixels = torch.from_numpy(image / np.float32(127.5) - 1).permute(2, 0, 1)[None]
    with torch.no_grad():
        decoded = reference.components["vae"](pixels).sample[0].permute(1, 2, 0).numpy() / 2 + 0.5
    errors = [
        float(np.abs(reference.generate(PROMPT, strength=strength, **settings) - decoded.clip(0, 1)).mean())
        for strength in (0.1, 0.5, 1.0)
    ]
    assert errors == sorted(errors)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"strength": 0.5}, UnsupportedError, "strength without an image"),
        ({"mask": make_mask()}, UnsupportedError, "mask without an image"),
        ({"image": make_image(), "strength": 0.01}, ValueRangeError, "leaves none to take"),
        ({"image": make_image(), "strength": 1.5}, ValueRangeError, "strength out of range"),
        ({"image": make_image(), "strength": float("nan")}, ValueRangeError, "strength out of range"),
        ({"image": make_image(), "reuse": 2, "strength": 0.2}, ValueRangeError, "reuse 2 of 1 steps"),
    ],
    ids=str,
)
def test_settings_that_do_not_go_together_are_refused(
    tmp_path: Path, settings: dict[str, Any], error: type[InputError], message: str
) -> None:
    reference = ReferencePipeline.load(tiny.save_pipeline(tmp_path / "m"))
    with pytest.raises(error, match=message):
        reference.generate(PROMPT, steps=STEPS, **settings)


@pytest.mark.parametrize(("settings", "missing"), [({}, "image"), ({"image": make_image()}, "mask")], ids=str)
def test_a_model_that_inpaints_wants_an_image_and_a_mask(
    tmp_path: Path, settings: dict[str, Any], missing: str
) -> None:
    reference = ReferencePipeline.load(tiny.save_pipeline(tmp_path / "m", transformer=tiny.INPAINTING))
    with pytest.raises(MissingError, match=f"no {missing}, though this model inpaints.*want an image and a mask"):
        reference.generate(PROMPT, steps=STEPS, **settings)
