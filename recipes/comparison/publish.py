"""Put what a comparison found into the repository: a section of docs/results.md, its figures, and the numbers."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from moddit.errors import MissingError
from recipes.comparison.report import FIGURES, RESULTS, write_tables

BEFORE: Final = "\n## What is checked where\n"  # where a world's first section goes
TITLES: Final = {
    "quality.png": "Quality over cost",
    "ratios.png": "Keep ratios by layer and region",
    "trajectories.png": "Keep ratios in training",
    "by-products.png": "Quality along one run",
    "routes.png": "Tokens kept by layer and step",
}


def publish(work: Path, repository: Path) -> None:
    """Write the section of a world, in the place of an older one, and copy its files into docs/.

    Raises MissingError if there is no report.
    """
    report, docs = work / "report", repository / "docs"
    if not (report / RESULTS).exists():
        raise MissingError(f"[comparison] {report / RESULTS}: not there; run --stage report first")
    results = json.loads((report / RESULTS).read_text(encoding="utf-8"))
    prefix = f"comparison-{results['world']}"
    shutil.copyfile(report / RESULTS, docs / f"{prefix}.json")
    figures = [name for name in FIGURES if (report / name).exists()]
    for name in figures:
        shutil.copyfile(report / name, docs / f"{prefix}-{name}")
    section = write_section(results) + "".join(f"\n![{TITLES[name]}]({prefix}-{name})\n" for name in figures)
    page = docs / "results.md"
    page.write_text(insert_section(page.read_text(encoding="utf-8"), results["world"], section), encoding="utf-8")


def insert_section(page: str, world: str, section: str) -> str:
    """Put a world's section into a page, between marks: where it was, or before BEFORE."""
    begin, end = f"<!-- made by python -m recipes.comparison --world {world} -->\n", "<!-- end -->\n"
    made = f"{begin}{section}{end}"
    old = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    if old.search(page):
        return old.sub(lambda _: made, page)
    head, heading, tail = page.partition(BEFORE)
    return f"{head}\n{made}{heading}{tail}"


def write_section(results: Mapping[str, Any]) -> str:
    """Write the conditions of a comparison, and its tables."""
    world, trained = results["world"], results["trained"]
    return f"""\
## Methods compared on {world}

Written by `python -m recipes.comparison --world {world} --work DIR --publish .` from the files of one run
([numbers](comparison-{world}.json)). {results["prompts"]} held-out prompts, seeds of noise: {results["seeds"]}. What is
trained starts from the dense teacher and has {trained["steps"]} steps of {trained["batch_size"]} samples; seeds of
training: {results["trainings"]}, whose scores a slash separates.

- "{results["outcome"]}" is the share of pictures that show what was asked for.
- FLOPs are those of the blocks, counted while they ran, as a share of those of dense pictures of
  {results["base_steps"]} steps.
- dB compares pictures with those that the same checkpoint, as it was trained, draws in {results["reference_steps"]}
  steps from the same noise ({results["reference_prompts"]} prompts, one seed). It says nothing between checkpoints.
- The Fréchet distance is that of pictures from true ones of the same prompts, in a small classifier's features.
- Losses are those of noise and timesteps that are the same for all, by quarters of the timesteps.
- "No dearer" is what the method is worth without itself: its partner in the best of the numbers of steps that were
  drawn and cost as much or less, or a part of a step more. The partner of what was not trained is the dense teacher,
  of what was trained the dense model that was trained as long.
- Tests are exact sign tests over prompts, each of which counts once; p is the largest of the trainings'. A claim is
  made where it holds for each training and, at 5 %, together with all others of its kind (Holm).

{write_tables(results)}"""
