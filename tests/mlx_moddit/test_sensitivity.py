"""What is measured of each product, and a conversion that goes by it."""

from __future__ import annotations

import shutil
from dataclasses import asdict, replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file

from convert.cli import main as convert
from mlx_moddit.cli import main
from mlx_moddit.load import load_bundle
from mlx_moddit.pipeline import Pipeline
from mlx_moddit.sensitivity.measure import PROBES
from mlx_moddit.stages import Stage, Step
from moddit.manifest import read_manifest
from moddit.quantization import mean_bits
from moddit.sensitivity import QuantReport
from tests.mlx_moddit.bundles import edit_tensors
from tests.tiny import save_dit_pipeline, save_pipeline

WIDE = {"num_attention_heads": 2, "attention_head_dim": 32, "cross_attention_dim": 64}
DRAWN = ("--num-images", "1", "--steps", "2", "--q-group-size", "32")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pipeline(tmp_path_factory.mktemp("source"), transformer=WIDE)


@pytest.fixture(scope="module")
def exact(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exact") / "bundle"
    assert convert(["mlx", "--hf-path", str(source), "--dtype", "float32", "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def report(exact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.json"
    measure(exact, path, "-p", "a red circle")
    return path


def measure(model: Path, path: Path, *options: str, status: int = 0) -> str:
    result = CliRunner().invoke(
        main, ["sensitivity", "--model", str(model), "--quant-report", str(path), *DRAWN, *options]
    )
    assert result.exit_code == status, result.output
    return result.output


def test_every_product_is_measured(exact: Path, report: Path) -> None:
    found, manifest = QuantReport.read(report), read_manifest(exact)
    tensors = manifest.spec.tensors(has_routers=True)
    for component in ("transformer", "text_encoder"):
        measured = [name for layer in found.of(component) for name in layer.tensors]
        wanted = [
            name for name, info in tensors[component].items() if info.role.is_quantisable and not info.shape[1] % 32
        ]
        assert sorted(measured) == sorted(wanted)
    joined = next(layer for layer in found.layers if len(layer.tensors) > 1)
    assert joined.tensors == tuple(f"transformer_blocks.0.attn1.to_{part}.weight" for part in "qkv")
    assert joined.weights == 3 * 64 * 64
    assert (found.source_sha256, found.steps) == (manifest.provenance.source_sha256, 2)
    for layer in found.layers:
        errors = {(loss.mode, loss.bits): loss.error for loss in layer.losses}
        assert errors.keys() == {("mxfp4", 4), *(("affine", bits) for bits in (3, 4, 5, 6, 8))}
        assert 0 < errors["affine", 8] < errors["affine", 3]


def test_errors_are_those_of_the_pictures(exact: Path, report: Path, tmp_path: Path) -> None:
    """A bundle with one tensor that lost bits on disk draws latents that differ by as much as was measured."""
    name = "transformer_blocks.1.ff.net.2.weight"
    layer = next(layer for layer in QuantReport.read(report).layers if layer.tensors == (name,))
    weight = load_file(exact / "transformer/model.safetensors")[name]
    wanted, lost, errors = draw(exact), {}, {}
    for loss in layer.losses:
        settings = asdict(loss.packing)
        words, scales, *biases = mx.quantize(mx.array(weight), **settings)
        worse = mx.dequantize(words, scales, biases[0] if biases else None, **settings).astype(mx.float32)
        lost[loss.packing] = np.sum((np.array(worse) - weight) ** 2) / np.sum(weight**2)
        if loss.bits in PROBES and loss.mode == "affine":
            shutil.copytree(exact, tmp_path / "worse", dirs_exist_ok=True)
            edit_tensors(tmp_path / "worse", "transformer", {name: worse})
            errors[loss.packing] = np.sum((draw(tmp_path / "worse") - wanted) ** 2) / np.sum(wanted**2)
    assert len(errors) == len(PROBES) == 2
    gain = np.mean([error / lost[packing] for packing, error in errors.items()])  # the median of two
    for loss in layer.losses:
        assert loss.error == pytest.approx(gain * lost[loss.packing], rel=1e-3)


def draw(folder: Path) -> np.ndarray:
    """Draw the picture of `report`, up to its latents."""
    pipeline = Pipeline.load(folder)
    stages: list[Stage] = []
    pipeline.generate("a red circle", steps=2, on_stage=stages.append)
    return np.array([stage for stage in stages if isinstance(stage, Step)][-1].latents)


@pytest.mark.parametrize("target", [4.6, 6.0])
def test_a_conversion_meets_the_target(source: Path, report: Path, tmp_path: Path, target: float) -> None:
    options = ["-q", "--target-bpw", str(target), "--quant-report", str(report), "--out", str(tmp_path / "mixed")]
    assert convert(["mlx", "--hf-path", str(source), *options]) == 0
    manifest = read_manifest(tmp_path / "mixed")
    for name in ("transformer", "text_encoder"):
        quantization = manifest.components[name].quantization
        scales = 1.0  # bits a weight: two numbers of 16 bits for 32 weights
        mean = mean_bits(quantization, manifest.spec.tensors(has_routers=True)[name])
        assert mean is not None
        assert len(quantization) > 1
        assert target - 0.4 < mean + scales <= target + scales  # mxfp4 has smaller ones
    transformer = load_bundle(tmp_path / "mixed").transformer()
    assert all("to_qkv" in block.attn1 for block in transformer.transformer_blocks)  # still one product


def test_a_model_of_labels(tmp_path: Path) -> None:
    source = save_dit_pipeline(tmp_path / "source", attention_head_dim=32)
    assert convert(["mlx", "--hf-path", str(source), "--dtype", "float32", "--out", str(tmp_path / "exact")]) == 0
    measure(tmp_path / "exact", tmp_path / "report.json", "--label", "1")
    assert {layer.component for layer in QuantReport.read(tmp_path / "report.json").layers} == {"transformer"}
    options = [
        "-q",
        "--target-bpw",
        "5",
        "--quant-report",
        str(tmp_path / "report.json"),
        "--out",
        str(tmp_path / "mixed"),
    ]
    assert convert(["mlx", "--hf-path", str(source), *options]) == 0


def test_an_existing_report_stays(exact: Path, report: Path) -> None:
    before = report.read_bytes()
    assert "exists" in measure(exact, report, status=1)
    assert report.read_bytes() == before


def test_a_quantised_bundle_is_refused(source: Path, tmp_path: Path) -> None:
    options = ["-q", "--q-group-size", "32", "--out", str(tmp_path / "packed")]
    assert convert(["mlx", "--hf-path", str(source), *options]) == 0
    said = measure(tmp_path / "packed", tmp_path / "report.json", status=1)
    assert "is quantised; convert without -q to measure it" in said
    assert not (tmp_path / "report.json").exists()


class TestRefusals:
    def refuse(self, report: Path, source: Path, out: Path, *options: str) -> int:
        status = convert(["mlx", "--hf-path", str(source), "--quant-report", str(report), "--out", str(out), *options])
        assert not out.exists()
        return status

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (("--target-bpw", "5"), "--target-bpw says how to quantise, which is not asked for; add -q"),
            (("-q",), "got --quant-report, want --target-bpw and --quant-report alone"),
            (("-q", "--target-bpw", "5", "--q-bits", "4"), "got --q-bits and --target-bpw and --quant-report, want"),
        ],
    )
    def test_options_that_do_not_go_together(
        self,
        source: Path,
        report: Path,
        tmp_path: Path,
        options: tuple[str, ...],
        message: str,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        assert self.refuse(report, source, tmp_path / "out", *options) == 2
        assert message in capsys.readouterr().err

    def test_a_target_out_of_reach(
        self, source: Path, report: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self.refuse(report, source, tmp_path / "out", "-q", "--target-bpw", "2") == 1
        assert "a target of 2 bits a weight cannot be met" in capsys.readouterr().err

    @pytest.mark.parametrize("change", ["absent", "more", "larger"])
    def test_a_report_of_another_model(
        self, source: Path, report: Path, tmp_path: Path, change: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        found = QuantReport.read(report)
        first, *others = found.layers
        changed = {
            "absent": others,
            "more": [first, *others, replace(first, tensors=("proj_out.weight",))],
            "larger": [replace(first, weights=first.weights + 1), *others],
        }
        other = tmp_path / "other.json"
        other.write_text(replace(found, layers=tuple(changed[change])).write())
        assert self.refuse(other, source, tmp_path / "out", "-q", "--target-bpw", "5") == 1
        name = "proj_out.weight" if change == "more" else first.tensors[0]
        assert f"other.json: is of another model, which differs in '{name}' of the" in capsys.readouterr().err
