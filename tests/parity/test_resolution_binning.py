"""Pictures of sizes that PixArt was not trained at, snapped to its table of sizes and resized back, as diffusers does.

The wanted pictures are those of diffusers' own pipelines with `use_resolution_binning=True`, their default.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mlx_moddit.pipeline import Pipeline
from moddit.errors import UnsupportedError
from tests import tiny
from tests.parity.bridge import psnr
from tests.parity.roads import run_mlx, run_reference, to_bundle

PROMPT: Final = "a large red circle"
SETTINGS: Final[dict[str, Any]] = {"negative_prompt": "small green", "seed": 11, "steps": 3, "guidance_scale": 4.5}
# Rounding to 256 levels alone is 58.9 dB; a size, a resize or a condition that differs costs tens of dB.
BINNED_PSNRS: Final = {
    "float32": 55.0,
    "float16": 55.0,
    "bfloat16": 43.0,
}  # dB; 58.5 and 48.7 were measured in half precision
# Of values in 0..1. The PyTorch reference does diffusers' operations in float32, but for the sampler's sums, which are
# ours and in another order: 9e-7, fifteen units in the last place, was measured, and other processors round otherwise.
# Neighbouring pixels differ by 6e-2 in the mean.
ROUNDING_TOLERANCE: Final = 5e-6
# A VAE that divides sides by 8, with as few channels as can be
VAE: Final[dict[str, Any]] = {
    "block_out_channels": (4,) * 4,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}
OF_256: Final[dict[str, Any]] = {"transformer": {"sample_size": 32}, "vae": VAE}


@pytest.mark.parametrize("kind", ["sigma", "alpha"])
@pytest.mark.parametrize(("height", "width"), [(200, 300), (301, 97), (64, 64), (256, 256), (None, None)], ids=str)
def test_sizes_off_the_table_equal_diffusers(
    tmp_path: Path, stored_dtype: str, kind: str, height: int | None, width: int | None
) -> None:
    reference = tiny.make_pipeline(kind, **OF_256)
    reference.save_pretrained(tmp_path / "model")
    size = {"height": height, "width": width}
    wanted = run_diffusers(reference, **size)
    assert wanted.shape == (height or 256, width or 256, 3)

    bundle = to_bundle(tmp_path / "model", tmp_path / "bundle", stored_dtype)
    found = run_mlx(bundle, PROMPT, **SETTINGS, **size, resolution_binning=True).picture
    assert psnr(found, wanted) > BINNED_PSNRS[stored_dtype]

    again = run_reference(tmp_path / "model", PROMPT, **SETTINGS, **size, resolution_binning=True).picture
    np.testing.assert_allclose(again, wanted, rtol=0, atol=ROUNDING_TOLERANCE)


def test_conditions_of_alpha_at_1024_are_those_of_the_binned_size(tmp_path: Path) -> None:
    tile = 256  # pixels; in one piece decoding would take a gigabyte
    reference = tiny.make_pipeline(
        "alpha-micro", transformer={"num_layers": 1}, vae={**VAE, "sample_size": tile, "mid_block_add_attention": False}
    )
    reference.save_pretrained(tmp_path / "model")
    reference.vae.enable_tiling()
    size = {"height": 300, "width": 800}
    wanted = run_diffusers(reference, **size)
    bundle = to_bundle(tmp_path / "model", tmp_path / "bundle")
    found = run_mlx(bundle, PROMPT, **SETTINGS, **size, resolution_binning=True, vae_tile_size=tile).picture
    assert psnr(found, wanted) > BINNED_PSNRS["float32"]


def test_a_routed_model_bins_as_the_reference_does(tmp_path: Path, stored_dtype: str) -> None:
    folder = tiny.save_pipeline(tmp_path / "model", **OF_256)
    settings = {**SETTINGS, "height": 200, "width": 300, "resolution_binning": True}
    wanted = run_reference(folder, PROMPT, **settings)
    found = run_mlx(to_bundle(folder, tmp_path / "bundle", stored_dtype), PROMPT, **settings)
    assert found.latents[0].shape == (1, 4, 26, 38)  # 208x304 pixels
    assert psnr(found.picture, wanted.picture) > BINNED_PSNRS[stored_dtype]


@pytest.mark.parametrize(
    ("sample_size", "message"),
    [(16, "sample_size 16, want one of 32, 64, 128, 256"), (32, "was trained on pictures of 64 pixels, want 256")],
)
def test_models_without_a_table_are_refused_by_both(tmp_path: Path, sample_size: int, message: str) -> None:
    folder = tiny.save_pipeline(tmp_path / "model", transformer={"sample_size": sample_size})
    for run in (
        lambda: run_reference(folder, PROMPT, resolution_binning=True),
        lambda: Pipeline.load(to_bundle(folder, tmp_path / "bundle")).generate(PROMPT, resolution_binning=True),
    ):
        with pytest.raises(UnsupportedError, match=message):
            run()


def test_a_size_that_diffusers_loses_is_whole_on_mlx_and_refused_by_the_reference(tmp_path: Path) -> None:
    folder = tiny.save_pipeline(tmp_path / "model", **OF_256)
    settings = {**SETTINGS, "height": 128, "width": 472, "steps": 1, "resolution_binning": True}
    assert run_mlx(to_bundle(folder, tmp_path / "bundle"), PROMPT, **settings).picture.shape == (128, 472, 3)
    with pytest.raises(UnsupportedError, match=r"diffusers resized the picture to \(128, 1\), want \(128, 472\)"):
        run_reference(folder, PROMPT, **settings)


def run_diffusers(pipeline: Any, **size: int | None) -> NDArray[np.float32]:
    settings = {**SETTINGS, **size}
    pictures = pipeline(
        PROMPT,
        num_inference_steps=settings.pop("steps"),
        generator=torch.Generator("cpu").manual_seed(settings.pop("seed")),
        output_type="np",
        use_resolution_binning=True,
        clean_caption=False,
        **settings,
    ).images
    return pictures[0]
