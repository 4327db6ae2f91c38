"""Functions in place of packages: what the check with Core ML is tested against, in this process and in others."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convert.verify.framework import CoreML

Arrays = dict[str, NDArray[Any]]
Function = Callable[[Arrays], Arrays]

IDS = np.arange(4, dtype=np.int32)[None]
MASK = np.array([[1, 1, 1, 0]], np.float32)
STATES = np.stack([IDS * 2, IDS - 1], axis=-1).astype(np.float32)
NOISE = np.linspace(-1, 1, 128, dtype=np.float32)[None]
PREDICTION: NDArray[Any] = NOISE * 2 - 1  # of the chain below; the largest is 3
TEXT: Arrays = {"input_ids": IDS, "text_mask": MASK}
LATENTS: Arrays = {"latents": NOISE, "timestep": np.array([999], np.float32)}


def encode(inputs: Arrays) -> Arrays:
    return {"states": STATES}


def first(inputs: Arrays) -> Arrays:
    return {"tokens_out": inputs["latents"] * 2, "modulation_out": inputs["timestep"] / 999}


def second(inputs: Arrays) -> Arrays:
    return {"prediction": inputs["tokens"] - inputs["modulation"]}


@dataclass
class Fake(CoreML):
    """By the names of package and function."""

    functions: dict[str, Function] = field(
        default_factory=lambda: {"Text/encode": encode, "First/px8x8": first, "Second/px8x8": second}
    )
    units: set[str] = field(default_factory=set)
    folders: set[Path] = field(default_factory=set)

    def describe(self) -> Mapping[str, str]:
        return {"chip": "Apple M9", "macOS": "15.1", "coremltools": "9.0"}

    def compile(self, package: Path, compiled: Path) -> None:
        assert package.suffix == ".mlpackage"
        assert compiled.suffix == ".mlmodelc"
        assert compiled.parent.is_dir()
        self.folders.add(compiled.parent)

    def load(self, compiled: Path, function: str, units: str) -> Function:
        self.units.add(units)
        return self.functions[f"{compiled.stem}/{function}"]

    def place(self, compiled: Path, function: str, units: str) -> Iterator[tuple[str, str]]:
        self.units.add(units)
        yield from [("linear", "GPU"), ("linear", "GPU"), ("add", "unknown")]
        if compiled.stem == "First":
            yield from [("topk", "CPU"), ("gather", "GPU"), ("gather", "CPU")]


class Aborting(Fake):
    """Core ML as it is where a graph is too much for MPSGraph: it ends the process."""

    def load(self, compiled: Path, function: str, units: str) -> Function:
        if compiled.stem == "Second":
            print("MPSGraph.mm:42: failed assertion `original'\n", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGABRT)
        return super().load(compiled, function, units)


class AbortingCompiler(Fake):
    def compile(self, package: Path, compiled: Path) -> None:
        if package.stem == "Text":
            os.kill(os.getpid(), signal.SIGSEGV)
        super().compile(package, compiled)


class AbortingPlacement(Fake):
    def place(self, compiled: Path, function: str, units: str) -> Iterator[tuple[str, str]]:
        if compiled.stem == "First":
            os.kill(os.getpid(), signal.SIGABRT)
        yield from super().place(compiled, function, units)


class Hanging(Fake):
    def load(self, compiled: Path, function: str, units: str) -> Function:
        if compiled.stem == "Text":
            time.sleep(3600)
        return super().load(compiled, function, units)


class Raising(Fake):
    def load(self, compiled: Path, function: str, units: str) -> Function:
        if compiled.stem == "First":
            raise Exception("only supported on macOS \x1b[31m")  # as coremltools does
        return super().load(compiled, function, units)


class Quitting(Fake):
    """Ends the process as if all were well."""

    def describe(self) -> Mapping[str, str]:
        os._exit(0)
