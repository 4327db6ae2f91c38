"""One trial of a conversion for MLX, or of what does less with the same checkpoint: `cp`, diffusers' load and save.

It reads a job from its input and writes what it measured to its output, both as JSON. The checkpoint is of random
weights, made anew, so that each trial finds it in the system's cache. The time is that of a fresh program, until what
it wrote is on the disk; the memory is its largest resident set, or the 10 MB of what starts it where that is more.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from moddit.benchmark.record import Arm, Stage
from moddit.configurations import find_configuration

_METER: Final = (
    "import resource, subprocess, sys; code = subprocess.call(sys.argv[1:], stdout=sys.stderr); "
    "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(code)"
)
_LOAD_AND_SAVE: Final = (
    "import sys, torch; from diffusers import DiTPipeline; "
    "DiTPipeline.from_pretrained(sys.argv[1], torch_dtype=torch.float16).save_pretrained(sys.argv[2])"
)
PROGRAMS: Final[Mapping[str, Sequence[str]]] = {
    "cp": ("cp", "-R", "{source}", "{target}"),
    "diffusers load and save": (sys.executable, "-c", _LOAD_AND_SAVE, "{source}", "{target}"),
    "convert": (sys.executable, "-m", "convert", "mlx", "--hf-path", "{source}", "--out", "{target}"),
}
QUANTISED: Final = 4  # bits


@dataclass(frozen=True)
class Job:
    """What to measure."""

    program: str  # a key of PROGRAMS
    bits: int | None  # that `convert` quantises to
    config: str  # of a DiT, which needs neither text encoder nor tokenizer
    layers: int


def run_metered(command: Sequence[str]) -> tuple[float, int]:
    """Run a program, its output to standard error; return its seconds and its largest resident set, bytes.

    Raises CalledProcessError if it fails.
    """
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", _METER, *command], stdout=subprocess.PIPE, text=True, check=True)
    unit = 1 if sys.platform == "darwin" else 1024
    return time.perf_counter() - start, int(done.stdout) * unit


def run(job: Job) -> dict[str, Any]:
    """Make a checkpoint and measure one program on it; returns what `mlx_moddit.benchmark.trial.run` does."""
    with tempfile.TemporaryDirectory() as scratch:
        source, target = Path(scratch, "source"), Path(scratch, "target")
        maker = [sys.executable, "-m", "benchmarks.random_checkpoint", job.config, str(job.layers), str(source)]
        subprocess.run(maker, stdout=sys.stderr, check=True)
        _flush(source)
        command = [word.format(source=source, target=target) for word in PROGRAMS[job.program]]
        command += [] if job.bits is None else ["-q", "--q-bits", str(job.bits)]
        seconds, peak = run_metered(command)
        start = time.perf_counter()
        _flush(target)
        seconds += time.perf_counter() - start
    arm = Arm(
        name=job.program if job.bits is None else f"{job.program} {job.bits}-bit",
        runtime="files",
        device="disk",
        dtype="float16",
        bits=job.bits,
        height=None,
        width=None,
        batch=1,
        steps=1,
        tokens=None,
        text_tokens=None,
        keep=None,
        kept_tokens=None,
        step_flops=None,
    )
    architecture = find_configuration(job.config).transformer.ARCHITECTURE
    subject = {"name": job.config, "fingerprint": None, "architecture": architecture, "layers": job.layers}
    return {"arm": asdict(arm), "subject": subject, "stages": [asdict(Stage("convert", (seconds,), None, peak, None))]}


def _flush(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)


if __name__ == "__main__":
    print(json.dumps(run(Job(**json.loads(sys.stdin.read())))))
