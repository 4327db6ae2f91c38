"""Edits on MLX against the PyTorch reference: image latents, every step, the tokens that are kept, and the picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from mlx_moddit.pipeline import Pipeline
from mlx_moddit.stages import EncodedImage, Stage
from tests import tiny
from tests.parity.bridge import PICTURE_PSNRS, psnr, relative_error, share_alike
from tests.parity.roads import Road, run_mlx, run_reference, to_bundle
from tests.parity.test_routed_pipeline import KEPT_ALIKE, TRAJECTORY_TOLERANCES
from tests.torch_moddit.test_edits import make_image, make_mask

PROMPT: Final = "A large red circle, and small Blue square"
SETTINGS: Final[dict[str, Any]] = {"negative_prompt": "green", "seed": 3, "steps": 8}


def check_alike(found: Road, wanted: Road, stored_dtype: str) -> None:
    assert len(found.latents) == len(wanted.latents) == 5
    assert not wanted.kept[0] or share_alike(found.kept, wanted.kept) >= KEPT_ALIKE[stored_dtype]
    errors = [relative_error(mine, theirs) for mine, theirs in zip(found.latents, wanted.latents, strict=True)]
    assert max(errors) < TRAJECTORY_TOLERANCES[stored_dtype]
    assert psnr(found.picture, wanted.picture) > PICTURE_PSNRS[stored_dtype]


@pytest.mark.parametrize("routed", [True, False], ids=["routed", "dense"])
@pytest.mark.parametrize("sampler", ["dpmpp-2m", "ddim", "euler"])
@pytest.mark.parametrize("is_masked", [True, False], ids=["mask", "img2img"])
def test_an_edit_equals_the_reference(
    tmp_path: Path, stored_dtype: str, sampler: str, is_masked: bool, routed: bool
) -> None:
    folder = tiny.save_pipeline(tmp_path / "model", routed=routed)
    settings = {**SETTINGS, "image": make_image(), "strength": 0.7, "sampler": sampler}
    settings |= {"mask": make_mask()} if is_masked else {}
    wanted = run_reference(folder, PROMPT, **settings)
    found = run_mlx(to_bundle(folder, tmp_path / "bundle", stored_dtype), PROMPT, **settings)
    check_alike(found, wanted, stored_dtype)
    if is_masked:
        outside = np.round(found.picture * 255).astype(np.uint8)[~make_mask()]
        assert np.array_equal(outside, make_image()[~make_mask()])


@pytest.mark.parametrize(("sampler", "routed"), [("dpmpp-2m", True), ("euler", False)])
@pytest.mark.parametrize("guidance_scale", [2.0, 1.0])
def test_a_model_that_inpaints_equals_the_reference(
    tmp_path: Path, stored_dtype: str, sampler: str, routed: bool, guidance_scale: float
) -> None:
    folder = tiny.save_pipeline(tmp_path / "model", routed=routed, transformer=tiny.INPAINTING)
    settings = {**SETTINGS, "image": make_image(), "mask": make_mask(), "strength": 0.7}
    settings |= {"sampler": sampler, "guidance_scale": guidance_scale}
    wanted = run_reference(folder, PROMPT, **settings)
    found = run_mlx(to_bundle(folder, tmp_path / "bundle", stored_dtype), PROMPT, **settings)
    check_alike(found, wanted, stored_dtype)


def test_the_image_is_encoded_once_and_its_sample_is_of_the_seed(tmp_path: Path, stored_dtype: str) -> None:
    bundle = to_bundle(tiny.save_pipeline(tmp_path / "model"), tmp_path / "bundle", stored_dtype)
    stages: list[Stage] = []
    pipeline = Pipeline.load(bundle)
    result = pipeline.generate(PROMPT, image=make_image(), seed=[1, 2], steps=2, on_stage=stages.append)
    assert sum(isinstance(stage, EncodedImage) for stage in stages) == 1
    assert not np.array_equal(result.images[0], result.images[1])
    again = Pipeline.load(bundle, low_ram=True).generate(PROMPT, image=make_image(), seed=[1, 2], steps=2)
    for one, two in zip(result.images, again.images, strict=True):
        assert np.array_equal(one, two)


def test_what_is_drawn_has_the_models_size_in_the_images_shape(tmp_path: Path) -> None:
    pipeline = Pipeline.load(to_bundle(tiny.save_pipeline(tmp_path / "model"), tmp_path / "bundle"))
    wide = np.repeat(make_image(), 8, axis=1)  # 40 x 192
    result = pipeline.generate(PROMPT, image=wide, steps=2)
    height, width, _ = result.images[0].shape
    assert (height, width) == (result.pictures[0].request.height, result.pictures[0].request.width)
    assert height % pipeline.bundle.spec.pixels_per_patch == width % pipeline.bundle.spec.pixels_per_patch == 0
    assert 0.5 < height * width / pipeline.bundle.spec.default_side**2 < 2
    assert width > 3 * height
    mask = np.zeros(wide.shape[:2], dtype=bool)
    mask[10:20, 30:60] = True
    edited = pipeline.generate(PROMPT, image=wide, mask=mask, steps=2).images[0]
    assert edited.shape == wide.shape
    assert np.array_equal(edited[~mask], wide[~mask])


def test_a_crop_equals_the_reference_and_leaves_the_rest(tmp_path: Path) -> None:
    folder = tiny.save_pipeline(tmp_path / "model")
    image, mask = np.tile(make_image(), (3, 3, 1)), np.zeros((120, 72), dtype=bool)
    mask[50:58, 30:36] = True
    settings = {**SETTINGS, "image": image, "mask": mask, "padding_mask_crop": 4}
    wanted = run_reference(folder, PROMPT, **settings)
    found = run_mlx(to_bundle(folder, tmp_path / "bundle"), PROMPT, **settings)
    assert found.latents[0].shape[2:] == (16, 16)  # the model's own size, of 16 pixels of the image
    assert psnr(found.picture[mask], wanted.picture[mask]) > PICTURE_PSNRS["float32"]
    pixels = np.round(found.picture * 255).astype(np.uint8)
    assert np.array_equal(pixels[~mask], image[~mask])
    assert not np.array_equal(pixels[mask], image[mask])
