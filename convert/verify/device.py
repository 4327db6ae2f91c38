"""Every function of every package in Core ML itself: predictions, times, and the compute unit of each operation.

Nobody has run this yet: it was written without a Mac, from the sources of coremltools 9, and tested against a fake of
`CoreML`. What Core ML makes of the packages is unknown until somebody runs `python -m convert verify --on-device`.
"""

from __future__ import annotations

import platform
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Final, Protocol
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from convert.verify.generation import reference_file
from moddit.errors import FormatError, MissingError, ParityError, UnsupportedError
from moddit.graphs import Graphs
from moddit.manifest import Manifest, verify_files

# Of the largest output. The interpreter, which rounds every result to float16, measures a mean of 2e-4, and of 1e-3 to
# 9e-3 where that routes a token otherwise, as Core ML may, adding in another order. A wrong graph is off by a tenth and
# more; finer mistakes of the exporter are found by the interpreter, in exact arithmetic.
MEAN_TOLERANCE: Final = 2e-2
REPEATS: Final = 5  # timed predictions, after the one that is compared
SELECTING: Final = {"topk", "argsort", "gather", "gather_along_axis", "scatter", "scatter_along_axis"}
UNITS: Final = {"cpuAndGPU": "CPU_AND_GPU", "cpuAndNeuralEngine": "CPU_AND_NE", "all": "ALL"}  # to coremltools' names

Arrays = Mapping[str, NDArray[Any]]
Predict = Callable[[dict[str, NDArray[Any]]], Arrays]


class CoreML(Protocol):
    """What this check needs of coremltools, whose errors are RuntimeErrors; `units` is a key of UNITS."""

    def describe(self) -> Mapping[str, str]:
        """Say which chip, macOS and coremltools these are."""

    def compile(self, package: Path, compiled: Path) -> None:
        """Compile a package to `compiled`, which ends in .mlmodelc."""

    def load(self, compiled: Path, function: str, units: str) -> Predict:
        """Load a function."""

    def plan(self, compiled: Path, function: str, units: str) -> Iterable[tuple[str, str]]:
        """List the operations of a function: the type of each, and the device that Core ML prefers for it."""


@dataclass(frozen=True)
class Prediction:
    """How a function came out, run through its whole chain of packages; errors are shares of the largest output."""

    case: str
    mean: float
    p999: float  # reported, not judged: one token routed otherwise decides it
    load_seconds: float
    predict_seconds: float  # median

    @property
    def passed(self) -> bool:
        return self.mean <= MEAN_TOLERANCE


@dataclass(frozen=True)
class Placement:
    """Where Core ML would run the operations of one function of one package."""

    package: str
    function: str
    operations: Mapping[str, Mapping[str, int]]  # operation type to device to count

    def to_text(self) -> str:
        """Write the operations that select tokens, which few compute units have, then the others."""
        selecting: list[str] = []
        others: list[str] = []
        for kind, devices in self.operations.items():
            counts = ", ".join(f"{device} {count}" for device, count in devices.items())
            (selecting if kind in SELECTING else others).append(f"{kind} {counts}")
        return "\n".join(
            [
                f"operations of {self.package}, {self.function}",
                f"  top-k, gather, scatter: {'; '.join(selecting) or 'none'}",
                f"  others: {'; '.join(others) or 'none'}",
            ]
        )


