"""The figures of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib import pyplot as plt

from recipes.comparison.methods import BY_PRODUCT, DIAL, DIFFCR
from recipes.figures import name_regions, save_figure
from recipes.runs import read_journal
from torch_moddit.model import BlockTrace
from torch_moddit.pipeline import ReferencePipeline

SHOWN_STEPS: Final = 5  # of a picture, in the map of routers


def draw_quality(rows: Sequence[Mapping[str, Any]], outcome: str, path: Path) -> None:
    """Draw what pictures are worth over what they cost: a method by steps, at each keep ratio, is a line."""
    figure, panels = plt.subplots(1, 3, figsize=(15, 4.6))
    lines: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
    for row in rows:
        lines.setdefault((row["title"], row["keep"]), []).append(row)
    colours = {title: f"C{number}" for number, title in enumerate(dict.fromkeys(title for title, _ in lines))}
    readings = {
        f"{outcome}, share of pictures": lambda row: row["scores"][outcome],
        "dB against its own pictures of many steps": lambda row: row["psnr"],
        "Fréchet distance": lambda row: row["frechet"],
    }
    for axes, (name, read) in zip(panels, readings.items(), strict=True):
        for (title, keep), found in lines.items():
            points = sorted((row["flops"], read(row)) for row in found if read(row) is not None)
            if points:
                label = title if keep == 1 else f"{title} {keep}"
                axes.plot(*zip(*points, strict=True), ".-", color=colours[title], alpha=keep, linewidth=1, label=label)
        axes.set(xlabel="share of the FLOPs of dense pictures", ylabel=name)
    panels[2].set(yscale="log")
    panels[0].legend(fontsize=6)
    save_figure(figure, path)


def draw_trajectories(runs: Path, path: Path) -> None:
    """Draw how the mean keep ratio of each region moved in the trainings of DiffCR-LT, if there are any."""
    logs = sorted(runs.glob(f"{DIFFCR}-[01]*/log.jsonl"))
    if not logs:
        return
    figure, panels = plt.subplots(1, len(logs), figsize=(4 * len(logs), 3.4), squeeze=False, sharey=True)
    for axes, log in zip(panels[0], logs, strict=True):
        rows = read_journal(log)
        steps, regions = [row["step"] for row in rows], zip(*(row["keep_ratio_by_region"] for row in rows), strict=True)
        for name, ratios in zip(name_regions(len(rows[0]["keep_ratio_by_region"])), regions, strict=True):
            axes.plot(steps, ratios, label=name, linewidth=1)
        axes.set(xlabel="step", title=log.parent.name)
    panels[0][0].set(ylabel="mean keep ratio")
    panels[0][0].legend(fontsize=7)
    save_figure(figure, path)


def draw_by_products(rows: Sequence[Mapping[str, Any]], outcome: str, path: Path) -> None:
    """Draw what one run is worth on its way, and at its end where it keeps more, beside runs that end there."""
    if not any(row["method"] in (BY_PRODUCT, DIAL) for row in rows):
        return
    figure, axes = plt.subplots(figsize=(6.4, 4))
    for method, style in ((BY_PRODUCT, "o-"), (DIAL, "^-"), (DIFFCR, "s--")):
        for steps in dict.fromkeys(row["steps"] for row in rows if row["method"] == method):
            shown = [row for row in rows if (row["method"], row["steps"]) == (method, steps)]
            points = sorted((row["keep"], row["scores"][outcome]) for row in shown)
            axes.plot(*zip(*points, strict=True), style, label=f"{shown[0]['title']}, {steps} steps")
    axes.set(xlabel="mean keep ratio", ylabel=f"{outcome}, share of pictures")
    axes.legend(fontsize=7)
    save_figure(figure, path)


def draw_router_map(checkpoint: Path, prompt: str, steps: int, path: Path) -> None:
    """Draw which tokens of a picture each layer keeps, in some of its steps."""
    pipeline = ReferencePipeline.load(checkpoint)
    shown = sorted({int(step) for step in np.linspace(0, steps - 1, SHOWN_STEPS)})
    kept: dict[tuple[int, int], Any] = {}

    def watch(step: int, trace: BlockTrace) -> None:
        if step in shown:
            kept[trace.layer, step] = trace.kept[-1].numpy()  # of the half that has the prompt

    picture = pipeline.generate(prompt, steps=steps, on_block=watch)
    spec = pipeline.spec.transformer
    figure, panels = plt.subplots(
        len(shown), spec.num_layers + 1, figsize=(1 + spec.num_layers, 1.1 * len(shown)), squeeze=False
    )
    for row, step in enumerate(shown):
        for layer in range(spec.num_layers):
            mask = np.zeros(spec.base_size**2)
            mask[kept[layer, step]] = 1
            panels[row][layer].imshow(mask.reshape(spec.base_size, spec.base_size), cmap="gray", vmin=0, vmax=1)
        panels[row][-1].imshow(picture)
        panels[row][0].set_ylabel(f"step {step + 1}", fontsize=7)
    for layer, axes in enumerate(panels[0][:-1]):
        axes.set_title(f"layer {layer}", fontsize=7)
    for axes in panels.flat:
        axes.set(xticks=[], yticks=[])
    save_figure(figure, path)
