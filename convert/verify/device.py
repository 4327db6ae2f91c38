"""Every function of every package in Core ML itself: predictions, times, and the compute unit of each operation.

Core ML may abort its process, so each package is compiled, each function run and placed in a process of
its own, of bounded time (`convert/verify/device_process.py`).

Nobody has run this yet: it was written without a Mac, from the sources of coremltools 9, and tested against fakes of
`CoreML`. What Core ML makes of the packages is unknown until somebody runs `python -m convert verify --on-device`.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convert.verify.device_process import TIMEOUT, Processes
from convert.verify.device_report import DeviceReport, Measured, Placement, Prediction
from convert.verify.device_task import Answer, Compile, Describe, Link, Place, Run, Task, Trouble
from convert.verify.framework import UNITS, Arrays
from convert.verify.stored import read_stored, reference_file, stored_cases
from moddit.contract import INPUT_IDS, TEXT_MASK
from moddit.errors import FormatError, UnsupportedError
from moddit.graphs import Graphs, Package
from moddit.manifest import Manifest, verify_files

Perform = Callable[[Task], Answer | Trouble]
Told = Callable[[str], object]  # what is being done


def check_on_device(
    bundle: Path,
    manifest: Manifest,
    units: str | None = None,
    perform: Perform | None = None,
    *,
    seconds: float = TIMEOUT,
    told: Told = lambda _: None,
) -> DeviceReport:
    """Compile every package, run every function on the stored inputs, and ask where Core ML would run each.

    A function that Core ML refuses, or that crashes or does not end, is reported; the others are run nevertheless.

    `units` is a key of UNITS, by default what the manifest says. `perform` performs a task, by default with coremltools
    on this Mac, in a process of its own that may take some seconds; `told` is called before each with what it is about.

    Raises:
        UnsupportedError: this is not a Mac, the bundle has no packages, or Core ML cannot be used at all.
        InputError: the bundle is damaged, or has no stored inputs and outputs.
    """
    if perform is None and platform.system() != "Darwin":
        raise UnsupportedError(
            f"[device] Core ML runs on macOS only, this is {platform.system()}; copy the bundle to a Mac and run this "
            "there, or leave out --on-device to check the packages here"
        )
    graphs, perform = manifest.graphs, perform or Processes(seconds=seconds).perform
    if graphs is None:
        raise UnsupportedError(f"[device] {bundle}: the bundle has no packages to run; want one made with --to coreml")
    units = units or graphs.compute_units
    if units not in UNITS:
        raise FormatError(f"[device] {bundle}: compute_units is {units!r}, want one of {', '.join(UNITS)}")
    verify_files(bundle, manifest, hashes=True)
    arrays = read_stored(bundle, manifest)
    cases = stored_cases(manifest.tokens.plan, graphs)
    machine = perform(Describe())
    if isinstance(machine, Trouble):
        raise UnsupportedError(f"[device] Core ML cannot be used here; {machine}")
    with TemporaryDirectory(prefix="moddit-") as folder:
        session = _Session(bundle, graphs, units, Path(folder), perform, told)
        compiled = session.compile()
        predictions = tuple(session.predict(*case, arrays, compiled) for case in cases)
        placements = tuple(session.place(compiled))
    compiling = {path: item["seconds"] for path, item in compiled.items() if not isinstance(item, Trouble)}
    return DeviceReport(machine["machine"], units, compiling, predictions, placements)


Compiled = Mapping[str, Answer | Trouble]  # by the path of the package


@dataclass(frozen=True)
class _Session:
    bundle: Path
    graphs: Graphs
    units: str
    folder: Path  # of compiled packages, and of outputs
    perform: Perform
    told: Told

    @property
    def packages(self) -> list[Package]:
        return [package for packages in self.graphs.packages.values() for package in packages]

    def compile(self) -> Compiled:
        return {
            package.path: self._ask(
                f"compiling {package.path}",
                Compile(str(self.bundle / package.path), str(self._compiled(package.path))),
            )
            for package in self.packages
        }

    def predict(self, role: str, name: str, case: str, arrays: Arrays, compiled: Compiled) -> Prediction:
        """Run a function through its packages, and compare what comes out."""
        calls = self.graphs.calls(role, name)
        troubles = [found for package, _ in calls if isinstance(found := compiled[package.path], Trouble)]
        if troubles:
            return Prediction(case, troubles[0])
        links = [
            Link(package.path, str(self._compiled(package.path)), function.name, list(function.inputs))
            for package, function in calls
        ]
        output = self.folder / "output.npy"
        reference = str(reference_file(self.bundle))
        answer = self._ask(f"running {case}", Run(name, self.units, links, reference, case, str(output)))
        if isinstance(answer, Trouble):
            return Prediction(case, answer)
        mask = arrays[f"{case}/input/{TEXT_MASK}"].astype(bool) if f"{case}/input/{INPUT_IDS}" in arrays else ...
        errors = _compare(np.load(output, allow_pickle=False), arrays[f"{case}/output"], mask)
        return Prediction(case, errors if isinstance(errors, Trouble) else Measured(*errors, **answer))

    def place(self, compiled: Compiled) -> Iterator[Placement]:
        for package in self.packages:
            for function in package.functions:
                found = compiled[package.path]
                if not isinstance(found, Trouble):
                    found = self._place(package, function.name)
                yield Placement(
                    package.path, function.name, found if isinstance(found, Trouble) else found["operations"]
                )

    def _place(self, package: Package, function: str) -> Answer | Trouble:
        """Ask for the placement of one function, which has to be its package's only one."""
        with TemporaryDirectory(dir=self.folder) as folder:
            task = Place(
                str(self.bundle / package.path), str(self._compiled(package.path)), function, self.units,
                is_alone=len(package.functions) == 1, folder=folder,
            )  # fmt: skip
            return self._ask(f"placing {package.path}, {function}", task)

    def _ask(self, what: str, task: Task) -> Answer | Trouble:
        self.told(what)
        found = self.perform(task)
        if isinstance(found, Trouble) and found.kind == "refused":
            return replace(found, detail=f"{found.detail}; it needs macOS {self.graphs.minimum_os['macOS']} or newer")
        return found

    def _compiled(self, path: str) -> Path:
        return (self.folder / Path(path).name).with_suffix(".mlmodelc")


def _compare(found: NDArray[Any], wanted: NDArray[Any], counted: Any) -> tuple[float, float] | Trouble:
    """Measure mean and 99.9th percentile of the errors that count (not of padding), as shares of the largest output."""
    if found.shape != wanted.shape:
        return Trouble("wrong output", f"has shape {found.shape}, want {wanted.shape}")
    errors = np.abs(found.astype(np.float64) - wanted)[counted] / max(1e-12, float(np.abs(wanted[counted]).max()))
    if not np.isfinite(errors).all():
        return float("inf"), float("inf")
    return float(errors.mean()), float(np.quantile(errors, 0.999))
