"""Seconds of a step on PyTorch and MLX beside its FLOPs: every picture a cold process, methods in turns with dense."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from convert.cli import main as convert
from mlx_moddit.benchmark.command import Choices, Turn, measure
from mlx_moddit.benchmark.trial import Job as MLXJob
from moddit.benchmark.record import BenchmarkRecord, read_record
from moddit.benchmark.summary import Ratio, ratio, stage_medians
from moddit.errors import ModditError
from moddit.files import new_file
from moddit.routing import DENOMINATOR
from recipes.comparison.evaluation import Evaluation
from recipes.comparison.methods import DENSE, METHODS, Entry
from recipes.comparison.trial import Job

TRIAL: Final = "recipes.comparison.trial"
RUNTIMES: Final = ("torch", "mlx")


@dataclass(frozen=True)
class Gain:
    """What a method gains against dense in the same run."""

    entry: str
    runtime: str
    seconds: Ratio  # a dense step / one of its own
    flops: float  # the same of FLOPs

    @property
    def efficiency(self) -> float:
        return self.seconds.value / self.flops


def time_missing(evaluation: Evaluation) -> None:
    """Write timing/torch.json and timing/mlx.json unless they are there, whatever they have: a run is of one moment."""
    for runtime in RUNTIMES:
        path = evaluation.work / "timing" / f"{runtime}.json"
        if not path.exists():
            turns = [_turn(evaluation, entry, runtime) for entry in _timed(evaluation, runtime)]
            trials = evaluation.scale.trials
            options = {"world": evaluation.world.NAME, "trials": trials}
            made = measure(turns, Choices(trials), options, "python -m recipes.comparison")
            with new_file(path, overwrite=False) as file:
                file.write(made.write().encode())


def read_gains(work: Path) -> Iterator[Gain]:
    """Compare the steps of every method with dense ones, of the runtimes that were timed."""
    for runtime in RUNTIMES:
        path = work / "timing" / f"{runtime}.json"
        if path.exists():
            yield from _gains(read_record(path), runtime)


def _gains(record: BenchmarkRecord, runtime: str) -> Iterator[Gain]:
    names = [arm.name for arm in record.arms]
    dense = names.index(Entry(DENSE, DENOMINATOR, None).name)
    steps, flops = stage_medians(record, dense, "step"), record.arms[dense].step_flops
    for number, arm in enumerate(record.arms):
        if number != dense and flops and arm.step_flops:
            yield Gain(arm.name, runtime, ratio(steps, stage_medians(record, number, "step")), flops / arm.step_flops)


def _timed(evaluation: Evaluation, runtime: str) -> Iterator[Entry]:
    """List what is timed: dense, and one training of each method; on MLX what it can run."""
    yield Entry(DENSE, DENOMINATOR, None)
    wanted = evaluation.scale.timed or METHODS
    for entry in evaluation.entries():
        can_run = runtime == "torch" or not (entry.how.rival or entry.options)
        if entry.method != DENSE and entry.method in wanted and not entry.training and can_run:
            yield entry


def _turn(evaluation: Evaluation, entry: Entry, runtime: str) -> Turn:
    folder, steps = evaluation.folder(entry), evaluation.scale.steps[0]
    prompt = evaluation.prompts[0]
    if runtime == "torch":
        return Turn(asdict(Job(str(folder), entry.method, entry.tenths, entry.training, prompt, steps)), TRIAL)
    arm = DENSE if entry.how.family is None or entry.tenths == DENOMINATOR else "routed"
    bundle = evaluation.work / "bundles" / (entry.checkpoint.name if entry.checkpoint else "teacher")
    if not bundle.exists():
        with redirect_stdout(sys.stderr):
            if convert(["mlx", "--hf-path", str(folder), "--out", str(bundle)]):
                raise ModditError(f"[comparison] could not convert {folder} to {bundle}")
    return Turn(asdict(MLXJob(arm=arm, name=entry.name, model=str(bundle), prompt=prompt, steps=steps)))
