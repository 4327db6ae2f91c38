"""docs/benchmarks.md: tables and plots of all records, beside the published times of other programs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.accuracy import write_accuracy
from benchmarks.plots import draw
from mlx_moddit.planner.chips import CHIPS
from mlx_moddit.planner.latency import chip_rates
from mlx_moddit.planner.plan import imagine
from moddit.benchmark.plausible import find_faults
from moddit.benchmark.record import BenchmarkRecord, read_record
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
ALTERNATIVES: Final = {  # what is shown where a plot is not
    "benchmarks-steps.svg": "Seconds of a step over the number of tokens: dense, oracle and routed",
    "benchmarks-gains.svg": "How many times faster routed steps are, over how many times fewer FLOPs they take",
}
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
_ACCURACY: Final = """
How well `mlx_moddit plan --record` predicts: the stages of every size, or of every model at all of its sizes, by rates
that are fitted on the others. A decoder is the same in all models: there a "model" is the decoder at one size.
"""
_INTRODUCTION: Final = """# Benchmarks

Made by `python -m benchmarks report` of the records in [benchmarks/records](../benchmarks/records), which `python -m
benchmarks run` writes. Every trial is a cold process, and the arms of a table took turns. Times are medians over
trials, with quartiles; "peak" is of the runtime's buffers, "process" of the whole process, on a Mac its footprint.

- **dense** processes every token, **routed** those that the routers score highest, and **oracle** as many as routed,
  but the first ones: what is between oracle and routed is what routing itself costs.
- **efficiency** is the gain in time over the gain in FLOPs. FLOPs are those of blocks, routers and the ends of a step,
  as [moddit/cost.py](../moddit/cost.py) counts them for MLX: keys and values of the text, and modulation, are computed
  once a picture there. diffusers computes them in every step, which its FLOPs here do not count.
- **first-block cache** is diffusers': a step whose first block adds about what it added before takes what the others
  added then. How many steps that are depends on the picture. "First step" computes all blocks, "step" the first alone,
  of two here.
- **convert** is the time of a fresh process, until all that it writes is on the disk; it finds the checkpoint, a DiT of
  diffusers in float16, in the system's cache. "Process" is its largest resident set, that of `cp` no less than the
  Python's that starts it.
- Intervals are of 95 %, by the bootstrap over pairs of trials.
"""


@dataclass(frozen=True)
class Report:
    """What is written of some records."""

    text: str  # in Markdown
    plots: Mapping[str, str]  # SVG by the name of its file, which lies beside the text


def write_report(folder: Path) -> Report:
    """Write the report of all records in a folder.

    Raises:
        MissingError: there is none.
        FormatError: one cannot be true.
        InputError: one cannot be read.
    """
    records = {path.stem: _read(path) for path in sorted(folder.glob("*.json"))}
    if not records:
        raise MissingError(f"[benchmark] {folder}: no records, want some of `python -m benchmarks run`")
    plots = {f"benchmarks-{name}.svg": text for name, text in draw(records.values()).items()}
    shown = [f"![{ALTERNATIVES[name]}]({name})\n" for name in plots]
    predicted = f"## Predicted\n{_PREDICTED}\n" + "\n".join(predict()) + "\n"
    accuracy = f"## Predicted and measured\n{_ACCURACY}\n" + "\n".join(write_accuracy(records.values())) + "\n"
    published = "## Published by others\n\nOf other programs and models, as they claim them.\n"
    sections = [_section(*item) for item in records.items()]
    text = "\n".join([_INTRODUCTION, *shown, *sections, accuracy, predicted, published, *markdown(PUBLISHED)]) + "\n"
    return Report(text, plots)


def write_summary(folder: Path) -> str:
    """Write what README shows of the report: what routing gains on the machines that were measured, and predictions."""
    rows = [("measured on", "model", "size", "arm", "dense / routed, time", "FLOPs", "efficiency", "cost of routing")]
    for path in sorted(folder.glob("*.json")):
        record = read_record(path)
        model = f"{record.subject.name.rsplit('/', 1)[-1]}, {record.subject.layers} layers"
        machine = f"{record.machine.chip}, {record.arms[0].device.upper()}"
        for gain in routing_gains(record):
            cost = "-" if gain.cost is None else f"{gain.cost.value:+.1%}"
            shares = (f"{gain.seconds.value:.2f}", f"{gain.flops:.2f}", f"{gain.efficiency.value:.2f}", cost)
            rows.append((machine, model, f"{gain.arm.height}x{gain.arm.width}", gain.arm.name, *shares))
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


def _read(path: Path) -> BenchmarkRecord:
    record = read_record(path)
    for fault in find_faults(record):
        raise FormatError(f"[benchmark] {path}: {fault}; measure again")
    return record


def _section(name: str, record: BenchmarkRecord) -> str:
    runtimes = ", ".join(sorted({f"{arm.runtime} on {arm.device}" for arm in record.arms}))
    head = f"## {name}\n\n{runtimes}; {record.created[:10]}, commit {str(record.commit)[:10]}.\n"
    return f"{head}\n{write_table(record)}\n"
