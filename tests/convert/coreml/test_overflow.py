"""Activations beyond float16, as T5-XXL's and the SDXL VAE's, stay finite and right where float16 is rounded to."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import Tensor

from convert.verify.bundle import Packages
from convert.verify.interpreter import Arithmetic
from convert.verify.reference import Reference
from convert.verify.weights import read_values
from moddit.manifest import read_manifest
from tests.convert.checkpoints import TEXT_ENCODER, VAE, Tensors, edit_weights
from tests.convert.coreml.bundles import make_bundle
from tests.tiny import MAX_TOKENS, save_pipeline

LARGEST: Final = 65504.0  # float16's
# Mean error, as a share of the largest output: some ten roundings of 2^-11 in a row, which partly cancel out.
ROUNDED_TOLERANCE: Final = 3e-3

Arrays = dict[str, NDArray[Any]]


def run(bundle: Path, role: str, function: str, inputs: Arrays) -> tuple[NDArray[Any], NDArray[Any], float]:
    """Run in rounded arithmetic: output, the reference's, and the largest number on the way."""
    manifest = read_manifest(bundle)
    packages = Packages.open(bundle, manifest.spec, manifest.tokens, manifest.graphs, Arithmetic.ROUNDED)
    reference = Reference.build(manifest.spec, manifest.tokens, read_values(packages))
    largest: list[float] = []

    def watch(name: str, values: tuple[Tensor, ...]) -> None:
        if "residual" in name or "resnet" in name:
            largest.extend(float(value.abs().max()) for value in values)

    found = packages.run(role, function, inputs, watch)
    return found, reference.run(role, inputs), max(largest)


def check(bundle: Path, role: str, function: str, inputs: Arrays) -> None:
    found, wanted, largest = run(bundle, role, function, inputs)
    assert LARGEST < largest < float("inf")
    assert np.isfinite(found).all()
    assert np.abs(found - wanted).mean() < ROUNDED_TOLERANCE * np.abs(wanted).max()


def scale(tensors: Tensors, *endings: str, factor: float) -> None:
    names = [name for name in tensors if name.endswith(endings)]
    assert names
    for name in names:
        tensors[name] = tensors[name] * np.float32(factor)


RESIDUALS: Final = ("DenseReluDense.wo.weight", "SelfAttention.o.weight")
PRODUCT: Final = ("wi_0.weight", "wi_1.weight")


@pytest.mark.parametrize(
    ("gated", "endings", "factor"),
    [(True, RESIDUALS, 8e4), (False, RESIDUALS, 8e4), (True, PRODUCT, 5e3)],
    ids=["residuals", "residuals-relu", "product"],
)
def test_text_encoder(tmp_path: Path, gated: bool, endings: tuple[str, ...], factor: float) -> None:
    source = save_pipeline(tmp_path / "source", text_encoder={"gated": gated})
    edit_weights(source / TEXT_ENCODER, lambda tensors: scale(tensors, *endings, factor=factor))
    bundle = make_bundle(source, tmp_path / "bundle")
    ids, mask = np.arange(3, 3 + MAX_TOKENS, dtype=np.int32)[None], np.ones((1, MAX_TOKENS), np.float32)
    check(bundle, "text_encoder", "encode", {"input_ids": ids, "text_mask": mask})


@pytest.fixture(scope="module")
def loud_vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vae")
    source = save_pipeline(folder / "source")
    edit_weights(source / VAE, lambda tensors: scale(tensors, ".conv2.weight", "conv_in.weight", factor=1e5))
    return make_bundle(source, folder / "bundle")


def test_vae_decoder(loud_vae: Path) -> None:
    latents = np.random.default_rng(0).standard_normal((1, 4, 16, 16)).astype(np.float32)
    check(loud_vae, "vae_decoder", "px32x32", {"latents": latents})


def test_vae_encoder(loud_vae: Path) -> None:
    image = np.random.default_rng(0).uniform(-1, 1, (1, 3, 32, 32)).astype(np.float32)
    check(loud_vae, "vae_encoder", "px32x32", {"image": image})
