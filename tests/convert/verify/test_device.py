"""What the check with Core ML makes of its answers, here from a fake: nobody has run it on a Mac yet."""

from __future__ import annotations

import inspect
import json
import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import coremltools
import numpy as np
import pytest
from coremltools.models import compute_device, compute_plan
from numpy.typing import NDArray

from convert.verify import device
from convert.verify.device import CoreMLTools, check_on_device
from moddit.errors import FormatError, MissingError, ParityError, UnsupportedError
from moddit.graphs import Denoiser, Feature, GraphFunction, Graphs, Package
from moddit.manifest import COMPONENTS, Component, Manifest, Provenance
from moddit.samplers import NoiseSchedule
from moddit.spec import ModelSpec, PixArtSpec, T5Spec, VAESpec

Arrays = dict[str, NDArray[Any]]

SCHEDULER = {"_class_name": "DPMSolverMultistepScheduler", "num_train_timesteps": 1000, "beta_schedule": "linear",
             "beta_start": 0.0001, "beta_end": 0.02, "prediction_type": "v_prediction"}  # fmt: skip
SPEC = ModelSpec(
    transformer=PixArtSpec(2, 2, 4, 4, 4, 2, 8, 8, 6, 1.0, True, 1e-6, False),
    text_encoder=T5Spec(10, 6, 3, 8, 1, 2, 32, 128, True, "gelu_new", 1e-6),
    vae=VAESpec(3, 3, 4, (8, 8), 1, 4, 0.5, 0.0, True, True, False),
    scheduler=NoiseSchedule.from_diffusers(SCHEDULER, "scheduler_config.json"),
    max_sequence_length=12,
)
IDS = np.arange(4, dtype=np.int32)[None]
MASK = np.array([[1, 1, 1, 0]], np.float32)
STATES = np.stack([IDS * 2, IDS - 1], axis=-1).astype(np.float32)
NOISE = np.linspace(-1, 1, 128, dtype=np.float32)[None]
PREDICTION: NDArray[Any] = NOISE * 2 - 1  # of the chain below; the largest is 3
TEXT: Arrays = {"input_ids": IDS, "text_mask": MASK}
LATENTS: Arrays = {"latents": NOISE, "timestep": np.array([999], np.float32)}


def encode(inputs: Arrays) -> Arrays:
    return {"states": STATES}


def first(inputs: Arrays) -> Arrays:
    return {"tokens_out": inputs["latents"] * 2, "modulation_out": inputs["timestep"] / 999}


def second(inputs: Arrays) -> Arrays:
    return {"prediction": inputs["tokens"] - inputs["modulation"]}


@dataclass
class Fake:
    """Functions instead of packages, by the names of both."""

    functions: dict[str, Callable[[Arrays], Arrays]] = field(
        default_factory=lambda: {"Text/encode": encode, "First/px8x8": first, "Second/px8x8": second}
    )
    units: set[str] = field(default_factory=set)
    folders: set[Path] = field(default_factory=set)

    def describe(self) -> Mapping[str, str]:
        return {"chip": "Apple M9", "macOS": "15.1", "coremltools": "9.0"}

    def compile(self, package: Path, compiled: Path) -> None:
        assert package.suffix == ".mlpackage"
        assert compiled.suffix == ".mlmodelc"
        assert compiled.parent.is_dir()
        self.folders.add(compiled.parent)

    def load(self, compiled: Path, function: str, units: str) -> Callable[[Arrays], Arrays]:
        self.units.add(units)
        return self.functions[f"{compiled.stem}/{function}"]

    def plan(self, compiled: Path, function: str, units: str) -> Iterator[tuple[str, str]]:
        yield from [("linear", "GPU"), ("linear", "GPU"), ("add", "unknown")]
        if compiled.stem == "First":
            yield from [("topk", "CPU"), ("gather", "GPU"), ("gather", "CPU")]


