"""A MIL program, checked as far as can be without running it, and ready to be run.

Constants are not steps: they stay what the protobuf says, and are decoded wherever they are used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from convert.verify.blobs import BlobFile, StoredArray
from convert.verify.operations import OPERATIONS, Operation
from convert.verify.package import PackageFiles
from convert.verify.values import DTYPES, FLOATS, Feature, Literal, read_feature, read_literal
from moddit.errors import FormatError, UnsupportedError

_ADVICE: Final = "write or copy the package again"


@dataclass(frozen=True)
class Computed:
    """What a step or the caller gives, by its name."""

    name: str
    feature: Feature


@dataclass(frozen=True)
class Step:
    """One operation of a function."""

    where: str  # package, function, operation and type, for messages
    name: str
    operation: Operation
    arguments: Mapping[str, tuple[Source, ...]]
    outputs: tuple[Computed, ...]
    is_constant: bool  # compressed weights, which are computed where they are used


@dataclass(frozen=True)
class Compressed:
    """The first output of a constant step."""

    step: Step

    @property
    def feature(self) -> Feature:
        return self.step.outputs[0].feature


Source = Computed | Compressed | Literal  # where an argument comes from


@dataclass(frozen=True)
class Function:
    """One function of a program."""

    where: str
    inputs: Mapping[str, Feature]
    results: Mapping[str, Source]  # by the name of the output
    steps: tuple[Step, ...]  # without the constant ones, in the order of the program
    constants: Mapping[str, Compressed | Literal]  # by the name of the value
    last_uses: tuple[tuple[str, ...], ...] = field(repr=False)  # for each step, the values not needed after it

    @property
    def outputs(self) -> Mapping[str, Feature]:
        return {name: source.feature for name, source in self.results.items()}


def read_functions(package: PackageFiles) -> dict[str, Function]:
    """Read and check all functions of a package.

    Raises:
        UnsupportedError: an operation, a parameter or a type that is not implemented.
        FormatError: a value that is not there, repeated or of the wrong dtype; damaged constants.
        MissingError: no file of weights.
    """
    files: dict[str, BlobFile] = {}

    def find_blob(name: str, offset: int, feature: Feature) -> StoredArray:
        if name not in files:
            files[name] = BlobFile(package.find_file(name))
        return files[name].find(offset, feature.dtype, feature.shape)

    functions = package.model.mlProgram.functions
    return {name: _Reader(package.path, name, find_blob).read(functions[name]) for name in sorted(functions)}


class _Reader:
    """Reads one function."""

    def __init__(self, path: Path, function: str, find_blob: Callable[[str, int, Feature], StoredArray]) -> None:
        self._where = f"[coreml] {path}: function {function!r}"
        self._find_blob = find_blob
        self._known: dict[str, Source] = {}

    def read(self, proto: Any) -> Function:
        if proto.opset not in proto.block_specializations:
            raise FormatError(f"{self._where}: has no block for its opset {proto.opset!r}; {_ADVICE}")
        block = proto.block_specializations[proto.opset]
        inputs = {item.name: read_feature(item.type, f"{self._where}: input {item.name!r}") for item in proto.inputs}
        for name, feature in inputs.items():
            self._define(name, Computed(name, feature), self._where)
        steps = tuple(step for operation in block.operations for step in self._read_operation(operation))
        outputs = {name: self._find(name, f"{self._where}: outputs") for name in block.outputs}
        constants = {name: source for name, source in self._known.items() if not isinstance(source, Computed)}
        return Function(self._where, inputs, outputs, steps, constants, _find_last_uses(inputs, steps, outputs))

    def _read_operation(self, proto: Any) -> Iterator[Step]:
        name = _read_name(proto)
        where = f"{self._where}: operation {name!r} of type {proto.type}"
        if proto.type == "const":
            self._read_const(proto, where)
            return
        if proto.type not in OPERATIONS or len(proto.blocks):
            raise UnsupportedError(f"{where}: this type of operation is not implemented in convert/verify/operations")
        outputs = tuple(
            Computed(item.name, read_feature(item.type, f"{where}: output {item.name!r}")) for item in proto.outputs
        )
        arguments = self._read_arguments(proto, where)
        is_constant = proto.type.startswith("constexpr_")
        step = Step(where, name, OPERATIONS[proto.type], arguments, outputs, is_constant)
        _check_arguments(step)
        _check_dtypes(step)
        for output in outputs:
            self._define(output.name, Compressed(step) if is_constant else output, where)
        if not is_constant:
            yield step

    def _read_const(self, proto: Any, where: str) -> None:
        if len(proto.outputs) != 1 or proto.inputs or set(proto.attributes) != {"name", "val"}:
            raise FormatError(f"{where}: want one output and the attributes name and val; {_ADVICE}")
        literal = read_literal(proto.attributes["val"], self._find_blob, where)
        declared = read_feature(proto.outputs[0].type, where)
        if literal.feature != declared:
            raise FormatError(f"{where}: value is {literal.feature}, want {declared} as declared; {_ADVICE}")
        self._define(proto.outputs[0].name, literal, where)

    def _read_arguments(self, proto: Any, where: str) -> dict[str, tuple[Source, ...]]:
        others = sorted(set(proto.attributes) - {"name"})
        if others:  # arguments of compressed constants, before iOS 18
            raise UnsupportedError(f"{where}: attributes {', '.join(others)} are not implemented")
        return {
            parameter: tuple(
                self._read_binding(binding, f"{where}: argument {parameter}") for binding in item.arguments
            )
            for parameter, item in proto.inputs.items()
        }

    def _read_binding(self, binding: Any, where: str) -> Source:
        if binding.WhichOneof("binding") == "value":
            return read_literal(binding.value, self._find_blob, where)
        return self._find(binding.name, where)

    def _find(self, name: str, where: str) -> Source:
        if name not in self._known:
            raise FormatError(f"{where}: value {name!r} is not defined before; {_ADVICE}")
        return self._known[name]

    def _define(self, name: str, source: Source, where: str) -> None:
        if name in self._known:
            raise FormatError(f"{where}: value {name!r} is defined twice; {_ADVICE}")
        self._known[name] = source


def _read_name(proto: Any) -> str:
    if "name" in proto.attributes:
        strings = proto.attributes["name"].immediateValue.tensor.strings.values
        if len(strings) == 1:
            return str(strings[0])
    return str(proto.outputs[0].name) if len(proto.outputs) else ""


def _check_arguments(step: Step) -> None:
    unknown = sorted(set(step.arguments) - set(step.operation.readers))
    if unknown:
        raise UnsupportedError(f"{step.where}: parameters {', '.join(unknown)} are not implemented")
    missing = sorted(step.operation.required - set(step.arguments))
    if missing:
        raise FormatError(f"{step.where}: parameters {', '.join(missing)} are absent; {_ADVICE}")
    if not step.outputs or (step.is_constant and len(step.outputs) != 1):
        raise FormatError(f"{step.where}: got {len(step.outputs)} outputs; {_ADVICE}")
    if step.is_constant and any(isinstance(source, Computed) for item in step.arguments.values() for source in item):
        raise FormatError(f"{step.where}: an argument of a constant is not constant; {_ADVICE}")


def _check_dtypes(step: Step) -> None:
    """Check that floats are not mixed, and that the outputs are declared with the dtype that the operation gives."""
    floats = {
        f"{parameter} {source.feature.dtype}"
        for parameter, sources in step.arguments.items()
        for source in sources
        if source.feature.dtype in FLOATS and parameter not in step.operation.mixed
    }
    if len({text.split()[-1] for text in floats}) > 1:
        raise FormatError(f"{step.where}: mixes floats ({', '.join(sorted(floats))}); cast one of them")
    rules = step.operation.dtypes
    for index, output in enumerate(step.outputs):
        wanted = _find_dtype(step, rules[min(index, len(rules) - 1)])
        if output.feature.dtype != wanted:
            raise FormatError(
                f"{step.where}: output {output.name!r} is declared {output.feature.dtype}, "
                f"want {wanted}, as the operation gives; {_ADVICE}"
            )


def _find_dtype(step: Step, rule: str) -> str:
    if rule in DTYPES:
        return rule
    if rule not in step.arguments:
        return "int32"
    source = step.arguments[rule][0]
    if isinstance(source, Literal) and source.feature.dtype == "string":
        return str(source.read())
    return source.feature.dtype


def _find_last_uses(
    inputs: Mapping[str, Feature], steps: tuple[Step, ...], outputs: Mapping[str, Source]
) -> tuple[tuple[str, ...], ...]:
    """Find, for each step, what may be dropped after it: values of whatever origin, used there or never."""
    last = dict.fromkeys(inputs, 0)
    for index, step in enumerate(steps):
        used = (source.name for item in step.arguments.values() for source in item if isinstance(source, Computed))
        last.update(dict.fromkeys(used, index))
        last.update((output.name, index) for output in step.outputs)
    kept = {source.name for source in outputs.values() if isinstance(source, Computed)}
    result: list[list[str]] = [[] for _ in steps]
    for name, index in last.items():
        if name not in kept and steps:
            result[index].append(name)
    return tuple(tuple(names) for names in result)