@dataclass(frozen=True)
class DeviceReport:
    """All that Core ML showed."""

    machine: Mapping[str, str]
    compute_units: str  # a key of UNITS
    compile_seconds: Mapping[str, float]  # by package
    predictions: tuple[Prediction, ...]
    placements: tuple[Placement, ...]

    @property
    def passed(self) -> bool:
        return all(item.passed for item in self.predictions)

    def to_json(self) -> dict[str, Any]:
        """Write everything that `to_text` says."""
        return {
            "passed": self.passed,
            "tolerance": {"mean": MEAN_TOLERANCE},
            "machine": dict(self.machine),
            "compute_units": self.compute_units,
            "compile_seconds": dict(self.compile_seconds),
            "functions": [{**asdict(item), "passed": item.passed} for item in self.predictions],
            "placements": [asdict(item) for item in self.placements],
        }

    def to_text(self) -> str:
        """Write a table of all functions, then where the operations of each run."""
        width = max(len(item.case) for item in self.predictions)
        lines = [", ".join([*(f"{name} {value}" for name, value in self.machine.items()), self.compute_units])]
        lines += [f"compiled {name} in {seconds:.1f} s" for name, seconds in self.compile_seconds.items()]
        lines.append(f"{'function':{width}}  {'mean':>8} {'p99.9':>8} {'load s':>8} {'run ms':>8}")
        lines += [
            f"{item.case:{width}}  {item.mean:8.1e} {item.p999:8.1e} {item.load_seconds:8.2f} "
            f"{1e3 * item.predict_seconds:8.2f}{'' if item.passed else '  FAILED'}"
            for item in self.predictions
        ]
        lines.append("errors are shares of the largest output; load is the first one, run the median of later ones")
        lines += [item.to_text() for item in self.placements]
        failures = [item.case for item in self.predictions if not item.passed]
        lines.append(f"FAILED: {', '.join(failures)}" if failures else "passed")
        return "\n".join(lines)


def check_on_device(bundle: Path, manifest: Manifest, coreml: CoreML | None = None) -> DeviceReport:
    """Compile every package, run every function on the stored inputs, and ask for Core ML's plan.

    Args:
        bundle: with the reference.npz that the exporter wrote.
        manifest: of the bundle.
        coreml: by default coremltools on this Mac.

    Raises:
        UnsupportedError: this is not a Mac, the bundle has no packages, or Core ML refuses one.
        InputError: the bundle is damaged, or has no stored inputs and outputs.
        ParityError: an output has another shape than the reference's.
    """
    if coreml is None and platform.system() != "Darwin":
        raise UnsupportedError(
            f"[device] Core ML runs on macOS only, this is {platform.system()}; copy the bundle to a Mac and run this "
            "there, or leave out --on-device to check the packages here"
        )
    graphs, coreml = manifest.graphs, coreml or CoreMLTools()
    if graphs is None:
        raise UnsupportedError(f"[device] {bundle}: the bundle has no packages to run; want one made with --to coreml")
    if graphs.compute_units not in UNITS:
        raise FormatError(f"[device] {bundle}: compute_units is {graphs.compute_units!r}, want {', '.join(UNITS)}")
    verify_files(bundle, manifest, hashes=True)
    arrays = _read_arrays(reference_file(bundle))
    cases = _list_cases(arrays, graphs, reference_file(bundle))
    machine = coreml.describe()
    with TemporaryDirectory() as folder:
        session = _Session(coreml, graphs, Path(folder))
        seconds = session.compile(bundle)
        predictions = tuple(session.predict(*case, arrays) for case in cases)
        placements = tuple(session.place())
    return DeviceReport(machine, graphs.compute_units, seconds, predictions, placements)


def _read_arrays(path: Path) -> Arrays:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {key: arrays[key] for key in arrays.files}
    except FileNotFoundError:
        raise MissingError(f"[device] {path}: no such file; convert the checkpoint again with --verify") from None
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise FormatError(f"[device] {path}: cannot be read ({error}); convert the checkpoint again") from None


def _list_cases(arrays: Arrays, graphs: Graphs, path: Path) -> list[tuple[str, str, str]]:
    """List role, function and stored case of every run."""
    stored = [key.removesuffix("/output") for key in arrays if key.endswith("/output")]
    cases, missing = [], []
    for role, packages in graphs.packages.items():
        for name in (function.name for function in packages[0].functions):
            found = [case for case in stored if case == f"{role}/{name}" or case.startswith(f"{role}/{name}/t")]
            cases += [(role, name, case) for case in found]
            missing += [] if found else [f"{role}/{name}"]
    if missing:
        raise MissingError(f"[device] {path}: no outputs of {', '.join(missing)}; convert the checkpoint again")
    return cases


