"""Runs a saved .mlpackage anywhere, from its protobuf and its weights alone.

It shares no code with the exporter nor with coremltools' own loaders, so what it proves is about the saved bytes.
"""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable, Mapping
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from coremltools.proto import FeatureTypes_pb2
from numpy.typing import NDArray
from torch import Tensor

from convert.verify.operations import Value
from convert.verify.package import PackageFiles, read_package
from convert.verify.program import Compressed, Computed, Function, Source, Step, read_functions
from convert.verify.values import Feature, hold, holds
from moddit.errors import FormatError, InputError, MissingError, ShapeError, UnsupportedError, ValueRangeError

Watch = Callable[[str, tuple[Tensor, ...]], None]
_ARRAY_DTYPES: Final[Mapping[int, str]] = {
    FeatureTypes_pb2.ArrayFeatureType.FLOAT16: "fp16",
    FeatureTypes_pb2.ArrayFeatureType.FLOAT32: "fp32",
    FeatureTypes_pb2.ArrayFeatureType.INT32: "int32",
}
_RANGES: Final[Mapping[str, tuple[int, int]]] = {
    dtype: (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
    for dtype in ("int8", "int16", "int32", "uint8", "uint16")
}
_KINDS: Final[Mapping[torch.dtype, str]] = {torch.float32: "f", torch.int32: "iu", torch.bool: "b"}  # numpy's letters
_ADVICE: Final = "write or copy the package again"


class Arithmetic(Enum):
    """What becomes of values that are declared fp16. All floats are computed in float32."""

    EXACT = "fp32"  # they keep what float32 gave, casts too: shows whether the structure is right
    ROUNDED = "fp16"  # they are rounded after every operation, and overflow to infinity: near what a device does


class Interpreter:
    """A package whose functions can be run.

    The whole program is checked when it is read: operations, parameters, dtypes, and the place of every constant in
    the weights. Weights are read and decoded when an operation uses them, and dropped after it.

    Raises:
        MissingError: the package or one of its files is absent.
        FormatError: a file is damaged, or the program contradicts itself or its description.
        UnsupportedError: an operation, a parameter or a type that is not implemented.
    """

    def __init__(self, package: Path, arithmetic: Arithmetic) -> None:
        contents = read_package(package)
        self.path = package
        self.arithmetic = arithmetic
        self.functions: Mapping[str, Function] = read_functions(contents)
        _check_descriptions(contents, self.functions)
        self.default_function: str = contents.model.description.defaultFunctionName or "main"
        self._find(self.default_function)

    def run(
        self, function: str, inputs: Mapping[str, NDArray[Any]], watch: Watch | None = None
    ) -> dict[str, NDArray[Any]]:
        """Run a function; give an array for each output: floats as float32, integers as int32, booleans.

        Inputs are arrays of the declared shapes: floats, integers or booleans of any width. `watch` is called after
        each operation but the constant ones with its name and its outputs, which it must not change.

        Raises:
            MissingError: no such function, or inputs that are absent or too many.
            ShapeError: an input has the wrong shape.
            ValueRangeError: an input has the wrong kind of values, or an index is out of range.
            FormatError: an operation fails, or gives another shape than declared.
            UnsupportedError: an operation is used in a way that is not implemented.
        """
        chosen = self._find(function)
        values = self._take_inputs(chosen, inputs)
        with torch.no_grad():
            for step, unused in zip(chosen.steps, chosen.last_uses, strict=True):
                results = self._evaluate(step, values)
                values.update((output.name, result) for output, result in zip(step.outputs, results, strict=True))
                if watch is not None:
                    watch(step.name, results)
                del results
                for name in unused:
                    del values[name]
            return {name: _to_numpy(self._resolve(source, values)) for name, source in chosen.results.items()}

    def constants(self, function: str) -> Mapping[str, NDArray[Any]]:
        """Give the constants of a function but strings, by the names of their values, compressed ones decompressed.

        Each is decoded when it is looked up, and not kept. Raises MissingError if there is no such function.
        """
        constants = self._find(function).constants
        sources = {name: source for name, source in constants.items() if source.feature.dtype != "string"}
        return _Constants({name: partial(self._resolve, source, {}) for name, source in sources.items()})

    def _find(self, function: str) -> Function:
        if function not in self.functions:
            names = ", ".join(self.functions)
            raise MissingError(f"[coreml] {self.path}: no function {function!r}, want one of {names}")
        return self.functions[function]

    def _take_inputs(self, function: Function, inputs: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
        problems = [f"{name} is missing" for name in sorted(set(function.inputs) - set(inputs))]
        problems += [f"{name} is not an input" for name in sorted(set(inputs) - set(function.inputs))]
        if problems:
            raise MissingError(f"{function.where}: inputs: {', '.join(problems)}")
        problems = [
            f"{name} is {list(inputs[name].shape)}, want {feature}"
            for name, feature in sorted(function.inputs.items())
            if inputs[name].shape != feature.shape
        ]
        if problems:
            raise ShapeError(f"{function.where}: inputs: {', '.join(problems)}")
        return {name: self._take_input(function, name, inputs[name]) for name in function.inputs}

    def _take_input(self, function: Function, name: str, array: NDArray[Any]) -> Tensor:
        feature = function.inputs[name]
        where = f"{function.where}: input {name!r}"
        if array.dtype.kind not in _KINDS[holds(feature.dtype)]:
            raise ValueRangeError(f"{where}: values are of dtype {array.dtype}, want {feature}")
        return self._finish(torch.from_numpy(np.array(array)), feature, where)

    def _evaluate(self, step: Step, values: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Compute the outputs of a step, as declared."""
        arguments = {
            parameter: tuple(self._resolve(source, values) for source in sources)
            for parameter, sources in step.arguments.items()
        }
        try:
            results = step.operation.evaluate(arguments)
        except InputError as error:
            raise type(error)(f"{step.where}: {error}") from None
        except (ArithmeticError, LookupError, RuntimeError, ValueError) as error:  # torch's, about shapes and axes
            raise FormatError(f"{step.where}: cannot be computed ({error}); {_ADVICE}") from error
        if len(results) != len(step.outputs):
            raise FormatError(f"{step.where}: got {len(step.outputs)} outputs, want {len(results)}; {_ADVICE}")
        return tuple(
            self._finish(result, output.feature, f"{step.where}: output {output.name!r}")
            for result, output in zip(results, step.outputs, strict=True)
        )

    def _finish(self, result: Tensor, feature: Feature, where: str) -> Tensor:
        """Check a value against its declaration, and round it where that is asked for."""
        value = hold(result)
        if tuple(value.shape) != feature.shape or value.dtype != holds(feature.dtype):
            raise FormatError(f"{where}: is {value.dtype} {list(value.shape)}, want {feature} as declared; {_ADVICE}")
        if feature.dtype in _RANGES:
            _check_range(result, feature, where)
        if self.arithmetic is Arithmetic.ROUNDED and feature.dtype == "fp16":
            return value.half().float()
        return value

    def _resolve(self, source: Source, values: Mapping[str, Tensor]) -> Value:
        if isinstance(source, Computed):
            return values[source.name]
        if isinstance(source, Compressed):
            return self._evaluate(source.step, {})[0]
        return source.read()


class _Constants(UserDict[str, Any]):
    """Constants that are decoded when they are looked up."""

    def __getitem__(self, name: str) -> NDArray[Any]:
        return _to_numpy(self.data[name]())


def _check_range(result: Tensor, feature: Feature, where: str) -> None:
    """Check integers before they are held as int32, and where they are declared narrower."""
    lowest, highest = _RANGES[feature.dtype]
    values = result.long()
    if values.numel() and not (lowest <= values.min() and values.max() <= highest):
        raise ValueRangeError(
            f"{where}: values are in {int(values.min())}..{int(values.max())}, which {feature} does not hold"
        )


def _to_numpy(value: Value) -> NDArray[Any]:
    """Copy a value, so that no array of ours is shared with the caller."""
    assert isinstance(value, Tensor)
    return value.numpy().copy()


def _check_descriptions(package: PackageFiles, functions: Mapping[str, Function]) -> None:
    """Check that the model's description, by which an app finds features, tells what the program does."""
    description = package.model.description
    described = {item.name: item for item in description.functions} or {"main": description}
    if described.keys() != functions.keys():
        raise FormatError(
            f"[coreml] {package.path}: describes functions {sorted(described)}, want {sorted(functions)}; {_ADVICE}"
        )
    for name, function in functions.items():
        where = f"[coreml] {package.path}: description of function {name!r}"
        if described[name].state:
            raise UnsupportedError(f"{where}: has states")
        _check_features(described[name].input, function.inputs, f"{where}: inputs")
        _check_features(described[name].output, function.outputs, f"{where}: outputs")


def _check_features(described: Any, declared: Mapping[str, Feature], where: str) -> None:
    found = {item.name: _describe(item.type, f"{where}: {item.name}") for item in described}
    if found != declared:
        raise FormatError(f"{where}: are {_list(found)}, want {_list(declared)} as in the program; {_ADVICE}")


def _describe(feature_type: Any, where: str) -> Feature:
    kind = feature_type.WhichOneof("Type")
    if kind != "multiArrayType":
        raise UnsupportedError(f"{where}: type, got {kind}, want multiArrayType")
    array = feature_type.multiArrayType
    if array.dataType not in _ARRAY_DTYPES or array.WhichOneof("ShapeFlexibility"):
        raise UnsupportedError(f"{where}: has a dtype or flexible shapes that are not implemented")
    return Feature(tuple(array.shape), _ARRAY_DTYPES[array.dataType])


def _list(features: Mapping[str, Feature]) -> str:
    return ", ".join(f"{name} {feature}" for name, feature in sorted(features.items()))
