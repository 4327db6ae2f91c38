"""Verifying a bundle that draws classes: faults of the exporter are found, and a picture of a class is compared."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from convert.cli import main
from convert.coreml import dit
from convert.coreml.dit import DiTGraph
from moddit.models.dit import DiTSpec
from tests.convert.coreml.bundles import Sources, copy_bundle, refresh_manifest, to_coreml, verify
from tests.convert.verify.packages import REGION, TRANSFORMER, edit, rewire


@pytest.fixture(scope="module")
def whole_dit(sources: Sources, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dit") / "bundle"
    assert to_coreml(sources("dit"), out) == 0
    return out


@pytest.fixture
def bundle(whole_dit: Path, tmp_path: Path) -> Path:
    """A bundle to be changed at will."""
    return copy_bundle(whole_dit, tmp_path / "bundle")


Print = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(bundle: Path, capsys: pytest.CaptureFixture[str]) -> Print:
    """Verify the bundle; give the exit status and what was printed."""

    def run(*options: str) -> tuple[int, str, str]:
        status = main(["verify", str(bundle), *options])
        return status, *capsys.readouterr()

    return run


class TestCommand:
    @pytest.mark.parametrize(("label", "number"), [("goldfish", 1), ("GOLDEN RETRIEVER", 207), ("0", 0), ("7", 7)])
    def test_a_picture_of_a_class(self, bundle: Path, run: Print, label: str, number: int) -> None:
        status, output, _ = run("--label", label, "--steps", "3", "--json")
        assert status == 0, output
        report = json.loads(output)
        assert report["passed"] is report["picture"]["passed"] is True
        assert report["picture"]["prompt"] == f"class {number}"
        assert {item["case"].split("/")[0] for item in report["functions"]} == {
            "transformer", "vae_decoder", "vae_encoder",
        }  # fmt: skip
        assert report == json.loads((bundle / "parity.json").read_text())
        assert len(list(bundle.glob("verify-*.png"))) == 3

    def test_another_class_is_another_picture(self, bundle: Path, run: Print) -> None:
        pictures = []
        for label in ("0", "1"):
            assert run("--label", label, "--steps", "2")[0] == 0
            pictures.append((bundle / "verify-fp32.png").read_bytes())
        assert pictures[0] != pictures[1]

    def test_a_picture_without_guidance(self, run: Print) -> None:
        assert run("--guidance", "0", "--steps", "2")[0] == 0

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (("--label", "1000"), "class '1000' out of range, want 0..999"),
            (("--label", "silverfish"), "no class is called 'silverfish'; want a number in 0..999 or a name such as"),
            (("--prompt", "a goldfish"), "prompt is 'a goldfish', but this model draws a class; want a label alone"),
        ],
    )
    def test_refusals(self, run: Print, options: tuple[str, ...], message: str) -> None:
        status, output, errors = run(*options)
        assert (status, output) == (1, "")
        assert errors.startswith("error: [")
        assert message in errors

    def test_a_model_of_texts_has_no_classes(self, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["verify", str(whole), "--label", "goldfish"]) == 1
        assert "label is 'goldfish', but this model draws a text; want a prompt" in capsys.readouterr().err


PLANTED: Final[dict[str, Callable[[Any], None]]] = {
    "no timestep": rewire("block01_embedded_act", "x", "block01_label"),
    "label of another block": rewire("block01_embedded", "y", "block00_label"),
    "dropped gate": rewire("block01_ff_residual", "y", "block01_ff_gated"),
    "dropped gate of the modulation": rewire("block01_attn1_residual", "y", "block01_attn1_to_out"),
    "shift for scale": rewire("block01_norm3_scale", "x", "block01_modulation_parts_3"),
    "modulation of another block": rewire("block01_modulation", "x", "block00_embedded_act"),
}


@pytest.mark.parametrize("change", PLANTED.values(), ids=PLANTED)
def test_a_fault_in_one_function(bundle: Path, change: Callable[[Any], None]) -> None:
    edit(bundle / TRANSFORMER, change)
    refresh_manifest(bundle)
    report = verify(bundle)
    failed = [item.case for item in report.outcomes if not item.passed]
    assert failed == [item.case for item in report.outcomes if f"/{REGION}/" in item.case]
    assert failed


EXPORTER: Final[dict[str, tuple[Any, str, Callable[[Any], Any]]]] = {
    "sinusoid": (dit, "FREQ_SHIFT", lambda _: 0),
    "epsilon": (dit, "NORM_EPS", lambda _: 1e-2),
    "position": (
        DiTSpec,
        "position_embedding",
        lambda right: lambda spec, *sizes: np.roll(right(spec, *sizes), 1, axis=0),
    ),
    "output of the last block's label": (
        DiTGraph,
        "modulate_output",
        lambda right: lambda graph, told: right(graph, {**told, "block00": told["block02"]}),
    ),
}


@pytest.mark.parametrize("fault", EXPORTER)
def test_a_fault_in_the_exporter_leaves_no_bundle(
    sources: Sources, tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place, name, change = EXPORTER[fault]
    monkeypatch.setattr(place, name, change(getattr(place, name)))
    assert to_coreml(sources("dit"), tmp_path / "bundle") == 1
    error = capsys.readouterr().err
    assert error.startswith("error: [verify] the packages do not compute what the checkpoint does:\n")
    assert "FAILED" in error
    assert list(tmp_path.iterdir()) == []


def test_labels_of_the_cases(whole_dit: Path) -> None:
    """The first row of a batch is no class, and the second is one."""
    with np.load(whole_dit / "reference.npz") as arrays:
        labels = arrays[f"transformer/{REGION}/t749/input/labels"]
    assert labels.dtype == np.int32
    assert labels.tolist() == [1000, 6]