def package(name: str, function: str, inputs: Mapping[str, int], output: str) -> Package:
    features = {name: Feature((1, size), "float32") for name, size in inputs.items()}
    return Package(f"{name}.mlpackage", (GraphFunction(function, features, {output: Feature((1, 1), "float32")}),))


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    save(tmp_path, {**stored("text_encoder/encode", TEXT, STATES),
                    **stored("transformer/px8x8/t999", LATENTS, PREDICTION)})  # fmt: skip
    packages = {
        "text_encoder": (package("Text", "encode", {"input_ids": 4, "text_mask": 4}, "states"),),
        "transformer": (
            package("First", "px8x8", {"latents": 128, "timestep": 1}, "tokens_out"),
            package("Second", "px8x8", {"tokens": 128, "modulation": 1}, "prediction"),
        ),
    }
    denoisers = (Denoiser("px8x8", 8, 8, 1, (0,), (4, 4)),)
    graphs = Graphs({"iOS": "18.0", "macOS": "15.0"}, "cpuAndGPU", "rows", packages, denoisers, None)
    provenance = Provenance("somewhere", "0" * 64, {"moddit": "0"}, "2026-01-01T00:00:00Z")
    return Manifest("coreml", SPEC, None, {name: Component(()) for name in COMPONENTS}, graphs, provenance)


def stored(case: str, inputs: Arrays, output: NDArray[Any]) -> Arrays:
    return {f"{case}/output": output, **{f"{case}/input/{name}": array for name, array in inputs.items()}}


def save(folder: Path, arrays: Arrays) -> None:
    with (folder / "reference.npz").open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


class TestComparison:
    def test_equal_outputs_pass(self, tmp_path, manifest):
        fake = Fake()
        report = check_on_device(tmp_path, manifest, fake)
        assert report.passed
        assert [item.case for item in report.predictions] == ["text_encoder/encode", "transformer/px8x8/t999"]
        assert [(item.mean, item.p999) for item in report.predictions] == [(0, 0), (0, 0)]
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
        report = check_on_device(tmp_path, manifest, fake)
        assert [item.passed for item in report.predictions] == [True, False]
        assert not report.passed
        assert report.to_text().endswith("FAILED: transformer/px8x8/t999")

    def test_rounding_to_float16_passes(self, tmp_path, manifest):
        fake = Fake()
        fake.functions["Second/px8x8"] = lambda inputs: {"prediction": second(inputs)["prediction"].astype(np.float16)}
        report = check_on_device(tmp_path, manifest, fake)
        assert report.passed
        assert 0 < report.predictions[1].mean < 1e-3

    def test_states_of_padding_do_not_count(self, tmp_path, manifest):
        fake = Fake()
        fake.functions["Text/encode"] = lambda inputs: {"states": np.where(MASK[..., None] == 1, STATES, 9)}
        assert check_on_device(tmp_path, manifest, fake).passed

    def test_another_shape_is_an_error(self, tmp_path, manifest):
        fake = Fake()
        fake.functions["Second/px8x8"] = lambda inputs: {"prediction": PREDICTION[:, :64]}
        with pytest.raises(ParityError, match=r"t999: output has shape \(1, 64\), want \(1, 128\)"):
            check_on_device(tmp_path, manifest, fake)

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
        assert check_on_device(tmp_path, manifest, fake).passed
        assert seen["First"] == [{"latents", "timestep"}] * (1 + device.REPEATS)
        assert seen["Second"] == [{"tokens", "modulation"}] * (1 + device.REPEATS)


class TestReport:
    def test_text(self, tmp_path, manifest):
        text = check_on_device(tmp_path, manifest, Fake()).to_text()
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
        found = json.loads(json.dumps(check_on_device(tmp_path, manifest, Fake()).to_json()))
        assert found["passed"]
        assert found["machine"]["chip"] == "Apple M9"
        assert found["functions"][1]["case"] == "transformer/px8x8/t999"
        assert found["functions"][1]["passed"]
        assert found["placements"][1]["operations"]["gather"] == {"GPU": 1, "CPU": 1}


