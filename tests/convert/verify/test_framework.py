"""The calls of coremltools fit its signatures and classes; nobody has run them on a Mac yet."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import coremltools
from coremltools.models import compute_device, compute_plan

from convert.verify.framework import UNITS, CoreML


class TestCoreML:
    def test_compile_and_load(self, monkeypatch):
        compile_model = create_autospec(coremltools.models.utils.compile_model)
        load = create_autospec(coremltools.models.CompiledMLModel)
        monkeypatch.setattr(coremltools.models.utils, "compile_model", compile_model)
        monkeypatch.setattr(coremltools.models, "CompiledMLModel", load)
        CoreML().compile(Path("a.mlpackage"), Path("a.mlmodelc"))
        compile_model.assert_called_once_with(model="a.mlpackage", destination_path="a.mlmodelc")
        run = CoreML().load(Path("a.mlmodelc"), "px8x8", "cpuAndNeuralEngine")
        units = coremltools.ComputeUnit.CPU_AND_NE
        load.assert_called_once_with(path="a.mlmodelc", compute_units=units, function_name="px8x8")
        assert run is load.return_value.predict

    def test_placement(self, monkeypatch):
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
        assert list(CoreML().place(Path("a.mlmodelc"), "px8x8", "all")) == [
            ("gather", "CPU"),
            ("linear", "GPU"),
            ("add", "Neural Engine"),
            ("topk", "unknown"),
        ]


def test_units_are_coremltools():
    assert {getattr(coremltools.ComputeUnit, name) for name in UNITS.values()} == set(coremltools.ComputeUnit)
