"""Core ML itself, through coremltools, as far as the check on a device needs it."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from numpy.typing import NDArray

UNITS: Final = {  # to coremltools' names
    "cpuOnly": "CPU_ONLY",
    "cpuAndGPU": "CPU_AND_GPU",
    "cpuAndNeuralEngine": "CPU_AND_NE",
    "all": "ALL",
}

Arrays = Mapping[str, NDArray[Any]]
Predict = Callable[[dict[str, NDArray[Any]]], Arrays]


class CoreML:
    """What the check needs of Core ML, on a Mac, which refuses with RuntimeErrors; `units` is a key of UNITS."""

    def describe(self) -> Mapping[str, str]:
        """Say which chip, macOS and coremltools these are."""
        command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        chip = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        return {"chip": chip, "macOS": platform.mac_ver()[0], "coremltools": version("coremltools")}

    def compile(self, package: Path, compiled: Path) -> None:
        """Compile a package to `compiled`, which ends in .mlmodelc."""
        from coremltools.models.utils import compile_model

        compile_model(str(package), str(compiled))

    def load(self, compiled: Path, function: str, units: str) -> Predict:
        """Load a function."""
        from coremltools import ComputeUnit
        from coremltools.models import CompiledMLModel

        # Not MLModel, which compiles a package again for every function and only warns when Core ML refuses it.
        return CompiledMLModel(str(compiled), ComputeUnit[UNITS[units]], function).predict

    def place(self, compiled: Path, function: str, units: str) -> Iterator[tuple[str, str]]:
        """List the operations of the default function: the type of each, and the device that Core ML prefers for it."""
        from coremltools import ComputeUnit
        from coremltools.models import compute_device as devices
        from coremltools.models.compute_plan import MLComputePlan

        names = {
            devices.MLCPUComputeDevice: "CPU",
            devices.MLGPUComputeDevice: "GPU",
            devices.MLNeuralEngineComputeDevice: "Neural Engine",
        }
        plan = MLComputePlan.load_from_path(str(compiled), ComputeUnit[UNITS[units]])
        for operation in plan.model_structure.program.functions[function].block.operations:
            kind = operation.operator_name.rpartition(".")[2]  # "ios18.gather"
            usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
            device = None if usage is None else type(usage.preferred_compute_device)
            if kind != "const":
                yield kind, "unknown" if device is None else names.get(device, device.__name__)
