"""The record of a benchmark: every sample, and what it was measured on. Python and Swift write the same JSON.

docs/benchmark.schema.json is made of it. Nothing in a record is computed from its samples: that is `summary`'s task, so
that a record stays right when a definition changes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Final

from msgspec import Meta

from moddit.bounds import (
    BATCH,
    FUNCTIONS,
    JSON_BYTES,
    LAYERS,
    TEXT_TOKENS,
    Batch,
    Layers,
    Name,
    Side,
    Text,
    Timesteps,
    Versions,
    choice,
)
from moddit.errors import FormatError, ValueRangeError
from moddit.record import Keys, Origin, decode, quote, read_json

RECORD_VERSION: Final = 1
THERMAL_STATES: Final = ("nominal", "fair", "serious", "critical", "unknown")
POWER_SOURCES: Final = ("mains", "battery", "unknown")
RUNTIMES: Final = ("mlx", "coreml", "torch", "files")  # "files" copies or converts a model, and draws nothing
# In the order in which they run. A cached step runs the first block alone; where the model is not asked there is none.
# Core ML's load is "cold" with the compilation, of a package that was in no cache.
STAGES: Final = (
    "convert",
    "load",
    "load_cold",
    "load_cached",
    "encode",
    "prepare",
    "first_step",
    "step",
    "cached_step",
    "first_predict",
    "predict",
    "decode",
)
ADVICE: Final = "run the benchmark again"
_SECONDS: Final = 1e5
_SAMPLES: Final = 10_000
_TRIALS: Final = 1000
_BYTES: Final = 1 << 50

Count = Annotated[int, Meta(ge=1, le=4096)]
Bytes = Annotated[int, Meta(ge=0, le=_BYTES)]
Seconds = Annotated[float, Meta(gt=0, le=_SECONDS)]


@dataclass(frozen=True)
class Machine:
    """What does not change between two benchmarks on one machine, but for its updates."""

    chip: Name  # "Apple M3 Pro"
    model: Name | None  # "Mac15,6"
    gpu_cores: Count | None
    cpu_cores: Count
    memory_bytes: Bytes
    system: Name  # "macOS 26.1"


@dataclass(frozen=True)
class Conditions:
    """What may slow a machine down, at one moment."""

    power_source: Annotated[str, choice(*POWER_SOURCES)]
    low_power_mode: bool | None  # None where it is not known
    thermal_state: Annotated[str, choice(*THERMAL_STATES)]
    load_average: Annotated[float, Meta(ge=0, le=1e5)] | None  # of the last minute


@dataclass(frozen=True)
class Subject:
    """The model."""

    name: Text  # of a named configuration, or what the bundle was made from
    fingerprint: Name | None  # of the bundle; None where the weights are random
    architecture: Name
    layers: Layers


@dataclass(frozen=True)
class Arm:
    """One way of doing the same work, or a function of Core ML; None is what it lacks or nobody counted."""

    name: Name  # "dense", "oracle", "routed"; of Core ML "transformer/px64x64_batch2_region0", a function of a package
    runtime: Annotated[str, choice(*RUNTIMES)]
    device: Name  # that computes: "gpu", "cpu", or the compute units of Core ML
    dtype: Name
    bits: Annotated[float, Meta(ge=1, le=16)] | None  # of the weights, in the mean, where they are quantised
    height: Side | None  # pixels; None for a text encoder
    width: Side | None
    batch: Batch
    steps: Timesteps
    tokens: Annotated[int, Meta(ge=1, le=1 << 20)] | None  # None for an autoencoder
    text_tokens: Annotated[int, Meta(ge=0, le=TEXT_TOKENS)] | None  # of the longest text; 0 of a model of classes
    keep: Annotated[float, Meta(gt=0, le=1)] | None  # share that was asked for; None: the model's own plan, or all
    kept_tokens: Annotated[float, Meta(ge=0, le=1 << 20)] | None  # of a block, in the mean over layers and full steps
    step_flops: Annotated[float, Meta(ge=0, le=1e18)] | None  # of a full step and its batch, in the mean


@dataclass(frozen=True)
class Stage:
    """What one stage of a trial took, each time it ran."""

    name: Annotated[str, choice(*STAGES)]
    seconds: Annotated[tuple[Seconds, ...], Meta(min_length=1, max_length=_SAMPLES)]
    runtime_peak_bytes: Bytes | None  # largest, of the runtime's buffers
    process_peak_bytes: Bytes | None  # largest, resident
    footprint_peak_bytes: Bytes | None  # largest phys_footprint, on a Mac


@dataclass(frozen=True)
class Trial:
    """One cold process."""

    arm: Annotated[int, Meta(ge=0, le=BATCH * LAYERS)]  # index into the arms
    before: Conditions
    after: Conditions
    stages: Annotated[tuple[Stage, ...], Meta(min_length=1, max_length=len(STAGES))]
    operations: Annotated[Mapping[Name, int], Meta(max_length=FUNCTIONS)]  # that Core ML would run, by device


@dataclass(frozen=True)
class BenchmarkRecord:
    """One run of a benchmark."""

    version: Annotated[int, Meta(ge=RECORD_VERSION, le=RECORD_VERSION)]
    created: Annotated[str, Meta(pattern=r"^[0-9]{4}(?:-[0-9]{2}){2}T[0-9]{2}(?::[0-9]{2}){2}Z(?![\s\S])")]
    program: Name  # "mlx_moddit benchmark"
    commit: Name | None
    options: Annotated[Mapping[Name, str | int | float | bool | None], Meta(max_length=100)]
    libraries: Versions
    machine: Machine
    subject: Subject
    arms: Annotated[tuple[Arm, ...], Meta(min_length=1, max_length=FUNCTIONS)]
    trials: Annotated[tuple[Trial, ...], Meta(min_length=1, max_length=_TRIALS)]  # in the order in which they ran

    def __post_init__(self) -> None:
        for number, trial in enumerate(self.trials):
            if trial.arm >= len(self.arms):
                raise ValueRangeError(f"[benchmark] trials[{number}].arm is {trial.arm}, want below {len(self.arms)}")
            names = [stage.name for stage in trial.stages]
            if len(set(names)) < len(names):
                raise FormatError(f"[benchmark] trials[{number}] has a stage twice, got {', '.join(names)}")

    def to_json(self) -> dict[str, Any]:
        """Write every field."""
        return asdict(self)

    def write(self) -> str:
        """Write the text of the file."""
        return json.dumps(self.to_json(), indent=1) + "\n"


def read_record(path: Path) -> BenchmarkRecord:
    """Read the record of a benchmark.

    Raises:
        MissingError: there is no such file.
        FormatError: not JSON, another version, or unknown or missing fields.
        ValueRangeError, UnsupportedError: a value that is not allowed.
    """
    origin = Origin("benchmark", str(path), ADVICE)
    value = read_json(path, origin, absent="want the record that a benchmark wrote with --json", most=JSON_BYTES)
    version = value.get("version") if isinstance(value, dict) else None
    if type(version) is not int or version != RECORD_VERSION:
        raise FormatError(f"{origin}: version is unknown, got {quote(version)}, want {RECORD_VERSION}; {ADVICE}")
    return decode(value, BenchmarkRecord, origin, Keys.EXACT)
