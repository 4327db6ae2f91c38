"""From functions to programs and saved packages, with what a person sees of them in Xcode."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any, Final

import coremltools as ct
from coremltools.converters.mil.backend.mil import load
from coremltools.converters.mil.mil import Function, Program, types
from coremltools.proto import Model_pb2

import moddit
from convert.installed import LIBRARIES, incomplete
from moddit.contract import FEATURES, taken_name
from moddit.errors import InputError
from moddit.graphs import Feature, GraphFunction, Package
from moddit.signals import Stopped

OPSET: Final = ct.target.iOS18  # macOS 15: several functions in a package, fused attention, weights in four bits
MINIMUM_OS: Final = {"iOS": "18.0", "macOS": "15.0"}
COMPUTE_UNITS: Final = "cpuAndGPU"  # top-k, gather and scatter have no place on the Neural Engine
AUTHOR: Final = "moddit"
LICENSE: Final = "That of the checkpoint's weights"
MODEL_FILE: Final = "Data/com.apple.CoreML/model.mlmodel"
WEIGHT_FILE: Final = "Data/com.apple.CoreML/weights/weight.bin"
_DTYPES: Final[Mapping[str, str]] = {"fp32": "float32", "fp16": "float16", "int32": "int32"}


def build_program(functions: Iterable[tuple[str, dict[str, Any], Callable[[Mapping[str, Any]], list[Any]]]]) -> Program:
    """Build a program of functions: name, placeholders, and what makes the outputs. The first is the default."""
    program = Program()
    for name, inputs, build in functions:
        with Function(inputs, opset_version=OPSET) as function:
            function.set_outputs(build(function.inputs))
        program.add_function(name, function)
    program.default_function_name = next(iter(program.functions))
    program.export_as_multifunction = True
    return program


def save_package(program: Program, path: Path, summary: str) -> Package:
    """Save a program as a package.

    Raises:
        MissingError: coremltools could not load its native library.
        InputError: a weight, which is read only now, cannot be used.
        OSError: it cannot be written.
    """
    # coremltools' progress bars cannot be switched off; errors are exceptions
    with redirect_stderr(io.StringIO()), _scratch(path.parent):
        try:
            ct.convert(
                program,
                convert_to="mlprogram",
                minimum_deployment_target=OPSET,
                compute_precision=ct.precision.FLOAT32,  # dtypes stay as the graph has them
                pass_pipeline=ct.PassPipeline.EMPTY,
                skip_model_load=True,
                package_dir=str(path),
            )
        # The frames of what is raised hold a temporary file, which would complain that its folder is gone.
        except (InputError, OSError, Stopped) as error:
            raise error.with_traceback(None) from None
        except RuntimeError as error:  # of coremltools' writer of weights
            if load.BlobWriter is None:
                raise incomplete(LIBRARIES[0]) from error
            raise OSError(f"{error}; is the disk full?") from error.with_traceback(None)
    _describe(path, summary)
    functions = tuple(_signature(name, function) for name, function in program.functions.items())
    return Package(path.name, functions)


def _describe(path: Path, summary: str) -> None:
    """Write author, licence and the meaning of every feature into a saved package."""
    file = path / MODEL_FILE
    model = Model_pb2.Model()
    model.ParseFromString(file.read_bytes())
    model.description.metadata.author = AUTHOR
    model.description.metadata.license = LICENSE
    model.description.metadata.versionString = moddit.__version__
    model.description.metadata.shortDescription = summary
    for function in model.description.functions:
        for feature in (*function.input, *function.output):
            feature.shortDescription = FEATURES[taken_name(feature.name)]
    file.unlink()  # coremltools makes it unreadable for others
    file.write_bytes(model.SerializeToString())


def _signature(name: str, function: Any) -> GraphFunction:
    inputs = {key: _feature(value) for key, value in function.inputs.items()}
    return GraphFunction(name, inputs, {value.name: _feature(value) for value in function.outputs})


def _feature(value: Any) -> Feature:
    return Feature(tuple(int(size) for size in value.shape), _DTYPES[types.builtin_to_string(value.dtype)])


@contextmanager
def _scratch(folder: Path) -> Iterator[None]:
    """Let coremltools put its temporary copy of the weights on the bundle's disk, and remove it."""
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory(dir=folder, prefix=".scratch", ignore_cleanup_errors=True) as scratch:
        tempfile.tempdir = scratch
        try:
            yield
        finally:
            tempfile.tempdir = before
