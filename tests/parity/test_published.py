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
from convert.verify.bundle import Packages
from convert.verify.generation import generate
from convert.verify.interpreter import Arithmetic
from moddit.manifest import read_manifest
from moddit.request import Request
from tests.convert.coreml.bundles import quick_garbage
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
# The same operations in PyTorch, in float32, but for the sampler's sums in another order: 137 dB were measured.
TORCH_PSNR: Final = 90.0


def draw(pipeline: Any, **changes: Any) -> NDArray[np.float32]:
    """Draw with diffusers alone."""
    pipeline.to(torch.float32).set_progress_bar_config(disable=True)
    settings = {**SETTINGS, **changes}
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


def test_there_are_as_many_as_the_documentation_says() -> None:
    assert len(CASES) > 50


# Where the exporter for Core ML has more to do than to write the tensors that MLX gets: other operations, matrices cut
# from others, read from pickles or merged, a tokenizer's numbers in a graph.
COREML: Final = (
    *(name for name in CASES if name.startswith("t5 ")),
    "a_vae_that_shifts",
    "an_adapter",
    "original_sigma_as_one_file_of_comfyui",
    "pickles",
    "sharded_in_bfloat16",
    "tokenizer_of_2024",
)
# The packages hold float16 weights: 1e-3 of each, which four steps from noise magnify. A wrong tensor costs 20 dB.
COREML_PSNR: Final = 45.0
TEXT_TOKENS: Final = 64  # more than the prompt has, so that nothing is cut


@pytest.mark.without_mlx
@pytest.mark.parametrize("name", COREML)
@pytest.mark.filterwarnings("ignore")
def test_core_ml_packages_give_the_pictures_of_diffusers(name: str, tmp_path: Path) -> None:
    published = CASES[name](tmp_path)
    settings = {**SETTINGS, "width": 32}
    wanted = draw(published.load(), **settings)
    options = ("--to", "coreml", "--size", "32x32", "--max-sequence-length", str(TEXT_TOKENS), "--no-verify")
    with quick_garbage():
        assert convert(published, tmp_path / "bundle", *options) == 0
    manifest = read_manifest(tmp_path / "bundle")
    packages = Packages.open(tmp_path / "bundle", manifest.spec, manifest.tokens, manifest.graphs, Arithmetic.EXACT)
    found = generate(packages, Request.complete(manifest.spec, PROMPT, steps=STEPS, **settings))
    assert psnr(found, wanted) > COREML_PSNR
