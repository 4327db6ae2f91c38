"""The check with Core ML on whole bundles, where the interpreter stands in for Core ML."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from coremltools.converters.mil.frontend.milproto import load
from numpy.typing import NDArray

from convert.verify.device import check_on_device
from convert.verify.device_report import Measured
from convert.verify.device_task import Trouble, perform
from convert.verify.framework import CoreML, Predict
from convert.verify.interpreter import Arithmetic, Interpreter
from convert.verify.package import read_package
from moddit.manifest import read_manifest
from tests.convert.coreml.bundles import to_coreml
from tests.convert.verify.packages import block


class Interpreted(CoreML):
    """Compiling is copying; a placement is that of the default function alone, as coremltools gets it from Core ML."""

    def describe(self) -> Mapping[str, str]:
        return {"chip": "none"}

    def compile(self, package: Path, compiled: Path) -> None:
        shutil.copytree(package, compiled)

    def load(self, compiled: Path, function: str, units: str) -> Predict:
        interpreter = Interpreter(compiled, Arithmetic.ROUNDED)

        def predict(inputs: dict[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
            return interpreter.run(function, inputs)

        return predict

    def place(self, compiled: Path, function: str, units: str) -> Iterator[tuple[str, str]]:
        contents = read_package(compiled)
        load.load(contents.model, contents.model.specificationVersion, str(contents.file.parent / "weights"))
        device = "CPU" if contents.model.description.defaultFunctionName == function else "unknown"
        for operation in block(contents.model, function).operations:
            if operation.type != "const":
                yield operation.type, device


@pytest.mark.parametrize(
    "options",
    [("--chunks", "2", "--compress", "int4"), ("--routing", "onehot", "--batch", "1", "--compress", "palette6")],
    ids=" ".join,
)
def test_every_function_passes_and_has_a_placement(source: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    bundle = tmp_path / "bundle"
    assert to_coreml(source, bundle, *options) == 0
    manifest = read_manifest(bundle)
    assert manifest.graphs is not None
    coreml = Interpreted()
    report = check_on_device(bundle, manifest, perform=lambda task: perform(task, coreml))
    assert report.passed, report.to_text()
    assert json.loads(json.dumps(report.to_json(), allow_nan=False))["passed"] is True
    for item in report.predictions:
        assert isinstance(item.found, Measured)
        assert 0 < item.found.mean < 5e-3, item.case  # float16's rounding, perhaps a token routed otherwise
    functions = {(package.path, function.name) for packages in manifest.graphs.packages.values() for package in packages
                 for function in package.functions}  # fmt: skip
    assert {(item.package, item.function) for item in report.placements} == functions
    devices = set()
    for placement in report.placements:
        assert not isinstance(placement.found, Trouble)
        devices |= {device for counts in placement.found.values() for device in counts}
    assert devices == {"CPU"}
