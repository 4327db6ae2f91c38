"""Whole bundles: every kind of model, every option, and the embedded checkpoint with every compression."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from transformers import T5EncoderModel

from convert.cli import main
from convert.coreml.compress import Scheme
from convert.verify.bundle import Packages
from convert.verify.functions import EXACT_TOLERANCE
from convert.verify.generation import PICTURE_DECIBELS
from convert.verify.interpreter import Arithmetic
from moddit.manifest import Manifest, read_manifest, verify_files
from moddit.models.pixart import PixArtSpec
from tests.convert.coreml.bundles import PLAN, Sources, make_bundle, quick_garbage, to_coreml, verify
from tests.tiny import KINDS, MAX_TOKENS, TEXT_WIDTH, save_pipeline
from torch_moddit.pipeline import ReferencePipeline

SMALL: Final = ("--size", "16x24", "--size", "32x16")  # alpha-micro was made for 256x256 pixels
# Mean error of float16 arithmetic in three layers: some ten roundings of 5e-4 in a row, which partly cancel out.
ROUNDED_TOLERANCE: Final = 2e-3

CASES: Final = [
    ("sigma", True, ()),
    ("sigma", True, ("--compress", "int8", "--batch", "1", "--batch", "2")),
    ("sigma", True, ("--compress", "int4", "--routing", "onehot")),
    ("sigma", True, ("--compress", "palette4", "--routing", "onehot", "--chunks", "3", "--batch", "1")),
    ("sigma", True, ("--compress", "palette6", "--max-functions", "2", "--keep", "0.8", "--size", "32x48")),
    ("sigma", True, ("--max-functions", "1", "--allow-fewer", "--chunks", "2", *SMALL)),
    ("sigma", False, ("--chunks", "2", "--batch", "1")),
    ("sigma", False, ("--compress", "palette6", "--batch", "2", *SMALL)),
    ("alpha", True, ("--compress", "int4", "--chunks", "2", *SMALL)),
    ("alpha", True, ("--routing", "onehot", "--batch", "1", "--batch", "3")),
    ("alpha", False, ("--compress", "int8",)),
    ("alpha-micro", True, ("--chunks", "3", *SMALL)),
    ("alpha-micro", True, ("--routing", "onehot", "--compress", "palette4", "--batch", "1", *SMALL)),
    ("alpha-micro", False, ("--compress", "int4", "--chunks", "2", *SMALL)),
    ("dit", True, ()),
    ("dit", True, ("--chunks", "2", "--compress", "int8", *SMALL)),
    ("dit", True, ("--routing", "onehot", "--batch", "1")),
    ("dit", True, ("--routing", "onehot", "--chunks", "3", "--max-functions", "2", "--batch", "1", "--batch", "3")),
    ("dit", False, ("--compress", "palette4", "--batch", "1")),
    ("dit", False, ("--chunks", "2",)),
]  # fmt: skip


def name_case(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(value).replace("--", "") or "defaults"
    return {True: "routed", False: "dense"}[value] if isinstance(value, bool) else str(value)


class TestOptions:
    @pytest.mark.parametrize(("kind", "routed", "options"), CASES, ids=name_case)
    def test_every_function_computes_what_the_reference_does(
        self, sources: Sources, kind: str, routed: bool, options: tuple[str, ...], tmp_path: Path
    ) -> None:
        bundle = tmp_path / "bundle"
        assert to_coreml(sources(kind, routed=routed), bundle, *options) == 0
        report = verify(bundle)
        assert report.passed, report.to_text()
        transformer = [item for item in report.outcomes if item.case.startswith("transformer/")]
        assert len(transformer) == _count_cases(read_manifest(bundle))
        for item in report.outcomes:
            assert item.rounded_mean is not None
            assert any(item.flipped_rounded) or item.rounded_mean < ROUNDED_TOLERANCE, report.to_text()
        # of each function one output was stored, which came from the checkpoint and not from the bundle
        assert sum(item.stored_error is not None for item in transformer) == len(
            {item.case.split("/")[1] for item in transformer}
        )

    @pytest.mark.parametrize(
        "components",
        [
            {"transformer": {"attention_bias": False, "out_channels": 4, "patch_size": 1, "sample_size": 8}},
            {"transformer": {"interpolation_scale": 1, "num_layers": 1, "norm_eps": 1e-5}},
            {"text_encoder": {"gated": False, "relative_attention_num_buckets": 8}},
            {"text_encoder": {"d_kv": 16}},
            {"vae": {"use_quant_conv": False, "use_post_quant_conv": False, "shift_factor": 0.1}},
            {"vae": {"mid_block_add_attention": False, "block_out_channels": (8,), "layers_per_block": 2,
                     "down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)}},
        ],
        ids=["plain-transformer", "one-layer", "relu", "whole-root", "bare-vae", "flat-vae"],
    )  # fmt: skip
    def test_architectures(self, tmp_path: Path, components: dict[str, Any]) -> None:
        source = save_pipeline(tmp_path / "source", **components)
        assert to_coreml(source, tmp_path / "bundle") == 0
        report = verify(tmp_path / "bundle")
        assert report.passed, report.to_text()

    def test_two_runs_write_the_same_packages(self, source: Path, tmp_path: Path) -> None:
        one, two = (make_bundle(source, tmp_path / name, "--compress", "palette4") for name in ("one", "two"))
        weights = [sorted(path.relative_to(one) for path in one.rglob("weight.bin"))] * 2
        assert len(weights[0]) == 5
        for path in weights[0]:
            assert (one / path).read_bytes() == (two / path).read_bytes(), path


def _count_cases(manifest: Manifest) -> int:
    """Two ends of each region in each size and batch."""
    assert manifest.graphs is not None
    regions = manifest.tokens.plan.regions
    return 2 * regions * len(manifest.graphs.sizes) * len(manifest.graphs.batches)


@pytest.fixture(scope="module")
def bundle(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = ["--size", "32x48", "--batch", "1", "--batch", "2", "--chunks", "2", "--compress", "palette6"]
    return make_bundle(source, tmp_path_factory.mktemp("manifest") / "bundle", *options)


@pytest.fixture
def manifest(bundle: Path) -> Manifest:
    return read_manifest(bundle)


class TestManifest:
    def test_files(self, bundle: Path, manifest: Manifest) -> None:
        verify_files(bundle, manifest, hashes=True)
        listed = {info.path for component in manifest.components.values() for info in component.files}
        found = {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()}
        assert found - listed == {"manifest.json"}

    def test_functions(self, manifest: Manifest) -> None:
        assert manifest.backend == "coreml"
        graphs, plan = manifest.graphs, manifest.tokens.plan
        assert graphs is not None
        assert (graphs.sizes, graphs.batches, graphs.routing) == (((32, 48),), (1, 2), "rows")
        assert (graphs.compute_units, graphs.trained_plan) == ("cpuAndGPU", plan)
        assert graphs.minimum_os == {"iOS": "18.0", "macOS": "15.0"}
        for region, suffix in enumerate(["0", "1_2", "1_2", "3"]):
            for batch in (1, 2):
                item = graphs.step_function(32, 48, batch, region)
                assert item.function == f"px32x48_batch{batch}_region{suffix}"
                assert item.capacities == plan.capacities(region, 96)

    def test_chain(self, manifest: Manifest) -> None:
        assert manifest.graphs is not None
        first, second = manifest.graphs.packages["transformer"]
        assert (first.path, second.path) == ("Transformer1of2.mlpackage", "Transformer2of2.mlpackage")
        for function in first.functions:
            handed = {name.removesuffix("_out"): feature for name, feature in function.outputs.items()}
            wanted = dict(second.function(function.name).inputs)
            for name in ("text_mask", "text_keys", "text_values"):
                assert wanted.pop(name) == function.inputs[name]
            assert wanted == handed

    def test_a_step_takes_what_is_prepared_in_place_of_the_text(self, manifest: Manifest) -> None:
        assert manifest.graphs is not None
        (package,) = manifest.graphs.packages["prepare"]
        assert [function.name for function in package.functions] == ["batch1", "batch2"]
        for function in package.functions:
            assert function.inputs.keys() == {"text"}
            for item in manifest.graphs.step_functions:
                if item.batch == function.inputs["text"].shape[0]:
                    inputs = manifest.graphs.packages["transformer"][0].function(item.function).inputs
                    assert "text" not in inputs
                    assert {name: inputs[name] for name in function.outputs} == function.outputs

    def test_compression(self, manifest: Manifest) -> None:
        recipes = {name: component.quantization for name, component in manifest.components.items()}
        assert recipes["vae"] == recipes["tokenizer"] == ()
        for name in ("transformer", "text_encoder"):
            (choices,) = recipes[name]
            assert (choices.bits, choices.group_size, choices.mode) == (6, 16, "palette")
            precise = ("router", "proj_out", "pos_embed", "scale_shift_table", "adaln_single", "norm", "shared")
            assert not [tensor for tensor in choices.tensors if any(part in tensor for part in precise)]
        assert "transformer_blocks.0.attn1.to_q.weight" in recipes["transformer"][0].tensors

    def test_versions(self, manifest: Manifest) -> None:
        assert {"coremltools", "moddit", "numpy"} <= manifest.provenance.tool_versions.keys()

    def test_summary_tells_the_sizes_that_were_converted(
        self, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        sizes = ("--size", "16x24", "--size", "64x32", "--no-verify")
        assert to_coreml(source, tmp_path / "bundle", *sizes) == 0
        text = capsys.readouterr().out
        assert "\n  prepared      once a picture, in Prepare.mlpackage\n" in text
        assert "tokens kept of 24 by layer, at 16x24 pixels:\n" in text
        assert "tokens kept of 128 by layer, at 64x32 pixels:\n" in text
        assert "32x32" not in text  # at which the model was trained
        assert to_coreml(source, tmp_path / "bundle", *sizes, "--json", "--overwrite") == 0
        summary = json.loads(capsys.readouterr().out)
        assert [(item["height"], item["width"], item["tokens"]) for item in summary["sizes"]] == [
            (16, 24, 24),
            (64, 32, 128),
        ]
        assert summary["tokens"] == 64

    def test_merged_rows_keep_the_trained_plan(
        self, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        options = ("--max-functions", "2", "--no-verify", "--json")
        assert to_coreml(source, tmp_path / "bundle", *options) == 0
        (note,) = [note for note in json.loads(capsys.readouterr().out)["notes"] if "rows of capacities" in note]
        assert note.startswith("3 rows of capacities became 2: +")
        manifest = read_manifest(tmp_path / "bundle")
        assert manifest.graphs is not None
        assert len(manifest.tokens.plan.rows()) == len(manifest.graphs.step_functions) == 2
        assert [list(row) for row in manifest.graphs.trained_plan.keep_tenths] == PLAN

    def test_more_tokens_than_trained(self, source: Path, tmp_path: Path) -> None:
        assert to_coreml(source, tmp_path / "bundle", "--keep", "0.8", "--no-verify") == 0
        manifest = read_manifest(tmp_path / "bundle")
        assert manifest.graphs is not None
        trained = manifest.graphs.trained_plan
        assert [list(row) for row in trained.keep_tenths] == PLAN
        assert manifest.tokens.plan == trained.raised(0.8)


@pytest.fixture(scope="module", params=KINDS)
def pair(
    request: pytest.FixtureRequest, sources: Sources, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Packages]:
    source, folder = sources(request.param), tmp_path_factory.mktemp("pair") / "bundle"
    manifest = read_manifest(make_bundle(source, folder, *SMALL))
    return source, Packages.open(folder, manifest.spec, manifest.tokens, manifest.graphs, Arithmetic.EXACT)


class TestAgainstTheCheckpoint:
    """The packages against models that diffusers and transformers load from the checkpoint themselves."""

    def test_transformer(self, pair: tuple[Path, Packages]) -> None:
        source, packages = pair
        model = ReferencePipeline.load(source).model
        rng = np.random.default_rng(1)
        latents = rng.standard_normal((2, 4, 8, 12), np.float32)
        text = rng.standard_normal((2, MAX_TOKENS, TEXT_WIDTH), np.float32)
        mask = (np.arange(MAX_TOKENS) < np.array([[5], [MAX_TOKENS]])).astype(np.float32)
        inputs: dict[str, NDArray[Any]] = {"latents": latents, "text": text, "text_mask": mask}
        context = {name: torch.from_numpy(array) for name, array in inputs.items() if name != "latents"}
        assert isinstance(packages.spec.transformer, PixArtSpec)
        if packages.spec.transformer.use_additional_conditions:
            inputs |= {"resolution": np.array([16, 24], np.float32), "aspect_ratio": np.array([16 / 24], np.float32)}
            context |= {"resolution": torch.tensor([[16.0, 24.0]] * 2), "aspect_ratio": torch.tensor([[16 / 24]] * 2)}
        for region, timestep in enumerate([0, 251.5, 749, 999]):
            inputs["timestep"] = np.array([timestep], np.float32)
            function = packages.graphs.step_function(16, 24, 2, region).function
            with torch.no_grad():
                wanted = model(torch.from_numpy(latents), torch.full((2,), timestep), context)[:, :4]
            assert relative_error(packages.run("transformer", function, inputs), wanted) < EXACT_TOLERANCE

    def test_text_encoder(self, pair: tuple[Path, Packages]) -> None:
        source, packages = pair
        model: Any = T5EncoderModel.from_pretrained(source / "text_encoder", torch_dtype=torch.float32)
        ids = np.arange(3, 3 + MAX_TOKENS)[None]
        mask = (np.arange(MAX_TOKENS) < 9).astype(np.float32)[None]
        found = packages.run("text_encoder", "encode", {"input_ids": ids, "text_mask": mask})
        with torch.no_grad():
            wanted = model(torch.from_numpy(ids[:, :9])).last_hidden_state
        assert relative_error(found[:, :9], wanted) < EXACT_TOLERANCE

    def test_vae(self, pair: tuple[Path, Packages]) -> None:
        source, packages = pair
        model: Any = AutoencoderKL.from_pretrained(source / "vae", torch_dtype=torch.float32)
        image = torch.from_numpy(np.random.default_rng(2).uniform(-1, 1, (1, 3, 32, 16)).astype(np.float32))
        with torch.no_grad():
            latents = model.encode(image).latent_dist
            wanted = model.decode(latents.mean).sample
        scaled = latents.mean.numpy() * model.config.scaling_factor
        moments = packages.run("vae_encoder", "px32x16", {"image": image.numpy()})
        assert relative_error(moments, latents.parameters) < EXACT_TOLERANCE
        assert relative_error(packages.run("vae_decoder", "px32x16", {"latents": scaled}), wanted) < EXACT_TOLERANCE


def relative_error(found: NDArray[Any], wanted: torch.Tensor) -> float:
    assert found.shape == tuple(wanted.shape)
    return float(np.abs(found - wanted.numpy()).max() / wanted.abs().max())


QUICK: Final = [scheme for scheme in Scheme if scheme is not Scheme.PALETTE6]  # as four bits, and half as quick


class TestEmbedded:
    @pytest.mark.parametrize(
        "scheme",
        [*QUICK, pytest.param(Scheme.PALETTE6, marks=pytest.mark.slow)],
        ids=lambda scheme: scheme.value,
    )
    def test_passes_with_every_compression(
        self, scheme: Scheme, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        bundle = tmp_path / "bundle"
        with quick_garbage():
            arguments = ["--from", "hf-checkpoint", "--to", "coreml", "--out", str(bundle)]
            assert main([*arguments, "--compress", scheme.value, "--json"]) == 0
        notes = json.loads(capsys.readouterr().out)["notes"]
        assert [note for note in notes if note.startswith("verified: ")]
        assert main(["verify", str(bundle), "--json"]) == 0
        report = json.loads(capsys.readouterr().out)
        assert report == json.loads((bundle / "parity.json").read_text())
        assert report["passed"] is report["picture"]["passed"] is True
        for arithmetic, bound in PICTURE_DECIBELS.items():
            assert report["picture"]["psnr"][arithmetic.value] >= bound
        assert {path.name for path in bundle.glob("*.png")} == {
            "verify-reference.png", "verify-fp32.png", "verify-fp16.png",
        }  # fmt: skip
