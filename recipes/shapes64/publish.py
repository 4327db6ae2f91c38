"""Put what a run of the recipe made into the repository: the checkpoint, docs/results.md and its figures."""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path
from typing import Final

from recipes.pipeline import GUIDANCE, STEPS
from recipes.runs import read_journal, write_folder
from recipes.shapes64.figures import REGION_NAMES, TITLES, write_table
from recipes.shapes64.report import read_results
from recipes.shapes64.teacher import CHECKPOINT, drop_local_paths, save_teacher

OTHER_RESULTS: Final = "\n## Core ML\n"  # from here on docs/results.md is not this recipe's
FIGURES: Final = ("shapes64-ratios.png", "shapes64-samples.png", "shapes64-curves.png")


def publish(work: Path, repository: Path) -> None:
    """Copy the DiffCR checkpoint, its teacher and the figures, and write the recipe's part of docs/results.md."""

    def write(target: Path) -> None:
        shutil.copytree(work / "diffcr", target, dirs_exist_ok=True)
        drop_local_paths(target)

    write_folder(repository / CHECKPOINT, write)
    save_teacher(work, repository)
    docs = repository / "docs"
    for name in FIGURES:
        shutil.copyfile(work / "report" / name, docs / name)
    page = docs / "results.md"
    _, heading, others = page.read_text().partition(OTHER_RESULTS)
    page.write_text(write_results(work) + heading + others)


def write_results(work: Path) -> str:
    """Write docs/results.md from the files of a run."""
    results = read_results(work)
    dense = read_journal(work / "logs" / "dense.jsonl")[-1]
    vae = next(row["final"] for row in read_journal(work / "logs" / "vae.jsonl") if "final" in row)
    seeds, prompts = results["diffcr"]["scores"]["seeds"], results["diffcr"]["prompts"]
    missing = [title for name, title in TITLES.items() if name not in results]
    gaps = f"Not run yet: {', '.join(missing)}.\n" if missing else ""
    scores = f"""\
# Results of the embedded checkpoint, shapes64

Written by `python -m recipes.shapes64 --work DIR --publish .` from the files of one run, trained from scratch on a CPU.

## Scores

Share of held-out prompts in percent: {prompts} prompts, seeds of noise: {seeds}, {STEPS} steps of DPM-Solver++ 2M,
guidance {GUIDANCE}. ± is half of the 95 % interval of the mean over seeds (Student's t); every model was trained once.
"all" means every object right in colour, size, place and form, the background right and nothing else drawn. Block FLOPs
are those of the transformer's blocks and routers over the sampling run, relative to the dense model.
"""
    training = f"""\
The scorer finds {100 * vae["all"]:.1f} % of the autoencoder's reconstructions ({vae["psnr"]:.1f} dB) fully right: the
ceiling of every model. The teacher saw {dense["samples"]} samples in {dense["step"]} steps. The others started from it,
with the same data, rates and distillation; fine-tuning steps: {_count_steps(work)}.

![Samples of each model](shapes64-samples.png)

## Learned keep ratios
"""
    figures = """\
![Learned keep ratios](shapes64-ratios.png)

## Training curves

![Training curves](shapes64-curves.png)
"""
    ratios = _describe_ratios(results["diffcr"]["keep_tenths"]) + "\n"
    return "\n".join([scores, write_table(results) + "\n", gaps + training, ratios, figures])


def _count_steps(work: Path) -> str:
    counts = {name: read_journal(work / "runs" / name / "log.jsonl") for name in TITLES if name != "dense"}
    return ", ".join(f"{TITLES[name]} {rows[-1]['step']}" for name, rows in counts.items() if rows)


def _describe_ratios(keep_tenths: list[list[int]]) -> str:
    """State the means by region and by layer, and whether noisier regions are compressed more."""
    by_region = [sum(column) / (10 * len(column)) for column in zip(*keep_tenths, strict=True)]
    by_layer = [sum(row) / (10 * len(row)) for row in keep_tenths]
    falls = by_region[0] > by_region[-1] and all(clean >= noisy for clean, noisy in pairwise(by_region))
    named = [f"{name} {mean:.3f}" for name, mean in zip(REGION_NAMES, by_region, strict=True)]
    verdict = "appears" if falls else "does not appear as a steady fall"
    return (
        f"Mean keep ratio by region of timesteps: {', '.join(named)}.\n"
        f"By layer, first to last: {', '.join(f'{mean:.2f}' for mean in by_layer)}.\n"
        f"The paper's pattern, noisier regions compressed more, {verdict} in this run."
    )
