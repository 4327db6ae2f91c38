"""Packages of a model that draws classes: what there is of them, and what they compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiTTransformer2DModel
from numpy.typing import NDArray

from convert.verify.bundle import Packages
from convert.verify.functions import EXACT_TOLERANCE
from convert.verify.interpreter import Arithmetic
from moddit.conditioning import Label
from moddit.graphs import Feature
from moddit.manifest import Manifest, read_manifest, verify_files
from tests.convert.coreml.bundles import Sources, make_bundle, to_coreml, verify
from tests.convert.coreml.test_package import operations, read
from tests.tiny import LABELS, save_dit_pipeline
from torch_moddit.pipeline import ReferencePipeline

CLASSES = 1000


@pytest.fixture(scope="module")
def bundle(sources: Sources, tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = ["--batch", "1", "--batch", "2", "--chunks", "2", "--compress", "palette6"]
    return make_bundle(sources("dit"), tmp_path_factory.mktemp("dit") / "bundle", *options)


@pytest.fixture
def manifest(bundle: Path) -> Manifest:
    return read_manifest(bundle)


class TestManifest:
    def test_files(self, bundle: Path, manifest: Manifest) -> None:
        """No text encoder, no tokenizer."""
        verify_files(bundle, manifest, hashes=True)
        assert manifest.components.keys() == {"transformer", "vae"}
        assert {path.name for path in bundle.iterdir()} == {
            "manifest.json", "Transformer1of2.mlpackage", "Transformer2of2.mlpackage", "VAEDecoder.mlpackage",
            "VAEEncoder.mlpackage",
        }  # fmt: skip

    def test_names_of_classes(self, manifest: Manifest) -> None:
        assert manifest.spec.conditioning == Label(tuple(LABELS.get(number, "") for number in range(CLASSES)))

    def test_every_package_is_told_timestep_and_labels(self, manifest: Manifest) -> None:
        assert manifest.graphs is not None
        first, second = manifest.graphs.packages["transformer"]
        for batch in (1, 2):
            name = manifest.graphs.step_function(32, 32, batch, 3).function
            told = {"timestep": Feature((1,), "float32"), "labels": Feature((batch,), "int32")}
            latents, tokens = Feature((batch, 4, 16, 16), "float32"), Feature((batch, 64, 96), "float16")
            assert first.function(name).inputs == {"latents": latents, **told}
            assert first.function(name).outputs == {"tokens_out": tokens}
            assert second.function(name).inputs == {"tokens": tokens, **told}
            assert second.function(name).outputs == {"prediction": latents}

    def test_compression_spares_what_is_precise(self, manifest: Manifest) -> None:
        (choices,) = manifest.components["transformer"].quantization
        assert "transformer_blocks.0.attn1.to_q.weight" in choices.tensors
        precise = ("router", "proj_out", "pos_embed", "norm1.", "class_embedder", "timestep_embedder")
        assert not [tensor for tensor in choices.tensors if any(part in tensor for part in precise)]


def test_a_block_embeds_its_label_once(tmp_path: Path, sources: Sources) -> None:
    """The output takes the first block's embedding, which another package has where the blocks are divided."""
    for chunks, wanted in {"1": {"Transformer": 3}, "2": {"Transformer1of2": 2, "Transformer2of2": 2}}.items():
        bundle = make_bundle(sources("dit", routed=False), tmp_path / chunks, "--chunks", chunks)
        for package, count in wanted.items():
            names = [item.outputs[0].name for _, item in operations(read(bundle, package)) if item.type == "gather"]
            assert len([name for name in names if name.endswith("_label")]) == count, names


@pytest.mark.parametrize("routed", [True, False], ids=["routed", "dense"])
def test_packages_against_the_checkpoint(sources: Sources, tmp_path: Path, routed: bool) -> None:
    """Dense ones against diffusers' own class, which knows nothing of ours, but only squares."""
    source, folder = sources("dit", routed=routed), tmp_path / "bundle"
    manifest = read_manifest(make_bundle(source, folder, "--size", "24x24", "--chunks", "2"))
    packages = Packages.open(folder, manifest.spec, manifest.tokens, manifest.graphs, Arithmetic.EXACT)
    latents = np.random.default_rng(1).standard_normal((2, 4, 12, 12), np.float32)
    labels = np.array([CLASSES, 207], np.int32)
    for timestep in [0, 251.5, 500, 999]:
        item = packages.graphs.step_function(24, 24, 2, manifest.tokens.plan.region(timestep))
        inputs: dict[str, NDArray[Any]] = {"latents": latents, "labels": labels}
        inputs["timestep"] = np.array([timestep], np.float32)
        found = packages.run("transformer", item.function, inputs)
        wanted = predict(source, latents, timestep, labels, routed=routed)
        assert found.shape == wanted.shape
        assert np.abs(found - wanted).max() < EXACT_TOLERANCE * np.abs(wanted).max()


@torch.no_grad()
def predict(
    source: Path, latents: NDArray[np.float32], timestep: float, labels: NDArray[np.int32], *, routed: bool
) -> NDArray[np.float32]:
    """Predict with the checkpoint; without the variance."""
    x, times, classes = torch.from_numpy(latents), torch.full((2,), timestep), torch.from_numpy(labels)
    if routed:
        output = ReferencePipeline.load(source).model(x, times, {"labels": classes})
    else:
        model: Any = DiTTransformer2DModel.from_pretrained(source / "transformer", torch_dtype=torch.float32)
        output = model(x, times, classes).sample
    wanted: NDArray[np.float32] = output[:, :4].numpy()
    return wanted


@pytest.mark.parametrize(
    "changes",
    [
        {"attention_bias": False, "out_channels": 4, "patch_size": 1, "sample_size": 8},
        {"num_layers": 1, "norm_eps": 1e-2, "num_embeds_ada_norm": 5, "labels": None},
    ],
    ids=["plain", "one-layer"],
)
def test_architectures(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert to_coreml(save_dit_pipeline(tmp_path / "source", **changes), tmp_path / "bundle") == 0
    report = verify(tmp_path / "bundle")
    assert report.passed, report.to_text()
