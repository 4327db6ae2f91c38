"""docs/benchmarks.md: the tables of all records, beside the published times of other programs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from mlx_moddit.planner.chips import CHIPS
from mlx_moddit.planner.latency import chip_rates
from mlx_moddit.planner.plan import imagine
from moddit.benchmark.plausible import find_faults
from moddit.benchmark.record import read_record
from moddit.benchmark.summary import routing_gains
from moddit.benchmark.table import markdown, write_table
from moddit.configurations import find_configuration
from moddit.errors import FormatError, MissingError

# Claimed by others of their own programs and other models; nobody has published times of a PixArt on an M-series chip.
PUBLISHED: Final = (
    ("chip", "model", "result", "source"),
    ("M1 Max", "FLUX.2 klein-4B, 4 bits, 1024x1024", "6.8 s a step", "flux2.c"),
    ("M4 Pro", "FLUX.2 klein-4B, bfloat16, 1024x1024, 4 steps", "27 s", "Iris"),
    ("M5 Max", "Anima Turbo (2B), 1024x1024, 10 steps", "5.3 s, 0.42 s a step, 6.7 GB", "its README"),
    ("M3 Max", "SANA-Sprint 1.6B on Core AI, 2 steps", "about 1.8 s", "its README"),
)
BEGIN: Final = "<!-- made by python -m benchmarks report -->"
END: Final = "<!-- end -->"
MODEL: Final = "pixart-sigma-xl"
SIDES: Final = (512, 1024)
KEEPS: Final = (1.0, 0.8, 0.5)
_PREDICTED: Final = """
Seconds for a picture of PixArt-Sigma XL by `mlx_moddit plan`: float16, 20 steps, guided, weights in memory; square
pictures of 512 and 1024 pixels, every layer keeping all, 0.8 or 0.5 of the tokens. In brackets where it should lie.
They come from the chips' peaks and published efficiencies: no Mac has confirmed them yet.
"""
_INTRODUCTION: Final = """# Benchmarks

Made by `python -m benchmarks report` of the records in [benchmarks/records](../benchmarks/records), which `python -m
benchmarks run` writes. Every trial is a cold process, and the arms of a table took turns. Times are medians over
trials, with quartiles; "peak" is of the runtime's buffers, "process" of the whole process, on a Mac its footprint.

- **dense** processes every token, **routed** those that the routers score highest, and **oracle** as many as routed,
  but the first ones: what is between oracle and routed is what routing itself costs.
- **efficiency** is the gain in time over the gain in FLOPs. FLOPs are those of blocks, routers and the ends of a step,
  as [moddit/cost.py](../moddit/cost.py) counts them for MLX: keys and values of the text, and modulation, are computed
  once a picture there. diffusers computes them in every step, and packages for Core ML the modulation of a DiT, which
  FLOPs here do not count.
- Intervals are of 95 %, by the bootstrap over pairs of trials.
"""


def write_report(folder: Path) -> str:
    """Write the report of all records in a folder.

    Raises:
        MissingError: there is none.
        FormatError: one cannot be true.
        InputError: one cannot be read.
    """
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise MissingError(f"[benchmark] {folder}: no records, want some of `python -m benchmarks run`")
    predicted = f"## Predicted\n{_PREDICTED}\n" + "\n".join(predict()) + "\n"
    published = "## Published by others\n\nOf other programs and models, as they claim them.\n"
    return "\n".join([_INTRODUCTION, *map(_section, paths), predicted, published, *markdown(PUBLISHED)]) + "\n"


def write_summary(folder: Path) -> str:
    """Write what README shows of the report: what routing gains on the machines that were measured, and predictions."""
    rows = [("measured on", "model", "size", "dense / routed, time", "FLOPs", "efficiency", "cost of routing")]
    for path in sorted(folder.glob("*.json")):
        record = read_record(path)
        model = f"{record.subject.name.rsplit('/', 1)[-1]}, {record.subject.layers} layers"
        machine = f"{record.machine.chip}, {record.arms[0].device.upper()}"
        for gain in routing_gains(record):
            cost = "-" if gain.cost is None else f"{gain.cost.value:+.1%}"
            shares = (f"{gain.seconds.value:.2f}", f"{gain.flops:.2f}", f"{gain.efficiency.value:.2f}", cost)
            rows.append((machine, model, f"{gain.height}x{gain.width}", *shares))
    return "\n".join([*markdown(rows), _PREDICTED, *predict()]) + "\n"


def update_readme(text: str, summary: str) -> str:
    """Put a summary between the marks of a README.

    Raises:
        FormatError: it has not both marks.
    """
    before, first, rest = text.partition(BEGIN)
    _, last, after = rest.partition(END)
    if not first or not last:
        raise FormatError(f"[benchmark] README.md: want {BEGIN!r}, and {END!r} after it")
    return f"{before}{BEGIN}\n{summary}{END}{after}"


def predict() -> Iterator[str]:
    """Write the table of predicted seconds for PixArt-Sigma over all chips."""
    rows = [("chip", *(f"{side}, keep {keep}" for side in SIDES for keep in KEEPS))]
    spec = find_configuration(MODEL)
    for chip in CHIPS:
        cells = []
        for side in SIDES:
            for keep in KEEPS:
                asked = imagine(MODEL, spec, (side, side), keep=keep, dtype="float16", bits=None, steps=20, batch=2)
                taken = asked.seconds(chip_rates(chip, 2))["picture"]
                cells.append(f"{taken.value:.0f} ({taken.low:.0f}-{taken.high:.0f})")
        rows.append((chip.name, *cells))
    return markdown(rows)


def _section(path: Path) -> str:
    record = read_record(path)
    for fault in find_faults(record):
        raise FormatError(f"[benchmark] {path}: {fault}; measure again")
    runtimes = ", ".join(sorted({f"{arm.runtime} on {arm.device}" for arm in record.arms}))
    head = f"## {path.stem}\n\n{runtimes}; {record.created[:10]}, commit {str(record.commit)[:10]}.\n"
    return f"{head}\n{write_table(record)}\n"
