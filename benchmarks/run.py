"""Everything that a machine can measure, as suites of one record each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import mlx.core as mx

from benchmarks.conversion import PROGRAMS, QUANTISED
from benchmarks.conversion import Job as ConversionJob
from benchmarks.peer import FIRST_BLOCK_CACHE, TOME
from benchmarks.peer import Job as PeerJob
from mlx_moddit.benchmark.command import ARMS, Choices, Turn, measure
from mlx_moddit.benchmark.trial import Job
from mlx_moddit.embedded import embedded_bundle
from moddit.benchmark.machine import read_machine
from moddit.errors import MissingError
from moddit.files import new_file
from moddit.record import quote

PEER: Final = "benchmarks.peer"
CONVERSION: Final = "benchmarks.conversion"
KEEPS: Final = (0.8, 0.7, 0.5)


@dataclass(frozen=True)
class Suite:
    """Arms that take turns, of one model."""

    turns: Sequence[Turn]
    options: Mapping[str, Any]


def suites() -> dict[str, Suite]:
    """List what this machine can measure: true models on a GPU, a few of their layers on a CPU."""
    found = _gpu_suites() if mx.default_device() != mx.cpu else _cpu_suites()
    return {**found, "conversion": _conversion()}


def run_everything(folder: Path, *, trials: int, delay: float, only: Sequence[str]) -> Iterator[Path]:
    """Run suites, and write a record for each.

    Raises:
        MissingError: no such suite.
        ModditError: a trial failed.
    """
    known = suites()
    unknown = [name for name in only if name not in known]
    if unknown:
        raise MissingError(f"[benchmark] no suite {quote(unknown[0])}, want one of {', '.join(known)}")
    folder.mkdir(parents=True, exist_ok=True)
    chip = "-".join(read_machine().chip.lower().split())
    for name in only or known:
        suite = known[name]
        options = {"suite": name, "trials": trials, "delay": delay, **suite.options}
        made = measure(suite.turns, Choices(trials, delay), options, "python -m benchmarks run")
        path = folder / f"{chip}-{made.created[:10]}-{name}.json"
        with new_file(path, overwrite=True) as file:
            file.write(made.write().encode())
        yield path


def _job(**options: Any) -> dict[str, Any]:
    return asdict(Job(**options))


def _routing(sides: Sequence[int], **changes: Any) -> list[Turn]:
    """Make the three arms at half of the tokens, for square pictures."""
    return [Turn(_job(arm=arm, keep=0.5, height=side, width=side, **changes)) for side in sides for arm in ARMS]


def _embedded() -> Suite:
    return Suite([Turn(_job(arm=arm, model=str(embedded_bundle()))) for arm in ARMS], {"model": "shapes64"})


def _gpu_suites() -> dict[str, Suite]:
    found = {"shapes64": _embedded()}
    for config, sides in (("pixart-sigma-xl", (256, 512, 1024)), ("dit-xl-2", (256, 512))):
        found[config] = Suite(_routing(sides, config=config, dtype="float16"), {"keep": 0.5})
    large: dict[str, Any] = {"config": "pixart-sigma-xl", "height": 1024, "width": 1024}
    keeps = [Turn(_job(arm="routed", name=f"routed {keep}", keep=keep, dtype="float16", **large)) for keep in KEEPS]
    bits = [Turn(_job(name=f"dense {bits}-bit", bits=bits, **large)) for bits in (8, 4)]
    return {**found, "keep-and-bits": Suite([*keeps, *bits], {"config": "pixart-sigma-xl"})}


def _cpu_suites() -> dict[str, Suite]:
    """Make suites of few layers, in float32, without a batch of two: a CPU is there to compare, not to draw."""
    common: dict[str, Any] = {"layers": 2, "guidance_scale": 1.0}
    found = {"shapes64": _embedded()}
    for config, steps in (("dit-s-2", 20), ("dit-b-2", 12), ("pixart-sigma-xl", 6)):
        options = {"keep": 0.5, **common, "steps": steps}
        turns = _routing((256, 512), config=config, **common, steps=steps, decodes=False)
        found[config] = Suite(turns, options)
    found["routing-cost"] = Suite(
        _routing((512, 1024), config="pixart-sigma-xl", layers=1, guidance_scale=1.0, decodes=False, steps=4),
        {"keep": 0.5, "layers": 1},
    )
    decode = [
        Turn(_job(config="dit-s-2", layers=1, guidance_scale=1.0, steps=2, height=side, width=side))
        for side in (64, 128, 256)
    ]
    found["decode"] = Suite(decode, {"layers": 1})
    return {**found, "peers": _peers()}


def _peers() -> Suite:
    """Two layers of PixArt XL at 512 pixels: diffusers, with ToMe, with a first-block cache, ours dense and routed.

    Quantised weights are for GPUs: on a CPU a step in 4 bits takes 17 times as long as one in float32.
    """
    size: dict[str, Any] = {"config": "pixart-sigma-xl", "layers": 2, "height": 512, "width": 512, "steps": 6}
    peers = [
        Turn(asdict(PeerJob(name, method, merged=merged, text_tokens=33, batch=1, **size)), PEER)
        for name, method, merged in (
            ("diffusers", "dense", 0.0),
            ("diffusers with ToMe 0.5", TOME, 0.5),
            ("diffusers with first-block cache", FIRST_BLOCK_CACHE, 0.0),
        )
    ]
    ours: dict[str, Any] = {**size, "guidance_scale": 1.0, "decodes": False}
    routed = [Turn(_job(arm="routed", name=f"routed {keep}", keep=keep, **ours)) for keep in KEEPS]
    return Suite([*peers, Turn(_job(**ours)), *routed], {"layers": 2})


def _conversion() -> Suite:
    """Convert a whole DiT-XL/2 for MLX, in float16 and in 4 bits, against what only copies, and loads and saves, it."""
    programs = [*((program, None) for program in PROGRAMS), ("convert", QUANTISED)]
    jobs = [ConversionJob(program, bits, "dit-xl-2", 28) for program, bits in programs]
    return Suite([Turn(asdict(job), CONVERSION) for job in jobs], {})
