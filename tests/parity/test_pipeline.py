"""The whole road: a diffusers folder is converted and run on MLX, and gives the picture that diffusers gives.

Steps and pictures of the dense pipelines are diffusers' own, PixArtSigmaPipeline and PixArtAlphaPipeline.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests import tiny
from tests.parity.bridge import PICTURE_PSNRS, STAGE_TOLERANCES, psnr, relative_error
from tests.parity.roads import run_mlx, to_bundle

PROMPT: Final = "A large red Circle on the left and a xylophone, blue"
SETTINGS: Final[dict[str, Any]] = {"negative_prompt": "small green", "seed": 11, "steps": 6, "guidance_scale": 4.5}
# Relative to the largest latent. 2e-6, 2.9e-3 and 2.3e-2 were measured: guidance and six steps do not amplify the error
# of one stage much.
TRAJECTORY_TOLERANCES: Final = STAGE_TOLERANCES
# Rounding to 256 levels alone is 58.9 dB; tiles that are cut or blended elsewhere cost ten dB and more.
TILED_PSNRS: Final = {"float32": 55.0, "float16": 55.0, "bfloat16": 45.0}  # dB

CASES: Final[list[tuple[str, dict[str, Any]]]] = [
    ("sigma", {}),
    ("alpha", {}),
    ("alpha-micro", {}),
    ("sigma", {"scheduler": {"sampler": "ddim"}}),
    ("sigma", {"scheduler": {"sampler": "euler"}}),
    ("sigma", {"scheduler": {"prediction_type": "v_prediction", "beta_schedule": "scaled_linear"}}),
    ("sigma", {"transformer": {"out_channels": 4, "attention_bias": False}, "text_encoder": {"gated": False}}),
    ("alpha", {"vae": {"use_quant_conv": False, "use_post_quant_conv": False, "mid_block_add_attention": False}}),
]


@pytest.mark.parametrize(("kind", "changes"), CASES, ids=str)
@pytest.mark.parametrize(("height", "width"), [(32, 32), (24, 40)])
def test_dense_pipeline_equals_diffusers(
    tmp_path: Path, stored_dtype: str, kind: str, changes: dict[str, Any], height: int, width: int
) -> None:
    reference = tiny.make_pipeline(kind, **changes)
    reference.save_pretrained(tmp_path / "model")
    wanted, wanted_latents = _run_diffusers(reference, height=height, width=width)

    bundle = to_bundle(tmp_path / "model", tmp_path / "bundle", stored_dtype)
    found = run_mlx(bundle, PROMPT, **SETTINGS, height=height, width=width)

    assert len(found.latents) == len(wanted_latents) == SETTINGS["steps"]
    errors = [relative_error(mine, theirs) for mine, theirs in zip(found.latents, wanted_latents, strict=True)]
    assert max(errors) < TRAJECTORY_TOLERANCES[stored_dtype]
    assert psnr(found.picture, wanted) > PICTURE_PSNRS[stored_dtype]


def test_unguided_pipeline_equals_diffusers(tmp_path: Path, stored_dtype: str) -> None:
    reference = tiny.make_pipeline("sigma")
    reference.save_pretrained(tmp_path / "model")
    settings = {"height": 32, "width": 32, "guidance_scale": 1.0}
    wanted, _ = _run_diffusers(reference, **settings)
    bundle = to_bundle(tmp_path / "model", tmp_path / "bundle", stored_dtype)
    found = run_mlx(bundle, PROMPT, **{**SETTINGS, **settings})
    assert psnr(found.picture, wanted) > PICTURE_PSNRS[stored_dtype]


@pytest.mark.parametrize(("height", "width", "tile"), [(32, 48, 16), (24, 40, 32), (40, 24, 8)])
def test_vae_tiling_equals_diffusers(tmp_path: Path, stored_dtype: str, height: int, width: int, tile: int) -> None:
    size = {"height": height, "width": width}
    reference = tiny.make_pipeline("sigma", vae={"sample_size": tile})
    reference.save_pretrained(tmp_path / "model")
    plain, _ = _run_diffusers(reference, **size)
    reference.vae.enable_tiling()
    wanted, _ = _run_diffusers(reference, **size)
    bundle = to_bundle(tmp_path / "model", tmp_path / "bundle", stored_dtype)
    found = run_mlx(bundle, PROMPT, **SETTINGS, **size, vae_tile_size=tile)
    assert psnr(found.picture, wanted) > TILED_PSNRS[stored_dtype]
    assert psnr(found.picture, plain) < TILED_PSNRS["float32"] - 5  # tiles make a difference, which is theirs too


def _run_diffusers(pipeline: Any, **changes: Any) -> tuple[NDArray[np.float32], list[NDArray[np.float32]]]:
    settings = {**SETTINGS, **changes}
    latents: list[NDArray[np.float32]] = []
    pictures = pipeline(
        PROMPT,
        num_inference_steps=settings.pop("steps"),
        generator=torch.Generator("cpu").manual_seed(settings.pop("seed")),
        output_type="np",
        use_resolution_binning=False,
        clean_caption=False,
        callback=lambda _step, _timestep, latent: latents.append(latent.numpy().copy()),
        callback_steps=1,
        **settings,
    ).images
    return pictures[0], latents
