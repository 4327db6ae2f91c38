"""One picture of one entry in PyTorch in a process of its own, as `mlx_moddit.benchmark.trial` of MLX.

It reads a job from its input and writes what it measured to its output, both as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moddit.benchmark.record import Arm, Stage
from moddit.cost import dense_flops
from moddit.memory import take_peak
from recipes.comparison.drawing import Meter
from recipes.comparison.evaluation import open_entry
from recipes.comparison.methods import Entry


@dataclass(frozen=True)
class Job:
    """What to measure."""

    folder: str  # of the checkpoint
    method: str
    tenths: int
    training: int | None
    prompt: str
    steps: int

    @property
    def entry(self) -> Entry:
        return Entry(self.method, self.tenths, self.training)


def run(job: Job) -> dict[str, Any]:
    """Draw a picture and measure its steps; returns what `mlx_moddit.benchmark.trial.run` does.

    The FLOPs and the seconds of a step are those of the mean step of the picture.
    """
    pipeline = open_entry(Path(job.folder), job.entry)
    spec = pipeline.spec
    request = pipeline.request(job.prompt, steps=job.steps, **job.entry.options)
    meter = Meter(pipeline, job.entry)
    for _ in pipeline.denoise(request, on_block=lambda _, trace: meter.watch(trace)):
        pass  # a first picture, which counts the FLOPs
    take_peak()
    laps, start = [], time.perf_counter()
    for _ in pipeline.denoise(request):
        laps.append(time.perf_counter() - start)
        start = time.perf_counter()
    peak = take_peak()
    tokens = spec.transformer.tokens(request.height // spec.vae.downscale, request.width // spec.vae.downscale)
    ends = dense_flops(spec.transformer, tokens, spec.text_tokens) - meter.dense_flops  # of a step
    arm = Arm(
        name=job.entry.name,
        runtime="torch",
        device="cpu",
        dtype="float32",
        bits=None,
        height=request.height,
        width=request.width,
        batch=2,
        steps=job.steps,
        tokens=tokens,
        text_tokens=spec.text_tokens,
        keep=job.tenths / 10,
        kept_tokens=None,
        step_flops=float(2 * (ends + meter.flops / job.steps)),
    )
    means = {"first_step": laps[0], "step": sum(laps[1:]) / len(laps[1:])}
    stages = [Stage(name, (seconds,), None, peak.resident, peak.footprint) for name, seconds in means.items()]
    subject = {
        "name": Path(job.folder).name,
        "fingerprint": None,
        "architecture": spec.transformer.ARCHITECTURE,
        "layers": spec.transformer.num_layers,
    }
    return {"arm": asdict(arm), "subject": subject, "stages": [asdict(stage) for stage in stages]}


if __name__ == "__main__":
    print(json.dumps(run(Job(**json.loads(sys.stdin.read())))))
