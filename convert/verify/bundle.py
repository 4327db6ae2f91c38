"""A bundle opened for verification: its manifest, and its packages in the interpreter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convert.verify.interpreter import Arithmetic, Interpreter, Watch
from moddit.contract import PREPARE, batch_name, taken_name
from moddit.errors import FormatError, UnsupportedError
from moddit.graphs import ROLES, GraphFunction, Graphs, Package
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
    interpreters: Mapping[str, Interpreter]  # by the path of the package

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
        packages = [package for chain in graphs.packages.values() for package in chain]
        interpreters = {package.path: Interpreter(folder / package.path, arithmetic) for package in packages}
        for package in packages:
            _compare(folder, package, interpreters[package.path])
        return cls(folder, spec, policy, graphs, interpreters)

    def of(self, component: str) -> list[Interpreter]:
        """List the packages that a component was divided into."""
        chains = [self.graphs.packages.get(role, ()) for role in ROLES[component]]
        return [self.interpreters[package.path] for chain in chains for package in chain]

    def prepare(self, batch: int, known: Arrays) -> Arrays:
        """Add what is computed once a picture, if something is, to what the steps of a batch are told."""
        for package in self.graphs.packages.get(PREPARE, ()):
            known = self._call(package, package.function(batch_name(batch)), known)
        return known

    def run(self, role: str, name: str, known: Arrays, watch: Watch | None = None) -> NDArray[np.float32]:
        """Run a function through its whole chain of packages; return its one output.

        A step is prepared first, unless what that gives is known.
        """
        calls = self.graphs.calls(role, name)
        for package, function in calls:
            if not function.outputs.keys() <= known.keys():
                known = self._call(package, function, known, watch)
        (output,) = calls[-1][1].outputs
        return known[output]

    def _call(self, package: Package, function: GraphFunction, known: Arrays, watch: Watch | None = None) -> Arrays:
        taken = {name: known[name] for name in function.inputs}
        outputs = self.interpreters[package.path].run(function.name, taken, watch)
        return {**known, **{taken_name(name): array for name, array in outputs.items()}}


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