class TestRefusals:
    def test_elsewhere_than_on_a_mac(self, tmp_path, manifest, monkeypatch):
        monkeypatch.setattr(platform, "system", lambda: "Linux")
        with pytest.raises(UnsupportedError, match=r"macOS only, this is Linux; copy the bundle to a Mac"):
            check_on_device(tmp_path, manifest)

    def test_bundle_without_packages(self, tmp_path, manifest):
        with pytest.raises(UnsupportedError, match="no packages"):
            check_on_device(tmp_path, replace(manifest, graphs=None), Fake())

    def test_unknown_compute_units(self, tmp_path, manifest):
        with pytest.raises(FormatError, match="compute_units is 'npu'"):
            check_on_device(tmp_path, replace(manifest, graphs=replace(manifest.graphs, compute_units="npu")), Fake())

    def test_no_reference(self, tmp_path, manifest):
        (tmp_path / "reference.npz").unlink()
        with pytest.raises(MissingError, match=r"reference\.npz: no such file; convert the checkpoint again"):
            check_on_device(tmp_path, manifest, Fake())

    @pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a zip", b"{}"])
    def test_damaged_reference(self, content, tmp_path, manifest):
        (tmp_path / "reference.npz").write_bytes(content)
        with pytest.raises(FormatError, match=r"reference\.npz: cannot be read"):
            check_on_device(tmp_path, manifest, Fake())

    def test_reference_without_a_function(self, tmp_path, manifest):
        save(tmp_path, stored("text_encoder/encode", TEXT, STATES))
        with pytest.raises(MissingError, match="no outputs of transformer/px8x8"):
            check_on_device(tmp_path, manifest, Fake())

    def test_refused_by_core_ml(self, tmp_path, manifest):
        def refuse(inputs: Arrays) -> Arrays:
            raise RuntimeError("compiler error")

        fake = Fake()
        fake.functions["First/px8x8"] = refuse
        with pytest.raises(UnsupportedError, match=r"First.mlpackage, px8x8: .*compiler error.*macOS 15\.0"):
            check_on_device(tmp_path, manifest, fake)


class TestCoreMLTools:
    """The calls fit the signatures and classes of the coremltools that is installed."""

    def test_compile_and_load(self, monkeypatch):
        compile_model = create_autospec(coremltools.models.utils.compile_model)
        load = create_autospec(coremltools.models.CompiledMLModel)
        monkeypatch.setattr(coremltools.models.utils, "compile_model", compile_model)
        monkeypatch.setattr(coremltools.models, "CompiledMLModel", load)
        CoreMLTools().compile(Path("a.mlpackage"), Path("a.mlmodelc"))
        compile_model.assert_called_once_with(model="a.mlpackage", destination_path="a.mlmodelc")
        run = CoreMLTools().load(Path("a.mlmodelc"), "px8x8", "cpuAndNeuralEngine")
        units = coremltools.ComputeUnit.CPU_AND_NE
        load.assert_called_once_with(path="a.mlmodelc", compute_units=units, function_name="px8x8")
        assert run is load.return_value.predict

    def test_plan(self, monkeypatch):
        def operation(kind: str) -> compute_plan.MLModelStructureProgramOperation:
            return compute_plan.MLModelStructureProgramOperation({}, kind, [], [], None)

        names = {"ios18.gather": "MLCPUComputeDevice", "ios18.linear": "MLGPUComputeDevice",
                 "ios18.add": "MLNeuralEngineComputeDevice"}  # fmt: skip
        operations = [operation(kind) for kind in ("const", *names, "ios16.topk")]
        block = compute_plan.MLModelStructureProgramBlock([], operations, [])
        functions = {"px8x8": compute_plan.MLModelStructureProgramFunction([], block)}
        structure = compute_plan.MLModelStructure(None, compute_plan.MLModelStructureProgram(functions), None)

        class Plan:
            model_structure = structure

            def get_compute_device_usage_for_mlprogram_operation(self, operation: Any) -> Any:
                name = names.get(operation.operator_name)
                if name is None:
                    return None
                found = object.__new__(getattr(compute_device, name))  # its constructor wants macOS
                return compute_plan.MLComputePlanDeviceUsage(found, [found])

        original = inspect.signature(compute_plan.MLComputePlan.load_from_path)

        def load_from_path(*args: Any) -> Plan:
            units = original.bind(*args).arguments["compute_units"]
            assert units is coremltools.ComputeUnit.ALL
            return Plan()

        monkeypatch.setattr(compute_plan.MLComputePlan, "load_from_path", load_from_path)
        assert hasattr(compute_plan.MLComputePlan, "get_compute_device_usage_for_mlprogram_operation")
        assert list(CoreMLTools().plan(Path("a.mlmodelc"), "px8x8", "all")) == [
            ("gather", "CPU"),
            ("linear", "GPU"),
            ("add", "Neural Engine"),
            ("topk", "unknown"),
        ]
