"""What is asked of Core ML, each in a process of its own, which Core ML may kill.

`python -m convert.verify.device_task ENTRY TASK ANSWER` performs the task in the file TASK and writes the file ANSWER.
ENTRY names what makes the `CoreML` to ask, as `package.module:name`. Meanwhile ANSWER.doing tells what is being done.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from pkgutil import resolve_name
from statistics import median
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from convert.verify.framework import CoreML, Predict
from moddit.contract import taken_name

REPEATS: Final = 5  # timed predictions, after the one that is compared

Told = Callable[[str], object]  # what is being done
Answer = Mapping[str, Any]  # as JSON has it


@dataclass(frozen=True)
class Trouble:
    """Why there is no answer."""

    kind: str  # "refused", "crashed", "timed out" or "wrong output"
    detail: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}"


class Describe(msgspec.Struct, tag=True):
    """Tell the machine, as `machine`."""

    def perform(self, coreml: CoreML, told: Told) -> Answer:
        told("asking for the machine")
        return {"machine": dict(coreml.describe())}


class Compile(msgspec.Struct, tag=True):
    """Compile a package, in `seconds`."""

    package: str  # path
    compiled: str  # path, which ends in .mlmodelc

    def perform(self, coreml: CoreML, told: Told) -> Answer:
        told(f"compiling {Path(self.package).name}")
        start = time.perf_counter()
        coreml.compile(Path(self.package), Path(self.compiled))
        return {"seconds": time.perf_counter() - start}


class Link(msgspec.Struct):
    """A call of one function of a package."""

    package: str  # its name, for messages
    compiled: str  # path
    function: str
    inputs: list[str]  # those of the function


class Run(msgspec.Struct, tag=True):
    """Run a function through its whole chain of packages, of which one at a time is in memory.

    The one output of the last goes to the file `output`; the answer has `load_seconds`, and of `predict_seconds` the
    median, those of another function that prepares it left out.
    """

    function: str
    units: str
    chain: list[Link]
    reference: str  # path of reference.npz
    case: str  # whose inputs to take
    output: str  # path of an .npy

    def perform(self, coreml: CoreML, told: Told) -> Answer:
        prefix = f"{self.case}/input/"
        with np.load(self.reference, allow_pickle=False) as arrays:
            known = {key.removeprefix(prefix): arrays[key] for key in arrays.files if key.startswith(prefix)}
        outputs: Mapping[str, NDArray[Any]] = {}
        load_seconds = predict_seconds = 0.0
        for link in self.chain:
            known = known | {taken_name(key): array for key, array in outputs.items()}
            taken = {key: known[key] for key in link.inputs}
            told(f"loading {link.package}")
            start = time.perf_counter()
            run = coreml.load(Path(link.compiled), link.function, self.units)
            loaded = time.perf_counter() - start
            told(f"running {link.package}")
            outputs = run(dict(taken))  # coremltools may change the dictionary
            if link.function == self.function:
                load_seconds += loaded
                predict_seconds += median(_time(run, taken) for _ in range(REPEATS))
            del run  # before the next package is loaded
        (output,) = outputs.values()
        np.save(self.output, output, allow_pickle=False)
        return {"load_seconds": load_seconds, "predict_seconds": predict_seconds}


class Place(msgspec.Struct, tag=True):
    """Count a function's `operations`: by type, then by the device that Core ML prefers."""

    package: str  # path
    compiled: str  # path; taken as it is if the package has this function alone
    function: str
    units: str
    is_alone: bool
    folder: str  # for a copy with this function alone

    def perform(self, coreml: CoreML, told: Told) -> Answer:
        compiled = Path(self.compiled) if self.is_alone else self._compile_alone(coreml, told)
        told(f"placing {Path(self.package).name}")
        operations: dict[str, dict[str, int]] = {}
        for kind, device in coreml.place(compiled, self.function, self.units):
            counts = operations.setdefault(kind, {})
            counts[device] = counts.get(device, 0) + 1
        return {"operations": dict(sorted(operations.items()))}

    def _compile_alone(self, coreml: CoreML, told: Told) -> Path:
        from convert.verify.package import copy_function

        told(f"compiling {self.function} of {Path(self.package).name} alone")
        compiled = Path(self.folder, Path(self.compiled).name)
        copy = copy_function(Path(self.package), self.function, compiled.with_suffix(".mlpackage"))
        coreml.compile(copy, compiled)
        return compiled


Task = Describe | Compile | Run | Place


def perform(task: Task, coreml: CoreML, told: Told = lambda _: None) -> Answer | Trouble:
    """Perform a task; what Core ML refuses is trouble, every other error is raised."""
    doing = ""

    def note(what: str) -> None:
        nonlocal doing
        doing = what
        told(what)

    try:
        return task.perform(coreml, note)
    except RuntimeError as error:
        return Trouble("refused", f"while {doing}: {error}")


def write_task(task: Task, path: Path) -> None:
    """Write a task for another process."""
    path.write_bytes(msgspec.json.encode(task))


def read_task(path: Path) -> Task:
    """Read what `write_task` has written."""
    return msgspec.json.decode(path.read_bytes(), type=Task)


def _time(run: Predict, inputs: Mapping[str, NDArray[Any]]) -> float:
    start = time.perf_counter()
    run(dict(inputs))
    return time.perf_counter() - start


def main(entry: str, task: Path, answer: Path) -> None:
    """Perform a task in a file, and write the answer into another."""
    doing = answer.with_suffix(".doing")
    found = perform(read_task(task), resolve_name(entry)(), lambda what: doing.write_text(what, encoding="utf-8"))
    content = {"trouble": asdict(found)} if isinstance(found, Trouble) else {"answer": found}
    answer.write_text(json.dumps(content), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