@dataclass(frozen=True)
class _Session:
    coreml: CoreML
    graphs: Graphs
    folder: Path  # of compiled packages

    def compile(self, bundle: Path) -> dict[str, float]:
        seconds = {}
        for package in (package for packages in self.graphs.packages.values() for package in packages):
            with _refusals(package.path, self.graphs):
                start = time.perf_counter()
                self.coreml.compile(bundle / package.path, self._compiled(package.path))
                seconds[package.path] = time.perf_counter() - start
        return seconds

    def predict(self, role: str, name: str, case: str, arrays: Arrays) -> Prediction:
        """Run a function through its packages, of which one at a time is in memory."""
        prefix = f"{case}/input/"
        inputs = {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}
        outputs: Arrays = {}
        load_seconds = predict_seconds = 0.0
        for package in self.graphs.packages[role]:
            known = inputs | {key.removesuffix("_out"): array for key, array in outputs.items()}
            taken = {key: known[key] for key in package.function(name).inputs}
            with _refusals(f"{package.path}, {name}", self.graphs):
                start = time.perf_counter()
                run = self.coreml.load(self._compiled(package.path), name, self.graphs.compute_units)
                load_seconds += time.perf_counter() - start
                outputs = run(dict(taken))  # coremltools may change the dictionary
                predict_seconds += median(_time(run, taken) for _ in range(REPEATS))
                del run  # before the next package is loaded
        (found,) = outputs.values()
        counted = inputs["text_mask"].astype(bool) if role == "text_encoder" else ...  # states of padding mean nothing
        return Prediction(
            case, *_compare(case, found, arrays[f"{case}/output"], counted), load_seconds, predict_seconds
        )

    def place(self) -> Iterator[Placement]:
        for package in (package for packages in self.graphs.packages.values() for package in packages):
            for function in package.functions:
                operations: dict[str, dict[str, int]] = {}
                with _refusals(f"{package.path}, {function.name}", self.graphs):
                    plan = self.coreml.plan(self._compiled(package.path), function.name, self.graphs.compute_units)
                    for kind, device in plan:
                        counts = operations.setdefault(kind, {})
                        counts[device] = counts.get(device, 0) + 1
                yield Placement(package.path, function.name, dict(sorted(operations.items())))

    def _compiled(self, path: str) -> Path:
        return (self.folder / Path(path).name).with_suffix(".mlmodelc")


@contextmanager
def _refusals(what: str, graphs: Graphs) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise UnsupportedError(
            f"[device] {what}: Core ML refuses it ({error}); it needs macOS {graphs.minimum_os['macOS']} or newer"
        ) from error


def _time(run: Predict, inputs: Arrays) -> float:
    start = time.perf_counter()
    run(dict(inputs))
    return time.perf_counter() - start


def _compare(case: str, found: NDArray[Any], wanted: NDArray[Any], counted: Any) -> tuple[float, float]:
    """Measure mean and 99.9th percentile of the error, as shares of the largest output."""
    if found.shape != wanted.shape:
        raise ParityError(f"[device] {case}: output has shape {found.shape}, want {wanted.shape}")
    errors = np.abs(found.astype(np.float64) - wanted)[counted] / max(1e-12, float(np.abs(wanted[counted]).max()))
    if not np.isfinite(errors).all():
        return float("inf"), float("inf")
    return float(errors.mean()), float(np.quantile(errors, 0.999))


class CoreMLTools:
    """`CoreML` by coremltools, on a Mac."""

    def describe(self) -> Mapping[str, str]:
        command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        chip = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        return {"chip": chip, "macOS": platform.mac_ver()[0], "coremltools": version("coremltools")}

    def compile(self, package: Path, compiled: Path) -> None:
        from coremltools.models.utils import compile_model

        compile_model(str(package), str(compiled))

    def load(self, compiled: Path, function: str, units: str) -> Predict:
        from coremltools import ComputeUnit
        from coremltools.models import CompiledMLModel

        # Not MLModel, which compiles a package again for every function and only warns when Core ML refuses it.
        return CompiledMLModel(str(compiled), ComputeUnit[UNITS[units]], function).predict

    def plan(self, compiled: Path, function: str, units: str) -> Iterator[tuple[str, str]]:
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
                # The plan cannot be asked for one function: it may know the default one only.
                yield kind, "unknown" if device is None else names.get(device, device.__name__)
