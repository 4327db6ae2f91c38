"""A bundle opened for verification: its manifest, and its packages in the interpreter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convert.verify.interpreter import Arithmetic, Interpreter, Watch
from moddit.contract import taken_name
from moddit.errors import FormatError, UnsupportedError
from moddit.graphs import Graphs, Package
from moddit.spec import ModelSpec
from moddit.tokens import TokenPolicy

Arrays = Mapping[str, NDArray[Any]]
_DTYPES = {"fp32": "float32", "fp16": "float16"}  # MIL's names to the manifest's


@dataclass(frozen=True)
class Packages:
    """The packages of a bundle in one arithmetic."""

    folder: Path
    spec: ModelSpec
    policy: TokenPolicy
    graphs: Graphs
    interpreters: Mapping[str, Sequence[Interpreter]]  # role to the chain of packages

    @classmethod
    def open(
        cls, folder: Path, spec: ModelSpec, policy: TokenPolicy, graphs: Graphs | None, arithmetic: Arithmetic
    ) -> Packages:
        """Read and check every package.

        Raises:
            UnsupportedError: the bundle has no packages, or one has operations that are not implemented.
            FormatError: a package has other functions, inputs or outputs than the manifest says.
            InputError: a package is absent or damaged.
        """
        if graphs is None:
            raise UnsupportedError(
                f"[verify] {folder}: the bundle has no packages to run; want one made with --to coreml"
            )
        interpreters = {
            role: [Interpreter(folder / package.path, arithmetic) for package in packages]
            for role, packages in graphs.packages.items()
        }
        for role, packages in graphs.packages.items():
            for package, interpreter in zip(packages, interpreters[role], strict=True):
                _compare(folder, package, interpreter)
        return cls(folder, spec, policy, graphs, interpreters)

    def run(self, role: str, function: str, inputs: Arrays, watch: Watch | None = None) -> NDArray[np.float32]:
        """Run a function through its whole chain of packages; return its one output."""
        outputs: dict[str, NDArray[Any]] = {}
        for interpreter in self.interpreters[role]:
            handed = {taken_name(name): array for name, array in outputs.items()}
            taken = {name: {**inputs, **handed}[name] for name in interpreter.functions[function].inputs}
            outputs = interpreter.run(function, taken, watch)
        (output,) = outputs.values()
        return output


def _compare(folder: Path, package: Package, interpreter: Interpreter) -> None:
    """Compare the functions of a package with what the manifest says of them, which is what apps read."""
    found = {
        name: (_shapes(function.inputs), _shapes(function.outputs)) for name, function in interpreter.functions.items()
    }
    wanted = {function.name: (_shapes(function.inputs), _shapes(function.outputs)) for function in package.functions}
    if found != wanted:
        names = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
        raise FormatError(
            f"[verify] {folder / package.path}: functions {', '.join(names)} have other features than the manifest "
            "says; convert the checkpoint again"
        )


def _shapes(features: Mapping[str, Any]) -> dict[str, tuple[tuple[int, ...], str]]:
    return {name: (feature.shape, _DTYPES.get(feature.dtype, feature.dtype)) for name, feature in features.items()}
