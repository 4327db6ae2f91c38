"""Figures that more than one recipe draws."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

from moddit.routing import region_timesteps

mpl.use("Agg")

from matplotlib import pyplot as plt  # the back end must be chosen first


def name_regions(count: int, num_train_timesteps: int = 1000) -> list[str]:
    """Name regions by their timesteps, the cleanest first."""
    spans = [region_timesteps(region, count, num_train_timesteps) for region in range(count)]
    names = [f"{span.start}-{span.stop - 1}" for span in spans]
    if count == 1:
        return names
    return [f"{names[0]} (clean)", *names[1:-1], f"{names[-1]} (noise)"]


def draw_ratios(keep_tenths: Sequence[Sequence[int]], path: Path) -> None:
    """Draw the keep ratios [layers][regions] as a heat map with their means."""
    table = np.array(keep_tenths).T / 10
    figure, axes = plt.subplots(figsize=(6.4, 0.9 + 0.5 * len(table)))
    image = axes.imshow(table, cmap="viridis", vmin=0, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(table):
        colour = "white" if value < 0.6 else "black"
        axes.text(column, row, f"{value:.1f}", ha="center", va="center", color=colour, fontsize=9)
    means = table.mean(axis=1)
    labels = [f"{name}\nmean {mean:.2f}" for name, mean in zip(name_regions(len(table)), means, strict=True)]
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.set_xticks(range(table.shape[1]), [str(layer) for layer in range(table.shape[1])])
    axes.set_xlabel("layer")
    axes.set_ylabel("timesteps")
    axes.set_title(f"learned keep ratios (mean {table.mean():.3f})", fontsize=10)
    figure.colorbar(image, ax=axes, label="share of tokens kept")
    save_figure(figure, path)


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure and close it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
