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

from convert.cli import convert
from convert.mlx.writer import Storage
from mlx_moddit.pipeline import Pipeline
from mlx_moddit.stages import Stage, Step
from tests import tiny
from tests.parity.bridge import PICTURE_PSNR, psnr, relative_error

STEPS: Final = 6
SEED: Final = 11
PROMPT: Final = "A large red Circle on the left and a xylophone, blue"
NEGATIVE: Final = "small green"
# 2e-6 was measured here: guidance and six steps do not amplify the error of one stage much.
TRAJECTORY_TOLERANCE: Final = 1e-4  # relative to the largest latent

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
    tmp_path: Path, kind: str, changes: dict[str, Any], height: int, width: int
) -> None:
    reference = tiny.make_pipeline(kind, **changes)
    reference.save_pretrained(tmp_path / "model")
    wanted, wanted_latents = _run_diffusers(reference, height, width, guidance_scale=4.5)

    found, latents = _run(_convert(tmp_path / "model"), height, width, guidance_scale=4.5)

    assert len(latents) == len(wanted_latents) == STEPS
    errors = [relative_error(mine, theirs) for mine, theirs in zip(latents, wanted_latents, strict=True)]
    assert max(errors) < TRAJECTORY_TOLERANCE
    assert psnr(found / 255, wanted) > PICTURE_PSNR


def test_unguided_pipeline_equals_diffusers(tmp_path: Path) -> None:
    reference = tiny.make_pipeline("sigma")
    reference.save_pretrained(tmp_path / "model")
    wanted, _ = _run_diffusers(reference, 32, 32, guidance_scale=1.0)
    found, _ = _run(_convert(tmp_path / "model"), 32, 32, guidance_scale=1.0)
    assert psnr(found / 255, wanted) > PICTURE_PSNR


def _convert(folder: Path) -> Path:
    bundle = folder.parent / "bundle"
    convert(str(folder), bundle, Storage("float32"))
    return bundle


def _run(
    bundle: Path, height: int, width: int, *, guidance_scale: float
) -> tuple[NDArray[np.uint8], list[NDArray[np.float32]]]:
    latents: list[NDArray[np.float32]] = []

    def keep(stage: Stage) -> None:
        if isinstance(stage, Step):
            latents.append(np.array(stage.latents).transpose(0, 3, 1, 2))

    result = Pipeline.load(bundle, dtype="float32").generate(
        PROMPT,
        negative_prompt=NEGATIVE,
        seed=SEED,
        steps=STEPS,
        guidance_scale=guidance_scale,
        height=height,
        width=width,
        on_stage=keep,
    )
    return result.images[0], latents


def _run_diffusers(
    pipeline: Any, height: int, width: int, *, guidance_scale: float
) -> tuple[NDArray[np.float32], list[NDArray[np.float32]]]:
    latents: list[NDArray[np.float32]] = []
    pictures = pipeline(
        PROMPT,
        negative_prompt=NEGATIVE,
        num_inference_steps=STEPS,
        guidance_scale=guidance_scale,
        height=height,
        width=width,
        generator=torch.Generator("cpu").manual_seed(SEED),
        output_type="np",
        use_resolution_binning=False,
        clean_caption=False,
        max_sequence_length=tiny.MAX_TOKENS,
        callback=lambda _step, _timestep, latent: latents.append(latent.numpy().copy()),
        callback_steps=1,
    ).images
    return pictures[0], latents
