"""What docs/results.md shows: the table of scores and three pictures, all from the files that the stages wrote."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib import pyplot as plt
from numpy.typing import NDArray
from PIL import Image

from recipes.figures import name_regions, save_figure
from recipes.runs import read_journal
from recipes.shapes64.score import ATTRIBUTES
from recipes.training import REGIONS

TITLES: Final = {"dense": "dense", "diffcr": "DiffCR", "uniform": "uniform", "random": "random"}
REGION_NAMES: Final = tuple(name_regions(REGIONS))
SCALE: Final = 2  # sample pictures are shown this much larger
TITLE_WIDTH: Final = 25  # characters of a prompt above its picture


def draw_curves(work: Path, path: Path) -> None:
    """Draw the teacher's loss by region and its scores over samples, and the losses of the fine-tunes."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.4))
    rows = read_journal(work / "logs" / "dense.jsonl")
    samples = [row["samples"] / 1000 for row in rows]
    for region, name in enumerate(REGION_NAMES):
        left.plot(samples, [row["regions"][region] for row in rows], label=name, linewidth=1)
    left.set(xlabel="thousand samples", ylabel="velocity loss", yscale="log", title="dense teacher")
    left.legend(fontsize=7)
    scores = read_journal(work / "logs" / "dense-scores.jsonl")
    per_step = rows[-1]["samples"] / rows[-1]["step"] / 1000
    for name in ("form", "all"):
        middle.plot([row["step"] * per_step for row in scores], [row[name] for row in scores], "o-", label=name)
    middle.set(
        xlabel="thousand samples", ylabel="share of prompts", ylim=(0, 1), title="dense teacher, held-out prompts"
    )
    middle.legend(fontsize=7)
    for name in ("diffcr", "uniform", "random"):
        rows = read_journal(work / "runs" / name / "log.jsonl")
        right.plot([row["step"] for row in rows], [row["loss"] for row in rows], label=TITLES[name], linewidth=1)
    right.set(xlabel="step", ylabel="loss", yscale="log", title="fine-tuning")
    right.legend(fontsize=7)
    save_figure(figure, path)


def draw_samples(grids: dict[str, NDArray[np.float32]], prompts: Sequence[str], path: Path) -> None:
    """Draw one row of pictures a model; grids[model] is (B, 64, 64, 3) in 0..1 and all have the same prompts."""
    count = len(prompts)
    figure, axes = plt.subplots(len(grids), count, figsize=(1.15 * count, 1.2 * len(grids) + 0.6), squeeze=False)
    for row, (name, pictures) in enumerate(grids.items()):
        for column in range(count):
            panel = axes[row, column]
            large = Image.fromarray((pictures[column] * 255).round().astype(np.uint8)).resize((64 * SCALE,) * 2, 0)
            panel.imshow(large, interpolation="nearest")
            panel.set(xticks=[], yticks=[])
            if row == 0:
                panel.set_title(textwrap.fill(prompts[column], TITLE_WIDTH), fontsize=5)
        axes[row, 0].set_ylabel(TITLES[name], fontsize=9)
    save_figure(figure, path)


def write_table(results: dict[str, Any]) -> str:
    """Write the scores as a Markdown table: mean and half-width of the 95 % interval over seeds, in percent."""
    lines = [
        "| model | block FLOPs | " + " | ".join(ATTRIBUTES) + " | one object | two |",
        "|---|---|" + "---|" * (len(ATTRIBUTES) + 2),
    ]
    for name, result in results.items():
        scores = result["scores"]
        cells = [_percent(scores[key]) for key in (*ATTRIBUTES, "all/1", "all/2")]
        lines.append(f"| {TITLES[name]} | {100 * result['flops_share']:.1f} % | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _percent(value: dict[str, float]) -> str:
    mean, half = 100 * value["mean"], 100 * value["half_width"]
    return f"{mean:.1f}" if np.isnan(half) else f"{mean:.1f} ± {half:.1f}"
