"""The last stages: score every model, then write the tables and figures of docs/results.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moddit.cost import kept_flops_share
from recipes.figures import draw_ratios
from recipes.pipeline import generate, load_pipeline, route
from recipes.shapes64.diffcr import load_model
from recipes.shapes64.evaluate import draw_held_out, evaluate, list_timesteps, summarise
from recipes.shapes64.figures import TITLES, draw_curves, draw_samples, write_table
from recipes.shapes64.scenes import caption
from recipes.shapes64.text import MAX_TOKENS

SAMPLE_SEED = 100


def evaluate_model(work: Path, name: str, *, prompts: int, seeds: int, shown: int) -> None:
    """Score one model with each seed and keep some pictures; what is there already is not repeated."""
    model = load_model(work / name)
    pipeline = route(load_pipeline(work / "dense"), model)
    scenes = draw_held_out(prompts)
    timesteps = list_timesteps(pipeline)
    tokens = model.spec.tokens(model.spec.sample_size, model.spec.sample_size)
    for seed in range(1, seeds + 1):
        path = work / "scores" / f"{name}-{seed}.json"
        if path.exists():
            continue
        model.generator = torch.Generator().manual_seed(seed)
        row: dict[str, Any] = {"scores": evaluate(pipeline, scenes, seed=seed), "prompts": prompts}
        row["flops_share"] = kept_flops_share(model.spec, model.policy, timesteps, tokens, MAX_TOKENS)
        row["keep_tenths"] = model.policy.plan.keep_tenths
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(row))
        print(f"[evaluate] {name} seed {seed}", row["scores"], flush=True)
    path = work / "samples" / f"{name}.npy"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        model.generator = torch.Generator().manual_seed(SAMPLE_SEED)
        np.save(path, generate(pipeline, [caption(scene) for scene in scenes[:shown]], seed=SAMPLE_SEED))


def read_results(work: Path) -> dict[str, Any]:
    """Gather the scores over seeds: model -> scores (summarised), flops_share, keep_tenths, prompts."""
    results: dict[str, Any] = {}
    for name in TITLES:
        rows = [json.loads(path.read_text()) for path in sorted((work / "scores").glob(f"{name}-*.json"))]
        if rows:
            results[name] = {**rows[0], "scores": summarise([row["scores"] for row in rows])}
    return results


def write_report(work: Path, folder: Path, *, shown: int) -> None:
    """Write results.json, the table and the figures."""
    folder.mkdir(parents=True, exist_ok=True)
    results = read_results(work)
    (folder / "shapes64-results.json").write_text(json.dumps(results, indent=1) + "\n")
    (folder / "shapes64-table.md").write_text(write_table(results) + "\n")
    if "diffcr" in results:
        draw_ratios(results["diffcr"]["keep_tenths"], folder / "shapes64-ratios.png")
    grids = {name: np.load(work / "samples" / f"{name}.npy") for name in results}
    prompts = [caption(scene) for scene in draw_held_out(shown)]
    draw_samples(grids, prompts, folder / "shapes64-samples.png")
    draw_curves(work, folder / "shapes64-curves.png")
