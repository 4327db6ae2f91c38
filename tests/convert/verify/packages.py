"""Small packages, written by coremltools from programs that a test builds."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import coremltools as ct
import numpy as np
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil import Function, Program, types
from coremltools.proto import Model_pb2
from numpy.typing import NDArray

from convert.verify.interpreter import Arithmetic, Interpreter

REGION: Final = "px32x32_batch2_region1_2"  # the function that faults are planted in; all layers drop tokens
TRANSFORMER: Final = "Transformer.mlpackage"
MODEL = Path("Data/com.apple.CoreML/model.mlmodel")
WEIGHTS = Path("Data/com.apple.CoreML/weights/weight.bin")
TYPES = {"float32": types.fp32, "float16": types.fp16, "int32": types.int32}

Build = Callable[..., Any]  # variables of the inputs -> an output, or a list of them


def save(path: Path, functions: Mapping[str, tuple[Build, Mapping[str, NDArray[Any]]]], target: Any = None) -> Path:
    """Write a package of functions, each with inputs like the arrays."""
    target = target or ct.target.iOS18
    program = Program()
    for name, (build, inputs) in functions.items():
        specs = {key: mb.placeholder(array.shape, dtype=TYPES[array.dtype.name]) for key, array in inputs.items()}
        with Function(specs, opset_version=target) as function:
            outputs = build(**function.inputs)
            function.set_outputs(outputs if isinstance(outputs, list) else [outputs])
        program.add_function(name, function)
    program.default_function_name = next(iter(functions))
    program.export_as_multifunction = len(functions) > 1
    package = path / "model.mlpackage"
    _convert(program, target).save(str(package))
    return package


def _convert(program: Program, target: Any) -> Any:
    """Convert as it stands: no passes, no change of dtypes."""
    gc.freeze()  # coremltools collects garbage, which takes a second with all of torch and coremltools loaded
    try:
        with warnings.catch_warnings():
            # coremltools leaves the folder of its weights to the garbage collector.
            warnings.simplefilter("ignore", ResourceWarning)
            return ct.convert(
                program,
                convert_to="mlprogram",
                minimum_deployment_target=target,
                skip_model_load=True,
                compute_precision=ct.precision.FLOAT32,
                pass_pipeline=ct.PassPipeline.EMPTY,
            )
    finally:
        gc.unfreeze()


def edit(package: Path, change: Callable[[Any], None]) -> None:
    """Change the saved protobuf."""
    model = Model_pb2.Model()
    model.ParseFromString((package / MODEL).read_bytes())
    change(model)
    (package / MODEL).write_bytes(model.SerializeToString())


def block(model: Any, function: str = "main") -> Any:
    (found,) = model.mlProgram.functions[function].block_specializations.values()
    return found


def trace(
    package: Path, inputs: Mapping[str, NDArray[Any]], arithmetic: Arithmetic = Arithmetic.EXACT
) -> dict[str, list[NDArray[Any]]]:
    """Run the function main, and give the values of every operation by its name."""
    seen: dict[str, list[NDArray[Any]]] = {}
    interpreter = Interpreter(package, arithmetic)
    interpreter.run("main", inputs, lambda name, values: seen.update({name: [value.numpy() for value in values]}))
    return {name: [np.array(value) for value in values] for name, values in seen.items()}


def find(model: Any, name: str) -> Any:
    return next(item for item in block(model, REGION).operations if item.outputs[0].name == name)


def rewire(operation: str, parameter: str, value: str) -> Callable[[Any], None]:
    """Make an operation take another value."""

    def change(model: Any) -> None:
        find(model, operation).inputs[parameter].arguments[0].name = value

    return change
