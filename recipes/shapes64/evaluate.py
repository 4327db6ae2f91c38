"""Score a pipeline on held-out scenes: how often the picture shows what the caption says."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from diffusers import PixArtSigmaPipeline

from recipes.pipeline import GUIDANCE, STEPS, generate
from recipes.shapes64.scenes import Scene, caption, draw_scene
from recipes.shapes64.score import ATTRIBUTES, score

STUDENT: Final = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # 97.5 % quantile of Student's t by number of seeds


def draw_held_out(count: int, *, seed: int = 11) -> list[Scene]:
    """Draw different held-out scenes, the same ones for every model."""
    rng = np.random.default_rng(seed)
    scenes: dict[Scene, None] = {}
    while len(scenes) < count:
        scenes.setdefault(draw_scene(rng, held_out=True))
    return list(scenes)


def evaluate(
    pipeline: PixArtSigmaPipeline, scenes: list[Scene], *, seed: int, steps: int = STEPS, guidance: float = GUIDANCE
) -> dict[str, float]:
    """Share of scenes satisfied for each attribute; "all/1" and "all/2" are the scenes of one and of two objects."""
    pictures = generate(pipeline, [caption(scene) for scene in scenes], seed=seed, steps=steps, guidance=guidance)
    rows = [score(picture, scene) for picture, scene in zip(pictures, scenes, strict=True)]
    result = {name: float(np.mean([row[name] for row in rows])) for name in ATTRIBUTES}
    for number in (1, 2):
        chosen = [row["all"] for row, scene in zip(rows, scenes, strict=True) if len(scene.things) == number]
        result[f"all/{number}"] = float(np.mean(chosen)) if chosen else math.nan
    return result


def list_timesteps(pipeline: PixArtSigmaPipeline, steps: int = STEPS) -> list[int]:
    """List the timesteps of a sampling run."""
    pipeline.scheduler.set_timesteps(steps)
    return [int(timestep) for timestep in pipeline.scheduler.timesteps]


def summarise(runs: list[dict[str, float]]) -> dict[str, Any]:
    """Mean and half-width of the 95 % interval of the mean over seeds (Student's t), for each attribute."""
    summary: dict[str, Any] = {"seeds": len(runs)}
    for name in runs[0]:
        values = np.array([run[name] for run in runs])
        half = STUDENT[len(runs)] * values.std(ddof=1) / math.sqrt(len(runs)) if len(runs) > 1 else math.nan
        summary[name] = {"mean": float(values.mean()), "half_width": float(half)}
    return summary
