"""`mlx_moddit benchmark`: run trials in cold processes, arms in turns; print a table, write a record."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from tqdm import tqdm

import moddit
from mlx_moddit.benchmark.trial import Job
from moddit.benchmark.machine import read_commit, read_conditions, read_machine
from moddit.benchmark.record import RECORD_VERSION, Arm, BenchmarkRecord, Subject, Trial
from moddit.benchmark.summary import DENSE, ORACLE, ROUTED
from moddit.errors import ModditError
from moddit.manifest import read_manifest
from moddit.record import Origin, decode

ARMS: Final = (DENSE, ORACLE, ROUTED)
_LIBRARIES: Final[tuple[str, ...]] = ("mlx", "numpy", "torch", "diffusers")
TRIAL: Final = "mlx_moddit.benchmark.trial"


@dataclass(frozen=True)
class Turn:
    """What a trial of one arm runs."""

    job: Mapping[str, Any]  # what the process reads
    module: str = TRIAL


@dataclass(frozen=True)
class Choices:
    """How often and how far apart trials run."""

    trials: int  # of every arm
    delay: float = 0.0  # seconds before each


def arms_of(job: Job) -> tuple[str, ...]:
    """List the arms that the model of a job has.

    Raises:
        InputError: there is no such bundle.
    """
    if job.config is not None:
        return ARMS if job.keep is not None else (DENSE,)
    assert job.model is not None
    return (DENSE,) if read_manifest(Path(job.model)).tokens.is_dense else ARMS


def measure(turns: Sequence[Turn], choices: Choices, options: dict[str, Any], program: str) -> BenchmarkRecord:
    """Run trials of all arms in turns, forwards and backwards, so that what drifts hits all alike; and record them.

    Args:
        turns: one for each arm; all of one model.
        choices: how to run them.
        options: of the command, for the record.
        program: that measures, for the record.

    Raises:
        ModditError: a trial failed.
    """
    order = [number for trial in range(choices.trials) for number in _there_and_back(len(turns), trial)]
    arms: dict[int, Arm] = {}
    trials: list[Trial] = []
    subject: Subject | None = None
    for number in tqdm(order, desc="trials", file=sys.stderr, disable=None):
        if trials:
            time.sleep(choices.delay)
        before = read_conditions()
        said = run_trial(turns[number])
        arms[number] = decode(said["arm"], Arm, Origin("benchmark", "arm"))
        subject = decode(said["subject"], Subject, Origin("benchmark", "subject"))
        fields = {"arm": number, "stages": said["stages"], "operations": {}}
        conditions = {"before": asdict(before), "after": asdict(read_conditions())}
        trials.append(decode(fields | conditions, Trial, Origin("benchmark", "trial")))
    assert subject is not None
    return BenchmarkRecord(
        version=RECORD_VERSION,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        program=program,
        commit=read_commit(Path(moddit.__file__).parents[1]),
        options=options,
        libraries=versions(),
        machine=read_machine(),
        subject=subject,
        arms=tuple(arms[number] for number in range(len(turns))),
        trials=tuple(trials),
    )


def _there_and_back(count: int, trial: int) -> Sequence[int]:
    return range(count) if trial % 2 == 0 else range(count)[::-1]


def run_trial(turn: Turn) -> dict[str, Any]:
    """Run a trial in a process of its own; return what it measured (`trial.run`).

    Raises:
        ModditError: it failed, with what it said.
    """
    # -P and this path: the package of this installation, not of the folder the user is in
    paths = [str(Path(moddit.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-P", "-m", turn.module],
        input=json.dumps(turn.job),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        if done.returncode < 0:
            raise ModditError(
                f"[benchmark] signal {-done.returncode} ended a trial; a smaller size or --low-ram needs less memory"
            )
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise ModditError(lines[-1] if lines else f"[benchmark] a trial ended with status {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def versions() -> dict[str, str]:
    """Name what can change a time."""
    present = {item.name.lower() for item in importlib.metadata.distributions()}
    installed = {name: importlib.metadata.version(name) for name in _LIBRARIES if name in present}
    return {"moddit": moddit.__version__, "python": platform.python_version(), **installed}
