"""What diffusers loads is converted, loaded by the PyTorch reference, and gives diffusers' pictures.

Source of the kinds: official repositories, their revisions, fine-tunes, and what is left in folders that were saved
twice; see `tests.parity.published`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from convert.cli import main
from tests.parity.bridge import psnr
from tests.parity.published import CASES, Published
from tests.parity.roads import run_mlx
from torch_moddit.pipeline import ReferencePipeline

PROMPT: Final = "A large red Circle on the left and a xylophone, blue and the small green square on the right"
SETTINGS: Final[dict[str, Any]] = {
    "negative_prompt": "small",
    "seed": 3,
    "guidance_scale": 4.5,
    "height": 32,
    "width": 40,
}
STEPS: Final = 4
# Rounding to 256 levels alone is 58.9 dB, in float32 nothing else is left; a wrong tensor or token costs 20 dB.
MLX_PSNR: Final = 55.0
TORCH_PSNR: Final = 90.0  # the same operations in PyTorch, in float


def draw(pipeline: Any) -> NDArray[np.float32]:
    """Draw with diffusers alone."""
    pipeline.to(torch.float32).set_progress_bar_config(disable=True)
    settings = dict(SETTINGS)
    picture: NDArray[np.float32] = pipeline(
        PROMPT,
        num_inference_steps=STEPS,
        generator=torch.Generator("cpu").manual_seed(settings.pop("seed")),
        output_type="np",
        use_resolution_binning=False,
        clean_caption=False,
        **settings,
    ).images[0]
    return picture


def convert(published: Published, out: Path, *options: str) -> int:
    return main(["--from", "hf-checkpoint", *published.options, "--out", str(out), *options])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore")  # of the libraries, about what is odd in these folders
def test_gives_the_pictures_of_diffusers(name: str, tmp_path: Path) -> None:
    published = CASES[name](tmp_path)
    wanted = draw(published.load())
    reference = ReferencePipeline.load(published.sources).generate(PROMPT, steps=STEPS, **SETTINGS)
    assert psnr(reference, wanted) > TORCH_PSNR
    assert convert(published, tmp_path / "bundle", "--dtype", "float32") == 0
    found = run_mlx(tmp_path / "bundle", PROMPT, steps=STEPS, **SETTINGS)
    assert psnr(found.picture, wanted) > MLX_PSNR


def test_there_are_enough_of_them() -> None:
    assert len(CASES) >= 40
