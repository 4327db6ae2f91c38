"""A bundle opened for verification: its manifest, and its packages in the interpreter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convert.verify.interpreter import Arithmetic, Interpreter, Watch
from moddit.errors import UnsupportedError
from moddit.graphs import Denoiser, Graphs
from moddit.routing import RoutingPlan
from moddit.spec import ModelSpec

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Packages:
    """The packages of a bundle in one arithmetic."""

    folder: Path
    spec: ModelSpec
    plan: RoutingPlan | None
    graphs: Graphs
    interpreters: Mapping[str, Sequence[Interpreter]]  # role to the chain of packages

    @classmethod
    def open(
        cls, folder: Path, spec: ModelSpec, plan: RoutingPlan | None, graphs: Graphs | None, arithmetic: Arithmetic
    ) -> Packages:
        """Read and check every package.

        Raises:
            UnsupportedError: the bundle has no packages, or one has operations that are not implemented.
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
        return cls(folder, spec, plan, graphs, interpreters)

    def run(self, role: str, function: str, inputs: Arrays, watch: Watch | None = None) -> NDArray[np.float32]:
        """Run a function through its whole chain of packages; return its one output."""
        outputs: dict[str, NDArray[Any]] = {}
        for interpreter in self.interpreters[role]:
            handed = {name.removesuffix("_out"): array for name, array in outputs.items()}
            taken = {name: {**inputs, **handed}[name] for name in interpreter.functions[function].inputs}
            outputs = interpreter.run(function, taken, watch)
        (output,) = outputs.values()
        return output

    def regions(self, denoiser: Denoiser) -> list[tuple[int, int]]:
        """First and last timestep of each region that a function is for."""
        count, total = (self.plan.regions if self.plan else 1), self.spec.scheduler.num_train_timesteps
        edges = [-(-region * total // count) for region in range(count + 1)]
        return [(edges[region], edges[region + 1] - 1) for region in denoiser.regions]
