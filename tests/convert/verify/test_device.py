"""What the check with Core ML makes of its answers, here from a fake: nobody has run it on a Mac yet."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convert.verify.device import Perform, check_on_device
from convert.verify.device_report import Measured, Prediction
from convert.verify.device_task import REPEATS, Link, Run, Trouble, perform
from convert.verify.framework import CoreML
from convert.verify.stored import store
from moddit.errors import FormatError, MissingError, UnsupportedError
from moddit.manifest import Manifest
from tests.convert.verify.fake_bundle import SPEC, make_manifest, stored
from tests.convert.verify.fake_coreml import (
    MASK,
    PREDICTION,
    STATES,
    TEXT,
    Arrays,
    Fake,
    first,
    second,
)

REFUSED = "while running Text.mlpackage: compiler error; it needs macOS 15.0 or newer"


def refuse(inputs: Arrays) -> Arrays:
    raise RuntimeError("compiler error")


def here(fake: CoreML) -> Perform:
    """Perform tasks in this process."""
    return lambda task: perform(task, fake)


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return make_manifest(tmp_path)


def measured(item: Prediction) -> Measured:
    assert isinstance(item.found, Measured)
    return item.found


class TestComparison:
    def test_equal_outputs_pass(self, tmp_path, manifest):
        fake = Fake()
        report = check_on_device(tmp_path, manifest, perform=here(fake))
        assert report.passed
        assert [item.case for item in report.predictions] == ["text_encoder/encode", "transformer/px8x8/t999"]
        assert [(found.mean, found.p999) for found in map(measured, report.predictions)] == [(0, 0), (0, 0)]
        assert list(report.compile_seconds) == ["Text.mlpackage", "First.mlpackage", "Second.mlpackage"]
        assert fake.units == {"cpuAndGPU"}
        assert not any(folder.exists() for folder in fake.folders)

    @pytest.mark.parametrize(
        "change",
        [
            lambda output: output + 3 * 2.1e-2,
            lambda output: np.full_like(output, np.nan),
        ],
        ids=["mean", "nan"],
    )
    def test_an_error_fails(self, change, tmp_path, manifest):
        fake = Fake()
        fake.functions["Second/px8x8"] = lambda inputs: {"prediction": change(second(inputs)["prediction"])}
        report = check_on_device(tmp_path, manifest, perform=here(fake))
        assert [item.passed for item in report.predictions] == [True, False]
        assert not report.passed
        assert report.to_text().endswith("FAILED: transformer/px8x8/t999")

    def test_rounding_to_float16_passes(self, tmp_path, manifest):
        fake = Fake()
        fake.functions["Second/px8x8"] = lambda inputs: {"prediction": second(inputs)["prediction"].astype(np.float16)}
        report = check_on_device(tmp_path, manifest, perform=here(fake))
        assert report.passed
        assert 0 < measured(report.predictions[1]).mean < 1e-3

    def test_states_of_padding_do_not_count(self, tmp_path, manifest):
        fake = Fake()
        fake.functions["Text/encode"] = lambda inputs: {"states": np.where(MASK[..., None] == 1, STATES, 9)}
        assert check_on_device(tmp_path, manifest, perform=here(fake)).passed

    def test_another_shape_fails(self, tmp_path, manifest):
        fake = Fake()
        fake.functions["Second/px8x8"] = lambda inputs: {"prediction": PREDICTION[:, :64]}
        report = check_on_device(tmp_path, manifest, perform=here(fake))
        assert report.predictions[0].passed
        assert report.predictions[1].found == Trouble("wrong output", "has shape (1, 64), want (1, 128)")
        assert not report.passed

    def test_a_function_gets_its_inputs_alone_and_may_change_the_dictionary(self, tmp_path, manifest):
        seen: dict[str, list[set[str]]] = {"First": [], "Second": []}

        def watch(name: str, run: Callable[[Arrays], Arrays]) -> Callable[[Arrays], Arrays]:
            def watched(inputs: Arrays) -> Arrays:
                seen[name].append(set(inputs))
                outputs = run(inputs)
                inputs.clear()
                return outputs

            return watched

        fake = Fake()
        fake.functions |= {"First/px8x8": watch("First", first), "Second/px8x8": watch("Second", second)}
        assert check_on_device(tmp_path, manifest, perform=here(fake)).passed
        assert seen["First"] == [{"latents", "timestep"}] * (1 + REPEATS)
        assert seen["Second"] == [{"tokens", "modulation"}] * (1 + REPEATS)

    def test_what_prepares_a_step_runs_once_before_it_and_is_not_timed(self, tmp_path):
        seen: list[str] = []

        def prepare(inputs: Arrays) -> Arrays:
            seen.append("prepare")
            return {"text_keys": 2 * inputs["text"]}

        def step(inputs: Arrays) -> Arrays:
            seen.append("step")
            return {"prediction": inputs["text_keys"] + 1}

        fake = Fake(functions={"Prepare/batch1": prepare, "Steps/step": step})
        reference, output = tmp_path / "reference.npz", tmp_path / "output.npy"
        arrays: dict[str, Any] = {"transformer/step/input/text": STATES}
        np.savez(reference, allow_pickle=False, **arrays)
        links = [
            Link("Prepare.mlpackage", "Prepare.mlmodelc", "batch1", ["text"]),
            Link("Steps.mlpackage", "Steps.mlmodelc", "step", ["text_keys"]),
        ]
        perform(Run("step", "all", links, str(reference), "transformer/step", str(output)), fake)
        assert seen == ["prepare"] + ["step"] * (1 + REPEATS)
        np.testing.assert_array_equal(np.load(output), 2 * STATES + 1)


class TestReport:
    def test_text(self, tmp_path, manifest):
        text = check_on_device(tmp_path, manifest, perform=here(Fake())).to_text()
        assert text.startswith(
            "chip Apple M9, macOS 15.1, coremltools 9.0, cpuAndGPU\ncompiled Text.mlpackage in 0.0 s"
        )
        assert (
            "operations of First.mlpackage, px8x8\n  top-k, gather, scatter: gather GPU 1, CPU 1; topk CPU 1\n" in text
        )
        assert "operations of Second.mlpackage, px8x8\n  top-k, gather, scatter: none\n" in text
        assert "  others: add unknown 1; linear GPU 2\n" in text
        assert text.endswith("passed")

    def test_json(self, tmp_path, manifest):
        found = json.loads(json.dumps(check_on_device(tmp_path, manifest, perform=here(Fake())).to_json()))
        assert found["passed"]
        assert found["machine"]["chip"] == "Apple M9"
        assert found["functions"][1]["case"] == "transformer/px8x8/t999"
        assert found["functions"][1]["passed"]
        assert found["functions"][1]["mean"] == 0
        assert found["functions"][1]["trouble"] is None
        assert found["placements"][1]["operations"]["gather"] == {"GPU": 1, "CPU": 1}
        assert found["placements"][1]["trouble"] is None

    def test_json_of_trouble(self, tmp_path, manifest):
        def run_out_of_range(inputs: Arrays) -> Arrays:
            return {"prediction": np.full_like(PREDICTION, np.inf)}

        fake = Fake()
        fake.functions = {"Second/px8x8": run_out_of_range, "First/px8x8": first, "Text/encode": refuse}
        report = check_on_device(tmp_path, manifest, perform=here(fake))
        text, prediction = json.loads(json.dumps(report.to_json(), allow_nan=False))["functions"]
        assert text["trouble"] == {"kind": "refused", "detail": REFUSED}
        assert text["mean"] is None
        assert not text["passed"]
        assert prediction["mean"] is None  # infinite
        assert not prediction["passed"]
        assert report.to_text().endswith("FAILED: text_encoder/encode; transformer/px8x8/t999")

    def test_units(self, tmp_path, manifest):
        fake = Fake()
        assert check_on_device(tmp_path, manifest, "cpuOnly", here(fake)).to_json()["compute_units"] == "cpuOnly"
        assert fake.units == {"cpuOnly"}


class TestRefusals:
    def test_elsewhere_than_on_a_mac(self, tmp_path, manifest, monkeypatch):
        monkeypatch.setattr(platform, "system", lambda: "Linux")
        with pytest.raises(UnsupportedError, match=r"macOS only, this is Linux; copy the bundle to a Mac"):
            check_on_device(tmp_path, manifest)

    def test_bundle_without_packages(self, tmp_path, manifest):
        with pytest.raises(UnsupportedError, match="no packages"):
            check_on_device(tmp_path, replace(manifest, graphs=None), perform=here(Fake()))

    def test_unknown_compute_units(self, tmp_path, manifest):
        with pytest.raises(FormatError, match="compute_units is 'npu'"):
            check_on_device(
                tmp_path, replace(manifest, graphs=replace(manifest.graphs, compute_units="npu")), perform=here(Fake())
            )

    def test_no_reference(self, tmp_path, manifest):
        (tmp_path / "reference.npz").unlink()
        with pytest.raises(MissingError, match=r"reference\.npz: no such file; convert the checkpoint again"):
            check_on_device(tmp_path, manifest, perform=here(Fake()))

    @pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a zip", b"{}"])
    def test_damaged_reference(self, content, tmp_path, manifest):
        (tmp_path / "reference.npz").write_bytes(content)
        with pytest.raises(FormatError, match=r"reference\.npz: cannot be read"):
            check_on_device(tmp_path, manifest, perform=here(Fake()))

    def test_reference_without_a_function(self, tmp_path, manifest):
        store(tmp_path, SPEC, manifest.tokens, manifest.graphs, stored("text_encoder/encode", TEXT, STATES))
        with pytest.raises(FormatError, match=r"it lacks 3 \('transformer/px8x8/t999/input/latents'\), of others"):
            check_on_device(tmp_path, manifest, perform=here(Fake()))

    def test_refused_by_core_ml(self, tmp_path, manifest):
        fake = Fake()
        fake.functions["First/px8x8"] = refuse
        report = check_on_device(tmp_path, manifest, perform=here(fake))
        assert report.predictions[0].passed
        assert report.predictions[1].found == Trouble(
            "refused", "while running First.mlpackage: compiler error; it needs macOS 15.0 or newer"
        )
